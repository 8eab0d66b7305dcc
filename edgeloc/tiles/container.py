"""The frame around every binary file of a site: sections that leave no byte unsaid.

Layout and the reason for each rule are in FORMAT.md. A file that `unpack` accepts has
exactly one reading: the sections are those of its kind, in order, adjacent, aligned,
padded with zeros and checksummed, and nothing follows them. Where sections lie follows
from their lengths, so that there is nothing to say about it that could be wrong.
"""

from __future__ import annotations

import enum
import mmap
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeloc.errors import TileFormatError

MAGIC = b"\x89EdgLoc\n"
FORMAT_VERSION = 3
BASE_VERSION = 2
"""What has no keyframe features is written as this version, and the same bytes."""
ALIGNMENT_BYTES = 8

HEADER = struct.Struct("<8sHBBIQ")
"""Magic, version, kind, number of sections, CRC-32, bytes of the file."""
TABLE_ENTRY = struct.Struct("<4sIII")
"""Tag, codec, bytes, CRC-32."""
_CRC_AT = 12
MAX_SECTION_BYTES = 2**32 - 1

Buffer = bytes | memoryview | mmap.mmap


class FileKind(enum.IntEnum):
    """What a file is."""

    TILE = 1
    INDEX = 2
    CODEBOOK = 3
    DELTA = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One section of a file.

    Parameters
    ----------
    tag : str
        Four ASCII letters.
    codec : int
        How the payload is coded, see `edgeloc.tiles.codec.Codec`.
    payload : memoryview
        Its bytes, without padding.
    offset : int
        Where the payload begins in the file, for messages.
    crc32 : int
        What the table says about the payload.
    """

    tag: str
    codec: int
    payload: memoryview
    offset: int
    crc32: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A file that was taken apart.

    Parameters
    ----------
    sections : mapping of str to Section
        By tag.
    crc32 : int
        Of header and table, hence of the whole file, since the table holds the
        checksum of each section.
    """

    sections: Mapping[str, Section]
    crc32: int


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def header_crc32(head: bytes) -> int:
    """Return the checksum of header and table, with its own field taken as zero.

    Parameters
    ----------
    head : bytes
        Header and table.

    Returns
    -------
    int
    """
    return zlib.crc32(head[:_CRC_AT] + bytes(4) + head[_CRC_AT + 4 :])


def pack(
    kind: FileKind,
    sections: Mapping[str, tuple[int, bytes]],
    *,
    version: int = BASE_VERSION,
) -> bytes:
    """Return the bytes of a file.

    Parameters
    ----------
    kind : FileKind
        What it is.
    sections : mapping of str to (int, bytes)
        Codec and payload by tag, in the order in which they are stored.
    version : int
        The first whose rules say what is in it.

    Returns
    -------
    bytes

    Raises
    ------
    ValueError
        When a section is larger than `MAX_SECTION_BYTES`.
    """
    table, body = bytearray(), bytearray()
    for tag, (codec, payload) in sections.items():
        if len(payload) > MAX_SECTION_BYTES:
            raise ValueError(f"section {tag} has {len(payload)} bytes, too many")
        table += TABLE_ENTRY.pack(
            tag.encode("ascii"), codec, len(payload), zlib.crc32(payload)
        )
        body += payload + bytes(_padded(len(payload)) - len(payload))
    file_bytes = HEADER.size + len(table) + len(body)
    header = HEADER.pack(MAGIC, version, kind, len(sections), 0, file_bytes)
    head = bytearray(header + table)
    struct.pack_into("<I", head, _CRC_AT, header_crc32(bytes(head)))
    return bytes(head + body)


