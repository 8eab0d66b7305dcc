"""Robust Levenberg-Marquardt refinement of a camera pose, with its covariance.

One factor of the focal lengths can be found along with it.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeloc.geometry.camera import project_with_jacobian
from edgeloc.geometry.se3 import exp_so3
from edgeloc.types import BoolArray, CameraModel, FloatArray, Rigid3

_CHI2_2DOF_MEDIAN = 2.0 * math.log(2.0)
_MIN_INFORMATION = 1e-10
"""Floor of the information's eigenvalues: a standard deviation of 1e5 rad or m."""
_CLOSE_SIGMAS = 5.0
"""After a step shorter than this, what is left of the residuals is taken for noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineOptions:
    """Options of `refine_pose`.

    Parameters
    ----------
    loss_scale : float
        Residual from which the loss flattens, in standard deviations (see
        `refine_pose`), at least 1: a narrower loss would doubt half of the good points.
    max_iterations : int
        Most evaluations of the derivatives.
    tolerance : float
        Stop after a step shorter than this many standard deviations of the pose.
    free_focal : bool
        Find one factor of both focal lengths, too.
    """

    loss_scale: float = 2.0
    max_iterations: int = 15
    tolerance: float = 1e-2
    free_focal: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.loss_scale) and self.loss_scale >= 1):
            raise ValueError(f"{self.loss_scale=} must be >= 1")
        if not self.max_iterations >= 1:
            raise ValueError(f"{self.max_iterations=} must be >= 1")
        if not self.tolerance >= 0:
            raise ValueError(f"{self.tolerance=} must be >= 0")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RefinedPose:
    """What `refine_pose` found.

    Parameters
    ----------
    cam_from_world : Rigid3
        The pose.
    covariance : ndarray of shape (6, 6), float64
        Of the left perturbation (rotation rad, translation m), see `edgeloc.types`.
        A direction that the points do not determine has a huge variance. It holds what
        is not known of the focal lengths where these are free.
    reproj_rmse_px : float
        Of all points, weighted by `weights`; 0 when no point can be seen.
    num_iterations : int
        Evaluations of the derivatives.
    weights : ndarray of shape (M,), float64
        How much each point is believed, in [0, 1]; 0 for a point that is not finite or
        cannot be seen.
    log_focal : float
        Natural logarithm of what the camera's focal lengths are to be multiplied with;
        0 where they are not free.
    log_focal_sigma : float
        Its standard deviation, huge where the points do not determine it: on a plane
        that is looked at squarely, coming nearer is the same as a longer lens.
    """

    cam_from_world: Rigid3
    covariance: FloatArray
    reproj_rmse_px: float
    num_iterations: int
    weights: FloatArray
    log_focal: float = 0.0
    log_focal_sigma: float = 0.0


def pose_jacobian(
    camera: CameraModel, cam_from_world: Rigid3, points3D: npt.ArrayLike
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Return projections and their derivative with respect to the pose.

    Parameters
    ----------
    camera : CameraModel
        Intrinsics.
    cam_from_world : Rigid3
        Where to linearise.
    points3D : array_like of shape (M, 3)
        Points in the world, m.

    Returns
    -------
    pixels : ndarray of shape (M, 2), float64
        Px; nan where not in front.
    jac : ndarray of shape (M, 2, 6), float64
        d pixel / d xi at xi = 0 of ``Exp(xi) @ cam_from_world``, xi = (rotation rad,
        translation m); nan where not in front.
    in_front : ndarray of shape (M,), bool
        See `edgeloc.geometry.camera.project`.
    """
    points_in_cam = cam_from_world.transform(points3D)
    pixels, jac_point, in_front = project_with_jacobian(camera, points_in_cam)
    return pixels, _chain_to_pose(jac_point, points_in_cam), in_front


