"""The reader under attack: an error of the format or a valid answer, nothing else.

Every mutation is tried twice: as it is, which the checksums have to catch, and with
all checksums made right again, which reaches the checks behind them.
"""

from __future__ import annotations

import itertools
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from site_factory import (
    listed,
    make_contents,
    reseal,
    stored_crc32,
    table_of,
)

from edgeloc.errors import TileFormatError
from edgeloc.tiles import index_file, tile_file
from edgeloc.tiles.container import HEADER, TABLE_ENTRY, FileKind, pack, unpack
from edgeloc.tiles.index_file import Index, decode_index
from edgeloc.tiles.layout import Tile
from edgeloc.tiles.reader import Site, open_site
from edgeloc.tiles.writer import write_site

COUNT_ATTACKS = (0, 1, 2**16, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    path = tmp_path_factory.mktemp("fuzz") / "site"
    write_site(path, make_contents(np.random.default_rng(3), num_landmarks=5))
    return open_site(path, verify=True)


@pytest.fixture(scope="module")
def tile_bytes(site) -> bytes:
    return (site.path / "tiles" / "000000.tile").read_bytes()


@pytest.fixture(scope="module")
def index_bytes(site) -> bytes:
    return (site.path / "index.bin").read_bytes()


def check_tile(tile: Tile, site: Site) -> None:
    """A tile that was accepted keeps every promise of `Tile`."""
    landmarks = tile.landmarks
    assert len(landmarks) == 5
    assert np.all(np.isfinite(landmarks.points3D))
    assert np.all(landmarks.sigmas > 0)
    assert np.all(np.diff(landmarks.descriptor_offsets) >= 0)
    assert landmarks.descriptor_offsets[-1] == len(landmarks.descriptors)
    assert np.array_equal(tile.keyframe_ids, site.keyframes.keyframe_ids)
    assert np.all(np.diff(tile.visible_offsets) >= 0)
    assert tile.visible_offsets[-1] == len(tile.visible_point3D_ids)
    for start, end in itertools.pairwise(tile.visible_offsets):
        ids = tile.visible_point3D_ids[start:end]
        assert np.all(np.diff(ids) > 0)
        assert np.all((ids >= 0) & (ids < 5))


def check_index(index: Index, site: Site) -> None:
    """An index that was accepted keeps every promise of `KeyframeTable`."""
    keyframes = index.keyframes
    assert np.all(np.diff(keyframes.keyframe_ids) > 0)
    assert set(keyframes.camera_ids) <= set(site.manifest.cameras)
    assert np.all(index.keyframe_tile_idx == 0)
    assert np.all(np.isfinite(keyframes.centers))
    assert np.all(np.isfinite(keyframes.global_codes))
    for i in range(len(keyframes)):
        keyframes.cam_from_world(i)
    assert all(np.all(np.isfinite(a)) for a in index.retrieval_arrays.values())


Attempt = Callable[[bytes], bool]


def tile_attempt(site: Site) -> Attempt:
    """Read a tile whose size and checksum site.json was made to list."""

    def attempt(data: bytes) -> bool:
        try:
            tile = tile_file.decode_tile(
                data,
                tile_idx=0,
                entry=listed(site, data).manifest.tiles[0],
                family=site.manifest.family,
                keyframe_ids=site.keyframes.keyframe_ids,
                num_point3D_ids=5,
            )
        except TileFormatError:
            return False
        check_tile(tile, site)
        return True

    return attempt


def index_attempt(site: Site) -> Attempt:
    """Read an index whose size and checksum site.json was made to list."""

    def attempt(data: bytes) -> bool:
        entry = replace(
            site.manifest.index, num_bytes=len(data), crc32=stored_crc32(data)
        )
        try:
            index = decode_index(data, replace(site.manifest, index=entry))
        except TileFormatError:
            return False
        check_index(index, site)
        return True

    return attempt


@pytest.fixture(params=["tile", "index"])
def target(request, site, tile_bytes, index_bytes) -> tuple[bytes, Attempt]:
    if request.param == "tile":
        return tile_bytes, tile_attempt(site)
    return index_bytes, index_attempt(site)


def with_length(data: bytes) -> bytes:
    """Let the header say the true length, and reseal."""
    out = bytearray(data)
    if len(out) >= HEADER.size:
        struct.pack_into("<Q", out, 16, len(out))
    return reseal(bytes(out))


def test_the_mutations_below_start_from_a_file_that_is_read(target):
    data, attempt = target
    assert attempt(data)
    assert reseal(data) == data
    assert with_length(data) == data


def test_truncation_at_every_byte(target):
    data, attempt = target
    for length in range(len(data)):
        assert not attempt(data[:length])
        assert not attempt(with_length(data[:length]))


def test_bits_flipped_in_every_byte(target):
    data, attempt = target
    accepted = 0
    for at, bit in itertools.product(range(len(data)), (0, 4, 7)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << bit
        assert not attempt(bytes(flipped))
        resealed = reseal(bytes(flipped))
        accepted += resealed != data and attempt(resealed)
    # Values that are free, such as descriptors; far from most bits.
    assert 0.03 < accepted / (3 * len(data)) < 0.5


def test_every_byte_at_its_ends(target):
    data, attempt = target
    for at, value in itertools.product(range(len(data)), (0x00, 0xFF)):
        changed = bytearray(data)
        changed[at] = value
        attempt(reseal(bytes(changed)))


def test_files_on_disk_that_end_early_or_were_flipped(site, tile_bytes, index_bytes):
    """The same through the file system, where site.json stays as it was."""
    for name, data in (("tiles/000000.tile", tile_bytes), ("index.bin", index_bytes)):
        file = site.path / name
        for at in range(0, len(data), 13):
            flipped = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
            for damaged in (data[:at], flipped):
                file.write_bytes(damaged)
                with pytest.raises(TileFormatError) as caught:
                    open_site(site.path).read_tile(0)
                assert str(caught.value).startswith(f"{file}: ")
                assert "\n" not in str(caught.value)
        file.write_bytes(data)


def test_trailing_bytes(target):
    data, attempt = target
    for tail in (b"\0", bytes(8), bytes(4096), b"PK\x05\x06" + bytes(18), data):
        assert not attempt(data + tail)
        assert not attempt(with_length(data + tail))


def test_every_length_field(target):
    data, attempt = target
    fields = [(12, "<I"), (16, "<Q")]
    for i in range(len(table_of(data))):
        at = HEADER.size + i * TABLE_ENTRY.size
        fields += [(at + 8, "<Q"), (at + 16, "<Q")]
    tracemalloc.start()
    for (at, layout), value in itertools.product(fields, COUNT_ATTACKS):
        changed = bytearray(data)
        struct.pack_into(
            layout, changed, at, value & (2 ** (8 * struct.calcsize(layout)) - 1)
        )
        if bytes(changed) != data:
            assert not attempt(reseal(bytes(changed)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_sections_in_another_order_twice_or_over_each_other(target):
    data, attempt = target
    rows = [
        data[HEADER.size + i * TABLE_ENTRY.size :][: TABLE_ENTRY.size]
        for i in range(len(table_of(data)))
    ]

    def with_rows(new_rows: list[bytes]) -> bytes:
        head = bytearray(data[: HEADER.size])
        return bytes(head) + b"".join(new_rows) + data[HEADER.size + 32 * len(rows) :]

    assert with_rows(rows) == data
    for a, b in itertools.permutations(range(len(rows)), 2):
        swapped = list(rows)
        swapped[a], swapped[b] = rows[b], rows[a]
        repeated = list(rows)
        repeated[a] = rows[b]
        # The tag of a, the place of b.
        overlapping = list(rows)
        overlapping[a] = rows[a][:8] + rows[b][8:]
        for new_rows in (swapped, repeated, overlapping):
            assert not attempt(reseal(with_rows(new_rows)))


def sections_of(data: bytes, kind: FileKind) -> dict[str, tuple[int, bytes]]:
    tags = tile_file.TAGS if kind is FileKind.TILE else index_file.TAGS
    return {
        tag: (section.codec, bytes(section.payload))
        for tag, section in unpack(data, kind, tags).sections.items()
    }


def test_each_section_of_another_length(target):
    data, attempt = target
    kind = FileKind(HEADER.unpack_from(data)[2])
    sections = sections_of(data, kind)
    for tag, (codec, payload) in sections.items():
        for changed in (b"", payload[:-1], payload + b"\0", payload * 2 + b"\0"):
            if changed != payload:
                assert not attempt(pack(kind, {**sections, tag: (codec, changed)}))
        for other in (9, 65535):
            assert not attempt(pack(kind, {**sections, tag: (other, payload)}))


@pytest.mark.parametrize("field", range(2, 7))
@pytest.mark.parametrize("value", COUNT_ATTACKS)
def test_counts_that_site_json_repeats(site, tile_bytes, field, value):
    """The tile and site.json agree on a count that the sections do not have."""
    sections = sections_of(tile_bytes, FileKind.TILE)
    meta = list(tile_file.META.unpack(sections["META"][1]))
    if meta[field] == value:
        return
    meta[field] = value
    sections["META"] = (0, tile_file.META.pack(*meta))
    data = pack(FileKind.TILE, sections)
    names = [
        "first_point3D_id", "num_landmarks", "num_descriptors", "num_keyframes",
        "num_visible",
    ]  # fmt: skip
    entry = replace(listed(site, data).manifest.tiles[0], **{names[field - 2]: value})
    tracemalloc.start()
    try:
        tile = tile_file.decode_tile(
            data,
            tile_idx=0,
            entry=entry,
            family=site.manifest.family,
            keyframe_ids=site.keyframes.keyframe_ids,
            num_point3D_ids=5,
        )
    except TileFormatError:
        assert names[field - 2] != "first_point3D_id"
    else:
        assert tile.first_point3D_id == value
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 18


def rewritten(data: bytes, tag: str, dtype: str, at: int, value: float) -> bytes:
    kind = FileKind(HEADER.unpack_from(data)[2])
    sections = sections_of(data, kind)
    codec, payload = sections[tag]
    array = np.frombuffer(payload, dtype).copy()
    array[at] = value
    return pack(kind, {**sections, tag: (codec, array.tobytes())})


@pytest.mark.parametrize(
    ("tag", "dtype", "at", "value", "message"),
    [
        ("KFID", "<i8", 0, -1, "KFID does not hold ascending ids from 0"),
        ("KFID", "<i8", 2, 0, "KFID does not hold ascending ids from 0"),
        ("KCAM", "<u4", 1, 2, "KCAM does not hold indices of the site's cameras"),
        ("KTIL", "<u4", 1, 1, "KTIL does not hold as many keyframes of each tile"),
        ("QUAT", "<f8", 0, np.nan, "QUAT holds a number that is not finite"),
        ("QUAT", "<f8", 1, 1e300, "QUAT does not hold unit quaternions"),
        ("QUAT", "<f8", 0, -0.1, "QUAT does not hold unit quaternions"),
        ("QUAT", "<f8", 0, 0.99, "QUAT does not hold unit quaternions"),
        ("TRAN", "<f8", 4, 1e300, "TRAN does not hold translations below 2e[+]08"),
        ("GDSC", "<f2", 4, 1.5, "GDSC does not hold numbers from -1 to 1"),
        ("GDSC", "<f2", 4, np.inf, "GDSC holds a number that is not finite"),
        ("RARR", "<f4", 4, np.nan, "RARR holds a number that is not finite"),
        ("META", "<u8", 0, 4, r"says \(keyframes, global dimensions\) = \(4, 8\)"),
    ],
)
def test_each_violation_in_the_index_has_a_name(
    site, index_bytes, tag, dtype, at, value, message
):
    data = rewritten(index_bytes, tag, dtype, at, value)
    entry = replace(site.manifest.index, crc32=stored_crc32(data))
    with pytest.raises(TileFormatError, match=message) as caught:
        decode_index(data, replace(site.manifest, index=entry))
    assert caught.value.offset is not None


@pytest.mark.parametrize(
    ("tag", "dtype", "at", "value", "message"),
    [
        ("META", "<u4", 0, 1, r"says \(index, descriptor bytes, first id, counts\)"),
        ("META", "<f8", 9, 3.0, "the step of positions is 3.0"),
        ("POSN", "<u2", 0, 65535, "has landmarks in another box"),
        ("DCNT", "u1", 0, 99, "has landmarks with 1"),
        ("VCNT", "<u4", 0, 2**32 - 1, "has keyframes that see 4294967300"),
        ("VIDS", "u1", 0, 5, "section VIDS holds id"),
        ("KFID", "<i8", 0, -7, "holds other keyframes than the index says"),
    ],
)
def test_each_violation_in_a_tile_has_a_name(
    site, tile_bytes, tag, dtype, at, value, message
):
    data = rewritten(tile_bytes, tag, dtype, at, value)
    file = site.path / "tiles" / "000000.tile"
    file.write_bytes(data)
    try:
        with pytest.raises(TileFormatError, match=message):
            listed(site, data).read_tile(0)
    finally:
        file.write_bytes(tile_bytes)


def test_a_file_of_another_site_is_not_taken(site, tile_bytes, index_bytes):
    """Same size, own checksums in order, but not the file that site.json lists."""
    for name, data, tag in (
        ("tiles/000000.tile", tile_bytes, "DESC"),
        ("index.bin", index_bytes, "RARR"),
    ):
        file = site.path / name
        file.write_bytes(rewritten(data, tag, "u1", 0, 42))
        with pytest.raises(TileFormatError, match="is another file than the one that"):
            open_site(site.path).read_tile(0)
        file.write_bytes(data)
