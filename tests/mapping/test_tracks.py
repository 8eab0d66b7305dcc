"""Pairs, tracks and landmarks of a small exact scene."""

import numpy as np
import pytest

from edgeloc.features.match import MatchOptions
from edgeloc.geometry.camera import project
from edgeloc.geometry.se3 import exp_so3
from edgeloc.geometry.triangulate import TriangulationOptions
from edgeloc.types import CameraModel, Rigid3
from edgeloc_tools.mapping.landmarks import (
    LandmarkOptions,
    make_landmarks,
    most_representative,
)
from edgeloc_tools.mapping.pairs import covisible_pairs
from edgeloc_tools.mapping.tracks import MappingImage, join_tracks, match_pair

CAMERA = CameraModel(
    model="SIMPLE_PINHOLE", width=640, height=480, params=(500.0, 320.0, 240.0)
)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def make_images(rng, num_images=5, num_points=120, *, depth=False):
    points = rng.uniform([-1.5, -1, 3], [1.5, 1, 6], (num_points, 3))
    looks = unit(rng.normal(size=(num_points, 64)))
    images = []
    for k in range(num_images):
        R = exp_so3([0, 0.04 * k, 0])
        pose = Rigid3(R=R, t=-R @ np.array([0.3 * k, 0.02 * k, 0]))
        in_cam = pose.transform(points)
        order = rng.permutation(num_points)
        descriptors = unit(looks + 0.05 * rng.normal(size=looks.shape))[order]
        images.append(
            MappingImage(
                name=f"{k}.png",
                camera_id="c",
                camera=CAMERA,
                cam_from_world=pose,
                keypoints=project(CAMERA, in_cam)[0][order].astype(np.float32),
                sigmas=np.ones(num_points, np.float32),
                stored=(descriptors * 100).astype(np.int8).view(np.uint8),
                descriptors=descriptors,
                depth=in_cam[order, 2] if depth else np.full(num_points, np.nan),
                depth_sigma=np.full(num_points, 0.01 if depth else np.nan),
            )
        )
    return images, points


OPTIONS = LandmarkOptions(triangulation=TriangulationOptions())
MATCH = MatchOptions(max_ratio=0.9)


def all_pairs(count):
    return np.array([(a, b) for a in range(count) for b in range(a + 1, count)])


def tracks_of(images):
    pairs = all_pairs(len(images))
    matches = [
        match_pair(images[a], images[b], options=MATCH, max_error_px=2.0)
        for a, b in pairs
    ]
    return join_tracks([len(i.keypoints) for i in images], pairs, matches)


def test_a_landmark_is_one_point_with_an_observation_per_image(rng):
    images, points = make_images(rng)
    landmark_map = make_landmarks(images, tracks_of(images), OPTIONS)
    table = landmark_map.landmarks
    assert len(table) == len(points)
    assert np.all(table.num_observations == len(images))
    nearest = np.linalg.norm(table.points3D[:, None] - points[None], axis=2).min(axis=1)
    assert nearest.max() < 1e-3
    for visible in landmark_map.visible:
        assert len(visible) == len(points)
        assert np.all(np.diff(visible) > 0)


def test_matches_off_the_epipolar_line_are_dropped(rng):
    images, _ = make_images(rng, 2)
    moved = images[1].keypoints.copy()
    moved[:10, 1] += 15
    other = MappingImage(
        **{
            **{f: getattr(images[1], f) for f in images[1].__dataclass_fields__},
            "keypoints": moved,
        }
    )
    found, scores = match_pair(images[0], other, options=MATCH, max_error_px=2.0)
    assert len(scores) == len(found)
    assert len(found) == len(moved) - 10
    assert not np.any(found[:, 1] < 10)


def test_an_image_takes_part_once_in_a_track():
    """a0-b0 and a0-b1 would join both keypoints of b; the more distinct one wins."""
    pairs = np.array([[0, 1], [0, 2], [1, 2]])
    matches = [
        (np.array([[0, 0], [0, 1]]), np.array([0.5, 0.9], np.float32)),
        (np.array([[0, 0]]), np.array([0.6], np.float32)),
        (np.array([[0, 0]]), np.array([0.7], np.float32)),
    ]
    track, image, keypoint = join_tracks([1, 2, 1], pairs, matches)
    tracks = {}
    for t, i, k in zip(track.tolist(), image.tolist(), keypoint.tolist(), strict=True):
        tracks.setdefault(t, []).append((i, k))
    # a0-b1 first, then b0-c0; a0-c0 would bring b0 and b1 together.
    assert sorted(tracks.values()) == [[(0, 0), (1, 1)], [(1, 0), (2, 0)]]


