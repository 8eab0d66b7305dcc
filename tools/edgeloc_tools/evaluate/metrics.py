"""What a pose is worth: errors, recalls, consistency, latency; pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeloc.geometry.se3 import log_se3, rotation_angle_rad
from edgeloc.types import BoolArray, FloatArray, Rigid3

WRONG_POSITION_M = 1.0
"""A LOCALIZED answer farther off is wrong but confident, on a metric site."""
WRONG_EXTENT_FRACTION = 0.5
"""The same on a site of unknown scale, as a fraction of its extent."""
WRONG_ROTATION_DEG = 10.0
"""A LOCALIZED answer turned by more is wrong but confident."""
WRONG_SIGMA_FACTOR = 10.0
"""So is one whose centre is off by more than this times its claimed 3 sigma."""

# A threshold counts as met at equality, also after the rounding of norms and arctan2.
_ROUNDING = 1.0 + 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A bound on the error of one frame.

    Parameters
    ----------
    label : str
        For tables.
    max_position : float
        Inclusive, in the unit of the map.
    max_rotation_deg : float
        Inclusive, degrees.
    """

    label: str
    max_position: float
    max_rotation_deg: float


ABSOLUTE_THRESHOLDS = ((0.02, 2.0), (0.05, 5.0), (0.1, 5.0), (0.25, 2.0), (0.5, 5.0))
"""Position (unit of the map) and rotation (degrees) of the fine and medium recalls."""
COARSE_THRESHOLD = (5.0, 10.0)
"""The coarse recall of the long-term localization benchmarks."""
EXTENT_THRESHOLD = (0.01, 2.0)
"""Fraction of the extent, and degrees: comparable between sites of any scale."""


def thresholds(*, extent: float, unit: str) -> tuple[Threshold, ...]:
    """Return the bounds that every evaluation reports.

    Parameters
    ----------
    extent : float
        See `extent_of`; the relative bound is left out when it is 0.
    unit : str
        Name of the map's unit, for the labels.

    Returns
    -------
    tuple of Threshold
    """
    pairs = (*ABSOLUTE_THRESHOLDS, COARSE_THRESHOLD)
    out = [
        Threshold(label=f"{p:g} {unit}, {r:g}°", max_position=p, max_rotation_deg=r)
        for p, r in pairs
    ]
    if extent > 0:
        fraction, rotation_deg = EXTENT_THRESHOLD
        out.append(
            Threshold(
                label=f"{fraction:.0%} of extent, {rotation_deg:g}°",
                max_position=fraction * extent,
                max_rotation_deg=rotation_deg,
            )
        )
    return tuple(out)


def extent_of(centers: npt.ArrayLike) -> float:
    """Return the median distance of camera centres to their centroid.

    Parameters
    ----------
    centers : array_like of shape (K, 3)
        Of the keyframes, in the world.

    Returns
    -------
    float
        0 for one keyframe or none.
    """
    points = np.asarray(centers, dtype=np.float64).reshape(-1, 3)
    if len(points) < 2:
        return 0.0
    return float(np.median(np.linalg.norm(points - points.mean(axis=0), axis=1)))


def position_errors(
    estimated_centers: npt.ArrayLike, true_centers: npt.ArrayLike
) -> FloatArray:
    """Return the distances of camera centres.

    Parameters
    ----------
    estimated_centers : array_like of shape (N, 3)
        Rows of NaN for LOST frames.
    true_centers : array_like of shape (N, 3)
        Ground truth.

    Returns
    -------
    ndarray of shape (N,), float64, unit of the map
        inf for LOST frames.
    """
    difference = np.asarray(estimated_centers, np.float64) - np.asarray(
        true_centers, np.float64
    )
    norms = np.linalg.norm(difference.reshape(-1, 3), axis=1)
    return np.where(np.isnan(norms), np.inf, norms)


def rotation_errors_deg(
    R_estimated: npt.ArrayLike, R_true: npt.ArrayLike
) -> FloatArray:
    """Return the angles between rotations.

    Parameters
    ----------
    R_estimated : array_like of shape (N, 3, 3)
        Of ``cam_from_world``; NaN for LOST frames.
    R_true : array_like of shape (N, 3, 3)
        Ground truth.

    Returns
    -------
    ndarray of shape (N,), float64, degrees
        inf for LOST frames.
    """
    estimated = np.asarray(R_estimated, np.float64).reshape(-1, 3, 3)
    true = np.asarray(R_true, np.float64).reshape(-1, 3, 3)
    angles_deg = np.degrees(rotation_angle_rad(true @ np.swapaxes(estimated, 1, 2)))
    return np.where(np.isnan(angles_deg), np.inf, angles_deg)


