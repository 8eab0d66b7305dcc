"""Bit streams and whole numbers: what is written comes back, in few bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeloc.errors import TileFormatError
from edgeloc.tiles.bits import (
    MAX_NUMBER,
    NumberReader,
    encode_numbers,
    pack_fields,
    padded,
    read_bits,
)
from edgeloc.tiles.container import Section


def reader(payload: bytes) -> NumberReader:
    return NumberReader(
        Section(tag="NUMS", codec=3, payload=memoryview(payload), offset=64)
    )


numbers = st.lists(
    st.one_of(st.integers(0, 3), st.integers(0, 300), st.integers(0, MAX_NUMBER)),
    max_size=40,
)


@given(st.lists(st.tuples(st.integers(0, 56), st.integers(0, 2**56 - 1)), max_size=30))
def test_fields_of_any_width_come_back(fields):
    widths = np.array([w for w, _ in fields], np.int64)
    values = np.array([v & ((1 << w) - 1) for w, v in fields], np.int64)
    stream = padded(pack_fields(values, widths))
    assert len(stream) == 8 + -(-int(widths.sum()) // 8)
    starts = np.cumsum(widths) - widths
    assert read_bits(stream, starts, widths).tolist() == values.tolist()


@given(st.lists(numbers, max_size=4))
def test_sequences_of_numbers_come_back_one_after_the_other(sequences):
    payload = b"".join(encode_numbers(np.array(s, np.int64)) for s in sequences)
    taker = reader(payload)
    assert [taker.read(len(s)).tolist() for s in sequences] == sequences
    taker.finish()


def test_numbers_take_about_their_entropy(rng):
    geometric = rng.geometric(0.3, 20_000) - 1
    share = np.bincount(geometric) / len(geometric)
    entropy = -np.sum(share[share > 0] * np.log2(share[share > 0]))
    assert 8 * len(encode_numbers(geometric)) / 20_000 < 1.06 * entropy
    heavy = np.floor(rng.pareto(0.7, 20_000)).clip(0, MAX_NUMBER).astype(np.int64)
    # Rice codes alone would take twice as many bits.
    rice = min(1 + k + float((heavy >> k).mean()) for k in range(32))
    assert 8 * len(encode_numbers(heavy)) / 20_000 < 0.5 * rice
    assert len(encode_numbers(np.full(10**6, 3))) == 5
    assert encode_numbers(np.zeros(0, np.int64)) == b""


@pytest.mark.parametrize("wrong", [-1, MAX_NUMBER + 1])
def test_numbers_out_of_range_are_not_written(wrong):
    with pytest.raises(ValueError, match="is not from 0 to 4294967295"):
        encode_numbers(np.array([0, wrong]))


RICE = bytes([1, 1, 0, 0, 0])  # k = 1, one byte of unary parts
GOLOMB = bytes([64, 1, 0, 0, 0])


@pytest.mark.parametrize(
    ("payload", "count", "message"),
    [
        (b"", 1, "ends inside a sequence"),
        (b"\x80\0\0\0", 1, "ends inside a sequence"),
        (b"\x80\x0b\0\0\0", 1, "holds the number 11, expected at most 10"),
        (RICE, 1, "ends inside a sequence"),
        (RICE + b"\x80", 1, "ends inside a sequence"),
        (RICE + b"\x00", 1, "holds 0 numbers, expected 1"),
        (RICE + b"\xc0\0", 1, "holds 2 numbers, expected 1"),
        (RICE + b"\x80\x40", 1, "has bits behind its last number"),
        (RICE + b"\x01\x80", 1, "holds the number 15, expected at most 10"),
        (bytes([1, 2, 0, 0, 0]) + b"\x80\x00\x80", 1, "holds 1 numbers, expected 1"),
        (bytes([32, 1, 0, 0, 0]) + b"\x80", 1, "number code 32, which does not exist"),
        (bytes([127, 1, 0, 0, 0]) + b"\x80", 1, "number code 127, which does not"),
        (bytes([64, 5, 0, 0, 0]) + b"\0\0\0\0\x01", 1, "a number above the limit"),
        (GOLOMB + b"\x10\xe0", 1, "holds the number 14"),
        (GOLOMB + b"\x10\x0f", 1, "has bits behind its last number"),
        (RICE + b"\xff" + b"\0" + b"\0", 8, "has 1 bytes after its last number"),
    ],
)
def test_damaged_numbers_are_refused(payload, count, message):
    def read() -> None:
        taker = reader(payload)
        taker.read(count, limit=10)
        taker.finish()

    with pytest.raises(TileFormatError, match=f"section NUMS .*{message}") as caught:
        read()
    assert caught.value.offset >= 64
