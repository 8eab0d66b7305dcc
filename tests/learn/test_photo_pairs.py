"""Two views of a photo."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edgeloc.errors import DatasetError
from edgeloc_tools.learn.corners import find_corners
from edgeloc_tools.learn.photo_pairs import (
    Photo,
    ViewOptions,
    draw_correspondences,
    list_photos,
    load_photo,
    photo_pair,
    training_photos,
)
from edgeloc_tools.learn.photometric import as_night, change_picture, random_grey


@pytest.fixture(scope="module")
def photo() -> Photo:
    """Smooth in space, so that a picture can be compared with itself when warped."""
    rng = np.random.default_rng(5)
    coarse = rng.uniform(0, 255, (24, 32)).astype(np.float32)
    grey = cv2.resize(coarse, (512, 384), interpolation=cv2.INTER_CUBIC)
    pixels = np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    return Photo(
        image=pixels,
        corners=find_corners(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)),
    )


def sample(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Bilinear, corner convention."""
    at = (points - 0.5).astype(np.float32)[:, None]
    return cv2.remap(image, at, None, cv2.INTER_LINEAR)[:, 0]


def test_corresponding_points_look_the_same(photo, rng):
    options = ViewOptions(strength=0.0)
    errors = []
    for _ in range(8):
        pair = photo_pair(photo, rng, options=options, num_points=256)
        a = sample(pair.images[0], pair.points[0][pair.valid])
        b = sample(pair.images[1], pair.points[1][pair.valid])
        # Each view has its own weights of the channels: compare up to gain and offset.
        errors.append(np.corrcoef(a, b)[0, 1])
    assert np.median(errors) > 0.97


def test_half_of_the_correspondences_are_near_corners(rng):
    """Within a pixel in x and y, where there are enough; the others are anywhere."""
    corners = np.stack(np.meshgrid(np.arange(16.0, 320, 32), np.arange(16.0, 240, 32)))
    corners = corners.reshape(2, -1).T
    shift = np.array([20.0, 0.0])
    points, valid = draw_correspondences(
        corners,
        lambda at: (at + shift, np.ones(len(at), bool)),
        rng,
        options=ViewOptions(),
        num_points=100,
    )
    assert valid.all()
    np.testing.assert_allclose(points[1] - points[0], [shift] * 100, atol=1e-4)
    away = np.abs(points[0][:, None] - corners).max(axis=2).min(axis=1)
    assert np.all(away[:50] <= 1.0)
    assert np.count_nonzero(away[50:] > 1.0) > 40


def test_rows_without_a_correspondence_are_marked(rng):
    points, valid = draw_correspondences(
        np.zeros((0, 2)),
        lambda at: (at, at[:, 0] < 40.0),
        rng,
        options=ViewOptions(),
        num_points=100,
    )
    assert 5 < np.count_nonzero(valid) < 60
    assert np.all((points[0, valid] > 3.0) & (points[0, valid] < [40.0, 237.0]))
    assert not points[:, ~valid].any()


def test_a_pair_has_the_shapes_that_training_takes_and_repeats(photo):
    options = ViewOptions()
    a, b = (
        photo_pair(photo, np.random.default_rng(3), options=options, num_points=64)
        for _ in range(2)
    )
    assert a.images.shape == (2, 240, 320)
    assert a.images.dtype == np.float32
    assert a.images.min() >= 0.0
    assert a.images.max() <= 1.0
    assert a.points.shape == (2, 64, 2)
    assert a.valid.shape == (64,)
    assert a.valid.all()
    for name in a.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_night_is_dark_and_noise_stays_in_range(rng):
    image = np.full((48, 64), 0.7, np.float32)
    darker = [np.median(as_night(image, rng)) for _ in range(20)]
    assert np.median(darker) < 0.35
    for _ in range(30):
        changed = change_picture(image, rng)
        assert changed.dtype == np.float32
        assert changed.shape == image.shape
        assert changed.min() >= 0.0
        assert changed.max() <= 1.0


def test_grey_has_the_range_of_the_colours(rng):
    image = np.full((4, 4, 3), 200, np.uint8)
    assert random_grey(image, rng) == pytest.approx(200 / 255, abs=1e-5)


def test_one_photo_of_ten_is_left_for_evaluation(tmp_path):
    for idx in range(20):
        cv2.imwrite(str(tmp_path / f"{idx:02}.png"), np.zeros((40, 40), np.uint8))
    kept = training_photos(list_photos(tmp_path))
    assert [p.stem for p in kept] == [f"{i:02}" for i in range(20) if i not in {7, 17}]


def test_what_is_no_photo_is_named(tmp_path):
    with pytest.raises(DatasetError, match="holds no photo"):
        list_photos(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"not a picture")
    with pytest.raises(DatasetError, match=r"a\.jpg: is not a picture"):
        load_photo(tmp_path / "a.jpg")
