"""7-Scenes folders with either ground truth, and the extrinsics of the depth camera."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeloc.errors import ConfigError, DatasetError
from edgeloc.geometry.se3 import rotation_angle_rad
from edgeloc_tools.datasets import open_recording, select_frames
from edgeloc_tools.datasets.sevenscenes import CAM_FROM_DEPTH

MATRIX = "1 0 0 0.1\n0 1 0 0.2\n0 0 1 0.3\n0 0 0 1\n"


@pytest.fixture
def scene(tmp_path, write_image, write_depth, write_text) -> Path:
    root = tmp_path / "kitchen"
    for sequence in (1, 2, 3):
        for frame in (0, 1):
            stem = f"seq-{sequence:02d}/frame-{frame:06d}"
            write_image(root / f"{stem}.color.png", value=sequence, size=(640, 480))
            write_text(root / f"{stem}.pose.txt", MATRIX)
    write_depth(root / "seq-01" / "frame-000000.depth.png", 1234, size=(640, 480))
    write_text(root / "TrainSplit.txt", "sequence1\nsequence3\n")
    write_text(root / "TestSplit.txt", "sequence2\n")
    return root


@pytest.fixture
def scene_with_sfm(scene, write_text) -> Path:
    for split, sequences in (("train", (1, 3)), ("test", (2,))):
        lines = [
            f"seq-{s:02d}/frame-{f:06d}.color.png 1 0 0 0 {s} {f} 0 525.5\n"
            for s in sequences
            for f in (0, 1)
        ]
        write_text(scene / f"sfm_poses_{split}.txt", "".join(lines))
    return scene


def open_scene(path: Path, **options):
    return open_recording(format="7scenes", input=path, **options)


def names(recording) -> list[str]:
    return [image.name for image in recording.images]


def test_splits(scene):
    assert len(open_scene(scene).images) == 6
    train = open_scene(scene, split="train")
    assert names(train) == [
        "seq-01/frame-000000.color.png",
        "seq-01/frame-000001.color.png",
        "seq-03/frame-000000.color.png",
        "seq-03/frame-000001.color.png",
    ]
    assert len(open_scene(scene, split="test").images) == 2
    with pytest.raises(
        ConfigError, match="--split 'val' is unknown, expected train or"
    ):
        open_scene(scene, split="val")


def test_original_poses_become_those_of_the_colour_camera(scene):
    recording = open_scene(scene)
    assert recording.pose_source == "KinectFusion (*.pose.txt)"
    pose = recording.images[0].cam_from_world
    depth_from_world = CAM_FROM_DEPTH.inverse() @ pose
    assert np.allclose(depth_from_world.origin_in_a, [0.1, 0.2, 0.3])
    # The colour camera sits 2.5 cm to the right of the depth camera.
    assert pose.origin_in_a[0] == pytest.approx(0.125, abs=1e-4)


def test_sfm_poses_are_the_default(scene_with_sfm):
    recording = open_scene(scene_with_sfm)
    assert recording.pose_source == (
        "SfM pseudo ground truth (sfm_poses_train.txt, sfm_poses_test.txt)"
    )
    assert recording.images[3].cam_from_world.t.tolist() == [2, 1, 0]
    assert dict(recording.cameras).keys() == {"color"}
    assert recording.cameras["color"].params == (525.5, 320, 240)
    original = open_scene(scene_with_sfm, poses=Path("pose.txt"))
    assert original.pose_source.startswith("KinectFusion")
    assert original.images[3].cam_from_world.t[0] == pytest.approx(-0.125, abs=0.01)


def test_the_published_lists_say_png_where_the_recording_has_jpg(
    scene_with_sfm, write_image
):
    (scene_with_sfm / "seq-02" / "frame-000000.color.png").unlink()
    write_image(scene_with_sfm / "seq-02" / "frame-000000.color.jpg", size=(640, 480))
    recording = open_scene(scene_with_sfm, split="test")
    assert recording.images[0].name == "seq-02/frame-000000.color.jpg"
    assert recording.images[0].cam_from_world.t.tolist() == [2, 0, 0]


def test_the_two_ground_truths_are_never_mixed(scene_with_sfm, write_text):
    (scene_with_sfm / "sfm_poses_test.txt").unlink()
    with pytest.raises(
        DatasetError, match=r"sfm_poses_test.txt is missing, and the tw"
    ):
        open_scene(scene_with_sfm)
    train = open_scene(scene_with_sfm, split="train")
    assert train.pose_source == "SfM pseudo ground truth (sfm_poses_train.txt)"
    # A frame that the list does not have gets no pose, not the original one.
    write_text(
        scene_with_sfm / "sfm_poses_train.txt",
        "seq-01/frame-000000.color.png 1 0 0 0 0 0 0 525.5\n",
    )
    train = open_scene(scene_with_sfm, split="train")
    assert [i.cam_from_world is None for i in train.images] == [False, True, True, True]


def test_frames_with_other_focal_lengths_have_other_cameras(scene, write_text):
    poses = write_text(
        scene / "other.txt",
        "seq-02/frame-000000.color.png 1 0 0 0 0 0 0 500\n"
        "seq-02/frame-000001.color.png 1 0 0 0 0 0 0 510\n",
    )
    recording = open_scene(scene, split="test", poses=poses)
    focals = [recording.cameras[i.camera_id].params[0] for i in recording.images]
    assert focals == [500, 510]


def test_depth(scene):
    recording = open_scene(scene)
    depth = recording.images[0].depth
    assert np.allclose(depth.read(), 1.234)
    assert depth.camera.params == (585, 320, 240)
    assert depth.cam_from_depth is CAM_FROM_DEPTH
    assert recording.images[1].depth is None


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("TrainSplit.txt", "sequence9\n", r"TrainSplit.txt:1: .*seq-09 is missing"),
        ("TrainSplit.txt", "first\n", r"TrainSplit.txt:1: 'first' is not of the form"),
        ("TrainSplit.txt", "sequence1\nsequence1\n", r":2: 'sequence1' is there twice"),
        ("TrainSplit.txt", "", "TrainSplit.txt: lists no sequences"),
        ("seq-01/frame-000000.pose.txt", "1 0 0 0\n", "has 1 lines, expected a 4x4"),
        (
            "seq-01/frame-000000.pose.txt",
            MATRIX[:-2] + "\n",
            r"pose.txt:4: has 3 fields",
        ),
        (
            "seq-01/frame-000000.pose.txt",
            MATRIX.replace("0.2", "nan"),
            r"frame-000000.pose.txt:2: value 4 is 'nan', expected a finite number",
        ),
        (
            "seq-01/frame-000000.pose.txt",
            MATRIX.replace("0.2", "1.#QNAN"),
            r"pose.txt:2: value 4 '1.#QNAN' is not a number",
        ),
        (
            "seq-01/frame-000000.pose.txt",
            MATRIX.replace("1 0 0 0.1", "2 0 0 0.1"),
            r"frame-000000.pose.txt: its left 3x3 part is not a rotation \(determinant",
        ),
        (
            "seq-01/frame-000000.pose.txt",
            MATRIX.replace("0 0 0 1", "0 0 1 1"),
            "last row is",
        ),
        (
            "sfm_poses_train.txt",
            "a 1 0 0 0 0 0 0\n",
            r"_train.txt:1: has 8 fields, exp",
        ),
        (
            "sfm_poses_train.txt",
            "a 1 0 0 0 0 0 0 x\n",
            r"_train.txt:1: F 'x' is not a n",
        ),
        ("sfm_poses_train.txt", "a 1 0 0 0 0 0 0 -5\n", "focal length must be > 0"),
        ("sfm_poses_train.txt", "a 0 0 0 0 0 0 0 5\n", r":1: quaternion has length 0"),
        ("sfm_poses_train.txt", "a 1 0 0 0 0 0 0 5\n" * 2, r":2: name 'a' is there tw"),
        (
            "sfm_poses_train.txt",
            "a 1 0 0 0 0 0 0 5\n",
            "no pose is for a frame of split",
        ),
    ],
)
def test_wrong_files(scene, write_text, file, text, message):
    write_text(scene / file, text)
    with pytest.raises(DatasetError, match=message) as caught:
        open_scene(scene, split="train")
    assert "\n" not in str(caught.value)


def test_wrong_folders(scene, tmp_path, write_image):
    (scene / "TestSplit.txt").unlink()
    with pytest.raises(
        DatasetError, match=r"TestSplit.txt: is missing; choose no --spl"
    ):
        open_scene(scene, split="test")
    write_image(scene / "seq-01" / "frame-000001.color.jpg")
    with pytest.raises(DatasetError, match="frame 1 is there twice"):
        open_scene(scene)
    with pytest.raises(DatasetError, match="has no folder seq-01"):
        open_scene(scene / "seq-02")
    (tmp_path / "empty" / "seq-01").mkdir(parents=True)
    with pytest.raises(
        DatasetError, match=r"has no frame-XXXXXX.color.png; unpack the"
    ):
        open_scene(tmp_path / "empty")


@pytest.mark.data
def test_redkitchen(shared_data):
    root = shared_data / "redkitchen"
    train = open_scene(root, split="train")
    test = open_scene(root, split="test")
    assert (len(train.images), len(test.images)) == (600, 200)
    assert train.pose_source == "SfM pseudo ground truth (sfm_poses_train.txt)"
    assert train.images[0].cam_from_world.t.tolist() == [0.365815, 0.104954, -0.401951]
    assert train.cameras["color"].params == (525.505, 320, 240)
    assert sum(image.depth is not None for image in train.images) == 120
    # A walk at 30 Hz: less than 10 cm from frame to frame.
    centres = np.array([image.cam_from_world.origin_in_a for image in test.images])
    assert np.linalg.norm(np.diff(centres, axis=0), axis=1).max() < 0.1
    assert len(select_frames(train, frames="0:600:5").images) == 120


@pytest.mark.data
def test_the_two_ground_truths_agree_roughly_on_redkitchen(shared_data):
    """Same world up to the known error of the KinectFusion poses."""
    root = shared_data / "redkitchen"
    sfm = open_scene(root, split="train")
    original = open_scene(root, split="train", poses=Path("pose.txt"))
    angles = [
        rotation_angle_rad(a.cam_from_world.R @ b.cam_from_world.R.T)
        for a, b in zip(sfm.images, original.images, strict=True)
    ]
    assert np.degrees(np.median(angles)) < 5.0


@pytest.mark.data
def test_depth_edges_fall_on_colour_edges(shared_data):
    """The extrinsics beat the identity, and the wrong sign, by far.

    Depth discontinuities in view of the colour camera, and their distance to the next
    Canny edge (cap 6 px), on eight frames.
    """
    recording = open_scene(shared_data / "redkitchen", split="train")
    images = [image for image in recording.images if image.depth][::15]
    assert len(images) == 8
    focal = recording.cameras["color"].params[0]

    def distance_px(R: np.ndarray, t: np.ndarray) -> float:
        distances = []
        for points, to_edge in views:
            x = points @ R.T + t
            px = np.floor(focal * x[:, :2] / x[:, 2:] + [320, 240]).astype(int)
            inside = np.all((px >= 0) & (px < [640, 480]), axis=1)
            distances.append(to_edge[px[inside, 1], px[inside, 0]])
        return float(np.concatenate(distances).mean())

    views = []
    for image in images:
        depth = image.depth.read()
        near = (depth > 0) & (depth < 3) & (cv2.dilate(depth, np.ones((5, 5))) > 0)
        jump = np.zeros(depth.shape, bool)
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            jump |= np.roll(depth, (dy, dx), (0, 1)) - depth > 0.1
        v, u = np.nonzero(near & jump)
        z = depth[v, u]
        points = np.stack([(u + 0.5 - 320) / 585 * z, (v + 0.5 - 240) / 585 * z, z], 1)
        grey = cv2.cvtColor(image.source.read(), cv2.COLOR_BGR2GRAY)
        edges = cv2.Canny(cv2.GaussianBlur(grey, (0, 0), 1.2), 40, 100)
        to_edge = cv2.distanceTransform(255 - edges, cv2.DIST_L2, 5)
        views.append((points, np.minimum(to_edge, 6.0)))
    fitted = distance_px(CAM_FROM_DEPTH.R, CAM_FROM_DEPTH.t)
    assert fitted < 0.85 * distance_px(np.eye(3), np.zeros(3))
    assert fitted < 0.75 * distance_px(np.eye(3), -CAM_FROM_DEPTH.t)
    assert fitted < 3.0
