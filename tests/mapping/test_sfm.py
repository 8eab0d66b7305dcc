from __future__ import annotations

import argparse
import importlib
import json
import math
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeloc.errors import ConfigError, DatasetError, MapError
from edgeloc.geometry.geodesy import GeoReference, wgs84_from_enu
from edgeloc.geometry.se3 import exp_so3, rotation_angle_rad
from edgeloc.types import CameraModel, Rigid3
from edgeloc_tools.datasets.recording import (
    GnssFix,
    ImageFile,
    RecordedImage,
    Recording,
)
from edgeloc_tools.datasets.registry import open_recording
from edgeloc_tools.mapping import sfm_colmap, sfm_command, sfm_work
from edgeloc_tools.mapping.align import umeyama
from edgeloc_tools.mapping.build import build_site
from edgeloc_tools.mapping.mask_options import masked_from_arguments
from edgeloc_tools.mapping.sfm import SfmOptions, read_summary, run_sfm
from edgeloc_tools.mapping.sfm_plan import camera_groups, image_pairs
from edgeloc_tools.mapping.sfm_world import DistanceConstraint, GravityPrior, place
from edgeloc_tools.synth.colour_segmenter import write_colour_segmenter

pytest.importorskip("pycolmap")  # no wheels for Linux aarch64

CAMERA = CameraModel(
    model="PINHOLE", width=320, height=240, params=(290.0, 290.0, 160.0, 120.0)
)
# Deterministic and light: one thread and few features.
QUICK = SfmOptions(max_keypoints=800, num_threads=1)
SIDE_M = 4.0
PLACE = {"latitude_deg": 47.5, "longitude_deg": -8.25, "altitude_m": 400.5}
TEXTURE_PX = 700


def look_at(center: np.ndarray, target: np.ndarray) -> Rigid3:
    forward = (target - center) / np.linalg.norm(target - center)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    R = np.stack([right, np.cross(forward, right), forward])
    return Rigid3(R=R, t=-R @ center)


def texture(rng: np.random.Generator) -> np.ndarray:
    out = np.zeros((TEXTURE_PX, TEXTURE_PX), np.float32)
    for cells in (12, 40, 110, 240):
        noise = rng.normal(size=(cells, cells)).astype(np.float32)
        out += cv2.resize(noise, (TEXTURE_PX, TEXTURE_PX), interpolation=2)
    return np.clip(128 + 45 * out, 0, 255).astype(np.uint8)


class Corner:
    """The inside of a corner: floor and two walls, 4 m wide, exactly known."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        ex, ey, ez = np.eye(3)
        self.planes = [(u, v, texture(rng)) for u, v in ((ex, ey), (ey, ez), (ez, ex))]

    def render(self, cam_from_world: Rigid3) -> np.ndarray:
        fx, fy, cx, cy = CAMERA.params
        # -0.5: warpPerspective counts from pixel centres.
        K = np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1.0]])
        image = np.full((CAMERA.height, CAMERA.width), 127, np.uint8)
        scale = SIDE_M / TEXTURE_PX
        for u, v, pixels in self.planes:
            R, t = cam_from_world.R, cam_from_world.t
            H = K @ np.stack([R @ u * scale, R @ v * scale, t], axis=1)
            size = (CAMERA.width, CAMERA.height)
            warped = cv2.warpPerspective(pixels, H, size, flags=cv2.INTER_AREA)
            inside = cv2.warpPerspective(np.full_like(pixels, 255), H, size)
            image = np.where(inside == 255, warped, image)
        return np.asarray(image, np.uint8)


def write_views(folder: Path, poses: dict[str, Rigid3], seed: int = 1) -> Recording:
    scene = Corner(seed)
    rng = np.random.default_rng(seed)
    for name, pose in poses.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noisy = scene.render(pose) + rng.normal(0, 2, (CAMERA.height, CAMERA.width))
        assert cv2.imwrite(str(folder / name), np.clip(noisy, 0, 255).astype(np.uint8))
    return open_recording(format="folder", input=folder)


def arc(count: int = 8) -> dict[str, Rigid3]:
    poses = {}
    for i, angle in enumerate(np.linspace(0.35, 1.2, count)):
        center = np.array(
            [8.0 * math.cos(angle), 8.0 * math.sin(angle), 3.0 + 0.4 * (i % 3)]
        )
        poses[f"view-{i}.png"] = look_at(center, np.array([1.2, 1.2, 1.2]))
    return poses


def centers(poses) -> np.ndarray:
    return np.array([p.origin_in_a for p in poses])


def found_poses(recording: Recording) -> dict[str, Rigid3]:
    return {i.name: i.cam_from_world for i in recording.images}


def assert_poses_agree(
    found: dict[str, Rigid3], truth: dict[str, Rigid3], *, share: float, deg: float
) -> None:
    names = sorted(found)
    src = centers(found[n] for n in names)
    dst = centers(truth[n] for n in names)
    sim = umeyama(src, dst)
    extent = np.linalg.norm(dst - dst.mean(axis=0), axis=1).max()
    errors = np.linalg.norm(sim.apply(src) - dst, axis=1) / extent
    assert errors.max() < share
    turns = np.array([found[n].R @ sim.R.T @ truth[n].R.T for n in names])
    assert np.degrees(rotation_angle_rad(turns)).max() < deg


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Eight rendered views and the model made from them (about 10 s, once)."""
    root = tmp_path_factory.mktemp("corner")
    truth = arc()
    recording = write_views(root / "photos", truth)
    lines: list[str] = []
    options = replace(
        QUICK,
        distances=(
            DistanceConstraint(
                name_a="view-0.png",
                name_b="view-7.png",
                metres=float(
                    np.linalg.norm(
                        truth["view-0.png"].origin_in_a
                        - truth["view-7.png"].origin_in_a
                    )
                ),
            ),
        ),
        gravity=GravityPrior(
            direction=tuple(truth["view-2.png"].R @ [0, 0, -1.0]), image="view-2.png"
        ),
    )
    found = run_sfm(recording, root / "out", options=options, progress=lines.append)
    return argparse.Namespace(
        root=root,
        out=root / "out",
        truth=truth,
        recording=recording,
        options=options,
        found=found,
        lines=lines,
    )