def _chain_to_pose(jac_point: FloatArray, points_in_cam: FloatArray) -> FloatArray:
    """Return d pixel / d xi (M, 2, 6), as d point = omega x point + v."""
    jac = np.empty((len(jac_point), 2, 6))
    x, y, z = points_in_cam[:, 0:1], points_in_cam[:, 1:2], points_in_cam[:, 2:3]
    a, b, c = jac_point[:, :, 0], jac_point[:, :, 1], jac_point[:, :, 2]
    # row . (omega x point) = omega . (point x row)
    jac[:, :, 0] = y * c - z * b
    jac[:, :, 1] = z * a - x * c
    jac[:, :, 2] = x * b - y * a
    jac[:, :, 3:] = jac_point
    return jac


@dataclass(frozen=True, slots=True)
class _Problem:
    """The finite points, and what is known of their noise."""

    camera: CameraModel
    points2D: FloatArray
    points3D: FloatArray
    pixel_variances: FloatArray  # (M,) px^2
    point_variances: FloatArray | None
    free_focal: bool


def _make_problem(
    points2D: FloatArray,
    points3D: FloatArray,
    *,
    point_sigmas: FloatArray | None,
    pixel_sigmas: FloatArray | None,
    camera: CameraModel,
    free_focal: bool,
) -> tuple[_Problem, BoolArray]:
    """Return the problem and which points are part of it."""
    num_points = len(points2D)
    if points2D.shape != (num_points, 2) or points3D.shape != (num_points, 3):
        raise ValueError(
            f"{points2D.shape=} and {points3D.shape=} but expected (M, 2) and (M, 3)"
        )
    if pixel_sigmas is None:
        pixel_sigmas = np.ones(num_points)
    if pixel_sigmas.shape != (num_points,) or not np.all(pixel_sigmas > 0):
        raise ValueError(
            f"pixel_sigmas of shape {pixel_sigmas.shape} must be ({num_points},) and "
            "> 0"
        )
    usable = np.asarray(np.isfinite(np.hstack([points2D, points3D])).all(axis=1))
    if point_sigmas is not None:
        if point_sigmas.shape != (num_points,) or np.any(point_sigmas < 0):
            raise ValueError(
                f"point_sigmas of shape {point_sigmas.shape} must be ({num_points},) "
                "and >= 0"
            )
        usable &= np.isfinite(point_sigmas)
    if not usable.all():
        points2D, points3D = points2D[usable], points3D[usable]
        pixel_sigmas = pixel_sigmas[usable]
        point_sigmas = None if point_sigmas is None else point_sigmas[usable]
    problem = _Problem(
        camera=camera,
        points2D=points2D,
        points3D=points3D,
        pixel_variances=np.square(pixel_sigmas),
        point_variances=None if point_sigmas is None else np.square(point_sigmas),
        free_focal=free_focal,
    )
    return problem, usable


@dataclass(frozen=True, slots=True)
class _Linearised:
    """Residuals and derivatives at one pose and factor of the focal lengths."""

    R: FloatArray
    t: FloatArray
    log_focal: float
    residuals: FloatArray  # (M, 2) px, 0 where unseen
    jac: FloatArray  # (M, 2, 6 or 7), 0 where unseen
    seen: BoolArray
    variances: FloatArray  # (M,) px^2
    squares: FloatArray  # (M,) squared normalized residuals, inf where unseen


