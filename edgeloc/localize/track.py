"""TRACK: landmarks where the prediction expects them; no retrieval.

Two ways: pixels of landmarks followed from the frame before (`klt`), and features
matched to landmarks that are projected with the predicted pose (guided matching).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from edgeloc.geometry.camera import project
from edgeloc.geometry.pnp import PnpOptions, estimate_pose
from edgeloc.geometry.refine import pose_jacobian
from edgeloc.localize.candidate import LOST, Candidate
from edgeloc.localize.klt import KltOptions, Tracks, follow, spread_order
from edgeloc.localize.structure import (
    FixCalibration,
    IntegrityOptions,
    fix_from_pnp,
    is_sound,
)
from edgeloc.tiles.layout import LocalMap
from edgeloc.types import (
    BoolArray,
    ByteArray,
    CameraModel,
    Cause,
    Features,
    Float32Array,
    FloatArray,
    IntArray,
    Rigid3,
    Rung,
)

# Arrays of one part stay within a few MB: a thousand windows times a thousand keypoints
# and the descriptors of all their pairs would be a hundred, for the time of a frame.
_WINDOWS_AT_ONCE = 128
_PAIRS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackOptions:
    """Options of TRACK.

    Parameters
    ----------
    klt : KltOptions
        Of following pixels.
    pnp : PnpOptions
        Of the pose.
    integrity : IntegrityOptions
        Gates, as for RELOCALIZE.
    inlier_sigmas : float
        Limit of an inlier, in standard deviations. Wider than for fresh matches, which
        are right or wrong: what is followed was right once, and points that come and go
        at a narrow limit would make the pose jump.
    sighting_sigmas : float
        The same of a fresh sighting of a landmark.
    max_tracks : int
        Landmarks followed.
    few_tracks : int
        With fewer, more are looked for at once.
    min_found : float
        Smallest share of the landmarks that should be in the picture and are found: a
        camera that is covered or carried away loses most of them at once.
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
    blend : float
        Weight of a fresh sighting against the followed pixel; the first few sightings
        are averaged.
    """

    klt: KltOptions = field(default_factory=KltOptions)
    pnp: PnpOptions = field(default_factory=lambda: PnpOptions(max_error_px=4.0))
    integrity: IntegrityOptions = field(default_factory=IntegrityOptions)
    inlier_sigmas: float = 6.0
    sighting_sigmas: float = 3.4
    max_tracks: int = 120
    few_tracks: int = 70
    min_found: float = 0.3
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
    blend: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrackMap:
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


def make_track_map(
    local_map: LocalMap,
    *,
    visible: Sequence[IntArray],
    centers: FloatArray,
    made_at: Rigid3,
) -> TrackMap:
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
    return TrackMap(
        local_map=local_map,
        pair_point_idx=idx[order],
        pair_centers=np.repeat(centers, counts, axis=0)[order],
        made_at=made_at,
    )


def seen_alike(
    track_map: TrackMap, center: FloatArray, options: TrackOptions
) -> BoolArray:
    """Return which landmarks some keyframe saw about as a camera there would.

    Parameters
    ----------
    track_map : TrackMap
        Landmarks.
    center : ndarray of shape (3,), float64
        Camera centre, m.
    options : TrackOptions
        Angle and scale.
    """
    points = track_map.local_map.points3D
    to_camera = center - points
    distance = np.maximum(np.linalg.norm(to_camera, axis=1), 1e-12)
    idx = track_map.pair_point_idx
    to_keyframe = track_map.pair_centers - points[idx]
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
    track_map: TrackMap,
    camera: CameraModel,
    *,
    cam_from_world: Rigid3,
    covariance: FloatArray,
    rows_px: tuple[float, float],
    followed_ids: IntArray,
    options: TrackOptions,
) -> Expected:
    """Return the landmarks that a camera at a predicted pose should see, and where.

    Parameters
    ----------
    track_map : TrackMap
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
    options : TrackOptions
        Gates.
    """
    points = track_map.local_map.points3D
    pixels, in_front = project(camera, cam_from_world.transform(points))
    usable = in_front & seen_alike(track_map, cam_from_world.origin_in_a, options)
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
        local_map = track_map.local_map
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
    options: TrackOptions,
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
    options : TrackOptions
        What counts as a match.

    Returns
    -------
    feature_idx, point_idx : ndarray of shape (M,), int64
        Best first; each at most once.
    scores : ndarray of shape (M,), float32
        How distinct each match is, see `edgeloc.features.match`.
    """
    none = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    # Windows are small: comparing everything with everything is a hundred times more.
    expected_idx, feature_idx = _inside_windows(expected, features.keypoints)
    if not len(expected_idx):
        return none
    similarity = _pair_similarity(
        local_map,
        expected.point_idx[expected_idx],
        descriptors=descriptors,
        feature_idx=feature_idx,
        decode=decode,
    )
    best_of_feature = np.full(len(features), -1.0, np.float32)
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
    """Return which keypoints are in which windows, (V,) and (V,), by window."""
    found = []
    for start in range(0, len(expected.pixels), _WINDOWS_AT_ONCE):
        part = slice(start, start + _WINDOWS_AT_ONCE)
        off_x = expected.pixels[part, 0, None] - keypoints[None, :, 0]
        off_y = expected.pixels[part, 1, None] - keypoints[None, :, 1]
        inside = off_x * off_x + off_y * off_y <= expected.radii_px[part, None] ** 2
        window_idx, keypoint_idx = np.nonzero(inside)
        found.append((window_idx + start, keypoint_idx))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return (
        np.concatenate([window_idx for window_idx, _ in found]),
        np.concatenate([keypoint_idx for _, keypoint_idx in found]),
    )


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tracked:
    """What TRACK says about a frame.

    Parameters
    ----------
    candidate : Candidate
        LOCALIZED, or LOST with the cause.
    tracks : Tracks or None
        Those that agree with the pose; None when LOST.
    num_expected, num_found : int
        Landmarks that should be in the picture, and that were found.
    """

    candidate: Candidate
    tracks: Tracks | None
    num_expected: int
    num_found: int


