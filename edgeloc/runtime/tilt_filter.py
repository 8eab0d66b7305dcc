"""Which way is down for a camera that moves, from its inertial sensor."""

from __future__ import annotations

import numpy as np

from edgeloc.geometry.se3 import exp_so3
from edgeloc.types import FloatArray

_NS_PER_S = 1e9
_GRAVITY_M_S2 = 9.81
_MAX_OFF_M_S2 = 0.6
"""What is longer or shorter than gravity by more is not gravity alone."""
_MEAN_S = 0.4
"""Steps of who walks are over within so long."""
_STEP_NS = 10_000_000
_MAX_GAP_NS = 200_000_000
_WARM_UP_S = 1.0
_MAX_BLIND_S = 10.0
"""So long the gyroscope alone is good for."""


class TiltFilter:
    """A complementary filter: gyroscope for two seconds, accelerometer beyond [1]_.

    What pulls on average is taken for gravity: a vehicle that accelerates gently for
    seconds deceives it, by 5 deg after 3 s at 1 m/s^2. Whoever walks with a camera and
    turns it does not, nor does a strong push, which is longer than gravity.

    Parameters
    ----------
    pull : float
        How fast it goes where the accelerometer says, 1/s.
    bias_pull : float
        How fast the bias of the gyroscope is learned, 1/s^2.

    References
    ----------
    .. [1] Mahony, Hamel, Pflimlin, "Nonlinear Complementary Filters on the Special
       Orthogonal Group", TAC 2008, section IV-C.
    """

    def __init__(self, *, pull: float = 0.5, bias_pull: float = 0.1) -> None:
        self._pull, self._bias_pull = pull, bias_pull
        self._bias = np.zeros(3)
        self._last_ns: int | None = None
        self._begin()

    def _begin(self) -> None:
        self._down: FloatArray | None = None
        self._up_m_s2: FloatArray | None = None
        self._seen_s = self._blind_s = 0.0
        self._clear()

    def _clear(self) -> None:
        self._turn, self._force, self._span_ns = np.zeros(3), np.zeros(3), 0

    def take(
        self, timestamp_ns: int, rate_rad_s: FloatArray, force_m_s2: FloatArray
    ) -> FloatArray | None:
        """Take a sample, and return which way is down at its time.

        Parameters
        ----------
        timestamp_ns : int
            Of the sample.
        rate_rad_s : ndarray of shape (3,), float64
            Angular rate, in the axes of the camera.
        force_m_s2 : ndarray of shape (3,), float64
            What an accelerometer measures: upwards when at rest.

        Returns
        -------
        ndarray of shape (3,), float64, or None
            Of unit length; None until it is known, and between steps of 10 ms.
        """
        last_ns, self._last_ns = self._last_ns, timestamp_ns
        if last_ns is None or not 0 <= timestamp_ns - last_ns <= _MAX_GAP_NS:
            self._begin()
            return None
        step_ns = timestamp_ns - last_ns
        self._turn = self._turn + rate_rad_s * step_ns
        self._force = self._force + force_m_s2 * step_ns
        self._span_ns += step_ns
        if self._span_ns < _STEP_NS:
            return None
        span_s = self._span_ns / _NS_PER_S
        rate, force = self._turn / self._span_ns, self._force / self._span_ns
        self._clear()
        return self._advanced(rate, force, span_s)

    def _advanced(
        self, rate: FloatArray, force: FloatArray, span_s: float
    ) -> FloatArray | None:
        turn = rate - self._bias
        R_newer_from_older = exp_so3(-turn * span_s)
        if self._up_m_s2 is None:
            self._up_m_s2 = force
        before = R_newer_from_older @ self._up_m_s2
        self._up_m_s2 = before + min(span_s / _MEAN_S, 1.0) * (force - before)
        length = float(np.linalg.norm(self._up_m_s2))
        at_rest = abs(length - _GRAVITY_M_S2) <= _MAX_OFF_M_S2
        self._blind_s = 0.0 if at_rest else self._blind_s + span_s
        if self._blind_s > _MAX_BLIND_S:
            self._begin()
        if self._down is None:
            self._down = -self._up_m_s2 / length if at_rest else None
            return None
        if at_rest:
            self._seen_s += span_s
            off = np.cross(-self._up_m_s2 / length, R_newer_from_older @ self._down)
            # A mean at first, so that it does not take long to be right.
            turn = turn + max(self._pull, 1.0 / self._seen_s) * off
            if self._seen_s > _WARM_UP_S:
                self._bias = self._bias - self._bias_pull * span_s * off
        self._down = exp_so3(-turn * span_s) @ self._down
        return self._down if self._seen_s > _WARM_UP_S else None
