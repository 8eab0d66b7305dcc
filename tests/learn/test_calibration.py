"""Ranges of activations, measured on images."""

from __future__ import annotations

import numpy as np
import pytest
from handmade_networks import Graph

from edgeloc.errors import ConfigError, ModelError
from edgeloc.inference.manifest import InputSpec
from edgeloc.inference.preprocess import preprocess
from edgeloc_tools.datasets.recording import ImageFile, RecordedImage, Recording
from edgeloc_tools.learn.calibration import (
    METHODS,
    Statistics,
    input_range,
    measure_activations,
    rounding_error,
    sample_images,
)
from edgeloc_tools.learn.graph import make_session, session_options, to_bytes
from edgeloc_tools.learn.quantize import ValueRange, activation_names
from edgeloc_tools.mapping.work import WorkFolder

SPEC = InputSpec(size_multiple=16)


def recording(count, tmp_path):
    return Recording(
        name="walk",
        images=[
            RecordedImage(
                name=f"{idx:03}.png",
                camera_id="0",
                source=ImageFile(path=tmp_path / f"{idx:03}.png"),
            )
            for idx in range(count)
        ],
        cameras={},
    )


def statistics(samples, **exact):
    values = np.asarray(samples, np.float32)
    return Statistics(
        low={"x": float(values.min())},
        high={"x": float(values.max())},
        samples={"x": values},
        exact=exact,
    )


class TestMeasuring:
    def test_extremes_are_those_of_the_activations(self, residual, pictures):
        ranges = measure_activations(residual, pictures, spec=SPEC).ranges("minmax")
        session = make_session(
            to_bytes(residual), options=session_options(threads=1), where="test"
        )
        outs = [
            session.run(None, {"image": preprocess(picture, SPEC).tensor})[0]
            for picture in pictures
        ]
        assert ranges["out"].low == pytest.approx(min(o.min() for o in outs))
        assert ranges["out"].high == pytest.approx(max(o.max() for o in outs))
        assert set(ranges) == set(activation_names(residual))

    def test_behind_a_relu_nothing_is_below_zero(self, residual, pictures):
        ranges = measure_activations(residual, pictures, spec=SPEC).ranges("minmax")
        assert ranges["mix.relu"].low == 0.0

    @pytest.mark.parametrize("method", METHODS)
    def test_the_image_has_the_range_it_can_have(self, features, method):
        """And so has what only moves it, however dark the calibration images are."""
        dark = [np.full((64, 64), 20, np.uint8)]
        ranges = measure_activations(features, dark, spec=SPEC).ranges(method)
        assert ranges["cells"] == ValueRange(0.0, 1.0)

    def test_images_pass_through_the_preprocessing_of_the_device(self, residual):
        """Colour becomes grey, and sides are padded to the multiple."""
        spec = InputSpec(size_multiple=16, mean=(0.5,), std=(0.5,))
        colour = np.full((30, 50, 3), (255, 0, 0), np.uint8)
        ranges = measure_activations(residual, [colour], spec=spec).ranges("minmax")
        assert ranges["image"] == ValueRange(-1.0, 1.0)

    def test_interrupted_work_goes_on(self, residual, pictures, tmp_path):
        class Interrupt(Exception):
            pass

        def interrupt(step, done, total):
            if done == 3:
                raise Interrupt

        work = WorkFolder(tmp_path / "work")
        with pytest.raises(Interrupt):
            measure_activations(
                residual, pictures, spec=SPEC, work=work, progress=interrupt
            )
        files = {p: p.stat().st_mtime_ns for p in (tmp_path / "work").iterdir()}
        assert len(files) == 3
        again = measure_activations(residual, pictures, spec=SPEC, work=work)
        assert {p: p.stat().st_mtime_ns for p in files} == files
        fresh = measure_activations(residual, pictures, spec=SPEC)
        assert again.ranges("mse") == fresh.ranges("mse")

    def test_a_network_that_overflows_is_refused(self, as_truth):
        g = Graph()
        g.conv(
            "image", "huge", np.full((1, 1, 1, 1), 3e38), np.full(1, 3e38), out="out"
        )
        shape = [1, 1, "H", "W"]
        truth = as_truth(g.model({"image": shape}, {"out": shape}))
        with pytest.raises(ModelError, match="'out' is not finite on a 32x16 image"):
            measure_activations(truth, [np.full((16, 32), 255, np.uint8)], spec=SPEC)

    def test_a_size_that_the_network_refuses_is_named(self, features):
        spec = InputSpec(size_multiple=1)
        with pytest.raises(ModelError, match="does not take a 31x17 image"):
            measure_activations(features, [np.zeros((17, 31), np.uint8)], spec=spec)


class TestMethods:
    def test_percentile_cuts_single_outliers(self, rng):
        values = np.append(rng.uniform(-1, 1, 400_000), 50.0)
        ranges = statistics(values).ranges("percentile")["x"]
        assert ranges.high == pytest.approx(1.0, abs=0.01)
        assert ranges.low == pytest.approx(-1.0, abs=0.01)

    def test_percentile_of_few_values_is_all_of_them(self, rng):
        values = np.append(rng.uniform(-1, 1, 1000), 50.0)
        assert statistics(values).ranges("percentile")["x"].high == 50.0

    def test_mse_clips_what_is_rare_enough(self, rng):
        """One value in 1.5 million costs less than a step that reaches up to it."""
        values = np.append(rng.uniform(0, 1, 1_500_000), 12.0)
        kept = statistics(values).ranges("mse")["x"]
        assert 1.0 <= kept.high < 6.0
        error = rounding_error(values, kept)
        assert error < rounding_error(values, ValueRange(0.0, 12.0))
        assert error < rounding_error(values, ValueRange(0.0, 0.8))

    def test_mse_leaves_even_values_alone(self, rng):
        kept = statistics(rng.uniform(0, 1, 20_000)).ranges("mse")["x"]
        assert kept.high == pytest.approx(1.0, abs=0.03)

    def test_unknown(self):
        with pytest.raises(ConfigError, match="'entropy' is unknown, expected minmax"):
            statistics([0.0, 1.0]).ranges("entropy")


def test_input_range_of_several_channels():
    spec = InputSpec(channels=3, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))
    values = input_range(spec)
    assert (values.low, values.high) == pytest.approx((-1.6, 3.5))


class TestSampling:
    def test_is_spread_and_repeats(self, tmp_path):
        walk = recording(100, tmp_path)
        names = [i.name for i in sample_images(walk, count=10, seed=3)]
        assert [int(name[:3]) // 10 for name in names] == list(range(10))
        assert names == [i.name for i in sample_images(walk, count=10, seed=3)]
        assert names != [i.name for i in sample_images(walk, count=10, seed=4)]

    def test_all_of_few(self, tmp_path):
        walk = recording(4, tmp_path)
        assert len(sample_images(walk, count=10, seed=0)) == 4

    def test_refuses_none(self, tmp_path):
        with pytest.raises(ConfigError, match="must be at least 1"):
            sample_images(recording(4, tmp_path), count=0, seed=0)
