"""The bench of GPUs, on a machine that may have none: its parts run on the CPU."""

from __future__ import annotations

import pytest

from edgeloc.inference import cuda
from edgeloc.inference.backend import BackendOptions
from edgeloc_tools.learn import bench_gpu


@pytest.fixture
def no_driver(monkeypatch):
    monkeypatch.setattr(cuda, "_LIBRARIES", ("libno-such-driver.so.1",))
    cuda.open_device.cache_clear()
    yield
    cuda.open_device.cache_clear()


def test_without_a_gpu_it_is_one_line(no_driver, tmp_path, capsys):
    assert bench_gpu.main(["--out", str(tmp_path / "out")]) == 4
    captured = capsys.readouterr()
    assert captured.err.startswith(
        "bench_gpu: error: no NVIDIA driver: libcuda.so.1 is"
    )
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


def test_backends_are_compared_and_timed():
    """The same code that measures a GPU, with two contenders of the CPU."""
    images = bench_gpu.demo_frames(2)
    assert len(images) == 2
    int8 = bench_gpu.open_contender("ort-cpu int8", BackendOptions(backend="ort-cpu"))
    reference = bench_gpu.truth()
    assert reference.features.manifest.precision == "fp32"
    same = bench_gpu.agreement(reference, reference, images)
    assert set(same) == {"global_descriptor", "descriptors", "reliability"}
    assert min(same.values()) == pytest.approx(1.0, abs=1e-9)
    close = bench_gpu.agreement(reference, int8, images)
    assert 0.9 < close["descriptors"] < 0.99999
    assert 0.9 < close["global_descriptor"] < 0.99999
    times = bench_gpu.time_stages([int8, reference], images, rounds=3)
    assert list(times) == ["ort-cpu int8", "fp32"]
    for stages in times.values():
        assert tuple(stages) == bench_gpu.STAGES
        # A frame is all stages, one after the other on the CPU.
        assert stages["frame"][0] > stages["features"][0] * 0.8
        assert all(0 < median <= p95 for median, p95 in stages.values())
    text = bench_gpu.table(times, {"ort-cpu int8": close, "fp32": same})
    header, _, first, second = text.strip().splitlines()
    assert header.startswith("| backend | retrieval ms | features ms | matching ms | f")
    assert first.startswith("| ort-cpu int8 | ")
    assert second.rstrip(" |").endswith("1.0000 | 1.0000 | 1.0000")


def test_what_is_left_out_has_a_reason(no_driver, tmp_path):
    images = bench_gpu.demo_frames(1)
    found, missing = bench_gpu.contenders(None, images, out=tmp_path, threads=1)
    assert found[0].name == "ort-cpu int8"
    left_out = {reason.partition(": ")[0]: reason for reason in missing}
    assert {"tensorrt", "tensorrt-rtx"} <= set(left_out)
    for reason in left_out.values():
        assert "--backend auto" in reason  # the fix
        assert "\n" not in reason
    assert list(tmp_path.iterdir()) == []
