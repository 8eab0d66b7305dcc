"""Following pixels and looking for landmarks, on pictures and points made for it."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from viewed_wall import CAMERA, START, WALL_M, features_of, wall_map

from edgeloc.geometry.camera import project
from edgeloc.geometry.se3 import exp_se3, log_se3
from edgeloc.localize.fix import FixCalibration
from edgeloc.localize.klt import (
    KltOptions,
    Tracks,
    follow,
    no_tracks,
    spread_order,
)
from edgeloc.localize.track import (
    TrackOptions,
    merged,
    sightings,
    thinned,
    track_frame,
)
from edgeloc.types import Cause, PoseStatus, Rung

OPTIONS = TrackOptions()


def texture(seed=0, size=600):
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (size, size)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 2.0)
    low, high = blurred.min(), blurred.max()
    return ((blurred - low) / (high - low) * 255).astype(np.uint8)


WALL = texture()
"""In the plane z = WALL_M, 0.01 m per texel, its middle on the axis."""


def picture(cam_from_world):
    """A textured wall, seen by CAMERA."""
    texels = np.array([[0, 0], [600, 0], [600, 600], [0, 600]], np.float64)
    corners = np.column_stack([(texels - 300.0) * 0.01, np.full(4, WALL_M)])
    pixels, _ = project(CAMERA, cam_from_world.transform(corners))
    homography = cv2.getPerspectiveTransform(
        (texels - 0.5).astype(np.float32), (pixels - 0.5).astype(np.float32)
    )
    return np.asarray(cv2.warpPerspective(WALL, homography, (320, 240)))


def tracks_at(cam_from_world, *, seed=1, count=80):
    rng = np.random.default_rng(seed)
    points = np.column_stack(
        [rng.uniform(-1.5, 1.5, count), rng.uniform(-1.1, 1.1, count), [WALL_M] * count]
    )
    pixels, _ = project(CAMERA, cam_from_world.transform(points))
    return Tracks(
        grey=picture(cam_from_world),
        points2D=pixels,
        points3D=points,
        point3D_ids=np.arange(count) * 7,
        point_sigmas=np.full(count, 1e-3, np.float32),
        pixel_sigmas=np.ones(count, np.float32),
        num_sightings=np.ones(count, np.int64),
    )


MOVED = exp_se3([0.01, -0.03, 0.02, 0.05, 0.02, -0.1])


def test_pixels_are_followed_to_a_tenth():
    tracks = tracks_at(START)
    found, mask = follow(
        tracks, picture(MOVED), expected=tracks.points2D, options=KltOptions()
    )
    truth, _ = project(CAMERA, MOVED.transform(tracks.points3D[mask]))
    assert mask.sum() == len(found) > 60
    assert np.median(np.linalg.norm(found.points2D - truth, axis=1)) < 0.1
    np.testing.assert_array_equal(found.point3D_ids, tracks.point3D_ids[mask])


def test_far_motion_needs_the_prediction():
    """80 px between two frames: lost without, found with where to look."""
    far = exp_se3([0.0, 0.3, 0.0, 0.0, 0.0, 0.0])
    tracks = tracks_at(START)
    expected, _ = project(CAMERA, far.transform(tracks.points3D))
    blind, _ = follow(
        tracks, picture(far), expected=tracks.points2D, options=KltOptions()
    )
    guided, mask = follow(
        tracks, picture(far), expected=expected + 3.0, options=KltOptions()
    )
    truth = expected[mask]
    good = np.linalg.norm(guided.points2D - truth, axis=1) < 0.5
    assert good.sum() > 2 * len(blind)
    assert good.mean() > 0.9


@pytest.mark.parametrize("level", [0, 255])
def test_nothing_is_followed_into_an_empty_picture(level):
    tracks = tracks_at(START)
    empty = np.full((240, 320), level, np.uint8)
    found, _ = follow(tracks, empty, expected=tracks.points2D, options=KltOptions())
    assert len(found) == 0


def test_little_is_followed_into_another_picture():
    tracks = tracks_at(START)
    other = texture(9)[:240, :320]
    found, _ = follow(tracks, other, expected=tracks.points2D, options=KltOptions())
    assert len(found) < 0.15 * len(tracks)


def test_frames_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match="differ"):
        follow(
            no_tracks(np.zeros((10, 10), np.uint8)),
            np.zeros((10, 12), np.uint8),
            expected=np.zeros((0, 2)),
            options=KltOptions(),
        )


def answer(grey, prior=START, tracks=None):
    return track_frame(
        tracks_at(START) if tracks is None else tracks,
        grey,
        CAMERA,
        prior=prior,
        last_pose=START,
        calibration=FixCalibration(scale=2.0),
        options=OPTIONS,
    )


def test_the_pose_follows_the_pixels():
    tracked = answer(picture(MOVED))
    candidate = tracked.candidate
    assert (candidate.status, candidate.rung) == (PoseStatus.LOCALIZED, Rung.TRACK)
    off = log_se3(MOVED @ candidate.cam_from_world.inverse())
    assert np.linalg.norm(off[:3]) < 2e-3
    assert np.linalg.norm(off[3:]) < 5e-3
    assert len(tracked.tracks) == candidate.num_inliers > 60
    assert np.all(np.linalg.eigvalsh(candidate.covariance) > 0)


def test_wrong_landmarks_are_dropped():
    tracks = tracks_at(START)
    points = tracks.points3D.copy()
    points[:12] += np.array([0.3, -0.2, 0.0])
    tracked = answer(picture(MOVED), tracks=replace(tracks, points3D=points))
    assert tracked.candidate.status is PoseStatus.LOCALIZED
    assert not np.isin(tracked.tracks.point3D_ids, tracks.point3D_ids[:12]).any()


def test_a_covered_picture_is_no_evidence():
    """A strip is left, with few of the landmarks: they might as well be anything."""
    grey = picture(START).copy()
    grey[:, 60:] = 90
    tracked = answer(grey)
    assert tracked.candidate.status is PoseStatus.LOST
    assert tracked.candidate.cause is Cause.FEW_MATCHES
    assert tracked.tracks is None
    assert tracked.num_found < 0.3 * tracked.num_expected


# Sightings


def see(tracks, viewed, features, idx):
    fresh = sightings(
        features, viewed.local_map, feature_idx=idx, point_idx=idx, grey=tracks.grey
    )
    return merged(tracks, fresh, OPTIONS)


def test_the_first_sightings_are_averaged_and_later_ones_blended():
    viewed = wall_map(count=20)
    idx = np.arange(20)
    exact = features_of(viewed, idx)
    tracks = see(no_tracks(WALL), viewed, exact, idx)
    assert tracks.num_sightings.tolist() == [1] * 20
    order = np.argsort(tracks.point3D_ids)
    for number in range(2, 40):
        shifted = features_of(viewed, idx, shift=1.0 if number == 2 else 0.0)
        before = tracks.points2D[order].copy()
        tracks = see(tracks, viewed, shifted, idx)
        if number == 2:
            np.testing.assert_allclose(tracks.points2D[order] - before, 0.5, atol=1e-4)
    np.testing.assert_allclose(tracks.points2D[order], exact.keypoints, atol=0.02)
    assert tracks.num_sightings.tolist() == [39] * 20


def test_new_landmarks_join_those_that_are_followed():
    viewed = wall_map(count=20)
    idx = np.arange(20)
    features = features_of(viewed, idx)
    tracks = see(no_tracks(WALL), viewed, features, idx[:5])
    assert tracks.point3D_ids.tolist() == [5, 8, 11, 14, 17]
    tracks = see(tracks, viewed, features, idx[3:8])
    assert tracks.point3D_ids.tolist() == [5, 8, 11, 14, 17, 20, 23, 26]
    assert tracks.num_sightings.tolist() == [1, 1, 1, 2, 2, 1, 1, 1]


def test_crowded_pictures_are_thinned_evenly():
    rng = np.random.default_rng(6)
    heap = rng.uniform(0, 20, (200, 2))
    few = rng.uniform(0, 600, (40, 2))
    tracks = tracks_at(START, count=240)
    tracks = replace(tracks, grey=WALL, points2D=np.vstack([heap, few]))
    kept = thinned(tracks, 60)
    assert len(kept) == 60
    assert np.isin(tracks.point3D_ids[200:], kept.point3D_ids).mean() > 0.9
    assert thinned(tracks, 500) is tracks


def test_spread_order_takes_one_of_each_cell_first():
    points = np.array([[1.0, 1.0], [2.0, 2.0], [11.0, 1.0], [3.0, 3.0], [1.0, 11.0]])
    order = spread_order(points, cell_px=10.0)
    assert sorted(order[:3].tolist()) == [0, 2, 4]
    assert order[3:].tolist() == [1, 3]
    assert len(spread_order(np.zeros((0, 2)), cell_px=10.0)) == 0
