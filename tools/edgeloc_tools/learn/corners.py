"""Corners of a picture at several scales, and those that a view of it shows."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from edgeloc.features.corners import corner_response, parabola_peak
from edgeloc.types import ByteArray, Float32Array, FloatArray

_MIN_STRENGTH = 1e-5
_PX2_PER_CORNER = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Corners:
    """Corners of an image over its scales.

    Parameters
    ----------
    points : ndarray of shape (N, 2), float64
        Sub-pixel positions, corner convention, px.
    scales : ndarray of shape (N,), float64
        Pixels of the level a corner was found in, per pixel of the image.
    strengths : ndarray of shape (N,), float32
        Of the corner response there.
    """

    points: FloatArray
    scales: FloatArray
    strengths: Float32Array


def find_corners(grey: ByteArray, *, num_levels: int = 6) -> Corners:
    """Return the corners of an image, level by level from 1.41 times to 1/4 its size.

    Parameters
    ----------
    grey : ndarray of shape (H, W), uint8
        Image.
    num_levels : int
        Levels, each smaller by sqrt(2), the first 1.41 times the size of the image.
    """
    points: list[FloatArray] = []
    scales: list[FloatArray] = []
    strengths: list[Float32Array] = []
    height, width = grey.shape
    for level in range(num_levels):
        scale = 2.0 ** (0.5 - 0.5 * level)
        size = (round(width * scale), round(height * scale))
        if min(size) < 32:
            break
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        resized = cv2.resize(grey, size, interpolation=way).astype(np.float32)
        response = corner_response(resized / np.float32(255.0))
        at, strength = _peaks(response)
        points.append(at * [width / size[0], height / size[1]])
        scales.append(np.full(len(at), size[0] / width))
        strengths.append(strength)
    return Corners(
        points=np.concatenate(points),
        scales=np.concatenate(scales),
        strengths=np.concatenate(strengths),
    )


def _peaks(response: Float32Array) -> tuple[FloatArray, Float32Array]:
    """Return the strongest local maxima of a response, corner convention."""
    highest = cv2.dilate(response, np.ones((5, 5), np.uint8))
    is_peak = (response >= highest) & (response > _MIN_STRENGTH)
    is_peak[:2] = is_peak[-2:] = False
    is_peak[:, :2] = is_peak[:, -2:] = False
    y, x = np.nonzero(is_peak)
    strength = response[y, x]
    order = np.argsort(-strength)[: int(response.size / _PX2_PER_CORNER)]
    at = parabola_peak(response, np.stack([x, y], axis=1)[order]) + 0.5
    return at, strength[order]


def corners_in_view(
    corners: Corners,
    view_from_image: FloatArray,
    *,
    width: int,
    height: int,
    radius_px: int = 4,
) -> FloatArray:
    """Return the corners that a view of a plane image shows at their own scale.

    Parameters
    ----------
    corners : Corners
        Of the image.
    view_from_image : ndarray of shape (3, 3), float64
        Homography, corner convention on both sides.
    width, height : int
        Of the view, px.
    radius_px : int
        The strongest within this distance stays.

    Returns
    -------
    ndarray of shape (M, 2), float64
    """
    homogeneous = np.c_[corners.points, np.ones(len(corners.points))]
    mapped = homogeneous @ view_from_image.T
    depth = mapped[:, 2]
    at = mapped[:, :2] / np.where(np.abs(depth) < 1e-9, 1e-9, depth)[:, None]
    # |det J| of x = h(u) / w(u) is |det H| / w^3.
    area = np.abs(np.linalg.det(view_from_image)) / np.maximum(depth, 1e-9) ** 3
    relative = np.sqrt(area) / corners.scales
    keep = (depth > 0) & (relative > 0.8) & (relative < 1.25)
    keep &= np.all((at > 1) & (at < [width - 1, height - 1]), axis=1)
    at, strengths = at[keep], corners.strengths[keep]
    whole = at.astype(np.int64)
    canvas = np.zeros((height, width), np.float32)
    np.maximum.at(canvas, (whole[:, 1], whole[:, 0]), strengths)
    side = 2 * radius_px + 1
    highest = cv2.dilate(canvas, np.ones((side, side), np.uint8))
    return np.asarray(at[strengths >= highest[whole[:, 1], whole[:, 0]]])
