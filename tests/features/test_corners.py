"""Corners of made pictures, found where they were drawn."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import dots, saddle, wedge
from scipy import ndimage

from edgeloc.features.corners import corner_response, parabola_peak

SIZE = (40, 48)
PHASES = [0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 0.9]


def strongest(picture: np.ndarray) -> np.ndarray:
    """The sub-pixel maximum of the response, corner convention."""
    response = corner_response(picture)
    inner = response[6:-6, 6:-6]
    y, x = np.unravel_index(np.argmax(inner), inner.shape)
    return parabola_peak(response, np.array([[x + 6, y + 6]]))[0] + 0.5


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("sigma_px", [0.4, 0.8, 1.2])
def test_a_small_spot_is_found_at_its_centre(phase, sigma_px):
    at = np.array([24.0 + phase, 20.0 + (3 * phase) % 1])
    found = strongest(dots(SIZE, [at], contrasts=[0.6], sigma_px=sigma_px))
    assert np.abs(found - at).max() < 0.1


@pytest.mark.parametrize("angle_deg", [0.0, 30.0])
def test_a_wedge_is_found_at_one_place_of_it_whatever_the_phase(angle_deg):
    """The maximum is inside, always by the same."""
    off = []
    for phase in PHASES:
        at = np.array([24.0 + phase, 20.0 + (3 * phase) % 1])
        off.append(strongest(wedge(SIZE, at, angle_deg=angle_deg)) - at)
    off -= np.mean(off, axis=0)
    assert np.linalg.norm(off, axis=1).max() < 0.35
    assert np.sqrt(np.mean(np.square(off))) < 0.2


def test_where_straight_edges_cross_the_maximum_is_beside():
    """The known weakness: there is no gradient in the very middle."""
    off = [
        strongest(saddle(SIZE, (24.0 + phase, 20.3), angle_deg=20.0))
        - (24.0 + phase, 20.3)
        for phase in PHASES
    ]
    assert np.linalg.norm(off, axis=1).max() < 2.0


def test_the_response_is_determinant_over_trace_of_the_structure_tensor(rng):
    picture = ndimage.gaussian_filter(rng.uniform(0, 1, (50, 60)), 1.5)
    smooth = ndimage.gaussian_filter(picture, 1.0, radius=3)
    dx = ndimage.sobel(smooth, axis=1) / 8
    dy = ndimage.sobel(smooth, axis=0) / 8
    xx, xy, yy = (
        ndimage.uniform_filter(ndimage.uniform_filter(product, 3), 3)
        for product in (dx * dx, dx * dy, dy * dy)
    )
    expected = (xx * yy - xy * xy) / (xx + yy + 1e-9)
    response = corner_response(picture.astype(np.float32))
    inner = (slice(8, -8), slice(8, -8))
    assert response.dtype == np.float32
    np.testing.assert_allclose(
        response[inner], expected[inner], atol=1e-4 * expected.max()
    )


def test_contrast_counts_squared_and_moves_nothing():
    at = np.array([24.3, 20.8])
    strong = corner_response(dots(SIZE, [at], contrasts=[0.8]))
    weak = dots(SIZE, [at], contrasts=[0.2], level=0.5)
    np.testing.assert_allclose(
        corner_response(weak), strong / 16, atol=2e-4 * strong.max()
    )
    assert np.abs(strongest(weak) - at).max() < 0.1


def test_neither_flat_ground_nor_an_edge_is_a_corner():
    assert np.abs(corner_response(np.full(SIZE, 0.7, np.float32))).max() < 1e-9
    edge = np.full(SIZE, 0.1, np.float32)
    edge[:, 20:] = 0.9
    assert np.abs(corner_response(edge)).max() < 1e-8
    corner = corner_response(saddle(SIZE, (24.0, 20.0))).max()
    assert corner > 1e-3


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8)])
def test_the_smallest_pictures_have_a_response(size, rng):
    response = corner_response(rng.uniform(0, 1, size).astype(np.float32))
    assert response.shape == size
    assert np.all(np.isfinite(response))


def bump(size, at) -> np.ndarray:
    """A paraboloid: what `parabola_peak` is exact on."""
    y, x = np.mgrid[: size[0], : size[1]]
    return 5.0 - 0.01 * (x - at[0]) ** 2 - 0.02 * (y - at[1]) ** 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_peak_of_a_parabola_is_exact(dtype, rng):
    tolerance = 1e-3 if dtype is np.float32 else 1e-9
    for _ in range(20):
        at = rng.uniform([5, 5], [42, 34])
        found = parabola_peak(
            bump(SIZE, at).astype(dtype), np.rint(at)[None].astype(int)
        )
        np.testing.assert_allclose(found, at[None], atol=tolerance)


def test_the_largest_of_the_nine_around_is_refined():
    at = np.array([20.3, 15.8])
    around = np.stack(np.meshgrid([19, 20, 21], [15, 16, 17]), axis=-1).reshape(-1, 2)
    found = parabola_peak(bump(SIZE, at), around)
    np.testing.assert_allclose(found, np.tile(at, (9, 1)), atol=1e-9)


def test_two_equal_pixels_have_their_peak_between():
    response = np.zeros(SIZE)
    response[20, 10:12] = 1.0
    found = parabola_peak(response, np.array([[10, 20], [11, 20]]))
    np.testing.assert_allclose(found, [[10.5, 20.0]] * 2)


def test_flat_ground_the_border_and_what_is_no_number_give_finite_places():
    pixels = np.array([[0, 0], [47, 39], [10, 10], [0, 39]])
    for response in (np.ones(SIZE), np.full(SIZE, np.nan, np.float32)):
        found = parabola_peak(response, pixels)
        assert np.all(np.isfinite(found))
        assert np.abs(found - pixels).max() <= 3
    assert parabola_peak(np.ones(SIZE), np.zeros((0, 2), np.int64)).shape == (0, 2)


def test_every_second_row_of_a_map_is_a_map():
    """Whatever the memory looks like."""
    at = np.array([20.3, 15.8])
    tall = np.repeat(bump(SIZE, at), 2, axis=0)
    found = parabola_peak(tall[::2], np.array([[20, 16]]))
    np.testing.assert_allclose(found, at[None], atol=1e-9)
