"""The index (tile table, keyframes, retrieval model) to bytes and back.

A reader maps the file: what is small is checked and decoded when the site is opened,
poses are decoded when they are asked for, and the large tables stay on disk until they
are looked at.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeloc.errors import TileFormatError
from edgeloc.geometry.se3 import quat_from_rotation
from edgeloc.tiles import codec
from edgeloc.tiles.arrays import ARRAY_TAGS, AnyArray, decode_arrays, encode_arrays
from edgeloc.tiles.bits import SPARE_BYTES, NumberReader, encode_numbers
from edgeloc.tiles.container import (
    Buffer,
    Container,
    FileKind,
    Section,
    check_section,
    pack,
    unpack,
)
from edgeloc.tiles.layout import KeyframePoses, KeyframeTable
from edgeloc.tiles.manifest import IndexEntry, SiteManifest, index_file_name
from edgeloc.tiles.tile_table import (
    TileEntry,
    TileTable,
    decode_tile_table,
    encode_tile_table,
)
from edgeloc.types import ByteArray, FloatArray, IntArray

META = struct.Struct("<II3qhBBBB")
"""Numbers of tiles and keyframes; of camera centres: origin, exponent, bits per axis;
bytes of a camera's index."""
TAGS = ("META", "TILE", "KFID", "KCAM", "CNTR", "QUAT", "GDSC", *ARRAY_TAGS)
LAZY_BYTES = 4 << 20
"""Larger sections are not read when a site is opened, see `check_all`."""
QUAT_SCALE = 32767
_MAX_NORM_ERROR = 1e-4
CENTER_STEP = 2.0**-10
"""Camera centres are never coarser in a metric map, nor than 2^-16 of their extent."""


class PackedPoses:
    """Poses of keyframes, decoded when they are asked for.

    Parameters
    ----------
    centers : ndarray of uint8
        As for `codec.positions_at`.
    grid : Grid
        Of the centres.
    quats : ndarray of shape (K, 4), int16
        Rotations of ``cam_from_world``, (w, x, y, z) times `QUAT_SCALE`.
    """

    def __init__(
        self, centers: ByteArray, grid: codec.Grid, quats: npt.NDArray[np.int16]
    ) -> None:
        self._stream = centers
        self._grid = grid
        self._quats = quats

    def __len__(self) -> int:
        return len(self._quats)

    def rotations_of(self, keyframe_idx: IntArray) -> FloatArray:
        """Return rotations of ``cam_from_world``, (n, 3, 3)."""
        return _rotations_from_quats(self._quats[keyframe_idx].astype(np.float64))

    def centers_of(self, keyframe_idx: IntArray) -> FloatArray:
        """Return camera centres in the world, (n, 3), m."""
        idx = np.asarray(keyframe_idx, dtype=np.int64)
        return codec.positions_at(self._stream, idx, self._grid)


class CameraIds(Sequence[str]):
    """Camera of each keyframe.

    Parameters
    ----------
    names : tuple of str
        The site's cameras, sorted.
    idx : ndarray of shape (K,), or int
        Which; with one camera the number of keyframes.
    """

    def __init__(
        self, names: tuple[str, ...], idx: npt.NDArray[np.unsignedinteger] | int
    ) -> None:
        self._names = names
        self._idx = idx

    def __len__(self) -> int:
        return self._idx if isinstance(self._idx, int) else len(self._idx)

    def __getitem__(self, keyframe_idx: int) -> str:  # type: ignore[override]
        if isinstance(self._idx, int):
            return self._names[0 * range(self._idx)[keyframe_idx]]
        return self._names[int(self._idx[keyframe_idx])]

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """What the index holds.

    Parameters
    ----------
    tiles : TileTable
        The tile table.
    keyframes : KeyframeTable
        Keyframes of the site, those of tile 0 first.
    retrieval_arrays : mapping of str to ndarray
        The retrieval model's arrays.
    """

    tiles: TileTable
    keyframes: KeyframeTable
    retrieval_arrays: Mapping[str, AnyArray]


def center_step(centers: FloatArray, wanted: float | None) -> float:
    """Return the step, a power of two, with which camera centres are stored.

    Parameters
    ----------
    centers : ndarray of shape (K, 3), float64
        M.
    wanted : float, optional
        As `SiteContents.position_step`.
    """
    if wanted is None:
        wanted = min(CENTER_STEP, codec.position_step(centers))
    return codec.position_step(centers, wanted)


