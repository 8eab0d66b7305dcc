"""Two-view geometry of calibrated cameras.

Image points are undistorted coordinates on the plane z = 1
(`edgeloc.geometry.camera.normalized_from_pixels`); an error divided by the focal length
is an error in these units.
"""

from __future__ import annotations

import importlib

import cv2
import numpy as np
import numpy.typing as npt

from edgeloc.geometry.pnp import resolve_backend
from edgeloc.geometry.se3 import cross_rows, exp_so3, skew
from edgeloc.types import BoolArray, FloatArray, Rigid3

_MIN_POINTS = 5
_MAX_SAMPLES = 2000
_POSELIB_MIN_SAMPLES = 100
_SAMPLING_FOCAL_PX = 500.0
"""OpenCV samples in px: with K = I its MAGSAC finds 4 times less accurate poses."""
_REFINEMENT_STEPS = 15


def essential_from_poses(a_from_world: Rigid3, b_from_world: Rigid3) -> FloatArray:
    """Return E with ``x_b^T E x_a = 0`` for the views x_a and x_b of one point.

    Parameters
    ----------
    a_from_world, b_from_world : Rigid3
        The cameras' poses.

    Returns
    -------
    ndarray of shape (3, 3), float64
        ``skew(t) @ R`` of ``b_from_a``, so that its length is that of the baseline.
    """
    b_from_a = b_from_world @ a_from_world.inverse()
    return np.asarray(skew(b_from_a.t) @ b_from_a.R)


