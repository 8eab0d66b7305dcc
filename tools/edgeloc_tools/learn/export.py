"""From trained networks to ONNX files with manifest."""

from __future__ import annotations

from pathlib import Path

import onnx

from edgeloc.inference.manifest import InputSpec, ModelManifest
from edgeloc_tools.learn.graph import to_bytes
from edgeloc_tools.learn.networks import (
    SIZE_MULTIPLE,
    STRIDE,
    FeatureNet,
    RetrievalNet,
    Trunk,
)
from edgeloc_tools.learn.onnx_graph import GraphBuilder
from edgeloc_tools.learn.shorten import shorten
from edgeloc_tools.model_files import write_model

LICENSE = "Apache-2.0"
MATCH_RATIO = 0.99
"""Lowe's ratio between a query and a keyframe.

Where pictures differ in light or season, 0.95 leaves out a quarter of the right matches
(WxBS); elsewhere it makes no difference."""


def feature_graph(net: FeatureNet) -> onnx.ModelProto:
    """Return the ONNX model of a feature network.

    Parameters
    ----------
    net : FeatureNet
        Its batch statistics are those of evaluation.

    Returns
    -------
    ModelProto
        Input `image` (1, 1, H, W), outputs `descriptors` and `reliability` as
        `FeatureNet.forward` gives them; H and W, multiples of 16, are free.
    """
    g = GraphBuilder()
    mixed, descriptors = _add_trunk(g, net)
    reliability = g.conv(mixed, net.reliability, "trust")
    dim = net.descriptors.out_channels
    return g.finish(
        name="edgeloc-features",
        inputs=[("image", (1, 1, "H", "W"))],
        outputs=[
            (descriptors, "descriptors", (1, dim, "H/8", "W/8")),
            (reliability, "reliability", (1, 1, "H/8", "W/8")),
        ],
    )


def _add_trunk(g: GraphBuilder, net: Trunk) -> tuple[str, str]:
    """Add a trunk to input `image`; return what heads take and the descriptors."""
    backbone = net.backbone
    cells = g.op("SpaceToDepth", ["image"], "cells", blocksize=4)
    stem = g.blocks(cells, backbone.stem, "stem")
    middle = g.blocks(stem, backbone.middle, "middle")
    context = g.blocks(middle, backbone.context, "context")
    lifted = g.upsample2(g.conv(context, net.lift, "lift"), "enlarge")
    mixed = g.blocks(g.op("Add", [middle, lifted], "add"), net.mix, "mix")
    described = g.conv(mixed, net.descriptors, "describe")
    return mixed, g.normalise(described, "describe")


def retrieval_graph(
    net: RetrievalNet, *, width: int = 320, height: int = 240
) -> onnx.ModelProto:
    """Return the ONNX model of a retrieval network.

    Parameters
    ----------
    net : RetrievalNet
        Its batch statistics are those of evaluation.
    width, height : int
        Of its input, px.

    Returns
    -------
    ModelProto
        Input `image` (1, 1, H, W), output `global_descriptor` (1, dim), L2-normalised.
    """
    g = GraphBuilder()
    _, local = _add_trunk(g, net)
    words, dim = net.centres.shape
    cells = (height // STRIDE) * (width // STRIDE)
    share = g.op("Softmax", [g.conv(local, net.assign, "assign")], "share", axis=1)
    weight = g.reshape(share, (1, words + 1, cells), "weight")
    weight = g.op("Slice", [weight, *g.span(0, words, axis=1)], "useful")
    rows = g.op(
        "Transpose",
        [g.reshape(local, (1, dim, cells), "rows")],
        "rows.last",
        perm=[0, 2, 1],
    )
    total = g.op("MatMul", [weight, rows], "total")
    mass = g.op("ReduceSum", [weight, g.whole("mass.axes", [2])], "mass", keepdims=1)
    centres = g.constant("centres", net.centres.detach().numpy())
    residual = g.op(
        "Sub", [total, g.op("Mul", [mass, centres], "expected")], "residual"
    )
    gathered = g.reshape(
        g.normalise(residual, "residual", axis=2), (1, words * dim), "gathered"
    )
    projected = g.op(
        "Gemm",
        [
            gathered,
            g.constant("project.weight", net.project.weight.detach().numpy()),
            g.constant("project.bias", net.project.bias.detach().numpy()),
        ],
        "project",
        transB=1,
    )
    return g.finish(
        name="edgeloc-retrieval",
        inputs=[("image", (1, 1, height, width))],
        outputs=[
            (
                g.normalise(projected, "project"),
                "global_descriptor",
                (1, net.project.out_features),
            )
        ],
    )


def write_feature_model(
    net: FeatureNet, folder: Path, *, name: str, source: str
) -> Path:
    """Write a feature network as ONNX with its manifest; return the manifest's path.

    Parameters
    ----------
    net : FeatureNet
        Its batch statistics are those of evaluation.
    folder : Path
        Made when it is not there.
    name : str
        Of the model.
    source : str
        One line: where the weights come from.
    """
    manifest = ModelManifest(
        name=name,
        role="features",
        file="",
        sha256="",
        precision="fp32",
        flavour="any",
        input=InputSpec(size_multiple=SIZE_MULTIPLE),
        decoder="edgeloc",
        outputs={o: o for o in ("descriptors", "reliability")},
        descriptor_dim=net.descriptors.out_channels,
        match_ratio=MATCH_RATIO,
        license=LICENSE,
        source=source,
    )
    return write_model(folder, manifest, to_bytes(shorten(feature_graph(net))))


def write_retrieval_model(
    net: RetrievalNet, folder: Path, *, name: str, source: str, size: tuple[int, int]
) -> Path:
    """Write a retrieval network as ONNX with its manifest; return the manifest's path.

    Parameters
    ----------
    net : RetrievalNet
        Its batch statistics are those of evaluation.
    folder : Path
        Made when it is not there.
    name : str
        Of the model.
    source : str
        One line: where the weights come from.
    size : (int, int)
        Height and width of its input.
    """
    height, width = size
    graph = shorten(retrieval_graph(net, width=width, height=height))
    manifest = ModelManifest(
        name=name,
        role="retrieval",
        file="",
        sha256="",
        precision="fp32",
        flavour="any",
        input=InputSpec(size_multiple=SIZE_MULTIPLE, size=size),
        decoder="vector",
        outputs={"global_descriptor": "global_descriptor"},
        descriptor_dim=net.project.out_features,
        match_ratio=None,
        license=LICENSE,
        source=source,
    )
    return write_model(folder, manifest, to_bytes(graph))
