"""``sfm.json`` beside a COLMAP model: scale, gravity and place of its world."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from edgeloc.errors import DatasetError
from edgeloc_tools.datasets import open_recording

FACTS = {
    "format_version": 1,
    "status": "ok",
    "model": "sparse/0",
    "metric": True,
    "gravity_in_world": [0.0, -0.6, -0.8],
    "geo_reference": {
        "latitude_deg": 47.25,
        "longitude_deg": 8.5,
        "altitude_m": 408.0,
    },
    "pycolmap": "4.2.1",
}


@pytest.fixture
def project(tmp_path, write_image, write_text) -> Path:
    """The folder that ``edgeloc-build sfm -o`` makes, without ``sfm.json``."""
    model = tmp_path / "out" / "sparse" / "0"
    write_text(model / "cameras.txt", "1 PINHOLE 32 24 30 31 16 12\n")
    write_text(model / "images.txt", "1 1 0 0 0 0.5 0 2 1 a.png\n\n")
    write_image(tmp_path / "out" / "images" / "a.png")
    return tmp_path / "out"


def write_facts(project, **changes):
    (project / "sfm.json").write_text(json.dumps({**FACTS, **changes}))


def world_of(path):
    recording = open_recording(format="colmap", input=path)
    return recording.metric, recording.gravity_in_world, recording.geo_reference


UNKNOWN = (False, None, None)


@pytest.mark.parametrize("folder", ["", "sparse", "sparse/0"])
def test_facts_reach_the_recording(project, folder):
    write_facts(project)
    assert world_of(project / folder) == (
        True,
        (0.0, -0.6, -0.8),
        FACTS["geo_reference"],
    )
    recording = open_recording(format="colmap", input=project / folder)
    assert recording.pose_source == "structure from motion (COLMAP 4.2.1)"


def test_relative_paths_and_links_find_them_too(project, monkeypatch):
    write_facts(project)
    monkeypatch.chdir(project / "sparse" / "0")
    assert world_of(Path())[0] is True
    (project.parent / "link").symlink_to(project / "sparse" / "0")
    assert world_of(project.parent / "link")[0] is True


def test_what_is_not_known_stays_unknown(project):
    write_facts(project, metric=False, gravity_in_world=None, geo_reference=None)
    assert world_of(project) == UNKNOWN


def test_gravity_is_of_unit_length_to_the_last_digit(project):
    write_facts(project, gravity_in_world=[0.0, 0.0, -1.0004])
    assert world_of(project)[1] == (0.0, 0.0, -1.0)
    write_facts(project, gravity_in_world=[0.6, 0.0, 0.8001])
    assert math.hypot(*world_of(project)[1]) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "sparse/1"},  # the model of another run
        {"model": None},
        {"status": "failed"},  # sparse/0 is then from an earlier run
    ],
)
def test_facts_of_another_model_do_not_count(project, changes):
    write_facts(project, **changes)
    assert world_of(project) == UNKNOWN


@pytest.mark.parametrize("text", ["[1, 2]", '{"metric": true, "model": "sparse/0"}'])
def test_file_of_another_program_does_not_count(project, text):
    (project / "sfm.json").write_text(text)
    assert world_of(project) == UNKNOWN


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version is 2, only 1 is known"),
        ({"metric": 1}, "metric must be true or false"),
        ({"gravity_in_world": [0, 0]}, "gravity_in_world must be null or 3 numbers"),
        ({"gravity_in_world": [0, 0, "x"]}, "gravity_in_world must be null or 3 num"),
        ({"gravity_in_world": [0, 0, 2.0]}, "gravity_in_world must be null or 3 num"),
        ({"gravity_in_world": [0, 0, math.nan]}, "gravity_in_world must be null or 3"),
        ({"gravity_in_world": {"x": 1, "y": 2, "z": 3}}, "gravity_in_world must be nu"),
        ({"geo_reference": [47, 8, 400]}, "geo_reference.latitude_deg must be a num"),
        (
            {"geo_reference": {**FACTS["geo_reference"], "latitude_deg": 91}},
            "geo_reference.latitude_deg must be a number up to ±90",
        ),
        (
            {"geo_reference": {"latitude_deg": 1, "longitude_deg": True}},
            "geo_reference.longitude_deg must be a number up to ±180",
        ),
    ],
)
def test_damaged_facts_are_an_error_not_a_lost_scale(project, changes, message):
    write_facts(project, **changes)
    with pytest.raises(DatasetError) as caught:
        world_of(project)
    text = str(caught.value)
    assert text.startswith(f"{project / 'sfm.json'}: {message}")
    assert "remove it to use the model without a scale" in text
    assert "\n" not in text


@pytest.mark.parametrize("data", [b"{", b'{"a": 1', b"\xff\xfe\x00", b"[" * 100_000])
def test_file_that_is_not_json(project, data):
    (project / "sfm.json").write_bytes(data)
    with pytest.raises(DatasetError, match=r"sfm\.json: is not .*without a scale"):
        world_of(project)
