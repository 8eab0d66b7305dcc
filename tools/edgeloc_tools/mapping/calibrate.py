"""What a map is worth, learned on mapping frames that are held out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgeloc.localize.coarse import CoarseCalibration, SpreadByScore
from edgeloc.localize.fix import FixCalibration
from edgeloc.localize.interpolate import InterpolateOptions
from edgeloc.types import FloatArray
from edgeloc_tools.mapping.fix_calibration import (
    cross_validated_nees,
    fit_fix_calibration,
)
from edgeloc_tools.mapping.held_out import HeldOutRun
from edgeloc_tools.mapping.held_out_coarse import CoarseSample

MIN_SCORE = 0.05
"""Global descriptors of unrelated pictures rarely are more similar than this."""

_CHI2_3_Q90 = 6.251

_MIN_FOR_SLOPE, _MIN_SCORE_VARIANCE = 12, 1e-6
"""Frames, and how much their similarities differ, from which a slope is fitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """How held-out mapping frames localized.

    Parameters
    ----------
    num_frames, num_localized : int
        Frames tried and answered LOCALIZED.
    median_error : float
        Position, m; nan without any.
    fix : FixCalibration
        What makes the covariances of fixes honest.
    coarse : CoarseCalibration
        Of retrieval.
    checked : CoarseCalibration
        Of retrieval whose findings were checked.
    interpolate : InterpolateOptions
        What serves INTERPOLATE best.
    nees : float
        Mean normalised squared error of fixes, see `cross_validated_nees`.
    weak_image_idx : tuple of int
        Frames that were not LOCALIZED, or further off than the next keyframe is.
    """

    num_frames: int
    num_localized: int
    median_error: float
    fix: FixCalibration
    coarse: CoarseCalibration
    checked: CoarseCalibration
    interpolate: InterpolateOptions = field(default_factory=InterpolateOptions)
    nees: float = float("nan")
    weak_image_idx: tuple[int, ...] = ()

    def facts(self) -> dict[str, int | float]:
        """Return the figures for a build report."""
        return {
            "held_out_frames": self.num_frames,
            "held_out_localized": self.num_localized,
            "held_out_median_error": round(self.median_error, 6)
            if np.isfinite(self.median_error)
            else -1.0,
            "held_out_nees": round(self.nees, 2) if np.isfinite(self.nees) else -1.0,
        }


def calibrate(
    run: HeldOutRun,
    coarse: Sequence[CoarseSample],
    checked: Sequence[CoarseSample],
    *,
    keyframe_spacing: float,
) -> HeldOut:
    """Return what held-out frames say about a map.

    Parameters
    ----------
    run : HeldOutRun
        How they were localized.
    coarse, checked : sequence of CoarseSample
        How they were interpolated: by retrieval alone, and when that was checked.
    keyframe_spacing : float
        Median distance between neighbouring keyframes, m.
    """
    fixes = [frame for frame in run.frames if frame.localized]
    errors = [frame.position_error for frame in fixes]
    known = [
        (frame.xi, frame.covariance, frame.fold)
        for frame in fixes
        if frame.xi is not None and frame.covariance is not None
    ]
    xi, covariances, folds = zip(*known, strict=True) if known else ((), (), ())
    return HeldOut(
        num_frames=len(run.frames),
        num_localized=len(fixes),
        median_error=float(np.median(errors)) if errors else float("nan"),
        fix=fit_fix_calibration(xi, covariances),
        nees=cross_validated_nees(xi, covariances, folds),
        coarse=calibrate_coarse(coarse, keyframe_spacing),
        checked=calibrate_coarse(checked, keyframe_spacing),
        weak_image_idx=tuple(
            frame.image_idx
            for frame in run.frames
            if not frame.localized or frame.position_error > keyframe_spacing
        ),
    )


def calibrate_coarse(
    samples: Sequence[CoarseSample], spacing: float
) -> CoarseCalibration:
    """Return what makes the covariances of interpolated poses honest.

    Parameters
    ----------
    samples : sequence of CoarseSample
        How held-out frames were interpolated.
    spacing : float
        Median distance between neighbouring keyframes, m.
    """
    own = [sample.score for sample in samples if not sample.passed_over]
    lowest = float(np.quantile(own, 0.05)) if own else 0.0
    min_score = max(0.6 * lowest, MIN_SCORE)
    # What would not be answered says nothing of answers.
    values = np.array(
        [
            (s.evidence, s.position_error, s.rotation_error_rad)
            for s in samples
            if not s.passed_over or s.score >= min_score
        ],
        dtype=np.float64,
    ).reshape(-1, 3)
    if len(values) == 0:
        values = np.array([[0.0, 2.0 * spacing, np.deg2rad(30.0)]])
    spread = _spread_by_score(values)
    factors = np.array([spread.factors(score) for score in values[:, 0]])
    # 90 % of the errors lie inside sqrt(6.25) sigma of three axes.
    errors = values[:, 1:] / factors
    position, rotation = np.quantile(errors, 0.9, axis=0) / np.sqrt(_CHI2_3_Q90)
    return CoarseCalibration(
        min_score=min_score,
        position_sigma=max(float(position), 1e-6),
        rotation_sigma_rad=max(float(rotation), 1e-3),
        keyframe_spacing=spacing,
        spread=spread,
    )


def _spread_by_score(values: FloatArray) -> SpreadByScore:
    """Return how errors grow as similarity falls, by least squares of logarithms.

    Parameters
    ----------
    values : ndarray of shape (n, 3)
        Evidence, position error, rotation error.
    """
    scores = values[:, 0]
    middle = float(np.median(scores))
    variance = float(np.var(scores))
    if len(values) < _MIN_FOR_SLOPE or variance < _MIN_SCORE_VARIANCE:
        return SpreadByScore(middle=middle)
    logs = np.log(np.maximum(values[:, 1:], 1e-9))
    off = scores - scores.mean()
    slopes = -(off @ (logs - logs.mean(axis=0))) / (len(values) * variance)
    # As far as it is surely there: a standard error less.
    noise = logs - logs.mean(axis=0) + off[:, None] * slopes
    error = np.sqrt(np.sum(noise**2, axis=0) / (len(values) - 2) / np.sum(off**2))
    position, rotation = np.maximum(slopes - error, 0.0)
    return SpreadByScore(
        middle=middle, position_slope=float(position), rotation_slope=float(rotation)
    )
