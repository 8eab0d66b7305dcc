"""RELOCALIZE on exact places: clusters, gates, ambiguity and honest causes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeloc.geometry.camera import project
from edgeloc.geometry.pnp import PnpResult, estimate_pose
from edgeloc.geometry.se3 import exp_so3, log_se3
from edgeloc.localize.candidate import Query
from edgeloc.localize.comparison import LandmarkComparison
from edgeloc.localize.fix import FixCalibration
from edgeloc.localize.integrity import (
    IntegrityOptions,
    count_witnesses,
    is_sound,
    median_view_angle_rad,
)
from edgeloc.localize.second_look import (
    Hypothesis,
    Pairs,
    SecondLookOptions,
    expect,
    surprise,
)
from edgeloc.localize.structure import (
    StructureOptions,
    covisibility_clusters,
    relocalize,
)
from edgeloc.tiles.layout import LocalMap
from edgeloc.types import (
    CameraModel,
    Cause,
    Features,
    Matches2D3D,
    PoseStatus,
    RetrievalResult,
    Rigid3,
    Rung,
)

CAMERA = CameraModel(
    model="SIMPLE_PINHOLE", width=640, height=480, params=(500.0, 320.0, 240.0)
)
R = exp_so3([0.1, -0.2, 0.05])
TRUTH = Rigid3(R=R, t=-R @ np.array([0.3, -0.1, 0.2]))
FAR = np.array([80.0, -15.0, 3.0])


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@dataclass
class Place:
    """Landmarks with descriptors, and keyframes that see some of them."""

    points3D: np.ndarray
    descriptors: np.ndarray
    visible: list[np.ndarray]
    centers: np.ndarray

    def local_map(self, keyframe_ids):
        ids = np.unique(np.concatenate([self.visible[k] for k in keyframe_ids]))
        return LocalMap(
            point3D_ids=ids,
            points3D=self.points3D[ids],
            sigmas=np.full(len(ids), 0.002, np.float32),
            num_observations=np.full(len(ids), 3),
            descriptors=self.descriptors[ids],
            row_to_point=np.arange(len(ids)),
        )


def make_place(rng, num_points=160):
    """A place before the true camera; two keyframes see all of it."""
    points = TRUTH.inverse().transform(
        rng.uniform([-2.0, -1.5, 4.0], [2.0, 1.5, 8.0], (num_points, 3))
    )
    everything = np.arange(num_points)
    return Place(
        points,
        unit(rng.normal(size=(num_points, 64))),
        [everything] * 2,
        np.stack([TRUTH.origin_in_a] * 2),
    )


def join(*places):
    offset, visible = 0, []
    for place in places:
        visible += [v + offset for v in place.visible]
        offset += len(place.points3D)
    return Place(
        np.concatenate([p.points3D for p in places]),
        np.concatenate([p.descriptors for p in places]),
        visible,
        np.concatenate([p.centers for p in places]),
    )


def moved(place, offset=FAR, share=1.0):
    """The same place elsewhere, or the first part of it."""
    count = int(share * len(place.points3D))
    visible = [v[v < count] for v in place.visible]
    return Place(
        place.points3D[:count] + offset,
        place.descriptors[:count],
        visible,
        place.centers + offset,
    )


def look_at(rng, place, *, noise_px=0.5, num_wrong=0):
    """What the true camera sees of a place, with `num_wrong` features of no use."""
    pixels, in_front = project(CAMERA, TRUTH.transform(place.points3D))
    assert in_front.all()
    looks = place.descriptors + 0.05 * rng.normal(size=place.descriptors.shape)
    wrong = rng.uniform([0, 0], [640, 480], (num_wrong, 2))
    pixels = np.concatenate([pixels + noise_px * rng.normal(size=pixels.shape), wrong])
    looks = np.concatenate([looks, rng.normal(size=(num_wrong, looks.shape[1]))])
    return query_of(pixels, unit(looks))


def query_of(pixels, descriptors):
    return Query(
        camera=CAMERA,
        features=Features(
            keypoints=pixels.astype(np.float32).reshape(-1, 2),
            scores=np.ones(len(pixels), np.float32),
            sigmas=np.ones(len(pixels), np.float32),
            descriptors=descriptors,
        ),
        descriptors=descriptors,
        global_descriptor=unit(np.ones(8)),
    )


def localize(query, place, *, order=None, scale=1.0, options=None):
    ids = np.arange(len(place.visible)) if order is None else np.asarray(order, int)
    return relocalize(
        query,
        RetrievalResult(
            keyframe_ids=ids.astype(np.int64),
            scores=np.linspace(0.9, 0.3, len(ids)).astype(np.float32),
        ),
        visible=[place.visible[k] for k in ids],
        centers=place.centers[ids],
        load_local_map=place.local_map,
        comparison=LandmarkComparison(query.descriptors, lambda stored: stored),
        calibration=FixCalibration(scale=scale),
        options=options or StructureOptions(),
    )


def error_of(candidate, truth=TRUTH):
    xi = log_se3(truth @ candidate.cam_from_world.inverse())
    return float(np.linalg.norm(xi[:3])), float(np.linalg.norm(xi[3:]))


# Clusters


def sees(*ranges):
    return [np.arange(a, b) for a, b in ranges]


def test_keyframes_that_share_landmarks_in_a_chain_are_one_cluster():
    visible = sees((0, 30), (100, 130), (20, 60), (50, 90), (115, 140))
    assert covisibility_clusters(visible, min_shared=10) == [[0, 2, 3], [1, 4]]


def test_one_landmark_less_than_asked_for_is_no_bond():
    visible = sees((0, 30), (20, 50))
    assert covisibility_clusters(visible, min_shared=10) == [[0, 1]]
    assert covisibility_clusters(visible, min_shared=11) == [[0], [1]]


def test_the_largest_cluster_comes_first_and_equals_in_retrieval_order():
    visible = sees((0, 9), (50, 70), (90, 99), (55, 75))
    assert covisibility_clusters(visible, min_shared=5) == [[1, 3], [0], [2]]


def test_no_keyframes_make_no_clusters():
    assert covisibility_clusters([], min_shared=10) == []


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), max_size=9),
    st.integers(1, 12),
)
def test_clusters_divide_the_keyframes_and_share_little(ranges, min_shared):
    """Every keyframe is in one cluster; those of different clusters are no pairs."""
    visible = [np.arange(start, start + length) for start, length in ranges]
    clusters = covisibility_clusters(visible, min_shared=min_shared)
    assert sorted(k for cluster in clusters for k in cluster) == [*range(len(visible))]
    assert [len(c) for c in clusters] == sorted(map(len, clusters), reverse=True)
    for number, cluster in enumerate(clusters):
        for other in clusters[number + 1 :]:
            for a in cluster:
                for b in other:
                    shared = np.intersect1d(visible[a], visible[b])
                    assert len(shared) < min_shared


# Witnesses and gates


def test_witnesses_are_the_smaller_of_cells_and_landmarks():
    grid = np.stack(np.meshgrid(np.arange(5), np.arange(4)), -1).reshape(-1, 2) * 10.0
    assert count_witnesses(grid, np.arange(20), cell_px=10.0) == 20
    assert count_witnesses(grid, np.arange(20) // 5, cell_px=10.0) == 4
    assert count_witnesses(grid * 0.2, np.arange(20), cell_px=10.0) == 1
    assert count_witnesses(np.zeros((0, 2)), np.zeros(0, int), cell_px=10.0) == 0


@dataclass
class Evidence:
    """A pose with much to say for it; the tests take parts of that away."""

    result: PnpResult
    matches: Matches2D3D

    def is_sound(self):
        return is_sound(self.result, self.matches, CAMERA, IntegrityOptions())


def make_evidence(rng, num_inliers, num_matches):
    in_cam = rng.uniform([-2.0, -1.5, 4.0], [2.0, 1.5, 8.0], (num_matches, 3))
    points2D, _ = project(CAMERA, in_cam)
    return Evidence(
        PnpResult(
            cam_from_world=TRUTH,
            covariance=np.diag([1e-6] * 3 + [1e-5] * 3),
            inlier_mask=np.arange(num_matches) < num_inliers,
            reproj_rmse_px=0.7,
            backend="opencv",
        ),
        Matches2D3D(
            points2D=points2D,
            points3D=TRUTH.inverse().transform(in_cam),
            point3D_ids=np.arange(num_matches),
            scores=np.ones(num_matches, np.float32),
        ),
    )


@pytest.fixture
def evidence(rng):
    return make_evidence(rng, 120, 300)


def test_a_well_supported_pose_is_sound(evidence):
    assert evidence.is_sound()


@pytest.mark.parametrize("num_inliers", [0, 1, 2, 5])
def test_few_inliers_are_not_sound(evidence, num_inliers):
    few = np.arange(300) < num_inliers
    evidence.result = replace(evidence.result, inlier_mask=few)
    assert not evidence.is_sound()


def test_inliers_on_one_spot_are_not_sound(evidence):
    middle = np.array([320.0, 240.0])
    near = middle + 0.005 * (evidence.matches.points2D - middle)
    evidence.matches = replace(evidence.matches, points2D=near)
    assert not evidence.is_sound()


def test_inliers_on_a_line_are_not_sound(evidence):
    line = evidence.matches.points2D * [1.0, 0.01]
    evidence.matches = replace(evidence.matches, points2D=line)
    assert not evidence.is_sound()


def test_many_features_on_a_few_landmarks_are_not_sound(evidence):
    few = evidence.matches.point3D_ids % 5
    evidence.matches = replace(evidence.matches, point3D_ids=few)
    assert not evidence.is_sound()


def test_a_small_share_of_the_matches_is_not_sound(rng):
    """30 of 3000 matches agree on some pose by chance, 30 of 40 do not."""
    assert not make_evidence(rng, 30, 3000).is_sound()
    assert make_evidence(rng, 30, 40).is_sound()


def test_a_pose_that_does_not_know_where_it_is_is_not_sound(evidence):
    """1.7 m of standard deviation before landmarks 4 to 8 m away."""
    wide = np.diag([1e-6] * 3 + [1.0] * 3)
    evidence.result = replace(evidence.result, covariance=wide)
    assert not evidence.is_sound()


# The whole


@pytest.mark.parametrize("num_wrong", [0, 400])
def test_the_pose_is_found_among_wrong_features(rng, num_wrong):
    place = make_place(rng)
    found = localize(look_at(rng, place, num_wrong=num_wrong), place)
    assert (found.status, found.rung, found.cause) == (
        PoseStatus.LOCALIZED,
        Rung.RELOCALIZE,
        Cause.NONE,
    )
    rotation_rad, position_m = error_of(found)
    assert rotation_rad < 2e-3
    assert position_m < 0.015
    assert found.num_inliers > 140
    assert 0.3 < found.reproj_rmse_px < 1.5
    wrong = found.matches.points2D[~found.inlier_mask]
    assert len(wrong) <= max(30, num_wrong)


def test_equal_frames_get_equal_poses(rng):
    place = make_place(rng)
    query = look_at(rng, place, num_wrong=300)
    a, b = localize(query, place), localize(query, place)
    assert np.array_equal(a.cam_from_world.t, b.cam_from_world.t)
    assert np.array_equal(a.covariance, b.covariance)


def test_the_covariance_is_scaled_as_the_site_learned(rng):
    place = make_place(rng)
    query = look_at(rng, place)
    plain, scaled = localize(query, place), localize(query, place, scale=9.0)
    np.testing.assert_allclose(scaled.covariance, 9.0 * plain.covariance)
    assert np.array_equal(scaled.cam_from_world.t, plain.cam_from_world.t)


def test_a_scale_does_not_decide_what_is_sound(rng):
    place = make_place(rng)
    found = localize(look_at(rng, place), place, scale=1e5)
    assert found.status is PoseStatus.LOCALIZED


def test_few_features_are_the_cause(rng):
    place = make_place(rng)
    query = query_of(np.zeros((3, 2)), place.descriptors[:3])
    found = localize(query, place)
    assert (found.status, found.cause) == (PoseStatus.LOST, Cause.FEW_FEATURES)
    assert found.cam_from_world is None


def test_features_of_another_place_are_few_matches(rng):
    found = localize(look_at(rng, make_place(rng)), make_place(rng))
    assert (found.status, found.cause) == (PoseStatus.LOST, Cause.FEW_MATCHES)


def test_no_keyframes_are_few_matches(rng):
    place = make_place(rng)
    found = localize(look_at(rng, place), place, order=[])
    assert (found.status, found.cause) == (PoseStatus.LOST, Cause.FEW_MATCHES)


def test_matches_that_agree_on_nothing_are_few_inliers(rng):
    """The descriptors fit and the landmarks have been thrown about."""
    place = make_place(rng)
    query = look_at(rng, place)
    place.points3D = rng.permutation(place.points3D)
    found = localize(query, place)
    assert (found.status, found.cause) == (PoseStatus.LOST, Cause.FEW_INLIERS)
    assert found.num_matches > 100


def test_the_right_cluster_need_not_be_the_largest(rng):
    """More keyframes of another place were retrieved, and before the right ones."""
    there, elsewhere = make_place(rng), make_place(rng)
    elsewhere.visible = elsewhere.visible * 3
    elsewhere.centers = np.concatenate([elsewhere.centers] * 3)
    place = join(elsewhere, there)
    found = localize(look_at(rng, there), place)
    assert found.status is PoseStatus.LOCALIZED
    assert error_of(found)[1] < 0.015


# Ambiguity


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 3, 0, 1], [3, 0, 2, 1]])
def test_two_copies_of_a_place_far_apart_are_ambiguous(rng, order):
    """Nothing in the picture tells them apart: no pose is better than a wrong one."""
    here = make_place(rng)
    place = join(here, moved(here))
    found = localize(look_at(rng, here), place, order=order)
    assert (found.status, found.cause) == (PoseStatus.LOST, Cause.AMBIGUOUS)
    assert found.cam_from_world is None
    assert found.num_inliers > 100


def test_a_copy_that_is_turned_on_the_spot_is_ambiguous(rng):
    here = make_place(rng)
    center = here.points3D.mean(axis=0)
    there = moved(here, offset=0.0)
    there.points3D = (there.points3D - center) @ exp_so3([0.0, 0.6, 0.0]).T + center
    found = localize(look_at(rng, here), join(here, there))
    assert (found.status, found.cause) == (PoseStatus.LOST, Cause.AMBIGUOUS)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 3, 0, 1]])
def test_a_copy_of_a_small_part_is_not_ambiguous(rng, order):
    """A quarter of the place stands elsewhere, too: like equal doors in two rooms."""
    here = make_place(rng)
    place = join(here, moved(here, share=0.25))
    found = localize(look_at(rng, here), place, order=order)
    assert found.status is PoseStatus.LOCALIZED
    assert error_of(found)[1] < 0.015


def test_two_weak_copies_do_not_spoil_a_strong_pose(rng):
    """Two places that share a fifth contradict each other, not the true one."""
    here = make_place(rng)
    weak = [moved(here, FAR * k, share=0.2) for k in (1, 2)]
    place = join(*weak, here)
    found = localize(look_at(rng, here), place)
    assert found.status is PoseStatus.LOCALIZED
    assert error_of(found)[1] < 0.015


def test_clusters_that_agree_are_not_ambiguous(rng):
    """Two halves of one place that no keyframe sees together."""
    place = make_place(rng)
    place.visible = [np.arange(0, 80), np.arange(80, 160)]
    found = localize(look_at(rng, place), place)
    assert found.status is PoseStatus.LOCALIZED
    assert error_of(found)[1] < 0.02


def test_a_view_from_behind_is_refused(rng):
    """The same evidence, but every keyframe saw the place from the other side."""
    place = make_place(rng)
    query = look_at(rng, place)
    assert localize(query, place).status is PoseStatus.LOCALIZED
    middle = place.points3D.mean(axis=0)
    place.centers = 2 * middle - place.centers
    candidate = localize(query, place)
    assert candidate.status is PoseStatus.LOST
    assert candidate.cause is Cause.FEW_INLIERS


def test_view_angle_is_the_median_to_the_best_keyframe():
    matches = Matches2D3D(
        points2D=np.zeros((3, 2)),
        points3D=np.array([[0.0, 0, 0], [0, 0, 0], [9, 9, 9]]),
        point3D_ids=np.array([4, 7, 9]),
        scores=np.ones(3, np.float32),
    )
    angle = median_view_angle_rad(
        np.array([1.0, 0, 0]),
        matches,
        visible=[np.array([4, 7]), np.array([7, 8])],
        centers=np.array([[0.0, 2, 0], [3, 3, 0]]),
    )
    # 90 degrees for the first landmark, 45 for the second, 180 for the unseen third.
    assert angle == pytest.approx(np.pi / 2)


def test_things_that_look_alike_are_told_apart_at_a_second_look(rng):
    """A landmark with a twin in looks has no first match, but one at its pixel."""
    place = make_place(rng)
    place.descriptors[1:120:2] = place.descriptors[0:120:2]
    query = look_at(rng, place)
    once = localize(query, place, options=StructureOptions(second_look=None))
    twice = localize(query, place)
    assert once.status is twice.status is PoseStatus.LOCALIZED
    assert once.num_inliers < 100 < 140 < twice.num_inliers
    assert not twice.confirmed
    assert max(error_of(twice)) < 0.01
    assert np.trace(twice.covariance) < np.trace(once.covariance)


def test_few_matches_are_enough_where_other_landmarks_confirm_them(rng):
    """Ten landmarks look like nothing else; the rest is where their pose puts it."""
    place = make_place(rng)
    place.descriptors[1:150:2] = place.descriptors[0:150:2]
    query = look_at(rng, place)
    alone = localize(query, place, options=StructureOptions(second_look=None))
    assert alone.status is PoseStatus.LOST
    confirmed = localize(query, place)
    assert confirmed.status is PoseStatus.LOCALIZED
    assert confirmed.num_inliers > 90
    assert confirmed.confirmed
    assert max(error_of(confirmed)) < 0.01


def test_a_few_things_that_were_carried_off_confirm_no_pose(rng):
    """Twelve landmarks agree on a pose; others are in the picture, but elsewhere."""
    place = make_place(rng)
    query = look_at(rng, place)
    pixels = query.features.keypoints[:40].copy()
    pixels[12:] = rng.uniform([0, 0], [640, 480], (28, 2))
    answer = localize(query_of(pixels, query.descriptors[:40]), place)
    assert answer.status is PoseStatus.LOST
    assert answer.cause is Cause.FEW_INLIERS
    assert 10 <= answer.inlier_mask.sum() <= 16


def test_chance_is_no_surprise(rng):
    """What is found of landmarks that had no part in a pose, beside chance."""
    place = make_place(rng)
    query = look_at(rng, place)
    few = np.arange(12)

    def surprise_of(query):
        local_map = place.local_map([0])
        pairs = Pairs(query_idx=few, point_idx=few, scores=np.ones(12, np.float32))
        matches, pixel_sigmas, point_sigmas = pairs.matches(query, local_map)
        result = estimate_pose(
            matches, CAMERA, point_sigmas=point_sigmas, pixel_sigmas=pixel_sigmas
        )
        found = Hypothesis(
            result=result,
            matches=matches,
            point_sigmas=point_sigmas,
            pixel_sigmas=pixel_sigmas,
            pairs=pairs,
            similarity=place.descriptors @ query.descriptors.T,
            local_map=local_map,
            visible=place.visible,
            centers=place.centers,
        )
        sight = expect(found, query, SecondLookOptions())
        return surprise(found, query, sight, cell_px=10.0)

    assert surprise_of(query) > 50
    pixels = query.features.keypoints.copy()
    pixels[12:] = rng.uniform([0, 0], [640, 480], (len(pixels) - 12, 2))
    assert abs(surprise_of(query_of(pixels, query.descriptors))) < 4
