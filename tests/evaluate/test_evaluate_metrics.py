"""Errors, recalls and consistency against hand-computed values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeloc.geometry.se3 import exp_se3, exp_so3
from edgeloc.types import Rigid3
from edgeloc_tools.evaluate import metrics

POSE = Rigid3(R=exp_so3([0.3, -0.8, 0.5]), t=[1.0, -2.0, 4.0])


def covariance_of(rng, scale=1.0):
    """A full 6x6 covariance with correlated rotation and translation."""
    factor = rng.normal(size=(6, 6)) * scale
    return factor @ factor.T + 0.1 * scale**2 * np.eye(6)


def test_position_error_is_the_distance_of_centres_not_of_translations():
    # Turned by 90 degrees in place: t changes a lot, the centre does not.
    turned = Rigid3(R=exp_so3([0, np.pi / 2, 0]), t=[0, 0, 0]) @ POSE
    position, rotation_deg = metrics.pose_error(turned, POSE)
    assert np.linalg.norm(turned.t - POSE.t) > 1.0
    assert position == pytest.approx(0.0, abs=1e-12)
    assert rotation_deg == pytest.approx(90.0)


def test_position_error_of_a_shift_by_3_4_0():
    center = POSE.origin_in_a + np.array([3.0, 4.0, 0.0])
    shifted = Rigid3(R=POSE.R, t=-POSE.R @ center)
    assert metrics.pose_error(shifted, POSE) == pytest.approx((5.0, 0.0), abs=1e-7)


def test_lost_has_infinite_errors():
    assert metrics.pose_error(None, POSE) == (math.inf, math.inf)
    lost = np.full((1, 3), np.nan)
    assert metrics.position_errors(lost, np.zeros((1, 3)))[0] == math.inf
    lost_R = np.full((1, 3, 3), np.nan)
    assert metrics.rotation_errors_deg(lost_R, np.eye(3)[None])[0] == math.inf


@pytest.mark.parametrize("angle_deg", [1e-5, 1.0, 90.0, 179.99])
def test_rotation_error_is_accurate_at_both_ends(angle_deg):
    turned = exp_so3([0.0, math.radians(angle_deg), 0.0])
    error = metrics.rotation_errors_deg(turned[None], np.eye(3)[None])
    assert error[0] == pytest.approx(angle_deg, rel=1e-6)


def test_thresholds_are_inclusive_and_both_parts_count():
    bound = metrics.Threshold(label="", max_position=0.05, max_rotation_deg=5.0)
    position = [0.05, 0.05 + 1e-6, 0.05, 0.0, math.inf]
    rotation_deg = [5.0, 0.0, 5.0 + 1e-6, 0.0, math.inf]
    assert metrics.within(position, rotation_deg, bound).tolist() == [
        True,
        False,
        False,
        True,
        False,
    ]


def test_threshold_is_met_by_a_pose_exactly_at_it_despite_rounding():
    """A pose built to be off by exactly 5 cm and 5 degrees counts as inside."""
    center = POSE.origin_in_a + 0.05 * np.array([1.0, 2.0, -2.0]) / 3.0
    R = exp_so3([0.0, 0.0, math.radians(5.0)]) @ POSE.R
    error = metrics.pose_error(Rigid3(R=R, t=-R @ center), POSE)
    bound = metrics.Threshold(label="", max_position=0.05, max_rotation_deg=5.0)
    assert metrics.within(*([e] for e in error), bound).all()


def test_thresholds_of_a_site_of_unknown_scale():
    bounds = metrics.thresholds(extent=30.0, unit="u")
    assert [(b.max_position, b.max_rotation_deg) for b in bounds] == [
        (0.02, 2.0),
        (0.05, 5.0),
        (0.1, 5.0),
        (0.25, 2.0),
        (0.5, 5.0),
        (5.0, 10.0),
        (pytest.approx(0.3), 2.0),
    ]
    assert bounds[1].label == "0.05 u, 5°"
    assert bounds[-1].label == "1% of extent, 2°"
    assert len(metrics.thresholds(extent=0.0, unit="m")) == 6


def test_extent_is_the_median_distance_to_the_centroid():
    centers = [[-1, 0, 0], [1, 0, 0], [0, -3, 0], [0, 3, 0], [0, 0, 0]]
    assert metrics.extent_of(centers) == 1.0
    assert metrics.extent_of([[5, 5, 5]]) == 0.0
    assert metrics.extent_of(np.zeros((0, 3))) == 0.0


@pytest.mark.parametrize(
    ("values", "q", "expected"),
    [
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([1.0, 2.0], 0.5, 1.5),
        ([1.0, math.inf, 2.0], 0.5, 2.0),
        ([1.0, math.inf], 0.5, math.inf),
        ([math.inf, math.inf], 0.5, math.inf),
        ([1.0, 2.0, math.inf], 1.0, math.inf),
        ([0.0, 10.0], 0.95, 9.5),
    ],
)
def test_quantile_with_infinities(values, q, expected):
    assert metrics.quantile(values, q) == pytest.approx(expected)


def test_quantile_of_nothing_is_nan():
    assert math.isnan(metrics.quantile([], 0.5))


def test_center_covariance_by_monte_carlo(rng):
    """4,000 perturbed poses scatter their centres as the formula says."""
    covariance = covariance_of(rng, scale=0.01)
    xi = rng.multivariate_normal(np.zeros(6), covariance, size=4000)
    centers = np.array([(exp_se3(x) @ POSE).origin_in_a for x in xi])
    empirical = np.cov(centers.T)
    claimed = metrics.center_covariance(POSE.R, covariance)
    assert np.linalg.norm(empirical - claimed) < 0.07 * np.linalg.norm(claimed)
    worst = np.sqrt(np.linalg.eigvalsh(empirical)[-1])
    assert metrics.position_sigma(covariance) == pytest.approx(worst, rel=0.04)


def test_three_position_sigmas_hold_between_97_and_99_7_percent(rng):
    for factor in (np.eye(3), np.diag([1.0, 0.01, 0.01])):
        covariance = np.eye(6)
        covariance[3:, 3:] = factor @ factor
        errors = rng.normal(size=(100_000, 3)) @ factor
        share = np.mean(
            np.linalg.norm(errors, axis=1) <= 3 * metrics.position_sigma(covariance)
        )
        assert 0.970 < share < 0.998


def test_sigmas_of_a_diagonal_covariance():
    covariance = np.diag([0.01, 0.02, 0.03, 0.4, 0.2, 0.1]) ** 2
    assert metrics.position_sigma(covariance) == pytest.approx(0.4)
    assert metrics.rotation_sigma_deg(covariance) == pytest.approx(math.degrees(0.03))


def test_nees_of_a_known_perturbation():
    covariance = np.diag([0.1, 0.1, 0.1, 0.5, 0.5, 0.5]) ** 2
    true = exp_se3([0.2, 0, 0, 0, 0, 0]) @ POSE
    assert metrics.nees(POSE, true, covariance) == pytest.approx(4.0)
    true = exp_se3([0, 0, 0, 0.5, 1.0, 0]) @ POSE
    assert metrics.nees(POSE, true, covariance) == pytest.approx(5.0)


def test_nees_averages_to_6_when_the_covariance_is_right(rng):
    covariance = covariance_of(rng, scale=0.05)
    xi = rng.multivariate_normal(np.zeros(6), covariance, size=1500)
    values = [metrics.nees(POSE, exp_se3(x) @ POSE, covariance) for x in xi]
    # The variance of chi2(6) is 12: five standard errors of the mean.
    assert np.mean(values) == pytest.approx(6.0, abs=5 * math.sqrt(12 / 1500))
    assert np.median(values) == pytest.approx(5.348, abs=0.5)


def test_nees_of_an_indefinite_covariance_is_nan():
    covariance = np.ones((6, 6))
    covariance[0, 1] = covariance[1, 0] = 2.0
    assert math.isnan(metrics.nees(POSE, POSE, covariance))


def test_wrong_position_limit():
    assert metrics.wrong_position_limit(metric=True, extent=300.0) == 1.0
    assert metrics.wrong_position_limit(metric=False, extent=3.0) == 1.5
    assert metrics.wrong_position_limit(metric=False, extent=0.0) == math.inf


@pytest.mark.parametrize(
    ("position", "rotation_deg", "sigma", "expected"),
    [
        (0.99, 9.9, 1.0, ()),
        (1.0, 10.0, 1.0, ()),
        (1.01, 0.0, 1.0, ("position",)),
        (0.0, 10.1, 1.0, ("rotation",)),
        (0.30, 0.0, 0.01, ()),
        (0.31, 0.0, 0.01, ("sigma",)),
        (2.0, 20.0, 0.01, ("position", "rotation", "sigma")),
        (0.31, 0.0, math.nan, ()),
    ],
)
def test_wrong_but_confident_rules(position, rotation_deg, sigma, expected):
    assert (
        metrics.wrong_reasons(
            position=position,
            rotation_deg=rotation_deg,
            sigma=sigma,
            position_limit=1.0,
        )
        == expected
    )


def test_near_keyframes_need_place_and_direction():
    R = np.stack([np.eye(3), np.eye(3), exp_so3([0, math.radians(50), 0])])
    centers = np.array([[0.9, 0, 0], [1.1, 0, 0], [0, 0, 0]])
    near = metrics.near_mask(R, centers, Rigid3.identity(), max_position=1.0)
    assert near.tolist() == [True, False, False]


def test_first_near_rank():
    assert metrics.first_near_rank([False, False, True, True]) == 3
    assert metrics.first_near_rank([False]) is None
    assert metrics.first_near_rank([]) is None
