"""Absolute pose where the vertical is known: two points are enough instead of three.

The rotation that is left turns about the vertical alone. With two points the depths of
both follow from a line and a circle: heights tell the first, the distance between the
points on the ground the second [1]_.

References
----------
.. [1] Kukelova, Bujnak, Pajdla, "Closed-form Solutions to Minimal Absolute Pose
   Problems with Known Vertical Direction", ACCV 2010. Solved here for the depths in
   place of the tangent of half the angle, which has no pole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeloc.geometry.se3 import minimal_rotation
from edgeloc.types import BoolArray, FloatArray, IntArray, Rigid3

_DOWN = np.array([0.0, 0.0, -1.0])
_BLOCK = 64
"""Samples that are solved and scored at a time."""
_MIN_SAMPLES = 64
_LOCAL_ROUNDS = 3
_MIN_SLOPE = 1e-6
"""Rays that rise less than this tell no depths."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vertical:
    """Which way is down, for a camera and in the world.

    Parameters
    ----------
    down_in_cam, down_in_world : ndarray of shape (3,), float64
        Of unit length.
    sigma_rad : float
        Standard deviation of the first about each horizontal axis, > 0.
    """

    down_in_cam: FloatArray
    down_in_world: FloatArray
    sigma_rad: float

    def __post_init__(self) -> None:
        for name in ("down_in_cam", "down_in_world"):
            length = float(np.linalg.norm(getattr(self, name)))
            if not abs(length - 1.0) < 1e-6:
                raise ValueError(f"{name} has length {length}, expected 1")
        if not (math.isfinite(self.sigma_rad) and self.sigma_rad > 0):
            raise ValueError(f"{self.sigma_rad=} must be > 0")

    def tilt_rad(self, cam_from_world: Rigid3) -> float:
        """Return by how much a pose disagrees, rad."""
        expected = cam_from_world.R @ self.down_in_world
        sine = float(np.linalg.norm(np.cross(expected, self.down_in_cam)))
        return math.atan2(sine, float(expected @ self.down_in_cam))


def solve_up2p(
    points2D_normalized: npt.ArrayLike, points3D: npt.ArrayLike, vertical: Vertical
) -> list[Rigid3]:
    """Return the upright poses from which two points are seen where they are.

    Parameters
    ----------
    points2D_normalized : array_like of shape (2, 2)
        Image points on the plane z = 1.
    points3D : array_like of shape (2, 3)
        The points in the world, m.
    vertical : Vertical
        Taken as exact.

    Returns
    -------
    list of Rigid3
        ``cam_from_world``, up to two, both points before the camera; empty for points
        above each other, and for two rays that are both horizontal.

    Raises
    ------
    ValueError
        When the shapes do not fit.
    """
    xy = np.asarray(points2D_normalized, dtype=np.float64)
    points = np.asarray(points3D, dtype=np.float64)
    if xy.shape != (2, 2) or points.shape != (2, 3):
        raise ValueError(f"{xy.shape=} and {points.shape=} but expected (2, 2), (2, 3)")
    frames = _Frames.of(vertical)
    R, t = _solve(frames.level_rays(xy)[None], frames.level_points(points)[None])
    return [frames.pose(R[i], t[i]) for i in range(len(R))]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Frames:
    """The camera and the world, turned so that down is -z in both."""

    R_level_from_cam: FloatArray
    R_level_from_world: FloatArray

    @staticmethod
    def of(vertical: Vertical) -> _Frames:
        return _Frames(
            R_level_from_cam=minimal_rotation(vertical.down_in_cam, _DOWN),
            R_level_from_world=minimal_rotation(vertical.down_in_world, _DOWN),
        )

    def level_rays(self, xy: FloatArray) -> FloatArray:
        rays = np.concatenate([xy, np.ones((len(xy), 1))], axis=1)
        return np.asarray(rays @ self.R_level_from_cam.T)

    def level_points(self, points3D: FloatArray) -> FloatArray:
        return np.asarray(points3D @ self.R_level_from_world.T)

    def pose(self, R: FloatArray, t: FloatArray) -> Rigid3:
        back = self.R_level_from_cam.T
        return Rigid3(R=back @ R @ self.R_level_from_world, t=back @ t)


