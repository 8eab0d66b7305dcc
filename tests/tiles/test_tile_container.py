"""The frame around sections: one reading for each file, and an error for any other."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from site_factory import reseal

from edgeloc.errors import TileFormatError
from edgeloc.tiles import container
from edgeloc.tiles.container import (
    HEADER,
    TABLE_ENTRY,
    FileKind,
    check_section,
    pack,
    unpack,
)

TAGS = ("AAAA", "BBBB", "CCCC")
PAYLOADS = (b"hello", b"", b"123456789")


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
        "89 45 64 67 4c 6f 63 0a 02 00 01 03 "
        f"{data[12:16].hex(' ')} 60 00 00 00 00 00 00 00"
    )
    assert data[24:36].hex(" ") == "41 41 41 41 00 00 00 00 05 00 00 00"
    assert data[72:] == b"hello\0\0\x00123456789" + bytes(7)
    assert len(data) == 96


def change(data: bytes, at: int, layout: str, *values: object) -> bytes:
    out = bytearray(data)
    struct.pack_into(layout, out, at, *values)
    return bytes(out)


ROW = [HEADER.size + i * TABLE_ENTRY.size for i in range(3)]


@pytest.mark.parametrize(
    ("at", "layout", "value", "message"),
    [
        (0, "<8s", b"\x89EdgLoc\r", "begins with"),
        (8, "<H", 1, "has format version 1, this edgeloc reads 2"),
        (10, "<B", 2, r"is of kind 2, expected 1 \(TILE\)"),
        (11, "<B", 2, "has 2 sections, expected 3"),
        (11, "<B", 255, "has 255 sections"),
        (16, "<Q", 2**63, "its header says 9223372036854775808"),
        (ROW[1], "<4s", b"AAAA", r"section 1 is b'AAAA', expected 'BBBB'"),
        (ROW[2] + 8, "<I", 17, "CCCC ends at 104, the file at 96"),
        (ROW[2] + 8, "<I", 2**32 - 1, "CCCC ends at"),
        (ROW[2] + 8, "<I", 8, "has 8 bytes after the last section"),
        (ROW[0] + 8, "<I", 4, "padding after AAAA is not 0"),
        (ROW[1] + 8, "<I", 8, "CCCC ends at 104, the file at 96"),
    ],
)
def test_each_violation_has_a_name(data, at, layout, value, message):
    with pytest.raises(TileFormatError, match=message) as caught:
        unpack(reseal(change(data, at, layout, value)), FileKind.TILE, TAGS)
    assert caught.value.offset is not None
    assert caught.value.offset <= 96


def test_trailing_bytes_are_refused(data):
    longer = change(data + bytes(8), 16, "<Q", 104)
    with pytest.raises(TileFormatError, match="has 8 bytes after the last section"):
        unpack(reseal(longer), FileKind.TILE, TAGS)


def test_a_file_that_ends_in_its_table_is_refused(data):
    shorter = reseal(change(data[:60], 16, "<Q", 60))
    with pytest.raises(TileFormatError, match="ends inside the section table"):
        unpack(shorter, FileKind.TILE, TAGS)
    with pytest.raises(TileFormatError, match="has 23 bytes, a header alone takes 24"):
        unpack(data[:23], FileKind.TILE, TAGS)


def test_large_sections_may_be_left_for_later(data):
    """Their checksum is in the table, which has one itself."""
    wrong = change(data, 80, "<B", 0)
    sections = unpack(wrong, FileKind.TILE, TAGS, lazy_bytes=8).sections
    check_section(sections["AAAA"])
    with pytest.raises(TileFormatError, match="section CCCC fails its checksum"):
        check_section(sections["CCCC"])
    with pytest.raises(TileFormatError, match="section CCCC fails its checksum"):
        unpack(wrong, FileKind.TILE, TAGS, lazy_bytes=9)


def test_sections_that_are_too_large_are_not_written(monkeypatch):
    monkeypatch.setattr(container, "MAX_SECTION_BYTES", 3)
    with pytest.raises(ValueError, match="section AAAA has 5 bytes, too many"):
        pack(FileKind.TILE, {"AAAA": (0, b"hello")})


def test_every_bit_is_covered_by_a_check(data):
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(TileFormatError):
            unpack(bytes(flipped), FileKind.TILE, TAGS)
