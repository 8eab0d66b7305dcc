"""The focal length along with the pose: derivatives, an honest sigma, wrong cameras."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from geometry_cases import CAMERAS, make_scene, random_pose
from scipy.stats import chi2

from edgeloc.geometry.camera import project, unproject
from edgeloc.geometry.focal import fit_focal, scale_focal
from edgeloc.geometry.pnp import PnpOptions, estimate_pose
from edgeloc.geometry.refine import RefineOptions, refine_pose
from edgeloc.geometry.se3 import exp_se3
from edgeloc.types import CameraModel, Matches2D3D

NUM_TRIALS = 120
FREE = RefineOptions(free_focal=True)

all_cameras = pytest.mark.parametrize("camera", CAMERAS.values(), ids=CAMERAS.keys())


def refine_free(scene, camera):
    return refine_pose(
        points2D=scene.points2D,
        points3D=scene.points3D,
        camera=camera,
        cam_from_world=scene.cam_from_world,
        options=FREE,
    )


@all_cameras
def test_only_focal_lengths_are_scaled(camera):
    scaled = scale_focal(camera, 1.25)
    assert scaled.focal_px == tuple(1.25 * f for f in camera.focal_px)
    assert scaled.principal_point_px == camera.principal_point_px
    assert scaled.distortion == camera.distortion


@all_cameras
def test_the_information_is_that_of_central_differences(camera, rng):
    """Without noise, the covariance is a constant times (J^T J)^-1 of 7 parameters."""
    scene = make_scene(rng, camera=camera, num_points=60)
    step = 1e-6

    def pixels(xi):
        moved = exp_se3(xi[:6]) @ scene.cam_from_world
        scaled = scale_focal(camera, math.exp(xi[6]))
        return project(scaled, moved.transform(scene.points3D))[0].ravel()

    jac = np.stack(
        [(pixels(step * d) - pixels(-step * d)) / (2.0 * step) for d in np.eye(7)], 1
    )
    expected = np.linalg.inv(jac.T @ jac)
    refined = refine_free(scene, camera)
    constant = refined.log_focal_sigma**2 / expected[6, 6]
    assert 0.8 < constant < 1.0  # what the loss costs when noise is Gaussian
    size = np.sqrt(np.diag(expected)[:6])
    off = refined.covariance / constant - expected[:6, :6]
    assert np.max(np.abs(off) / np.outer(size, size)) < 1e-4


@all_cameras
def test_exact_data_give_the_exact_focal_length(camera, rng):
    scene = make_scene(rng, camera=camera, num_points=60)
    refined = refine_free(scene, scale_focal(camera, 1.0 / 1.1))
    assert refined.log_focal == pytest.approx(math.log(1.1), abs=1e-4)
    assert refined.reproj_rmse_px < 0.02


def test_a_pose_alone_leaves_the_focal_length_where_it_is(rng):
    scene = make_scene(rng, num_points=60)
    refined = refine_pose(
        points2D=scene.points2D,
        points3D=scene.points3D,
        camera=scene.camera,
        cam_from_world=scene.cam_from_world,
    )
    assert (refined.log_focal, refined.log_focal_sigma) == (0.0, 0.0)


def test_the_sigma_is_honest(rng):
    """Mean of (error / sigma)^2 over drawn scenes is 1, in the 95 % band."""
    squares = []
    for _ in range(NUM_TRIALS):
        scene = make_scene(rng, num_points=120, noise_px=1.0)
        refined = refine_free(scene, scene.camera)
        squares.append((refined.log_focal / refined.log_focal_sigma) ** 2)
    low, high = chi2.ppf([0.025, 0.975], NUM_TRIALS) / NUM_TRIALS
    assert low < np.mean(squares) < high


@pytest.mark.parametrize(("slope", "low", "high"), [(0.0, 1.0, 1e6), (0.8, 0.0, 0.05)])
def test_a_plane_tells_it_only_when_looked_at_askance(slope, low, high, rng):
    camera = CAMERAS["pinhole"]
    seeds = rng.uniform([30.0, 30.0], [610.0, 450.0], (150, 2))
    rays = unproject(camera, seeds)
    rays /= rays[:, 2:]
    in_cam = rays * (4.0 / (1.0 - slope * rays[:, 0]))[:, None]
    cam_from_world = random_pose(rng)
    matches = Matches2D3D(
        points2D=seeds + rng.normal(size=seeds.shape),
        points3D=cam_from_world.inverse().transform(in_cam),
        point3D_ids=np.arange(150),
        scores=np.ones(150, np.float32),
    )
    fit = fit_focal(matches, camera, cam_from_world)
    assert fit is not None
    assert low < fit.sigma < high


@pytest.mark.parametrize("factor", [0.3, 0.5, 0.7, 0.84, 0.95, 1.05, 1.2, 1.5, 2.0])
def test_the_pose_of_a_wrong_camera_leads_to_the_right_one(factor, rng):
    """Half of the matches are wrong, and the fix calls right ones outliers."""
    scene = make_scene(rng, num_points=300, outlier_ratio=0.5, noise_px=0.7)
    camera = scale_focal(scene.camera, factor)
    matches = scene.matches(rng)
    fix = estimate_pose(matches, camera, options=PnpOptions(backend="opencv"))
    assert fix is not None
    fit = fit_focal(matches, camera, fix.cam_from_world)
    assert fit is not None
    assert fit.log_focal == pytest.approx(-math.log(factor), abs=0.02)
    assert fit.sigma < 0.01


def test_too_few_points_tell_nothing(rng):
    scene = make_scene(rng, num_points=40)
    matches = scene.matches(rng)
    aside = np.zeros((40, 2))
    aside[7:] = 100.0
    far = replace(matches, points2D=matches.points2D + aside)
    assert fit_focal(far, scene.camera, scene.cam_from_world) is None


def test_points_behind_the_camera_are_left_out(rng):
    scene = make_scene(rng, num_points=80, noise_px=0.5)
    matches = scene.matches(rng)
    behind = scene.cam_from_world.inverse().transform([[0.0, 0.0, -3.0]])
    points3D = np.where(np.arange(80)[:, None] < 30, behind, matches.points3D)
    fit = fit_focal(
        replace(matches, points3D=points3D),
        scene.camera,
        scene.cam_from_world,
        point_sigmas=np.full(80, 0.001),
        pixel_sigmas=np.full(80, 0.5),
    )
    assert fit is not None
    assert abs(fit.log_focal) < 5.0 * fit.sigma < 0.1


def test_a_camera_without_end_is_none(rng):
    """Pixels that shrink to one spot would be fitted by no lens at all."""
    scene = make_scene(rng, num_points=60)
    center = np.array(scene.camera.principal_point_px)
    matches = scene.matches(rng)
    shrunk = replace(matches, points2D=center + 0.01 * (matches.points2D - center))
    narrow = CameraModel(
        model="PINHOLE", width=40_000, height=40_000, params=scene.camera.params
    )
    assert fit_focal(shrunk, narrow, scene.cam_from_world) is None
