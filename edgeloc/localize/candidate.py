"""What every family of methods takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgeloc.types import (
    BoolArray,
    CameraModel,
    Cause,
    Features,
    Float32Array,
    FloatArray,
    Matches2D3D,
    PoseStatus,
    RetrievalResult,
    Rigid3,
    Rung,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Query:
    """One frame as the methods see it.

    Parameters
    ----------
    camera : CameraModel
        Intrinsics of the frame.
    features : Features
        Local features, px of the full-size frame.
    descriptors : ndarray of shape (N, D), float32
        Decoded descriptors of `features`, L2-normalised.
    global_descriptor : ndarray of shape (G,), float32
        L2-normalised.
    """

    camera: CameraModel
    features: Features
    descriptors: Float32Array
    global_descriptor: Float32Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """What one method says about one frame.

    Parameters
    ----------
    status : PoseStatus
        LOCALIZED, COARSE or LOST.
    rung : Rung
        The method; LOST when it has no pose.
    cause : Cause
        Why it has no better one.
    cam_from_world : Rigid3 or None
        The pose.
    covariance : ndarray of shape (6, 6) or None
        In the convention of `edgeloc.types`.
    matches : Matches2D3D or None
        What the pose was computed from.
    inlier_mask : ndarray of shape (M,), bool, or None
        Which of `matches` agree with the pose.
    reproj_rmse_px : float
        Of the inliers.
    point_sigmas, pixel_sigmas : ndarray of shape (M,), float32, or None
        Standard deviations of the two ends of `matches`, m and px.
    first : Candidate or None
        What the answer was before landmarks were looked for where it puts them: matches
        that were found without a pose. None where those are `matches`.
    confirmed : bool
        Whether landmarks that had no part in the pose speak for it beyond chance: asked
        only where its matches do not carry it alone.
    agreement : (int, int) or None
        Features of the frame that were matched, and those that agree with the pose, of
        methods without 2D-3D matches.
    """

    status: PoseStatus
    rung: Rung
    cause: Cause
    cam_from_world: Rigid3 | None = None
    covariance: FloatArray | None = None
    matches: Matches2D3D | None = None
    inlier_mask: BoolArray | None = None
    reproj_rmse_px: float = 0.0
    point_sigmas: Float32Array | None = None
    pixel_sigmas: Float32Array | None = None
    first: Candidate | None = None
    confirmed: bool = False
    agreement: tuple[int, int] | None = None

    @property
    def num_matches(self) -> int:
        """Matches found."""
        if self.agreement is not None:
            return self.agreement[0]
        return 0 if self.matches is None else len(self.matches)

    @property
    def num_inliers(self) -> int:
        """Matches kept."""
        if self.agreement is not None:
            return self.agreement[1]
        return (
            0 if self.inlier_mask is None else int(np.count_nonzero(self.inlier_mask))
        )


LOST = Candidate(status=PoseStatus.LOST, rung=Rung.LOST, cause=Cause.NONE)
"""No pose, for no reason yet."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameTrace:
    """Why a frame got its answer: for reports and `--debug`.

    Parameters
    ----------
    retrieved : RetrievalResult or None
        Keyframes that retrieval proposed.
    query : Query or None
        Features of the frame.
    candidates : mapping of str to Candidate
        What each rung said, by its name.
    num_compared : int
        Keyframes that retrieval compared with the frame.
    """

    retrieved: RetrievalResult | None = None
    query: Query | None = None
    candidates: Mapping[str, Candidate] = field(default_factory=dict)
    num_compared: int = 0
