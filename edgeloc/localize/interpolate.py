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
from edgeloc.localize.rerank import RerankOptions, worths
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

_NEAR_CHUNK = 256

_SHIFTS, _STILL = 10, 1e-3
"""Steps of mean shift, and the step, in bandwidths, after which there is no other."""
_MEMBER = 0.1
"""Kernel from which a pose belongs to the mode: 2.1 standard deviations."""

WEIGHTINGS = ("ewb", "bdi", "csi")


@dataclass(frozen=True, slots=True, kw_only=True)
class InterpolateOptions:
    """How to interpolate.

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
    """

    weighting: str = "bdi"
    num_keyframes: int = 5
    csi_alpha: float = 8.0
    bdi_ridge: float = 3.0
    bandwidth_spacings: float = 8.0
    bandwidth_deg: float = 30.0
    rerank: RerankOptions | None = field(
        default_factory=lambda: RerankOptions(score_weight=20.0)
    )

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


_MAX_FACTOR = 10.0
"""Held-out frames are too few to say more about how much less or more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpreadByScore:
    """How the error of an interpolated pose goes with its best cosine.

    ``sigma(score) = sigma * exp(slope * (middle - score))``, at most ten times more or
    less: the less a frame looks like the keyframes, the further it is away from them.

    Parameters
    ----------
    middle : float
        Cosine at which nothing changes.
    position_slope, rotation_slope : float
        At least 0; 0 = the same at every similarity.
    """

    middle: float = 0.0
    position_slope: float = 0.0
    rotation_slope: float = 0.0

    def __post_init__(self) -> None:
        values = (self.middle, self.position_slope, self.rotation_slope)
        if not np.all(np.isfinite(values)) or min(values[1:]) < 0:
            raise ValueError(f"coarse_spread {values}: slopes must be finite and >= 0")

    def factors(self, score: float) -> tuple[float, float]:
        """Return what standard deviations of position and rotation change by."""
        low = self.middle - score
        limit = np.log(_MAX_FACTOR)
        slopes = np.array([self.position_slope, self.rotation_slope])
        position, rotation = np.exp(np.clip(slopes * low, -limit, limit))
        return float(position), float(rotation)

    def to_array(self) -> Float32Array:
        """Return what a site stores."""
        values = [self.middle, self.position_slope, self.rotation_slope]
        return np.array(values, np.float32)

    @staticmethod
    def from_array(values: Float32Array) -> SpreadByScore:
        """Return what `to_array` was given; `ValueError` when it is wrong."""
        if values.shape != (3,):
            raise ValueError(f"coarse_spread has shape {values.shape}, expected (3,)")
        middle, position, rotation = (float(v) for v in values)
        return SpreadByScore(
            middle=middle, position_slope=position, rotation_slope=rotation
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CoarseCalibration:
    """What a site's own held-out frames say about retrieval.

    Parameters
    ----------
    min_score : float
        Best cosine below which nothing of the site is in the picture.
    position_sigma : float
        Standard deviation of an interpolated position, per axis, m.
    rotation_sigma_rad : float
        Standard deviation of an interpolated rotation, per axis.
    keyframe_spacing : float
        Median distance from a keyframe to its nearest neighbour, m.
    spread : SpreadByScore
        How both standard deviations depend on the best cosine.
    """

    min_score: float
    position_sigma: float
    rotation_sigma_rad: float
    keyframe_spacing: float
    spread: SpreadByScore = field(default_factory=SpreadByScore)

    def sigmas(self, score: float) -> tuple[float, float]:
        """Return the standard deviations, m and rad, at a best cosine."""
        position, rotation = self.spread.factors(score)
        return self.position_sigma * position, self.rotation_sigma_rad * rotation

    def to_arrays(self) -> Mapping[str, Float32Array]:
        """Return the arrays that a site stores."""
        values = [
            self.min_score,
            self.position_sigma,
            self.rotation_sigma_rad,
            self.keyframe_spacing,
        ]
        return {
            "calibration": np.array(values, np.float32),
            "coarse_spread": self.spread.to_array(),
        }

    @staticmethod
    def from_arrays(arrays: Mapping[str, Float32Array]) -> CoarseCalibration:
        """Return the calibration of a site's arrays; `ValueError` when it is wrong."""
        values = arrays.get("calibration", np.zeros(0, np.float32))
        if values.shape != (4,) or not np.all(np.isfinite(values)):
            raise ValueError("the retrieval model has no calibration of 4 numbers")
        min_score, position, rotation, spacing = (float(v) for v in values)
        spread = arrays.get("coarse_spread")
        return CoarseCalibration(
            min_score=min_score,
            position_sigma=position,
            rotation_sigma_rad=rotation,
            keyframe_spacing=spacing,
            # Sites of before have none: the same at every similarity.
            spread=SpreadByScore()
            if spread is None
            else SpreadByScore.from_array(spread),
        )


