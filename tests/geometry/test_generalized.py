"""One camera against several posed ones, on exact rays."""

from __future__ import annotations

import numpy as np
import pytest

from edgeloc.geometry.epipolar import essential_from_poses, sampson_error
from edgeloc.geometry.generalized import (
    RayMatches,
    has_parallax,
    noise_ratio,
    ray_depths,
    ray_residuals,
    refine_on_rays,
    robust_cost,
)
from edgeloc.geometry.se3 import cross_rows, exp_se3, exp_so3, log_se3
from edgeloc.types import Rigid3


def pose(center, turn):
    R = exp_so3(np.asarray(turn, float))
    return Rigid3(R=R, t=-R @ np.asarray(center, float))


TRUTH = pose([0.2, 0.1, 0.3], [0.05, -0.1, 0.02])
VIEWS = [
    pose([-0.5, 0.0, 0.0], [0.0, 0.1, 0.0]),
    pose([0.6, -0.2, 0.1], [0.05, -0.1, 0.1]),
    pose([0.1, 0.4, -0.5], [-0.1, 0.0, -0.05]),
]
SIGMA = 1e-3


def see(rng, *, noise=0.0, num=120, views=VIEWS):
    points = rng.uniform([-2, -2, 3], [2, 2, 7], (num, 3))
    view_idx = rng.integers(0, len(views), num)

    def on_plane(posed):
        return posed / posed[:, 2:] + np.column_stack(
            [noise * rng.normal(size=(num, 2)), np.zeros(num)]
        )

    in_views = np.stack([view.transform(points) for view in views])
    return points, RayMatches(
        query_rays=on_plane(TRUTH.transform(points)),
        view_rays=on_plane(in_views[view_idx, np.arange(num)]),
        query_sigmas=np.full(num, SIGMA),
        view_sigmas=np.full(num, SIGMA),
        view_idx=view_idx,
        R=np.stack([view.R for view in views]),
        centers=np.array([view.origin_in_a for view in views]),
    )


def test_exact_rays_meet():
    points, rays = see(np.random.default_rng(0))
    assert np.abs(ray_residuals(rays, TRUTH)).max() < 1e-9
    in_query, in_view = ray_depths(rays, TRUTH)
    assert np.allclose(in_query, TRUTH.transform(points)[:, 2])
    expected = [
        VIEWS[v].transform(p)[2] for v, p in zip(rays.view_idx, points, strict=True)
    ]
    assert np.allclose(in_view, expected)
    assert robust_cost(rays, TRUTH, loss_scale=2.0) < 1e-12


def test_residuals_are_sampson_distances_in_sigmas():
    _, rays = see(np.random.default_rng(1), noise=SIGMA)
    off = exp_se3([0.01, -0.02, 0.01, 0.05, -0.02, 0.03]) @ TRUTH
    residuals = np.abs(ray_residuals(rays, off))
    for view, posed in enumerate(VIEWS):
        mine = rays.view_idx == view
        distance = sampson_error(
            essential_from_poses(posed, off),
            rays.view_rays[mine][:, :2],
            rays.query_rays[mine][:, :2],
        )
        assert np.allclose(residuals[mine], distance / SIGMA)


def test_noise_is_one_sigma():
    _, rays = see(np.random.default_rng(2), noise=SIGMA, num=4000)
    residuals = ray_residuals(rays, TRUTH)
    assert np.std(residuals) == pytest.approx(1.0, rel=0.05)
    assert noise_ratio(residuals) == pytest.approx(1.0, rel=0.05)
    assert noise_ratio(ray_residuals(rays.scaled(0.5), TRUTH)) == pytest.approx(
        2.0, rel=0.05
    )
    assert noise_ratio(np.zeros(0)) == 1.0


def test_refinement_finds_the_pose_and_its_scale():
    rng = np.random.default_rng(3)
    _, rays = see(rng)
    start = exp_se3([0.03, -0.05, 0.04, 0.15, -0.1, 0.1]) @ TRUTH
    found, _ = refine_on_rays(rays, start)
    assert np.abs(log_se3(TRUTH @ found.inverse())).max() < 1e-7


def test_refinement_ignores_a_third_of_wrong_matches():
    rng = np.random.default_rng(4)
    _, rays = see(rng, noise=SIGMA, num=300)
    wrong = rng.uniform(size=300) < 0.33
    rays.query_rays[wrong, :2] = rng.uniform(-0.6, 0.6, (wrong.sum(), 2))
    start = exp_se3([0.01, -0.01, 0.01, 0.05, -0.05, 0.05]) @ TRUTH
    found, _ = refine_on_rays(rays, start)
    assert np.linalg.norm(found.origin_in_a - TRUTH.origin_in_a) < 0.02


def test_the_covariance_is_honest():
    rng = np.random.default_rng(5)
    nees = []
    for _ in range(60):
        _, rays = see(rng, noise=SIGMA)
        found, covariance = refine_on_rays(rays, TRUTH)
        xi = log_se3(TRUTH @ found.inverse())
        nees.append(xi @ np.linalg.solve(covariance, xi))
    # Six degrees of freedom; robust weights on good points widen by some percent.
    assert 4.5 < np.mean(nees) < 8.5


def test_a_line_of_cameras_leaves_the_scale_open():
    """Only along the line; the rotation and the direction are known all the same."""
    rng = np.random.default_rng(6)
    center = TRUTH.origin_in_a
    along = np.array([0.6, 0.0, 0.8])
    line = [pose(center + d * along, [0.01, 0.1 * d, 0]) for d in (-0.6, -0.3, 0.5)]
    _, rays = see(rng, noise=SIGMA, views=line)
    _, covariance = refine_on_rays(rays, TRUTH)
    values, vectors = np.linalg.eigh(covariance[3:, 3:])
    _, around = refine_on_rays(see(rng, noise=SIGMA)[1], TRUTH)
    assert values[-1] > 100 * np.linalg.eigvalsh(around[3:, 3:])[-1]
    assert abs(vectors[:, -1] @ TRUTH.R @ along) > 0.99


def test_points_at_infinity_say_nothing_of_the_place():
    rng = np.random.default_rng(8)
    _, rays = see(rng, noise=SIGMA, views=[TRUTH] * 3, num=400)
    assert np.mean(has_parallax(rays, TRUTH)) < 0.01
    _, covariance = refine_on_rays(rays, TRUTH)
    assert np.sqrt(np.linalg.eigvalsh(covariance[3:, 3:])[-1]) > 1.0
    _, others = see(rng, noise=SIGMA, num=400)
    assert np.mean(has_parallax(others, TRUTH)) > 0.9


def test_cross_rows():
    a, b = np.random.default_rng(7).normal(size=(2, 9, 3))
    assert np.allclose(cross_rows(a, b), np.cross(a, b))
    assert np.allclose(cross_rows(a, b[0]), np.cross(a, b[0]))
