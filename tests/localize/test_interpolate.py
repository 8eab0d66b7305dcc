"""Pose interpolation between retrieved keyframes."""

from dataclasses import replace

import numpy as np
import pytest

from edgeloc.features.keyframe_index import KeyframeIndex, global_coding
from edgeloc.geometry.se3 import exp_so3, log_se3, rotation_angle_rad
from edgeloc.localize.coarse import CoarseCalibration, SpreadByScore
from edgeloc.localize.interpolate import InterpolateOptions, interpolate_pose
from edgeloc.localize.near_keyframes import keyframe_spacing, nearest_keyframes
from edgeloc.localize.pose_weights import (
    barycentric_weights,
    cosine_weights,
    equal_weights,
    pose_mode,
    view_kernel,
)
from edgeloc.localize.rerank import Agreement, RerankOptions
from edgeloc.localize.view_motion import ViewMotion
from edgeloc.tiles.layout import KeyframeTable, PoseArrays
from edgeloc.types import PoseStatus, Rigid3, Rung

CALIBRATION = CoarseCalibration(
    min_score=0.2, position_sigma=0.1, rotation_sigma_rad=0.05, keyframe_spacing=0.2
)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def table(centers, descriptors, rotations=None):
    centers = np.asarray(centers, float)
    if rotations is None:
        rotations = np.repeat(np.eye(3)[None], len(centers), axis=0)
    return KeyframeTable(
        keyframe_ids=np.arange(10, 10 + len(centers)),
        camera_ids=("c",) * len(centers),
        poses=PoseArrays(R=rotations, t=-np.einsum("kij,kj->ki", rotations, centers)),
        global_codes=descriptors,
    )


def index_of(keyframes):
    return KeyframeIndex(
        keyframe_ids=keyframes.keyframe_ids,
        codes=keyframes.global_codes,
        coding=global_coding("float16", None),
    )


def agreement(support, image_from_query=None, log_zooms=None):
    count = len(support)
    return Agreement(
        support=np.asarray(support, float),
        image_from_query=np.repeat(np.eye(3)[None], count, axis=0)
        if image_from_query is None
        else image_from_query,
        log_zooms=np.zeros(count) if log_zooms is None else np.asarray(log_zooms),
    )


def retrieve(query, keyframes):
    return index_of(keyframes).search(query, k=len(keyframes))


def test_equal_weights():
    np.testing.assert_allclose(equal_weights(np.zeros((4, 8), np.float32)), 0.25)


def test_barycentric_weights_find_the_mixture(rng):
    """A query made as 0.7 a + 0.3 b gets those weights as the ridge goes to zero."""
    d = unit(rng.normal(size=(2, 64)))
    query = (0.7 * d[0] + 0.3 * d[1]).astype(np.float32)
    weights = barycentric_weights(query, d, ridge=1e-9)
    np.testing.assert_allclose(weights, [0.7, 0.3], atol=1e-5)


def test_barycentric_weights_minimise_their_objective(rng):
    d = unit(rng.normal(size=(3, 16)) + 1.0)
    query = unit(d.sum(axis=0) + 0.1 * rng.normal(size=16))
    ridge = 0.1

    def objective(w):
        return np.sum((query - w @ d) ** 2) + ridge * np.sum((w - 1 / 3) ** 2)

    best = barycentric_weights(query, d, ridge=ridge)
    assert best.sum() == pytest.approx(1.0)
    for _ in range(50):
        step = rng.normal(size=3) * 0.05
        other = best + step - step.mean()
        assert objective(other) >= objective(best) - 1e-9


def test_negative_barycentric_weights_are_clamped(rng):
    d = unit(rng.normal(size=(3, 8)) * 0.1 + np.eye(3, 8))
    query = unit(d[0] + 0.9 * (d[0] - d[1]))
    weights = barycentric_weights(query, d, ridge=1e-6)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1.0)


def test_barycentric_weights_are_drawn_to_the_prior(rng):
    d = unit(rng.normal(size=(3, 32)))
    prior = np.array([0.7, 0.2, 0.1])
    weights = barycentric_weights(d[2], d, ridge=1e6, prior=prior)
    np.testing.assert_allclose(weights, prior, atol=1e-5)
    free = barycentric_weights(d[2], d, ridge=1e-9, prior=prior)
    np.testing.assert_allclose(free, [0, 0, 1], atol=1e-5)


