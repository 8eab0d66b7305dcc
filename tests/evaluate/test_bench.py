"""The benchmark: ratios, the shape that networks are compared with, the machine."""

import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from model_factory import (
    FEATURES,
    feature_network,
    write_features,
    write_retrieval,
)

from edgeloc_tools.evaluate import bench
from edgeloc_tools.evaluate.bench_networks import (
    THIN,
    network_kernels,
    precision_pairs,
    shipped_networks,
)
from edgeloc_tools.evaluate.machine import cpu_flags, integer_note
from edgeloc_tools.evaluate.thin_network import thin_network
from edgeloc_tools.evaluate.timing import median_ratio, summarize, time_kernels
from edgeloc_tools.model_files import write_model


def test_ratios_are_of_the_same_round(rng):
    """Load that slows both down leaves the ratio alone."""
    load = rng.uniform(1, 5, 40)
    base = (1e6 * load).astype(int)
    values = (2.5e6 * load * rng.normal(1, 0.02, 40)).astype(int)
    ratio, low, high = median_ratio(values, base)
    assert low <= ratio <= high
    assert ratio == pytest.approx(2.5, rel=0.02)
    assert high - low < 0.1
    rows = summarize({"base": list(base), "x": list(values)}, reference="base")
    assert [row.name for row in rows] == ["base", "x"]
    assert rows[0].ratio == rows[0].ratio_high == 1.0
    assert rows[1].ratio == pytest.approx(ratio)
    assert rows[1].median_ms == pytest.approx(np.median(values) * 1e-6)


def test_kernels_run_once_a_round_and_once_before():
    calls = {"a": 0, "b": 0}

    def count(name):
        calls[name] += 1

    times = time_kernels({n: lambda n=n: count(n) for n in calls}, rounds=5)
    assert calls == {"a": 6, "b": 6}
    assert [len(values) for values in times.values()] == [5, 5]


def test_the_thin_network_has_the_published_cost(tmp_path):
    network, macs = thin_network(480, 640)
    assert 1.2e9 < macs < 1.4e9
    network, small = thin_network(96, 64)
    assert small * 50 == macs
    session = onnxruntime.InferenceSession(network)
    image = np.random.default_rng(0).random((1, 1, 96, 64), np.float32)
    shapes = [out.shape for out in session.run(None, {"image": image})]
    assert shapes == [(1, 64, 12, 8), (1, 1, 12, 8), (1, 65, 12, 8)]


def test_int8_is_paired_with_the_model_that_it_was_made_of():
    names = [
        "orb-1000",
        "edgeloc-small (fp32): network",
        "edgeloc (fp32): network",
        "edgeloc-small-int8 (int8): network",
        "edgeloc-small-int8 (int8): global descriptor",
    ]
    assert precision_pairs(names) == [
        ("edgeloc-small-int8 (int8): network", "edgeloc-small (fp32): network")
    ]


def test_the_decoder_is_what_features_take_longer():
    name = "small (fp32): network"
    times = {
        name: [10_000_000, 30_000_000, 20_000_000],
        f"{name} and 1000 features": [14_000_000, 33_000_000, 22_000_000],
        "vector (fp32): network": [1, 2, 3],
    }
    assert bench.decoder_lines(times) == [f"{name}: its decoder alone 3.00 ms"]


def test_every_network_has_its_kernels(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (96, 128), dtype=np.uint8)
    paths = [write_features(tmp_path), write_retrieval(tmp_path)]
    gpu = replace(FEATURES, name="gpu", flavour="tensorrt")
    paths.append(write_model(tmp_path, gpu, feature_network()))
    models = shipped_networks(paths)
    assert [m.name for _, m in models] == ["tiny-features", "tiny-retrieval"]
    (tmp_path / "thin.onnx").write_bytes(thin_network(96, 128)[0])
    kernels = network_kernels(image, models, threads=1, thin=tmp_path / "thin.onnx")
    assert list(kernels) == [
        "orb-1000",
        "sift-2000",
        "tiny-features (fp32): network",
        "tiny-features (fp32): network and 1000 features",
        "tiny-retrieval (fp32): network",
        "tiny-retrieval (fp32): network and vector",
        THIN,
    ]
    times = time_kernels(kernels, rounds=1)
    assert all(value > 0 for values in times.values() for value in values)


def test_without_models_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        bench, "shipped_networks", lambda paths: [] if paths is None else paths
    )
    monkeypatch.setattr(bench, "pipeline_kernels", lambda _grey: {bench.REFERENCE: int})
    out = tmp_path / "bench"
    code = bench.main(["--rounds", "2", "--threads", "1", "--out", str(out)])
    assert code == 0
    shown = capsys.readouterr().out
    assert "no model is shipped: only the shape is timed" in shown
    assert f"{THIN}: 1.31 GMAC" in shown
    assert (out / "bench.md").read_text() == shown
    record = json.loads((out / "bench.json").read_text())
    names = [t["name"] for t in record["networks_threads_1"]["timings"]]
    assert names == ["orb-1000", "sift-2000", THIN]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t: fpu avx2 avx_vnni\n", "with AVX-VNNI (x86): INT8 can pay"),
        ("Features\t: fp asimd asimddp\n", "with dot product (Arm): INT8 can pay"),
        ("flags\t: fpu sse2 avx2\n", "has avx2 but no instruction for products"),
        ("", "does not tell what this processor can do"),
    ],
)
def test_the_machine_says_whether_int8_can_pay(text, expected, tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert expected in integer_note(path)


def test_no_flags_without_the_file(tmp_path):
    assert cpu_flags(tmp_path / "none") == frozenset()
