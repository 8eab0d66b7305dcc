"""From tracks to landmarks with descriptors and visibility."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeloc.geometry.triangulate import (
    Observations,
    TriangulationOptions,
    View,
    triangulate_tracks,
)
from edgeloc.tiles.layout import LandmarkTable, LocalMap
from edgeloc.types import BoolArray, FloatArray, IntArray
from edgeloc_tools.mapping.tracks import MappingImage


@dataclass(frozen=True, slots=True, kw_only=True)
class LandmarkOptions:
    """What becomes a landmark.

    Parameters
    ----------
    triangulation : TriangulationOptions
        Gates of the geometry.
    use_depth : bool
        Whether measured depth takes part.
    keep_single_views : bool
        Whether a keypoint seen in one image only, with measured depth, is a landmark.
    max_descriptors : int
        Descriptors kept per landmark, the most representative ones.
    """

    triangulation: TriangulationOptions
    use_depth: bool = True
    keep_single_views: bool = True
    max_descriptors: int = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observed:
    """Which keypoint of which image is a measurement of which landmark.

    Parameters
    ----------
    landmark_idx, image_idx, keypoint_idx : ndarray of shape (V,), int64
        One row per measurement, `landmark_idx` ascending.
    """

    landmark_idx: IntArray
    image_idx: IntArray
    keypoint_idx: IntArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LandmarkMap:
    """Landmarks and which image sees which.

    Parameters
    ----------
    landmarks : LandmarkTable
        All landmarks.
    track_idx : ndarray of shape (P,), int64
        The track that each was made of, ascending.
    observed : Observed
        Their measurements.
    visible : sequence of ndarray of int64
        Landmark indices of each image, ascending.
    errors_px : ndarray of shape (V,), float64
        Reprojection errors of all inlier observations.
    """

    landmarks: LandmarkTable
    track_idx: IntArray
    observed: Observed
    visible: Sequence[IntArray]
    errors_px: FloatArray

    def facts(self) -> dict[str, int | float]:
        """Return the figures for a build report."""
        return {
            "num_landmarks": len(self.landmarks),
            "num_observations": int(self.landmarks.num_observations.sum()),
            "reproj_rmse_px": round(float(np.sqrt(np.mean(self.errors_px**2))), 3),
        }

    def local_map(self, image_idxs: npt.ArrayLike) -> LocalMap:
        """Return the landmarks that some of the images see, without a site."""
        idxs = np.unique(
            np.concatenate([self.visible[i] for i in np.array(image_idxs)])
        )
        table = self.landmarks
        counts = np.diff(table.descriptor_offsets)[idxs]
        rows = np.repeat(
            table.descriptor_offsets[idxs]
            - np.concatenate([[0], np.cumsum(counts)[:-1]]),
            counts,
        ) + np.arange(counts.sum())
        return LocalMap(
            point3D_ids=idxs,
            points3D=table.points3D[idxs],
            sigmas=table.sigmas[idxs],
            num_observations=table.num_observations[idxs],
            descriptors=table.descriptors[rows],
            row_to_point=np.repeat(np.arange(len(idxs)), counts),
        )


def make_landmarks(
    images: Sequence[MappingImage],
    tracks: tuple[IntArray, IntArray, IntArray],
    options: LandmarkOptions,
    *,
    left_out: BoolArray | None = None,
) -> LandmarkMap:
    """Return landmarks triangulated from tracks.

    Parameters
    ----------
    images : sequence of MappingImage
        All mapping images.
    tracks : tuple of three ndarray of shape (N,), int64
        Track, image and keypoint indices, as `join_tracks` gives them.
    options : LandmarkOptions
        What becomes a landmark.
    left_out : ndarray of shape (K,), bool, optional
        Images whose measurements do not take part (held-out frames).

    Returns
    -------
    LandmarkMap
        An image that was left out sees nothing.
    """
    track_idx, image_idx, keypoint_idx = tracks
    measured = _measurements(images, image_idx, keypoint_idx)
    depth = measured["depth"]
    if not options.use_depth:
        depth = np.full_like(depth, np.nan)
    use = np.ones(len(track_idx), dtype=bool)
    if left_out is not None:
        use &= ~left_out[image_idx]
    length = np.bincount(track_idx[use], minlength=int(track_idx.max(initial=-1)) + 1)
    single = length[track_idx] < 2
    use &= ~single | (np.isfinite(depth) & options.keep_single_views)
    if not np.any(use):
        nothing = np.zeros(0, np.int64)
        return LandmarkMap(
            landmarks=_empty_table(images),
            track_idx=nothing,
            observed=Observed(
                landmark_idx=nothing, image_idx=nothing, keypoint_idx=nothing
            ),
            visible=[np.zeros(0, np.int64) for _ in images],
            errors_px=np.zeros(0),
        )
    used_tracks, dense = np.unique(track_idx[use], return_inverse=True)
    observations = Observations(
        track_idx=dense.astype(np.int64),
        view_idx=image_idx[use],
        pixels=measured["keypoints"][use],
        pixel_sigma=measured["sigmas"][use],
        depth=depth[use],
        depth_sigma=np.nan_to_num(measured["depth_sigma"], nan=1.0)[use],
    )
    views = [
        View(camera=i.camera, R=i.cam_from_world.R, t=i.cam_from_world.t)
        for i in images
    ]
    result = triangulate_tracks(observations, views, options.triangulation)
    inlier = result.inlier
    new_idx = np.cumsum(result.valid) - 1
    landmark_idx = new_idx[observations.track_idx[inlier]]
    order = np.argsort(landmark_idx, kind="stable")
    observed = Observed(
        landmark_idx=landmark_idx[order],
        image_idx=observations.view_idx[inlier][order],
        keypoint_idx=keypoint_idx[use][inlier][order],
    )
    return LandmarkMap(
        landmarks=_table(
            images,
            result.points3D[result.valid],
            result.sigmas[result.valid],
            observed,
            max_descriptors=options.max_descriptors,
        ),
        track_idx=used_tracks[result.valid],
        observed=observed,
        visible=_visible(observed, len(images)),
        errors_px=result.errors_px[inlier],
    )


def _visible(observed: Observed, num_images: int) -> list[IntArray]:
    """Return the landmarks of each image, ascending."""
    order = np.argsort(observed.image_idx, kind="stable")
    bounds = np.searchsorted(observed.image_idx[order], np.arange(num_images + 1))
    return [
        observed.landmark_idx[order[bounds[i] : bounds[i + 1]]]
        for i in range(num_images)
    ]


def _measurements(
    images: Sequence[MappingImage], image_idx: IntArray, keypoint_idx: IntArray
) -> dict[str, FloatArray]:
    """Return what was measured of each keypoint, by the names of `MappingImage`."""
    num = len(image_idx)
    measured = {
        "keypoints": np.empty((num, 2)),
        "sigmas": np.empty(num),
        "depth": np.empty(num),
        "depth_sigma": np.empty(num),
    }
    order = np.argsort(image_idx, kind="stable")
    bounds = np.searchsorted(image_idx[order], np.arange(len(images) + 1))
    for idx, image in enumerate(images):
        rows = order[bounds[idx] : bounds[idx + 1]]
        for name, values in measured.items():
            values[rows] = getattr(image, name)[keypoint_idx[rows]]
    return measured


def _empty_table(images: Sequence[MappingImage]) -> LandmarkTable:
    return LandmarkTable(
        points3D=np.zeros((0, 3)),
        sigmas=np.zeros(0, np.float32),
        num_observations=np.zeros(0, np.int64),
        descriptor_offsets=np.zeros(1, np.int64),
        descriptors=images[0].stored[:0],
    )


def _table(
    images: Sequence[MappingImage],
    points3D: FloatArray,
    sigmas: FloatArray,
    observed: Observed,
    *,
    max_descriptors: int,
) -> LandmarkTable:
    offsets = np.concatenate([[0], np.cumsum([len(i.keypoints) for i in images])])
    stored = np.concatenate([i.stored for i in images])
    decoded = np.concatenate([i.descriptors for i in images])
    node = offsets[observed.image_idx] + observed.keypoint_idx
    counts = np.bincount(observed.landmark_idx, minlength=len(points3D))
    starts = np.concatenate([[0], np.cumsum(counts)])
    keep = np.ones(len(node), dtype=bool)
    for idx in np.flatnonzero(counts > max_descriptors):
        rows = slice(starts[idx], starts[idx + 1])
        keep[rows] = most_representative(decoded[node[rows]], max_descriptors)
    kept = np.minimum(counts, max_descriptors)
    return LandmarkTable(
        points3D=points3D,
        sigmas=sigmas.astype(np.float32),
        num_observations=counts.astype(np.int64),
        descriptor_offsets=np.concatenate([[0], np.cumsum(kept)]).astype(np.int64),
        descriptors=stored[node[keep]],
    )


def most_representative(descriptors: npt.NDArray[np.float32], count: int) -> BoolArray:
    """Return which `count` rows stand best for all of them.

    Greedy facility location: each next row adds most to the sum, over all rows, of the
    similarity to the nearest chosen one. (Farthest-point selection picks the odd ones
    out, which are often wrong matches.)

    Parameters
    ----------
    descriptors : ndarray of shape (N, D), float32
        L2-normalised.
    count : int
        How many, at most N.

    Returns
    -------
    ndarray of shape (N,), bool
    """
    similarity = descriptors @ descriptors.T
    chosen = np.zeros(len(descriptors), dtype=bool)
    covered = np.full(len(descriptors), -1.0, np.float32)
    for _ in range(count):
        gain = np.maximum(similarity, covered).sum(axis=1)
        gain[chosen] = -np.inf
        best = int(np.argmax(gain))
        chosen[best] = True
        covered = np.maximum(covered, similarity[best])
    return chosen
