"""Heads of a site: from a recording to networks that the device answers with."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import site_fixture as room
import torch

from edgeloc.errors import ConfigError, MapError, MapModelMismatchError
from edgeloc.geometry.camera import normalized_from_pixels
from edgeloc.geometry.se3 import exp_so3
from edgeloc.inference.backend import BackendOptions
from edgeloc.inference.head import open_head
from edgeloc.runtime.estimator import Estimator
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.runtime.site_models import open_site_family, open_site_head
from edgeloc.tiles.reader import open_site, verify_site
from edgeloc.types import PoseStatus, Rigid3, Rung
from edgeloc_tools.cli.build import main as build_main
from edgeloc_tools.learn.pose_landmarks import place_by_poses
from edgeloc_tools.learn.pose_views import MoveOptions, depth_of_points, moved_view
from edgeloc_tools.learn.regress_session import train_regress_head
from edgeloc_tools.learn.scene_head import SceneHead, choose_prototypes, scene_graph
from edgeloc_tools.learn.scene_session import train_scene_head
from edgeloc_tools.learn.site_views import SiteViewOptions, draw_views
from edgeloc_tools.learn.train_regress import RegressRecipe
from edgeloc_tools.learn.train_scene_coords import (
    SceneRecipe,
    SceneSamples,
    begin_head,
    collect_samples,
    make_batch,
    train_scene_coords,
)
from edgeloc_tools.mapping.work import WorkFolder

CPU = BackendOptions(backend="ort-cpu")
VIEWS = SiteViewOptions(count=1)
QUICK = SceneRecipe(steps=12, batch=128, views=VIEWS, checkpoint_every=4)
COARSE = RegressRecipe(views=2, min_views=0, steps=150, batch=32, width=48)


def copied(site: room.BuiltSite, folder: Path) -> Path:
    return Path(shutil.copytree(site.path, folder / "site"))


@pytest.fixture(scope="module")
def trained(orb_site, tmp_path_factory) -> tuple[Path, dict, dict]:
    """The room's ORB site with both heads."""
    folder = tmp_path_factory.mktemp("heads")
    path = copied(orb_site, folder)
    scene = train_scene_head(
        path, room.mapping_recording(), out=folder / "scene", recipe=QUICK
    )
    pose = train_regress_head(
        path, room.mapping_recording(), out=folder / "pose", recipe=COARSE
    )
    return path, scene, pose


def answers(path: Path, method: str):
    estimator = Estimator(
        site=open_site(path),
        camera=room.CAMERA,
        options=EstimatorOptions(method=method, cold=True, backend=CPU),
    )
    for image in room.query_images():
        estimate = estimator.step(room.frame_of(image.source.read()), room.budget_of())
        yield estimate, image.cam_from_world


def test_the_site_becomes_its_next_version_at_once(orb_site, trained):
    path, scene, pose = trained
    site = open_site(path, verify=True)
    verify_site(path)
    assert set(site.manifest.rungs) >= {"RELOCALIZE", "SCENE_COORDS", "REGRESS"}
    assert set(site.manifest.models) >= {"scene_coords", "regress"}
    assert site.manifest.map_id == pose["map_id"] != scene["map_id"]
    before = json.loads((path / "previous.json").read_text(encoding="utf-8"))
    assert before["map_id"] == scene["map_id"]
    assert scene["bytes"] <= 1_000_000
    assert list(site.tiles) == list(orb_site.site.tiles)
    assert set(site.retrieval_arrays) >= {
        "scene_coords_calibration",
        "regress_calibration",
    }


def test_scene_coordinates_localize_frames_of_another_path(trained):
    path, scene, _ = trained
    errors = []
    for estimate, truth in answers(path, "scene-coords"):
        if estimate.status is PoseStatus.LOCALIZED:
            assert estimate.rung is Rung.SCENE_COORDS
            errors.append(room.pose_error(estimate, truth))
        else:
            assert estimate.status is PoseStatus.LOST
    assert len(errors) >= 6
    assert np.median([e.position_m for e in errors]) < 0.03
    assert np.median([e.nees for e in errors]) < 40.0
    assert scene["held_out_frames"] > 0


def test_a_strange_room_is_not_in_the_map(trained):
    estimator = Estimator(
        site=open_site(trained[0]),
        camera=room.CAMERA,
        options=EstimatorOptions(method="scene-coords", cold=True, backend=CPU),
    )
    for image in room.strange_images():
        estimate = estimator.step(room.frame_of(image.source.read()), room.budget_of())
        assert estimate.status is PoseStatus.LOST


