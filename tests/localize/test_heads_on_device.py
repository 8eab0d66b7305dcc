"""SCENE_COORDS and REGRESS as functions of what a head says."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from edgeloc.errors import ModelError
from edgeloc.features.view import pooled_view
from edgeloc.geometry.camera import project
from edgeloc.geometry.se3 import exp_so3
from edgeloc.inference.manifest import (
    HeadSpec,
    InputSpec,
    ModelManifest,
    decode_manifest,
    encode_manifest,
)
from edgeloc.localize.candidate import Query
from edgeloc.localize.fix import FixCalibration
from edgeloc.localize.regress import (
    RegressCalibration,
    regress_pose,
    rotation_from_six,
)
from edgeloc.localize.scene_coords import (
    SceneCoordsOptions,
    ScenePoints,
    calibration_arrays,
    calibration_of,
    pose_from_scene_points,
    scene_points,
)
from edgeloc.types import CameraModel, Cause, Features, PoseStatus, Rigid3, Rung

CAMERA = CameraModel(
    model="PINHOLE", width=640, height=480, params=(500.0, 500.0, 320.0, 240.0)
)
POSE = Rigid3(R=exp_so3([0.1, -0.2, 0.05]), t=np.array([0.2, -0.1, 0.4]))
MANIFEST = ModelManifest(
    name="head",
    role="regress",
    file="head.onnx",
    sha256="0" * 64,
    precision="fp32",
    flavour="any",
    input=InputSpec(name="view"),
    decoder="pose-of-descriptors",
    outputs={"center": "c", "rotation": "r"},
    descriptor_dim=4,
    match_ratio=None,
    license="Apache-2.0",
    source="made by the tests",
    head=HeadSpec(family="orb", grid=(4, 3), extent=(0.64, 0.48), origin=(10.0, 0, 0)),
)


class FakeHead:
    """Gives the same whatever it is asked."""

    path = "head.json"

    def __init__(self, spec: HeadSpec, **outputs) -> None:
        self.spec = spec
        self._outputs = {name: np.asarray(o, np.float32) for name, o in outputs.items()}

    def run(self, _tensor):
        return self._outputs


def seen(num: int = 300, *, wrong: float = 0.0) -> tuple[Query, ScenePoints]:
    rng = np.random.default_rng(0)
    pixels = rng.uniform([10, 10], [630, 470], (num, 2))
    rays = np.hstack([(pixels - [320, 240]) / 500, np.ones((num, 1))])
    in_cam = rays * rng.uniform(1.0, 4.0, (num, 1))
    points = (in_cam - POSE.t) @ POSE.R
    assert np.allclose(project(CAMERA, POSE.transform(points))[0], pixels)
    bad = rng.random(num) < wrong
    points[bad] += rng.normal(0, 1.0, (bad.sum(), 3))
    features = Features(
        keypoints=(pixels + rng.normal(0, 0.3, pixels.shape)).astype(np.float32),
        scores=np.ones(num, np.float32),
        sigmas=np.ones(num, np.float32),
        descriptors=np.zeros((num, 1), np.uint8),
    )
    query = Query(
        camera=CAMERA,
        features=features,
        descriptors=np.eye(4, dtype=np.float32)[rng.integers(0, 4, num)],
        global_descriptor=np.zeros(0, np.float32),
    )
    return query, ScenePoints(points3D=points, sigmas=np.full(num, 0.01, np.float32))


def answer(query, scene, scale: float = 1.0):
    return pose_from_scene_points(
        query,
        scene,
        calibration=FixCalibration(scale=scale),
        options=SceneCoordsOptions(),
    )


def test_half_of_the_places_may_be_wrong():
    fix = answer(*seen(wrong=0.5))
    assert (fix.status, fix.rung) == (PoseStatus.LOCALIZED, Rung.SCENE_COORDS)
    assert np.linalg.norm(fix.cam_from_world.origin_in_a - POSE.origin_in_a) < 0.01
    wider = answer(*seen(wrong=0.5), scale=9.0)
    assert np.allclose(wider.covariance, 9.0 * fix.covariance)


def test_places_of_nowhere_are_no_fix():
    fix = answer(*seen(wrong=1.0))
    assert (fix.status, fix.cause) == (PoseStatus.LOST, Cause.FEW_INLIERS)
    assert answer(*seen(10)).cause is Cause.FEW_FEATURES


def test_the_points_of_a_head_are_relative_to_its_origin():
    spec = HeadSpec(family="orb", origin=(1e6, 2.0, 3.0))
    head = FakeHead(spec, points=[[0.25, 0, 0]] * 5, log_sigma=[[np.log(0.1)]] * 5)
    found = scene_points(head, np.zeros((5, 4), np.float32))
    assert np.array_equal(found.points3D[0], [1e6 + 0.25, 2.0, 3.0])
    assert np.allclose(found.sigmas, 0.1)
    with pytest.raises(ModelError, match=r"expected \(4, 3\) and \(4, 1\)"):
        scene_points(head, np.zeros((4, 4), np.float32))


def test_calibrations_come_back_from_a_site():
    made = FixCalibration(scale=3.5, decorrelation=0.25)
    assert calibration_of(calibration_arrays(made)) == made
    coarse = RegressCalibration(position_sigma=0.5, rotation_sigma_rad=0.125)
    assert RegressCalibration.from_arrays(coarse.to_arrays()) == coarse
    for missing in (calibration_of, RegressCalibration.from_arrays):
        with pytest.raises(ValueError, match=r"has shape \(0,\), expected \(2,\)"):
            missing({})
    with pytest.raises(ValueError, match="must be > 0"):
        RegressCalibration(position_sigma=0.0, rotation_sigma_rad=1.0)


def test_a_regressed_pose_is_coarse_with_the_calibrated_covariance():
    rotation = 3.0 * POSE.R[:2].reshape(1, 6, 1, 1)
    center = np.array([0.5, 1.0, 2.0]).reshape(1, 3, 1, 1)
    head = FakeHead(MANIFEST.head, center=center, rotation=rotation)
    calibration = RegressCalibration(position_sigma=0.5, rotation_sigma_rad=0.25)
    query, _ = seen()
    pose = regress_pose(query, head, calibration=calibration)
    assert (pose.status, pose.rung) == (PoseStatus.COARSE, Rung.REGRESS)
    assert np.allclose(pose.cam_from_world.origin_in_a, [10.5, 1.0, 2.0], atol=1e-5)
    assert np.allclose(pose.cam_from_world.R, POSE.R, atol=1e-6)
    assert np.allclose(np.diag(pose.covariance), [0.0625] * 3 + [0.25] * 3)
    few, _ = seen(5)
    lost = regress_pose(few, head, calibration=calibration)
    assert (lost.status, lost.cause) == (PoseStatus.LOST, Cause.FEW_FEATURES)
    broken = FakeHead(MANIFEST.head, center=center, rotation=np.zeros(6))
    assert regress_pose(query, broken, calibration=calibration).cause is (
        Cause.AMBIGUOUS
    )
    with pytest.raises(ModelError, match="expected 3 and 6 numbers"):
        regress_pose(
            query,
            FakeHead(MANIFEST.head, center=np.zeros(4), rotation=rotation),
            calibration=calibration,
        )


def test_six_numbers_are_a_rotation_or_none():
    rng = np.random.default_rng(2)
    for _ in range(20):
        R = rotation_from_six(rng.standard_normal(6))
        assert np.allclose(R @ R.T, np.eye(3))
        assert np.linalg.det(R) == pytest.approx(1.0)
    assert rotation_from_six(np.zeros(6)) is None
    assert rotation_from_six(np.array([1.0, 0, 0, 2.0, 0, 0])) is None


def test_a_view_is_what_is_where_whatever_the_camera():
    keypoints = np.array([[10, 10], [20, 15], [630, 470], [320.5, 240.5]], np.float32)
    rows = np.eye(4, dtype=np.float32)
    view = pooled_view(keypoints, rows, CAMERA, grid=(4, 3), extent=(0.64, 0.48))
    assert view.shape == (4, 3, 4)
    assert np.allclose(view[:, 0, 0], [2**-0.5, 2**-0.5, 0, 0])
    assert np.allclose(view[:, 2, 3], rows[2])
    assert np.count_nonzero(view) == 4
    double = CameraModel(
        model="PINHOLE", width=1280, height=960, params=(1000.0, 1000.0, 640.0, 480.0)
    )
    assert np.array_equal(
        pooled_view(2 * keypoints, rows, double, grid=(4, 3), extent=(0.64, 0.48)), view
    )


def test_the_manifest_of_a_head_comes_back():
    assert decode_manifest(encode_manifest(MANIFEST)) == MANIFEST
    scene = replace(
        MANIFEST,
        role="scene_coords",
        decoder="points-of-descriptors",
        outputs={"points": "p", "log_sigma": "s"},
        head=HeadSpec(family="orb"),
    )
    assert decode_manifest(encode_manifest(scene)) == scene


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("input", "grid"), [0, 0], r"input.grid is \[0, 0\], expected columns and ro"),
        (("input", "grid"), [4], "input.grid"),
        (("input", "extent"), [0, 1], "input.extent"),
        (("input", "origin"), [0, 0, 1e9], "input.origin"),
        (("input", "scale"), 1.0, "input.scale is not a field"),
        (("decoder",), "vector", "decoder is 'vector', expected one of pose-of"),
        (("match_ratio",), 0.9, "match_ratio is only for features"),
        (("role",), "scene_coords", "decoder is 'pose-of-descriptors', expected one"),
    ],
)
def test_what_the_manifest_of_a_head_may_not_say(path, value, message):
    document = json.loads(encode_manifest(MANIFEST))
    table = document
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    with pytest.raises(ModelError, match=message):
        decode_manifest(json.dumps(document).encode())
