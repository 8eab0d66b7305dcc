"""Which keyframes are near a pose, and how near each other."""

from __future__ import annotations

import numpy as np

from edgeloc.geometry.se3 import rotation_angle_rad
from edgeloc.tiles.layout import KeyframeTable
from edgeloc.types import FloatArray, IntArray, Rigid3

_NEAR_CHUNK = 256


def keyframe_spacing(centers: FloatArray) -> float:
    """Return the median distance from a camera to its nearest neighbour, m."""
    if len(centers) < 2:
        return 0.0
    from scipy.spatial import cKDTree

    distance = np.asarray(cKDTree(centers).query(centers, k=2)[0])
    return float(np.median(distance[:, 1]))


def nearest_keyframes(keyframes: KeyframeTable, pose: Rigid3, *, k: int) -> IntArray:
    """Return the ids of the keyframes nearest to a pose that look the same way."""
    off = keyframes.centers - pose.origin_in_a
    squared = np.einsum("ki,ki->k", off, off)
    # Rotations are decoded when they are asked for, and only the nearest keyframes are
    # sorted: these few will mostly do, and there may be 100,000 of them.
    count = _NEAR_CHUNK
    while True:
        idx = _smallest(squared, count)
        forward = keyframes.rotations_of(idx)[:, 2, :] @ pose.R[2]
        found = idx[forward > 0.5]
        if len(found) >= k or len(idx) == len(squared):
            break
        count *= 8
    return np.asarray(keyframes.keyframe_ids[found[:k]])


def _smallest(values: FloatArray, count: int) -> IntArray:
    """Return the indices of the smallest values, ascending, the first of equals."""
    if count >= len(values):
        return np.argsort(values, kind="stable")
    bound = np.partition(values, count - 1)[count - 1]
    idx = np.flatnonzero(values <= bound)
    return idx[np.argsort(values[idx], kind="stable")[:count]]


def keyframes_in_view(
    keyframes: KeyframeTable, pose: Rigid3, *, k: int, distance: float
) -> IntArray:
    """Return the ids of the keyframes that see most of what a camera there sees.

    Of the nearest ones that look the same way, those whose distance and angle together
    are smallest: what moves the picture as much as a radian is `distance`.

    Parameters
    ----------
    keyframes : KeyframeTable
        All keyframes of the site.
    pose : Rigid3
        ``cam_from_world``.
    k : int
        How many.
    distance : float
        Of the landmarks in view, m.
    """
    near = nearest_keyframes(keyframes, pose, k=4 * k)
    idx = keyframes.index_of(near)
    off = np.linalg.norm(keyframes.centers_of(idx) - pose.origin_in_a, axis=1)
    angle = rotation_angle_rad(keyframes.rotations_of(idx) @ pose.R.T)
    order = np.argsort(off / distance + angle, kind="stable")
    return near[order[:k]]
