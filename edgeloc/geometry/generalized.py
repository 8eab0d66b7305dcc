"""One camera against several posed ones: the generalized epipolar constraint.

Each match of the camera with one of the others says that two rays meet. Together they
tell all of the pose, its scale too, without any 3D point, where the others stand in
different places [1]_.

References
----------
.. [1] Pless, "Using Many Cameras as One", CVPR 2003, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgeloc.geometry.refine import (
    invert_information,
    robust_loss,
    robust_weights,
)
from edgeloc.geometry.se3 import cross_rows, exp_so3
from edgeloc.types import BoolArray, FloatArray, IntArray, Rigid3

_CHI2_1DOF_MEDIAN = 0.4549
_NUM_STEPS = 10
_MIN_PARALLAX_SIGMAS = 4.0
"""Below it, a match may well be one of a point at infinity, whose rays meet for every
translation; the derivatives are then those of its noise."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RayMatches:
    """Points of one camera, the query, and what they match in posed views.

    Parameters
    ----------
    query_rays, view_rays : ndarray of shape (M, 3), float64
        On the plane z = 1 of the query and of the view.
    query_sigmas, view_sigmas : ndarray of shape (M,), float64
        Standard deviations of these along each axis of the plane.
    view_idx : ndarray of shape (M,), int64
        The view of each match.
    R : ndarray of shape (K, 3, 3), float64
        Rotations of ``view_from_world``.
    centers : ndarray of shape (K, 3), float64
        Camera centres of the views, m.
    """

    query_rays: FloatArray
    view_rays: FloatArray
    query_sigmas: FloatArray
    view_sigmas: FloatArray
    view_idx: IntArray
    R: FloatArray
    centers: FloatArray

    def __len__(self) -> int:
        return len(self.view_idx)

    def where(self, mask: BoolArray | IntArray) -> RayMatches:
        """Return some of the matches."""
        return replace(
            self,
            query_rays=self.query_rays[mask],
            view_rays=self.view_rays[mask],
            query_sigmas=self.query_sigmas[mask],
            view_sigmas=self.view_sigmas[mask],
            view_idx=self.view_idx[mask],
        )

    def scaled(self, noise: float) -> RayMatches:
        """Return the same with other standard deviations, by a factor."""
        return replace(
            self,
            query_sigmas=self.query_sigmas * noise,
            view_sigmas=self.view_sigmas * noise,
        )


@dataclass(frozen=True, slots=True)
class _At:
    """The matches as seen from one pose of the query."""

    pose: Rigid3
    rays: FloatArray  # (M, 3) of the views, turned into the query's axes
    baselines: FloatArray  # (M, 3) centre of the view in the query's frame
    residuals: FloatArray  # (M,) in standard deviations
    scale: FloatArray  # (M,) from q . (t x p) to residuals


def _look(matches: RayMatches, pose: Rigid3) -> _At:
    query_from_view = np.einsum("ij,kmj->kim", pose.R, matches.R)
    centers = matches.centers @ pose.R.T + pose.t
    turn, t = query_from_view[matches.view_idx], centers[matches.view_idx]
    p = np.einsum("nij,nj->ni", turn, matches.view_rays)
    q = matches.query_rays
    line_q = cross_rows(t, p)  # E x_v
    line_v = np.einsum("nij,ni->nj", turn, cross_rows(q, t))  # E^T x_q
    value = np.einsum("ni,ni->n", q, line_q)
    variance = matches.query_sigmas**2 * np.sum(line_q[:, :2] ** 2, axis=1)
    variance += matches.view_sigmas**2 * np.sum(line_v[:, :2] ** 2, axis=1)
    scale = 1.0 / np.sqrt(np.maximum(variance, 1e-300))
    return _At(pose, p, t, value * scale, scale)


def ray_residuals(matches: RayMatches, query_from_world: Rigid3) -> FloatArray:
    """Return how far each match is from its epipolar line, in standard deviations.

    Sampson distances, weighted by the noise of both ends.

    Parameters
    ----------
    matches : RayMatches
        Matches.
    query_from_world : Rigid3
        Pose of the query.

    Returns
    -------
    ndarray of shape (M,), float64
        Signed.
    """
    return _look(matches, query_from_world).residuals


def ray_depths(
    matches: RayMatches, query_from_world: Rigid3
) -> tuple[FloatArray, FloatArray]:
    """Return at which depth the rays of each match come closest, (M,) each.

    Parameters
    ----------
    matches : RayMatches
        Matches.
    query_from_world : Rigid3
        Pose of the query.

    Returns
    -------
    in_query, in_view : ndarray of shape (M,), float64
        Along z, m; negative behind the camera, inf for parallel rays.
    """
    at = _look(matches, query_from_world)
    normal = cross_rows(at.rays, matches.query_rays)
    length2 = np.maximum(np.einsum("ni,ni->n", normal, normal), 1e-300)
    # depth_q q = depth_v p + t: crossing out one ray gives the depth on the other.
    in_query = np.einsum("ni,ni->n", cross_rows(at.rays, at.baselines), normal)
    in_view = np.einsum(
        "ni,ni->n", cross_rows(matches.query_rays, at.baselines), normal
    )
    return in_query / length2, in_view / length2


