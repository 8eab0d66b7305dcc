"""What the answer of a frame was computed from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeloc.localize.candidate import FrameTrace
from edgeloc.runtime.picture import deciding_candidate, matches_for_drawing
from edgeloc.tiles.layout import KeyframeTable
from edgeloc.types import (
    BoolArray,
    CameraModel,
    Float32Array,
    PoseEstimate,
    Rigid3,
)


def retrieved_with_distance(
    trace: FrameTrace, keyframes: KeyframeTable, true: Rigid3
) -> tuple[tuple[int, float, float], ...]:
    """Return id, score and true distance of the retrieved keyframes, best first.

    Parameters
    ----------
    trace : FrameTrace
        With what retrieval proposed.
    keyframes : KeyframeTable
        Of the site.
    true : Rigid3
        Ground truth of the query.
    """
    if trace.retrieved is None or len(trace.retrieved) == 0:
        return ()
    ids = trace.retrieved.keyframe_ids
    centers = keyframes.centers_of(keyframes.index_of(ids))
    distances = np.linalg.norm(centers - true.origin_in_a, axis=1)
    return tuple(
        (int(i), float(score), float(distance))
        for i, score, distance in zip(
            ids, trace.retrieved.scores, distances, strict=True
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """What is kept of every answered frame, since any may turn out to be the worst.

    Parameters
    ----------
    points2D, projected : ndarray of shape (M, 2), float32
        As in `Explanation`; half the size, and plenty for a drawing.
    inlier_mask : ndarray of shape (M,), bool
        As in `Explanation`.
    retrieved : tuple of (int, float, float)
        As in `Explanation`.
    """

    points2D: Float32Array
    projected: Float32Array
    inlier_mask: BoolArray
    retrieved: tuple[tuple[int, float, float], ...]


def evidence(
    estimate: PoseEstimate,
    trace: FrameTrace,
    *,
    camera: CameraModel,
    keyframes: KeyframeTable,
    true: Rigid3,
) -> Evidence:
    """Return what a report needs to draw a frame, besides its picture.

    Parameters
    ----------
    estimate : PoseEstimate
        The answer.
    trace : FrameTrace
        Of the same frame.
    camera : CameraModel
        Intrinsics.
    keyframes : KeyframeTable
        Of the site.
    true : Rigid3
        Ground truth.

    Returns
    -------
    Evidence
    """
    candidate = deciding_candidate(estimate, trace)
    points2D, projected, inlier_mask = matches_for_drawing(
        candidate, estimate.cam_from_world, camera
    )
    return Evidence(
        points2D=points2D.astype(np.float32),
        projected=projected.astype(np.float32),
        inlier_mask=inlier_mask,
        retrieved=retrieved_with_distance(trace, keyframes, true),
    )
