"""Sensors of motion: predictions get better, and wrong ones are not believed."""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from made_up_motion import BIAS_RAD_S, smooth_rates, wheels

from edgeloc.clock import ManualClock
from edgeloc.geometry.se3 import exp_se3, log_se3
from edgeloc.localize.candidate import Candidate
from edgeloc.runtime.ego_motion import EgoMotion
from edgeloc.runtime.motion_feed import MotionFeed, WheelOdometry
from edgeloc.runtime.motion_state import predict_pose
from edgeloc.runtime.sensed_motion import (
    UNKNOWN_VARIANCE,
    RelativeMotion,
    SensedMotion,
)
from edgeloc.runtime.tracker import MotionTracker
from edgeloc.types import Cause, FloatArray, PoseStatus, Rigid3, Rung
from edgeloc_tools.datasets.registry import open_recording

RATE_HZ = 30
STEP_NS = round(1e9 / RATE_HZ)
FIX = np.diag([0.003**2] * 3 + [0.01**2] * 3)
CHOL = np.linalg.cholesky(FIX)


def fix_of(pose: Rigid3) -> Candidate:
    return Candidate(
        status=PoseStatus.LOCALIZED,
        rung=Rung.TRACK,
        cause=Cause.NONE,
        cam_from_world=pose,
        covariance=FIX,
    )


class Camera:
    """Is told of fixes, whose errors they share for a while, and of its sensors."""

    def __init__(self, poses: Sequence[Rigid3], feed: MotionFeed) -> None:
        self.poses = poses
        self.feed = feed
        self.ego = EgoMotion(clock=ManualClock())
        self.motion = MotionTracker()
        self.at = -1
        self._rng = np.random.default_rng(1)
        self._shared = self._rng.normal(size=6)

    def advance(self, *, localized: bool = True) -> None:
        self.at += 1
        timestamp_ns = self.at * STEP_NS
        self.ego.tell(self.motion, self.feed.until(timestamp_ns))
        keep = np.exp(-1.0 / RATE_HZ)
        self._shared = keep * self._shared
        self._shared += np.sqrt(1 - keep**2) * self._rng.normal(size=6)
        if localized:
            error = np.sqrt(0.8) * self._shared + np.sqrt(0.2) * self._rng.normal(
                size=6
            )
            pose = exp_se3(CHOL @ error) @ self.poses[self.at]
            self.motion.update(timestamp_ns, pose, FIX, landmark_distance=2.0)
            self.ego.learn(timestamp_ns, fix_of(pose))

    def predicted(self) -> tuple[Rigid3, FloatArray]:
        """The pose of this frame according to the filter, and its covariance."""
        assert self.motion.state is not None
        return predict_pose(self.motion.state, self.at * STEP_NS)

    def off(self) -> FloatArray:
        """By how much that is wrong, as a left perturbation."""
        return log_se3(self.poses[self.at] @ self.predicted()[0].inverse())

    def fork(self) -> Camera:
        """The same, to go on without fixes; the sensors are asked again."""
        other = copy.copy(self)
        other.feed = copy.copy(self.feed)
        other.feed._odometer = copy.copy(self.feed._odometer)
        other.motion = MotionTracker()
        other.motion._history = deque(self.motion._history)
        other.ego = copy.copy(self.ego)
        other.ego._gyro = copy.copy(self.ego._gyro)
        other.ego._wheels = copy.copy(self.ego._wheels)
        return other