class TestModel:
    def test_poses_and_focal_length_are_found(self, scene):
        assert len(scene.found.images) == 8
        assert_poses_agree(found_poses(scene.found), scene.truth, share=0.02, deg=0.5)
        (camera,) = scene.found.cameras.values()
        assert camera.model == "SIMPLE_RADIAL"
        assert camera.focal_px[0] == pytest.approx(290.0, rel=0.03)

    def test_distance_and_gravity_make_a_metric_upright_world(self, scene):
        """With both given, only a turn about z and a shift are left."""
        assert scene.found.metric
        assert scene.found.gravity_in_world == (0.0, 0.0, -1.0)
        poses = found_poses(scene.found)
        names = sorted(poses)
        sim = umeyama(
            centers(poses[n] for n in names), centers(scene.truth[n] for n in names)
        )
        assert sim.scale == pytest.approx(1.0, abs=0.01)
        assert np.degrees(np.arccos((sim.R @ [0, 0, 1])[2])) < 0.5
        np.testing.assert_allclose(centers(poses.values()).mean(axis=0), 0, atol=1e-9)

    def test_sfm_json_says_where_everything_comes_from(self, scene):
        facts = read_summary(scene.out)
        assert facts["status"] == "ok"
        assert facts["num_registered"] == facts["num_images"] == 8
        assert facts["num_points"] > 300
        assert facts["mean_reproj_error_px"] < 0.7
        assert facts["mean_track_length"] > 2.5
        assert facts["scale_source"] == "given distance"
        assert facts["gravity_source"] == "given"
        assert facts["world_frame"] == "z up, origin at the mean camera centre, metres"
        assert facts["geo_reference"] is None
        assert facts["not_registered"] == []
        assert facts["warnings"] == []
        assert facts["matching"] == "exhaustive"
        assert facts["num_pairs"] == 28

    def test_the_colmap_reader_gets_the_same_poses(self, scene):
        again = open_recording(format="colmap", input=scene.out)
        assert {i.name for i in again.images} == set(scene.truth)
        for image in again.images:
            ours = found_poses(scene.found)[image.name]
            np.testing.assert_allclose(image.cam_from_world.R, ours.R, atol=1e-9)
            np.testing.assert_allclose(image.cam_from_world.t, ours.t, atol=1e-9)
            assert again.cameras[image.camera_id] == next(
                iter(scene.found.cameras.values())
            )
            assert image.source.read().shape == (240, 320, 3)
        assert (scene.out / "sparse" / "0" / "images.txt").is_file()
        assert (scene.out / "sparse" / "0" / "images.bin").is_file()

    def test_its_site_has_the_scale_gravity_and_place_of_sfm_json(
        self, scene, tmp_path
    ):
        again = open_recording(format="colmap", input=scene.out)
        assert again.metric
        assert again.gravity_in_world == scene.found.gravity_in_world
        assert again.geo_reference is scene.found.geo_reference is None
        assert again.pose_source == scene.found.pose_source

        copy = shutil.copytree(scene.out, tmp_path / "copy", symlinks=True)
        facts = json.loads((copy / "sfm.json").read_text())
        facts["geo_reference"] = PLACE
        (copy / "sfm.json").write_text(json.dumps(facts))
        recording = open_recording(format="colmap", input=copy / "sparse" / "0")
        build_site(recording, out=tmp_path / "site")
        site = json.loads((tmp_path / "site" / "site.json").read_text())
        assert site["metric"] is True
        assert site["gravity_in_world"] == [0.0, 0.0, -1.0]
        assert site["geo_reference"] == PLACE

    def test_progress_names_each_step_with_counts(self, scene):
        text = "\n".join(scene.lines)
        assert "images: 8 images" in text
        assert "features: 8 images, " in text
        assert "pairs match (exhaustive)" in text
        assert "model: 8 of 8 images, " in text

    def test_links_are_used_and_nothing_temporary_stays(self, scene):
        assert (scene.out / "images" / "view-0.png").is_symlink()
        assert sorted(p.name for p in scene.out.iterdir()) == [
            "images",
            "sfm.json",
            "sparse",
            "work",
        ]
        assert [p.name for p in (scene.out / "sparse").iterdir()] == ["0"]


def count_calls(monkeypatch, name: str) -> list[object]:
    calls: list[object] = []
    real = getattr(sfm_colmap, name)

    def counted(*args, **kwargs):
        calls.append((args, kwargs))
        return real(*args, **kwargs)

    monkeypatch.setattr(sfm_colmap, name, counted)
    return calls


