"""Which of a frame's candidates is its answer, and why there is no better one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from edgeloc.localize.candidate import LOST, Candidate
from edgeloc.localize.interpolate import widen_unconfirmed
from edgeloc.runtime.ladder import LADDER
from edgeloc.tiles.layout import KeyframeTable
from edgeloc.types import Cause, PoseStatus

_FIXES = tuple(
    step.name.upper() for step in LADDER if step.status is PoseStatus.LOCALIZED
)
_COARSE = tuple(
    step.name.upper() for step in LADDER if step.status is PoseStatus.COARSE
)

_CHECKS = ("RELOCALIZE", "LOCAL_SFM", "RELATIVE")
"""Steps that compare the frame with the retrieved keyframes."""

_NOT_CONFIRMED = frozenset({Cause.FEW_MATCHES, Cause.FEW_INLIERS, Cause.AMBIGUOUS})
"""Causes that say that retrieval was checked against the landmarks, in vain."""


def best_answer(
    candidates: Mapping[str, Candidate],
    *,
    skipped: Collection[str],
    keyframes: KeyframeTable,
) -> Candidate:
    """Return the best candidate with a pose, and the cause why not a better one.

    Parameters
    ----------
    candidates : mapping of str to Candidate
        What steps of the ladder said, by their names in capitals; "LOST" for what kept
        all of them from answering.
    skipped : collection of str
        Steps for which there was no time.
    keyframes : KeyframeTable
        Of the site.
    """
    for name in _FIXES:
        fix = candidates.get(name)
        if fix is not None and fix.status is PoseStatus.LOCALIZED:
            return fix
    cause = _why_no_fix(candidates, skipped)
    # What checked retrieval: best first.
    fix = next((candidates[name] for name in _CHECKS if name in candidates), None)
    answers = []
    for name in (*_FIXES, *_COARSE):
        coarse = candidates.get(name)
        if coarse is None:
            continue
        if coarse.cam_from_world is None:
            if name in _COARSE and cause is Cause.NONE:
                cause = coarse.cause
            continue
        if fix is not None and fix.cause in _NOT_CONFIRMED and name == "INTERPOLATE":
            coarse = widen_unconfirmed(coarse, keyframes)
        answers.append(coarse)
    predicted = candidates.get("PREDICT")
    if predicted is not None and predicted.cam_from_world is not None:
        answers.append(predicted)
    if not answers:
        lost = replace(LOST, cause=Cause.DEADLINE if cause is Cause.NONE else cause)
        return lost if fix is None else replace(fix, cause=lost.cause)
    # A fresh prediction says more than a mean of keyframes.
    best = min(answers, key=_position_variance)
    if fix is not None and best.matches is None:
        best = replace(best, matches=fix.matches, inlier_mask=fix.inlier_mask)
    return replace(best, cause=cause)


def _why_no_fix(candidates: Mapping[str, Candidate], skipped: Collection[str]) -> Cause:
    failed, fix = candidates.get("LOST"), candidates.get("RELOCALIZE")
    if failed is not None:
        return failed.cause
    if fix is not None:
        return fix.cause
    if "relocalize" in skipped:
        return Cause.DEADLINE
    for name in reversed(_FIXES):
        if name in candidates and candidates[name].cause is not Cause.NONE:
            return candidates[name].cause
    return Cause.NONE


def _position_variance(candidate: Candidate) -> float:
    assert candidate.covariance is not None
    return float(np.trace(candidate.covariance[3:, 3:]))
