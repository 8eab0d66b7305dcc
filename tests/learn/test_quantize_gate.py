"""The gate: what is measured, what is let through, which layers go back to float."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx
import pytest
from handmade_networks import (
    LAYERS,
    blobs,
    feature_model,
    retrieval_model,
    write_features,
    write_retrieval,
)

from edgeloc.inference.manifest import load_model
from edgeloc_tools.learn.agreement import (
    Described,
    FeatureProbe,
    RetrievalProbe,
    same_keypoints,
    warped_pairs,
)
from edgeloc_tools.learn.calibration import measure_activations
from edgeloc_tools.learn.candidate import Workbench
from edgeloc_tools.learn.graph import load_truth
from edgeloc_tools.learn.half import half_model
from edgeloc_tools.learn.quantize import quantize_model
from edgeloc_tools.learn.quantize_gate import (
    GateLimits,
    GateScore,
    HomographyGate,
    NeighbourGate,
    RememberingGate,
    search_float_layers,
)
from edgeloc_tools.learn.sensitivity import Judge, layer_damages
from edgeloc_tools.mapping.work import WorkFolder


def score(recall, *errors):
    return GateScore(recall=recall, errors=errors)


class TestLimits:
    truth = score(0.9, 0.01, 0.02, 0.03)

    @pytest.mark.parametrize(
        ("recall", "median", "accepted"),
        [
            (0.9, 0.02, True),
            (0.89, 0.022, True),
            (0.88, 0.02, False),
            (0.9, 0.0221, False),
            (0.9, math.inf, False),
            (1.0, 0.001, True),
        ],
    )
    def test_one_point_and_a_tenth(self, recall, median, accepted):
        assert GateLimits().accept(score(recall, median), self.truth) is accepted

    def test_steps_of_a_share_are_not_counted_by_their_rounding(self):
        limits = GateLimits(max_loss=0.1)
        assert limits.accept(score(0.7 + 0.1 - 0.1), score(0.8))
        assert limits.accept(score(0.3), score(0.1 + 0.2 + 0.1))

    def test_a_lost_median_of_the_truth_decides_nothing(self):
        assert GateLimits().accept(score(0.4, math.inf), score(0.4, math.inf))


class FakeNetworks:
    """Networks that are as good as few of the guilty layers are quantized."""

    order = ("worst", "bad", "fair", "good")

    def __init__(self, guilty):
        self.guilty = set(guilty)
        self.sorted = 0

    def make(self, kept):
        model = onnx.ModelProto()
        model.producer_name = ",".join(kept)
        return model

    def score(self, model):
        kept = set(model.producer_name.split(","))
        return score(1.0 - 0.1 * len(self.guilty - kept))

    def ordered(self):
        self.sorted += 1
        return self.order


class TestSearch:
    def search(self, networks, **options):
        limits = GateLimits(max_float_layers=options.pop("most", 4))
        return search_float_layers(
            networks.make,
            networks.score,
            truth=score(1.0),
            order=networks.ordered,
            limits=limits,
            **options,
        )

    def test_nothing_goes_back_when_nothing_is_wrong(self):
        networks = FakeNetworks([])
        _, trials = self.search(networks)
        assert [(t.float_layers, t.accepted) for t in trials] == [((), True)]
        assert networks.sorted == 0

    def test_guilty_layers_go_back_one_by_one(self):
        model, trials = self.search(FakeNetworks(["worst", "bad"]))
        assert [t.float_layers for t in trials] == [
            (),
            ("worst",),
            ("bad",),
            ("worst", "bad"),
        ]
        assert [t.accepted for t in trials] == [False, False, False, True]
        assert model.producer_name == "worst,bad"

    def test_a_layer_that_did_not_help_is_quantized_after_all(self):
        model, trials = self.search(FakeNetworks(["fair"]))
        assert trials[-1].float_layers == ("fair",)
        assert trials[-1].accepted
        assert model.producer_name == "fair"

    def test_the_budget_ends_it(self):
        _, trials = self.search(FakeNetworks(["good"]), most=2)
        assert [t.float_layers for t in trials] == [(), ("worst",), ("worst", "bad")]
        assert not trials[-1].accepted

    def test_so_does_the_last_layer(self):
        _, trials = self.search(FakeNetworks(["another"]), most=9)
        assert len(trials[-1].float_layers) == 4
        assert not trials[-1].accepted

    def test_layers_that_are_float_anyway_are_not_counted(self):
        _, trials = self.search(FakeNetworks(["bad"]), most=1, float_layers=["worst"])
        assert trials[-1].float_layers == ("worst", "bad")
        assert trials[-1].accepted


class Features:
    """A network with its probe, as a quantization has them."""

    def __init__(self, folder, *, spoilt=""):
        self.images = [blobs(seed) for seed in range(4)]
        path = write_features(folder, feature_model(spoilt=spoilt))
        self.manifest = load_model(path).manifest
        self.truth = load_truth(folder / "handmade.onnx")
        self.bench = Workbench(self.manifest, folder / "trial")
        self.probe = FeatureProbe(
            warped_pairs(self.images, seed=1),
            truth=self.bench.open(self.truth),
            max_keypoints=150,
        )
        self.ranges = measure_activations(
            self.truth, self.images, spec=self.manifest.input
        ).ranges("minmax")

    def make(self, kept):
        return quantize_model(
            self.truth,
            ranges=self.ranges,
            flavour="cpu",
            float_layers=kept,
            weight_bits=7,
        )

    def judge(self, folder=None):
        return Judge(
            probe=self.probe, bench=self.bench, work=WorkFolder(folder), key="k"
        )


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return Features(tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    return Features(tmp_path_factory.mktemp("spoilt"), spoilt="gather")


class TestFeatureProbe:
    def test_the_truth_agrees_with_itself(self, sound):
        agreement = sound.probe.measure(sound.bench.open(sound.truth))
        assert agreement.descriptor_cosine == pytest.approx(1.0, abs=1e-5)
        assert agreement.repeatability == 1.0
        assert agreement.inlier_ratio == 1.0
        assert agreement.shift_px == 0.0
        assert agreement.damage == pytest.approx(0.0, abs=1e-5)
        assert agreement.inliers > 30

    def test_half_precision_hardly_matters(self, sound):
        agreement = sound.probe.measure(sound.bench.open(half_model(sound.truth)))
        assert agreement.descriptor_cosine > 0.9999
        assert agreement.repeatability > 0.98
        # Keypoints are corners of the picture, whoever describes them.
        assert agreement.shift_px == 0.0

    def test_another_network_does_not_agree(self, sound):
        other = feature_model(seed=5)
        agreement = sound.probe.measure(sound.bench.open(other))
        assert abs(agreement.descriptor_cosine) < 0.3
        # It trusts nearly the same corners, and its descriptors serve as well.
        assert agreement.repeatability > 0.85
        assert agreement.inlier_ratio > 0.7

    def test_keypoints_that_move_are_damage(self, sound, monkeypatch):
        """A network may have keypoints of its own: here the truth's, 0.3 px aside."""
        moved = [
            tuple(replace(d, keypoints=d.keypoints + np.float32([0.3, 0])) for d in two)
            for two in sound.probe.truth
        ]
        monkeypatch.setattr(sound.probe, "describe_all", lambda network: moved)
        agreement = sound.probe.measure(sound.bench.open(sound.truth))
        assert agreement.repeatability == 1.0
        assert agreement.shift_px == pytest.approx(0.3, abs=1e-5)
        lost = max(0.0, 1.0 - agreement.inlier_ratio)
        assert agreement.damage == pytest.approx(0.3 + lost, abs=1e-4)

    def test_pairs_repeat(self, sound):
        first, second = (warped_pairs(sound.images, seed=1) for _ in range(2))
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a.b, b.b)

    def test_same_keypoints_are_mutual_and_near(self):
        def at(*points):
            rows = np.array(points, np.float32).reshape(-1, 2)
            return Described(
                keypoints=rows, descriptors=np.ones((len(rows), 1), np.float32)
            )

        a, b = same_keypoints(
            at((10, 10), (11, 10), (50, 50)), at((10.2, 10), (53, 50))
        )
        assert (a.tolist(), b.tolist()) == ([0], [0])
        assert same_keypoints(at(), at((1, 1)))[0].size == 0


