"""RELATIVE on exact places, and where two views do not tell."""

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
from edgeloc.localize.coarse import CoarseCalibration
from edgeloc.localize.fix import FixCalibration
from edgeloc.localize.relative import (
    RelativeOptions,
    RelativePose,
    localize_by_relative,
    meeting_poses,
)
from edgeloc.types import Cause, PoseStatus, Rung

COARSE = CoarseCalibration(
    min_score=0.1, position_sigma=0.5, rotation_sigma_rad=0.1, keyframe_spacing=0.3
)


PLAIN = FixCalibration()


def localize(world, calibration=PLAIN):
    return localize_by_relative(
        world.query,
        world.views,
        world.matches(),
        calibration=calibration,
        coarse=COARSE,
        options=RelativeOptions(),
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [box_points, plane_points])
def test_an_exact_place_with_wrong_matches(seed, make):
    rng = np.random.default_rng(seed)
    world = make_world(rng, make(rng), truth=TRUTH, keyframes=AROUND)
    answer = localize(world)
    assert (answer.status, answer.rung) == (PoseStatus.LOCALIZED, Rung.RELATIVE)
    assert world.error(answer.cam_from_world) < 0.02
    turn = rotation_angle_rad(answer.cam_from_world.R @ TRUTH.R.T)
    assert np.rad2deg(turn) < 0.25
    # Features of the frame, however many keyframes each was matched with.
    assert answer.num_matches == len(np.unique(world.matches().query_idx))
    assert 0.5 * answer.num_matches < answer.num_inliers <= answer.num_matches
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
    assert world.error(localize(world).cam_from_world) < 0.02


def test_directions_meet_in_the_camera():
    said = [
        RelativePose(
            view_idx=i,
            R=TRUTH.R,
            direction=unit(TRUTH.origin_in_a - pose.origin_in_a),
            num_inliers=50,
        )
        for i, pose in enumerate(AROUND)
    ]
    centers = np.array([pose.origin_in_a for pose in AROUND])
    found = meeting_poses(said, centers, options=RelativeOptions())
    assert len(found) == 6
    for pose in found:
        assert np.allclose(pose.origin_in_a, TRUTH.origin_in_a, atol=1e-9)
        assert np.allclose(pose.R, TRUTH.R, atol=1e-9)
    behind = [replace(said[0], direction=-said[0].direction), *said[1:]]
    assert len(meeting_poses(behind, centers, options=RelativeOptions())) == 3
    turned = pose_at([0, 0, 0], [0, 0.5, 0]).R @ TRUTH.R
    other = [replace(said[0], R=turned), *said[1:]]
    assert len(meeting_poses(other, centers, options=RelativeOptions())) == 3


def unit(v):
    return v / np.linalg.norm(v)


def test_one_keyframe_alone_is_coarse():
    rng = np.random.default_rng(2)
    world = make_world(rng, box_points(rng), truth=TRUTH, keyframes=AROUND[:1])
    answer = localize(world)
    assert (answer.status, answer.rung) == (PoseStatus.COARSE, Rung.RELATIVE)
    assert answer.cause is Cause.AMBIGUOUS
    assert 30 <= answer.num_inliers <= answer.num_matches
    turn = rotation_angle_rad(answer.cam_from_world.R @ TRUTH.R.T)
    assert np.rad2deg(turn) < 1.0
    center = answer.cam_from_world.origin_in_a
    assert np.allclose(center, AROUND[0].origin_in_a)
    assert np.allclose(answer.covariance[3:, 3:], 0.25 * np.eye(3))


@pytest.mark.parametrize("places", [(-0.9, -0.5, 0.6), (-1.3, -0.9, -0.5)])
def test_all_on_one_line_is_never_a_wrong_fix(places):
    """Who walks straight on learns the scale from small deviations, or not at all."""
    coarse = 0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        line = [pose_at([0.1, 0, z], [0, 0.02 * z, 0]) for z in places]
        world = make_world(
            rng, box_points(rng), truth=pose_at([0.1, 0.0, 0.0]), keyframes=line
        )
        answer = localize(world)
        turn = rotation_angle_rad(answer.cam_from_world.R @ world.truth.R.T)
        assert np.rad2deg(turn) < 1.5
        sigma = np.sqrt(np.trace(answer.covariance[3:, 3:]))
        assert world.error(answer.cam_from_world) < 3 * sigma
        if answer.status is PoseStatus.COARSE:
            coarse += 1
            center = answer.cam_from_world.origin_in_a
            assert any(np.allclose(center, pose.origin_in_a) for pose in line)
        else:
            assert sigma > 0.02
    assert coarse >= 2


def test_where_a_keyframe_was_the_others_tell():
    rng = np.random.default_rng(3)
    here = [TRUTH, *AROUND[:3]]
    world = make_world(rng, box_points(rng), truth=TRUTH, keyframes=here)
    answer = localize(world)
    assert answer.status is PoseStatus.LOCALIZED
    assert world.error(answer.cam_from_world) < 0.02


def test_pure_rotation_is_no_fix():
    """All keyframes where the camera is: the rotation is known, the rest is not."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        center = TRUTH.origin_in_a
        turned = [pose_at(center, [0.02 * i, 0.05 * i - 0.1, 0]) for i in range(4)]
        world = make_world(rng, box_points(rng), truth=TRUTH, keyframes=turned)
        answer = localize(world)
        assert answer.status is PoseStatus.COARSE
        turn = rotation_angle_rad(answer.cam_from_world.R @ TRUTH.R.T)
        assert np.rad2deg(turn) < 1.0
        assert world.error(answer.cam_from_world) < 1e-9


def test_the_calibration_is_applied():
    rng = np.random.default_rng(4)
    world = make_world(rng, box_points(rng), truth=TRUTH, keyframes=AROUND)
    plain, wide = localize(world), localize(world, FixCalibration(scale=9.0))
    assert np.allclose(wide.covariance, 9.0 * plain.covariance)


def test_the_same_twice():
    rng = np.random.default_rng(5)
    world = make_world(rng, box_points(rng), truth=TRUTH, keyframes=AROUND)
    a, b = localize(world), localize(world)
    assert np.array_equal(a.cam_from_world.t, b.cam_from_world.t)


def test_another_place_is_lost():
    rng = np.random.default_rng(6)
    world = make_world(rng, box_points(rng), truth=TRUTH, keyframes=AROUND)
    other = make_world(rng, box_points(rng), truth=TRUTH, keyframes=AROUND)
    answer = localize(replace(world, query=other.query))
    assert answer.status is PoseStatus.LOST
    assert answer.cause in {Cause.FEW_MATCHES, Cause.FEW_INLIERS}
    few = make_world(rng, box_points(rng, 8), truth=TRUTH, keyframes=AROUND)
    assert localize(few).cause is Cause.FEW_FEATURES
