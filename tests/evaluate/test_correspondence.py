"""Which matches count as right, on points whose geometry is known."""

import numpy as np
import pytest

from edgeloc.errors import DatasetError
from edgeloc_tools.evaluate.correspondence import (
    KnownWarp,
    fit_clicked_pair,
    fit_fundamental,
    repeatability,
    symmetric_epipolar_px,
)

K = np.array([[600.0, 0, 400], [0, 600, 300], [0, 0, 1]])


def two_views(rng, count=40):
    """Points on a wavy wall, seen from two places, px."""
    points = rng.uniform([-2, -1.5, 0], [2, 1.5, 1], (count, 3))
    points[:, 2] = 5 + 0.4 * np.sin(points[:, 0]) + 0.2 * points[:, 1]
    angle = 0.2
    turn = np.array(
        [
            [np.cos(angle), 0, np.sin(angle)],
            [0, 1, 0],
            [-np.sin(angle), 0, np.cos(angle)],
        ]
    )
    views = [points, points @ turn.T + np.array([-0.9, 0.1, 0.2])]
    pixels = [(v @ K.T)[:, :2] / (v @ K.T)[:, 2:] for v in views]
    return pixels[0], pixels[1]


def test_the_fundamental_matrix_holds_for_points_that_were_not_clicked(rng):
    a, b = two_views(rng, 80)
    clicked_b = b[:40] + rng.normal(scale=0.5, size=(40, 2))
    # Two careless clicks.
    clicked_b[:2] += [[30, -25], [-40, 15]]
    fundamental = fit_fundamental(a[:40], clicked_b)
    off = symmetric_epipolar_px(fundamental, a[40:], b[40:])
    assert np.median(off) < 0.5
    assert off.max() < 2.0
    assert np.linalg.svd(fundamental, compute_uv=False)[2] < 1e-9


def test_a_right_match_obeys_the_line_and_its_neighbours(rng):
    a, b = two_views(rng, 80)
    pair = fit_clicked_pair(a[:60], b[:60])
    a, b = a[60:], b[60:]
    assert pair.correct(a, b).mean() > 0.9
    # Slid along its epipolar line: the line alone cannot tell.
    lines = np.c_[a, np.ones(len(a))] @ pair.fundamental.T
    along = np.stack([-lines[:, 1], lines[:, 0]], axis=1)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    slid = b + 3 * pair.near_px * along
    assert pair.on_epipolar_line(a, slid).all()
    assert not pair.correct(a, slid).any()
    # Off the line by 5 px, where it may well lie.
    across = lines[:, :2] / np.linalg.norm(lines[:, :2], axis=1, keepdims=True)
    assert not pair.correct(a, b + 5 * across).any()


def test_the_tolerance_says_how_well_clicks_predict_each_other(rng):
    a, b = two_views(rng)
    exact = fit_clicked_pair(a, a * 1.2 + 5.0)
    assert exact.near_px == 10.0
    shuffled = b[rng.permutation(len(b))]
    assert fit_clicked_pair(a, shuffled).near_px == 50.0


def test_matches_by_chance_hardly_ever_count(rng):
    a, b = two_views(rng)
    pair = fit_clicked_pair(a, b)
    size = [800.0, 600.0]
    by_chance = [rng.uniform([0, 0], size, (20_000, 2)) for _ in range(2)]
    assert pair.on_epipolar_line(*by_chance).mean() < 0.02
    assert pair.correct(*by_chance).mean() < 0.002


def test_few_clicks_are_refused(rng):
    a, b = two_views(rng, 9)
    with pytest.raises(DatasetError, match=r"^9 clicked correspondences are too few"):
        fit_clicked_pair(a, b)


def warp(b_from_a, size_b=(200, 100)):
    return KnownWarp(b_from_a=b_from_a, size_a=(100, 50), size_b=size_b)


def test_errors_are_in_pixels_of_the_coarser_image():
    twice = warp(np.diag([2.0, 2.0, 1.0]))
    a, b = np.array([[10.0, 20.0]]), np.array([[24.0, 40.0]])
    assert twice.error_px(a, b) == pytest.approx(2.0)
    half = KnownWarp(
        b_from_a=np.diag([0.5, 0.5, 1.0]), size_a=(200, 100), size_b=(100, 50)
    )
    assert half.error_px(b, a) == pytest.approx(2.0)


def test_repeatability_counts_mutual_neighbours_in_the_shared_area(rng):
    identity = warp(np.eye(3), size_b=(100, 50))
    x, y = np.meshgrid(np.arange(5.0, 95, 10), np.arange(5.0, 45, 10))
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    assert repeatability(identity, points, points, radius_px=1) == 1.0
    moved = points + np.array([2.0, 0.0])
    assert repeatability(identity, points, moved, radius_px=1) == 0.0
    assert repeatability(identity, points, moved, radius_px=3) == 1.0
    # Half of them: the other image's are all found again.
    assert repeatability(identity, points, points[::2], radius_px=1) == 1.0
    # Points that the other image does not show take no part.
    shifted = np.eye(3)
    shifted[0, 2] = 50.0
    aside = warp(shifted, size_b=(100, 50))
    moved = points + np.array([50.0, 0.0])
    assert repeatability(aside, points, moved, radius_px=1) == 1.0
    assert repeatability(identity, points, np.zeros((0, 2)), radius_px=1) == 0.0
    nothing = np.zeros((0, 2))
    assert np.isnan(repeatability(identity, nothing, nothing, radius_px=1))