class TestSensitivity:
    def test_finds_the_guilty_layer(self, spoilt):
        damages = layer_damages(spoilt.truth, spoilt.make, spoilt.judge())
        assert damages[0].layer == "gather"
        assert damages[0].measurement.damage > 1.0
        assert {entry.layer for entry in damages} == set(LAYERS)
        others = [entry.measurement.damage for entry in damages[1:]]
        assert max(others) < 0.3

    def test_finds_one_that_only_selects(self, tmp_path):
        """Without reliability other corners are kept; what they say is the same."""
        network = Features(tmp_path, spoilt="trust")
        worst, second = layer_damages(network.truth, network.make, network.judge())[:2]
        assert worst.layer == "trust"
        assert worst.measurement.facts["repeatability"] < 0.8
        assert worst.measurement.facts["descriptor_cosine"] > 0.9999
        assert worst.measurement.damage > 5 * second.measurement.damage

    def test_a_sound_network_has_none(self, sound):
        damages = layer_damages(sound.truth, sound.make, sound.judge())
        assert damages[0].measurement.damage < 0.3

    def test_measurements_are_kept(self, sound, tmp_path):
        judge = sound.judge(tmp_path / "work")
        first = judge.measure(sound.make([]))
        assert len(list((tmp_path / "work").iterdir())) == 1

        class Broken:
            def measure(self, network):
                raise AssertionError("measured again")

        again = Judge(
            probe=Broken(),
            bench=sound.bench,
            work=WorkFolder(tmp_path / "work"),
            key="k",
        ).measure(sound.make([]))
        assert again == first


