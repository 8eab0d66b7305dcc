"""Points from many views with known poses, all tracks at once.

Observations of all tracks lie in flat arrays, sorted by track, so that sums over a
track are `numpy.add.reduceat` and nothing loops over points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeloc.geometry.camera import project_with_jacobian, unproject
from edgeloc.types import BoolArray, CameraModel, FloatArray, IntArray

_PRIOR_DOF = 4.0
_MIN_NOISE_PX = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """One posed image.

    Parameters
    ----------
    camera : CameraModel
        Intrinsics.
    R : ndarray of shape (3, 3), float64
        Rotation of ``cam_from_world``.
    t : ndarray of shape (3,), float64
        Translation of ``cam_from_world``.
    """

    camera: CameraModel
    R: FloatArray
    t: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observations:
    """Image measurements of tracks, sorted by track.

    Parameters
    ----------
    track_idx : ndarray of shape (N,), int64
        Ascending from 0, every track has at least one.
    view_idx : ndarray of shape (N,), int64
        Index into the views.
    pixels : ndarray of shape (N, 2), float64
        Measured positions, px.
    pixel_sigma : ndarray of shape (N,), float64
        Standard deviation of `pixels` along each axis, px, up to a factor that all
        share.
    depth : ndarray of shape (N,), float64
        Measured depth along the camera's z axis, m; nan where unknown.
    depth_sigma : ndarray of shape (N,), float64
        Standard deviation of `depth`, m.
    """

    track_idx: IntArray
    view_idx: IntArray
    pixels: FloatArray
    pixel_sigma: FloatArray
    depth: FloatArray
    depth_sigma: FloatArray

    def __len__(self) -> int:
        return len(self.track_idx)

    @property
    def starts(self) -> IntArray:
        """First observation of each track, (T,)."""
        return np.flatnonzero(np.diff(self.track_idx, prepend=-1))


@dataclass(frozen=True, slots=True, kw_only=True)
class TriangulationOptions:
    """Gates of `triangulate_tracks`.

    Parameters
    ----------
    max_error_px : float
        Reprojection error of an inlier observation.
    min_angle_deg : float
        Largest angle between two rays that a point without depth needs.
    loss_scale_px : float
        Of the Cauchy loss while refining.
    num_hypotheses : int
        View pairs tried per track.
    num_iterations : int
        Gauss-Newton steps.
    seed : int
        For the choice of pairs.
    """

    max_error_px: float = 4.0
    min_angle_deg: float = 1.0
    loss_scale_px: float = 1.0
    num_hypotheses: int = 12
    num_iterations: int = 8
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Triangulation:
    """Points of tracks.

    Parameters
    ----------
    points3D : ndarray of shape (T, 3), float64
        Positions in the world, m; nan where `valid` is False.
    sigmas : ndarray of shape (T,), float64
        Root mean square of the two smaller standard deviations, m: what a view from
        about where the others were taken sees of the uncertainty.
    inlier : ndarray of shape (N,), bool
        Observations that agree with their point.
    valid : ndarray of shape (T,), bool
        Tracks that passed all gates.
    errors_px : ndarray of shape (N,), float64
        Reprojection errors.
    """

    points3D: FloatArray
    sigmas: FloatArray
    inlier: BoolArray
    valid: BoolArray
    errors_px: FloatArray


def _segment_sum(values: npt.NDArray[np.generic], starts: IntArray) -> FloatArray:
    return np.asarray(np.add.reduceat(values, starts, axis=0), np.float64)


def _solve3(a: FloatArray, b: FloatArray) -> FloatArray:
    """Solve (T, 3, 3) systems, lightly damped so that flat ones do not raise."""
    damping = 1e-9 * np.trace(a, axis1=1, axis2=2) + 1e-12
    a = a + damping[:, None, None] * np.eye(3)
    return np.asarray(np.linalg.solve(a, b[:, :, None])[:, :, 0])


class _Problem:
    """Geometry of all observations, gathered once."""

    def __init__(self, observations: Observations, views: Sequence[View]) -> None:
        self.obs = observations
        self.views = views
        self.starts = observations.starts
        rotations = np.stack([view.R for view in views])
        translations = np.stack([view.t for view in views])
        self.R = rotations[observations.view_idx]
        self.t = translations[observations.view_idx]
        self.centers = -np.einsum("nji,nj->ni", self.R, self.t)
        # Observations by camera model, so that each model projects once.
        by_camera: dict[CameraModel, list[int]] = {}
        for view_idx, view in enumerate(views):
            by_camera.setdefault(view.camera, []).append(view_idx)
        self.groups = [
            (camera, np.flatnonzero(np.isin(observations.view_idx, view_idxs)))
            for camera, view_idxs in by_camera.items()
        ]
        rays = np.zeros((len(observations), 3))
        for camera, rows in self.groups:
            if len(rows):
                rays[rows] = unproject(camera, observations.pixels[rows])
        rays = np.nan_to_num(rays)
        self.rays_in_cam = rays
        self.rays = np.einsum("nji,nj->ni", self.R, rays)

    def residuals(
        self, points3D: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return pixel residuals (N, 2), their Jacobians (N, 2, 3) and depths (N,)."""
        points = points3D[self.obs.track_idx]
        in_cam = np.einsum("nij,nj->ni", self.R, points) + self.t
        residual = np.full((len(self.obs), 2), np.inf)
        jacobian = np.zeros((len(self.obs), 2, 3))
        for camera, rows in self.groups:
            if not len(rows):
                continue
            pixels, jac, in_front = project_with_jacobian(camera, in_cam[rows])
            good = in_front & np.all(np.isfinite(pixels), axis=1)
            delta = pixels - self.obs.pixels[rows]
            residual[rows[good]] = delta[good]
            jacobian[rows[good]] = np.einsum(
                "nij,njk->nik", jac[good], self.R[rows[good]]
            )
        return residual, jacobian, in_cam[:, 2]

    def pair_midpoints(self, first: IntArray, second: IntArray) -> FloatArray:
        """Return the points nearest to two rays each, (T, 3)."""
        eye = np.eye(3)
        a = np.zeros((len(first), 3, 3))
        b = np.zeros((len(first), 3))
        for rows in (first, second):
            d = self.rays[rows]
            m = eye - d[:, :, None] * d[:, None, :]
            a += m
            b += np.einsum("nij,nj->ni", m, self.centers[rows])
        return _solve3(a, b)

    def depth_points(self, rows: IntArray) -> FloatArray:
        """Return the points at the measured depth of observations, (T, 3)."""
        ray = self.rays_in_cam[rows]
        scale = self.obs.depth[rows] / np.where(ray[:, 2] > 1e-6, ray[:, 2], np.nan)
        in_cam = ray * scale[:, None] - self.t[rows]
        return np.asarray(np.einsum("nji,nj->ni", self.R[rows], in_cam))


