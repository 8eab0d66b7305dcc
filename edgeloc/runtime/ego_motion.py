"""What of the motion that sensors measure is believed, and told to the motion filter.

Each sensor is compared with fixes: with the motion between one and another within some
two seconds. It is believed after it agreed with a few, and not any more when it
contradicts two in a row, until it agrees again. So wrong units, wrong axes, a sensor
that froze or lags behind are found as soon as the camera moves, and a sensor that
became silent is just missing. A sensor that never saw a fix is never believed.

The same comparisons tell the bias of the gyroscope, whether the camera moves or not; it
wanders slowly, and what it is uncertain by makes what is told less sure. Scale, axes
and lever arms are taken from the calibration and are not estimated, nor is anything
learned while there are no fixes.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from edgeloc.clock import Clock
from edgeloc.geometry.gyro import Turn, integrate_rates
from edgeloc.geometry.se3 import adjoint, log_se3, log_so3
from edgeloc.localize.candidate import Candidate
from edgeloc.runtime.motion_update import CHI2_3_Q999, CHI2_6_Q999, updated
from edgeloc.runtime.sensed_motion import (
    UNKNOWN_VARIANCE,
    RelativeMotion,
    SensedMotion,
)
from edgeloc.runtime.telemetry import RepeatedWarning
from edgeloc.runtime.tracker import MotionTracker
from edgeloc.types import FloatArray, Rigid3

_log = logging.getLogger(__name__)

_NS_PER_S = 1e9
_BASELINE_NS = 500_000_000
"""Fixes are compared over so much time, so that their errors hide little."""
_MAX_BASELINE_NS = 2_000_000_000
_SILENT_NS = 1_000_000_000
_NUM_AGREEING = 3
_NUM_AGAINST = 2

_RATE_DENSITY = 1e-3
"""Noise of a cheap gyroscope, rad/s/sqrt(Hz), with what Kalibr's users add to it."""
_RATE_SIGMA_RAD_S = 0.01
"""Of one sample."""
_SCALE = 0.01
"""Share of an angle by which scale and axes are off, over `_CORRELATED_RAD`."""
_CORRELATED_RAD = 1.0
_BIAS_SIGMA_RAD_S = 0.05
"""3 deg/s, of cheap gyroscopes when nothing is known yet."""
_BIAS_WALK = 3e-4
"""rad/s/sqrt(s): it changes with the temperature."""
_BIAS_HORIZON_S = 2.0
"""An error of the bias adds up for so long before a fix ends it."""
_MAX_RATE_GAP_NS = 100_000_000
_MAX_RATE_AGE_NS = 50_000_000
_ACCELERATION_RAD_S2 = 10.0
"""A turn changes by so much where there are no samples yet."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Anchor:
    timestamp_ns: int
    cam_from_world: Rigid3
    covariance: FloatArray


class _Sensor(ABC):
    """Compares what a sensor says with fixes, and says whether it is believed."""

    def __init__(self, name: str, warnings: RepeatedWarning) -> None:
        self.name = name
        self._warnings = warnings
        self.believed = False
        self.num_rejected = 0
        self._spoke = False
        self._agreed = self._against = 0
        self._silent_ns = 0
        self._anchor: _Anchor | None = None
        self._since_ns: int | None = None
        """How far the motion since the anchor is known without a gap."""

    def take(self, sensed: SensedMotion) -> RelativeMotion | None:
        """Return what the sensor says about the way to a frame, as it may be told."""
        step = self._step(sensed)
        self._spoke |= self._speaks(sensed)
        self._listen(sensed.end_ns - sensed.start_ns, silent=step is None)
        if step is None or self._since_ns != sensed.start_ns:
            self._since_ns = None
        else:
            self._add(sensed)
            self._since_ns = sensed.end_ns
        return step

    def compare(self, timestamp_ns: int, fix: Candidate) -> None:
        """Compare the motion since an earlier fix with this one."""
        assert fix.cam_from_world is not None
        assert fix.covariance is not None
        anchor = self._anchor
        new = _Anchor(
            timestamp_ns=timestamp_ns,
            cam_from_world=fix.cam_from_world,
            covariance=fix.covariance,
        )
        if (
            anchor is None
            or self._since_ns != timestamp_ns
            or not 0 < timestamp_ns - anchor.timestamp_ns <= _MAX_BASELINE_NS
        ):
            self._begin(new)
            return
        newer_from_older = fix.cam_from_world @ anchor.cam_from_world.inverse()
        carry = adjoint(newer_from_older)
        agrees = self._agrees(
            newer_from_older, carry @ anchor.covariance @ carry.T + fix.covariance
        )
        whole = timestamp_ns - anchor.timestamp_ns >= _BASELINE_NS
        self._judge(agrees=agrees, whole=whole)
        if whole and agrees:
            self._learn()
        if whole or self._against == _NUM_AGAINST:
            self._begin(new)

    def _listen(self, span_ns: int, *, silent: bool) -> None:
        before_ns = self._silent_ns
        self._silent_ns = before_ns + span_ns if silent and self._spoke else 0
        if before_ns < _SILENT_NS <= self._silent_ns:
            self._warnings.warn(
                f"{self.name} says nothing of the last second, or says it too late"
            )

    def _judge(self, *, agrees: bool, whole: bool) -> None:
        if agrees:
            self._against = 0
            self._agreed += whole
            if self._agreed >= _NUM_AGREEING and not self.believed:
                self.believed = True
                _log.info("%s: agrees with the picture, and is used", self.name)
            return
        self._against += 1
        if self._against == _NUM_AGAINST:
            if self.believed or self.num_rejected == 0:
                self.num_rejected += 1
                self._warnings.warn(
                    f"{self.name} is not believed: the picture says otherwise; check "
                    "its units, axes and time"
                )
            self.believed = False
            self._agreed = 0
            self._doubt()

    def _begin(self, anchor: _Anchor) -> None:
        self._anchor = anchor
        self._since_ns = anchor.timestamp_ns
        self._clear()

    @abstractmethod
    def _speaks(self, sensed: SensedMotion) -> bool:
        """Return whether anything came from the sensor, of use or not."""

    @abstractmethod
    def _step(self, sensed: SensedMotion) -> RelativeMotion | None: ...

    @abstractmethod
    def _add(self, sensed: SensedMotion) -> None:
        """Add the newest step to the motion since the anchor."""

    @abstractmethod
    def _clear(self) -> None:
        """Begin a new motion."""

    @abstractmethod
    def _agrees(self, newer_from_older: Rigid3, covariance: FloatArray) -> bool:
        """Return whether the motion since the anchor is that between two fixes."""

    @abstractmethod
    def _learn(self) -> None:
        """Learn from the last comparison."""

    @abstractmethod
    def _doubt(self) -> None:
        """Forget what was learned."""


class _Wheels(_Sensor):
    _way: RelativeMotion | None = None

    def _speaks(self, sensed: SensedMotion) -> bool:
        return sensed.odometry is not None

    def _step(self, sensed: SensedMotion) -> RelativeMotion | None:
        return sensed.odometry

    def _add(self, sensed: SensedMotion) -> None:
        step = sensed.odometry
        assert step is not None
        self._way = step if self._way is None else self._way.then(step)

    def _clear(self) -> None:
        self._way = None

    def _agrees(self, newer_from_older: Rigid3, covariance: FloatArray) -> bool:
        assert self._way is not None
        off = log_se3(newer_from_older @ self._way.newer_from_older.inverse())
        allowed = covariance + self._way.covariance
        return float(off @ np.linalg.solve(allowed, off)) <= CHI2_6_Q999

    def _learn(self) -> None:
        """Keep to the calibration."""

    def _doubt(self) -> None:
        """Nothing was learned."""


class _Gyro(_Sensor):
    def __init__(self, name: str, warnings: RepeatedWarning) -> None:
        super().__init__(name, warnings)
        self._turn: Turn | None = None
        self._turn_noise = 0.0
        self._R = np.eye(3)
        self._by_bias = np.zeros((3, 3))
        self._noise = 0.0
        self._doubt()
        self._clear()

    def _doubt(self) -> None:
        self.bias_rad_s = np.zeros(3)
        self.bias_covariance = np.eye(3) * _BIAS_SIGMA_RAD_S**2

    @property
    def rate_sigma_rad_s(self) -> float:
        """Of `last_rate_rad_s`, per axis."""
        bias2 = float(np.trace(self.bias_covariance)) / 3.0
        assert self._turn is not None
        scale = _SCALE * float(np.linalg.norm(self._turn.last_rate_rad_s))
        return float(np.sqrt(_RATE_SIGMA_RAD_S**2 + bias2 + scale**2))

    @property
    def last_rate_rad_s(self) -> FloatArray:
        """Of the camera at the end of the last step, in its axes."""
        assert self._turn is not None
        return self._turn.last_rate_rad_s

    def _speaks(self, sensed: SensedMotion) -> bool:
        return len(sensed.rate_times_ns) > 0

    def _step(self, sensed: SensedMotion) -> RelativeMotion | None:
        self._turn = None
        times_ns = sensed.rate_times_ns
        start_ns, end_ns = sensed.start_ns, sensed.end_ns
        if len(times_ns) == 0 or end_ns <= start_ns:
            return None
        ahead_ns, behind_ns = times_ns[0] - start_ns, end_ns - times_ns[-1]
        if (
            max(ahead_ns, behind_ns) > _MAX_RATE_AGE_NS
            or np.diff(times_ns).max(initial=0) > _MAX_RATE_GAP_NS
        ):
            return None
        self._turn = turn = integrate_rates(
            times_ns,
            sensed.rates_rad_s - self.bias_rad_s,
            start_ns=start_ns,
            end_ns=end_ns,
        )
        span_s = (end_ns - start_ns) / _NS_PER_S
        missing_s = max(ahead_ns, behind_ns, 0) / _NS_PER_S
        self._turn_noise = (
            _RATE_DENSITY**2 * span_s
            + _SCALE**2 * _CORRELATED_RAD * turn.angle_rad
            + (0.5 * _ACCELERATION_RAD_S2 * missing_s**2) ** 2
        )
        self.bias_covariance = self.bias_covariance + np.eye(3) * _BIAS_WALK**2 * span_s
        covariance = np.eye(6) * UNKNOWN_VARIANCE
        covariance[:3, :3] = np.eye(3) * self._turn_noise
        covariance[:3, :3] += _BIAS_HORIZON_S * span_s * self.bias_covariance
        return RelativeMotion(
            newer_from_older=Rigid3(R=turn.R_newer_from_older, t=np.zeros(3)),
            covariance=covariance,
        )

    def _add(self, sensed: SensedMotion) -> None:  # noqa: ARG002 - of the last step
        turn = self._turn
        assert turn is not None
        self._R = turn.R_newer_from_older @ self._R
        self._by_bias = turn.R_newer_from_older @ self._by_bias + turn.by_bias
        self._noise += self._turn_noise

    def _clear(self) -> None:
        self._R, self._by_bias, self._noise = np.eye(3), np.zeros((3, 3)), 0.0

    def _agrees(self, newer_from_older: Rigid3, covariance: FloatArray) -> bool:
        self._off = log_so3(newer_from_older.R @ self._R.T)
        self._off_noise = covariance[:3, :3] + np.eye(3) * self._noise
        by_bias = self._by_bias
        scatter = by_bias @ self.bias_covariance @ by_bias.T + self._off_noise
        distance2 = self._off @ np.linalg.solve(scatter, self._off)
        return float(distance2) <= CHI2_3_Q999

    def _learn(self) -> None:
        change, self.bias_covariance, _ = updated(
            self.bias_covariance, self._by_bias, self._off, self._off_noise
        )
        self.bias_rad_s = self.bias_rad_s + change


class EgoMotion:
    """Trust in sensors of motion, and what follows from it.

    Parameters
    ----------
    clock : Clock
        Of warnings.
    """

    def __init__(self, *, clock: Clock) -> None:
        self._gyro = _Gyro("--imu", RepeatedWarning(_log, clock))
        self._wheels = _Wheels("--wheel-odometry", RepeatedWarning(_log, clock))

    @property
    def believed(self) -> tuple[str, ...]:
        """Options of the sensors that are believed."""
        sensors = (self._gyro, self._wheels)
        return tuple(sensor.name for sensor in sensors if sensor.believed)

    @property
    def gyro_bias_rad_s(self) -> FloatArray:
        """What the gyroscope says when it does not turn, in camera axes, (3,)."""
        return self._gyro.bias_rad_s

    def tell(self, motion: MotionTracker, sensed: SensedMotion) -> None:
        """Give what is believed of the way to a frame to the motion filter.

        Parameters
        ----------
        motion : MotionTracker
            The filter, not told anything about the frame yet.
        sensed : SensedMotion
            What sensors say.
        """
        gyro, wheels = self._gyro.take(sensed), self._wheels.take(sensed)
        gyro = gyro if self._gyro.believed else None
        wheels = wheels if self._wheels.believed else None
        way = wheels if gyro is None else gyro
        if way is None:
            return
        if gyro is not None and wheels is not None:
            way = wheels.fused(gyro)
        motion.add_relative_motion(
            sensed.start_ns, sensed.end_ns, way.newer_from_older, way.covariance
        )
        if gyro is not None:
            motion.add_gyro(
                sensed.end_ns,
                self._gyro.last_rate_rad_s,
                sigma_rad_s=self._gyro.rate_sigma_rad_s,
            )

    def learn(self, timestamp_ns: int, fix: Candidate) -> None:
        """Compare the sensors with a fix.

        Parameters
        ----------
        timestamp_ns : int
            Of the frame, which was told of before.
        fix : Candidate
            LOCALIZED.
        """
        self._gyro.compare(timestamp_ns, fix)
        self._wheels.compare(timestamp_ns, fix)
