"""Arrays to bytes and back: the one place that knows how numbers are coded.

Each ``encode_*`` returns the codec it used and the bytes; each ``decode_*`` looks at
the codec of the section it is given. A stronger coding is a new `Codec` member and a
new branch in one pair of functions; nothing else changes. Every decoder compares the
length of the section with the number of elements it was promised *before* it takes
memory, and raises `TileFormatError` when they differ.
"""

from __future__ import annotations

import enum
import math

import numpy as np
import numpy.typing as npt

from edgeloc.errors import TileFormatError
from edgeloc.tiles.container import Section
from edgeloc.types import Float32Array, FloatArray, IntArray

Encoded = tuple[int, bytes]


class Codec(enum.IntEnum):
    """How a section is coded; the numbers are part of the format."""

    RAW = 0
    """Little-endian numbers, row by row."""
    FIXED16 = 1
    """Three uint16 per point, in steps from the tile's origin."""
    LOG8 = 2
    """One uint8 per positive number, on a logarithmic scale."""
    COUNT8 = 3
    """One uint8 per count, 255 for any larger one."""
    DELTA_VARINT = 4
    """Strictly ascending ids as LEB128 gaps."""
    HALF = 5
    """IEEE binary16."""


MAX_COORDINATE = 1e8
"""Larger coordinates are an error: ECEF needs 6.4e6, and nothing needs more."""
MAX_CELLS = 2**16 - 2
"""Steps that the extent of a tile may have, two less than uint16 for rounding."""
_MIN_STEP_EXPONENT, _MAX_STEP_EXPONENT = -60, 12
_MAX_STEPS_FROM_ZERO = 2**47
"""Origin over step: leaves origin + offset * step exact in float64."""

SIGMA_STEPS_PER_OCTAVE = 6
SIGMA_ZERO_CODE = 144
"""Code of sigma = 1."""
_SIGMA_TABLE = np.exp2(
    (np.arange(256) - SIGMA_ZERO_CODE) / SIGMA_STEPS_PER_OCTAVE
).astype(np.float32)

MAX_COUNT = 255
MAX_VARINT_BYTES = 5
MAX_IDS = 2**32


def require_codec(section: Section, *known: Codec) -> None:
    """Raise `TileFormatError` unless the section's codec is among `known`."""
    if section.codec not in known:
        names = ", ".join(f"{int(codec)} ({codec.name})" for codec in known)
        raise TileFormatError(
            f"section {section.tag} uses codec {section.codec}, this edgeloc reads "
            f"{names}",
            offset=section.offset,
        )


def _stored(section: Section, dtype: str, count: int) -> npt.NDArray[np.generic]:
    """Return a view of `count` stored numbers, the length checked first."""
    itemsize = np.dtype(dtype).itemsize
    if len(section.payload) != count * itemsize:
        raise TileFormatError(
            f"section {section.tag} has {len(section.payload)} bytes, expected "
            f"{count} x {itemsize}",
            offset=section.offset,
        )
    return np.frombuffer(section.payload, dtype=dtype, count=count)


def _check_finite(section: Section, values: npt.NDArray[np.generic]) -> None:
    if values.dtype.kind == "f" and not np.all(np.isfinite(values)):
        raise TileFormatError(
            f"section {section.tag} holds a number that is not finite",
            offset=section.offset,
        )


def encode_raw(values: npt.ArrayLike, dtype: str) -> Encoded:
    """Return numbers as they are, little-endian.

    Parameters
    ----------
    values : array_like
        Numbers that `dtype` can hold.
    dtype : str
        NumPy name, such as "<u4".

    Returns
    -------
    tuple of (int, bytes)
    """
    return Codec.RAW, np.ascontiguousarray(values, dtype=dtype).tobytes()


def decode_raw(section: Section, dtype: str, count: int) -> npt.NDArray[np.generic]:
    """Return `count` numbers in native byte order, finite when they are floats.

    Parameters
    ----------
    section : Section
        Where they are.
    dtype : str
        Their stored type.
    count : int
        How many the section has to hold.

    Returns
    -------
    ndarray of shape (count,)
    """
    require_codec(section, Codec.RAW)
    values = _stored(section, dtype, count)
    _check_finite(section, values)
    return np.asarray(values.astype(values.dtype.newbyteorder("=")))


def decode_int64(section: Section, dtype: str, count: int) -> IntArray:
    """Return `count` stored integers as int64, see `decode_raw`."""
    return np.asarray(decode_raw(section, dtype, count), dtype=np.int64)


