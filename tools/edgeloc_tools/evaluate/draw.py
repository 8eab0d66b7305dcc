"""Pictures of single frames with what they were computed from."""

from __future__ import annotations

import cv2

from edgeloc.runtime.picture import draw_matches
from edgeloc.types import ByteArray
from edgeloc_tools.evaluate.result import Explanation


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
    return draw_matches(
        item.image,
        item.points2D,
        item.projected,
        item.inlier_mask,
        width_px=width_px,
    )


def jpeg_bytes(image: ByteArray, *, quality: int = 85) -> bytes:
    """Return an image as a JPEG file's bytes."""
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return encoded.tobytes()
