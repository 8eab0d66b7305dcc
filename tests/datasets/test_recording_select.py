"""The common form, the registry and the choice of frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeloc.errors import ConfigError, DatasetError
from edgeloc.types import CameraModel
from edgeloc_tools.datasets import FORMATS, open_recording, select_frames
from edgeloc_tools.datasets.recording import DepthMap, ImageFile

CAMERA = CameraModel(model="PINHOLE", width=32, height=24, params=(30, 30, 16, 12))


@pytest.fixture
def photos(tmp_path, write_image) -> Path:
    for i in (1, 2, 10, 3, 0):
        write_image(tmp_path / "photos" / f"img{i}.png", value=i)
    return tmp_path / "photos"


def names(recording) -> list[str]:
    return [image.name for image in recording.images]


def test_formats_are_in_the_order_of_the_help():
    assert FORMATS == (
        "kapture",
        "colmap",
        "hloc",
        "7scenes",
        "tum",
        "nerfstudio",
        "folder",
        "video",
    )


def test_unknown_format_lists_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"--format 'nope' is unknown, expected kapt"):
        open_recording(format="nope", input=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": Path("x")}, "--images is not an option of --format folder, only "),
        ({"poses": Path("x")}, "--poses is not an option of --format folder, only of "),
        ({"split": "test"}, "only of 7scenes, nerfstudio"),
    ],
)
def test_an_option_that_a_format_does_not_take_is_refused(photos, options, message):
    with pytest.raises(ConfigError, match=message):
        open_recording(format="folder", input=photos, **options)


def test_folder_is_sorted_naturally_and_has_no_camera(photos):
    recording = open_recording(format="folder", input=photos)
    assert names(recording) == [f"img{i}.png" for i in (0, 1, 2, 3, 10)]
    assert recording.name == "photos"
    assert not recording.cameras
    assert recording.images[4].source.read()[0, 0].tolist() == [10, 10, 10]
    with pytest.raises(DatasetError, match="no image has both a pose and a camera"):
        recording.posed()


def test_folder_takes_subfolders_and_leaves_out_depth_and_hidden_files(
    photos, write_image, write_depth
):
    write_image(photos / "b" / "x.JPG")
    write_image(photos / ".thumbs" / "x.png")
    write_depth(photos / "img1.depth.png", 1000)
    (photos / "notes.txt").write_text("no image")
    recording = open_recording(format="folder", input=photos)
    assert names(recording)[0] == "b/x.JPG"
    assert len(recording.images) == 6


def test_folder_camera_and_metric_are_passed_on(photos):
    recording = open_recording(
        format="folder", input=photos, cameras=CAMERA, metric=True
    )
    assert dict(recording.cameras) == {"camera": CAMERA}
    assert recording.metric


def test_size_of_another_camera_is_found_when_the_image_is_read(photos, write_image):
    write_image(photos / "img2.png", size=(30, 24))
    recording = open_recording(format="folder", input=photos, cameras=CAMERA)
    with pytest.raises(
        DatasetError, match=r"img2.png: is 30x24, but its camera is 32x24"
    ):
        recording.images[2].source.read()


def test_intrinsics_for_a_camera_that_is_not_there_are_refused(photos):
    with pytest.raises(
        ConfigError, match=r"has no camera 'left' to give .* only camera"
    ):
        open_recording(format="folder", input=photos, cameras={"left": CAMERA})


def test_an_empty_folder_and_a_missing_one(tmp_path):
    with pytest.raises(DatasetError, match="has no images"):
        open_recording(format="folder", input=tmp_path)
    with pytest.raises(DatasetError, match="missing; --input is the folder"):
        open_recording(format="folder", input=tmp_path / "nope")


@pytest.mark.parametrize(
    ("frames", "stride", "expected"),
    [
        (None, 1, [0, 1, 2, 3, 10]),
        (None, 2, [0, 2, 10]),
        ("1:4", 1, [1, 2, 3]),
        (":3", 1, [0, 1, 2]),
        ("-2:", 1, [3, 10]),
        ("::2", 1, [0, 2, 10]),
        ("0:100:3", 1, [0, 3]),
        ("1:", 2, [1, 3]),
        (" 0 : 2 ", 1, [0, 1]),
    ],
)
def test_select_frames(photos, frames, stride, expected):
    recording = open_recording(format="folder", input=photos)
    selected = select_frames(recording, stride=stride, frames=frames)
    assert names(selected) == [f"img{i}.png" for i in expected]
    assert selected.name == recording.name


@pytest.mark.parametrize(
    ("frames", "stride", "message"),
    [
        ("5", 1, r"--frames '5' is not START:STOP\[:STEP\], such as 0:600:5"),
        ("a:b", 1, "is not START:STOP"),
        ("1:2:3:4", 1, "is not START:STOP"),
        ("", 1, "is not START:STOP"),
        ("::0", 1, "STEP must be at least 1"),
        ("::-1", 1, "STEP must be at least 1"),
        ("7:9", 1, r"--frames '7:9' selects none of the 5 images of photos"),
        (None, 0, "--stride 0 must be at least 1"),
    ],
)
def test_select_frames_refuses(photos, frames, stride, message):
    recording = open_recording(format="folder", input=photos)
    with pytest.raises(ConfigError, match=message):
        select_frames(recording, stride=stride, frames=frames)


def test_images_are_read_in_stored_pixel_order(tmp_path):
    """A phone's portrait JPEG: intrinsics are for the pixels in the file."""
    cv2 = pytest.importorskip("cv2")
    _, jpeg = cv2.imencode(".jpg", np.zeros((24, 32, 3), np.uint8))
    exif = (
        b"Exif\0\0II*\0\x08\0\0\0\x01\0"
        b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6: turn right
    )
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    path = tmp_path / "portrait.jpg"
    path.write_bytes(jpeg.tobytes()[:2] + segment + jpeg.tobytes()[2:])
    assert cv2.imread(str(path)).shape == (32, 24, 3)  # OpenCV turns it by default
    assert ImageFile(path).read().shape == (24, 32, 3)


