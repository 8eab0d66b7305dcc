"""A filter of the camera's motion on SE(3): fixes and other measurements in.

Its state is that of `edgeloc.runtime.motion_state`. The density of the acceleration is
learned from how far measurements lie from predictions, and starts from the distance of
the landmarks, so that neither a scene's unit nor its size matters.

Fixes that follow each other share most of their error: they come from the same
landmarks, whose map is wrong by the same amount. A filter that took them for
independent would be sure of the mean within a second. Here only the part that is not
shared enters the filter; the shared part is added to what it says.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgeloc.geometry.se3 import log_se3
from edgeloc.runtime.motion_state import (
    MotionState,
    prediction_is_usable,
    propagate,
)
from edgeloc.runtime.motion_update import (
    CHI2_6_Q999,
    Position,
    Twist,
    Way,
    shifted,
    updated,
    with_position,
    with_twist,
    with_way,
)
from edgeloc.types import FloatArray, Rigid3

_NS_PER_S = 1_000_000_000

_SUDDEN = 3.0
"""A way that is off by so many times what is usual is a jerk."""

_PARTS = (slice(0, 3), slice(3, 6))
"""Of a twist: rotation and translation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionOptions:
    """Options of the motion filter.

    Parameters
    ----------
    rotation_psd : float
        Density of the angular acceleration to start with, rad^2/s^3.
    translation_psd : float
        The same of the linear one, in squared landmark distances per s^3.
    velocity_sigma : float
        Standard deviation of the twist after a single fix, per axis: rad/s, and
        landmark distances per s.
    psd_range : float
        The learned densities stay within this factor of the first ones, both ways.
    shared_share : float
        How much of a fix's covariance is shared with the fixes that follow it.
    gate : float
        Largest squared Mahalanobis distance of a fix to its prediction.
    num_rejections : int
        Consecutive rejected fixes that agree with each other start the filter anew.
    history_ns : int
        How late a measurement may come.
    """

    rotation_psd: float = 1.8
    translation_psd: float = 0.05
    velocity_sigma: float = 0.7
    psd_range: float = 300.0
    shared_share: float = 0.9
    gate: float = CHI2_6_Q999
    num_rejections: int = 2
    history_ns: int = 2 * _NS_PER_S

    def __post_init__(self) -> None:
        if not 0 <= self.shared_share < 1:
            raise ValueError(f"{self.shared_share=} must be in [0, 1)")
        if self.num_rejections < 1 or self.history_ns < 0:
            raise ValueError(
                f"{self.num_rejections=} must be >= 1, {self.history_ns=} >= 0"
            )


