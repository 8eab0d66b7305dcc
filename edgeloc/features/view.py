"""What is where in a picture, in a few numbers: mean descriptors of a grid's cells.

Made of keypoints and their descriptors, so that it costs no network of its own, and
works with every feature family.
"""

from __future__ import annotations

import numpy as np

from edgeloc.features.decode import normalize_rows
from edgeloc.geometry.camera import normalized_from_pixels
from edgeloc.types import CameraModel, Float32Array


def pooled_view(
    keypoints: Float32Array,
    descriptors: Float32Array,
    camera: CameraModel,
    *,
    grid: tuple[int, int],
    extent: tuple[float, float],
) -> Float32Array:
    """Return the mean descriptors in the cells of a view, L2-normalised.

    The view lies on the plane z = 1, so that pictures of cameras with other intrinsics
    become alike; what is outside of it is left out.

    Parameters
    ----------
    keypoints : ndarray of shape (N, 2), float32
        Px of the camera, corner convention.
    descriptors : ndarray of shape (N, D), float32
        L2-normalised.
    camera : CameraModel
        Intrinsics.
    grid : (int, int)
        Columns and rows.
    extent : (float, float)
        Half the view's width and height, on the plane z = 1.

    Returns
    -------
    ndarray of shape (D, rows, columns), float32
        Zeros where there is no keypoint.
    """
    plane = normalized_from_pixels(camera, keypoints.astype(np.float64))
    inside = np.all(np.abs(plane) < np.asarray(extent), axis=1)  # False for nan
    at = (plane[inside] / np.asarray(extent) + 1.0) * 0.5 * np.asarray(grid)
    columns, rows = grid
    # The upper border is inside only but for rounding.
    x = np.minimum(at[:, 0].astype(np.int64), columns - 1)
    y = np.minimum(at[:, 1].astype(np.int64), rows - 1)
    cell = y * columns + x
    order = np.argsort(cell, kind="stable")
    sums = np.zeros((rows * columns, descriptors.shape[1]), np.float32)
    if len(order):
        found, starts = np.unique(cell[order], return_index=True)
        sums[found] = np.add.reduceat(descriptors[inside][order], starts, axis=0)
    means = normalize_rows(sums).reshape(rows, columns, -1)
    return np.ascontiguousarray(means.transpose(2, 0, 1))
