"""Covariances of fixes against the errors of held-out frames."""

from __future__ import annotations

import numpy as np
import pytest

from edgeloc.localize.fix import FixCalibration
from edgeloc_tools.mapping.fix_calibration import (
    MAX_COVARIANCE_SCALE,
    cross_validated_nees,
    fit_fix_calibration,
    held_out_runs,
)


def coupled(rng, count):
    """Covariances like those of a pose 3 m from a wall: a turn looks like a shift."""
    out = []
    for _ in range(count):
        size = np.exp(rng.normal(0, 0.3))
        turn = np.diag([1.0, 1.0, 0.3]) * (size * 1e-3) ** 2
        lever = np.array([[0, 3.0, 0], [-3.0, 0, 0], [0, 0, 0]])
        covariance = np.zeros((6, 6))
        covariance[:3, :3] = turn
        covariance[3:, :3] = lever @ turn
        covariance[:3, 3:] = covariance[3:, :3].T
        covariance[3:, 3:] = lever @ turn @ lever.T + np.eye(3) * (size * 4e-4) ** 2
        out.append(covariance)
    return np.stack(out)


def drawn(rng, covariances):
    return np.stack([np.linalg.cholesky(c) @ rng.normal(size=6) for c in covariances])


def mean_nees(xi, covariances):
    return np.mean(
        [x @ np.linalg.solve(c, x) for x, c in zip(xi, covariances, strict=True)]
    )


@pytest.mark.parametrize("decorrelation", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("scale", [2.0, 40.0])
def test_what_was_done_to_covariances_is_found(scale, decorrelation):
    rng = np.random.default_rng(3)
    truth = FixCalibration(scale=scale, decorrelation=decorrelation)
    raw = coupled(rng, 60)
    found = fit_fix_calibration(list(drawn(rng, truth.applied(raw))), list(raw))
    later = coupled(rng, 400)
    nees = mean_nees(drawn(rng, truth.applied(later)), found.applied(later))
    assert 4.5 < nees < 8.0
    assert (found.decorrelation > 0.02) == (decorrelation > 0)


def test_frames_are_judged_by_what_the_other_folds_say():
    """Of four equal walks all is known from the others; of an odd one it is not."""
    rng = np.random.default_rng(5)
    raw = coupled(rng, 120)
    xi = drawn(rng, 9.0 * raw)
    folds = np.repeat(np.arange(4), 30)
    assert cross_validated_nees(xi, raw, folds) == pytest.approx(6.0, abs=1.0)
    assert np.isnan(cross_validated_nees(xi[:30], raw[:30], folds[:30]))
    xi[folds == 2] *= 4.0
    assert cross_validated_nees(xi, raw, folds) > 12.0


def test_a_few_gross_errors_change_little():
    rng = np.random.default_rng(4)
    raw = coupled(rng, 40)
    xi = drawn(rng, 5.0 * raw)
    clean = fit_fix_calibration(list(xi), list(raw))
    xi[:2] *= 1e4
    gross = fit_fix_calibration(list(xi), list(raw))
    assert gross.scale < 2.0 * clean.scale


def test_covariances_are_never_made_smaller():
    rng = np.random.default_rng(5)
    raw = coupled(rng, 40)
    assert fit_fix_calibration(list(0.1 * drawn(rng, raw)), list(raw)).scale == 1.0


def test_few_frames_are_not_believed():
    rng = np.random.default_rng(6)
    raw = coupled(rng, 3)
    assert fit_fix_calibration([], []).scale == 4.0
    assert fit_fix_calibration(list(drawn(rng, raw)), list(raw)).scale == 4.0
    many = fit_fix_calibration(list(drawn(rng, 100 * raw)), list(raw)).scale
    assert many > 20.0


def test_no_factor_is_beyond_what_a_site_can_hold():
    rng = np.random.default_rng(7)
    raw = coupled(rng, 10)
    huge = fit_fix_calibration(list(1e6 * drawn(rng, raw)), list(raw))
    assert huge.scale == MAX_COVARIANCE_SCALE


@pytest.mark.parametrize("count", [24, 40, 120, 181, 1000])
def test_runs_are_far_from_what_stays_in_the_map(count):
    runs = held_out_runs(count, max_frames=40)
    left_out = np.concatenate([run for run, _ in runs])
    asked = np.concatenate([images for _, images in runs])
    assert len(np.unique(left_out)) == len(left_out)
    assert 4 <= len(asked) <= 40
    for run, images in runs:
        assert np.array_equal(run, np.arange(run[0], run[-1] + 1))
        assert len(run) <= count / 6 + 1
        margin = len(run) // 4
        assert images.min() >= run[0] + margin
        assert images.max() <= run[-1] - margin


def test_few_images_are_left_out_one_by_one():
    runs = held_out_runs(10, max_frames=40)
    assert [(run.tolist(), images.tolist()) for run, images in runs] == [
        ([i], [i]) for i in range(10)
    ]
    assert len(held_out_runs(10, max_frames=4)) == 4


def test_a_calibration_survives_its_site():
    calibration = FixCalibration(scale=7.0, decorrelation=0.25)
    back = FixCalibration.of_site(7.0, calibration.to_arrays())
    assert back == calibration
    assert FixCalibration.of_site(2.0, {}) == FixCalibration(scale=2.0)
    with pytest.raises(ValueError, match="expected \\(1,\\)"):
        FixCalibration.of_site(1.0, {"fix_calibration": np.zeros(3, np.float32)})
    for wrong in ({"scale": 0.0}, {"scale": np.nan}, {"decorrelation": 1.5}):
        with pytest.raises(ValueError, match="must be"):
            FixCalibration(**wrong)


def test_decorrelation_leaves_the_marginals_alone():
    raw = coupled(np.random.default_rng(8), 1)[0]
    out = FixCalibration(scale=3.0, decorrelation=0.4).applied(raw)
    np.testing.assert_allclose(out[:3, :3], 3.0 * raw[:3, :3])
    np.testing.assert_allclose(out[3:, 3:], 3.0 * raw[3:, 3:])
    np.testing.assert_allclose(out[:3, 3:], 1.8 * raw[:3, 3:])
    assert np.linalg.eigvalsh(out)[0] > 0