def test_unreadable_images(tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not a picture")
    with pytest.raises(DatasetError, match=r"bad.png: is not a readable image"):
        ImageFile(bad).read()
    with pytest.raises(DatasetError, match=r"gone.png: is missing"):
        ImageFile(tmp_path / "gone.png").read()


def test_depth_png(tmp_path, write_depth, write_image):
    depth = DepthMap(
        path=write_depth(tmp_path / "d.png", 1500), metres_per_unit=0.001, camera=CAMERA
    )
    assert np.all(depth.read() == 1.5)
    write_depth(tmp_path / "d.png", 65535)
    assert np.all(depth.read() == 0.0)
    write_depth(tmp_path / "d.png", 1, size=(16, 12))
    with pytest.raises(DatasetError, match=r"d.png: is 16x12, but its camera is 32x24"):
        depth.read()
    write_image(tmp_path / "d.png")
    with pytest.raises(DatasetError, match="not a readable one-channel 16-bit depth"):
        depth.read()
    with pytest.raises(DatasetError, match=r"gone.png: is missing"):
        replace(depth, path=tmp_path / "gone.png").read()


def test_depth_float32(tmp_path):
    path = tmp_path / "d.depth"
    values = np.full((24, 32), 2.5, "<f4")
    values[0, :3] = [np.nan, -1.0, np.inf]
    path.write_bytes(values.tobytes())
    depth = DepthMap(path=path, metres_per_unit=1.0, camera=CAMERA)
    assert depth.read()[0, :4].tolist() == [0.0, 0.0, 0.0, 2.5]
    path.write_bytes(values.tobytes()[:-1])
    with pytest.raises(DatasetError, match="has 3071 bytes, expected 3072 for 32x24"):
        depth.read()
