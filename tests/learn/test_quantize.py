"""INT8 networks: what is in the file, what runs, and what comes out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from handmade_networks import LAYERS, Graph, residual_model, retrieval_model
from onnx import TensorProto, numpy_helper

from edgeloc.errors import ConfigError, ModelError
from edgeloc.inference.manifest import InputSpec
from edgeloc_tools.learn.calibration import measure_activations
from edgeloc_tools.learn.graph import (
    GraphView,
    load_truth,
    make_session,
    session_options,
    to_bytes,
)
from edgeloc_tools.learn.quantize import (
    FLAVOURS,
    ValueRange,
    activation_names,
    activation_scale,
    quantize_model,
    quantized_layers,
    weight_scales,
)

SPEC = InputSpec(size_multiple=16)


def outputs(model, image):
    session = make_session(
        to_bytes(model), options=session_options(threads=1), where="test"
    )
    return session.run(None, {"image": image})


def optimized(model, folder):
    """The operators that onnxruntime really runs."""
    options = session_options(threads=1)
    path = folder / "optimized.onnx"
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(
        to_bytes(model), options, providers=["CPUExecutionProvider"]
    )
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def constants(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def producers(model):
    return {name: node for node in model.graph.node for name in node.output}


@pytest.fixture
def ranges(residual, pictures):
    return measure_activations(residual, pictures, spec=SPEC).ranges("minmax")


@pytest.fixture
def image(rng):
    return rng.random((1, 1, 64, 96), dtype=np.float32)


class TestTruth:
    def test_batch_normalisation_is_folded(self, residual):
        kinds = Counter(node.op_type for node in residual.graph.node)
        assert kinds == {"Conv": 4, "Relu": 3, "Resize": 1, "Add": 1}

    def test_says_the_same_as_the_file(self, residual, image):
        exported = residual_model().SerializeToString()
        session = onnxruntime.InferenceSession(
            exported, providers=["CPUExecutionProvider"]
        )
        np.testing.assert_allclose(
            outputs(residual, image)[0],
            session.run(None, {"image": image})[0],
            atol=1e-5,
        )

    def test_layers_in_order(self, residual):
        layers = GraphView(residual).layers()
        assert [layer.name for layer in layers] == [
            *("first", "down", "add", "mix", "last"),
        ]
        assert layers[0].num_weights == 8 * 9

    def test_refuses_a_new_opset(self, tmp_path):
        path = tmp_path / "new.onnx"
        path.write_bytes(residual_model(opset=20).SerializeToString())
        with pytest.raises(ModelError, match="has opset 20, expected 13 to 19"):
            load_truth(path)

    def test_refuses_a_quantized_network(self, tmp_path, residual, ranges):
        path = tmp_path / "int8.onnx"
        model = quantize_model(residual, ranges=ranges, flavour="cpu")
        path.write_bytes(to_bytes(model))
        with pytest.raises(ModelError, match="is quantized already"):
            load_truth(path)

    @pytest.mark.parametrize("data", [b"", b"not a network", b"\x08\x08"])
    def test_refuses_rubbish(self, tmp_path, data):
        path = tmp_path / "rubbish.onnx"
        path.write_bytes(data)
        with pytest.raises(ModelError, match=r"rubbish\.onnx"):
            load_truth(path)

    def test_names_a_missing_file(self, tmp_path):
        with pytest.raises(ModelError, match=r"none\.onnx: cannot be read"):
            load_truth(tmp_path / "none.onnx")


@pytest.mark.parametrize("flavour", FLAVOURS)
class TestBothFlavours:
    @pytest.mark.parametrize("weight_bits", [7, 8])
    def test_says_about_the_same(
        self, residual, pictures, ranges, flavour, weight_bits
    ):
        model = quantize_model(
            residual, ranges=ranges, flavour=flavour, weight_bits=weight_bits
        )
        image = pictures[0][None, None].astype(np.float32) / 255
        exact, rounded = outputs(residual, image)[0], outputs(model, image)[0]
        noise = np.sqrt(np.mean((exact - rounded) ** 2)) / exact.std()
        # Products of 8-bit weights saturate on x86 processors without VNNI.
        exact_products = weight_bits == 7 or flavour == "tensorrt"
        assert noise < (0.05 if exact_products else 0.2)

    def test_same_bytes_twice(self, residual, ranges, flavour):
        first, second = (
            to_bytes(quantize_model(residual, ranges=ranges, flavour=flavour))
            for _ in range(2)
        )
        assert first == second

    def test_float_layers_are_untouched(self, residual, ranges, flavour):
        model = quantize_model(
            residual, ranges=ranges, flavour=flavour, float_layers=["down", "last"]
        )
        assert quantized_layers(model) == ["first", "mix"]
        values = constants(model)
        before = constants(residual)
        by_name = {node.name: node for node in model.graph.node}
        for name in ("down", "last"):
            weight = by_name[name].input[1]
            np.testing.assert_array_equal(values[weight], before[weight])

    def test_all_float_is_the_truth(self, residual, ranges, flavour, image):
        names = [layer.name for layer in GraphView(residual).layers()]
        model = quantize_model(
            residual, ranges=ranges, flavour=flavour, float_layers=names
        )
        np.testing.assert_array_equal(
            outputs(model, image)[0], outputs(residual, image)[0]
        )
        assert len(model.graph.node) == len(residual.graph.node)

    def test_every_single_layer_can_be_alone(self, residual, ranges, flavour, image):
        names = [layer.name for layer in GraphView(residual).layers()]
        for name in names:
            rest = [other for other in names if other != name]
            model = quantize_model(
                residual, ranges=ranges, flavour=flavour, float_layers=rest
            )
            assert np.isfinite(outputs(model, image)[0]).all()
            assert quantized_layers(model) == ([name] if name != "add" else [])

    def test_weights_are_per_channel_int8(self, residual, ranges, flavour):
        model = quantize_model(residual, ranges=ranges, flavour=flavour)
        values = constants(model)
        assert values["mix_weight_int"].dtype == np.int8
        assert values["mix_weight_scale"].shape == (8,)
        assert not values["mix_weight_zero"].any()
        largest = np.abs(values["mix_weight_int"]).max(axis=(1, 2, 3))
        np.testing.assert_array_equal(largest, np.full(8, 127))
        assert model.opset_import[0].version <= 19

    def test_no_rounding_between_convolution_and_relu(self, residual, ranges, flavour):
        model = quantize_model(residual, ranges=ranges, flavour=flavour)
        made_by = producers(model)
        relus = [node for node in model.graph.node if node.op_type == "Relu"]
        assert len(relus) == 3
        assert {made_by[node.input[0]].op_type for node in relus} == {"Conv"}

    def test_is_smaller(self, features, pictures, flavour):
        ranges = measure_activations(features, pictures, spec=SPEC).ranges("minmax")
        model = quantize_model(features, ranges=ranges, flavour=flavour)
        assert set(quantized_layers(model)) == set(LAYERS)
        assert len(to_bytes(model)) < 0.3 * len(to_bytes(features))

    def test_a_missing_range_is_named(self, residual, ranges, flavour):
        del ranges["first.relu"]
        with pytest.raises(ModelError, match=r"activation 'first\.relu' was not"):
            quantize_model(residual, ranges=ranges, flavour=flavour)

    def test_an_unknown_layer_is_named(self, residual, ranges, flavour):
        with pytest.raises(ConfigError, match=r"'heads' is not a layer .* mix"):
            quantize_model(
                residual, ranges=ranges, flavour=flavour, float_layers=["heads"]
            )


class TestCpu:
    def test_everything_runs_in_integers(self, residual, ranges, tmp_path):
        """Each convolution becomes a QLinearConv that has swallowed its ReLU."""
        model = quantize_model(residual, ranges=ranges, flavour="cpu")
        kinds = optimized(model, tmp_path)
        assert kinds["QLinearConv"] == 4
        assert kinds["QLinearAdd"] == 1
        assert not kinds.keys() & {"Conv", "FusedConv", "Add", "Relu"}

    def test_a_float_layer_does_not_break_the_others(self, residual, ranges, tmp_path):
        model = quantize_model(
            residual, ranges=ranges, flavour="cpu", float_layers=["last"]
        )
        assert optimized(model, tmp_path)["QLinearConv"] == 3

    def test_activations_are_uint8_with_the_zero_of_a_relu(self, residual, ranges):
        values = constants(quantize_model(residual, ranges=ranges, flavour="cpu"))
        assert values["first.relu_zero_point"].dtype == np.uint8
        assert values["first.relu_zero_point"] == 0
        assert 0 < values["out_zero_point"] < 255

    def test_biases_are_int32_in_units_of_the_product(self, residual, ranges):
        values = constants(quantize_model(residual, ranges=ranges, flavour="cpu"))
        assert values["mix_bias_int"].dtype == np.int32
        np.testing.assert_allclose(
            values["mix_bias_scale"],
            values["add_scale"] * values["mix_weight_scale"],
            rtol=1e-6,
        )
        np.testing.assert_allclose(
            values["mix_bias_int"] * values["mix_bias_scale"],
            constants(residual)["mix.bias"],
            atol=values["mix_bias_scale"].max(),
        )

    def test_seven_bits_cannot_saturate(self, residual, ranges):
        values = constants(
            quantize_model(residual, ranges=ranges, flavour="cpu", weight_bits=7)
        )
        weights = [v for name, v in values.items() if name.endswith("_weight_int")]
        largest = max(int(np.abs(w.astype(int)).max()) for w in weights)
        assert largest == 64
        # What one instruction adds of UINT8 times INT8 before it has 32 bits.
        assert 2 * 255 * largest <= np.iinfo(np.int16).max

    def test_a_bias_with_hardly_any_weight_survives(self, as_truth, pictures):
        """Its channel's scale must not be so fine that the bias leaves 32 bits."""
        g = Graph()
        g.conv(
            "image", "mute", np.full((1, 1, 1, 1), 1e-12), np.array([3.0]), out="out"
        )
        shape = [1, 1, "H", "W"]
        truth = as_truth(g.model({"image": shape}, {"out": shape}))
        ranges = measure_activations(truth, pictures, spec=SPEC).ranges("minmax")
        model = quantize_model(truth, ranges=ranges, flavour="cpu")
        image = pictures[0][None, None].astype(np.float32) / 255
        np.testing.assert_allclose(outputs(model, image)[0], 3.0, atol=0.02)

    def test_outputs_keep_their_names(self, residual, ranges):
        model = quantize_model(residual, ranges=ranges, flavour="cpu")
        assert [value.name for value in model.graph.output] == ["out"]
        assert producers(model)["out"].op_type == "DequantizeLinear"


