"""Which landmarks and keyframes go into which tile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgeloc.errors import ConfigError
from edgeloc.tiles.codec import position_step
from edgeloc.types import Float32Array, FloatArray, IntArray

MAX_STEP = 2.0**-10
"""A finer position step is never asked for: 1 mm in a metric map."""
_MAX_GRID_INDEX = 2.0**40
_OCTANTS = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Partition:
    """What is to be divided.

    Parameters
    ----------
    points3D : ndarray of shape (P, 3), float64
        Landmarks, m.
    sigmas : ndarray of shape (P,), float32
        Their standard deviations, m.
    landmark_bytes : ndarray of shape (P,), int64
        What each adds to its tile.
    centers : ndarray of shape (K, 3), float64
        Camera centres of the keyframes, m.
    keyframe_bytes : ndarray of shape (K,), int64
        What each adds to its tile.
    base_bytes : int
        Size of an empty tile.
    max_tile_bytes : int
        Wanted bound on the size of a tile.
    """

    points3D: FloatArray
    sigmas: Float32Array
    landmark_bytes: IntArray
    centers: FloatArray
    keyframe_bytes: IntArray
    base_bytes: int
    max_tile_bytes: int

    def is_fine(self, landmark_idx: IntArray, keyframe_idx: IntArray) -> bool:
        """Return whether these may form one tile.

        They may when it is small enough, and when the position step is below 1 mm or
        below what the best landmark is uncertain by: a distant mountain does not need
        cells of its own, and does not spoil the landmarks of a room either.
        """
        num_bytes = (
            self.base_bytes
            + int(self.landmark_bytes[landmark_idx].sum())
            + int(self.keyframe_bytes[keyframe_idx].sum())
        )
        if num_bytes > self.max_tile_bytes:
            return False
        finest = float(self.sigmas[landmark_idx].min(initial=np.inf))
        return position_step(self.points3D[landmark_idx]) <= max(MAX_STEP, finest)


def _split(
    part: Partition, landmark_idx: IntArray, keyframe_idx: IntArray
) -> list[tuple[IntArray, IntArray]]:
    """Return the non-empty octants of the smallest cube around the landmarks.

    A keyframe goes to the octant of its centre, or to the nearest non-empty one.
    """
    points = part.points3D[landmark_idx]
    corner = points.min(axis=0)
    half = float(np.max(points.max(axis=0) - corner)) / 2
    weights = np.array([4, 2, 1])
    octants = (points >= corner + half) @ weights
    used = np.unique(octants)

    low = corner + _OCTANTS[used] * half
    centers = part.centers[keyframe_idx]
    own = (centers >= corner + half) @ weights
    outside = np.maximum(low - centers[:, None], centers[:, None] - low - half)
    distances = np.linalg.norm(np.maximum(outside, 0), axis=2)
    nearest = used[np.argmin(distances, axis=1)]
    owners = np.where(np.isin(own, used), own, nearest)
    return [
        (landmark_idx[octants == octant], keyframe_idx[owners == octant])
        for octant in used
    ]


def _refine(
    part: Partition, landmark_idx: IntArray, keyframe_idx: IntArray
) -> Iterator[tuple[IntArray, IntArray]]:
    """Yield tiles that are fine, or cannot be divided any further."""
    if part.is_fine(landmark_idx, keyframe_idx):
        yield landmark_idx, keyframe_idx
        return
    children = _split(part, landmark_idx, keyframe_idx) if len(landmark_idx) else []
    if len(children) < 2:
        yield landmark_idx, keyframe_idx
        return
    for child_landmark_idx, child_keyframe_idx in children:
        yield from _refine(part, child_landmark_idx, child_keyframe_idx)


def _grid(part: Partition, cell_size: float) -> Iterator[tuple[IntArray, IntArray]]:
    """Yield the cells of a grid through the world's origin that hold landmarks."""
    reach = max(np.abs(part.points3D).max(), np.abs(part.centers).max())
    if not 0 < cell_size < np.inf or not reach / cell_size < _MAX_GRID_INDEX:
        raise ConfigError(
            f"cell_size {cell_size!r} does not suit a map that reaches {reach:g} from "
            "its origin: give a size like 32, or none"
        )
    cells, cell_idx = np.unique(
        np.floor(part.points3D / cell_size), axis=0, return_inverse=True
    )
    owners = np.array(
        [
            # Distance to the cell, zero inside; ties go to the first cell.
            np.argmin(
                np.linalg.norm(
                    np.maximum(np.maximum(cells - c, c - cells - 1), 0), axis=1
                )
            )
            for c in part.centers / cell_size
        ]
    )
    inverse = cell_idx.reshape(-1)
    for i in range(len(cells)):
        yield np.flatnonzero(inverse == i), np.flatnonzero(owners == i)


def divide(
    part: Partition, *, cell_size: float | None = None
) -> list[tuple[IntArray, IntArray]]:
    """Return the landmarks and keyframes of each tile, as ascending indices.

    Parameters
    ----------
    part : Partition
        What is to be divided.
    cell_size : float, optional
        Start with a grid of such cubes, m. By default with one cube around all.

    Returns
    -------
    list of (ndarray, ndarray)
        At least one tile; every index is in exactly one.

    Raises
    ------
    ConfigError
        When `cell_size` makes no sense.
    """
    everything = np.arange(len(part.points3D)), np.arange(len(part.centers))
    if cell_size is None or len(part.points3D) == 0:
        cells = iter([everything])
    else:
        cells = _grid(part, cell_size)
    return [tile for cell in cells for tile in _refine(part, *cell)]
