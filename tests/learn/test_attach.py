"""Networks of one site that somebody else trained, whose answers are known here."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from model_factory import FEATURES, constant_network
from site_fixture import CAMERA, query_images

from edgeloc.clock import MonotonicClock
from edgeloc.errors import ConfigError, ModelError
from edgeloc.geometry.se3 import exp_se3, exp_so3, log_so3, quat_from_rotation
from edgeloc.inference.manifest import HeadSpec, InputSpec, decode_manifest
from edgeloc.inference.manifest import encode_manifest as encode
from edgeloc.inference.network import open_network
from edgeloc.localize.fix import FixCalibration
from edgeloc.localize.regress import RegressCalibration, regress_picture
from edgeloc.localize.scene_coords import (
    SceneCoordsOptions,
    dense_scene_points,
    pose_from_scene_points,
)
from edgeloc.runtime.estimator import Estimator
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.tiles.reader import open_site
from edgeloc.types import Cause, Frame, FrameBudget, PoseStatus, Rigid3, Rung
from edgeloc_tools.cli import attach_command
from edgeloc_tools.datasets.recording import Recording
from edgeloc_tools.learn.attach import WIDE_SCALE, WIDE_TURN_RAD, attach_network
from edgeloc_tools.model_files import write_model

POSE = Rigid3(R=exp_so3([1.4, 0.2, -0.1]), t=np.array([0.3, -0.2, 0.5]))
ORIGIN = (10.0, -4.0, 1.0)
GREY = np.full((CAMERA.height, CAMERA.width), 128, np.uint8)


def manifest(role, decoder, *outputs, **changes):
    return replace(
        FEATURES,
        name="own",
        role=role,
        decoder=decoder,
        outputs={name: name for name in outputs},
        descriptor_dim=1,
        match_ratio=None,
        head=HeadSpec(family="", origin=ORIGIN),
        **{"input": InputSpec(), **changes},
    )


def places(rows=30, columns=40, *, noise_m=0.004):
    """What POSE sees in each cell of 8 px, at some depth, less the origin."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:rows, :columns] * 8.0 + 4.0
    fx, fy, cx, cy = CAMERA.params
    rays = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones_like(x)], axis=-1)
    in_cam = rays * rng.uniform(1.0, 4.0, (rows, columns, 1))
    in_world = (in_cam - POSE.t) @ POSE.R + rng.normal(0, noise_m, in_cam.shape)
    return (in_world - ORIGIN).transpose(2, 0, 1)[None].astype(np.float32)


def scene_network(folder, points=None, **more):
    names = ["points", *more]
    decoder = "dense-points-sigma" if more else "dense-points"
    outputs = {"points": places() if points is None else points, **more}
    return write_model(
        folder, manifest("scene_coords", decoder, *names), constant_network(outputs)
    )


def pose_network(folder, turn="quaternion", *, center=None, numbers=None):
    if numbers is None:
        quat = 3.0 * quat_from_rotation(POSE.R)
        numbers = quat if turn == "quaternion" else log_so3(POSE.R) / 2.0
    if center is None:
        center = POSE.origin_in_a - ORIGIN
    outputs = {
        "center": np.asarray(center, np.float32)[None],
        turn: np.asarray(numbers, np.float32)[None],
    }
    return write_model(
        folder,
        manifest("regress", f"pose-{turn.replace('_', '-')}", *outputs),
        constant_network(outputs),
    )


def off(pose):
    """Distance of the centre, m, and angle, rad."""
    turned = np.linalg.norm(log_so3(pose.R @ POSE.R.T))
    return np.linalg.norm(pose.origin_in_a - POSE.origin_in_a), turned


def near_pose(sigma, *, num=8):
    """Pictures that were taken around POSE: what a network for POSE is off by."""
    rng = np.random.default_rng(4)
    first = query_images()[0]
    images = tuple(
        replace(
            first,
            name=f"{k}.png",
            cam_from_world=exp_se3(rng.normal(0, sigma, 6)) @ POSE,
        )
        for k in range(num)
    )
    return Recording(name="near", images=images, cameras={first.camera_id: CAMERA})


@pytest.fixture
def site(orb_site, tmp_path):
    return shutil.copytree(orb_site.path, tmp_path / "site")


