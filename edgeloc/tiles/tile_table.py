"""The tiles of a site: cells of an octree, and what is known of each beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgeloc.errors import TileFormatError
from edgeloc.tiles.bits import offsets_of
from edgeloc.tiles.codec import Codec, require_codec
from edgeloc.tiles.container import Section
from edgeloc.tiles.layout import LANDMARK_BITS
from edgeloc.tiles.tracks import MAX_VISIBLE
from edgeloc.types import FloatArray, IntArray

MIN_EXPONENT, MAX_EXPONENT = -60, 40
MAX_TILES = 2**20
MAX_TILE_LANDMARKS = 2**LANDMARK_BITS
BOX_PARTS = 256
"""Parts of a cell's edge in which its box is told."""

ROW = np.dtype(
    [
        ("exponent", "|i1"),
        ("cell", "<i4", 3),
        ("box", "|u1", 6),
        ("num_bytes", "<u4"),
        ("crc32", "<u4"),
        ("sha256", "|u1", 32),
        ("num_landmarks", "<u4"),
        ("num_descriptors", "<u4"),
        ("num_keyframes", "<u4"),
        ("num_visible", "<u4"),
    ]
)
"""One tile, packed."""


class Cell(NamedTuple):
    """The cube from ``index * 2**exponent`` to ``(index + 1) * 2**exponent``.

    Relative to the origin of the site's grid. Cells are the same however the rest of a
    map is divided.
    """

    exponent: int
    x: int
    y: int
    z: int

    @property
    def size(self) -> float:
        """Edge, m."""
        return math.ldexp(1.0, self.exponent)

    @property
    def corner(self) -> FloatArray:
        """Least coordinates, relative to the grid's origin, (3,), m."""
        return np.array([self.x, self.y, self.z]) * self.size


def box_codes(cell: Cell, points_in_grid: FloatArray) -> tuple[int, ...]:
    """Return the box around some points, in parts of their cell, rounded outward.

    Parameters
    ----------
    cell : Cell
        What they lie in.
    points_in_grid : ndarray of shape (P, 3), float64
        Relative to the grid's origin, m.

    Returns
    -------
    tuple of 6 int
        First parts of x, y, z and last parts of x, y, z; zeros without points.
    """
    if len(points_in_grid) == 0:
        return (0,) * 6
    ends = np.stack([points_in_grid.min(axis=0), points_in_grid.max(axis=0)])
    parts = np.floor((ends - cell.corner) * (BOX_PARTS / cell.size))
    # What was rounded to a position on the border still belongs to the cell.
    return tuple(np.clip(parts, 0, BOX_PARTS - 1).astype(int).reshape(-1).tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class TileEntry:
    """One row of the tile table.

    Parameters
    ----------
    cell : Cell
        Where it is.
    box : tuple of 6 int
        As from `box_codes`.
    num_bytes, crc32, sha256 : int, int, str
        Of its file; the CRC-32 is that of the header, which stands for all of it.
    num_landmarks, num_descriptors, num_keyframes, num_visible : int
        What the tile holds.
    """

    cell: Cell
    box: tuple[int, ...]
    num_bytes: int
    crc32: int
    sha256: str
    num_landmarks: int
    num_descriptors: int
    num_keyframes: int
    num_visible: int

    def packed(self) -> bytes:
        """Return the row's bytes."""
        row = np.zeros(1, dtype=ROW)
        for name in ROW.names or ():
            if name == "exponent":
                row[name] = self.cell.exponent
            elif name == "cell":
                row[name] = self.cell[1:]
            elif name == "sha256":
                row[name] = np.frombuffer(bytes.fromhex(self.sha256), np.uint8)
            else:
                row[name] = getattr(self, name)
        return row.tobytes()


class TileTable(Sequence[TileEntry]):
    """The rows of the tile table, decoded when they are looked at.

    Parameters
    ----------
    rows : ndarray of shape (T,), `ROW`
        Checked by `decode_tile_table`.
    origin : tuple of 3 float
        Of the grid of cells, m.

    Attributes
    ----------
    first_keyframe : ndarray of shape (T + 1,), int64
        Keyframes of tile i are [first_keyframe[i], first_keyframe[i + 1]).
    """

    def __init__(
        self, rows: npt.NDArray[np.void], origin: tuple[float, float, float]
    ) -> None:
        self._rows = rows
        self._origin = origin
        self._row_of: dict[Cell, int] | None = None
        self._boxes: tuple[FloatArray, FloatArray] | None = None
        self.first_keyframe = offsets_of(rows["num_keyframes"].astype(np.int64))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, tile_idx: int) -> TileEntry:  # type: ignore[override]
        """Return a row; there are no slices."""
        if not 0 <= tile_idx < len(self._rows):
            raise IndexError(f"tile {tile_idx} of {len(self._rows)}")
        row = self._rows[tile_idx]
        counts = {
            name: int(row[name])
            for name in (
                "num_bytes", "crc32", "num_landmarks", "num_descriptors",
                "num_keyframes", "num_visible",
            )
        }  # fmt: skip
        return TileEntry(
            cell=Cell(int(row["exponent"]), *(int(i) for i in row["cell"])),
            box=tuple(int(part) for part in row["box"]),
            sha256=row["sha256"].tobytes().hex(),
            **counts,
        )

    @property
    def origin(self) -> tuple[float, float, float]:
        """Origin of the grid of cells, m."""
        return self._origin

    def total(self, name: str) -> int:
        """Return the sum of a column, such as "num_landmarks"."""
        return int(self._rows[name].sum(dtype=np.int64))

    def row_of(self, cell: Cell) -> int | None:
        """Return the row of a cell, None when there is no such tile."""
        if self._row_of is None:
            exponents = self._rows["exponent"].tolist()
            cells = self._rows["cell"].tolist()
            self._row_of = {
                Cell(exponent, *index): row
                for row, (exponent, index) in enumerate(
                    zip(exponents, cells, strict=True)
                )
            }
        return self._row_of.get(cell)

    @property
    def boxes(self) -> tuple[FloatArray, FloatArray]:
        """Least and largest coordinates of each tile's landmarks, (T, 3) each, m.

        Off by a 256th of the cell at most, outward. A tile without landmarks has its
        whole cell, where its keyframes are.
        """
        if self._boxes is None:
            size = np.ldexp(1.0, self._rows["exponent"].astype(np.int32))[:, None]
            corner = self._rows["cell"] * size + np.array(self._origin)
            part = size / BOX_PARTS
            box = self._rows["box"].astype(np.float64)
            box[self._rows["num_landmarks"] == 0, 3:] = BOX_PARTS - 1
            self._boxes = corner + box[:, :3] * part, corner + (box[:, 3:] + 1) * part
        return self._boxes

    def near(self, center: FloatArray, radius: float) -> IntArray:
        """Return the tiles with anything within a distance, the nearest first.

        Parameters
        ----------
        center : ndarray of shape (3,), float64
            In the world, m.
        radius : float
            M; a tile counts when its box is within.
        """
        low, high = self.boxes
        outside = np.maximum(np.maximum(low - center, center - high), 0.0)
        distance = np.linalg.norm(outside, axis=1)
        empty = (self._rows["num_landmarks"] == 0) & (self._rows["num_keyframes"] == 0)
        distance[empty] = np.inf
        near = np.flatnonzero(distance <= radius)
        return near[np.argsort(distance[near], kind="stable")]


