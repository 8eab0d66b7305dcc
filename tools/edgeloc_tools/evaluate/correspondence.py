"""Which matches between two images are right, where the truth is known in part."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from edgeloc.errors import DatasetError
from edgeloc.geometry.epipolar import epipolar_distance
from edgeloc.types import BoolArray, FloatArray

MAX_EPIPOLAR_PX = 3.0
"""Largest distance of either point of a right match from its epipolar line."""

NEAR_PX = (10.0, 50.0)
"""Bounds of the tolerance of `ClickedPair.prediction`."""

MIN_CLICKS = 10
"""Fewer clicked points determine neither the fundamental matrix nor its quality."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClickedPair:
    """Two images with some corresponding points, clicked by a person.

    Parameters
    ----------
    points_a, points_b : ndarray of shape (C, 2), float64
        The clicked points, px.
    fundamental : ndarray of shape (3, 3), float64
        Fitted to them, ``x_b^T F x_a = 0``.
    near_px : float
        How far in image b a right match may lie from `prediction`.
    """

    points_a: FloatArray
    points_b: FloatArray
    fundamental: FloatArray
    near_px: float

    def prediction(self, points_a: FloatArray) -> FloatArray:
        """Return about where points of image a lie in image b, (N, 2), px.

        An affine map plus what the clicked points around deviate from it: a radial
        basis function of the distance itself, which has no width to choose.
        """
        return _interpolate(self.points_a, self.points_b, points_a)

    def on_epipolar_line(self, points_a: FloatArray, points_b: FloatArray) -> BoolArray:
        """Return which pairs of points obey the epipolar geometry, (N,)."""
        distance = symmetric_epipolar_px(self.fundamental, points_a, points_b)
        return np.asarray(distance < MAX_EPIPOLAR_PX)

    def correct(self, points_a: FloatArray, points_b: FloatArray) -> BoolArray:
        """Return which pairs of points are right matches, (N,).

        They obey the epipolar geometry, and they lie where the clicked points around
        them say, as well as these predict each other: the line alone lets one wrong
        match in about a hundred pass.
        """
        off = np.linalg.norm(self.prediction(points_a) - points_b, axis=1)
        return np.asarray(
            self.on_epipolar_line(points_a, points_b) & (off < self.near_px)
        )


def fit_clicked_pair(points_a: FloatArray, points_b: FloatArray) -> ClickedPair:
    """Return the geometry of a pair from its clicked points.

    Parameters
    ----------
    points_a, points_b : ndarray of shape (C, 2), float64
        Corresponding points, px; at least `MIN_CLICKS`.

    Raises
    ------
    DatasetError
        When there are too few, or they determine no fundamental matrix.
    """
    if len(points_a) < MIN_CLICKS:
        raise DatasetError(
            f"{len(points_a)} clicked correspondences are too few, expected "
            f"{MIN_CLICKS} or more"
        )
    # How well the clicked points predict each other: each from all the others.
    off = [
        np.linalg.norm(
            _interpolate(
                np.delete(points_a, idx, axis=0),
                np.delete(points_b, idx, axis=0),
                points_a[idx : idx + 1],
            )
            - points_b[idx]
        )
        for idx in range(len(points_a))
    ]
    return ClickedPair(
        points_a=points_a,
        points_b=points_b,
        fundamental=fit_fundamental(points_a, points_b),
        near_px=float(np.clip(np.quantile(off, 0.9), *NEAR_PX)),
    )


def _interpolate(
    known_a: FloatArray, known_b: FloatArray, wanted_a: FloatArray
) -> FloatArray:
    from scipy.interpolate import RBFInterpolator

    surface = RBFInterpolator(known_a, known_b, kernel="linear", degree=1)
    return np.asarray(surface(wanted_a), np.float64)


def symmetric_epipolar_px(
    fundamental: FloatArray, points_a: FloatArray, points_b: FloatArray
) -> FloatArray:
    """Return the larger of both points' distances from their epipolar lines, (N,)."""
    return np.maximum(
        np.abs(epipolar_distance(fundamental, points_a, points_b)),
        np.abs(epipolar_distance(fundamental.T, points_b, points_a)),
    )


