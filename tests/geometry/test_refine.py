"""Robust refinement: derivatives, accuracy, robustness and an honest covariance."""

from __future__ import annotations

import numpy as np
import pytest
from geometry_cases import CAMERAS, make_scene, pose_error
from scipy.stats import chi2

from edgeloc.geometry.camera import project
from edgeloc.geometry.refine import RefineOptions, pose_jacobian, refine_pose
from edgeloc.geometry.se3 import exp_se3, log_se3, skew
from edgeloc.types import Rigid3

all_cameras = pytest.mark.parametrize("camera", CAMERAS.values(), ids=CAMERAS.keys())
NUM_TRIALS = 400


def refine(scene, start, **keywords):
    return refine_pose(
        points2D=scene.points2D,
        points3D=scene.points3D,
        camera=scene.camera,
        cam_from_world=start,
        **keywords,
    )


def nudge(rng, size):
    return exp_se3(size * rng.normal(size=6))


@all_cameras
def test_pose_jacobian_is_the_central_difference(camera, rng):
    scene = make_scene(rng, camera=camera, num_points=50)
    pixels, jac, in_front = pose_jacobian(camera, scene.cam_from_world, scene.points3D)
    assert in_front.all()
    np.testing.assert_allclose(pixels, scene.points2D, atol=1e-8)
    step = 1e-6
    for column, direction in enumerate(np.eye(6)):
        ahead, _, _ = pose_jacobian(
            camera, exp_se3(step * direction) @ scene.cam_from_world, scene.points3D
        )
        behind, _, _ = pose_jacobian(
            camera, exp_se3(-step * direction) @ scene.cam_from_world, scene.points3D
        )
        expected = (ahead - behind) / (2.0 * step)
        scale = np.linalg.norm(jac, axis=(1, 2))[:, None]
        assert np.max(np.abs(jac[:, :, column] - expected) / scale) < 1e-5


@all_cameras
def test_exact_data_give_the_exact_pose(camera, rng):
    scene = make_scene(rng, camera=camera, num_points=40)
    refined = refine(scene, nudge(rng, 0.03) @ scene.cam_from_world)
    angle_rad, distance_m = pose_error(refined.cam_from_world, scene.cam_from_world)
    assert angle_rad < 1e-6
    assert distance_m < 1e-5
    assert refined.reproj_rmse_px < 1e-3
    np.testing.assert_allclose(refined.weights, 1.0, atol=1e-6)
    assert refined.num_iterations <= 10


@pytest.mark.parametrize("with_point_sigmas", [False, True])
@pytest.mark.parametrize("name", ["pinhole", "full_opencv_tum_fr1", "fisheye_tumvi"])
def test_covariance_is_honest(name, with_point_sigmas, rng):
    """Mean of xi^T C^-1 xi is 6, xi = log(true @ est^-1), over 400 drawn scenes.

    The camera stands about 9 m from the origin of the world, where mixing up the left
    and the right perturbation shows.
    """
    nees, sigmas, distances_m = [], None, []
    for _ in range(NUM_TRIALS):
        if with_point_sigmas:
            sigmas = rng.uniform(0.0, 0.04, 200)
        scene = make_scene(
            rng,
            camera=CAMERAS[name],
            num_points=200,
            noise_px=1.0,
            point_sigmas=sigmas,
        )
        refined = refine(scene, scene.cam_from_world, point_sigmas=sigmas)
        xi = log_se3(scene.cam_from_world @ refined.cam_from_world.inverse())
        nees.append(xi @ np.linalg.solve(refined.covariance, xi))
        distances_m.append(np.linalg.norm(scene.cam_from_world.origin_in_a))
    low, high = chi2.ppf([0.025, 0.975], 6 * NUM_TRIALS) / NUM_TRIALS
    assert np.mean(distances_m) > 7.0
    assert low < np.mean(nees) < high


def test_the_nees_above_would_show_the_wrong_perturbation(rng):
    """The same covariance read as that of a right perturbation is far off."""
    wrong = []
    for _ in range(100):
        scene = make_scene(rng, num_points=100, noise_px=1.0)
        refined = refine(scene, scene.cam_from_world)
        xi = log_se3(refined.cam_from_world.inverse() @ scene.cam_from_world)
        wrong.append(xi @ np.linalg.solve(refined.covariance, xi))
    assert np.mean(wrong) > 20.0


