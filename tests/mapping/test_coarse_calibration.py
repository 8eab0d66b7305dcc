"""How errors of interpolated poses go with similarity."""

import numpy as np
import pytest

from edgeloc_tools.mapping.calibrate import MIN_SCORE, calibrate
from edgeloc_tools.mapping.held_out import HeldOutRun
from edgeloc_tools.mapping.held_out_coarse import CoarseSample

NOTHING_FIXED = HeldOutRun(frames=[], trials=[])


def coarse_of(samples):
    run = calibrate(NOTHING_FIXED, samples, samples, keyframe_spacing=0.1)
    assert run.checked == run.coarse
    return run.coarse


def samples_of(rng, *, slope, low=0.4):
    """Errors that grow as exp(slope * (0.9 - score)); one in four by itself."""
    out = []
    for k in range(160):
        own = k % 4 == 0
        score = rng.uniform(0.8, 0.95) if own else rng.uniform(low, 0.9)
        size = np.exp(slope * (0.9 - score))
        error = 0.05 * size * np.linalg.norm(rng.normal(size=3))
        turn = 0.02 * size * np.linalg.norm(rng.normal(size=3))
        out.append(
            CoarseSample(
                score=score,
                evidence=score,
                position_error=error,
                rotation_error_rad=turn,
                passed_over=not own,
            )
        )
    return out


def test_the_slope_is_found_and_reaches_below_what_frames_score(rng):
    coarse = coarse_of(samples_of(rng, slope=4.0, low=0.52))
    assert coarse.spread.position_slope == pytest.approx(4.0, abs=1.0)
    position, rotation = coarse.sigmas(0.6)
    assert position == pytest.approx(0.05 * np.exp(1.2), rel=0.3)
    assert rotation == pytest.approx(0.02 * np.exp(1.2), rel=0.3)
    assert coarse.sigmas(0.9)[0] == pytest.approx(0.05, rel=0.35)


def test_errors_that_do_not_depend_on_similarity_have_next_to_no_slope(rng):
    coarse = coarse_of(samples_of(rng, slope=0.0, low=0.52))
    assert 0.0 <= coarse.spread.position_slope < 0.5


def test_the_gate_is_that_of_frames_with_all_keyframes(rng):
    coarse = coarse_of(samples_of(rng, slope=2.0, low=0.1))
    assert 0.45 < coarse.min_score < 0.55
    # Below the gate nothing is answered, so nothing is learned there.
    assert coarse.spread.middle > coarse.min_score


def test_few_samples_have_no_slope(rng):
    coarse = coarse_of(samples_of(rng, slope=4.0)[:8])
    assert coarse.spread.position_slope == 0.0


def test_without_samples_the_claim_is_wide():
    coarse = coarse_of([])
    assert coarse.min_score == MIN_SCORE
    assert coarse.position_sigma == pytest.approx(0.2 / np.sqrt(6.251))
