"""Scale, gravity and geo-reference of a world that structure from motion made.

Pure functions on arrays. Frames: ``enu`` is local east, north, up in metres about an
origin; gravity is a unit vector that points *down*, (0, 0, -1) in ``enu``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeloc.geometry.se3 import minimal_rotation
from edgeloc.types import BoolArray, FloatArray, Rigid3

LINE_SPREAD_RATIO = 1e-3
"""Points whose second principal spread is below this share of the first are a line."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sim3:
    """A similarity ``b_from_a``: ``x_in_b = scale * R @ x_in_a + t``.

    Parameters
    ----------
    scale : float
        Units of b per unit of a, > 0.
    R : ndarray of shape (3, 3)
        Rotation.
    t : ndarray of shape (3,)
        Translation, in the unit of b.
    line_ambiguous : bool
        The points that it was fitted to lie on a line: scale and translation hold,
        the rotation about that line is arbitrary (the smallest one is taken).
    """

    scale: float
    R: FloatArray
    t: FloatArray
    line_ambiguous: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"{self.scale=} must be finite and > 0")

    @staticmethod
    def identity() -> Sim3:
        """Return the similarity that changes nothing."""
        return Sim3(scale=1.0, R=np.eye(3), t=np.zeros(3))

    def apply(self, points_in_a: npt.ArrayLike) -> FloatArray:
        """Return points in b, (..., 3), for points in a, (..., 3)."""
        points = np.asarray(points_in_a, dtype=np.float64)
        return np.asarray(self.scale * (points @ self.R.T) + self.t)

    def apply_to_pose(self, cam_from_a: Rigid3) -> Rigid3:
        """Return ``cam_from_b``, with the camera frame in the unit of b too."""
        R = cam_from_a.R @ self.R.T
        return Rigid3(R=R, t=self.scale * cam_from_a.t - R @ self.t)

    def inverse(self) -> Sim3:
        """Return ``a_from_b``."""
        return Sim3(
            scale=1.0 / self.scale,
            R=self.R.T,
            t=-self.R.T @ self.t / self.scale,
            line_ambiguous=self.line_ambiguous,
        )

    def __matmul__(self, a_from_c: Sim3) -> Sim3:
        """Return ``b_from_c = b_from_a @ a_from_c``."""
        return Sim3(
            scale=self.scale * a_from_c.scale,
            R=self.R @ a_from_c.R,
            t=self.apply(a_from_c.t),
            line_ambiguous=self.line_ambiguous or a_from_c.line_ambiguous,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RobustSim3:
    """A similarity and how well it fits.

    Parameters
    ----------
    sim : Sim3
        ``dst_from_src``.
    inlier_mask : ndarray of shape (N,), bool
        Which points it was fitted to.
    rmse : float
        Root mean square distance of the inliers, in the unit of dst.
    """

    sim: Sim3
    inlier_mask: BoolArray
    rmse: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GravityEstimate:
    """Gravity guessed from how people hold cameras.

    Parameters
    ----------
    gravity : ndarray of shape (3,)
        Unit vector that points down.
    roll_rms_rad : float
        How far the cameras' x axes are from horizontal under it: its quality.
    from_headings : bool
        Whether the cameras look in different enough directions for it to be
        unaffected by a common pitch; otherwise a common pitch goes into it.
    """

    gravity: FloatArray
    roll_rms_rad: float
    from_headings: bool


def _as_points(src: npt.ArrayLike, dst: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    a, b = np.asarray(src, dtype=np.float64), np.asarray(dst, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != 3:
        raise ValueError(f"src {a.shape} and dst {b.shape} must both be (N, 3)")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("src and dst must be finite")
    return a, b


def _as_weights(weights: npt.ArrayLike | None, count: int) -> FloatArray:
    w = np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (count,) or not (w >= 0).all() or not w.sum() > 0:
        raise ValueError(f"weights must be {count} numbers >= 0, not all 0")
    return np.asarray(w / w.sum())


def _line_ratio(centred: FloatArray, w: FloatArray) -> float:
    spread = np.linalg.svd(centred * np.sqrt(w)[:, None], compute_uv=False)
    return float(spread[1] / spread[0]) if spread[0] > 0 else 0.0


def _main_direction(centred: FloatArray, w: FloatArray) -> FloatArray:
    _, _, vt = np.linalg.svd(centred * np.sqrt(w)[:, None], full_matrices=False)
    return np.asarray(vt[0])


def similarity_with_rotation(
    src: npt.ArrayLike,
    dst: npt.ArrayLike,
    R: npt.ArrayLike,
    *,
    weights: npt.ArrayLike | None = None,
    with_scale: bool = True,
) -> Sim3:
    """Return the least-squares ``dst_from_src`` whose rotation is known.

    Parameters
    ----------
    src, dst : array_like of shape (N, 3)
        Corresponding points.
    R : array_like of shape (3, 3)
        The rotation.
    weights : array_like of shape (N,), optional
        Weights of the squared distances.
    with_scale : bool
        Whether to estimate the scale; 1 otherwise.

    Raises
    ------
    ValueError
        When the points are all in one place or contradict the rotation.
    """
    a, b = _as_points(src, dst)
    w = _as_weights(weights, len(a))
    rotation = np.asarray(R, dtype=np.float64)
    mean_a, mean_b = w @ a, w @ b
    turned, centred_b = (a - mean_a) @ rotation.T, b - mean_b
    scale = 1.0
    if with_scale:
        spread = float(w @ (turned**2).sum(axis=1))
        agreement = float(w @ (turned * centred_b).sum(axis=1))
        if spread <= 0 or agreement <= 0:
            raise ValueError("the points give no scale: all in one place or opposed")
        scale = agreement / spread
    return Sim3(scale=scale, R=rotation, t=mean_b - scale * rotation @ mean_a)


def umeyama(
    src: npt.ArrayLike,
    dst: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    with_scale: bool = True,
) -> Sim3:
    """Return the least-squares similarity ``dst_from_src`` [1]_.

    Parameters
    ----------
    src, dst : array_like of shape (N, 3)
        Corresponding points, N >= 2.
    weights : array_like of shape (N,), optional
        Weights of the squared distances.
    with_scale : bool
        Whether to estimate the scale; 1 otherwise.

    Returns
    -------
    Sim3
        With `line_ambiguous` set when the points lie on a line.

    Raises
    ------
    ValueError
        When the points are fewer than two or all in one place.

    References
    ----------
    .. [1] Umeyama, "Least-Squares Estimation of Transformation Parameters Between Two
       Point Patterns", TPAMI 1991.
    """
    a, b = _as_points(src, dst)
    if len(a) < 2:
        raise ValueError(f"a similarity needs at least 2 points, got {len(a)}")
    w = _as_weights(weights, len(a))
    centred_a, centred_b = a - w @ a, b - w @ b
    size_a = float(np.sqrt(w @ (centred_a**2).sum(axis=1)))
    size_b = float(np.sqrt(w @ (centred_b**2).sum(axis=1)))
    if size_a < 1e-12 * (1 + np.abs(a).max()) or size_b < 1e-12 * (1 + np.abs(b).max()):
        raise ValueError("the points are all in one place: no similarity")
    on_a_line = (
        min(_line_ratio(centred_a, w), _line_ratio(centred_b, w)) < LINE_SPREAD_RATIO
    )
    if on_a_line:
        along_a, along_b = _main_direction(centred_a, w), _main_direction(centred_b, w)
        if float(w @ ((centred_a @ along_a) * (centred_b @ along_b))) < 0:
            along_b = -along_b
        rotation = minimal_rotation(along_a, along_b)
    else:
        u, _, vt = np.linalg.svd((centred_b * w[:, None]).T @ centred_a)
        rotation = u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) @ vt
    fit = similarity_with_rotation(a, b, rotation, weights=w, with_scale=with_scale)
    return Sim3(scale=fit.scale, R=fit.R, t=fit.t, line_ambiguous=on_a_line)


def upright_similarity(
    src: npt.ArrayLike,
    dst: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    with_scale: bool = True,
) -> Sim3:
    """Return the least-squares similarity that turns about z only (both z are up).

    Same parameters and errors as `umeyama`. Points above each other have no heading
    and raise too.
    """
    a, b = _as_points(src, dst)
    if len(a) < 2:
        raise ValueError(f"a similarity needs at least 2 points, got {len(a)}")
    w = _as_weights(weights, len(a))
    ca, cb = a - w @ a, b - w @ b
    sine = float(w @ (ca[:, 0] * cb[:, 1] - ca[:, 1] * cb[:, 0]))
    cosine = float(w @ (ca[:, 0] * cb[:, 0] + ca[:, 1] * cb[:, 1]))
    length = math.hypot(sine, cosine)
    if length <= 1e-12 * float(np.sqrt((w @ ca**2).sum() * (w @ cb**2).sum()) or 1.0):
        raise ValueError("the points have no horizontal spread: no heading")
    s, c = sine / length, cosine / length
    rotation = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    return similarity_with_rotation(a, b, rotation, weights=w, with_scale=with_scale)


def _samples(
    count: int, size: int, num_draws: int, rng: np.random.Generator
) -> Iterable[npt.NDArray[np.int64]]:
    if math.comb(count, size) <= num_draws:
        return (
            np.array(c, dtype=np.int64)
            for c in itertools.combinations(range(count), size)
        )
    return (rng.choice(count, size=size, replace=False) for _ in range(num_draws))


def robust_similarity(
    src: npt.ArrayLike,
    dst: npt.ArrayLike,
    *,
    sigmas: npt.ArrayLike,
    rng: np.random.Generator,
    max_sigmas: float = 3.75,
    upright: bool = False,
    with_scale: bool = True,
    num_draws: int = 500,
) -> RobustSim3:
    """Return a similarity ``dst_from_src`` that outliers do not pull (RANSAC, MSAC).

    Parameters
    ----------
    src, dst : array_like of shape (N, 3)
        Corresponding points.
    sigmas : array_like, float or of shape (N,) or (N, 3)
        Standard deviations of dst, in its unit.
    rng : Generator
        For the draws; small sets are tried exhaustively and need none.
    max_sigmas : float
        A point further off is an outlier; 3.75 keeps 99.7 % of Gaussian ones in 3-D.
    upright : bool
        Turn about z only.
    with_scale : bool
        Whether to estimate the scale.
    num_draws : int
        Minimal sets to try; 500 find one without outliers at 80 % of them.

    Raises
    ------
    ValueError
        When no minimal set gives a similarity, or no more points than a minimal set
        agree with the best.
    """
    a, b = _as_points(src, dst)
    given = np.asarray(sigmas, dtype=np.float64)
    if given.ndim == 1:
        given = given[:, None]
    sigma = np.broadcast_to(given, b.shape)
    if not (sigma > 0).all():
        raise ValueError("sigmas must be > 0")
    fit = upright_similarity if upright else umeyama
    size = 2 if upright else 3
    if len(a) < size:
        raise ValueError(f"a similarity needs at least {size} points, got {len(a)}")
    weights = 1.0 / (sigma**2).mean(axis=1)
    limit2 = max_sigmas**2

    def squared_error(sim: Sim3) -> FloatArray:
        return np.asarray((((sim.apply(a) - b) / sigma) ** 2).sum(axis=1))

    best, best_cost = None, math.inf
    for idx in _samples(len(a), size, num_draws, rng):
        try:
            sim = fit(a[idx], b[idx], weights[idx], with_scale=with_scale)
        except ValueError:
            continue
        cost = float(np.minimum(squared_error(sim), limit2).sum())
        if cost < best_cost:
            best, best_cost = sim, cost
    if best is None:
        raise ValueError("no similarity: the points are all in one place")
    inliers = squared_error(best) <= limit2
    for _ in range(10):
        if np.count_nonzero(inliers) < size:
            break
        best = fit(a[inliers], b[inliers], weights[inliers], with_scale=with_scale)
        updated = squared_error(best) <= limit2
        if np.array_equal(updated, inliers):
            break
        inliers = updated
    num_inliers = int(np.count_nonzero(inliers))
    if num_inliers < min(len(a), size + 1):
        raise ValueError(f"only {num_inliers} of {len(a)} points agree")
    residual = best.apply(a[inliers]) - b[inliers]
    rmse = float(np.sqrt((residual**2).sum(axis=1).mean()))
    return RobustSim3(sim=best, inlier_mask=inliers, rmse=rmse)


def expected_tilt_rad(points: npt.ArrayLike, sigma: float) -> float:
    """Return how uncertain roll and pitch are when fitted to points this noisy.

    Parameters
    ----------
    points : array_like of shape (N, 3)
        Positions, in the unit of `sigma`.
    sigma : float
        Standard deviation of their heights.

    Returns
    -------
    float
        Standard deviation about the worst axis, rad; pi for points on a line.
    """
    p = np.asarray(points, dtype=np.float64)
    spread = np.linalg.svd(p - p.mean(axis=0), compute_uv=False)
    if len(p) < 3 or spread[1] < LINE_SPREAD_RATIO * spread[0] or spread[1] <= 0:
        return math.pi
    return min(math.pi, sigma / float(spread[1]))


def gravity_from_upright_cameras(rotations: npt.ArrayLike) -> GravityEstimate:
    """Return the direction of gravity, if the pictures were taken upright.

    A camera held without roll has a horizontal x axis, however it is pitched, so
    gravity is the direction most orthogonal to all x axes, and its sign is that of the
    mean y axis. Outliers (a tilted shot) are weighted down. Cameras that all look the
    same way leave the pitch open: then the mean y axis decides.

    Parameters
    ----------
    rotations : array_like of shape (K, 3, 3)
        Rotations of ``cam_from_world``.

    Returns
    -------
    GravityEstimate

    Raises
    ------
    ValueError
        When the cameras' y axes cancel out (as many upside down as upright).
    """
    R = np.asarray(rotations, dtype=np.float64)
    if R.ndim != 3 or R.shape[1:] != (3, 3) or len(R) == 0:
        raise ValueError(f"rotations {R.shape} must be (K, 3, 3), K >= 1")
    right, down = R[:, 0], R[:, 1]
    mean_down = down.mean(axis=0)
    if np.linalg.norm(mean_down) < 0.1:
        raise ValueError("the cameras have no common 'down'")
    w = np.ones(len(R))
    gravity = mean_down / np.linalg.norm(mean_down)
    from_headings = False
    for _ in range(20):
        values, vectors = np.linalg.eigh((right * w[:, None]).T @ right / w.sum())
        # Spread of heading above 10 degrees or so: sin^2(10 deg) = 0.03.
        from_headings = bool(values[1] > 0.03)
        if from_headings:
            updated = vectors[:, 0]
        else:
            main = vectors[:, 2]
            updated = mean_down - (mean_down @ main) * main
            updated = updated / np.linalg.norm(updated)
        updated = updated * (1.0 if updated @ mean_down >= 0 else -1.0)
        moved = float(np.linalg.norm(updated - gravity))
        gravity = np.asarray(updated)
        if moved < 1e-9:
            break
        w = 1.0 / np.maximum(np.abs(right @ gravity), 0.01)
    tilt = np.arcsin(np.clip(right @ gravity, -1.0, 1.0))
    return GravityEstimate(
        gravity=gravity,
        roll_rms_rad=float(np.sqrt(np.mean(tilt**2))),
        from_headings=from_headings,
    )


def rotation_to_z_up(gravity: npt.ArrayLike) -> FloatArray:
    """Return the smallest rotation that makes `gravity` (0, 0, -1), (3, 3).

    Raises
    ------
    ValueError
        When `gravity` is zero or not finite.
    """
    g = np.asarray(gravity, dtype=np.float64)
    if g.shape != (3,) or not np.isfinite(g).all() or not np.linalg.norm(g) > 1e-9:
        raise ValueError(f"gravity {g.tolist()} must be a direction")
    return minimal_rotation(g, (0.0, 0.0, -1.0))
