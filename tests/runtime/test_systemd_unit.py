"""The example unit and its options fit the program that they start."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from edgeloc.config import resolve_run_config
from edgeloc.errors import CameraError, ConfigError, MapError, ModelError
from edgeloc.runtime.capture import STALL_ERROR_S
from edgeloc.runtime.metrics_server import parse_address

FOLDER = Path(__file__).resolve().parent.parent.parent / "deploy" / "systemd"


@pytest.fixture(scope="module")
def unit():
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read(FOLDER / "edgeloc.service", encoding="utf-8")
    return parser


def test_options_are_those_of_this_program():
    config = resolve_run_config({}, file=FOLDER / "run.toml")
    assert config.budget_ns_at("realtime") == 33_000_000
    assert parse_address(config.metrics) == ("127.0.0.1", 9464)
    assert "jsonl:-" not in config.out


def test_options_that_are_commented_out_are_right_too(tmp_path):
    text = (FOLDER / "run.toml").read_text("utf-8")
    path = tmp_path / "run.toml"
    path.write_text(text.replace("# record", "record"), "utf-8")
    config = resolve_run_config({}, file=path)
    assert (config.record, config.record_images) == ("/var/log/edgeloc/run.log", "none")


def test_the_unit_knows_what_the_program_does(unit):
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert service["ExecStart"].split()[1:] == ["--config", "/etc/edgeloc/run.toml"]
    hopeless = {int(code) for code in service["RestartPreventExitStatus"].split()}
    assert hopeless == {e.exit_code for e in (ConfigError, MapError, ModelError)}
    assert CameraError.exit_code not in hopeless  # a cable may be plugged in again
    assert int(service["WatchdogSec"]) > STALL_ERROR_S


def test_systemd_accepts_the_unit(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    path = tmp_path / "edgeloc.service"
    text = (FOLDER / "edgeloc.service").read_text("utf-8")
    path.write_text(text.replace("/opt/edgeloc/bin/edgeloc-run", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert str(path.name) not in done.stderr, done.stderr
