"""The number codings: bounds of their errors, and what their decoders refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeloc.errors import TileFormatError
from edgeloc.tiles import codec
from edgeloc.tiles.container import Section


def section(encoded: tuple[int, bytes], tag: str = "TEST") -> Section:
    return Section(tag=tag, codec=encoded[0], payload=memoryview(encoded[1]), offset=64)


finite = st.floats(-1e8, 1e8)


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 20), st.just(3)), elements=finite)
)
def test_positions_are_off_by_half_a_step_at_most(points3D):
    encoded, origin, step = codec.encode_positions(points3D)
    decoded = codec.decode_positions(
        section(encoded), len(points3D), origin=origin, step=step
    )
    assert math.frexp(step)[0] == 0.5
    assert np.abs(decoded - points3D).max() <= step / 2 * (1 + 1e-9)
    extent = np.ptp(points3D, axis=0).max()
    reach = np.abs(points3D).max()
    assert step <= 2 * max(extent / 65534, reach * 2.0**-46, 2.0**-60)


@pytest.mark.parametrize("cells", [65533.0, 65534.0, 65534.5])
@pytest.mark.parametrize("start", [0.0, 0.49, 0.51, -70000.25])
def test_positions_at_the_end_of_the_range_do_not_wrap(cells, start):
    points3D = np.array([[start] * 3, [start + cells, start, start + cells / 3]])
    encoded, origin, step = codec.encode_positions(points3D)
    decoded = codec.decode_positions(section(encoded), 2, origin=origin, step=step)
    assert step == (1.0 if cells <= 65534 else 2.0)
    assert np.abs(decoded - points3D).max() <= step / 2


def test_coincident_points_and_no_points():
    points3D = np.full((5, 3), 123.456)
    encoded, origin, step = codec.encode_positions(points3D)
    decoded = codec.decode_positions(section(encoded), 5, origin=origin, step=step)
    assert step <= 2.0**-38
    assert np.abs(decoded - 123.456).max() <= step / 2
    assert codec.encode_positions(np.zeros((0, 3))) == ((1, b""), (0.0,) * 3, 1.0)


@pytest.mark.parametrize(
    ("origin", "step", "message"),
    [
        ((0.0, 0.0, 0.0), 0.3, "power of two"),
        ((0.0, 0.0, 0.0), math.nan, "power of two"),
        ((0.0, 0.0, 0.0), 0.0, "power of two"),
        ((0.0, 0.0, 0.0), -1.0, "power of two"),
        ((0.0, 0.0, 0.0), 2.0**13, "power of two"),
        ((0.0, 0.25, 0.0), 0.5, "whole number of steps"),
        ((0.0, math.nan, 0.0), 0.5, "whole number of steps"),
        ((math.inf, 0.0, 0.0), 0.5, "whole number of steps"),
        ((0.0, 0.0, 2.0**48), 1.0, "whole number of steps"),
        ((1e300, 0.0, 0.0), 2.0**-60, "whole number of steps"),
    ],
)
def test_positions_with_an_absurd_frame_are_refused(origin, step, message):
    with pytest.raises(TileFormatError, match=message):
        codec.decode_positions(
            section((codec.Codec.FIXED16, bytes(6))), 1, origin=origin, step=step
        )


@given(st.floats(2.0**-24, 2.0**18, width=32))
def test_sigmas_are_off_by_a_twelfth_of_an_octave_at_most(sigma):
    encoded = codec.encode_sigmas(np.array([sigma], np.float32))
    decoded = codec.decode_sigmas(section(encoded), 1)
    assert decoded.dtype == np.float32
    assert abs(math.log2(decoded[0] / sigma)) <= 1 / 12 + 1e-6
    assert codec.encode_sigmas(decoded) == encoded


def test_sigmas_beyond_the_scale_become_its_ends():
    encoded = codec.encode_sigmas(np.array([0.0, 1e-9, 1.0, 1e9], np.float32))
    decoded = codec.decode_sigmas(section(encoded), 4)
    assert decoded.tolist() == pytest.approx([2**-24, 2**-24, 1.0, 2**18.5])


def test_counts_saturate():
    encoded = codec.encode_counts(np.array([0, 1, 254, 255, 256, 10**12]))
    decoded = codec.decode_counts(section(encoded), 6)
    assert decoded.tolist() == [0, 1, 254, 255, 255, 255]


@given(hnp.arrays(np.float32, st.integers(0, 20), elements=st.floats(-1, 1, width=32)))
def test_half_is_off_by_2_to_the_minus_12_at_most(values):
    decoded = codec.decode_half(section(codec.encode_half(values)), len(values))
    assert np.abs(decoded - values).max(initial=0) <= 2.0**-12


id_lists = st.lists(
    st.lists(st.integers(0, 2**32 - 1), unique=True, max_size=12).map(sorted),
    max_size=8,
)


@given(id_lists)
def test_id_lists_come_back(lists):
    offsets = np.cumsum([0, *map(len, lists)])
    ids = np.array([i for one in lists for i in one], dtype=np.int64)
    encoded = codec.encode_id_lists(ids, offsets)
    decoded = codec.decode_id_lists(section(encoded), offsets, num_ids=2**32)
    assert decoded.tolist() == ids.tolist()
    assert decoded.dtype == np.int64
    if len(ids):
        with pytest.raises(TileFormatError, match=f"holds id {ids.max()}"):
            codec.decode_id_lists(section(encoded), offsets, num_ids=int(ids.max()))


def test_neighbouring_ids_take_a_byte_each():
    ids = np.concatenate([np.arange(5000, 6000), np.arange(0, 2000, 2)])
    _, payload = codec.encode_id_lists(ids, np.array([0, 1000, 2000]))
    assert len(payload) == 2001
    assert [codec.varint_bytes(v) for v in (0, 127, 128, 2**21 - 1, 2**32 - 1)] == [
        1, 1, 2, 3, 5,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("payload", "counts", "message"),
    [
        (b"", [1], "expected 1 to 5"),
        (b"\x01" * 6, [1], "has 6 bytes"),
        (b"\x81", [1], "holds 0 whole numbers"),
        (b"\x01\x81", [1], "holds 1 whole numbers"),
        (b"\x01\x01", [1], "holds 2 whole numbers"),
        (b"\x80\x00", [1], "shortest form"),
        (b"\xff\xff\xff\xff\xff\x01\x00", [2], "shortest form"),
        (b"\xff\xff\xff\xff\x7f", [1], "holds id 34359738367, the site has 9"),
        (b"\x05\x05", [2], "holds id 11, the site has 9"),
        (b"\x00", [0], "expected 0 to 0"),
    ],
)
def test_id_lists_refuse(payload, counts, message):
    with pytest.raises(TileFormatError, match=message) as caught:
        codec.decode_id_lists(
            section((codec.Codec.DELTA_VARINT, payload), "VIDS"),
            np.cumsum([0, *counts]),
            num_ids=9,
        )
    assert caught.value.offset == 64


def test_a_wrong_length_is_refused_before_memory_is_taken():
    with pytest.raises(TileFormatError, match=r"has 8 bytes, expected 1152921504606"):
        codec.decode_raw(section((0, bytes(8))), "<f8", 2**60)


def test_an_unknown_codec_is_named():
    for decode in (
        lambda s: codec.decode_raw(s, "<f4", 1),
        lambda s: codec.decode_positions(s, 1, origin=(0.0, 0.0, 0.0), step=1.0),
        lambda s: codec.decode_sigmas(s, 1),
        lambda s: codec.decode_counts(s, 1),
        lambda s: codec.decode_half(s, 1),
        lambda s: codec.decode_id_lists(s, np.array([0, 1]), num_ids=9),
    ):
        with pytest.raises(TileFormatError, match="TEST uses codec 77, this edgeloc"):
            decode(section((77, bytes(4))))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(bad):
    for dtype in ("<f2", "<f4", "<f8"):
        with pytest.raises(TileFormatError, match="not finite"):
            codec.decode_raw(section(codec.encode_raw([bad], dtype)), dtype, 1)
    with pytest.raises(TileFormatError, match="not finite"):
        codec.decode_half(section(codec.encode_half(np.float32([bad]))), 1)
