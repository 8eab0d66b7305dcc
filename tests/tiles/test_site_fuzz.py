"""The reader under attack: an error of the format or a valid answer, nothing else.

Every mutation is tried twice: as it is, which the checksums have to catch, and with
all checksums made right again, which reaches the checks behind them.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from site_factory import (
    index_path,
    listed,
    make_contents,
    reseal,
    stored_crc32,
    table_of,
    tile_path,
    with_features,
)

from edgeloc.errors import TileFormatError
from edgeloc.tiles import index_file, tile_file
from edgeloc.tiles.arrays import CODEBOOK_TAGS, decode_codebook, encode_codebook
from edgeloc.tiles.bits import pack_fields
from edgeloc.tiles.container import HEADER, TABLE_ENTRY, FileKind, pack, unpack
from edgeloc.tiles.index_file import Index, check_all, decode_index
from edgeloc.tiles.layout import Codebook, Tile
from edgeloc.tiles.reader import Site, open_site
from edgeloc.tiles.tile_table import ROW
from edgeloc.tiles.writer import write_site

COUNT_ATTACKS = (0, 1, 2**16, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    """One tile and another one, whose landmarks its keyframes see, too."""
    path = tmp_path_factory.mktemp("fuzz") / "site"
    rng = np.random.default_rng(3)
    points3D = np.array([[0.1, 0.2, 0.3], [0.4, 0.1, 0.2], [0.3, 0.3, 0.3],
                         [0.2, 0.4, 0.1], [0.45, 0.2, 0.2], [5.5, 0.2, 0.1],
                         [5.6, 0.1, 0.2]])  # fmt: skip
    contents = make_contents(rng, points3D=points3D, extent=0.5, visible_share=0.7)
    write_site(path, contents, cell_size=4.0)
    site = open_site(path, verify=True)
    assert [tile.num_landmarks for tile in site.tiles] == [5, 2]
    assert [tile.num_keyframes for tile in site.tiles] == [3, 0]
    return site


@pytest.fixture(scope="module")
def feature_site(tmp_path_factory) -> Site:
    """One tile without landmarks, whose keyframes have features."""
    path = tmp_path_factory.mktemp("fuzz") / "features"
    rng = np.random.default_rng(4)
    contents = make_contents(rng, num_landmarks=0)
    write_site(path, with_features(contents, rng))
    site = open_site(path, verify=True)
    assert [tile.num_keyframes for tile in site.tiles] == [3]
    return site


@pytest.fixture(scope="module")
def tile_bytes(site) -> bytes:
    return tile_path(site).read_bytes()


@pytest.fixture(scope="module")
def index_bytes(site) -> bytes:
    return index_path(site).read_bytes()


@pytest.fixture(scope="module")
def codebook_bytes() -> bytes:
    arrays = {
        "centroids": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "order": np.arange(5, dtype=np.uint8),
    }
    return encode_codebook(Codebook(name="Küche", arrays=arrays))


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
    valid = {*range(5), (1 << 24), (1 << 24) + 1}
    for start, end in itertools.pairwise(tile.visible_offsets):
        ids = tile.visible_point3D_ids[start:end]
        assert np.all(np.diff(ids) > 0)
        assert set(ids.tolist()) <= valid


def check_index(index: Index, site: Site) -> None:
    """An index that was accepted keeps every promise of `KeyframeTable`."""
    keyframes = index.keyframes
    assert len(np.unique(keyframes.keyframe_ids)) == 3
    assert np.all(keyframes.keyframe_ids >= 0)
    assert set(keyframes.camera_ids) <= set(site.manifest.cameras)
    assert index.tiles.total("num_keyframes") == 3
    assert index.tiles.total("num_landmarks") == 7
    for low, high in zip(*index.tiles.boxes, strict=True):
        assert np.all(np.isfinite(low))
        assert np.all(low < high)
    assert [index.tiles.row_of(tile.cell) for tile in index.tiles] == [0, 1]
    assert np.all(np.isfinite(keyframes.centers))
    assert np.all(np.isfinite(keyframes.global_codes))
    gram = keyframes.R @ np.swapaxes(keyframes.R, 1, 2)
    assert np.abs(gram - np.eye(3)).max() < 1e-12
    for i in range(len(keyframes)):
        keyframes.cam_from_world(i)
        keyframes.index_of(keyframes.keyframe_ids[[i]])
    assert all(np.all(np.isfinite(a)) for a in index.retrieval_arrays.values())


def check_features(tile: Tile) -> None:
    """Features that were accepted keep every promise of `KeyframeFeatures`."""
    features = tile.features
    assert len(features.offsets) == len(tile.keyframe_ids) + 1
    assert features.offsets[0] == 0
    assert np.all(np.diff(features.offsets) >= 0)
    num = features.offsets[-1]
    assert features.keypoints.shape == (num, 2)
    assert np.all((features.keypoints >= 0) & (features.keypoints < 2**20))
    assert features.sigmas.shape == (num,)
    assert np.all(np.isfinite(features.sigmas) & (features.sigmas > 0))
    assert features.descriptors.shape == (num, 4)


Attempt = Callable[[bytes], bool]


def tile_attempt(site: Site) -> Attempt:
    """Read a tile whose size and checksum the index was made to list."""

    def attempt(data: bytes) -> bool:
        try:
            tile = tile_file.decode_tile(
                data,
                tile_idx=0,
                tiles=listed(site, data).tiles,
                family=site.manifest.family,
                keyframe_ids=site.keyframes.keyframe_ids,
            )
        except TileFormatError:
            return False
        if tile.features is None:
            check_tile(tile, site)
        else:
            check_features(tile)
        # The second look of `verify_site` answers, whatever it says.
        tile_file.is_canonical(data, tile, site.manifest.family, site.tiles)
        return True

    return attempt


def index_attempt(site: Site) -> Attempt:
    """Read an index whose size and checksum site.json was made to list."""

    def attempt(data: bytes) -> bool:
        entry = replace(
            site.manifest.index, num_bytes=len(data), crc32=stored_crc32(data)
        )
        manifest = replace(site.manifest, index=entry)
        try:
            index = decode_index(data, manifest)
        except TileFormatError:
            return False
        check_index(index, site)
        decode_index(data, manifest, lazy_bytes=100)
        return True

    return attempt


def codebook_attempt(data: bytes) -> bool:
    try:
        codebook = decode_codebook(data)
    except TileFormatError:
        return False
    assert all(np.all(np.isfinite(a)) for a in codebook.arrays.values())
    try:
        assert len(encode_codebook(codebook)) == len(data)
    except ValueError:
        pytest.fail("a codebook that was read cannot be written")
    return True


@pytest.fixture(params=["tile", "features", "index", "codebook"])
def target(
    request, site, feature_site, tile_bytes, index_bytes, codebook_bytes
) -> tuple[bytes, Attempt]:
    if request.param == "features":
        return tile_path(feature_site).read_bytes(), tile_attempt(feature_site)
    if request.param == "tile":
        return tile_bytes, tile_attempt(site)
    if request.param == "codebook":
        return codebook_bytes, codebook_attempt
    return index_bytes, index_attempt(site)


TAGS = {
    FileKind.TILE: tile_file.TAGS,
    FileKind.INDEX: index_file.TAGS,
    FileKind.CODEBOOK: CODEBOOK_TAGS,
}


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
    for file, data in ((tile_path(site), tile_bytes), (index_path(site), index_bytes)):
        for at in range(0, len(data), 13):
            flipped = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
            for damaged in (data[:at], flipped):
                # As a copy would do it: what is mapped must not change.
                file.unlink()
                file.write_bytes(damaged)
                with pytest.raises(TileFormatError) as caught:
                    open_site(site.path).read_tile(0)
                assert str(caught.value).startswith(f"{file}: ")
                assert "\n" not in str(caught.value)
        file.unlink()
        file.write_bytes(data)


def test_trailing_bytes(target):
    data, attempt = target
    for tail in (b"\0", bytes(8), bytes(4096), b"PK\x05\x06" + bytes(18), data):
        assert not attempt(data + tail)
        assert not attempt(with_length(data + tail))


def test_every_length_field(target):
    data, attempt = target
    fields = [(11, "<B"), (16, "<Q")]
    for i in range(len(table_of(data))):
        fields += [(HEADER.size + i * TABLE_ENTRY.size + 8, "<I")]
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
    size = TABLE_ENTRY.size
    rows = [data[HEADER.size + i * size :][:size] for i in range(len(table_of(data)))]

    def with_rows(new_rows: list[bytes]) -> bytes:
        body = data[HEADER.size + size * len(rows) :]
        return data[: HEADER.size] + b"".join(new_rows) + body

    assert with_rows(rows) == data
    for a, b in itertools.permutations(range(len(rows)), 2):
        swapped = list(rows)
        swapped[a], swapped[b] = rows[b], rows[a]
        repeated = list(rows)
        repeated[a] = rows[b]
        # The tag of a, the length of b.
        overlapping = list(rows)
        overlapping[a] = rows[a][:8] + rows[b][8:]
        for new_rows in (swapped, repeated, overlapping):
            if new_rows != rows and with_length(with_rows(new_rows)) != data:
                assert not attempt(reseal(with_rows(new_rows)))


def sections_of(data: bytes) -> dict[str, tuple[int, bytes]]:
    kind = FileKind(HEADER.unpack_from(data)[2])
    further = tile_file.FEATURE_TAGS if kind is FileKind.TILE else ()
    found = unpack(data, kind, TAGS[kind], further=further)
    return {
        tag: (section.codec, bytes(section.payload))
        for tag, section in found.sections.items()
    }


def packed_like(data: bytes, sections: dict[str, tuple[int, bytes]]) -> bytes:
    """A file of the same kind and version with other sections."""
    _, version, kind = HEADER.unpack_from(data)[:3]
    return pack(FileKind(kind), sections, version=version)


def test_each_section_of_another_length(target):
    data, attempt = target
    sections = sections_of(data)
    for tag, (codec, payload) in sections.items():
        for changed in (b"", payload[:-1], payload + b"\0", payload * 2 + b"\0"):
            # Any bytes are a name.
            if changed != payload and tag != "NAME":
                changes = {**sections, tag: (codec, changed)}
                assert not attempt(packed_like(data, changes))
        for other in (9, 65535):
            changes = {**sections, tag: (other, payload)}
            assert not attempt(packed_like(data, changes))


META_FIELDS = {
    0: "num_landmarks", 1: "num_descriptors", 2: "num_keyframes", 3: "num_visible",
    13: None, 14: None, 15: None, 16: None,
}  # fmt: skip


@pytest.mark.parametrize("field", META_FIELDS)
@pytest.mark.parametrize("value", COUNT_ATTACKS)
def test_counts_that_the_index_repeats(site, tile_bytes, field, value):
    """The tile and the index agree on a count that the sections do not have."""
    value &= 2**32 - 1
    sections = sections_of(tile_bytes)
    meta = list(tile_file.META.unpack(sections["META"][1]))
    if meta[field] == value:
        return
    meta[field] = value
    sections["META"] = (0, tile_file.META.pack(*meta))
    data = pack(FileKind.TILE, sections)
    name = META_FIELDS[field]
    tiles = listed(site, data, **({name: value} if name else {})).tiles
    tracemalloc.start()
    with pytest.raises(TileFormatError):
        tile_file.decode_tile(
            data,
            tile_idx=0,
            tiles=tiles,
            family=site.manifest.family,
            keyframe_ids=site.keyframes.keyframe_ids,
        )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 18


@pytest.mark.parametrize("value", COUNT_ATTACKS)
@pytest.mark.parametrize("field", ["num_landmarks", "num_keyframes", "num_visible",
                                   "num_descriptors", "num_bytes"])  # fmt: skip
def test_counts_of_the_tile_table(site, index_bytes, field, value):
    """Another count in the table of a sealed index costs no memory either."""
    rows = np.frombuffer(sections_of(index_bytes)["TILE"][1], ROW).copy()
    rows[field][1] = value & (2**32 - 1)
    if rows.tobytes() == sections_of(index_bytes)["TILE"][1]:
        return
    data = rewritten_section(index_bytes, "TILE", rows.tobytes())
    tracemalloc.start()
    accepted = index_attempt(site)(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 18
    assert not accepted or field in {"num_descriptors", "num_visible"}


def rewritten_section(data: bytes, tag: str, payload: bytes) -> bytes:
    kind = FileKind(HEADER.unpack_from(data)[2])
    sections = sections_of(data)
    return pack(kind, {**sections, tag: (sections[tag][0], payload)})


def rewritten(data: bytes, tag: str, dtype: str, at: int, value: float) -> bytes:
    array = np.frombuffer(sections_of(data)[tag][1], dtype).copy()
    array[at] = value
    return rewritten_section(data, tag, array.tobytes())


ROW_BYTES = ROW.itemsize


@pytest.mark.parametrize(
    ("tag", "dtype", "at", "value", "message"),
    [
        ("META", "<u4", 0, 3, r"says \(tiles, keyframes, camera bytes\) = \(3, 3, 1\)"),
        ("META", "<u4", 1, 4, r"says \(tiles, keyframes, camera bytes\) = \(2, 4, 1\)"),
        ("META", "u1", 34, 99, "positions have 99 bits per axis"),
        ("TILE", "u1", 0, 100, "tile 0 has exponent 100, expected -60 to 40"),
        ("TILE", "u1", 13, 255, "tile 0 has a box that ends before it begins"),
        ("TILE", "u1", 1, 9, "tile 0 is not in the order of the cells"),
        ("TILE", "u1", ROW_BYTES + 1, 0, "tile 1 is not in the order of the cells"),
        ("TILE", "u1", ROW_BYTES, 50, "tile 1 has exponent 50"),
        ("KFID", "u1", 0, 100, "section KFID uses the number code 100, which does"),
        ("KCAM", "u1", 1, 2, "KCAM does not hold indices of the site's cameras"),
        ("QUAT", "<i2", 1, -32768, "QUAT does not hold unit quaternions"),
        ("QUAT", "<i2", 0, -100, "QUAT does not hold unit quaternions"),
        ("GDSC", "<f2", 4, np.inf, "GDSC holds a number that is not finite"),
        ("ADAT", "<f4", 1, np.nan, "ADAT holds a number that is not finite"),
        ("ADAT", "<f4", 5, 1, "padding after array 'mean' is not 0"),
        ("ADIR", "u1", 5, 0, "is not JSON"),
        ("ADIR", "u1", 1, 0x20, "is not JSON"),
    ],
)
def test_each_violation_in_the_index_has_a_name(
    site, index_bytes, tag, dtype, at, value, message
):
    sections = sections_of(index_bytes)
    codec, payload = sections[tag]
    padding = -len(payload) % np.dtype(dtype).itemsize
    array = np.frombuffer(payload + bytes(padding), dtype).copy()
    array[at] = value
    changed = array.tobytes()[: len(payload)]
    data = pack(FileKind.INDEX, {**sections, tag: (codec, changed)})
    entry = replace(site.manifest.index, crc32=stored_crc32(data))
    with pytest.raises(TileFormatError, match=message):
        decode_index(data, replace(site.manifest, index=entry))


def directory_of(text: bytes, data: bytes) -> bytes:
    sections = {"NAME": (0, b"n"), "ADIR": (5, text), "ADAT": (0, data)}
    return pack(FileKind.CODEBOOK, sections)


@pytest.mark.parametrize(
    ("text", "data", "message"),
    [
        (b"{}\n", b"", "is not written as the format wants it"),
        (b"[]", b"", "expected an object"),
        (b'{"a": 1}\n', b"", "a is 1, expected an object"),
        (b'{"a": {"dtype": "O",\n"shape": []}}\n', b"", "a.dtype is 'O', expected one"),
        (b'{"a": {"dtype": "int8",\n"shape": [-1]}}\n', b"", "from 0 to 4294967295"),
        (
            b'{"a": {"dtype": "int8",\n"shape": [0,\n99999,\n99999]}}\n', b"",
            "expected a product of at most",
        ),
        (
            b'{"a": {"dtype": "int8",\n"shape": [1,1,1,1,1,1,1,1,1]}}\n', b"",
            "at most 8 dimensions",
        ),
        (b'{"a": {"dtype": "int8",\n"shape": [9]}}\n', bytes(8), "ends inside array"),
        (b'{"a": {"dtype": "int8",\n"shape": [1]}}\n', bytes(16), "has 8 bytes after"),
        (b'{"a": {"shape": [1],"dtype": "int8"}}\n', bytes(8), "not written as the f"),
        (b'{"a": {"dtype": "int8",\n"shape": [1]}}\n', b"\0\1" + bytes(6), "padding"),
        (b" " * (1 << 20) + b" ", b"", "ADIR has more than 1048576 bytes"),
    ],
)  # fmt: skip
def test_directories_of_arrays_that_are_refused(text, data, message):
    with pytest.raises(TileFormatError, match=message):
        decode_codebook(directory_of(text, data))


def test_a_codebook_that_cannot_be_stored_is_refused():
    for array, message in (
        (np.zeros(3), "array 'a' is float64, expected one of uint8"),
        (np.float32([np.inf]), "array 'a' of the codebook is not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            encode_codebook(Codebook(name="n", arrays={"a": array}))
    with pytest.raises(TileFormatError, match="section NAME is not UTF-8"):
        decode_codebook(
            rewritten_section(
                encode_codebook(Codebook(name="n", arrays={})), "NAME", b"\xff"
            )
        )


@pytest.mark.parametrize(
    ("tag", "dtype", "at", "value", "message"),
    [
        ("META", "<u4", 0, 6, r"says \(landmarks, descriptors, keyframes, visible\)"),
        ("META", "<i2", 20, 99, r"the step of positions is 2\^99"),
        ("META", "<i2", 21, 99, "the first code of sigmas is 99"),
        ("META", "u1", 47, 2, "has the flag 2, expected 0 or 1"),
        ("META", "<u4", 12, 6, "sees 6 of its 5 landmarks"),
        ("META", "u1", 47, 0, "section VIDS"),
        ("POSN", "u1", 0, 255, "has landmarks in another box"),
        ("DCNT", "u1", 5, 255, "section DCNT|has landmarks with"),
        ("NBRS", "u1", 0, 9, "has the neighbour .9, .*, the site has no such tile"),
        ("NBRS", "u1", 13, 3, "sees 3 landmarks of tile 1, which has 2"),
        ("NBRS", "u1", 13, 0, "sees 0 landmarks of tile 1"),
        ("VIDS", "u1", 0, 200, "section VIDS uses the number code|section VIDS"),
    ],
)
def test_each_violation_in_a_tile_has_a_name(
    site, tile_bytes, tag, dtype, at, value, message
):
    data = rewritten(tile_bytes, tag, dtype, at, value)
    file = tile_path(site)
    file.write_bytes(data)
    try:
        with pytest.raises(TileFormatError, match=message):
            listed(site, data).read_tile(0)
    finally:
        file.write_bytes(tile_bytes)


@pytest.mark.parametrize(
    ("tag", "dtype", "at", "value", "message"),
    [
        ("FMET", "<u4", 0, 2**32 - 1, "section FDSC has .* bytes, expected"),
        ("FMET", "<u4", 0, 1, "section FDSC has .* bytes, expected 4"),
        ("FMET", "<i2", 2, 99, "the first code of sigmas is 99"),
        ("FMET", "u1", 6, 24, "keypoints have 24 bits, at most 23"),
        ("FMET", "u1", 7, 3, "section FPTS has .* bytes, expected"),
        ("FNUM", "u1", 0, 100, "uses the number code|section FNUM"),
    ],
)
def test_each_violation_in_features_has_a_name(
    feature_site, tag, dtype, at, value, message
):
    data = tile_path(feature_site).read_bytes()
    sections = sections_of(data)
    codec, payload = sections[tag]
    padding = -len(payload) % np.dtype(dtype).itemsize
    array = np.frombuffer(payload + bytes(padding), dtype).copy()
    array[at] = value
    changed = array.tobytes()[: len(payload)]
    damaged = packed_like(data, {**sections, tag: (codec, changed)})
    with pytest.raises(TileFormatError, match=message):
        tile_file.decode_tile(
            damaged,
            tile_idx=0,
            tiles=listed(feature_site, damaged).tiles,
            family=feature_site.manifest.family,
            keyframe_ids=feature_site.keyframes.keyframe_ids,
        )


def test_features_are_where_the_site_says(feature_site):
    file = tile_path(feature_site)
    data = file.read_bytes()
    sections = {
        tag: section
        for tag, section in sections_of(data).items()
        if tag in tile_file.TAGS
    }
    bare = pack(FileKind.TILE, sections)
    file.write_bytes(bare)
    try:
        with pytest.raises(TileFormatError, match="has keyframe features or lacks"):
            listed(feature_site, bare).read_tile(0)
    finally:
        file.write_bytes(data)


def test_neighbours_ascend_and_are_others(site, tile_bytes):
    payload = sections_of(tile_bytes)["NBRS"][1]
    assert len(payload) == tile_file.NEIGHBOUR.size
    own = tile_file.NEIGHBOUR.pack(*site.tiles[0].cell, 1)
    for changed, message in (
        (payload * 2, "has neighbours that do not ascend"),
        (own, "has the neighbour"),
        (payload[:-1], "has 16 bytes, expected a multiple of 17"),
    ):
        data = rewritten_section(tile_bytes, "NBRS", changed)
        with pytest.raises(TileFormatError, match=message):
            tile_file.decode_tile(
                data,
                tile_idx=0,
                tiles=listed(site, data).tiles,
                family=site.manifest.family,
                keyframe_ids=site.keyframes.keyframe_ids,
            )


def test_another_spelling_of_a_tile_is_read_and_not_verified(site, tile_bytes):
    """A code with another parameter says the same; one spelling is the right one."""
    sections = sections_of(tile_bytes)
    counts = np.diff(site.read_tile(0).landmarks.descriptor_offsets)
    code, payload = sections["DCNT"]
    spelled = bytes([40 - 9, 1, 0, 0, 0, 0b11111000]) + pack_fields(
        counts, np.full(5, 31)
    )
    assert spelled != payload
    data = rewritten_section(tile_bytes, "DCNT", spelled)
    other = listed(site, data)
    tile = tile_file.decode_tile(
        data,
        tile_idx=0,
        tiles=other.tiles,
        family=site.manifest.family,
        keyframe_ids=site.keyframes.keyframe_ids,
    )
    assert np.array_equal(np.diff(tile.landmarks.descriptor_offsets), counts)
    assert code == 3
    assert not tile_file.is_canonical(data, tile, site.manifest.family, other.tiles)
    file = tile_path(site)
    file.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    name = file.with_name(f"{sha256[:16]}.tile")
    name.write_bytes(data)
    try:
        with pytest.raises(TileFormatError, match="not written as the format wants it"):
            listed(site, data, sha256=sha256).read_tile(0, verify=True)
    finally:
        file.write_bytes(tile_bytes)
        name.unlink()


def test_a_file_of_another_site_is_not_taken(site, tile_bytes, index_bytes):
    """Same size, own checksums in order, but not the file that the site lists."""
    for file, data, tag in (
        (tile_path(site), tile_bytes, "DESC"),
        (index_path(site), index_bytes, "ADAT"),
    ):
        file.unlink()
        file.write_bytes(rewritten(data, tag, "u1", 0, 42))
        with pytest.raises(TileFormatError, match="is another file than the one that"):
            open_site(site.path).read_tile(0)
        file.unlink()
        file.write_bytes(data)


def test_cells_in_each_other_are_refused(site, index_bytes):
    rows = np.frombuffer(sections_of(index_bytes)["TILE"][1], ROW).copy()
    for exponent, cell in ((5, (0, 0, 0)), (39, (0, 0, 0)), (40, (0, 0, 0))):
        rows["exponent"][1], rows["cell"][1] = exponent, cell
        data = rewritten_section(index_bytes, "TILE", rows.tobytes())
        entry = replace(site.manifest.index, crc32=stored_crc32(data))
        with pytest.raises(
            TileFormatError, match="tile 0 has a cell that lies in that"
        ):
            decode_index(data, replace(site.manifest, index=entry))


def test_large_tables_are_looked_at_by_verify(site, index_bytes):
    """A global descriptor that was damaged later: not seen at opening, where it may be
    large, but by whoever asks for everything to be checked."""
    at = index_bytes.index(sections_of(index_bytes)["GDSC"][1])
    data = index_bytes[:at] + b"\x55" + index_bytes[at + 1 :]
    decode_index(data, site.manifest, lazy_bytes=40)
    with pytest.raises(TileFormatError, match="section GDSC fails its checksum"):
        check_all(data, site.manifest)