def test_regression_is_always_coarse_and_says_how_far_off_it_may_be(trained):
    path, _, pose = trained
    errors = []
    for estimate, truth in answers(path, "regress"):
        assert (estimate.status, estimate.rung) == (PoseStatus.COARSE, Rung.REGRESS)
        errors.append(room.pose_error(estimate, truth))
    extent = np.ptp(open_site(path).keyframes.centers, axis=0).max()
    assert np.median([e.position_m for e in errors]) < 0.35 * extent
    assert np.median([e.nees for e in errors]) < 3 * 5.35
    assert errors[0].position_sigma_m == pytest.approx(
        np.sqrt(3) * pose["position_sigma"], rel=1e-3
    )


def test_the_head_of_other_features_is_refused(sift_site, trained, tmp_path):
    from edgeloc.tiles.add_models import add_models
    from edgeloc_tools.learn.head_models import site_model

    path = copied(sift_site, tmp_path)
    with pytest.raises(MapError, match="has no scene_coords network; make one with"):
        open_site_head(open_site(path), "scene_coords", options=CPU)
    made = trained[0].parent / "scene" / "scene-coords.json"
    add_models(
        path, {"scene_coords": site_model("scene_coords", made)}, rungs=(), arrays={}
    )
    with pytest.raises(MapModelMismatchError, match="for the features 'orb', the site"):
        open_site_head(open_site(path), "scene_coords", options=CPU)


@pytest.fixture(scope="module")
def drawn(orb_site):
    """Views by what says where things are."""
    family = open_site_family(orb_site.site)

    @functools.cache
    def views(supervision: str):
        return draw_views(
            room.mapping_recording(),
            orb_site.site,
            family,
            options=VIEWS,
            supervision=supervision,
        )

    return views


@pytest.mark.parametrize("supervision", ["depth", "landmarks"])
def test_what_says_where_keypoints_lie(drawn, supervision):
    """Every source alone gives points that project to where the keypoints are."""
    views = drawn(supervision)
    for view in views.views:
        known = np.all(np.isfinite(view.points3D), axis=1)
        assert known.mean() > (0.6 if supervision == "depth" else 0.05)
        assert np.any(view.landmark_ids >= 0) == (supervision == "landmarks")
        from edgeloc.geometry.camera import project

        pixels, _ = project(
            views.camera(view), views.pose(view).transform(view.points3D[known])
        )
        assert np.max(np.abs(pixels - view.keypoints[known])) < 2.1


def test_poses_alone_place_what_several_images_show(drawn):
    """The measured depth of the recording is the truth, and is not used."""
    unknown = drawn("poses")
    assert not unknown.has_places
    views = place_by_poses(unknown, work=WorkFolder(None))
    errors, num = [], 0
    for view, true in zip(views.views, drawn("depth").views, strict=True):
        placed = view.landmark_ids >= 0
        assert np.array_equal(placed, np.isfinite(view.points3D[:, 0]))
        num += len(placed)
        off = np.linalg.norm(view.points3D - true.points3D, axis=1)
        errors += off[np.isfinite(off)].tolist()
    assert len(errors) > 0.25 * num
    assert np.median(errors) < 0.03


def test_pictures_of_one_spot_are_no_recording_to_learn_from(drawn):
    views = drawn("poses")
    first = views.images[0].cam_from_world.origin_in_a
    turned = tuple(
        room.with_pose(image, Rigid3(R=image.cam_from_world.R, t=-R @ first))
        for image in views.images
        for R in [image.cam_from_world.R]
    )
    with pytest.raises(ConfigError, match="poses alone place only 0 things"):
        place_by_poses(replace(views, images=turned), work=WorkFolder(None))


def test_trained_by_poses_alone_it_localizes(orb_site, tmp_path):
    """No depth, no landmark, no loss but that of reprojection."""
    path = copied(orb_site, tmp_path)
    recipe = replace(QUICK, supervision="poses")
    facts = train_scene_head(
        path, room.mapping_recording(), out=tmp_path / "scene", recipe=recipe
    )
    assert facts["loss"] == "reprojection"
    errors = [
        room.pose_error(estimate, truth)
        for estimate, truth in answers(path, "scene-coords")
        if estimate.status is PoseStatus.LOCALIZED
    ]
    assert len(errors) >= 6
    assert np.median([e.position_m for e in errors]) < 0.05
    assert np.median([e.nees for e in errors]) < 20.0


