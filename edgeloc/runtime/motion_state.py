"""How a camera moves: the state of its filter, and predictions from it.

Imports nothing but NumPy, since the publisher predicts in a process of its own.

The state is the pose ``cam_from_world`` and its twist ``velocity`` (rad/s, m/s, in the
camera frame): ``cam_from_world(t + dt) = Exp(velocity dt) @ cam_from_world(t)``. Errors
are left perturbations as in `edgeloc.types`. The acceleration is white noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgeloc.geometry.se3 import adjoint, exp_se3, skew
from edgeloc.types import FloatArray, Rigid3

_NS_PER_S = 1_000_000_000
_VECTOR_VERSION = 1.0

VECTOR_SIZE = 1 + 4 + 12 + 6 + 144 + 36 + 2 + 1
"""Elements of `MotionState.to_vector`."""


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
    transition = transition_over(step, state.velocity, dt)
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
        covariance=symmetric(transition @ state.covariance @ transition.T + noise),
        shared=symmetric(carry @ state.shared @ carry.T),
    )


def transition_over(step: Rigid3, velocity: FloatArray, dt: float) -> FloatArray:
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


def _left_jacobian(xi: FloatArray) -> FloatArray:
    """Return d Exp(xi + d) = Exp(J d) Exp(xi) to second order, (6, 6)."""
    ad = np.zeros((6, 6))
    ad[:3, :3] = ad[3:, 3:] = skew(xi[:3])
    ad[3:, :3] = skew(xi[3:])
    return np.asarray(np.eye(6) + 0.5 * ad + ad @ ad / 6.0)


def symmetric(matrix: FloatArray) -> FloatArray:
    """Return the symmetric part of a matrix, which rounding takes it from."""
    return np.asarray(0.5 * (matrix + matrix.T))
