"""Folders and video files as sources, and the grammar of ``--camera``."""

from __future__ import annotations

import logging

import cv2
import numpy as np
import pytest

from edgeloc.clock import ManualClock
from edgeloc.errors import CameraError, ConfigError
from edgeloc.runtime.frame_source import UnreadableFrame
from edgeloc.runtime.source_files import list_images, natural_key, read_image
from edgeloc.runtime.sources import open_source
from edgeloc.types import Frame

START_NS = 5_000_000_000


def image_of(value, size=(64, 48)):
    return np.full((size[1], size[0], 3), value, np.uint8)


def write_images(folder, names):
    folder.mkdir(exist_ok=True)
    for idx, name in enumerate(names):
        assert cv2.imwrite(str(folder / name), image_of(10 * idx))
    return folder


def read_all(source):
    frames = []
    while (frame := source.read()) is not None:
        frames.append(frame)
    return frames


def test_natural_order_and_timestamps_of_a_folder(tmp_path):
    folder = write_images(tmp_path / "f", ["img10.png", "img2.png", "img1.png"])
    source = open_source(str(folder), clock=ManualClock(START_NS), rate_hz=20)
    assert (source.live, source.fps, source.size) == (False, 20, (64, 48))
    frames = read_all(source)
    assert [f.source for f in frames] == ["img1.png", "img2.png", "img10.png"]
    assert [f.frame_id for f in frames] == [0, 1, 2]
    assert [f.timestamp_ns - START_NS for f in frames] == [0, 50_000_000, 100_000_000]
    assert [int(f.image[0, 0, 0]) for f in frames] == [20, 10, 0]


def test_default_rate_is_30_hz(tmp_path):
    folder = write_images(tmp_path / "f", ["1.png", "2.png"])
    frames = read_all(open_source(str(folder), clock=ManualClock()))
    assert frames[1].timestamp_ns == 33_333_333


def test_natural_key_does_not_mix_text_and_numbers():
    names = ["b1", "a", "10", "9", "a2", "a10"]
    assert sorted(names, key=natural_key) == ["a", "a2", "a10", "b1", "9", "10"]


def test_seven_scenes_folder_gives_only_the_colour_images(tmp_path):
    folder = write_images(
        tmp_path / "seq",
        [
            "frame-000001.color.jpg",
            "frame-000000.color.jpg",
            "frame-000000.depth.png",
            "preview.jpg",
        ],
    )
    (folder / "frame-000000.pose.txt").write_text("1 0 0 0")
    names = [path.name for path in list_images(folder)]
    assert names == ["frame-000000.color.jpg", "frame-000001.color.jpg"]


def test_depth_masks_and_hidden_files_are_left_out(tmp_path):
    folder = write_images(
        tmp_path / "seq",
        ["a.png", "a.depth.png", "a.mask.png", "a_mask.png", "mask.png", ".b.png"],
    )
    (folder / "notes.txt").write_text("x")
    assert [path.name for path in list_images(folder)] == ["a.png"]


def test_empty_folder_is_a_camera_error(tmp_path):
    with pytest.raises(CameraError, match="has no images"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("suffix", "reason"),
    [(".jpg", "is a truncated JPEG"), (".png", "is a truncated PNG")],
)
def test_truncated_image_is_delivered_as_unreadable(tmp_path, rng, suffix, reason):
    """It keeps its place and its time: dropping it would shift the frames behind it."""
    folder = tmp_path / "f"
    folder.mkdir()
    for idx in range(3):
        noise = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
        data = cv2.imencode(suffix, noise)[1].tobytes()
        # All but a few bytes: image libraries fill in the rest and report success.
        cut = len(data) - 20 if idx == 1 else len(data)
        (folder / f"{idx}{suffix}").write_bytes(data[:cut])
    frames = read_all(open_source(str(folder), clock=ManualClock(), rate_hz=10))
    assert [type(f) for f in frames] == [Frame, UnreadableFrame, Frame]
    assert frames[1].frame_id == 1
    assert frames[1].timestamp_ns == 100_000_000
    assert frames[1].source == f"1{suffix}"
    assert frames[1].reason == f"{folder / f'1{suffix}'} {reason}"


def test_jpeg_cut_behind_its_thumbnail_is_truncated(tmp_path):
    """The thumbnail in the header ends with the marker that a whole file ends with."""
    data = cv2.imencode(".jpg", image_of(99))[1].tobytes()
    thumbnail = b"Exif" + b"\x00" * 8 + b"\xff\xd8thumb\xff\xd9"
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole = data[:2] + segment + data[2:]
    (tmp_path / "whole.jpg").write_bytes(whole)
    (tmp_path / "cut.jpg").write_bytes(whole[:-2])
    assert read_image(tmp_path / "whole.jpg").shape == (48, 64, 3)
    assert read_image(tmp_path / "cut.jpg") == "is a truncated JPEG"


