"""The project's own network: corners of the picture, weighed by reliability."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pictures import dots

from edgeloc.features.decode import BORDER_PX, DecodeRequest, decode_edgeloc

HEIGHT, WIDTH = 64, 96
POINTS = np.array([[20.25, 30.75], [50.5, 14.125], [71.875, 47.0]])
CONTRASTS = (0.8, 0.5, 0.3)


def picture(points=POINTS, contrasts=CONTRASTS) -> np.ndarray:
    """Small bright spots: the corner response is largest in their middle."""
    return dots((HEIGHT, WIDTH), points, contrasts=contrasts)


def request_for(plane: np.ndarray, **changes) -> DecodeRequest:
    height, width = plane.shape
    request = DecodeRequest(
        max_keypoints=100,
        width=width,
        height=height,
        tensor_width=width,
        tensor_height=height,
        image_from_tensor=np.ones(2, np.float32),
        plane=plane,
    )
    return replace(request, **changes)


def outputs_for(plane: np.ndarray, reliability=20.0) -> dict[str, np.ndarray]:
    """Descriptors that say where they are: (x, y, 50, 0, ...) of the cell's middle."""
    height, width = (side // 8 for side in plane.shape)
    descriptors = np.zeros((1, 64, height, width), np.float32)
    i, j = np.mgrid[:height, :width]
    descriptors[0, 0], descriptors[0, 1], descriptors[0, 2] = 8 * j + 4, 8 * i + 4, 50
    logits = np.full((1, 1, height, width), reliability, np.float32)
    return {"descriptors": descriptors, "reliability": logits}


def near(points: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Index of the first of `points` within 0.1 px of each wanted one, or -1."""
    close = np.abs(points - wanted[:, None]).max(axis=2) < 0.1
    return np.where(close.any(axis=1), np.argmax(close, axis=1), -1)


def textured(rng, size=(HEIGHT, WIDTH)) -> np.ndarray:
    coarse = rng.uniform(0, 1, (size[0] // 4, size[1] // 4))
    return np.kron(coarse, np.ones((4, 4))).astype(np.float32)


def test_corners_come_out_where_they_were_drawn():
    """With the descriptors from there, and the strongest contrast first."""
    plane = picture()
    decoded = decode_edgeloc(outputs_for(plane), request_for(plane))
    assert near(decoded.keypoints, POINTS).tolist() == [0, 1, 2]
    descriptors = decoded.descriptors
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1.0, atol=1e-5)
    sampled = 50 * descriptors[:, :2] / descriptors[:, 2:3]
    np.testing.assert_allclose(sampled, decoded.keypoints, atol=1e-3)
    assert decoded.keypoints.dtype == np.float32
    assert decoded.scores.dtype == np.float32


@pytest.mark.parametrize("phase", np.arange(8) / 8)
def test_every_phase_of_a_pixel_is_met(phase):
    at = np.array([[40.0 + phase, 30.0 + (3 * phase) % 1]])
    plane = picture(at, (0.6,))
    decoded = decode_edgeloc(outputs_for(plane), request_for(plane, max_keypoints=1))
    np.testing.assert_allclose(decoded.keypoints, at, atol=0.1)


def test_contrast_counts_for_little():
    """Its square root: the fourth root of a response, which is its square."""
    plane = picture(POINTS, (0.8, 0.2, 0.8))
    decoded = decode_edgeloc(outputs_for(plane), request_for(plane))
    scores = decoded.scores[near(decoded.keypoints, POINTS)]
    assert scores[1] / scores[0] == pytest.approx(0.5, rel=0.1)


def test_reliability_says_which_come_first():
    plane = picture(POINTS, (0.6, 0.6, 0.6))
    outputs = outputs_for(plane, reliability=0.0)
    outputs["reliability"][0, 0, :, 4:8] = 2.0  # around the second
    outputs["reliability"][0, 0, :, 8:] = -3.0  # and the third
    decoded = decode_edgeloc(outputs, request_for(plane))
    found = near(decoded.keypoints, POINTS)
    assert np.all(found >= 0)
    scores = decoded.scores[found]
    share = 1 / (1 + np.exp(-np.array([0.0, 2.0, -3.0])))
    np.testing.assert_allclose(scores / scores[0], share / share[0], rtol=0.1)
    assert np.all(np.diff(decoded.scores) <= 0)
    [best] = decode_edgeloc(outputs, request_for(plane, max_keypoints=1)).keypoints
    np.testing.assert_allclose(best, POINTS[1], atol=0.1)


def test_the_border_and_the_padding_hold_no_keypoints(rng):
    """The padding repeats the last pixels, and makes corners with what is beyond."""
    inner = textured(rng, (52, 84))[:50, :81]
    plane = np.pad(inner, ((0, 14), (0, 15)), mode="edge")
    plane[50:, ::3] = 1.0
    request = request_for(plane, width=81, height=50)
    x, y = decode_edgeloc(outputs_for(plane), request).keypoints.T
    assert len(x) > 20
    assert min(x.min(), y.min()) >= BORDER_PX
    assert x.max() <= 81 - BORDER_PX
    assert y.max() <= 50 - BORDER_PX


def test_the_mask_is_that_of_the_image_and_not_of_the_input(rng):
    plane = textured(rng)
    mask = np.full((2 * HEIGHT, 2 * WIDTH), 255, np.uint8)
    mask[:, 80:120] = 0  # x from 40 to 60 in the input
    request = request_for(plane)
    everywhere = decode_edgeloc(outputs_for(plane), request).keypoints[:, 0]
    request = replace(request, mask=mask, image_from_tensor=np.full(2, 2.0, np.float32))
    masked = decode_edgeloc(outputs_for(plane), request).keypoints[:, 0]
    hidden = (everywhere > 40) & (everywhere < 60)
    assert hidden.sum() > 5
    # A pixel's centre decides, and its maximum may be half a pixel further.
    assert not np.any((masked > 40.5) & (masked < 59.5))
    assert len(masked) == pytest.approx(len(everywhere) - hidden.sum(), abs=3)


def test_keypoints_keep_apart(rng):
    plane = textured(rng)
    points = decode_edgeloc(outputs_for(plane), request_for(plane)).keypoints
    apart = np.abs(points[:, None] - points).max(axis=2)
    assert apart[~np.eye(len(points), dtype=bool)].min() > 2.5


@pytest.mark.parametrize("level", [0.0, 0.37, 1.0])
def test_a_blank_picture_has_no_keypoints(level):
    plane = np.full((HEIGHT, WIDTH), level, np.float32)
    decoded = decode_edgeloc(outputs_for(plane), request_for(plane))
    assert decoded.keypoints.shape == (0, 2)
    assert decoded.scores.shape == (0,)
    assert decoded.descriptors.shape == (0, 64)


def test_neither_an_edge_nor_the_noise_of_half_a_grey_value_is_a_keypoint(rng):
    plane = np.full((HEIGHT, WIDTH), 0.2, np.float32)
    plane[:, 40:] = 0.8
    assert len(decode_edgeloc(outputs_for(plane), request_for(plane)).scores) == 0
    noise = rng.normal(0, 0.5 / 255, (HEIGHT, WIDTH)).astype(np.float32)
    decoded = decode_edgeloc(outputs_for(noise), request_for(noise))
    assert len(decoded.scores) == 0


def test_what_is_no_number_costs_only_what_is_near(rng):
    plane = textured(rng)
    outputs, request = outputs_for(plane), request_for(plane)
    whole = decode_edgeloc(outputs, request).keypoints
    plane[30, 48] = np.nan
    decoded = decode_edgeloc(outputs, replace(request, plane=plane))
    assert np.all(np.isfinite(decoded.keypoints))
    assert np.all(np.isfinite(decoded.scores))
    far = whole[np.abs(whole - [48.5, 30.5]).max(axis=1) > 12]
    assert len(far) > 20
    assert np.all(near(decoded.keypoints, far) >= 0)


def test_descriptors_may_be_of_another_size_than_reliability():
    plane = picture()
    outputs = outputs_for(plane)
    i, j = np.mgrid[: HEIGHT // 4, : WIDTH // 4]
    fine = np.stack([4 * j + 2, 4 * i + 2, np.full_like(i, 50)])[None]
    outputs["descriptors"] = fine.astype(np.float32)
    decoded = decode_edgeloc(outputs, request_for(plane))
    sampled = 50 * decoded.descriptors[:, :2] / decoded.descriptors[:, 2:3]
    np.testing.assert_allclose(sampled, decoded.keypoints, atol=1e-3)
