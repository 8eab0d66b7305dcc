"""Whether the focal length of a camera fits what it sees.

A wrong focal length is not noticed by its residuals: the camera moves along its axis
until most points fit, and those that still do not are called outliers. So the matches
are gathered far beyond the limit of an inlier, and the pose is refined together with
one factor of the focal lengths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgeloc.geometry.camera import project
from edgeloc.geometry.refine import RefineOptions, refine_pose
from edgeloc.types import CameraModel, FloatArray, IntArray, Matches2D3D, Rigid3

_REACH = 1 / 16
"""Matches within this share of the image's longer side from where a pose has them are
gathered: 40 px of 640. Right ones are not further off with a focal length a fifth too
long; of wrong ones, strewn over the picture, one in a hundred is as near."""
_MIN_POINTS = 8
_MAX_POINTS = 300
"""Bounds the time; more points than that tell nothing new."""
_MAX_ROUNDS = 5
_SETTLED = 0.02
"""Change of the logarithm after which other matches would not be gathered."""
_MAX_LOG_FOCAL = math.log(10.0)
_OPTIONS = RefineOptions(free_focal=True, tolerance=0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class FocalFit:
    """What `fit_focal` found.

    Parameters
    ----------
    log_focal : float
        Natural logarithm of what the camera's focal lengths are to be multiplied with.
    sigma : float
        Its standard deviation from the noise of the points alone, huge where these do
        not determine it (a plane that is looked at squarely).
    """

    log_focal: float
    sigma: float


def scale_focal(camera: CameraModel, factor: float) -> CameraModel:
    """Return a camera with other focal lengths.

    Parameters
    ----------
    camera : CameraModel
        The camera.
    factor : float
        What they are multiplied with, > 0.
    """
    num = 1 if camera.has_single_focal else 2
    focal = tuple(factor * value for value in camera.params[:num])
    return replace(camera, params=(*focal, *camera.params[num:]))


def fit_focal(
    matches: Matches2D3D,
    camera: CameraModel,
    cam_from_world: Rigid3,
    *,
    point_sigmas: npt.ArrayLike | None = None,
    pixel_sigmas: npt.ArrayLike | None = None,
) -> FocalFit | None:
    """Return the focal length that matches fit best, in parts of the camera's own.

    Parameters
    ----------
    matches : Matches2D3D
        All of them, outliers too: right matches may be among these.
    camera : CameraModel
        Intrinsics, as they were given.
    cam_from_world : Rigid3
        Pose that the matches gave with them.
    point_sigmas, pixel_sigmas : array_like of shape (M,), optional
        See `edgeloc.geometry.refine.refine_pose`.

    Returns
    -------
    FocalFit or None
        None when fewer than eight matches are near the pose.

    Notes
    -----
    Of 491 wrong poses through lenses with 0.3 to 2 times the focal length, in seven
    places with two kinds of features, 473 lead to one that is clearly another than the
    given one. Nearly all others have fewer than a third of their matches as inliers.
    """
    points2D = np.asarray(matches.points2D, dtype=np.float64)
    points3D = np.asarray(matches.points3D, dtype=np.float64)
    reach_px = _REACH * max(camera.width, camera.height)
    order = np.argsort(-np.asarray(matches.scores), kind="stable")
    log_focal = 0.0
    for _ in range(_MAX_ROUNDS):
        scaled = scale_focal(camera, math.exp(log_focal))
        pixels, seen = project(scaled, cam_from_world.transform(points3D))
        off_px = np.linalg.norm(pixels - points2D, axis=1)
        near = order[(seen & (off_px <= reach_px))[order]][:_MAX_POINTS]
        if len(near) < _MIN_POINTS:
            return None
        refined = refine_pose(
            points2D=points2D[near],
            points3D=points3D[near],
            camera=scaled,
            cam_from_world=cam_from_world,
            point_sigmas=_rows(point_sigmas, near),
            pixel_sigmas=_rows(pixel_sigmas, near),
            options=_OPTIONS,
        )
        cam_from_world = refined.cam_from_world
        log_focal += refined.log_focal
        if not abs(log_focal) < _MAX_LOG_FOCAL:
            return None
        if abs(refined.log_focal) < _SETTLED:
            break
    return FocalFit(log_focal=log_focal, sigma=refined.log_focal_sigma)


def _rows(values: npt.ArrayLike | None, rows: IntArray) -> FloatArray | None:
    return None if values is None else np.asarray(values, dtype=np.float64)[rows]
