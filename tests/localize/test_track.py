"""Following pixels and looking for landmarks, on pictures and points made for it."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from edgeloc.geometry.camera import project
from edgeloc.geometry.se3 import exp_se3, log_se3
from edgeloc.localize.klt import (
    KltOptions,
    Tracks,
    follow,
    no_tracks,
    spread_order,
)
from edgeloc.localize.structure import FixCalibration
from edgeloc.localize.track import (
    TrackOptions,
    expected_landmarks,
    make_track_map,
    match_expected,
    merged,
    seen_alike,
    sightings,
    thinned,
    track_frame,
)
from edgeloc.tiles.layout import LocalMap
from edgeloc.types import CameraModel, Cause, Features, PoseStatus, Rigid3, Rung

CAMERA = CameraModel(
    model="PINHOLE", width=320, height=240, params=(250.0, 250.0, 160.0, 120.0)
)
OPTIONS = TrackOptions()


def texture(seed=0, size=600):
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (size, size)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 2.0)
    low, high = blurred.min(), blurred.max()
    return ((blurred - low) / (high - low) * 255).astype(np.uint8)


WALL = texture()
WALL_M = 3.0
"""The wall is in the plane z = 3 m, 0.01 m per texel, its middle on the axis."""


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


START = Rigid3.identity()
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


# Guided matching


def local_map(points, seed=3):
    rng = np.random.default_rng(seed)
    descriptors = rng.normal(size=(len(points), 32)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    n = len(points)
    return LocalMap(
        point3D_ids=np.arange(n) * 3 + 5,
        points3D=points,
        sigmas=np.full(n, 1e-3, np.float32),
        num_observations=np.arange(n)[::-1] + 2,
        descriptors=descriptors,
        row_to_point=np.arange(n),
    )


def identity(rows):
    return np.asarray(rows, np.float32)


def wall_points(count=60, seed=2):
    rng = np.random.default_rng(seed)
    return np.column_stack(
        [rng.uniform(-1.5, 1.5, count), rng.uniform(-1.1, 1.1, count), [WALL_M] * count]
    )


def wall_map(centers=((0.1, 0.0, 0.0),), count=60):
    landmarks = local_map(wall_points(count))
    return make_track_map(
        landmarks,
        visible=[landmarks.point3D_ids for _ in centers],
        centers=np.array(centers),
        made_at=START,
    )


def expect(track_map, **changes):
    given = {
        "cam_from_world": START,
        "covariance": np.diag([1e-6] * 3 + [1e-6] * 3),
        "rows_px": (0.0, 240.0),
        "followed_ids": np.zeros(0, np.int64),
        "options": OPTIONS,
    }
    return expected_landmarks(track_map, CAMERA, **{**given, **changes})


def test_landmarks_are_expected_where_they_project():
    track_map = wall_map()
    found = expect(track_map)
    truth, _ = project(CAMERA, track_map.local_map.points3D[found.point_idx])
    assert len(found.point_idx) == 60
    np.testing.assert_allclose(found.pixels, truth)
    assert np.all(found.radii_px == OPTIONS.min_window_px)


def test_windows_grow_with_the_covariance():
    """0.02 rad at f = 250 px is 5 px, three sigma 15 px."""
    found = expect(wall_map(), covariance=np.diag([4e-4] * 3 + [1e-12] * 3))
    assert 14.0 < np.median(found.radii_px) < 17.0
    wide = expect(wall_map(), covariance=np.diag([1.0] * 6))
    assert np.all(wide.radii_px == OPTIONS.max_window_px)


def test_only_the_rows_that_are_looked_at():
    found = expect(wall_map(), rows_px=(80.0, 160.0))
    assert 0 < len(found.point_idx) < 60
    assert np.all((found.pixels[:, 1] >= 80) & (found.pixels[:, 1] < 160))


def test_followed_landmarks_come_first_then_those_seen_most():
    track_map = wall_map()
    ids = track_map.local_map.point3D_ids
    options = replace(OPTIONS, min_expected=10, max_expected=10)
    found = expect(track_map, followed_ids=ids[50:53], options=options)
    assert found.point_idx.tolist() == [*range(7), 50, 51, 52]


def test_fewer_are_looked_for_in_wider_windows():
    options = replace(OPTIONS, min_expected=5, max_expected=60)
    wide = np.diag([1.0] * 6)
    num_wide = len(expect(wall_map(), covariance=wide, options=options).point_idx)
    assert num_wide == 5
    assert len(expect(wall_map(), options=options).point_idx) == 60


@pytest.mark.parametrize(
    ("center", "alike"),
    [
        ((0.0, 0.0, 0.5), True),
        ((0.0, 0.0, 6.0), False),  # from behind
        ((8.0, 0.0, 1.0), False),  # 75 degrees aside
        ((0.0, 0.0, -6.0), False),  # three times as far
    ],
)
def test_landmarks_seen_from_elsewhere_are_not_expected(center, alike):
    seen = seen_alike(wall_map(centers=(center,)), np.zeros(3), OPTIONS)
    assert seen.mean() > 0.9 if alike else seen.mean() < 0.1


def features_of(track_map, idx, *, shift=0.0):
    pixels, _ = project(CAMERA, track_map.local_map.points3D[idx])
    return Features(
        keypoints=(pixels + shift).astype(np.float32),
        scores=np.ones(len(idx), np.float32),
        sigmas=np.ones(len(idx), np.float32),
        descriptors=track_map.local_map.descriptors[idx],
    )


def test_features_match_inside_their_windows():
    track_map = wall_map()
    order = np.random.default_rng(4).permutation(60)[:40]
    features = features_of(track_map, order, shift=2.0)
    feature_idx, point_idx, scores = match_expected(
        expect(track_map),
        track_map.local_map,
        features=features,
        descriptors=features.descriptors,
        decode=identity,
        options=OPTIONS,
    )
    assert len(feature_idx) == 40
    np.testing.assert_array_equal(order[feature_idx], point_idx)
    assert np.all(np.diff(scores) <= 0)


def test_features_outside_their_windows_do_not_match():
    track_map = wall_map()
    features = features_of(track_map, np.arange(60), shift=9.0)
    feature_idx, _, _ = match_expected(
        expect(track_map),
        track_map.local_map,
        features=features,
        descriptors=features.descriptors,
        decode=identity,
        options=OPTIONS,
    )
    assert len(feature_idx) == 0


def test_twins_inside_a_window_match_nothing():
    """Two landmarks that look alike, 1 px apart: neither is told from the other."""
    points = wall_points(20)
    points[1] = points[0] + [0.004, 0.0, 0.0]
    landmarks = local_map(points)
    landmarks.descriptors[1] = landmarks.descriptors[0]
    track_map = make_track_map(
        landmarks,
        visible=[landmarks.point3D_ids],
        centers=np.zeros((1, 3)),
        made_at=START,
    )
    features = features_of(track_map, np.arange(20))
    _, point_idx, _ = match_expected(
        expect(track_map),
        landmarks,
        features=features,
        descriptors=features.descriptors,
        decode=identity,
        options=OPTIONS,
    )
    assert set(point_idx.tolist()) == set(range(2, 20))


def test_nothing_matches_nothing():
    track_map = wall_map()
    features = features_of(track_map, np.zeros(0, np.int64))
    feature_idx, point_idx, scores = match_expected(
        expect(track_map),
        track_map.local_map,
        features=features,
        descriptors=features.descriptors,
        decode=identity,
        options=OPTIONS,
    )
    assert len(feature_idx) == len(point_idx) == len(scores) == 0


def test_a_landmark_is_as_similar_as_its_best_descriptor():
    """Three descriptors each, the matching one at another place for each landmark."""
    landmarks = local_map(wall_points(20))
    rng = np.random.default_rng(7)
    rows = rng.normal(size=(60, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    true_row = np.arange(20) * 3 + np.arange(20) % 3
    rows[true_row] = landmarks.descriptors
    several = replace(
        landmarks, descriptors=rows, row_to_point=np.repeat(np.arange(20), 3)
    )
    track_map = make_track_map(
        several, visible=[several.point3D_ids], centers=np.zeros((1, 3)), made_at=START
    )
    pixels, _ = project(CAMERA, several.points3D)
    features = Features(
        keypoints=pixels.astype(np.float32),
        scores=np.ones(20, np.float32),
        sigmas=np.ones(20, np.float32),
        descriptors=landmarks.descriptors,
    )
    feature_idx, point_idx, _ = match_expected(
        expect(track_map),
        several,
        features=features,
        descriptors=features.descriptors,
        decode=identity,
        options=OPTIONS,
    )
    assert sorted(point_idx.tolist()) == list(range(20))
    np.testing.assert_array_equal(feature_idx, point_idx)


# Sightings


def see(tracks, track_map, features, idx):
    fresh = sightings(
        features, track_map.local_map, feature_idx=idx, point_idx=idx, grey=tracks.grey
    )
    return merged(tracks, fresh, OPTIONS)


def test_the_first_sightings_are_averaged_and_later_ones_blended():
    track_map = wall_map(count=20)
    idx = np.arange(20)
    exact = features_of(track_map, idx)
    tracks = see(no_tracks(WALL), track_map, exact, idx)
    assert tracks.num_sightings.tolist() == [1] * 20
    order = np.argsort(tracks.point3D_ids)
    for number in range(2, 40):
        shifted = features_of(track_map, idx, shift=1.0 if number == 2 else 0.0)
        before = tracks.points2D[order].copy()
        tracks = see(tracks, track_map, shifted, idx)
        if number == 2:
            np.testing.assert_allclose(tracks.points2D[order] - before, 0.5, atol=1e-4)
    np.testing.assert_allclose(tracks.points2D[order], exact.keypoints, atol=0.02)
    assert tracks.num_sightings.tolist() == [39] * 20


def test_new_landmarks_join_those_that_are_followed():
    track_map = wall_map(count=20)
    idx = np.arange(20)
    features = features_of(track_map, idx)
    tracks = see(no_tracks(WALL), track_map, features, idx[:5])
    assert tracks.point3D_ids.tolist() == [5, 8, 11, 14, 17]
    tracks = see(tracks, track_map, features, idx[3:8])
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
