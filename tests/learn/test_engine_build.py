"""Engines of every shipped model, built by TensorRT for RTX: that needs no GPU.

The plans cannot be run here; what TensorRT says of the engine that it made is checked.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from model_factory import FEATURES, feature_network

from edgeloc.errors import BackendUnavailableError, ModelError
from edgeloc.inference.cuda import open_device
from edgeloc.inference.engine import engine_files, input_sizes, read_engine
from edgeloc.inference.manifest import (
    InputSpec,
    load_model,
    shipped_folder,
    shipped_model,
)
from edgeloc.inference.tensorrt import engine_key, open_engine
from edgeloc.inference.trt import open_tensorrt
from edgeloc_tools.learn.engine_build import Binding, BuildOptions, build_plan
from edgeloc_tools.learn.engine_layers import (
    count_precisions,
    layer_rows,
    layers_of_inspector,
    layers_of_log,
)
from edgeloc_tools.learn.engines import (
    LEAST_AGREEMENT,
    EngineRequest,
    cosine,
    find_source,
    make_engine,
    outdated,
)
from edgeloc_tools.model_files import write_model

pytest.importorskip(
    "tensorrt_rtx", reason="TensorRT for RTX has wheels for x86-64 Linux only"
)

TRUTH = (shipped_folder() / "edgeloc-features-small.onnx").read_bytes()
"""A float32 network, as TensorRT wants it: its outputs have types and ranks."""

CONVOLUTIONS = {
    *("stem", "middle.0", "middle.1", "context.0", "context.1", "context.2"),
    *("context.3", "lift", "mix.0", "describe"),
}
"""Of the trunk that both shipped networks have."""


@pytest.fixture(scope="module")
def library():
    return open_tensorrt("tensorrt-rtx")


def request_for(role, precision, folder, *, width=640, height=480):
    model = load_model(shipped_model(role))
    assert model.manifest.flavour == "cpu"  # what sites carry
    sizes = input_sizes(model.manifest.input, width=width, height=height)
    return EngineRequest(model=model, precision=precision, sizes=sizes, folder=folder)


def build(role, precision, library):
    request = request_for(role, precision, None)
    source = find_source(request.model, precision, library)
    return build_plan(
        source.network,
        request.model.manifest.input,
        library,
        options=BuildOptions(sizes=request.sizes),
    )


@pytest.fixture(scope="module")
def built(library):
    return {
        (role, precision): build(role, precision, library)
        for role in ("features", "retrieval")
        for precision in ("int8", "fp16", "fp32")
    }


def has_gpu() -> bool:
    try:
        open_device()
    except BackendUnavailableError:
        return False
    return True


EVERY = pytest.mark.parametrize("precision", ["int8", "fp16", "fp32"])


@EVERY
def test_inputs_and_outputs_of_the_feature_engine(built, precision):
    assert built["features", precision].bindings == (
        Binding(name="image", is_input=True, dtype="FLOAT", shape=(1, 1, -1, -1)),
        Binding(
            name="descriptors", is_input=False, dtype="FLOAT", shape=(1, 64, -1, -1)
        ),
        Binding(
            name="reliability", is_input=False, dtype="FLOAT", shape=(1, 1, -1, -1)
        ),
    )


@EVERY
def test_inputs_and_outputs_of_the_retrieval_engine(built, precision):
    assert built["retrieval", precision].bindings == (
        Binding(name="image", is_input=True, dtype="FLOAT", shape=(1, 1, 240, 320)),
        Binding(
            name="global_descriptor", is_input=False, dtype="FLOAT", shape=(1, 256)
        ),
    )


@EVERY
@pytest.mark.parametrize("role", ["features", "retrieval"])
def test_every_convolution_runs_in_the_precision_that_was_asked_for(
    built, role, precision
):
    """By the engine's own layer information, not by the ONNX file."""
    layers = built[role, precision].layers
    seen = {}
    for layer in layers:
        if layer.kind == "correlation":
            [node] = set(layer.onnx) & (CONVOLUTIONS | {"trust", "assign"})
            seen[node] = (layer.inputs[0], layer.weights[0])
    head = {"features": "trust", "retrieval": "assign"}[role]
    assert set(seen) == CONVOLUTIONS | {head}
    assert set(seen.values()) == {(precision, precision)}


def test_products_that_are_no_convolutions_are_told_too(built):
    """Retrieval sums residuals by a product of two activations: it is not quantized."""
    counts = count_precisions(built["retrieval", "int8"].layers)
    assert counts == {"fp32": 1, "int8": 12}
    assert count_precisions(built["features", "int8"].layers) == {"int8": 11}
    [total] = [
        layer for layer in built["retrieval", "int8"].layers if layer.onnx == ("total",)
    ]
    assert (total.kind, total.precision) == ("gemm", "fp32")
    rows = layer_rows([total])
    assert rows == [["total", "gemm", "fp32 fp32", "fp32", "fp32"]]


