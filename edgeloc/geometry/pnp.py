"""Absolute pose from 2D-3D matches with many wrong ones among them."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import numpy.typing as npt

from edgeloc.errors import BackendUnavailableError
from edgeloc.geometry.camera import normalized_from_pixels, project
from edgeloc.geometry.refine import RefinedPose, RefineOptions, refine_pose
from edgeloc.geometry.upright import Vertical, sample_upright
from edgeloc.types import BoolArray, CameraModel, FloatArray, Matches2D3D, Rigid3

_BACKENDS = ("auto", "opencv", "poselib")
_MIN_POINTS = 4
"""Three points leave up to four poses."""
_MAX_TANGENT = 4.0
"""Hypotheses come from points within 76 deg of the axis: the plane z = 1 on which they
are made stretches the noise of wider ones out of all proportion. Wider points count as
inliers all the same."""
_MAX_ROTATION_SIGMA_RAD = 0.5
"""A less certain orientation is none: the covariance is linear, and such a pose comes
from points on a line or in one spot."""
_REFINEMENT_ROUNDS = 3
_CHI2_2DOF_MEDIAN = 1.386
_MIN_NOISE_RATIO = 0.25
_MAX_NOISE_RATIO = 3.0
_POSELIB_MIN_ITERATIONS = 100
_MIN_PRIOR_SHARE = 0.5
"""Of the matches; with fewer, another pose could have more."""
_EASY_SHARE = 0.5
"""Where so many matches agree, samples of three find them as well as of two."""
_TILT_SIGMAS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PnpOptions:
    """Options of `estimate_pose`.

    Parameters
    ----------
    max_error_px : float
        Largest reprojection error of an inlier.
    inlier_sigmas : float
        The same once the noise is known (`adapt_to_noise`), in standard deviations of
        the image point, where that is less: 99.7 % of good points are within 3.4.
    confidence : float
        Stop sampling when a better pose is left out with this probability at most.
    max_iterations : int
        Most samples.
    min_inliers : int
        A pose with fewer inliers is none.
    seed : int
        Of the sampling; the same input and seed give the same pose.
    backend : {'auto', 'opencv', 'poselib'}
        Who samples. 'auto' is poselib where that can be imported.
    adapt_to_noise : bool
        Scale the noise of the image points to what the inliers show, and tighten the
        threshold to `inlier_sigmas` of it. Sharp pictures give errors of 0.3 px, where
        a threshold for blurred ones lets wrong neighbours pull; blurred ones give 2 px,
        where the covariance must grow.
    refine : RefineOptions
        Of the refinement.
    """

    max_error_px: float = 4.0
    inlier_sigmas: float = 3.4
    confidence: float = 0.9999
    max_iterations: int = 2000
    min_inliers: int = 4
    seed: int = 0
    backend: str = "auto"
    adapt_to_noise: bool = True
    refine: RefineOptions = field(default_factory=RefineOptions)

    def __post_init__(self) -> None:
        for name, value in (
            ("max_error_px", self.max_error_px),
            ("inlier_sigmas", self.inlier_sigmas),
        ):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value} must be > 0")
        if not 0 < self.confidence < 1:
            raise ValueError(f"{self.confidence=} must be between 0 and 1")
        if not self.max_iterations >= 1:
            raise ValueError(f"{self.max_iterations=} must be >= 1")
        if not self.min_inliers >= _MIN_POINTS:
            raise ValueError(f"{self.min_inliers=} must be >= {_MIN_POINTS}")
        if self.seed < 0:
            raise ValueError(f"{self.seed=} must be >= 0")
        if self.backend not in _BACKENDS:
            raise ValueError(
                f"{self.backend=} is unknown, expected one of {', '.join(_BACKENDS)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PnpResult:
    """What `estimate_pose` found.

    Parameters
    ----------
    cam_from_world : Rigid3
        The refined pose.
    covariance : ndarray of shape (6, 6), float64
        Of the left perturbation, see `edgeloc.types`; from the inliers.
    inlier_mask : ndarray of shape (M,), bool
        The matches that agree with the refined pose.
    reproj_rmse_px : float
        Of the inliers.
    backend : {'opencv', 'poselib', 'prior'}
        Who sampled; 'prior' when nobody had to.
    """

    cam_from_world: Rigid3
    covariance: FloatArray
    inlier_mask: BoolArray
    reproj_rmse_px: float
    backend: str

    @property
    def num_inliers(self) -> int:
        """Number of inliers."""
        return int(np.count_nonzero(self.inlier_mask))


@functools.cache
def poselib_available() -> bool:
    """Return whether PoseLib can be imported, without importing it."""
    return importlib.util.find_spec("poselib") is not None


def resolve_backend(backend: str) -> str:
    """Return which sampler a `PnpOptions.backend` stands for on this machine.

    Parameters
    ----------
    backend : {'auto', 'opencv', 'poselib'}
        As in `PnpOptions`.

    Returns
    -------
    {'opencv', 'poselib'}

    Raises
    ------
    BackendUnavailableError
        When poselib is asked for by name and is not installed.
    """
    if backend == "auto":
        return "poselib" if poselib_available() else "opencv"
    if backend == "poselib" and not poselib_available():
        raise BackendUnavailableError(
            "PnP backend poselib is not installed: pip install 'edgeloc[poselib]' or "
            "use backend opencv"
        )
    return backend


def estimate_pose(
    matches: Matches2D3D,
    camera: CameraModel,
    *,
    options: PnpOptions | None = None,
    point_sigmas: npt.ArrayLike | None = None,
    pixel_sigmas: npt.ArrayLike | None = None,
    prior: Rigid3 | None = None,
    vertical: Vertical | None = None,
) -> PnpResult | None:
    """Return the pose that most matches agree on.

    A sample consensus finds a pose and its inliers, `refine_pose` polishes it on them,
    the inliers are looked up again among all matches, and so on until they stay.
    With a prior, sampling is skipped where the robust minimum next to it has most of
    the matches as its inliers.

    Parameters
    ----------
    matches : Matches2D3D
        Matches; those that are not finite are left out. Where the scores differ, the
        best matches are sampled first (PROSAC).
    camera : CameraModel
        Intrinsics.
    options : PnpOptions, optional
        Defaults of `PnpOptions` when None.
    point_sigmas : array_like of shape (M,), optional
        Standard deviation of each landmark along each axis, m.
    pixel_sigmas : array_like of shape (M,), optional
        Standard deviation of each image point along each axis, px; 1 by default.
    prior : Rigid3, optional
        ``cam_from_world`` to start from. It does not pull on the result.
    vertical : Vertical, optional
        Which way is down. Where less than half of the matches agree, poses of two
        points that keep it are tried, too. It does not pull on the result either.

    Returns
    -------
    PnpResult or None
        None when there are fewer than four usable matches, too few agree, or those
        that do leave the orientation open (points on a line or in one spot).

    Raises
    ------
    BackendUnavailableError
        When poselib is asked for by name and is not installed.
    ValueError
        When `point_sigmas` or `pixel_sigmas` do not fit the matches.
    """
    options = options if options is not None else PnpOptions()
    backend = resolve_backend(options.backend)
    points2D = np.asarray(matches.points2D, dtype=np.float64)
    points3D = np.asarray(matches.points3D, dtype=np.float64)
    usable = np.asarray(np.isfinite(np.hstack([points2D, points3D])).all(axis=1))
    sigmas = None
    if point_sigmas is not None:
        sigmas = np.asarray(point_sigmas, dtype=np.float64)
        if sigmas.shape != usable.shape or np.any(sigmas < 0):
            raise ValueError(
                f"point_sigmas of shape {sigmas.shape} must be {usable.shape} and >= 0"
            )
        usable &= np.isfinite(sigmas)
    spreads = np.ones(len(usable))
    if pixel_sigmas is not None:
        spreads = np.asarray(pixel_sigmas, dtype=np.float64)
        if spreads.shape != usable.shape or not np.all(spreads > 0):
            raise ValueError(
                f"pixel_sigmas of shape {spreads.shape} must be {usable.shape} and > 0"
            )
    if np.count_nonzero(usable) < _MIN_POINTS:
        return None

    problem = _Problem(
        camera=camera,
        points2D=points2D,
        points3D=points3D,
        point_sigmas=sigmas,
        pixel_sigmas=spreads,
        usable=usable,
        limits_px=np.full(len(usable), options.max_error_px),
        options=options.refine,
    )
    start = None if prior is None else _near_prior(problem, prior)
    refined: RefinedPose | None = None
    if start is not None:
        backend = "prior"
        inliers, squares = problem.inliers(start)
    else:
        start = _sample_consensus(
            points2D[usable],
            points3D[usable],
            np.asarray(matches.scores, dtype=np.float64)[usable],
            camera=camera,
            options=options,
            backend=backend,
        )
        if vertical is not None:
            start = _or_upright(problem, start, vertical, matches.scores, options)
        if start is None:
            return None
        refined, inliers, squares = _refine_on_inliers(problem, start)
        start = None if refined is None else refined.cam_from_world
    if start is not None and options.adapt_to_noise:
        spreads = spreads * _noise_ratio(squares[inliers] / spreads[inliers] ** 2)
        problem = replace(
            problem,
            pixel_sigmas=spreads,
            limits_px=np.minimum(options.inlier_sigmas * spreads, options.max_error_px),
        )
        refined, inliers, squares = _refine_on_inliers(problem, start)
    elif start is not None and refined is None:
        refined, inliers, squares = _refine_on_inliers(problem, start)
    if refined is None or np.count_nonzero(inliers) < options.min_inliers:
        return None
    rotation_variance = float(np.linalg.eigvalsh(refined.covariance[:3, :3])[-1])
    if not rotation_variance < _MAX_ROTATION_SIGMA_RAD**2:
        return None
    return PnpResult(
        cam_from_world=refined.cam_from_world,
        covariance=refined.covariance,
        inlier_mask=inliers,
        reproj_rmse_px=math.sqrt(float(squares[inliers].mean())),
        backend=backend,
    )


def _noise_ratio(squares: FloatArray) -> float:
    """Return how many times larger the noise is than announced, within bounds.

    From the median of the squared errors over announced variances, which a tail of
    wrong matches does not move.
    """
    if not squares.size:
        return 1.0
    ratio = math.sqrt(float(np.median(squares)) / _CHI2_2DOF_MEDIAN)
    return min(max(ratio, _MIN_NOISE_RATIO), _MAX_NOISE_RATIO)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    """All matches, the unusable ones included."""

    camera: CameraModel
    points2D: FloatArray
    points3D: FloatArray
    point_sigmas: FloatArray | None
    pixel_sigmas: FloatArray
    usable: BoolArray
    limits_px: FloatArray
    options: RefineOptions

    def inliers(self, cam_from_world: Rigid3) -> tuple[BoolArray, FloatArray]:
        """Return the inliers and the squared errors, nan where there is none."""
        pixels, seen = project(self.camera, cam_from_world.transform(self.points3D))
        residuals = pixels - self.points2D
        squares = np.einsum("ni,ni->n", residuals, residuals)
        return self.usable & seen & (squares <= self.limits_px**2), squares

    def cost(self, cam_from_world: Rigid3) -> float:
        """Return the truncated sum of squared errors (MSAC)."""
        inliers, squares = self.inliers(cam_from_world)
        outside = self.usable & ~inliers
        return float(squares[inliers].sum() + (self.limits_px[outside] ** 2).sum())

    def refine(
        self, start: Rigid3, mask: BoolArray, options: RefineOptions
    ) -> RefinedPose:
        return refine_pose(
            points2D=self.points2D[mask],
            points3D=self.points3D[mask],
            camera=self.camera,
            cam_from_world=start,
            point_sigmas=None if self.point_sigmas is None else self.point_sigmas[mask],
            pixel_sigmas=self.pixel_sigmas[mask],
            options=options,
        )


def _near_prior(problem: _Problem, prior: Rigid3) -> Rigid3 | None:
    """Return the minimum next to a prior, None when few matches agree with it."""
    start = problem.refine(prior, problem.usable, problem.options).cam_from_world
    inliers, _ = problem.inliers(start)
    enough = _MIN_PRIOR_SHARE * np.count_nonzero(problem.usable)
    return start if np.count_nonzero(inliers) >= max(enough, _MIN_POINTS) else None


def _or_upright(  # noqa: PLR0917 - what the sampling before it had
    problem: _Problem,
    start: Rigid3 | None,
    vertical: Vertical,
    scores: npt.ArrayLike,
    options: PnpOptions,
) -> Rigid3 | None:
    """Return a pose of upright samples where that fits better than `start`."""
    usable = problem.usable
    if start is not None:
        inliers, _ = problem.inliers(start)
        if np.count_nonzero(inliers) >= _EASY_SHARE * np.count_nonzero(usable):
            return start
    plane = normalized_from_pixels(problem.camera, problem.points2D)
    near = usable & (np.einsum("ni,ni->n", plane, plane) < _MAX_TANGENT**2)
    order = np.flatnonzero(near)
    ranking = np.nan_to_num(np.asarray(scores, np.float64)[order], nan=-np.inf)
    order = order[np.argsort(-ranking, kind="stable")]
    focal_px = math.sqrt(math.prod(problem.camera.focal_px))
    limit_px = options.max_error_px + _TILT_SIGMAS * vertical.sigma_rad * focal_px
    upright = sample_upright(
        plane[order],
        problem.points3D[order],
        vertical,
        max_error=limit_px / focal_px,
        confidence=options.confidence,
        max_iterations=options.max_iterations,
        seed=options.seed,
    )
    if upright is None:
        return start
    # Its tilt is as wrong as the sensor's: let go of that before it is judged.
    wide = replace(problem, limits_px=np.full(len(usable), limit_px))
    agree, _ = wide.inliers(upright)
    if np.count_nonzero(agree) < _MIN_POINTS:
        return start
    upright = problem.refine(upright, agree, problem.options).cam_from_world
    if start is None or problem.cost(upright) < problem.cost(start):
        return upright
    return start


def _refine_on_inliers(
    problem: _Problem, start: Rigid3
) -> tuple[RefinedPose | None, BoolArray, FloatArray]:
    """Return the pose refined on its own inliers, these, and all squared errors."""
    inliers, squares = problem.inliers(start)
    refined = None
    for _ in range(_REFINEMENT_ROUNDS):
        if np.count_nonzero(inliers) < _MIN_POINTS:
            return None, inliers, squares
        refined = problem.refine(start, inliers, problem.options)
        start, previous = refined.cam_from_world, inliers
        inliers, squares = problem.inliers(start)
        if np.array_equal(inliers, previous):
            return refined, inliers, squares
    if np.count_nonzero(inliers) < _MIN_POINTS:
        return None, inliers, squares
    # The set still moves: keep the pose, take the covariance from its final inliers.
    still = RefineOptions(loss_scale=problem.options.loss_scale, max_iterations=1)
    return problem.refine(start, inliers, still), inliers, squares


def _sample_consensus(
    points2D: FloatArray,
    points3D: FloatArray,
    scores: FloatArray,
    *,
    camera: CameraModel,
    options: PnpOptions,
    backend: str,
) -> Rigid3 | None:
    """Return a pose, before refinement."""
    focal_px = math.sqrt(math.prod(camera.focal_px))
    plane = normalized_from_pixels(camera, points2D)
    near = np.einsum("ni,ni->n", plane, plane) < _MAX_TANGENT**2  # False for nan
    if np.count_nonzero(near) < _MIN_POINTS:
        return None
    # Pixels of an ideal pinhole camera with the same focal length, so that the
    # threshold stays in px and no solver needs to know the lens.
    pixels, points3D, scores = plane[near] * focal_px, points3D[near], scores[near]
    scores = np.nan_to_num(scores, nan=-np.inf)
    progressive = bool(scores.max() > scores.min())
    if progressive:
        order = np.argsort(-scores, kind="stable")
        pixels, points3D = pixels[order], points3D[order]
    # Solvers work best near the origin, wherever the map has it.
    centre = np.median(points3D, axis=0)
    centred = np.ascontiguousarray(points3D - centre)
    sample = _sample_poselib if backend == "poselib" else _sample_opencv
    cam_from_centred = sample(
        pixels, centred, focal_px, options=options, progressive=progressive
    )
    if cam_from_centred is None:
        return None
    R, t = cam_from_centred
    return _rigid_or_none(R, t - R @ centre)


def _rigid_or_none(R: FloatArray, t: FloatArray) -> Rigid3 | None:
    """Return a transform, None when a solver's answer is not one."""
    if not (np.isfinite(R).all() and np.isfinite(t).all()):
        return None
    if np.abs(R @ R.T - np.eye(3)).max() > 1e-6 or np.linalg.det(R) < 0:
        return None
    return Rigid3(R=R, t=t)


