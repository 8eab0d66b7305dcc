"""How honest covariances of poses are, learned on frames held out of the map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeloc.localize.fix import FixCalibration
from edgeloc.localize.regress import RegressCalibration
from edgeloc.types import FloatArray, IntArray

MAX_COVARIANCE_SCALE = 1e6
"""A larger factor says that held-out frames were taken for another place; no
covariance covers that, and a site cannot hold any number."""

_CHI2_6_MEDIAN = 5.348
_CHI2_6_Q90 = 10.645
_CHI2_3_Q90 = 6.251
_FEW = 5
_FEW_SCALE = 4.0
_NUM_RUNS = 6
_MIN_FOR_RUNS = 24
_DECORRELATIONS = (0.0, 0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0)
_STUDENT_DOF = 4.0
"""Of the likelihood that decides: gross errors must not."""


def held_out_runs(count: int, *, max_frames: int) -> list[tuple[IntArray, IntArray]]:
    """Return which images to leave out together, and which of these to ask.

    A later walk sees a place from other spots than the mapping walk did, and its poses
    have errors of their own. Frames whose neighbours of the same second stay in the map
    show neither: on 7-Scenes RedKitchen they ask for a factor of 6, where the next walk
    needs 14 (ORB; 3 and 12 without depth). So a sixth of the recording is left out in
    one piece, and only its middle half is asked: that gives 12 and 9.

    Parameters
    ----------
    count : int
        Images of the recording, in its order.
    max_frames : int
        Bound of all images asked together.

    Returns
    -------
    list of (ndarray of int64, ndarray of int64)
        Disjoint runs to leave out, and the images of each to ask.
    """
    if count < _MIN_FOR_RUNS:
        # Too few for runs: one by one, for as many as there are.
        return [(np.array([i]), np.array([i])) for i in range(min(count, max_frames))]
    runs = np.array_split(np.arange(count), _NUM_RUNS)
    chosen = [runs[idx] for idx in (0, 1, 3, 4)]
    each = max(1, max_frames // len(chosen))
    asked = []
    for run in chosen:
        middle = run[len(run) // 4 : len(run) - len(run) // 4]
        picks = np.linspace(0, len(middle) - 1, min(each, len(middle)))
        asked.append(middle[np.unique(np.rint(picks).astype(np.int64))])
    return list(zip(chosen, asked, strict=True))


def fit_fix_calibration(
    errors: Sequence[FloatArray], covariances: Sequence[FloatArray]
) -> FixCalibration:
    """Return what makes covariances fit the errors of held-out frames.

    The decorrelation is the most likely one under a Student distribution. The scale is
    the geometric mean of what the median and what the 90 % quantile of the normalised
    squared errors ask for; both ignore a few gross outliers, which are not the
    covariance's business. Few frames say little: the scale is at least 4 below five
    frames.

    Parameters
    ----------
    errors : sequence of ndarray of shape (6,), float64
        xi with ``cam_from_world_true = Exp(xi) @ cam_from_world``.
    covariances : sequence of ndarray of shape (6, 6), float64
        Of those poses, uncalibrated.
    """
    if len(errors) < _FEW:
        scale = _FEW_SCALE
        if errors:
            nees = _nees(np.stack(errors), np.stack(covariances))
            scale = max(scale, _scale(nees))
        return FixCalibration(scale=min(scale, MAX_COVARIANCE_SCALE))
    xi, raw = np.stack(errors), np.stack(covariances)
    best, best_cost = FixCalibration(), np.inf
    for decorrelation in _DECORRELATIONS:
        shape = FixCalibration(decorrelation=decorrelation).applied(raw)
        nees = _nees(xi, shape)
        cost = _student_cost(nees, shape)
        # Each step away from what the inliers say has to be worth it.
        if cost < best_cost - 0.05:
            scale = min(max(_scale(nees), 1.0), MAX_COVARIANCE_SCALE)
            best = FixCalibration(scale=scale, decorrelation=decorrelation)
            best_cost = cost
    return best


def cross_validated_nees(
    errors: Sequence[FloatArray],
    covariances: Sequence[FloatArray],
    folds: Sequence[int],
) -> float:
    """Return how honest calibrated covariances are of frames they were not fitted to.

    The mean normalised squared error (NEES), each fold calibrated by what all others
    say: 6 when honest, more when too sure.

    Parameters
    ----------
    errors, covariances : sequence of ndarray of shape (6,) and (6, 6), float64
        As `fit_fix_calibration` takes them.
    folds : sequence of int
        Frames of one fold were held out together.

    Returns
    -------
    float
        nan with fewer than two folds.
    """
    fold = np.asarray(folds, np.int64)
    if len(np.unique(fold)) < 2:
        return float("nan")
    xi, raw = np.stack(errors), np.stack(covariances)
    nees = np.empty(len(xi))
    for here in (fold == number for number in np.unique(fold)):
        calibration = fit_fix_calibration(list(xi[~here]), list(raw[~here]))
        nees[here] = _nees(xi[here], calibration.applied(raw[here]))
    return float(nees.mean())


def calibrate_regress(errors: FloatArray) -> RegressCalibration:
    """Return the standard deviations that hold 90 % of some errors.

    Parameters
    ----------
    errors : ndarray of shape (n, 2), float64
        M and rad.
    """
    position, turn = np.quantile(errors, 0.9, axis=0) / np.sqrt(_CHI2_3_Q90)
    return RegressCalibration(
        position_sigma=max(float(position), 1e-6),
        rotation_sigma_rad=max(float(turn), 1e-3),
    )


def regress_facts(calibration: RegressCalibration) -> dict[str, object]:
    """Return a calibration for people."""
    turn_deg = float(np.rad2deg(calibration.rotation_sigma_rad))
    return {
        "position_sigma": round(calibration.position_sigma, 5),
        "rotation_sigma_deg": round(turn_deg, 3),
    }


def _nees(xi: FloatArray, covariances: FloatArray) -> FloatArray:
    solved = np.linalg.solve(covariances, xi[:, :, None])[:, :, 0]
    return np.asarray(np.einsum("ni,ni->n", xi, solved))


def _scale(nees: FloatArray) -> float:
    median = float(np.median(nees)) / _CHI2_6_MEDIAN
    tail = float(np.quantile(nees, 0.9)) / _CHI2_6_Q90
    return float(np.sqrt(max(median, 1e-12)) * np.sqrt(max(tail, 1e-12)))


def _student_cost(nees: FloatArray, covariances: FloatArray) -> float:
    """Return minus twice the mean log likelihood, at the best scale."""
    start = max(float(np.median(nees)) / _CHI2_6_MEDIAN, 1e-12)
    scales = start * np.exp(np.linspace(-2.0, 2.0, 41))
    dof = _STUDENT_DOF
    tails = (dof + 6.0) * np.log1p(nees[None] / scales[:, None] / dof)
    costs = 6.0 * np.log(scales) + tails.mean(axis=1)
    return float(costs.min() + np.linalg.slogdet(covariances)[1].mean())