def encode_tile_table(entries: Sequence[TileEntry]) -> bytes:
    """Return the rows' bytes."""
    return b"".join(entry.packed() for entry in entries)


def _first_overlap(rows: npt.NDArray[np.void]) -> int | None:
    """Return the row of a cell that lies in another one."""
    # By sorting: np.unique and np.isin would load numpy.ma, which takes longer than all
    # the rest of opening a site.
    exponents = rows["exponent"].astype(np.int64)
    cells = rows["cell"].astype(np.int64)
    for coarse in np.flatnonzero(np.bincount(exponents - MIN_EXPONENT)) + MIN_EXPONENT:
        own = np.flatnonzero(exponents == coarse)
        fine = np.flatnonzero(exponents < coarse)
        parents = cells[fine] >> (coarse - exponents[fine])[:, None].clip(0, 40)
        both = np.concatenate([cells[own], parents])
        is_fine = np.repeat([0, 1], [len(own), len(fine)])
        order = np.lexsort((is_fine, *both.T))
        begins = np.ones(len(order), dtype=np.bool_)
        begins[1:] = np.any(both[order[1:]] != both[order[:-1]], axis=1)
        # Of equal ones a coarse one comes first, if there is one.
        first = order[begins][np.cumsum(begins) - 1]
        inside = (first < len(own)) & (order >= len(own))
        if inside.any():
            return int(fine[order[inside].min() - len(own)])
    return None


def decode_tile_table(
    section: Section, count: int, *, origin: tuple[float, float, float]
) -> TileTable:
    """Return the table of `encode_tile_table`.

    Parameters
    ----------
    section : Section
        Where it is.
    count : int
        Tiles of the site.
    origin : tuple of 3 float
        Of the grid.

    Raises
    ------
    TileFormatError
        When rows do not ascend, cells overlap, or a value is out of bounds.
    """
    require_codec(section, Codec.RAW)
    if len(section.payload) != count * ROW.itemsize:
        raise TileFormatError(
            f"section {section.tag} has {len(section.payload)} bytes, expected {count} "
            f"x {ROW.itemsize}",
            offset=section.offset,
        )
    rows = np.frombuffer(section.payload, dtype=ROW, count=count)

    def fail(tile_idx: int, message: str) -> TileFormatError:
        return TileFormatError(
            f"tile {tile_idx} {message}",
            offset=section.offset + tile_idx * ROW.itemsize,
        )

    for name, low, high in (
        ("exponent", MIN_EXPONENT, MAX_EXPONENT),
        ("num_landmarks", 0, MAX_TILE_LANDMARKS),
        ("num_visible", 0, MAX_VISIBLE),
    ):
        wrong = (rows[name] < low) | (rows[name] > high)
        if wrong.any():
            at = int(np.argmax(wrong))
            value = int(rows[name][at])
            raise fail(at, f"has {name} {value}, expected {low} to {high}")
    box = rows["box"]
    empty = rows["num_landmarks"] == 0
    wrong = np.any(box[:, :3] > box[:, 3:], axis=1) | (empty & box.any(axis=1))
    if wrong.any():
        raise fail(int(np.argmax(wrong)), "has a box that ends before it begins")
    order = np.lexsort(
        (rows["cell"][:, 2], rows["cell"][:, 1], rows["cell"][:, 0], rows["exponent"])
    )
    different = np.ones(count, dtype=np.bool_)
    different[1:] = (np.diff(rows["exponent"]) != 0) | np.any(
        rows["cell"][1:] != rows["cell"][:-1], axis=1
    )
    wrong = (order != np.arange(count)) | ~different
    if wrong.any():
        raise fail(int(np.argmax(wrong)), "is not in the order of the cells")
    overlap = _first_overlap(rows)
    if overlap is not None:
        raise fail(overlap, "has a cell that lies in that of another tile")
    return TileTable(rows, origin)
