"""Networks and their ONNX graphs."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from edgeloc.inference.manifest import load_model
from edgeloc_tools.learn.export import (
    feature_graph,
    retrieval_graph,
    write_feature_model,
    write_retrieval_model,
)
from edgeloc_tools.learn.networks import SIZES, TRUNK, RetrievalNet, feature_net


def trained_a_little(net: torch.nn.Module) -> torch.nn.Module:
    """Statistics of batch normalisation that are not the initial ones."""
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(2, 1, 96, 128) * 2)
    return net.eval()


def run(model: onnx.ModelProto, image: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"image": image})


@pytest.mark.parametrize("size", sorted(SIZES))
def test_the_feature_graph_does_what_the_network_does(size, rng):
    net = trained_a_little(feature_net(size))
    model = feature_graph(net)
    for height, width in ((96, 128), (64, 176)):
        image = rng.random((1, 1, height, width), np.float32)
        with torch.no_grad():
            expected = net(torch.from_numpy(image))
        for torch_out, onnx_out in zip(expected, run(model, image), strict=True):
            assert onnx_out.shape == tuple(torch_out.shape)
            np.testing.assert_allclose(onnx_out, torch_out.numpy(), atol=2e-5)
        assert expected[0].shape == (1, 64, height // 8, width // 8)
        assert expected[1].shape == (1, 1, height // 8, width // 8)
        np.testing.assert_allclose(expected[0].norm(dim=1), 1.0, atol=1e-5)


def test_the_retrieval_graph_does_what_the_network_does(rng):
    net = RetrievalNet(SIZES["nano"], words=8, dim=32)
    torch.manual_seed(1)
    torch.nn.init.normal_(net.centres, std=0.3)
    net = trained_a_little(net)
    image = rng.random((1, 1, 96, 128), np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(image)).numpy()
    (got,) = run(retrieval_graph(net, width=128, height=96), image)
    assert got.shape == (1, 32)
    np.testing.assert_allclose(got, expected, atol=2e-5)
    assert np.linalg.norm(got) == pytest.approx(1.0, abs=1e-5)


def test_graphs_are_plain_chains_with_telling_names():
    model = feature_graph(feature_net("nano").eval())
    kinds = {node.op_type for node in model.graph.node}
    assert kinds == {
        *("SpaceToDepth", "Conv", "Relu", "Resize", "Add", "ReduceL2", "Max", "Div")
    }
    assert all(node.name for node in model.graph.node)
    assert model.opset_import[0].version == 17
    assert [o.name for o in model.graph.output] == ["descriptors", "reliability"]


def test_both_networks_have_the_same_trunk():
    features = feature_net("nano").state_dict()
    places = RetrievalNet(SIZES["nano"]).state_dict()
    shared = {name for name in features if name.startswith(TRUNK)}
    assert shared == {name for name in places if name.startswith(TRUNK)}
    assert shared == features.keys() & places.keys()
    assert features.keys() - shared == {"reliability.weight", "reliability.bias"}
    # Checkpoints hold these names.
    assert {"backbone.stem.0.weight", "lift.bias", "mix.0.1.running_var"} <= shared
    assert "descriptors.weight" in shared


def test_sizes_grow():
    counts = [
        sum(p.numel() for p in feature_net(size).parameters())
        for size in ("nano", "small", "base")
    ]
    assert counts == sorted(counts)
    assert counts[1] < 1_000_000


def test_written_models_are_accepted_and_the_same_twice(tmp_path):
    net = feature_net("nano").eval()
    first = write_feature_model(net, tmp_path / "a", name="f", source="a test")
    again = write_feature_model(net, tmp_path / "b", name="f", source="a test")
    assert first.read_bytes() == again.read_bytes()
    model = load_model(first)
    assert model.manifest.descriptor_dim == 64
    assert set(model.manifest.outputs) == {"descriptors", "reliability"}
    assert model.network_path.read_bytes() == (tmp_path / "b/f.onnx").read_bytes()
    places = RetrievalNet(SIZES["nano"], words=4, dim=16).eval()
    path = write_retrieval_model(
        places, tmp_path / "c", name="r", source="a test", size=(96, 128)
    )
    assert load_model(path).manifest.input.size == (96, 128)
