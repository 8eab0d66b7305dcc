"""Networks as ONNX graphs, written operator by operator.

Batch normalisation is folded into the convolutions and every operator is one that
TensorRT 10 and ONNX Runtime 1.23 take, so that quantization meets plain chains of Conv
and Relu with telling names.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgeloc.types import FloatArray

OPSET = 17
IR_VERSION = 8

_Shape = Sequence[int | str]


class GraphBuilder:
    """Collects the operators of a graph; each method returns the name of its output."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def op(
        self,
        kind: str,
        inputs: Sequence[str],
        name: str,
        **attributes: int | str | Sequence[int],
    ) -> str:
        """Add any operator with one output."""
        node = helper.make_node(kind, list(inputs), [name], name=name)
        node.attribute.extend(
            helper.make_attribute(key, value) for key, value in attributes.items()
        )
        self._nodes.append(node)
        return name

    def constant(self, name: str, values: FloatArray | Sequence[float]) -> str:
        """Add a float32 initializer."""
        array = np.ascontiguousarray(values, np.float32)
        self._weights.append(numpy_helper.from_array(array, name))
        return name

    def conv(
        self,
        x: str,
        conv: nn.Conv2d,
        name: str,
        *,
        norm: nn.BatchNorm2d | None = None,
        relu: bool = False,
    ) -> str:
        """Add a convolution, its batch normalisation folded into the weights."""
        weight = _array(conv.weight)
        bias = _array(conv.bias) if conv.bias is not None else np.zeros(len(weight))
        if norm is not None:
            if norm.running_var is None or norm.running_mean is None:
                raise ValueError(f"{name}: batch normalisation keeps no statistics")
            gain = _array(norm.weight) / np.sqrt(_array(norm.running_var) + norm.eps)
            weight = weight * gain[:, None, None, None]
            bias = (bias - _array(norm.running_mean)) * gain + _array(norm.bias)
        kernel, padding = list(conv.kernel_size), [int(p) for p in conv.padding]
        out = self.op(
            "Conv",
            [
                x,
                self.constant(f"{name}.weight", weight),
                self.constant(f"{name}.bias", bias),
            ],
            name,
            kernel_shape=kernel,
            strides=list(conv.stride),
            pads=padding * 2,
        )
        return self.op("Relu", [out], f"{name}.relu") if relu else out

    def blocks(self, x: str, blocks: nn.Module, name: str) -> str:
        """Add one `conv_block` or a chain of them."""
        chain = list(blocks.children())
        if isinstance(chain[0], nn.Conv2d):
            conv, norm = chain[0], chain[1]
            if not isinstance(norm, nn.BatchNorm2d):
                raise TypeError(f"{name}: is not a convolution with normalisation")
            return self.conv(x, conv, name, norm=norm, relu=True)
        for idx, block in enumerate(chain):
            x = self.blocks(x, block, f"{name}.{idx}")
        return x

    def upsample2(self, x: str, name: str) -> str:
        """Add a bilinear enlargement by two, as PyTorch's without aligned corners."""
        scales = self.constant(f"{name}.scales", [1.0, 1.0, 2.0, 2.0])
        return self.op(
            "Resize",
            [x, "", scales],
            name,
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        )

    def whole(self, name: str, values: Sequence[int]) -> str:
        """Add an int64 initializer."""
        array = np.asarray(values, np.int64)
        self._weights.append(numpy_helper.from_array(array, name))
        return name

    def reshape(self, x: str, shape: Sequence[int], name: str) -> str:
        """Add a change of shape."""
        return self.op("Reshape", [x, self.whole(f"{name}.shape", shape)], name)

    def span(self, start: int, stop: int, *, axis: int) -> list[str]:
        """Add the inputs of Slice."""
        return [
            self.whole(f"slice{axis}.{part}", [value])
            for part, value in (("start", start), ("stop", stop), ("axis", axis))
        ]

    def normalise(self, x: str, name: str, *, axis: int = 1) -> str:
        """Add an L2 normalisation over an axis."""
        norm = self.op("ReduceL2", [x], f"{name}.norm", axes=[axis], keepdims=1)
        least = self.constant(f"{name}.least", [1e-12])
        return self.op(
            "Div", [x, self.op("Max", [norm, least], f"{name}.max")], f"{name}.unit"
        )

    def finish(
        self,
        *,
        name: str,
        inputs: Sequence[tuple[str, _Shape]],
        outputs: Sequence[tuple[str, str, _Shape]],
    ) -> onnx.ModelProto:
        """Return the model; `outputs` are (value, name of the output, shape)."""
        names = {value: output for value, output, _ in outputs}
        for node in self._nodes:
            node.input[:] = [names.get(value, value) for value in node.input]
            node.output[:] = [names.get(value, value) for value in node.output]
        graph = helper.make_graph(
            self._nodes,
            name,
            [
                helper.make_tensor_value_info(label, TensorProto.FLOAT, list(shape))
                for label, shape in inputs
            ],
            [
                helper.make_tensor_value_info(label, TensorProto.FLOAT, list(shape))
                for _, label, shape in outputs
            ],
            self._weights,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="edgeloc",
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def _array(tensor: Tensor) -> FloatArray:
    return np.asarray(tensor.detach().cpu().double().numpy())
