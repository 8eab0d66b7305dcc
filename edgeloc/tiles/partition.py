"""Which landmarks and keyframes go into which tile: an octree of cells."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np

from edgeloc.errors import ConfigError
from edgeloc.tiles.codec import position_step
from edgeloc.tiles.tile_table import (
    MAX_EXPONENT,
    MAX_TILE_LANDMARKS,
    MIN_EXPONENT,
    Cell,
)
from edgeloc.tiles.tracks import MAX_VISIBLE
from edgeloc.types import Float32Array, FloatArray, IntArray

MAX_STEP = 2.0**-10
"""A finer position step is never asked for: 1 mm in a metric map."""
MAX_BITS = 20
"""Bits per axis above which a cell is divided where a step was asked for."""
MAX_DEPTH = 30
"""Divisions of the first cells, which leaves their indices within 32 bits."""
_OCTANTS = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)])
_WEIGHTS = np.array([4, 2, 1])


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
    num_visible : ndarray of shape (K,), int64
        Landmarks that each sees.
    base_bytes : int
        Size of an empty tile.
    max_tile_bytes : int
        Wanted bound on the size of a tile.
    position_step : float, optional
        As in `SiteContents`.
    cell_size : float, optional
        No cell is larger, m.
    by_keyframes : bool
        Whether a cell is divided where its keyframes are, too, and not only where its
        landmarks are: when keyframes have features, these are most of the bytes.
    too_large : collection of Cell
        Cells that turned out to be larger than they seemed.
    """

    points3D: FloatArray
    sigmas: Float32Array
    landmark_bytes: IntArray
    centers: FloatArray
    keyframe_bytes: IntArray
    num_visible: IntArray
    base_bytes: int
    max_tile_bytes: int
    position_step: float | None = None
    cell_size: float | None = None
    by_keyframes: bool = False
    too_large: Collection[Cell] = field(default_factory=frozenset)

    def places(self, landmark_idx: IntArray, keyframe_idx: IntArray) -> FloatArray:
        """Return what decides which cells there are, (n, 3), m."""
        points = self.points3D[landmark_idx]
        if not self.by_keyframes:
            return points
        return np.concatenate([points, self.centers[keyframe_idx]])

    def is_fine(
        self, cell: Cell, landmark_idx: IntArray, keyframe_idx: IntArray
    ) -> bool:
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
        if (
            num_bytes > self.max_tile_bytes
            or len(landmark_idx) > MAX_TILE_LANDMARKS
            or int(self.num_visible[keyframe_idx].sum()) > MAX_VISIBLE
            or (self.cell_size is not None and cell.size > self.cell_size)
            or cell in self.too_large
        ):
            return False
        points3D = self.points3D[landmark_idx]
        if self.position_step is not None and len(points3D):
            extent = float(np.max(points3D.max(axis=0) - points3D.min(axis=0)))
            return extent / self.position_step < 2.0**MAX_BITS
        finest = float(self.sigmas[landmark_idx].min(initial=np.inf))
        return position_step(points3D) <= max(MAX_STEP, finest)


Part = tuple[Cell, IntArray, IntArray]
"""A cell, its landmarks and its keyframes, as ascending indices."""


def _divide_cell(
    part: Partition, origin: FloatArray, whole: Part, exponent: int
) -> list[Part]:
    """Return the non-empty cells of an exponent around some corner.

    A keyframe goes to the cell of its centre, or to the nearest non-empty one.
    """
    cell, landmark_idx, keyframe_idx = whole
    half = math.ldexp(1.0, exponent)
    first = np.array([2 * cell.x, 2 * cell.y, 2 * cell.z])
    points = (part.points3D[landmark_idx] - origin) / half - first
    octants = (points >= 1) @ _WEIGHTS
    centers = (part.centers[keyframe_idx] - origin) / half - first
    own = (centers >= 1) @ _WEIGHTS
    used = np.unique(np.concatenate([octants, own]) if part.by_keyframes else octants)
    low = _OCTANTS[used]
    outside = np.maximum(low - centers[:, None], centers[:, None] - low - 1)
    distances = np.linalg.norm(np.maximum(outside, 0), axis=2)
    nearest = used[np.argmin(distances, axis=1)]
    owners = np.where(np.isin(own, used), own, nearest)
    return [
        (
            Cell(exponent, *(first + _OCTANTS[octant]).tolist()),
            landmark_idx[octants == octant],
            keyframe_idx[owners == octant],
        )
        for octant in used.tolist()
    ]


