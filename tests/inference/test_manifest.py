"""Model manifests: what is read, what is refused, and with which words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from model_factory import FEATURES, RETRIEVAL

from edgeloc.errors import ConfigError, ModelError
from edgeloc.inference import manifest as module
from edgeloc.inference.manifest import (
    DECODERS,
    InputSpec,
    decode_manifest,
    encode_manifest,
    load_manifest,
    load_model,
    shipped_manifests,
    shipped_model,
)
from edgeloc_tools.model_files import write_model


def document(manifest=FEATURES) -> dict:
    return json.loads(encode_manifest(manifest))


def decode(changed: dict):
    return decode_manifest(json.dumps(changed).encode())


def put(changed: dict, place: str, value: object) -> dict:
    """Set or (with `...`) drop a value at a dotted place."""
    *parents, last = place.split(".")
    inner = changed
    for key in parents:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return changed


@pytest.mark.parametrize("manifest", [FEATURES, RETRIEVAL], ids=lambda m: m.role)
def test_a_manifest_comes_back(manifest):
    again = decode_manifest(encode_manifest(manifest))
    assert replace(again, outputs=dict(again.outputs)) == manifest


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("format", "onnx", "format is 'onnx', expected one of edgeloc-model"),
        ("format", ..., "format is None, expected one of edgeloc-model"),
        ("version", 2, "version is 2, expected 1, all that this edgeloc reads"),
        ("name", "a/b", "name is 'a/b', expected 1 to 64 letters"),
        ("name", "", "name is '', expected 1 to 64 letters"),
        ("file", "../x.onnx", "file is '../x.onnx', expected 1 to 64 letters"),
        ("file", "/x.onnx", "file is '/x.onnx', expected"),
        ("file", ".x.onnx", "file is '.x.onnx', expected"),
        ("file", "x\0.onnx", "file is 'x\\x00.onnx', expected"),
        ("sha256", "A" * 64, "expected 64 lower-case hexadecimal digits"),
        ("role", "detector", "expected one of features, retrieval"),
        ("precision", "int4", "precision is 'int4', expected one of fp32, fp16, int8"),
        ("flavour", "gpu", "expected one of any, cpu, tensorrt"),
        ("decoder", "vector", "decoder is 'vector', expected one of edgeloc, xfeat"),
        ("decoder", ["edgeloc"], "decoder is ['edgeloc'], expected one of"),
        ("outputs.reliability", ..., "outputs.reliability is missing"),
        ("outputs.heat", "h", "outputs.heat is not a field of the format"),
        ("outputs.reliability", 3, "outputs.reliability is 3, expected text"),
        ("descriptor_dim", 0, "descriptor_dim is 0, expected an integer from 1"),
        ("descriptor_dim", 64.0, "descriptor_dim is 64.0, expected an integer"),
        ("match_ratio", ..., "match_ratio is missing"),
        ("match_ratio", 1.5, "match_ratio is 1.5, expected a number from 0.01 to 1"),
        ("license", ..., "license is missing"),
        ("trained_on", "x", "trained_on is not a field of the format"),
        ("input", [], "input is [], expected an object"),
        ("input.channels", 2, "input.channels is 2, expected 1 (grey) or 3 (RGB)"),
        ("input.channels", True, "input.channels is True, expected an integer"),
        ("input.mean", [0, 0], "input.mean is [0, 0], expected a list of 1"),
        ("input.std", [0.0], "input.std[0] is 0.0, expected a number from 1e-06"),
        ("input.scale", -1, "input.scale is -1, expected a number from 1e-06"),
        ("input.size", [100, 160], "input.size is [100, 160], expected multiples"),
        ("input.size", [8], "input.size is [8], expected a list of 2"),
        ("input.size", [8, 1 << 20], "expected an integer from 1 to 16384"),
        ("input.size_multiple", 0, "input.size_multiple is 0, expected"),
        ("input.dtype", "f", "input.dtype is not a field of the format"),
    ],
)
def test_what_is_wrong_is_named(place, value, message):
    with pytest.raises(ModelError) as caught:
        decode(put(document(), place, value))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


WRONG = (
    None, True, 0, -1, 1.5, 1e308, 2**64, 10**400, "", "x", "../x", "\n\0", "y" * 5000,
    [], [None], [1e9], [[[[]]]], {}, {"": 0}, "\ud800",
)  # fmt: skip


def places(value: object, at: str = "") -> list[str]:
    """Dotted places of everything in a document."""
    found = []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += [f"{at}{key}", *places(inner, f"{at}{key}.")]
    return found


@pytest.mark.parametrize("manifest", [FEATURES, RETRIEVAL], ids=lambda m: m.role)
def test_any_value_anywhere_is_refused_or_understood(manifest):
    """Never another exception, and whatever is accepted comes back the same."""
    accepted = set()
    for place in places(document(manifest)):
        for value in WRONG:
            message = ""
            try:
                decoded = decode(put(document(manifest), place, value))
            except ModelError as exc:
                message = str(exc)
            assert "\n" not in message
            assert len(message) < 300
            if message:
                continue
            accepted.add(place)
            again = decode_manifest(encode_manifest(decoded))
            assert replace(again, outputs={}) == replace(decoded, outputs={})
    assert accepted <= {
        *("name", "file", "descriptor_dim", "license", "source", "input.name"),
        *("input.scale", "input.size", "input.size_multiple"),
        *(f"outputs.{name}" for name in manifest.outputs),
    }


def test_a_retrieval_model_has_no_match_ratio():
    with pytest.raises(ModelError, match="match_ratio is only for features"):
        decode(put(document(RETRIEVAL), "match_ratio", 0.9))


def test_every_key_is_needed():
    for key in document():
        with pytest.raises(ModelError, match=key):
            decode(put(document(), key, ...))
    for key in document()["input"]:
        with pytest.raises(ModelError, match=rf"input\.{key} is missing"):
            decode(put(document(), f"input.{key}", ...))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[]", r"is \[\], expected an object"),
        (b'{"format": NaN}', "NaN is not JSON"),
        (b"[" * 60_000, "is not JSON"),
    ],
)
def test_what_is_no_object_is_refused(raw, message):
    with pytest.raises(ModelError, match=message):
        decode_manifest(raw)


def test_what_would_not_be_read_is_not_written(tmp_path):
    with pytest.raises(ModelError, match="descriptor_dim is 0"):
        encode_manifest(replace(FEATURES, descriptor_dim=0))
    wrong = replace(FEATURES, input=InputSpec(channels=3))
    with pytest.raises(ModelError, match=r"input.mean is \[0.0\], expected a list of"):
        write_model(tmp_path / "m", wrong, b"network")
    assert not (tmp_path / "m").exists()


@pytest.fixture
def path(tmp_path) -> Path:
    return write_model(tmp_path / "models", FEATURES, b"network" * 1000)


def test_a_model_is_written_and_found_to_be_the_right_one(path):
    model = load_model(path)
    assert model.manifest_path.name == "tiny-features.json"
    assert model.network_path == path.with_name("tiny-features.onnx")
    assert model.network_path.read_bytes() == b"network" * 1000
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "tiny-features.json",
        "tiny-features.onnx",
    ]


def test_another_network_under_the_name_is_refused(path):
    network = path.with_suffix(".onnx")
    network.write_bytes(network.read_bytes()[:-1] + b"!")
    with pytest.raises(ModelError, match=r"SHA-256 begins with .* copy both files"):
        load_model(path)
    network.write_bytes(b"")
    with pytest.raises(ModelError, match="has 0 bytes, expected 1 to"):
        load_model(path)
    network.unlink()
    with pytest.raises(ModelError, match=r"cannot be read .No such file.*json names"):
        load_model(path)


def test_a_network_that_is_too_large_is_not_read(path, monkeypatch):
    monkeypatch.setattr(module, "MAX_NETWORK_BYTES", 6999)
    with pytest.raises(ModelError, match="has 7000 bytes, expected 1 to 6999"):
        load_model(path)


def test_the_file_of_a_wrong_manifest_is_named(path):
    with pytest.raises(ConfigError, match=r"none\.json: no such model manifest"):
        load_manifest(path.with_name("none.json"))
    with pytest.raises(ModelError, match="cannot be read"):
        load_manifest(path.parent)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match=r"tiny-features\.json: format is None"):
        load_manifest(path)
    path.write_bytes(b" " * (module.MAX_MANIFEST_BYTES + 1))
    with pytest.raises(ModelError, match="has more than 65536 bytes"):
        load_manifest(path)


def test_the_default_is_the_small_quantized_one_for_cpus(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "shipped_folder", lambda: tmp_path)
    assert shipped_model("features") is None
    for name, precision, flavour, size in (
        ("a-fp32", "fp32", "any", 10),
        ("b-int8", "int8", "cpu", 30),
        ("c-int8", "int8", "cpu", 20),
        ("d-trt", "int8", "tensorrt", 5),
    ):
        manifest = replace(FEATURES, name=name, precision=precision, flavour=flavour)
        write_model(tmp_path, manifest, bytes(size))
    assert shipped_model("features") == tmp_path / "c-int8.json"
    assert shipped_model("retrieval") is None
    assert len(shipped_manifests()) == 4


def test_shipped_models_are_whole():
    """Whatever lies in models/ can be used."""
    for path in shipped_manifests():
        assert load_model(path).manifest.name == path.stem


def test_every_decoder_is_there():
    from edgeloc.features import decode

    served = {name for name, (role, _) in DECODERS.items() if role == "features"}
    assert served == set(decode.DECODERS)
