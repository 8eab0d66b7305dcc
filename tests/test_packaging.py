"""The wheel: what is in it, and that it works where only its requirements are."""

from __future__ import annotations

import email
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from edgeloc import __version__

pytestmark = pytest.mark.packaging

REPOSITORY = Path(__file__).resolve().parent.parent
MAX_WHEEL_BYTES = 12_000_000
MAX_PACKAGE_BYTES = 20_000_000
MAX_DEVICE_BYTES = 450_000_000
DEMO = REPOSITORY / "edgeloc" / "demo"

RUNTIME_REQUIREMENTS = {
    "numpy": "",
    "opencv-python-headless": "",
    "onnxruntime": "",
    "scipy": "",
    "msgpack": "",
    "tomli": 'python_version < "3.11"',
}
EXTRAS = {"yaml", "sign", "tensorrt-rtx", "poselib", "build", "train", "dev"}
COMMANDS = {
    *("edgeloc-run", "edgeloc-doctor", "edgeloc-replay"),
    *("edgeloc-build", "edgeloc-eval"),
}
ONNXRUNTIME_NEEDS = {
    *("flatbuffers", "packaging", "protobuf"),
    *("coloredlogs", "humanfriendly", "sympy", "mpmath"),
}
# None of them is on a device.
NOT_ON_A_DEVICE = (
    *("torch", "onnx", "pycolmap", "poselib", "matplotlib", "jinja2", "yaml"),
    *("pytest", "hypothesis", "pip", "setuptools"),
)


