"""The camera's motion: a filter on SE(3), predictions, and a smooth odometry frame.

Imports nothing but NumPy, since the publisher predicts in a process of its own.

The state is the pose ``cam_from_world`` and its twist ``velocity`` (rad/s, m/s, in the
camera frame): ``cam_from_world(t + dt) = Exp(velocity dt) @ cam_from_world(t)``. Errors
are left perturbations as in `edgeloc.types`. The acceleration is white noise; its
density is learned from how far fixes lie from predictions, and starts from the
distance of the landmarks, so that neither a scene's unit nor its size matters.

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

from edgeloc.geometry.se3 import adjoint, exp_se3, log_se3, skew
from edgeloc.types import FloatArray, Rigid3

_NS_PER_S = 1_000_000_000
_VECTOR_VERSION = 1.0

VECTOR_SIZE = 1 + 4 + 12 + 6 + 144 + 36 + 2 + 1
"""Elements of `MotionState.to_vector`."""

CHI2_6_Q999 = 22.458
"""Of a chi-square with six degrees of freedom: 0.999 lie below."""

CHI2_3_Q999 = 16.266
"""The same with three."""

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MotionState:
    """Where the camera is, how it moves, and how well that is known.

    Parameters
    ----------
    timestamp_ns : int
        Of this state.
    cam_from_world : Rigid3
        The pose.
    velocity : ndarray of shape (6,), float64
        The twist (rad/s, m/s), see the module's docstring.
    covariance : ndarray of shape (12, 12), float64
        Of (pose, twist), without what fixes share.
    shared : ndarray of shape (6, 6), float64
        The part of the pose's covariance that all recent fixes share.
    acceleration_psd : ndarray of shape (2,), float64
        Densities of the angular (rad^2/s^3) and linear (m^2/s^3) acceleration.
    landmark_distance : float
        Typical distance of the landmarks in view, m: the size of the scene.
    fix_ns : int
        Time of the newest fix in it.
    """

    timestamp_ns: int
    cam_from_world: Rigid3
    velocity: FloatArray
    covariance: FloatArray
    shared: FloatArray
    acceleration_psd: FloatArray
    landmark_distance: float
    fix_ns: int

    def to_vector(self) -> FloatArray:
        """Return the state as `VECTOR_SIZE` numbers, for shared memory."""
        times = [
            part
            for ns in (self.timestamp_ns, self.fix_ns)
            for part in divmod(ns, _NS_PER_S)
        ]  # as one float64 each, nanoseconds would be rounded after 104 days
        return np.concatenate(
            [
                [_VECTOR_VERSION, *times],
                self.cam_from_world.R.ravel(),
                self.cam_from_world.t,
                self.velocity,
                self.covariance.ravel(),
                self.shared.ravel(),
                self.acceleration_psd,
                [self.landmark_distance],
            ]
        )

    @staticmethod
    def from_vector(vector: npt.ArrayLike) -> MotionState:
        """Return the state of a vector.

        Raises
        ------
        ValueError
            When it is not one that `to_vector` made.
        """
        v = np.asarray(vector, dtype=np.float64)
        if v.shape != (VECTOR_SIZE,) or v[0] != _VECTOR_VERSION:
            raise ValueError(
                f"a motion state is {VECTOR_SIZE} numbers of version "
                f"{_VECTOR_VERSION:.0f}, got shape {v.shape}"
            )
        if not np.all(np.isfinite(v)):
            raise ValueError("a motion state must be finite")
        timestamp_s, timestamp_rest, fix_s, fix_rest = (int(part) for part in v[1:5])
        parts = np.split(v[5:], np.cumsum([9, 3, 6, 144, 36, 2]))
        return MotionState(
            timestamp_ns=timestamp_s * _NS_PER_S + timestamp_rest,
            cam_from_world=Rigid3(R=parts[0].reshape(3, 3), t=parts[1]),
            velocity=parts[2],
            covariance=parts[3].reshape(12, 12),
            shared=parts[4].reshape(6, 6),
            acceleration_psd=parts[5],
            landmark_distance=float(parts[6][0]),
            fix_ns=fix_s * _NS_PER_S + fix_rest,
        )


def propagate(state: MotionState, timestamp_ns: int) -> MotionState:
    """Return the state at another time, with a covariance that grew by the way.

    Parameters
    ----------
    state : MotionState
        At any time.
    timestamp_ns : int
        Later, or earlier: uncertainty grows both ways.
    """
    dt = (timestamp_ns - state.timestamp_ns) / _NS_PER_S
    if dt == 0.0:
        return state
    step = exp_se3(state.velocity * dt)
    transition = _transition(step, state.velocity, dt)
    carry = transition[:6, :6]
    psd = np.repeat(state.acceleration_psd, 3)
    noise = np.zeros((12, 12))
    span = abs(dt)
    idx = np.arange(6)
    noise[idx, idx] = psd * span**3 / 3.0
    noise[idx + 6, idx + 6] = psd * span
    noise[idx, idx + 6] = noise[idx + 6, idx] = psd * span * dt / 2.0
    return replace(
        state,
        timestamp_ns=timestamp_ns,
        cam_from_world=step @ state.cam_from_world,
        covariance=_symmetric(transition @ state.covariance @ transition.T + noise),
        shared=_symmetric(carry @ state.shared @ carry.T),
    )


def _transition(step: Rigid3, velocity: FloatArray, dt: float) -> FloatArray:
    """Return how errors of (pose, twist) carry over a step, (12, 12)."""
    transition = np.eye(12)
    transition[:6, :6] = adjoint(step)
    transition[:6, 6:] = dt * _left_jacobian(velocity * dt)
    return transition


def predict_pose(state: MotionState, timestamp_ns: int) -> tuple[Rigid3, FloatArray]:
    """Return the pose at a time, and its covariance.

    Parameters
    ----------
    state : MotionState
        Newest state.
    timestamp_ns : int
        Of the frame.

    Returns
    -------
    cam_from_world : Rigid3
    covariance : ndarray of shape (6, 6), float64
        In the convention of `edgeloc.types`.
    """
    there = propagate(state, timestamp_ns)
    return there.cam_from_world, there.covariance[:6, :6] + there.shared


def prediction_is_usable(
    covariance: FloatArray,
    *,
    landmark_distance: float,
    max_rotation_sigma_rad: float = 0.35,
    max_position_share: float = 0.35,
) -> bool:
    """Return whether a predicted pose is worth more than none.

    Parameters
    ----------
    covariance : ndarray of shape (6, 6), float64
        From `predict_pose`.
    landmark_distance : float
        `MotionState.landmark_distance`.
    max_rotation_sigma_rad : float
        Largest standard deviation of the rotation, about its worst axis.
    max_position_share : float
        Largest standard deviation of the position, along its worst axis, in landmark
        distances: beyond it, nothing of what is in view is where it is expected.
    """
    rotation = float(np.linalg.eigvalsh(covariance[:3, :3])[-1])
    position = float(np.linalg.eigvalsh(covariance[3:, 3:])[-1])
    return (
        rotation <= max_rotation_sigma_rad**2
        and position <= (max_position_share * landmark_distance) ** 2
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Twist:
    """A measurement of some components of the twist."""

    timestamp_ns: int
    components: tuple[int, ...]
    values: FloatArray
    covariance: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Position:
    """A measurement of the camera centre in the world."""

    timestamp_ns: int
    center: FloatArray
    covariance: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Way:
    """A measurement of the motion between two moments."""

    start_ns: int
    timestamp_ns: int
    newer_from_older: Rigid3
    covariance: FloatArray

    def since(self, start_ns: int) -> _Way | None:
        """Return the part of it behind a time, at a steady pace; None for nothing."""
        if start_ns <= self.start_ns:
            return self
        share = (self.timestamp_ns - start_ns) / (self.timestamp_ns - self.start_ns)
        if share <= 0.0:
            return None
        return _Way(
            start_ns=start_ns,
            timestamp_ns=self.timestamp_ns,
            newer_from_older=exp_se3(share * log_se3(self.newer_from_older)),
            covariance=share * self.covariance,
        )


_Measurement = _Fix | _Twist | _Position | _Way


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
                _Way(
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
        measured = _Position(
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
                _Twist(
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
        if isinstance(measurement, _Way):
            return self._moved(measurement, last)
        state = propagate(last.state, measurement.timestamp_ns)
        sensed: tuple[int, ...] = ()
        if state.timestamp_ns == last.state.timestamp_ns:
            sensed = last.sensed
        if isinstance(measurement, _Twist):
            return _Entry(
                measurement=measurement,
                state=_with_twist(state, measurement),
                rejected=last.rejected,
                verdict=Verdict.ACCEPTED,
                sensed=sensed,
            )
        if isinstance(measurement, _Position):
            placed = _with_position(state, measurement)
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

    def _moved(self, way: _Way, last: _Entry) -> _Entry:
        """Return what follows from a motion: the state at its start is an unknown, too.

        Its pose is cloned [1]_, so that what is told of the way between two poses does
        not make either surer than it is.

        References
        ----------
        .. [1] Roumeliotis, Burdick, "Stochastic Cloning: A Generalized Framework for
           Processing Relative State Measurements", ICRA 2002.
        """
        state, sensed = last.state, last.sensed
        part = way.since(state.timestamp_ns)
        if part is not None:
            before = propagate(state, part.start_ns)
            state, off, scatter = _with_way(before, part)
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
                state, _, _ = _with_way(before, part)
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
        correction, covariance, scatter = _updated(
            state.covariance, np.eye(6, 12), innovation, noise
        )
        distance = 0.9 * state.landmark_distance + 0.1 * fix.landmark_distance
        return replace(
            _shifted(state, correction, covariance),
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
        self, state: MotionState, way: _Way, off: FloatArray, *, parts: Iterable[int]
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


def _with_twist(state: MotionState, measured: _Twist) -> MotionState:
    design = np.eye(12)[[6 + component for component in measured.components]]
    off = measured.values - state.velocity[list(measured.components)]
    return _corrected(state, design, off, measured.covariance)


def _with_way(
    before: MotionState, way: _Way
) -> tuple[MotionState, FloatArray, FloatArray]:
    """Return the state behind a way, by how much it surprised, and its covariance."""
    after = propagate(before, way.timestamp_ns)
    predicted = after.cam_from_world @ before.cam_from_world.inverse()
    dt = (way.timestamp_ns - before.timestamp_ns) / _NS_PER_S
    transition = _transition(predicted, before.velocity, dt)
    # Of (pose, twist) after and the pose before; the noise is that of the first alone.
    joint = np.zeros((18, 18))
    joint[:12, :12] = after.covariance
    joint[12:, 12:] = before.covariance[:6, :6]
    across = transition @ before.covariance[:, :6]
    joint[:12, 12:], joint[12:, :12] = across, across.T
    design = np.zeros((6, 18))
    design[:, :6], design[:, 12:] = np.eye(6), -transition[:6, :6]
    off = log_se3(way.newer_from_older @ predicted.inverse())
    correction, joint, scatter = _updated(joint, design, off, way.covariance)
    return _shifted(after, correction[:12], joint[:12, :12]), off, scatter


def _with_position(state: MotionState, measured: _Position) -> MotionState | None:
    """Return the state with a place in it; None when it contradicts the state."""
    R = state.cam_from_world.R
    design = np.zeros((3, 12))
    design[:, 3:6] = -R.T  # the centre moves by -R^T v under Exp(omega, v)
    off = measured.center - state.cam_from_world.origin_in_a
    shared = R.T @ state.shared[3:, 3:] @ R
    allowed = design @ state.covariance @ design.T + shared + measured.covariance
    if float(off @ np.linalg.solve(allowed, off)) > CHI2_3_Q999:
        return None
    # What fixes share stays unknown to the filter, and so to its weight.
    return _corrected(state, design, off, measured.covariance + shared)


def _corrected(
    state: MotionState, design: FloatArray, off: FloatArray, noise: FloatArray
) -> MotionState:
    """Return the state after a measurement that is `design` times its error."""
    correction, covariance, _ = _updated(state.covariance, design, off, noise)
    return _shifted(state, correction, covariance)


def _updated(
    covariance: FloatArray, design: FloatArray, off: FloatArray, noise: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return a Kalman update's correction, covariance, and that of its innovation."""
    scatter = design @ covariance @ design.T + noise
    gain = np.linalg.solve(scatter, design @ covariance).T
    keep = np.eye(len(covariance)) - gain @ design
    # Joseph's form stays positive definite.
    return gain @ off, keep @ covariance @ keep.T + gain @ noise @ gain.T, scatter


