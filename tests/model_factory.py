"""Small networks for tests, written with ONNX's own helpers: nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeloc.inference.manifest import DECODERS, InputSpec, ModelManifest
from edgeloc_tools.model_files import write_model

FEATURES = ModelManifest(
    name="tiny-features",
    role="features",
    file="x.onnx",
    sha256="0" * 64,
    precision="fp32",
    flavour="any",
    input=InputSpec(size_multiple=8),
    decoder="edgeloc",
    outputs={name: name for name in DECODERS["edgeloc"][1]},
    descriptor_dim=64,
    match_ratio=0.9,
    license="Apache-2.0",
    source="made by the tests",
)
RETRIEVAL = replace(
    FEATURES,
    name="tiny-retrieval",
    role="retrieval",
    input=InputSpec(size=(24, 32)),
    decoder="vector",
    outputs={"global_descriptor": "vector"},
    descriptor_dim=24 * 32 // 4,
    match_ratio=None,
)


def model_bytes(
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[str],
    weights: Mapping[str, np.ndarray],
    *,
    channels: int = 1,
    input_type: int = TensorProto.FLOAT,
) -> bytes:
    """An ONNX file with one input "image" of any size."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("image", input_type, [1, channels, "h", "w"])],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model.SerializeToString()


def constant_network(outputs: Mapping[str, np.ndarray], *, channels: int = 1) -> bytes:
    """Whatever the image is, it gives these outputs."""
    nodes = [helper.make_node("Identity", [f"{name}_"], [name]) for name in outputs]
    weights = {f"{name}_": np.asarray(a) for name, a in outputs.items()}
    return model_bytes(nodes, list(outputs), weights, channels=channels)


def _filters() -> np.ndarray:
    """64 Gabor filters of 32x32, zero-mean: smooth enough to be sampled every 8 px."""
    y, x = np.mgrid[-15.5:16, -15.5:16]
    window = np.exp(-(x**2 + y**2) / (2 * 6.0**2))
    filters = []
    for wavelength_px in (14.0, 20.0, 28.0, 40.0):
        for angle in np.arange(8) * np.pi / 8:
            along = (x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / wavelength_px
            filters += [window * np.cos(along), window * np.sin(along)]
    stacked = np.stack(filters)
    stacked -= stacked.mean(axis=(1, 2), keepdims=True)
    stacked /= np.linalg.norm(stacked, axis=(1, 2), keepdims=True)
    return stacked[:, None].astype(np.float32)


def feature_network() -> bytes:
    """Gabor responses as descriptors, the same reliability everywhere.

    It has the shapes of the project's own network, and is good enough to localize in a
    room full of texture.
    """
    weights = {
        "gabor": _filters(),
        "zero": np.array(0.0, np.float32),
        "logit": np.array(2.0, np.float32),
    }
    nodes = [
        helper.make_node(
            "Conv", ["image", "gabor"], ["raw"], pads=[12] * 4, strides=[8, 8]
        ),
        helper.make_node("LpNormalization", ["raw"], ["descriptors"], axis=1, p=2),
        helper.make_node("ReduceMean", ["raw"], ["mean"], axes=[1]),
        helper.make_node("Mul", ["mean", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "logit"], ["reliability"]),
    ]
    return model_bytes(nodes, ["descriptors", "reliability"], weights)


def retrieval_network() -> bytes:
    """A small grey image, less its mean, as the vector."""
    nodes = [
        helper.make_node(
            "AveragePool", ["image"], ["small"], kernel_shape=[2, 2], strides=[2, 2]
        ),
        helper.make_node("Flatten", ["small"], ["flat"]),
        helper.make_node("ReduceMean", ["flat"], ["mean"], axes=[1]),
        helper.make_node("Sub", ["flat", "mean"], ["centred"]),
        helper.make_node("LpNormalization", ["centred"], ["vector"], axis=1, p=2),
    ]
    return model_bytes(nodes, ["vector"], {})


def write_features(folder: Path) -> Path:
    """The manifest of `feature_network`."""
    return write_model(folder, FEATURES, feature_network())


def write_retrieval(folder: Path) -> Path:
    """The manifest of `retrieval_network`."""
    return write_model(folder, RETRIEVAL, retrieval_network())
