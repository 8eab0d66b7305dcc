"""One tile to the bytes of its file and back."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgeloc.errors import TileFormatError
from edgeloc.tiles import codec
from edgeloc.tiles.bits import NumberReader, encode_numbers, offsets_of
from edgeloc.tiles.container import (
    BASE_VERSION,
    FORMAT_VERSION,
    Container,
    FileKind,
    Section,
    pack,
    unpack,
)
from edgeloc.tiles.layout import (
    LANDMARK_BITS,
    FamilySpec,
    KeyframeFeatures,
    LandmarkTable,
    Tile,
)
from edgeloc.tiles.tile_table import Cell, TileEntry, TileTable, box_codes
from edgeloc.tiles.tracks import decode_tracks, encode_tracks
from edgeloc.types import IntArray

META = struct.Struct("<IIII3qhhBBBB4I")
"""Numbers of landmarks, descriptors, keyframes and pairs; of positions: origin,
exponent; first code of sigmas; bits per axis; whether the landmarks that the own
keyframes see are the first ones; how many these are; groups of them; pairs with them;
groups of others."""
NEIGHBOUR = struct.Struct("<b3iI")
"""Cell of another tile, and how many of its landmarks the keyframes see."""
TAGS = ("META", "POSN", "QUAL", "DCNT", "DESC", "NBRS", "VIDS")
FEATURE_TAGS = ("FMET", "FNUM", "FPTS", "FDSC")
"""Of a tile with keyframe features, after the others."""
FEATURE_META = struct.Struct("<IhBB")
"""Number of features, first code of sigmas, bits of x and y."""


def unpack_tile(data: bytes) -> Container:
    """Return the sections of a tile's file, with or without keyframe features."""
    return unpack(data, FileKind.TILE, TAGS, further=FEATURE_TAGS)


def descriptor_bytes(family: FamilySpec) -> int:
    """Return the bytes of one stored descriptor."""
    dtype = np.dtype(codec.DTYPES[family.stored_dtype])
    return dtype.itemsize * family.stored_dim


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Seen:
    """Landmarks of one tile that some keyframes see, and by which ones."""

    cell: Cell | None
    landmarks: IntArray
    keyframe_rows: IntArray
    counts: IntArray


def _seen_by_tile(tile: Tile, cell_of: Callable[[int], Cell]) -> list[_Seen]:
    """Return what the keyframes of a tile see, by tile; the own one first."""
    ids = tile.visible_point3D_ids
    if len(ids) == 0:
        return []
    rows = np.repeat(np.arange(len(tile.keyframe_ids)), np.diff(tile.visible_offsets))
    order = np.lexsort((rows, ids))
    ids, rows = ids[order], rows[order]
    first = np.flatnonzero(np.diff(ids, prepend=-1))
    counts = np.diff(first, append=len(ids))
    owners = ids[first] >> LANDMARK_BITS
    bounds = np.flatnonzero(np.diff(owners, prepend=-1))
    found: list[_Seen] = []
    for start, end in zip(bounds, [*bounds[1:], len(first)], strict=True):
        owner = int(owners[start])
        stop = first[end] if end < len(first) else len(ids)
        found.append(
            _Seen(
                cell=None if owner == tile.tile_idx else cell_of(owner),
                landmarks=ids[first[start:end]] & ((1 << LANDMARK_BITS) - 1),
                keyframe_rows=rows[first[start] : stop],
                counts=counts[start:end],
            )
        )
    return sorted(found, key=lambda seen: (seen.cell is not None, seen.cell))


def _encode_seen(seen: Sequence[_Seen], num_keyframes: int) -> tuple[bytes, int]:
    if not seen:
        return b"", 0
    sizes = np.array([len(one.landmarks) for one in seen])
    return encode_tracks(
        np.concatenate([one.keyframe_rows for one in seen]),
        offsets_of(np.concatenate([one.counts for one in seen])),
        list_starts=np.cumsum(sizes) - sizes,
        num_keyframes=num_keyframes,
    )


