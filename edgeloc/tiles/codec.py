"""Arrays to bytes and back: the one place that knows how values are coded.

Each ``encode_*`` returns the codec it used and the bytes; each ``decode_*`` looks at
the codec of the section it is given. A stronger coding is a new `Codec` member and a
new branch in one pair of functions; nothing else changes. Every decoder compares the
length of the section with the number of elements it was promised *before* it takes
memory, and raises `TileFormatError` when they differ.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeloc.errors import TileFormatError
from edgeloc.tiles.bits import (
    NumberReader,
    encode_numbers,
    pack_fields,
    padded,
    read_bits,
)
from edgeloc.tiles.container import Section
from edgeloc.types import ByteArray, Float32Array, FloatArray, IntArray

Encoded = tuple[int, bytes]


class Codec(enum.IntEnum):
    """How a section is coded; the numbers are part of the format."""

    RAW = 0
    """Little-endian numbers, row by row."""
    BITS = 1
    """Three numbers per point, each of a fixed number of bits."""
    NIBBLES = 2
    """One byte per landmark: its sigma and its number of observations, 4 bits each."""
    NUMBERS = 3
    """Whole numbers, see `edgeloc.tiles.bits`."""
    TRACKS = 4
    """Which keyframes see which landmarks, see `edgeloc.tiles.tracks`."""
    JSON = 5
    """Text, as site.json is written."""


DTYPES = {
    "uint8": "|u1", "int8": "|i1", "uint16": "<u2", "uint32": "<u4",
    "float16": "<f2", "float32": "<f4",
}  # fmt: skip
"""Element types that arrays may have, and how they are stored."""

MAX_COORDINATE = 1e8
"""Larger coordinates are an error: ECEF needs 6.4e6, and nothing needs more."""
MAX_AXIS_BITS = 32
_MIN_STEP_EXPONENT, _MAX_STEP_EXPONENT = -60, 12
_MAX_STEPS_FROM_ZERO = 2**47
"""Coordinate over step: leaves origin + offset * step exact in float64."""
DEFAULT_AXIS_STEPS = 2**16 - 2
"""Steps that the extent of a tile has at most where no step was asked for."""

SIGMA_STEPS_PER_OCTAVE = 2
SIGMA_CODES = 16
SIGMA_QUANTILE = 0.02
"""Of the sigmas of a tile, these few smallest ones are rounded up."""
_MIN_SIGMA_CODE, _MAX_SIGMA_CODE = -48, 37
OBSERVATION_COUNTS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64)
"""What the 16 codes of a number of observations stand for; the last for more, too."""
_COUNT_TABLE = np.array(OBSERVATION_COUNTS, dtype=np.int64)

MAX_DESCRIPTORS_PER_LANDMARK = 255

KEYPOINT_STEPS_PER_PX = 8
"""Noise of keypoints is half a pixel and more."""
MAX_KEYPOINT_PX = 2**20 - 1
"""Coordinates of a keypoint: images are at most 2^20 px wide."""
MAX_KEYPOINT_BITS = 23
"""Of such a coordinate in steps."""
_SIGMA_BITS = 4


def require_codec(section: Section, *known: Codec) -> None:
    """Raise `TileFormatError` unless the section's codec is among `known`."""
    if section.codec not in known:
        names = ", ".join(f"{int(codec)} ({codec.name})" for codec in known)
        raise TileFormatError(
            f"section {section.tag} uses codec {section.codec}, this edgeloc reads "
            f"{names}",
            offset=section.offset,
        )


def _require_bytes(section: Section, num_bytes: int) -> None:
    if len(section.payload) != num_bytes:
        raise TileFormatError(
            f"section {section.tag} has {len(section.payload)} bytes, expected "
            f"{num_bytes}",
            offset=section.offset,
        )


def _stored(section: Section, dtype: str, count: int) -> npt.NDArray[np.generic]:
    """Return a view of `count` stored numbers, the length checked first."""
    _require_bytes(section, count * np.dtype(dtype).itemsize)
    return np.frombuffer(section.payload, dtype=dtype, count=count)