def _sample_opencv(
    pixels: FloatArray,
    points3D: FloatArray,
    focal_px: float,
    *,
    options: PnpOptions,
    progressive: bool,  # noqa: ARG001  (same signature as _sample_poselib)
) -> tuple[FloatArray, FloatArray] | None:
    """Return R and t by OpenCV's USAC.

    MSAC with uniform sampling and without local optimisation: `refine_pose` follows
    anyway. Measured on 100 to 1000 matches with 30 to 88 % outliers, all USAC presets
    find the same inliers, and this is 1.1 to 7 times faster than the fastest of them;
    PROSAC sampling is not faster in OpenCV and lost 1 of 40 poses with 12 matches.
    """
    params = cv2.UsacParams()
    params.threshold = options.max_error_px
    params.confidence = options.confidence
    params.maxIterations = options.max_iterations
    params.randomGeneratorState = options.seed
    params.isParallel = False
    params.sampler = cv2.SAMPLING_UNIFORM
    params.score = cv2.SCORE_METHOD_MSAC
    params.loMethod = cv2.LOCAL_OPTIM_NULL
    params.loIterations = 0
    K = np.diag([focal_px, focal_px, 1.0])
    try:
        found, _, rotation_vector, t, _ = cv2.solvePnPRansac(
            points3D, pixels, K, None, params=params
        )
    except cv2.error:  # degenerate points trip assertions inside OpenCV
        return None
    if not found or not np.isfinite(rotation_vector).all():
        return None
    R, _ = cv2.Rodrigues(rotation_vector)
    return np.asarray(R, np.float64), np.asarray(t, np.float64).reshape(3)