class TestTensorrt:
    def test_zero_points_are_zero_and_biases_float(self, residual, ranges):
        model = quantize_model(residual, ranges=ranges, flavour="tensorrt")
        values = constants(model)
        points = [v for name, v in values.items() if name.endswith("_zero_point")]
        assert len(points) == 5
        assert {str(point.dtype) for point in points} == {"int8"}
        assert not any(np.any(point) for point in points)
        assert not [v for v in values.values() if v.dtype == np.int32]
        by_name = {node.name: node for node in model.graph.node}
        assert values[by_name["mix"].input[2]].dtype == np.float32

    def test_weighted_layers_read_rounded_values(self, residual, ranges):
        model = quantize_model(residual, ranges=ranges, flavour="tensorrt")
        made_by = producers(model)
        convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
        assert len(convolutions) == 4
        for node in convolutions:
            for name in node.input[:2]:
                assert made_by[name].op_type == "DequantizeLinear"

    def test_both_branches_of_a_sum_are_rounded(self, residual, ranges):
        model = quantize_model(residual, ranges=ranges, flavour="tensorrt")
        made_by = producers(model)
        (add,) = [node for node in model.graph.node if node.op_type == "Add"]
        assert [made_by[name].op_type for name in add.input] == 2 * ["DequantizeLinear"]

    def test_a_sum_stays_fused_with_the_convolution_that_feeds_it(self, as_truth):
        """Only the other branch is rounded: ``relu(conv(x) + x)``."""
        g = Graph()
        x = g.op("Relu", ["image"], "relu")
        weight = np.ones((1, 1, 3, 3))
        y = g.conv(x, "conv", weight, np.zeros(1), pads=[1, 1, 1, 1])
        g.op("Add", [y, x], "sum")
        shape = [1, 1, "H", "W"]
        truth = as_truth(g.model({"image": shape}, {"sum": shape}))
        ranges = dict.fromkeys(activation_names(truth), ValueRange(0.0, 1.0))
        model = quantize_model(truth, ranges=ranges, flavour="tensorrt")
        made_by = producers(model)
        add = made_by["sum"]
        assert [made_by[name].op_type for name in add.input] == [
            "Conv",
            "DequantizeLinear",
        ]

    def test_outputs_are_not_rounded(self, residual, ranges):
        model = quantize_model(residual, ranges=ranges, flavour="tensorrt")
        assert producers(model)["out"].op_type == "Conv"


