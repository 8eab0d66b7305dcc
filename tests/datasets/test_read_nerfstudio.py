"""transforms.json: axes, intrinsics, splits, depth and wrong files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from edgeloc.errors import ConfigError, DatasetError
from edgeloc.types import CameraModel
from edgeloc_tools.datasets import open_recording

IDENTITY = np.eye(4).tolist()


@pytest.fixture
def make(tmp_path, write_image):
    """A function that writes three images and a transforms.json with given keys."""

    def write(*, frames: list | None = None, **keys) -> Path:
        for i in (1, 2, 10):
            write_image(tmp_path / "set" / "images" / f"{i}.png", value=i)
        data = {"fl_x": 30.0, "fl_y": 31.0, "cx": 16.5, "cy": 12, "w": 32, "h": 24}
        data["frames"] = frames or [frame(i) for i in (10, 1, 2)]
        data.update(keys)
        data = {key: value for key, value in data.items() if value is not None}
        (tmp_path / "set" / "transforms.json").write_text(json.dumps(data))
        return tmp_path / "set"

    return write


def frame(i: int, matrix=IDENTITY, **keys) -> dict:
    return {"file_path": f"images/{i}.png", "transform_matrix": matrix, **keys}


def open_nerfstudio(path: Path, **options):
    return open_recording(format="nerfstudio", input=path, **options)


def test_frames_are_in_natural_order(make):
    recording = open_nerfstudio(make())
    names = [image.name for image in recording.images]
    assert names == ["images/1.png", "images/2.png", "images/10.png"]
    assert recording.name == "set"
    assert not recording.metric
    assert dict(recording.cameras) == {
        "0": CameraModel(
            model="PINHOLE", width=32, height=24, params=(30, 31, 16.5, 12)
        )
    }


def test_opengl_axes(make):
    """A camera at (1, 2, 3) that looks along -z of OpenGL with y up."""
    matrix = np.eye(4)
    matrix[:3, 3] = [1, 2, 3]
    root = make(frames=[frame(1, matrix.tolist())])
    pose = open_nerfstudio(root).images[0].cam_from_world
    assert np.allclose(pose.origin_in_a, [1, 2, 3])
    # A point ahead (down z in OpenGL), above (y up) and to the right.
    assert np.allclose(pose.transform([1.5, 2.25, -2]), [0.5, -0.25, 5])


def test_splits(make):
    root = make(
        train_filenames=["images/1.png", "./images/10.png"],
        test_filenames=["images/2.png"],
    )
    assert len(open_nerfstudio(root).images) == 3
    train = open_nerfstudio(root, split="train")
    assert [image.name for image in train.images] == ["images/1.png", "images/10.png"]
    assert len(open_nerfstudio(root, split="test").images) == 1
    with pytest.raises(
        DatasetError, match="val_filenames is missing, empty or not a l"
    ):
        open_nerfstudio(root, split="val")
    with pytest.raises(
        ConfigError, match="--split 'x' is unknown, expected train, val"
    ):
        open_nerfstudio(root, split="x")
    root = make(test_filenames=["images/7.png"])
    with pytest.raises(
        DatasetError, match=r"test_filenames names 'images/7.png', which"
    ):
        open_nerfstudio(root, split="test")


@pytest.mark.parametrize(
    ("keys", "model", "params"),
    [
        ({"k1": 0.1, "p2": 0.2}, "OPENCV", (30, 31, 16.5, 12, 0.1, 0, 0, 0.2)),
        (
            {"k1": 0.1, "k3": 0.3, "k4": 0.0},
            "FULL_OPENCV",
            (30, 31, 16.5, 12, 0.1, 0, 0, 0, 0.3, 0, 0, 0),
        ),
        (
            {"camera_model": "OPENCV_FISHEYE", "k1": 0.1, "k4": 0.4},
            "OPENCV_FISHEYE",
            (30, 31, 16.5, 12, 0.1, 0, 0, 0.4),
        ),
        (
            {"is_fisheye": True, "k3": 0.3},
            "OPENCV_FISHEYE",
            (30, 31, 16.5, 12, 0, 0, 0.3, 0),
        ),
        ({"is_fisheye": False}, "PINHOLE", (30, 31, 16.5, 12)),
        (
            {"fl_x": None, "fl_y": None, "camera_angle_x": math.pi / 2},
            "PINHOLE",
            (16, 16, 16.5, 12),
        ),
        (
            {"fl_y": None, "camera_angle_y": math.pi / 2},
            "PINHOLE",
            (30, 12, 16.5, 12),
        ),
        (
            {"w": None, "h": None, "cx": None, "cy": None, "fl_y": None},
            "PINHOLE",
            (30, 30, 16, 12),
        ),
    ],
)
def test_intrinsics(make, keys, model, params):
    camera = open_nerfstudio(make(**keys)).cameras["0"]
    assert camera.model == model
    assert camera.params == pytest.approx(params)
    assert (camera.width, camera.height) == (32, 24)


def test_intrinsics_of_a_frame_go_before_those_of_the_file(make):
    root = make(frames=[frame(1), frame(2, fl_x=40.0), frame(10)])
    recording = open_nerfstudio(root)
    assert [image.camera_id for image in recording.images] == ["0", "1", "0"]
    assert recording.cameras["1"].focal_px == (40, 31)


def test_endings_that_are_left_out_are_found(make):
    """colmap2nerf and the Blender sets write names without an ending."""
    root = make(
        frames=[{"file_path": "./images/1", "transform_matrix": IDENTITY}],
        train_filenames=["./images/1"],
    )
    for split in (None, "train"):
        recording = open_nerfstudio(root, split=split)
        assert recording.images[0].name == "images/1.png"
        assert recording.images[0].source.read()[0, 0, 0] == 1


def test_depth_and_mask(make, write_depth, write_image, tmp_path):
    write_depth(tmp_path / "set" / "d.png", 2000, size=(16, 12))
    write_image(tmp_path / "set" / "m.png", value=255)
    root = make(
        frames=[frame(1, depth_file_path="d.png", mask_path="m.png"), frame(2)], k1=0.1
    )
    recording = open_nerfstudio(root)
    depth = recording.images[0].depth
    assert np.all(depth.read() == 2.0)
    assert depth.camera.params == (15, 15.5, 8.25, 6, 0.1, 0, 0, 0)
    assert np.all(recording.images[0].read_mask() == 255)
    assert recording.images[1].depth is None
    assert recording.metric
    assert not open_nerfstudio(root, metric=False).metric


def test_metric_key_and_another_folder_of_images(make, tmp_path):
    root = make(metric=True)
    (root / "images").rename(tmp_path / "images")
    recording = open_nerfstudio(root / "transforms.json", images=tmp_path)
    assert recording.metric
    assert recording.images[0].source.read()[0, 0, 0] == 1


SHEARED = [[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
NAN = [[1, 0, 0, float("nan")], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"frames": [{"file_path": "images/1.png"}]},
            r"frames\[0\].transform_matrix: is",
        ),
        (
            {"frames": [frame(1, [[1, 2], [3]])]},
            r"frames\[0\].transform_matrix: is not a",
        ),
        ({"frames": [frame(1, "x")]}, r"transform_matrix: is not a matrix of numbers"),
        (
            {"frames": [frame(1, [[1, 0], [0, 1]])]},
            r"has shape \(2, 2\), expected a 4x4",
        ),
        ({"frames": [frame(1, SHEARED)]}, "its left 3x3 part is not a rotation"),
        (
            {"frames": [frame(1, NAN)]},
            "has a value that is not finite; remove this pose",
        ),
        (
            {"frames": [frame(1), frame(1)]},
            r"frames\[1\].file_path: 'images/1.png' is th",
        ),
        (
            {"frames": [frame(77)]},
            r"frames\[0\].file_path: image .*77.png is missing; co",
        ),
        ({"frames": ["x"]}, r"frames\[0\] is not a JSON object"),
        ({"frames": {"a": 1}}, "frames is missing or empty; it lists the images"),
        (
            {"frames": [{"file_path": 3}]},
            r"frames\[0\].file_path: is missing or not a n",
        ),
        ({"fl_x": None, "fl_y": None}, "neither fl_x nor camera_angle_x is there"),
        ({"fl_x": "wide"}, r"frames\[0\]: fl_x 'wide' is not a number"),
        ({"fl_x": float("nan")}, "fl_x is nan, expected a finite number"),
        ({"fl_x": -30.0}, "focal length must be > 0"),
        (
            {"fl_x": None, "camera_angle_x": 4.0},
            "camera_angle_x is 4.0, expected radians",
        ),
        ({"k4": 0.1}, "k4 is 0.1; a fourth radial coefficient is not supported"),
        (
            {"camera_model": "EQUIRECTANGULAR"},
            "camera_model 'EQUIRECTANGULAR' is not sup",
        ),
        ({"metric": "yes"}, "metric is 'yes', expected true or false"),
        (
            {"frames": [frame(1, mask_path="m.png")]},
            r"frames\[0\].mask_path: .*m.png is missing; copy it or remove mask_path",
        ),
    ],
)
def test_wrong_files(make, keys, message):
    root = make(**keys)
    with pytest.raises(DatasetError, match=message) as caught:
        open_nerfstudio(root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"transforms.json:1: is not JSON: "),
        ("[]", "is not a JSON object"),
        ("{}", "frames is missing or empty"),
        ("[" * 100_000, "transforms.json: is nested too deeply|is not JSON"),
    ],
)
def test_no_json(tmp_path, text, message):
    (tmp_path / "transforms.json").write_text(text)
    with pytest.raises(DatasetError, match=message):
        open_nerfstudio(tmp_path)


def test_missing_file(tmp_path):
    with pytest.raises(
        DatasetError, match=r"transforms.json: is missing; --input is th"
    ):
        open_nerfstudio(tmp_path)


@pytest.mark.data
def test_fox(shared_data):
    recording = open_nerfstudio(shared_data / "fox")
    assert len(recording.images) == 50
    assert len(open_nerfstudio(shared_data / "fox", split="train").images) == 40
    assert len(open_nerfstudio(shared_data / "fox", split="test").images) == 10
    camera = recording.cameras["0"]
    assert camera.model == "OPENCV"
    assert camera.params[:4] == (687.76, 687.245, 277.279, 482.634)
    centre = recording.images[0].cam_from_world.origin_in_a
    assert np.allclose(centre, [3.168359405609479, -5.47948986, -0.97916607])
    # The statue is in front of all cameras and near the middle of their images.
    axes = np.array([image.cam_from_world.R[2] for image in recording.images])
    centres = np.array([image.cam_from_world.origin_in_a for image in recording.images])
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    fox = np.linalg.solve(across.sum(0), np.einsum("nij,nj->i", across, centres))
    for image in recording.images:
        x, y, z = image.cam_from_world.transform(fox)
        assert z > 1
        assert abs(x) < 0.3 * z
        assert abs(y) < 0.3 * z
    assert recording.images[0].source.read().shape == (960, 540, 3)