def pose_error(estimated: Rigid3 | None, true: Rigid3) -> tuple[float, float]:
    """Return position error (unit of the map) and rotation error (degrees).

    Parameters
    ----------
    estimated : Rigid3 or None
        ``cam_from_world``; None when LOST.
    true : Rigid3
        Ground truth.

    Returns
    -------
    tuple of float
        (inf, inf) when LOST.
    """
    if estimated is None:
        return float("inf"), float("inf")
    position = position_errors(estimated.origin_in_a[None], true.origin_in_a[None])
    rotation_deg = rotation_errors_deg(estimated.R[None], true.R[None])
    return float(position[0]), float(rotation_deg[0])


def within(
    position: npt.ArrayLike, rotation_deg: npt.ArrayLike, threshold: Threshold
) -> BoolArray:
    """Return which frames meet a bound, both parts inclusive; LOST never does.

    Parameters
    ----------
    position, rotation_deg : array_like of shape (N,)
        Errors, inf for LOST frames.
    threshold : Threshold
        The bound.

    Returns
    -------
    ndarray of shape (N,), bool
    """
    position_ok = np.asarray(position) <= threshold.max_position * _ROUNDING
    rotation_ok = np.asarray(rotation_deg) <= threshold.max_rotation_deg * _ROUNDING
    return np.asarray(position_ok & rotation_ok)


