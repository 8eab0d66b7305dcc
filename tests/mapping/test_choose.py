"""Choosing settings on few frames."""

import numpy as np
import pytest

from edgeloc_tools.mapping.choose import surely_better


def losses(rng, *, gain, noise, groups=8, each=5):
    """A default, and a setting that is better by `gain`, give or take."""
    default = rng.normal(size=groups * each)
    other = default - gain + noise * rng.normal(size=groups * each)
    return [default, other], np.repeat(np.arange(groups), each)


def test_what_is_surely_better_is_taken(rng):
    assert surely_better(*losses(rng, gain=0.3, noise=0.2)) == 1
    assert surely_better(*losses(rng, gain=-0.3, noise=0.2)) == 0


def test_of_several_the_best_is_taken(rng):
    (default, other), groups = losses(rng, gain=0.3, noise=0.1)
    assert surely_better([default, other, other - 0.2, other + 0.1], groups) == 2


def test_few_groups_decide_nothing(rng):
    samples, groups = losses(rng, gain=3.0, noise=0.1, groups=5)
    assert surely_better(samples, groups) == 0


def test_neighbours_are_no_evidence_for_each_other(rng):
    """One run of twenty frames gains much, the seven others nothing."""
    default = np.zeros(8 * 20)
    groups = np.repeat(np.arange(8), 20)
    other = np.where(groups == 3, -1.0, 0.01 * rng.normal(size=len(groups)))
    gain = (default - other).mean()
    alone = (default - other).std(ddof=1) / np.sqrt(len(groups))
    assert gain > 4 * alone
    assert surely_better([default, other], groups) == 0


@pytest.mark.parametrize("seed", range(5))
def test_chance_rarely_overrules_a_default(seed):
    rng = np.random.default_rng(seed)
    taken = [surely_better(*losses(rng, gain=0.0, noise=1.0)) for _ in range(100)]
    assert sum(taken) <= 10
