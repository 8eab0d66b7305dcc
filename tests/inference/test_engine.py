"""Engines on disk: what is stale, foreign, cut off or forged is named, never opened."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from model_factory import FEATURES, RETRIEVAL, feature_network

from edgeloc.errors import BackendUnavailableError, EdgelocError, ModelError
from edgeloc.inference.engine import (
    EngineKey,
    EngineRecord,
    InputSizes,
    decode_record,
    encode_record,
    engine_files,
    input_sizes,
    read_engine,
    staleness,
)
from edgeloc.inference.manifest import load_model
from edgeloc_tools.learn.engines import write_engine
from edgeloc_tools.model_files import write_model

KEY = EngineKey(
    model_sha256="a" * 64,
    backend="tensorrt",
    tensorrt="10.3.0",
    compute_capability="8.7",
)
RECORD = EngineRecord(
    key=KEY,
    model="tiny-features",
    network="tiny-features-int8-tensorrt",
    network_sha256="b" * 64,
    precision="int8",
    strongly_typed=True,
    sizes=InputSizes(least=(64, 64), usual=(480, 640), most=(480, 640)),
    layers={"int8": 3},
    agreement=0.9991,
)
PLAN = bytes(range(256)) * 40


@pytest.fixture
def files(tmp_path):
    model = load_model(write_model(tmp_path, FEATURES, feature_network()))
    files = engine_files(model, "tensorrt", folder=None)
    assert files.plan == tmp_path / "engines" / "tiny-features-tensorrt.plan"
    write_engine(files, RECORD, PLAN)
    return files


def refusal(files, key=KEY) -> str:
    with pytest.raises(ModelError) as caught:
        read_engine(files, key)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def test_what_was_written_is_read(files):
    engine = read_engine(files, KEY)
    assert engine.plan == PLAN
    assert replace(engine.record, sha256="0" * 64, num_bytes=1) == RECORD
    assert decode_record(encode_record(engine.record)) == engine.record


def test_a_new_plan_makes_what_was_compiled_of_the_old_one_void(files):
    files.cache.write_bytes(b"kernels")
    write_engine(files, RECORD, PLAN[::-1])
    assert not files.cache.exists()
    assert read_engine(files, KEY).plan == PLAN[::-1]


def test_no_engine_is_no_broken_one(files):
    files.record.unlink()
    with pytest.raises(BackendUnavailableError, match=r"\.json: no such engine"):
        read_engine(files, KEY)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"model_sha256": "c" * 64},
            "was built for another version of the model (SHA-256 aaaaaaaaaaaa, here "
            "cccccccccccc)",
        ),
        (
            {"tensorrt": "10.7.0"},
            "was built by TensorRT 10.3.0, here 10.7.0 is installed",
        ),
        (
            {"compute_capability": "8.6"},
            "was built for a GPU of compute capability 8.7, this one has 8.6",
        ),
        (
            {"backend": "tensorrt-rtx", "tensorrt": "1.7.1"},
            "was built by tensorrt, here tensorrt-rtx is to run it",
        ),
        (
            {"tensorrt": "11.4.0", "compute_capability": "11.0"},
            "was built by TensorRT 10.3.0, here 11.4.0 is installed and for a GPU of "
            "compute capability 8.7, this one has 11.0",
        ),
    ],
)
def test_a_stale_engine_is_named_with_the_reason(files, change, said):
    key = replace(KEY, **change)
    assert staleness(RECORD, key) == said
    with pytest.raises(BackendUnavailableError) as caught:
        read_engine(files, key)
    assert str(caught.value) == f"{files.plan}: {said}"


def test_a_plan_of_another_record_is_refused(files):
    """Two builds at once, or a copy that mixed two machines."""
    files.plan.write_bytes(PLAN[::-1])
    assert refusal(files).endswith(
        "is not the plan that tiny-features-tensorrt.json was written for (SHA-256)"
    )


@pytest.mark.parametrize("num_bytes", [0, 1, len(PLAN) - 1, len(PLAN) + 1])
def test_a_plan_that_was_cut_off_is_refused(files, num_bytes):
    files.plan.write_bytes((PLAN + b"x")[:num_bytes])
    size = "more" if num_bytes > len(PLAN) else str(num_bytes)
    assert f"has {size} bytes, tiny-features-tensorrt.json says {len(PLAN)}" in refusal(
        files
    )


def test_a_plan_that_is_gone_is_named(files):
    files.plan.unlink()
    assert "tensorrt.plan: cannot be read (No such file" in refusal(files)


def test_every_cut_of_a_record_is_an_error(files):
    """JSON may end anywhere: never a crash, never an engine."""
    raw = files.record.read_bytes().rstrip()
    for end in range(len(raw)):
        with pytest.raises(ModelError):
            decode_record(raw[:end])


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("format", "edgeloc-model", "format is 'edgeloc-model', expected one of edge"),
        ("version", 2, "version is 2, expected 1, all that this edgeloc reads"),
        (
            "backend",
            "onnx",
            "backend is 'onnx', expected one of tensorrt, tensorrt-rtx",
        ),
        ("precision", "int4", "precision is 'int4', expected one of fp32, fp16, int8"),
        ("model_sha256", "abc", "model_sha256 is 'abc', expected 64 lower-case hexade"),
        ("strongly_typed", 1, "strongly_typed is 1, expected true or false"),
        ("num_bytes", 0, "num_bytes is 0, expected an integer from 1 to"),
        ("sizes", [[1, 2]], "sizes is [[...]], expected a list of 3"),
        ("sizes", [[64, 64], [32, 32], [64, 64]], "sizes (64, 64), (32, 32), (64, 64)"),
        ("layers", {"int8": -1}, "layers.int8 is -1, expected an integer from 0"),
        ("agreement", "good", "agreement is 'good', expected a number"),
        ("tensorrt", 10.3, "tensorrt is 10.3, expected text"),
    ],
)
def test_a_wrong_field_of_a_record_is_named(files, key, value, said):
    document = json.loads(files.record.read_bytes())
    files.record.write_text(json.dumps({**document, key: value}))
    assert f"{files.record}: {said}" in refusal(files)


def test_missing_and_unknown_fields_are_refused(files):
    document = json.loads(files.record.read_bytes())
    for key in document:
        less = {name: value for name, value in document.items() if name != key}
        with pytest.raises(EdgelocError):
            decode_record(json.dumps(less).encode())
    more = json.dumps({**document, "extra": 1}).encode()
    with pytest.raises(ModelError, match="extra is not a field of the format"):
        decode_record(more)


def test_a_record_without_end_is_not_read(files):
    files.record.write_bytes(b" " * (70 << 10))
    assert "has more than 65536 bytes" in refusal(files)


def test_sizes_go_by_camera_and_network():
    free = FEATURES.input  # multiples of 8
    sizes = input_sizes(free, width=641, height=479)
    assert sizes == InputSizes(least=(64, 64), usual=(480, 648), most=(648, 648))
    assert sizes.takes(64, 648)  # a strip, as TRACK looks at
    assert sizes.takes(648, 480)  # a picture that is turned
    assert not sizes.takes(656, 480)
    assert not sizes.takes(56, 648)
    small = input_sizes(free, width=60, height=40)
    assert small == InputSizes(least=(40, 40), usual=(40, 64), most=(64, 64))
    own = input_sizes(RETRIEVAL.input, width=641, height=479)
    assert own.least == own.usual == own.most == (24, 32)
    with pytest.raises(ModelError, match="do not ascend"):
        InputSizes(least=(64, 64), usual=(32, 32), most=(64, 64))