def test_an_int8_plan_is_not_larger_than_its_float32_one(built):
    for role in ("features", "retrieval"):
        sizes = [len(built[role, p].plan) for p in ("int8", "fp32")]
        assert sizes[0] < sizes[1]


def test_rtx_is_always_strongly_typed(built, library):
    assert library.rtx
    assert not library.weak_typing
    assert all(plan.strongly_typed for plan in built.values())


def test_an_engine_is_written_and_found_again(tmp_path, library):
    request = request_for("features", "int8", tmp_path, width=800, height=600)
    assert "no such engine" in outdated(request, library, None)
    steps = []
    made = make_engine(
        request, library, None, progress=lambda *step: steps.append(step)
    )
    assert steps[0] == ("edgeloc-features-small-int8-tensorrt: building engine", 1, 6)
    files = engine_files(request.model, "tensorrt-rtx", folder=tmp_path)
    key = engine_key(request.model, library, None)
    assert key.compute_capability == "any"
    engine = read_engine(files, key)
    assert engine.record == made.record
    assert engine.record.network == "edgeloc-features-small-int8-tensorrt"
    assert engine.record.layers == {"int8": 11}
    assert engine.record.agreement is None
    assert engine.record.sizes.usual == (608, 800)  # padded to the network's 16
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        files.record.name,
        files.plan.name,
    ]
    assert outdated(request, library, None) == ""
    smaller = request_for("features", "int8", tmp_path)
    assert outdated(smaller, library, None) == ""
    larger = request_for("features", "int8", tmp_path, width=1280, height=720)
    assert outdated(larger, library, None).endswith(
        "takes up to 800x800 px, 1280x1280 is wanted"
    )
    other = replace(request, precision="fp16")
    assert outdated(other, library, None).endswith("is int8, fp16 is wanted")


def test_another_file_of_the_same_variant_makes_an_engine_stale(tmp_path, library):
    """Whoever quantizes anew builds anew."""
    folder = tmp_path / "models"
    folder.mkdir()
    for flavour in ("cpu", "tensorrt"):
        for suffix in ("json", "onnx"):
            name = f"edgeloc-features-small-int8-{flavour}.{suffix}"
            shutil.copy(shipped_folder() / name, folder / name)
    model = load_model(folder / "edgeloc-features-small-int8-cpu.json")
    sizes = input_sizes(model.manifest.input, width=128, height=128)
    request = EngineRequest(model=model, precision="int8", sizes=sizes)
    make_engine(request, library, None)
    assert (folder / "engines").is_dir()
    assert outdated(request, library, None) == ""
    tensorrt = load_model(folder / "edgeloc-features-small-int8-tensorrt.json")
    write_model(folder, tensorrt.manifest, feature_network())
    assert outdated(request, library, None).endswith(
        "was built from another version of edgeloc-features-small-int8-tensorrt"
    )


def test_the_cpu_flavour_is_what_tensorrt_refuses(library):
    """Why there are two flavours; and the error is one line."""
    model = load_model(shipped_model("features"))
    sizes = input_sizes(model.manifest.input, width=640, height=480)
    with pytest.raises(ModelError, match="does not take the network") as caught:
        build_plan(
            model.network_path.read_bytes(),
            model.manifest.input,
            library,
            options=BuildOptions(sizes=sizes),
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "network", [b"not a network", TRUTH[:-3000], feature_network()]
)
def test_bytes_that_are_no_network_are_one_line(library, network):
    """Nor one whose outputs have no type."""
    spec = FEATURES.input
    sizes = input_sizes(spec, width=64, height=64)
    with pytest.raises(ModelError, match="TensorRT does not take the netw") as caught:
        build_plan(network, spec, library, options=BuildOptions(sizes=sizes))
    assert "\n" not in str(caught.value)


def test_a_refusal_leaves_the_next_build_alone(library):
    spec = FEATURES.input
    options = BuildOptions(sizes=input_sizes(spec, width=64, height=64))
    with pytest.raises(ModelError):
        build_plan(b"not a network", spec, library, options=options)
    built = build_plan(TRUTH, spec, library, options=options)
    assert [binding.name for binding in built.bindings] == [
        *("image", "descriptors", "reliability"),
    ]
    assert "fp32" in count_precisions(built.layers)


def test_progress_that_raises_stops_the_build(library):
    def stop(step, done, total):
        raise KeyboardInterrupt

    spec = FEATURES.input
    options = BuildOptions(sizes=input_sizes(spec, width=64, height=64))
    with pytest.raises(KeyboardInterrupt):
        build_plan(TRUTH, spec, library, options=options, progress=stop)


