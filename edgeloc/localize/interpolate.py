"""INTERPOLATE: the pose as a weighted mean of retrieved keyframes' poses.

Works where the map's cameras passed near the query; always COARSE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgeloc.features.keyframe_index import KeyframeIndex
from edgeloc.geometry.se3 import mean_rotation, rotation_angle_rad
from edgeloc.localize.candidate import Candidate
from edgeloc.tiles.layout import KeyframeTable
from edgeloc.types import (
    BoolArray,
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

WEIGHTINGS = ("ewb", "bdi", "csi")


@dataclass(frozen=True, slots=True, kw_only=True)
class InterpolateOptions:
    """How to interpolate.

    Parameters
    ----------
    weighting : {"ewb", "bdi", "csi"}
        Equal weights, barycentric descriptor interpolation, cosine similarity.
    num_keyframes : int
        Retrieved keyframes looked at.
    csi_alpha : float
        Exponent of the cosine similarities.
    bdi_ridge : float
        Regularisation of the barycentric weights.
    max_angle_deg : float
        Keyframes that look further away from the others are outliers.
    """

    weighting: str = "csi"
    num_keyframes: int = 3
    csi_alpha: float = 8.0
    bdi_ridge: float = 0.1
    max_angle_deg: float = 40.0

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise ValueError(
                f"{self.weighting=} is unknown, expected one of {', '.join(WEIGHTINGS)}"
            )
        if self.num_keyframes < 1:
            raise ValueError(f"{self.num_keyframes=} must be >= 1")


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
    """

    min_score: float
    position_sigma: float
    rotation_sigma_rad: float
    keyframe_spacing: float

    def to_arrays(self) -> Mapping[str, Float32Array]:
        """Return the array that a site stores."""
        values = [
            self.min_score,
            self.position_sigma,
            self.rotation_sigma_rad,
            self.keyframe_spacing,
        ]
        return {"calibration": np.array(values, np.float32)}

    @staticmethod
    def from_arrays(arrays: Mapping[str, Float32Array]) -> CoarseCalibration:
        """Return the calibration of a site's arrays; `ValueError` when it is wrong."""
        values = arrays.get("calibration", np.zeros(0, np.float32))
        if values.shape != (4,) or not np.all(np.isfinite(values)):
            raise ValueError("the retrieval model has no calibration of 4 numbers")
        min_score, position, rotation, spacing = (float(v) for v in values)
        return CoarseCalibration(
            min_score=min_score,
            position_sigma=position,
            rotation_sigma_rad=rotation,
            keyframe_spacing=spacing,
        )


def equal_weights(descriptors: Float32Array) -> FloatArray:
    """Return 1/k for each of k keyframes (EWB)."""
    return np.full(len(descriptors), 1.0 / len(descriptors))


