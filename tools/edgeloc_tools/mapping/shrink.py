"""How much of a map fits into so many bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeloc.types import FloatArray, IntArray
from edgeloc_tools.mapping.compress import (
    part_of,
    shared_views,
)
from edgeloc_tools.mapping.landmarks import LandmarkMap
from edgeloc_tools.mapping.options import BuildOptions
from edgeloc_tools.mapping.select import (
    Coverage,
    rank_keyframes,
    rank_landmarks,
    substitutes,
)
from edgeloc_tools.mapping.tracks import MappingImage
from edgeloc_tools.mapping.value import Trials, landmark_values

_LANDMARK_BYTES = 6.0
"""Position, uncertainty and counts of a landmark, about."""
_VISIBLE_BYTES = 0.35
"""One entry in the list of what a keyframe sees, about."""
_KEYFRAME_BYTES = 24.0
"""Pose and id of a keyframe, about."""
_KEYFRAME_SHARE = 0.15
"""Of a budget: what keyframes may take of it before some of them are dropped."""
_MIN_KEYFRAMES = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankedMap:
    """A map whose landmarks and keyframes are in the order of what they are worth.

    Parameters
    ----------
    whole : LandmarkMap
        All of it, descriptors in their stored form.
    landmarks : ndarray of shape (P,), int64
        Landmarks, the most useful first.
    landmark_bytes : ndarray of shape (P,), float64
        What each adds to a site, about, by landmark.
    keyframes : ndarray of shape (K,), int64
        Images that see something, the most useful first.
    shared : ndarray of shape (K, K), float64
        See `compress.shared_views`.
    keyframe_bytes : float
        What each keyframe adds, about.
    """

    whole: LandmarkMap
    landmarks: IntArray
    landmark_bytes: FloatArray
    keyframes: IntArray
    shared: FloatArray
    keyframe_bytes: float

    @property
    def total_bytes(self) -> float:
        """Bytes of everything, about."""
        keyframes = self.keyframe_bytes * len(self.keyframes)
        return float(self.landmark_bytes.sum() + keyframes)

    def within(self, budget_bytes: float | None) -> LandmarkMap:
        """Return what fits into so many bytes, about; None = everything.

        Keyframes are dropped where all of them would take more than a seventh: each
        then sees for its neighbours, too.
        """
        if budget_bytes is None or budget_bytes >= self.total_bytes:
            return self.whole
        wanted = int(_KEYFRAME_SHARE * budget_bytes / self.keyframe_bytes)
        kept = self.keyframes[: max(wanted, _MIN_KEYFRAMES)]
        left = budget_bytes - self.keyframe_bytes * len(kept)
        ends = np.cumsum(self.landmark_bytes[self.landmarks])
        count = int(np.searchsorted(ends, left, side="right"))
        stand_in = substitutes(self.shared, kept)
        return part_of(self.whole, self.landmarks[:count], stand_in)


def rank_map(
    images: Sequence[MappingImage],
    landmark_map: LandmarkMap,
    *,
    coherence: FloatArray,
    global_bytes: int,
    options: BuildOptions,
    trials: Trials,
) -> RankedMap:
    """Return a map in its stored form, ready to be cut to any size.

    Parameters
    ----------
    images : sequence of MappingImage
        All mapping images.
    landmark_map : LandmarkMap
        Their landmarks, descriptors in their stored form.
    coherence : ndarray of shape (P,), float64
        Of what the landmarks look like, see `Appearances`.
    global_bytes : int
        Bytes of a keyframe's global descriptor.
    options : BuildOptions
        Options.
    trials : Trials
        What held-out frames say about landmarks.
    """
    observed = landmark_map.observed
    table = landmark_map.landmarks
    row_bytes = table.descriptors.shape[1] * table.descriptors.dtype.itemsize
    num_observed = np.bincount(observed.landmark_idx, minlength=len(table))
    landmark_bytes = (
        _LANDMARK_BYTES
        + np.diff(table.descriptor_offsets) * row_bytes
        + _VISIBLE_BYTES * num_observed
    )
    if options.ranking == "cover":
        coverage = Coverage(
            landmark_idx=observed.landmark_idx,
            image_idx=observed.image_idx,
            cell_idx=_cells(images, landmark_map, options),
            values=landmark_values(
                images,
                landmark_map,
                coherence=coherence,
                trials=trials,
            ),
            costs=landmark_bytes,
            num_images=len(images),
        )
        landmarks = rank_landmarks(coverage, options.select)
    elif options.ranking == "observations":
        landmarks = np.argsort(-num_observed, kind="stable")
    else:
        landmarks = np.random.default_rng(options.seed).permutation(len(table))
    shared = shared_views(landmark_map)
    sees = np.array([len(ids) > 0 for ids in landmark_map.visible])
    order = rank_keyframes(shared)
    return RankedMap(
        whole=landmark_map,
        landmarks=landmarks,
        landmark_bytes=landmark_bytes,
        keyframes=order[sees[order]],
        shared=shared,
        keyframe_bytes=_KEYFRAME_BYTES + global_bytes,
    )


def _cells(
    images: Sequence[MappingImage], landmark_map: LandmarkMap, options: BuildOptions
) -> IntArray:
    """Return the cell of its image in which each measurement lies."""
    observed = landmark_map.observed
    grid = np.array([options.select.columns, options.select.rows])
    cells = np.empty(len(observed.image_idx), np.int64)
    order = np.argsort(observed.image_idx, kind="stable")
    bounds = np.searchsorted(observed.image_idx[order], np.arange(len(images) + 1))
    for idx, image in enumerate(images):
        rows = order[bounds[idx] : bounds[idx + 1]]
        size = np.array([image.camera.width, image.camera.height])
        places = image.keypoints[observed.keypoint_idx[rows]] * grid / size
        column, row = np.clip(places.astype(np.int64), 0, grid - 1).T
        cells[rows] = row * grid[0] + column
    return cells