def test_a_model_without_the_variant_says_how_to_make_it(tmp_path, library):
    manifest = replace(FEATURES, name="mine-int8-cpu", precision="int8", flavour="cpu")
    model = load_model(write_model(tmp_path, manifest, feature_network()))
    with pytest.raises(ModelError, match="no int8-tensorrt variant of mine-int8-cpu"):
        find_source(model, "int8", library)
    with pytest.raises(ModelError, match=r"edgeloc-build quantize --variants fp16$"):
        find_source(model, "fp16", library)
    write_model(tmp_path, replace(FEATURES, name="mine"), TRUTH)
    with pytest.raises(ModelError, match="tensorrt, or use --precision fp16"):
        find_source(model, "int8", library)
    source = find_source(model, "fp16", library)
    assert (source.name, source.precision, source.half) == ("mine-fp16", "fp16", False)
    assert find_source(model, "fp32", library).network == TRUTH


def test_a_network_with_another_shape_is_no_variant(tmp_path, library):
    manifest = replace(FEATURES, name="mine-int8-cpu", precision="int8", flavour="cpu")
    model = load_model(write_model(tmp_path, manifest, feature_network()))
    wrong = replace(FEATURES, name="mine", input=InputSpec(size_multiple=32))
    write_model(tmp_path, wrong, feature_network())
    with pytest.raises(ModelError, match="no fp32 variant"):
        find_source(model, "fp32", library)


@pytest.mark.skipif(has_gpu(), reason="learn.bench_gpu is the test of a GPU")
def test_an_engine_cannot_be_opened_without_a_gpu(tmp_path, library):
    request = request_for("retrieval", "int8", tmp_path)
    make_engine(request, library, None)
    with pytest.raises(BackendUnavailableError, match="--backend tensorrt-rtx: ") as c:
        open_engine(request.model, "tensorrt-rtx", folder=tmp_path)
    assert str(c.value).endswith(", or use --backend auto")
    assert "\n" not in str(c.value)


INSPECTOR = {
    "Layers": [
        {
            "Name": "stem + stem.relu",
            "LayerType": "CaskConvolution",
            "ParameterType": "Convolution",
            "Inputs": [
                {
                    "Name": "cells_int",
                    "Dimensions": [1, 16, 120, 160],
                    "Format/Datatype": "Thirty-two wide channel vectorized row major "
                    "Int8 format",
                }
            ],
            "Outputs": [
                {"Name": "x", "Format/Datatype": "Row major linear FP16 format"}
            ],
            "Weights": {"Type": "Int8", "Count": 4608},
            "Metadata": "[ONNX Layer: stem]\x1e[ONNX Layer: stem.relu]",
        },
        {
            "Name": "norm",
            "LayerType": "kgen",
            "Inputs": [{"Name": "x", "Format": "Row major", "Datatype": "Half"}],
            "Outputs": [{"Name": "y", "Format": "Row major", "Datatype": "Float"}],
        },
    ],
    "Bindings": ["image"],
}


def test_the_inspectors_json_of_10_and_11_is_read():
    """Written after NVIDIA's documentation of both: no GPU has written it here."""
    stem, norm = layers_of_inspector(json.dumps(INSPECTOR))
    assert (stem.kind, stem.onnx) == ("Convolution", ("stem", "stem.relu"))
    assert (stem.inputs, stem.weights, stem.outputs) == (
        ("int8",),
        ("int8",),
        ("fp16",),
    )
    assert (norm.inputs, norm.outputs) == (("fp16",), ("fp32",))
    assert count_precisions([stem, norm]) == {"int8": 1}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": 3}', "x"])
def test_layer_information_that_is_something_else_is_refused(text):
    with pytest.raises(ModelError, match="layer information is not as known"):
        layers_of_inspector(text)


def test_a_log_without_layers_tells_none():
    assert layers_of_log(["Graph construction", "Layers: 3"]) == []


def test_cosine_sees_what_differs(rng):
    a = rng.normal(size=(1, 4, 5, 6)).astype(np.float32)
    assert cosine(a, a) == pytest.approx(1.0, abs=1e-12)
    assert cosine(a, -a) == pytest.approx(-1.0, abs=1e-12)
    noisy = a + 0.1 * rng.normal(size=a.shape).astype(np.float32)
    assert 0.98 < cosine(a, noisy) < LEAST_AGREEMENT["fp32"]
    assert cosine(a, np.full_like(a, np.nan)) == -1.0
    assert cosine(np.zeros_like(a), np.zeros_like(a)) == 1.0
    assert cosine(a, np.zeros_like(a)) == -1.0
    with pytest.raises(ModelError, match=r"shape \(1, 4, 5, 3\), ONNX Runtime's"):
        cosine(a, a[..., :3])
