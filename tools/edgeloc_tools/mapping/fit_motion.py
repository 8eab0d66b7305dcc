"""How cameras of a map move between pictures that show the same."""

from __future__ import annotations

from functools import partial

import numpy as np

from edgeloc.localize.rerank import Agreement
from edgeloc.localize.view_motion import MIN_SUPPORT, ViewMotion, turn_and_roll
from edgeloc.types import FloatArray, IntArray
from edgeloc_tools.mapping.choose import sure_slope


def fit_view_motion(
    agreement: Agreement, relative: FloatArray, runs: IntArray
) -> ViewMotion:
    """Return what a turn and a change of scale mean in a map, by least squares.

    Each share is that of the linear estimate with the smallest mean square error: where
    what is seen tells little of how the camera moved, it is small, and 0 unless it
    surely tells something, see `sure_slope`. Pairs count by their support.

    Parameters
    ----------
    agreement : Agreement
        Of pairs of images whose poses are known: of the one with the other.
    relative : ndarray of shape (P, 3, 4), float64
        The same pairs: rotation and translation, m, from the camera of the one to that
        of the other.
    runs : ndarray of shape (P,), int64
        Pairs of one run are neighbours, and no evidence for each other.
    """
    said = np.flatnonzero(agreement.support >= MIN_SUPPORT)
    if len(said) == 0:
        return ViewMotion()
    agreement, relative, runs = agreement.of(said), relative[said], runs[said]
    seen_turns, seen_rolls = turn_and_roll(agreement.image_from_query)
    turns, rolls = turn_and_roll(relative[:, :, :3])
    slope = partial(sure_slope, weights=agreement.support, groups=runs)
    motion = ViewMotion(
        roll=min(slope(seen_rolls[:, None], rolls[:, None]), 1.0),
        turn=min(slope(seen_turns, turns), 1.0),
        # What looks larger in the other image was seen by it from nearer.
        depth=slope(-agreement.log_zooms[:, None], relative[:, 2:, 3]),
    )
    # As exact as a site stores it: what is calibrated is what will answer.
    return ViewMotion.from_array(motion.to_array())
