"""Recordings on disk and in memory, video, and the command."""

from __future__ import annotations

import argparse
import json

import cv2
import numpy as np
import pytest

from edgeloc.errors import ConfigError
from edgeloc.types import CameraModel
from edgeloc_tools.datasets.registry import open_recording
from edgeloc_tools.synth import command
from edgeloc_tools.synth.movers import make_walkers
from edgeloc_tools.synth.record import (
    Capture,
    film,
    make_recording,
    stamp_text,
    synth_recording,
    write_video,
)
from edgeloc_tools.synth.trajectory import room_walk

FISHEYE = CameraModel(
    model="OPENCV_FISHEYE",
    width=160,
    height=120,
    params=(95, 95, 80, 60, 0.02, -0.01, 0.003, -0.001),
)
BROWN = CameraModel(
    model="OPENCV",
    width=160,
    height=120,
    params=(125, 124, 80, 60, -0.2, 0.05, 0.001, -0.001),
)


@pytest.fixture
def path(room):
    return room_walk(2, room.extent_m, duration_s=4.0)


@pytest.fixture
def peopled(room, path):
    """The room with a person before the camera."""
    x, y, _ = path.pose_at(0.1).inverse().transform([0.0, 0.0, 1.4])
    return room.with_movers(make_walkers(1, [((x, y, 0.0), (x + 1.0, y, 0.0))]))


CAPTURE = Capture(num_frames=3, rate_hz=10.0, jpeg_quality=None, noise_sigma=0.5)


@pytest.mark.parametrize(
    ("format_", "camera"),
    [("tum", "small"), ("tum", BROWN), ("nerfstudio", BROWN), ("nerfstudio", FISHEYE)],
)
def test_a_written_recording_reads_back(
    format_, camera, peopled, path, small, tmp_path
):
    camera = small if camera == "small" else camera
    out = tmp_path / "recording"
    calls = []
    make_recording(
        out,
        scene=peopled,
        path=path,
        capture=CAPTURE,
        camera=camera,
        progress=lambda *call: calls.append(call),
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]
    read = open_recording(format=format_, input=out)
    assert read.metric
    (own,) = read.cameras.values()
    assert own.model == camera.model
    assert own.params == pytest.approx(camera.params, abs=1e-9)
    frames = list(film(peopled, path, camera, CAPTURE))
    assert len(read.images) == 3
    for image, frame in zip(read.images, frames, strict=True):
        assert np.array_equal(image.source.read(), frame.image)
        assert np.allclose(image.cam_from_world.R, frame.cam_from_world.R, atol=1e-6)
        assert np.allclose(image.cam_from_world.t, frame.cam_from_world.t, atol=1e-6)
        depth = image.depth.read()
        assert np.abs(depth - frame.depth_m)[frame.depth_m < 13].max() < 1.1e-4
        if format_ == "tum":
            assert image.timestamp_ns == 1_000_000_000 + frame.index * 100_000_000
        else:
            assert np.array_equal(image.read_mask() == 0, frame.moving)
    assert any(frame.moving.any() for frame in frames)
    record = json.loads((out / "camera.json").read_text())
    assert CameraModel(**{**record, "params": tuple(record["params"])}) == camera


def test_equal_arguments_write_equal_bytes(peopled, path, small, tmp_path):
    for name in ("a", "b"):
        make_recording(
            tmp_path / name,
            scene=peopled,
            path=path,
            capture=Capture(num_frames=2, exposure_s=0.02, exposure_steps=2),
            camera=small,
        )
    files = sorted(p for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 3 * 2 + 6
    for file in files:
        other = tmp_path / "b" / file.relative_to(tmp_path / "a")
        assert file.read_bytes() == other.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] in (["a", "b"], ["b", "a"])


def test_in_memory_is_what_is_written(peopled, path, small, tmp_path):
    capture = Capture(num_frames=2, rate_hz=10.0, jpeg_quality=90)
    memory = synth_recording(peopled, path, small, capture=capture)
    make_recording(
        tmp_path / "r", scene=peopled, path=path, capture=capture, camera=small
    )
    disk = open_recording(format="tum", input=tmp_path / "r")
    for ours, theirs in zip(memory.posed().images, disk.images, strict=True):
        assert np.array_equal(ours.source.read(), theirs.source.read())
        assert ours.timestamp_ns == theirs.timestamp_ns
        assert np.abs(ours.depth.read() - theirs.depth.read()).max() < 1.1e-4
        assert ours.read_mask().shape == (120, 160)
    assert memory.gravity_in_world == (0.0, 0.0, -1.0)


def test_no_depth_and_no_masks_when_not_wanted(room, path, small, tmp_path):
    make_recording(
        tmp_path / "r",
        scene=room,
        path=path,
        capture=Capture(num_frames=1),
        camera=small,
        depth=False,
    )
    names = {p.name for p in (tmp_path / "r").iterdir()}
    assert names == {
        "rgb",
        "rgb.txt",
        "groundtruth.txt",
        "intrinsics.txt",
        "transforms.json",
        "camera.json",
    }


