"""What cameras beside those of a recording would see: pictures moved by their depth."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.interpolate import griddata

from edgeloc.geometry.camera import normalized_from_pixels, project
from edgeloc.geometry.se3 import exp_so3, log_so3
from edgeloc.types import (
    BoolArray,
    ByteArray,
    CameraModel,
    Float32Array,
    FloatArray,
    Rigid3,
)

_MIN_SEEN = 0.35
"""Of a synthesized view: with less there is more guess than picture."""
_ATTEMPTS = 8
_MIN_POINTS, _GRID_PX = 30, 8
"""Of depth between points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveOptions:
    """How far away synthesized cameras are.

    Parameters
    ----------
    turn_deg, roll_deg : float
        Standard deviation of the turn about the axes across the line of sight, and
        about it.
    move : float
        Standard deviation of the way along each axis, as a share of the median depth.
    """

    turn_deg: float = 12.0
    roll_deg: float = 10.0
    move: float = 0.12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MovedView:
    """A picture from somewhere else.

    Parameters
    ----------
    grey : ndarray of shape (H, W), uint8
        The picture; what is not known is filled from around.
    seen : ndarray of shape (H, W), bool
        What is known.
    cam_from_world : Rigid3
        From where.
    """

    grey: ByteArray
    seen: BoolArray
    cam_from_world: Rigid3


def draw_motion(
    rng: np.random.Generator, *, depth: float, options: MoveOptions
) -> Rigid3:
    """Return where a camera goes, ``moved_from_cam``.

    Parameters
    ----------
    rng : Generator
        What is drawn from.
    depth : float
        Median depth of the picture, m; 0 where it is not known: then it only turns.
    options : MoveOptions
        How far.
    """
    sigmas = np.deg2rad([options.turn_deg, options.turn_deg, options.roll_deg])
    turn = np.clip(rng.standard_normal(3), -2.0, 2.0) * sigmas
    way = np.clip(rng.standard_normal(3), -2.0, 2.0) * options.move * depth
    return Rigid3(R=exp_so3(turn), t=way)


def moved_view(
    grey: ByteArray,
    depth: Float32Array | None,
    camera: CameraModel,
    cam_from_world: Rigid3,
    *,
    options: MoveOptions,
    rng: np.random.Generator,
) -> MovedView:
    """Return what a camera beside a picture would see.

    Every pixel is drawn where its point lies in the moved camera, the nearest on top,
    and what stays empty is filled from around. Without depth the camera only turns.

    Parameters
    ----------
    grey : ndarray of shape (H, W), uint8
        Picture.
    depth : ndarray of shape (H, W), float32, or None
        Along z, m; nan where not known.
    camera : CameraModel
        PINHOLE.
    cam_from_world : Rigid3
        Pose of the picture.
    options : MoveOptions
        How far.
    rng : Generator
        What is drawn from.
    """
    filled = None if depth is None else _filled(depth)
    median = 0.0 if filled is None else float(np.median(filled))
    plane_depth = np.ones(grey.shape, np.float32) if filled is None else filled
    found = MovedView(
        grey=grey,
        seen=np.ones(grey.shape, dtype=bool),
        cam_from_world=cam_from_world,
    )
    for attempt in range(_ATTEMPTS):
        whole = draw_motion(rng, depth=median, options=options)
        # The more attempts were in vain, the smaller the next one.
        share = 1.0 - attempt / _ATTEMPTS
        motion = Rigid3(R=exp_so3(share * log_so3(whole.R)), t=share * whole.t)
        picture, seen = _draw(grey, plane_depth, camera, motion)
        if seen.mean() >= _MIN_SEEN:
            return MovedView(
                grey=picture, seen=seen, cam_from_world=motion @ cam_from_world
            )
    return found


def depth_of_points(in_cam: FloatArray, camera: CameraModel) -> Float32Array | None:
    """Return the depth of a picture between the few points where it is known.

    Linear in inverse depth over the triangles of a Delaunay triangulation, as planes
    are; outside of these as at the nearest point.

    Parameters
    ----------
    in_cam : ndarray of shape (N, 3), float64
        Points that the picture shows, in the camera, m.
    camera : CameraModel
        PINHOLE.

    Returns
    -------
    ndarray of shape (H, W), float32, or None
        Along z, m; None with too few points.
    """
    pixels, in_front = project(camera, in_cam)
    limit = np.array([camera.width, camera.height])
    inside = in_front & np.all((pixels > 0) & (pixels < limit), axis=1)
    at, inverse = pixels[inside], 1.0 / in_cam[inside, 2]
    if len(at) < _MIN_POINTS:
        return None
    # A coarse grid says all there is to say.
    x, y = (np.arange(0.5 * _GRID_PX, size, _GRID_PX) for size in limit)
    grid = np.stack(np.meshgrid(x, y), axis=-1)
    between = griddata(at, inverse, grid, method="linear")
    beyond = griddata(at, inverse, grid, method="nearest")
    coarse = np.where(np.isfinite(between), between, beyond).astype(np.float32)
    size = camera.width, camera.height
    return 1.0 / np.asarray(cv2.resize(coarse, size), np.float32)


def _filled(depth: Float32Array) -> Float32Array | None:
    """Return depth without holes, each filled with the nearest that is known."""
    known = np.isfinite(depth)
    if known.mean() < 0.1:
        return None
    _, labels = cv2.distanceTransformWithLabels(
        np.uint8(~known), cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
    )
    value_of = np.zeros(int(labels.max()) + 1, np.float32)
    value_of[labels[known]] = depth[known]
    return np.asarray(value_of[labels], np.float32)


def _draw(
    grey: ByteArray, depth: Float32Array, camera: CameraModel, motion: Rigid3
) -> tuple[ByteArray, BoolArray]:
    height, width = grey.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float64) + 0.5
    plane = normalized_from_pixels(camera, np.stack([x.ravel(), y.ravel()], axis=1))
    points = np.hstack([plane, np.ones((len(plane), 1))]) * depth.reshape(-1, 1)
    moved = motion.transform(points)
    pixels, in_front = project(camera, moved)
    at = np.floor(np.nan_to_num(pixels, nan=-1.0)).astype(np.int64)
    inside = in_front & np.all((at >= 0) & (at < [width, height]), axis=1)
    # The farthest first, so that the nearest are drawn over them.
    order = np.flatnonzero(inside)[np.argsort(-moved[inside, 2], kind="stable")]
    picture = np.zeros((height, width), np.uint8)
    seen = np.zeros((height, width), bool)
    picture[at[order, 1], at[order, 0]] = grey.ravel()[order]
    seen[at[order, 1], at[order, 0]] = True
    # Single pixels are missing where things come nearer.
    around = cv2.medianBlur(cv2.dilate(picture, np.ones((3, 3), np.uint8)), 3)
    closed = cv2.morphologyEx(
        np.uint8(seen), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)
    )
    picture = np.where(seen, picture, np.where(closed > 0, around, 0))
    known = closed > 0
    if not known.all() and known.any():
        mean = np.uint8(picture[known].mean())
        picture = np.where(known, picture, mean)
    return np.asarray(picture, np.uint8), np.asarray(known)
