"""From a float32 network to explicit INT8 Q/DQ, in two flavours.

No one file serves both runtimes well:

``cpu``
    UINT8 asymmetric activations, INT8 per-channel weights, INT32 biases, results of
    layers rounded: onnxruntime then runs whole chains in integers (QLinearConv), and a
    zero point at the lower end swallows the ReLU.
``tensorrt``
    INT8 symmetric activations, INT8 per-channel weights, float biases, rounding only in
    front of layers: TensorRT refuses an INT32 bias and a zero point other than 0, and
    decides by itself what it fuses behind a layer.

`onnxruntime.quantization` writes similar graphs, but calibrates anew for every file,
and the search for guilty layers writes dozens from one calibration; its quantizer
without the calibration is not public, and it cuts ReLU nodes out of the graph.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeloc.errors import ConfigError, ModelError
from edgeloc.types import Float32Array, FloatArray
from edgeloc_tools.learn.graph import (
    GraphView,
    attribute_int,
    finished,
    opset_of,
)

FLAVOURS = ("cpu", "tensorrt")
"""Of INT8 networks."""

# Products of an activation and a weight are added in pairs in 16 bits on x86
# processors without VNNI: 2 * 255 * 64 still fits, 2 * 255 * 127 does not.
_WEIGHT_MAX = {7: 64, 8: 127}


@dataclass(frozen=True, slots=True)
class ValueRange:
    """Values that a tensor takes, or those that are worth representing.

    Parameters
    ----------
    low, high : float
        Smallest and largest.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not -np.inf < self.low <= self.high < np.inf:
            raise ValueError(f"{self.low=} {self.high=} are not a range")


_TINY = 1e-30


def activation_scale(values: ValueRange, *, flavour: str) -> tuple[np.float32, int]:
    """Return scale and zero point of an activation; 0 is represented exactly.

    Parameters
    ----------
    values : ValueRange
        What to represent.
    flavour : {"cpu", "tensorrt"}
        UINT8 or symmetric INT8.
    """
    if flavour == "tensorrt":
        scale = max(abs(values.low), abs(values.high)) / 127.0
        return np.float32(scale if scale > _TINY else 1.0), 0
    low, high = min(values.low, 0.0), max(values.high, 0.0)
    if high - low <= 255.0 * _TINY:
        return np.float32(1.0), 0
    scale32 = np.float32((high - low) / 255.0)
    return scale32, int(np.clip(np.rint(-low / float(scale32)), 0, 255))


def quantize_model(
    model: onnx.ModelProto,
    *,
    ranges: Mapping[str, ValueRange],
    flavour: str,
    float_layers: Collection[str] = (),
    weight_bits: int = 8,
) -> onnx.ModelProto:
    """Return an INT8 network with explicit Q/DQ nodes.

    Parameters
    ----------
    model : ModelProto
        From `edgeloc_tools.learn.graph.load_truth`.
    ranges : mapping of str to ValueRange
        Of all `activation_names`.
    flavour : {"cpu", "tensorrt"}
        For whom.
    float_layers : collection of str
        Names of layers that stay float32.
    weight_bits : {8, 7}
        7 keeps x86 processors without VNNI from saturating, see `_WEIGHT_MAX`.

    Returns
    -------
    ModelProto
        The same bytes for the same arguments.

    Raises
    ------
    ConfigError
        When an argument is unknown.
    ModelError
        When a range is missing.
    """
    if flavour not in FLAVOURS:
        raise ConfigError(
            f"flavour {flavour!r} is unknown, expected {', '.join(FLAVOURS)}"
        )
    if weight_bits not in _WEIGHT_MAX:
        raise ConfigError(f"weight_bits {weight_bits} must be 7 or 8")
    view = GraphView(model)
    check_layers(view, float_layers)
    return _Writer(
        view,
        ranges=ranges,
        flavour=flavour,
        layers={layer.name for layer in view.layers()} - set(float_layers),
        weight_max=_WEIGHT_MAX[weight_bits],
    ).write()


def check_layers(view: GraphView, names: Collection[str]) -> None:
    """Raise `ConfigError` unless all names are those of layers."""
    known = [layer.name for layer in view.layers()]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{name!r} is not a layer of this network; they are {', '.join(known)}"
            )


def activation_names(model: onnx.ModelProto) -> list[str]:
    """Return the tensors whose ranges `quantize_model` may ask for, sorted."""
    view = GraphView(model)
    layers = {layer.name for layer in view.layers()}
    names: set[str] = set()
    for flavour in FLAVOURS:
        names |= _Plan(view, flavour=flavour, layers=layers).rounded
    # A layer left in float makes the tensors around it start anew.
    for node in model.graph.node:
        if node.name in layers:
            names |= {view.result(node), *_activations(view, node)}
    return sorted(names)


