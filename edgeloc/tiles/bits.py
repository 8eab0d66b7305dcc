"""Bit streams: fields of any width, and whole numbers in few bits.

A sequence of numbers is stored in one of three ways, whichever is shortest:

* all equal: the number itself;
* Rice codes [1]_: the quotient by 2^k in unary, then k bits of remainder;
* exponential Golomb codes: a unary class q, then q + k bits.

All unary parts come first, then all other bits, so that both halves are decoded by a
handful of NumPy calls instead of number by number.

References
----------
.. [1] Rice, Plaunt, "Adaptive variable-length coding for efficient compression of
   spacecraft television data", IEEE Trans. Communication Technology 19(6), 1971.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgeloc.errors import TileFormatError
from edgeloc.tiles.container import Section
from edgeloc.types import ByteArray, IntArray

UintArray = npt.NDArray[np.uint64]

MAX_NUMBER = 2**32 - 1
_MAX_RICE = 31
_EXP_GOLOMB = 64
_MAX_EXP_GOLOMB = 24
_CONSTANT = 128
_CONSTANT_HEAD = struct.Struct("<BI")
"""Code and the number."""
_HEAD = struct.Struct("<BI")
"""Code and the bytes of the unary part."""
SPARE_BYTES = 8
"""`read_bits` looks at as many bytes behind the last field."""


def bit_widths(values: npt.NDArray[np.integer]) -> IntArray:
    """Return how many bits each number >= 0 takes, 0 for 0."""
    return np.asarray(np.frexp(values.astype(np.float64))[1], dtype=np.int64)


def pack_fields(values: IntArray, widths: IntArray) -> bytes:
    """Return fields one after the other, most significant bit first.

    Parameters
    ----------
    values : ndarray of shape (n,), int64
        Each from 0 to 2^width - 1.
    widths : ndarray of shape (n,), int64
        Bits of each.
    """
    ends = np.cumsum(widths)
    total = int(ends[-1]) if len(ends) else 0
    if total == 0:
        return b""
    # The k-th last bit of its field, for every bit of the stream.
    shift = np.repeat(ends, widths) - 1 - np.arange(total)
    bits = (np.repeat(values, widths) >> shift) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


def padded(payload: memoryview | bytes) -> ByteArray:
    """Return the bytes and as many zeros behind them as `read_bits` wants."""
    return np.frombuffer(bytes(payload) + bytes(SPARE_BYTES), dtype=np.uint8)


def read_bits(stream: ByteArray, starts: IntArray, widths: IntArray | int) -> IntArray:
    """Return fields of a stream.

    Parameters
    ----------
    stream : ndarray of uint8
        With `SPARE_BYTES` behind the last field.
    starts : ndarray of shape (n,), int64
        First bit of each field.
    widths : ndarray of shape (n,) or int
        From 0 to 56 bits.

    Returns
    -------
    ndarray of shape (n,), int64
    """
    # The eight bytes from every byte on, as one number.
    words: UintArray = np.ndarray(
        (len(stream) - 7,), dtype=">u8", buffer=stream, strides=(1,)
    )[starts >> 3].astype(np.uint64)
    words <<= (starts & 7).astype(np.uint64)
    # In two steps, since a shift by 64 is none.
    words >>= np.uint64(1)
    words >>= np.asarray(63 - np.asarray(widths)).astype(np.uint64)
    return words.astype(np.int64)


def _class_and_rest(values: IntArray, code: int) -> tuple[IntArray, IntArray, IntArray]:
    """Return unary part, other bits and their number, for each number."""
    if code < _EXP_GOLOMB:
        quotient = values >> code
        rest = values - (quotient << code)
        return quotient, rest, np.full(len(values), code, dtype=np.int64)
    k = code - _EXP_GOLOMB
    quotient = bit_widths((values >> k) + 1) - 1
    rest = values - (((1 << quotient) - 1) << k)
    return quotient, rest, quotient + k


def _best_code(values: IntArray) -> int:
    """Return the code with the fewest bits; the first of equals."""
    largest = int(values.max()).bit_length()
    costs = [
        (len(values) * (1 + k) + int((values >> k).sum()), k)
        for k in range(min(largest, _MAX_RICE) + 1)
    ]
    for k in range(min(largest, _MAX_EXP_GOLOMB) + 1):
        classes = int(bit_widths((values >> k) + 1).sum()) - len(values)
        costs.append((2 * classes + len(values) * (1 + k), _EXP_GOLOMB + k))
    return min(costs)[1]


def encode_numbers(values: IntArray) -> bytes:
    """Return a sequence of numbers as bits; no numbers take no bytes.

    Parameters
    ----------
    values : ndarray of shape (n,), int64
        From 0 to `MAX_NUMBER`.
    """
    if len(values) == 0:
        return b""
    if values.min() < 0 or values.max() > MAX_NUMBER:
        raise ValueError(f"a number is not from 0 to {MAX_NUMBER}")
    if np.all(values == values[0]):
        return _CONSTANT_HEAD.pack(_CONSTANT, int(values[0]))
    code = _best_code(values)
    quotient, rest, widths = _class_and_rest(values, code)
    ends = np.cumsum(quotient + 1)
    unary = np.zeros(int(ends[-1]), dtype=np.uint8)
    unary[ends - 1] = 1
    packed = np.packbits(unary).tobytes()
    return _HEAD.pack(code, len(packed)) + packed + pack_fields(rest, widths)


class NumberReader:
    """Takes sequences of numbers from a section, one after the other.

    Parameters
    ----------
    section : Section
        What `encode_numbers` gave, several times in a row.
    """

    def __init__(self, section: Section) -> None:
        self._section = section
        self._payload = section.payload
        self._at = 0

    def fail(self, message: str) -> TileFormatError:
        """Return the error for something that is wrong here."""
        return TileFormatError(
            f"section {self._section.tag} {message}",
            offset=self._section.offset + self._at,
        )

    def _take(self, num_bytes: int) -> memoryview:
        if num_bytes > len(self._payload) - self._at:
            raise self.fail("ends inside a sequence of numbers")
        self._at += num_bytes
        return self._payload[self._at - num_bytes : self._at]

    def read(self, count: int, *, limit: int = MAX_NUMBER) -> IntArray:
        """Return the next `count` numbers.

        Parameters
        ----------
        count : int
            How many; the caller has bounded it, since equal numbers take no room.
        limit : int
            None may be larger.

        Returns
        -------
        ndarray of shape (count,), int64

        Raises
        ------
        TileFormatError
            When there are not as many, or other than `encode_numbers` writes them.
        """
        if count == 0:
            return np.zeros(0, dtype=np.int64)
        code, argument = _HEAD.unpack(self._take(_HEAD.size))
        if code == _CONSTANT:
            values = np.full(count, argument, dtype=np.int64)
        else:
            values = self._read_coded(count, code, argument)
        largest = int(values.max())
        if largest > limit:
            raise self.fail(f"holds the number {largest}, expected at most {limit}")
        return values

    def _read_coded(self, count: int, code: int, unary_bytes: int) -> IntArray:
        exponential = code >= _EXP_GOLOMB
        k = code - _EXP_GOLOMB if exponential else code
        if k > (_MAX_EXP_GOLOMB if exponential else _MAX_RICE):
            raise self.fail(f"uses the number code {code}, which does not exist")
        bits = np.unpackbits(np.frombuffer(self._take(unary_bytes), dtype=np.uint8))
        ones = np.flatnonzero(bits)
        if len(ones) != count or len(bits) - int(ones[-1]) > 8:
            raise self.fail(f"holds {len(ones)} numbers, expected {count}")
        quotient: IntArray = np.diff(ones, prepend=-1) - 1
        if exponential:
            if int(quotient.max()) > 32:
                raise self.fail("holds a number above the limit")
            widths: IntArray | int = quotient + k
            total = int(quotient.sum()) + count * k
            base = ((1 << quotient) - 1) << k
        else:
            widths, total, base = k, count * k, quotient << k
        stream = padded(self._take(-(-total // 8)))
        if total % 8 and stream[total // 8] & (0xFF >> total % 8):
            raise self.fail("has bits behind its last number")
        if exponential:
            starts: IntArray = np.cumsum(quotient + k) - quotient - k
        else:
            starts = k * np.arange(count, dtype=np.int64)
        return base + read_bits(stream, starts, widths)

    def finish(self) -> None:
        """Raise `TileFormatError` unless everything was read."""
        if self._at != len(self._payload):
            raise self.fail(
                f"has {len(self._payload) - self._at} bytes after its last number"
            )


def ranges(starts: IntArray, counts: IntArray) -> IntArray:
    """Return ``starts[i] + 0 .. counts[i] - 1`` for all i, in a row."""
    ends = np.cumsum(counts)
    shifted = np.repeat(starts - (ends - counts), counts)
    return shifted + np.arange(len(shifted))


def offsets_of(counts: IntArray | Sequence[int]) -> IntArray:
    """Return where lists of these lengths begin, and where the last one ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
