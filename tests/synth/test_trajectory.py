"""Camera paths."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgeloc.geometry.se3 import rotation_angle_rad
from edgeloc_tools.synth.trajectory import (
    look,
    rolling_poses,
    room_walk,
    street_drive,
)

EXTENT_M = (6.0, 5.0, 2.7)


def test_look_points_the_camera():
    pose = look((1.0, 2.0, 3.0), yaw_rad=np.pi / 2, pitch_rad=0.1)
    assert pose.origin_in_a == pytest.approx([1.0, 2.0, 3.0])
    ahead = np.array([1.0, 2.0 + np.cos(0.1), 3.0 + np.sin(0.1)])
    assert pose.transform(ahead) == pytest.approx([0.0, 0.0, 1.0])
    # East of a camera that looks north is to its right, above is up (y down).
    assert pose.transform([2.0, 2.0, 3.0])[0] == pytest.approx(1.0)
    assert pose.transform([1.0, 2.0, 4.0])[1] < -0.9


def test_roll_turns_the_camera_clockwise():
    """When the camera turns clockwise, what was above it moves to the left."""
    pose = look((0.0, 0.0, 0.0), yaw_rad=0.0, roll_rad=0.2)
    above = pose.transform([1.0, 0.0, 1.0])
    assert above == pytest.approx([-np.sin(0.2), -np.cos(0.2), 1.0])


def test_a_walk_is_smooth_stays_inside_and_looks_all_round():
    path = room_walk(5, EXTENT_M, duration_s=20.0)
    poses = [path.pose_at(t) for t in np.arange(0.0, 20.0, 0.05)]
    centres = np.array([p.origin_in_a for p in poses])
    assert (np.abs(centres[:, :2]) <= 0.2501 * np.array(EXTENT_M[:2])).all()
    assert np.ptp(centres[:, 0]) > 1.0
    speed = np.linalg.norm(np.diff(centres, axis=0), axis=1) / 0.05
    assert speed.max() < 2.0
    turn = [
        float(rotation_angle_rad(b.R @ a.R.T)) for a, b in itertools.pairwise(poses)
    ]
    assert max(turn) / 0.05 < 1.5
    yaw = np.arctan2(*np.array([p.R[2, 1::-1] for p in poses]).T)
    assert len(np.unique(np.floor(yaw / (np.pi / 4)))) == 8


def test_a_drive_keeps_its_lane():
    extent_m = (60.0, 12.0, 12.0)
    for lateral_m in (-1.5, 0.0, 1.5):
        path = street_drive(
            5, extent_m, duration_s=10.0, lateral_m=lateral_m, backwards=False
        )
        centres = np.array([path.position_at(t) for t in np.linspace(0, 10, 50)])
        assert np.abs(centres[:, 1] - lateral_m).max() <= 0.2001
        assert (np.diff(centres[:, 0]) > 0).all()
        assert centres[-1, 0] == pytest.approx(52.0)
    back = street_drive(5, extent_m, duration_s=10.0, backwards=True)
    assert back.position_at(10.0)[0] == pytest.approx(8.0)
    assert back.pose_at(3.0).R[2, 0] < -0.9


def test_rolling_poses_span_the_readout():
    path = room_walk(5, EXTENT_M, duration_s=10.0)
    poses = rolling_poses(path, 2.0, readout_s=0.1, num_rows=5)
    for pose, time_s in zip(poses, (1.96, 1.98, 2.0, 2.02, 2.04), strict=True):
        assert pose.t == pytest.approx(path.pose_at(time_s).t)
