"""The frame around sections: one reading for each file, and an error for any other."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from site_factory import reseal

from edgeloc.errors import TileFormatError
from edgeloc.tiles.container import HEADER, TABLE_ENTRY, FileKind, pack, unpack

TAGS = ("AAAA", "BBBB", "CCCC")
PAYLOADS = (b"hello", b"", b"12345678")


@pytest.fixture
def data() -> bytes:
    return pack(
        FileKind.TILE,
        {tag: (i, p) for i, (tag, p) in enumerate(zip(TAGS, PAYLOADS, strict=True))},
    )


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=4))
def test_sections_come_back_aligned(payloads):
    tags = [f"S{i:03d}" for i in range(len(payloads))]
    packed = pack(
        FileKind.INDEX, {t: (7, p) for t, p in zip(tags, payloads, strict=True)}
    )
    sections = unpack(packed, FileKind.INDEX, tags).sections
    assert [bytes(sections[t].payload) for t in tags] == payloads
    assert all(s.offset % 8 == 0 and s.codec == 7 for s in sections.values())
    assert len(packed) % 8 == 0


def test_the_bytes_are_those_of_the_specification(data):
    """Fixed bytes: a change of the layout cannot go unnoticed."""
    assert data[:24].hex(" ") == (
        "89 45 64 67 4c 6f 63 0a 01 00 01 00 03 00 00 00 90 00 00 00 00 00 00 00"
    )
    assert data[32:56].hex(" ") == (
        "41 41 41 41 00 00 00 00 80 00 00 00 00 00 00 00 05 00 00 00 00 00 00 00"
    )
    assert data[128:] == b"hello\0\0\x0012345678"
    assert len(data) == 144


def change(data: bytes, at: int, layout: str, *values: object) -> bytes:
    out = bytearray(data)
    struct.pack_into(layout, out, at, *values)
    return bytes(out)


ROW = [HEADER.size + i * TABLE_ENTRY.size for i in range(3)]


@pytest.mark.parametrize(
    ("at", "layout", "value", "message"),
    [
        (0, "<8s", b"\x89EdgLoc\r", "begins with"),
        (8, "<H", 2, "has format version 2, this edgeloc reads 1"),
        (10, "<H", 2, r"is of kind 2, expected 1 \(TILE\)"),
        (12, "<I", 2, "has 2 sections, expected 3"),
        (12, "<I", 2**32 - 1, "has 4294967295 sections"),
        (16, "<Q", 2**63, "its header says 9223372036854775808"),
        (28, "<I", 5, "has 5 in a reserved field"),
        (ROW[1], "<4s", b"AAAA", r"section 1 is b'AAAA', expected 'BBBB'"),
        (ROW[1] + 6, "<H", 1, "BBBB has a reserved field"),
        (ROW[1] + 28, "<I", 1, "BBBB has a reserved field"),
        (ROW[1] + 8, "<Q", 128, "BBBB begins at 128, expected 136: sections neither"),
        (ROW[1] + 8, "<Q", 144, "BBBB begins at 144, expected 136: sections neither"),
        (ROW[0] + 8, "<Q", 0, "AAAA begins at 0, expected 128"),
        (ROW[2] + 16, "<Q", 9, "CCCC ends at 152, the file at 144"),
        (ROW[2] + 16, "<Q", 2**64 - 1, "CCCC ends at"),
        (ROW[0] + 16, "<Q", 4, "padding after AAAA is not 0"),
        (ROW[1] + 16, "<Q", 8, "CCCC begins at 136, expected 144"),
    ],
)
def test_each_violation_has_a_name(data, at, layout, value, message):
    with pytest.raises(TileFormatError, match=message) as caught:
        unpack(reseal(change(data, at, layout, value)), FileKind.TILE, TAGS)
    assert caught.value.offset is not None
    assert caught.value.offset <= 144


def test_trailing_bytes_are_refused(data):
    longer = change(data + bytes(8), 16, "<Q", 152)
    with pytest.raises(TileFormatError, match="has 8 bytes after the last section"):
        unpack(reseal(longer), FileKind.TILE, TAGS)


def test_a_file_that_ends_in_its_table_is_refused(data):
    shorter = reseal(change(data[:100], 16, "<Q", 100))
    with pytest.raises(TileFormatError, match="ends inside the section table"):
        unpack(shorter, FileKind.TILE, TAGS)
    with pytest.raises(TileFormatError, match="has 31 bytes, a header alone takes 32"):
        unpack(data[:31], FileKind.TILE, TAGS)


def test_every_bit_is_covered_by_a_check(data):
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(TileFormatError):
            unpack(bytes(flipped), FileKind.TILE, TAGS)
