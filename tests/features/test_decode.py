"""Decoding of network outputs, with keypoints put where they have to come out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeloc.errors import ModelError
from edgeloc.features.decode import (
    BORDER_PX,
    DECODERS,
    Decoded,
    DecodeRequest,
    cell_probabilities,
    find_peaks,
    normalize_rows,
    sample_rows,
)

WIDTH, HEIGHT = 96, 64
REQUEST = DecodeRequest(
    max_keypoints=100,
    width=WIDTH,
    height=HEIGHT,
    tensor_width=WIDTH,
    tensor_height=HEIGHT,
    image_from_tensor=np.ones(2, np.float32),
    plane=np.full((HEIGHT, WIDTH), 0.5, np.float32),
)
POINTS = np.array([[20.3, 30.8], [50.5, 12.5], [71.9, 47.1]], np.float32)
"""Corner convention; the first lies on the border of four cells."""
STRENGTH = np.array([0.9, 0.6, 0.3], np.float32)


def spread(points=POINTS, strength=STRENGTH, sigma_px=0.0) -> np.ndarray:
    """A probability map with each point on the pixel centres around it."""
    heat = np.zeros((HEIGHT, WIDTH))
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    for (u, v), mass in zip(points, strength, strict=True):
        if sigma_px:
            spot = np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * sigma_px**2))
            spot /= spot.sum()
        else:  # bilinear
            spot = np.clip(1 - abs(x - u), 0, 1) * np.clip(1 - abs(y - v), 0, 1)
        heat += mass * spot
    return heat


def cells_of(heat: np.ndarray) -> np.ndarray:
    """Channel 8 * dy + dx of cell (i, j) is pixel (8 j + dx, 8 i + dy)."""
    cells = heat.reshape(HEIGHT // 8, 8, WIDTH // 8, 8).transpose(1, 3, 0, 2)
    return cells.reshape(64, HEIGHT // 8, WIDTH // 8)


def logits_of(heat: np.ndarray, offset: float = 0.0) -> np.ndarray:
    """Logits whose softmax is the map, and "none" what is missing to 1."""
    shares = cells_of(heat)
    shares = np.concatenate([shares, 1.0 - shares.sum(axis=0, keepdims=True)])
    return (np.log(np.maximum(shares, 1e-9)) + offset)[None].astype(np.float32)


def ramp_descriptors(dim=64) -> np.ndarray:
    """Descriptors that say where they are: (x, y, 1, 0, ...) of the cell's middle."""
    planes = np.zeros((1, dim, HEIGHT // 8, WIDTH // 8), np.float32)
    i, j = np.mgrid[: HEIGHT // 8, : WIDTH // 8]
    planes[0, 0], planes[0, 1], planes[0, 2] = 8 * j + 4, 8 * i + 4, 50.0
    return planes


def cell_outputs(heat: np.ndarray) -> dict[str, np.ndarray]:
    """What a network with a 65-way head puts out."""
    return {
        "keypoints": logits_of(heat),
        "descriptors": ramp_descriptors(),
        "reliability": np.ones((1, 1, HEIGHT // 8, WIDTH // 8), np.float32),
    }


def positions_in(decoded: Decoded) -> np.ndarray:
    """Where `ramp_descriptors` were sampled."""
    descriptors = decoded.descriptors
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1.0, atol=1e-5)
    return 50.0 * descriptors[:, :2] / descriptors[:, 2:3]


def test_softmax_over_a_cell_becomes_a_map_at_full_size(rng):
    logits = rng.normal(0, 4, (65, 5, 7)).astype(np.float32)
    exponentials = np.exp(logits.astype(np.float64))
    shares = exponentials[:64] / exponentials.sum(axis=0)
    heat = cell_probabilities(logits)
    assert heat.shape == (40, 56)
    for y, x in ((0, 0), (0, 9), (17, 3), (39, 55), (23, 31)):
        expected = shares[8 * (y % 8) + x % 8, y // 8, x // 8]
        assert heat[y, x] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("offset", [-1e4, -70.0, 70.0, 1e4])
def test_softmax_stands_any_offset(offset, rng):
    logits = rng.normal(0, 3, (65, 3, 3)).astype(np.float32)
    shifted = cell_probabilities(logits + np.float32(offset))
    np.testing.assert_allclose(
        shifted, cell_probabilities(logits), rtol=5e-3, atol=1e-6
    )


def test_points_come_out_where_they_were_put():
    """Also those whose mass lies in four cells; strongest first, with their mass."""
    decoded = DECODERS["superpoint"](cell_outputs(spread()), REQUEST)
    np.testing.assert_allclose(decoded.keypoints, POINTS, atol=1e-3)
    np.testing.assert_allclose(decoded.scores, STRENGTH, atol=1e-4)
    np.testing.assert_allclose(positions_in(decoded), POINTS, atol=1e-3)


@pytest.mark.parametrize("sigma_px", [0.6, 0.8])
def test_blurred_points_are_refined_well_below_a_pixel(sigma_px, rng):
    points = np.array([[14.0, 16.0], [48.0, 16.0], [80.0, 44.0]])
    points += rng.uniform(0, 1, points.shape)
    heat = spread(points, [0.9, 0.8, 0.7], sigma_px)
    decoded = DECODERS["superpoint"](cell_outputs(heat), REQUEST)
    assert np.abs(decoded.keypoints - points).max() < 0.1


def test_reliability_weighs_scores():
    outputs = cell_outputs(spread())
    outputs["reliability"][0, 0, :, : WIDTH // 16] = 1e-7  # the first point's half
    decoded = DECODERS["xfeat"](outputs, REQUEST)
    np.testing.assert_allclose(decoded.keypoints, POINTS[[1, 2, 0]], atol=1e-3)
    assert decoded.scores[2] < 1e-6


def test_only_the_strongest_are_kept():
    decoded = DECODERS["superpoint"](
        cell_outputs(spread()), replace(REQUEST, max_keypoints=2)
    )
    np.testing.assert_allclose(decoded.keypoints, POINTS[:2], atol=1e-3)


def test_of_neighbours_within_the_radius_only_the_largest_is_kept():
    points = np.array([[30.5, 30.5], [34.5, 30.5], [30.5, 35.5]])
    decoded = DECODERS["superpoint"](
        cell_outputs(spread(points, [0.8, 0.7, 0.6])), REQUEST
    )
    np.testing.assert_allclose(decoded.keypoints, points[[0, 2]], atol=1e-3)


def test_equal_neighbours_are_one_peak():
    """Quantized networks put out plateaus."""
    heat = np.zeros((HEIGHT, WIDTH), np.float32)
    heat[30:32, 40:43] = 0.25
    assert len(find_peaks(heat, REQUEST, radius_px=4, min_value=0.01)) == 1
    flat = np.full((HEIGHT, WIDTH), 0.25, np.float32)
    peaks = find_peaks(flat, REQUEST, radius_px=4, min_value=0.01)
    y, x = np.divmod(peaks, WIDTH)
    apart = np.maximum(abs(x - x[:, None]), abs(y - y[:, None]))
    assert np.all(apart[~np.eye(len(peaks), dtype=bool)] > 4)


def test_the_border_and_the_padding_hold_no_keypoints():
    heat = np.zeros((HEIGHT, WIDTH))
    heat[::9, ::9] = 0.5
    request = replace(REQUEST, width=80, height=50)
    decoded = DECODERS["superpoint"](cell_outputs(heat), request)
    x, y = decoded.keypoints.T
    assert len(x) > 10
    assert x.min() > BORDER_PX
    assert y.min() > BORDER_PX
    assert x.max() < 80 - BORDER_PX
    assert y.max() < 50 - BORDER_PX


def test_the_mask_is_that_of_the_image_and_not_of_the_input():
    mask = np.full((2 * HEIGHT, 2 * WIDTH), 255, np.uint8)
    mask[:, 80:120] = 0  # x from 40 to 60 in the input
    request = replace(REQUEST, mask=mask, image_from_tensor=np.full(2, 2.0, np.float32))
    decoded = DECODERS["superpoint"](cell_outputs(spread()), request)
    np.testing.assert_allclose(decoded.keypoints, POINTS[[0, 2]], atol=1e-3)


@pytest.mark.parametrize("name", ["edgeloc", "xfeat", "superpoint", "aliked", "disk"])
@pytest.mark.parametrize("size", [(8, 8), (8, 96), (16, 24)])
def test_nothing_comes_of_nothing(name, size):
    """A map without peaks, of any size down to one cell, has no keypoints."""
    height, width = size
    outputs = {
        "keypoints": np.zeros((1, 65, height // 8, width // 8), np.float32),
        "descriptors": np.ones((1, 32, height // 8, width // 8), np.float32),
        "reliability": np.ones((1, 1, height // 8, width // 8), np.float32),
        "scores": np.full((1, 1, height, width), -1.0, np.float32),
    }
    outputs["keypoints"][:, 64] = 20.0
    request = replace(
        REQUEST,
        width=width,
        height=height,
        tensor_width=width,
        tensor_height=height,
        plane=np.full(size, 0.5, np.float32),
    )
    decoded = DECODERS[name](outputs, request)
    assert decoded.keypoints.shape == (0, 2)
    assert decoded.scores.shape == (0,)
    assert decoded.descriptors.shape == (0, 32)


def test_superpoint():
    outputs = {"keypoints": logits_of(spread()), "descriptors": ramp_descriptors(256)}
    decoded = DECODERS["superpoint"](outputs, REQUEST)
    np.testing.assert_allclose(decoded.keypoints, POINTS, atol=1e-3)
    np.testing.assert_allclose(positions_in(decoded), POINTS, atol=1e-3)
    assert decoded.descriptors.shape == (3, 256)


def test_xfeat():
    """Its reliability is a probability already, its descriptors have any length."""
    descriptors = np.zeros((1, 64, HEIGHT // 8, WIDTH // 8), np.float32)
    descriptors[0, 0] = 7.0
    descriptors[0, 1, :, WIDTH // 16 :] = 7.0
    outputs = {
        "keypoints": logits_of(spread()),
        "descriptors": descriptors,
        "reliability": np.full((1, 1, HEIGHT // 8, WIDTH // 8), 0.5, np.float32),
    }
    decoded = DECODERS["xfeat"](outputs, REQUEST)
    np.testing.assert_allclose(decoded.keypoints, POINTS, atol=1e-3)
    np.testing.assert_allclose(decoded.scores, STRENGTH / 2, atol=1e-4)
    np.testing.assert_allclose(decoded.descriptors[0, :2], [1.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(decoded.descriptors[2, :2], 0.5**0.5, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_aliked(stride):
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    scores = np.zeros((HEIGHT, WIDTH))
    for (u, v), height in zip(POINTS, (0.95, 0.9, 0.85), strict=True):
        # Smooth on the scale of the soft argmax: its temperature is 0.1.
        scores = np.maximum(scores, height - 0.1 * ((x - u) ** 2 + (y - v) ** 2))
    planes = np.ones((1, 32, HEIGHT // stride, WIDTH // stride), np.float32)
    i, j = np.mgrid[: HEIGHT // stride, : WIDTH // stride]
    planes[0, 0], planes[0, 1], planes[0, 2] = (
        (j + 0.5) * stride,
        (i + 0.5) * stride,
        50,
    )
    decoded = DECODERS["aliked"](
        {"scores": scores[None, None].astype(np.float32), "descriptors": planes},
        REQUEST,
    )
    np.testing.assert_allclose(decoded.keypoints, POINTS, atol=0.12)
    np.testing.assert_allclose(positions_in(decoded), decoded.keypoints, atol=1e-2)
    assert np.all(np.diff(decoded.scores) < 0)


def test_disk():
    """Logits: peaks above 0 count, scores are their sigmoid."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    logits = np.full((HEIGHT, WIDTH), -9.0)
    for (u, v), peak in zip(POINTS, (6.0, 4.0, -1.0), strict=True):
        logits = np.maximum(logits, peak - ((x - u) ** 2 + (y - v) ** 2))
    decoded = DECODERS["disk"](
        {
            "scores": logits[None, None].astype(np.float32),
            "descriptors": ramp_descriptors(128),
        },
        REQUEST,
    )
    np.testing.assert_allclose(decoded.keypoints, POINTS[:2], atol=0.12)
    assert np.all((decoded.scores > 0.95) & (decoded.scores < 1))


@pytest.mark.parametrize("batched", [True, False])
def test_points_that_the_network_has_picked(batched, rng):
    """Px with (0, 0) on the first pixel's centre, in any order, some outside."""
    points = np.concatenate([POINTS[::-1] - 0.5, [[90.0, 10.0]]]).astype(np.float32)
    outputs = {
        "keypoints": points,
        "scores": np.array([0.3, 0.6, 0.9, 1.0], np.float32),
        "descriptors": rng.normal(0, 3, (4, 64)).astype(np.float32),
    }
    expected = normalize_rows(outputs["descriptors"][[2, 1, 0]])
    if batched:
        outputs = {name: array[None] for name, array in outputs.items()}
    decoded = DECODERS["points"](outputs, replace(REQUEST, width=80))
    np.testing.assert_allclose(decoded.keypoints, POINTS, atol=1e-5)
    np.testing.assert_allclose(decoded.scores, [0.9, 0.6, 0.3])
    np.testing.assert_allclose(decoded.descriptors, expected, atol=1e-6)


def test_points_from_minus_one_to_one():
    outputs = {
        "keypoints": np.array([[[-1, -1], [1, 1], [0, 0]]], np.float32),
        "scores": np.array([[3, 2, 1]], np.float32),
        "descriptors": np.ones((1, 3, 8), np.float32),
    }
    decoded = DECODERS["points-normalized"](outputs, REQUEST)
    corners = [[0.5, 0.5], [WIDTH - 0.5, HEIGHT - 0.5], [WIDTH / 2, HEIGHT / 2]]
    np.testing.assert_allclose(decoded.keypoints, corners, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "output", "shape", "message"),
    [
        (
            "superpoint",
            "keypoints",
            (1, 64, 8, 12),
            r"shape \(1, 64, 8, 12\), expected",
        ),
        ("superpoint", "keypoints", (65, 8, 12), r"expected \(1, 65, h, w\)"),
        (
            "xfeat",
            "keypoints",
            (1, 65, 8, 11),
            "is 11x8, expected 12x8, one cell for",
        ),
        ("edgeloc", "reliability", (1, 2, 8, 12), r"expected \(1, 1, h, w\)"),
        ("edgeloc", "reliability", (1, 1, 4, 6), "is 6x4, expected 12x8, one cell for"),
        ("xfeat", "reliability", (1, 1, 8, 11), "is 11x8, expected 12x8, one cell for"),
        ("edgeloc", "descriptors", (2, 64, 8, 12), r"expected \(1, C, h, w\)"),
        ("superpoint", "descriptors", (1, 256), r"\(1, 256\), expected \(1, C, h, w\)"),
        ("aliked", "scores", (1, 1, 64, 95), "is 95x64, expected 96x64, the size of"),
        ("disk", "scores", (1, 2, 64, 96), r"expected \(1, 1, h, w\)"),
        ("points", "keypoints", (1, 3, 3), "expected keypoints"),
        ("points", "scores", (1, 2), "expected keypoints"),
        ("points", "descriptors", (3,), "expected keypoints"),
    ],
)
def test_a_wrong_shape_is_named(name, output, shape, message):
    outputs = cell_outputs(spread())
    outputs["scores"] = np.zeros((1, 1, HEIGHT, WIDTH), np.float32)
    if name == "points":
        outputs = {
            "keypoints": np.zeros((1, 3, 2), np.float32),
            "scores": np.zeros((1, 3), np.float32),
            "descriptors": np.zeros((1, 3, 64), np.float32),
        }
    outputs[output] = np.zeros(shape, np.float32)
    with pytest.raises(ModelError, match=message) as caught:
        DECODERS[name](outputs, REQUEST)
    assert "\n" not in str(caught.value)


def test_samples_at_the_edge_are_those_of_the_edge():
    planes = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    points = np.array([[0, 0], [32, 24], [4, 4], [8, 4], [31.9, 12]], np.float32)
    values = sample_rows(planes, points, stride_px=(8, 8))[:, 0]
    np.testing.assert_allclose(values, [0, 11, 0, 0.5, 7], atol=1e-6)


def test_rows_of_zeros_stay():
    rows = np.array([[3, 4], [0, 0]], np.float32)
    np.testing.assert_allclose(normalize_rows(rows), [[0.6, 0.8], [0, 0]])