def run(*command, cwd):
    """Run a command that knows nothing of this environment."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "EDGELOC_LOG"}
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
        env={**environment, "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this tree, built without network and without traces in the tree."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("wheel")
    done = run(
        *(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out),
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def members(wheel) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def metadata(members) -> email.message.Message:
    return email.message_from_bytes(
        members[f"edgeloc-{__version__}.dist-info/METADATA"]
    )


def files_below(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder.parent))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_has_both_packages_the_models_and_nothing_else(wheel, members):
    assert wheel.name == f"edgeloc-{__version__}-py3-none-any.whl"
    info = f"edgeloc-{__version__}.dist-info/"
    installed = {name for name in members if not name.startswith(info)}
    models = {f"edgeloc/{name}" for name in files_below(REPOSITORY / "models")}
    assert installed == (
        files_below(REPOSITORY / "edgeloc")
        | files_below(REPOSITORY / "tools" / "edgeloc_tools")
        | models
    )
    assert {
        "edgeloc/py.typed",
        "edgeloc_tools/py.typed",
        "edgeloc/models/README.md",
        "edgeloc/tiles/FORMAT.md",
        "edgeloc_tools/evaluate/report.html.j2",
    } <= installed
    assert f"{info}licenses/LICENSE" in members


@pytest.mark.skipif(not DEMO.is_dir(), reason="edgeloc/demo is not in this tree")
def test_wheel_has_the_demo(members):
    assert {"edgeloc/demo/clip.mp4", "edgeloc/demo/site/site.json"} <= set(members)
    assert any(name.startswith("edgeloc/demo/site/tiles/") for name in members)


def test_wheel_is_small_enough_for_a_slow_link(wheel):
    assert wheel.stat().st_size < MAX_WHEEL_BYTES


def test_installed_package_is_small(members):
    assert sum(map(len, members.values())) < MAX_PACKAGE_BYTES


def test_metadata_says_what_the_wheel_needs(metadata):
    assert metadata["Name"] == "edgeloc"
    assert metadata["Version"] == __version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra")) == EXTRAS
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    always = {r.name: r for r in requirements if "extra" not in str(r.marker)}
    assert {n: str(r.marker or "") for n, r in always.items()} == RUNTIME_REQUIREMENTS
    for requirement in always.values():
        assert re.fullmatch(r">=[\d.]+", str(requirement.specifier)), requirement
    assert not {r.name for r in requirements} & {"pycuda", "tensorrt"}
    for requirement in requirements:
        if requirement.name == "torch":
            assert re.search(r"extra == .(train|dev).", str(requirement.marker))


def test_every_command_points_into_the_wheel(members):
    parser = ConfigParser()
    parser.read_string(
        members[f"edgeloc-{__version__}.dist-info/entry_points.txt"].decode()
    )
    scripts = dict(parser["console_scripts"])
    assert set(scripts) == COMMANDS
    for target in scripts.values():
        module, _, function = target.partition(":")
        source = members[module.replace(".", "/") + ".py"].decode()
        assert f"\ndef {function}(" in source


def closure_of(names) -> dict[str, importlib.metadata.Distribution]:
    """Return distributions and all that they require here, without extras."""
    found: dict[str, importlib.metadata.Distribution] = {}
    pending = list(names)
    while pending:
        name = pending.pop().lower()
        if name in found:
            continue
        found[name] = importlib.metadata.distribution(name)
        for text in found[name].requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                pending.append(requirement.name)
    return found


@pytest.fixture(scope="module")
def requirements() -> dict[str, importlib.metadata.Distribution]:
    """What a device installs besides the wheel."""
    return closure_of(
        name
        for name, marker in RUNTIME_REQUIREMENTS.items()
        if not marker or Requirement(f"{name}; {marker}").marker.evaluate()
    )


def link_packages(distributions, folder: Path) -> None:
    """Make distributions of this environment importable from another folder."""
    for distribution in distributions.values():
        tops = {file.parts[0] for file in distribution.files}
        for top in tops - {"..", "__pycache__"}:
            if not (folder / top).exists():
                target = Path(distribution.locate_file(top)).resolve()
                (folder / top).symlink_to(target)


def test_a_device_needs_little_room(members, requirements):
    files = [
        Path(distribution.locate_file(file))
        for distribution in requirements.values()
        for file in distribution.files
        if "__pycache__" not in file.parts
    ]
    total = sum(file.stat().st_size for file in files if file.is_file())
    assert total > 100_000_000  # they are there
    assert total + sum(map(len, members.values())) < MAX_DEVICE_BYTES
    assert set(requirements) == {
        *("numpy", "opencv-python-headless", "onnxruntime", "scipy", "msgpack"),
        *({"tomli"} if sys.version_info < (3, 11) else set()),
        *(set(requirements) & ONNXRUNTIME_NEEDS),
    }


@pytest.fixture(scope="module")
def device(tmp_path_factory, wheel, requirements) -> Path:
    """An environment with the wheel and its requirements, without pip or extras."""
    root = tmp_path_factory.mktemp("device")
    venv = root / "venv"
    done = run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=root)
    assert done.returncode == 0, done.stderr
    (site_packages,) = venv.glob("lib/python*/site-packages")
    link_packages(requirements, site_packages)
    done = run(
        *(sys.executable, "-m", "pip", "--python", venv / "bin" / "python"),
        *("install", "--no-deps", "--no-index", "--quiet", wheel),
        cwd=root,
    )
    assert done.returncode == 0, done.stderr
    return venv


@pytest.fixture
def on_device(device, tmp_path):
    """Run a program of the device environment in an empty folder."""
    return lambda name, *arguments: run(device / "bin" / name, *arguments, cwd=tmp_path)


def test_device_has_the_wheel_and_nothing_of_the_workstation(on_device, device):
    script = (
        "import edgeloc, edgeloc_tools, importlib.util, json, sys\n"
        "print(json.dumps([edgeloc.__file__, edgeloc_tools.__file__, "
        "[n for n in sys.argv[1:] if importlib.util.find_spec(n)]]))"
    )
    done = on_device("python", "-c", script, *NOT_ON_A_DEVICE)
    assert done.returncode == 0, done.stderr
    edgeloc_file, tools_file, found = json.loads(done.stdout)
    assert Path(edgeloc_file).is_relative_to(device)
    assert Path(tools_file).is_relative_to(device)
    assert found == []


def test_installation_check_passes_on_the_device(on_device):
    done = on_device("edgeloc-run", "--check")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["ok"] is True
    assert facts["edgeloc"] == __version__
    assert facts["backend"] == "ort-cpu"
    if DEMO.is_dir():
        assert facts["map"].endswith("/edgeloc/demo/site")
    else:
        assert facts["demo"] == "absent"


@pytest.mark.skipif(not DEMO.is_dir(), reason="edgeloc/demo is not in this tree")
def test_demo_runs_on_the_device(on_device):
    done = on_device("edgeloc-run", "--demo", "--max-frames", "5", "--quiet")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["frame_id"] for record in records] == list(range(5))
    assert any(record["status"] == "LOCALIZED" for record in records)


def test_doctor_reports_on_the_device(on_device):
    done = on_device("edgeloc-doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    for name in ("numpy", "cv2", "onnxruntime", "scipy", "msgpack"):
        assert findings[name]["status"] == "ok", findings[name]
    for name in ("poselib", "yaml", "pycolmap"):
        assert findings[name]["status"] != "ok"
        assert "pip install" in findings[name]["advice"]


@pytest.mark.parametrize(
    "command",
    [
        *(("edgeloc-run",), ("edgeloc-doctor",), ("edgeloc-eval",)),
        ("edgeloc-replay",),
        *(("edgeloc-build",), ("edgeloc-build", "map"), ("edgeloc-build", "sfm")),
        *(("edgeloc-build", "synth"), ("edgeloc-build", "verify")),
    ],
    ids=" ".join,
)
def test_help_needs_no_extra(on_device, command):
    done = on_device(*command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {' '.join(command)}")
    assert "examples:" in done.stdout


def test_missing_extras_are_named_where_they_are_needed(on_device, tmp_path):
    """Not by a traceback from somewhere inside."""
    import cv2
    import numpy as np

    (tmp_path / "photos").mkdir()
    for idx in range(3):
        picture = np.zeros((48, 64, 3), np.uint8)
        assert cv2.imwrite(str(tmp_path / "photos" / f"{idx}.png"), picture)
    recording = ("--format", "folder", "--input", "photos")
    for command, message in (
        (("edgeloc-build", "sfm", *recording, "-o", "model"), "needs pycolmap"),
        (("edgeloc-eval", "--map", "s", *recording, "--report", "r"), "--report needs"),
    ):
        done = on_device(*command)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "pip install 'edgeloc[build]'" in done.stderr
        assert "Traceback" not in done.stderr


INSTALLER = REPOSITORY / "deploy" / "jetson" / "install.sh"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the installer is for Linux")
def test_installer_from_nothing_to_poses_and_away(wheel, requirements, tmp_path):
    """As on a board, below a folder; requirements come from here, not from an index."""
    libraries, root = tmp_path / "libraries", tmp_path / "root"
    libraries.mkdir()
    link_packages(requirements, libraries)
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": str(libraries),
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
    }

    def call(program, *arguments):
        done = subprocess.run(
            [str(program), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            cwd=tmp_path,
            env=environment,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    install = (INSTALLER, "--allow-any", "--root", root)
    out = call(*install, "--wheel", wheel, "--site", DEMO / "site")
    assert "no Jetson" in out
    configuration = (root / "opt" / "edgeloc" / "pyvenv.cfg").read_text("utf-8")
    assert "include-system-site-packages = true" in configuration
    options = root / "etc" / "edgeloc" / "run.toml"
    assert (
        options.read_bytes()
        == (REPOSITORY / "deploy" / "systemd" / "run.toml").read_bytes()
    )
    unit = root / "etc" / "systemd" / "system" / "edgeloc.service"
    assert "ExecStart=/opt/edgeloc/bin/edgeloc-run" in unit.read_text("utf-8")
    link = root / "usr" / "local" / "bin" / "edgeloc-run"
    assert str(link.readlink()) == "/opt/edgeloc/bin/edgeloc-run"
    poses = call(
        root / "opt" / "edgeloc" / "bin" / "edgeloc-run",
        *("--camera", DEMO / "clip.mp4", "--map", root / "var/lib/edgeloc/site"),
        *("--max-frames", "5", "--quiet"),
    )
    records = [json.loads(line) for line in poses.splitlines()]
    assert [record["frame_id"] for record in records] == list(range(5))
    assert any(record["status"] == "LOCALIZED" for record in records)

    # Again, over options that somebody has changed.
    options.write_text('camera = "/dev/video2"\n', "utf-8")
    call(*install, "--wheel", wheel)
    assert options.read_text("utf-8") == 'camera = "/dev/video2"\n'
    call(*install, "--uninstall")
    assert not (root / "opt" / "edgeloc").exists()
    assert not unit.exists()
    assert not link.is_symlink()
    assert options.exists()
    assert (root / "var/lib/edgeloc/site/site.json").exists()
    call(*install, "--uninstall", "--purge")
    assert not options.exists()
    assert not (root / "var/lib/edgeloc").exists()
