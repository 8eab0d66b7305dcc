"""What few frames can surely tell: which setting is better, and how two things go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeloc.types import FloatArray, IntArray

_MIN_GROUPS = 6
"""Fewer say nothing of each other's spread."""
_SURE = 2.0
"""Standard errors that a setting must be better than the default by."""
_SURE_SLOPE = 3.0
"""Standard errors that a slope must differ from 0 by; of six groups they are rough."""


def surely_better(losses: Sequence[FloatArray], groups: IntArray) -> int:
    """Return which setting to take: the first, unless another is surely better.

    Parameters
    ----------
    losses : sequence of ndarray of shape (N,), float64
        What each setting loses on each of the same samples; of the default first.
    groups : ndarray of shape (N,), int64
        Samples of one group, neighbours in a video, are no evidence for each other: the
        standard error of a paired difference is that of the means of groups.

    Returns
    -------
    int
        Of those that are better by more than two standard errors, the one with the
        smallest mean; 0 where there is none, or fewer than six groups.
    """
    _, group_idx = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group_idx)
    if len(sizes) < _MIN_GROUPS:
        return 0
    best, gain = 0, 0.0
    for number, loss in enumerate(losses):
        means = np.bincount(group_idx, weights=losses[0] - loss) / sizes
        mean = float(means.mean())
        error = float(means.std(ddof=1)) / np.sqrt(len(means))
        if mean > max(_SURE * error, gain):
            best, gain = number, mean
    return best


def sure_slope(
    seen: FloatArray, true: FloatArray, *, weights: FloatArray, groups: IntArray
) -> float:
    """Return the slope of a line through 0; 0 unless it is surely more.

    By least squares. Its standard error is that of groups [1]_, whose samples may all
    be wrong in the same way.

    Parameters
    ----------
    seen, true : ndarray of shape (N, D), float64
        What is known, and what it should tell; one slope for all columns.
    weights : ndarray of shape (N,), float64
        Of the samples, >= 0.
    groups : ndarray of shape (N,), int64
        As for `surely_better`; fewer than six say nothing.

    References
    ----------
    .. [1] Liang, Zeger, "Longitudinal data analysis using generalized linear models",
       Biometrika 1986: the variance that is robust to clusters.
    """
    _, group_idx = np.unique(groups, return_inverse=True)
    square = np.bincount(group_idx, weights=weights * np.sum(seen**2, axis=1))
    both = np.bincount(group_idx, weights=weights * np.sum(seen * true, axis=1))
    count, total = len(square), float(square.sum())
    if count < _MIN_GROUPS or not total > 0:
        return 0.0
    slope = float(both.sum()) / total
    left = float(np.sum((both - slope * square) ** 2))
    error = np.sqrt(count / (count - 1) * left) / total
    return slope if slope > _SURE_SLOPE * error else 0.0