class TestResume:
    def test_a_second_run_redoes_nothing_but_the_placement(self, scene, monkeypatch):
        calls = [
            count_calls(monkeypatch, name)
            for name in ("extract", "match_pairs", "map_images")
        ]
        markers = sorted((scene.out / "work").glob("*.done.json"))
        before = [p.stat().st_mtime_ns for p in markers]
        lines: list[str] = []
        options = replace(
            scene.options,
            distances=(
                DistanceConstraint(
                    name_a="view-0.png", name_b="view-1.png", metres=9.0
                ),
            ),
        )
        found = run_sfm(
            scene.recording, scene.out, options=options, progress=lines.append
        )
        assert calls == [[], [], []]
        assert len(markers) == 4
        assert [p.stat().st_mtime_ns for p in markers] == before
        assert [line for line in lines if "finished before" in line] == [
            f"{step}: finished before" for step in sfm_work.STEPS
        ]
        poses = found_poses(found)
        apart = poses["view-0.png"].origin_in_a - poses["view-1.png"].origin_in_a
        assert np.linalg.norm(apart) == pytest.approx(9.0, rel=1e-6)

    def test_interruption_is_resumed_within_the_step_and_changes_are_named(
        self, tmp_path, monkeypatch
    ):
        """Ctrl-C after 8 of 10 pairs: the second run matches the other 2 only."""
        recording = write_views(tmp_path / "photos", arc(5))
        out = tmp_path / "out"
        monkeypatch.setattr("edgeloc_tools.mapping.sfm._PAIR_CHUNK", 4)
        real = sfm_colmap.match_pairs
        listed: list[int] = []

        def interrupted(database, pair_list, **kwargs):
            if len(listed) == 2:
                raise KeyboardInterrupt
            listed.append(len(pair_list.read_text().splitlines()))
            real(database, pair_list, **kwargs)

        monkeypatch.setattr(sfm_colmap, "match_pairs", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_sfm(recording, out, options=QUICK, progress=lambda _: None)
        assert listed == [4, 4]
        assert not (out / "sfm.json").exists()

        rest: list[int] = []

        def counted(database, pair_list, **kwargs):
            rest.append(len(pair_list.read_text().splitlines()))
            real(database, pair_list, **kwargs)

        monkeypatch.setattr(sfm_colmap, "match_pairs", counted)
        extracted = count_calls(monkeypatch, "extract")
        lines: list[str] = []
        found = run_sfm(recording, out, options=QUICK, progress=lines.append)
        assert len(found.images) == 5
        assert rest == [2]
        assert extracted == []
        assert "matches: going on after an interruption" in lines

        lines.clear()
        rest.clear()
        run_sfm(
            recording,
            out,
            options=replace(QUICK, max_keypoints=700, matching="sequential", overlap=1),
            progress=lines.append,
        )
        assert "images: finished before" in lines
        assert "features: made again, since max_keypoints: 800 -> 700" in lines
        assert sum(rest) == 4 + 3 + 1  # apart by 1, 2 and 4

    def test_interrupted_extraction_goes_on_with_the_same_camera(
        self, tmp_path, monkeypatch
    ):
        recording = write_views(tmp_path / "photos", arc(5))
        monkeypatch.setattr("edgeloc_tools.mapping.sfm._FEATURE_CHUNK", 2)
        real = sfm_colmap.extract
        names: list[str] = []

        def once(*args, **kwargs):
            if names:
                raise KeyboardInterrupt
            names.extend(kwargs["names"])
            real(*args, **kwargs)

        monkeypatch.setattr(sfm_colmap, "extract", once)
        with pytest.raises(KeyboardInterrupt):
            run_sfm(recording, tmp_path / "out", options=QUICK)
        monkeypatch.setattr(sfm_colmap, "extract", real)
        later = count_calls(monkeypatch, "extract")
        found = run_sfm(recording, tmp_path / "out", options=QUICK)
        assert names == ["view-0.png", "view-1.png"]
        assert [kwargs["names"] for _, kwargs in later] == [
            ["view-2.png", "view-3.png"],
            ["view-4.png"],
        ]
        assert len(found.cameras) == 1

    def test_a_folder_of_something_else_is_left_alone(self, tmp_path, scene):
        (tmp_path / "thesis.tex").write_text("precious")
        with pytest.raises(ConfigError, match="is not empty and not from"):
            run_sfm(scene.recording, tmp_path, options=QUICK)
        assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


class TestFailure:
    def test_noise_matches_nothing(self, tmp_path, rng):
        photos = tmp_path / "photos"
        photos.mkdir()
        for i in range(3):
            noise = rng.integers(0, 256, (160, 200), dtype=np.uint8)
            cv2.imwrite(str(photos / f"{i}.png"), cv2.GaussianBlur(noise, (0, 0), 1.5))
        recording = open_recording(format="folder", input=photos)
        with pytest.raises(MapError, match="none of 3 image pairs share 15 matches"):
            run_sfm(recording, tmp_path / "out", options=QUICK)
        facts = read_summary(tmp_path / "out")
        assert facts["status"] == "failed"
        assert "the pictures do not overlap" in facts["reason"]
        assert [s["num_partners"] for s in facts["images"]] == [0, 0, 0]
        assert not (tmp_path / "out" / "sparse").exists()

    def test_blank_images_are_called_textureless(self, tmp_path):
        photos = tmp_path / "photos"
        photos.mkdir()
        for i in range(3):
            cv2.imwrite(str(photos / f"{i}.png"), np.full((240, 320), 90 + i, np.uint8))
        recording = open_recording(format="folder", input=photos)
        with pytest.raises(MapError, match="look blurred or textureless"):
            run_sfm(recording, tmp_path / "out", options=QUICK)

    def test_turning_on_the_spot_is_named(self, tmp_path):
        center = np.array([6.0, 5.0, 3.0])
        poses = {
            f"{i}.png": look_at(center, np.array([1.0 + 0.25 * i, 1.5, 1.2]))
            for i in range(3)
        }
        recording = write_views(tmp_path / "photos", poses)
        recording = replace(recording, cameras={"camera": CAMERA})
        with pytest.raises(MapError, match="seems to turn on the spot"):
            run_sfm(recording, tmp_path / "out", options=QUICK)

    @pytest.mark.slow
    def test_a_failure_sets_the_model_of_other_inputs_aside(self, tmp_path, rng):
        """An old model beside new, failed inputs would be taken for theirs."""
        photos = tmp_path / "photos"
        recording = write_views(photos, arc(4))
        run_sfm(recording, tmp_path / "out", options=QUICK)
        assert (tmp_path / "out" / "sparse" / "0").is_dir()
        for path in photos.iterdir():
            noise = rng.integers(0, 256, (240, 320), dtype=np.uint8)
            cv2.imwrite(str(path), cv2.GaussianBlur(noise, (0, 0), 2))
        lines: list[str] = []
        with pytest.raises(MapError, match="no model"):
            run_sfm(recording, tmp_path / "out", options=QUICK, progress=lines.append)
        assert "images: made again, since images: 4 changed" in lines
        assert [p.name for p in (tmp_path / "out" / "sparse").iterdir()] == ["previous"]

    def test_lost_images_are_listed_with_the_reason(self, tmp_path, rng):
        photos = tmp_path / "photos"
        write_views(photos, arc(5))
        cv2.imwrite(str(photos / "x-blank.png"), np.full((240, 320), 80, np.uint8))
        noise = rng.integers(0, 256, (240, 320), dtype=np.uint8)
        cv2.imwrite(str(photos / "y-other.png"), noise)
        recording = open_recording(format="folder", input=photos)
        lines: list[str] = []
        found = run_sfm(
            recording, tmp_path / "out", options=QUICK, progress=lines.append
        )
        assert len(found.images) == 5
        lost = {e["name"]: e for e in read_summary(tmp_path / "out")["not_registered"]}
        assert lost["x-blank.png"]["reason"] == (
            "only 0 features (blurred or without texture)"
        )
        assert lost["y-other.png"]["reason"] == "matches no other image"
        assert lost["y-other.png"]["num_features"] > 150
        warned = [
            line for line in lines if "only 5 of 7 images are in the model" in line
        ]
        assert len(warned) == 1

    def test_two_images_are_too_few(self, scene, tmp_path):
        two = scene.recording.subset(scene.recording.images[:2])
        with pytest.raises(DatasetError, match="needs at least 3"):
            run_sfm(two, tmp_path / "out")

    def test_an_unknown_image_is_refused_before_any_work(self, scene, tmp_path):
        options = replace(
            QUICK,
            distances=(DistanceConstraint(name_a="view-0.png", name_b="no", metres=1),),
        )
        with pytest.raises(ConfigError, match="there is no image 'no'"):
            run_sfm(scene.recording, tmp_path / "out", options=options)
        assert not (tmp_path / "out").exists()

    def test_a_name_with_a_blank_is_refused(self, tmp_path):
        write_views(
            tmp_path / "photos",
            {f"a {i}.png": p for i, p in enumerate(arc(3).values())},
        )
        recording = open_recording(format="folder", input=tmp_path / "photos")
        with pytest.raises(DatasetError, match=r"'a 0\.png': COLMAP needs image names"):
            run_sfm(recording, tmp_path / "out", options=QUICK)

    def test_missing_pycolmap_says_what_to_install(self, scene, tmp_path, monkeypatch):
        def missing(name):
            raise ImportError(name)

        monkeypatch.setattr(importlib, "import_module", missing)
        monkeypatch.setattr(sfm_colmap.platform, "machine", lambda: "aarch64")
        with pytest.raises(ConfigError) as caught:
            run_sfm(scene.recording, tmp_path / "out")
        assert "pip install 'pycolmap>=4'" in str(caught.value)
        assert "no wheel for Linux aarch64" in str(caught.value)

    def test_an_old_pycolmap_is_refused(self, monkeypatch):
        old = argparse.Namespace(__version__="3.13.0")
        monkeypatch.setattr(importlib, "import_module", lambda _: old)
        with pytest.raises(ConfigError, match=r"pycolmap 3\.13\.0 is too old"):
            sfm_colmap.load_pycolmap()


def sfm_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    sfm_command.add_arguments(parser)
    return parser


def test_known_intrinsics_and_poses_are_kept_and_masks_are_used(tmp_path):
    """A posed recording: its camera stays, the world is that of its poses."""
    truth = arc(6)
    recording = write_views(tmp_path / "photos", truth)
    mask = np.full((CAMERA.height, CAMERA.width), 255, np.uint8)
    mask[:, : CAMERA.width // 3] = 0
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks" / "view-3.png.png"), mask)
    somebody = cv2.imread(str(tmp_path / "photos" / "view-4.png"))
    somebody[60:180, 220:280] = np.where(
        somebody[60:180, 220:280] > 127, (255, 60, 255), (200, 0, 200)
    )
    cv2.imwrite(str(tmp_path / "photos" / "view-4.png"), somebody)
    args = sfm_parser().parse_args(
        [
            *("--format", "folder", "--input", "x", "-o", "x"),
            *("--masks", str(tmp_path / "masks")),
            *("--hood", "0,220 320,220 320,240 0,240"),
            *("--segmenter", str(write_colour_segmenter(tmp_path))),
        ]
    )
    recording = masked_from_arguments(args, recording)
    recording = replace(
        recording,
        cameras={"camera": CAMERA},
        images=tuple(
            replace(i, cam_from_world=truth[i.name]) for i in recording.images
        ),
        metric=True,
        gravity_in_world=(0.0, 0.0, -1.0),
        geo_reference=PLACE,
    )
    found = run_sfm(recording, tmp_path / "out", options=QUICK)
    assert found.geo_reference == PLACE
    assert list(found.cameras.values()) == [CAMERA]
    for image in found.images:
        error = image.cam_from_world.origin_in_a - truth[image.name].origin_in_a
        assert np.linalg.norm(error) < 0.05
    facts = read_summary(tmp_path / "out")
    assert facts["scale_source"] == "recorded poses"
    assert facts["world_frame"] == "that of the recorded poses"
    assert facts["gravity_source"] == "recording"
    assert facts["alignment"]["num_known_poses_used"] == 6
    assert facts["alignment"]["rotation_median_deg"] < 0.2

    pycolmap = sfm_colmap.load_pycolmap()
    model = pycolmap.Reconstruction(str(tmp_path / "out" / "sparse" / "0"))
    seen = {i.name: np.array([p.xy for p in i.points2D]) for i in model.images.values()}
    assert seen["view-3.png"][:, 0].min() >= CAMERA.width // 3 + 3  # with a margin
    assert seen["view-2.png"][:, 0].min() < CAMERA.width // 4
    assert 200 < max(xy[:, 1].max() for xy in seen.values()) <= 216  # off the hood

    def on_somebody(name):
        inside = np.abs(seen[name] - [250, 120]) < [30, 60]
        return np.count_nonzero(inside.all(axis=1))

    assert on_somebody("view-4.png") == 0
    assert on_somebody("view-2.png") > 10


def test_command_line_from_a_video(tmp_path, capsys):
    """Frames of a video are written out; the map reader finds them again."""
    scene, path = Corner(3), tmp_path / "walk.avi"
    writer = cv2.VideoWriter(
        str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (CAMERA.width, CAMERA.height)
    )
    for pose in arc(10).values():
        writer.write(cv2.cvtColor(scene.render(pose), cv2.COLOR_GRAY2BGR))
    writer.release()
    parser, out = sfm_parser(), tmp_path / "out"
    line = f"--format video --input {path} -o {out} --stride 2 --threads 1"
    line += " --max-keypoints 800 --intrinsics single-camera --align-to none"
    assert sfm_command.run(parser.parse_args(line.split())) == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert facts["num_registered"] == 5
    assert facts["metric"] is False
    assert facts["scale_source"] == "none"
    assert facts["gravity_source"] == "estimated from upright cameras"
    assert "warning: the scale is arbitrary" in captured.err
    again = open_recording(format="colmap", input=out)
    assert [i.name for i in again.images] == [
        f"walk.avi/{i:06d}" for i in range(0, 10, 2)
    ]
    assert again.images[0].source.read().shape == (240, 320, 3)


@pytest.mark.data
@pytest.mark.slow
def test_fox_poses_agree_with_the_published_ones(shared_data, tmp_path):
    """Thirteen phone pictures at half size: centres within 2 % of their extent."""
    truth = open_recording(format="nerfstudio", input=shared_data / "fox")
    chosen = truth.images[::4]
    for image in chosen:
        half = cv2.resize(
            image.source.read(), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA
        )
        (tmp_path / "photos").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "photos" / f"{Path(image.name).stem}.png"), half)
    recording = open_recording(format="folder", input=tmp_path / "photos")
    found = run_sfm(recording, tmp_path / "out", options=SfmOptions(max_keypoints=2000))
    assert len(found.images) == len(chosen) == 13
    assert_poses_agree(
        found_poses(found),
        {f"{Path(i.name).stem}.png": i.cam_from_world for i in chosen},
        share=0.02,
        # The published principal point is 7 px (0.6°) off the centre, where that of
        # the estimated camera is.
        deg=1.0,
    )
    (camera,) = found.cameras.values()
    published = truth.cameras[chosen[0].camera_id].focal_px[0] / 2
    assert camera.focal_px[0] == pytest.approx(published, rel=0.02)
    assert read_summary(tmp_path / "out")["mean_reproj_error_px"] < 0.6


