"""Why a frame got its answer, in words."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgeloc.localize.candidate import Candidate
from edgeloc.runtime.replay import ReplayedFrame
from edgeloc.tiles.layout import KeyframeTable
from edgeloc.types import Cause, PoseEstimate


def why_lines(replayed: ReplayedFrame, keyframes: KeyframeTable) -> list[str]:
    """Return how the answer of a replayed frame came about.

    Parameters
    ----------
    replayed : ReplayedFrame
        The frame.
    keyframes : KeyframeTable
        Of the site.

    Returns
    -------
    list of str
        For people; the stage times are those of the run, not of the replay.
    """
    frame, estimate = replayed.frame, replayed.estimate
    lines = [f"frame {frame.frame_id} ({frame.source}): {_verdict(estimate)}"]
    if frame.unreadable:
        return [*lines, f"  unreadable: {frame.unreadable}"]
    lines += [f"  {line}" for line in _pose_lines(estimate)]
    answer = replayed.answer
    if answer is None:
        lines.append("  the run ended in this frame")
    else:
        lines += [f"  {line}" for line in _time_lines(replayed, answer.estimate)]
    query = replayed.trace.query
    if query is not None:
        lines.append(f"  {len(query.features)} features")
    lines += [f"  {line}" for line in _retrieved_lines(replayed, keyframes)]
    lines.append("  candidates:" if replayed.trace.candidates else "  no candidates")
    lines += [
        f"    {name}: {_candidate_text(candidate)}"
        for name, candidate in replayed.trace.candidates.items()
    ]
    return lines


def _verdict(estimate: PoseEstimate) -> str:
    cause = estimate.cause
    why = "" if cause is Cause.NONE else f", since nothing better: {cause.value}"
    return f"{estimate.status.value} by {estimate.rung.value}{why}"


def _pose_lines(estimate: PoseEstimate) -> Iterator[str]:
    pose, covariance = estimate.cam_from_world, estimate.covariance
    if pose is None or covariance is None:
        return
    x, y, z = pose.origin_in_a
    sigma = float(np.sqrt(np.trace(covariance[3:, 3:])))
    turn_deg = float(np.rad2deg(np.sqrt(np.trace(covariance[:3, :3]))))
    yield (
        f"position ({x:.3f}, {y:.3f}, {z:.3f}), sigma {sigma:.2g}, rotation sigma "
        f"{turn_deg:.2g} deg"
    )


def _time_lines(replayed: ReplayedFrame, logged: PoseEstimate) -> Iterator[str]:
    budget_ns = replayed.frame.deadline_ns - replayed.frame.start_ns
    # What runs without a deadline has one in some decades.
    allowed = f" of {budget_ns / 1e6:.1f}" if budget_ns < 3.6e12 else ""
    late = "" if logged.deadline_met else ", too late"
    yield f"{logged.latency_ns / 1e6:.1f}{allowed} ms in the run{late}"
    if logged.stage_ns:
        stages = logged.stage_ns.items()
        yield "stages, ms: " + ", ".join(f"{k} {ns / 1e6:.1f}" for k, ns in stages)
    if replayed.num_readings_off:
        yield (
            f"the replay asked for the time {replayed.num_readings_off} times more or "
            "less often than the run"
        )


def _retrieved_lines(
    replayed: ReplayedFrame, keyframes: KeyframeTable
) -> Iterator[str]:
    retrieved = replayed.trace.retrieved
    if retrieved is None:
        return
    yield f"{len(retrieved)} keyframes retrieved, best first:"
    centers = keyframes.centers_of(keyframes.index_of(retrieved.keyframe_ids))
    pose = replayed.estimate.cam_from_world
    for keyframe_id, score, center in zip(
        retrieved.keyframe_ids, retrieved.scores, centers, strict=True
    ):
        away = ""
        if pose is not None:
            distance = float(np.linalg.norm(center - pose.origin_in_a))
            away = f", {distance:.3g} from the answer"
        yield f"  keyframe {keyframe_id}: score {score:.3f}{away}"


def _candidate_text(candidate: Candidate) -> str:
    parts = [candidate.status.value]
    if candidate.cause is not Cause.NONE:
        parts.append(f"rejected: {candidate.cause.value}")
    if candidate.num_matches or candidate.matches is not None:
        parts.append(f"{candidate.num_matches} matches")
    if candidate.num_inliers or candidate.inlier_mask is not None:
        parts.append(f"{candidate.num_inliers} inliers")
    if candidate.reproj_rmse_px:
        parts.append(f"residual {candidate.reproj_rmse_px:.2f} px")
    return ", ".join(parts)
