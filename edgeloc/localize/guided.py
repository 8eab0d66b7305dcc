"""Guided matching: features beside the pixels where landmarks are expected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeloc.geometry.camera import project
from edgeloc.geometry.refine import pose_jacobian
from edgeloc.tiles.layout import LocalMap
from edgeloc.types import (
    BoolArray,
    CameraModel,
    Features,
    Float32Array,
    FloatArray,
    IntArray,
    Rigid3,
)

# Arrays of one part stay within a few MB.
_PAIRS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidedOptions:
    """Where landmarks are looked for, and what counts as found.

    Parameters
    ----------
    max_view_angle_deg : float
        Landmarks are looked for where some keyframe saw them from within this angle,
    max_scale : float
        and from at most so many times nearer or farther.
    window_sigmas : float
        Radius of the search, in standard deviations of the predicted pixel,
    min_window_px, max_window_px : float
        within these bounds.
    usual_window_px : float
        Radius up to which `max_expected` landmarks are looked for; in wider windows
        fewer, but not fewer than `min_expected`.
    min_expected, max_expected : int
        Landmarks looked for at a time: those that are followed already come first, then
        those that the most mapping images saw.
    window_ratio : float
        Lowe's ratio between the best and the second best inside the window.
    min_similarity : float
        Smallest cosine of a match.
    """

    max_view_angle_deg: float = 50.0
    max_scale: float = 2.0
    window_sigmas: float = 3.0
    min_window_px: float = 5.0
    max_window_px: float = 48.0
    usual_window_px: float = 12.0
    min_expected: int = 150
    max_expected: int = 1000
    window_ratio: float = 0.9
    min_similarity: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ViewedMap:
    """Landmarks around the camera, with who sees them.

    Parameters
    ----------
    local_map : LocalMap
        The landmarks.
    pair_point_idx : ndarray of shape (V,), int64
        Landmark of each sighting by a keyframe, ascending.
    pair_centers : ndarray of shape (V, 3), float64
        Camera centre of that keyframe, m.
    made_at : Rigid3
        Pose that it was made for.
    """

    local_map: LocalMap
    pair_point_idx: IntArray
    pair_centers: FloatArray
    made_at: Rigid3


def make_viewed_map(
    local_map: LocalMap,
    *,
    visible: Sequence[IntArray],
    centers: FloatArray,
    made_at: Rigid3,
) -> ViewedMap:
    """Return the landmarks of some keyframes, ready to be looked for.

    Parameters
    ----------
    local_map : LocalMap
        All landmarks that the keyframes see.
    visible : sequence of ndarray of int64
        Landmark ids of each keyframe.
    centers : ndarray of shape (K, 3), float64
        Camera centres of the keyframes, m.
    made_at : Rigid3
        Pose that the keyframes were chosen for.
    """
    counts = [len(ids) for ids in visible]
    idx = np.searchsorted(
        local_map.point3D_ids, np.concatenate([np.zeros(0, np.int64), *visible])
    )
    order = np.argsort(idx, kind="stable")
    return ViewedMap(
        local_map=local_map,
        pair_point_idx=idx[order],
        pair_centers=np.repeat(centers, counts, axis=0)[order],
        made_at=made_at,
    )


def seen_alike(
    viewed: ViewedMap, center: FloatArray, options: GuidedOptions
) -> BoolArray:
    """Return which landmarks some keyframe saw about as a camera there would.

    Parameters
    ----------
    viewed : ViewedMap
        Landmarks.
    center : ndarray of shape (3,), float64
        Camera centre, m.
    options : GuidedOptions
        Angle and scale.
    """
    points = viewed.local_map.points3D
    to_camera = center - points
    distance = np.maximum(np.linalg.norm(to_camera, axis=1), 1e-12)
    idx = viewed.pair_point_idx
    to_keyframe = viewed.pair_centers - points[idx]
    keyframe_distance = np.maximum(np.linalg.norm(to_keyframe, axis=1), 1e-12)
    cosine = np.einsum("vi,vi->v", to_keyframe, to_camera[idx])
    cosine /= keyframe_distance * distance[idx]
    scale = keyframe_distance / distance[idx]
    alike = (
        (cosine >= np.cos(np.deg2rad(options.max_view_angle_deg)))
        & (scale <= options.max_scale)
        & (scale >= 1.0 / options.max_scale)
    )
    return np.bincount(idx[alike], minlength=len(points)) > 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Expected:
    """Landmarks that a picture, or a part of it, should show.

    Parameters
    ----------
    point_idx : ndarray of shape (P,), int64
        Into the local map.
    pixels : ndarray of shape (P, 2), float64
        Where, px.
    radii_px : ndarray of shape (P,), float64
        How far around to look.
    """

    point_idx: IntArray
    pixels: FloatArray
    radii_px: FloatArray


def expected_landmarks(
    viewed: ViewedMap,
    camera: CameraModel,
    *,
    cam_from_world: Rigid3,
    covariance: FloatArray,
    rows_px: tuple[float, float],
    followed_ids: IntArray,
    options: GuidedOptions,
) -> Expected:
    """Return the landmarks that a camera at a predicted pose should see, and where.

    Parameters
    ----------
    viewed : ViewedMap
        Landmarks around it.
    camera : CameraModel
        Intrinsics.
    cam_from_world : Rigid3
        Prediction.
    covariance : ndarray of shape (6, 6), float64
        Of the prediction, in the convention of `edgeloc.types`.
    rows_px : tuple of float
        First and last row of the part of the picture that is looked at.
    followed_ids : ndarray of shape (M,), int64
        Landmarks that are followed already.
    options : GuidedOptions
        Gates.
    """
    points = viewed.local_map.points3D
    pixels, in_front = project(camera, cam_from_world.transform(points))
    usable = in_front & seen_alike(viewed, cam_from_world.origin_in_a, options)
    usable &= (pixels[:, 0] >= 0) & (pixels[:, 0] < camera.width)
    usable &= (pixels[:, 1] >= rows_px[0]) & (pixels[:, 1] < rows_px[1])
    idx = np.flatnonzero(usable)
    _, jac, _ = pose_jacobian(camera, cam_from_world, points[idx])
    spread = np.einsum("nij,jk,nik->n", jac, covariance, jac) / 2.0
    radii = options.window_sigmas * np.sqrt(np.maximum(spread, 0.0))
    radii = np.clip(radii, options.min_window_px, options.max_window_px)
    # Wide windows hold many features: the work grows with their area.
    area = float(np.square(radii / options.usual_window_px).mean()) if len(idx) else 0.0
    most = max(round(options.max_expected / max(area, 1.0)), options.min_expected)
    if len(idx) > most:
        local_map = viewed.local_map
        followed = np.isin(local_map.point3D_ids[idx], followed_ids)
        worth = local_map.num_observations[idx] + 1_000_000 * followed
        best = np.sort(np.argsort(-worth, kind="stable")[:most])
        idx, radii = idx[best], radii[best]
    return Expected(
        point_idx=idx,
        pixels=pixels[idx],
        radii_px=radii,
    )


def match_expected(
    expected: Expected,
    local_map: LocalMap,
    *,
    features: Features,
    descriptors: Float32Array,
    decode: Callable[[npt.NDArray[np.generic]], Float32Array],
    options: GuidedOptions,
) -> tuple[IntArray, IntArray, Float32Array]:
    """Return features that match landmarks inside their windows.

    Best of both sides within the window, and clearly better than the second best there.

    Parameters
    ----------
    expected : Expected
        Landmarks and windows.
    local_map : LocalMap
        What `Expected.point_idx` points into.
    features : Features
        Of the picture.
    descriptors : ndarray of shape (N, D), float32
        Theirs, decoded.
    decode : callable
        From stored to decoded descriptors of landmarks.
    options : GuidedOptions
        What counts as a match.

    Returns
    -------
    feature_idx, point_idx : ndarray of shape (M,), int64
        Best first; each at most once.
    scores : ndarray of shape (M,), float32
        How distinct each match is, see `edgeloc.features.match`.
    """
    # Windows are small: comparing everything with everything is a hundred times more.
    expected_idx, feature_idx = _inside_windows(expected, features.keypoints)
    similarity = _pair_similarity(
        local_map,
        expected.point_idx[expected_idx],
        descriptors=descriptors,
        feature_idx=feature_idx,
        decode=decode,
    )
    return _choose(
        expected,
        expected_idx,
        feature_idx=feature_idx,
        similarity=similarity,
        options=options,
    )


def match_similar(
    expected: Expected,
    *,
    keypoints: Float32Array,
    similarity: Float32Array,
    options: GuidedOptions,
) -> tuple[IntArray, IntArray, Float32Array]:
    """Do the same as `match_expected` where all similarities are known.

    Parameters
    ----------
    expected : Expected
        Landmarks and windows.
    keypoints : ndarray of shape (N, 2), float32
        Of the picture, px.
    similarity : ndarray of shape (P, N), float32
        Of all landmarks of the local map to the keypoints' descriptors.
    options : GuidedOptions
        What counts as a match.

    Returns
    -------
    feature_idx, point_idx : ndarray of shape (M,), int64
        Best first; each at most once.
    scores : ndarray of shape (M,), float32
        How distinct each match is.
    """
    expected_idx, feature_idx = _inside_windows(expected, keypoints)
    return _choose(
        expected,
        expected_idx,
        feature_idx=feature_idx,
        similarity=similarity[expected.point_idx[expected_idx], feature_idx],
        options=options,
    )


def _choose(
    expected: Expected,
    expected_idx: IntArray,
    *,
    feature_idx: IntArray,
    similarity: Float32Array,
    options: GuidedOptions,
) -> tuple[IntArray, IntArray, Float32Array]:
    """Return what `match_expected` does, of pairs of windows and features in them."""
    if not len(expected_idx):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    best_of_feature = np.full(int(feature_idx.max()) + 1, -1.0, np.float32)
    np.maximum.at(best_of_feature, feature_idx, similarity)
    order = np.lexsort((-similarity, expected_idx))
    expected_idx, feature_idx = expected_idx[order], feature_idx[order]
    similarity = similarity[order]
    first = np.flatnonzero(np.diff(expected_idx, prepend=-1))
    best = similarity[first]
    second = np.full(len(first), -1.0, np.float32)
    several = np.diff(np.append(first, len(expected_idx))) > 1
    second[several] = similarity[first[several] + 1]
    # The same floor for both: of two perfect matches, neither is told from the other.
    first2 = np.maximum(2.0 - 2.0 * best, 1e-6)
    second2 = np.maximum(2.0 - 2.0 * second, 1e-6)
    chosen = feature_idx[first]
    kept = np.flatnonzero(
        (best >= options.min_similarity)
        & (best >= best_of_feature[chosen])
        & (first2 <= options.window_ratio**2 * second2)
    )
    scores = 1.0 - first2[kept] / second2[kept]
    kept = kept[np.argsort(-scores, kind="stable")]
    # Equals may tie for one feature.
    _, once = np.unique(chosen[kept], return_index=True)
    kept = kept[np.sort(once)]
    scores = 1.0 - first2[kept] / second2[kept]
    return (
        chosen[kept],
        expected.point_idx[expected_idx[first[kept]]],
        scores.astype(np.float32),
    )


def _inside_windows(
    expected: Expected, keypoints: Float32Array
) -> tuple[IntArray, IntArray]:
    """Return which keypoints are in which windows, (V,) and (V,), by window.

    Keypoints are sorted into rows of square cells as large as the largest window, so
    that those of a window lie in three runs of them.
    """
    if not len(expected.pixels) or not len(keypoints):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    size = max(float(expected.radii_px.max()), 1.0)
    cells = np.floor(keypoints / size).astype(np.int64)
    first = cells.min(axis=0) - 1
    cells -= first
    columns = int(cells[:, 0].max()) + 2
    number = cells[:, 1] * columns + cells[:, 0]
    order = np.argsort(number, kind="stable")
    number = number[order]
    at = np.floor(expected.pixels / size).astype(np.int64) - first
    left = np.clip(at[:, 0] - 1, 0, columns - 1)
    right = np.clip(at[:, 0] + 1, 0, columns - 1)
    rows = at[:, 1, None] + np.arange(-1, 2)
    begin = np.searchsorted(number, (rows * columns + left[:, None]).ravel())
    end = np.searchsorted(number, (rows * columns + right[:, None]).ravel(), "right")
    counts = np.maximum(end - begin, 0)
    window_idx = np.repeat(np.arange(len(counts)) // 3, counts)
    run_starts = np.cumsum(counts) - counts
    keypoint_idx = order[
        np.arange(len(window_idx)) + np.repeat(begin - run_starts, counts)
    ]
    offset = expected.pixels[window_idx] - keypoints[keypoint_idx]
    inside = np.einsum("vi,vi->v", offset, offset) <= expected.radii_px[window_idx] ** 2
    window_idx, keypoint_idx = window_idx[inside], keypoint_idx[inside]
    by_window = np.lexsort((keypoint_idx, window_idx))
    return window_idx[by_window], keypoint_idx[by_window]


def _pair_similarity(
    local_map: LocalMap,
    point_idx: IntArray,
    *,
    descriptors: Float32Array,
    feature_idx: IntArray,
    decode: Callable[[npt.NDArray[np.generic]], Float32Array],
) -> Float32Array:
    """Return how similar each landmark is to the feature beside it, (V,).

    A landmark is as similar as its most similar descriptor, as in
    `edgeloc.features.match.landmark_similarity`.
    """
    if not len(point_idx):
        return np.zeros(0, np.float32)
    starts = np.searchsorted(local_map.row_to_point, point_idx)
    counts = np.searchsorted(local_map.row_to_point, point_idx, side="right") - starts
    pair_starts = np.cumsum(counts) - counts
    pairs = np.repeat(np.arange(len(point_idx)), counts)
    rows = np.arange(len(pairs)) - pair_starts[pairs] + starts[pairs]
    wanted, where = np.unique(rows, return_inverse=True)
    decoded = decode(local_map.descriptors[wanted])
    seen_idx = feature_idx[pairs]
    products = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        np.einsum(
            "vd,vd->v",
            decoded[where[part]],
            descriptors[seen_idx[part]],
            out=products[part],
        )
    return np.asarray(np.maximum.reduceat(products, pair_starts), np.float32)
