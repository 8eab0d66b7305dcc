"""TUM RGB-D sequences: interpolation, gaps, intrinsics, wrong files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeloc.errors import DatasetError
from edgeloc.geometry.se3 import rotation_angle_rad
from edgeloc.types import CameraModel
from edgeloc_tools.datasets import open_recording
from edgeloc_tools.datasets.tum import read_trajectory

RGB = "# timestamp filename\n100.02 rgb/b.png\n100.005 rgb/a.png\n100.5 rgb/c.png\n"
# A turn of 0.2 rad about z and 1 m along x, between 100.00 and 100.01 s.
TRUTH = (
    "# timestamp tx ty tz qx qy qz qw\n"
    "100.00 0 0 0 0 0 0 1\n"
    f"100.01 1 0 0 0 0 {np.sin(0.1):.9f} {np.cos(0.1):.9f}\n"
    f"100.02 3 0 0 0 0 {np.sin(0.1):.9f} {np.cos(0.1):.9f}\n"
    "100.45 0 0 0 0 0 0 1\n"
    "100.60 0 0 0 0 0 0 1\n"
)


@pytest.fixture
def folder(tmp_path, write_image, write_depth, write_text) -> Path:
    root = tmp_path / "rgbd_dataset_freiburg2_x"
    write_text(root / "rgb.txt", RGB)
    write_text(root / "depth.txt", "100.010 depth/a.png\n100.3 depth/b.png\n")
    write_text(root / "groundtruth.txt", TRUTH)
    for name in "abc":
        write_image(root / "rgb" / f"{name}.png")
    write_depth(root / "depth" / "a.png", 5000)
    write_depth(root / "depth" / "b.png", 5000)
    return root


def open_tum(path: Path, **options):
    return open_recording(format="tum", input=path, **options)


def test_poses_are_interpolated_to_the_image_times(folder):
    recording = open_tum(folder)
    assert [image.name for image in recording.images] == [
        "rgb/a.png",
        "rgb/b.png",
        "rgb/c.png",
    ]
    a, b, c = recording.images
    assert (a.timestamp_ns, b.timestamp_ns) == (100_005_000_000, 100_020_000_000)
    world_from_cam = a.cam_from_world.inverse()
    assert np.allclose(world_from_cam.t, [0.5, 0, 0])
    assert rotation_angle_rad(world_from_cam.R) == pytest.approx(0.1, abs=1e-8)
    assert world_from_cam.R[1, 0] == pytest.approx(np.sin(0.1))
    assert b.cam_from_world.origin_in_a.tolist() == pytest.approx([3, 0, 0])
    # In a gap of 150 ms the motion is not known.
    assert c.cam_from_world is None
    assert recording.metric


def test_depth_within_20_ms_is_registered_to_colour(folder):
    a, b, c = open_tum(folder).images
    assert np.all(a.depth.read() == 1.0)
    assert a.depth.path.name == b.depth.path.name == "a.png"
    assert np.array_equal(a.depth.cam_from_depth.R, np.eye(3))
    assert c.depth is None


def test_published_intrinsics_are_moved_to_the_corner_convention(folder):
    camera = open_tum(folder).cameras["rgb"]
    assert camera.model == "FULL_OPENCV"
    assert camera.params[:4] == (520.9, 521.0, 325.6, 250.2)
    assert camera.distortion == (0.2312, -0.7849, -0.0033, -0.0001, 0.9172, 0, 0, 0)
    assert (camera.width, camera.height) == (32, 24)


@pytest.mark.parametrize(
    ("text", "model", "num_params"),
    [
        ("30 31 15.5 11.5 0.1 0.2 0 0 0.3\n", "FULL_OPENCV", 12),
        ("# c\n30 31 15.5 11.5 0.1 0.2 0 0 0\n", "OPENCV", 8),
        ("30 31 15.5 11.5 0 0 0 0 0\n", "PINHOLE", 4),
        ("30 31 15.5 11.5\n", "PINHOLE", 4),
    ],
)
def test_intrinsics_file(folder, write_text, text, model, num_params):
    write_text(folder / "intrinsics.txt", text)
    camera = open_tum(folder).cameras["rgb"]
    assert camera.model == model
    assert len(camera.params) == num_params
    assert camera.params[:4] == (30, 31, 16, 12)


def test_given_camera_and_unknown_kinect(folder, tmp_path):
    other = folder.rename(tmp_path / "kitchen")
    with pytest.raises(DatasetError, match="does not say which Kinect it was"):
        open_tum(other)
    camera = CameraModel(model="PINHOLE", width=32, height=24, params=(9, 9, 16, 12))
    recording = open_tum(other, cameras=camera)
    assert recording.cameras["rgb"] == camera
    assert recording.images[0].depth.camera == camera


def test_without_ground_truth_and_depth(folder):
    (folder / "groundtruth.txt").unlink()
    (folder / "depth.txt").unlink()
    recording = open_tum(folder)
    assert all(i.cam_from_world is None and i.depth is None for i in recording.images)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("rgb", "# nothing\n", "rgb.txt: lists no images"),
        ("rgb", "100.0\n", r"rgb.txt:1: has 1 fields, expected 'timestamp filename'"),
        ("rgb", "x rgb/a.png\n", r"rgb.txt:1: timestamp 'x' is not a time in seconds"),
        ("rgb", "nan rgb/a.png\n", r"rgb.txt:1: timestamp 'nan' is not a time"),
        ("rgb", "1e999999999 rgb/a.png\n", r"rgb.txt:1: timestamp .* is not a time"),
        (
            "rgb",
            RGB + "101 rgb/a.png\n",
            r"rgb.txt:5: filename 'rgb/a.png' is there tw",
        ),
        ("rgb", RGB + "101 rgb/z.png\n", r"rgb.txt:5: image .*z.png is missing; copy"),
        ("depth", "100.0 depth/z.png\n", r"depth.txt:1: image .*z.png is missing"),
        ("groundtruth", "# none\n", "groundtruth.txt: has no poses"),
        (
            "groundtruth",
            "1 0 0 0 0 0 1\n",
            r"groundtruth.txt:1: has 7 fields, expected",
        ),
        (
            "groundtruth",
            "1 0 0 0 0 0 0 0\n",
            r":1: quaternion has length 0, expected 1",
        ),
        ("groundtruth", "1 0 0 nan 0 0 0 1\n", r"groundtruth.txt:1: tz is 'nan', expe"),
        ("groundtruth", "1 0 0 0 0 0 0 1\n", "covers no image of rgb.txt"),
        ("intrinsics", "1 2 3\n", "expected one line 'fx fy cx cy k1 k2 p1 p2 k3'"),
        ("intrinsics", "30 a 16 12\n", r"intrinsics.txt:1: fy 'a' is not a number"),
        ("intrinsics", "30 -3 16 12\n", "focal length must be > 0"),
    ],
)
def test_wrong_files(folder, write_text, file, text, message):
    write_text(folder / f"{file}.txt", text)
    with pytest.raises(DatasetError, match=message) as caught:
        open_tum(folder)
    assert "\n" not in str(caught.value)


def test_missing_list(tmp_path):
    with pytest.raises(
        DatasetError, match=r"rgb.txt: is missing; --input is the folder"
    ):
        open_tum(tmp_path)


@pytest.mark.data
def test_fr1_rpy(shared_data):
    root = shared_data / "tum_fr1_rpy"
    recording = open_tum(root)
    assert len(recording.images) == 362
    assert recording.cameras["rgb"].model == "FULL_OPENCV"
    assert recording.cameras["rgb"].principal_point_px == (319.1, 255.8)
    posed = recording.posed().images
    assert 355 <= len(posed) < 362  # the motion capture lost the markers a few times
    truth = read_trajectory(root / "groundtruth.txt")
    times = np.array(truth.timestamps_ns)
    centres = np.array([pose.t for pose in truth.world_from_cam])
    for image in posed[::40]:
        nearest = int(np.argmin(np.abs(times - image.timestamp_ns)))
        offset = image.cam_from_world.origin_in_a - centres[nearest]
        assert np.linalg.norm(offset) < 0.01
    # Nearly pure rotation: turned by more than 30 deg within a box of 0.5 m.
    spread = np.ptp([image.cam_from_world.origin_in_a for image in posed], axis=0)
    assert spread.max() < 0.5
    angles = [
        rotation_angle_rad(i.cam_from_world.R @ posed[0].cam_from_world.R.T)
        for i in posed
    ]
    assert np.degrees(max(angles)) > 30
    depths = [image.depth for image in recording.images if image.depth]
    assert len(depths) == 28
    assert 0.3 < np.median(depths[0].read()) < 5
