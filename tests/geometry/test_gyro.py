"""Angular rates become rotations."""

from __future__ import annotations

import numpy as np

from edgeloc.geometry.gyro import integrate_rates
from edgeloc.geometry.se3 import exp_so3, log_so3

MS = 1_000_000


def wobbling(times_ns: np.ndarray) -> np.ndarray:
    """Rates about an axis that itself turns, rad/s."""
    t = times_ns / 1e9
    return np.stack([np.sin(9 * t), 1.5 * np.cos(7 * t), 0.5 + t], axis=1)


def test_a_turn_of_changing_axis() -> None:
    """Against a thousand times finer steps; the world turns the other way round."""
    times_ns = np.arange(-3, 210) * 5 * MS
    start_ns, end_ns = 12 * MS, 998 * MS
    turn = integrate_rates(
        times_ns, wobbling(times_ns), start_ns=start_ns, end_ns=end_ns
    )
    fine_ns = np.linspace(start_ns, end_ns, 20_001)
    middles = wobbling(0.5 * (fine_ns[1:] + fine_ns[:-1]))
    exact = np.eye(3)
    for rate in middles:
        exact = exp_so3(-rate * (end_ns - start_ns) / 1e9 / 20_000) @ exact
    assert np.linalg.norm(log_so3(turn.R_newer_from_older @ exact.T)) < 1e-4
    np.testing.assert_allclose(
        turn.R_newer_from_older @ turn.R_newer_from_older.T, np.eye(3), atol=1e-12
    )
    way = np.linalg.norm(middles, axis=1).mean() * 0.986
    np.testing.assert_allclose(turn.angle_rad, way, rtol=1e-3)
    np.testing.assert_allclose(
        turn.last_rate_rad_s, wobbling(np.array([end_ns]))[0], atol=1e-3
    )


def test_what_a_bias_does() -> None:
    times_ns = np.arange(101) * 5 * MS
    rates, bias = wobbling(times_ns), np.array([0.01, -0.02, 0.015])
    span = {"start_ns": 0, "end_ns": 500 * MS}
    with_it = integrate_rates(times_ns, rates, **span)
    without = integrate_rates(times_ns, rates - bias, **span)
    off = log_so3(without.R_newer_from_older @ with_it.R_newer_from_older.T)
    assert np.linalg.norm(off) > 0.01
    np.testing.assert_allclose(off, with_it.by_bias @ bias, atol=1e-4)


def test_rates_outside_of_the_samples_stay_the_same() -> None:
    rate = np.array([[0.3, -0.2, 0.1]])
    turn = integrate_rates(np.array([50 * MS]), rate, start_ns=0, end_ns=100 * MS)
    np.testing.assert_allclose(
        turn.R_newer_from_older, exp_so3(-0.1 * rate[0]), atol=1e-12
    )