def _robust_cost(
    problem: _Problem, points3D: FloatArray, max_error_px: float
) -> FloatArray:
    """Return the truncated squared error of each track, in units of the gate."""
    finite = np.all(np.isfinite(points3D), axis=1)
    residual, _, z = problem.residuals(np.where(finite[:, None], points3D, 0.0))
    error2 = np.sum(residual**2, axis=1) / max_error_px**2
    cost = np.minimum(np.where(np.isfinite(error2), error2, 1.0), 1.0)
    has_depth = np.isfinite(problem.obs.depth)
    depth_error = np.zeros(len(z))
    depth_error[has_depth] = (z - problem.obs.depth)[has_depth] / (
        3.0 * problem.obs.depth_sigma[has_depth]
    )
    cost = cost + np.minimum(depth_error**2, 1.0) * has_depth
    total = _segment_sum(cost, problem.starts)
    return np.where(finite, total, np.inf)


def triangulate_tracks(
    observations: Observations,
    views: Sequence[View],
    options: TriangulationOptions,
) -> Triangulation:
    """Return one point per track from its observations in posed images.

    Each track tries several pairs of views (and its measured depths) for a start, keeps
    the one with the smallest truncated error, and refines it by Gauss-Newton on the
    robust reprojection error of all its observations (and depths).

    Parameters
    ----------
    observations : Observations
        Sorted by track.
    views : sequence of View
        Posed images.
    options : TriangulationOptions
        Gates.

    Returns
    -------
    Triangulation
    """
    problem = _Problem(observations, views)
    starts = problem.starts
    counts = np.diff(np.append(starts, len(observations)))
    points3D = _initial_points(problem, counts, options)
    points3D = _refine(problem, points3D, options)

    residual, jacobian, z = problem.residuals(points3D)
    errors = np.sqrt(np.sum(residual**2, axis=1))
    inlier = (errors <= options.max_error_px) & (z > 0)
    has_depth = np.isfinite(observations.depth)
    depth_ok = np.zeros(len(z), dtype=bool)
    depth_ok[has_depth] = (
        np.abs(z - observations.depth)[has_depth]
        <= 4.0 * observations.depth_sigma[has_depth]
    )
    num_inliers = _segment_sum(inlier, starts)
    angle = _largest_angle_rad(problem, points3D, inlier)
    with_depth = _segment_sum(inlier & depth_ok, starts) > 0
    enough_views = (num_inliers >= 2) & (angle >= np.deg2rad(options.min_angle_deg))
    information = _information(problem, jacobian, inlier, inlier & depth_ok)
    sigmas = _sigmas(information, errors / observations.pixel_sigma, inlier, starts)
    valid = (enough_views | with_depth) & np.isfinite(sigmas)
    return Triangulation(
        points3D=np.where(valid[:, None], points3D, np.nan),
        sigmas=np.where(valid, sigmas, np.nan),
        inlier=inlier & valid[observations.track_idx],
        valid=valid,
        errors_px=errors,
    )


