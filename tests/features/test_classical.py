"""ORB and SIFT as feature families."""

import cv2
import numpy as np
import pytest

from edgeloc.errors import ConfigError
from edgeloc.features.extract import extract_features
from edgeloc.features.match import MatchOptions, match_descriptors
from edgeloc.features.registry import open_family


def texture(rng, height=240, width=320):
    image = np.zeros((height, width), np.float32)
    for cells in (8, 20, 50):
        noise = rng.random((cells, cells * 4 // 3)).astype(np.float32)
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    image -= image.min()
    return (image * (255 / image.max())).astype(np.uint8)


@pytest.fixture(params=["orb", "sift"])
def family(request):
    return open_family(request.param)


def test_a_shift_moves_keypoints_by_as_much(family, rng):
    image = texture(rng)
    shifted = np.ascontiguousarray(image[8:, 16:])
    a = extract_features(image, family, max_keypoints=400)
    b = extract_features(shifted, family, max_keypoints=400)
    idx_a, idx_b, _ = match_descriptors(
        family.decode(a.descriptors), family.decode(b.descriptors), MatchOptions()
    )
    assert len(idx_a) > 50
    offset = a.keypoints[idx_a] - b.keypoints[idx_b]
    np.testing.assert_allclose(np.median(offset, axis=0), [16, 8], atol=0.1)


def test_decoded_rows_have_unit_length(family, rng):
    features = extract_features(texture(rng), family, max_keypoints=100)
    decoded = family.decode(features.descriptors)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1.0, atol=1e-5)
    assert features.descriptors.shape == (len(features), family.stored_dim)


def test_strongest_first_and_no_more_than_asked(family, rng):
    features = extract_features(texture(rng), family, max_keypoints=37)
    assert len(features) == 37
    assert np.all(np.diff(features.scores) <= 0)


def test_orb_tells_which_keypoints_are_coarse(rng):
    """A keypoint of pyramid level k is a pixel of that level, 1.2^k px; scaled back."""
    image = texture(rng, 480, 640)
    orb = open_family("orb")
    features = extract_features(image, orb, max_keypoints=800)
    level = np.log(features.sigmas) / np.log(1.2)
    np.testing.assert_allclose(level, np.round(level), atol=1e-4)
    assert set(np.round(level).astype(int)) == set(range(8))
    small = extract_features(image, orb, max_keypoints=800, max_side_px=320)
    assert small.sigmas.min() == pytest.approx(2.0)


def test_keypoint_of_a_blob_is_at_its_centre():
    """Corner convention: a blob centred on pixel (100, 60) lies at (100.5, 60.5)."""
    rows, cols = np.mgrid[0:120, 0:200].astype(np.float32)
    blob = np.exp(-((cols - 100) ** 2 + (rows - 60) ** 2) / (2 * 4.0**2))
    image = (40 + 200 * blob).astype(np.uint8)
    features = extract_features(image, open_family("sift"), max_keypoints=50)
    distance = np.linalg.norm(features.keypoints - [100.5, 60.5], axis=1)
    assert distance.min() < 0.1


def test_orb_has_no_bias_between_scales(rng):
    """Features of a pattern and of its enlargement lie at scaled positions.

    OpenCV's own coordinates are off by up to 1.3 px in the coarse levels.
    """
    image = texture(rng, 480, 640)
    big = cv2.resize(image, (1280, 960), interpolation=cv2.INTER_CUBIC)
    orb = open_family("orb")
    a = extract_features(image, orb, max_keypoints=1500)
    b = extract_features(big, orb, max_keypoints=4000)
    idx_a, idx_b, _ = match_descriptors(
        orb.decode(a.descriptors), orb.decode(b.descriptors), MatchOptions()
    )
    assert len(idx_a) > 40
    offset = 2.0 * a.keypoints[idx_a] - b.keypoints[idx_b]
    offset = offset[np.linalg.norm(offset, axis=1) < 6]
    np.testing.assert_allclose(np.median(offset, axis=0), [0, 0], atol=0.3)


def test_mask_keeps_features_off(family, rng):
    mask = np.full((240, 320), 255, np.uint8)
    mask[:, :160] = 0
    features = extract_features(texture(rng), family, max_keypoints=200, mask=mask)
    assert len(features) > 20
    assert features.keypoints[:, 0].min() >= 159


def test_scaling_down_keeps_the_pixels_of_the_full_image(family, rng):
    image = texture(rng)
    big = cv2.resize(image, (960, 720), interpolation=cv2.INTER_CUBIC)
    small = extract_features(big, family, max_keypoints=300, max_side_px=320)
    full = extract_features(image, family, max_keypoints=300)
    idx_a, idx_b, _ = match_descriptors(
        family.decode(small.descriptors),
        family.decode(full.descriptors),
        MatchOptions(),
    )
    assert len(idx_a) > 50
    offset = small.keypoints[idx_a] - 3.0 * full.keypoints[idx_b]
    np.testing.assert_allclose(np.median(offset, axis=0), [0, 0], atol=0.5)


def test_a_blank_image_has_no_features(family):
    blank = np.full((100, 100, 3), 128, np.uint8)
    features = extract_features(blank, family, max_keypoints=100)
    assert len(features) == 0
    assert features.descriptors.shape == (0, family.stored_dim)
    assert family.decode(features.descriptors).shape[0] == 0


def test_an_unknown_family_is_named():
    with pytest.raises(ConfigError, match="'surf' is unknown, expected orb, sift"):
        open_family("surf")


def test_orb_product_is_hamming_distance(rng):
    stored = rng.integers(0, 256, (2, 32), dtype=np.uint8)
    decoded = open_family("orb").decode(stored)
    hamming = int(np.unpackbits(stored[0] ^ stored[1]).sum())
    assert decoded[0] @ decoded[1] == pytest.approx(1 - hamming / 128)
