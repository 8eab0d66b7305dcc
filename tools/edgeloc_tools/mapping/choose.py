"""Choosing a setting on few frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeloc.types import FloatArray, IntArray

_MIN_GROUPS = 6
"""Fewer say nothing of each other's spread."""
_SURE = 2.0
"""Standard errors that a setting must be better than the default by."""


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
