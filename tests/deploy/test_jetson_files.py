"""Units, health check, preparation and installer of deploy/jetson."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from board_scripts import JETSON, REPOSITORY, script

import edgeloc
from edgeloc.runtime.metrics_server import MetricsServer
from edgeloc.runtime.telemetry import Telemetry

UNITS = JETSON / "units"
DEMO = Path(edgeloc.__file__).parent / "demo" / "site"
SCRIPTS = sorted(
    path
    for path in JETSON.iterdir()
    if path.is_file() and path.read_bytes().startswith(b"#!/bin/bash")
)


def unit(path):
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str
    parser.read(path, encoding="utf-8")
    return parser


# --- units


def test_the_service_waits_for_engines_and_power_but_runs_without():
    drop_in = unit(UNITS / "jetson.conf")
    for key in ("Wants", "After"):
        names = drop_in["Unit"][key].split()
        assert {"edgeloc-prepare.service", "edgeloc-power.service"} <= set(names)
    assert "Requires" not in drop_in["Unit"]


def test_units_start_scripts_that_are_installed():
    installer = (JETSON / "install.sh").read_text("utf-8")
    scripts = re.search(r"^SCRIPTS=\((.*)\)$", installer, re.M).group(1).split()
    for name in ("edgeloc-prepare.service", "edgeloc-power.service"):
        command = Path(unit(UNITS / name)["Service"]["ExecStart"].split()[0])
        assert command.parent == Path("/opt/edgeloc/bin")
        assert command.name in scripts
    assert all((JETSON / name).is_file() for name in scripts)


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here"
)
def test_systemd_accepts_the_units_together(tmp_path):
    folder = tmp_path / "systemd"
    (folder / "edgeloc.service.d").mkdir(parents=True)
    shutil.copy(UNITS / "jetson.conf", folder / "edgeloc.service.d")
    for path in (
        REPOSITORY / "deploy" / "systemd" / "edgeloc.service",
        UNITS / "edgeloc-prepare.service",
        UNITS / "edgeloc-power.service",
    ):
        text = re.sub(r"/opt/edgeloc/bin/\S+", "/bin/true", path.read_text("utf-8"))
        (folder / path.name).write_text(text, "utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, folder.glob("*.service"))],
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if "edgeloc" in line]
    assert said == []


# --- scripts


def test_all_scripts_are_covered():
    names = {path.name for path in SCRIPTS}
    assert {"install.sh", "test-aarch64.sh", "edgeloc-site", "edgeloc-power"} <= names


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(path):
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    if shutil.which("shellcheck") is not None:
        done = subprocess.run(
            ["shellcheck", str(path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_explain_themselves(board, path):
    script(board.bin / "nvpmodel", "true")
    script(board.bin / "jetson_clocks", "true")
    done = board.run(path.name, "--help")
    assert done.returncode == 0, done.stderr
    assert path.name in done.stdout
    assert "#" not in done.stdout
    assert "set -euo" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--nonsense",), "unknown option --nonsense"),
        (("--prefix", "opt"), "must begin with /"),
        (("--wheel",), "--wheel needs a file"),
    ],
)
def test_installer_refuses_what_it_does_not_understand(board, arguments, message):
    done = board.run("install.sh", *arguments)
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.skipif(
    Path("/etc/nv_tegra_release").exists(), reason="this machine is a Jetson"
)
def test_installer_wants_to_be_asked_on_other_machines(board):
    done = board.run("install.sh", "--root", board.root / "r")
    assert done.returncode == 2
    assert "this is no Jetson (--allow-any)" in done.stderr


def test_installer_names_an_old_python(board):
    old = script(board.bin / "python3.8", 'case "$*" in *"(3, 10)"*) exit 1;; esac')
    done = board.run(
        "install.sh", "--allow-any", "--root", board.root / "r", PYTHON=str(old)
    )
    assert done.returncode == 2
    assert "Python 3.10 or later is needed" in done.stderr


# --- preparation


def test_nothing_is_built_for_a_site_without_networks(board):
    done = board.run("edgeloc-prepare")
    assert done.returncode == 0
    assert "no site yet" in done.stderr
    done = board.run("edgeloc-prepare", DEMO)
    assert done.returncode == 0
    assert "has no networks" in done.stderr or "finds no TensorRT" in done.stderr


def test_engines_are_built_where_there_is_tensorrt(board):
    site = board.state / "site"
    (site / "models" / "0123").mkdir(parents=True)
    (site / "site.json").write_text("{}")
    (site / "models" / "0123" / "features.onnx").write_bytes(b"")
    script(board.programs / "python", "exit 1")
    done = board.run("edgeloc-prepare")
    assert done.returncode == 0
    assert "networks run on the CPU" in done.stderr
    script(board.programs / "python", "exit 0")
    script(board.programs / "edgeloc-build", 'echo "$@"')
    done = board.run("edgeloc-prepare")
    plain = ["engine", "--map", str(site), "--backend", "tensorrt"]
    assert done.stdout.split() == plain
    (board.state / "pictures").mkdir()
    done = board.run("edgeloc-prepare")
    assert done.stdout.split() == [*plain, "--images", str(board.state / "pictures")]


# --- health


@pytest.fixture
def served():
    """Numbers of a run, served as edgeloc-run serves them."""
    telemetry = Telemetry()
    with MetricsServer("0", telemetry.prometheus_text) as server:
        yield telemetry, server.url.split("/")[2]


def test_a_run_that_answers_frames_is_healthy(board, served):
    telemetry, address = served
    stop = threading.Event()

    def answer():
        while not stop.is_set():
            telemetry.num_frames += 1
            time.sleep(0.02)

    thread = threading.Thread(target=answer)
    thread.start()
    done = board.run("edgeloc-health", "--metrics", address)
    stop.set()
    thread.join()
    assert done.returncode == 0, done.stdout
    assert re.match(r"healthy: \d+ frames answered \(LOCALIZED 0, ", done.stdout)


def test_a_run_that_stands_still_is_not(board, served):
    done = board.run("edgeloc-health", "--metrics", served[1], "--within", "0.5")
    assert done.returncode == 1
    assert done.stdout == "unhealthy: no frame was answered within 0.5 s\n"


def test_no_run_is_not_healthy(board):
    start = time.monotonic()
    done = board.run("edgeloc-health", "--metrics", "127.0.0.1:1", "--wait", "0.5")
    assert done.returncode == 1
    assert "no numbers at http://127.0.0.1:1/metrics" in done.stdout
    assert time.monotonic() - start >= 0.5
