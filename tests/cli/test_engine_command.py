"""`edgeloc-build engine`, with TensorRT for RTX and without a GPU."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest

from edgeloc.errors import BackendUnavailableError
from edgeloc.inference import cuda, trt
from edgeloc.inference.manifest import shipped_folder, shipped_model
from edgeloc_tools.cli import build, engine_command

needs_rtx = pytest.mark.skipif(
    not trt.is_installed("tensorrt-rtx"),
    reason="TensorRT for RTX has wheels for x86-64 Linux only",
)


@pytest.fixture
def no_driver(monkeypatch):
    monkeypatch.setattr(cuda, "_LIBRARIES", ("libno-such-driver.so.1",))
    cuda.open_device.cache_clear()
    yield
    cuda.open_device.cache_clear()


def engine(*arguments) -> int:
    return build.main(["engine", *map(str, arguments)])


def last_line(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


@needs_rtx
def test_from_nothing_to_a_fresh_engine(no_driver, tmp_path, capsys):
    model = ("--model", shipped_model("retrieval"), "--backend", "tensorrt-rtx")
    where = ("--engines", tmp_path / "engines")
    assert engine(*model, *where, "--check") == 4
    captured = capsys.readouterr()
    [entry] = json.loads(captured.out)
    assert entry["state"] == "stale"
    assert entry["reason"].endswith("-tensorrt-rtx.json: no such engine")
    assert captured.err.strip().endswith("engine; run the command without --check")

    assert engine(*model, *where, "--layers") == 0
    captured = capsys.readouterr()
    [entry] = json.loads(captured.out)
    assert (entry["state"], entry["precision"]) == ("built", "int8")
    assert entry["layers"] == {"fp32": 1, "int8": 12}
    assert entry["agreement"] is None
    assert entry["compute_capability"] == "any"
    assert "not compared with ONNX Runtime, no engine runs here: no NVIDI" in (
        captured.err
    )
    assert "convolutions and products: 1 fp32, 12 int8" in captured.err
    assert re.search(r"stem_weight/DequantizeLinear +correlation +int8 ", captured.err)

    [plan] = (tmp_path / "engines").glob("*.plan")
    before = plan.stat().st_mtime_ns
    assert engine(*model, *where) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == "fresh"
    assert plan.stat().st_mtime_ns == before
    assert engine(*model, *where, "--check") == 0
    capsys.readouterr()

    plan.write_bytes(plan.read_bytes()[:-1])
    assert engine(*model, *where, "--check") == 4
    assert "-tensorrt-rtx.plan: has " in last_line(capsys)
    assert engine(*model, *where) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)[0]["state"] == "built"
    assert f"{plan.name}: has " in captured.err  # a stale engine is named
    assert engine(*model, *where, "--check") == 0


@needs_rtx
def test_force_builds_again_and_shape_is_heeded(no_driver, tmp_path, capsys):
    model = ("--model", shipped_model("features"), "--backend", "tensorrt-rtx")
    where = ("--engines", tmp_path)
    assert engine(*model, *where, "--shape", "320x200", "--precision", "fp16") == 0
    record = tmp_path / "edgeloc-features-small-int8-cpu-tensorrt-rtx.json"
    assert json.loads(record.read_text())["sizes"] == [[64, 64], [208, 320], [320, 320]]
    capsys.readouterr()
    assert engine(*model, *where, "--check", "--precision", "fp16") == 4
    assert "takes up to 320x320 px, 640x640 is wanted" in last_line(capsys)
    arguments = (*model, *where, "--shape", "320x200", "--precision", "fp16")
    assert engine(*arguments, "--force") == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == "built"


@needs_rtx
def test_the_comparison_can_be_required(no_driver, tmp_path, capsys):
    model = ("--model", shipped_model("features"), "--backend", "tensorrt-rtx")
    assert engine(*model, "--engines", tmp_path, "--gate", "require") == 4
    assert last_line(capsys).startswith(
        "edgeloc-build: error: --gate require: no NVIDIA driver"
    )
    assert list(tmp_path.iterdir()) == []


def test_tensorrt_without_a_gpu_refuses(no_driver, tmp_path, monkeypatch, capsys):
    """Whether its package is there or not: one line, exit code 4."""
    model = ("--model", shipped_model("features"), "--engines", tmp_path)
    assert engine(*model, "--backend", "tensorrt") == 4
    line = last_line(capsys)
    assert line.startswith("edgeloc-build: error: --backend tensorrt: ")
    assert ("No module named" in line) != ("no NVIDIA driver" in line)
    assert list(tmp_path.iterdir()) == []


@needs_rtx
@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ("640", "--shape 640: expected WxH, as in 640x480"),
        ("0x480", "--shape 0x480: sides must be from 16 to 8192 px"),
        ("-1x4", "--shape -1x4: expected WxH"),
        ("99999x480", "sides must be from 16 to 8192 px"),
    ],
)
def test_a_shape_that_is_none_is_exit_2(no_driver, capsys, shape, said):
    model = ("--model", shipped_model("features"), "--backend", "tensorrt-rtx")
    assert engine(*model, f"--shape={shape}") == 2
    assert said in last_line(capsys)


@needs_rtx
def test_a_site_without_networks_needs_no_engine(no_driver, capsys):
    from edgeloc.cli.run import demo_paths

    assert engine("--map", demo_paths()[1], "--backend", "tensorrt-rtx") == 2
    assert "needs no engine, its features (orb) run in OpenCV" in last_line(capsys)


def test_map_and_model_exclude_each_other(capsys):
    with pytest.raises(SystemExit) as caught:
        engine("--map", "site", "--model", "m.json")
    assert caught.value.code == 2


@needs_rtx
def test_nothing_but_the_device_half_is_needed(tmp_path):
    """On a device there are neither onnx nor torch, pycolmap or matplotlib."""
    manifest = shipped_folder() / "edgeloc-features-small-int8-cpu.json"
    code = f"""
import sys
for name in ("onnx", "torch", "pycolmap", "matplotlib", "jinja2", "yaml"):
    sys.modules[name] = None
from edgeloc_tools.cli.build import main
arguments = ["engine", "--model", {str(manifest)!r}, "--backend", "tensorrt-rtx",
             "--engines", {str(tmp_path)!r}]
code = main(arguments)
assert code == 0, code
assert main([*arguments, "--precision", "fp16"]) == 4
"""
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads(outcome.stdout)[0]["layers"] == {"int8": 11}
    assert (
        "needs the package onnx; pip install onnx, or write it on a" in outcome.stderr
    )


def test_a_driver_that_does_not_start_is_no_gpu(monkeypatch):
    """A library that is no driver has none of its calls."""
    monkeypatch.setattr(cuda, "_LIBRARIES", ("libc.so.6",))
    with pytest.raises(BackendUnavailableError, match="too old: it has no cuInit"):
        cuda.Driver()


def test_pictures_to_compare_on_come_from_any_source(tmp_path):
    picture = np.full((48, 64, 3), 90, np.uint8)
    for name in ("b.png", "a.png"):
        cv2.imwrite(str(tmp_path / name), picture + (name == "b.png"))
    real = engine_command._images(str(tmp_path))
    assert [int(image.flat[0]) for image in real] == [90, 91]
    assert len(engine_command._images(None)) == 8