def _refine(
    part: Partition, origin: FloatArray, whole: Part, least: int
) -> Iterator[Part]:
    """Yield tiles that are fine, or cannot be divided any further."""
    cell, landmark_idx, keyframe_idx = whole
    points = part.places(landmark_idx, keyframe_idx)
    if (
        cell.exponent <= least
        or len(points) == 0
        or np.all(points == points[0])
        or part.is_fine(cell, landmark_idx, keyframe_idx)
    ):
        yield whole
        return
    for child in _divide_cell(part, origin, whole, cell.exponent - 1):
        yield from _refine(part, origin, child, least)


def grid_origin(points3D: FloatArray) -> tuple[float, float, float]:
    """Return an origin of the grid so that one cell holds all landmarks.

    Parameters
    ----------
    points3D : ndarray of shape (P, 3), float64
        M.
    """
    if len(points3D) == 0:
        return 0.0, 0.0, 0.0
    low = points3D.min(axis=0)
    extent = float(np.max(points3D.max(axis=0) - low))
    # Round numbers, so that site.json is readable; a 16th of the extent is lost.
    reach = float(np.abs(points3D).max())
    unit = math.ldexp(1.0, math.frexp(max(extent, reach * 2.0**-40, 2.0**-40))[1] - 5)
    x, y, z = (np.floor(low / unit) * unit + 0.0).tolist()
    return x, y, z


def _root(part: Partition, origin: FloatArray) -> Iterator[Part]:
    """Yield the first cells: the eight around the origin of the grid, if not empty."""
    everything = np.arange(len(part.points3D)), np.arange(len(part.centers))
    places = part.places(*everything)
    if len(places) == 0:
        yield Cell(0, 0, 0, 0), *everything
        return
    reach = float(np.abs(places - origin).max())
    exponent = math.frexp(reach)[1] if reach > 0 else MIN_EXPONENT + MAX_DEPTH
    exponent = min(max(exponent, MIN_EXPONENT + MAX_DEPTH), MAX_EXPONENT)
    # The cell twice as large that the eight would form begins at -1.
    size = math.ldexp(1.0, exponent)
    below = (places < origin).any(axis=0)
    shifted = Cell(exponent + 1, 0, 0, 0)
    for cell, landmark_idx, keyframe_idx in _divide_cell(
        part, origin - size * below, (shifted, *everything), exponent
    ):
        x, y, z = (np.array(cell[1:]) - below).tolist()
        yield Cell(exponent, x, y, z), landmark_idx, keyframe_idx


def _assign_keyframes(tiles: list[Part], centers: FloatArray) -> list[Part]:
    """Give each keyframe to the cell of its centre, or else to the nearest one.

    On the way down a keyframe went to the nearest octant, which may be empty around it.
    """
    owner = np.empty(len(centers), dtype=np.int64)
    outside = np.zeros(len(centers), dtype=np.bool_)
    low = np.array([cell.corner for cell, _, _ in tiles])
    size = np.array([cell.size for cell, _, _ in tiles])
    for tile_idx, (_, _, keyframe_idx) in enumerate(tiles):
        owner[keyframe_idx] = tile_idx
        inside = (centers[keyframe_idx] - low[tile_idx]) / size[tile_idx]
        outside[keyframe_idx] = np.any((inside < 0) | (inside >= 1), axis=1)
    for idx in np.flatnonzero(outside).tolist():
        off = np.maximum(low - centers[idx], centers[idx] - low - size[:, None])
        owner[idx] = np.argmin(np.linalg.norm(np.maximum(off, 0), axis=1))
    return [
        (cell, landmark_idx, np.flatnonzero(owner == tile_idx))
        for tile_idx, (cell, landmark_idx, _) in enumerate(tiles)
    ]


def divide(part: Partition, origin: tuple[float, float, float]) -> list[Part]:
    """Return the cell, the landmarks and the keyframes of each tile.

    Parameters
    ----------
    part : Partition
        What is to be divided.
    origin : tuple of 3 float
        Of the grid of cells, m.

    Returns
    -------
    list of (Cell, ndarray, ndarray)
        At least one tile, in the order of the cells; every index is in exactly one.

    Raises
    ------
    ConfigError
        When `cell_size` makes no sense.
    """
    size = part.cell_size
    start = np.array(origin)
    if size is not None:
        everything = np.arange(len(part.points3D)), np.arange(len(part.centers))
        reach = float(np.abs(part.places(*everything) - start).max(initial=0.0))
        if not 0 < size < np.inf or not reach / size < 2.0 ** (MAX_DEPTH - 1):
            raise ConfigError(
                f"cell_size {size!r} does not suit a map that reaches {reach:g} from "
                "its origin: give a size like 32, or none"
            )
    tiles: list[Part] = []
    for root in _root(part, start):
        tiles += _refine(part, start, root, root[0].exponent - MAX_DEPTH)
    tiles.sort(key=lambda tile: tile[0])
    return _assign_keyframes(tiles, part.centers - start)
