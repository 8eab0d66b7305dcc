"""Further networks for a site: a new version, and nothing else of it changes."""

from __future__ import annotations

import numpy as np
import pytest
from site_factory import make_contents

from edgeloc.errors import MapError
from edgeloc.tiles.add_models import add_models
from edgeloc.tiles.layout import SiteModel
from edgeloc.tiles.reader import open_site, verify_site
from edgeloc.tiles.writer import write_site

HEAD = SiteModel(name="head", manifest=b'{"a": 1}', network=bytes(range(99)))
OTHER = SiteModel(name="other", manifest=b'{"a": 2}', network=b"other")


@pytest.fixture
def path(tmp_path):
    write_site(tmp_path / "site", make_contents(np.random.default_rng(1)))
    return tmp_path / "site"


def test_a_head_and_its_arrays_join_a_site(path):
    before = open_site(path)
    arrays = {"calibration_x": np.array([1.5, 2.0], np.float32)}
    made = add_models(
        path, {"scene_coords": HEAD}, rungs=["SCENE_COORDS"], arrays=arrays
    )
    verify_site(path)
    site = open_site(path, verify=True)
    assert site.manifest.map_id == made.map_id != before.manifest.map_id
    assert site.manifest.rungs == (*before.manifest.rungs, "SCENE_COORDS")
    assert list(site.tiles) == list(before.tiles)
    assert np.array_equal(site.keyframes.keyframe_ids, before.keyframes.keyframe_ids)
    assert np.array_equal(site.retrieval_arrays["calibration_x"], [1.5, 2.0])
    for name, array in before.retrieval_arrays.items():
        assert np.array_equal(site.retrieval_arrays[name], array)
    assert site.model_manifest("scene_coords").read_bytes() == HEAD.manifest
    # The version before still works: a device may run on it.
    assert before.read_tile(0).tile_idx == 0


def test_a_head_of_the_same_role_is_replaced_and_others_stay(path):
    add_models(path, {"scene_coords": HEAD}, rungs=["SCENE_COORDS"], arrays={})
    add_models(path, {"regress": HEAD}, rungs=["REGRESS"], arrays={})
    made = add_models(path, {"scene_coords": OTHER}, rungs=["SCENE_COORDS"], arrays={})
    assert {role: m.name for role, m in made.models.items()} == {
        "scene_coords": "other",
        "regress": "head",
    }
    assert made.rungs.count("SCENE_COORDS") == 1


@pytest.mark.parametrize(
    ("models", "rungs", "arrays", "message"),
    [
        ({"eyes": HEAD}, [], {}, "eyes is none of the roles features, retrieval"),
        ({}, [], {"x": np.array([np.nan], np.float32)}, "array 'x' is not finite"),
        ({}, [], {"x": np.zeros(2, np.complex64)}, "array 'x' is complex64"),
        ({"regress": HEAD}, ["FLY"], {}, "rungs is .*, expected different ones of"),
    ],
)
def test_what_does_not_fit_leaves_the_site_as_it_was(
    path, models, rungs, arrays, message
):
    before = (path / "site.json").read_bytes()
    with pytest.raises(MapError, match=message):
        add_models(path, models, rungs=rungs, arrays=arrays)
    assert (path / "site.json").read_bytes() == before
    verify_site(path)
