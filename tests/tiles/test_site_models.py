"""The networks in a site: copied as they are, and refused when they are not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from site_factory import edit_site_json, make_contents

from edgeloc.errors import MapError, TileFormatError
from edgeloc.tiles.layout import SiteModel
from edgeloc.tiles.reader import open_site, verify_site
from edgeloc.tiles.writer import write_site

FEATURES = SiteModel(name="orb", manifest=b'{"a": 1}', network=bytes(range(200)))
PLACES = SiteModel(name="places", manifest=b'{"b": 2}', network=b"n" * 3_000_000)


def contents(**models):
    made = make_contents(np.random.default_rng(2))
    return replace(made, models=models)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "site"
    write_site(path, contents(features=FEATURES, retrieval=PLACES))
    return path


def test_models_come_back_byte_by_byte(path):
    site = open_site(path, verify=True)
    assert {role: m.name for role, m in site.manifest.models.items()} == {
        "features": "orb",
        "retrieval": "places",
    }
    for role, model in (("features", FEATURES), ("retrieval", PLACES)):
        manifest = site.model_manifest(role)
        assert manifest.parent.parent == path / "models"
        assert manifest.name == f"{role}.json"
        assert manifest.read_bytes() == model.manifest
        assert manifest.with_suffix(".onnx").read_bytes() == model.network
    sizes = [p.stat().st_size for p in path.rglob("*") if p.is_file()]
    assert site.manifest.total_bytes == sum(sizes)


def test_the_map_id_is_that_of_the_models_too(tmp_path, path):
    other = replace(PLACES, network=PLACES.network[:-1] + b"m")
    one = write_site(tmp_path / "a", contents(features=FEATURES, retrieval=PLACES))
    two = write_site(tmp_path / "b", contents(features=FEATURES, retrieval=other))
    assert one.map_id == open_site(path).manifest.map_id != two.map_id


def test_a_site_without_models_says_nothing_of_them(tmp_path):
    write_site(tmp_path / "s", contents())
    assert open_site(tmp_path / "s").manifest.models == {}
    assert not (tmp_path / "s" / "models").exists()
    document = json.loads((tmp_path / "s" / "site.json").read_text(encoding="utf-8"))
    assert "models" not in document


@pytest.mark.parametrize("name", ["features.json", "features.onnx", "retrieval.onnx"])
def test_a_model_file_that_is_missing_or_changed_is_refused(path, name):
    """Opening the map does not read networks; verifying and using them does."""
    [file] = path.glob(f"models/*/{name}")
    role = file.stem
    raw = file.read_bytes()
    for damaged, message in (
        (raw[:-1], f"has {len(raw) - 1} bytes, the site says {len(raw)}"),
        (raw[:-1] + b"!", "does not have the SHA-256 that the site says"),
        (None, r"cannot be read \(No such file or directory\); copy the site again"),
    ):
        if damaged is None:
            file.unlink()
        else:
            file.write_bytes(damaged)
        site = open_site(path)
        for refuse in (lambda: site.model_manifest(role), lambda: verify_site(path)):  # noqa: B023
            with pytest.raises(MapError, match=message) as caught:
                refuse()
            assert str(file) in str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda d: d["models"].clear(),
            "models is {}, expected at least one, or no such",
        ),
        (
            lambda d: d["models"].update(heads=d["models"]["features"]),
            "models.heads is not a field of the format",
        ),
        (
            lambda d: d["models"]["features"]["network"].update(file="../../x.onnx"),
            "models.features.network.file is not a field of the format",
        ),
        (
            lambda d: d["models"]["features"].update(name="sift"),
            "family.name is 'orb', models.features.name 'sift'",
        ),
        (
            lambda d: d["models"]["retrieval"]["manifest"].update(bytes=0),
            "models.retrieval.manifest.bytes is 0, expected an integer from 1",
        ),
    ],
)
def test_what_site_json_may_not_say_of_models(path, edit, message):
    edit_site_json(path, edit)
    with pytest.raises(TileFormatError, match=message):
        open_site(path)


def test_other_roles_are_not_written(tmp_path):
    with pytest.raises(
        MapError,
        match=r"models are for features .* and scene_coords and regress, not heads",
    ):
        write_site(tmp_path / "s", contents(heads=PLACES))
    assert not (tmp_path / "s").exists()
