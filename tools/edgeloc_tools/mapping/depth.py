"""Depth measured by a sensor, brought to the keypoints of the colour image."""

from __future__ import annotations

import numpy as np

from edgeloc.geometry.camera import project, unproject
from edgeloc.types import CameraModel, Float32Array, FloatArray
from edgeloc_tools.datasets.recording import DepthMap


def depth_in_camera(depth_map: DepthMap, camera: CameraModel) -> FloatArray:
    """Return depth along the colour camera's z axis for each of its pixels.

    Every measured depth pixel is lifted, moved to the colour camera and drawn there,
    the nearest one on top.

    Parameters
    ----------
    depth_map : DepthMap
        Measured depth.
    camera : CameraModel
        The colour camera.

    Returns
    -------
    ndarray of shape (H, W), float64, m
        nan where nothing was measured.
    """
    depth = depth_map.read()
    rows, cols = np.nonzero(depth > 0)
    rays = unproject(
        depth_map.camera, np.stack([cols, rows], axis=1).astype(np.float64) + 0.5
    )
    in_depth = rays * (depth[rows, cols] / rays[:, 2])[:, None]
    in_cam = depth_map.cam_from_depth.transform(in_depth)
    pixels, in_front = project(camera, in_cam)
    col = np.floor(np.nan_to_num(pixels[:, 0], nan=-1.0)).astype(np.int64)
    row = np.floor(np.nan_to_num(pixels[:, 1], nan=-1.0)).astype(np.int64)
    inside = (
        in_front
        & (col >= 0)
        & (row >= 0)
        & (col < camera.width)
        & (row < camera.height)
    )
    out = np.full((camera.height, camera.width), np.inf)
    np.minimum.at(out, (row[inside], col[inside]), in_cam[inside, 2])
    return np.where(np.isfinite(out), out, np.nan)


def depth_at_keypoints(
    depth: FloatArray, keypoints: Float32Array, *, radius_px: int = 2
) -> tuple[FloatArray, FloatArray]:
    """Return the depth of keypoints and its standard deviation.

    The median of a small window; a window that straddles an edge (where the spread is
    more than 5 %) gives nan, since the keypoint may belong to either side.

    Parameters
    ----------
    depth : ndarray of shape (H, W), float64
        Depth, m, nan where unknown.
    keypoints : ndarray of shape (N, 2), float32
        Positions, px.
    radius_px : int
        Half the window.

    Returns
    -------
    depth, sigma : ndarray of shape (N,), float64, m
        nan where unknown. The noise of a structured-light sensor grows with the square
        of depth, 1.5e-3 / m [1]_; the local spread is added.

    References
    ----------
    .. [1] Khoshelham, Elberink, "Accuracy and resolution of Kinect depth data", Sensors
       2012, section 4.
    """
    height, width = depth.shape
    offsets = np.arange(-radius_px, radius_px + 1)
    rows = np.clip(
        np.floor(keypoints[:, 1]).astype(np.int64)[:, None] + offsets, 0, height - 1
    )
    cols = np.clip(
        np.floor(keypoints[:, 0]).astype(np.int64)[:, None] + offsets, 0, width - 1
    )
    window = depth[rows[:, :, None], cols[:, None, :]].reshape(
        len(keypoints), len(offsets) ** 2
    )
    known = np.count_nonzero(np.isfinite(window), axis=1)
    enough = known * 3 >= window.shape[1]
    # A stand-in where too little is known keeps nanmedian quiet; masked below.
    window = np.where(enough[:, None], window, 1.0)
    median = np.nanmedian(window, axis=1)
    spread = np.nanmax(window, axis=1) - np.nanmin(window, axis=1)
    good = enough & (spread <= 0.05 * median)
    sigma = 1.5e-3 * median**2 + 2e-3 + 0.5 * spread
    return np.where(good, median, np.nan), np.where(good, sigma, np.nan)
