"""Engines of a site: for its networks and its cameras, beside its files."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from site_factory import make_contents

from edgeloc.inference.manifest import (
    encode_manifest,
    load_manifest,
    shipped_model,
    with_file,
)
from edgeloc.inference.trt import is_installed
from edgeloc.tiles.layout import SiteModel
from edgeloc.tiles.reader import open_site, verify_site
from edgeloc.tiles.writer import write_site
from edgeloc_tools.cli import build


@pytest.fixture
def site(tmp_path):
    """A site that carries the shipped models for CPUs."""
    models = {}
    for role in ("features", "retrieval"):
        path = shipped_model(role)
        manifest = load_manifest(path)
        network = (path.parent / manifest.file).read_bytes()
        named = with_file(manifest, f"{role}.onnx", network)
        models[role] = SiteModel(
            name=manifest.name, manifest=encode_manifest(named), network=network
        )
    contents = make_contents(np.random.default_rng(3))
    family = replace(contents.family, name=models["features"].name)
    write_site(tmp_path / "site", replace(contents, models=models, family=family))
    return tmp_path / "site"


@pytest.mark.skipif(
    not is_installed("tensorrt-rtx"),
    reason="TensorRT for RTX has wheels for x86-64 Linux only",
)
def test_engines_of_a_site_are_for_its_networks_and_cameras(site, capsys):
    """The site carries the cpu flavour; engines come of the one for TensorRT."""
    before = open_site(site).manifest
    command = ["engine", "--map", str(site), "--backend", "tensorrt-rtx"]
    assert build.main(command) == 0
    built = json.loads(capsys.readouterr().out)
    assert [entry["model"] for entry in built] == [
        "edgeloc-features-small-int8-cpu",
        "edgeloc-retrieval-small-int8-cpu",
    ]
    assert [entry["layers"] for entry in built] == [
        {"int8": 11},
        {"fp32": 1, "int8": 12},
    ]
    [record] = site.glob("models/*/engines/*features*.json")
    document = json.loads(record.read_text())
    assert document["network"] == "edgeloc-features-small-int8-tensorrt"
    cameras = before.cameras.values()
    scale = 1.0
    if before.family.max_side_px:
        scale = before.family.max_side_px / max(c.width for c in cameras)
    assert len(cameras) == 2
    assert document["sizes"][2] == [max(document["sizes"][1])] * 2
    for usual, side in zip(
        document["sizes"][1],
        (max(c.height for c in cameras), max(c.width for c in cameras)),
        strict=True,
    ):
        assert usual % 16 == 0
        assert 0 <= usual - min(scale, 1.0) * side < 16.5
    # The site is the same one as before, whatever lies beside its files.
    verify_site(site)
    assert open_site(site).manifest.map_id == before.map_id
    assert build.main([*command, "--check"]) == 0