def equal_weights(scores: Float32Array) -> FloatArray:
    """Return 1/k for each of k keyframes (EWB)."""
    return np.full(len(scores), 1.0 / len(scores))


def barycentric_weights(
    query: Float32Array,
    descriptors: Float32Array,
    *,
    ridge: float,
    prior: FloatArray | None = None,
) -> FloatArray:
    """Return the weights of the barycentric descriptor interpolation (BDI) [1]_.

    ``argmin |q - sum w_i d_i|^2 + ridge |w - prior|^2`` under ``sum w_i = 1``, solved
    in closed form; negative weights are set to zero and the rest scaled to one.

    Parameters
    ----------
    query : ndarray of shape (G,), float32
        L2-normalised global descriptor.
    descriptors : ndarray of shape (K, G), float32
        Of the keyframes, L2-normalised.
    ridge : float
        Pull to the prior, > 0.
    prior : ndarray of shape (K,), float64, optional
        Weights that sum to one; equal ones by default.

    Returns
    -------
    ndarray of shape (K,), float64

    References
    ----------
    .. [1] Humenberger et al., "Investigating the Role of Image Retrieval for Visual
       Localization", IJCV 2022, section 4.1.
    """
    d = descriptors.astype(np.float64)
    k = len(d)
    gram = d @ d.T + ridge * np.eye(k)
    ones = np.ones(k)
    pull = np.full(k, 1.0 / k) if prior is None else prior
    unconstrained = np.linalg.solve(gram, d @ query + ridge * pull)
    to_plane = np.linalg.solve(gram, ones)
    weights = unconstrained + to_plane * (1 - unconstrained.sum()) / to_plane.sum()
    weights = np.maximum(weights, 0.0)
    return np.asarray(weights / weights.sum())


def cosine_weights(scores: Float32Array, *, alpha: float) -> FloatArray:
    """Return weights proportional to ``max(cosine, 0) ** alpha`` (CSI).

    Parameters
    ----------
    scores : ndarray of shape (K,), float32
        Cosines of global descriptors.
    alpha : float
        Exponent.

    Returns
    -------
    ndarray of shape (K,), float64
        They sum to one.
    """
    cosine = np.maximum(scores.astype(np.float64), 1e-6)
    # Relative to the largest, so that large exponents do not underflow.
    weights = (cosine / cosine.max()) ** alpha
    return np.asarray(weights / weights.sum())


def pose_mode(
    centers: FloatArray,
    rotations: FloatArray,
    weights: FloatArray,
    *,
    bandwidth: tuple[float, float],
) -> FloatArray:
    """Return how much each retrieved pose belongs to where most of them are.

    Mean shift [1]_ with a Gaussian kernel over positions and rotations, from the pose
    around which there is most weight: a wrong place among the retrieved ones has no
    part in the mean, however far away it is.

    Parameters
    ----------
    centers : ndarray of shape (K, 3), float64
        Camera centres, m.
    rotations : ndarray of shape (K, 3, 3), float64
        Of ``cam_from_world``.
    weights : ndarray of shape (K,), float64
        Of the poses, > 0.
    bandwidth : (float, float)
        Standard deviations of the kernel, m and rad.

    Returns
    -------
    ndarray of shape (K,), float64
        Kernel at the mode, in [0, 1].

    References
    ----------
    .. [1] Comaniciu, Meer, "Mean shift: a robust approach toward feature space
       analysis", TPAMI 2002; on rotations Subbarao, Meer, "Nonlinear mean shift over
       Riemannian manifolds", IJCV 2009.
    """
    position, angle = bandwidth

    def kernel(offsets: FloatArray, relative: FloatArray) -> FloatArray:
        squared = np.sum(offsets**2, axis=-1) / position**2
        squared += (rotation_angle_rad(relative) / angle) ** 2
        return np.asarray(np.exp(-0.5 * squared))

    between = kernel(
        centers[:, None] - centers[None],
        np.einsum("aij,bkj->abik", rotations, rotations),
    )
    # The first of equals is the best one.
    start = int(np.argmax(between @ weights))
    near = between[start]
    center, R = centers[start], rotations[start]
    for _ in range(_SHIFTS):
        share = near * weights / (near @ weights)
        moved = share @ centers
        R = mean_rotation(rotations, share)
        done = float(np.linalg.norm(moved - center)) < _STILL * position
        center = moved
        near = kernel(centers - center, rotations @ R.T)
        if done:
            break
    return np.asarray(near)


