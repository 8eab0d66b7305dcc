"""Which backend runs a network where there is, or is not, a GPU."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from model_factory import FEATURES, RETRIEVAL, feature_network, retrieval_network

from edgeloc.config import BACKEND_CHOICES
from edgeloc.errors import BackendUnavailableError, ModelError
from edgeloc.features.learned import LearnedRetrieval
from edgeloc.inference import cuda, trt
from edgeloc.inference.backend import BackendOptions, choose_backend, open_backend
from edgeloc.inference.manifest import HeadSpec, load_model, shipped_folder
from edgeloc.inference.network import open_network
from edgeloc.inference.ort import tensorrt_options
from edgeloc.inference.variants import base_name, find_variant
from edgeloc_tools.model_files import write_model

CPU = BackendOptions(backend="ort-cpu")
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 56), dtype=np.uint8)


@pytest.fixture
def no_driver(monkeypatch):
    """As on a machine without a GPU, also where there is one."""
    monkeypatch.setattr(cuda, "_LIBRARIES", ("libno-such-driver.so.1",))
    cuda.open_device.cache_clear()
    yield
    cuda.open_device.cache_clear()


@pytest.fixture
def no_tensorrt(monkeypatch):
    monkeypatch.setattr(trt, "MODULES", {n: f"no_such_{n}" for n in trt.MODULES})
    trt.open_tensorrt.cache_clear()
    yield
    trt.open_tensorrt.cache_clear()


@pytest.mark.parametrize(
    ("backend", "fix"),
    [
        (
            "tensorrt",
            "on a Jetson: sudo apt install python3-libnvinfer, and a venv with",
        ),
        ("tensorrt-rtx", "pip install tensorrt-rtx"),
    ],
)
def test_tensorrt_that_is_not_installed_is_one_line_with_the_fix(
    no_tensorrt, backend, fix
):
    with pytest.raises(BackendUnavailableError) as caught:
        choose_backend(backend)
    message = str(caught.value)
    assert message.startswith(f"--backend {backend}: No module named ")
    assert fix in message
    assert message.endswith(", or use --backend auto")
    assert "\n" not in message


def test_a_machine_without_a_driver_says_so(no_driver):
    with pytest.raises(BackendUnavailableError) as caught:
        cuda.open_device()
    assert str(caught.value) == (
        "no NVIDIA driver: libcuda.so.1 is not on this machine; install the driver of "
        "the GPU, in a container start it with --runtime nvidia or --gpus all"
    )


def test_tensorrt_is_not_imported_where_no_gpu_is(no_driver, monkeypatch):
    """Its import takes a hundred MB, and "auto" must not pay that on a CPU."""
    monkeypatch.setattr(
        trt, "MODULES", {"tensorrt": "colorsys", "tensorrt-rtx": "nntp"}
    )
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"]
    )
    choice = choose_backend("auto")
    assert choice.name == "ort-cpu"
    assert choice.reason.startswith(
        "this onnxruntime has no CUDAExecutionProvider; tensorrt: no NVIDIA driver: "
    )
    assert "tensorrt-rtx" not in choice.reason  # not installed: nobody expects it
    assert "colorsys" not in sys.modules
    with pytest.raises(BackendUnavailableError, match="--backend tensorrt: no NVIDIA"):
        choose_backend("tensorrt")
    assert "colorsys" not in sys.modules


def test_auto_prefers_onnxruntime_with_cuda_to_the_cpu(no_tensorrt, monkeypatch):
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"]
    )
    choice = choose_backend("auto")
    assert choice.name == "ort-cuda"
    assert choice.reason == "this onnxruntime has CUDAExecutionProvider"


@pytest.mark.parametrize("backend", [b for b in BACKEND_CHOICES if b != "auto"])
def test_every_backend_is_there_or_says_what_to_do(tmp_path, backend):
    path = write_model(tmp_path, RETRIEVAL, retrieval_network())
    try:
        opened = open_backend(load_model(path), BackendOptions(backend=backend))
    except BackendUnavailableError as exc:
        message = str(exc)
        assert message.startswith(
            f"--backend {backend}: "
        ) or "no such engine; run" in (message)
        assert "\n" not in message
        assert backend != "ort-cpu"
        return
    assert opened.describe().startswith(backend)


def test_what_is_submitted_is_what_run_gives(tmp_path):
    path = write_model(tmp_path, FEATURES, feature_network())
    network = open_network(path, role="features", options=CPU)
    assert not network.asynchronous
    submitted = network.submit(IMAGE)
    other = network.submit(IMAGE[::-1])
    expected, given = network.run(IMAGE)
    got, given_too = submitted.collect()
    assert np.array_equal(given.tensor, given_too.tensor)
    for name, array in expected.items():
        assert np.array_equal(got[name], array)
    assert not np.array_equal(other.collect()[0]["descriptors"], got["descriptors"])


def test_retrieval_begins_early_only_where_that_saves_time(tmp_path, monkeypatch):
    path = write_model(tmp_path, RETRIEVAL, retrieval_network())
    network = open_network(path, role="retrieval", options=CPU)
    retrieval = LearnedRetrieval(network)
    nothing = np.zeros((0, 1), np.float32)
    expected = retrieval.global_descriptor(IMAGE, nothing)
    assert retrieval.begin(IMAGE) is None
    monkeypatch.setattr(type(network), "asynchronous", True)
    begun = retrieval.begin(IMAGE)
    assert begun is not None
    # What was begun is taken, whatever image comes later.
    later = retrieval.global_descriptor(IMAGE[::-1], nothing, begun=begun)
    assert np.array_equal(later, expected)


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("edgeloc-features-small-int8-cpu", "edgeloc-features-small"),
        ("edgeloc-features-small-int8-tensorrt", "edgeloc-features-small"),
        ("edgeloc-features-small-fp16", "edgeloc-features-small"),
        ("mine-fp32", "mine"),
        ("int8-mine", "int8-mine"),
    ],
)
def test_variants_share_a_name(name, base):
    assert base_name(name) == base


def test_shipped_models_have_a_flavour_for_each_runtime():
    for role in ("features", "retrieval"):
        path = shipped_folder() / f"edgeloc-{role}-small-int8-cpu.json"
        model = load_model(path)
        for precision, flavour in (("fp32", "any"), ("int8", "tensorrt")):
            found = find_variant(model, [("fp16", "any"), (precision, flavour)])
            assert found is not None
            assert (found.manifest.precision, found.manifest.flavour) == (
                precision,
                flavour,
            )


def test_a_site_with_a_shipped_model_has_its_variants(tmp_path):
    """A site carries one file; the others are found by its SHA-256, not by its name."""
    shipped = load_model(shipped_folder() / "edgeloc-features-small-int8-cpu.json")
    copy = write_model(tmp_path, shipped.manifest, shipped.network_path.read_bytes())
    found = find_variant(load_model(copy), [("int8", "tensorrt")])
    assert found is not None
    assert found.manifest_path.parent == shipped_folder()
    other = write_model(tmp_path, shipped.manifest, feature_network())
    assert find_variant(load_model(other), [("int8", "tensorrt")]) is None


def test_a_variant_beside_the_model_comes_before_a_shipped_one(tmp_path):
    shipped = load_model(shipped_folder() / "edgeloc-features-small-int8-cpu.json")
    copy = write_model(tmp_path, shipped.manifest, shipped.network_path.read_bytes())
    own = replace(
        shipped.manifest,
        name="edgeloc-features-small-int8-tensorrt",
        flavour="tensorrt",
    )
    write_model(tmp_path, own, feature_network())
    (tmp_path / "notes.json").write_text("{}")  # not ours, no reason to stop
    found = find_variant(load_model(copy), [("int8", "tensorrt")])
    assert found is not None
    assert found.manifest_path.parent == tmp_path


def test_onnxruntimes_tensorrt_gets_sizes_and_a_folder(tmp_path):
    shipped = load_model(shipped_folder() / "edgeloc-features-small-int8-tensorrt.json")
    options = tensorrt_options(shipped, folder=tmp_path)
    assert options["trt_engine_cache_path"] == str(tmp_path)
    assert (options["trt_int8_enable"], options["trt_fp16_enable"]) == ("1", "1")
    assert options["trt_profile_min_shapes"] == "image:1x1x64x64"
    assert options["trt_profile_opt_shapes"] == "image:1x1x480x640"
    assert options["trt_profile_max_shapes"] == "image:1x1x1920x1920"
    truth = load_model(shipped_folder() / "edgeloc-retrieval-small.json")
    options = tensorrt_options(truth, folder=None)
    assert options["trt_engine_cache_path"] == str(shipped_folder() / "engines")
    assert (options["trt_int8_enable"], options["trt_fp16_enable"]) == ("0", "0")
    assert "trt_profile_min_shapes" not in options  # its size is its own


def test_the_cpu_flavour_without_another_is_refused_by_onnxruntimes_tensorrt(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider"]
    )
    manifest = replace(FEATURES, precision="int8", flavour="cpu")
    model = load_model(write_model(tmp_path, manifest, feature_network()))
    with pytest.raises(ModelError, match="flavour is 'cpu', which TensorRT refuses"):
        open_backend(model, BackendOptions(backend="ort-tensorrt"))


def test_tensorrt_that_is_too_old_is_named(monkeypatch):
    class Old:
        __version__ = "8.6.1"

    monkeypatch.setattr(trt, "import_module", lambda name: Old)
    with pytest.raises(BackendUnavailableError, match=r"TensorRT 8\.6\.1 is here"):
        trt.TensorRt("tensorrt")


@pytest.mark.parametrize("backend", ["tensorrt", "ort-cuda", "auto"])
def test_heads_run_on_the_cpu_whatever_the_others_do(tmp_path, caplog, backend):
    """They are a few products of matrices, and need no engine."""
    model = load_model(write_model(tmp_path, RETRIEVAL, retrieval_network()))
    spec = HeadSpec(family="orb")
    head = replace(model, manifest=replace(model.manifest, role="regress", head=spec))
    opened = open_backend(head, BackendOptions(backend=backend))
    assert opened.describe().startswith("ort-cpu")
    assert caplog.text == ""


def test_networks_of_a_site_that_take_pictures_run_where_others_do(
    tmp_path, monkeypatch
):
    providers = ["CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    model = load_model(write_model(tmp_path, RETRIEVAL, retrieval_network()))
    spec = HeadSpec(family="")
    whole = replace(model, manifest=replace(model.manifest, role="regress", head=spec))
    with pytest.raises(BackendUnavailableError, match="--backend ort-cuda"):
        open_backend(whole, BackendOptions(backend="ort-cuda"))