def _activations(view: GraphView, node: onnx.NodeProto) -> list[str]:
    """Return the inputs of a layer that are computed."""
    count = 2 if node.op_type == "Add" else 1
    return [name for name in node.input[:count] if name not in view.constants]


class _Plan:
    """Which tensors are rounded, and who reads them rounded.

    Parameters
    ----------
    view : GraphView
        The network.
    flavour : str
        For whom.
    layers : collection of str
        Names of the nodes that are quantized.
    """

    def __init__(
        self, view: GraphView, *, flavour: str, layers: Collection[str]
    ) -> None:
        self._view = view
        self._cpu = flavour == "cpu"
        self._layers = frozenset(layers)
        self.rounded: set[str] = set()
        self._made_rounded: set[str] = set()
        for node in view.model.graph.node:
            if node.name not in self._layers:
                continue
            self.rounded.update(self.inputs_of(node))
            if self._cpu:
                self.rounded.add(view.result(node))
                self._made_rounded.add(view.result(node))
        if self._cpu:
            self._pull_through_moves()

    def _pull_through_moves(self) -> None:
        """Round in front of reshapes: they then move a quarter of the bytes.

        TensorRT does so by itself.
        """
        for node in reversed(self._view.model.graph.node):
            if self._carries(node):
                self.rounded.add(node.input[0])

    def _carries(self, node: onnx.NodeProto) -> bool:
        """Whether a node moves integers."""
        return (
            self._cpu
            and self._view.moves(node, integers=True)
            and node.output[0] in self.rounded
        )

    def inputs_of(self, node: onnx.NodeProto) -> list[str]:
        """Return the inputs that a quantized layer reads rounded."""
        names = _activations(self._view, node)
        if self._cpu or node.op_type != "Add":
            return names
        # TensorRT adds within the convolution that makes one of the summands, as long
        # as nothing is rounded in between.
        for name in names:
            producer = self._view.producer.get(name)
            if (
                producer is not None
                and producer.name in self._layers
                and producer.op_type != "Add"
                and len(self._view.consumers[name]) == 1
            ):
                return [other for other in names if other != name]
        return names

    def reads_rounded(self, node: onnx.NodeProto, name: str) -> bool:
        """Whether a node reads a rounded tensor, rather than what it was rounded of."""
        if name in self._made_rounded:
            return True
        if node.name in self._layers:
            return name in self.inputs_of(node)
        return self._carries(node)

    def source_of(self, name: str) -> str:
        """Return the tensor whose range a rounded tensor has: before moves."""
        producer = self._view.producer.get(name)
        while producer is not None and self._carries(producer):
            name = producer.input[0]
            producer = self._view.producer.get(name)
        return name