def test_reprojection_alone_teaches_where_things_are(tmp_path):
    """Begun 0.2 m off, with points that cameras see from all around."""
    rng = np.random.default_rng(4)
    points = rng.uniform(-0.7, 0.7, (24, 3))
    looks = rng.standard_normal((24, 16))
    R = np.stack([exp_so3([0.0, a, 0.1]) for a in np.linspace(-1.0, 1.0, 12)])
    t = np.tile([0.0, 0.0, 3.0], (12, 1))
    image_idx = np.repeat(np.arange(12), 24)
    in_cam = np.einsum("kij,nj->kni", R, points).reshape(-1, 3) + t[image_idx]
    rows = np.tile(looks / np.linalg.norm(looks, axis=1, keepdims=True), (12, 1))
    rows += 0.02 * rng.standard_normal((288, 16))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    begin_at = points + 0.2 * rng.choice([-1.0, 1.0], (24, 3)) / np.sqrt(3.0)
    samples = SceneSamples(
        rows=rows.astype(np.float16),
        points=np.tile(begin_at, (12, 1)).astype(np.float32),
        rays=(in_cam / np.linalg.norm(in_cam, axis=1, keepdims=True)).astype("f4"),
        image_idx=image_idx,
        number=np.zeros(288, np.int64),
        landmark_ids=np.tile(np.arange(24), 12),
        R=R.astype(np.float32),
        t=t.astype(np.float32),
        origin=np.zeros(3),
        by_reprojection=True,
    )
    recipe = SceneRecipe(
        steps=300, batch=128, max_bytes=4000, learning_rate=0.05, checkpoint_every=200
    )
    begun = begin_head(samples, max_bytes=recipe.max_bytes, seed=0)
    head = train_scene_coords(samples, out=tmp_path, recipe=recipe)
    truth = np.tile(points, (12, 1))

    def off(net: SceneHead) -> float:
        with torch.no_grad():
            places, _ = net(make_batch(samples, np.arange(288))["rows"])
        return float(np.median(np.linalg.norm(places.numpy() - truth, axis=1)))

    assert off(begun) > 0.19
    assert off(head) < 0.02


def test_a_source_that_places_nothing_is_refused(orb_site, tmp_path):
    recording = room.mapping_recording()
    flat = recording.subset([replace(i, depth=None) for i in recording.images[:3]])
    with pytest.raises(ConfigError, match="supervision = 'depth' places none"):
        train_scene_head(
            orb_site.path,
            flat,
            out=tmp_path,
            recipe=replace(QUICK, supervision="depth", views=SiteViewOptions(count=0)),
        )
    with pytest.raises(ConfigError, match="'pose' is unknown, expected auto, depth"):
        SceneRecipe(supervision="pose")


def test_an_interrupted_training_goes_on_and_another_recipe_is_refused(drawn, tmp_path):
    samples = collect_samples(drawn("auto"))
    whole = train_scene_coords(samples, out=tmp_path / "whole", recipe=QUICK)

    class Stop(Exception):
        pass

    def stop(_what: str, done: int, _total: int) -> None:
        if done == 9:
            raise Stop

    with pytest.raises(Stop):
        train_scene_coords(samples, out=tmp_path / "two", recipe=QUICK, progress=stop)
    resumed = train_scene_coords(samples, out=tmp_path / "two", recipe=QUICK)
    assert torch.allclose(whole.places, resumed.places, atol=1e-6)
    with pytest.raises(ConfigError, match="is of a run with batch = 128, not 64"):
        train_scene_coords(
            samples, out=tmp_path / "two", recipe=replace(QUICK, batch=64)
        )


def test_training_ends_when_it_brings_no_more(drawn, tmp_path):
    samples = collect_samples(drawn("auto"))
    steps = []
    train_scene_coords(
        samples,
        out=tmp_path,
        recipe=replace(QUICK, steps=60, learning_rate=1e-9, check_every=2, patience=3),
        progress=lambda _what, done, _total: steps.append(done),
    )
    assert max(steps) < 20