def _check_header(
    data: Buffer, kind: FileKind, num_sections: Mapping[int, int]
) -> tuple[int, int]:
    """Return version and stored checksum of a header that is in order.

    Parameters
    ----------
    num_sections : mapping of int to int
        Sections of such a file, by version.
    """
    if len(data) < HEADER.size:
        raise TileFormatError(
            f"has {len(data)} bytes, a header alone takes {HEADER.size}", offset=0
        )
    magic, version, found_kind, found_sections, crc32, file_bytes = HEADER.unpack_from(
        data
    )
    if magic != MAGIC:
        raise TileFormatError(f"begins with {magic!r}, expected {MAGIC!r}", offset=0)
    if version not in num_sections:
        known = " or ".join(map(str, num_sections))
        raise TileFormatError(
            f"has format version {version}, this edgeloc reads {known}", offset=8
        )
    if found_kind != kind:
        raise TileFormatError(
            f"is of kind {found_kind}, expected {int(kind)} ({kind.name})", offset=10
        )
    if found_sections != num_sections[version]:
        raise TileFormatError(
            f"has {found_sections} sections, expected {num_sections[version]}",
            offset=11,
        )
    if file_bytes != len(data):
        raise TileFormatError(
            f"has {len(data)} bytes, its header says {file_bytes}", offset=16
        )
    return int(version), int(crc32)


def check_section(section: Section) -> None:
    """Raise `TileFormatError` unless a section has the checksum that its table says."""
    if zlib.crc32(section.payload) != section.crc32:
        raise TileFormatError(
            f"section {section.tag} fails its checksum", offset=section.offset
        )


def unpack(
    data: Buffer,
    kind: FileKind,
    tags: Sequence[str],
    *,
    further: Sequence[str] = (),
    lazy_bytes: int | None = None,
) -> Container:
    """Return the sections of a file, every rule of the frame checked.

    Takes no memory beyond `data`: sections are views of it.

    Parameters
    ----------
    data : bytes, memoryview or mmap
        The whole file.
    kind : FileKind
        What it has to be.
    tags : sequence of str
        The sections that such a file has, in order.
    further : sequence of str
        Those that follow in a file of version 3; without any, there is no such version
        of this kind of file.
    lazy_bytes : int, optional
        Leave the checksums of larger sections to `check_section`.

    Returns
    -------
    Container

    Raises
    ------
    TileFormatError
        With the offset of the first violation.
    """
    known = {BASE_VERSION: tags}
    if further:
        known[FORMAT_VERSION] = (*tags, *further)
    version, stored_crc32 = _check_header(
        data, kind, {version: len(found) for version, found in known.items()}
    )
    tags = known[version]
    head_bytes = HEADER.size + TABLE_ENTRY.size * len(tags)
    if len(data) < head_bytes:
        raise TileFormatError("ends inside the section table", offset=len(data))
    if header_crc32(bytes(data[:head_bytes])) != stored_crc32:
        raise TileFormatError("header and table fail their checksum", offset=_CRC_AT)

    view = memoryview(data)
    sections: dict[str, Section] = {}
    position = head_bytes
    for i, tag in enumerate(tags):
        at = HEADER.size + i * TABLE_ENTRY.size
        found, codec, num_bytes, crc32 = TABLE_ENTRY.unpack_from(data, at)
        if found != tag.encode("ascii"):
            raise TileFormatError(
                f"section {i} is {found!r}, expected {tag!r}", offset=at
            )
        offset, end = position, position + num_bytes
        position = _padded(end)
        if position > len(data):
            raise TileFormatError(
                f"section {tag} ends at {position}, the file at {len(data)}",
                offset=at + 8,
            )
        section = Section(
            tag=tag,
            codec=codec,
            payload=view[offset:end],
            offset=offset,
            crc32=crc32,
        )
        if lazy_bytes is None or num_bytes <= lazy_bytes:
            check_section(section)
        if any(view[end:position]):
            raise TileFormatError(f"padding after {tag} is not 0", offset=end)
        sections[tag] = section
    if position != len(data):
        raise TileFormatError(
            f"has {len(data) - position} bytes after the last section", offset=position
        )
    return Container(sections=sections, crc32=stored_crc32)