def track_frame(
    tracks: Tracks,
    grey: ByteArray,
    camera: CameraModel,
    *,
    prior: Rigid3,
    last_pose: Rigid3,
    calibration: FixCalibration,
    options: TrackOptions,
) -> Tracked:
    """Return the pose of a frame from the landmarks of the frame before.

    Parameters
    ----------
    tracks : Tracks
        In the frame before.
    grey : ndarray of shape (H, W), uint8
        The frame.
    camera : CameraModel
        Intrinsics.
    prior : Rigid3
        Predicted pose of this frame,
    last_pose : Rigid3
        and that of the frame before: the search starts where the difference between
        the two moves each pixel.
    calibration : FixCalibration
        Of the site's covariances.
    options : TrackOptions
        How.
    """
    before, seen_before = project(camera, last_pose.transform(tracks.points3D))
    after, seen_after = project(camera, prior.transform(tracks.points3D))
    moved = np.where(
        (seen_before & seen_after)[:, None], after - before + tracks.points2D, np.nan
    )
    followed, found = follow(tracks, grey, expected=moved, options=options.klt)
    size = np.array([camera.width, camera.height])
    margin = 0.02 * size
    inside = seen_after & np.all((after >= margin) & (after < size - margin), axis=1)
    num_expected, num_found = int(inside.sum()), int((found & inside).sum())
    if len(followed) < options.integrity.min_inliers or (
        num_found < options.min_found * num_expected
    ):
        lost = replace(LOST, cause=Cause.FEW_MATCHES, matches=followed.matches())
        return Tracked(
            candidate=lost,
            tracks=None,
            num_expected=num_expected,
            num_found=num_found,
        )
    candidate, mask = solve_tracks(
        followed,
        camera,
        prior=prior,
        calibration=calibration,
        options=options,
    )
    return Tracked(
        candidate=candidate,
        tracks=None if mask is None else followed.select(mask),
        num_expected=num_expected,
        num_found=num_found,
    )


def solve_tracks(
    tracks: Tracks,
    camera: CameraModel,
    *,
    prior: Rigid3,
    calibration: FixCalibration,
    options: TrackOptions,
) -> tuple[Candidate, BoolArray | None]:
    """Return the pose that tracks agree on, and which do; None without a sound one.

    Parameters
    ----------
    tracks : Tracks
        Pixels and landmarks.
    camera : CameraModel
        Intrinsics.
    prior : Rigid3
        Where to start.
    calibration : FixCalibration
        Of the site's covariances.
    options : TrackOptions
        How.
    """
    matches = tracks.matches()
    result = estimate_pose(
        matches,
        camera,
        options=options.pnp,
        point_sigmas=tracks.point_sigmas,
        pixel_sigmas=tracks.pixel_sigmas,
        prior=prior,
    )
    if result is None or not is_sound(result, matches, camera, options.integrity):
        mask = None if result is None else result.inlier_mask
        return replace(
            LOST, cause=Cause.FEW_INLIERS, matches=matches, inlier_mask=mask
        ), None
    fix = fix_from_pnp(
        result,
        matches,
        camera,
        rung=Rung.TRACK,
        calibration=calibration,
        integrity=options.integrity,
    )
    return fix, result.inlier_mask


