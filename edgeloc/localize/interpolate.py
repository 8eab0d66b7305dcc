"""INTERPOLATE: the pose as a weighted mean of retrieved keyframes' poses.

Works where the map's cameras passed near the query; always COARSE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from edgeloc.features.keyframe_index import KeyframeIndex
from edgeloc.geometry.se3 import mean_rotation, rotation_angle_rad
from edgeloc.localize.candidate import Candidate
from edgeloc.localize.coarse import CoarseCalibration
from edgeloc.localize.pose_weights import (
    barycentric_weights,
    cosine_weights,
    equal_weights,
    pose_mode,
)
from edgeloc.localize.rerank import Agreement, RerankOptions, worths
from edgeloc.localize.view_motion import ViewMotion
from edgeloc.tiles.layout import KeyframeTable
from edgeloc.types import (
    Cause,
    Float32Array,
    FloatArray,
    IntArray,
    PoseStatus,
    RetrievalResult,
    Rigid3,
    Rung,
)

_MEMBER = 0.1
"""Kernel from which a pose belongs to the mode: 2.1 standard deviations."""

WEIGHTINGS = ("ewb", "bdi", "csi")
"""Known weightings; a site stores their numbers, so new ones come last."""

_NO_RERANK = -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class InterpolateOptions:
    """How to interpolate; a site says what serves it best, see `from_arrays`.

    Parameters
    ----------
    weighting : {"ewb", "bdi", "csi"}
        Equal weights, barycentric descriptor interpolation, cosine similarity.
    num_keyframes : int
        Keyframes looked at.
    csi_alpha : float
        Exponent of the cosine similarities.
    bdi_ridge : float
        Pull of the barycentric weights to those of the mode.
    bandwidth_spacings : float
        Standard deviation of the kernel over positions, in distances of keyframes.
    bandwidth_deg : float
        The same over rotations.
    rerank : RerankOptions or None
        How the retrieved keyframes are checked first, where they have features or
        landmarks; None = not at all.
    motion : ViewMotion
        What the pictures then tell about the way from each keyframe to the query.
    """

    weighting: str = "bdi"
    num_keyframes: int = 5
    csi_alpha: float = 8.0
    bdi_ridge: float = 1.0
    bandwidth_spacings: float = 16.0
    bandwidth_deg: float = 30.0
    rerank: RerankOptions | None = field(
        default_factory=lambda: RerankOptions(score_weight=20.0)
    )
    motion: ViewMotion = field(default_factory=ViewMotion)

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise ValueError(
                f"{self.weighting=} is unknown, expected one of {', '.join(WEIGHTINGS)}"
            )
        if self.num_keyframes < 1:
            raise ValueError(f"{self.num_keyframes=} must be >= 1")
        for name in ("bdi_ridge", "bandwidth_spacings", "bandwidth_deg"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name)} must be > 0")

    def to_arrays(self) -> Mapping[str, Float32Array]:
        """Return the arrays that a site stores: what is chosen for each site."""
        weight = _NO_RERANK if self.rerank is None else self.rerank.score_weight
        values = [
            WEIGHTINGS.index(self.weighting),
            self.num_keyframes,
            self.bandwidth_spacings,
            weight,
        ]
        return {
            "interpolate": np.array(values, np.float32),
            "view_motion": self.motion.to_array(),
        }

    @staticmethod
    def from_arrays(arrays: Mapping[str, Float32Array]) -> InterpolateOptions:
        """Return the options of a site's arrays; `ValueError` when they are wrong."""
        values = arrays.get("interpolate")
        if values is None:
            # Sites of before say nothing.
            return InterpolateOptions()
        if values.shape != (4,) or not np.all(np.isfinite(values)):
            raise ValueError("interpolate is not 4 finite numbers")
        weighting, num, bandwidth, weight = (float(v) for v in values)
        if weight < 0 and weight != _NO_RERANK:
            raise ValueError(f"interpolate: the score weight {weight:g} must be >= 0")
        if weighting not in range(len(WEIGHTINGS)):
            raise ValueError(f"interpolate: there is no weighting {weighting:g}")
        motion = arrays.get("view_motion")
        options = InterpolateOptions(
            weighting=WEIGHTINGS[int(weighting)],
            num_keyframes=int(num),
            bandwidth_spacings=bandwidth,
            motion=ViewMotion() if motion is None else ViewMotion.from_array(motion),
        )
        return options.weighed(None if weight == _NO_RERANK else weight)

    def weighed(self, score_weight: float | None) -> InterpolateOptions:
        """Return the same with another `RerankOptions.score_weight`; None = no check.

        Parameters
        ----------
        score_weight : float or None
            See there.
        """
        if score_weight is None:
            return replace(self, rerank=None)
        rerank = self.rerank or RerankOptions()
        return replace(self, rerank=replace(rerank, score_weight=score_weight))

    def __str__(self) -> str:
        """Return what is chosen for each site, for people."""
        ways = {"ewb": "equal weights", "bdi": "barycentric", "csi": "by worth"}
        text = ways[self.weighting]
        if self.num_keyframes == 1:
            text = "the best keyframe"
        else:
            text += f" of {self.num_keyframes}"
            text += f", bandwidth {self.bandwidth_spacings:g} spacings"
        if self.rerank is None:
            return f"{text}, not re-ranked"
        text += f", re-ranked with score weight {self.rerank.score_weight:g}"
        if self.motion.still:
            return text
        motion = self.motion
        return (
            f"{text}, moved by {motion.roll:.2f} of the roll, {motion.turn:.2f} of the "
            f"turn and {motion.depth:.3g} per change of scale"
        )


