"""The gate of posed recordings."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from handmade_networks import DIM, feature_model, write_features
from site_fixture import mapping_recording

from edgeloc.inference.manifest import load_model
from edgeloc_tools.learn.candidate import Workbench
from edgeloc_tools.learn.quantize_localize import LocalizationGate, held_out_split


@pytest.fixture(scope="module")
def walk():
    """A long one, without pictures."""
    short = mapping_recording()
    images = [
        replace(short.images[idx % len(short.images)], name=f"{idx:04}")
        for idx in range(48)
    ]
    return short.subset(images)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="module")
def gate(folder):
    mapping, held_out = held_out_split(mapping_recording(), max_held_out=60)
    return LocalizationGate.build(
        write_features(folder / "models", feature_model()),
        mapping=mapping,
        held_out=held_out,
        folder=folder / "map",
        max_keypoints=400,
    )


@pytest.fixture
def bench(gate, folder):
    manifest = load_model(folder / "models" / "handmade.json").manifest
    return Workbench(manifest, folder / "trial")


class TestSplit:
    def test_a_quarter_at_most_is_held_out(self, walk):
        mapping, held_out = held_out_split(walk, max_held_out=60)
        assert len(held_out.images) <= len(walk.images) / 4
        assert len(held_out.images) >= 6
        names = {i.name for i in mapping.images} | {i.name for i in held_out.images}
        assert len(names) == len(mapping.images) + len(held_out.images)
        assert len(names) == len(walk.images)

    def test_the_work_is_bounded(self, walk):
        _, held_out = held_out_split(walk, max_held_out=6)
        assert len(held_out.images) == 6

    def test_few_images_are_held_out_one_by_one(self, walk):
        few = walk.subset(walk.images[:13])
        mapping, held_out = held_out_split(few, max_held_out=60)
        assert [few.images.index(i) for i in held_out.images] == [2, 6, 10]
        assert len(mapping.images) == 10

    def test_too_few_images_make_no_map(self, walk):
        assert held_out_split(walk.subset(walk.images[:11]), max_held_out=60) is None

    def test_images_without_poses_make_none_either(self, walk):
        plain = [replace(image, cam_from_world=None) for image in walk.images]
        assert held_out_split(walk.subset(plain), max_held_out=60) is None


class TestLocalization:
    def test_the_network_that_made_the_map_localizes_in_it(self, gate, bench):
        score = gate.score(bench.open(feature_model()))
        assert score.recall >= 0.5
        assert len(score.errors) == len(gate.held_out.images)
        assert score.median_error < 0.05

    def test_descriptors_of_another_network_do_not(self, gate, bench):
        """What is localized is what the variant says, not what the map's model says."""
        assert gate.score(bench.open(feature_model(seed=8))).recall == 0.0

    def test_a_variant_that_fails_is_lost_everywhere(self, gate, bench):
        model = feature_model()
        for tensor in model.graph.initializer:
            if tensor.name == "gather.weight":
                values = np.full((DIM, 2 * DIM + 1, 1, 1), np.nan, np.float32)
                tensor.raw_data = values.tobytes()
        score = gate.score(bench.open(model))
        assert score.recall == 0.0
        assert score.median_error == np.inf

    def test_the_map_is_built_once(self, gate, folder):
        before = json.loads((folder / "map" / "site.json").read_text())
        again = LocalizationGate.build(
            folder / "models" / "handmade.json",
            mapping=gate.held_out,
            held_out=gate.held_out,
            folder=folder / "map",
            max_keypoints=400,
        )
        assert json.loads((folder / "map" / "site.json").read_text()) == before
        assert again.site.manifest.map_id == gate.site.manifest.map_id

    def test_says_what_it_measures(self, gate):
        assert "within 0.05 m, 5°" in gate.title
        assert "held-out frames" in gate.title
        assert gate.error_name == "position error [m]"

    def test_without_a_scale_the_extent_counts(self, gate):
        manifest = replace(gate.site.manifest, metric=False)
        other = replace(gate, site=replace(gate.site, manifest=manifest))
        assert "u, 2°" in other.title
        assert other.error_name == "position error [u]"