def sightings(
    features: Features,
    local_map: LocalMap,
    *,
    feature_idx: IntArray,
    point_idx: IntArray,
    grey: ByteArray,
) -> Tracks:
    """Return landmarks where features say they are.

    Parameters
    ----------
    features : Features
        Of a frame.
    local_map : LocalMap
        Landmarks.
    feature_idx, point_idx : ndarray of shape (M,), int64
        Matches between the two, each landmark once.
    grey : ndarray of shape (H, W), uint8
        The frame.
    """
    return Tracks(
        grey=grey,
        points2D=features.keypoints[feature_idx].astype(np.float64),
        points3D=local_map.points3D[point_idx],
        point3D_ids=local_map.point3D_ids[point_idx],
        point_sigmas=local_map.sigmas[point_idx],
        pixel_sigmas=features.sigmas[feature_idx],
        num_sightings=np.ones(len(point_idx), np.int64),
    )


def merged(tracks: Tracks, fresh: Tracks, options: TrackOptions) -> Tracks:
    """Return tracks to which fresh sightings in the same frame were added.

    A landmark that is followed already moves a little towards its fresh sighting, which
    keeps it from drifting and averages the noise of both; others are new. What is too
    much goes where the picture is crowded.

    Parameters
    ----------
    tracks, fresh : Tracks
        In the same frame.
    options : TrackOptions
        How many, and how they are blended.
    """
    order = np.argsort(tracks.point3D_ids, kind="stable")
    where = np.searchsorted(tracks.point3D_ids, fresh.point3D_ids, sorter=order)
    where = np.minimum(where, max(len(tracks) - 1, 0))
    known = np.zeros(len(fresh), dtype=bool)
    if len(tracks):
        where = order[where]
        known = tracks.point3D_ids[where] == fresh.point3D_ids
    points2D = tracks.points2D.copy()
    num_sightings = tracks.num_sightings.copy()
    again = where[known]
    weight = np.maximum(1.0 / (num_sightings[again] + 1.0), options.blend)
    points2D[again] += weight[:, None] * (fresh.points2D[known] - points2D[again])
    num_sightings[again] += 1
    new = fresh.select(~known)
    out = Tracks(
        grey=tracks.grey,
        points2D=np.concatenate([points2D, new.points2D]),
        points3D=np.concatenate([tracks.points3D, new.points3D]),
        point3D_ids=np.concatenate([tracks.point3D_ids, new.point3D_ids]),
        point_sigmas=np.concatenate([tracks.point_sigmas, new.point_sigmas]),
        pixel_sigmas=np.concatenate([tracks.pixel_sigmas, new.pixel_sigmas]),
        num_sightings=np.concatenate([num_sightings, new.num_sightings]),
    )
    return thinned(out, options.max_tracks)


def thinned(tracks: Tracks, max_tracks: int) -> Tracks:
    """Return at most so many tracks, spread over the picture, the best known first."""
    if len(tracks) <= max_tracks:
        return tracks
    tracks = tracks.select(np.argsort(-tracks.num_sightings, kind="stable"))
    side_px = max(tracks.grey.shape)
    order = spread_order(tracks.points2D, cell_px=side_px / 16)
    return tracks.select(np.sort(order[:max_tracks]))


def seed_tracks(candidate: Candidate, grey: ByteArray, options: TrackOptions) -> Tracks:
    """Return the landmarks that a LOCALIZED candidate was computed from, to follow.

    Parameters
    ----------
    candidate : Candidate
        With matches, inliers and their standard deviations.
    grey : ndarray of shape (H, W), uint8
        Its frame.
    options : TrackOptions
        How many.
    """
    assert candidate.matches is not None
    assert candidate.inlier_mask is not None
    idx = np.flatnonzero(candidate.inlier_mask)
    matches = candidate.matches
    idx = idx[np.argsort(-matches.scores[idx], kind="stable")]
    _, once = np.unique(matches.point3D_ids[idx], return_index=True)
    idx = idx[np.sort(once)]
    m = len(matches)
    point_sigmas, pixel_sigmas = candidate.point_sigmas, candidate.pixel_sigmas
    tracks = Tracks(
        grey=grey,
        points2D=matches.points2D[idx],
        points3D=matches.points3D[idx],
        point3D_ids=matches.point3D_ids[idx],
        point_sigmas=(
            np.zeros(m, np.float32) if point_sigmas is None else point_sigmas
        )[idx],
        pixel_sigmas=(np.ones(m, np.float32) if pixel_sigmas is None else pixel_sigmas)[
            idx
        ],
        num_sightings=np.ones(len(idx), np.int64),
    )
    return thinned(tracks, options.max_tracks)
