"""A network of XFeat's shape: thin layers at full resolution. It has learned nothing.

Only the shape is of interest: how long convolutions with 4 to 24 channels on large maps
take, against the wide and early-downsampled ones of this project.

References
----------
.. [1] Potje et al., "XFeat: Accelerated Features for Lightweight Image Matching",
   CVPR 2024, section 3 and figure 3.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_OPSET, _IR_VERSION = 17, 8


class _Builder:
    """Collects nodes and weights, and counts multiplications."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.macs = 0
        self._rng = np.random.default_rng(0)

    def add(
        self, kind: str, inputs: list[str], **attributes: float | str | list[int]
    ) -> str:
        name = f"x{len(self.nodes)}"
        node = helper.make_node(kind, inputs, [name])
        node.attribute.extend(
            helper.make_attribute(*item) for item in attributes.items()
        )
        self.nodes.append(node)
        return name

    def constant(self, values: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def conv(
        self,
        x: tuple[str, int, int, int],
        channels: int,
        *,
        stride: int = 1,
        kernel: int = 3,
        relu: bool = True,
    ) -> tuple[str, int, int, int]:
        """Return a convolution of (name, channels, height, width)."""
        name, channels_in, height, width = x
        fan_in = channels_in * kernel * kernel
        shape = (channels, channels_in, kernel, kernel)
        weights = self._rng.normal(scale=(2.0 / fan_in) ** 0.5, size=shape)
        height, width = -(-height // stride), -(-width // stride)
        self.macs += fan_in * channels * height * width
        out = self.add(
            "Conv",
            [
                name,
                self.constant(weights.astype(np.float32)),
                self.constant(np.zeros(channels, np.float32)),
            ],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
        )
        return self.add("Relu", [out]) if relu else out, channels, height, width

    def enlarge(
        self, x: tuple[str, int, int, int], factor: int
    ) -> tuple[str, int, int, int]:
        scales = self.constant(np.array([1, 1, factor, factor], np.float32))
        name = self.add("Resize", [x[0], "", scales], mode="linear")
        return name, x[1], x[2] * factor, x[3] * factor

    def sum(
        self, a: tuple[str, int, int, int], b: tuple[str, int, int, int]
    ) -> tuple[str, int, int, int]:
        return self.add("Add", [a[0], b[0]]), *a[1:]


def thin_network(height: int, width: int) -> tuple[bytes, int]:
    """Return an ONNX file and how many multiplications a run of it takes.

    Parameters
    ----------
    height, width : int
        Of the input, (1, 1, height, width); multiples of 32.
    """
    net = _Builder()
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    name = net.add(
        "InstanceNormalization", ["image", net.constant(one), net.constant(zero)]
    )
    image = name, 1, height, width
    # Block 1: 4 channels at full, 8 at half and 24 at a quarter of the resolution.
    x = net.conv(image, 4)
    x = net.conv(net.conv(x, 8, stride=2), 8)
    x = net.conv(x, 24, stride=2)
    pooled = net.add("AveragePool", [name], kernel_shape=[4, 4], strides=[4, 4])
    skip = net.conv((pooled, 1, height // 4, width // 4), 24, kernel=1, relu=False)
    x = net.sum(x, skip)
    # Blocks 2 to 5.
    x = net.conv(net.conv(x, 24), 24)
    third = net.conv(net.conv(net.conv(x, 64, stride=2), 64), 64, kernel=1)
    fourth = net.conv(net.conv(net.conv(third, 64, stride=2), 64), 64)
    fifth = net.conv(net.conv(net.conv(fourth, 128, stride=2), 128), 128)
    fifth = net.conv(fifth, 64, kernel=1)
    fused = net.sum(third, net.sum(net.enlarge(fourth, 2), net.enlarge(fifth, 4)))
    fused = net.conv(net.conv(fused, 64), 64)
    fused = net.conv(fused, 64, kernel=1, relu=False)
    # Reliability, and keypoints from the 8x8 blocks of the image.
    heat = net.conv(net.conv(fused, 64, kernel=1), 64, kernel=1)
    heat = net.conv(heat, 1, kernel=1, relu=False)
    reliability = net.add("Sigmoid", [heat[0]])
    blocks = net.add("SpaceToDepth", [name], blocksize=8)
    points = blocks, 64, height // 8, width // 8
    for _ in range(3):
        points = net.conv(points, 64, kernel=1)
    points = net.conv(points, 65, kernel=1, relu=False)
    shape = [height // 8, width // 8]
    outputs = [(fused[0], 64), (reliability, 1), (points[0], 65)]
    graph = helper.make_graph(
        net.nodes,
        "thin",
        [
            helper.make_tensor_value_info(
                "image", TensorProto.FLOAT, [1, 1, height, width]
            )
        ],
        [
            helper.make_tensor_value_info(out, TensorProto.FLOAT, [1, channels, *shape])
            for out, channels in outputs
        ],
        net.weights,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="edgeloc",
    )
    onnx.checker.check_model(model)
    return model.SerializeToString(), net.macs