class TestPlan:
    NAMES = tuple(f"{i:03d}" for i in range(40))

    def test_exhaustive_pairs(self):
        how, pairs = image_pairs(
            self.NAMES, matching="auto", overlap=5, exhaustive_up_to=40
        )
        assert how == "exhaustive"
        assert len(set(pairs)) == len(pairs) == 40 * 39 // 2

    def test_sequential_pairs_reach_back_by_powers_of_two(self):
        how, pairs = image_pairs(
            self.NAMES, matching="auto", overlap=3, exhaustive_up_to=39
        )
        assert how == "sequential"
        apart = {int(b) - int(a) for a, b in pairs}
        assert apart == {1, 2, 3, 4, 8, 16, 32}
        assert len(set(pairs)) == len(pairs) == sum(40 - s for s in apart)

    @staticmethod
    def recording(ids=("a", "a", "b"), cameras=None) -> Recording:
        return Recording(
            name="r",
            images=[
                RecordedImage(
                    name=f"{i}.png", camera_id=c, source=ImageFile(Path(f"{i}.png"))
                )
                for i, c in enumerate(ids)
            ],
            cameras=cameras or {},
        )

    SIZES = {f"{i}.png": (320, 240) for i in range(3)}  # noqa: RUF012

    def test_cameras_are_shared_by_id_and_focal_length(self):
        focal = {"0.png": None, "1.png": 0.8, "2.png": None}
        groups = camera_groups(self.recording(), QUICK, self.SIZES, focal)
        assert [(g.names, g.focal_factor) for g in groups] == [
            (("0.png",), 1.2),
            (("1.png",), 0.8),
            (("2.png",), 1.2),
        ]
        groups = camera_groups(self.recording(), QUICK, self.SIZES, {})
        assert [g.names for g in groups] == [("0.png", "1.png"), ("2.png",)]

    def test_known_and_unknown_cameras_mix(self):
        groups = camera_groups(
            self.recording(cameras={"b": CAMERA}), QUICK, self.SIZES, {}
        )
        assert [g.camera for g in groups] == [None, CAMERA]

    def test_single_and_per_image(self):
        single = replace(QUICK, cameras="single")
        groups = camera_groups(self.recording(), single, self.SIZES, {})
        assert [g.names for g in groups] == [("0.png", "1.png", "2.png")]
        each = replace(QUICK, cameras="per-image")
        assert len(camera_groups(self.recording(), each, self.SIZES, {})) == 3
        with pytest.raises(DatasetError, match=r"have 2 sizes \(240x320, 320x240\)"):
            camera_groups(
                self.recording(), single, {**self.SIZES, "2.png": (240, 320)}, {}
            )

    def test_intrinsics_of_another_size_are_refused(self):
        with pytest.raises(DatasetError, match="is 800x600, but its intrinsics"):
            camera_groups(
                self.recording(("b",), {"b": CAMERA}), QUICK, {"0.png": (800, 600)}, {}
            )

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"camera_model": "THIN_PRISM"}, "--camera-model: 'THIN_PRISM' is not one"),
            ({"mapper": "magic"}, "--mapper: 'magic' is not one of"),
            ({"align_to": "stars"}, "--align-to: 'stars' is not one of"),
            ({"max_keypoints": 0}, "--max-keypoints: 0 must be > 0"),
            ({"num_threads": 0}, "--threads: 0 must be"),
        ],
    )
    def test_options_refuse_nonsense(self, change, message):
        with pytest.raises(ConfigError, match=message):
            SfmOptions(**change)