def feed_of(
    poses: Sequence[Rigid3],
    *,
    gyro: bool = True,
    odometry: bool = False,
    rates: Callable[[FloatArray, FloatArray], FloatArray] = lambda rates, _: rates,
) -> MotionFeed:
    """What sensors say of a camera at `RATE_HZ`; `rates` damages angular rates."""
    rng = np.random.default_rng(7)
    times_ns = np.arange(len(poses)) * STEP_NS
    feed = MotionFeed(
        rates_recorded=True, odometer=WheelOdometry(recorded=True, drift=0.05)
    )
    if gyro:
        at_ns, exact = smooth_rates(times_ns, poses)
        noise = rng.normal(scale=0.005, size=exact.shape)
        measured = rates(exact, at_ns / 1e9) + BIAS_RAD_S + noise
        for when_ns, rate in zip(at_ns.tolist(), measured, strict=True):
            if np.all(np.isfinite(rate)):
                feed.push_rate(when_ns, rate)
    if odometry:
        for when_ns, pose in zip(times_ns.tolist(), wheels(poses, rng), strict=True):
            feed.push_pose(when_ns, pose)
    return feed


def stroll(num: int, *, still: int = 0) -> list[Rigid3]:
    """Somebody who looks around while walking; at first not at all."""
    poses = []
    pose = exp_se3([0.3, -0.2, 0.5, 1.0, 2.0, -0.5])
    for k in range(num):
        t = max(k - still, 0) / RATE_HZ
        twist = [0.2 * np.sin(2 * t), 0.7 * np.sin(1.7 * t), 0.1, 0.1, 0, -0.4]
        moving = float(k > still)
        pose = exp_se3(moving * np.array(twist) / RATE_HZ) @ pose
        poses.append(pose)
    return poses


@dataclass
class Errors:
    """Of predictions some time after the last fix."""

    position_m: list[float]
    rotation_deg: list[float]
    inside: list[bool]


def errors_without_fixes(
    camera: Camera, *, first: int, every: int, ahead: Sequence[int]
) -> dict[int, Errors]:
    found = {steps: Errors([], [], []) for steps in ahead}
    while camera.at + 1 + max(ahead) < len(camera.poses):
        camera.advance()
        if camera.at < first or camera.at % every:
            continue
        blind = camera.fork()
        for steps in range(1, max(ahead) + 1):
            blind.advance(localized=False)
            if steps in found:
                xi, (pose, covariance) = blind.off(), blind.predicted()
                errors = found[steps]
                away = pose.origin_in_a - camera.poses[blind.at].origin_in_a
                errors.position_m.append(float(np.linalg.norm(away)))
                errors.rotation_deg.append(float(np.rad2deg(np.linalg.norm(xi[:3]))))
                errors.inside += (
                    np.abs(xi) <= 3 * np.sqrt(np.diag(covariance))
                ).tolist()
    return found


def test_predictions_of_a_stroll() -> None:
    """A second without fixes, in which the camera turns by 40 deg and walks 0.4 m."""
    poses = stroll(120)
    camera = Camera(poses, feed_of(poses, odometry=True))
    found = errors_without_fixes(camera, first=60, every=14, ahead=(30,))[30]
    assert max(found.rotation_deg) < 0.6
    assert max(found.position_m) < 0.05
    assert np.mean(found.inside) > 0.95


@pytest.mark.slow
@pytest.mark.data
def test_predictions_of_a_real_walk(shared_data: Path) -> None:
    """RedKitchen's poses, and what sensors of a camera that moved so would have said.

    A gyroscope with a bias of 1.5 deg/s; odometry 2 % too long that slips by 1 mm and
    0.03 deg per frame. Errors of the prediction 0.5 and 1 s after the last fix.
    """
    recording = open_recording(
        format="7scenes", input=shared_data / "redkitchen", split="test"
    )
    poses = [image.cam_from_world for image in recording.images]
    assert len(poses) == 200
    medians = {}
    for sensors in ("", "gyro", "odometry", "gyro odometry"):
        feed = feed_of(poses, gyro="gyro" in sensors, odometry="odometry" in sensors)
        camera = Camera(poses, feed)
        found = errors_without_fixes(camera, first=75, every=10, ahead=(15, 30))
        for steps, errors in found.items():
            assert np.mean(errors.inside) > 0.95
            medians[sensors, steps] = (
                np.median(errors.position_m),
                np.median(errors.rotation_deg),
            )
        if "gyro" in sensors:
            np.testing.assert_allclose(
                camera.ego.gyro_bias_rad_s, BIAS_RAD_S, atol=0.006
            )
    for key, value in medians.items():
        logging.getLogger(__name__).info("%s: %.3f m %.2f deg", key, *value)
    for steps in (15, 30):
        assert medians["gyro", steps][1] < 0.15 * medians["", steps][1]
        assert medians["odometry", steps][0] < 0.35 * medians["", steps][0]
        both = medians["gyro odometry", steps]
        assert both[0] < 0.35 * medians["", steps][0]
        assert both[1] < 0.15 * medians["", steps][1]


