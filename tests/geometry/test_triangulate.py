"""Points from many views."""

from dataclasses import replace

import numpy as np
import pytest

from edgeloc.geometry.camera import project
from edgeloc.geometry.se3 import exp_so3
from edgeloc.geometry.triangulate import (
    Observations,
    TriangulationOptions,
    View,
    triangulate_tracks,
)
from edgeloc.types import CameraModel

PINHOLE = CameraModel(
    model="SIMPLE_PINHOLE", width=640, height=480, params=(500.0, 320.0, 240.0)
)
DISTORTED = CameraModel(
    model="OPENCV",
    width=640,
    height=480,
    params=(510.0, 505.0, 318.0, 243.0, -0.2, 0.05, 1e-3, -5e-4),
)


def look_from(x, camera=PINHOLE):
    R = exp_so3([0.02 * x, 0.05 * x, 0.0])
    return View(camera=camera, R=R, t=-R @ np.array([x, 0.1 * x, 0.0]))


def observe(points, views, rng, *, noise_px=0.0, depth_noise=None):
    """Every view sees every point; observations come sorted by track."""
    pixels, depths = [], []
    for view in views:
        in_cam = points @ view.R.T + view.t
        pixels.append(project(view.camera, in_cam)[0])
        depths.append(in_cam[:, 2])
    pixels = np.stack(pixels, axis=1).reshape(-1, 2)
    depth = np.stack(depths, axis=1).ravel()
    if depth_noise is None:
        depth, sigma = np.full(len(depth), np.nan), np.ones(len(depth))
    else:
        sigma = np.full(len(depth), depth_noise)
        depth = depth + rng.normal(size=len(depth)) * sigma
    return Observations(
        track_idx=np.repeat(np.arange(len(points)), len(views)),
        view_idx=np.tile(np.arange(len(views)), len(points)),
        pixels=pixels + rng.normal(scale=max(noise_px, 1e-12), size=pixels.shape),
        pixel_sigma=np.ones(len(pixels)),
        depth=depth,
        depth_sigma=sigma,
    )


@pytest.fixture
def points(rng):
    return rng.uniform([-1.5, -1, 3], [1.5, 1, 6], (200, 3))


@pytest.mark.parametrize("camera", [PINHOLE, DISTORTED], ids=["pinhole", "opencv"])
def test_exact_observations_give_exact_points(points, rng, camera):
    views = [look_from(x, camera) for x in (-0.5, 0.0, 0.6)]
    result = triangulate_tracks(
        observe(points, views, rng), views, TriangulationOptions()
    )
    assert result.valid.all()
    assert result.inlier.all()
    np.testing.assert_allclose(result.points3D, points, atol=1e-6)


def test_wrong_observations_are_left_out(points, rng):
    views = [look_from(x) for x in np.linspace(-0.8, 0.8, 6)]
    observations = observe(points, views, rng, noise_px=0.5)
    wrong = np.zeros(len(observations), dtype=bool)
    wrong[::6] = True  # the first view of every track
    wrong[3::12] = True  # and another one of every second
    observations.pixels[wrong] += rng.uniform(20, 100, (wrong.sum(), 2))
    result = triangulate_tracks(observations, views, TriangulationOptions())
    assert result.valid.mean() > 0.98
    assert not result.inlier[wrong].any()
    assert result.inlier[~wrong].mean() > 0.98
    error = np.linalg.norm(result.points3D - points, axis=1)[result.valid]
    assert np.median(error) < 0.02


def test_narrow_angles_are_refused_without_depth_and_kept_with(points, rng):
    views = [look_from(x) for x in (0.0, 0.02)]
    narrow = triangulate_tracks(
        observe(points, views, rng, noise_px=0.3), views, TriangulationOptions()
    )
    assert not narrow.valid.any()
    assert np.isnan(narrow.points3D).all()
    deep = triangulate_tracks(
        observe(points, views, rng, noise_px=0.3, depth_noise=0.02),
        views,
        TriangulationOptions(),
    )
    assert deep.valid.mean() > 0.98
    error = np.linalg.norm(deep.points3D - points, axis=1)[deep.valid]
    assert np.median(error) < 0.03


def test_one_view_with_depth_is_a_point(points, rng):
    views = [look_from(0.3, DISTORTED)]
    result = triangulate_tracks(
        observe(points, views, rng, depth_noise=1e-9), views, TriangulationOptions()
    )
    assert result.valid.all()
    np.testing.assert_allclose(result.points3D, points, atol=1e-6)


def test_a_coarse_observation_pulls_less(points, rng):
    views = [look_from(x) for x in (-0.5, -0.2, 0.2, 0.5)]
    exact = observe(points, views, rng)
    coarse = exact.view_idx == 1
    noise = rng.normal(scale=2.0, size=exact.pixels.shape) * coarse[:, None]
    errors = []
    for sigma in (1.0, 3.0):
        observations = replace(
            exact,
            pixels=exact.pixels + noise,
            pixel_sigma=np.where(coarse, sigma, 1.0),
        )
        result = triangulate_tracks(observations, views, TriangulationOptions())
        off = np.linalg.norm(result.points3D - points, axis=1)[result.valid]
        errors.append(np.median(off))
    assert errors[1] < 0.6 * errors[0]


def test_two_views_take_their_noise_from_the_other_tracks(rng):
    """Residuals of two views are chance: equally good points have equal sigmas."""
    points = np.tile(rng.uniform([-1, -0.8, 4], [1, 0.8, 5], (1, 3)), (300, 1))
    views = [look_from(x) for x in (-0.5, 0.0, 0.5)]
    observations = observe(points, views, rng, noise_px=0.5)
    two = (observations.track_idx < 150) & (observations.view_idx == 1)
    observations = replace(
        observations,
        **{
            name: getattr(observations, name)[~two]
            for name in observations.__dataclass_fields__
        },
    )
    result = triangulate_tracks(observations, views, TriangulationOptions())
    pairs = result.sigmas[:150][result.valid[:150]]
    assert pairs.max() < 2.5 * pairs.min()


def test_sigma_says_how_far_off_points_are(rng):
    """The median error across the line of sight is what sigma says, at known noise."""
    points = rng.uniform([-1, -0.8, 3], [1, 0.8, 6], (600, 3))
    views = [look_from(x) for x in np.linspace(-0.8, 0.8, 8)]
    result = triangulate_tracks(
        observe(points, views, rng, noise_px=1.0), views, TriangulationOptions()
    )
    off = (result.points3D - points)[result.valid]
    sight = points[result.valid] / np.linalg.norm(
        points[result.valid], axis=1, keepdims=True
    )
    across2 = np.sum(off**2, axis=1) - np.sum(off * sight, axis=1) ** 2
    ratio = np.median(across2 / (2 * result.sigmas[result.valid] ** 2))
    # The median of chi-square with two degrees of freedom is 0.69 of its mean.
    assert 0.5 < ratio < 1.0


def test_points_behind_a_camera_are_refused(rng):
    views = [look_from(x) for x in (-0.5, 0.5)]
    behind = rng.uniform([-1, -1, -6], [1, 1, -3], (50, 3))
    in_front = behind * [1, 1, -1]
    observations = observe(in_front, views, rng)
    # Swapped views make the rays meet behind.
    swapped = Observations(
        track_idx=observations.track_idx,
        view_idx=1 - observations.view_idx,
        pixels=observations.pixels,
        pixel_sigma=observations.pixel_sigma,
        depth=observations.depth,
        depth_sigma=observations.depth_sigma,
    )
    result = triangulate_tracks(swapped, views, TriangulationOptions())
    assert result.valid.mean() < 0.1
