"""Timing by interleaved runs: ratios hold where absolute times do not."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Kernel = Callable[[], object]
"""Something to time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One kernel, timed.

    Parameters
    ----------
    name : str
        What it does.
    median_ms, p95_ms : float
        Of its runs.
    ratio : float
        Median of its time over the reference's in the same round.
    ratio_low, ratio_high : float
        95 % bootstrap interval of that median.
    """

    name: str
    median_ms: float
    p95_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float


def time_kernels(kernels: Mapping[str, Kernel], *, rounds: int) -> dict[str, list[int]]:
    """Return the times of interleaved runs, ns, one list per kernel.

    Parameters
    ----------
    kernels : mapping of str to callable
        What to run; each runs once before, unmeasured.
    rounds : int
        How often.
    """
    rng = np.random.default_rng(0)
    for kernel in kernels.values():
        kernel()
    names = list(kernels)
    times: dict[str, list[int]] = {name: [] for name in names}
    for _ in range(rounds):
        for idx in rng.permutation(len(names)):
            start_ns = time.perf_counter_ns()
            kernels[names[idx]]()
            times[names[idx]].append(time.perf_counter_ns() - start_ns)
    return times


def summarize(times: Mapping[str, Sequence[int]], *, reference: str) -> list[Timing]:
    """Return medians and ratios to the reference.

    Parameters
    ----------
    times : mapping of str to sequence of int
        From `time_kernels`.
    reference : str
        Key of the reference kernel.
    """
    out = []
    for name, values in times.items():
        ns = np.asarray(values, np.float64)
        ratio, low, high = median_ratio(values, times[reference])
        out.append(
            Timing(
                name=name,
                median_ms=float(np.median(ns)) * 1e-6,
                p95_ms=float(np.quantile(ns, 0.95)) * 1e-6,
                ratio=ratio,
                ratio_low=low,
                ratio_high=high,
            )
        )
    return out


def median_ratio(
    values: Sequence[int], base: Sequence[int]
) -> tuple[float, float, float]:
    """Return the median ratio of times of the same rounds, and its 95 % interval.

    Parameters
    ----------
    values, base : sequence of int
        Times of two kernels, ns, round by round.

    Returns
    -------
    median, low, high : float
        The interval is a bootstrap's over rounds.
    """
    rng = np.random.default_rng(0)
    ratio = np.asarray(values, np.float64) / np.asarray(base, np.float64)
    draws = rng.integers(0, len(ratio), (1000, len(ratio)))
    low, high = np.quantile(np.median(ratio[draws], axis=1), [0.025, 0.975])
    return float(np.median(ratio)), float(low), float(high)
