"""The comparison of interpolation with the most similar keyframe."""

import numpy as np
import pytest
from made_up_walk import describing, smooth_vectors, walk

from edgeloc_tools.evaluate.interpolation import (
    CHOSEN,
    DEFAULT,
    TOP_1,
    Walk,
    median_errors,
    row,
)

COUNT = 16


def test_frames_between_keyframes_are_interpolated(rng):
    """Every second image is asked for in the map of the others, a step away."""
    images = walk(rng, shows=np.arange(COUNT), step=0.5)
    vectors = smooth_vectors(rng, COUNT)
    medians = median_errors(
        Walk(images=images[::2], vectors=vectors[::2]),
        Walk(images=images[1:-1:2], vectors=vectors[1:-1:2]),
        describing(),
    )
    errors = medians.errors
    assert list(errors) == [TOP_1, DEFAULT, CHOSEN]
    assert errors[TOP_1] == pytest.approx((0.5, 0.0), abs=1e-4)
    assert errors[CHOSEN][0] < 0.3
    assert errors[DEFAULT][0] < 0.3
    # The vectors are exact: held-out images say that a check of them adds nothing.
    assert medians.chosen.rerank is None
    assert 0 < medians.nees < 20


def test_a_line_says_what_was_chosen():
    errors = {TOP_1: (0.5, 2.0), CHOSEN: (0.25, 1.0)}
    facts = {"errors": errors, "nees": 5.25, "chosen": "the best"}
    assert row("door", "orb", facts) == [
        *("door", "orb", "0.500, 2.00°", "0.250, 1.00°", "5.25", "the best")
    ]
