"""LOCAL_SFM on exact places: points on the fly, gates, honest causes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from keyframe_world import (
    AROUND,
    CAMERA,
    TRUTH,
    WIDE,
    box_points,
    make_world,
    plane_points,
    pose_at,
)

from edgeloc.geometry.se3 import log_se3, rotation_angle_rad
from edgeloc.geometry.triangulate import TriangulationOptions
from edgeloc.localize.fix import FixCalibration
from edgeloc.localize.local_sfm import (
    LocalSfmOptions,
    localize_by_local_sfm,
    triangulate_matches,
)
from edgeloc.types import Cause, PoseStatus, Rung

PLAIN = FixCalibration()


def localize(world, calibration=PLAIN):
    return localize_by_local_sfm(
        world.query,
        world.views,
        world.matches(),
        calibration=calibration,
        options=LocalSfmOptions(),
    )


def test_points_come_from_the_keyframes_alone():
    rng = np.random.default_rng(0)
    points = box_points(rng)
    world = make_world(
        rng, points, truth=TRUTH, keyframes=AROUND, noise_px=0.0, wrong=0.0
    )
    found, sigmas = triangulate_matches(
        world.query, world.views, world.matches(), TriangulationOptions()
    )
    off = np.linalg.norm(points[:, None] - found.points3D[None], axis=2).min(axis=0)
    assert len(found) > 100
    assert off.max() < 1e-4
    assert np.all(sigmas > 0)
    assert np.all(found.point3D_ids < 0)
    pixels = world.query.features.keypoints[-1 - found.point3D_ids]
    assert np.array_equal(found.points2D, pixels.astype(np.float64))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [box_points, plane_points])
def test_an_exact_place_with_wrong_matches(seed, make):
    rng = np.random.default_rng(seed)
    world = make_world(rng, make(rng), truth=TRUTH, keyframes=AROUND)
    answer = localize(world)
    assert (answer.status, answer.rung) == (PoseStatus.LOCALIZED, Rung.LOCAL_SFM)
    assert world.error(answer.cam_from_world) < 0.01
    turn = rotation_angle_rad(answer.cam_from_world.R @ TRUTH.R.T)
    assert np.rad2deg(turn) < 0.15
    assert answer.num_inliers > 50
    xi = log_se3(TRUTH @ answer.cam_from_world.inverse())
    assert xi @ np.linalg.solve(answer.covariance, xi) < 40


def test_other_cameras_with_distortion():
    rng = np.random.default_rng(1)
    world = make_world(
        rng,
        box_points(rng),
        truth=TRUTH,
        keyframes=AROUND,
        cameras=[WIDE, CAMERA, WIDE, CAMERA],
    )
    assert world.error(localize(world).cam_from_world) < 0.01


def test_keyframes_at_one_place_give_no_points():
    rng = np.random.default_rng(2)
    here = [pose_at([0.3, 0, 0], [0, 0.05 * i, 0]) for i in range(4)]
    world = make_world(rng, box_points(rng), truth=TRUTH, keyframes=here)
    answer = localize(world)
    assert answer.status is PoseStatus.LOST
    assert answer.cause in {Cause.FEW_MATCHES, Cause.FEW_INLIERS}


def test_the_calibration_is_applied():
    rng = np.random.default_rng(3)
    world = make_world(rng, box_points(rng), truth=TRUTH, keyframes=AROUND)
    plain = localize(world)
    wide = localize(world, FixCalibration(scale=9.0))
    assert np.allclose(wide.covariance, 9.0 * plain.covariance)


def test_the_same_twice():
    rng = np.random.default_rng(4)
    world = make_world(rng, box_points(rng), truth=TRUTH, keyframes=AROUND)
    a, b = localize(world), localize(world)
    assert np.array_equal(a.cam_from_world.t, b.cam_from_world.t)


def test_another_place_is_not_localized():
    rng = np.random.default_rng(5)
    world = make_world(rng, box_points(rng), truth=TRUTH, keyframes=AROUND)
    other = make_world(rng, box_points(rng), truth=TRUTH, keyframes=AROUND)
    for query in (
        other.query,
        replace(other.query, descriptors=other.query.descriptors),
    ):
        answer = localize(replace(world, query=query))
        assert answer.status is PoseStatus.LOST
        assert answer.cause in {Cause.FEW_MATCHES, Cause.FEW_INLIERS}


def test_a_blank_picture():
    rng = np.random.default_rng(6)
    world = make_world(rng, box_points(rng, 8), truth=TRUTH, keyframes=AROUND)
    assert localize(world).cause is Cause.FEW_FEATURES
    world = make_world(rng, box_points(rng), truth=TRUTH, keyframes=AROUND[:1])
    assert localize(world).cause is Cause.FEW_MATCHES