def encode_index(
    *,
    tiles: Sequence[TileEntry],
    keyframes: KeyframeTable,
    retrieval_arrays: Mapping[str, AnyArray],
    camera_ids: tuple[str, ...],
    position_step: float | None,
) -> bytes:
    """Return the bytes of the index.

    Parameters
    ----------
    tiles : sequence of TileEntry
        Their keyframes follow each other in `keyframes`.
    keyframes : KeyframeTable
        Within the limits of FORMAT.md; the writer has checked them. Ids ascend within
        each tile; global codes are as they are to be stored.
    retrieval_arrays : mapping of str to ndarray
        The retrieval model's arrays.
    camera_ids : tuple of str
        Cameras of the site, sorted.
    position_step : float, optional
        As in `SiteContents`.

    Returns
    -------
    bytes
    """
    num = len(keyframes)
    centers = keyframes.centers
    coded, grid = codec.encode_positions(centers, center_step(centers, position_step))
    quats = np.array([quat_from_rotation(R) for R in keyframes.R]).reshape(-1, 4)
    camera_idx = {camera_id: i for i, camera_id in enumerate(camera_ids)}
    camera_bytes = _camera_bytes(len(camera_ids))
    cameras = (int(codec.Codec.RAW), b"")
    if camera_bytes:
        cameras = codec.encode_raw(
            [camera_idx[c] for c in keyframes.camera_ids], f"<u{camera_bytes}"
        )
    codes = keyframes.global_codes
    sections = {
        "META": (
            int(codec.Codec.RAW),
            META.pack(
                *(len(tiles), num),
                *grid.origin,
                grid.exponent,
                *grid.bits,
                camera_bytes,
            ),
        ),
        "TILE": (int(codec.Codec.RAW), encode_tile_table(tiles)),
        "KFID": (
            int(codec.Codec.NUMBERS),
            _encode_ids(keyframes.keyframe_ids, [t.num_keyframes for t in tiles]),
        ),
        "KCAM": cameras,
        "CNTR": coded,
        "QUAT": codec.encode_raw(np.rint(quats * QUAT_SCALE), "<i2"),
        "GDSC": codec.encode_raw(codes, codec.DTYPES[codes.dtype.name]),
        **encode_arrays(retrieval_arrays),
    }
    return pack(FileKind.INDEX, sections)


def index_entry(data: bytes) -> IndexEntry:
    """Return what site.json says of an index, from its bytes."""
    sha256 = hashlib.sha256(data).hexdigest()
    return IndexEntry(
        file=index_file_name(sha256),
        num_bytes=len(data),
        sha256=sha256,
        crc32=unpack(data, FileKind.INDEX, TAGS).crc32,
    )


def with_tiles(data: bytes, tiles: Sequence[TileEntry]) -> bytes:
    """Return an index with another tile table; nothing else is coded anew.

    Parameters
    ----------
    data : bytes
        An index.
    tiles : sequence of TileEntry
        With the keyframes of the tiles before.
    """
    sections = {
        tag: (section.codec, bytes(section.payload))
        for tag, section in unpack(data, FileKind.INDEX, TAGS).sections.items()
    }
    sections["TILE"] = (int(codec.Codec.RAW), encode_tile_table(tiles))
    return pack(FileKind.INDEX, sections)


def with_arrays(data: bytes, arrays: Mapping[str, AnyArray]) -> bytes:
    """Return an index with further arrays; nothing else is coded anew.

    Parameters
    ----------
    data : bytes
        An index.
    arrays : mapping of str to ndarray
        To add to `Index.retrieval_arrays`; those of the same name are replaced.

    Raises
    ------
    ValueError
        When an array is of a type that is not stored.
    """
    found = unpack(data, FileKind.INDEX, TAGS).sections
    before = decode_arrays(found["ADIR"], found["ADAT"])
    sections = {
        tag: (section.codec, bytes(section.payload)) for tag, section in found.items()
    }
    sections.update(encode_arrays({**before, **arrays}))
    return pack(FileKind.INDEX, sections)


def _camera_bytes(num_cameras: int) -> int:
    if num_cameras == 1:
        return 0
    return 1 if num_cameras <= 2**8 else 2


def _encode_ids(ids: IntArray, counts: Sequence[int]) -> bytes:
    """Return the first id of each tile, and then the gaps within the tiles."""
    sizes = np.array([count for count in counts if count > 0], dtype=np.int64)
    first = np.cumsum(sizes) - sizes
    inside = np.ones(len(ids), dtype=np.bool_)
    inside[first] = False
    gaps = np.diff(ids, prepend=-1) - 1
    return encode_numbers(ids[first]) + encode_numbers(gaps[inside])


def _decode_ids(section: Section, counts: IntArray) -> IntArray:
    codec.require_codec(section, codec.Codec.NUMBERS)
    reader = NumberReader(section)
    sizes = counts[counts > 0]
    first = np.cumsum(sizes) - sizes
    inside = np.ones(int(sizes.sum()), dtype=np.bool_)
    inside[first] = False
    steps = np.empty(len(inside), dtype=np.int64)
    steps[first] = reader.read(len(first))
    steps[inside] = reader.read(len(inside) - len(first)) + 1
    reader.finish()
    total = np.cumsum(steps)
    ids = total - np.repeat(total[first] - steps[first], sizes)
    ordered = np.sort(ids)
    if np.any(ordered[1:] == ordered[:-1]):
        raise reader.fail("holds an id twice")
    return np.asarray(ids)