def position_step(points3D: FloatArray) -> float:
    """Return the step that a tile with these landmarks gets.

    The smallest power of two that reaches over the extent in `MAX_CELLS` steps. A
    power of two, since origin, offset and their sum are then exact in float64, so that
    every machine reads the same positions.

    Parameters
    ----------
    points3D : ndarray of shape (P, 3), float64
        Landmarks.

    Returns
    -------
    float
    """
    if len(points3D) == 0:
        return 1.0
    extent = float(np.max(points3D.max(axis=0) - points3D.min(axis=0)))
    reach = float(np.abs(points3D).max())
    wanted = max(
        extent / MAX_CELLS, reach / (_MAX_STEPS_FROM_ZERO // 2), 2.0**_MIN_STEP_EXPONENT
    )
    mantissa, exponent = math.frexp(wanted)
    return 2.0 ** (exponent - 1 if mantissa == 0.5 else exponent)


def encode_positions(
    points3D: FloatArray,
) -> tuple[Encoded, tuple[float, float, float], float]:
    """Return positions as fixed-point offsets, off by half a step at most.

    Parameters
    ----------
    points3D : ndarray of shape (P, 3), float64
        Finite, below `MAX_COORDINATE`.

    Returns
    -------
    encoded : tuple of (int, bytes)
        The offsets.
    origin : tuple of 3 float
        What they are offsets from, a multiple of the step.
    step : float
        Their unit.
    """
    step = position_step(points3D)
    if len(points3D) == 0:
        return (Codec.FIXED16, b""), (0.0, 0.0, 0.0), step
    origin_steps = np.floor(points3D.min(axis=0) / step)
    offsets = np.rint(points3D / step - origin_steps).astype("<u2")
    x, y, z = (origin_steps * step + 0.0).tolist()
    return (Codec.FIXED16, offsets.tobytes()), (x, y, z), step


def decode_positions(
    section: Section, count: int, *, origin: tuple[float, float, float], step: float
) -> FloatArray:
    """Return positions, (count, 3) float64, of `encode_positions`."""
    require_codec(section, Codec.FIXED16)
    if (
        not 2.0**_MIN_STEP_EXPONENT <= step <= 2.0**_MAX_STEP_EXPONENT
        or math.frexp(step)[0] != 0.5
    ):
        raise TileFormatError(
            f"the step of positions is {step!r}, expected a power of two from "
            f"2^{_MIN_STEP_EXPONENT} to 2^{_MAX_STEP_EXPONENT}"
        )
    for value in origin:
        steps = value / step
        if not abs(steps) <= _MAX_STEPS_FROM_ZERO or steps != math.floor(steps):
            raise TileFormatError(
                f"the origin {value!r} is not a whole number of steps of {step!r}"
            )
    offsets = _stored(section, "<u2", 3 * count).reshape(-1, 3)
    return np.asarray(np.array(origin) + offsets.astype(np.float64) * step)


def encode_sigmas(sigmas: Float32Array) -> Encoded:
    """Return standard deviations, off by a factor of 2^(1/12) at most.

    Parameters
    ----------
    sigmas : ndarray of shape (P,), float32
        Finite, >= 0. Outside of [2^-24, 2^18.5] they become the nearest end.

    Returns
    -------
    tuple of (int, bytes)
    """
    least = float(_SIGMA_TABLE[0])
    octaves = np.log2(np.maximum(np.asarray(sigmas, dtype=np.float64), least))
    codes = np.rint(octaves * SIGMA_STEPS_PER_OCTAVE) + SIGMA_ZERO_CODE
    return Codec.LOG8, np.clip(codes, 0, 255).astype(np.uint8).tobytes()


def decode_sigmas(section: Section, count: int) -> Float32Array:
    """Return standard deviations, (count,) float32, of `encode_sigmas`."""
    require_codec(section, Codec.LOG8)
    return np.asarray(_SIGMA_TABLE[_stored(section, "u1", count).astype(np.intp)])


def encode_counts(counts: IntArray) -> Encoded:
    """Return counts >= 0, those above `MAX_COUNT` as `MAX_COUNT`."""
    return Codec.COUNT8, np.minimum(counts, MAX_COUNT).astype(np.uint8).tobytes()


def decode_counts(section: Section, count: int) -> IntArray:
    """Return counts, (count,) int64, of `encode_counts`."""
    require_codec(section, Codec.COUNT8)
    return np.asarray(_stored(section, "u1", count), dtype=np.int64)


def encode_half(values: Float32Array) -> Encoded:
    """Return numbers in [-1, 1] as binary16, off by 2^-12 at most."""
    return Codec.HALF, np.ascontiguousarray(values, dtype="<f2").tobytes()


def decode_half(section: Section, count: int) -> Float32Array:
    """Return numbers, (count,) float32, of `encode_half`; they are finite."""
    require_codec(section, Codec.HALF)
    values = _stored(section, "<f2", count)
    _check_finite(section, values)
    return np.asarray(values, dtype=np.float32)


def varint_bytes(value: int) -> int:
    """Return how many bytes a number takes, at 7 bits per byte."""
    return max(1, -(-value.bit_length() // 7))


def encode_id_lists(ids: IntArray, offsets: IntArray) -> Encoded:
    """Return lists of strictly ascending ids as gaps.

    Parameters
    ----------
    ids : ndarray of shape (V,), int64
        In [0, `MAX_IDS`).
    offsets : ndarray of shape (L + 1,), int64
        List i is ``ids[offsets[i]:offsets[i + 1]]``.

    Returns
    -------
    tuple of (int, bytes)
    """
    gaps = ids.copy()
    gaps[1:] -= ids[:-1] + 1
    starts = offsets[:-1][np.diff(offsets) > 0]
    gaps[starts] = ids[starts]

    num_bytes = np.ones(len(gaps), dtype=np.int64)
    for k in range(1, MAX_VARINT_BYTES):
        num_bytes += gaps >= 1 << (7 * k)
    first_byte = np.cumsum(num_bytes) - num_bytes
    out = np.empty(int(num_bytes.sum()), dtype=np.uint8)
    for k in range(MAX_VARINT_BYTES):
        has = num_bytes > k
        more = (num_bytes[has] > k + 1).astype(np.int64) << 7
        out[first_byte[has] + k] = ((gaps[has] >> (7 * k)) & 0x7F) | more
    return Codec.DELTA_VARINT, out.tobytes()


def _decode_varints(section: Section, count: int) -> IntArray:
    """Return `count` numbers below 2^35 from a section that holds nothing else."""
    size = len(section.payload)
    if not count <= size <= MAX_VARINT_BYTES * count:
        raise TileFormatError(
            f"section {section.tag} has {size} bytes, expected {count} to "
            f"{MAX_VARINT_BYTES * count}",
            offset=section.offset,
        )
    stored = np.frombuffer(section.payload, dtype=np.uint8)
    last = np.flatnonzero(stored < 0x80)
    if len(last) != count or (count > 0 and last[-1] != size - 1):
        raise TileFormatError(
            f"section {section.tag} holds {len(last)} whole numbers, expected {count}",
            offset=section.offset,
        )
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    first = np.concatenate([[0], last[:-1] + 1])
    num_bytes = last - first + 1
    longest = int(num_bytes.max())
    # A second spelling of a number would make the bytes of a tile ambiguous.
    overlong = np.any((num_bytes > 1) & (stored[last] == 0))
    if longest > MAX_VARINT_BYTES or overlong:
        raise TileFormatError(
            f"section {section.tag} holds a number that is not in its shortest form",
            offset=section.offset,
        )
    values: IntArray = (stored[first] & 0x7F).astype(np.int64)
    for k in range(1, longest):
        has = np.flatnonzero(num_bytes > k)
        values[has] |= (stored[first[has] + k] & 0x7F).astype(np.int64) << (7 * k)
    return values


def decode_id_lists(section: Section, offsets: IntArray, *, num_ids: int) -> IntArray:
    """Return the ids of `encode_id_lists`, each list strictly ascending.

    Parameters
    ----------
    section : Section
        Where they are.
    offsets : ndarray of shape (L + 1,), int64
        Ascending from 0.
    num_ids : int
        Ids are below this, at most `MAX_IDS`.

    Returns
    -------
    ndarray of shape (offsets[-1],), int64
    """
    require_codec(section, Codec.DELTA_VARINT)
    gaps = _decode_varints(section, int(offsets[-1]))
    if len(gaps) == 0:
        return gaps
    # Before the sum, which could overflow otherwise.
    largest = int(gaps.max())
    if largest < num_ids:
        counts = np.diff(offsets)
        used = offsets[:-1][counts > 0]
        ids = np.cumsum(gaps + 1) - 1
        ids -= np.repeat(ids[used] - gaps[used], counts[counts > 0])
        largest = int(ids.max())
        if largest < num_ids:
            return np.asarray(ids)
    raise TileFormatError(
        f"section {section.tag} holds id {largest}, the site has {num_ids}",
        offset=section.offset,
    )