class TestHomographyGate:
    def test_a_sound_network_passes_in_integers(self, sound):
        gate = HomographyGate(sound.probe)
        truth = gate.score(sound.bench.open(sound.truth))
        quantized = gate.score(sound.bench.open(sound.make([])))
        assert truth.recall >= 0.75
        assert truth.median_error < 2.0
        assert quantized.recall >= truth.recall - 0.25

    def test_a_spoilt_one_fails_until_its_layer_is_float(self, spoilt):
        gate = HomographyGate(spoilt.probe)
        assert gate.score(spoilt.bench.open(spoilt.make([]))).recall == 0.0
        back = gate.score(spoilt.bench.open(spoilt.make(["gather"])))
        assert back.recall >= 0.75

    def test_says_that_nothing_was_localized(self, sound):
        assert "nothing was localized" in HomographyGate(sound.probe).title

    def test_scores_are_kept(self, sound, tmp_path):
        work = WorkFolder(tmp_path)
        gate = RememberingGate(
            HomographyGate(sound.probe), bench=sound.bench, work=work, key="k"
        )
        first = gate.score(sound.truth)
        assert len(list(tmp_path.iterdir())) == 1
        assert gate.score(sound.truth) == first


class TestNeighbourGate:
    @pytest.fixture
    def images(self):
        """Six places, each seen four times, a little aside."""
        big = [blobs(seed, height=120, width=140) for seed in range(6)]
        return [
            picture[10 + shift : 74 + shift, 10:90]
            for picture in big
            for shift in range(4)
        ]

    @pytest.mark.parametrize(
        ("spoilt", "fragile"), [(False, False), (True, False), (True, True)]
    )
    def test_recall(self, images, tmp_path, spoilt, fragile):
        """A variant that puts out NaN is a bad one, not the end of the work."""
        model = retrieval_model(spoilt=spoilt, fragile=fragile)
        path = write_retrieval(tmp_path, model)
        manifest = load_model(path).manifest
        truth = load_truth(tmp_path / "places.onnx")
        bench = Workbench(manifest, tmp_path / "trial")
        probe = RetrievalProbe(images, truth=bench.open(truth))
        gate = NeighbourGate(probe)
        assert gate.score(bench.open(truth)) == score(1.0)
        ranges = measure_activations(truth, images, spec=manifest.input)
        model = quantize_model(
            truth, ranges=ranges.ranges("minmax"), flavour="cpu", weight_bits=7
        )
        recall = gate.score(bench.open(model)).recall
        if spoilt:
            assert recall < 0.6
        else:
            assert recall == 1.0
            agreement = probe.measure(bench.open(model))
            assert agreement.cosine > 0.99
            assert agreement.damage < 0.2