def test_a_full_folder_is_not_overwritten(room, path, small, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="exists and is not an empty folder"):
        make_recording(tmp_path, scene=room, path=path, capture=CAPTURE, camera=small)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_a_lens_that_cannot_be_written_is_refused(room, path, tmp_path):
    camera = CameraModel(
        model="FULL_OPENCV",
        width=160,
        height=120,
        params=(125, 125, 80, 60, 0.1, 0, 0, 0, 0, 0.1, 0, 0),
    )
    with pytest.raises(ConfigError, match="k4, k5 and k6 of FULL_OPENCV"):
        make_recording(
            tmp_path / "r", scene=room, path=path, capture=CAPTURE, camera=camera
        )
    assert not (tmp_path / "r").exists()


def test_rolling_shutter_and_blur_change_the_film(room, path, small):
    def first(**options):
        capture = Capture(num_frames=1, start_s=1.0, noise_sigma=0.0, **options)
        return next(iter(film(room, path, small, capture)))

    plain, rolled = first(), first(readout_s=0.2)
    blurred = first(exposure_s=0.1, exposure_steps=4)
    change = np.median(np.abs(rolled.depth_m - plain.depth_m), axis=1)
    assert change[60] < 0.1 * change[0]
    assert change[0] > 0.02
    assert np.array_equal(blurred.depth_m, plain.depth_m)
    assert np.abs(blurred.image.astype(int) - plain.image).mean() > 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "num_frames=0"),
        ({"num_frames": 1, "rate_hz": 0.0}, "rate_hz=0.0 must be > 0"),
        ({"num_frames": 1, "jpeg_quality": 0}, "jpeg_quality=0 must be 1 to 100"),
        ({"num_frames": 1, "noise_sigma": -1.0}, "must be >= 0"),
    ],
)
def test_bad_captures_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Capture(**options)


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_a_video_reads_back(room, path, small, tmp_path, suffix):
    frames = list(film(room, path, small, Capture(num_frames=5, noise_sigma=0.0)))
    file = tmp_path / f"clip{suffix}"
    size = write_video(file, (frame.image for frame in frames), rate_hz=15.0)
    assert size == file.stat().st_size > 1000
    assert [p.name for p in tmp_path.iterdir()] == [file.name]
    video = cv2.VideoCapture(str(file))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(15.0)
    for frame in frames:
        ok, image = video.read()
        assert ok
        assert np.abs(image.astype(int) - frame.image).mean() < 8.0
    assert not video.read()[0]
    video.release()


def test_videos_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"ends in \.mp4 or \.avi"):
        write_video(tmp_path / "clip.mov", [], rate_hz=15.0)
    with pytest.raises(ConfigError, match="at least one frame"):
        write_video(tmp_path / "clip.mp4", [], rate_hz=15.0)


def test_stamps_are_exact():
    assert stamp_text(0.0) == "1.000000000"
    assert stamp_text(1 / 15) == "1.066666667"


def run_command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(list(words)))


@pytest.fixture
def camera_file(tmp_path):
    file = tmp_path / "camera.json"
    record = {
        "model": "PINHOLE",
        "width": 160,
        "height": 120,
        "params": [125.0, 125.0, 80.0, 60.0],
    }
    file.write_text(json.dumps(record))
    return file


def test_the_command_writes_a_night_street(tmp_path, camera_file, capsys):
    out = tmp_path / "street"
    words = f"--kind street --length-m 20 --frames 2 --night --moving --seed 1 -o {out}"
    extra = ["--intrinsics", str(camera_file), "--supersample", "1", "--video"]
    assert run_command(*words.split(), *extra) == 0
    recording = open_recording(format="nerfstudio", input=out)
    assert len(recording.images) == 2
    assert recording.images[0].source.read().mean() < 80
    assert (out / "clip.mp4").stat().st_size > 0
    assert "2/2 frames" in capsys.readouterr().err


def test_the_command_hides_the_share_asked_for(tmp_path, camera_file):
    out = tmp_path / "room"
    words = f"--frames 2 --coverage 0.4 --seed 3 --supersample 1 --no-depth -o {out}"
    assert run_command(*words.split(), "--intrinsics", str(camera_file)) == 0
    for image in open_recording(format="nerfstudio", input=out).images:
        assert (image.read_mask() == 0).mean() == pytest.approx(0.4, abs=0.04)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--frames 0 -o x", "num_frames=0"),
        ("--seed -1 -o x", "must be >= 0"),
        ("--kind street --length-m 3 -o x", "too short, at least 20 m"),
        ("--coverage 0.9 --frames 1 -o x", r"--coverage 0\.9 must be 0 to 0\.8"),
        ("--intrinsics /nonexistent.json -o x", "cannot be read"),
    ],
)
def test_the_command_refuses_nonsense(words, message):
    with pytest.raises(ConfigError, match=message):
        run_command(*words.split())


def test_a_wrong_intrinsics_file_is_explained(tmp_path):
    file = tmp_path / "camera.json"
    file.write_text('{"model": "PINHOLE", "width": 1, "height": 1, "params": [1]}')
    with pytest.raises(ConfigError, match="PINHOLE takes 4 parameters, got 1"):
        command.read_camera(file)
    file.write_text('{"model": "PINHOLE"}')
    with pytest.raises(ConfigError, match=r"not an intrinsics file \('width'\)"):
        command.read_camera(file)