def test_cosine_weights_follow_the_formula():
    weights = cosine_weights(np.array([1.0, 0.6, -1.0], np.float32), alpha=8)
    expected = np.array([1.0, 0.6**8, 0.0])
    np.testing.assert_allclose(weights, expected / expected.sum(), atol=1e-6)


@pytest.mark.parametrize("weighting", ["ewb", "bdi", "csi"])
def test_a_pose_halfway_is_found_halfway(weighting, rng):
    d = unit(rng.normal(size=(2, 64)))
    rotations = np.stack([exp_so3([0, 0.2, 0]), exp_so3([0, -0.2, 0])])
    keyframes = table([[0, 0, 0], [0.4, 0, 0]], d, rotations)
    query = unit(d[0] + d[1])
    candidate = interpolate_pose(
        query=query,
        retrieved=retrieve(query, keyframes),
        keyframes=keyframes,
        index=index_of(keyframes),
        calibration=CALIBRATION,
        options=InterpolateOptions(weighting=weighting),
    )
    assert candidate.status is PoseStatus.COARSE
    assert candidate.rung is Rung.INTERPOLATE
    pose = candidate.cam_from_world
    np.testing.assert_allclose(pose.origin_in_a, [0.2, 0, 0], atol=1e-3)
    assert rotation_angle_rad(pose.R) < 1e-3


def test_an_outlier_keyframe_is_dropped(rng):
    base = unit(rng.normal(size=64))
    d = unit(base + 0.2 * rng.normal(size=(3, 64)))
    d[1] = unit(base + 0.1 * rng.normal(size=64))
    keyframes = table([[0, 0, 0], [50, 0, 0], [0.2, 0, 0]], d)
    candidate = interpolate_pose(
        query=base,
        retrieved=retrieve(base, keyframes),
        keyframes=keyframes,
        index=index_of(keyframes),
        calibration=CALIBRATION,
        options=InterpolateOptions(weighting="ewb"),
    )
    np.testing.assert_allclose(
        candidate.cam_from_world.origin_in_a, [0.1, 0, 0], atol=1e-6
    )


def test_nothing_alike_is_lost(rng):
    keyframes = table([[0, 0, 0], [1, 0, 0]], unit(rng.normal(size=(2, 512))))
    query = unit(rng.normal(size=512))
    candidate = interpolate_pose(
        query=query,
        retrieved=retrieve(query, keyframes),
        keyframes=keyframes,
        index=index_of(keyframes),
        calibration=CALIBRATION,
        options=InterpolateOptions(),
    )
    assert candidate.status is PoseStatus.LOST
    assert candidate.cam_from_world is None


def test_covariance_holds_spread_and_calibration_in_the_camera_frame():
    """Keyframes spread along world x; the camera looks along world x."""
    d = unit(np.ones((2, 4)))
    R = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
    keyframes = table([[0, 0, 0], [0.6, 0, 0]], d, np.stack([R, R]))
    candidate = interpolate_pose(
        query=d[0],
        retrieved=retrieve(d[0], keyframes),
        keyframes=keyframes,
        index=index_of(keyframes),
        calibration=CALIBRATION,
        options=InterpolateOptions(weighting="ewb"),
    )
    expected = np.diag([0.05**2] * 3 + [0.01, 0.01, 0.01 + 0.3**2])
    np.testing.assert_allclose(candidate.covariance, expected, atol=1e-9)
    # The same as the definition: true = Exp(xi) @ estimate at either keyframe.
    true = Rigid3(R=R, t=keyframes.t[1])
    xi = log_se3(true @ candidate.cam_from_world.inverse())
    assert abs(xi[5]) == pytest.approx(0.3, rel=1e-4)


def test_the_mode_is_where_most_weight_lies():
    centers = np.array([[9.0, 0, 0], [0, 0, 0], [0.1, 0, 0]])
    rotations = np.repeat(np.eye(3)[None], 3, axis=0)
    weights = np.array([0.5, 0.4, 0.4])
    near = pose_mode(centers, rotations, weights, bandwidth=(1.0, 0.5))
    # Halfway between both: a twentieth of a bandwidth from each.
    np.testing.assert_allclose(near, [0, 0.99875, 0.99875], atol=1e-5)
    rotations = rotations.copy()
    rotations[2] = exp_so3([0, 1.5, 0])
    near = pose_mode(centers, rotations, weights, bandwidth=(1.0, 0.5))
    np.testing.assert_allclose(near, [1, 0, 0], atol=0.02)


