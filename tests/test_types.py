"""Boundary types refuse what makes no sense, with messages that say what."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edgeloc.clock import ManualClock
from edgeloc.types import (
    CAMERA_MODEL_NUM_PARAMS,
    CameraModel,
    Cause,
    Features,
    Frame,
    FrameBudget,
    Matches2D3D,
    PoseEstimate,
    PoseStatus,
    RetrievalResult,
    Rigid3,
    Rung,
)


def a_camera(**changes):
    values = {
        "model": "OPENCV",
        "width": 640,
        "height": 480,
        "params": (500, 510, 320, 240, 0.1, 0.2, 0.3, 0.4),
    }
    return CameraModel(**{**values, **changes})


def an_estimate(**changes):
    values = {
        "frame_id": 3,
        "timestamp_ns": 5,
        "status": PoseStatus.LOCALIZED,
        "rung": Rung.RELOCALIZE,
        "cause": Cause.NONE,
        "cam_from_world": Rigid3.identity(),
        "covariance": np.eye(6),
    }
    return PoseEstimate(**{**values, **changes})


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3)])
def test_a_frame_is_grey_or_bgr(shape):
    image = np.zeros(shape, np.uint8)
    frame = Frame(frame_id=0, camera_id="c", timestamp_ns=1, image=image)
    assert frame.image is image
    assert frame.source == ""


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 6, 4), np.uint8),
        np.zeros((4,), np.uint8),
        np.zeros((0, 6), np.uint8),
        np.zeros((4, 6), np.float32),
    ],
)
def test_other_images_are_refused(image):
    with pytest.raises(ValueError, match="expected uint8 of shape"):
        Frame(frame_id=0, camera_id="c", timestamp_ns=1, image=image)


def test_camera_parts_follow_colmaps_parameter_order():
    camera = a_camera()
    assert camera.focal_px == (500.0, 510.0)
    assert camera.principal_point_px == (320.0, 240.0)
    assert camera.distortion == (0.1, 0.2, 0.3, 0.4)
    single = a_camera(model="RADIAL", params=(500, 320, 240, 0.1, 0.2))
    assert single.has_single_focal
    assert single.focal_px == (500.0, 500.0)
    assert single.principal_point_px == (320.0, 240.0)
    assert single.distortion == (0.1, 0.2)
    assert a_camera(model="PINHOLE", params=(1, 2, 3, 4)).distortion == ()


def test_equal_cameras_are_equal_and_hashable():
    assert a_camera() == a_camera(params=[500.0, 510, 320, 240, 0.1, 0.2, 0.3, 0.4])
    assert len({a_camera(), a_camera(), a_camera(width=641)}) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "THIN_PRISM"}, "camera model 'THIN_PRISM' is unknown"),
        ({"params": (1, 2, 3)}, "OPENCV takes 8 parameters, got 3"),
        ({"params": (np.nan,) * 8}, "camera parameters must be finite"),
        ({"width": 0}, "camera size 0x480 must be positive"),
        ({"params": (-1, 1, 0, 0, 0, 0, 0, 0)}, "focal length must be > 0"),
        ({"params": (1, 0, 0, 0, 0, 0, 0, 0)}, "focal length must be > 0"),
    ],
)
def test_wrong_cameras_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        a_camera(**changes)


def test_every_model_takes_its_number_of_parameters():
    for model, count in CAMERA_MODEL_NUM_PARAMS.items():
        camera = a_camera(model=model, params=range(1, count + 1))
        start = 3 if camera.has_single_focal else 4
        assert len(camera.distortion) == count - start


def test_a_rigid_motion_keeps_its_own_read_only_arrays():
    t = np.array([1.0, 2.0, 3.0])
    rigid = Rigid3(R=np.eye(3), t=t)
    t[0] = 9.0
    assert rigid.t.tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="read-only"):
        rigid.t[0] = 0.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        rigid.t = t


def test_rigid_motions_compose_from_right_to_left():
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    c_from_b = Rigid3(R=quarter, t=[0, 0, 1])
    b_from_a = Rigid3(R=np.eye(3), t=[1, 0, 0])
    c_from_a = c_from_b @ b_from_a
    assert c_from_a.transform([0, 0, 0]).tolist() == [0, 1, 1]
    assert c_from_a.inverse().transform([0, 1, 1]).tolist() == [0, 0, 0]
    assert c_from_a.transform(np.zeros((2, 5, 3))).shape == (2, 5, 3)
    assert b_from_a.origin_in_a.tolist() == [-1, 0, 0]


@pytest.mark.parametrize(
    ("R", "t", "message"),
    [
        (np.diag([1.0, 1.0, -1.0]), np.zeros(3), "R is not a rotation"),
        (2.0 * np.eye(3), np.zeros(3), "R is not a rotation"),
        (np.eye(3) + 1e-4, np.zeros(3), "R is not a rotation"),
        (np.full((3, 3), np.nan), np.zeros(3), "R must be finite"),
        (np.eye(3), [0, 0, np.inf], "t must be finite"),
        (np.eye(4), np.zeros(3), r"R has shape \(4, 4\), expected \(3, 3\)"),
        (np.eye(3), np.zeros((3, 1)), r"t has shape \(3, 1\), expected \(3,\)"),
    ],
)
def test_what_is_no_rigid_motion_is_refused(R, t, message):
    with pytest.raises(ValueError, match=message):
        Rigid3(R=R, t=t)


def test_features_have_one_row_per_keypoint():
    keypoints, scores = np.zeros((3, 2), np.float32), np.zeros(3, np.float32)
    descriptors = np.zeros((3, 32), np.uint8)
    rows = {
        "keypoints": keypoints,
        "scores": scores,
        "sigmas": np.ones(3, np.float32),
        "descriptors": descriptors,
    }
    assert len(Features(**rows)) == 3
    for name in ("scores", "sigmas"):
        with pytest.raises(ValueError, match=r"must be \(N, 2\), \(N,\) and \(N,\)"):
            Features(**{**rows, name: rows[name][:2]})
    with pytest.raises(ValueError, match=r"must be \(3, D\)"):
        Features(**{**rows, "descriptors": descriptors[:2]})


def test_retrieval_scores_descend():
    ids = np.array([7, 3, 5])
    good = np.array([0.9, 0.5, 0.5], np.float32)
    assert len(RetrievalResult(keyframe_ids=ids, scores=good)) == 3
    with pytest.raises(ValueError, match="scores must be descending"):
        RetrievalResult(keyframe_ids=ids, scores=good[::-1])
    with pytest.raises(ValueError, match=r"must both be \(K,\)"):
        RetrievalResult(keyframe_ids=ids[:2], scores=good)


def test_matches_have_equal_lengths():
    values = {
        "points2D": np.zeros((4, 2)),
        "points3D": np.zeros((4, 3)),
        "point3D_ids": np.zeros(4, np.int64),
        "scores": np.zeros(4, np.float32),
    }
    assert len(Matches2D3D(**values)) == 4
    for name, value in values.items():
        with pytest.raises(ValueError, match=r"must be \(M, 2\), \(M, 3\)"):
            Matches2D3D(**{**values, name: value[:3]})


def test_an_estimate_keeps_a_read_only_copy_of_its_covariance():
    covariance = 2.0 * np.eye(6)
    estimate = an_estimate(covariance=covariance)
    covariance[:] = 0.0
    assert np.diag(estimate.covariance).tolist() == [2.0] * 6
    assert not estimate.covariance.flags.writeable


def test_lost_is_without_pose():
    lost = an_estimate(
        status=PoseStatus.LOST,
        rung=Rung.LOST,
        cause=Cause.FEW_MATCHES,
        cam_from_world=None,
        covariance=None,
    )
    assert lost.cam_from_world is None
    assert (lost.deadline_met, lost.map_id, dict(lost.stage_ns)) == (True, "", {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cam_from_world": None}, "a pose is None exactly when LOST"),
        ({"status": PoseStatus.LOST}, "a pose is None exactly when LOST"),
        (
            {"status": PoseStatus.LOST, "cam_from_world": None, "covariance": None},
            "does not go with rung",
        ),
        ({"rung": Rung.LOST}, "does not go with rung"),
        ({"covariance": None}, "covariance is None exactly when the pose is"),
        ({"covariance": np.eye(5)}, r"covariance has shape \(5, 5\)"),
        ({"covariance": np.full((6, 6), np.nan)}, "covariance must be finite"),
        ({"covariance": np.eye(6) + np.eye(6, k=1)}, "covariance must be symmetric"),
        ({"covariance": np.diag([1.0] * 5 + [0.0])}, "must have a positive diagonal"),
    ],
)
def test_estimates_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        an_estimate(**changes)


def test_a_budget_runs_out_on_its_clock():
    clock = ManualClock(100)
    budget = FrameBudget(start_ns=100, deadline_ns=130, clock=clock)
    assert budget.remaining_ns == 30
    assert budget.allows(30)
    assert not budget.allows(31)
    clock.advance_ns(40)
    assert budget.remaining_ns == -10
    assert not budget.allows(0)
    with pytest.raises(ValueError, match="is before"):
        FrameBudget(start_ns=2, deadline_ns=1, clock=clock)
