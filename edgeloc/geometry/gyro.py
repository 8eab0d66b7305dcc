"""From angular rates to a rotation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeloc.geometry.se3 import exp_so3_rows
from edgeloc.types import FloatArray, IntArray

_NS_PER_S = 1e9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Turn:
    """How a frame of axes turned within a time, and what it depends on.

    Parameters
    ----------
    R_newer_from_older : ndarray of shape (3, 3), float64
        From its older axes to its newer ones.
    by_bias : ndarray of shape (3, 3), float64, s
        With rates smaller by b rad/s it is ``Exp(by_bias @ b) @ R_newer_from_older``,
        to first order.
    angle_rad : float
        The way that it turned, forth and back.
    last_rate_rad_s : ndarray of shape (3,), float64
        At the end, in its own axes.
    """

    R_newer_from_older: FloatArray
    by_bias: FloatArray
    angle_rad: float
    last_rate_rad_s: FloatArray


def integrate_rates(
    times_ns: IntArray, rates_rad_s: FloatArray, *, start_ns: int, end_ns: int
) -> Turn:
    """Return how axes turned, from their angular rates relative to the world.

    Between samples rates are taken to change steadily, before the first and behind the
    last not at all.

    Parameters
    ----------
    times_ns : ndarray of shape (N,), int64
        Of the samples, ascending, N > 0.
    rates_rad_s : ndarray of shape (N, 3), float64
        In the axes that turn.
    start_ns, end_ns : int
        The time asked about, the second later.

    Notes
    -----
    Pieces turn about the rate in their middle; so does the midpoint rule of [1]_.

    References
    ----------
    .. [1] Forster, Carlone, Dellaert, Scaramuzza, "On-Manifold Preintegration for
       Real-Time Visual-Inertial Odometry", TRO 2017, section VI.
    """
    inside = times_ns[(times_ns > start_ns) & (times_ns < end_ns)]
    nodes_s = (np.concatenate([[start_ns], inside, [end_ns]]) - start_ns) / _NS_PER_S
    known_s = (times_ns - start_ns) / _NS_PER_S
    rates = np.stack(
        [np.interp(nodes_s, known_s, rates_rad_s[:, axis]) for axis in range(3)], axis=1
    )
    steps_s = np.diff(nodes_s)
    # The world turns about the axes the other way round.
    angles = -0.5 * (rates[1:] + rates[:-1]) * steps_s[:, None]
    pieces = exp_so3_rows(angles)
    R, by_bias = np.eye(3), np.zeros((3, 3))
    for piece, step_s in zip(pieces, steps_s, strict=True):
        R, by_bias = piece @ R, piece @ by_bias + step_s * np.eye(3)
    return Turn(
        R_newer_from_older=R,
        by_bias=by_bias,
        angle_rad=float(np.linalg.norm(angles, axis=1).sum()),
        last_rate_rad_s=rates[-1],
    )