def test_a_lonely_pose_is_its_own_mode():
    near = pose_mode(np.ones((1, 3)), np.eye(3)[None], np.ones(1), bandwidth=(1, 1))
    assert near.tolist() == [1.0]


def test_a_wrong_place_does_not_drag_the_mean(rng):
    """However far it is: the answer stays the same to the last bit but a few."""
    base = unit(rng.normal(size=64))
    d = unit(base + 0.05 * rng.normal(size=(4, 64)))
    answers = []
    for far in (20.0, 2000.0):
        keyframes = table([[0, 0, 0], [0.3, 0, 0], [far, 0, 0], [0.1, 0.2, 0]], d)
        candidate = interpolate_pose(
            query=base,
            retrieved=retrieve(base, keyframes),
            keyframes=keyframes,
            index=index_of(keyframes),
            calibration=CALIBRATION,
            options=InterpolateOptions(),
        )
        answers.append(candidate.cam_from_world.origin_in_a)
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-9)
    assert np.linalg.norm(answers[0]) < 0.4


def test_support_overrules_similarity(rng):
    """Of two places that look alike, the one whose features agree."""
    d = unit(rng.normal(size=64) + 0.05 * rng.normal(size=(4, 64)))
    keyframes = table([[0, 0, 0], [0.2, 0, 0], [70, 0, 0], [70.2, 0, 0]], d)
    retrieved = retrieve(d[0], keyframes)
    support = np.where(keyframes.index_of(retrieved.keyframe_ids) >= 2, 60.0, 0.0)
    candidate = interpolate_pose(
        query=d[0],
        retrieved=retrieved,
        keyframes=keyframes,
        index=index_of(keyframes),
        calibration=CALIBRATION,
        options=InterpolateOptions(
            rerank=RerankOptions(score_weight=5.0), bdi_ridge=10.0
        ),
        agreement=agreement(support),
    )
    assert candidate.cam_from_world.origin_in_a[0] == pytest.approx(70.1, abs=0.1)


def test_pictures_tell_how_a_query_is_turned_and_how_far_ahead_it_is(rng):
    """One keyframe, looking along world x, and a query 0.4 m ahead, turned by 0.3."""
    d = unit(rng.normal(size=(1, 16)))
    R = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
    keyframes = table([[1.0, 2, 3]], d, R[None])
    query_from_keyframe = exp_so3([0.0, 0.3, 0.1])
    seen = agreement([30.0], query_from_keyframe.T[None], [-0.2])
    answers = {}
    for name, support in (("sure", 30.0), ("unsure", 4.0)):
        answers[name] = interpolate_pose(
            query=d[0],
            retrieved=retrieve(d[0], keyframes),
            keyframes=keyframes,
            index=index_of(keyframes),
            calibration=CALIBRATION,
            options=InterpolateOptions(
                motion=ViewMotion(roll=1.0, turn=1.0, depth=2.0)
            ),
            agreement=replace(seen, support=np.array([support])),
        ).cam_from_world
    sure, unsure = answers["sure"], answers["unsure"]
    np.testing.assert_allclose(sure.origin_in_a, [1.4, 2, 3], atol=1e-9)
    np.testing.assert_allclose(sure.R, query_from_keyframe @ R, atol=1e-9)
    np.testing.assert_allclose(unsure.origin_in_a, [1.0, 2, 3], atol=1e-9)
    np.testing.assert_allclose(unsure.R, R, atol=1e-9)