class Verdict(enum.Enum):
    """What the filter made of a fix."""

    STARTED = "STARTED"
    """The first one, or the first after the camera was out of sight for long."""
    ACCEPTED = "ACCEPTED"
    REJECTED = "REJECTED"
    """Too far from the prediction."""
    RESTARTED = "RESTARTED"
    """Too far again, and where the fix before was: the prediction is wrong."""
    TOO_OLD = "TOO_OLD"
    """Older than the history."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fix:
    timestamp_ns: int
    cam_from_world: Rigid3
    covariance: FloatArray
    landmark_distance: float


_Measurement = _Fix | Twist | Position | Way


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Entry:
    """A measurement and the state after it."""

    measurement: _Measurement
    state: MotionState
    rejected: tuple[_Fix, ...]
    verdict: Verdict
    sensed: tuple[int, ...] = ()
    """Parts of the acceleration, `_PARTS`, that were measured up to this time."""


class MotionTracker:
    """Error-state filter of a camera's motion.

    Measurements may come late: the filter goes back to the time they belong to and
    forward again through those that came since.

    Parameters
    ----------
    options : MotionOptions, optional
        Defaults of `MotionOptions` when None.
    """

    def __init__(self, options: MotionOptions | None = None) -> None:
        self._options = options or MotionOptions()
        self._history: deque[_Entry] = deque()

    @property
    def state(self) -> MotionState | None:
        """The newest state; None before the first fix."""
        return self._history[-1].state if self._history else None

    def reset(self) -> None:
        """Forget everything."""
        self._history.clear()

    def update(
        self,
        timestamp_ns: int,
        cam_from_world: Rigid3,
        covariance: FloatArray,
        *,
        landmark_distance: float,
    ) -> Verdict:
        """Take a fix, at the time its frame was captured.

        Parameters
        ----------
        timestamp_ns : int
            Of the frame; may be older than the newest measurement.
        cam_from_world : Rigid3
            Measured pose.
        covariance : ndarray of shape (6, 6), float64
            Honest covariance of the fix by itself.
        landmark_distance : float
            Typical distance of the landmarks that it was computed from, m, > 0.
        """
        fix = _Fix(
            timestamp_ns=timestamp_ns,
            cam_from_world=cam_from_world,
            covariance=np.asarray(covariance, dtype=np.float64),
            landmark_distance=max(landmark_distance, 1e-9),
        )
        if not self._history:
            self._history.append(self._start(fix, Verdict.STARTED))
            return Verdict.STARTED
        verdict = self._insert(fix)
        return Verdict.TOO_OLD if verdict is None else verdict

    def add_gyro(
        self,
        timestamp_ns: int,
        rate_in_cam_rad_s: npt.ArrayLike,
        *,
        sigma_rad_s: float,
    ) -> None:
        """Take an angular rate of the camera, as a gyroscope measures it.

        Parameters
        ----------
        timestamp_ns : int
            On the clock of the frames.
        rate_in_cam_rad_s : array_like of shape (3,)
            Of the camera relative to the world, in camera axes, its bias removed.
        sigma_rad_s : float
            Standard deviation of each component.
        """
        # The world turns about the camera the other way round.
        rate = -np.asarray(rate_in_cam_rad_s, dtype=np.float64)
        self._add_twist(timestamp_ns, (0, 1, 2), rate, np.eye(3) * sigma_rad_s**2)

    def add_relative_motion(
        self,
        start_ns: int,
        end_ns: int,
        newer_from_older: Rigid3,
        covariance: FloatArray,
    ) -> None:
        """Take the motion between two moments, as a gyroscope or wheels measure it.

        To be told before the fix of the second moment. What of it lies before the
        newest measurement is left out.

        Parameters
        ----------
        start_ns, end_ns : int
            Times of the older and the newer camera frame, on the clock of the frames.
        newer_from_older : Rigid3
            ``cam_from_world(end) @ cam_from_world(start)^-1``.
        covariance : ndarray of shape (6, 6), float64
            Of its left perturbation; huge for what it does not measure.

        Raises
        ------
        ValueError
            When `end_ns` is not after `start_ns`.
        """
        if end_ns <= start_ns:
            raise ValueError(f"{end_ns=} must be after {start_ns=}")
        if self._history:
            self._insert(
                Way(
                    start_ns=start_ns,
                    timestamp_ns=end_ns,
                    newer_from_older=newer_from_older,
                    covariance=np.asarray(covariance, dtype=np.float64),
                )
            )

    def add_position(
        self, timestamp_ns: int, center: npt.ArrayLike, covariance: npt.ArrayLike
    ) -> Verdict | None:
        """Take a place of the camera, as a GNSS receiver measures it.

        One that contradicts what fixes say is left out, and so is any before the first
        fix: a place alone is no pose.

        Parameters
        ----------
        timestamp_ns : int
            On the clock of the frames.
        center : array_like of shape (3,)
            Camera centre in the world, m.
        covariance : array_like of shape (3, 3)
            Of what is new in it: errors that places share for a while, as those of a
            receiver do, must be spread over all of them by the caller.

        Returns
        -------
        Verdict or None
            ACCEPTED, REJECTED, or None for one that came too early or too late.
        """
        measured = Position(
            timestamp_ns=timestamp_ns,
            center=np.asarray(center, dtype=np.float64),
            covariance=np.asarray(covariance, dtype=np.float64),
        )
        return self._insert(measured) if self._history else None

    def _add_twist(
        self,
        timestamp_ns: int,
        components: tuple[int, ...],
        values: FloatArray,
        covariance: FloatArray,
    ) -> None:
        if values.shape != (len(components),) or not np.all(np.isfinite(values)):
            raise ValueError(f"expected {len(components)} finite numbers, got {values}")
        if self._history:
            self._insert(
                Twist(
                    timestamp_ns=timestamp_ns,
                    components=components,
                    values=values,
                    covariance=covariance,
                )
            )

    def _insert(self, measurement: _Measurement) -> Verdict | None:
        """Put a measurement in its place; None when that is before the history."""
        later: list[_Measurement] = []
        newest_ns = self._history[-1].state.timestamp_ns
        while (
            self._history
            and self._history[-1].measurement.timestamp_ns > measurement.timestamp_ns
        ):
            later.append(self._history.pop().measurement)
        if not self._history:
            # Before everything that is known. A clock that was set back stays back.
            self._replay(reversed(later))
            is_fix = isinstance(measurement, _Fix)
            if (
                is_fix
                and newest_ns - measurement.timestamp_ns > self._options.history_ns
            ):
                assert isinstance(measurement, _Fix)
                self._history.clear()
                self._history.append(self._start(measurement, Verdict.STARTED))
                return Verdict.STARTED
            return None
        entry = self._applied(measurement)
        self._history.append(entry)
        self._replay(reversed(later))
        oldest_ns = self._history[-1].state.timestamp_ns - self._options.history_ns
        while len(self._history) > 1 and (
            self._history[1].measurement.timestamp_ns < oldest_ns
        ):
            self._history.popleft()
        return entry.verdict

    def _replay(self, measurements: Iterable[_Measurement]) -> None:
        for measurement in measurements:
            if self._history:
                self._history.append(self._applied(measurement))
            elif isinstance(measurement, _Fix):
                self._history.append(self._start(measurement, Verdict.STARTED))

    def _applied(self, measurement: _Measurement) -> _Entry:
        last = self._history[-1]
        if isinstance(measurement, Way):
            return self._moved(measurement, last)
        state = propagate(last.state, measurement.timestamp_ns)
        sensed: tuple[int, ...] = ()
        if state.timestamp_ns == last.state.timestamp_ns:
            sensed = last.sensed
        if isinstance(measurement, Twist):
            return _Entry(
                measurement=measurement,
                state=with_twist(state, measurement),
                rejected=last.rejected,
                verdict=Verdict.ACCEPTED,
                sensed=sensed,
            )
        if isinstance(measurement, Position):
            placed = with_position(state, measurement)
            return _Entry(
                measurement=measurement,
                state=state if placed is None else placed,
                rejected=last.rejected,
                verdict=Verdict.REJECTED if placed is None else Verdict.ACCEPTED,
                sensed=sensed,
            )
        if not prediction_is_usable(
            state.covariance[:6, :6], landmark_distance=state.landmark_distance
        ):
            return self._start(measurement, Verdict.STARTED)
        innovation = log_se3(
            measurement.cam_from_world @ state.cam_from_world.inverse()
        )
        allowed = state.covariance[:6, :6] + state.shared + measurement.covariance
        distance2 = float(innovation @ np.linalg.solve(allowed, innovation))
        if distance2 > self._options.gate:
            return self._rejected(measurement, state, last.rejected)
        return _Entry(
            measurement=measurement,
            state=self._with_fix(state, measurement, innovation, sensed=sensed),
            rejected=(),
            verdict=Verdict.ACCEPTED,
        )

    def _start(
        self, fix: _Fix, verdict: Verdict, *, velocity: FloatArray | None = None
    ) -> _Entry:
        options = self._options
        share = options.shared_share
        covariance = np.zeros((12, 12))
        covariance[:6, :6] = (1.0 - share) * fix.covariance
        sigma = options.velocity_sigma
        covariance[6:9, 6:9] = np.eye(3) * sigma**2
        covariance[9:, 9:] = np.eye(3) * (sigma * fix.landmark_distance) ** 2
        state = MotionState(
            timestamp_ns=fix.timestamp_ns,
            cam_from_world=fix.cam_from_world,
            velocity=np.zeros(6) if velocity is None else velocity,
            covariance=covariance,
            shared=share * fix.covariance,
            acceleration_psd=self._first_psd(fix.landmark_distance),
            landmark_distance=fix.landmark_distance,
            fix_ns=fix.timestamp_ns,
        )
        return _Entry(measurement=fix, state=state, rejected=(), verdict=verdict)

    def _first_psd(self, landmark_distance: float) -> FloatArray:
        return np.array(
            [
                self._options.rotation_psd,
                self._options.translation_psd * landmark_distance**2,
            ]
        )

    def _moved(self, way: Way, last: _Entry) -> _Entry:
        """Return what follows from a motion, and learn the acceleration from it."""
        state, sensed = last.state, last.sensed
        part = way.since(state.timestamp_ns)
        if part is not None:
            before = propagate(state, part.start_ns)
            state, off, scatter = with_way(before, part)
            noise = np.diag(part.covariance)
            # Of what is hardly measured nothing is learned.
            sensed = tuple(
                idx
                for idx, axes in enumerate(_PARTS)
                if 2.0 * float(np.sum(noise[axes]))
                < float(np.trace(scatter[axes, axes]))
            )
            learned = self._learned_psd(before, scatter, off, parts=sensed)
            sudden = self._sudden_psd(before, part, off, parts=sensed)
            if np.any(sudden > _SUDDEN**2 * before.acceleration_psd):
                # A jerk is one, and no sign that the pose before it was wrong.
                before = replace(before, acceleration_psd=sudden)
                state, _, _ = with_way(before, part)
            state = replace(state, acceleration_psd=learned)
        return _Entry(
            measurement=way,
            state=state,
            rejected=last.rejected,
            verdict=Verdict.ACCEPTED,
            sensed=sensed,
        )

    def _with_fix(
        self,
        state: MotionState,
        fix: _Fix,
        innovation: FloatArray,
        *,
        sensed: tuple[int, ...],
    ) -> MotionState:
        share = self._options.shared_share
        noise = (1.0 - share) * fix.covariance
        correction, covariance, scatter = updated(
            state.covariance, np.eye(6, 12), innovation, noise
        )
        distance = 0.9 * state.landmark_distance + 0.1 * fix.landmark_distance
        return replace(
            shifted(state, correction, covariance),
            shared=share * fix.covariance,
            acceleration_psd=self._learned_psd(
                state,
                scatter,
                innovation,
                parts=[idx for idx in range(len(_PARTS)) if idx not in sensed],
            ),
            landmark_distance=distance,
            fix_ns=max(state.fix_ns, fix.timestamp_ns),
        )

    def _learned_psd(
        self,
        state: MotionState,
        scatter: FloatArray,
        innovation: FloatArray,
        *,
        parts: Iterable[int],
    ) -> FloatArray:
        """Return densities that grow fast on surprises, and shrink slowly."""
        first = self._first_psd(state.landmark_distance)
        limit = self._options.psd_range
        factors = np.ones(2)
        for idx in parts:
            axes = _PARTS[idx]
            y = innovation[axes]
            surprise = float(y @ np.linalg.solve(scatter[axes, axes], y)) / 3.0 - 1.0
            gain = 0.25 if surprise > 0 else 0.05
            factors[idx] = 1.0 + gain * min(surprise, 8.0)
        return np.clip(state.acceleration_psd * factors, first / limit, first * limit)

    def _sudden_psd(
        self, state: MotionState, way: Way, off: FloatArray, *, parts: Iterable[int]
    ) -> FloatArray:
        """Return densities with which a way that is off by so much is usual."""
        span_s = (way.timestamp_ns - way.start_ns) / _NS_PER_S
        psd = state.acceleration_psd.copy()
        for idx in parts:
            usual = 3.0 * float(np.mean(off[_PARTS[idx]] ** 2)) / span_s**3
            psd[idx] = max(psd[idx], usual)
        limit = self._options.psd_range * self._first_psd(state.landmark_distance)
        return np.asarray(np.clip(psd, None, np.maximum(limit, state.acceleration_psd)))

    def _rejected(
        self, fix: _Fix, state: MotionState, before: tuple[_Fix, ...]
    ) -> _Entry:
        """Return the state unchanged, or a new one when rejected fixes agree."""
        options = self._options
        agreeing: tuple[_Fix, ...] = ()
        velocity = None
        if before and fix.timestamp_ns > before[-1].timestamp_ns:
            other = before[-1]
            off = log_se3(fix.cam_from_world @ other.cam_from_world.inverse())
            dt = (fix.timestamp_ns - other.timestamp_ns) / _NS_PER_S
            sigma = options.velocity_sigma * dt
            spread = np.repeat([sigma, sigma * fix.landmark_distance], 3) ** 2
            allowed = fix.covariance + other.covariance + np.diag(spread)
            if float(off @ np.linalg.solve(allowed, off)) <= options.gate:
                agreeing = before
                velocity = off / dt if dt < 0.5 else None
        rejected = (*agreeing, fix)
        if len(rejected) >= options.num_rejections:
            # Of two fixes close in time the difference is mostly noise.
            return self._start(
                fix,
                Verdict.RESTARTED,
                velocity=None if velocity is None else 0.5 * velocity,
            )
        return _Entry(
            measurement=fix, state=state, rejected=rejected, verdict=Verdict.REJECTED
        )
