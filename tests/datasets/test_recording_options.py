"""The options by which every command names a recording."""

from __future__ import annotations

import argparse

import pytest

from edgeloc.errors import ConfigError
from edgeloc.types import CameraModel
from edgeloc_tools.cli.recording_options import (
    add_recording_arguments,
    open_from_arguments,
)


@pytest.fixture
def model(tmp_path, write_image, write_text):
    """A COLMAP model with one image of 32x24 px."""
    write_text(tmp_path / "cameras.txt", "7 PINHOLE 32 24 30 31 16 12\n")
    write_text(tmp_path / "images.txt", "1 1 0 0 0 0.5 0 2 7 a.png\n\n")
    write_image(tmp_path / "images" / "a.png")
    return tmp_path


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_recording_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def opened(model, *arguments):
    return open_from_arguments(
        parse("--format", "colmap", "--input", model, *arguments)
    )


def test_without_options_the_recording_is_as_published(model):
    recording = opened(model)
    assert recording.cameras["7"].params == (30.0, 31.0, 16.0, 12.0)
    assert recording.metric is False


def test_intrinsics_replace_the_recordings_own(model, tmp_path):
    (tmp_path / "my.txt").write_text(
        "1 PINHOLE 32 24 40 40 16 12\n2 SIMPLE_RADIAL 32 24 50 16 12 0.1\n"
    )
    recording = opened(model, "--intrinsics", f"{tmp_path / 'my.txt'}#2")
    assert recording.cameras == {
        "7": CameraModel(
            model="SIMPLE_RADIAL", width=32, height=24, params=(50, 16, 12, 0.1)
        )
    }


def test_intrinsics_of_plain_photos(model, tmp_path):
    (tmp_path / "my.txt").write_text("SIMPLE_PINHOLE 32 24 50 16 12\n")
    arguments = ("--format", "folder", "--input", model / "images")
    assert open_from_arguments(parse(*arguments)).cameras == {}
    recording = open_from_arguments(
        parse(*arguments, "--intrinsics", tmp_path / "my.txt")
    )
    (camera_id,) = {image.camera_id for image in recording.images}
    assert recording.cameras[camera_id].params == (50.0, 16.0, 12.0)


def test_bad_intrinsics_are_a_usage_error(model, tmp_path):
    with pytest.raises(ConfigError, match=r"none\.txt: cannot be read"):
        opened(model, "--intrinsics", tmp_path / "none.txt")


def test_metric_is_what_the_caller_says(model, capsys):
    assert opened(model, "--metric").metric is True
    assert opened(model, "--not-metric").metric is False
    with pytest.raises(SystemExit):
        opened(model, "--metric", "--not-metric")
    assert "not allowed with" in capsys.readouterr().err