def _linearise(
    problem: _Problem, R: FloatArray, t: FloatArray, log_focal: float = 0.0
) -> _Linearised:
    points_in_cam = problem.points3D @ R.T + t
    pixels, jac_point, seen = project_with_jacobian(problem.camera, points_in_cam)
    off_center = None
    if problem.free_focal:
        # Focal lengths multiply last in every camera model.
        factor, center = math.exp(log_focal), problem.camera.principal_point_px
        off_center = factor * (pixels - center)
        pixels, jac_point = center + off_center, factor * jac_point
    residuals = pixels - problem.points2D
    if not seen.all():
        residuals[~seen] = 0.0
        jac_point[~seen] = 0.0
        if off_center is not None:
            off_center[~seen] = 0.0
    if problem.point_variances is None:
        variances = problem.pixel_variances
    else:
        # Half the trace of J J^T: the mean variance over both image axes.
        spread = 0.5 * np.einsum("nij,nij->n", jac_point, jac_point)
        variances = problem.pixel_variances + spread * problem.point_variances
    squares = np.einsum("ni,ni->n", residuals, residuals) / variances
    squares[~seen] = np.inf
    jac = _chain_to_pose(jac_point, points_in_cam)
    if off_center is not None:
        jac = np.concatenate([jac, off_center[:, :, None]], axis=2)
    return _Linearised(
        R=R,
        t=t,
        log_focal=log_focal,
        residuals=residuals,
        jac=jac,
        seen=seen,
        variances=variances,
        squares=squares,
    )


def robust_loss(squares: FloatArray, width: float) -> float:
    """Return the sum of s w / (s + w), w = `width`; w for a point that is unseen."""
    return float(np.sum(width - width * width / (squares + width)))


def robust_weights(squares: FloatArray, width: float) -> FloatArray:
    """Return the derivative of the loss: (w / (s + w))^2, 0 for an unseen point."""
    return np.asarray(np.square(width / (squares + width)))


@functools.lru_cache(maxsize=64)
def _gaussian_factors(width: float) -> tuple[float, float]:
    """Return what the weights do to a covariance and to a variance of Gaussian noise.

    An M-estimator with score psi = w(s) r has the covariance ``B / A^2 (J^T J)^-1``
    with ``A = E[w + s dw/ds]`` and ``B = E[w^2 s] / 2``, s = |r|^2 being chi-square
    with two degrees of freedom; ``(J^T W J)^-1`` is ``1 / E[w] (J^T J)^-1``. Weights
    below one on good points make the latter too large (by 16 % at a width of 16), and
    the weighted mean of s too small (by 17 %).
    """
    s = np.linspace(0.0, 60.0, 6001)
    density = 0.5 * np.exp(-0.5 * s)
    density /= density.sum()
    w = robust_weights(s, width)
    slope = -2.0 * w / (s + width)
    a = float(np.sum(density * (w + s * slope)))
    b = float(np.sum(density * w * w * s)) / 2.0
    mean_w = float(np.sum(density * w))
    return b * mean_w / (a * a), float(np.sum(density * w * s)) / (2.0 * mean_w)


def _information(at: _Linearised, weights: FloatArray) -> FloatArray:
    """Return J^T W J, (6, 6) or (7, 7), W = weight / variance."""
    flat = at.jac.reshape(-1, at.jac.shape[2])
    per_row = np.repeat(weights / at.variances, 2)
    return np.asarray(flat.T @ (flat * per_row[:, None]))


def _step(
    at: _Linearised, width: float, *, damping: float, is_close: bool
) -> tuple[FloatArray, float]:
    """Return the damped step to the minimum of the loss, and its length in sigmas.

    Far from it the weights stand in for the curvature of the loss, which they bound
    from above. Close to it, where residuals are noise, the curvature averaged over
    their directions, ``w + s dw/ds = w (width - s) / (width + s)``, converges in a
    third of the steps; it is kept positive.
    """
    weights = robust_weights(at.squares, width)
    curvature = weights
    if is_close:
        finite = np.minimum(at.squares, 1e12 * width)
        curvature = weights * np.maximum((width - finite) / (width + finite), 0.1)
    information = _information(at, curvature)
    weighted = (at.residuals * (weights / at.variances)[:, None]).reshape(-1)
    gradient = weighted @ at.jac.reshape(len(weighted), -1)
    diagonal = damping * np.diag(information) + _MIN_INFORMATION
    step = np.asarray(-np.linalg.solve(information + np.diag(diagonal), gradient))
    return step, math.sqrt(max(0.0, -float(gradient @ step)))