def _encode_places(seen: Sequence[_Seen]) -> bytes:
    """Return which landmarks are seen, as gaps."""
    gaps = [np.diff(one.landmarks, prepend=-1) - 1 for one in seen]
    return encode_numbers(np.concatenate(gaps)) if gaps else b""


def encode_tile(
    tile: Tile,
    family: FamilySpec,
    *,
    cell_of: Callable[[int], Cell],
    step: float,
) -> bytes:
    """Return the bytes of a tile's file.

    Parameters
    ----------
    tile : Tile
        Within the limits of FORMAT.md; the writer has checked them.
    family : FamilySpec
        Of its descriptors.
    cell_of : callable
        Gives the cell of another tile by its row: the bytes do not depend on rows.
    step : float
        Of the positions, from `codec.position_step`.

    Returns
    -------
    bytes
        The same for the same tile, always.
    """
    landmarks = tile.landmarks
    positions, grid = codec.encode_positions(landmarks.points3D, step)
    qualities, first_code = codec.encode_qualities(
        landmarks.sigmas, landmarks.num_observations
    )
    seen = _seen_by_tile(tile, cell_of)
    own = [one for one in seen if one.cell is None]
    others = [one for one in seen if one.cell is not None]
    num_own = len(own[0].landmarks) if own else 0
    first_ones = not own or int(own[0].landmarks[-1]) == num_own - 1
    own_tracks, own_groups = _encode_seen(own, len(tile.keyframe_ids))
    other_tracks, other_groups = _encode_seen(others, len(tile.keyframe_ids))
    meta = META.pack(
        len(landmarks),
        len(landmarks.descriptors),
        len(tile.keyframe_ids),
        len(tile.visible_point3D_ids),
        *grid.origin,
        grid.exponent,
        first_code,
        *grid.bits,
        first_ones,
        num_own,
        own_groups,
        int(own[0].counts.sum()) if own else 0,
        other_groups,
    )
    neighbours = b"".join(
        NEIGHBOUR.pack(*one.cell, len(one.landmarks)) for one in others if one.cell
    )
    visible = b"".join(
        (
            b"" if first_ones else _encode_places(own),
            own_tracks,
            _encode_places(others),
            other_tracks,
        )
    )
    sections = {
        "META": (int(codec.Codec.RAW), meta),
        "POSN": positions,
        "QUAL": qualities,
        "DCNT": codec.encode_counts(np.diff(landmarks.descriptor_offsets)),
        "DESC": codec.encode_raw(
            landmarks.descriptors, codec.DTYPES[family.stored_dtype]
        ),
        "NBRS": (int(codec.Codec.RAW), neighbours),
        "VIDS": (int(codec.Codec.TRACKS), visible),
    }
    if tile.features is None:
        return pack(FileKind.TILE, sections, version=BASE_VERSION)
    sections.update(_encode_features(tile.features, family))
    return pack(FileKind.TILE, sections, version=FORMAT_VERSION)


def _encode_features(
    features: KeyframeFeatures, family: FamilySpec
) -> dict[str, tuple[int, bytes]]:
    points, code = codec.encode_keypoints(features.keypoints, features.sigmas)
    meta = FEATURE_META.pack(len(features), code.first_code, *code.bits)
    return {
        "FMET": (int(codec.Codec.RAW), meta),
        "FNUM": codec.encode_counts(np.diff(features.offsets)),
        "FPTS": points,
        "FDSC": codec.encode_raw(
            features.descriptors, codec.DTYPES[family.stored_dtype]
        ),
    }


