"""Calibration files of each kind, with the exact parameters expected."""

from __future__ import annotations

import json
import sys

import pytest

from edgeloc.errors import ConfigError
from edgeloc.runtime.intrinsics import choose_intrinsics, fit_camera, load_intrinsics
from edgeloc.types import CameraModel

COLMAP = """\
# Camera list with one line of data per camera:
#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]
1 SIMPLE_RADIAL 1536 1024 1379.74 760.35 503.63 -0.01
7 OPENCV 640 480 517.3 516.5 318.6 255.3 0.2624 -0.9531 -0.0054 0.0026
"""

ROS = """\
image_width: 640
image_height: 480
camera_name: head
camera_matrix:
  rows: 3
  cols: 3
  data: [517.3, 0., 318.6, 0., 516.5, 255.3, 0., 0., 1.]
distortion_model: {model}
distortion_coefficients:
  rows: 1
  cols: {count}
  data: {data}
rectification_matrix:
  rows: 3
  cols: 3
  data: [1., 0., 0., 0., 1., 0., 0., 0., 1.]
"""

KALIBR = """\
cam0:
  camera_model: pinhole
  intrinsics: [461.629, 460.152, 362.680, 246.049]
  distortion_model: radtan
  distortion_coeffs: [-0.27695, 0.06712, 0.00087, 0.00011]
  resolution: [752, 480]
  rostopic: /cam0/image_raw
cam1:
  T_cn_cnm1:
  - [1.0, 0.0, 0.0, -0.11]
  - [0.0, 1.0, 0.0, 0.0]
  - [0.0, 0.0, 1.0, 0.0]
  - [0.0, 0.0, 0.0, 1.0]
  camera_model: pinhole
  intrinsics: [190.97, 190.98, 254.93, 256.89]
  distortion_model: equidistant
  distortion_coeffs: [0.0034, 0.0007, -0.0020, 0.0002]
  resolution: [512, 512]
"""

CENTRE = (517.3, 516.5, 319.1, 255.8)  # half a pixel added to 318.6 and 255.3


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def check(camera, model, size, params):
    assert camera.model == model
    assert (camera.width, camera.height) == size
    assert camera.params == pytest.approx(params, abs=1e-12)


def test_one_line_of_colmap(tmp_path):
    path = write(tmp_path, "cam.txt", "PINHOLE 640 480 525.5 525.6 320 240.25\n")
    check(load_intrinsics(path), "PINHOLE", (640, 480), (525.5, 525.6, 320.0, 240.25))


def test_camera_of_cameras_txt_by_id(tmp_path):
    path = write(tmp_path, "cameras.txt", COLMAP)
    check(
        load_intrinsics(f"{path}#7"),
        "OPENCV",
        (640, 480),
        (517.3, 516.5, 318.6, 255.3, 0.2624, -0.9531, -0.0054, 0.0026),
    )


def test_only_camera_of_cameras_txt_needs_no_id(tmp_path):
    text = "\n".join(COLMAP.splitlines()[:3])
    camera = load_intrinsics(write(tmp_path, "cameras.txt", text))
    check(camera, "SIMPLE_RADIAL", (1536, 1024), (1379.74, 760.35, 503.63, -0.01))


def test_several_cameras_without_an_id_are_listed(tmp_path):
    path = write(tmp_path, "cameras.txt", COLMAP)
    with pytest.raises(ConfigError, match=r"has 2 cameras \(1, 7\).*cameras.txt#1'"):
        load_intrinsics(path)
    with pytest.raises(ConfigError, match="has no camera 3, only 1, 7"):
        load_intrinsics(f"{path}#3")