def test_turns_that_are_not_believed_make_less_sure(rng):
    """Half of a roll of 0.8 rad; the calibration is that of the support."""
    d = unit(rng.normal(size=(1, 16)))
    keyframes = table([[0.0, 0, 0]], d)
    rolled = exp_so3([0, 0, 0.8])[None]
    calibration = replace(
        CALIBRATION,
        spread=SpreadByScore(middle=np.log1p(30.0), position_slope=1.0),
    )
    found = {
        support: interpolate_pose(
            query=d[0],
            retrieved=retrieve(d[0], keyframes),
            keyframes=keyframes,
            index=index_of(keyframes),
            calibration=calibration,
            options=InterpolateOptions(motion=ViewMotion(roll=0.5)),
            agreement=agreement([support], rolled),
        )
        for support in (30.0, 4.0)
    }
    sigmas = np.sqrt(np.diag(found[30.0].covariance))
    np.testing.assert_allclose(sigmas[:3], np.hypot(0.05, 0.4 / np.sqrt(3)))
    np.testing.assert_allclose(sigmas[3:], 0.1)
    sigmas = np.sqrt(np.diag(found[4.0].covariance))
    np.testing.assert_allclose(sigmas[:3], 0.05)
    np.testing.assert_allclose(sigmas[3:], 0.1 * 31 / 5)


def test_cameras_that_rolled_are_near():
    R = np.stack([np.eye(3), exp_so3([0, 0, 2.0]), exp_so3([0.5, 0, 0])])
    views = np.zeros((3, 3)), R
    near = view_kernel(views, views, bandwidth=(1.0, 0.5))
    assert near[0, 1] == pytest.approx(1.0)
    assert near[0, 2] == pytest.approx(np.exp(-0.5))
    aside = np.array([[2.0, 0, 0]]), R[:1]
    near = view_kernel(views, aside, bandwidth=(1.0, 0.5))
    assert near.shape == (3, 1)
    assert near[0, 0] == pytest.approx(np.exp(-2.0))


def test_less_similar_frames_are_less_sure(rng):
    calibration = CoarseCalibration(
        min_score=0.1,
        position_sigma=0.1,
        rotation_sigma_rad=0.05,
        keyframe_spacing=0.2,
        spread=SpreadByScore(middle=0.8, position_slope=2.0, rotation_slope=1.0),
    )
    assert calibration.sigmas(0.8) == pytest.approx((0.1, 0.05))
    assert calibration.sigmas(0.6) == pytest.approx(
        (0.1 * np.exp(0.4), 0.05 * np.exp(0.2))
    )
    # Never by more than ten times, either way.
    assert calibration.sigmas(-5.0) == pytest.approx((1.0, 0.5))
    assert calibration.sigmas(9.0)[0] == pytest.approx(0.01)
    again = CoarseCalibration.from_arrays(calibration.to_arrays())
    assert again.spread.middle == pytest.approx(0.8)
    assert again.sigmas(0.6) == pytest.approx(calibration.sigmas(0.6))


def test_a_wrong_spread_is_refused():
    arrays = dict(CALIBRATION.to_arrays())
    arrays["coarse_spread"] = np.array([0.5, -1.0, 0.0], np.float32)
    with pytest.raises(ValueError, match="slopes must be finite and >= 0"):
        CoarseCalibration.from_arrays(arrays)
    arrays["coarse_spread"] = np.zeros(2, np.float32)
    with pytest.raises(ValueError, match=r"shape \(2,\), expected \(3,\)"):
        CoarseCalibration.from_arrays(arrays)
    del arrays["coarse_spread"]
    assert CoarseCalibration.from_arrays(arrays).spread == SpreadByScore()


@pytest.mark.parametrize("k", [1, 3, 300, 5000])
def test_nearest_keyframes_of_many_are_those_of_a_full_sort(k):
    rng = np.random.default_rng(4)
    # On a lattice, so that many are equally far; every second one looks back.
    centers = rng.integers(0, 12, (5000, 3)).astype(float)
    ways = np.stack([np.eye(3), np.diag([-1.0, 1.0, -1.0])])
    rotations = ways[rng.integers(0, 2, 5000)]
    keyframes = table(centers, np.zeros((5000, 2)), rotations)
    pose = Rigid3(R=np.eye(3), t=[-5.0, -6.0, -5.0])
    distance = np.sum((centers - [5.0, 6.0, 5.0]) ** 2, axis=1)
    order = np.argsort(distance, kind="stable")
    expected = order[rotations[order, 2, 2] > 0.5][:k]
    found = nearest_keyframes(keyframes, pose, k=k)
    np.testing.assert_array_equal(found, 10 + expected)


