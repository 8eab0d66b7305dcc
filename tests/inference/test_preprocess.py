"""The one preprocessing: values, padding, sizes, and the way back."""

from __future__ import annotations

import numpy as np
import pytest

from edgeloc.inference.manifest import InputSpec
from edgeloc.inference.preprocess import preprocess

RGB = InputSpec(
    channels=3,
    scale=1 / 255,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


def test_a_grey_image_of_the_right_size_is_only_scaled(rng):
    image = rng.integers(0, 256, (32, 48), dtype=np.uint8)
    given = preprocess(image, InputSpec(size_multiple=16))
    assert given.tensor.shape == (1, 1, 32, 48)
    assert given.tensor.dtype == np.float32
    assert given.tensor.flags.c_contiguous
    np.testing.assert_allclose(given.tensor[0, 0], image / 255.0, atol=1e-7)
    assert given.image_from_tensor.tolist() == [1.0, 1.0]


def test_padding_repeats_the_last_row_and_column(rng):
    image = rng.integers(0, 256, (33, 47), dtype=np.uint8)
    given = preprocess(image, InputSpec(size_multiple=16, scale=1.0))
    plane = given.tensor[0, 0]
    assert plane.shape == (48, 48)
    assert (given.width, given.height) == (47, 33)
    expected = np.pad(image, ((0, 15), (0, 1)), mode="edge")
    np.testing.assert_array_equal(plane, expected.astype(np.float32))


def test_colours_come_as_red_green_blue_with_mean_and_deviation(rng):
    bgr = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    given = preprocess(bgr, RGB)
    rgb = bgr[..., ::-1] / 255.0
    expected = (rgb - np.array(RGB.mean)) / np.array(RGB.std)
    np.testing.assert_allclose(
        given.tensor[0].transpose(1, 2, 0), expected, rtol=1e-5, atol=1e-5
    )


def test_grey_for_a_colour_network_is_three_times_the_same():
    image = np.full((8, 8), 51, np.uint8)
    given = preprocess(image, InputSpec(channels=3, mean=(0.0,) * 3, std=(1.0,) * 3))
    np.testing.assert_allclose(given.tensor, 0.2, atol=1e-6)


def test_colour_for_a_grey_network_is_luminance():
    image = np.zeros((8, 8, 3), np.uint8)
    image[..., 1] = 255
    given = preprocess(image, InputSpec())
    np.testing.assert_allclose(given.tensor, 0.587, atol=0.003)


@pytest.mark.parametrize("shape", [(480, 640), (100, 120), (24, 90)])
def test_a_fixed_size_is_met_and_positions_go_back(shape):
    """A dot stays where it is, in the corner convention, however the image is scaled.

    It covers several pixels of the input, so that its mean has no rounding.
    """
    height, width = shape
    image = np.zeros(shape, np.uint8)
    y, x = np.mgrid[:height, :width] + 0.5
    centre = np.array([0.3 * width, 0.6 * height])
    distance2 = ((x - centre[0]) / width) ** 2 + ((y - centre[1]) / height) ** 2
    image[:] = 250 * np.exp(-distance2 / (2 * 0.05**2))
    given = preprocess(image, InputSpec(size=(60, 80)))
    plane = given.tensor[0, 0]
    assert plane.shape == (60, 80)
    v, u = np.mgrid[:60, :80] + 0.5
    found = np.array([np.sum(plane * u), np.sum(plane * v)]) / plane.sum()
    off_px = found * given.image_from_tensor - centre
    assert np.abs(off_px / given.image_from_tensor).max() < 0.15