def check_finite(section: Section, values: npt.NDArray[np.generic]) -> None:
    """Raise `TileFormatError` at infinities and NaN."""
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


def decode_raw(
    section: Section, dtype: str, count: int, *, finite: bool = True
) -> npt.NDArray[np.generic]:
    """Return a view of numbers that `encode_raw` stored.

    Parameters
    ----------
    section : Section
        Where they are.
    dtype : str
        NumPy name, as for `encode_raw`.
    count : int
        How many there have to be.
    finite : bool
        Look at all of them, and refuse infinities and NaN.

    Returns
    -------
    ndarray of shape (count,)
        Read-only; memory of the file.
    """
    require_codec(section, Codec.RAW)
    values = _stored(section, dtype, count)
    if finite:
        check_finite(section, values)
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What coded positions are relative to.

    Parameters
    ----------
    exponent : int
        The step is 2^exponent.
    origin : tuple of 3 int
        In steps.
    bits : tuple of 3 int
        Bits of an offset, by axis.
    """

    exponent: int
    origin: tuple[int, int, int]
    bits: tuple[int, int, int]

    @property
    def step(self) -> float:
        """Unit of the positions; they are off by half of it at most."""
        return math.ldexp(1.0, self.exponent)

    @property
    def bits_per_point(self) -> int:
        """Bits of one position."""
        return sum(self.bits)


def _power_of_two_from(value: float) -> float:
    """Return the smallest power of two that is not less."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(1.0, exponent - 1 if mantissa == 0.5 else exponent)


