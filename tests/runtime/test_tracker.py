"""The motion filter: honest on simulated motion, right about late and wrong fixes."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest

from edgeloc.geometry.se3 import exp_se3, log_se3
from edgeloc.runtime.motion_state import (
    VECTOR_SIZE,
    MotionState,
    predict_pose,
    prediction_is_usable,
    propagate,
)
from edgeloc.runtime.odometry import Odometer
from edgeloc.runtime.tracker import MotionOptions, MotionTracker, Verdict
from edgeloc.types import Rigid3

RATE_HZ = 30
STEP_NS = round(1e9 / RATE_HZ)
FIX = np.diag([0.003**2] * 3 + [0.01**2] * 3)
"""Covariance of a good fix in a room."""
START = exp_se3([0.3, -0.2, 0.5, 1.0, 2.0, -0.5])
TWIST = np.array([0.2, -0.4, 0.1, 0.3, 0.1, -0.5])


class Walk:
    """A camera whose twist wanders, and fixes of it."""

    def __init__(self, rng, *, unit=1.0, rotation_psd=0.5, translation_psd=0.3):
        self.rng = rng
        self.unit = unit
        self.psd = np.repeat([rotation_psd, translation_psd * unit**2], 3)
        self.scale = np.repeat([1.0, unit], 3)
        self.pose = Rigid3(R=START.R, t=START.t * unit)
        self.twist = TWIST * self.scale
        self.shared = self.rng.normal(size=6)
        self.covariance = FIX * np.outer(self.scale, self.scale)
        self.chol = np.linalg.cholesky(self.covariance)

    def move(self, dt=1.0 / RATE_HZ):
        """Advance by small steps of white acceleration."""
        for _ in range(2):
            self.twist += self.rng.normal(size=6) * np.sqrt(self.psd * dt / 2)
            self.pose = exp_se3(self.twist * dt / 2) @ self.pose

    def fix(self, *, shared_share=0.8):
        """Errors of which a share wanders within a second, and the rest is new."""
        keep = np.exp(-1.0 / RATE_HZ)
        self.shared = keep * self.shared
        self.shared += np.sqrt(1 - keep**2) * self.rng.normal(size=6)
        error = np.sqrt(shared_share) * self.shared
        error += np.sqrt(1 - shared_share) * self.rng.normal(size=6)
        return exp_se3(self.chol @ error) @ self.pose


def nees_of(estimate, covariance, truth):
    xi = log_se3(truth @ estimate.inverse())
    return float(xi @ np.linalg.solve(covariance, xi))


@pytest.mark.parametrize("unit", [1.0, 0.01, 300.0])
@pytest.mark.parametrize("ahead", [1, 6])
def test_predictions_are_honest_in_scenes_of_any_size(unit, ahead):
    """NEES of six degrees of freedom averages to 6; shared errors leave some play."""
    values = []
    for seed in range(4):
        walk = Walk(np.random.default_rng(seed), unit=unit)
        tracker = MotionTracker()
        for k in range(120):
            walk.move()
            if k >= 60 and k % ahead == 0:
                pose, covariance = predict_pose(tracker.state, k * STEP_NS)
                values.append(nees_of(pose, covariance, walk.pose))
            if k % ahead == 0:
                tracker.update(
                    k * STEP_NS, walk.fix(), walk.covariance, landmark_distance=2 * unit
                )
    assert 3.0 < np.mean(values) < 9.0
    assert np.quantile(values, 0.95) < 25.0


def test_uncertainty_grows_until_the_prediction_is_of_no_use():
    """95 % of errors within three sigma all the way, and then no claim at all."""
    inside, useful_s = [], []
    for seed in range(12):
        walk = Walk(np.random.default_rng(seed))
        tracker = MotionTracker()
        for k in range(90):
            walk.move()
            tracker.update(
                k * STEP_NS, walk.fix(), walk.covariance, landmark_distance=2.0
            )
        sigmas = []
        for ahead in range(1, 100):
            walk.move()
            pose, covariance = predict_pose(tracker.state, (89 + ahead) * STEP_NS)
            if not prediction_is_usable(covariance, landmark_distance=2.0):
                useful_s.append(ahead / RATE_HZ)
                break
            xi = log_se3(walk.pose @ pose.inverse())
            sigmas.append(np.sqrt(np.diag(covariance)))
            inside.append(np.all(np.abs(xi) <= 3 * sigmas[-1]))
        assert np.all(np.diff([s[3:].max() for s in sigmas]) > 0)
    assert np.mean(inside) > 0.95
    assert len(useful_s) == 12
    assert 0.3 < np.median(useful_s) < 3.0


def test_the_noise_follows_the_motion():
    """A calm camera is predicted more closely than a shaken one."""
    sigmas = {}
    for name, psd in (("calm", 1e-3), ("shaken", 20.0)):
        walk = Walk(
            np.random.default_rng(1), rotation_psd=psd, translation_psd=psd / 10
        )
        tracker = MotionTracker()
        for k in range(200):
            walk.move()
            tracker.update(
                k * STEP_NS, walk.fix(), walk.covariance, landmark_distance=2.0
            )
        there = propagate(tracker.state, (199 + 10) * STEP_NS)
        sigmas[name] = np.sqrt(np.trace(there.covariance[3:6, 3:6]))
    assert sigmas["shaken"] > 3 * sigmas["calm"]


def fixed(tracker, k, pose, covariance=FIX):
    return tracker.update(k * STEP_NS, pose, covariance, landmark_distance=2.0)


def steady(k):
    return exp_se3(TWIST * k / RATE_HZ) @ START


def test_a_late_fix_counts_at_its_own_time():
    """Whatever the order of arrival, the state is the same."""
    in_order, late = MotionTracker(), MotionTracker()
    for k in range(10):
        fixed(in_order, k, steady(k))
    for k in (0, 1, 2, 3, 5, 6, 4, 7, 9, 8):
        fixed(late, k, steady(k))
    a, b = in_order.state, late.state
    assert a.timestamp_ns == b.timestamp_ns == 9 * STEP_NS
    np.testing.assert_allclose(a.cam_from_world.t, b.cam_from_world.t, atol=1e-9)
    np.testing.assert_allclose(a.velocity, b.velocity, atol=1e-9)
    np.testing.assert_allclose(a.covariance, b.covariance, atol=1e-12)


def test_a_fix_older_than_everything_changes_nothing():
    tracker = MotionTracker()
    for k in range(10, 20):
        fixed(tracker, k, steady(k))
    before = tracker.state
    assert fixed(tracker, 8, steady(0)) is Verdict.TOO_OLD
    np.testing.assert_array_equal(tracker.state.to_vector(), before.to_vector())


def test_a_clock_that_was_set_back_starts_anew():
    tracker = MotionTracker()
    for k in range(300, 310):
        fixed(tracker, k, steady(k - 300))
    assert fixed(tracker, 3, steady(12)) is Verdict.STARTED
    assert tracker.state.timestamp_ns == 3 * STEP_NS


def test_one_wrong_fix_is_rejected_and_forgotten():
    tracker = MotionTracker()
    for k in range(20):
        assert fixed(tracker, k, steady(k)) in {Verdict.STARTED, Verdict.ACCEPTED}
    away = exp_se3([0, 0.5, 0, 1.0, 0, 0])
    assert fixed(tracker, 20, away @ steady(20)) is Verdict.REJECTED
    pose, _ = predict_pose(tracker.state, 20 * STEP_NS)
    assert np.linalg.norm(log_se3(pose @ steady(20).inverse())) < 0.01
    assert fixed(tracker, 21, steady(21)) is Verdict.ACCEPTED
    # A second one does not add up with the first: it lies elsewhere.
    other = exp_se3([0.7, 0, 0, 0, -1.5, 0])
    assert fixed(tracker, 22, other @ steady(22)) is Verdict.REJECTED


def test_two_wrong_fixes_that_disagree_stay_rejected():
    tracker = MotionTracker()
    for k in range(20):
        fixed(tracker, k, steady(k))
    for k, away in ((20, [0, 0.5, 0, 1.0, 0, 0]), (21, [0.7, 0, 0, 0, -1.5, 0])):
        assert fixed(tracker, k, exp_se3(away) @ steady(k)) is Verdict.REJECTED


def test_a_kidnapped_camera_is_found_with_the_second_fix():
    tracker = MotionTracker()
    for k in range(20):
        fixed(tracker, k, steady(k))
    away = exp_se3([0, 2.0, 0, 3.0, 0, 1.0])
    assert fixed(tracker, 20, away @ steady(20)) is Verdict.REJECTED
    assert fixed(tracker, 21, away @ steady(21)) is Verdict.RESTARTED
    pose, _ = predict_pose(tracker.state, 21 * STEP_NS)
    assert np.linalg.norm(log_se3(pose @ (away @ steady(21)).inverse())) < 0.02


def test_after_a_long_gap_the_next_fix_starts_anew():
    tracker = MotionTracker()
    for k in range(20):
        fixed(tracker, k, steady(k))
    elsewhere = exp_se3([0, 2.0, 0, 3.0, 0, 1.0]) @ steady(20)
    assert fixed(tracker, 20 + 10 * RATE_HZ, elsewhere) is Verdict.STARTED


def test_a_gyroscope_helps_in_between():
    """A turn that starts after the last fix is seen by the gyroscope alone."""
    with_gyro, without = MotionTracker(), MotionTracker()
    for tracker in (with_gyro, without):
        for k in range(20):
            fixed(tracker, k, START)
    rate = np.array([0.0, 1.2, 0.0])
    truth = START
    for k in range(20, 30):
        with_gyro.add_gyro(k * STEP_NS, rate, sigma_rad_s=0.02)
        truth = exp_se3([*(-rate / RATE_HZ), 0, 0, 0]) @ truth
    off = {
        name: np.linalg.norm(
            log_se3(truth @ predict_pose(tracker.state, 29 * STEP_NS)[0].inverse())[:3]
        )
        for name, tracker in (("with", with_gyro), ("without", without))
    }
    assert off["without"] > 0.3
    assert off["with"] < 0.06


def test_wheel_odometry_gives_the_speed():
    tracker = MotionTracker()
    for k in range(5):
        fixed(tracker, k, START)
    forward = exp_se3([0, 0, 0, 0, 0, -2.0 / RATE_HZ])
    truth = START
    unknown = 1e3**2
    for k in range(5, 15):
        truth = forward @ truth
        tracker.add_relative_motion(
            (k - 1) * STEP_NS,
            k * STEP_NS,
            forward,
            np.diag([unknown, unknown, unknown, 1e-6, 1e-6, 1e-6]),
        )
    pose, _ = predict_pose(tracker.state, 14 * STEP_NS)
    moved = np.linalg.norm(truth.t - START.t)
    assert np.linalg.norm(pose.t - truth.t) < 0.15 * moved
    np.testing.assert_allclose(tracker.state.velocity[5], -2.0, rtol=0.1)
    with pytest.raises(ValueError, match="must be after"):
        tracker.add_relative_motion(5, 5, forward, np.eye(6))
    with pytest.raises(ValueError, match="3 finite numbers"):
        tracker.add_gyro(0, [0, np.nan, 0], sigma_rad_s=0.1)


def test_places_bound_the_drift_between_fixes():
    """The camera stops after the last fix; the filter, told of places, notices."""
    with_places, without = MotionTracker(), MotionTracker()
    truth, forward = START, exp_se3([0, 0, 0, 0, 0, -2.0 / RATE_HZ])
    for k in range(20):
        truth = forward @ truth
        for tracker in (with_places, without):
            tracker.update(k * STEP_NS, truth, FIX, landmark_distance=10.0)
    rng = np.random.default_rng(0)
    spread = np.eye(3) * 0.3**2
    for k in range(20, 50):
        center = truth.origin_in_a + rng.normal(scale=0.3, size=3)
        verdict = with_places.add_position(k * STEP_NS, center, spread)
        assert verdict is Verdict.ACCEPTED
    predicted = [predict_pose(t.state, 49 * STEP_NS) for t in (with_places, without)]
    off = [np.linalg.norm(p.origin_in_a - truth.origin_in_a) for p, _ in predicted]
    assert off[1] > 1.8
    assert off[0] < 0.5
    sigma = [np.sqrt(np.trace(c[3:, 3:])) for _, c in predicted]
    assert off[0] < 3 * sigma[0] < sigma[1]
    assert nees_of(*predicted[0], truth) < 22.5


def test_a_place_that_contradicts_fixes_is_left_out():
    tracker = MotionTracker()
    assert tracker.add_position(0, START.origin_in_a, np.eye(3)) is None
    for k in range(10):
        fixed(tracker, k, START)
    before = tracker.state
    wrong = START.origin_in_a + np.array([100.0, 0.0, 0.0])
    verdict = tracker.add_position(9 * STEP_NS, wrong, np.eye(3) * 25.0)
    assert verdict is Verdict.REJECTED
    assert tracker.state is before
    near = START.origin_in_a + np.array([3.0, 0.0, 0.0])
    assert tracker.add_position(9 * STEP_NS, near, np.eye(3) * 25.0) is (
        Verdict.ACCEPTED
    )
    # It is worth next to nothing beside fixes of a centimetre.
    moved = tracker.state.cam_from_world.origin_in_a - START.origin_in_a
    assert np.linalg.norm(moved) < 0.01


def test_motion_before_the_first_fix_is_ignored():
    tracker = MotionTracker()
    tracker.add_gyro(0, [0, 0, 1], sigma_rad_s=0.1)
    assert tracker.state is None
    fixed(tracker, 1, START)
    tracker.reset()
    assert tracker.state is None


def test_a_state_survives_its_vector():
    tracker = MotionTracker()
    start_ns = 200 * 86_400 * 10**9 + 123_456_789
    for k in range(5):
        tracker.update(start_ns + k * STEP_NS, steady(k), FIX, landmark_distance=2.0)
    state = tracker.state
    vector = state.to_vector()
    assert vector.shape == (VECTOR_SIZE,)
    assert vector.dtype == np.float64
    back = MotionState.from_vector(vector)
    assert back.timestamp_ns == start_ns + 4 * STEP_NS
    assert back.fix_ns == back.timestamp_ns
    np.testing.assert_array_equal(back.to_vector(), vector)
    for name in ("velocity", "covariance", "shared", "acceleration_psd"):
        np.testing.assert_array_equal(getattr(back, name), getattr(state, name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[:-1], "is 206 numbers"),
        (lambda v: np.where(np.arange(len(v)) == 0, 7.0, v), "version 1"),
        (lambda v: np.where(np.arange(len(v)) == 30, np.nan, v), "must be finite"),
        (lambda v: np.where(np.arange(len(v)) == 6, 5.0, v), "not a rotation"),
    ],
)
def test_a_torn_vector_is_refused(change, message):
    tracker = MotionTracker()
    fixed(tracker, 0, START)
    with pytest.raises(ValueError, match=message):
        MotionState.from_vector(change(tracker.state.to_vector()))


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="shared_share"):
        MotionOptions(shared_share=1.0)
    with pytest.raises(ValueError, match="num_rejections"):
        MotionOptions(num_rejections=0)


def test_fixes_move_the_map_and_not_the_odometry():
    """A jump of 1 m between two fixes is in map_from_odom alone."""
    odometer = Odometer()
    step = exp_se3(TWIST / RATE_HZ)
    jump = exp_se3([0, 0, 0, 1.0, 0, 0])
    jumped = jump @ steady(2)
    poses = [steady(0), steady(1), jumped, step @ jumped]
    rows = [odometer.advance(k * STEP_NS, step, pose) for k, pose in enumerate(poses)]
    for older, newer in itertools.pairwise(rows):
        moved = newer.cam_from_odom @ older.cam_from_odom.inverse()
        np.testing.assert_allclose(log_se3(moved), TWIST / RATE_HZ, atol=1e-9)
    for row, pose in zip(rows, poses, strict=True):
        again = row.cam_from_odom @ row.map_from_odom.inverse()
        np.testing.assert_allclose(log_se3(again @ pose.inverse()), 0, atol=1e-9)
    shifts = [
        np.linalg.norm(log_se3(b.map_from_odom @ a.map_from_odom.inverse()))
        for a, b in itertools.pairwise(rows)
    ]
    assert shifts[0] < 1e-9
    assert shifts[1] > 0.9
    assert shifts[2] < 1e-9


def test_the_tracker_imports_nothing_heavy():
    code = (
        "import sys, edgeloc.runtime.tracker;"
        "print(sorted({'cv2', 'scipy', 'onnxruntime', 'msgpack'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
