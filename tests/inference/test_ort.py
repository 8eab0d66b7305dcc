"""ONNX Runtime and the choice of backends: one clear line for everything wrong."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from model_factory import FEATURES, constant_network, feature_network, model_bytes
from onnx import TensorProto, helper

from edgeloc.errors import BackendUnavailableError, ConfigError, ModelError
from edgeloc.inference.backend import (
    BackendOptions,
    all_finite,
    choose_backend,
    open_backend,
)
from edgeloc.inference.manifest import InputSpec, load_model
from edgeloc.inference.network import open_network
from edgeloc.inference.ort import OrtBackend
from edgeloc_tools.model_files import write_model

CPU = BackendOptions(backend="ort-cpu")
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 56), dtype=np.uint8)


def outputs_of(height=5, width=7):
    return {
        "descriptors": np.ones((1, 64, height, width), np.float32),
        "reliability": np.zeros((1, 1, height, width), np.float32),
    }


def one_line(caught) -> str:
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def test_a_network_runs_and_says_where(tmp_path):
    path = write_model(tmp_path, FEATURES, feature_network())
    backend = open_backend(
        load_model(path), BackendOptions(backend="ort-cpu", threads=1)
    )
    assert backend.input_names == ("image",)
    assert set(backend.output_names) == {"descriptors", "reliability"}
    outputs = backend.run({"image": np.ones((1, 1, 48, 64), np.float32)})
    assert outputs["reliability"].shape == (1, 1, 6, 8)
    assert backend.describe() == (
        f"ort-cpu (onnxruntime {onnxruntime.__version__}, 1 thread)"
    )


def test_half_precision_inputs_get_half_precision(tmp_path):
    node = helper.make_node("Cast", ["image"], ["out"], to=TensorProto.FLOAT)
    network = model_bytes([node], ["out"], {}, input_type=TensorProto.FLOAT16)
    (tmp_path / "half.onnx").write_bytes(network)
    backend = OrtBackend(tmp_path / "half.onnx", "ort-cpu", threads=1)
    given = np.full((1, 1, 2, 2), 1 / 3, np.float32)
    out = backend.run({"image": given})["out"]
    assert out.dtype == np.float32
    assert np.all(out == np.float16(1 / 3))


def test_a_file_that_is_no_network_is_named(tmp_path):
    path = write_model(tmp_path, FEATURES, b"not a network at all")
    with pytest.raises(ModelError, match=r"tiny-features\.onnx: is no network to run"):
        open_network(path, role="features", options=CPU)


def test_a_truncated_network_is_named(tmp_path):
    path = write_model(tmp_path, FEATURES, feature_network()[:-3000])
    with pytest.raises(ModelError, match=r"tiny-features\.onnx: is no netw") as caught:
        open_network(path, role="features", options=CPU)
    one_line(caught)


def test_a_wrong_input_or_output_name_is_named(tmp_path):
    network = constant_network(outputs_of())
    wrong = replace(FEATURES, input=InputSpec(name="x", size_multiple=8))
    path = write_model(tmp_path, wrong, network)
    with pytest.raises(ModelError, match=r"input\.name is 'x', the network takes 'ima"):
        open_network(path, role="features", options=CPU)
    names = {**FEATURES.outputs, "reliability": "logits"}
    path = write_model(tmp_path, replace(FEATURES, outputs=names), network)
    with pytest.raises(
        ModelError, match=r"outputs.reliability is 'logits', the network "
    ):
        open_network(path, role="features", options=CPU)


def test_an_input_of_another_rank_or_type_is_refused(tmp_path):
    node = helper.make_node("Identity", ["image"], ["out"])
    network = model_bytes([node], ["out"], {}, input_type=TensorProto.INT64)
    (tmp_path / "int.onnx").write_bytes(network)
    with pytest.raises(ModelError, match=r"input 'image' is tensor\(int64\) of rank 4"):
        OrtBackend(tmp_path / "int.onnx", "ort-cpu", threads=1)


def test_an_image_that_the_network_cannot_take_is_one_line(tmp_path):
    """A colour network behind a manifest that says grey."""
    network = constant_network(outputs_of(), channels=3)
    opened = open_network(
        write_model(tmp_path, FEATURES, network), role="features", options=CPU
    )
    with pytest.raises(ModelError, match=r"fails on image \(1, 1, 40, 56\)") as caught:
        opened.run(IMAGE)
    one_line(caught)


def test_other_inputs_than_the_networks_are_refused(tmp_path):
    (tmp_path / "n.onnx").write_bytes(feature_network())
    backend = OrtBackend(tmp_path / "n.onnx", "ort-cpu", threads=1)
    with pytest.raises(ModelError, match=r"takes \['image'\], got \['frame'\]"):
        backend.run({"frame": np.zeros((1, 1, 8, 8), np.float32)})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_not_finite_is_named(tmp_path, value):
    outputs = outputs_of()
    outputs["descriptors"][0, 3, 2, 1] = value
    path = write_model(tmp_path, FEATURES, constant_network(outputs))
    opened = open_network(path, role="features", options=CPU)
    with pytest.raises(
        ModelError, match="'descriptors' has NaN or infinite values for"
    ):
        opened.run(IMAGE)


def test_large_sums_are_finite_all_the_same():
    assert all_finite(np.full(1000, 3e38, np.float32))
    assert not all_finite(np.array([np.inf, -np.inf], np.float32))


def test_a_model_for_something_else_is_refused(tmp_path):
    path = write_model(tmp_path, FEATURES, constant_network(outputs_of()))
    with pytest.raises(ModelError, match="role is 'features', expected 'retrieval'"):
        open_network(path, role="retrieval", options=CPU)
    path = write_model(
        tmp_path,
        replace(FEATURES, flavour="tensorrt"),
        constant_network(outputs_of()),
    )
    with pytest.raises(ModelError, match="flavour is 'tensorrt', which ort-cpu would"):
        open_network(path, role="features", options=CPU)


def test_auto_says_what_it_chose_and_why(tmp_path, caplog):
    path = write_model(tmp_path, FEATURES, constant_network(outputs_of()))
    with caplog.at_level(logging.INFO, logger="edgeloc.inference.backend"):
        open_network(path, role="features", options=BackendOptions())
    [line] = caplog.messages
    assert line.startswith("backend auto: ort-")
    assert "for tiny-features: this onnxruntime has" in line


def test_cuda_that_is_not_there_is_an_error_and_not_the_cpu(monkeypatch):
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"]
    )
    with pytest.raises(BackendUnavailableError, match="install onnxruntime-gpu in its"):
        choose_backend("ort-cuda")
    choice = choose_backend("auto")
    assert choice.name == "ort-cpu"
    assert choice.reason.startswith("this onnxruntime has no CUDAExecutionProvider")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_cuda_that_does_not_start_is_the_cpu_only_for_auto(
    tmp_path, monkeypatch, caplog
):
    """A package with CUDA on a machine whose driver or libraries are missing."""
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"]
    )
    path = write_model(tmp_path, FEATURES, constant_network(outputs_of()))
    model = load_model(path)
    with pytest.raises(BackendUnavailableError, match="does not start on this machine"):
        open_backend(model, BackendOptions(backend="ort-cuda"))
    with caplog.at_level(logging.INFO, logger="edgeloc.inference.backend"):
        backend = open_backend(model, BackendOptions())
    assert backend.describe().startswith("ort-cpu")
    assert "does not start on this machine" in caplog.text


def test_threads_are_bounded():
    with pytest.raises(ConfigError, match="threads 0 must be at least 1"):
        BackendOptions(threads=0)