def invert_information(information: FloatArray) -> FloatArray:
    """Return the inverse of an information matrix, finite also when it is singular."""
    # Scaling to a unit diagonal first, since radians and metres differ in size.
    diagonal = np.sqrt(np.maximum(np.diag(information), _MIN_INFORMATION))
    scaled = information / np.outer(diagonal, diagonal)
    values, vectors = np.linalg.eigh(0.5 * (scaled + scaled.T))
    inverse = (vectors / np.maximum(values, 1e-13)) @ vectors.T
    out = inverse / np.outer(diagonal, diagonal)
    return np.asarray(0.5 * (out + out.T))


def _noise_variance(squares: FloatArray, width: float) -> float:
    """Return the robust variance factor of the normalized residuals, 1 as announced.

    From their median, so that it stays right with up to half of the points wrong, and
    then from one weighted mean at that scale, which scatters less. Six degrees of
    freedom went into the pose.
    """
    seen = squares[np.isfinite(squares)]
    if not seen.size:
        return 1.0
    from_median = max(float(np.median(seen)) / _CHI2_2DOF_MEDIAN, 1e-6)
    w = robust_weights(seen / from_median, width)
    mean = float(w @ seen) / (2.0 * float(w.sum())) / _gaussian_factors(width)[1]
    num_residuals = 2.0 * seen.size
    return mean * num_residuals / max(num_residuals - 6.0, 1.0)


def refine_pose(
    *,
    points2D: npt.ArrayLike,
    points3D: npt.ArrayLike,
    camera: CameraModel,
    cam_from_world: Rigid3,
    point_sigmas: npt.ArrayLike | None = None,
    pixel_sigmas: npt.ArrayLike | None = None,
    options: RefineOptions | None = None,
) -> RefinedPose:
    """Return the pose that explains the matches best, and how well it is known.

    Parameters
    ----------
    points2D : array_like of shape (M, 2)
        Image points, px, corner convention.
    points3D : array_like of shape (M, 3)
        Their landmarks in the world, m. Points that are not finite are left out.
    camera : CameraModel
        Intrinsics.
    cam_from_world : Rigid3
        Where to start.
    point_sigmas : array_like of shape (M,), optional
        Standard deviation of each landmark along each axis, m; exact by default.
    pixel_sigmas : array_like of shape (M,), optional
        Standard deviation of each image point along each axis, px; 1 by default.
    options : RefineOptions, optional
        Defaults of `RefineOptions` when None.

    Returns
    -------
    RefinedPose
        The start itself, with a huge covariance, when no point can be seen from it.

    Raises
    ------
    ValueError
        When the shapes do not fit or a sigma is negative.

    Notes
    -----
    A residual has the variance ``pixel_sigma^2 + |d px/d point|^2 point_sigma^2 / 2``,
    for a pinhole near its axis ``pixel_sigma^2 + (f point_sigma / z)^2``.

    The loss is Geman-McClure's, in Barron's form with shape -2 [1]_: quadratic within
    `loss_scale` sigmas, weight 1/4 at twice and 1/25 at four times that, bounded
    beyond. It wastes 5 % of the information when the noise is Gaussian and the scale
    2 sigmas. It starts as wide as the residuals are and is narrowed from step to step,
    so that a poor start does not lock on to few points.

    The covariance is ``(J^T W J)^-1``, corrected for the weights of the loss
    [2]_ (section 6.3) and multiplied by the variance factor of the residuals where that
    exceeds one: larger residuals than announced widen it, smaller ones do not shrink
    it.

    References
    ----------
    .. [1] Barron, "A General and Adaptive Robust Loss Function", CVPR 2019.
    .. [2] Huber and Ronchetti, "Robust Statistics", 2nd ed., 2009.
    """
    options = options if options is not None else RefineOptions()
    problem, usable = _make_problem(
        np.asarray(points2D, dtype=np.float64),
        np.asarray(points3D, dtype=np.float64),
        point_sigmas=_float64_or_none(point_sigmas),
        pixel_sigmas=_float64_or_none(pixel_sigmas),
        camera=camera,
        free_focal=options.free_focal,
    )
    width = 4.0 * options.loss_scale**2
    start = _linearise(problem, cam_from_world.R, cam_from_world.t)
    at, num_iterations = _minimise(problem, start, width=width, options=options)

    used = robust_weights(at.squares, width)
    factor = _gaussian_factors(width)[0]
    factor *= max(1.0, _noise_variance(at.squares, width))
    squared_px = np.einsum("ni,ni->n", at.residuals, at.residuals)
    total = float(used.sum())
    weights = np.zeros(len(usable))
    weights[usable] = used
    covariance = factor * invert_information(_information(at, used))
    return RefinedPose(
        cam_from_world=Rigid3(R=_nearest_rotation(at.R), t=at.t),
        covariance=covariance[:6, :6],
        reproj_rmse_px=math.sqrt(float(used @ squared_px) / total) if total else 0.0,
        num_iterations=num_iterations,
        weights=weights,
        log_focal=at.log_focal,
        log_focal_sigma=math.sqrt(covariance[6, 6]) if options.free_focal else 0.0,
    )