def _initial_points(
    problem: _Problem, counts: IntArray, options: TriangulationOptions
) -> FloatArray:
    rng = np.random.default_rng(options.seed)
    starts = problem.starts
    last = starts + counts - 1
    best = np.full((len(starts), 3), np.nan)
    best_cost = np.full(len(starts), np.inf)

    def consider(points3D: FloatArray) -> None:
        cost = _robust_cost(problem, points3D, options.max_error_px)
        better = cost < best_cost
        best[better] = points3D[better]
        best_cost[better] = cost[better]

    depth = problem.obs.depth
    for trial in range(options.num_hypotheses):
        if trial == 0:
            first, second = starts, last
        else:
            first = starts + rng.integers(0, counts)
            second = (
                starts
                + (first - starts + 1 + rng.integers(0, np.maximum(counts - 1, 1)))
                % counts
            )
        consider(problem.pair_midpoints(first, second))
        if trial < 4 and np.any(np.isfinite(depth)):
            consider(problem.depth_points(first))
    return np.where(np.isfinite(best), best, 0.0)


def _refine(
    problem: _Problem, points3D: FloatArray, options: TriangulationOptions
) -> FloatArray:
    obs, starts = problem.obs, problem.starts
    has_depth = np.isfinite(obs.depth)
    z_axis = problem.R[:, 2, :]
    scale2 = options.loss_scale_px**2
    for _ in range(options.num_iterations):
        residual, jacobian, z = problem.residuals(points3D)
        finite = np.isfinite(residual[:, 0])
        residual[~finite] = 0.0
        # The loss stays in px: a wider one for coarse keypoints let wrong ones pull.
        weight = finite / (1.0 + np.sum(residual**2, axis=1) / scale2)
        weight /= obs.pixel_sigma**2
        hessian = np.einsum("n,nij,nik->njk", weight, jacobian, jacobian)
        gradient = np.einsum("n,nij,ni->nj", weight, jacobian, residual)
        if np.any(has_depth):
            r = np.where(has_depth, (z - obs.depth) / obs.depth_sigma, 0.0)
            w = has_depth / (1.0 + r**2) / obs.depth_sigma**2
            w = np.where(has_depth, w, 0.0)
            hessian += w[:, None, None] * z_axis[:, :, None] * z_axis[:, None, :]
            gradient += (w * np.where(has_depth, z - obs.depth, 0.0))[:, None] * z_axis
        a = _segment_sum(hessian, starts)
        # Levenberg's term bounds the step where rays are nearly parallel.
        a += 1e-4 * np.trace(a, axis1=1, axis2=2)[:, None, None] * np.eye(3)
        points3D = points3D - _solve3(a, _segment_sum(gradient, starts))
    return points3D


