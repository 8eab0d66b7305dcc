"""Options from the command line and from TOML."""

from __future__ import annotations

import sys

import pytest

from edgeloc.cli.run import build_parser
from edgeloc.config import RunConfig, option_name, resolve_run_config
from edgeloc.errors import ConfigError

BOTH = {"camera": "0", "map": "site"}


def write(folder, text):
    path = folder / "run.toml"
    path.write_text(text)
    return path


def problems_of(command_line, file=None):
    with pytest.raises(ConfigError) as caught:
        resolve_run_config(command_line, file=file)
    message = str(caught.value)
    assert "\n" not in message
    return message.split("; ")


def test_defaults():
    config = resolve_run_config(BOTH)
    assert config == RunConfig(camera="0", map="site")
    assert config.out == ("jsonl:-",)


def test_every_option_of_the_command_line_is_a_key_and_back():
    options = {
        action.option_strings[0].removeprefix("--")
        for action in build_parser()._actions
    }
    fields = {option_name(name) for name in RunConfig.__dataclass_fields__}
    assert options - {"-h", "version", "config"} == fields


def test_text_of_the_command_line_becomes_values():
    config = resolve_run_config(
        {**BOTH, "budget_ms": "12.5", "max_frames": "7", "rate": "15", "seed": "3"}
    )
    assert (config.budget_ms, config.max_frames, config.rate, config.seed) == (
        12.5,
        7,
        15.0,
        3,
    )


def test_file_gives_values_and_the_command_line_wins(tmp_path):
    path = write(
        tmp_path,
        'camera = "/dev/video2"\nmap = "site"\nbudget-ms = 50\ncold = true\n'
        'out = ["jsonl:-", "udp://127.0.0.1:9000"]\nmax-frames = 10\n',
    )
    config = resolve_run_config({"max_frames": "3", "cold": False}, file=path)
    assert config == RunConfig(
        camera="/dev/video2",
        map="site",
        budget_ms=50.0,
        cold=False,
        out=("jsonl:-", "udp://127.0.0.1:9000"),
        max_frames=3,
    )


def test_all_problems_are_reported_at_once(tmp_path):
    path = write(
        tmp_path,
        'budget_ms = 20\nmethod = "magic"\nseed = 1.5\ncold = "yes"\nnonsense = 1\n',
    )
    assert problems_of({"rate": "fast", "max_frames": "0"}, path) == [
        f"{path}: unknown key budget_ms, did you mean budget-ms",
        f"{path}: method must be one of auto, structure, scene-coords, local-sfm, "
        "relative, interpolate, regress, got 'magic'",
        f"{path}: seed must be a whole number, got 1.5",
        f"{path}: cold must be true or false, got 'yes'",
        f"{path}: unknown key nonsense",
        "--rate must be a number, got 'fast'",
        "--max-frames must be from 1 to 2147483647, got '0'",
        "--camera SOURCE is missing (or use --demo)",
        "--map SITE is missing (or use --demo)",
    ]


def test_budget_without_a_number_goes_by_the_pace():
    config = resolve_run_config(BOTH)
    assert config.budget_ns_at("realtime") == 33_000_000
    assert config.budget_ns_at("every") is None
    config = resolve_run_config({**BOTH, "budget_ms": "12.5"})
    assert config.budget_ns_at("realtime") == config.budget_ns_at("every") == 12_500_000


def test_fixed_emission_needs_a_deadline():
    fixed = {**BOTH, "emit": "fixed"}
    problem = (
        "--emit fixed needs --budget-ms MS: with --pace every, which is what "
        "recordings run with, frames have no deadline"
    )
    assert problems_of({**fixed, "pace": "every"}) == [problem]
    given = resolve_run_config({**fixed, "pace": "every", "budget_ms": "50"})
    assert given.budget_ns_at("every") == 50_000_000
    by_source = resolve_run_config(fixed)
    assert by_source.budget_ns_at("realtime") == 33_000_000
    with pytest.raises(ConfigError, match="--emit fixed needs --budget-ms MS"):
        by_source.budget_ns_at("every")


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1", "60001"])
def test_budget_must_be_a_sensible_number(value):
    assert problems_of({**BOTH, "budget_ms": value}) == [
        f"--budget-ms must be > 0 and at most 60000, got '{value}'"
    ]