class TestScales:
    def test_symmetric(self):
        scale, zero = activation_scale(ValueRange(-2.54, 1.0), flavour="tensorrt")
        assert (float(scale), zero) == (pytest.approx(0.02), 0)

    def test_asymmetric(self):
        scale, zero = activation_scale(ValueRange(-1.0, 1.55), flavour="cpu")
        assert (float(scale), zero) == (pytest.approx(0.01), 100)

    @pytest.mark.parametrize("low", [0.0, 0.5])
    def test_zero_is_always_exact(self, low):
        scale, zero = activation_scale(ValueRange(low, 2.55), flavour="cpu")
        assert (float(scale), zero) == (pytest.approx(0.01), 0)

    @pytest.mark.parametrize("flavour", FLAVOURS)
    def test_a_tensor_of_zeros_has_a_scale(self, flavour):
        assert activation_scale(ValueRange(0.0, 0.0), flavour=flavour) == (1.0, 0)

    def test_the_image_is_exact_in_eight_bits(self):
        scale, zero = activation_scale(ValueRange(0.0, 1.0), flavour="cpu")
        grey = np.arange(256) / np.float32(255)
        np.testing.assert_array_equal(np.rint(grey / scale) + zero, np.arange(256))

    @pytest.mark.parametrize("values", [(1.0, 0.0), (np.nan, 1.0), (0.0, np.inf)])
    def test_ranges_refuse_nonsense(self, values):
        with pytest.raises(ValueError, match="are not a range"):
            ValueRange(*values)

    def test_weight_scales(self):
        weights = np.array([[1.27, -0.5], [0.0, 0.0], [0.1, -2.54]], np.float32)
        scales = weight_scales(weights, axis=0, weight_max=127)
        np.testing.assert_allclose(scales, [0.01, 1.0, 0.02], rtol=1e-6)

    def test_a_bias_fits_its_32_bits(self):
        weights = np.full((1, 4), 1e-12, np.float32)
        bias = np.array([3.0])
        scales = weight_scales(weights, axis=0, weight_max=127, bias=bias)
        assert np.abs(bias / scales).max() <= 2**30 * (1 + 1e-6)


class TestRetrievalLayers:
    def test_a_fully_connected_layer_is_quantized_by_output(self, as_truth, tmp_path):
        truth = as_truth(retrieval_model())
        names = activation_names(truth)
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 256, (64, 80), dtype=np.uint8) for _ in range(3)]
        ranges = measure_activations(truth, images, spec=SPEC).ranges("minmax")
        assert set(names) <= set(ranges)
        model = quantize_model(truth, ranges=ranges, flavour="cpu", weight_bits=7)
        assert constants(model)["last_weight_scale"].shape == (32,)
        kinds = optimized(model, tmp_path)
        assert (kinds["QLinearConv"], kinds["QGemm"]) == (1, 1)
        image = images[0][None, None].astype(np.float32) / 255
        exact, rounded = outputs(truth, image)[0], outputs(model, image)[0]
        assert float((exact * rounded).sum()) > 0.995


def test_no_float_copy_of_the_weights_stays_behind(residual, ranges):
    model = quantize_model(residual, ranges=ranges, flavour="cpu")
    large = [
        t.name
        for t in model.graph.initializer
        if t.data_type == TensorProto.FLOAT and np.prod(t.dims) > 8
    ]
    assert large == []