def _largest_angle_rad(
    problem: _Problem, points3D: FloatArray, inlier: BoolArray
) -> FloatArray:
    """Return the largest angle to the first inlier ray of each track, (T,)."""
    rays = points3D[problem.obs.track_idx] - problem.centers
    rays /= np.maximum(np.linalg.norm(rays, axis=1, keepdims=True), 1e-12)
    position = np.where(inlier, np.arange(len(inlier)), len(inlier))
    first = np.minimum.reduceat(position, problem.starts)
    first = np.minimum(first, len(inlier) - 1)
    cosine = np.sum(rays * rays[first[problem.obs.track_idx]], axis=1)
    cosine = np.where(inlier, cosine, 1.0)
    smallest = np.minimum.reduceat(cosine, problem.starts)
    return np.asarray(np.arccos(np.clip(smallest, -1.0, 1.0)))


def _information(
    problem: _Problem,
    jacobian: FloatArray,
    inlier: BoolArray,
    depth_inlier: BoolArray,
) -> FloatArray:
    """Return the information matrices of the points, (T, 3, 3)."""
    weight = inlier / problem.obs.pixel_sigma**2
    hessian = np.einsum("n,nij,nik->njk", weight, jacobian, jacobian)
    z_axis = problem.R[:, 2, :]
    weight = np.where(depth_inlier, 1.0 / problem.obs.depth_sigma**2, 0.0)
    hessian += weight[:, None, None] * z_axis[:, :, None] * z_axis[:, None, :]
    return _segment_sum(hessian, problem.starts)


def _sigmas(
    information: FloatArray, errors: FloatArray, inlier: BoolArray, starts: IntArray
) -> FloatArray:
    """Return the standard deviations across the line of sight, (T,).

    The mean of all three would be ruled by the depth, which a view along nearly the
    same line does not see, and would take their weight from points that are well known
    where it counts. The noise is that of the track drawn to the typical one by
    `_PRIOR_DOF`: two views leave one degree of freedom, which says next to nothing.

    Parameters
    ----------
    errors : ndarray of shape (N,), float64
        Reprojection errors in units of the announced noise.
    """
    scale = np.trace(information, axis1=1, axis2=2)
    a = information + (1e-12 * scale + 1e-300)[:, None, None] * np.eye(3)
    with np.errstate(divide="ignore", invalid="ignore"):
        variances = 1.0 / np.maximum(np.linalg.eigvalsh(a), 1e-300)  # largest first
    num = np.maximum(_segment_sum(inlier, starts), 1.0)
    # Two equations per view and three unknowns.
    dof = np.maximum(2.0 * num - 3.0, 1.0)
    squares = _segment_sum(np.where(inlier, errors, 0.0) ** 2, starts)
    several = num > 2
    typical = float(np.median(squares[several] / dof[several])) if several.any() else 0
    typical = max(typical, _MIN_NOISE_PX**2)
    noise2 = (squares + _PRIOR_DOF * typical) / (dof + _PRIOR_DOF)
    return np.asarray(np.sqrt(variances[:, 1:].mean(axis=1) * noise2))