def answer(site, method):
    clock = MonotonicClock()
    opened = open_site(site)
    estimator = Estimator(
        site=opened,
        camera=CAMERA,
        options=EstimatorOptions(method=method, cold=True),
        clock=clock,
    )
    now_ns = clock.now_ns()
    return estimator.step(
        Frame(frame_id=0, camera_id="", timestamp_ns=now_ns, image=GREY),
        FrameBudget(start_ns=now_ns, deadline_ns=now_ns + 10**12, clock=clock),
    )


# --- what the networks say


def test_manifests_of_networks_that_take_pictures_come_back():
    given = manifest("regress", "pose-quaternion", "center", "quaternion")
    again = decode_manifest(encode(given))
    assert again == given
    assert again.takes_pictures
    document = json.loads(encode(given))
    del document["input"]["origin"]
    with pytest.raises(ModelError, match=r"input\.origin is missing"):
        decode_manifest(json.dumps(document).encode())


def fix(network, **options):
    query, scene = dense_scene_points(network, GREY, CAMERA, **options)
    candidate = pose_from_scene_points(
        query, scene, calibration=FixCalibration(), options=SceneCoordsOptions()
    )
    return query, scene, candidate


def test_cells_of_a_picture_and_their_places(tmp_path):
    network = open_network(scene_network(tmp_path), role="scene_coords")
    query, scene, candidate = fix(network)
    assert len(query.features) == 600  # of 1200, all over the picture
    assert query.features.keypoints[0].tolist() == [4.0, 4.0]
    assert query.features.keypoints[-1].tolist() == [316.0, 236.0]
    assert candidate.status is PoseStatus.LOCALIZED
    assert candidate.num_inliers > 550
    assert off(candidate.cam_from_world) < (0.005, 0.005)
    assert not np.any(scene.sigmas)
    mask = np.full_like(GREY, 255)
    mask[:, :160] = 0
    masked, _, _ = fix(network, mask=mask)
    assert masked.features.keypoints[:, 0].min() == 164.0


def test_certain_cells_come_first(tmp_path):
    """Those that are wrong, and say so, do not matter."""
    points, log_sigma = places(), np.full((1, 1, 30, 40), -4.0, np.float32)
    points[:, :, :15] += 5.0
    log_sigma[:, :, :15] = 1.0
    path = scene_network(tmp_path, points, log_sigma=log_sigma)
    _, scene, candidate = fix(open_network(path, role="scene_coords"))
    assert candidate.num_inliers > 550
    assert off(candidate.cam_from_world) < (0.01, 0.01)
    assert scene.sigmas.min() == pytest.approx(np.exp(-4.0), rel=1e-5)


def test_padding_is_no_picture(tmp_path):
    """240 rows are padded to 256: the last two rows of cells are nowhere."""
    path = write_model(
        tmp_path,
        manifest(
            "scene_coords", "dense-points", "points", input=InputSpec(size_multiple=32)
        ),
        constant_network({"points": places(32)}),
    )
    network = open_network(path, role="scene_coords")
    query, _, candidate = fix(network, max_points=5000)
    assert len(query.features) == 1200
    assert off(candidate.cam_from_world) < (0.005, 0.005)


def test_outputs_of_another_shape_are_refused(tmp_path):
    path = scene_network(tmp_path, np.zeros((1, 4, 30, 40), np.float32))
    with pytest.raises(ModelError, match=r"gives points \(1, 4, 30, 40\), expected"):
        fix(open_network(path, role="scene_coords"))
    sigma = np.zeros((1, 1, 3, 4), np.float32)
    path = scene_network(tmp_path / "b", log_sigma=sigma)
    with pytest.raises(ModelError, match=r"gives log_sigma \(1, 1, 3, 4\), expected"):
        fix(open_network(path, role="scene_coords"))
    path = pose_network(tmp_path / "c", numbers=np.ones(5))
    unit = RegressCalibration(position_sigma=1.0, rotation_sigma_rad=1.0)
    with pytest.raises(ModelError, match=r"quaternion \(1, 5\), expected 3 and 4"):
        regress_picture(open_network(path, role="regress"), GREY, calibration=unit)


