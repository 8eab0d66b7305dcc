"""Query lists with and without ground truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeloc.errors import DatasetError
from edgeloc_tools.datasets import open_recording

QUERIES = (
    "# NAME MODEL W H PARAMS\n"
    "q/1.png PINHOLE 32 24 30 30 16 12\n"
    "q/2.png PINHOLE 32 24 30 30 16 12\n"
    "q/3.png SIMPLE_RADIAL 32 24 30 16 12 0.1\n"
)
TRUTH = "q/1.png 1 0 0 0 1 2 3\nq/3.png 0 1 0 0 0 0 1\nother.png 1 0 0 0 0 0 0\n"


@pytest.fixture
def folder(tmp_path, write_image, write_text) -> Path:
    write_text(tmp_path / "set" / "queries.txt", QUERIES)
    write_text(tmp_path / "set" / "queries_gt.txt", TRUTH)
    for i in (1, 2, 3):
        write_image(tmp_path / "set" / "images" / "q" / f"{i}.png", value=i)
    return tmp_path / "set"


def open_hloc(path: Path, **options):
    return open_recording(format="hloc", input=path, **options)


def test_queries_with_ground_truth(folder):
    recording = open_hloc(folder)
    assert [image.name for image in recording.images] == [
        "q/1.png",
        "q/2.png",
        "q/3.png",
    ]
    assert [image.camera_id for image in recording.images] == ["0", "0", "1"]
    assert recording.cameras["1"].model == "SIMPLE_RADIAL"
    assert recording.images[0].cam_from_world.t.tolist() == [1, 2, 3]
    assert recording.images[1].cam_from_world is None
    assert recording.pose_source == "pose list queries_gt.txt"
    assert recording.images[2].source.read()[0, 0, 0] == 3


def test_queries_without_ground_truth(folder):
    (folder / "queries_gt.txt").unlink()
    recording = open_hloc(folder)
    assert all(image.cam_from_world is None for image in recording.images)
    assert recording.pose_source == ""


def test_another_list_other_poses_and_other_images(folder, tmp_path, write_text):
    other = write_text(folder / "night.txt", "2.png PINHOLE 32 24 30 30 16 12\n")
    poses = write_text(tmp_path / "poses.txt", "2.png 1 0 0 0 0 0 7\n")
    recording = open_hloc(other, poses=poses, images=folder / "images" / "q")
    assert recording.images[0].cam_from_world.t.tolist() == [0, 0, 7]
    assert recording.images[0].source.read()[0, 0, 0] == 2


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("queries", "", "queries.txt: lists no images"),
        ("queries", "q/1.png\n", r"queries.txt:1: has 1 fields, expected 'NAME MODEL"),
        (
            "queries",
            QUERIES + "q/1.png PINHOLE 32 24 1 1 1 1\n",
            r":5: name 'q/1.png' is",
        ),
        ("queries", "q/9.png PINHOLE 32 24 30 30 16 12\n", "9.png is missing"),
        (
            "queries",
            "q/1.png PINHOLE 32 24 30 30 16\n",
            r":1: camera is wrong: PINHOLE",
        ),
        ("queries_gt", "q/1.png 1 0 0 0 1 2\n", r"queries_gt.txt:1: has 7 fields"),
        ("queries_gt", "q/1.png 1 0 0 0 1 2 inf\n", r":1: tz is 'inf', expected a fin"),
        ("queries_gt", "q/1.png 0 0 0 0 1 2 3\n", r":1: quaternion has length 0"),
        ("queries_gt", "q/1.png 1 2 3 1 0 0 0\n", r":1: quaternion has length 3.87"),
        ("queries_gt", "1.png 1 0 0 0 0 0 0\n", "no pose is for an image of"),
        ("queries_gt", TRUTH * 2, r"queries_gt.txt:4: name 'q/1.png' is there twice"),
    ],
)
def test_wrong_lists(folder, write_text, file, text, message):
    write_text(folder / f"{file}.txt", text)
    with pytest.raises(DatasetError, match=message) as caught:
        open_hloc(folder)
    assert "\n" not in str(caught.value)


def test_missing_files(folder, tmp_path):
    with pytest.raises(
        DatasetError, match=r"queries.txt: is missing; --input is a fold"
    ):
        open_hloc(tmp_path)
    with pytest.raises(
        DatasetError, match=r"nope.txt: is missing; give the list of po"
    ):
        open_hloc(folder, poses=tmp_path / "nope.txt")


@pytest.mark.data
@pytest.mark.parametrize(("scene", "count"), [("fountain", 4), ("lund_door", 3)])
def test_queries_lie_between_the_mapping_cameras(shared_data, scene, count):
    """Ground truth of the queries is in the frame of the COLMAP model beside it."""
    queries = open_hloc(shared_data / scene)
    model = open_recording(format="colmap", input=shared_data / scene)
    assert len(queries.posed().images) == count
    centres = np.array([image.cam_from_world.origin_in_a for image in model.images])
    spacing = np.linalg.norm(np.diff(centres, axis=0), axis=1).max()
    for image in queries.images:
        distance = np.linalg.norm(centres - image.cam_from_world.origin_in_a, axis=1)
        assert distance.min() < spacing
    assert queries.cameras["0"] == model.cameras["1"]