def _sample_poselib(
    pixels: FloatArray,
    points3D: FloatArray,
    focal_px: float,
    *,
    options: PnpOptions,
    progressive: bool,
) -> tuple[FloatArray, FloatArray] | None:
    """Return R and t by PoseLib's LO-RANSAC."""
    poselib = importlib.import_module("poselib")
    size = 2 * math.ceil(_MAX_TANGENT * focal_px)
    pose, info = poselib.estimate_absolute_pose(
        pixels,
        points3D,
        {
            "model": "SIMPLE_PINHOLE",
            "width": size,
            "height": size,
            "params": [focal_px, 0.0, 0.0],
        },
        {
            "max_reproj_error": options.max_error_px,
            "success_prob": options.confidence,
            "max_iterations": options.max_iterations,
            "min_iterations": min(_POSELIB_MIN_ITERATIONS, options.max_iterations),
            "progressive_sampling": progressive,
            "seed": options.seed,
        },
        {"max_iterations": 0},  # refine_pose follows
    )
    if info["num_inliers"] < _MIN_POINTS:
        return None
    return np.asarray(pose.R, np.float64), np.asarray(pose.t, np.float64)


def solve_p3p(
    points2D_normalized: npt.ArrayLike, points3D: npt.ArrayLike
) -> list[Rigid3]:
    """Return the poses from which three points are seen where they are.

    Parameters
    ----------
    points2D_normalized : array_like of shape (3, 2)
        Image points on the plane z = 1.
    points3D : array_like of shape (3, 3)
        The points in the world, m.

    Returns
    -------
    list of Rigid3
        ``cam_from_world``, up to four, all points in front of the camera; empty for
        points on a line.

    Raises
    ------
    ValueError
        When the shapes do not fit.
    """
    xy = np.array(points2D_normalized, dtype=np.float64)
    points = np.array(points3D, dtype=np.float64)
    if xy.shape != (3, 2) or points.shape != (3, 3):
        raise ValueError(f"{xy.shape=} and {points.shape=} but expected (3, 2), (3, 3)")
    if not (np.isfinite(xy).all() and np.isfinite(points).all()):
        return []
    centre = points.mean(axis=0)
    try:
        _, rotation_vectors, translations = cv2.solveP3P(
            points - centre, xy, np.eye(3), np.zeros(4), flags=cv2.SOLVEPNP_AP3P
        )
    except cv2.error:
        return []
    poses = []
    for rotation_vector, translation in zip(
        rotation_vectors, translations, strict=True
    ):
        R = np.asarray(cv2.Rodrigues(rotation_vector)[0], np.float64)
        t = np.asarray(translation, np.float64).reshape(3) - R @ centre
        pose = _rigid_or_none(R, t)
        if pose is not None and np.all(pose.transform(points)[:, 2] > 0):
            poses.append(pose)
    return poses
