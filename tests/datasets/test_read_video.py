"""Video files: lazy frames, order, timestamps."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeloc.errors import DatasetError
from edgeloc.types import CameraModel
from edgeloc_tools.datasets import open_recording, select_frames

NUM_FRAMES = 12
RATE_HZ = 25.0


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Twelve frames of 64x48; frame i has the grey value 20 i."""
    path = tmp_path_factory.mktemp("clip") / "walk.avi"
    fourcc = cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(path), fourcc, RATE_HZ, (64, 48))
    assert writer.isOpened()
    for i in range(NUM_FRAMES):
        writer.write(np.full((48, 64, 3), 20 * i, np.uint8))
    writer.release()
    return path


def open_video(path: Path, **options):
    return open_recording(format="video", input=path, **options)


def value(image) -> int:
    return round(float(image.source.read().mean()) / 20)


def test_frames_names_and_timestamps(clip):
    recording = open_video(clip)
    assert len(recording.images) == NUM_FRAMES
    assert recording.images[3].name == "walk.avi/000003"
    times_ns = [image.timestamp_ns for image in recording.images]
    assert np.allclose(np.diff(times_ns), 1e9 / RATE_HZ, atol=1e6)
    assert times_ns[0] < 1e9 / RATE_HZ
    assert not recording.cameras


def test_reading_in_order_opens_the_file_once(clip):
    recording = select_frames(open_video(clip), stride=3)
    assert [value(image) for image in recording.images] == [0, 3, 6, 9]
    assert recording.images[0].source.reader.num_rewinds == 0


def test_any_order_gives_the_right_frames(clip):
    images = open_video(clip).images
    assert [value(images[i]) for i in (7, 7, 2, 11, 0)] == [7, 7, 2, 11, 0]
    assert images[0].source.reader.num_rewinds == 2


def test_a_frame_may_be_changed_by_its_reader(clip):
    image = open_video(clip).images[5]
    image.source.read()[:] = 0
    assert value(image) == 5


def test_camera_of_another_size_is_refused(clip):
    camera = CameraModel(model="PINHOLE", width=64, height=48, params=(50, 50, 32, 24))
    assert open_video(clip, cameras=camera).cameras["camera"] == camera
    wrong = CameraModel(model="PINHOLE", width=48, height=64, params=(50, 50, 24, 32))
    with pytest.raises(
        DatasetError, match=r"walk.avi: is 64x48, but its camera is 48x"
    ):
        open_video(clip, cameras=wrong)


def test_a_file_that_got_shorter_is_an_error(clip, tmp_path):
    path = tmp_path / "walk.avi"
    path.write_bytes(clip.read_bytes())
    images = open_video(path).images
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 + 3000])
    with pytest.raises(
        DatasetError, match=r"frame 11 cannot be decoded \(the file end"
    ):
        images[11].source.read()


def test_a_truncated_file_has_the_frames_that_are_left(clip, tmp_path):
    path = tmp_path / "short.avi"
    data = clip.read_bytes()
    path.write_bytes(data[: len(data) // 2 + 3000])
    recording = open_video(path)
    assert 0 < len(recording.images) < NUM_FRAMES
    assert value(recording.images[-1]) == len(recording.images) - 1


def test_missing_and_wrong_files(tmp_path):
    with pytest.raises(DatasetError, match="is missing; --input is a video file"):
        open_video(tmp_path / "gone.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DatasetError, match="is not a video that OpenCV can decode"):
        open_video(tmp_path / "text.mp4")