SWAPPED = [1, 2, 0]
WRONG: dict[str, Callable[[FloatArray, FloatArray], FloatArray]] = {
    "degrees": lambda rates, _: np.rad2deg(rates) * 0.5,
    "axes": lambda rates, _: rates[:, SWAPPED],
    "frozen": lambda rates, _: np.full_like(rates, 0.02),
    "late": lambda rates, _: np.roll(rates, 60, axis=0),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_gyroscope_is_not_believed(
    wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its camera stands still for 2 s, when nothing is wrong yet, then strolls."""
    poses = stroll(130, still=60)
    camera = Camera(poses, feed_of(poses, rates=WRONG[wrong]))
    worst, believed = [], []
    for _ in range(130):
        camera.advance()
        worst.append(np.linalg.norm(camera.off()))
        believed.append(camera.ego.believed)
    assert believed[59] == ("--imu",)
    assert camera.ego.believed == ()
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert record.message.startswith("--imu is not believed: the picture says otherwi")
    assert max(worst[60:]) < 0.1
    assert believed.index((), 59) < 95


def test_a_sensor_that_was_wrong_is_believed_again() -> None:
    poses = stroll(240)
    feed = feed_of(
        poses,
        rates=lambda rates, t: np.where(
            (t > 2.5)[:, None] & (t < 3.5)[:, None], -rates, rates
        ),
    )
    camera = Camera(poses, feed)
    believed = []
    for _ in range(240):
        camera.advance()
        believed.append(camera.ego.believed == ("--imu",))
    assert not any(believed[:45])
    assert all(believed[60:75])
    assert not any(believed[85:120])
    assert all(believed[180:])


def test_a_sensor_that_falls_silent_is_missing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing is told of frames that its samples do not cover."""
    poses = stroll(110)
    gone = feed_of(
        poses, rates=lambda rates, t: np.where((t > 2)[:, None], np.nan, rates)
    )
    camera, without = Camera(poses, gone), Camera(poses, feed_of(poses, gyro=False))
    for _ in range(110):
        camera.advance()
        without.advance()
    np.testing.assert_allclose(
        camera.motion.state.velocity, without.motion.state.velocity, atol=0.03
    )
    assert np.linalg.norm(camera.off()) < 0.03
    assert [r.message for r in caplog.records if r.levelno == logging.WARNING] == [
        "--imu says nothing of the last second, or says it too late"
    ]


def test_odometry_in_other_units_is_not_believed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    poses = stroll(60)
    feed = MotionFeed(odometer=WheelOdometry())
    for k, pose in enumerate(poses):
        odom_from_cam = pose.inverse()
        feed.push_pose(k * STEP_NS, Rigid3(R=odom_from_cam.R, t=3.28 * odom_from_cam.t))
    camera = Camera(poses, feed)
    for _ in range(60):
        camera.advance()
    assert camera.ego.believed == ()
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert record.message.startswith("--wheel-odometry is not believed")


def way(xi: Sequence[float], *variances: float) -> RelativeMotion:
    return RelativeMotion(
        newer_from_older=exp_se3(xi), covariance=np.diag(np.repeat(variances, 3))
    )


def test_two_sensors_say_more_than_one() -> None:
    turned = way([0.1, 0, 0, 0, 0, 0], 1e-6, UNKNOWN_VARIANCE)
    moved = way([0.13, 0, 0, 0, 0.5, 0], 3e-6, 1e-4)
    both = moved.fused(turned)
    xi = log_se3(both.newer_from_older @ moved.newer_from_older.inverse())
    np.testing.assert_allclose(xi[:3], [-0.75 * 0.03, 0, 0], atol=1e-9)
    # Its place in the axes of before: who turns otherwise sees it elsewhere.
    np.testing.assert_allclose(
        both.newer_from_older.origin_in_a, moved.newer_from_older.origin_in_a, atol=1e-6
    )
    np.testing.assert_allclose(
        np.diag(both.covariance)[[0, 3]], [0.75e-6, 1e-4], rtol=1e-3
    )


def test_a_motion_ties_two_poses_and_makes_neither_surer() -> None:
    """Its noise alone is added to what is known, whatever the filter guessed."""
    motion = MotionTracker()
    start = exp_se3([0.3, -0.2, 0.5, 1.0, 2.0, -0.5])
    for k in range(40):
        motion.update(k * STEP_NS, start, FIX, landmark_distance=2.0)
    before = motion.state
    steps = [way([0, 0.05, 0, 0.02, 0, -0.04], 1e-8, 1e-8)] * 10
    for k, step in enumerate(steps, start=39):
        motion.add_relative_motion(
            k * STEP_NS, (k + 1) * STEP_NS, step.newer_from_older, step.covariance
        )
    after = motion.state
    moved = steps[0]
    for step in steps[1:]:
        moved = moved.then(step)
    truth = moved.newer_from_older @ before.cam_from_world
    assert np.linalg.norm(log_se3(after.cam_from_world @ truth.inverse())) < 1e-3
    carried = moved.then(
        RelativeMotion(newer_from_older=Rigid3.identity(), covariance=np.zeros((6, 6)))
    )
    expected = RelativeMotion(
        newer_from_older=Rigid3.identity(), covariance=before.covariance[:6, :6]
    ).then(carried)
    np.testing.assert_allclose(
        after.covariance[:6, :6], expected.covariance, rtol=0.05, atol=1e-7
    )
    np.testing.assert_allclose(after.velocity[1], 0.05 * RATE_HZ, rtol=0.02)


def test_a_motion_that_comes_late_counts_for_what_is_behind_the_newest_fix() -> None:
    """The filter goes back, and forward again through the fixes."""
    poses = stroll(10)
    late, in_time = MotionTracker(), MotionTracker()
    for k, pose in enumerate(poses):
        if k == 9:
            step = way(log_se3(poses[8] @ poses[7].inverse()), 1e-6, 1e-6)
            late.add_relative_motion(
                7 * STEP_NS, 8 * STEP_NS - 1, step.newer_from_older, step.covariance
            )
        if k == 8:
            step = way(log_se3(poses[8] @ poses[7].inverse()), 1e-6, 1e-6)
            in_time.add_relative_motion(
                7 * STEP_NS, 8 * STEP_NS - 1, step.newer_from_older, step.covariance
            )
        for motion in (late, in_time):
            motion.update(k * STEP_NS, pose, FIX, landmark_distance=2.0)
    np.testing.assert_allclose(late.state.velocity, in_time.state.velocity, atol=1e-6)
    covered = late.state
    late.add_relative_motion(
        8 * STEP_NS, 9 * STEP_NS, exp_se3([0.5, 0, 0, 0, 0, 0]), np.eye(6) * 1e-6
    )
    np.testing.assert_array_equal(late.state.velocity, covered.velocity)


def test_nothing_is_told_before_a_sensor_was_compared() -> None:
    ego, motion = EgoMotion(clock=ManualClock()), MotionTracker()
    motion.update(0, Rigid3.identity(), FIX, landmark_distance=2.0)
    before = motion.state
    ego.tell(
        motion,
        SensedMotion(
            start_ns=0,
            end_ns=STEP_NS,
            rate_times_ns=np.array([0, STEP_NS]),
            rates_rad_s=np.ones((2, 3)),
            odometry=way([0, 0, 0, 1, 0, 0], 1e-6, 1e-6),
        ),
    )
    assert motion.state is before
