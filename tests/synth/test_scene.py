"""Places: deterministic, closed, distinguishable, with texture that can be matched."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edgeloc.geometry.camera import project, unproject
from edgeloc_tools.synth.render import render
from edgeloc_tools.synth.scene import make_room, make_street
from edgeloc_tools.synth.trajectory import look, room_walk, street_drive


def sift(image):
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    keypoints, descriptors = cv2.SIFT_create(1500).detectAndCompute(grey, None)
    return np.array([k.pt for k in keypoints]) + 0.5, descriptors


def mutual_matches(a, b, *, ratio: float = 0.85) -> np.ndarray:
    """Mutual nearest neighbours that pass the ratio test, (M, 2) indices."""
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    back = {m.queryIdx: m.trainIdx for m in matcher.match(b, a)}
    return np.array(
        [
            (m.queryIdx, m.trainIdx)
            for m, n in matcher.knnMatch(a, b, k=2)
            if m.distance < ratio * n.distance and back[m.trainIdx] == m.queryIdx
        ]
    ).reshape(-1, 2)


def correct_matches(scene, camera, first, second) -> int:
    """Count SIFT matches that exact depth confirms to 1.5 px."""
    a, b = (render(scene, camera, pose, supersample=2) for pose in (first, second))
    (xy_a, desc_a), (xy_b, desc_b) = sift(a.image), sift(b.image)
    pairs = mutual_matches(desc_a, desc_b)
    at = xy_a[pairs[:, 0]]
    depth = a.depth_m[at[:, 1].astype(int), at[:, 0].astype(int)]
    ray = unproject(camera, at)
    points = ray / ray[:, 2:] * depth[:, None]
    expected, seen = project(camera, (second @ first.inverse()).transform(points))
    error = np.linalg.norm(expected - xy_b[pairs[:, 1]], axis=1)
    return int((seen & (depth > 0) & (error < 1.5)).sum())


@pytest.mark.parametrize("yaw_rad", [0.4, 1.9, -2.0])
def test_views_of_a_room_20_cm_apart_match(room, vga, yaw_rad):
    first = look((0.3, -0.2, 1.5), yaw_rad=yaw_rad, pitch_rad=-0.1)
    second = look((0.43, -0.05, 1.52), yaw_rad=yaw_rad + 0.05, pitch_rad=-0.12)
    assert correct_matches(room, vga, first, second) >= 150


def test_views_of_a_street_20_cm_apart_match(street, vga):
    first = look((5.0, 0.5, 1.5), yaw_rad=0.05)
    second = look((5.15, 0.37, 1.52), yaw_rad=0.08)
    assert correct_matches(street, vga, first, second) >= 150


def test_two_rooms_do_not_match(room, vga):
    other = make_room(4)
    counts = []
    for yaw_rad in (0.4, 1.9):
        pose = look((0.3, -0.2, 1.5), yaw_rad=yaw_rad)
        a, b = (render(scene, vga, pose).image for scene in (room, other))
        xy_a, desc_a = sift(a)
        xy_b, desc_b = sift(b)
        pairs = mutual_matches(desc_a, desc_b, ratio=0.8)
        inliers = 0
        if len(pairs) >= 8:
            _, mask = cv2.findFundamentalMat(
                xy_a[pairs[:, 0]], xy_b[pairs[:, 1]], cv2.RANSAC, 1.5, 0.999
            )
            inliers = 0 if mask is None else int(mask.sum())
        counts.append(inliers)
    assert max(counts) < 25


def test_equal_seeds_give_equal_bytes_and_others_do_not(vga):
    pose = look((0.3, -0.2, 1.5), yaw_rad=0.4)
    first, again, other = (
        render(make_room(seed, texels_per_m=80.0), vga, pose).image
        for seed in (3, 3, 5)
    )
    assert np.array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 15


def test_a_room_is_closed_and_a_walk_stays_clear_of_everything(room, small):
    path = room_walk(2, room.extent_m, duration_s=10.0)
    for time_s in np.arange(0.0, 10.0, 1.0):
        depth = render(room, small, path.pose_at(float(time_s))).depth_m
        assert (depth > 0.25).all()
        assert depth.max() < np.linalg.norm(room.extent_m)


def test_a_street_has_sky_above_and_houses_around(street, small):
    path = street_drive(2, street.extent_m, duration_s=10.0)
    for time_s in (0.0, 5.0, 9.0):
        shot = render(street, small, path.pose_at(time_s))
        assert (shot.depth_m[90:] > 0).all()
        assert 0.02 < (shot.depth_m == 0).mean() < 0.3
        assert shot.image[shot.depth_m == 0].mean() > 120
    across = render(street, small, look((10.0, 0.0, 1.5), yaw_rad=np.pi / 2))
    assert 4.5 < np.median(across.depth_m[60]) < 8.0


def test_places_that_cannot_be_made_are_refused():
    with pytest.raises(ValueError, match=r"too small, at least 4 x 4 x 2\.4"):
        make_room(0, (3.0, 5.0, 2.5))
    with pytest.raises(ValueError, match="too short, at least 20 m"):
        make_street(0, 10.0)