def test_larger_residuals_than_announced_widen_the_covariance(rng):
    scene = make_scene(rng, num_points=300, noise_px=3.0)
    honest = refine(
        scene,
        scene.cam_from_world,
        pixel_sigmas=np.full(300, 3.0),
        options=RefineOptions(loss_scale=5.0),
    )
    announced = refine(
        scene, scene.cam_from_world, options=RefineOptions(loss_scale=15.0)
    )
    ratio = np.diag(announced.covariance) / np.diag(honest.covariance)
    np.testing.assert_allclose(ratio, 1.0, atol=0.3)


def test_smaller_residuals_than_announced_do_not_shrink_it(rng):
    scene = make_scene(rng, num_points=300, noise_px=0.0)
    one = refine(scene, scene.cam_from_world)
    two = refine(scene, scene.cam_from_world, pixel_sigmas=np.full(300, 2.0))
    np.testing.assert_allclose(two.covariance, 4.0 * one.covariance, rtol=1e-6)


def test_coarse_image_points_count_as_much_as_they_are_worth(rng):
    """Told which points are noisy, the pose is better and its covariance honest."""
    nees, told_m, untold_m = [], [], []
    for _ in range(100):
        spreads = rng.choice([0.5, 3.0], 200)
        scene = make_scene(rng, num_points=200, noise_px=0.0)
        noisy = scene.points2D + spreads[:, None] * rng.normal(size=(200, 2))
        told, untold = (
            refine_pose(
                points2D=noisy,
                points3D=scene.points3D,
                camera=scene.camera,
                cam_from_world=scene.cam_from_world,
                pixel_sigmas=sigmas,
            )
            for sigmas in (spreads, None)
        )
        xi = log_se3(scene.cam_from_world @ told.cam_from_world.inverse())
        nees.append(xi @ np.linalg.solve(told.covariance, xi))
        told_m.append(pose_error(told.cam_from_world, scene.cam_from_world)[1])
        untold_m.append(pose_error(untold.cam_from_world, scene.cam_from_world)[1])
    low, high = chi2.ppf([0.01, 0.99], 600) / 100
    assert low < np.mean(nees) < high
    assert np.mean(told_m) < 0.9 * np.mean(untold_m)


def test_outliers_hardly_move_the_pose(rng):
    scene = make_scene(rng, num_points=200, outlier_ratio=0.4, noise_px=0.5)
    start = nudge(rng, 0.01) @ scene.cam_from_world
    refined = refine(scene, start)
    angle_rad, distance_m = pose_error(refined.cam_from_world, scene.cam_from_world)
    assert angle_rad < 2e-3
    assert distance_m < 0.01
    assert np.median(refined.weights[scene.good]) > 0.9
    assert np.median(refined.weights[~scene.good]) < 0.01
    assert refined.reproj_rmse_px < 1.0


def test_an_uncertain_point_counts_less(rng):
    scene = make_scene(rng, num_points=60, noise_px=0.3)
    moved = scene.points3D.copy()
    moved[:20] += 0.02
    errors_m = []
    for sigma_m in (0.0, 0.02):
        refined = refine_pose(
            points2D=scene.points2D,
            points3D=moved,
            camera=scene.camera,
            cam_from_world=scene.cam_from_world,
            point_sigmas=np.where(np.arange(60) < 20, sigma_m, 0.0),
        )
        errors_m.append(pose_error(refined.cam_from_world, scene.cam_from_world)[1])
    assert errors_m[1] < 0.5 * errors_m[0]


def test_points_that_are_not_finite_or_behind_have_no_weight(rng):
    scene = make_scene(rng, num_points=50)
    points2D, points3D = scene.points2D.copy(), scene.points3D.copy()
    points2D[0, 0], points3D[1, 2] = np.nan, np.inf
    points3D[2] = scene.cam_from_world.inverse().transform([0.0, 0.0, -3.0])
    refined = refine_pose(
        points2D=points2D,
        points3D=points3D,
        camera=scene.camera,
        cam_from_world=nudge(rng, 0.005) @ scene.cam_from_world,
    )
    assert refined.weights[:3].tolist() == [0.0, 0.0, 0.0]
    assert refined.weights[3:].min() > 0.99
    assert pose_error(refined.cam_from_world, scene.cam_from_world)[1] < 1e-5