def test_the_exported_head_is_the_trained_one(trained, tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    head = SceneHead(rows, rng.uniform(-2, 2, (40, 3)).astype(np.float32))
    import onnxruntime

    session = onnxruntime.InferenceSession(
        scene_graph(head).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    query = rows + 0.1 * rng.standard_normal(rows.shape).astype(np.float32)
    points, log_sigma = session.run(None, {"rows": query[None, None]})
    with torch.no_grad():
        places, expected = head(torch.from_numpy(query))
    assert np.allclose(points, places, atol=1e-4)
    assert np.allclose(log_sigma[:, 0], expected, atol=0.05)
    # All precisions of a trained one load, and are of the same place.
    folder = trained[0].parent / "scene"
    spec = open_head(folder / "scene-coords.json", role="scene_coords").spec
    for variant in ("int8-cpu", "fp16"):
        path = folder / f"scene-coords-{variant}.json"
        assert open_head(path, role="scene_coords", options=CPU).spec == spec
    int8, full = (
        (folder / f"scene-coords{end}.onnx").stat().st_size for end in ("-int8-cpu", "")
    )
    assert int8 < 0.4 * full


def test_prototypes_are_spread_over_the_scene():
    rng = np.random.default_rng(3)
    points = np.vstack([rng.normal(0, 0.1, (900, 3)), rng.normal(5, 0.1, (100, 3))])
    weights = np.concatenate([np.full(900, 9.0), np.ones(100)])
    chosen = np.asarray(choose_prototypes(points, weights, count=200))
    assert len(np.unique(chosen)) == len(chosen) == 200
    assert 20 <= np.count_nonzero(chosen >= 900) <= 100


def test_a_moved_view_is_what_a_camera_there_sees():
    """The wall of the room, 0.2 m aside: against the renderer's own picture."""
    recording = room.mapping_recording()
    image = recording.images[3]
    import cv2

    from edgeloc_tools.mapping.depth import depth_in_camera

    grey = cv2.cvtColor(image.source.read(), cv2.COLOR_BGR2GRAY)
    depth = depth_in_camera(image.depth, room.CAMERA).astype(np.float32)
    view = moved_view(
        grey,
        depth,
        room.CAMERA,
        image.cam_from_world,
        options=MoveOptions(turn_deg=3.0, roll_deg=3.0, move=0.05),
        rng=np.random.default_rng(1),
    )
    from edgeloc_tools.synth.render import render

    assert not np.allclose(view.cam_from_world.t, image.cam_from_world.t, atol=1e-3)
    true = render(room.room(), room.CAMERA, view.cam_from_world).image
    true = cv2.cvtColor(np.asarray(true, np.uint8), cv2.COLOR_BGR2GRAY)
    blurred, expected = (
        cv2.GaussianBlur(p, (0, 0), 2.0).astype(float)[view.seen]
        for p in (view.grey, true)
    )
    assert np.corrcoef(blurred, expected)[0, 1] > 0.95
    off = np.corrcoef(cv2.GaussianBlur(grey, (0, 0), 2.0)[view.seen], expected)[0, 1]
    assert np.corrcoef(blurred, expected)[0, 1] > off


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scene-coords"], "give --site, and with --recording"),
        (
            ["regress", "--site", "s", "--recording", "tum:x", "--photos", "p"],
            "no --ph",
        ),
        (["features", "-o", "x"], "train features: --photos is missing"),
    ],
)
def test_wrong_options_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert build_main(["train", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_depth_between_points_of_a_plane_is_that_of_the_plane(rng):
    """A wall that recedes to the right: exact between points, in inverse depth."""
    camera = room.CAMERA
    pixels = rng.uniform(0, [camera.width, camera.height], (80, 2))
    plane = normalized_from_pixels(camera, pixels)
    depth = 4.0 / (1.0 - 0.3 * plane[:, 0])
    in_cam = np.column_stack([plane, np.ones(80)]) * depth[:, None]
    found = depth_of_points(in_cam, camera)
    assert found.shape == (camera.height, camera.width)
    rows, cols = camera.height // 2, np.array([camera.width // 3, camera.width // 2])
    middle = normalized_from_pixels(
        camera, np.column_stack([cols + 0.5, np.full(2, rows + 0.5)])
    )
    expected = 4.0 / (1.0 - 0.3 * middle[:, 0])
    np.testing.assert_allclose(found[rows, cols], expected, rtol=1e-3)
    # Beyond the outermost points as at the nearest of them.
    assert in_cam[:, 2].min() <= found.min() * 1.0001
    assert found.max() <= in_cam[:, 2].max() * 1.0001
    assert depth_of_points(in_cam[:20], camera) is None
    assert depth_of_points(-in_cam, camera) is None