def _homogeneous(x: npt.ArrayLike) -> FloatArray:
    xy = np.asarray(x, dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ValueError(f"points have shape {xy.shape} but expected (N, 2)")
    return np.concatenate([xy, np.ones((len(xy), 1))], axis=1)


def _lines_and_residuals(
    E: npt.ArrayLike, x_a: npt.ArrayLike, x_b: npt.ArrayLike
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the lines' squared normals in a and in b, and x_b^T E x_a, all (N,)."""
    matrix = np.asarray(E, dtype=np.float64)
    homogeneous_a, homogeneous_b = _homogeneous(x_a), _homogeneous(x_b)
    if len(homogeneous_a) != len(homogeneous_b):
        raise ValueError(
            f"{len(homogeneous_a)} points in a but {len(homogeneous_b)} in b"
        )
    lines_b = homogeneous_a @ matrix.T
    lines_a = homogeneous_b @ matrix
    residuals = np.einsum("ni,ni->n", homogeneous_b, lines_b)
    square_a = np.einsum("ni,ni->n", lines_a[:, :2], lines_a[:, :2])
    square_b = np.einsum("ni,ni->n", lines_b[:, :2], lines_b[:, :2])
    return square_a, square_b, residuals


def sampson_error(
    E: npt.ArrayLike, x_a: npt.ArrayLike, x_b: npt.ArrayLike
) -> FloatArray:
    """Return Sampson distances: how far both points are from agreeing, to first order.

    Parameters
    ----------
    E : array_like of shape (3, 3)
        Essential matrix, ``x_b^T E x_a = 0``, of any length.
    x_a, x_b : array_like of shape (N, 2)
        Points on the plane z = 1.

    Returns
    -------
    ndarray of shape (N,), float64
        Distances in normalized units, not squared; inf where a point lies on both
        epipoles, which says nothing.

    Raises
    ------
    ValueError
        When the shapes do not fit.
    """
    square_a, square_b, residuals = _lines_and_residuals(E, x_a, x_b)
    return _divide(residuals, np.sqrt(square_a + square_b))


def epipolar_distance(
    E: npt.ArrayLike, x_a: npt.ArrayLike, x_b: npt.ArrayLike
) -> FloatArray:
    """Return the distances of points in b from the epipolar lines of those in a.

    Parameters
    ----------
    E : array_like of shape (3, 3)
        Essential matrix, ``x_b^T E x_a = 0``, of any length.
    x_a, x_b : array_like of shape (N, 2)
        Points on the plane z = 1.

    Returns
    -------
    ndarray of shape (N,), float64
        Normalized units; inf where x_a is the epipole, which has no line.

    Raises
    ------
    ValueError
        When the shapes do not fit.
    """
    _, square_b, residuals = _lines_and_residuals(E, x_a, x_b)
    return _divide(residuals, np.sqrt(square_b))


def _divide(numerators: FloatArray, denominators: FloatArray) -> FloatArray:
    out = np.full(len(numerators), np.inf)
    np.divide(np.abs(numerators), denominators, out=out, where=denominators > 0)
    return out


def estimate_essential(
    x_a: npt.ArrayLike,
    x_b: npt.ArrayLike,
    *,
    max_error: float,
    confidence: float = 0.9999,
    seed: int = 0,
    backend: str = "auto",
) -> tuple[Rigid3, BoolArray] | None:
    """Return the relative pose that most matches agree on.

    Five-point samples with local optimisation (PoseLib's LO-RANSAC, or OpenCV's USAC
    with MSAC scores); of the four poses of the best matrix, that which sees most
    inliers in front of both cameras; Levenberg-Marquardt steps on all Sampson
    distances, robustly.

    Parameters
    ----------
    x_a, x_b : array_like of shape (N, 2)
        Matched points on the plane z = 1. Those that are not finite are left out.
    max_error : float
        Largest Sampson distance of an inlier, normalized units.
    confidence : float
        Stop sampling when a better pose is left out with this probability at most.
    seed : int
        Of the sampling; the same input and seed give the same pose.
    backend : {'auto', 'opencv', 'poselib'}
        Who samples. 'auto' is poselib where that can be imported.

    Returns
    -------
    (Rigid3, ndarray of shape (N,), bool) or None
        ``b_from_a`` with a translation of length 1, and its inliers: within `max_error`
        and in front of both cameras. None with fewer than five matches, or when none
        was found. A pure rotation has no translation to find: its direction is then
        arbitrary.

    Raises
    ------
    BackendUnavailableError
        When poselib is asked for by name and is not installed.
    ValueError
        When the shapes do not fit or an option is out of range.
    """
    if not max_error > 0:
        raise ValueError(f"{max_error=} must be > 0")
    if not 0 < confidence < 1:
        raise ValueError(f"{confidence=} must be between 0 and 1")
    a = np.asarray(x_a, dtype=np.float64)
    b = np.asarray(x_b, dtype=np.float64)
    if a.ndim != 2 or a.shape[1] != 2 or a.shape != b.shape:
        raise ValueError(f"{a.shape=} and {b.shape=} but expected (N, 2) for both")
    usable = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    if np.count_nonzero(usable) < _MIN_POINTS:
        return None
    sample = (
        _sample_poselib if resolve_backend(backend) == "poselib" else _sample_opencv
    )
    b_from_a = sample(
        a[usable], b[usable], max_error=max_error, confidence=confidence, seed=seed
    )
    if b_from_a is None:
        return None
    b_from_a = _refine_relative(b_from_a, a[usable], b[usable], max_error)
    inliers = np.zeros(len(a), dtype=np.bool_)
    inliers[usable] = _agree(b_from_a, a[usable], b[usable], max_error)
    if np.count_nonzero(inliers) < _MIN_POINTS:
        return None
    return b_from_a, inliers


def _sample_poselib(
    a: FloatArray, b: FloatArray, *, max_error: float, confidence: float, seed: int
) -> Rigid3 | None:
    """Return the best pose, by PoseLib."""
    poselib = importlib.import_module("poselib")
    focal_px = _SAMPLING_FOCAL_PX
    camera = {
        "model": "SIMPLE_PINHOLE",
        "width": 1,
        "height": 1,
        "params": [focal_px, 0.0, 0.0],
    }
    pose, info = poselib.estimate_relative_pose(
        a * focal_px,
        b * focal_px,
        camera,
        camera,
        {
            "max_epipolar_error": max_error * focal_px,
            "success_prob": confidence,
            "max_iterations": _MAX_SAMPLES,
            "min_iterations": _POSELIB_MIN_SAMPLES,
            "seed": seed,
        },
        {"max_iterations": 0},  # robust steps on all matches follow
    )
    if info["num_inliers"] < _MIN_POINTS:
        return None
    return _unit_pose(np.asarray(pose.R, np.float64), np.asarray(pose.t, np.float64))


def _unit_pose(R: FloatArray, t: FloatArray) -> Rigid3 | None:
    """Return a pose with a translation of length 1, None when it has no such."""
    length = float(np.linalg.norm(t))
    if not (np.isfinite(R).all() and np.isfinite(length) and length > 0):
        return None
    return Rigid3(R=R, t=t.reshape(3) / length)


def _sample_opencv(
    a: FloatArray, b: FloatArray, *, max_error: float, confidence: float, seed: int
) -> Rigid3 | None:
    """Return the best pose, by OpenCV.

    Never with graph-cut optimisation: that crashes OpenCV 5.0 (segmentation fault) for
    essential matrices.
    """
    params = cv2.UsacParams()
    params.threshold = max_error * _SAMPLING_FOCAL_PX
    params.confidence = confidence
    params.maxIterations = _MAX_SAMPLES
    params.randomGeneratorState = seed
    params.isParallel = False
    params.sampler = cv2.SAMPLING_UNIFORM
    params.score = cv2.SCORE_METHOD_MSAC
    params.loMethod = cv2.LOCAL_OPTIM_INNER_LO
    params.loIterations = 5
    K = np.diag([_SAMPLING_FOCAL_PX, _SAMPLING_FOCAL_PX, 1.0])
    pixels_a, pixels_b = a * _SAMPLING_FOCAL_PX, b * _SAMPLING_FOCAL_PX
    none = np.zeros(4)
    try:
        E, _ = cv2.findEssentialMat(pixels_a, pixels_b, K, K, none, none, params=params)
    except cv2.error:  # degenerate points trip assertions inside OpenCV
        return None
    if E is None or np.shape(E) != (3, 3) or not np.isfinite(E).all():
        return None
    return _pose_of_essential(np.asarray(E, np.float64), a, b, max_error)


def _pose_of_essential(
    E: FloatArray, a: FloatArray, b: FloatArray, max_error: float
) -> Rigid3 | None:
    """Return the pose, among the four of E, that sees most points in front."""
    agreeing = sampson_error(E, a, b) <= max_error
    if np.count_nonzero(agreeing) < _MIN_POINTS:
        return None
    # recoverPose gets the inliers alone, since it counts all points it is given.
    _, R, t, _ = cv2.recoverPose(
        E,
        np.ascontiguousarray(a[agreeing]),
        np.ascontiguousarray(b[agreeing]),
        np.eye(3),
    )
    return _unit_pose(np.asarray(R, np.float64), np.asarray(t, np.float64))


def _refine_relative(
    b_from_a: Rigid3, a: FloatArray, b: FloatArray, max_error: float
) -> Rigid3:
    """Return the pose with the smallest Geman-McClure loss of Sampson distances nearby.

    Levenberg-Marquardt on the rotation and the two directions across t.
    """
    rays_a, rays_b = _homogeneous(a), _homogeneous(b)
    width = max_error * max_error
    R, t = b_from_a.R, b_from_a.t
    errors, scale = _sampson_terms(R, t, rays_a, rays_b)
    cost = _robust_cost(errors, width)
    damping = 1e-4
    for _ in range(_REFINEMENT_STEPS):
        # x_b . (t x p), p = R x_a, with p + omega x p and t + basis^T beta.
        p = rays_a @ R.T
        basis = np.linalg.svd(t[None])[2][1:]
        by_rotation = cross_rows(p, cross_rows(rays_b, t))
        by_direction = cross_rows(p, rays_b) @ basis.T
        jac = np.concatenate([by_rotation, by_direction], axis=1) * scale[:, None]
        weighted = jac * np.square(width / (np.square(errors) + width))[:, None]
        information = weighted.T @ jac
        damped = information + np.diag(damping * np.diag(information) + 1e-12)
        step = np.asarray(-np.linalg.solve(damped, errors @ weighted))
        R_new = exp_so3(step[:3]) @ R
        t_new = t + basis.T @ step[3:]
        t_new = t_new / np.linalg.norm(t_new)
        errors_new, scale_new = _sampson_terms(R_new, t_new, rays_a, rays_b)
        cost_new = _robust_cost(errors_new, width)
        if not cost_new < cost:
            damping *= 30.0
            continue
        done = cost - cost_new < 1e-6 * cost
        R, t, errors, scale, cost = R_new, t_new, errors_new, scale_new, cost_new
        damping *= 0.1
        if done:
            break
    return Rigid3(R=R, t=t)


def _sampson_terms(
    R: FloatArray, t: FloatArray, rays_a: FloatArray, rays_b: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return signed Sampson distances, and what scales x_b^T E x_a to them."""
    E = skew(t) @ R
    lines_b, lines_a = rays_a @ E.T, rays_b @ E
    squares = np.einsum("ni,ni->n", lines_a[:, :2], lines_a[:, :2])
    squares += np.einsum("ni,ni->n", lines_b[:, :2], lines_b[:, :2])
    scale = 1.0 / np.sqrt(np.maximum(squares, 1e-24))
    return np.einsum("ni,ni->n", rays_b, lines_b) * scale, scale


def _robust_cost(errors: FloatArray, width: float) -> float:
    squares = np.square(errors)
    return float(np.sum(squares * width / (squares + width)))


def _agree(
    b_from_a: Rigid3, a: FloatArray, b: FloatArray, max_error: float
) -> BoolArray:
    """Return which matches lie near their lines and in front of both cameras."""
    E = skew(b_from_a.t) @ b_from_a.R
    rays_a, rays_b = _homogeneous(a) @ b_from_a.R.T, _homogeneous(b)
    # depth_b rays_b = depth_a rays_a + t; crossing out one ray gives the other depth.
    normals = cross_rows(rays_a, rays_b)
    depth_a = np.einsum("ni,ni->n", cross_rows(rays_b, b_from_a.t), normals)
    depth_b = np.einsum("ni,ni->n", cross_rows(rays_a, b_from_a.t), normals)
    near = sampson_error(E, a, b) <= max_error
    return np.asarray(near & (depth_a > 0) & (depth_b > 0))