def quantile(values: npt.ArrayLike, q: float) -> float:
    """Return a quantile that may be inf; NaN for no values.

    Linear interpolation as `numpy.quantile`, except that a quantile between a finite
    and an infinite value is infinite (NumPy says NaN or inf, by version).

    Parameters
    ----------
    values : array_like of shape (N,)
        Numbers, inf allowed.
    q : float
        In [0, 1].

    Returns
    -------
    float
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if len(ordered) == 0:
        return float("nan")
    at = q * (len(ordered) - 1)
    low, high = ordered[int(np.floor(at))], ordered[int(np.ceil(at))]
    fraction = at - np.floor(at)
    if fraction == 0.0 or low == high:
        return float(low)
    return float(low + fraction * (high - low))


def center_covariance(
    R_cam_from_world: FloatArray, covariance: FloatArray
) -> FloatArray:
    """Return the covariance of the camera centre in the world.

    Parameters
    ----------
    R_cam_from_world : ndarray of shape (3, 3)
        Rotation of the estimate.
    covariance : ndarray of shape (6, 6)
        Of the left perturbation, as in `edgeloc.types`.

    Returns
    -------
    ndarray of shape (3, 3), float64

    Notes
    -----
    With ``cam_from_world_true = Exp(xi) @ cam_from_world`` and xi = (w, v), the true
    pose is ``R' = Exp(w) R`` and ``t' = Exp(w) t + J(w) v`` (J the left Jacobian). Its
    centre is ``c' = -R'^T t' = c - R^T Exp(-w) J(w) v = c - R^T J(-w) v``, to first
    order ``c - R^T v``: the rotation part drops out, since the perturbation turns the
    camera about its own centre. So ``cov(c) = R^T cov(v) R``.
    """
    R = np.asarray(R_cam_from_world, np.float64)
    return np.asarray(R.T @ np.asarray(covariance, np.float64)[3:, 3:] @ R)


def position_sigma(covariance: FloatArray) -> float:
    """Return the standard deviation of the camera centre along its worst axis.

    The eigenvalues do not change when the block is turned into the world
    (`center_covariance`), so the pose is not needed. A consistent estimator keeps
    between 97.1 % (isotropic) and 99.7 % (one axis dominates) of its errors inside
    three of these.

    Parameters
    ----------
    covariance : ndarray of shape (6, 6)
        As in `edgeloc.types`.

    Returns
    -------
    float
        Unit of the map.
    """
    largest = np.linalg.eigvalsh(np.asarray(covariance, np.float64)[3:, 3:])[-1]
    return float(np.sqrt(max(largest, 0.0)))


def rotation_sigma_deg(covariance: FloatArray) -> float:
    """Return the standard deviation of the rotation about its worst axis, degrees.

    Parameters
    ----------
    covariance : ndarray of shape (6, 6)
        As in `edgeloc.types`.

    Returns
    -------
    float
    """
    largest = np.linalg.eigvalsh(np.asarray(covariance, np.float64)[:3, :3])[-1]
    return float(np.degrees(np.sqrt(max(largest, 0.0))))


def nees(estimated: Rigid3, true: Rigid3, covariance: FloatArray) -> float:
    """Return the normalized estimation error squared of a pose, 6 when consistent.

    Parameters
    ----------
    estimated, true : Rigid3
        ``cam_from_world``.
    covariance : ndarray of shape (6, 6)
        Claimed, as in `edgeloc.types`.

    Returns
    -------
    float
        ``xi^T cov^-1 xi`` with ``xi = Log(true @ estimated^-1)``; NaN when the
        covariance is not positive definite.
    """
    xi = log_se3(true @ estimated.inverse())
    try:
        factor = np.linalg.cholesky(np.asarray(covariance, np.float64))
    except np.linalg.LinAlgError:
        return float("nan")
    whitened = np.linalg.solve(factor, xi)
    return float(whitened @ whitened)


def wrong_position_limit(*, metric: bool, extent: float) -> float:
    """Return the position error from which a confident answer is called wrong.

    Parameters
    ----------
    metric : bool
        Whether the unit of the map is the metre.
    extent : float
        See `extent_of`.

    Returns
    -------
    float
        1 m on a metric site; half of the extent on one of unknown scale, inf when
        that is 0.
    """
    if metric:
        return WRONG_POSITION_M
    return WRONG_EXTENT_FRACTION * extent if extent > 0 else float("inf")


def wrong_reasons(
    *,
    position: float,
    rotation_deg: float,
    sigma: float,
    position_limit: float,
) -> tuple[str, ...]:
    """Return what makes a LOCALIZED answer wrong but confident, () when it is not.

    Parameters
    ----------
    position, rotation_deg : float
        Errors.
    sigma : float
        `position_sigma` of the claimed covariance; NaN to leave that rule out.
    position_limit : float
        From `wrong_position_limit`.

    Returns
    -------
    tuple of str
        Of "position", "rotation" and "sigma".
    """
    rules = (
        ("position", position > position_limit * _ROUNDING),
        ("rotation", rotation_deg > WRONG_ROTATION_DEG * _ROUNDING),
        ("sigma", position > WRONG_SIGMA_FACTOR * 3.0 * sigma * _ROUNDING),
    )
    return tuple(name for name, broken in rules if broken)


def near_mask(
    R_keyframes: FloatArray,
    keyframe_centers: FloatArray,
    true: Rigid3,
    *,
    max_position: float,
    max_rotation_deg: float = 45.0,
) -> BoolArray:
    """Return which keyframes a perfect retrieval may propose for a pose.

    Parameters
    ----------
    R_keyframes : ndarray of shape (K, 3, 3)
        Rotations of ``cam_from_world``.
    keyframe_centers : ndarray of shape (K, 3)
        Camera centres in the world.
    true : Rigid3
        Ground truth of the query.
    max_position : float
        Largest distance of the centres.
    max_rotation_deg : float
        Largest angle between the two cameras.

    Returns
    -------
    ndarray of shape (K,), bool
    """
    position = np.linalg.norm(keyframe_centers - true.origin_in_a, axis=1)
    angle_deg = np.degrees(
        rotation_angle_rad(R_keyframes @ np.swapaxes(true.R[None], 1, 2))
    )
    return np.asarray((position <= max_position) & (angle_deg <= max_rotation_deg))


def first_near_rank(near_of_ranked: Sequence[bool] | BoolArray) -> int | None:
    """Return the rank, from 1, of the first near keyframe; None when none is.

    Parameters
    ----------
    near_of_ranked : sequence of bool
        `near_mask` in the order of retrieval.

    Returns
    -------
    int or None
    """
    hits = np.flatnonzero(np.asarray(near_of_ranked, dtype=bool))
    return int(hits[0]) + 1 if len(hits) else None
