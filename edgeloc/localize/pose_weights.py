"""How much each of the retrieved poses counts."""

from __future__ import annotations

import numpy as np

from edgeloc.geometry.se3 import mean_rotation, rotation_angle_rad
from edgeloc.types import Float32Array, FloatArray

_SHIFTS, _STILL = 10, 1e-3
"""Steps of mean shift, and the step, in bandwidths, after which there is no other."""


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


def view_kernel(
    views: tuple[FloatArray, FloatArray],
    others: tuple[FloatArray, FloatArray],
    *,
    bandwidth: tuple[float, float],
) -> FloatArray:
    """Return how near cameras are to others, and how alike what they look at.

    Gaussian over the distance and over the angle between the lines of sight: a camera
    that only rolled still sees the same.

    Parameters
    ----------
    views, others : (ndarray of shape (n, 3), ndarray of shape (n, 3, 3)), float64
        Camera centres, m, and rotations of ``cam_from_world``; n of each.
    bandwidth : (float, float)
        Standard deviations, m and rad.

    Returns
    -------
    ndarray of shape (len(views), len(others)), float64
        In [0, 1].
    """
    (centers, rotations), (other_centers, other_rotations) = views, others
    distance = np.linalg.norm(centers[:, None] - other_centers, axis=2)
    cosine = rotations[:, 2] @ other_rotations[:, 2].T
    angle = np.arccos(np.clip(cosine, -1.0, 1.0))
    squared = (distance / bandwidth[0]) ** 2 + (angle / bandwidth[1]) ** 2
    return np.asarray(np.exp(-0.5 * squared))


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
