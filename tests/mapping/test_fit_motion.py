"""What a turn and a change of scale mean in a map."""

import numpy as np
import pytest

from edgeloc.geometry.se3 import exp_so3
from edgeloc.localize.rerank import Agreement
from edgeloc.localize.view_motion import ViewMotion, turn_and_roll
from edgeloc_tools.mapping.choose import sure_slope
from edgeloc_tools.mapping.fit_motion import fit_view_motion

COUNT = 90


def pairs(rng, *, depth, aside):
    """Cameras that roll, pan and step ahead; a step aside moves the picture, too."""
    turns = rng.normal(scale=0.1, size=(COUNT, 3))
    steps = rng.normal(scale=[aside, aside, 0.3], size=(COUNT, 3))
    seen = turns + np.stack([-steps[:, 1], steps[:, 0], np.zeros(COUNT)], 1) / depth
    agreement = Agreement(
        support=np.full(COUNT, 30.0),
        image_from_query=np.stack([exp_so3(turn) for turn in seen]),
        log_zooms=-steps[:, 2] / depth,
    )
    relative = np.concatenate(
        [np.stack([exp_so3(turn) for turn in turns]), steps[:, :, None]], axis=2
    )
    return agreement, relative, np.arange(COUNT) // 10


def test_the_distance_of_things_is_what_a_change_of_scale_is_worth(rng):
    motion = fit_view_motion(*pairs(rng, depth=3.0, aside=0.0))
    assert motion.depth == pytest.approx(3.0, rel=1e-6)
    assert motion.turn == pytest.approx(1.0, rel=1e-3)
    assert motion.roll == pytest.approx(1.0, rel=1e-3)


def test_steps_aside_are_no_turns(rng):
    """As large in the picture as the turns: half of what is seen."""
    motion = fit_view_motion(*pairs(rng, depth=3.0, aside=0.3))
    assert motion.turn == pytest.approx(0.5, abs=0.15)
    assert motion.roll > 0.95


def test_pictures_that_tell_nothing_move_nothing(rng):
    agreement, relative, runs = pairs(rng, depth=3.0, aside=0.0)
    shuffled = agreement.of(rng.permutation(COUNT))
    assert fit_view_motion(shuffled, relative, runs) == ViewMotion()
    # Of one run only; with too little support; without any pair.
    assert fit_view_motion(agreement, relative, 0 * runs).still
    weak = Agreement(
        support=np.full(COUNT, 5.0),
        image_from_query=agreement.image_from_query,
        log_zooms=agreement.log_zooms,
    )
    assert fit_view_motion(weak, relative, runs).still


def test_a_slope_must_hold_in_most_groups(rng):
    groups = np.arange(60) // 10
    seen = rng.normal(size=(60, 1))
    weights = np.ones(60)
    assert sure_slope(seen, 2 * seen, weights=weights, groups=groups) == pytest.approx(
        2
    )
    assert sure_slope(seen, -2 * seen, weights=weights, groups=groups) == 0
    # One group says 20, the others nothing.
    once = np.where(groups[:, None] == 0, 20 * seen, 0.0)
    assert sure_slope(seen, once, weights=weights, groups=groups) == 0
    assert sure_slope(seen, 2 * seen, weights=0 * weights, groups=groups) == 0


def test_turns_and_rolls_are_taken_apart():
    roll, turn = exp_so3([0, 0, 2.5]), exp_so3([0.3, -0.4, 0])
    turns, rolls = turn_and_roll(np.stack([turn @ roll, roll, np.eye(3)]))
    np.testing.assert_allclose(turns, [[0.3, -0.4], [0, 0], [0, 0]], atol=1e-12)
    np.testing.assert_allclose(rolls, [2.5, 2.5, 0], atol=1e-12)