def _decode_features(
    container: Container, family: FamilySpec, num_keyframes: int
) -> KeyframeFeatures | None:
    """Return the features of a tile's keyframes, None when it is without."""
    sections = container.sections
    if "FMET" not in sections:
        return None
    raw = codec.decode_raw(sections["FMET"], "|u1", FEATURE_META.size).tobytes()
    num, first_code, *bits = FEATURE_META.unpack(raw)
    # First, since a feature takes a byte here at least.
    descriptors = codec.decode_raw(
        sections["FDSC"], codec.DTYPES[family.stored_dtype], num * family.stored_dim
    ).reshape(-1, family.stored_dim)
    keypoints, sigmas = codec.decode_keypoints(
        sections["FPTS"],
        num,
        codec.KeypointCode(first_code=first_code, bits=(bits[0], bits[1])),
    )
    counts = codec.decode_counts(sections["FNUM"], num_keyframes, limit=num)
    offsets = offsets_of(counts)
    if offsets[-1] != num:
        raise TileFormatError(
            f"has keyframes with {offsets[-1]} features in all, expected {num}",
            offset=sections["FNUM"].offset,
        )
    return KeyframeFeatures(
        offsets=offsets, keypoints=keypoints, sigmas=sigmas, descriptors=descriptors
    )


