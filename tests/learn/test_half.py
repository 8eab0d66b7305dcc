"""FP16 networks."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from handmade_networks import Graph, residual_model
from onnx import TensorProto

from edgeloc.errors import ModelError
from edgeloc_tools.learn.graph import make_session, session_options, to_bytes
from edgeloc_tools.learn.half import half_model


def outputs(model, image):
    session = make_session(
        to_bytes(model), options=session_options(threads=1), where="test"
    )
    return session.run(None, {"image": image})


def types(model):
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.value_info, *graph.output)
    }


def test_says_nearly_the_same(features, pictures):
    image = pictures[0][None, None].astype(np.float32) / 255
    half = half_model(features)
    for exact, rounded in zip(
        outputs(features, image), outputs(half, image), strict=True
    ):
        assert rounded.dtype == np.float32
        assert np.abs(exact - rounded).max() < 3e-3 * np.abs(exact).max()


def test_is_half_as_large(features):
    assert len(to_bytes(half_model(features))) < 0.55 * len(to_bytes(features))


def test_computes_in_float16_but_for_the_normalisation(features):
    half = half_model(features)
    kinds = types(half)
    assert kinds["image"] == kinds["descriptors"] == TensorProto.FLOAT
    for name in ("fold.relu", "project.out", "gather.out"):
        assert kinds[name] == TensorProto.FLOAT16
    for name in ("norm", "max"):
        assert kinds[name] == TensorProto.FLOAT


def test_no_needless_casts(features):
    """To float16 once behind the image, back once per output."""
    half = half_model(features)
    casts = [node.input[0] for node in half.graph.node if node.op_type == "Cast"]
    assert sorted(casts) == [
        "cells",
        "gather.out",
        "reliability_half",
    ]


def test_resizing_keeps_its_scales_in_float32(as_truth):
    half = half_model(as_truth(residual_model()))
    (resize,) = [node for node in half.graph.node if node.op_type == "Resize"]
    weights = {t.name: t.data_type for t in half.graph.initializer}
    assert weights[resize.input[2]] == TensorProto.FLOAT
    assert types(half)[resize.output[0]] == TensorProto.FLOAT16


def test_same_bytes_twice(features):
    assert to_bytes(half_model(features)) == to_bytes(half_model(features))


def test_a_weight_that_does_not_fit_is_named(as_truth):
    g = Graph()
    g.conv("image", "huge", np.full((1, 1, 1, 1), 1e5), out="out")
    shape = [1, 1, "H", "W"]
    truth = as_truth(g.model({"image": shape}, {"out": shape}))
    with pytest.raises(ModelError, match=r"'huge\.weight' reaches 1e\+05"):
        half_model(truth)
