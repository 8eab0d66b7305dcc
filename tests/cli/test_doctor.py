"""`edgeloc-doctor` on this machine and on machines that it is told about."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from edgeloc.cli import doctor
from edgeloc.errors import ModelError

X86 = "processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni amx_int8\nbugs\t: x\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n"


def findings_of(capsys, *arguments):
    code = doctor.main([*arguments, "--json"])
    return code, {f["name"]: f for f in json.loads(capsys.readouterr().out)}


def test_report_names_what_the_design_asks_for(capsys):
    code, findings = findings_of(capsys)
    assert code == 0
    expected = {
        *("python", "platform", "edgeloc", "numpy", "cv2", "onnxruntime", "scipy"),
        *("msgpack", "poselib", "yaml", "tensorrt", "tensorrt_rtx"),
        *("pycolmap", "torch", "backend auto", "backend ort-cpu"),
        *("backend tensorrt", "opencv ffmpeg"),
        *("opencv gstreamer", "opencv v4l/v4l2", "cpu features", "cores", "memory"),
        *("jetson", "cuda", "clock", "sleep jitter", "real-time priority"),
    }
    assert expected <= set(findings)
    assert any(name.startswith(("cameras", "/dev/video")) for name in findings)
    assert findings["numpy"]["value"] == np.__version__
    assert findings["opencv ffmpeg"]["status"] == "ok"
    assert findings["backend ort-cpu"]["value"] == "there"
    assert findings["backend tensorrt"]["status"] == "missing"
    assert any(name.startswith("model") for name in findings)
    for finding in findings.values():
        assert finding["status"] in {"ok", "warn", "missing"}
        if finding["status"] != "ok":
            assert finding["advice"], finding["name"]


def test_optional_parts_are_looked_for_but_not_imported(capsys):
    before = {name.partition(".")[0] for name in sys.modules}
    findings_of(capsys)
    after = {name.partition(".")[0] for name in sys.modules}
    assert not (after - before) & {"torch", "pycolmap", "poselib", "tensorrt"}


def test_table_has_the_advice_under_its_line(capsys):
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("ok      numpy"))
    assert np.__version__ in lines[at]
    missing = [i for i, line in enumerate(lines) if line.startswith("MISSING")]
    assert all("-> " in lines[i + 1] for i in missing)


def test_missing_requirement_is_exit_4_and_says_how_to_get_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "msgpack", None)
    code, findings = findings_of(capsys)
    assert code == 4
    assert findings["msgpack"]["status"] == "missing"
    assert findings["msgpack"]["advice"] == "pip install msgpack"
    with pytest.raises(ModelError, match="msgpack cannot be imported"):
        doctor.require_installation()


@pytest.mark.parametrize("module", ["cv2", "onnxruntime"])
def test_report_is_complete_without_its_big_libraries(capsys, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    code, findings = findings_of(capsys)
    assert code == 4
    assert findings[module]["status"] == "missing"
    assert findings["clock"]["status"] == "ok"


def test_cpu_flags_of_both_kinds_of_cpuinfo():
    assert {"avx2", "avx512_vnni", "amx_int8"} <= doctor.cpu_flags(X86)
    assert {"asimddp", "i8mm"} <= doctor.cpu_flags(ARM)
    assert doctor.cpu_flags("") == frozenset()


@pytest.mark.parametrize(
    ("cpuinfo", "status"), [(X86, "ok"), (ARM, "ok"), ("", "warn")]
)
def test_cpu_without_int8_instructions_is_a_warning(
    capsys, monkeypatch, cpuinfo, status
):
    monkeypatch.setattr(
        doctor, "read_text", lambda path: cpuinfo if path.name == "cpuinfo" else ""
    )
    assert findings_of(capsys)[1]["cpu features"]["status"] == status


def test_little_memory_is_a_warning(capsys, monkeypatch):
    files = {"meminfo": "MemTotal:        1048576 kB\nMemFree: 1 kB\n"}
    monkeypatch.setattr(doctor, "read_text", lambda path: files.get(path.name, ""))
    _, findings = findings_of(capsys)
    assert findings["memory"]["value"] == "1.0 GiB"
    assert findings["memory"]["status"] == "warn"


def test_sleeps_overrun_and_the_worst_is_not_better_than_the_median():
    median_us, worst_us = doctor.sleep_jitter_us(count=5, duration_s=0.0005)
    assert 0 < median_us <= worst_us


def test_unknown_option_is_exit_2(capsys):
    with pytest.raises(SystemExit) as caught:
        doctor.main(["--nonsense"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