def _rotations_from_quats(quats: FloatArray) -> FloatArray:
    """Return rotation matrices, (K, 3, 3), of quaternions (w, x, y, z)."""
    w, x, y, z = (quats / np.linalg.norm(quats, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.ascontiguousarray(np.moveaxis(np.array(rows), -1, 0))


def _open(data: Buffer, manifest: SiteManifest, lazy_bytes: int | None) -> Container:
    container = unpack(data, FileKind.INDEX, TAGS, lazy_bytes=lazy_bytes)
    if container.crc32 != manifest.index.crc32:
        raise TileFormatError("is another file than the one that site.json lists")
    return container


def _poses(
    data: Buffer, sections: Mapping[str, Section], grid: codec.Grid, num: int
) -> KeyframePoses:
    section = sections["CNTR"]
    codec.check_positions(section, num, grid)
    # What follows in the file are 8 bytes or more of quaternions.
    end = section.offset + len(section.payload) + SPARE_BYTES
    stream = np.frombuffer(memoryview(data)[section.offset : end], dtype=np.uint8)
    section = sections["QUAT"]
    quats = np.asarray(
        codec.decode_raw(section, "<i2", 4 * num), dtype=np.int16
    ).reshape(-1, 4)
    norm = np.einsum("ki,ki->k", quats, quats, dtype=np.float64) / QUAT_SCALE**2
    if np.any(quats[:, 0] < 0) or np.any(np.abs(norm - 1) > 2 * _MAX_NORM_ERROR):
        raise TileFormatError(
            f"section {section.tag} does not hold unit quaternions with w >= 0",
            offset=section.offset,
        )
    return PackedPoses(stream, grid, quats)


def decode_index(
    data: Buffer, manifest: SiteManifest, *, lazy_bytes: int | None = None
) -> Index:
    """Return the index from its bytes.

    Parameters
    ----------
    data : bytes or mmap
        The whole file; the index holds views of it.
    manifest : SiteManifest
        What site.json says about it.
    lazy_bytes : int, optional
        Larger tables of codes and arrays are not looked at; `check_all` does that.

    Returns
    -------
    Index

    Raises
    ------
    TileFormatError
        When the bytes are anything but that index.
    """
    container = _open(data, manifest, lazy_bytes)
    sections = container.sections
    num = manifest.num_keyframes
    meta = META.unpack(codec.decode_raw(sections["META"], "|u1", META.size).tobytes())
    camera_bytes = meta[9]
    expected = (manifest.num_tiles, num, _camera_bytes(len(manifest.cameras)))
    if (*meta[:2], camera_bytes) != expected:
        raise TileFormatError(
            f"says (tiles, keyframes, camera bytes) = {(*meta[:2], camera_bytes)}, "
            f"site.json says {expected}",
            offset=sections["META"].offset,
        )
    grid = codec.Grid(origin=meta[2:5], exponent=meta[5], bits=meta[6:9])
    # Fixed bytes per keyframe come first, so that no count is believed without them.
    poses = _poses(data, sections, grid, num)
    tiles = decode_tile_table(
        sections["TILE"], manifest.num_tiles, origin=manifest.grid_origin
    )
    for name, total in (
        ("num_keyframes", num),
        ("num_landmarks", manifest.num_landmarks),
        ("num_bytes", manifest.tile_bytes),
    ):
        if tiles.total(name) != total:
            raise TileFormatError(
                f"has tiles whose {name} are {tiles.total(name)} in all, site.json "
                f"says {total}",
                offset=sections["TILE"].offset,
            )
    ids = _decode_ids(sections["KFID"], np.diff(tiles.first_keyframe))
    codes_section = sections["GDSC"]
    eager = lazy_bytes is None or len(codes_section.payload) <= lazy_bytes
    codes = codec.decode_raw(
        codes_section,
        codec.DTYPES[manifest.global_dtype],
        num * manifest.global_dim,
        finite=eager,
    )
    data_section = sections["ADAT"]
    return Index(
        tiles=tiles,
        keyframes=KeyframeTable(
            keyframe_ids=ids,
            camera_ids=_cameras(sections["KCAM"], manifest.camera_ids, num),
            poses=poses,
            global_codes=codes.reshape(num, manifest.global_dim),
        ),
        retrieval_arrays=decode_arrays(
            sections["ADIR"],
            data_section,
            finite=lazy_bytes is None or len(data_section.payload) <= lazy_bytes,
        ),
    )


def _cameras(section: Section, names: tuple[str, ...], num: int) -> CameraIds:
    width = _camera_bytes(len(names))
    if width == 0:
        codec.decode_raw(section, "|u1", 0)
        return CameraIds(names, num)
    idx = np.asarray(codec.decode_raw(section, f"<u{width}", num), dtype=f"<u{width}")
    if np.any(idx >= len(names)):
        raise TileFormatError(
            f"section {section.tag} does not hold indices of the site's cameras",
            offset=section.offset,
        )
    return CameraIds(names, idx)


def check_all(data: Buffer, manifest: SiteManifest) -> None:
    """Raise `TileFormatError` unless also what was left out at opening is in order.

    Parameters
    ----------
    data : bytes or mmap
        The whole file.
    manifest : SiteManifest
        What site.json says about it.
    """
    for section in _open(data, manifest, None).sections.values():
        check_section(section)
    decode_index(data, manifest)