def _solve(rays: FloatArray, points: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return R and t of all upright poses of S samples, (n, 3, 3) and (n, 3).

    Parameters
    ----------
    rays : ndarray of shape (S, 2, 3), float64
        Along the points, of any length, z up.
    points : ndarray of shape (S, 2, 3), float64
        The points, z up.
    """
    # depth_0 ray_0 - depth_1 ray_1 = R (point_0 - point_1), whose height is known and
    # whose length on the ground is.
    step = points[:, 0] - points[:, 1]
    a, b = rays[:, 0], -rays[:, 1]
    squared = a[:, 2] ** 2 + b[:, 2] ** 2
    length = np.sum(a**2, axis=1) + np.sum(b**2, axis=1)
    squared = np.where(squared > _MIN_SLOPE**2 * length, squared, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        nearest = np.stack([a[:, 2], b[:, 2]], axis=1) * (step[:, 2] / squared)[:, None]
        along = np.stack([-b[:, 2], a[:, 2]], axis=1) / np.sqrt(squared)[:, None]
        base = nearest[:, :1] * a[:, :2] + nearest[:, 1:] * b[:, :2]
        slope = along[:, :1] * a[:, :2] + along[:, 1:] * b[:, :2]
        qa = np.sum(slope**2, axis=1)
        qb = np.sum(base * slope, axis=1)
        ground = np.sum(step[:, :2] ** 2, axis=1)
        qc = np.sum(base**2, axis=1) - ground
        root = np.sqrt(qb**2 - qa * qc)  # nan where there is no solution
        s = np.stack([(-qb - root) / qa, (-qb + root) / qa], axis=1)
    depths = nearest[:, None] + s[:, :, None] * along[:, None]  # (S, 2, 2)
    good = np.isfinite(depths).all(axis=2) & (depths > 0).all(axis=2)
    good &= (ground > 1e-18)[:, None]
    sample, which = np.nonzero(good)
    depth = depths[sample, which]
    turned = depth[:, :1] * a[sample, :2] + depth[:, 1:] * b[sample, :2]
    ground_step = step[sample, :2]
    yaw = np.arctan2(turned[:, 1], turned[:, 0]) - np.arctan2(
        ground_step[:, 1], ground_step[:, 0]
    )
    R = np.zeros((len(yaw), 3, 3))
    R[:, 0, 0] = R[:, 1, 1] = np.cos(yaw)
    R[:, 1, 0] = np.sin(yaw)
    R[:, 0, 1] = -R[:, 1, 0]
    R[:, 2, 2] = 1.0
    t = depth[:, :1] * a[sample] - np.einsum("nij,nj->ni", R, points[sample, 0])
    return R, t


def sample_upright(
    points2D_normalized: FloatArray,
    points3D: FloatArray,
    vertical: Vertical,
    *,
    max_error: float,
    confidence: float,
    max_iterations: int,
    seed: int,
) -> Rigid3 | None:
    """Return the upright pose that most points agree on: LO-RANSAC with two points.

    Samples are drawn from the first, best matches first, and from ever more of them
    [1]_; the best of each block is polished on its inliers by more samples among them.

    Parameters
    ----------
    points2D_normalized : ndarray of shape (N, 2), float64
        Image points on the plane z = 1, best matches first.
    points3D : ndarray of shape (N, 3), float64
        Landmarks, m.
    vertical : Vertical
        Taken as exact: `max_error` has to allow for what it is off.
    max_error : float
        Largest distance of an inlier on the plane z = 1.
    confidence : float
        Stop when a better pose is left out with this probability at most.
    max_iterations : int
        Most samples.
    seed : int
        Of the draws.

    References
    ----------
    .. [1] Chum, Matas, "Matching with PROSAC", CVPR 2005.
    """
    num = len(points3D)
    if num < 2:
        return None
    frames = _Frames.of(vertical)
    centre = np.median(points3D, axis=0)
    rays = frames.level_rays(points2D_normalized)
    points = frames.level_points(points3D - centre)
    problem = _Sampling(
        rays=rays,
        points=points,
        xy=points2D_normalized,
        R_cam_from_level=frames.R_level_from_cam.T,
        max_error=max_error,
    )
    rng = np.random.default_rng(seed)
    best: tuple[float, FloatArray, FloatArray] | None = None
    drawn, wanted = 0, float(max_iterations)
    while drawn < min(max_iterations, max(wanted, _MIN_SAMPLES)):
        # All pairs of the first few before any of the rest.
        growth = max(drawn / max(max_iterations // 4, 1), 0.1)
        pool = min(num, max(16, math.ceil(num * growth)))
        found = problem.best_of(_pairs(rng, np.arange(pool), _BLOCK))
        drawn += _BLOCK
        if found is None or (best is not None and found[0] >= best[0]):
            continue
        best = problem.polished(found, rng)
        share = float(problem.inliers(best[1], best[2]).mean())
        fail = max(1.0 - share**2, 1e-12)
        wanted = math.log(1.0 - confidence) / math.log(fail) if fail < 1 else math.inf
    if best is None:
        return None
    pose = frames.pose(best[1], best[2])
    return Rigid3(R=pose.R, t=pose.t - pose.R @ centre)


def _pairs(rng: np.random.Generator, pool: IntArray, count: int) -> IntArray:
    """Return pairs of different members of a pool, (count, 2)."""
    first = rng.integers(0, len(pool), count)
    second = (first + rng.integers(1, max(len(pool), 2), count)) % len(pool)
    return np.asarray(pool[np.stack([first, second], axis=1)])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sampling:
    rays: FloatArray
    points: FloatArray
    xy: FloatArray
    R_cam_from_level: FloatArray
    max_error: float

    def squares(self, R: FloatArray, t: FloatArray) -> FloatArray:
        """Return squared errors of n poses, (n, N); infinite behind the camera."""
        turn = self.R_cam_from_level @ R
        seen = np.einsum("nij,pj->npi", turn, self.points)
        seen += (t @ self.R_cam_from_level.T)[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            off = seen[..., :2] / seen[..., 2:] - self.xy
            squares = np.sum(off**2, axis=-1)
        return np.where(seen[..., 2] > 0, squares, np.inf)

    def best_of(self, pairs: IntArray) -> tuple[float, FloatArray, FloatArray] | None:
        """Return the lowest MSAC cost of the poses of some samples, and that pose."""
        R, t = _solve(self.rays[pairs], self.points[pairs])
        if not len(R):
            return None
        limit = self.max_error**2
        costs = np.minimum(self.squares(R, t), limit).sum(axis=1)
        at = int(np.argmin(costs))
        return float(costs[at]), R[at], t[at]

    def inliers(self, R: FloatArray, t: FloatArray) -> BoolArray:
        return np.asarray(self.squares(R[None], t[None])[0] <= self.max_error**2)

    def polished(
        self,
        found: tuple[float, FloatArray, FloatArray],
        rng: np.random.Generator,
    ) -> tuple[float, FloatArray, FloatArray]:
        """Return the best pose of samples among the inliers, again and again."""
        for _ in range(_LOCAL_ROUNDS):
            pool = np.flatnonzero(self.inliers(found[1], found[2]))
            if len(pool) < 3:
                return found
            better = self.best_of(_pairs(rng, pool, _BLOCK))
            if better is None or better[0] >= found[0]:
                return found
            found = better
        return found
