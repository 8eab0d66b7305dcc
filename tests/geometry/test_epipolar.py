"""Essential matrices: their definition, distances and robust estimation."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from geometry_cases import pose_error, random_pose
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeloc.geometry.epipolar import (
    epipolar_distance,
    essential_from_poses,
    estimate_essential,
    sampson_error,
)
from edgeloc.geometry.se3 import exp_se3
from edgeloc.types import Rigid3

FOCAL_PX = 500.0


@pytest.fixture(params=["opencv", "poselib"])
def estimate(request):
    if request.param == "poselib":
        pytest.importorskip("poselib")
    return functools.partial(estimate_essential, backend=request.param)


def two_views(rng, *, num_points=100, outlier_ratio=0.0, noise_px=0.0, baseline_m=0.8):
    """Return b_from_a, points on both planes z = 1, and which matches are right."""
    direction = rng.normal(size=3)
    translation = baseline_m * direction / np.linalg.norm(direction)
    b_from_a = exp_se3(np.concatenate([0.1 * rng.normal(size=3), np.zeros(3)]))
    b_from_a = Rigid3(R=b_from_a.R, t=translation)
    in_a = np.column_stack(
        [rng.uniform(-3, 3, (num_points, 2)), rng.uniform(4, 9, num_points)]
    )
    in_b = b_from_a.transform(in_a)
    x_a, x_b = in_a[:, :2] / in_a[:, 2:], in_b[:, :2] / in_b[:, 2:]
    x_a = x_a + noise_px / FOCAL_PX * rng.normal(size=x_a.shape)
    x_b = x_b + noise_px / FOCAL_PX * rng.normal(size=x_b.shape)
    good = np.arange(num_points) >= round(outlier_ratio * num_points)
    x_b[~good] = rng.uniform(-0.7, 0.7, (np.count_nonzero(~good), 2))
    return b_from_a, x_a, x_b, good


def direction_error_deg(b_from_a, truth):
    cosine = b_from_a.t @ truth.t / np.linalg.norm(truth.t)
    return np.rad2deg(np.arccos(np.clip(cosine, -1.0, 1.0)))


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_true_matches_satisfy_the_constraint(seed):
    rng = np.random.default_rng(seed)
    a_from_world, b_from_world = random_pose(rng), random_pose(rng)
    points = rng.normal(size=(20, 3)) * 10.0
    in_a, in_b = a_from_world.transform(points), b_from_world.transform(points)
    E = essential_from_poses(a_from_world, b_from_world)
    residuals = np.einsum("ni,ij,nj->n", in_b, E, in_a)
    scale = np.linalg.norm(in_b, axis=1) * np.linalg.norm(in_a @ E.T, axis=1)
    assert np.max(np.abs(residuals) / scale) < 1e-9
    values = np.linalg.svd(E, compute_uv=False)
    b_from_a = b_from_world @ a_from_world.inverse()
    np.testing.assert_allclose(values[:2], np.linalg.norm(b_from_a.t), rtol=1e-9)
    assert values[2] < 1e-9 * values[0]


def test_distances_of_a_sideways_motion_are_vertical_offsets():
    """For t along x the epipolar lines are the image rows."""
    E = essential_from_poses(
        Rigid3.identity(), Rigid3(R=np.eye(3), t=np.array([-0.3, 0.0, 0.0]))
    )
    x_a = np.array([[0.1, 0.2], [0.4, -0.1]])
    x_b = x_a + np.array([[-0.05, 0.0], [-0.02, 0.004]])
    np.testing.assert_allclose(epipolar_distance(E, x_a, x_b), [0, 0.004], atol=1e-12)
    # Both points share the blame: 0.004 / sqrt(2) along the two of them together.
    np.testing.assert_allclose(
        sampson_error(E, x_a, x_b), [0, 0.004 / np.sqrt(2)], atol=1e-12
    )
    np.testing.assert_allclose(
        sampson_error(-5.0 * E, x_a, x_b), sampson_error(E, x_a, x_b), atol=1e-12
    )


def test_distances_at_the_epipole_are_infinite():
    forward = Rigid3(R=np.eye(3), t=np.array([0.0, 0.0, -1.0]))
    E = essential_from_poses(Rigid3.identity(), forward)
    centre = np.zeros((1, 2))
    assert np.isinf(epipolar_distance(E, centre, centre + 0.1)).all()
    assert np.isinf(sampson_error(E, centre, centre)).all()


def test_exact_matches_give_the_exact_motion(rng, estimate):
    truth, x_a, x_b, _ = two_views(rng, num_points=60)
    b_from_a, inliers = estimate(x_a, x_b, max_error=1.0 / FOCAL_PX)
    assert inliers.all()
    assert np.linalg.norm(b_from_a.t) == pytest.approx(1.0, abs=1e-12)
    assert pose_error(b_from_a, truth)[0] < 1e-4
    assert direction_error_deg(b_from_a, truth) < 0.02


@pytest.mark.parametrize("outlier_ratio", [0.0, 0.3, 0.5])
def test_outliers_are_found(outlier_ratio, rng, estimate):
    rotation_deg, direction_deg = [], []
    for _ in range(5):
        truth, x_a, x_b, good = two_views(
            rng, num_points=200, outlier_ratio=outlier_ratio, noise_px=0.5
        )
        b_from_a, inliers = estimate(x_a, x_b, max_error=1.5 / FOCAL_PX)
        rotation_deg.append(np.rad2deg(pose_error(b_from_a, truth)[0]))
        direction_deg.append(direction_error_deg(b_from_a, truth))
        assert inliers[good].mean() > 0.95
        assert inliers[~good].sum() <= 0.05 * len(good)
        E = essential_from_poses(Rigid3.identity(), b_from_a)
        assert sampson_error(E, x_a, x_b)[inliers].max() <= 1.5 / FOCAL_PX
    assert np.median(rotation_deg) < 0.25
    assert np.median(direction_deg) < 2.0


def test_the_scene_lies_in_front_of_both_cameras(rng, estimate):
    for _ in range(10):
        truth, x_a, x_b, _ = two_views(rng, num_points=50, noise_px=0.3)
        b_from_a, inliers = estimate(x_a, x_b, max_error=1.5 / FOCAL_PX)
        assert b_from_a.t @ truth.t > 0
        assert inliers.mean() > 0.9


def test_the_same_seed_gives_the_same_bits(rng, estimate):
    _, x_a, x_b, _ = two_views(rng, outlier_ratio=0.4, noise_px=0.5)
    results = [estimate(x_a, x_b, max_error=0.003, seed=3)[0] for _ in range(2)]
    assert results[0].R.tobytes() == results[1].R.tobytes()
    assert results[0].t.tobytes() == results[1].t.tobytes()


def test_matches_that_are_not_finite_are_left_out(rng, estimate):
    truth, x_a, x_b, _ = two_views(rng, num_points=60)
    x_a[0, 0], x_b[1, 1] = np.nan, np.inf
    b_from_a, inliers = estimate(x_a, x_b, max_error=1.0 / FOCAL_PX)
    assert inliers.tolist() == [False, False] + [True] * 58
    assert direction_error_deg(b_from_a, truth) < 0.02


@pytest.mark.parametrize("num_points", [0, 1, 4])
def test_fewer_than_five_matches_give_none(num_points, rng, estimate):
    _, x_a, x_b, _ = two_views(rng, num_points=num_points)
    assert estimate(x_a, x_b, max_error=0.002) is None


@pytest.mark.parametrize("kind", ["one point", "a line", "no motion"])
def test_degenerate_matches_give_none_or_a_finite_pose(kind, rng, estimate):
    for _ in range(10):
        _, x_a, x_b, _ = two_views(rng, num_points=30, noise_px=0.2)
        if kind == "one point":
            x_a, x_b = np.tile(x_a[:1], (30, 1)), np.tile(x_b[:1], (30, 1))
        elif kind == "a line":
            x_a[:, 1], x_b[:, 1] = 0.1, 0.1
        else:
            x_b = x_a.copy()
        result = estimate(x_a, x_b, max_error=0.003)
        if result is not None:
            b_from_a, inliers = result
            assert np.linalg.norm(b_from_a.t) == pytest.approx(1.0)
            assert inliers.shape == (30,)
            assert inliers.sum() >= 5


def test_wrong_arguments_are_refused(estimate):
    x = np.zeros((6, 2))
    with pytest.raises(ValueError, match="max_error=0 must be > 0"):
        estimate(x, x, max_error=0)
    with pytest.raises(ValueError, match="confidence=1 must be between"):
        estimate(x, x, max_error=0.1, confidence=1)
    with pytest.raises(ValueError, match=r"expected \(N, 2\) for both"):
        estimate(x, x[:5], max_error=0.1)
    with pytest.raises(ValueError, match="6 points in a but 5 in b"):
        sampson_error(np.eye(3), x, x[:5])
    with pytest.raises(ValueError, match=r"expected \(N, 2\)"):
        sampson_error(np.eye(3), np.zeros((6, 3)), x)
