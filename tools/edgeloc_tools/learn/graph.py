"""ONNX graphs as the quantizer sees them."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime  # type: ignore[import-untyped]
from google.protobuf.message import (  # type: ignore[import-untyped]
    DecodeError,
)
from onnx import numpy_helper
from onnxruntime.capi import (  # type: ignore[import-untyped]
    onnxruntime_pybind11_state,
)

from edgeloc.errors import ModelError

MIN_OPSET, MAX_OPSET = 13, 19
"""Per-channel Q/DQ begins with 13; TensorRT 10 and onnxruntime 1.23 take up to 19."""

MAX_IR_VERSION = 9
"""Of files written here: what belongs to opset 19."""

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
"""Operators that multiply by weights: what quantization is for."""

LAYERS = WEIGHTED | {"Add"}
"""Operators that are quantized; an addition of two activations must not fall out of
the integer world, or both of its branches do."""

_BOUNDED_ACTIVATIONS = frozenset({"Relu", "Clip"})
_INTEGER_MOVES = frozenset(
    {
        *("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"),
        *("Slice", "MaxPool"),
    }
)
_MOVES = _INTEGER_MOVES | {"SpaceToDepth", "DepthToSpace"}

# onnxruntime's errors have no common base but Exception.
ORT_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(
        kind
        for kind in vars(onnxruntime_pybind11_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
)
"""What onnxruntime raises."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One node that can be quantized.

    Parameters
    ----------
    name : str
        Of the node.
    op_type : str
        Operator.
    num_weights : int
        Elements of its weight; 0 for an addition.
    """

    name: str
    op_type: str
    num_weights: int


class GraphView:
    """Who makes and who reads each tensor of a model.

    Parameters
    ----------
    model : ModelProto
        Topologically sorted, with a unique name on every node; not changed.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graph = model.graph
        self.constants: Mapping[str, onnx.TensorProto] = {
            tensor.name: tensor for tensor in graph.initializer
        }
        self.outputs = frozenset(value.name for value in graph.output)
        self.inputs = tuple(
            value.name for value in graph.input if value.name not in self.constants
        )
        self.producer: dict[str, onnx.NodeProto] = {}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.output:
                self.producer[name] = node
            for name in dict.fromkeys(node.input):
                if name:
                    self.consumers.setdefault(name, []).append(node)

    def array(self, name: str) -> npt.NDArray[np.generic]:
        """Return a constant's values."""
        return np.asarray(numpy_helper.to_array(self.constants[name]))

    def is_layer(self, node: onnx.NodeProto) -> bool:
        """Whether a node can be quantized."""
        if node.op_type not in LAYERS or node.domain:
            return False
        if node.op_type == "Add":
            return not any(name in self.constants for name in node.input)
        # Weights that are computed, and products of two activations, stay as they are.
        if node.input[0] in self.constants or node.input[1] not in self.constants:
            return False
        return len(node.input) < 3 or not node.input[2] or self._is_bias(node.input[2])

    def _is_bias(self, name: str) -> bool:
        return name in self.constants and len(self.constants[name].dims) == 1

    def layers(self) -> list[Layer]:
        """Return what can be quantized, in the order of the graph."""
        return [
            Layer(node.name, node.op_type, self._num_weights(node))
            for node in self.model.graph.node
            if self.is_layer(node)
        ]

    def _num_weights(self, node: onnx.NodeProto) -> int:
        if node.op_type == "Add":
            return 0
        return int(np.prod(self.constants[node.input[1]].dims))

    def result(self, node: onnx.NodeProto) -> str:
        """Return the tensor in which a layer's work ends: behind its ReLU, if any.

        Between a convolution and its ReLU no value is ever rounded: both runtimes fold
        the ReLU into the rounding that follows it.
        """
        name = node.output[0]
        consumers = self.consumers.get(name, [])
        if (
            name not in self.outputs
            and len(consumers) == 1
            and consumers[0].op_type in _BOUNDED_ACTIVATIONS
            and consumers[0].input[0] == name
        ):
            return str(consumers[0].output[0])
        return str(name)

    def moves(self, node: onnx.NodeProto, *, integers: bool = False) -> bool:
        """Whether a node's values are its input's, elsewhere.

        Parameters
        ----------
        node : NodeProto
            Of this model.
        integers : bool
            Only what onnxruntime does on integers, without a detour over floats.
        """
        moves = _INTEGER_MOVES if integers else _MOVES
        return not node.domain and node.op_type in moves and len(node.output) == 1