def test_nearest_keyframes_look_the_same_way():
    keyframes = table(
        [[0, 0, 0], [0.1, 0, 0], [5, 0, 0]],
        unit(np.ones((3, 4))),
        np.stack([np.eye(3), exp_so3([0, np.pi - 0.01, 0]), np.eye(3)]),
    )
    near = nearest_keyframes(keyframes, Rigid3.identity(), k=2)
    assert near.tolist() == [10, 12]


def test_spacing_is_the_median_nearest_distance():
    assert keyframe_spacing(np.array([[0.0, 0, 0], [1, 0, 0], [3, 0, 0]])) == 1.0
    assert keyframe_spacing(np.zeros((1, 3))) == 0.0


def test_calibration_round_trips_and_is_checked():
    arrays = CALIBRATION.to_arrays()
    again = CoarseCalibration.from_arrays(arrays)
    assert again.position_sigma == pytest.approx(0.1)
    # Sites of before say nothing of checked keyframes.
    assert CoarseCalibration.from_arrays(arrays, checked=True) == again
    other = replace(CALIBRATION, position_sigma=0.01)
    arrays = {**arrays, **other.to_arrays(checked=True)}
    assert CoarseCalibration.from_arrays(arrays) == again
    checked = CoarseCalibration.from_arrays(arrays, checked=True)
    assert checked.position_sigma == pytest.approx(0.01)
    with pytest.raises(ValueError, match="no calibration of 4 numbers"):
        CoarseCalibration.from_arrays({})


@pytest.mark.parametrize(
    "options",
    [
        InterpolateOptions(),
        InterpolateOptions(num_keyframes=1, rerank=None),
        InterpolateOptions(weighting="csi", bandwidth_spacings=4.0).weighed(40.0),
        InterpolateOptions(motion=ViewMotion(roll=0.75, turn=0.5, depth=2.5)),
    ],
)
def test_a_site_stores_what_is_chosen(options):
    again = InterpolateOptions.from_arrays(options.to_arrays())
    if options.rerank is not None:
        assert again == options
    else:
        assert (again.num_keyframes, again.rerank) == (1, None)
    assert str(again) == str(options)


def test_a_site_without_settings_has_the_defaults():
    assert InterpolateOptions.from_arrays({}) == InterpolateOptions()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 5, 8], "not 4 finite numbers"),
        ([1, 5, np.nan, 20], "not 4 finite numbers"),
        ([3, 5, 8, 20], "there is no weighting 3"),
        ([0.5, 5, 8, 20], "there is no weighting 0.5"),
        ([1, 0, 8, 20], "num_keyframes=0 must be >= 1"),
        ([1, 5, -8, 20], "bandwidth_spacings -8.0 must be > 0"),
        ([1, 5, 8, -2], "score weight -2 must be >= 0"),
    ],
)
def test_wrong_settings_of_a_site_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        InterpolateOptions.from_arrays({"interpolate": np.array(values, np.float32)})


@pytest.mark.parametrize(
    ("motion", "message"),
    [
        ([0.5, 0.5], r"view_motion has shape \(2,\), expected \(3,\)"),
        ([1.5, 0.5, 1.0], r"roll 1.5 must be in \[0, 1\]"),
        ([0.5, np.nan, 1.0], r"turn nan must be in \[0, 1\]"),
        ([0.5, 0.5, -1.0], "depth -1.0 must be finite and >= 0"),
    ],
)
def test_a_wrong_motion_of_a_site_is_refused(motion, message):
    arrays = dict(InterpolateOptions().to_arrays())
    arrays["view_motion"] = np.array(motion, np.float32)
    with pytest.raises(ValueError, match=message):
        InterpolateOptions.from_arrays(arrays)


def test_settings_are_told_to_people():
    assert str(InterpolateOptions()) == (
        "barycentric of 5, bandwidth 16 spacings, re-ranked with score weight 20"
    )
    assert str(InterpolateOptions(num_keyframes=1, rerank=None)) == (
        "the best keyframe, not re-ranked"
    )
    moved = InterpolateOptions(motion=ViewMotion(roll=0.75, turn=0.5, depth=2.5))
    assert str(moved).endswith(
        ", moved by 0.75 of the roll, 0.50 of the turn and 2.5 per change of scale"
    )


def test_options_refuse_an_unknown_weighting():
    with pytest.raises(ValueError, match="expected one of ewb, bdi, csi"):
        InterpolateOptions(weighting="best")
