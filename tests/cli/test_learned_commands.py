"""Networks on the command line: built into a site, run from it, refused in one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from model_factory import FEATURES, feature_network, write_features, write_retrieval
from site_fixture import CAMERA, RATE_HZ, mapping_path, room

from edgeloc.cli import doctor, run
from edgeloc.inference import manifest as manifest_module
from edgeloc_tools.cli import build
from edgeloc_tools.model_files import write_model
from edgeloc_tools.synth.record import Capture, make_recording


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Five frames of the room with depth, as a TUM RGB-D recording."""
    out = tmp_path_factory.mktemp("recording") / "walk"
    capture = Capture(num_frames=5, rate_hz=RATE_HZ, jpeg_quality=None)
    make_recording(
        out, scene=room(), path=mapping_path(), capture=capture, camera=CAMERA
    )
    return out


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return write_features(folder), write_retrieval(folder)


def build_map(recording, site, *more):
    arguments = ("map", "--format", "tum", "--input", recording, "-o", site)
    return build.main([str(a) for a in (*arguments, "--max-keypoints", "300", *more)])


@pytest.fixture(scope="module")
def site(recording, models, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "site"
    features, retrieval = models
    assert (
        build_map(recording, out, "--features", features, "--retrieval", retrieval) == 0
    )
    return out


def run_site(capsys, site, recording, *more):
    """Exit code, records and standard error of `edgeloc-run`."""
    arguments = ("--camera", recording / "rgb", "--map", site, "--max-frames", 2, *more)
    code = run.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines()], captured.err


def test_a_site_with_networks_runs_and_says_where(capsys, site, recording):
    code, records, err = run_site(capsys, site, recording)
    assert code == 0
    assert [record["status"] for record in records] == ["LOCALIZED"] * 2
    assert {"preprocess", "features", "retrieve"} <= set(records[0]["stage_ms"])
    for name in ("tiny-features", "tiny-retrieval"):
        assert f"edgeloc-run: backend auto: ort-cpu for {name}: this onnxrun" in err


def test_an_explicit_backend_needs_no_reason(capsys, site, recording):
    options = ("--backend", "ort-cpu", "--threads", "1")
    code, records, err = run_site(capsys, site, recording, *options)
    assert (code, len(records)) == (0, 2)
    assert "backend auto" not in err


def test_inspect_names_the_models(capsys, site):
    assert build.main(["inspect", str(site)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["features"] == "tiny-features"
    assert facts["models"] == {
        "features": "tiny-features",
        "retrieval": "tiny-retrieval",
    }
    files = (site / "models").glob("*/*")
    assert facts["bytes"]["models"] == sum(file.stat().st_size for file in files)


def test_a_changed_model_is_refused_before_the_first_frame(
    capsys, site, recording, tmp_path
):
    copy = shutil.copytree(site, tmp_path / "site")
    [network] = copy.glob("models/*/features.onnx")
    network.write_bytes(network.read_bytes()[:-1])
    code, records, err = run_site(capsys, copy, recording)
    assert (code, records) == (3, [])
    last = err.splitlines()[-1]
    assert last.startswith(f"edgeloc-run: error: {network}: has ")
    assert last.endswith("copy the site again or rebuild it")
    assert build.main(["verify", str(copy)]) == 3


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--features", "none.json"), 2, "none.json: no such model manifest"),
        (("--features", "surf"), 2, "feature family 'surf' is unknown, expected orb"),
        (("--retrieval", "bow"), 2, "retrieval 'bow' is unknown, expected auto, vlad"),
        (("--features", "wrong.json"), 4, "descriptor_dim is 32, the network's"),
        (("--features", "broken.json"), 4, "broken.json: format is None, expected one"),
        (("--threads", "0"), 2, "threads 0 must be at least 1"),
    ],
)
def test_what_cannot_be_built_with_is_one_line(
    capsys, recording, tmp_path, monkeypatch, options, code, message
):
    monkeypatch.chdir(tmp_path)
    wrong = replace(FEATURES, name="wrong", descriptor_dim=32)
    write_model(tmp_path, wrong, feature_network())
    (tmp_path / "broken.json").write_text("{}", encoding="utf-8")
    assert build_map(recording, tmp_path / "site", *options) == code
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith("edgeloc-build: error: ")
    assert message in last
    assert captured.out == ""
    assert not (tmp_path / "site").exists()


def test_the_doctor_lists_the_models_of_this_installation(
    capsys, tmp_path, monkeypatch
):
    write_features(tmp_path)
    path = write_retrieval(tmp_path)
    path.with_suffix(".onnx").write_bytes(b"another")
    monkeypatch.setattr(manifest_module, "shipped_folder", lambda: tmp_path)
    assert doctor.main(["--json"]) == 0
    findings = {f["name"]: f for f in json.loads(capsys.readouterr().out)}
    good, bad = findings["model tiny-features"], findings["model tiny-retrieval"]
    assert (good["status"], good["value"]) == (
        "ok",
        "features, fp32, flavour any, Apache-2.0",
    )
    assert bad["status"] == "warn"
    assert "its SHA-256 begins with" in bad["value"]