def tile_entry(
    tile: Tile,
    data: bytes,
    *,
    cell: Cell,
    origin: tuple[float, float, float],
    step: float,
) -> TileEntry:
    """Return the row of a tile in the tile table.

    Parameters
    ----------
    tile : Tile
        The tile.
    data : bytes
        Its file.
    cell : Cell
        Where it is.
    origin : tuple of 3 float
        Of the grid of cells.
    step : float
        With which its positions were stored.
    """
    stored = np.rint(tile.landmarks.points3D / step) * step
    return TileEntry(
        cell=cell,
        box=box_codes(cell, stored - np.array(origin)),
        num_bytes=len(data),
        crc32=unpack_tile(data).crc32,
        sha256=hashlib.sha256(data).hexdigest(),
        num_landmarks=len(tile.landmarks),
        num_descriptors=len(tile.landmarks.descriptors),
        num_keyframes=len(tile.keyframe_ids),
        num_visible=len(tile.visible_point3D_ids),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Meta:
    """The section META of a tile."""

    num_landmarks: int
    num_descriptors: int
    num_keyframes: int
    num_visible: int
    grid: codec.Grid
    first_code: int
    first_ones: bool
    num_own: int
    own_groups: int
    own_visible: int
    other_groups: int


def _decode_meta(section: Section, entry: TileEntry) -> _Meta:
    raw = codec.decode_raw(section, "|u1", META.size).tobytes()
    values = META.unpack(raw)
    expected = (
        entry.num_landmarks,
        entry.num_descriptors,
        entry.num_keyframes,
        entry.num_visible,
    )
    if values[:4] != expected:
        raise TileFormatError(
            f"says (landmarks, descriptors, keyframes, visible) = {values[:4]}, the "
            f"index says {expected}",
            offset=section.offset,
        )
    if values[12] > 1:
        raise TileFormatError(
            f"has the flag {values[12]}, expected 0 or 1", offset=section.offset
        )
    num_own, _, own_visible, _ = values[13:]
    if num_own > entry.num_landmarks or own_visible > entry.num_visible:
        raise TileFormatError(
            f"sees {num_own} of its {entry.num_landmarks} landmarks {own_visible} of "
            f"{entry.num_visible} times",
            offset=section.offset,
        )
    return _Meta(
        **dict(
            zip(
                ("num_landmarks", "num_descriptors", "num_keyframes", "num_visible"),
                expected,
                strict=True,
            )
        ),
        grid=codec.Grid(exponent=values[7], origin=values[4:7], bits=values[9:12]),
        first_code=values[8],
        first_ones=bool(values[12]),
        num_own=num_own,
        own_groups=values[14],
        own_visible=own_visible,
        other_groups=values[16],
    )


def _decode_neighbours(
    section: Section, tiles: TileTable, tile_idx: int
) -> tuple[IntArray, IntArray]:
    """Return rows of the neighbours in the tile table, and landmarks of each seen."""
    codec.require_codec(section, codec.Codec.RAW)

    def fail(message: str) -> TileFormatError:
        return TileFormatError(message, offset=section.offset)

    if len(section.payload) % NEIGHBOUR.size:
        raise fail(
            f"section {section.tag} has {len(section.payload)} bytes, expected a "
            f"multiple of {NEIGHBOUR.size}"
        )
    rows: list[int] = []
    sizes: list[int] = []
    before: Cell | None = None
    for *index, size in NEIGHBOUR.iter_unpack(section.payload):
        cell = Cell(*index)
        row = tiles.row_of(cell)
        if row is None or row == tile_idx:
            raise fail(f"has the neighbour {tuple(cell)}, the site has no such tile")
        if before is not None and cell <= before:
            raise fail("has neighbours that do not ascend")
        if not 1 <= size <= tiles[row].num_landmarks:
            raise fail(
                f"sees {size} landmarks of tile {row}, which has "
                f"{tiles[row].num_landmarks}"
            )
        rows.append(row)
        sizes.append(size)
        before = cell
    return np.array(rows, dtype=np.int64), np.array(sizes, dtype=np.int64)


def _decode_places(reader: NumberReader, sizes: IntArray, limits: IntArray) -> IntArray:
    """Return places of landmarks in their tiles, ascending in each of some lists."""
    gaps = reader.read(int(sizes.sum()), limit=1 << LANDMARK_BITS)
    begins = np.cumsum(sizes) - sizes
    total = np.cumsum(gaps + 1) - 1
    places = total - np.repeat(total[begins] - gaps[begins], sizes)
    if np.any(places[begins + sizes - 1] >= limits):
        raise reader.fail("holds a landmark that its tile does not have")
    return np.asarray(places, dtype=np.int64)


def _decode_visible(
    section: Section, meta: _Meta, *, tile_idx: int, rows: IntArray, sizes: IntArray,
    limits: IntArray,
) -> tuple[IntArray, IntArray]:  # fmt: skip
    """Return the ids of the landmarks that each keyframe sees, and their offsets."""
    codec.require_codec(section, codec.Codec.TRACKS)
    reader = NumberReader(section)
    other_visible = meta.num_visible - meta.own_visible
    if int(sizes.sum()) > other_visible:
        raise reader.fail(
            f"has {int(sizes.sum())} landmarks of other tiles that are seen "
            f"{other_visible} times"
        )
    own = np.array([meta.num_own], dtype=np.int64)[: meta.num_own]
    if meta.first_ones or meta.num_own == 0:
        own_places = np.arange(meta.num_own)
    else:
        own_places = _decode_places(reader, own, np.array([meta.num_landmarks]))
        if int(own_places[-1]) == meta.num_own - 1:
            raise reader.fail("says what landmarks are seen, which are the first ones")
    own_rows, own_counts = decode_tracks(
        reader,
        num_groups=meta.own_groups,
        list_sizes=own,
        num_keyframes=meta.num_keyframes,
        num_visible=meta.own_visible,
    )
    other_places = _decode_places(reader, sizes, limits)
    other_rows, other_counts = decode_tracks(
        reader,
        num_groups=meta.other_groups,
        list_sizes=sizes,
        num_keyframes=meta.num_keyframes,
        num_visible=other_visible,
    )
    reader.finish()

    other_ids = (np.repeat(rows, sizes) << LANDMARK_BITS) + other_places
    ids = np.repeat(other_ids, other_counts)
    own_ids = np.repeat((tile_idx << LANDMARK_BITS) + own_places, own_counts)
    # Rows of the table ascend as cells do, hence neighbours: the own tile is put
    # between them, and then one stable sort by keyframe leaves ids ascending.
    split = int(np.searchsorted(ids, tile_idx << LANDMARK_BITS))
    ids = np.concatenate([ids[:split], own_ids, ids[split:]])
    keyframe_rows = np.concatenate([other_rows[:split], own_rows, other_rows[split:]])
    narrow = keyframe_rows.astype(np.uint16 if meta.num_keyframes < 2**16 else np.int64)
    counts = np.bincount(keyframe_rows, minlength=meta.num_keyframes)
    return ids[np.argsort(narrow, kind="stable")], offsets_of(counts)


def decode_tile(
    data: bytes,
    *,
    tile_idx: int,
    tiles: TileTable,
    family: FamilySpec,
    keyframe_ids: IntArray,
) -> Tile:
    """Return a tile from the bytes of its file.

    Parameters
    ----------
    data : bytes
        The whole file.
    tile_idx : int
        Which tile it has to be.
    tiles : TileTable
        All tiles of the site.
    family : FamilySpec
        Of its descriptors.
    keyframe_ids : ndarray of shape (Kt,), int64
        Which keyframes the index says it has.

    Returns
    -------
    Tile

    Raises
    ------
    TileFormatError
        When the bytes are anything but that tile.
    """
    entry = tiles[tile_idx]
    container = unpack_tile(data)
    if container.crc32 != entry.crc32:
        raise TileFormatError("is another file than the one that the index lists")
    sections = container.sections
    meta = _decode_meta(sections["META"], entry)
    if meta.num_keyframes != len(keyframe_ids):
        raise TileFormatError(
            f"has {meta.num_keyframes} keyframes, the index {len(keyframe_ids)}",
            offset=sections["META"].offset,
        )
    num = entry.num_landmarks
    # First, since a landmark takes a byte here, and maybe none elsewhere.
    sigmas, num_observations = codec.decode_qualities(
        sections["QUAL"], num, first_code=meta.first_code
    )
    points3D = codec.decode_positions(sections["POSN"], num, meta.grid)
    if box_codes(entry.cell, points3D - np.array(tiles.origin)) != entry.box:
        raise TileFormatError("has landmarks in another box than the index says")
    counts = codec.decode_counts(
        sections["DCNT"], num, limit=codec.MAX_DESCRIPTORS_PER_LANDMARK
    )
    descriptor_offsets = offsets_of(counts)
    if descriptor_offsets[-1] != entry.num_descriptors:
        raise TileFormatError(
            f"has landmarks with {descriptor_offsets[-1]} descriptors in all, "
            f"expected {entry.num_descriptors}",
            offset=sections["DCNT"].offset,
        )
    descriptors = codec.decode_raw(
        sections["DESC"],
        codec.DTYPES[family.stored_dtype],
        entry.num_descriptors * family.stored_dim,
    ).reshape(-1, family.stored_dim)
    rows, sizes = _decode_neighbours(sections["NBRS"], tiles, tile_idx)
    limits = np.array([tiles[row].num_landmarks for row in rows.tolist()], np.int64)
    visible, visible_offsets = _decode_visible(
        sections["VIDS"],
        meta,
        tile_idx=tile_idx,
        rows=rows,
        sizes=sizes,
        limits=limits,
    )
    return Tile(
        tile_idx=tile_idx,
        landmarks=LandmarkTable(
            points3D=points3D,
            sigmas=sigmas,
            num_observations=num_observations,
            descriptor_offsets=descriptor_offsets,
            descriptors=descriptors,
        ),
        keyframe_ids=keyframe_ids,
        visible_offsets=visible_offsets,
        visible_point3D_ids=visible,
        features=_decode_features(container, family, len(keyframe_ids)),
    )


def is_canonical(data: bytes, tile: Tile, family: FamilySpec, tiles: TileTable) -> bool:
    """Return whether a tile that was read is written in just this way.

    Parameters
    ----------
    data : bytes
        The file.
    tile : Tile
        What `decode_tile` made of it.
    family : FamilySpec
        Of its descriptors.
    tiles : TileTable
        All tiles of the site.
    """
    sections = unpack_tile(data).sections
    meta = _decode_meta(sections["META"], tiles[tile.tile_idx])
    again = encode_tile(
        tile,
        family,
        cell_of=lambda row: tiles[row].cell,
        step=meta.grid.step,
    )
    return again == data
