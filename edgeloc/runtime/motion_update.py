"""What measurements change in the state of a camera's motion: Kalman updates."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgeloc.geometry.se3 import exp_se3, log_se3
from edgeloc.runtime.motion_state import (
    MotionState,
    propagate,
    symmetric,
    transition_over,
)
from edgeloc.types import FloatArray, Rigid3

_NS_PER_S = 1_000_000_000

CHI2_6_Q999 = 22.458
"""Of a chi-square with six degrees of freedom: 0.999 lie below."""

CHI2_3_Q999 = 16.266
"""The same with three."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Twist:
    """A measurement of some components of the twist."""

    timestamp_ns: int
    components: tuple[int, ...]
    values: FloatArray
    covariance: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Position:
    """A measurement of the camera centre in the world."""

    timestamp_ns: int
    center: FloatArray
    covariance: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Way:
    """A measurement of the motion between two moments."""

    start_ns: int
    timestamp_ns: int
    newer_from_older: Rigid3
    covariance: FloatArray

    def since(self, start_ns: int) -> Way | None:
        """Return the part of it behind a time, at a steady pace; None for nothing."""
        if start_ns <= self.start_ns:
            return self
        share = (self.timestamp_ns - start_ns) / (self.timestamp_ns - self.start_ns)
        if share <= 0.0:
            return None
        return Way(
            start_ns=start_ns,
            timestamp_ns=self.timestamp_ns,
            newer_from_older=exp_se3(share * log_se3(self.newer_from_older)),
            covariance=share * self.covariance,
        )


def with_twist(state: MotionState, measured: Twist) -> MotionState:
    """Return the state, at the time of a twist, with it."""
    design = np.eye(12)[[6 + component for component in measured.components]]
    off = measured.values - state.velocity[list(measured.components)]
    return _corrected(state, design, off, measured.covariance)


def with_way(
    before: MotionState, way: Way
) -> tuple[MotionState, FloatArray, FloatArray]:
    """Return the state at the end of a way, with what was told of the way.

    The pose at its start is unknown, too. It is cloned [1]_, so that what is told of
    the way between two poses makes neither surer than it is.

    Parameters
    ----------
    before : MotionState
        At the start of the way.
    way : Way
        Of any length.

    Returns
    -------
    state : MotionState
        At its end.
    innovation : ndarray of shape (6,), float64
        By how much the way is off what was predicted, as a left perturbation of it.
    scatter : ndarray of shape (6, 6), float64
        Covariance of that.

    References
    ----------
    .. [1] Roumeliotis, Burdick, "Stochastic Cloning: A Generalized Framework for
       Processing Relative State Measurements", ICRA 2002.
    """
    after = propagate(before, way.timestamp_ns)
    predicted = after.cam_from_world @ before.cam_from_world.inverse()
    dt = (way.timestamp_ns - before.timestamp_ns) / _NS_PER_S
    transition = transition_over(predicted, before.velocity, dt)
    # Of (pose, twist) after and the pose before; the noise is that of the first alone.
    joint = np.zeros((18, 18))
    joint[:12, :12] = after.covariance
    joint[12:, 12:] = before.covariance[:6, :6]
    across = transition @ before.covariance[:, :6]
    joint[:12, 12:], joint[12:, :12] = across, across.T
    design = np.zeros((6, 18))
    design[:, :6], design[:, 12:] = np.eye(6), -transition[:6, :6]
    off = log_se3(way.newer_from_older @ predicted.inverse())
    correction, joint, scatter = updated(joint, design, off, way.covariance)
    return shifted(after, correction[:12], joint[:12, :12]), off, scatter


def with_position(state: MotionState, measured: Position) -> MotionState | None:
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
    correction, covariance, _ = updated(state.covariance, design, off, noise)
    return shifted(state, correction, covariance)


def updated(
    covariance: FloatArray, design: FloatArray, off: FloatArray, noise: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return what a measurement of an error says: a Kalman update.

    Parameters
    ----------
    covariance : ndarray of shape (n, n), float64
        Of the error.
    design : ndarray of shape (m, n), float64
        From the error to what is measured.
    off : ndarray of shape (m,), float64
        What was measured: the innovation.
    noise : ndarray of shape (m, m), float64
        Covariance of the measurement.

    Returns
    -------
    correction : ndarray of shape (n,), float64
        The error.
    covariance : ndarray of shape (n, n), float64
        Of what is left of it.
    scatter : ndarray of shape (m, m), float64
        Covariance of the innovation.
    """
    scatter = design @ covariance @ design.T + noise
    gain = np.linalg.solve(scatter, design @ covariance).T
    keep = np.eye(len(covariance)) - gain @ design
    # Joseph's form stays positive definite.
    return gain @ off, keep @ covariance @ keep.T + gain @ noise @ gain.T, scatter


def shifted(
    state: MotionState, correction: FloatArray, covariance: FloatArray
) -> MotionState:
    """Return the state after its error was estimated, with what is left of it."""
    return replace(
        state,
        cam_from_world=exp_se3(correction[:6]) @ state.cam_from_world,
        velocity=state.velocity + correction[6:],
        covariance=symmetric(covariance),
    )