def interpolate_pose(
    *,
    query: Float32Array,
    retrieved: RetrievalResult,
    keyframes: KeyframeTable,
    index: KeyframeIndex,
    calibration: CoarseCalibration,
    options: InterpolateOptions,
    agreement: Agreement | None = None,
) -> Candidate:
    """Return a COARSE pose between the retrieved keyframes, or LOST.

    Where the query is according to each keyframe, see `ViewMotion`, and of these poses
    those that lie together where most of them are, see `pose_mode`: their centres are
    averaged linearly, their rotations by the chordal mean. The covariance is the
    weighted spread of these poses, plus what of the turns seen was not believed, plus
    what held-out mapping frames were off by at this evidence: the best similarity, or
    the best support (`Agreement.evidence`).

    Parameters
    ----------
    query : ndarray of shape (G,), float32
        Global descriptor of the frame.
    retrieved : RetrievalResult
        Most similar keyframes.
    keyframes : KeyframeTable
        All keyframes of the site.
    index : KeyframeIndex
        Their global descriptors, in the same order.
    calibration : CoarseCalibration
        Of the site.
    options : InterpolateOptions
        How.
    agreement : Agreement, optional
        What speaks for each retrieved keyframe, see `rerank.supporting_matches`.
    """
    lost = Candidate(status=PoseStatus.LOST, rung=Rung.LOST, cause=Cause.FEW_MATCHES)
    if len(retrieved) == 0 or retrieved.scores[0] < calibration.min_score:
        return lost
    if options.rerank is None:
        agreement = None
    evidence = float(retrieved.scores[0])
    best, weights = _weighed(retrieved, agreement, options)
    idx = keyframes.index_of(retrieved.keyframe_ids[best])
    centers, rotations = keyframes.centers_of(idx), keyframes.rotations_of(idx)
    unsure_rad = np.zeros(len(best))
    if agreement is not None:
        evidence, agreement = agreement.evidence, agreement.of(best)
        centers, rotations = options.motion.query_poses(centers, rotations, agreement)
        unsure_rad = options.motion.unsure_rad(agreement)
    near = pose_mode(
        centers,
        rotations,
        weights,
        bandwidth=(
            max(options.bandwidth_spacings * calibration.keyframe_spacing, 1e-9),
            float(np.deg2rad(options.bandwidth_deg)),
        ),
    )
    keep = near >= min(_MEMBER, float(near.max()))
    idx, centers, rotations = idx[keep], centers[keep], rotations[keep]
    weights = near[keep] * weights[keep]
    weights /= weights.sum()
    if options.weighting == "bdi":
        weights = barycentric_weights(
            query, index.descriptors(idx), ridge=options.bdi_ridge, prior=weights
        )
    center = weights @ centers
    R = mean_rotation(rotations, weights)
    return Candidate(
        status=PoseStatus.COARSE,
        rung=Rung.INTERPOLATE,
        cause=Cause.NONE,
        cam_from_world=Rigid3(R=R, t=-R @ center),
        covariance=_coarse_covariance(
            R,
            centers - center,
            rotations,
            weights,
            calibration.sigmas(evidence),
            float(weights @ unsure_rad[keep] ** 2),
        ),
    )


def _weighed(
    retrieved: RetrievalResult,
    agreement: Agreement | None,
    options: InterpolateOptions,
) -> tuple[IntArray, FloatArray]:
    """Return which retrieved keyframes are the best, and their weights, > 0."""
    scores = retrieved.scores
    if agreement is None or options.rerank is None:
        best = np.arange(min(len(scores), options.num_keyframes))
        weights = cosine_weights(scores[best], alpha=options.csi_alpha)
    else:
        worth = worths(scores, agreement.support, options.rerank)
        best = np.argsort(-worth, kind="stable")[: options.num_keyframes]
        weights = np.exp(worth[best] - worth[best[0]])
        weights /= weights.sum()
    return best, equal_weights(scores[best]) if options.weighting == "ewb" else weights


def widen_unconfirmed(candidate: Candidate, keyframes: KeyframeTable) -> Candidate:
    """Return a COARSE candidate whose keyframes the geometry did not confirm.

    Where matching against the landmarks was tried and failed, retrieval may have found
    another place, or the picture may show none of the site: all that is left to claim
    is "somewhere in here", any heading.

    Parameters
    ----------
    candidate : Candidate
        From `interpolate_pose`.
    keyframes : KeyframeTable
        All keyframes of the site.
    """
    if candidate.cam_from_world is None or candidate.covariance is None:
        return candidate
    off = keyframes.centers - candidate.cam_from_world.origin_in_a
    covariance = candidate.covariance.copy()
    covariance[:3, :3] += np.eye(3)
    covariance[3:, 3:] += np.eye(3) * float(np.vdot(off, off) / len(off))
    return replace(candidate, covariance=covariance)


def _coarse_covariance(  # noqa: PLR0917 - one formula over five arrays
    R: FloatArray,
    offsets: FloatArray,
    rotations: FloatArray,
    weights: FloatArray,
    sigmas: tuple[float, float],
    unsure: float,
) -> FloatArray:
    """Return spread + squared sigmas + what is unsure, as `edgeloc.types` has it."""
    position_sigma, rotation_sigma = sigmas
    angles = rotation_angle_rad(np.einsum("kij,lj->kil", rotations, R))
    rotation_variance = (float(weights @ angles**2) + unsure) / 3.0
    covariance = np.zeros((6, 6))
    covariance[:3, :3] = np.eye(3) * (rotation_variance + rotation_sigma**2)
    spread = np.einsum("k,ki,kj->ij", weights, offsets, offsets)
    in_world = spread + np.eye(3) * position_sigma**2
    # To first order the centre moves by -R^T v under Exp(omega, v).
    covariance[3:, 3:] = R @ in_world @ R.T
    return np.asarray(0.5 * (covariance + covariance.T))