def test_every_unmatched_keypoint_is_its_own_track():
    track, image, keypoint = join_tracks([2, 1], np.zeros((0, 2), np.int64), [])
    assert track.tolist() == [0, 1, 2]
    assert list(zip(image, keypoint, strict=True)) == [(0, 0), (0, 1), (1, 0)]


def test_left_out_images_see_nothing_and_add_nothing(rng):
    images, points = make_images(rng, 4)
    left_out = np.array([False, True, False, False])
    landmark_map = make_landmarks(images, tracks_of(images), OPTIONS, left_out=left_out)
    assert len(landmark_map.visible[1]) == 0
    assert len(landmark_map.landmarks) == len(points)
    assert np.all(landmark_map.landmarks.num_observations == 3)


def test_single_views_need_depth(rng):
    images, points = make_images(rng, 1, depth=True)
    tracks = join_tracks([len(points)], np.zeros((0, 2), np.int64), [])
    with_depth = make_landmarks(images, tracks, OPTIONS)
    assert len(with_depth.landmarks) == len(points)
    without = make_landmarks(
        images,
        tracks,
        LandmarkOptions(triangulation=TriangulationOptions(), use_depth=False),
    )
    assert len(without.landmarks) == 0
    assert len(without.visible[0]) == 0


def test_local_map_is_the_union_of_what_images_see(rng):
    images, _ = make_images(rng, 3)
    landmark_map = make_landmarks(images, tracks_of(images), OPTIONS)
    local = landmark_map.local_map([0, 2])
    table = landmark_map.landmarks
    np.testing.assert_array_equal(
        local.point3D_ids,
        np.union1d(landmark_map.visible[0], landmark_map.visible[2]),
    )
    point = 7
    start, end = table.descriptor_offsets[[local.point3D_ids[point], -1]][0], None
    end = table.descriptor_offsets[local.point3D_ids[point] + 1]
    np.testing.assert_array_equal(
        local.descriptors[local.row_to_point == point], table.descriptors[start:end]
    )


def test_no_more_descriptors_than_asked(rng):
    images, _ = make_images(rng, 6)
    options = LandmarkOptions(triangulation=TriangulationOptions(), max_descriptors=2)
    table = make_landmarks(images, tracks_of(images), options).landmarks
    assert np.diff(table.descriptor_offsets).max() == 2
    assert len(table.descriptors) == table.descriptor_offsets[-1]


def test_most_representative_covers_both_appearances(rng):
    day, night = unit(rng.normal(size=(2, 32)))
    rows = unit(np.stack([day] * 5 + [night]) + 0.01 * rng.normal(size=(6, 32)))
    assert most_representative(rows, 1).argmax() < 5
    chosen = most_representative(rows, 2)
    assert chosen.sum() == 2
    assert chosen[5]


@pytest.mark.parametrize("turned", [False, True])
def test_pairs_need_a_common_view(rng, turned):
    descriptors = unit(np.ones((2, 8)))
    R = exp_so3([0, np.pi / 2 if turned else 0.2, 0])
    poses = [Rigid3.identity(), Rigid3(R=R, t=[0.1, 0, 0])]
    pairs = covisible_pairs(poses, descriptors)
    assert pairs.tolist() == ([] if turned else [[0, 1]])


def test_pairs_are_the_similar_and_the_near(rng):
    count = 30
    poses = [Rigid3(R=np.eye(3), t=[-float(k), 0, 0]) for k in range(count)]
    descriptors = unit(rng.normal(size=(count, 64)))
    descriptors[0] = descriptors[29]
    pairs = {
        tuple(p)
        for p in covisible_pairs(poses, descriptors, num_similar=1, num_near=2).tolist()
    }
    assert (0, 29) in pairs
    assert {(k, k + 1) for k in range(count - 1)} <= pairs
    assert len(pairs) < 5 * count
