"""models/MANIFEST.md tells the truth."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from edgeloc.inference import manifest as module
from edgeloc.inference.manifest import DECODERS, decode_manifest

DOCUMENT = Path(__file__).resolve().parents[2] / "models" / "MANIFEST.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")


def tables() -> list[list[tuple[str, str]]]:
    """Rows of (first cell, second cell) of every table, without its head."""
    found: list[list[tuple[str, str]]] = [[]]
    for line in TEXT.splitlines():
        if line.startswith("|-"):
            continue
        if not line.startswith("|"):
            found += [[]] if found[-1] else []
            continue
        first, _, second = line.strip("| ").partition(" | ")
        found[-1].append((first, second))
    return [rows[1:] for rows in found if rows]


def names(rows) -> list[str]:
    return sorted(name for first, _ in rows for name in re.findall(r"`([^`]+)`", first))


def test_every_field_is_there():
    top, inner, head, _ = tables()
    assert names(top) == sorted((*module._TOP_KEYS, "match_ratio", "classes"))
    assert names(inner) == sorted((*module._INPUT_KEYS, "origin"))
    assert names(head) == sorted(module._HEAD_KEYS)


def test_every_decoder_and_its_outputs_are_there():
    decoders = tables()[3]
    assert names(decoders) == sorted(DECODERS)
    for first, second in decoders:
        [name] = re.findall(r"`([^`]+)`", first)
        # Other decoders may be named there, but for an output of the same name.
        others = set(DECODERS) - set(DECODERS[name][1])
        outputs = set(re.findall(r"`([^`]+)`", second)) - others
        same = {"points-normalized": "points"}.get(name)
        if same is None:
            assert outputs == set(DECODERS[name][1]), name
        else:
            assert DECODERS[name] == DECODERS[same]
            assert outputs <= set(DECODERS[name][1])


def test_the_example_is_accepted():
    text = "\n".join(
        line[4:] for line in TEXT.split("three dense maps:\n")[1].splitlines()
    )
    placeholder = "(sha256sum xfeat.onnx)"
    assert placeholder in text
    text = text.replace(placeholder, hashlib.sha256(b"").hexdigest())
    manifest = decode_manifest(text.encode())
    assert (manifest.decoder, manifest.input.channels) == ("xfeat", 3)
    assert json.loads(text)["outputs"] == dict(manifest.outputs)


@pytest.mark.parametrize("values", [module.PRECISIONS, module.FLAVOURS, module.ROLES])
def test_every_choice_is_there(values):
    assert all(f"`{value}`" in TEXT for value in values)
