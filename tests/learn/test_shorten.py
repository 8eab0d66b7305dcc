"""Weights keep the digits that a network needs, and files pack better."""

from __future__ import annotations

import zlib

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from edgeloc.inference.manifest import load_model, shipped_manifests
from edgeloc_tools.learn.shorten import main, rounded, shorten


def test_weights_are_rounded_to_the_nearest_of_eleven_bits(rng):
    weights = rng.normal(0.0, 0.1, (64, 32)).astype(np.float32)
    short = rounded(weights)
    assert np.all(np.abs(short - weights) <= np.abs(weights) * 2.0**-11)
    # Which is as near as float16 comes, where that has no smaller steps.
    large = np.abs(weights) > 2.0**-14
    half = np.abs(weights.astype(np.float16).astype(np.float32) - weights)
    assert np.all(np.abs(short - weights)[large] <= half[large])
    np.testing.assert_array_equal(rounded(short), short)
    exact = np.array([0.0, -0.0, 1.0, -1.5, 2.0**-30], np.float32)
    np.testing.assert_array_equal(rounded(exact), exact)
    assert rounded(np.array([2.0 - 2.0**-20], np.float32)) == 2.0


def fp32_models():
    models = [load_model(path) for path in shipped_manifests()]
    return [m for m in models if m.manifest.precision == "fp32"]


@pytest.mark.parametrize("model", fp32_models(), ids=lambda m: m.manifest.name)
def test_shipped_networks_are_short(model):
    """Otherwise `python -m edgeloc_tools.learn.shorten` was forgotten."""
    for tensor in onnx.load(str(model.network_path)).graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.dtype == np.float32 and weights.ndim > 1:
            np.testing.assert_array_equal(rounded(weights), weights, tensor.name)


@pytest.fixture
def long_model(tmp_path, rng):
    """A shipped network with random digits where they were cut off."""
    model = fp32_models()[0]
    network = onnx.load(str(model.network_path))
    for tensor in network.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.dtype == np.float32 and weights.ndim > 1:
            noise = rng.uniform(-1, 1, weights.shape) * 2.0**-12
            weights = (weights * (1 + noise)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    return network


def outputs(network, image):
    session = onnxruntime.InferenceSession(
        network.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"image": image})


def test_a_network_says_the_same_and_packs_better(long_model, rng):
    short = shorten(long_model)
    image = rng.random((1, 1, 96, 128), np.float32)
    before, after = outputs(long_model, image)[0], outputs(short, image)[0]
    cosine = (before * after).sum(axis=1)
    assert cosine.min() > 0.9999
    sizes = [len(zlib.compress(m.SerializeToString())) for m in (long_model, short)]
    assert sizes[1] < 0.7 * sizes[0]


def test_files_are_shortened_in_place(long_model, tmp_path):
    from edgeloc_tools.model_files import write_model

    manifest = fp32_models()[0].manifest
    path = write_model(tmp_path, manifest, long_model.SerializeToString())
    assert main([str(path)]) == 0
    short = load_model(path)  # the manifest has the new sha256
    assert short.manifest.name == manifest.name
    weights = numpy_helper.to_array(
        onnx.load(str(short.network_path)).graph.initializer[0]
    )
    np.testing.assert_array_equal(rounded(weights), weights)