def position_step(points3D: FloatArray, wanted: float | None = None) -> float:
    """Return the step, a power of two, with which positions are stored.

    Parameters
    ----------
    points3D : ndarray of shape (P, 3), float64
        Landmarks of one tile, m.
    wanted : float, optional
        By default what 16 bits per axis allow.

    Returns
    -------
    float
    """
    if len(points3D) == 0:
        return 1.0
    reach = float(np.abs(points3D).max())
    extent = float(np.max(points3D.max(axis=0) - points3D.min(axis=0)))
    if wanted is None:
        wanted = extent / DEFAULT_AXIS_STEPS
    finest = (
        math.ldexp(1.0, _MIN_STEP_EXPONENT),
        math.ldexp(extent, 1 - MAX_AXIS_BITS),
        reach / (_MAX_STEPS_FROM_ZERO // 2),
    )
    return _power_of_two_from(max(wanted, *finest))


def encode_positions(points3D: FloatArray, step: float) -> tuple[Encoded, Grid]:
    """Return positions in fixed point, off by half a step at most.

    Parameters
    ----------
    points3D : ndarray of shape (P, 3), float64
        Finite, below `MAX_COORDINATE`.
    step : float
        From `position_step`.

    Returns
    -------
    encoded : tuple of (int, bytes)
        The offsets.
    grid : Grid
        What is needed to read them.
    """
    exponent = math.frexp(step)[1] - 1
    if len(points3D) == 0:
        return (Codec.BITS, b""), Grid(
            exponent=exponent, origin=(0, 0, 0), bits=(0, 0, 0)
        )
    steps = np.rint(points3D / step).astype(np.int64)
    x, y, z = steps.min(axis=0).tolist()
    offsets = steps - np.array([x, y, z])
    bx, by, bz = (int(v).bit_length() for v in offsets.max(axis=0))
    payload = pack_fields(offsets.reshape(-1), np.tile([bx, by, bz], len(offsets)))
    return (Codec.BITS, payload), Grid(
        exponent=exponent, origin=(x, y, z), bits=(bx, by, bz)
    )


def check_grid(grid: Grid) -> None:
    """Raise `TileFormatError` unless positions on a grid are exact numbers."""
    if not _MIN_STEP_EXPONENT <= grid.exponent <= _MAX_STEP_EXPONENT:
        raise TileFormatError(
            f"the step of positions is 2^{grid.exponent}, expected 2^"
            f"{_MIN_STEP_EXPONENT} to 2^{_MAX_STEP_EXPONENT}"
        )
    if max(grid.bits) > MAX_AXIS_BITS:
        raise TileFormatError(
            f"positions have {max(grid.bits)} bits per axis, at most {MAX_AXIS_BITS} "
            "are allowed"
        )
    if max(abs(value) for value in grid.origin) > _MAX_STEPS_FROM_ZERO:
        raise TileFormatError(f"the origin {grid.origin} is too many steps from zero")


def check_positions(section: Section, count: int, grid: Grid) -> None:
    """Raise `TileFormatError` unless a section has room for as many positions."""
    require_codec(section, Codec.BITS)
    check_grid(grid)
    _require_bytes(section, -(-count * grid.bits_per_point // 8))


def positions_at(stream: ByteArray, rows: IntArray, grid: Grid) -> FloatArray:
    """Return some positions of a stream, (n, 3) float64, by their rows.

    Parameters
    ----------
    stream : ndarray of uint8
        Of `encode_positions`, with the bytes behind it that `read_bits` wants.
    rows : ndarray of shape (n,), int64
        Which.
    grid : Grid
        Of the stream.
    """
    starts = rows * grid.bits_per_point
    steps = np.empty((len(rows), 3))
    for axis, width in enumerate(grid.bits):
        steps[:, axis] = read_bits(stream, starts, width) + grid.origin[axis]
        starts = starts + width
    steps *= grid.step
    return steps


def decode_positions(section: Section, count: int, grid: Grid) -> FloatArray:
    """Return positions, (count, 3) float64, of `encode_positions`."""
    check_positions(section, count, grid)
    return positions_at(padded(section.payload), np.arange(count), grid)


def _sigma_codes(sigmas: Float32Array) -> tuple[IntArray, int]:
    """Return codes of standard deviations, and what code 0 stands for."""
    least = math.ldexp(1.0, -30)
    octaves = np.log2(np.maximum(np.asarray(sigmas, dtype=np.float64), least))
    codes = np.rint(octaves * SIGMA_STEPS_PER_OCTAVE).astype(np.int64)
    codes = np.clip(codes, _MIN_SIGMA_CODE, _MAX_SIGMA_CODE)
    # One landmark that claims to be perfect shall not cost all others their scale.
    first = int(np.sort(codes)[int(len(codes) * SIGMA_QUANTILE)])
    return np.clip(codes - first, 0, SIGMA_CODES - 1), first


def _sigma_table(first_code: int) -> Float32Array:
    """Return what the codes of standard deviations stand for."""
    if not _MIN_SIGMA_CODE <= first_code <= _MAX_SIGMA_CODE:
        raise TileFormatError(
            f"the first code of sigmas is {first_code}, expected {_MIN_SIGMA_CODE} to "
            f"{_MAX_SIGMA_CODE}"
        )
    table = np.exp2((first_code + np.arange(SIGMA_CODES)) / SIGMA_STEPS_PER_OCTAVE)
    return table.astype(np.float32)


def encode_qualities(
    sigmas: Float32Array, num_observations: IntArray
) -> tuple[Encoded, int]:
    """Return standard deviations and numbers of observations, a byte per landmark.

    Parameters
    ----------
    sigmas : ndarray of shape (P,), float32
        Finite, >= 0. Off by a factor of 2^(1/4) at most within 7.5 octaves from the
        code that is returned; others become the nearest end.
    num_observations : ndarray of shape (P,), int64
        Rounded to the nearest of `OBSERVATION_COUNTS`, of two to the larger one.

    Returns
    -------
    encoded : tuple of (int, bytes)
    first_code : int
        What sigma code 0 stands for: 2^(first_code / 2).
    """
    if len(sigmas) == 0:
        return (Codec.NIBBLES, b""), 0
    sigma_codes, first = _sigma_codes(sigmas)
    middles = (_COUNT_TABLE[1:] + _COUNT_TABLE[:-1]) / 2
    count_codes = np.searchsorted(middles, num_observations, side="right")
    return (
        Codec.NIBBLES,
        (sigma_codes << 4 | count_codes).astype(np.uint8).tobytes(),
    ), first


def decode_qualities(
    section: Section, count: int, *, first_code: int
) -> tuple[Float32Array, IntArray]:
    """Return standard deviations, (count,) float32, and numbers of observations."""
    require_codec(section, Codec.NIBBLES)
    table = _sigma_table(first_code)
    stored = _stored(section, "|u1", count).astype(np.intp)
    return table[stored >> 4], _COUNT_TABLE[stored & 15]


def encode_counts(counts: IntArray) -> Encoded:
    """Return numbers >= 0; five bytes when they are all the same."""
    return Codec.NUMBERS, encode_numbers(counts)


def decode_counts(section: Section, count: int, *, limit: int) -> IntArray:
    """Return the (count,) numbers of `encode_counts`, none above `limit`.

    The caller has bounded `count`: equal numbers take no room.
    """
    require_codec(section, Codec.NUMBERS)
    reader = NumberReader(section)
    counts = reader.read(count, limit=limit)
    reader.finish()
    return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class KeypointCode:
    """How keypoints are coded.

    Parameters
    ----------
    first_code : int
        What sigma code 0 stands for: 2^(first_code / 2) px.
    bits : tuple of 2 int
        Bits of x and of y.
    """

    first_code: int
    bits: tuple[int, int]

    @property
    def bits_per_point(self) -> int:
        """Bits of one keypoint."""
        return sum(self.bits) + _SIGMA_BITS


def encode_keypoints(
    keypoints: Float32Array, sigmas: Float32Array
) -> tuple[Encoded, KeypointCode]:
    """Return positions in an image in eighths of a pixel, and their deviations.

    Parameters
    ----------
    keypoints : ndarray of shape (F, 2), float32
        Px, from 0 to 2^20.
    sigmas : ndarray of shape (F,), float32
        As for `encode_qualities`, px.

    Returns
    -------
    encoded : tuple of (int, bytes)
    code : KeypointCode
        What is needed to read them.
    """
    if len(keypoints) == 0:
        return (Codec.BITS, b""), KeypointCode(first_code=0, bits=(0, 0))
    steps = np.rint(keypoints.astype(np.float64) * KEYPOINT_STEPS_PER_PX)
    steps = steps.astype(np.int64)
    codes, first = _sigma_codes(sigmas)
    bx, by = (int(v).bit_length() for v in steps.max(axis=0))
    values = np.column_stack([steps, codes]).reshape(-1)
    payload = pack_fields(values, np.tile([bx, by, _SIGMA_BITS], len(steps)))
    return (Codec.BITS, payload), KeypointCode(first_code=first, bits=(bx, by))


def decode_keypoints(
    section: Section, count: int, code: KeypointCode
) -> tuple[Float32Array, Float32Array]:
    """Return keypoints, (count, 2), and their deviations, (count,), px."""
    require_codec(section, Codec.BITS)
    if max(code.bits) > MAX_KEYPOINT_BITS:
        raise TileFormatError(
            f"keypoints have {max(code.bits)} bits, at most {MAX_KEYPOINT_BITS} are "
            "allowed"
        )
    table = _sigma_table(code.first_code)
    _require_bytes(section, -(-count * code.bits_per_point // 8))
    stream = padded(section.payload)
    starts = np.arange(count) * code.bits_per_point
    bx, by = code.bits
    x = read_bits(stream, starts, bx)
    y = read_bits(stream, starts + bx, by)
    codes = read_bits(stream, starts + bx + by, _SIGMA_BITS)
    keypoints = np.column_stack([x, y]) / KEYPOINT_STEPS_PER_PX
    return keypoints.astype(np.float32), table[codes]
