"""The resident index (keyframes and retrieval model) to bytes and back."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgeloc.errors import TileFormatError
from edgeloc.geometry.se3 import quat_from_rotation
from edgeloc.tiles import codec
from edgeloc.tiles.container import FileKind, Section, pack, unpack
from edgeloc.tiles.layout import KeyframeTable, PoseArrays
from edgeloc.tiles.manifest import SiteManifest
from edgeloc.types import Float32Array, FloatArray, IntArray

META = struct.Struct("<QQ")
"""Numbers of keyframes and of elements of a global descriptor."""
TAGS = ("META", "KFID", "KCAM", "KTIL", "QUAT", "TRAN", "GDSC", "RARR")
_MAX_NORM_ERROR = 1e-6
MAX_TRANSLATION = 2 * codec.MAX_COORDINATE


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """What the index holds.

    Parameters
    ----------
    keyframes : KeyframeTable
        Keyframes of the site.
    keyframe_tile_idx : ndarray of shape (K,), int64
        Tile of each.
    retrieval_arrays : mapping of str to ndarray, float32
        The retrieval model's arrays.
    """

    keyframes: KeyframeTable
    keyframe_tile_idx: IntArray
    retrieval_arrays: Mapping[str, Float32Array]


def encode_index(index: Index, camera_ids: tuple[str, ...]) -> bytes:
    """Return the bytes of the index.

    Parameters
    ----------
    index : Index
        Within the limits of FORMAT.md; the writer has checked them.
    camera_ids : tuple of str
        Cameras of the site, sorted.

    Returns
    -------
    bytes
    """
    keyframes = index.keyframes
    camera_idx = {camera_id: i for i, camera_id in enumerate(camera_ids)}
    quats = [quat_from_rotation(R) for R in keyframes.R]
    num, dim = keyframes.global_codes.shape
    arrays = b"".join(
        codec.encode_raw(index.retrieval_arrays[name], "<f4")[1]
        for name in sorted(index.retrieval_arrays)
    )
    sections = {
        "META": (int(codec.Codec.RAW), META.pack(num, dim)),
        "KFID": codec.encode_raw(keyframes.keyframe_ids, "<i8"),
        "KCAM": codec.encode_raw([camera_idx[c] for c in keyframes.camera_ids], "<u4"),
        "KTIL": codec.encode_raw(index.keyframe_tile_idx, "<u4"),
        "QUAT": codec.encode_raw(quats, "<f8"),
        "TRAN": codec.encode_raw(keyframes.t, "<f8"),
        "GDSC": codec.encode_half(np.asarray(keyframes.global_codes, np.float32)),
        "RARR": (int(codec.Codec.RAW), arrays),
    }
    return pack(FileKind.INDEX, sections)


def _rotations_from_quats(quats: FloatArray) -> FloatArray:
    """Return rotation matrices, (K, 3, 3), of unit quaternions (w, x, y, z)."""
    w, x, y, z = (quats / np.linalg.norm(quats, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.ascontiguousarray(np.moveaxis(np.array(rows), -1, 0))


def _bounded(
    values: FloatArray | Float32Array | IntArray, low: float, high: float
) -> bool:
    return bool(np.all((values >= low) & (values <= high)))


def decode_index(data: bytes, manifest: SiteManifest) -> Index:
    """Return the index from its bytes.

    Parameters
    ----------
    data : bytes
        The whole file.
    manifest : SiteManifest
        What site.json says about it.

    Returns
    -------
    Index

    Raises
    ------
    TileFormatError
        When the bytes are anything but that index.
    """
    container = unpack(data, FileKind.INDEX, TAGS)
    if container.crc32 != manifest.index.crc32:
        raise TileFormatError("is another file than the one that site.json lists")
    sections = container.sections
    num, dim = manifest.num_keyframes, manifest.global_descriptor_dim
    meta = codec.decode_raw(sections["META"], "u1", META.size).tobytes()
    if META.unpack(meta) != (num, dim):
        raise TileFormatError(
            f"says (keyframes, global dimensions) = {META.unpack(meta)}, site.json "
            f"says {(num, dim)}",
            offset=sections["META"].offset,
        )

    def fail(tag: str, expected: str) -> TileFormatError:
        return TileFormatError(
            f"section {tag} does not hold {expected}", offset=sections[tag].offset
        )

    keyframe_ids = codec.decode_int64(sections["KFID"], "<i8", num)
    if keyframe_ids[0] < 0 or np.any(keyframe_ids[1:] <= keyframe_ids[:-1]):
        raise fail("KFID", "ascending ids from 0")
    camera_idx = codec.decode_int64(sections["KCAM"], "<u4", num)
    cameras = manifest.camera_ids
    if not _bounded(camera_idx, 0, len(cameras) - 1):
        raise fail("KCAM", "indices of the site's cameras")
    tile_idx = codec.decode_int64(sections["KTIL"], "<u4", num)
    if not _bounded(tile_idx, 0, len(manifest.tiles) - 1) or np.any(
        np.bincount(tile_idx, minlength=len(manifest.tiles))
        != [tile.num_keyframes for tile in manifest.tiles]
    ):
        raise fail("KTIL", "as many keyframes of each tile as site.json says")
    quats = np.asarray(
        codec.decode_raw(sections["QUAT"], "<f8", 4 * num), dtype=np.float64
    ).reshape(-1, 4)
    # Bounded first: the norm of huge numbers would overflow.
    if (
        not _bounded(quats, -1.1, 1.1)
        or np.any(quats[:, 0] < 0)
        or np.any(np.abs(np.linalg.norm(quats, axis=1) - 1) > _MAX_NORM_ERROR)
    ):
        raise fail("QUAT", "unit quaternions with w >= 0")
    t = np.asarray(codec.decode_raw(sections["TRAN"], "<f8", 3 * num), dtype=np.float64)
    if not _bounded(t, -MAX_TRANSLATION, MAX_TRANSLATION):
        raise fail("TRAN", f"translations below {MAX_TRANSLATION:g}")
    descriptors = codec.decode_half(sections["GDSC"], num * dim)
    if not _bounded(descriptors, -1.0, 1.0):
        raise fail("GDSC", "numbers from -1 to 1")
    return Index(
        keyframes=KeyframeTable(
            keyframe_ids=keyframe_ids,
            camera_ids=tuple(cameras[i] for i in camera_idx.tolist()),
            poses=PoseArrays(R=_rotations_from_quats(quats), t=t.reshape(-1, 3)),
            global_codes=descriptors.reshape(num, dim),
        ),
        keyframe_tile_idx=tile_idx,
        retrieval_arrays=_decode_arrays(
            container.sections["RARR"], manifest.retrieval_shapes
        ),
    )


def _decode_arrays(
    section: Section, shapes: Mapping[str, tuple[int, ...]]
) -> Mapping[str, Float32Array]:
    """Return arrays that follow each other in the order of their names."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    flat = np.asarray(codec.decode_raw(section, "<f4", sum(sizes)), dtype=np.float32)
    arrays: dict[str, Float32Array] = {}
    start = 0
    for (name, shape), size in zip(shapes.items(), sizes, strict=True):
        arrays[name] = flat[start : start + size].reshape(shape)
        start += size
    return arrays
