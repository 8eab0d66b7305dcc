"""Upright poses from two points: exact answers, outliers, and degenerate samples."""

from __future__ import annotations

import numpy as np
import pytest

from edgeloc.geometry.se3 import exp_so3, rotation_angle_rad
from edgeloc.geometry.upright import Vertical, sample_upright, solve_up2p
from edgeloc.types import Rigid3


def random_view(
    rng: np.random.Generator, count: int
) -> tuple[Rigid3, np.ndarray, np.ndarray, Vertical]:
    """A camera turned any way, points before it, and the vertical of both."""
    pose = Rigid3(R=exp_so3(rng.normal(size=3)), t=rng.normal(size=3) * 5)
    xy = rng.uniform(-0.6, 0.6, (count, 2))
    in_cam = np.concatenate([xy, np.ones((count, 1))], axis=1)
    in_cam *= rng.uniform(2, 20, (count, 1))
    points = pose.inverse().transform(in_cam)
    down = rng.normal(size=3)
    down /= np.linalg.norm(down)
    vertical = Vertical(down_in_cam=pose.R @ down, down_in_world=down, sigma_rad=0.01)
    return pose, xy, points, vertical


def test_two_points_give_the_exact_pose(rng: np.random.Generator) -> None:
    for _ in range(200):
        pose, xy, points, vertical = random_view(rng, 2)
        found = solve_up2p(xy, points, vertical)
        assert 1 <= len(found) <= 2
        off = min(
            np.abs(f.R - pose.R).max() + np.abs(f.t - pose.t).max() for f in found
        )
        assert off < 1e-6
        for candidate in found:
            seen = candidate.transform(points)
            assert np.all(seen[:, 2] > 0)
            np.testing.assert_allclose(seen[:, :2] / seen[:, 2:], xy, atol=1e-6)
            assert vertical.tilt_rad(candidate) < 1e-7


def test_points_above_each_other_give_none() -> None:
    """Whichever way the camera turns, a plumb line looks the same."""
    vertical = Vertical(
        down_in_cam=np.array([0.0, 1.0, 0.0]),
        down_in_world=np.array([0.0, 0.0, -1.0]),
        sigma_rad=0.01,
    )
    points = np.array([[3.0, 1.0, 0.0], [3.0, 1.0, 2.0]])
    assert solve_up2p([[0.1, 0.2], [0.1, -0.3]], points, vertical) == []


def test_two_rays_at_eye_height_give_none() -> None:
    """Nothing tells how far away things on the horizon are."""
    vertical = Vertical(
        down_in_cam=np.array([0.0, 1.0, 0.0]),
        down_in_world=np.array([0.0, 0.0, -1.0]),
        sigma_rad=0.01,
    )
    points = np.array([[3.0, 1.0, 0.0], [3.0, 2.0, 0.0]])
    assert solve_up2p([[0.1, 0.0], [-0.4, 0.0]], points, vertical) == []


def test_a_pose_is_found_among_nine_wrong_matches_of_ten(
    rng: np.random.Generator,
) -> None:
    pose, xy, points, vertical = random_view(rng, 400)
    wrong = rng.random(400) < 0.9
    xy[wrong] = rng.uniform(-0.6, 0.6, (int(wrong.sum()), 2))
    xy[~wrong] += rng.normal(scale=0.001, size=(int((~wrong).sum()), 2))
    found = sample_upright(
        xy, points, vertical, max_error=0.006, confidence=0.9999,
        max_iterations=4000, seed=1,
    )  # fmt: skip
    assert found is not None
    assert rotation_angle_rad(found.R @ pose.R.T) < np.deg2rad(0.5)
    assert np.linalg.norm(found.origin_in_a - pose.origin_in_a) < 0.1
    again = sample_upright(
        xy, points, vertical, max_error=0.006, confidence=0.9999,
        max_iterations=4000, seed=1,
    )  # fmt: skip
    assert again is not None
    np.testing.assert_array_equal(found.R, again.R)


def test_nothing_comes_of_a_single_point(rng: np.random.Generator) -> None:
    _, xy, points, vertical = random_view(rng, 1)
    assert (
        sample_upright(
            xy, points, vertical, max_error=0.01, confidence=0.9, max_iterations=10,
            seed=0,
        )
        is None
    )  # fmt: skip


def test_a_vertical_is_a_direction() -> None:
    down = np.array([0.0, 0.0, -1.0])
    with pytest.raises(ValueError, match="down_in_cam has length 2"):
        Vertical(down_in_cam=2 * down, down_in_world=down, sigma_rad=0.1)
    with pytest.raises(ValueError, match="sigma_rad"):
        Vertical(down_in_cam=down, down_in_world=down, sigma_rad=0.0)