class TestCommandLine:
    def test_distance(self):
        parsed = sfm_command.parse_distance("a.jpg, b/c.jpg,2.5")
        assert parsed == DistanceConstraint(
            name_a="a.jpg", name_b="b/c.jpg", metres=2.5
        )

    @pytest.mark.parametrize("text", ["a,b", "a,b,c", "a,b,c,1", ""])
    def test_distance_written_wrongly(self, text):
        with pytest.raises(ConfigError, match="write IMAGE_A,IMAGE_B,METRES"):
            sfm_command.parse_distance(text)

    @pytest.mark.parametrize("text", ["a,b,0", "a,b,-1", "a,b,nan", "a,a,1"])
    def test_distance_that_is_none(self, text):
        with pytest.raises(ConfigError, match=r"must be > 0|needs two images"):
            sfm_command.parse_distance(text)

    def test_gravity(self):
        parsed = sfm_command.parse_gravity("0,1,-0.5@a.jpg")
        assert parsed == GravityPrior(direction=(0.0, 1.0, -0.5), image="a.jpg")
        assert sfm_command.parse_gravity("0,0,-1").image is None
        with pytest.raises(ConfigError, match="write X,Y,Z@IMAGE"):
            sfm_command.parse_gravity("down")
        with pytest.raises(ConfigError, match="is not a direction"):
            sfm_command.parse_gravity("0,0,0")