def has_parallax(matches: RayMatches, query_from_world: Rigid3) -> BoolArray:
    """Return which matches show that their two cameras are not at one place, (M,).

    Parameters
    ----------
    matches : RayMatches
        Matches.
    query_from_world : Rigid3
        Pose of the query; only its rotation counts.
    """
    return _has_parallax(matches, _look(matches, query_from_world))


def _has_parallax(matches: RayMatches, at: _At) -> BoolArray:
    depth = np.maximum(at.rays[:, 2:], 1e-3)
    moved = at.rays[:, :2] / depth - matches.query_rays[:, :2]
    noise = np.hypot(matches.query_sigmas, matches.view_sigmas)
    return np.asarray(np.linalg.norm(moved, axis=1) > _MIN_PARALLAX_SIGMAS * noise)


def robust_cost(
    matches: RayMatches, query_from_world: Rigid3, *, loss_scale: float
) -> float:
    """Return the Geman-McClure loss of all residuals, at most M (2 loss_scale)^2."""
    return robust_loss(
        ray_residuals(matches, query_from_world) ** 2, 4.0 * loss_scale**2
    )


def noise_ratio(residuals: FloatArray) -> float:
    """Return how many times larger the noise is than announced, from the median."""
    if not residuals.size:
        return 1.0
    return float(np.sqrt(np.median(residuals**2) / _CHI2_1DOF_MEDIAN))


def refine_on_rays(
    matches: RayMatches, query_from_world: Rigid3, *, loss_scale: float = 2.0
) -> tuple[Rigid3, FloatArray]:
    """Return the pose that brings all rays closest together, and its covariance.

    Levenberg-Marquardt on the robust sum of all residuals over the six parameters of
    one pose. The loss is Geman-McClure's, as in `edgeloc.geometry.refine`; it starts as
    wide as the residuals are.

    Parameters
    ----------
    matches : RayMatches
        Matches.
    query_from_world : Rigid3
        Where to start.
    loss_scale : float
        Residual from which the loss flattens, in standard deviations.

    Returns
    -------
    query_from_world : Rigid3
    covariance : ndarray of shape (6, 6), float64
        Of the left perturbation, see `edgeloc.types`; from matches with parallax alone.
        What they do not determine has a huge variance: the scale, where all cameras are
        on one line.
    """
    width = 4.0 * loss_scale**2
    at = _look(matches, query_from_world)
    width_now = max(width, 4.0 * float(np.median(at.residuals**2, axis=None)))
    damping = 1e-4
    for _ in range(_NUM_STEPS):
        jac, weights = (
            _jacobian(matches, at),
            robust_weights(at.residuals**2, width_now),
        )
        weighted = jac * weights[:, None]
        information = weighted.T @ jac
        damped = information + np.diag(damping * np.diag(information) + 1e-12)
        step = -np.linalg.solve(damped, at.residuals @ weighted)
        rotation = exp_so3(step[:3])
        tried = _look(
            matches,
            Rigid3(R=rotation @ at.pose.R, t=rotation @ at.pose.t + step[3:]),
        )
        before = robust_loss(at.residuals**2, width_now)
        after = robust_loss(tried.residuals**2, width_now)
        if not after <= before:
            damping = max(10.0 * damping, 1e-3)
            if damping > 1e6:
                break
            continue
        at, damping = tried, max(0.1 * damping, 1e-9)
        if width_now == width and before - after <= 1e-6 * before:
            break
        median = float(np.median(at.residuals**2))
        width_now = max(width, min(0.25 * width_now, 4.0 * median))
    jac, weights = _jacobian(matches, at), robust_weights(at.residuals**2, width)
    weights = weights * _has_parallax(matches, at)
    information = (jac * weights[:, None]).T @ jac
    return at.pose, invert_information(information)


def _jacobian(matches: RayMatches, at: _At) -> FloatArray:
    """Return d residual / d xi, (M, 6), the directions of the lines held.

    Of q . (t x p), where both t and p turn with the query, and t moves. The length of t
    cancels out of a residual, so that moving along t changes nothing: without saying
    so, noise would seem to tell the scale.
    """
    q, p, t = matches.query_rays, at.rays, at.baselines
    by_rotation = cross_rows(cross_rows(t, p), q)
    by_translation = cross_rows(p, q)
    length2 = np.maximum(np.einsum("ni,ni->n", t, t), 1e-300)
    along = np.einsum("ni,ni->n", by_translation, t) / length2
    by_translation -= along[:, None] * t
    jac = np.concatenate([by_rotation, by_translation], axis=1)
    return np.asarray(jac * at.scale[:, None])
