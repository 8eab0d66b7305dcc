"""Networks and images for the tests of quantization."""

from __future__ import annotations

import pytest
from handmade_networks import blobs, feature_model, residual_model

from edgeloc_tools.learn.graph import load_truth


@pytest.fixture
def as_truth(tmp_path):
    """Write a model and load it as the quantizer does."""

    def load(model):
        path = tmp_path / "truth.onnx"
        path.write_bytes(model.SerializeToString())
        return load_truth(path)

    return load


@pytest.fixture
def residual(as_truth):
    return as_truth(residual_model())


@pytest.fixture
def features(as_truth):
    return as_truth(feature_model())


@pytest.fixture
def pictures():
    return [blobs(seed) for seed in range(6)]