def fit_fundamental(points_a: FloatArray, points_b: FloatArray) -> FloatArray:
    """Return the fundamental matrix of clicked points, some of them inexact.

    Least squares of the symmetric epipolar distance under a soft L1 norm, over all
    points, from the eight-point and from the MAGSAC solution; the better one counts.
    No point is thrown away: on planar scenes the rejected ones are what is off the
    plane, which alone fixes the epipoles.

    Parameters
    ----------
    points_a, points_b : ndarray of shape (C, 2), float64
        Corresponding points, px.

    Returns
    -------
    ndarray of shape (3, 3), float64
        Rank 2, norm 1.

    Raises
    ------
    DatasetError
        When the points determine none.
    """
    from scipy.optimize import least_squares

    to_unit_a, unit_a = _normalized(points_a)
    to_unit_b, unit_b = _normalized(points_b)
    # Residuals in pixels of image b's scale, so that the soft norm turns at 1 px.
    px_per_unit = 1.0 / to_unit_b[0, 0]

    def residuals(flat: FloatArray) -> FloatArray:
        matrix = _rank_two(flat.reshape(3, 3))
        both = [
            epipolar_distance(matrix, unit_a, unit_b),
            epipolar_distance(matrix.T, unit_b, unit_a),
        ]
        return np.asarray(np.clip(np.concatenate(both) * px_per_unit, -1e6, 1e6))

    best, best_cost = None, np.inf
    for method in (cv2.FM_8POINT, cv2.USAC_MAGSAC):
        try:
            start, _ = cv2.findFundamentalMat(
                unit_a, unit_b, method, MAX_EPIPOLAR_PX / px_per_unit, 0.999
            )
        except cv2.error:
            # MAGSAC gives up this way where its samples are degenerate.
            continue
        if start is None or np.shape(start) != (3, 3):
            continue
        fit = least_squares(residuals, np.ravel(start), loss="soft_l1")
        if fit.cost < best_cost:
            best, best_cost = fit.x.reshape(3, 3), fit.cost
    if best is None:
        raise DatasetError("the clicked points determine no fundamental matrix")
    fundamental = to_unit_b.T @ _rank_two(best) @ to_unit_a
    return np.asarray(fundamental / np.linalg.norm(fundamental))


def _normalized(points: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return a scaling to zero mean and unit size, and the points scaled by it."""
    mean = points.mean(axis=0)
    scale = np.sqrt(2.0) / np.linalg.norm(points - mean, axis=1).mean()
    transform = np.array(
        [[scale, 0, -scale * mean[0]], [0, scale, -scale * mean[1]], [0, 0, 1.0]]
    )
    return transform, (points - mean) * scale


def _rank_two(matrix: FloatArray) -> FloatArray:
    u, s, vt = np.linalg.svd(matrix / np.linalg.norm(matrix))
    return np.asarray((u * [s[0], s[1], 0.0]) @ vt)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KnownWarp:
    """A homography between two images.

    Parameters
    ----------
    b_from_a : ndarray of shape (3, 3), float64
        Pixels of b from pixels of a.
    size_a, size_b : tuple of int
        Widths and heights, px.
    """

    b_from_a: FloatArray
    size_a: tuple[int, int]
    size_b: tuple[int, int]

    @property
    def a_from_b(self) -> FloatArray:
        """The other way round."""
        return np.asarray(np.linalg.inv(self.b_from_a), np.float64)

    def error_px(self, points_a: FloatArray, points_b: FloatArray) -> FloatArray:
        """Return how far matches are off, (N,), in pixels of the coarser image.

        A point cannot be found more exactly in the finer image than the coarser one
        shows it: the smaller of the distances in a and in b.
        """
        in_b = np.linalg.norm(apply(self.b_from_a, points_a) - points_b, axis=1)
        in_a = np.linalg.norm(apply(self.a_from_b, points_b) - points_a, axis=1)
        return np.asarray(np.minimum(in_a, in_b))

    def shared_a(self, points_a: FloatArray) -> BoolArray:
        """Return which points of image a image b shows too, (N,)."""
        return _inside(apply(self.b_from_a, points_a), self.size_b)

    def shared_b(self, points_b: FloatArray) -> BoolArray:
        """Return which points of image b image a shows too, (N,)."""
        return _inside(apply(self.a_from_b, points_b), self.size_a)


def apply(homography: FloatArray, points: FloatArray) -> FloatArray:
    """Return points under a homography, (N, 2)."""
    mapped = np.asarray(points, np.float64) @ homography[:, :2].T + homography[:, 2]
    return np.asarray(mapped[:, :2] / mapped[:, 2:])


def _inside(points: FloatArray, size: tuple[int, int]) -> BoolArray:
    return np.asarray(((points >= 0) & (points < np.array(size))).all(axis=1))


def repeatability(
    warp: KnownWarp, points_a: FloatArray, points_b: FloatArray, *, radius_px: float
) -> float:
    """Return the share of points in the shared area that the other image has too.

    A point is repeated when it and a point of the other image are each other's
    nearest under the homography, and at most `radius_px` apart (see
    `KnownWarp.error_px`). NaN when neither image has a point in the shared area.

    Parameters
    ----------
    warp : KnownWarp
        The truth.
    points_a, points_b : ndarray of shape (N, 2) and (P, 2)
        Keypoints, px.
    radius_px : float
        How near.
    """
    points_a = points_a[warp.shared_a(points_a)]
    points_b = points_b[warp.shared_b(points_b)]
    smaller = min(len(points_a), len(points_b))
    if smaller == 0:
        return float("nan") if len(points_a) == len(points_b) else 0.0
    from scipy.spatial import cKDTree

    in_b = apply(warp.b_from_a, points_a)
    nearest_b = np.asarray(cKDTree(points_b).query(in_b)[1])
    nearest_a = np.asarray(cKDTree(in_b).query(points_b)[1])
    mutual = np.flatnonzero(nearest_a[nearest_b] == np.arange(len(points_a)))
    error = warp.error_px(points_a[mutual], points_b[nearest_b[mutual]])
    return float(np.count_nonzero(error <= radius_px) / smaller)
