"""Quantization from a model and images to files and a report."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import onnx
import pytest
from handmade_networks import (
    blobs,
    feature_model,
    retrieval_model,
    write_features,
    write_retrieval,
)

from edgeloc.errors import ConfigError, DatasetError, ModelError
from edgeloc.inference.backend import BackendOptions
from edgeloc.inference.manifest import load_model
from edgeloc.inference.network import open_network
from edgeloc_tools.cli import build
from edgeloc_tools.datasets.registry import open_recording
from edgeloc_tools.learn.quantize_gate import GateLimits
from edgeloc_tools.learn.quantize_report import write_report
from edgeloc_tools.learn.quantize_run import (
    QuantizeOptions,
    quantize_network,
    refusal,
    write_accepted,
)

# Pictures of blobs are few and hard: what passes is not the point of most tests.
LENIENT = GateLimits(max_loss=0.26, max_median_ratio=3.0)
QUICK = QuantizeOptions(
    variants=("int8-cpu",),
    num_images=4,
    num_pairs=4,
    max_keypoints=150,
    calibration="minmax",
    limits=LENIENT,
    threads=(),
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(4):
        cv2.imwrite(str(folder / f"{seed}.png"), blobs(seed))
    return folder


@pytest.fixture(scope="module")
def recording(photos):
    return open_recording(format="folder", input=photos)


@pytest.fixture
def model(tmp_path):
    return write_features(tmp_path / "models", feature_model())


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spoilt")
    return write_features(folder, feature_model(spoilt="gather"))


@pytest.fixture(scope="module")
def rescued(spoilt, recording, tmp_path_factory):
    """A network with one guilty layer, quantized."""
    return quantize(spoilt, recording, tmp_path_factory.mktemp("work"), threads=(1,))


def quantize(path, recording, work, **options):
    return quantize_network(
        path, recording, work=work, options=replace(QUICK, **options)
    )


def written(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


class TestSoundNetwork:
    def test_all_variants_are_written_with_manifests(self, model, recording, tmp_path):
        out = tmp_path / "out"
        result = quantize(
            model,
            recording,
            tmp_path / "work",
            variants=("fp16", "int8-cpu", "int8-tensorrt"),
        )
        paths = write_accepted(result, out)
        assert [path.name for path in paths] == [
            "handmade-fp16.json",
            "handmade-int8-cpu.json",
            "handmade-int8-tensorrt.json",
        ]
        facts = [load_model(path).manifest for path in paths]
        assert [(m.precision, m.flavour) for m in facts] == [
            ("fp16", "any"),
            ("int8", "cpu"),
            ("int8", "tensorrt"),
        ]
        truth = load_model(model).manifest
        assert {m.input for m in facts} == {truth.input}
        assert {m.descriptor_dim for m in facts} == {64}
        assert refusal(result, tmp_path) == ""
        # The device's own way to open a model takes what was written.
        network = open_network(
            paths[1], role="features", options=BackendOptions(backend="ort-cpu")
        )
        outputs, _ = network.run(blobs(0))
        assert outputs["descriptors"].shape == (1, 64, 24, 32)
        assert outputs["reliability"].shape == (1, 1, 24, 32)

    def test_same_bytes_from_new_work(self, model, recording, tmp_path):
        first, second = (
            quantize(model, recording, tmp_path / name, calibration="auto")
            for name in ("one", "two")
        )
        assert first.variants[1].data == second.variants[1].data
        assert first.variants[1].score == second.variants[1].score

    def test_asked_for_float_layers_stay(self, model, recording, tmp_path):
        result = quantize(model, recording, tmp_path / "work", float_layers=("trust",))
        assert result.variants[1].float_layers[0] == "trust"
        names = {
            t.name
            for t in onnx.load_from_string(result.variants[1].data).graph.initializer
        }
        assert "trust.weight" in names

    def test_the_chosen_calibration_is_the_best(self, model, recording, tmp_path):
        result = quantize(model, recording, tmp_path / "work", calibration="auto")
        int8 = result.variants[1]
        assert set(int8.calibrations) == {"minmax", "percentile", "mse"}
        best = min(int8.calibrations, key=lambda m: int8.calibrations[m].damage)
        assert int8.calibration == best

    def test_work_goes_on_where_it_stopped(self, model, recording, tmp_path):
        """Second time round nothing is measured but times."""
        first = quantize(model, recording, tmp_path / "work")
        files = {
            p: p.stat().st_mtime_ns for p in (tmp_path / "work/measured").iterdir()
        }
        second = quantize(model, recording, tmp_path / "work")
        again = {
            p: p.stat().st_mtime_ns for p in (tmp_path / "work/measured").iterdir()
        }
        assert again == files
        assert second.variants[1].layers == first.variants[1].layers


class TestSpoiltNetwork:
    def test_its_guilty_layer_goes_back_to_float(self, rescued, tmp_path):
        int8 = rescued.variants[1]
        assert [trial.float_layers for trial in int8.trials] == [(), ("gather",)]
        assert [trial.accepted for trial in int8.trials] == [False, True]
        assert int8.trials[0].score.recall == 0.0
        assert len(write_accepted(rescued, tmp_path)) == 1

    def test_without_float_layers_nothing_is_written(self, spoilt, recording, tmp_path):
        out = tmp_path / "out"
        result = quantize(
            spoilt,
            recording,
            tmp_path / "work",
            variants=("fp16", "int8-cpu"),
            limits=replace(LENIENT, max_float_layers=0),
        )
        assert [p.name for p in write_accepted(result, out)] == ["handmade-fp16.json"]
        assert written(out) == ["handmade-fp16.json", "handmade-fp16.onnx"]
        reason = refusal(result, out / "report.html")
        assert "the gate refuses int8-cpu reaches recall 0.000" in reason
        assert "report.html" in reason


class TestRefusals:
    def test_three_images_at_least(self, model, recording, tmp_path):
        few = recording.subset(recording.images[:2])
        with pytest.raises(DatasetError, match="has 2 images to calibrate on"):
            quantize(model, few, tmp_path / "work")

    def test_a_quantized_model(self, model, recording, tmp_path):
        work, half = tmp_path / "work", {"variants": ("fp16",)}
        (path,) = write_accepted(
            quantize(model, recording, work, **half), tmp_path / "out"
        )
        with pytest.raises(
            ModelError, match="precision is 'fp16'; quantize the float32"
        ):
            quantize(path, recording, work)

    def test_a_layer_that_is_not_there_is_named_at_once(
        self, model, recording, tmp_path
    ):
        with pytest.raises(ConfigError, match="'head' is not a layer of this network"):
            quantize(model, recording, tmp_path / "work", float_layers=("head",))
        assert not (tmp_path / "work").exists()

    @pytest.mark.parametrize(
        "limits",
        [{"max_loss": -0.1}, {"max_median_ratio": 0.9}, {"max_float_layers": -1}],
    )
    def test_limits(self, limits):
        with pytest.raises(ConfigError, match=rf"{next(iter(limits))} .* at least"):
            GateLimits(**limits)

    def test_a_network_that_does_not_do_the_task(self, tmp_path, recording):
        model = feature_model()
        for tensor in model.graph.initializer:
            if tensor.name == "project.weight":
                tensor.raw_data = bytes(len(tensor.raw_data))
        path = write_features(tmp_path / "models", model)
        with pytest.raises(ModelError, match="float32 itself does not do the task"):
            quantize(path, recording, tmp_path / "work")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"variants": ("int4",)}, "variant 'int4' is unknown"),
            ({"calibration": "entropy"}, "calibration 'entropy' is unknown"),
            ({"num_pairs": 0}, "num_pairs 0 must be at least 1"),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises(ConfigError, match=message):
            QuantizeOptions(**options)


def test_retrieval_networks_are_gated_on_neighbours(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(4):
        big = blobs(seed, height=110, width=130)
        for shift in range(3):
            view = big[10 + shift : 74 + shift, 10:90]
            cv2.imwrite(str(folder / f"{seed}-{shift}.png"), view)
    recording = open_recording(format="folder", input=folder)
    path = write_retrieval(tmp_path, retrieval_model())
    options = {"num_images": 12, "limits": GateLimits()}
    result = quantize(path, recording, tmp_path / "work", **options)
    assert "nearest neighbour" in result.gate_title
    assert result.variants[1].score.recall == 1.0
    (written_path,) = write_accepted(result, tmp_path / "out")
    assert load_model(written_path).manifest.role == "retrieval"

    spoilt = write_retrieval(tmp_path, retrieval_model(spoilt=True))
    result = quantize(spoilt, recording, tmp_path / "work", **options)
    assert result.variants[1].float_layers == ("last",)
    assert result.variants[1].accepted


class TestReport:
    def test_json_and_page(self, rescued, tmp_path):
        json_path, page_path = write_report(
            rescued,
            tmp_path / "report",
            machine={"processor": "<a> fast one"},
            command=["edgeloc-build", "quantize"],
        )
        facts = json.loads(json_path.read_text())
        truth, int8 = facts["variants"]
        assert (truth["name"], int8["name"]) == ("fp32", "int8-cpu")
        assert truth["bytes"] > 3 * int8["bytes"] / 2
        assert int8["float_layers"] == ["gather"]
        assert [trial["accepted"] for trial in int8["trials"]] == [False, True]
        assert int8["trials"][0]["median_error"] is None
        assert int8["layers"][0]["layer"] == "gather"
        assert int8["median_ms"]["1"] > 0
        assert int8["agreement"]["descriptor_cosine"] > 0.9
        page = page_path.read_text()
        assert "All variants passed" in page
        assert "&lt;a&gt; fast one" in page
        assert page.count("data:image/jpeg") == 2
        assert page.count("data:image/svg+xml") == 2
        assert "http" not in page.replace("http://www.w3.org", "")

    def test_a_refusal_is_said(self, rescued, tmp_path):
        truth, int8 = rescued.variants
        refused = replace(int8, trials=int8.trials[:1])
        result = replace(rescued, variants=(truth, refused))
        _, page = write_report(result, tmp_path, machine={}, command=[])
        assert "Refused: int8-cpu." in page.read_text()


class TestCommand:
    def run(self, capsys, *arguments):
        code = build.main(["quantize", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    def test_writes_files_and_report(self, capsys, model, photos, tmp_path):
        out = tmp_path / "out"
        code, stdout, stderr = self.run(
            capsys,
            *("--model", model, "--format", "folder", "--input", photos, "-o", out),
            *("--variants", "fp16", "--max-loss", 30, "--num-images", 4),
        )
        assert code == 0, stderr
        facts = json.loads(stdout)
        assert facts["written"] == [str(out / "handmade-fp16.json")]
        assert written(out) == [
            "handmade-fp16.json",
            "handmade-fp16.onnx",
            "handmade.quantize",
        ]
        assert "fp16" in stderr

    def test_refusal_is_exit_code_4(self, capsys, spoilt, photos, tmp_path):
        out = tmp_path / "out"
        code, stdout, stderr = self.run(
            capsys,
            *("--model", spoilt, "--format", "folder", "--input", photos, "-o", out),
            *("--variants", "int8-cpu", "--max-float-layers", 0, "--num-images", 4),
            *("--calibration", "minmax"),
        )
        assert code == 4
        last = stderr.splitlines()[-1]
        assert last.startswith("edgeloc-build: error:")
        assert "the gate refuses int8-cpu" in last
        assert str(out / "handmade.quantize" / "report.html") in last
        assert json.loads(stdout)["written"] == []
        assert not list(out.glob("*.onnx"))
        assert (out / "handmade.quantize" / "report.json").is_file()

    def test_unknown_model(self, capsys, photos, tmp_path):
        code, _, stderr = self.run(
            capsys,
            *("--model", tmp_path / "none.json", "--format", "folder"),
            *("--input", photos, "-o", tmp_path / "out"),
        )
        assert code == 2
        assert "none.json: no such model manifest" in stderr
        assert not (tmp_path / "out").exists()