def _float64_or_none(values: npt.ArrayLike | None) -> FloatArray | None:
    return None if values is None else np.asarray(values, dtype=np.float64)


def _nearest_rotation(R: FloatArray) -> FloatArray:
    """Return R, orthonormal again after a few products (one Newton step)."""
    return np.asarray(0.5 * R @ (3.0 * np.eye(3) - R.T @ R))


def _minimise(
    problem: _Problem, at: _Linearised, *, width: float, options: RefineOptions
) -> tuple[_Linearised, int]:
    """Return the linearisation at the best pose, and how many there were."""
    seen_squares = at.squares[at.seen]
    if len(seen_squares) < 3:
        return at, 1
    width_now = max(width, 4.0 * float(np.median(seen_squares)))
    damping = 1e-6
    length_sigmas = math.inf
    num_iterations = 1
    while num_iterations < options.max_iterations:
        is_close = width_now == width and length_sigmas < _CLOSE_SIGMAS
        step, tried_sigmas = _step(at, width_now, damping=damping, is_close=is_close)
        if not np.isfinite(step).all():
            break
        # Any retraction that agrees with Exp to first order has the same optimum.
        rotation = exp_so3(step[:3])
        tried = _linearise(
            problem,
            rotation @ at.R,
            rotation @ at.t + step[3:6],
            at.log_focal + (float(step[6]) if problem.free_focal else 0.0),
        )
        num_iterations += 1
        if _is_better(tried, at, width_now):
            at, length_sigmas = tried, tried_sigmas
            damping = max(0.1 * damping, 1e-9)
            if width_now == width and length_sigmas < options.tolerance:
                break
            median = float(np.median(at.squares))  # inf when most are unseen
            width_now = max(width, min(0.25 * width_now, 4.0 * median))
        else:
            damping = max(1e-3, 10.0 * damping)
            if damping > 1e6:
                break
    return at, num_iterations


def _is_better(tried: _Linearised, at: _Linearised, width: float) -> bool:
    """Return whether a step did not raise the loss."""
    if np.count_nonzero(tried.seen) < 0.9 * np.count_nonzero(at.seen):
        return False
    # The step took the variances for constant, so the comparison does, too. A point
    # that drops out of sight at the edge of the lens keeps its loss: a jump there
    # would stop the others from improving.
    squares = tried.squares * (tried.variances / at.variances)
    squares = np.where(tried.seen, squares, at.squares)
    return robust_loss(squares, width) <= robust_loss(at.squares, width)
