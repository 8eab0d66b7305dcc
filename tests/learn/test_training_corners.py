"""Corners near which correspondences are drawn."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edgeloc_tools.learn.corners import Corners, corners_in_view, find_corners


def bright_quarter(*, corner: float, side: int = 160, factor: int = 8) -> np.ndarray:
    """A picture that is bright right of and below (corner, corner)."""
    axis = (np.arange(side * factor) + 0.5) / factor > corner
    board = np.where(axis[:, None] & axis[None, :], 220.0, 30.0)
    small = cv2.resize(board, (side, side), interpolation=cv2.INTER_AREA)
    return np.round(small).astype(np.uint8)


@pytest.mark.parametrize("at", [80.0, 80.25, 80.5, 81.125])
def test_a_corner_is_found_at_every_scale(at):
    """Rounded by the smoothing, but on the diagonal to a tenth of a pixel."""
    corners = find_corners(bright_quarter(corner=at))
    scales = np.unique(corners.scales)
    np.testing.assert_allclose(scales, 2.0 ** np.arange(-2, 1, 0.5), rtol=0.01)
    for scale in scales:
        level = corners.scales == scale
        best = np.argmax(np.where(level, corners.strengths, 0.0))
        away = (corners.points[best] - at) * scale
        assert abs(away[0] - away[1]) < 0.1
        assert np.abs(away).max() < 1.7


def test_a_view_shows_each_corner_at_its_own_scale():
    corners = find_corners(bright_quarter(corner=80.0))
    for zoom in (0.5, 1.0, 1.41):
        view = np.diag([zoom, zoom, 1.0])
        side = int(160 * zoom)
        (seen,) = corners_in_view(corners, view, width=side, height=side)
        assert np.abs(seen - 80.0 * zoom).max() < 1.7


def test_of_corners_that_are_close_in_a_view_the_strongest_stays():
    corners = Corners(
        points=np.array([[40.5, 40.5], [43.5, 40.5], [60.5, 40.5], [62.5, 41.5]]),
        scales=np.array([1.0, 1.41, 1.0, 4.0]),
        strengths=np.array([2.0, 3.0, 1.0, 9.0], np.float32),
    )
    # The last one is of a scale that this view does not show.
    view = np.diag([1.2, 1.2, 1.0])
    seen = corners_in_view(corners, view, width=120, height=120)
    np.testing.assert_allclose(seen, 1.2 * corners.points[[1, 2]])
    seen = corners_in_view(corners, view, width=120, height=120, radius_px=2)
    np.testing.assert_allclose(seen, 1.2 * corners.points[:3])