def test_exif_orientation_is_not_applied(tmp_path):
    """Mapping reads stored pixels; a turned query would be of another camera."""
    stored = np.zeros((48, 64, 3), np.uint8)
    stored[:, :32] = 200
    data = cv2.imencode(".jpg", stored)[1].tobytes()
    turned = (
        b"Exif\0\0II*\0\x08\0\0\0\x01\0"
        b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # tag 0x0112 is 6
    )
    segment = b"\xff\xe1" + (len(turned) + 2).to_bytes(2, "big") + turned
    path = tmp_path / "portrait.jpg"
    path.write_bytes(data[:2] + segment + data[2:])
    assert cv2.imread(str(path)).shape == (64, 48, 3), "OpenCV would turn it"
    source = open_source(str(path), clock=ManualClock())
    assert source.size == (64, 48)
    image = source.read().image
    assert image.shape == (48, 64, 3)
    np.testing.assert_allclose(image[:, [4, 60]].mean((0, 2)), [200, 0], atol=3)


def test_unreadable_files_say_why(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    assert read_image(tmp_path / "empty.png") == "is empty"
    assert read_image(tmp_path / "text.png") == "is not a readable image"
    assert read_image(tmp_path / "none.png") == (
        "cannot be read (No such file or directory)"
    )


def test_folder_whose_first_image_is_damaged_still_knows_its_size(tmp_path):
    folder = write_images(tmp_path / "f", ["1.png", "2.png"])
    (folder / "0.png").write_bytes(b"damaged")
    source = open_source(str(folder), clock=ManualClock())
    assert source.size == (64, 48)
    assert isinstance(source.read(), UnreadableFrame)


def test_folder_without_any_readable_image_is_a_camera_error(tmp_path):
    (tmp_path / "0.png").write_bytes(b"damaged")
    with pytest.raises(CameraError, match="none of 1 images can be read"):
        open_source(str(tmp_path))


def test_single_image_is_a_source_of_one_frame(tmp_path):
    write_images(tmp_path, ["one.png"])
    frames = read_all(open_source(str(tmp_path / "one.png"), clock=ManualClock()))
    assert [f.source for f in frames] == ["one.png"]


def write_video(path, codec, *, frames=8, fps=25):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, (64, 48))
    assert writer.isOpened()
    for idx in range(frames):
        writer.write(image_of(20 * idx % 240))
    writer.release()
    return path


@pytest.mark.parametrize(("name", "codec"), [("v.avi", "MJPG"), ("v.mp4", "mp4v")])
def test_video_file_has_the_times_of_its_container(tmp_path, name, codec):
    path = write_video(tmp_path / name, codec)
    source = open_source(str(path), clock=ManualClock(START_NS))
    assert (source.live, source.fps, source.size) == (False, 25.0, (64, 48))
    frames = read_all(source)
    offsets_ms = [(f.timestamp_ns - START_NS) / 1e6 for f in frames]
    assert offsets_ms == pytest.approx([40.0 * idx for idx in range(8)])
    values = [float(f.image.mean()) for f in frames]
    assert values == pytest.approx([20.0 * idx for idx in range(8)], abs=5)
    assert frames[3].source == f"{name}#3"
    assert source.read() is None


def test_rate_replaces_the_times_of_a_video(tmp_path):
    path = write_video(tmp_path / "v.avi", "MJPG", frames=3)
    frames = read_all(open_source(str(path), clock=ManualClock(), rate_hz=10))
    assert [f.timestamp_ns for f in frames] == [0, 100_000_000, 200_000_000]


def test_truncated_video_gives_what_is_there_and_a_warning(tmp_path, caplog):
    path = write_video(tmp_path / "v.avi", "MJPG", frames=40)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    source = open_source(str(path), clock=ManualClock())
    with caplog.at_level(logging.WARNING):
        frames = read_all(source)
    assert 5 <= len(frames) < 36
    assert f"ended after {len(frames)} of about 40 frames" in caplog.text


def test_file_that_is_no_video_is_a_camera_error(tmp_path):
    path = tmp_path / "bad.mp4"
    path.write_bytes(b"nothing of the kind" * 50)
    with pytest.raises(CameraError, match="is not a video that OpenCV can decode"):
        open_source(str(path))


def test_what_does_not_exist_is_a_camera_error(tmp_path):
    with pytest.raises(CameraError, match="no such file, folder or device"):
        open_source(str(tmp_path / "nothing"))


@pytest.mark.parametrize("text", ["/dev/video97", "97"])
def test_missing_device_is_a_camera_error(text):
    with pytest.raises(CameraError, match="/dev/video97: no such camera"):
        open_source(text)


def test_unknown_scheme_is_a_usage_error():
    with pytest.raises(ConfigError, match="ftp:// is not supported"):
        open_source("ftp://host/file")


@pytest.mark.data
def test_red_kitchen_walk_is_read_in_order(shared_data):
    source = open_source(str(shared_data / "redkitchen" / "seq-02"))
    assert source.size == (640, 480)
    names = [source.read().source for _ in range(3)]
    assert names == [f"frame-{idx:06d}.color.jpg" for idx in range(3)]
