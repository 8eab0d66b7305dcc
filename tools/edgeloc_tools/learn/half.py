"""From a float32 network to float16 weights and activations.

Normalisation stays float32: sums of squares overflow float16 (65504), and the small
constant that keeps it from dividing by zero vanishes. Input and output stay float32,
so that every variant of a network is called alike.

`onnxruntime.transformers.float16` leaves nodes out of order, which the ONNX checker
refuses, and casts to float16 and back between every two nodes that it should keep.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeloc.errors import ModelError
from edgeloc_tools.learn.graph import WEIGHTED, GraphView, finished, opset_of

FULL_PRECISION = frozenset(
    {
        *("ReduceL2", "ReduceSumSquare", "ReduceSum", "ReduceMean", "LpNormalization"),
        *("Pow", "Sqrt", "Reciprocal", "Div", "Exp", "Log", "Softmax", "LogSoftmax"),
        *("InstanceNormalization", "LayerNormalization", "GroupNormalization"),
    }
)
"""Operators that stay float32."""

# Inputs that the operator wants in float32 whatever its data is.
_FLOAT_INPUTS = {"Resize": (1, 2)}

_LARGEST = float(np.finfo(np.float16).max)


def half_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a network that computes in float16.

    Parameters
    ----------
    model : ModelProto
        From `edgeloc_tools.learn.graph.load_truth`.

    Returns
    -------
    ModelProto
        The same bytes for the same network; input and output are float32.

    Raises
    ------
    ModelError
        When a weight does not fit.
    """
    return _Halver(model).write()


class _Halver:
    """Rebuilds a graph with every float tensor in the precision its maker chose."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._view = GraphView(model)
        typed = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
        self._float = {
            value.name
            for value in (*typed.input, *typed.value_info, *typed.output)
            if value.type.tensor_type.elem_type == TensorProto.FLOAT
        }
        self._float |= {
            name
            for name, tensor in self._view.constants.items()
            if tensor.data_type == TensorProto.FLOAT
        }
        self._half: set[str] = set()
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, TensorProto] = {}
        self._names: dict[tuple[str, bool], str] = {}

    def write(self) -> onnx.ModelProto:
        graph = self._model.graph
        for node in graph.node:
            self._add(node)
        return finished(
            helper.make_graph(
                self._nodes,
                "edgeloc",
                graph.input,
                graph.output,
                initializer=list(self._constants.values()),
            ),
            opset=opset_of(self._model),
        )

    def _is_half(self, node: onnx.NodeProto) -> bool:
        """Whether a node computes in float16.

        What follows a float32 node stays float32 up to the next weights: the clipping
        and the division of a normalisation belong together.
        """
        if not any(name in self._float for name in node.output):
            return False
        if node.op_type in WEIGHTED:
            return True
        computed = [
            name
            for name in node.input
            if name in self._float and name not in self._view.constants
        ]
        return (
            node.op_type not in FULL_PRECISION
            and bool(computed)
            and all(name in self._half for name in computed)
        )

    def _add(self, node: onnx.NodeProto) -> None:
        half = self._is_half(node)
        new = onnx.NodeProto()
        new.CopyFrom(node)
        for idx, name in enumerate(node.input):
            if name in self._float:
                exact = idx in _FLOAT_INPUTS.get(node.op_type, ())
                new.input[idx] = self._as(name, half=half and not exact)
            elif name in self._view.constants:
                self._constants[name] = self._view.constants[name]
        outputs = [name for name in node.output if half and name in self._float]
        self._half.update(outputs)
        for idx, name in enumerate(node.output):
            if name in outputs and name in self._view.outputs:
                new.output[idx] = f"{name}_half"
                self._names[name, True] = new.output[idx]
        self._nodes.append(new)
        for name in outputs:
            if name in self._view.outputs:
                self._cast(f"{name}_half", name, TensorProto.FLOAT)
                self._names[name, False] = name

    def _as(self, name: str, *, half: bool) -> str:
        """Return the name of a float tensor in the precision that its reader wants."""
        if (name, half) in self._names:
            return self._names[name, half]
        if name in self._view.constants:
            new = self._constant(name, half=half)
        elif (name in self._half) == half:
            new = name
        else:
            new = f"{name}_{'half' if half else 'full'}"
            self._cast(name, new, TensorProto.FLOAT16 if half else TensorProto.FLOAT)
        self._names[name, half] = new
        return new

    def _constant(self, name: str, *, half: bool) -> str:
        tensor = self._view.constants[name]
        if not half:
            self._constants[name] = tensor
            return name
        values = self._view.array(name).astype(np.float64)
        largest = float(np.abs(values).max(initial=0.0))
        if largest > _LARGEST:
            raise ModelError(
                f"constant {name!r} reaches {largest:.3g}, float16 ends at "
                f"{_LARGEST:g}; this network has no float16 variant"
            )
        new = f"{name}_half"
        self._constants[new] = numpy_helper.from_array(values.astype(np.float16), new)
        return new

    def _cast(self, name: str, new: str, to: int) -> None:
        self._nodes.append(
            helper.make_node("Cast", [name], [new], name=f"{new}/Cast", to=to)
        )
