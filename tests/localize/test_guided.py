"""Landmarks where a pose expects them, and features beside those pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from viewed_wall import CAMERA, START, features_of, local_map, wall_map, wall_points

from edgeloc.geometry.camera import project
from edgeloc.localize.guided import (
    Expected,
    GuidedOptions,
    _inside_windows,
    expected_landmarks,
    make_viewed_map,
    match_expected,
    match_similar,
    seen_alike,
)
from edgeloc.types import Features

OPTIONS = GuidedOptions()


def identity(rows):
    return np.asarray(rows, np.float32)


def expect(viewed, **changes):
    given = {
        "cam_from_world": START,
        "covariance": np.diag([1e-6] * 3 + [1e-6] * 3),
        "rows_px": (0.0, 240.0),
        "followed_ids": np.zeros(0, np.int64),
        "options": OPTIONS,
    }
    return expected_landmarks(viewed, CAMERA, **{**given, **changes})


def match(viewed, features):
    return match_expected(
        expect(viewed),
        viewed.local_map,
        features=features,
        descriptors=features.descriptors,
        decode=identity,
        options=OPTIONS,
    )


def test_landmarks_are_expected_where_they_project():
    viewed = wall_map()
    found = expect(viewed)
    truth, _ = project(CAMERA, viewed.local_map.points3D[found.point_idx])
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
    viewed = wall_map()
    ids = viewed.local_map.point3D_ids
    options = replace(OPTIONS, min_expected=10, max_expected=10)
    found = expect(viewed, followed_ids=ids[50:53], options=options)
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


def test_features_match_inside_their_windows():
    viewed = wall_map()
    order = np.random.default_rng(4).permutation(60)[:40]
    features = features_of(viewed, order, shift=2.0)
    feature_idx, point_idx, scores = match(viewed, features)
    assert len(feature_idx) == 40
    np.testing.assert_array_equal(order[feature_idx], point_idx)
    assert np.all(np.diff(scores) <= 0)


def test_features_outside_their_windows_do_not_match():
    viewed = wall_map()
    features = features_of(viewed, np.arange(60), shift=9.0)
    feature_idx, _, _ = match(viewed, features)
    assert len(feature_idx) == 0


def test_twins_inside_a_window_match_nothing():
    """Two landmarks that look alike, 1 px apart: neither is told from the other."""
    points = wall_points(20)
    points[1] = points[0] + [0.004, 0.0, 0.0]
    landmarks = local_map(points)
    landmarks.descriptors[1] = landmarks.descriptors[0]
    viewed = make_viewed_map(
        landmarks,
        visible=[landmarks.point3D_ids],
        centers=np.zeros((1, 3)),
        made_at=START,
    )
    features = features_of(viewed, np.arange(20))
    _, point_idx, _ = match(viewed, features)
    assert set(point_idx.tolist()) == set(range(2, 20))


def test_nothing_matches_nothing():
    viewed = wall_map()
    features = features_of(viewed, np.zeros(0, np.int64))
    feature_idx, point_idx, scores = match(viewed, features)
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
    viewed = make_viewed_map(
        several, visible=[several.point3D_ids], centers=np.zeros((1, 3)), made_at=START
    )
    pixels, _ = project(CAMERA, several.points3D)
    features = Features(
        keypoints=pixels.astype(np.float32),
        scores=np.ones(20, np.float32),
        sigmas=np.ones(20, np.float32),
        descriptors=landmarks.descriptors,
    )
    feature_idx, point_idx, _ = match(viewed, features)
    assert sorted(point_idx.tolist()) == list(range(20))
    np.testing.assert_array_equal(feature_idx, point_idx)


def test_known_similarities_give_the_same_matches():
    viewed = wall_map(count=40)
    features = features_of(viewed, np.arange(5, 40), shift=1.5)
    rows = np.asarray(features.descriptors, np.float32)
    slow = match(viewed, features)
    fast = match_similar(
        expect(viewed),
        keypoints=features.keypoints,
        similarity=viewed.local_map.descriptors @ rows.T,
        options=OPTIONS,
    )
    assert len(slow[0]) == 35
    for a, b in zip(slow[:2], fast[:2], strict=True):
        np.testing.assert_array_equal(np.sort(a), np.sort(b))


@pytest.mark.parametrize("radius_px", [0.5, 5.0, 60.0])
def test_windows_hold_what_is_near(rng, radius_px):
    keypoints = rng.uniform(-3, 320, (200, 2)).astype(np.float32)
    expected = Expected(
        point_idx=np.arange(50),
        pixels=rng.uniform(-40, 360, (50, 2)),
        radii_px=rng.uniform(radius_px / 2, radius_px, 50),
    )
    distance = np.linalg.norm(expected.pixels[:, None] - keypoints[None], axis=2)
    near = np.nonzero(distance <= expected.radii_px[:, None])
    np.testing.assert_array_equal(_inside_windows(expected, keypoints), near)