def interpolate_pose(
    *,
    query: Float32Array,
    retrieved: RetrievalResult,
    keyframes: KeyframeTable,
    index: KeyframeIndex,
    calibration: CoarseCalibration,
    options: InterpolateOptions,
    support: FloatArray | None = None,
) -> Candidate:
    """Return a COARSE pose between the retrieved keyframes, or LOST.

    The keyframes that lie together where most of them are, see `pose_mode`: their
    centres are averaged linearly, their rotations by the chordal mean. The covariance
    is the weighted spread of these keyframes plus what held-out mapping frames were off
    by at this similarity.

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
    support : ndarray of shape (K,), float64, optional
        What speaks for each retrieved keyframe, see `rerank.supporting_matches`.
    """
    lost = Candidate(status=PoseStatus.LOST, rung=Rung.LOST, cause=Cause.FEW_MATCHES)
    if len(retrieved) == 0 or retrieved.scores[0] < calibration.min_score:
        return lost
    best_score = float(retrieved.scores[0])
    ids, weights = _weighed(retrieved, support, options)
    idx = keyframes.index_of(ids)
    centers, rotations = keyframes.centers_of(idx), keyframes.rotations_of(idx)
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
            calibration.sigmas(best_score),
        ),
    )


def _weighed(
    retrieved: RetrievalResult,
    support: FloatArray | None,
    options: InterpolateOptions,
) -> tuple[IntArray, FloatArray]:
    """Return the best keyframes and their weights, > 0."""
    ids, scores = retrieved.keyframe_ids, retrieved.scores
    if support is None or options.rerank is None:
        ids, scores = ids[: options.num_keyframes], scores[: options.num_keyframes]
        if options.weighting == "ewb":
            return ids, equal_weights(scores)
        return ids, cosine_weights(scores, alpha=options.csi_alpha)
    worth = worths(scores, support, options.rerank)
    order = np.argsort(-worth, kind="stable")[: options.num_keyframes]
    if options.weighting == "ewb":
        return ids[order], equal_weights(scores[order])
    weights = np.exp(worth[order] - worth[order[0]])
    return ids[order], weights / weights.sum()


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
) -> FloatArray:
    """Return spread + (position, rotation) sigmas, as `edgeloc.types` has it."""
    position_sigma, rotation_sigma = sigmas
    angles = rotation_angle_rad(np.einsum("kij,lj->kil", rotations, R))
    rotation_variance = float(weights @ angles**2) / 3.0
    covariance = np.zeros((6, 6))
    covariance[:3, :3] = np.eye(3) * (rotation_variance + rotation_sigma**2)
    spread = np.einsum("k,ki,kj->ij", weights, offsets, offsets)
    in_world = spread + np.eye(3) * position_sigma**2
    # To first order the centre moves by -R^T v under Exp(omega, v).
    covariance[3:, 3:] = R @ in_world @ R.T
    return np.asarray(0.5 * (covariance + covariance.T))


def keyframe_spacing(centers: FloatArray) -> float:
    """Return the median distance from a camera to its nearest neighbour, m."""
    if len(centers) < 2:
        return 0.0
    from scipy.spatial import cKDTree

    distance = np.asarray(cKDTree(centers).query(centers, k=2)[0])
    return float(np.median(distance[:, 1]))


def nearest_keyframes(keyframes: KeyframeTable, pose: Rigid3, *, k: int) -> IntArray:
    """Return the ids of the keyframes nearest to a pose that look the same way."""
    off = keyframes.centers - pose.origin_in_a
    squared = np.einsum("ki,ki->k", off, off)
    # Rotations are decoded when they are asked for, and only the nearest keyframes are
    # sorted: these few will mostly do, and there may be 100,000 of them.
    count = _NEAR_CHUNK
    while True:
        idx = _smallest(squared, count)
        forward = keyframes.rotations_of(idx)[:, 2, :] @ pose.R[2]
        found = idx[forward > 0.5]
        if len(found) >= k or len(idx) == len(squared):
            break
        count *= 8
    return np.asarray(keyframes.keyframe_ids[found[:k]])


def _smallest(values: FloatArray, count: int) -> IntArray:
    """Return the indices of the smallest values, ascending, the first of equals."""
    if count >= len(values):
        return np.argsort(values, kind="stable")
    bound = np.partition(values, count - 1)[count - 1]
    idx = np.flatnonzero(values <= bound)
    return idx[np.argsort(values[idx], kind="stable")[:count]]


def keyframes_in_view(
    keyframes: KeyframeTable, pose: Rigid3, *, k: int, distance: float
) -> IntArray:
    """Return the ids of the keyframes that see most of what a camera there sees.

    Of the nearest ones that look the same way, those whose distance and angle together
    are smallest: what moves the picture as much as a radian is `distance`.

    Parameters
    ----------
    keyframes : KeyframeTable
        All keyframes of the site.
    pose : Rigid3
        ``cam_from_world``.
    k : int
        How many.
    distance : float
        Of the landmarks in view, m.
    """
    near = nearest_keyframes(keyframes, pose, k=4 * k)
    idx = keyframes.index_of(near)
    off = np.linalg.norm(keyframes.centers_of(idx) - pose.origin_in_a, axis=1)
    angle = rotation_angle_rad(keyframes.rotations_of(idx) @ pose.R.T)
    order = np.argsort(off / distance + angle, kind="stable")
    return near[order[:k]]
