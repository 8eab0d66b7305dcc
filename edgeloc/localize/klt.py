"""Landmarks followed from frame to frame by their pixels: no features, no descriptors.

Pyramidal Lucas-Kanade [1]_ with a check forward and backward [2]_.

References
----------
.. [1] Bouguet, "Pyramidal implementation of the Lucas Kanade feature tracker", 2000.
.. [2] Kalal et al., "Forward-backward error", ICPR 2010.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from edgeloc.geometry.camera import from_opencv_px, to_opencv_px
from edgeloc.types import (
    BoolArray,
    ByteArray,
    Float32Array,
    FloatArray,
    IntArray,
    Matches2D3D,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KltOptions:
    """How pixels are followed.

    Parameters
    ----------
    window_px : int
        Side of the window that is compared.
    num_levels : int
        Halvings of the picture: each doubles the motion that is found.
    max_return_px : float
        Largest distance from the start after following forth and back.
    max_difference : float
        Largest mean difference of the two windows, grey levels: a window that shows
        something else is not followed.
    """

    window_px: int = 15
    num_levels: int = 4
    max_return_px: float = 0.7
    max_difference: float = 25.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tracks:
    """Landmarks and where they are in the newest frame.

    Parameters
    ----------
    grey : ndarray of shape (H, W), uint8
        The frame.
    points2D : ndarray of shape (M, 2), float64
        Positions in it, px.
    points3D : ndarray of shape (M, 3), float64
        In the world, m.
    point3D_ids : ndarray of shape (M,), int64
        Distinct.
    point_sigmas : ndarray of shape (M,), float32
        Standard deviations of the landmarks, m.
    pixel_sigmas : ndarray of shape (M,), float32
        Of the features that they were found as, relative to each other.
    num_sightings : ndarray of shape (M,), int64
        How often each was recognised by its descriptor since it is followed.
    """

    grey: ByteArray
    points2D: FloatArray
    points3D: FloatArray
    point3D_ids: IntArray
    point_sigmas: Float32Array
    pixel_sigmas: Float32Array
    num_sightings: IntArray

    def __len__(self) -> int:
        return len(self.points2D)

    def matches(self) -> Matches2D3D:
        """Return the tracks as 2D-3D matches; what was seen more often comes first."""
        return Matches2D3D(
            points2D=self.points2D,
            points3D=self.points3D,
            point3D_ids=self.point3D_ids,
            scores=self.num_sightings.astype(np.float32),
        )

    def select(self, mask: BoolArray | IntArray) -> Tracks:
        """Return some of the tracks, in the order of an index."""
        return Tracks(
            grey=self.grey,
            points2D=self.points2D[mask],
            points3D=self.points3D[mask],
            point3D_ids=self.point3D_ids[mask],
            point_sigmas=self.point_sigmas[mask],
            pixel_sigmas=self.pixel_sigmas[mask],
            num_sightings=self.num_sightings[mask],
        )


def no_tracks(grey: ByteArray) -> Tracks:
    """Return tracks of nothing in a frame."""
    return Tracks(
        grey=grey,
        points2D=np.zeros((0, 2)),
        points3D=np.zeros((0, 3)),
        point3D_ids=np.zeros(0, np.int64),
        point_sigmas=np.zeros(0, np.float32),
        pixel_sigmas=np.zeros(0, np.float32),
        num_sightings=np.zeros(0, np.int64),
    )


def follow(
    tracks: Tracks,
    grey: ByteArray,
    *,
    expected: FloatArray,
    options: KltOptions,
) -> tuple[Tracks, BoolArray]:
    """Return the tracks that are found again in a new frame, and which those are.

    Parameters
    ----------
    tracks : Tracks
        In an earlier frame.
    grey : ndarray of shape (H, W), uint8
        The new frame, of the same size.
    expected : ndarray of shape (M, 2), float64
        Where to start looking, px; rows that are not finite start where they were.
    options : KltOptions
        How.

    Raises
    ------
    ValueError
        When the two frames differ in size.
    """
    if grey.shape != tracks.grey.shape:
        raise ValueError(f"frames of {tracks.grey.shape} and {grey.shape} differ")
    height, width = grey.shape
    found = np.zeros(len(tracks), dtype=bool)
    start = np.where(
        np.isfinite(expected).all(axis=1, keepdims=True), expected, tracks.points2D
    )
    inside = np.all((start >= 0) & (start < [width, height]), axis=1)
    candidates = np.flatnonzero(inside)
    if not len(candidates):
        return no_tracks(grey), found
    old = to_opencv_px(tracks.points2D[candidates]).astype(np.float32)
    new = to_opencv_px(start[candidates]).astype(np.float32)

    def flow(
        source: ByteArray, target: ByteArray, points: Float32Array, guess: Float32Array
    ) -> tuple[Float32Array, BoolArray, Float32Array]:
        moved, ok, difference = cv2.calcOpticalFlowPyrLK(
            source,
            target,
            points[:, None],
            guess[:, None].copy(),
            winSize=(options.window_px, options.window_px),
            maxLevel=options.num_levels,
            criteria=(cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 20, 0.02),
            flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
        )
        return (
            np.asarray(moved, np.float32).reshape(-1, 2),
            np.asarray(ok).ravel() != 0,
            np.asarray(difference, np.float32).ravel(),
        )

    forth, ok, difference = flow(tracks.grey, grey, old, new)
    back, ok_back, _ = flow(grey, tracks.grey, forth, old)
    positions = from_opencv_px(forth)
    returned = np.linalg.norm(back - old, axis=1)
    good = (
        ok
        & ok_back
        & (returned <= options.max_return_px)
        & (difference <= options.max_difference)
        & np.all((positions >= 0) & (positions < [width, height]), axis=1)
    )
    kept = candidates[good]
    found[kept] = True
    moved = tracks.select(kept)
    return (
        Tracks(
            grey=grey,
            points2D=positions[good],
            points3D=moved.points3D,
            point3D_ids=moved.point3D_ids,
            point_sigmas=moved.point_sigmas,
            pixel_sigmas=moved.pixel_sigmas,
            num_sightings=moved.num_sightings,
        ),
        found,
    )


def spread_order(points2D: FloatArray, *, cell_px: float) -> IntArray:
    """Return an order in which the first so many points cover the picture evenly.

    Parameters
    ----------
    points2D : ndarray of shape (M, 2), float64
        Px, the most wanted first.
    cell_px : float
        Of each cell of this size one point comes before any second one.
    """
    cells = np.floor(points2D / cell_px).astype(np.int64)
    keys = cells[:, 0] * 1_000_003 + cells[:, 1]
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
    counts = np.diff(np.append(first, len(ordered)))
    rank = np.empty(len(keys), np.int64)
    rank[order] = np.arange(len(keys)) - np.repeat(first, counts)
    return np.asarray(np.argsort(rank, kind="stable"))
