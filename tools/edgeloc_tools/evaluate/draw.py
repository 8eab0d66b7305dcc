"""Pictures of single frames with what they were computed from."""

from __future__ import annotations

import cv2
import numpy as np

from edgeloc.geometry.camera import to_opencv_px
from edgeloc.types import ByteArray, FloatArray
from edgeloc_tools.evaluate.result import Explanation

GREEN_BGR = (80, 220, 60)
RED_BGR = (60, 60, 235)
YELLOW_BGR = (40, 220, 255)

MAX_INLIER_VECTOR_PX = 40.0
MAX_OUTLIER_VECTOR_PX = 14.0

# Pixels are drawn with 4 fractional bits.
_SHIFT = 4
_ONE = 1 << _SHIFT


def _fixed(point: FloatArray) -> tuple[int, int]:
    return round(float(point[0]) * _ONE), round(float(point[1]) * _ONE)


def draw_explanation(item: Explanation, *, width_px: int = 900) -> ByteArray:
    """Return the picture of a frame with its matches.

    Inliers are green, outliers red; a line, cut when it is long, leads from each
    towards where its landmark falls under the estimated pose.

    Parameters
    ----------
    item : Explanation
        The frame.
    width_px : int
        Width of the drawing; larger pictures are scaled down, smaller ones up to
        twice their size.

    Returns
    -------
    ndarray of shape (H, width, 3), uint8, BGR
    """
    image = item.image
    scale = min(width_px / image.shape[1], 2.0)
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(grey, size, interpolation=interpolation)
    # Grey and a little dark: the coloured points must be seen on any picture.
    canvas = cv2.cvtColor((small * 0.85).astype(np.uint8), cv2.COLOR_GRAY2BGR)
    at = to_opencv_px(item.points2D * scale)
    to = to_opencv_px(item.projected * scale)
    # Outliers first: they must not hide the inliers.
    for idx in np.argsort(item.inlier_mask, kind="stable"):
        inlier = bool(item.inlier_mask[idx])
        if np.isfinite(to[idx]).all():
            # Long vectors would cover the picture: only their start.
            reach = MAX_INLIER_VECTOR_PX if inlier else MAX_OUTLIER_VECTOR_PX
            length = max(float(np.linalg.norm(to[idx] - at[idx])), 1e-9)
            end = at[idx] + (to[idx] - at[idx]) * min(1.0, reach / length)
            cv2.line(
                canvas,
                _fixed(at[idx]),
                _fixed(end),
                YELLOW_BGR if inlier else RED_BGR,
                1,
                cv2.LINE_AA,
                _SHIFT,
            )
        cv2.circle(
            canvas,
            _fixed(at[idx]),
            (3 if inlier else 2) * _ONE,
            GREEN_BGR if inlier else RED_BGR,
            1,
            cv2.LINE_AA,
            _SHIFT,
        )
    return np.asarray(canvas, dtype=np.uint8)


def jpeg_bytes(image: ByteArray, *, quality: int = 85) -> bytes:
    """Return an image as a JPEG file's bytes."""
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return encoded.tobytes()
