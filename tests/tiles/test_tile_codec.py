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
from edgeloc.tiles.codec import Grid
from edgeloc.tiles.container import Section


def section(encoded: tuple[int, bytes], tag: str = "TEST") -> Section:
    return Section(tag=tag, codec=encoded[0], payload=memoryview(encoded[1]), offset=64)


finite = st.floats(-1e8, 1e8)


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 20), st.just(3)), elements=finite),
    st.sampled_from([None, 0.1, 2.0**-10, 3.0]),
)
def test_positions_are_off_by_half_a_step_at_most(points3D, wanted):
    step = codec.position_step(points3D, wanted)
    encoded, grid = codec.encode_positions(points3D, step)
    decoded = codec.decode_positions(section(encoded), len(points3D), grid)
    assert math.frexp(step)[0] == 0.5
    assert grid.step == step
    assert np.abs(decoded - points3D).max() <= step / 2 * (1 + 1e-9)
    extent = np.ptp(points3D, axis=0).max()
    reach = np.abs(points3D).max()
    if wanted is None:
        wanted = extent / 65534
        assert max(grid.bits) <= 16
    assert step <= 2 * max(wanted, extent * 2.0**-31, reach * 2.0**-46, 2.0**-60)
    again, same = codec.encode_positions(decoded, step)
    assert (again, same) == (encoded, grid)


def test_flat_scenes_take_fewer_bits():
    points3D = np.array([[0.0, 0.0, 5.0], [60.0, 2.0, 5.0], [10.0, 1.0, 5.0]])
    encoded, grid = codec.encode_positions(points3D, 2.0**-6)
    assert grid.bits == (12, 8, 0)
    assert len(encoded[1]) == math.ceil(3 * 20 / 8)


def test_coincident_points_and_no_points():
    points3D = np.full((5, 3), 123.456)
    step = codec.position_step(points3D)
    encoded, grid = codec.encode_positions(points3D, step)
    decoded = codec.decode_positions(section(encoded), 5, grid)
    assert step <= 2.0**-38
    assert grid.bits == (0, 0, 0)
    assert encoded[1] == b""
    assert np.abs(decoded - 123.456).max() <= step / 2
    nothing, grid = codec.encode_positions(np.zeros((0, 3)), 1.0)
    assert (nothing, grid) == (
        (1, b""),
        Grid(exponent=0, origin=(0,) * 3, bits=(0,) * 3),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exponent": 13}, r"the step of positions is 2\^13, expected 2\^-60 to 2\^12"),
        ({"exponent": -61}, r"the step of positions is 2\^-61"),
        ({"bits": (0, 33, 0)}, "have 33 bits per axis, at most 32 are allowed"),
        ({"origin": (0, 0, -(2**48))}, "is too many steps from zero"),
        ({"bits": (1, 1, 1)}, "section TEST has 0 bytes, expected 1"),
    ],
)
def test_positions_on_an_absurd_grid_are_refused(change, message):
    grid = {"exponent": 0, "origin": (0, 0, 0), "bits": (0, 0, 0), **change}
    with pytest.raises(TileFormatError, match=message):
        codec.decode_positions(section((codec.Codec.BITS, b"")), 1, Grid(**grid))


def test_some_positions_of_many(rng):
    points3D = rng.uniform(-50, 50, (1000, 3))
    (_, payload), grid = codec.encode_positions(points3D, 2.0**-8)
    rows = np.array([999, 0, 17])
    some = codec.positions_at(codec.padded(payload), rows, grid)
    assert np.abs(some - points3D[rows]).max() <= 2.0**-9


sigma_arrays = hnp.arrays(
    np.float32, st.integers(1, 30), elements=st.floats(2.0**-10, 2.0**-4, width=32)
)


@given(sigma_arrays)
def test_sigmas_are_off_by_a_quarter_of_an_octave_at_most(sigmas):
    counts = np.zeros(len(sigmas), np.int64)
    encoded, first = codec.encode_qualities(sigmas, counts)
    decoded, _ = codec.decode_qualities(section(encoded), len(sigmas), first_code=first)
    assert decoded.dtype == np.float32
    assert np.abs(np.log2(decoded / sigmas)).max() <= 1 / 4 + 1e-6
    assert codec.encode_qualities(decoded, counts) == (encoded, first)


def test_sigmas_beyond_the_scale_become_its_ends():
    """A landmark that claims to be perfect does not set the scale of all others."""
    sigmas = np.array([0.0, 1e9, *[0.01] * 98], np.float32)
    encoded, first = codec.encode_qualities(sigmas, np.zeros(100, np.int64))
    decoded, _ = codec.decode_qualities(section(encoded), 100, first_code=first)
    assert decoded[2:] == pytest.approx(0.01, rel=0.19)
    assert decoded[0] == decoded[2]
    assert decoded[1] == pytest.approx(2.0 ** ((first + 15) / 2))


def test_numbers_of_observations_are_about_right():
    counts = np.array([*range(9), 9, 13, 14, 20, 41, 64, 10**6])
    encoded, first = codec.encode_qualities(np.ones(16, np.float32), counts)
    _, decoded = codec.decode_qualities(section(encoded), 16, first_code=first)
    assert decoded.tolist() == [*range(9), 10, 12, 16, 24, 48, 64, 64]


@pytest.mark.parametrize("first_code", [-49, 38])
def test_an_absurd_scale_of_sigmas_is_refused(first_code):
    with pytest.raises(TileFormatError, match=f"first code of sigmas is {first_code}"):
        codec.decode_qualities(section((2, b"")), 0, first_code=first_code)


def test_counts_come_back_within_their_limit():
    for counts in ([1] * 300, [1, 1, 4, 0, 2], []):
        encoded = codec.encode_counts(np.array(counts, np.int64))
        decoded = codec.decode_counts(section(encoded), len(counts), limit=4)
        assert decoded.tolist() == counts
    with pytest.raises(TileFormatError, match="holds the number 4, expected at most 3"):
        codec.decode_counts(section(codec.encode_counts(np.array([1, 4]))), 2, limit=3)
    assert len(codec.encode_counts(np.ones(300, np.int64))[1]) == 5


def test_a_wrong_length_is_refused_before_memory_is_taken():
    with pytest.raises(TileFormatError, match=r"has 8 bytes, expected 922337203685477"):
        codec.decode_raw(section((0, bytes(8))), "<f8", 2**60)


def test_an_unknown_codec_is_named():
    grid = Grid(exponent=0, origin=(0, 0, 0), bits=(0, 0, 0))
    for decode in (
        lambda s: codec.decode_raw(s, "<f4", 1),
        lambda s: codec.decode_positions(s, 1, grid),
        lambda s: codec.decode_qualities(s, 1, first_code=0),
        lambda s: codec.decode_counts(s, 1, limit=3),
    ):
        with pytest.raises(TileFormatError, match="TEST uses codec 77, this edgeloc"):
            decode(section((77, bytes(4))))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(bad):
    for dtype in ("<f2", "<f4", "<f8"):
        stored = section(codec.encode_raw([bad], dtype))
        with pytest.raises(TileFormatError, match="not finite"):
            codec.decode_raw(stored, dtype, 1)
        assert not np.isfinite(codec.decode_raw(stored, dtype, 1, finite=False)[0])
