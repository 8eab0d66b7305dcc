"""One tile to the bytes of its file and back."""

from __future__ import annotations

import struct

import numpy as np

from edgeloc.errors import TileFormatError
from edgeloc.tiles import codec
from edgeloc.tiles.container import FileKind, pack, unpack
from edgeloc.tiles.layout import FamilySpec, LandmarkTable, Tile
from edgeloc.tiles.manifest import DESCRIPTOR_DTYPES, TileEntry
from edgeloc.types import IntArray

META = struct.Struct("<IIQQQQQ4d")
"""Tile index, bytes of a descriptor, first landmark id, numbers of landmarks,
descriptors, keyframes and visible ids, origin, step."""
TAGS = ("META", "POSN", "SIGM", "NOBS", "DCNT", "DESC", "KFID", "VCNT", "VIDS")


def descriptor_bytes(family: FamilySpec) -> int:
    """Return the bytes of one stored descriptor."""
    dtype = np.dtype(DESCRIPTOR_DTYPES[family.stored_dtype])
    return dtype.itemsize * family.stored_dim


def _offsets(counts: IntArray) -> IntArray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def encode_tile(tile: Tile, family: FamilySpec) -> bytes:
    """Return the bytes of a tile's file.

    Parameters
    ----------
    tile : Tile
        Within the limits of FORMAT.md; the writer has checked them.
    family : FamilySpec
        Of its descriptors.

    Returns
    -------
    bytes
        The same for the same tile, always.
    """
    landmarks = tile.landmarks
    positions, origin, step = codec.encode_positions(landmarks.points3D)
    meta = META.pack(
        tile.tile_idx,
        descriptor_bytes(family),
        tile.first_point3D_id,
        len(landmarks),
        len(landmarks.descriptors),
        len(tile.keyframe_ids),
        len(tile.visible_point3D_ids),
        *origin,
        step,
    )
    sections = {
        "META": (int(codec.Codec.RAW), meta),
        "POSN": positions,
        "SIGM": codec.encode_sigmas(landmarks.sigmas),
        "NOBS": codec.encode_counts(landmarks.num_observations),
        "DCNT": codec.encode_raw(np.diff(landmarks.descriptor_offsets), "u1"),
        "DESC": codec.encode_raw(
            landmarks.descriptors, DESCRIPTOR_DTYPES[family.stored_dtype]
        ),
        "KFID": codec.encode_raw(tile.keyframe_ids, "<i8"),
        "VCNT": codec.encode_raw(np.diff(tile.visible_offsets), "<u4"),
        "VIDS": codec.encode_id_lists(tile.visible_point3D_ids, tile.visible_offsets),
    }
    return pack(FileKind.TILE, sections)


def decode_tile(
    data: bytes,
    *,
    tile_idx: int,
    entry: TileEntry,
    family: FamilySpec,
    keyframe_ids: IntArray,
    num_point3D_ids: int,
) -> Tile:
    """Return a tile from the bytes of its file.

    Parameters
    ----------
    data : bytes
        The whole file.
    tile_idx : int
        Which tile it has to be.
    entry : TileEntry
        What site.json says about it.
    family : FamilySpec
        Of its descriptors.
    keyframe_ids : ndarray of shape (Kt,), int64
        Which keyframes the index says it has.
    num_point3D_ids : int
        Landmarks of the site.

    Returns
    -------
    Tile

    Raises
    ------
    TileFormatError
        When the bytes are anything but that tile.
    """
    container = unpack(data, FileKind.TILE, TAGS)
    if container.crc32 != entry.file.crc32:
        raise TileFormatError("is another file than the one that site.json lists")
    sections = container.sections
    meta = codec.decode_raw(sections["META"], "u1", META.size).tobytes()
    x, y, z, step = META.unpack(meta)[-4:]
    expected = (
        tile_idx,
        descriptor_bytes(family),
        entry.first_point3D_id,
        entry.num_landmarks,
        entry.num_descriptors,
        entry.num_keyframes,
        entry.num_visible,
    )
    if META.unpack(meta)[:-4] != expected:
        raise TileFormatError(
            f"says (index, descriptor bytes, first id, counts) = "
            f"{META.unpack(meta)[:-4]}, site.json says {expected}",
            offset=sections["META"].offset,
        )

    num = entry.num_landmarks
    points3D = codec.decode_positions(
        sections["POSN"], num, origin=(x, y, z), step=step
    )
    if num > 0 and (
        tuple(points3D.min(axis=0).tolist()) != entry.box_min
        or tuple(points3D.max(axis=0).tolist()) != entry.box_max
    ):
        raise TileFormatError("has landmarks in another box than site.json says")
    descriptor_offsets = _offsets(codec.decode_int64(sections["DCNT"], "u1", num))
    if descriptor_offsets[-1] != entry.num_descriptors:
        raise TileFormatError(
            f"has landmarks with {descriptor_offsets[-1]} descriptors in all, "
            f"expected {entry.num_descriptors}",
            offset=sections["DCNT"].offset,
        )
    descriptors = codec.decode_raw(
        sections["DESC"],
        DESCRIPTOR_DTYPES[family.stored_dtype],
        entry.num_descriptors * family.stored_dim,
    ).reshape(-1, family.stored_dim)
    stored_ids = codec.decode_int64(sections["KFID"], "<i8", entry.num_keyframes)
    if not np.array_equal(stored_ids, keyframe_ids):
        raise TileFormatError(
            "holds other keyframes than the index says", offset=sections["KFID"].offset
        )
    visible_offsets = _offsets(
        codec.decode_int64(sections["VCNT"], "<u4", entry.num_keyframes)
    )
    if visible_offsets[-1] != entry.num_visible:
        raise TileFormatError(
            f"has keyframes that see {visible_offsets[-1]} landmarks in all, "
            f"expected {entry.num_visible}",
            offset=sections["VCNT"].offset,
        )
    visible = codec.decode_id_lists(
        sections["VIDS"], visible_offsets, num_ids=num_point3D_ids
    )
    landmarks = LandmarkTable(
        points3D=points3D,
        sigmas=codec.decode_sigmas(sections["SIGM"], num),
        num_observations=codec.decode_counts(sections["NOBS"], num),
        descriptor_offsets=descriptor_offsets,
        descriptors=descriptors,
    )
    return Tile(
        tile_idx=tile_idx,
        first_point3D_id=entry.first_point3D_id,
        landmarks=landmarks,
        keyframe_ids=stored_ids,
        visible_offsets=visible_offsets,
        visible_point3D_ids=visible,
    )
