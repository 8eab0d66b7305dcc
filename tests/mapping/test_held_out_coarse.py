"""Settings of INTERPOLATE, chosen on a walk whose features are made up."""

import numpy as np
import pytest
from made_up_walk import describing, smooth_vectors, unit, walk

from edgeloc.localize.interpolate import InterpolateOptions
from edgeloc_tools.mapping.held_out_coarse import (
    PASSED_OVER,
    CoarseTrials,
    held_out_lists,
    view_of,
)

COUNT, STEP = 12, 0.5


def trials(images, vectors):
    return CoarseTrials(
        images,
        vectors.astype(np.float16),
        vectors,
        keyframe_idx=np.arange(len(images)),
        describing=describing(),
        spacing=STEP,
    )


def median_error(tried, options):
    return np.median([s.position_error for s in tried.samples(options, checked=True)])


def test_features_that_lie_are_not_trusted(rng):
    """Each image shows what stands beside another one: retrieval alone is right."""
    shows = rng.permutation(COUNT)
    tried = trials(walk(rng, shows=shows, step=STEP), smooth_vectors(rng, COUNT))
    chosen = tried.choose()
    assert chosen.rerank is None or chosen.rerank.score_weight > 20
    assert median_error(tried, chosen) < median_error(tried, InterpolateOptions())


def test_features_that_tell_overrule_vectors_of_noise(rng):
    vectors = unit(0.5 + rng.normal(size=(COUNT, 48)))
    tried = trials(walk(rng, shows=np.arange(COUNT), step=STEP), vectors)
    chosen = tried.choose()
    assert chosen.rerank is not None
    assert chosen.rerank.score_weight < 20
    assert median_error(tried, chosen) < median_error(tried, InterpolateOptions())


def test_five_frames_choose_nothing(rng):
    images, vectors = (
        walk(rng, shows=np.arange(COUNT), step=STEP),
        smooth_vectors(rng, COUNT),
    )
    assert trials(images[:5], vectors[:5]).choose() == InterpolateOptions()


@pytest.mark.parametrize("count", [10, 60])
def test_held_out_frames_are_not_found(count, rng):
    vectors = unit(rng.normal(size=(count, 8)))
    view = view_of(walk(rng, shows=np.arange(COUNT), step=STEP)[0])
    is_keyframe = np.ones(count, bool)
    is_keyframe[3] = False
    lists = held_out_lists(
        vectors, vectors, [view] * count, is_keyframe=is_keyframe, max_frames=24
    )
    assert len(lists) % len(PASSED_OVER) == 0
    by_run = {}
    for found in lists:
        by_run.setdefault(found.run, set()).add(found.image_idx)
        assert 3 not in found.idx
        assert np.all(np.diff(found.scores) <= 0)
    for run, frames in by_run.items():
        # Runs are neighbours in time, and what is found is not of them.
        assert len(frames) == max(frames) - min(frames) + 1
        for found in lists:
            assert found.run != run or not frames & set(found.idx.tolist())
    assert len(by_run) == (10 if count == 10 else 6)
    own = [found for found in lists if not found.passed_over]
    assert len(own) == len(lists) // len(PASSED_OVER)
    assert np.mean([f.scores[0] for f in own]) > np.mean([f.scores[0] for f in lists])