def test_options_of_other_sensors_become_values():
    config = resolve_run_config(
        {
            **BOTH,
            "gnss": "tcp://10.0.0.2:5000",
            "gnss_sigma_m": "3",
            "compass": True,
            "compass_offset_deg": "-90",
            "gravity": "0,0.9,-0.1",
            "mask": "hood.toml",
        }
    )
    assert config.gnss_sigma_m == 3.0
    assert config.compass_offset_deg == -90.0
    assert config.gravity == "0,0.9,-0.1"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            {"compass": True},
            "--compass reads the sentences of --gnss SOURCE, which is missing",
        ),
        (
            {"gravity": "nmea", "gnss_sigma_m": "2"},
            "--gnss-sigma-m reads the sentences of --gnss SOURCE, which is missing; "
            "--gravity nmea reads the sentences of --gnss SOURCE, which is missing",
        ),
        (
            {"gravity": "down"},
            "--gravity must be nmea, imu or a direction such as 0,1,0, got 'down'",
        ),
        (
            {"gravity": "0,0,0"},
            "--gravity must be nmea, imu or a direction such as 0,1,0, got '0,0,0'",
        ),
        (
            {"gnss": "g", "gnss_latency_ms": "-1"},
            "--gnss-latency-ms must be from 0 to 10000, got '-1'",
        ),
        (
            {"gravity": "imu"},
            "--gravity imu reads the lines of --imu SOURCE, which is missing",
        ),
        (
            {"imu": "imu.csv"},
            "--imu needs --imu-extrinsics: how it is turned to the camera, "
            "x,y,z,qx,qy,qz,qw of cam_from_imu or a file of Kalibr's",
        ),
        (
            {"imu_extrinsics": "imu.yaml", "wheel_odometry_latency_ms": "11000"},
            "--wheel-odometry-latency-ms must be from -10000 to 10000, got '11000'; "
            "--imu-extrinsics is for --imu, which is missing",
        ),
        (
            {"wheel_odometry": "o", "wheel_odometry_extrinsics": "e", "cold": True},
            "--wheel-odometry tells of the way between frames, which --cold leaves out",
        ),
        (
            {"ignore_classes": "car"},
            "--ignore-classes is for --segmenter, which is missing",
        ),
    ],
)
def test_options_of_other_sensors_that_make_no_sense(given, problem):
    assert "; ".join(problems_of({**BOTH, **given})) == problem


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"camera": "0"}, "--map SITE is missing (or use --demo)"),
        (
            {"demo": True, "camera": "0"},
            "--demo brings its own camera: leave --camera away",
        ),
        ({"check": True, "camera": "0"}, "--check --camera also needs --map SITE"),
        (
            {**BOTH, "quiet": True, "debug": True},
            "--quiet and --debug exclude each oth",
        ),
        ({**BOTH, "out": ["jsonl:-", "jsonl:-"]}, "--out is given twice for the same"),
        ({**BOTH, "camera": " "}, "--camera must be a text that is not empty"),
    ],
)
def test_contradictions(given, problem):
    assert problems_of(given)[0].startswith(problem)


@pytest.mark.parametrize("given", [{"check": True}, {"demo": True}])
def test_check_and_demo_need_no_camera(given):
    config = resolve_run_config(given)
    assert (config.camera, config.map) == (None, None)


def test_file_that_is_not_toml(tmp_path):
    path = write(tmp_path, "camera = \n")
    assert problems_of(BOTH, path)[0].startswith(f"{path}: is not valid TOML")
    path.write_bytes(b"\xff\xfe")
    assert problems_of(BOTH, path)[0].startswith(f"{path}: is not valid TOML")


def test_file_that_is_missing(tmp_path):
    path = tmp_path / "none.toml"
    assert problems_of(BOTH, path) == [
        f"{path}: cannot be read (No such file or directory)"
    ]


def test_python_without_a_toml_parser_says_what_to_install(tmp_path, monkeypatch):
    parser = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    monkeypatch.setitem(sys.modules, parser, None)
    path = write(tmp_path, "cold = true\n")
    assert problems_of(BOTH, path)[0].startswith(f"{path}: reading TOML needs {parser}")