@pytest.mark.parametrize("num_points", [0, 1, 2])
def test_too_few_points_keep_the_pose_and_say_that_nothing_is_known(num_points, rng):
    scene = make_scene(rng, num_points=num_points)
    start = nudge(rng, 0.01) @ scene.cam_from_world
    refined = refine(scene, start)
    np.testing.assert_allclose(refined.cam_from_world.R, start.R, atol=1e-12)
    np.testing.assert_array_equal(refined.cam_from_world.t, start.t)
    assert np.isfinite(refined.covariance).all()
    assert np.linalg.eigvalsh(refined.covariance)[-1] > 1e3


def test_all_points_behind_keep_the_pose(rng):
    scene = make_scene(rng, num_points=20)
    turned = Rigid3(R=np.diag([-1.0, 1.0, -1.0]), t=np.zeros(3)) @ scene.cam_from_world
    refined = refine(scene, turned)
    assert refined.reproj_rmse_px == 0.0
    assert not refined.weights.any()
    assert np.diag(refined.covariance).min() > 1e6


def test_points_on_a_line_leave_the_turn_about_it_open(rng):
    scene = make_scene(rng, num_points=2)
    ends = scene.points3D
    points3D = ends[0] + np.linspace(0, 1, 20)[:, None] * (ends[1] - ends[0])
    points2D, _ = project(scene.camera, scene.cam_from_world.transform(points3D))
    refined = refine_pose(
        points2D=points2D,
        points3D=points3D,
        camera=scene.camera,
        cam_from_world=scene.cam_from_world,
    )
    assert np.isfinite(refined.covariance).all()
    assert np.linalg.eigvalsh(refined.covariance[:3, :3])[-1] > 1.0


def test_agrees_with_pycolmap(rng):
    """Same optimum; its covariance needs converting from quaternion units first."""
    pycolmap = pytest.importorskip("pycolmap")
    scene = make_scene(rng, num_points=150, noise_px=0.5)
    camera = pycolmap.Camera(
        model=scene.camera.model,
        width=scene.camera.width,
        height=scene.camera.height,
        params=list(scene.camera.params),
    )
    truth = scene.cam_from_world
    options = pycolmap.AbsolutePoseRefinementOptions()
    options.loss_function_scale = 100.0
    peer = pycolmap.refine_absolute_pose(
        pycolmap.Rigid3d(np.hstack([truth.R, truth.t[:, None]])),
        scene.points2D,
        scene.points3D,
        np.ones(150, dtype=bool),
        camera,
        refinement_options=options,
        return_covariance=True,
    )
    refined = refine(
        scene,
        nudge(rng, 0.01) @ truth,
        options=RefineOptions(loss_scale=100.0, tolerance=1e-6),
    )
    matrix = np.asarray(peer["cam_from_world"].matrix())
    np.testing.assert_allclose(refined.cam_from_world.R, matrix[:, :3], atol=1e-6)
    np.testing.assert_allclose(refined.cam_from_world.t, matrix[:, 3], atol=3e-5)
    to_se3 = np.diag([2.0, 2.0, 2.0, 1.0, 1.0, 1.0])
    to_se3[3:, :3] = 2.0 * skew(refined.cam_from_world.t)
    converted = to_se3 @ np.asarray(peer["covariance"]) @ to_se3.T
    np.testing.assert_allclose(
        refined.covariance, converted, atol=0.01 * np.abs(converted).max()
    )


def test_wrong_arguments_are_refused(rng):
    scene = make_scene(rng, num_points=5)
    with pytest.raises(ValueError, match=r"expected \(M, 2\) and \(M, 3\)"):
        refine_pose(
            points2D=scene.points2D[:4],
            points3D=scene.points3D,
            camera=scene.camera,
            cam_from_world=scene.cam_from_world,
        )
    with pytest.raises(ValueError, match=r"point_sigmas of shape \(4,\)"):
        refine(scene, scene.cam_from_world, point_sigmas=np.zeros(4))
    with pytest.raises(ValueError, match="and >= 0"):
        refine(scene, scene.cam_from_world, point_sigmas=np.full(5, -1.0))
    with pytest.raises(ValueError, match=r"pixel_sigmas of shape \(4,\) must be"):
        refine(scene, scene.cam_from_world, pixel_sigmas=np.ones(4))
    with pytest.raises(ValueError, match=r"\(5,\) and > 0"):
        refine(scene, scene.cam_from_world, pixel_sigmas=np.zeros(5))
    for options in (
        {"loss_scale": float("nan")},
        {"loss_scale": 0.5},
        {"max_iterations": 0},
        {"tolerance": -1.0},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(options))}.*must be"):
            RefineOptions(**options)