@pytest.mark.parametrize("turn", ["quaternion", "log_quaternion"])
def test_a_pose_of_a_picture(tmp_path, turn):
    calibration = RegressCalibration(position_sigma=0.5, rotation_sigma_rad=0.1)
    network = open_network(pose_network(tmp_path, turn), role="regress")
    found = regress_picture(network, GREY, calibration=calibration)
    assert (found.status, found.rung) == (PoseStatus.COARSE, Rung.REGRESS)
    assert off(found.cam_from_world) < (1e-5, 1e-5)
    np.testing.assert_allclose(np.diag(found.covariance), [0.01] * 3 + [0.25] * 3)


def test_a_quaternion_of_nothing_is_no_pose(tmp_path):
    calibration = RegressCalibration(position_sigma=0.5, rotation_sigma_rad=0.1)
    network = open_network(pose_network(tmp_path, numbers=np.zeros(4)), role="regress")
    found = regress_picture(network, GREY, calibration=calibration)
    assert (found.status, found.cause) == (PoseStatus.LOST, Cause.AMBIGUOUS)


# --- in a site


def test_scene_coordinates_join_a_site(site, tmp_path):
    path = scene_network(tmp_path)
    facts = attach_network(site, path)
    assert facts["calibrated"] is False
    assert facts["covariance_scale"] == WIDE_SCALE
    wide = answer(site, "scene-coords")
    assert (wide.status, wide.rung) == (PoseStatus.LOCALIZED, Rung.SCENE_COORDS)
    assert off(wide.cam_from_world) < (0.005, 0.005)
    # What it is off by on pictures becomes its covariance: 2 cm, 0.02 rad.
    facts = attach_network(site, path, recording=near_pose(0.02))
    assert (facts["pictures"], facts["answered"]) == (8, 8)
    assert 0.01 < facts["median_error"] < 0.06
    assert facts["covariance_scale"] > WIDE_SCALE
    honest = answer(site, "scene-coords")
    sigmas = np.sqrt(np.diag(honest.covariance))
    assert np.all((sigmas > 0.003) & (sigmas < 0.2))
    assert np.all(sigmas > np.sqrt(np.diag(wide.covariance)))


def test_a_pose_network_joins_a_site(site, tmp_path):
    path = pose_network(tmp_path)
    facts = attach_network(site, path)
    centers = open_site(site).keyframes.centers
    spread = np.sqrt(np.mean((centers - centers.mean(axis=0)) ** 2))
    assert facts["position_sigma"] == pytest.approx(spread, abs=1e-5)
    assert np.deg2rad(facts["rotation_sigma_deg"]) == pytest.approx(WIDE_TURN_RAD)
    facts = attach_network(site, path, recording=near_pose(0.02))
    assert 0.01 < facts["position_sigma"] < 0.06
    found = answer(site, "regress")
    assert (found.status, found.rung) == (PoseStatus.COARSE, Rung.REGRESS)
    assert off(found.cam_from_world) < (1e-5, 1e-5)
    assert found.covariance[3, 3] == pytest.approx(facts["position_sigma"] ** 2, 1e-3)


def test_a_network_of_another_place_leaves_the_site_alone(site, tmp_path):
    before = (site / "site.json").read_bytes()
    noise = np.random.default_rng(0).normal(size=(1, 3, 30, 40)).astype(np.float32)
    path = scene_network(tmp_path, noise)
    with pytest.raises(ConfigError, match="answers none of 8 pictures of near; is it"):
        attach_network(site, path, recording=near_pose(0.02))
    path = pose_network(tmp_path / "b", center=[500.0, 0.0, 0.0])
    with pytest.raises(ConfigError, match=r"on the recording, a guess by .*; is it"):
        attach_network(site, path, recording=near_pose(0.02))
    path = write_model(tmp_path / "c", FEATURES, constant_network({"a": GREY}))
    with pytest.raises(ConfigError, match=r"role is 'features'.*can be attached"):
        attach_network(site, path)
    assert (site / "site.json").read_bytes() == before


def test_the_command(site, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    attach_command.add_arguments(parser)
    path = pose_network(tmp_path)
    line = ["--site", str(site), "--model", str(path)]
    assert attach_command.run(parser.parse_args(line)) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["role"], facts["model"]) == ("regress", "own")
    assert "REGRESS" in open_site(site).manifest.rungs
