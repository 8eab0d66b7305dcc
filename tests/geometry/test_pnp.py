"""Absolute pose among outliers, with both samplers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from geometry_cases import CAMERAS, Scene, make_scene, pose_error

from edgeloc.errors import BackendUnavailableError
from edgeloc.geometry import pnp
from edgeloc.geometry.camera import normalized_from_pixels, project
from edgeloc.geometry.pnp import PnpOptions, estimate_pose, solve_p3p
from edgeloc.geometry.refine import refine_pose
from edgeloc.geometry.se3 import exp_se3, log_se3
from edgeloc.types import Matches2D3D

all_cameras = pytest.mark.parametrize("camera", CAMERAS.values(), ids=CAMERAS.keys())


@pytest.fixture(params=["opencv", "poselib"])
def backend(request):
    if request.param == "poselib":
        pytest.importorskip("poselib")
    return request.param


def as_matches(points2D, points3D, scores=None):
    m = len(points2D)
    return Matches2D3D(
        points2D=points2D,
        points3D=points3D,
        point3D_ids=np.arange(m),
        scores=np.ones(m, np.float32) if scores is None else scores,
    )


@all_cameras
def test_exact_matches_give_the_exact_pose(camera, backend, rng):
    scene = make_scene(rng, camera=camera, num_points=50)
    result = estimate_pose(
        scene.matches(rng), camera, options=PnpOptions(backend=backend)
    )
    angle_rad, distance_m = pose_error(result.cam_from_world, scene.cam_from_world)
    assert angle_rad < 1e-6
    assert distance_m < 1e-5
    assert result.num_inliers == 50
    assert result.reproj_rmse_px < 1e-3
    assert result.backend == backend


@pytest.mark.parametrize(
    ("num_points", "outlier_ratio"), [(100, 0.3), (300, 0.5), (200, 0.7), (1000, 0.8)]
)
@pytest.mark.parametrize("name", ["pinhole", "full_opencv_tum_fr1", "fisheye_tumvi"])
def test_outliers_are_found(name, num_points, outlier_ratio, backend, rng):
    scene = make_scene(
        rng,
        camera=CAMERAS[name],
        num_points=num_points,
        outlier_ratio=outlier_ratio,
        noise_px=0.7,
    )
    result = estimate_pose(
        scene.matches(rng), scene.camera, options=PnpOptions(backend=backend)
    )
    angle_rad, distance_m = pose_error(result.cam_from_world, scene.cam_from_world)
    assert angle_rad < 4e-3
    assert distance_m < 0.02
    assert result.inlier_mask[scene.good].mean() > 0.98
    assert result.inlier_mask[~scene.good].mean() < 0.02
    xi = log_se3(scene.cam_from_world @ result.cam_from_world.inverse())
    assert xi @ np.linalg.solve(result.covariance, xi) < 22.5  # 99.9 % of chi2(6)


def test_the_order_of_the_matches_does_not_matter(backend, rng):
    scene = make_scene(rng, num_points=200, outlier_ratio=0.5, noise_px=0.7)
    options = PnpOptions(backend=backend)
    matches = scene.matches(rng)
    first = estimate_pose(matches, scene.camera, options=options)
    for _ in range(5):
        order = rng.permutation(200)
        shuffled = as_matches(
            scene.points2D[order], scene.points3D[order], matches.scores[order]
        )
        other = estimate_pose(shuffled, scene.camera, options=options)
        np.testing.assert_array_equal(other.inlier_mask, first.inlier_mask[order])
        sigma = np.sqrt(np.diag(first.covariance))
        xi = log_se3(first.cam_from_world @ other.cam_from_world.inverse())
        assert np.max(np.abs(xi) / sigma) < 0.02


def test_the_same_seed_gives_the_same_bits(backend, rng):
    scene = make_scene(rng, num_points=150, outlier_ratio=0.6, noise_px=1.0)
    matches = scene.matches(rng)
    options = PnpOptions(backend=backend, seed=7)
    first, second = (
        estimate_pose(matches, scene.camera, options=options) for _ in range(2)
    )
    assert first.cam_from_world.R.tobytes() == second.cam_from_world.R.tobytes()
    assert first.cam_from_world.t.tobytes() == second.cam_from_world.t.tobytes()
    assert first.covariance.tobytes() == second.covariance.tobytes()


def test_the_mask_belongs_to_the_refined_pose(backend, rng):
    scene = make_scene(rng, num_points=300, outlier_ratio=0.5, noise_px=1.5)
    result = estimate_pose(
        scene.matches(rng),
        scene.camera,
        options=PnpOptions(backend=backend, adapt_to_noise=False),
    )
    pixels, seen = project(
        scene.camera, result.cam_from_world.transform(scene.points3D)
    )
    errors_px = np.linalg.norm(pixels - scene.points2D, axis=1)
    expected = seen & (errors_px <= 4.0)
    np.testing.assert_array_equal(result.inlier_mask, expected)
    assert result.num_inliers == expected.sum()
    assert result.reproj_rmse_px == pytest.approx(
        np.sqrt(np.mean(errors_px[expected] ** 2))
    )
    again = refine_pose(
        points2D=scene.points2D[expected],
        points3D=scene.points3D[expected],
        camera=scene.camera,
        cam_from_world=result.cam_from_world,
    )
    difference = result.covariance - again.covariance
    assert np.linalg.norm(difference) < 0.02 * np.linalg.norm(again.covariance)


def test_fine_points_must_agree_more_closely_than_coarse_ones(backend, rng):
    """Points off by 1.5 px are inliers where that is their noise, only there."""
    scene = make_scene(rng, num_points=200, noise_px=0.0)
    spreads = np.where(np.arange(200) % 2, 5.0, 1.0)
    moved = scene.points2D + 0.2 * spreads[:, None] * rng.normal(size=(200, 2))
    off = np.arange(200) < 40
    moved[off] = scene.points2D[off] + [1.5, 0.0]
    scene = replace(scene, points2D=moved)
    result = estimate_pose(
        scene.matches(rng),
        scene.camera,
        options=PnpOptions(backend=backend),
        pixel_sigmas=spreads,
    )
    assert not result.inlier_mask[off & (spreads == 1.0)].any()
    assert result.inlier_mask[off & (spreads == 5.0)].all()
    assert result.inlier_mask[~off].mean() > 0.95


def test_sigmas_of_the_points_reach_the_covariance(backend, rng):
    sigmas = np.full(100, 0.02)
    scene = make_scene(rng, num_points=100, noise_px=0.3, point_sigmas=sigmas)
    options = PnpOptions(backend=backend, max_error_px=30.0)
    told = estimate_pose(
        scene.matches(rng), scene.camera, options=options, point_sigmas=sigmas
    )
    xi = log_se3(scene.cam_from_world @ told.cam_from_world.inverse())
    assert xi @ np.linalg.solve(told.covariance, xi) < 22.5
    with pytest.raises(ValueError, match=r"pixel_sigmas of shape \(3,\)"):
        estimate_pose(scene.matches(rng), scene.camera, pixel_sigmas=np.ones(3))
    with pytest.raises(ValueError, match=r"point_sigmas of shape \(3,\)"):
        estimate_pose(scene.matches(rng), scene.camera, point_sigmas=np.ones(3))


def test_far_from_the_origin_of_the_world(backend, rng):
    """UTM-sized coordinates must not cost accuracy."""
    scene = make_scene(rng, num_points=100, outlier_ratio=0.3, noise_px=0.5)
    offset = np.array([465_000.0, 5_248_000.0, 400.0])
    result = estimate_pose(
        as_matches(scene.points2D, scene.points3D + offset),
        scene.camera,
        options=PnpOptions(backend=backend),
    )
    centre = result.cam_from_world.origin_in_a - offset
    assert np.linalg.norm(centre - scene.cam_from_world.origin_in_a) < 0.02


@pytest.mark.parametrize("num_points", [0, 1, 2, 3])
def test_fewer_than_four_matches_give_none(num_points, backend, rng):
    scene = make_scene(rng, num_points=num_points)
    options = PnpOptions(backend=backend)
    assert estimate_pose(scene.matches(rng), scene.camera, options=options) is None


@pytest.mark.parametrize("num_points", [4, 5, 6, 8])
def test_few_exact_matches_are_enough(num_points, backend, rng):
    found = 0
    for _ in range(20):
        scene = make_scene(rng, num_points=num_points)
        result = estimate_pose(
            scene.matches(rng), scene.camera, options=PnpOptions(backend=backend)
        )
        if result is not None:
            error = pose_error(result.cam_from_world, scene.cam_from_world)
            found += error[1] < 1e-3
    assert found >= 18


def test_matches_that_are_not_finite_are_left_out(backend, rng):
    scene = make_scene(rng, num_points=60, noise_px=0.5)
    points2D, points3D = scene.points2D.copy(), scene.points3D.copy()
    points2D[0, 1], points2D[1, 0] = np.nan, np.inf
    points3D[2, 0], points3D[3, 2] = np.nan, -np.inf
    scores = np.linspace(0, 1, 60, dtype=np.float32)
    scores[4] = np.nan
    result = estimate_pose(
        as_matches(points2D, points3D, scores),
        scene.camera,
        options=PnpOptions(backend=backend),
    )
    assert not result.inlier_mask[:4].any()
    assert result.inlier_mask[4:].all()
    assert pose_error(result.cam_from_world, scene.cam_from_world)[1] < 0.02
    all_nan = as_matches(np.full((9, 2), np.nan), np.zeros((9, 3)))
    options = PnpOptions(backend=backend)
    assert estimate_pose(all_nan, scene.camera, options=options) is None


def degenerate(kind, rng) -> Scene:
    scene = make_scene(rng, num_points=40)
    points3D = scene.points3D.copy()
    if kind == "one point":
        points3D[:] = points3D[0]
    elif kind == "two points":
        points3D[:] = points3D[rng.integers(0, 2, 40)]
    elif kind == "a line":
        points3D = points3D[0] + rng.uniform(0, 1, (40, 1)) * (
            points3D[1] - points3D[0]
        )
    points2D, _ = project(scene.camera, scene.cam_from_world.transform(points3D))
    return Scene(scene.camera, scene.cam_from_world, points2D, points3D, scene.good)


@pytest.mark.parametrize("kind", ["one point", "two points", "a line"])
def test_degenerate_points_give_none(kind, backend, rng):
    for _ in range(10):
        scene = degenerate(kind, rng)
        for noise_px in (0.0, 0.5):
            points2D = scene.points2D + noise_px * rng.normal(size=(40, 2))
            result = estimate_pose(
                as_matches(points2D, scene.points3D),
                scene.camera,
                options=PnpOptions(backend=backend),
            )
            assert result is None


def test_points_in_a_plane_are_fine(backend, rng):
    scene = make_scene(rng, num_points=40)
    in_cam = scene.cam_from_world.transform(scene.points3D)
    in_cam[:, 2] = 5.0 + 0.3 * in_cam[:, 0]
    points3D = scene.cam_from_world.inverse().transform(in_cam)
    points2D, _ = project(scene.camera, in_cam)
    result = estimate_pose(
        as_matches(points2D, points3D),
        scene.camera,
        options=PnpOptions(backend=backend),
    )
    assert pose_error(result.cam_from_world, scene.cam_from_world)[1] < 1e-4


def test_one_image_point_for_all_landmarks_gives_none(backend, rng):
    scene = make_scene(rng, num_points=30)
    same = np.tile(scene.points2D[:1], (30, 1))
    result = estimate_pose(
        as_matches(same, scene.points3D),
        scene.camera,
        options=PnpOptions(backend=backend, min_inliers=8),
    )
    # Only a pose kilometres away could explain it: that is no answer either.
    assert result is None or result.covariance.max() > 1.0


def test_noise_alone_does_not_reach_min_inliers(backend, rng):
    scene = make_scene(rng, num_points=60, outlier_ratio=1.0)
    options = PnpOptions(backend=backend, min_inliers=15)
    assert estimate_pose(scene.matches(rng), scene.camera, options=options) is None


def test_wide_points_of_a_fisheye_count_as_inliers(backend, rng):
    """Up to 95 deg from the axis, where no plane z = 1 reaches."""
    camera = CAMERAS["fisheye_tumvi"]
    theta = np.concatenate([rng.uniform(0.1, 1.2, 60), rng.uniform(1.4, 1.65, 40)])
    phi = rng.uniform(0, 2 * np.pi, 100)
    bearings = np.stack(
        [np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], 1
    )
    in_cam = bearings * rng.uniform(2, 8, (100, 1))
    truth = make_scene(rng, num_points=1).cam_from_world
    points2D, seen = project(camera, in_cam)
    assert seen.all()
    result = estimate_pose(
        as_matches(points2D, truth.inverse().transform(in_cam)),
        camera,
        options=PnpOptions(backend=backend),
    )
    assert result.inlier_mask.all()
    assert pose_error(result.cam_from_world, truth)[1] < 1e-5


def test_only_wide_points_give_none(backend):
    camera = CAMERAS["fisheye_tumvi"]
    phi = np.linspace(0, 6, 20)
    in_cam = np.stack([np.cos(phi), np.sin(phi), 0 * phi], 1)
    points2D, _ = project(camera, in_cam)
    matches = as_matches(points2D, in_cam)
    options = PnpOptions(backend=backend)
    assert estimate_pose(matches, camera, options=options) is None


def test_auto_takes_poselib_where_it_is(monkeypatch):
    monkeypatch.setattr(pnp, "poselib_available", lambda: True)
    assert pnp.resolve_backend("auto") == "poselib"
    monkeypatch.setattr(pnp, "poselib_available", lambda: False)
    assert pnp.resolve_backend("auto") == "opencv"
    with pytest.raises(
        BackendUnavailableError, match=r"pip install 'edgeloc\[poselib\]'"
    ):
        pnp.resolve_backend("poselib")


def test_importing_does_not_load_poselib():
    import subprocess
    import sys

    code = "import sys, edgeloc.geometry.pnp; print('poselib' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_error_px": 0.0},
        {"max_error_px": float("nan")},
        {"inlier_sigmas": -1.0},
        {"confidence": 1.0},
        {"max_iterations": 0},
        {"min_inliers": 3},
        {"seed": -1},
        {"backend": "magic"},
    ],
)
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PnpOptions(**wrong)


def test_p3p_holds_the_true_pose_and_all_poses_explain_the_points(rng):
    found = 0
    for _ in range(50):
        scene = make_scene(rng, num_points=3)
        plane = normalized_from_pixels(scene.camera, scene.points2D)
        poses = solve_p3p(plane, scene.points3D)
        assert 1 <= len(poses) <= 4
        for pose in poses:
            in_cam = pose.transform(scene.points3D)
            np.testing.assert_allclose(in_cam[:, :2] / in_cam[:, 2:], plane, atol=1e-4)
        errors = [pose_error(pose, scene.cam_from_world)[1] for pose in poses]
        found += min(errors) < 1e-4
    assert found >= 49


def test_p3p_refuses_wrong_shapes_and_survives_degenerate_points():
    with pytest.raises(ValueError, match=r"expected \(3, 2\), \(3, 3\)"):
        solve_p3p(np.zeros((4, 2)), np.zeros((4, 3)))
    assert solve_p3p(np.full((3, 2), np.nan), np.eye(3)) == []
    line = np.array([[0.0, 0, 4], [1, 0, 4], [2, 0, 4]])
    for pose in solve_p3p(line[:, :2] / 4.0, line):
        assert np.all(pose.transform(line)[:, 2] > 0)


def test_noise_is_learned_from_the_inliers(backend, rng):
    """Announced as 1 px: covariances follow the real noise, smaller or larger."""
    scale = {}
    for noise_px in (0.3, 1.0, 2.0):
        ratios = []
        for _ in range(12):
            scene = make_scene(
                rng, num_points=200, outlier_ratio=0.3, noise_px=noise_px
            )
            result = estimate_pose(
                scene.matches(rng), scene.camera, options=PnpOptions(backend=backend)
            )
            xi = log_se3(scene.cam_from_world @ result.cam_from_world.inverse())
            ratios.append(xi @ np.linalg.solve(result.covariance, xi) / 6)
        scale[noise_px] = float(np.median(ratios))
    assert all(0.4 < value < 2.0 for value in scale.values()), scale


def test_a_prior_takes_the_place_of_sampling(rng):
    """From 5 cm and 2 degrees off; the answer is that of sampling."""
    camera = CAMERAS["pinhole"]
    scene = make_scene(rng, camera=camera, num_points=100, noise_px=0.5)
    matches = scene.matches(rng)
    prior = exp_se3([0.02, -0.02, 0.02, 0.03, 0.03, 0.03]) @ scene.cam_from_world
    guided = estimate_pose(matches, camera, prior=prior)
    sampled = estimate_pose(matches, camera)
    assert guided.backend == "prior"
    assert sampled.backend != "prior"
    off = log_se3(guided.cam_from_world @ sampled.cam_from_world.inverse())
    assert np.linalg.norm(off) < 1e-3
    np.testing.assert_array_equal(guided.inlier_mask, sampled.inlier_mask)


def test_a_prior_does_not_pull(rng):
    camera = CAMERAS["pinhole"]
    scene = make_scene(rng, camera=camera, num_points=100, noise_px=0.5)
    matches = scene.matches(rng)
    poses = [
        estimate_pose(
            matches, camera, prior=exp_se3(0.02 * rng.normal(size=6)) @ start
        ).cam_from_world
        for start in (scene.cam_from_world, scene.cam_from_world)
    ]
    off = log_se3(poses[0] @ poses[1].inverse())
    assert np.linalg.norm(off) < 1e-4


def test_a_prior_elsewhere_is_not_believed(rng):
    """It lies where hardly any match agrees: sampling finds the pose all the same."""
    camera = CAMERAS["pinhole"]
    scene = make_scene(rng, camera=camera, num_points=100, noise_px=0.5)
    away = exp_se3([0.0, 2.5, 0.0, 3.0, 0.0, 4.0]) @ scene.cam_from_world
    result = estimate_pose(scene.matches(rng), camera, prior=away)
    angle_rad, distance_m = pose_error(result.cam_from_world, scene.cam_from_world)
    assert result.backend != "prior"
    assert angle_rad < 0.01
    assert distance_m < 0.05


def test_without_adapting_to_noise_a_prior_is_refined_too(rng):
    camera = CAMERAS["pinhole"]
    scene = make_scene(rng, camera=camera, num_points=60, noise_px=0.5)
    options = PnpOptions(adapt_to_noise=False)
    result = estimate_pose(
        scene.matches(rng), camera, options=options, prior=scene.cam_from_world
    )
    assert result.backend == "prior"
    assert result.num_inliers == 60
    assert pose_error(result.cam_from_world, scene.cam_from_world)[1] < 0.05