def _shifted(
    state: MotionState, correction: FloatArray, covariance: FloatArray
) -> MotionState:
    return replace(
        state,
        cam_from_world=exp_se3(correction[:6]) @ state.cam_from_world,
        velocity=state.velocity + correction[6:],
        covariance=_symmetric(covariance),
    )


def _left_jacobian(xi: FloatArray) -> FloatArray:
    """Return d Exp(xi + d) = Exp(J d) Exp(xi) to second order, (6, 6)."""
    ad = np.zeros((6, 6))
    ad[:3, :3] = ad[3:, 3:] = skew(xi[:3])
    ad[3:, :3] = skew(xi[3:])
    return np.asarray(np.eye(6) + 0.5 * ad + ad @ ad / 6.0)


def _symmetric(matrix: FloatArray) -> FloatArray:
    return np.asarray(0.5 * (matrix + matrix.T))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Odometry:
    """A frame in which the camera never jumps, and where it lies in the map.

    ``cam_from_map = cam_from_odom @ map_from_odom^-1``: motion is integrated in the
    first, fixes move only the second.

    Parameters
    ----------
    timestamp_ns : int
        Of the frame.
    cam_from_odom : Rigid3
        Integrated motion since the first pose.
    map_from_odom : Rigid3
        Where the odometry frame lies in the map according to the newest pose.
    """

    timestamp_ns: int
    cam_from_odom: Rigid3
    map_from_odom: Rigid3


class Odometer:
    """Integrates relative motion into a frame that fixes do not disturb."""

    def __init__(self) -> None:
        self._odometry: Odometry | None = None

    @property
    def odometry(self) -> Odometry | None:
        """The newest; None before the first pose."""
        return self._odometry

    def advance(
        self, timestamp_ns: int, newer_from_older: Rigid3, cam_from_world: Rigid3
    ) -> Odometry:
        """Return the odometry of the next frame.

        Parameters
        ----------
        timestamp_ns : int
            Of the frame.
        newer_from_older : Rigid3
            Motion since the frame before, from one and the same evidence.
        cam_from_world : Rigid3
            Best pose of the frame; ignored but for `map_from_odom`.
        """
        if self._odometry is None:
            cam_from_odom = Rigid3.identity()
        else:
            moved = newer_from_older @ self._odometry.cam_from_odom
            # A product of many rotations drifts off them.
            u, _, vt = np.linalg.svd(moved.R)
            cam_from_odom = Rigid3(R=u @ vt, t=moved.t)
        self._odometry = Odometry(
            timestamp_ns=timestamp_ns,
            cam_from_odom=cam_from_odom,
            map_from_odom=cam_from_world.inverse() @ cam_from_odom,
        )
        return self._odometry