def jpeg_with_orientation(path: Path, orientation: int, order: str) -> None:
    _, data = cv2.imencode(".jpg", np.zeros((8, 16, 3), np.uint8))
    raw = data.tobytes()
    mark = {"<": b"II*\x00", ">": b"MM\x00*"}[order]
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = mark + struct.pack(order + "IH", 8, 1) + entry + struct.pack(order + "I", 0)
    app = b"Exif\x00\x00" + tiff
    segment = b"\xff\xe1" + struct.pack(">H", len(app) + 2) + app
    path.write_bytes(raw[:2] + segment + raw[2:])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation_agrees_with_opencv(tmp_path, orientation, order):
    path = tmp_path / "a.jpg"
    jpeg_with_orientation(path, orientation, order)
    assert sfm_work.exif_orientation(path) == orientation
    shown = cv2.imread(str(path))
    assert shown.shape[:2] == ((16, 8) if orientation in {6, 8} else (8, 16))
    # A shown picture's x axis is that of the rotation, in the stored picture.
    right_in_stored = sfm_work.view_from_camera(orientation)[0]
    assert abs(right_in_stored[0 if shown.shape[1] == 16 else 1]) == 1.0


def test_exif_of_damaged_files_is_upright(tmp_path):
    path = tmp_path / "a.jpg"
    jpeg_with_orientation(path, 6, "<")
    whole = path.read_bytes()
    for cut in range(0, 60, 7):
        path.write_bytes(whole[:cut])
        assert sfm_work.exif_orientation(path) in {1, 6}
    path.write_bytes(whole.replace(b"II*", b"??*"))
    assert sfm_work.exif_orientation(path) == 1


