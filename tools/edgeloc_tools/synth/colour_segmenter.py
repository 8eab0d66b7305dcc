"""A segmentation network that knows one thing: magenta is what moves.

Procedural scenes can paint their movers so. What is exercised is the real path, from
the manifest through ONNX Runtime to the mask; how well a real network tells people from
walls is no question here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeloc.inference.manifest import InputSpec, ModelManifest
from edgeloc_tools.model_files import write_model

CELL_PX = 4
"""Of the network's output, as real ones have it coarser than the picture."""
MIN_MAGENTA = 0.4
"""Red and blue less twice green, of 2 at most."""

MANIFEST = ModelManifest(
    name="magenta",
    role="segmentation",
    file="x.onnx",
    sha256="0" * 64,
    precision="fp32",
    flavour="any",
    input=InputSpec(channels=3, mean=(0.0,) * 3, std=(1.0,) * 3, size_multiple=16),
    decoder="class-logits",
    outputs={"classes": "logits"},
    descriptor_dim=2,
    match_ratio=None,
    license="Apache-2.0",
    source="edgeloc_tools.synth.colour_segmenter",
    classes=("background", "person"),
)


def network() -> bytes:
    """Return the ONNX file: mean colours of cells, and a threshold."""
    from onnx import TensorProto, helper, numpy_helper

    weights = {
        "w": np.array([[0, 0, 0], [1, -2, 1]], np.float32).reshape(2, 3, 1, 1),
        "b": np.array([0.0, -MIN_MAGENTA], np.float32),
    }
    cell = [CELL_PX, CELL_PX]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "h", "w"])
    graph = helper.make_graph(
        [
            helper.make_node(
                "AveragePool", ["image"], ["cells"], kernel_shape=cell, strides=cell
            ),
            helper.make_node("Conv", ["cells", "w", "b"], ["logits"]),
        ],
        "magenta",
        [image],
        [helper.make_empty_tensor_value_info("logits")],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return bytes(model.SerializeToString())


def write_colour_segmenter(folder: Path) -> Path:
    """Write network and manifest; return the path of the manifest."""
    return write_model(folder, MANIFEST, network())