def test_file_whose_name_has_a_hash_is_taken_whole(tmp_path):
    path = write(tmp_path, "cam#7", "SIMPLE_PINHOLE 640 480 500 320 240")
    assert load_intrinsics(path).params == (500.0, 320.0, 240.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 PINHOLE 640\n", "line 1: expected `"),
        ("# nothing\n", "has no cameras"),
        ("PINHOLE 640 480 500 500 320\n", "PINHOLE takes 4 parameters, got 3"),
        ("PINHOLE 640 480 nan 500 320 240\n", "must be finite"),
        ("PINHOLE 640 480 -5 500 320 240\n", "focal length must be > 0"),
        ("PINHOLE 640 0 500 500 320 240\n", "640x0 must be positive"),
        ("PINHOLE 640 480 x 500 320 240\n", "could not convert"),
        ("1 THIN_PRISM 640 480 1 2 3 4\n", "line 1: camera model 'THIN_PRISM' is"),
        ("1 PINHOLE 1 1 1 1 0 0\n1 PINHOLE 1 1 1 1 0 0\n", "line 2: camera 1 comes tw"),
    ],
)
def test_bad_colmap_text_says_where(tmp_path, text, message):
    path = write(tmp_path, "cameras.txt", text)
    with pytest.raises(ConfigError) as caught:
        load_intrinsics(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json(tmp_path):
    content = {
        "model": "RADIAL",
        "width": 64,
        "height": 48,
        "params": [50, 32, 24, 0.1, 0],
    }
    path = write(tmp_path, "cam.json", json.dumps(content))
    check(load_intrinsics(path), "RADIAL", (64, 48), (50, 32, 24, 0.1, 0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "expected an object with exactly the keys height, model, params, width"),
        ('{"model": "PINHOLE"}', "expected an object with exactly the keys"),
        (
            '{"model": "PINHOLE", "width": 4, "height": 4, "params": 3}',
            "params must be a list of numbers, got 3",
        ),
        (
            '{"model": "PINHOLE", "width": 4.5, "height": 4, "params": [1,1,1,1]}',
            "invalid literal for int",
        ),
    ],
)
def test_bad_json_says_what(tmp_path, text, message):
    path = write(tmp_path, "cam.json", text)
    with pytest.raises(ConfigError) as caught:
        load_intrinsics(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("model", "data", "expected_model", "distortion"),
    [
        (
            "plumb_bob",
            [0.26, -0.95, -0.005, 0.003, 0.0],
            "OPENCV",
            (0.26, -0.95, -0.005, 0.003),
        ),
        (
            "plumb_bob",
            [0.26, -0.95, -0.005, 0.003, 1.16],
            "FULL_OPENCV",
            (0.26, -0.95, -0.005, 0.003, 1.16, 0, 0, 0),
        ),
        (
            "rational_polynomial",
            [0.1, 0.2, 0.003, 0.004, 0.5, 0.6, 0.7, 0.8],
            "FULL_OPENCV",
            (0.1, 0.2, 0.003, 0.004, 0.5, 0.6, 0.7, 0.8),
        ),
        ("equidistant", [0.1, 0.2, 0.3, 0.4], "OPENCV_FISHEYE", (0.1, 0.2, 0.3, 0.4)),
        ("fisheye", [0.1, 0.2, 0.3, 0.4], "OPENCV_FISHEYE", (0.1, 0.2, 0.3, 0.4)),
        ("plumb_bob", [], "PINHOLE", ()),
    ],
)
def test_ros_camera_info(tmp_path, model, data, expected_model, distortion):
    pytest.importorskip("yaml")
    text = ROS.format(model=model, count=len(data), data=data)
    camera = load_intrinsics(write(tmp_path, "info.yaml", text))
    check(camera, expected_model, (640, 480), (*CENTRE, *distortion))


def test_ros_camera_info_message(tmp_path):
    pytest.importorskip("yaml")
    """What `ros2 topic echo --once` prints."""
    text = (
        "header:\n  frame_id: cam\nheight: 480\nwidth: 640\n"
        "distortion_model: plumb_bob\nd: [0.1, 0.2, 0.0, 0.0, 0.0]\n"
        "k: [517.3, 0.0, 318.6, 0.0, 516.5, 255.3, 0.0, 0.0, 1.0]\n"
    )
    camera = load_intrinsics(write(tmp_path, "info.yml", text))
    check(camera, "OPENCV", (640, 480), (*CENTRE, 0.1, 0.2, 0, 0))


def test_kalibr_camchain(tmp_path):
    pytest.importorskip("yaml")
    path = write(tmp_path, "camchain.yaml", KALIBR)
    check(
        load_intrinsics(f"{path}#cam0"),
        "OPENCV",
        (752, 480),
        (461.629, 460.152, 363.18, 246.549, -0.27695, 0.06712, 0.00087, 0.00011),
    )
    check(
        load_intrinsics(f"{path}#cam1"),
        "OPENCV_FISHEYE",
        (512, 512),
        (190.97, 190.98, 255.43, 257.39, 0.0034, 0.0007, -0.0020, 0.0002),
    )
    with pytest.raises(ConfigError, match=r"has 2 cameras \(cam0, cam1\)"):
        load_intrinsics(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n- 2\n", "neither ROS camera_info nor Kalibr camchain"),
        ("a: [1\n", "is not valid YAML"),
        ("%YAML:1.0\nM: !!opencv-matrix\n  rows: 3\n", "is not valid YAML"),
        ("a: 1\n", "neither ROS camera_info nor Kalibr camchain"),
        (KALIBR.replace("pinhole", "omni"), "camera_model 'omni' is not supported"),
        (KALIBR.replace("radtan", "fov"), "distortion model 'fov' is not supported"),
        (KALIBR.replace("[752, 480]", "[752]"), "expected width and height"),
        (KALIBR.replace("[752, 480]", "wide"), "expected a list of numbers"),
        (ROS.format(model="plumb_bob", count=3, data=[1, 2, 3]), "takes 4, 5 or 8"),
        (
            ROS.format(model="equidistant", count=5, data=[0] * 5),
            "takes 4 coefficients",
        ),
        (
            ROS.format(model="plumb_bob", count=0, data=[]).replace(
                "[517.3, 0.,", "[517.3, 2.,"
            ),
            "skew 2 is not supported",
        ),
    ],
)
def test_bad_yaml_says_what(tmp_path, text, message):
    pytest.importorskip("yaml")
    path = write(tmp_path, "cam.yaml", text)
    with pytest.raises(ConfigError) as caught:
        load_intrinsics(f"{path}#cam0" if "cam0" in text else path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_yaml_without_pyyaml_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    path = write(tmp_path, "camchain.yaml", KALIBR)
    with pytest.raises(ConfigError, match=r"pip install 'edgeloc\[yaml\]'"):
        load_intrinsics(path)


def test_missing_file_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="No such file or directory"):
        load_intrinsics(tmp_path / "none.txt")


PINHOLE = CameraModel(
    model="PINHOLE", width=640, height=480, params=(500.0, 510.0, 322.0, 238.0)
)


def test_other_size_of_the_same_shape_is_scaled_with_a_warning(caplog):
    camera = fit_camera(PINHOLE, size=(320, 240))
    check(camera, "PINHOLE", (320, 240), (250.0, 255.0, 161.0, 119.0))
    assert caplog.messages == ["intrinsics are for 640x480, images are 320x240: scaled"]


def test_rounded_size_counts_as_the_same_shape():
    wide = CameraModel(
        model="SIMPLE_PINHOLE", width=1920, height=1080, params=(1500.0, 960.0, 540.0)
    )
    camera = fit_camera(wide, size=(853, 480))  # 479.8 rounded
    assert (camera.width, camera.height) == (853, 480)
    assert camera.focal_px == pytest.approx((666.4, 666.7), abs=0.05)


def test_same_size_changes_nothing(caplog):
    assert fit_camera(PINHOLE, size=(640, 480)) is PINHOLE
    assert not caplog.messages


@pytest.mark.parametrize("size", [(480, 640), (640, 360), (640, 400)])
def test_other_shape_is_a_config_error(size):
    with pytest.raises(ConfigError, match=f"{size[0]}x{size[1]}, another shape"):
        fit_camera(PINHOLE, size=size)


def test_single_camera_of_the_site_is_taken():
    choice = choose_intrinsics(None, site_cameras={"kinect": PINHOLE})
    assert choice.camera is PINHOLE
    assert choice.origin == "the site's camera kinect"


def test_file_wins_over_the_site(tmp_path):
    path = write(tmp_path, "c.txt", "SIMPLE_PINHOLE 64 48 50 32 24")
    choice = choose_intrinsics(str(path), site_cameras={"kinect": PINHOLE})
    assert choice.camera.model == "SIMPLE_PINHOLE"
    assert choice.origin == str(path)


@pytest.mark.parametrize("cameras", [{}, {"a": PINHOLE, "b": PINHOLE}])
def test_without_a_single_camera_the_file_is_asked_for(cameras):
    with pytest.raises(ConfigError, match="--intrinsics is needed: the site has"):
        choose_intrinsics(None, site_cameras=cameras)


@pytest.mark.data
def test_fountain_cameras(shared_data):
    files = sorted((shared_data / "fountain").rglob("cameras.txt"))
    assert files
    first = next(
        line.split()
        for line in files[0].read_text().splitlines()
        if line and not line.startswith("#")
    )
    camera = load_intrinsics(f"{files[0]}#{first[0]}")
    assert (camera.width, camera.height) == (1536, 1024)
    assert camera.params == tuple(float(word) for word in first[4:])
