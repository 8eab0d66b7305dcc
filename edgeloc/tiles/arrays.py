"""Named arrays in two sections: what they are, and their numbers, mapped in place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeloc.errors import TileFormatError
from edgeloc.fields import Field, parse_json
from edgeloc.tiles import codec
from edgeloc.tiles.canonical import canonical_json
from edgeloc.tiles.container import (
    ALIGNMENT_BYTES,
    MAX_SECTION_BYTES,
    FileKind,
    Section,
    pack,
    unpack,
)
from edgeloc.tiles.layout import Codebook

AnyArray = npt.NDArray[Any]

ARRAY_TAGS = ("ADIR", "ADAT")
CODEBOOK_TAGS = ("NAME", *ARRAY_TAGS)
MAX_DIMENSIONS = 8
_MAX_DIRECTORY_BYTES = 1 << 20
_KEYS = ("dtype", "shape")


def _padding(num_bytes: int) -> int:
    return -num_bytes % ALIGNMENT_BYTES


def encode_arrays(arrays: Mapping[str, AnyArray]) -> dict[str, tuple[int, bytes]]:
    """Return the sections of some arrays.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        Of the types of `edgeloc.tiles.codec.DTYPES`.

    Raises
    ------
    ValueError
        When an array has another type.
    """
    directory: dict[str, object] = {}
    data = bytearray()
    for name in sorted(arrays):
        array = arrays[name]
        if array.dtype.name not in codec.DTYPES:
            raise ValueError(
                f"array {name!r} is {array.dtype}, expected one of "
                f"{', '.join(codec.DTYPES)}"
            )
        directory[name] = {"dtype": array.dtype.name, "shape": list(array.shape)}
        data += codec.encode_raw(array, codec.DTYPES[array.dtype.name])[1]
        data += bytes(_padding(len(data)))
    text = canonical_json(directory) if directory else b""
    return {
        "ADIR": (int(codec.Codec.JSON), text),
        "ADAT": (int(codec.Codec.RAW), bytes(data)),
    }


def _decode_shape(field: Field) -> tuple[int, ...]:
    items = field.items()
    if len(items) > MAX_DIMENSIONS:
        field.fail(f"at most {MAX_DIMENSIONS} dimensions")
    shape = tuple(item.integer(0, MAX_SECTION_BYTES) for item in items)
    # Zeros aside, since NumPy has no array of shape (0, 2**32, 2**32) either.
    if math.prod(max(size, 1) for size in shape) > MAX_SECTION_BYTES:
        field.fail(f"a product of at most {MAX_SECTION_BYTES}")
    return shape


def decode_arrays(
    directory: Section, data: Section, *, finite: bool = True
) -> Mapping[str, AnyArray]:
    """Return the arrays of `encode_arrays`; read-only views of the file.

    Parameters
    ----------
    directory, data : Section
        The two sections.
    finite : bool
        Look at all numbers, and refuse infinities and NaN.

    Raises
    ------
    TileFormatError
        When it is something else.
    """
    codec.require_codec(directory, codec.Codec.JSON)
    codec.require_codec(data, codec.Codec.RAW)
    if len(directory.payload) > _MAX_DIRECTORY_BYTES:
        raise TileFormatError(
            f"section {directory.tag} has more than {_MAX_DIRECTORY_BYTES} bytes",
            offset=directory.offset,
        )
    raw = bytes(directory.payload)
    arrays: dict[str, AnyArray] = {}
    at = 0
    members = parse_json(raw, TileFormatError).members() if raw else {}
    for name, member in members.items():
        fields = member.members(_KEYS)
        Field(f"name of {member.name}", name, TileFormatError).text()
        dtype = np.dtype(codec.DTYPES[fields["dtype"].choice(codec.DTYPES)])
        shape = _decode_shape(fields["shape"])
        num_bytes = math.prod(shape) * dtype.itemsize
        end = at + num_bytes + _padding(num_bytes)
        if end > len(data.payload):
            raise TileFormatError(
                f"section {data.tag} ends inside array {name!r}",
                offset=data.offset + at,
            )
        if any(data.payload[at + num_bytes : end]):
            raise TileFormatError(
                f"padding after array {name!r} is not 0",
                offset=data.offset + at + num_bytes,
            )
        array = np.frombuffer(data.payload[at : at + num_bytes], dtype=dtype)
        if finite:
            codec.check_finite(data, array)
        arrays[name] = array.reshape(shape)
        at = end
    if at != len(data.payload):
        raise TileFormatError(
            f"section {data.tag} has {len(data.payload) - at} bytes after its arrays",
            offset=data.offset + at,
        )
    document = {key: field.value for key, field in members.items()}
    if raw != (canonical_json(document) if document else b""):
        raise TileFormatError(
            f"section {directory.tag} is not written as the format wants it",
            offset=directory.offset,
        )
    return MappingProxyType(arrays)


def encode_codebook(codebook: Codebook) -> bytes:
    """Return the file of a codebook.

    Parameters
    ----------
    codebook : Codebook
        Arrays of the types of `edgeloc.tiles.codec.DTYPES`, finite.

    Raises
    ------
    ValueError
        When it cannot be stored.
    """
    for name, array in codebook.arrays.items():
        if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
            raise ValueError(f"array {name!r} of the codebook is not finite")
    sections = {
        "NAME": (int(codec.Codec.RAW), codebook.name.encode("utf-8")),
        **encode_arrays(codebook.arrays),
    }
    return pack(FileKind.CODEBOOK, sections)


def decode_codebook(data: bytes) -> Codebook:
    """Return the codebook of a file; its arrays are views of `data`.

    Raises
    ------
    TileFormatError
        When the bytes are anything but that.
    """
    sections = unpack(data, FileKind.CODEBOOK, CODEBOOK_TAGS).sections
    codec.require_codec(sections["NAME"], codec.Codec.RAW)
    raw = bytes(sections["NAME"].payload)
    try:
        name = Field("name", raw.decode("utf-8"), TileFormatError).text()
    except UnicodeDecodeError as exc:
        raise TileFormatError(
            "section NAME is not UTF-8", offset=sections["NAME"].offset
        ) from exc
    arrays = decode_arrays(sections["ADIR"], sections["ADAT"])
    return Codebook(name=name, arrays=arrays)
