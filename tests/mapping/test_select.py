"""Which landmarks and keyframes a small map keeps."""

from itertools import combinations

import numpy as np
import pytest

from edgeloc_tools.mapping.select import (
    Coverage,
    SelectOptions,
    rank_keyframes,
    rank_landmarks,
    substitutes,
)

OPTIONS = SelectOptions()


def coverage(rng, *, num=200, num_images=10, values=None, costs=None):
    sees = rng.random((num, num_images)) < 0.3
    sees[np.arange(num), rng.integers(0, num_images, num)] = True
    landmark_idx, image_idx = np.nonzero(sees)
    return Coverage(
        landmark_idx=landmark_idx,
        image_idx=image_idx,
        cell_idx=rng.integers(0, OPTIONS.columns * OPTIONS.rows, len(landmark_idx)),
        values=rng.uniform(0.2, 1.5, num) if values is None else values,
        costs=np.full(num, 10.0) if costs is None else costs,
        num_images=num_images,
    )


def worth(cover, chosen, options=OPTIONS):
    """The function that the ranking climbs, written down plainly."""
    total = 0.0
    take = np.isin(cover.landmark_idx, chosen)
    for image in range(cover.num_images):
        here = take & (cover.image_idx == image)
        value = cover.values[cover.landmark_idx[here]]
        total += options.enough * (1 - np.exp(-value.sum() / options.enough))
        for cell in np.unique(cover.cell_idx[here]):
            own = value[cover.cell_idx[here] == cell].sum()
            total += (
                options.spread_weight
                * options.enough_in_cell
                * (1 - np.exp(-own / options.enough_in_cell))
            )
    return total


def test_every_landmark_is_ranked_once(rng):
    assert sorted(rank_landmarks(coverage(rng), OPTIONS)) == list(range(200))


def test_each_step_takes_what_gains_most(rng):
    """Against the definition, evaluated for every candidate."""
    cover = coverage(rng, num=30, num_images=4, costs=rng.uniform(5, 20, 30))
    ranked = rank_landmarks(cover, OPTIONS)
    for count in range(10):
        before = worth(cover, ranked[:count])
        gains = [
            -np.inf
            if landmark in ranked[:count]
            else (worth(cover, [*ranked[:count], landmark]) - before)
            / cover.costs[landmark]
            for landmark in range(30)
        ]
        assert gains[ranked[count]] == pytest.approx(max(gains))


def test_near_the_best_choice_of_all(rng):
    """1 - 1/e is guaranteed for equal costs; it mostly comes much nearer."""
    cover = coverage(rng, num=14, num_images=4)
    best = max(worth(cover, list(some)) for some in combinations(range(14), 5))
    assert worth(cover, rank_landmarks(cover, OPTIONS)[:5]) > 0.95 * best


def test_no_image_is_left_bare(rng):
    """Landmarks of a lonely image come early, although others are seen more often."""
    landmark_idx = np.concatenate([np.repeat(np.arange(100), 5), np.arange(100, 110)])
    image_idx = np.concatenate([np.tile(np.arange(5), 100), np.full(10, 5)])
    cover = Coverage(
        landmark_idx=landmark_idx,
        image_idx=image_idx,
        cell_idx=rng.integers(0, 48, len(landmark_idx)),
        values=np.ones(110),
        costs=np.full(110, 10.0),
        num_images=6,
    )
    ranked = rank_landmarks(cover, OPTIONS)
    lonely = np.flatnonzero(ranked >= 100)
    assert len(lonely[lonely < 90]) >= 8
    by_observations = np.argsort(-np.bincount(landmark_idx), kind="stable")
    assert not np.any(by_observations[:90] >= 100)


def test_landmarks_are_spread_over_the_picture(rng):
    cover = coverage(rng, num=300, num_images=3, values=np.ones(300))
    chosen = rank_landmarks(cover, OPTIONS)[:40]
    at_random = rng.permutation(300)[:40]

    def cells(some):
        take = np.isin(cover.landmark_idx, some)
        places = cover.image_idx[take] * 48 + cover.cell_idx[take]
        return len(np.unique(places))

    assert cells(chosen) > 1.2 * cells(at_random)


def test_worth_and_cost_count(rng):
    values, costs = np.ones(100), np.full(100, 20.0)
    values[:10], costs[10:20] = 1.5, 10.0
    cover = coverage(rng, num=100, values=values, costs=costs)
    early = rank_landmarks(cover, OPTIONS)[:30]
    assert np.sum(early < 20) >= 12  # twice what chance gives


def test_keyframes_that_stand_for_others_come_first():
    """Two groups of three that look alike, and one image by itself."""
    shared = np.zeros((7, 7))
    shared[:3, :3] = shared[3:6, 3:6] = 0.8
    shared[1, :3] = shared[4, 3:6] = 0.6
    shared[:3, 1] = shared[3:6, 4] = 0.9
    np.fill_diagonal(shared, 1.0)
    order = rank_keyframes(shared)
    assert sorted(order) == list(range(7))
    assert set(order[:3].tolist()) == {1, 4, 6}
    stand_in = substitutes(shared, order[:3])
    assert stand_in.tolist() == [1, 1, 1, 4, 4, 4, 6]