def attribute_int(node: onnx.NodeProto, name: str, default: int) -> int:
    """Return an integer attribute of a node."""
    for attribute in node.attribute:
        if attribute.name == name:
            return int(attribute.i)
    return default


def load_truth(path: Path) -> onnx.ModelProto:
    """Return a float32 network, simplified: the one truth all variants come from.

    Constants are folded, batch normalisation goes into the convolution before it, and
    every node has a name. The work is onnxruntime's own basic optimization.

    Parameters
    ----------
    path : Path
        ONNX file, float32, opset `MIN_OPSET` to `MAX_OPSET`, no custom operators.

    Raises
    ------
    ModelError
        When the file is not such a network.
    """
    try:
        data = path.read_bytes()
        model = onnx.load_model_from_string(data)
    except OSError as exc:
        raise ModelError(f"{path}: cannot be read ({exc.strerror})") from exc
    except DecodeError as exc:
        raise ModelError(f"{path}: is not an ONNX file") from exc
    check_opset(model, path)
    for node in model.graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            raise ModelError(
                f"{path}: is quantized already ({node.name or node.op_type}); give the "
                "float32 network"
            )
    with tempfile.TemporaryDirectory() as folder:
        simple = Path(folder) / "simple.onnx"
        options = session_options(threads=1)
        options.graph_optimization_level = (
            onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        )
        options.optimized_model_filepath = str(simple)
        make_session(data, options=options, where=str(path))
        model = onnx.load_model(simple)
    for value in (*model.graph.input, *model.graph.initializer):
        kind = (
            value.data_type
            if isinstance(value, onnx.TensorProto)
            else value.type.tensor_type.elem_type
        )
        if kind in {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}:
            raise ModelError(
                f"{path}: {value.name} has half precision; give the float32 network"
            )
    return _tidy(model)


def check_opset(model: onnx.ModelProto, path: Path) -> None:
    """Raise `ModelError` unless a model uses operators that both runtimes take."""
    for entry in model.opset_import:
        if entry.domain in {"", "ai.onnx"} and not (
            MIN_OPSET <= entry.version <= MAX_OPSET
        ):
            raise ModelError(
                f"{path}: has opset {entry.version}, expected {MIN_OPSET} to "
                f"{MAX_OPSET}; export it with opset 17"
            )
    for node in model.graph.node:
        if node.domain not in {"", "ai.onnx"}:
            raise ModelError(
                f"{path}: node {node.name!r} is a {node.domain}.{node.op_type}; only "
                "standard operators can be quantized"
            )


def _tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with names on all nodes and without traces of the optimizer."""
    version = next(e.version for e in model.opset_import if e.domain == "")
    taken = Counter(node.name for node in model.graph.node)
    for idx, node in enumerate(model.graph.node):
        if not node.name or taken[node.name] > 1:
            node.name = f"{node.op_type}_{idx}"
    return finished(model.graph, opset=version)


def finished(graph: onnx.GraphProto, *, opset: int) -> onnx.ModelProto:
    """Return a checked model that depends on nothing but the graph.

    Parameters
    ----------
    graph : GraphProto
        Its intermediate types are dropped: they may be stale.
    opset : int
        Of the standard operators.
    """
    del graph.value_info[:]
    graph.name = "edgeloc"
    graph.doc_string = ""
    for node in graph.node:
        node.doc_string = ""
    model = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", opset)],
        producer_name="edgeloc",
        ir_version=MAX_IR_VERSION if opset > 17 else 8,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the standard operators."""
    return int(next(e.version for e in model.opset_import if e.domain == ""))


def to_bytes(model: onnx.ModelProto) -> bytes:
    """Return a model's file, the same bytes for the same model."""
    return bytes(model.SerializeToString(deterministic=True))


def session_options(*, threads: int) -> onnxruntime.SessionOptions:
    """Return onnxruntime's options, as on the device: no spinning."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def make_session(
    data: bytes, *, options: onnxruntime.SessionOptions, where: str
) -> onnxruntime.InferenceSession:
    """Return a session on the processor.

    Parameters
    ----------
    data : bytes
        ONNX file.
    options : SessionOptions
        Of onnxruntime.
    where : str
        For the message.

    Raises
    ------
    ModelError
        When onnxruntime refuses the network.
    """
    try:
        return onnxruntime.InferenceSession(
            data, options, providers=["CPUExecutionProvider"]
        )
    except ORT_ERRORS as exc:
        reason = " ".join(str(exc).split())[:300]
        raise ModelError(f"{where}: onnxruntime refuses it: {reason}") from exc
