"""kapture folders, with rigs, depth and GNSS, and wrong ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeloc.errors import DatasetError
from edgeloc.types import CameraModel
from edgeloc_tools.datasets import open_recording

HEADER = "# kapture format: 1.1\n"
SENSORS = (
    HEADER
    + "cam0, Hero, camera, PINHOLE, 32, 24, 30, 30, 16, 12\n"
    + "cam1, , camera, UNKNOWN_CAMERA, 32, 24\n"
    + "depth0, , depth, SIMPLE_PINHOLE, 16, 12, 15, 8, 6\n"
    + "gps0, , gnss, EPSG:4326\n"
    + "wifi0, , wifi\n"
)
RECORDS = (
    HEADER + "2, cam0, b/10.png\n1, cam0, b/9.png\n1, cam1, other.png\n"
    "3, cam0, b/11.png\n"
)
# A quarter turn about z: x_in_sensor = (-y, x, z).
QUARTER = "0.70710678, 0, 0, 0.70710678"
TRAJECTORIES = HEADER + f"1, cam0, {QUARTER}, 1, 2, 3\n2, cam0, , , , , , ,\n"


@pytest.fixture
def folder(tmp_path, write_image, write_text) -> Path:
    sensors = tmp_path / "kap" / "sensors"
    write_text(sensors / "sensors.txt", SENSORS)
    write_text(sensors / "records_camera.txt", RECORDS)
    write_text(sensors / "trajectories.txt", TRAJECTORIES)
    for name in ("b/9.png", "b/10.png", "b/11.png", "other.png"):
        write_image(sensors / "records_data" / name)
    return tmp_path / "kap"


def open_kapture(path: Path, **options):
    return open_recording(format="kapture", input=path, **options)


def test_images_are_in_time_order_with_their_poses(folder):
    recording = open_kapture(folder)
    names = [image.name for image in recording.images]
    assert names == ["b/9.png", "other.png", "b/10.png", "b/11.png"]
    first = recording.images[0].cam_from_world
    assert np.allclose(first.transform([1, 0, 0]), [1, 3, 3], atol=1e-6)
    assert [image.cam_from_world is None for image in recording.images] == [
        False,
        True,
        True,
        True,
    ]
    # Frame numbers are an order, not a time.
    assert recording.images[0].timestamp_ns is None
    assert recording.name == "kap"
    assert not recording.metric
    assert [image.name for image in recording.posed().images] == ["b/9.png"]


def test_cameras_without_intrinsics_are_absent_until_given(folder):
    recording = open_kapture(folder)
    assert set(recording.cameras) == {"cam0"}
    camera = CameraModel(model="PINHOLE", width=32, height=24, params=(9, 9, 16, 12))
    recording = open_kapture(folder / "sensors", cameras={"cam1": camera})
    assert recording.cameras["cam1"] == camera
    assert recording.cameras["cam0"].params == (30, 30, 16, 12)


@pytest.mark.parametrize(
    ("timestamp", "expected_ns"),
    [
        ("1700000000123", 1700000000123000000),
        ("1700000000123456", 1700000000123456000),
        ("1700000000123456789", 1700000000123456789),
        ("1700000000", None),
    ],
)
def test_posix_times(folder, write_text, timestamp, expected_ns):
    path = folder / "sensors" / "records_camera.txt"
    write_text(path, HEADER + f"{timestamp}, cam0, other.png\n")
    assert open_kapture(folder).images[0].timestamp_ns == expected_ns


def test_rigs_are_composed(folder, write_text):
    """Also a rig on a rig: cam1 on 'head' on 'body'."""
    sensors = folder / "sensors"
    write_text(
        sensors / "rigs.txt",
        HEADER + f"body, cam0, 1, 0, 0, 0, 0, 0, 1\nbody, head, {QUARTER}, 0, 0, 0\n"
        "head, cam1, 1, 0, 0, 0, 10, 0, 0\n",
    )
    write_text(sensors / "trajectories.txt", HEADER + "1, body, 1, 0, 0, 0, 5, 0, 0\n")
    by_name = {image.name: image for image in open_kapture(folder).images}
    # cam0_from_world = cam0_from_body @ body_from_world
    assert np.allclose(by_name["b/9.png"].cam_from_world.t, [5, 0, 1])
    # (5, 0, 0) in body is (0, 5, 0) in head and (10, 5, 0) in cam1
    assert np.allclose(by_name["other.png"].cam_from_world.t, [10, 5, 0], atol=1e-6)
    assert by_name["b/10.png"].cam_from_world is None


def test_depth_and_gnss_of_the_same_timestamp(folder, write_text):
    sensors = folder / "sensors"
    write_text(sensors / "records_depth.txt", HEADER + "1, depth0, d/1.depth\n")
    write_text(
        sensors / "rigs.txt",
        HEADER
        + "rig, cam0, 1, 0, 0, 0, 0, 0, 0\nrig, depth0, 1, 0, 0, 0, 0.05, 0, 0\n",
    )
    (sensors / "records_data" / "d").mkdir()
    depth_path = sensors / "records_data" / "d" / "1.depth"
    depth_path.write_bytes(np.full((12, 16), 2.0, "<f4").tobytes())
    write_text(
        sensors / "records_gnss.txt", HEADER + "1, gps0, 13.19, 55.7, 40.5, 0, 2.0\n"
    )
    recording = open_kapture(folder)
    first = recording.images[0]
    assert np.all(first.depth.read() == 2.0)
    assert (first.depth.camera.width, first.depth.camera.height) == (16, 12)
    # The origin of the depth sensor is at x = -0.05 in the rig, which is cam0.
    assert np.allclose(first.depth.cam_from_depth.t, [-0.05, 0, 0])
    assert (first.gnss.latitude_deg, first.gnss.longitude_deg) == (55.7, 13.19)
    assert first.gnss.horizontal_sigma_m == 10.0
    assert recording.images[2].depth is None
    assert recording.images[2].gnss is None
    assert recording.metric


def test_depth_of_a_sensor_that_is_on_no_rig_is_left_out(folder, write_text):
    sensors = folder / "sensors"
    write_text(sensors / "records_depth.txt", HEADER + "1, depth0, 1.depth\n")
    (sensors / "records_data" / "1.depth").write_bytes(b"")
    assert all(image.depth is None for image in open_kapture(folder).images)


def replaced(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "sensors",
            "cam0, , camera\n",
            r"sensors.txt:1: is 'cam0, , camera', expected",
        ),
        ("sensors", "", r"sensors.txt:1: is '', expected '# kapture format: 1.1'"),
        (
            "sensors",
            replaced(SENSORS, "1.1", "2.0"),
            "kapture format 2.0 is not supported, only 1.0 and 1.1",
        ),
        (
            "sensors",
            replaced(SENSORS, "30, 30, 16, 12", "30, 30, 16"),
            r"sensors.txt:2: camera is wrong: PINHOLE takes 4 parameters, got 3",
        ),
        ("sensors", SENSORS + "cam0, , wifi\n", r"sensor_id 'cam0' is there twice"),
        (
            "sensors",
            HEADER + "cam0, camera\n",
            r"sensors.txt:2: has 2 fields, expected",
        ),
        (
            "sensors",
            replaced(SENSORS, "PINHOLE, 32", "FOV, 32"),
            "camera model 'FOV' is not supported",
        ),
        ("records_camera", HEADER, "records_camera.txt: lists no images"),
        ("records_camera", HEADER + "1, cam0\n", r"records_camera.txt:2: has 2 fields"),
        ("records_camera", HEADER + "x, cam0, a.png\n", "timestamp 'x' is not a whole"),
        (
            "records_camera",
            HEADER + "1, wifi0, other.png\n",
            r"records_camera.txt:2: device_id 'wifi0' is not a camera in sensors.txt",
        ),
        (
            "records_camera",
            RECORDS + "9, cam0, other.png\n",
            r"records_camera.txt:6: image_path 'other.png' is there twice",
        ),
        (
            "records_camera",
            RECORDS + "9, cam0, gone.png\n",
            r"records_camera.txt:6: image .*gone.png is missing; copy it there",
        ),
        ("trajectories", HEADER + "1, cam0, 1, 0, 0, 0\n", "has 6 fields, expected"),
        (
            "trajectories",
            HEADER + "1, cam0, 1, 0, 0, 0, 0, nan, 0\n",
            r"trajectories.txt:2: ty is 'nan', expected a finite number",
        ),
        (
            "trajectories",
            HEADER + "1, cam0, 0, 0, 0, 0, 0, 0, 0\n",
            r"trajectories.txt:2: quaternion has length 0, expected 1",
        ),
        (
            "trajectories",
            HEADER + "1, cam0, 1, , 0, 0, 0, 0, 0\n",
            r"trajectories.txt:2: has empty fields",
        ),
        (
            "trajectories",
            TRAJECTORIES + "1, cam0, 1, 0, 0, 0, 0, 0, 0\n",
            "device 'cam0' has two poses at 1",
        ),
        ("rigs", HEADER + "r, cam0, 1, 0, 0, 0, 0, 0\n", r"rigs.txt:2: has 8 fields"),
        (
            "rigs",
            HEADER + "r, r, 1, 0, 0, 0, 0, 0, 0\n",
            "sensor_id 'r' is there twice",
        ),
        (
            "records_depth",
            HEADER + "1, gps0, a.depth\n",
            "'gps0' is not a depth sensor",
        ),
        (
            "records_depth",
            HEADER + "1, cam1, a.depth\n",
            "the intrinsics of depth sens",
        ),
        ("records_depth", HEADER + "1, depth0, a.depth\n", "a.depth is missing; copy"),
        (
            "records_gnss",
            HEADER + "1, gps0, 1, 95, 0, 0, 0\n",
            "x=1.0 y=95.0 is not lon",
        ),
    ],
)
def test_wrong_files(folder, write_text, file, text, message):
    write_text(folder / "sensors" / f"{file}.txt", text)
    with pytest.raises(DatasetError, match=message) as caught:
        open_kapture(folder)
    assert "\n" not in str(caught.value)


def test_rigs_that_carry_each_other_end(folder, write_text):
    write_text(
        folder / "sensors" / "rigs.txt",
        HEADER + "a, cam1, 1, 0, 0, 0, 0, 0, 0\na, b, 1, 0, 0, 0, 0, 0, 0\n"
        "b, a, 1, 0, 0, 0, 0, 0, 0\n",
    )
    by_name = {image.name: image for image in open_kapture(folder).images}
    assert by_name["other.png"].cam_from_world is None


def test_missing_sensors(tmp_path):
    with pytest.raises(
        DatasetError, match=r"sensors.txt: is missing; --input is the fo"
    ):
        open_kapture(tmp_path)


@pytest.mark.data
@pytest.mark.parametrize(
    ("part", "count"),
    [
        ("000-033/mapping", 34),
        ("000-033/query", 34),
        ("044-084/mapping", 41),
        ("044-084/query", 40),
    ],
)
def test_gardenspoint(shared_data, part, count):
    recording = open_kapture(shared_data / "gardenspoint_kapture" / part)
    assert len(recording.images) == count
    assert recording.cameras["cam0"].params == (1015.0, 480.0, 270.0, 0.07)
    assert len(recording.posed().images) == count
    # A walk straight ahead: each step goes along the optical axis.
    poses = [image.cam_from_world for image in recording.images]
    steps = [
        b.origin_in_a - a.origin_in_a
        for a, b in zip(poses[:-5], poses[5:], strict=True)
    ]
    ahead = [
        step @ pose.R[2] / np.linalg.norm(step)
        for step, pose in zip(steps, poses, strict=False)
    ]
    assert np.median(ahead) > 0.9


@pytest.mark.data
def test_gardenspoint_first_pose(shared_data):
    recording = open_kapture(shared_data / "gardenspoint_kapture/000-033/query")
    first = recording.images[0]
    assert first.name == "day_right/Image000.jpg"
    assert first.cam_from_world.t.tolist() == [-0.483535832, 0.032691805, 5.410750069]
    assert first.source.read().shape == (540, 960, 3)