def barycentric_weights(
    query: Float32Array, descriptors: Float32Array, *, ridge: float
) -> FloatArray:
    """Return the weights of the barycentric descriptor interpolation (BDI) [1]_.

    ``argmin |q - sum w_i d_i|^2 + ridge |w - 1/k|^2`` under ``sum w_i = 1``, solved in
    closed form; negative weights are set to zero and the rest scaled to one.

    Parameters
    ----------
    query : ndarray of shape (G,), float32
        L2-normalised global descriptor.
    descriptors : ndarray of shape (K, G), float32
        Of the keyframes, L2-normalised.
    ridge : float
        Pull to equal weights, > 0.

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
    unconstrained = np.linalg.solve(gram, d @ query + ridge / k)
    to_plane = np.linalg.solve(gram, ones)
    weights = unconstrained + to_plane * (1 - unconstrained.sum()) / to_plane.sum()
    weights = np.maximum(weights, 0.0)
    return np.asarray(weights / weights.sum())


def cosine_weights(
    query: Float32Array, descriptors: Float32Array, *, alpha: float
) -> FloatArray:
    """Return weights proportional to ``max(cosine, 0) ** alpha`` (CSI).

    Parameters
    ----------
    query, descriptors : ndarray of shape (G,) and (K, G), float32
        L2-normalised global descriptors.
    alpha : float
        Exponent.

    Returns
    -------
    ndarray of shape (K,), float64
    """
    cosine = np.maximum(descriptors.astype(np.float64) @ query, 1e-6)
    # Relative to the largest, so that large exponents do not underflow.
    weights = (cosine / cosine.max()) ** alpha
    return np.asarray(weights / weights.sum())


def consistent_keyframes(
    centers: FloatArray,
    rotations: FloatArray,
    scores: Float32Array,
    *,
    max_distance: float,
    max_angle_deg: float,
) -> BoolArray:
    """Return which retrieved keyframes lie together around the best supported one.

    Parameters
    ----------
    centers : ndarray of shape (K, 3), float64
        Camera centres, m.
    rotations : ndarray of shape (K, 3, 3), float64
        Of ``cam_from_world``.
    scores : ndarray of shape (K,), float32
        Similarities, descending.
    max_distance : float
        Largest distance to the best supported keyframe, m.
    max_angle_deg : float
        Largest angle to it.

    Returns
    -------
    ndarray of shape (K,), bool
    """
    distance = np.linalg.norm(centers[:, None] - centers[None], axis=2)
    relative = np.einsum("aij,bkj->abik", rotations, rotations)
    near = (distance <= max_distance) & (
        rotation_angle_rad(relative) <= np.deg2rad(max_angle_deg)
    )
    support = near @ np.maximum(scores, 0.0)
    # The first of equals is the most similar one.
    return np.asarray(near[int(np.argmax(support))])


def interpolate_pose(
    *,
    query: Float32Array,
    retrieved: RetrievalResult,
    keyframes: KeyframeTable,
    index: KeyframeIndex,
    calibration: CoarseCalibration,
    options: InterpolateOptions,
) -> Candidate:
    """Return a COARSE pose between the retrieved keyframes, or LOST.

    Camera centres are averaged linearly, rotations by the chordal mean, after keyframes
    that do not lie with the others have been dropped. The covariance is the weighted
    spread of the kept keyframes plus what held-out mapping frames were off by.

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
    """
    lost = Candidate(status=PoseStatus.LOST, rung=Rung.LOST, cause=Cause.FEW_MATCHES)
    if len(retrieved) == 0 or retrieved.scores[0] < calibration.min_score:
        return lost
    idx = keyframes.index_of(retrieved.keyframe_ids[: options.num_keyframes])
    scores = retrieved.scores[: options.num_keyframes]
    centers, rotations = keyframes.centers_of(idx), keyframes.rotations_of(idx)
    keep = consistent_keyframes(
        centers,
        rotations,
        scores,
        max_distance=max(
            6.0 * calibration.keyframe_spacing, 3.0 * calibration.position_sigma
        ),
        max_angle_deg=options.max_angle_deg,
    )
    idx, centers, rotations = idx[keep], centers[keep], rotations[keep]
    descriptors = index.descriptors(idx)
    if options.weighting == "ewb":
        weights = equal_weights(descriptors)
    elif options.weighting == "bdi":
        weights = barycentric_weights(query, descriptors, ridge=options.bdi_ridge)
    else:
        weights = cosine_weights(query, descriptors, alpha=options.csi_alpha)
    center = weights @ centers
    R = mean_rotation(rotations, weights)
    return Candidate(
        status=PoseStatus.COARSE,
        rung=Rung.INTERPOLATE,
        cause=Cause.NONE,
        cam_from_world=Rigid3(R=R, t=-R @ center),
        covariance=_coarse_covariance(
            R, centers - center, rotations, weights, calibration
        ),
    )


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
    calibration: CoarseCalibration,
) -> FloatArray:
    """Return spread + calibration, in the convention of `edgeloc.types`."""
    angles = rotation_angle_rad(np.einsum("kij,lj->kil", rotations, R))
    rotation_variance = float(weights @ angles**2) / 3.0
    covariance = np.zeros((6, 6))
    covariance[:3, :3] = np.eye(3) * (
        rotation_variance + calibration.rotation_sigma_rad**2
    )
    spread = np.einsum("k,ki,kj->ij", weights, offsets, offsets)
    in_world = spread + np.eye(3) * calibration.position_sigma**2
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
