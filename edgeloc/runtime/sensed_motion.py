"""What inertial sensors and wheels say about the way from one frame to the next."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edgeloc.geometry.se3 import adjoint, exp_se3, log_se3
from edgeloc.types import FloatArray, IntArray, Rigid3

UNKNOWN_VARIANCE = 1e6
"""rad^2 or m^2, of what a sensor does not measure."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RelativeMotion:
    """How the camera moved within a time.

    Parameters
    ----------
    newer_from_older : Rigid3
        ``cam_from_world(end) @ cam_from_world(start)^-1``.
    covariance : ndarray of shape (6, 6), float64
        Of its left perturbation; `UNKNOWN_VARIANCE` for what is not measured.
    """

    newer_from_older: Rigid3
    covariance: FloatArray

    def then(self, later: RelativeMotion) -> RelativeMotion:
        """Return this motion and the one behind it as one."""
        carry = adjoint(later.newer_from_older)
        return RelativeMotion(
            newer_from_older=later.newer_from_older @ self.newer_from_older,
            covariance=carry @ self.covariance @ carry.T + later.covariance,
        )

    def fused(self, other: RelativeMotion) -> RelativeMotion:
        """Return what two sensors say about the same time, each as sure as it is."""
        both = self.covariance + other.covariance
        gain = np.linalg.solve(both, self.covariance).T
        off = log_se3(other.newer_from_older @ self.newer_from_older.inverse())
        covariance = self.covariance - gain @ self.covariance
        return RelativeMotion(
            newer_from_older=exp_se3(gain @ off) @ self.newer_from_older,
            covariance=0.5 * (covariance + covariance.T),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SensedMotion:
    """What sensors say about the way from the frame before to this one.

    Parameters
    ----------
    start_ns, end_ns : int
        Of the frames; equal for the first one.
    rate_times_ns : ndarray of shape (N,), int64
        Of angular rates, ascending: the last before the first frame, those between the
        two and the first behind the second, as far as they came in time.
    rates_rad_s : ndarray of shape (N, 3), float64
        Of the camera relative to the world in camera axes, with the gyroscope's bias.
    odometry : RelativeMotion or None
        Of the camera, by wheels.
    """

    start_ns: int
    end_ns: int
    rate_times_ns: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    rates_rad_s: FloatArray = field(default_factory=lambda: np.zeros((0, 3)))
    odometry: RelativeMotion | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was said."""
        return len(self.rate_times_ns) == 0 and self.odometry is None
