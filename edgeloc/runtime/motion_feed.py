"""Measurements of inertial sensors and wheels, asked for by the times of frames."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from edgeloc.geometry.se3 import exp_se3, log_se3, rotation_angle_rad
from edgeloc.runtime.sensed_motion import RelativeMotion, SensedMotion
from edgeloc.runtime.series import Series
from edgeloc.types import FloatArray, Rigid3

_NS_PER_S = 1e9
_KEPT_NS = 10_000_000_000
_MAX_SPAN_NS = 3_000_000_000
"""The way between frames that are further apart is not told."""
_MAX_POSE_GAP_NS = 500_000_000
_MAX_AHEAD_NS = 150_000_000
"""So far a vehicle is taken to go on as it went."""
_MAX_SPEED_M_S, _MAX_TURN_RATE_RAD_S = 100.0, 10.0
"""Faster than this, no vehicle moved: its odometry began anew."""

_FLOOR_M2_PER_S, _FLOOR_RAD2_PER_S = 0.01**2, 0.01**2
"""Springs, cracks and pebbles, which wheels know nothing of."""
_CORRELATED_M, _CORRELATED_RAD = 1.0, 1.0
"""Within such a way the errors of wheels have the same sign."""


@dataclass(slots=True, kw_only=True, eq=False)
class WheelOdometry:
    """Poses of the camera in the frame in which a vehicle's odometry began.

    Parameters
    ----------
    recorded : bool
        Whether all are there from the start, with times since the first frame.
    drift : float
        Share of the way by which it is off.
    """

    recorded: bool = False
    drift: float = 0.05
    _poses: Series[Rigid3] = field(init=False)
    _told: Rigid3 | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._poses = Series(keep_ns=None if self.recorded else _KEPT_NS)

    def push(self, timestamp_ns: int, odom_from_cam: Rigid3) -> None:
        """Take a pose."""
        self._poses.add(timestamp_ns, odom_from_cam)

    def advance(self, timestamp_ns: int, span_ns: int | None) -> RelativeMotion | None:
        """Return the motion since the last call; None when it is not known.

        Parameters
        ----------
        timestamp_ns : int
            Of the frame.
        span_ns : int or None
            Since the last call; None = begin anew.
        """
        before, self._told = self._told, self._at(timestamp_ns)
        if before is None or self._told is None or span_ns is None:
            return None
        # From what was told, not from what is known now: so nothing is left out where
        # it was only guessed how the vehicle goes on.
        newer_from_older = self._told.inverse() @ before
        way_m = float(np.linalg.norm(newer_from_older.t))
        turn_rad = float(rotation_angle_rad(newer_from_older.R))
        span_s = span_ns / _NS_PER_S
        if way_m > _MAX_SPEED_M_S * span_s or turn_rad > _MAX_TURN_RATE_RAD_S * span_s:
            return None
        drift2 = self.drift**2
        turned = _FLOOR_RAD2_PER_S * span_s + drift2 * _CORRELATED_RAD * turn_rad
        moved = _FLOOR_M2_PER_S * span_s + drift2 * _CORRELATED_M * way_m
        return RelativeMotion(
            newer_from_older=newer_from_older,
            covariance=np.diag([turned] * 3 + [moved] * 3),
        )

    def _at(self, timestamp_ns: int) -> Rigid3 | None:
        """Return the pose at a time: between two, or a little behind the last."""
        known = self._poses.covering(timestamp_ns, timestamp_ns)
        if len(known) < 2 or known[0][0] > timestamp_ns:
            known = self._poses.covering(timestamp_ns - _MAX_POSE_GAP_NS, timestamp_ns)
            known = known[-2:]
        if len(known) < 2:
            return known[0][1] if known and known[0][0] == timestamp_ns else None
        (old_ns, older), (new_ns, newer) = known
        span_ns = new_ns - old_ns
        if (
            not 0 < span_ns <= _MAX_POSE_GAP_NS
            or not old_ns <= timestamp_ns <= new_ns + _MAX_AHEAD_NS
        ):
            return None
        share = (timestamp_ns - old_ns) / span_ns
        return older @ exp_se3(share * log_se3(older.inverse() @ newer))


class MotionFeed:
    """Measurements in, the way between frames out; from any thread, without waiting.

    Parameters
    ----------
    rates_recorded : bool
        Whether all angular rates are there from the start, with times since the first
        frame.
    odometer : WheelOdometry, optional
        Takes the poses of a vehicle.

    Attributes
    ----------
    on_close : list of callable
        What closing it ends.
    """

    def __init__(
        self, *, rates_recorded: bool = False, odometer: WheelOdometry | None = None
    ) -> None:
        self._rates_recorded = rates_recorded
        self._rates: Series[FloatArray] = Series(
            keep_ns=None if rates_recorded else _KEPT_NS
        )
        self._odometer = odometer or WheelOdometry()
        self._begin_ns: int | None = None
        self._last_ns: int | None = None
        self._lock = threading.Lock()
        self.on_close: list[Callable[[], None]] = []

    def push_rate(self, timestamp_ns: int, rate_in_cam_rad_s: FloatArray) -> None:
        """Take an angular rate of the camera in its own axes, (3,)."""
        with self._lock:
            self._rates.add(timestamp_ns, rate_in_cam_rad_s)

    def push_pose(self, timestamp_ns: int, odom_from_cam: Rigid3) -> None:
        """Take a pose of the camera in the odometry's frame."""
        with self._lock:
            self._odometer.push(timestamp_ns, odom_from_cam)

    def until(self, timestamp_ns: int) -> SensedMotion:
        """Return what is known about the way since the frame asked about before.

        Parameters
        ----------
        timestamp_ns : int
            Of the frame.
        """
        if self._begin_ns is None:
            self._begin_ns = timestamp_ns
        start_ns, self._last_ns = self._last_ns, timestamp_ns
        span_ns = None if start_ns is None else timestamp_ns - start_ns
        if span_ns is None or not 0 < span_ns <= _MAX_SPAN_NS:
            start_ns, span_ns = timestamp_ns, None
        assert start_ns is not None
        rates_ns = self._begin_ns if self._rates_recorded else 0
        poses_ns = self._begin_ns if self._odometer.recorded else 0
        with self._lock:
            odometry = self._odometer.advance(timestamp_ns - poses_ns, span_ns)
            rates = []
            if span_ns is not None:
                rates = self._rates.covering(
                    start_ns - rates_ns, timestamp_ns - rates_ns
                )
        if not rates:
            return SensedMotion(
                start_ns=start_ns, end_ns=timestamp_ns, odometry=odometry
            )
        return SensedMotion(
            start_ns=start_ns,
            end_ns=timestamp_ns,
            rate_times_ns=np.array([at + rates_ns for at, _ in rates], np.int64),
            rates_rad_s=np.stack([rate for _, rate in rates]),
            odometry=odometry,
        )

    def close(self) -> None:
        """Stop whatever feeds it."""
        for close in self.on_close:
            close()
