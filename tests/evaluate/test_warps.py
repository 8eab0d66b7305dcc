"""Images with a known warp between them."""

import cv2
import numpy as np
import pytest

from edgeloc.errors import DatasetError
from edgeloc_tools.evaluate.correspondence import apply
from edgeloc_tools.evaluate.warps import (
    KINDS,
    LIGHT,
    VIEW,
    held_out_photos,
    homography_pair,
    other_light,
    rotated,
    scaled,
)


def dot(at, size=(160, 120)):
    """A bright smooth dot whose centre lies at a pixel of the corner convention."""
    x, y = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    distance2 = (x - at[0]) ** 2 + (y - at[1]) ** 2
    return (10 + 240 * np.exp(-distance2 / (2 * 3.0**2))).astype(np.uint8)


def centroid(image, mask=None):
    weight = np.maximum(image.astype(float) - 30, 0)
    if mask is not None:
        weight *= mask > 0
    height, width = image.shape
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


@pytest.mark.parametrize(
    "make",
    [
        lambda image: rotated(image, 30.0),
        lambda image: rotated(image, 90.0),
        lambda image: scaled(image, 0.5),
        lambda image: scaled(image, 1.6),
        lambda image: homography_pair(image, LIGHT, seed=(4, 1)),
    ],
)
def test_pixels_go_where_the_homography_says(make):
    at = np.array([[63.2, 71.7]])
    pair = make(dot(at[0]))
    in_a = centroid(pair.a)
    expected = apply(pair.warp.b_from_a, in_a[None])[0]
    np.testing.assert_allclose(centroid(pair.b, pair.mask_b), expected, atol=0.25)
    assert pair.b.shape == pair.mask_b.shape == pair.warp.size_b[::-1]
    assert pair.a.shape == pair.warp.size_a[::-1]


def test_quarter_turns_are_exact(rng):
    image = rng.integers(0, 255, (40, 60), dtype=np.uint8)
    pair = rotated(image, 90.0)
    np.testing.assert_array_equal(pair.b, np.rot90(image, -1))
    assert (pair.mask_b == 255).all()
    np.testing.assert_array_equal(rotated(image, 180.0).b, np.rot90(image, 2))


def test_all_of_a_turned_image_is_shown_and_nothing_else(rng):
    image = rng.integers(0, 255, (60, 80), dtype=np.uint8)
    pair = rotated(image, 45.0)
    corners = np.array([[0, 0], [80, 0], [0, 60], [80, 60]])
    moved = apply(pair.warp.b_from_a, corners)
    assert (moved > -1e-6).all()
    assert (moved < np.array(pair.warp.size_b) + 1e-6).all()
    y, x = np.nonzero(pair.mask_b)
    back = apply(pair.warp.a_from_b, np.stack([x + 0.5, y + 0.5], axis=1))
    assert (back > 4).all()
    assert (back < np.array([80, 60]) - 4).all()


def test_the_larger_of_two_scales_is_the_image_itself(rng):
    image = rng.integers(0, 255, (60, 80), dtype=np.uint8)
    np.testing.assert_array_equal(scaled(image, 0.5).a, image)
    np.testing.assert_array_equal(scaled(image, 2.0).b, image)
    np.testing.assert_array_equal(scaled(image, 2.0).a, scaled(image, 0.5).b)


def test_shrinking_does_not_alias():
    """Lines of one pixel become grey, not lines of another period."""
    image = np.zeros((64, 64), np.uint8)
    image[:, ::2] = 255
    inside = scaled(image, 0.4).b[4:-4, 4:-4].astype(float)
    assert abs(inside.mean() - 127) < 8
    assert inside.std() < 25


def test_pairs_are_the_same_each_time_and_differ_by_seed(rng):
    image = cv2.GaussianBlur(rng.integers(0, 255, (90, 120), dtype=np.uint8), (0, 0), 2)
    for kind in KINDS:
        first, again = (homography_pair(image, kind, seed=(3, 0)) for _ in range(2))
        np.testing.assert_array_equal(first.b, again.b)
        other = homography_pair(image, kind, seed=(4, 0))
        assert not np.allclose(first.warp.b_from_a, other.warp.b_from_a)


def test_views_move_more_and_light_changes_more(rng):
    image = cv2.GaussianBlur(rng.integers(0, 255, (90, 120), dtype=np.uint8), (0, 0), 2)
    corners = np.array([[0, 0], [120, 0], [0, 90], [120, 90]])
    moved = {
        kind: np.mean(
            [
                np.linalg.norm(
                    apply(
                        homography_pair(image, kind, seed=(i,)).warp.b_from_a, corners
                    )
                    - corners,
                    axis=1,
                ).mean()
                for i in range(10)
            ]
        )
        for kind in KINDS
    }
    assert moved[VIEW] > 4 * moved[LIGHT]

    def change(strength):
        return np.mean(
            [
                np.abs(
                    other_light(image, strength, np.random.default_rng(i)).astype(float)
                    - image
                ).mean()
                for i in range(10)
            ]
        )

    assert change(1.0) > 2 * change(0.3)


def test_every_tenth_photo_is_held_out(tmp_path):
    for idx in range(30):
        (tmp_path / f"{idx:03d}.jpg").touch()
    assert [p.stem for p in held_out_photos(tmp_path)] == ["007", "017", "027"]
    with pytest.raises(DatasetError, match="has no photos"):
        held_out_photos(tmp_path / "nothing")
