"""Small feature networks that work without training, written with ONNX helpers.

Descriptors are projections of the smoothed patch onto fixed random patterns, through a
rectifier, as in a network. Where they are strong, as at hard edges, little is reliable.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeloc.inference.manifest import InputSpec, ModelManifest
from edgeloc_tools.model_files import write_model

DIM = 64
FEATURE_OUTPUTS = ("descriptors", "reliability")
LAYERS = ("project", "fold", "gather", "trust")


class Graph:
    """Collects nodes and weights."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, name, values):
        array = np.ascontiguousarray(values)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def op(self, kind, inputs, name, **attributes):
        self.nodes.append(
            helper.make_node(kind, inputs, [name], name=name, **attributes)
        )
        return name

    def conv(self, x, name, weight, bias=None, *, relu=False, out=None, **attributes):
        inputs = [x, self.constant(f"{name}.weight", weight)]
        if bias is not None:
            inputs.append(self.constant(f"{name}.bias", bias))
        result = f"{name}.relu" if relu else out or f"{name}.out"
        value = f"{name}.out" if relu else result
        self.nodes.append(
            helper.make_node("Conv", inputs, [value], name=name, **attributes)
        )
        if relu:
            self.op("Relu", [value], result)
        return result

    def model(self, inputs, outputs, *, opset=17):
        def value(name, shape):
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

        graph = helper.make_graph(
            self.nodes,
            "handmade",
            [value(name, shape) for name, shape in inputs.items()],
            [value(name, shape) for name, shape in outputs.items()],
            self.weights,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def _cells(filters: np.ndarray) -> np.ndarray:
    """Return filters over pixels as filters over cells of 4x4 pixels."""
    count, height, width = filters.shape
    split = filters.reshape(count, height // 4, 4, width // 4, 4)
    return split.transpose(0, 2, 4, 1, 3).reshape(count, 16, height // 4, width // 4)


def _blob(sigma: float, at: tuple[float, float], size: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size] + 0.5
    value = np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * sigma**2))
    return value / value.sum()


def feature_model(*, spoilt: str = "", seed: int = 0) -> onnx.ModelProto:
    """Return a network of the contract's shape.

    Parameters
    ----------
    spoilt : {"", "gather", "trust"}
        A layer, of the descriptors or of the reliability, with one huge weight on a
        channel that is always 0: exact in floats, but the scale of INT8 weights leaves
        nothing of the others.
    seed : int
        Of the patterns.
    """
    rng = np.random.default_rng(seed)
    g = Graph()
    cells = g.op("SpaceToDepth", ["image"], "cells", blocksize=4)

    window = _blob(8.0, (16.0, 16.0), 32)
    patterns = rng.normal(size=(DIM, 32, 32))
    patterns = np.stack([cv2.GaussianBlur(p, (0, 0), 2.5) for p in patterns])
    patterns = window * (
        patterns - np.sum(window * patterns, axis=(1, 2))[:, None, None]
    )
    patterns -= window * patterns.sum(axis=(1, 2), keepdims=True)
    patterns *= 8.0 / np.linalg.norm(patterns, axis=(1, 2), keepdims=True)
    projected = g.conv(
        cells,
        "project",
        _cells(patterns),
        np.zeros(DIM),
        strides=[2, 2],
        pads=[3, 3, 3, 3],
    )
    # Both signs, and a last channel that is always 0.
    both = np.concatenate([np.eye(DIM), -np.eye(DIM), np.zeros((1, DIM))])
    offsets = np.append(np.zeros(2 * DIM), -1.0)
    folded = g.conv(projected, "fold", both[:, :, None, None], offsets, relu=True)
    mix = np.linalg.qr(rng.normal(size=(2 * DIM, DIM)))[0].T
    mix = np.concatenate([mix, np.zeros((DIM, 1))], axis=1)
    if spoilt == "gather":
        mix[:, -1] = 1e4
    described = g.conv(folded, "gather", mix[:, :, None, None])
    norm = g.op("ReduceL2", [described], "norm", axes=[1], keepdims=1)
    least = g.constant("least", np.array([1e-6]))
    g.op("Div", [described, g.op("Max", [norm, least], "max")], "descriptors")
    trust = np.append(np.full(2 * DIM, -0.5 / DIM), 0.0)
    if spoilt == "trust":
        trust[-1] = 1e4
    g.conv(
        folded,
        "trust",
        trust[None, :, None, None],
        np.array([3.0]),
        out="reliability",
    )
    return g.model(
        {"image": [1, 1, "H", "W"]},
        {"descriptors": [1, DIM, "h", "w"], "reliability": [1, 1, "h", "w"]},
    )


def residual_model(*, seed: int = 0, opset: int = 17) -> onnx.ModelProto:
    """Return a chain with batch normalisation, a residual sum, resizing and a product.

    Random weights; input `image` (1, 1, H, W), output `out`.
    """
    rng = np.random.default_rng(seed)

    def weight(*shape: int) -> np.ndarray:
        return rng.normal(scale=np.sqrt(2.0 / np.prod(shape[1:])), size=shape)

    g = Graph()
    pads = {"pads": [1, 1, 1, 1]}
    x = g.conv("image", "first", weight(8, 1, 3, 3), strides=[2, 2], **pads)
    statistics = [
        g.constant(f"norm.{name}", values)
        for name, values in (
            ("gain", rng.uniform(0.5, 1.5, 8)),
            ("shift", rng.normal(size=8)),
            ("mean", rng.normal(size=8)),
            ("var", rng.uniform(0.5, 1.5, 8)),
        )
    ]
    x = g.op("BatchNormalization", [x, *statistics], "norm")
    x = g.op("Relu", [x], "first.relu")
    small = g.conv(
        x, "down", weight(8, 8, 3, 3), np.zeros(8), relu=True, strides=[2, 2], **pads
    )
    scales = g.constant("scales", np.array([1.0, 1.0, 2.0, 2.0]))
    large = g.op("Resize", [small, "", scales], "enlarge", mode="linear")
    y = g.op("Add", [x, large], "add")
    y = g.conv(y, "mix", weight(8, 8, 3, 3), rng.normal(size=8), relu=True, **pads)
    y = g.conv(y, "last", weight(4, 8, 1, 1), np.zeros(4), out="out")
    return g.model({"image": [1, 1, "H", "W"]}, {"out": [1, 4, "h", "w"]}, opset=opset)


def retrieval_model(
    *, spoilt: bool = False, fragile: bool = False, seed: int = 0
) -> onnx.ModelProto:
    """Return a network from an image to a vector of 32 elements.

    Parameters
    ----------
    spoilt : bool
        INT8 weights of its last layer are all 0 but for a useless one.
    fragile : bool
        It then divides 0 by 0.
    seed : int
        Of the weights.
    """
    rng = np.random.default_rng(seed)
    g = Graph()
    cells = g.op("SpaceToDepth", ["image"], "cells", blocksize=4)
    first = rng.normal(size=(32, 16, 3, 3))
    first -= first.mean(axis=(1, 2, 3), keepdims=True)
    x = g.conv(
        cells,
        "first",
        np.concatenate([first, np.zeros((1, 16, 3, 3))]),
        np.append(np.zeros(32), -1.0),
        relu=True,
        strides=[4, 4],
        pads=[1, 1, 1, 1],
    )
    x = g.op("Flatten", [x], "flat")
    size = 33 * 4 * 5
    last = rng.normal(size=(32, size)) / np.sqrt(size)
    last.reshape(32, 33, -1)[:, 32] = 1e4 if spoilt else 0.0
    weight = g.constant("last.weight", last)
    bias = g.constant("last.bias", np.zeros(32))
    x = g.op("Gemm", [x, weight, bias], "last", transB=1)
    norm = g.op("ReduceL2", [x], "length", axes=[1], keepdims=1)
    least = g.constant("least", np.array([1e-6 if not fragile else 0.0]))
    g.op("Div", [x, g.op("Max", [norm, least], "max")], "global_descriptor")
    return g.model({"image": [1, 1, 64, 80]}, {"global_descriptor": [1, 32]})


def blobs(seed: int, *, height: int = 192, width: int = 256) -> np.ndarray:
    """Return a picture full of blobs of several sizes on smooth ground."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width))
    for sigma, strength in ((1.2, 1.0), (2.5, 1.6), (6.0, 2.5), (16.0, 4.0)):
        noise = cv2.GaussianBlur(rng.normal(size=picture.shape), (0, 0), sigma)
        picture += strength * noise / noise.std()
    low, high = np.quantile(picture, [0.01, 0.99])
    return np.clip(255.0 * (picture - low) / (high - low), 0, 255).astype(np.uint8)


def write_features(folder: Path, model: onnx.ModelProto, *, name: str = "handmade"):
    """Write a feature network and return its manifest's path."""
    return _write(
        folder,
        model,
        name=name,
        role="features",
        decoder="edgeloc",
        outputs=FEATURE_OUTPUTS,
        descriptor_dim=DIM,
        match_ratio=0.9,
        input=InputSpec(size_multiple=16),
    )


def write_retrieval(folder: Path, model: onnx.ModelProto, *, name: str = "places"):
    """Write a retrieval network and return its manifest's path."""
    return _write(
        folder,
        model,
        name=name,
        role="retrieval",
        decoder="vector",
        outputs=("global_descriptor",),
        descriptor_dim=32,
        match_ratio=None,
        input=InputSpec(size=(64, 80)),
    )


def _write(folder: Path, model: onnx.ModelProto, *, outputs: Sequence[str], **facts):
    manifest = ModelManifest(
        file="x.onnx",
        sha256="0" * 64,
        precision="fp32",
        flavour="any",
        outputs={name: name for name in outputs},
        license="Apache-2.0",
        source="tests",
        **facts,
    )
    return write_model(folder, manifest, model.SerializeToString())