class TestPlacement:
    """Scale, gravity and place, on exact poses in an arbitrary model frame."""

    @staticmethod
    def world(straight: bool = False) -> dict[str, Rigid3]:
        poses = {}
        for i in range(24):
            a = 0.0 if straight else i * 0.26
            center = (
                np.array([4.0 * i, 0.3 * i, 1.5])
                if straight
                else np.array([40 * np.cos(a), 30 * np.sin(a), 1.5 + np.sin(3 * a)])
            )
            target = center + np.array([np.cos(a + 1), np.sin(a + 1), -0.1])
            poses[f"{i:02d}.jpg"] = look_at(center, target)
        return poses

    @staticmethod
    def model_of(world: dict[str, Rigid3]) -> dict[str, Rigid3]:
        turn, scale = exp_so3([0.4, -1.2, 2.0]), 0.07
        out = {}
        for name, pose in world.items():
            R = pose.R @ turn.T
            center = scale * turn @ pose.origin_in_a + [1.0, -2.0, 0.5]
            out[name] = Rigid3(R=R, t=-R @ center)
        return out

    @staticmethod
    def recording(world, **fields) -> Recording:
        images = [
            RecordedImage(
                name=name,
                camera_id="c",
                source=ImageFile(Path(name)),
                **{k: v[name] for k, v in fields.items()},
            )
            for name in world
        ]
        return Recording(name="r", images=images, cameras={})

    ORIGIN = GeoReference(latitude_deg=47.4, longitude_deg=8.5, altitude_m=450.0)

    def fixes(self, world, rng, *, sigma=1.0, outliers=()) -> dict[str, GnssFix]:
        out = {}
        for i, (name, pose) in enumerate(world.items()):
            noise = rng.normal(size=3) * [sigma, sigma, 2 * sigma]
            if i in outliers:
                noise = noise + np.array([60.0, -45.0, 20.0])
            lat, lon, alt = wgs84_from_enu(pose.origin_in_a + noise, self.ORIGIN)
            out[name] = GnssFix(
                latitude_deg=float(lat[0]),
                longitude_deg=float(lon[0]),
                altitude_m=float(alt[0]),
                horizontal_sigma_m=sigma,
                vertical_sigma_m=2 * sigma,
            )
        return out

    def errors_in_enu(self, placement, model, world) -> np.ndarray:
        """Distances of the placed cameras from the truth, m, by way of WGS84."""
        placed = placement.world_from_model.apply(centers(model.values()))
        geo = wgs84_from_enu(placed, placement.geo_reference)
        true_geo = wgs84_from_enu(centers(world.values()), self.ORIGIN)
        metres = [111_200.0, 111_200.0 * math.cos(math.radians(47.4)), 1.0]
        return np.linalg.norm((np.array(geo) - np.array(true_geo)).T * metres, axis=1)

    def test_gnss_makes_an_east_north_up_world(self, rng):
        world = self.world()
        model = self.model_of(world)
        fixes = self.fixes(world, rng, sigma=0.5, outliers=(2, 11, 19))
        placement = place(model, self.recording(world, gnss=fixes), rng=rng)
        assert placement.metric
        assert placement.scale_source == "GNSS"
        assert placement.gravity_source == "GNSS"
        assert placement.gravity_in_world == (0.0, 0.0, -1.0)
        assert placement.details["num_gnss_fixes_used"] == 21
        assert placement.world_from_model.scale == pytest.approx(1 / 0.07, rel=0.01)
        assert self.errors_in_enu(placement, model, world).max() < 1.5
        assert placement.geo_reference.latitude_deg == pytest.approx(47.4, abs=1e-3)

    def test_a_straight_drive_takes_its_tilt_from_the_cameras(self, rng):
        """Fixes on a line leave the roll open: it comes from the cameras."""
        world = self.world(straight=True)
        model = self.model_of(world)
        fixes = self.fixes(world, rng, sigma=1.0)
        placement = place(model, self.recording(world, gnss=fixes), rng=rng)
        assert placement.gravity_source == "estimated from upright cameras"
        assert placement.details["tilt_sigma_from_gnss_deg"] > 5
        pose = placement.world_from_model.apply_to_pose(model["00.jpg"])
        up_error = rotation_angle_rad(pose.R @ world["00.jpg"].R.T)
        # The common pitch of 0.1 rad goes into the estimate, the heading is known.
        assert float(up_error) < 0.15
        assert placement.world_from_model.scale == pytest.approx(1 / 0.07, rel=0.05)

    def test_given_distance_beats_the_scale_of_fixes(self, rng):
        world = self.world()
        model = self.model_of(world)
        apart = np.linalg.norm(
            world["00.jpg"].origin_in_a - world["09.jpg"].origin_in_a
        )
        placement = place(
            model,
            self.recording(world, gnss=self.fixes(world, rng, sigma=3.0)),
            distances=[
                DistanceConstraint(
                    name_a="00.jpg", name_b="09.jpg", metres=float(apart)
                )
            ],
            rng=rng,
        )
        assert placement.scale_source == "given distance"
        assert placement.world_from_model.scale == pytest.approx(1 / 0.07, rel=1e-9)
        assert placement.geo_reference is not None

    def test_short_path_warns_about_scale(self, rng):
        world = {
            n: Rigid3(R=p.R, t=-p.R @ (p.origin_in_a * 0.05))
            for n, p in self.world().items()
        }
        placement = place(
            self.model_of(world),
            self.recording(world, gnss=self.fixes(world, rng, sigma=3.0)),
            rng=rng,
        )
        assert any("the scale from GNSS is uncertain" in w for w in placement.warnings)

    def test_recorded_poses_in_a_straight_line_still_fix_the_turn(self, rng):
        """The centres leave the turn about the line open, the directions do not."""
        world = self.world(straight=True)
        model = self.model_of(world)
        recording = self.recording(world, cam_from_world=world)
        recording = replace(recording, gravity_in_world=(0.0, 0.0, -1.0))
        placement = place(model, recording, rng=rng)
        assert placement.scale_source == "recorded poses"
        for name, pose in model.items():
            placed = placement.world_from_model.apply_to_pose(pose)
            np.testing.assert_allclose(placed.R, world[name].R, atol=1e-6)
            np.testing.assert_allclose(placed.t, world[name].t, atol=1e-4)
        assert placement.gravity_in_world == (0.0, 0.0, -1.0)

    def test_poses_of_other_images_are_noticed(self, rng):
        world = self.world()
        names = list(world)
        shuffled = dict(
            zip(names, (world[n] for n in rng.permutation(names)), strict=True)
        )
        with pytest.raises(MapError, match="does not fit the recorded poses"):
            place(
                self.model_of(world),
                self.recording(world, cam_from_world=shuffled),
                rng=rng,
            )

    def test_nothing_known_is_said_clearly(self, rng):
        world = self.world()
        model = self.model_of(world)
        placement = place(model, self.recording(world), rng=rng)
        assert not placement.metric
        assert placement.scale_source == "none"
        assert placement.world_from_model.scale == 1.0
        assert placement.gravity_source == "estimated from upright cameras"
        up = [
            (placement.world_from_model.apply_to_pose(p).R @ [0, 0, 1])[1]
            for p in model.values()
        ]
        assert np.mean(up) < -0.95
        assert any("the scale is arbitrary" in w for w in placement.warnings)
        without = place(model, self.recording(world), estimate_gravity=False, rng=rng)
        assert without.gravity_in_world is None
        assert without.gravity_source == "none"

    def test_pictures_stored_sideways_are_turned_first(self, rng):
        """Portrait shots: the stored picture lies on its side, EXIF says so."""
        world = self.world()
        turn = sfm_work.view_from_camera(6)
        model = {
            n: Rigid3(R=turn.T @ p.R, t=turn.T @ p.t)
            for n, p in self.model_of(world).items()
        }
        placement = place(
            model,
            self.recording(world),
            view_from_cam=dict.fromkeys(model, turn),
            rng=rng,
        )
        up = [
            (turn @ placement.world_from_model.apply_to_pose(p).R @ [0, 0, 1])[1]
            for p in model.values()
        ]
        assert np.mean(up) < -0.95

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            (
                {"align_to": "gnss"},
                ConfigError,
                "0 images of the model have a GNSS fix",
            ),
            (
                {"align_to": "poses"},
                ConfigError,
                "0 images of the model have a recorded",
            ),
            (
                {"gravity": GravityPrior(direction=(0, 0, -1))},
                ConfigError,
                "say in which image's camera",
            ),
            (
                {"gravity": GravityPrior(direction=(0, 1, 0), image="lost.jpg")},
                MapError,
                "image 'lost.jpg' is not in the model",
            ),
        ],
    )
    def test_what_cannot_be_done_is_refused(self, options, error, message, rng):
        world = self.world()
        with pytest.raises(error, match=message):
            place(self.model_of(world), self.recording(world), rng=rng, **options)

    def test_distance_and_poses_contradict(self, rng):
        world = self.world()
        with pytest.raises(ConfigError, match="both set the scale"):
            place(
                self.model_of(world),
                self.recording(world, cam_from_world=world),
                align_to="poses",
                distances=[
                    DistanceConstraint(name_a="00.jpg", name_b="01.jpg", metres=1.0)
                ],
                rng=rng,
            )

    def test_distances_that_disagree_are_reported(self, rng):
        world = self.world()
        placement = place(
            self.model_of(world),
            self.recording(world),
            distances=[
                DistanceConstraint(name_a="00.jpg", name_b="05.jpg", metres=30.0),
                DistanceConstraint(name_a="00.jpg", name_b="12.jpg", metres=30.0),
            ],
            rng=rng,
        )
        assert any("the given distances disagree" in w for w in placement.warnings)