class _Writer:
    """Builds the quantized graph, node by node in the order of the original."""

    def __init__(
        self,
        view: GraphView,
        *,
        ranges: Mapping[str, ValueRange],
        flavour: str,
        layers: Collection[str],
        weight_max: int,
    ) -> None:
        self._view = view
        self._ranges = ranges
        self._flavour = flavour
        self._layers = frozenset(layers)
        self._weight_max = weight_max
        self._plan = _Plan(view, flavour=flavour, layers=layers)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._scales: dict[str, tuple[np.float32, int]] = {}

    def write(self) -> onnx.ModelProto:
        model = self._view.model
        for name in self._view.inputs:
            self._round(name)
        for node in model.graph.node:
            self._nodes.append(self._rewritten(node))
            for name in node.output:
                self._round(name)
        used = {name for node in self._nodes for name in node.input}
        kept = [t for t in model.graph.initializer if t.name in used]
        graph = helper.make_graph(
            self._nodes,
            "edgeloc",
            model.graph.input,
            model.graph.output,
            initializer=[*kept, *self._constants.values()],
        )
        return finished(graph, opset=opset_of(model))

    def _rewritten(self, node: onnx.NodeProto) -> onnx.NodeProto:
        new = onnx.NodeProto()
        new.CopyFrom(node)
        for idx, name in enumerate(node.input):
            if name in self._plan.rounded and self._plan.reads_rounded(node, name):
                new.input[idx] = self._after(name)
        for idx, name in enumerate(node.output):
            new.output[idx] = self._before(name)
        if node.name in self._layers and node.op_type != "Add":
            self._quantize_weights(node, new)
        return new

    def _before(self, name: str) -> str:
        """Return the name of a tensor before it is rounded."""
        exact = name in self._plan.rounded and name in self._view.outputs
        return f"{name}_exact" if exact else name

    def _after(self, name: str) -> str:
        """Return the name of a tensor after it was rounded: an output keeps its own."""
        return name if name in self._view.outputs else f"{name}_rounded"

    def _scale(self, name: str) -> tuple[np.float32, int]:
        source = self._plan.source_of(name)
        if source not in self._scales:
            if source not in self._ranges:
                raise ModelError(f"the range of activation {source!r} was not measured")
            self._scales[source] = activation_scale(
                self._ranges[source], flavour=self._flavour
            )
        return self._scales[source]

    def _round(self, name: str) -> None:
        """Add the Q/DQ pair of a tensor, where it is rounded."""
        if name not in self._plan.rounded:
            return
        scale, zero_point = self._scale(name)
        dtype = np.uint8 if self._flavour == "cpu" else np.int8
        names = [f"{name}_scale", f"{name}_zero_point"]
        self._add_constant(names[0], np.asarray(scale, np.float32))
        self._add_constant(names[1], np.asarray(zero_point, dtype))
        self._add_node("QuantizeLinear", [self._before(name), *names], f"{name}_int")
        self._add_node("DequantizeLinear", [f"{name}_int", *names], self._after(name))

    def _quantize_weights(self, node: onnx.NodeProto, new: onnx.NodeProto) -> None:
        """Replace the weights of a layer, and in the cpu flavour its bias."""
        weights = np.asarray(self._view.array(node.input[1]), np.float32)
        axis = self._channel_axis(node)
        bias = None
        if self._flavour == "cpu" and len(node.input) > 2 and node.input[2]:
            bias = self._view.array(node.input[2]).astype(np.float64)
        input_scale = float(self._scale(node.input[0])[0])
        scales = weight_scales(
            weights,
            axis=axis,
            weight_max=self._weight_max,
            bias=None if bias is None else bias / input_scale,
        )
        shape = [1] * weights.ndim
        shape[axis] = -1
        integers = np.rint(weights / scales.reshape(shape))
        limit = self._weight_max
        names = [f"{node.name}_weight_{part}" for part in ("int", "scale", "zero")]
        self._add_constant(names[0], np.clip(integers, -limit, limit).astype(np.int8))
        self._add_constant(names[1], scales)
        self._add_constant(names[2], np.zeros(len(scales), np.int8))
        new.input[1] = f"{node.name}_weight"
        self._add_node("DequantizeLinear", names, new.input[1], axis=axis)
        if bias is None:
            return
        bias_scales = (np.float32(input_scale) * scales).astype(np.float32)
        integers = np.rint(bias / bias_scales.astype(np.float64))
        names = [f"{node.name}_bias_{part}" for part in ("int", "scale")]
        self._add_constant(names[0], integers.astype(np.int32))
        self._add_constant(names[1], bias_scales)
        new.input[2] = f"{node.name}_bias"
        self._add_node("DequantizeLinear", names, new.input[2], axis=0)

    @staticmethod
    def _channel_axis(node: onnx.NodeProto) -> int:
        """Return the axis of a weight that counts its output channels."""
        if node.op_type == "Conv":
            return 0
        return 0 if attribute_int(node, "transB", 0) else 1

    def _add_constant(
        self, name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
    ) -> None:
        self._constants[name] = numpy_helper.from_array(values, name)

    def _add_node(
        self,
        op_type: str,
        inputs: list[str],
        output: str,
        *,
        axis: int | None = None,
    ) -> None:
        node = helper.make_node(op_type, inputs, [output], name=f"{output}/{op_type}")
        if axis is not None:
            node.attribute.append(helper.make_attribute("axis", axis))
        self._nodes.append(node)


def weight_scales(
    weights: Float32Array,
    *,
    axis: int,
    weight_max: int,
    bias: FloatArray | None = None,
) -> Float32Array:
    """Return the scale of each output channel.

    Parameters
    ----------
    weights : ndarray, float32
        Of a layer.
    axis : int
        Counts the output channels.
    weight_max : int
        Largest integer.
    bias : ndarray of shape (C,), float64, optional
        In units of the input's scale. A channel with hardly any weight would have a
        scale in which its bias does not fit 32 bits; it then gets a coarser one.

    Returns
    -------
    ndarray of shape (C,), float32
    """
    others = tuple(i for i in range(weights.ndim) if i != axis)
    scales = np.abs(weights).max(axis=others).astype(np.float64) / weight_max
    if bias is not None:
        scales = np.maximum(scales, np.abs(bias) / 2.0**30)
    return np.where(scales > _TINY, scales, 1.0).astype(np.float32)


def quantized_layers(model: onnx.ModelProto) -> list[str]:
    """Return the weighted layers of a network from `quantize_model` that are INT8."""
    int8 = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.INT8
    }
    weights = {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in int8
    }
    return [
        node.name
        for node in model.graph.node
        if any(name in weights for name in node.input)
    ]
