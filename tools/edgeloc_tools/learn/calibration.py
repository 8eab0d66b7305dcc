"""Ranges of a network's activations, measured on images.

Every image goes through `edgeloc.inference.preprocess`, as on the device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from edgeloc.errors import ConfigError, ModelError
from edgeloc.inference.manifest import InputSpec
from edgeloc.inference.preprocess import preprocess
from edgeloc.types import ByteArray, Float32Array, FloatArray
from edgeloc_tools.datasets.recording import RecordedImage, Recording
from edgeloc_tools.learn.graph import (
    ORT_ERRORS,
    GraphView,
    make_session,
    session_options,
    to_bytes,
)
from edgeloc_tools.learn.quantize import ValueRange, activation_names
from edgeloc_tools.mapping.work import Arrays, WorkFolder
from edgeloc_tools.progress import Progress, silent

METHODS = ("minmax", "percentile", "mse")
"""Ways from values to a range; see `Statistics.ranges`."""

SAMPLES_PER_IMAGE = 4096
"""Values kept of each tensor and image; their extremes are exact."""

_PERCENTILE = 99.99
_MSE_SHARES = np.geomspace(0.05, 1.0, 61)
_MIN_TAIL_SAMPLES = 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistics:
    """What the activations of a network are like.

    Parameters
    ----------
    low, high : mapping of str to float
        Extremes over all images, by tensor.
    samples : mapping of str to ndarray of shape (S,), float32
        Values spread evenly over images and positions.
    exact : mapping of str to ValueRange
        Ranges that are known without measuring: the network's input.
    """

    low: Mapping[str, float]
    high: Mapping[str, float]
    samples: Mapping[str, Float32Array]
    exact: Mapping[str, ValueRange]

    def ranges(self, method: str) -> dict[str, ValueRange]:
        """Return the range of each tensor.

        Parameters
        ----------
        method : {"minmax", "percentile", "mse"}
            All values; all but the outermost 0.01 % on each side; or those that,
            rounded to 8 bits, have the smallest mean squared error, clipping
            included [1]_.

        References
        ----------
        .. [1] Sung et al., "Resiliency of deep neural networks under quantization",
           2015: the L2-optimal clipping.
        """
        if method not in METHODS:
            raise ConfigError(
                f"calibration {method!r} is unknown, expected {', '.join(METHODS)}"
            )
        out = {}
        for name in self.low:
            values = ValueRange(self.low[name], self.high[name])
            if name in self.exact:
                values = self.exact[name]
            elif method == "percentile":
                values = _percentile(self.samples[name], values)
            elif method == "mse":
                values = _least_error(self.samples[name], values)
            out[name] = values
        return out


def _percentile(samples: Float32Array, full: ValueRange) -> ValueRange:
    if len(samples) * (1.0 - _PERCENTILE / 100.0) < _MIN_TAIL_SAMPLES:
        return full
    low, high = np.percentile(samples, [100.0 - _PERCENTILE, _PERCENTILE])
    return ValueRange(float(low), float(high))


def _least_error(samples: Float32Array, full: ValueRange) -> ValueRange:
    """Return the share of a range whose 8-bit rounding has the least squared error."""
    values = samples.astype(np.float64)
    low, high = min(full.low, 0.0), max(full.high, 0.0)
    errors = [
        rounding_error(values, ValueRange(low * share, high * share))
        for share in _MSE_SHARES
    ]
    share = float(_MSE_SHARES[int(np.argmin(errors))])
    return ValueRange(low * share, high * share)


def rounding_error(values: FloatArray, kept: ValueRange) -> float:
    """Return the mean squared error of rounding to 256 levels of a range.

    Parameters
    ----------
    values : ndarray of shape (S,), float64
        What is rounded; values outside of the range are clipped to it.
    kept : ValueRange
        With 0 inside.
    """
    step = (kept.high - kept.low) / 255.0
    if step <= 0:
        return float(np.mean(values**2))
    clipped = np.clip(values, kept.low, kept.high)
    return float(np.mean((np.rint(clipped / step) * step - values) ** 2))


def sample_images(
    recording: Recording, *, count: int, seed: int
) -> list[RecordedImage]:
    """Return images spread over a recording, the same for the same seed.

    One from each of `count` equal stretches, so that every part of the place has a say.

    Parameters
    ----------
    recording : Recording
        With or without poses.
    count : int
        How many; all of a shorter recording.
    seed : int
        Chooses within the stretches.
    """
    if count < 1:
        raise ConfigError(f"--images {count} must be at least 1")
    total = len(recording.images)
    if total <= count:
        return list(recording.images)
    rng = np.random.default_rng(seed)
    edges = np.linspace(0, total, count + 1)
    chosen = edges[:-1] + rng.random(count) * np.diff(edges)
    return [recording.images[i] for i in chosen.astype(np.int64)]


def measure_activations(
    model: onnx.ModelProto,
    images: Sequence[ByteArray],
    *,
    spec: InputSpec,
    work: WorkFolder | None = None,
    progress: Progress = silent,
) -> Statistics:
    """Return what a network's activations are like on some images.

    Parameters
    ----------
    model : ModelProto
        From `edgeloc_tools.learn.graph.load_truth`.
    images : sequence of ndarray of shape (H, W) or (H, W, 3), uint8
        Grey or BGR.
    spec : InputSpec
        How an image becomes the network's input.
    work : WorkFolder
        Keeps what is done, image by image, for when the work is interrupted.
    progress : callable
        Told about each image.

    Raises
    ------
    ModelError
        When an activation is not finite, or the network does not take an image.
    """
    work = work or WorkFolder(None)
    names = activation_names(model)
    run = _observer(model, names, spec)
    digest = hashlib.sha256(to_bytes(model)).hexdigest()
    low = dict.fromkeys(names, np.inf)
    high = dict.fromkeys(names, -np.inf)
    parts: dict[str, list[Float32Array]] = {name: [] for name in names}
    for done, image in enumerate(images, start=1):
        key = {
            "step": "activations",
            "model": digest,
            "image": hashlib.sha256(image.tobytes()).hexdigest(),
            "shape": image.shape,
            "samples": SAMPLES_PER_IMAGE,
        }

        def observe(image: ByteArray = image) -> Arrays:
            return run(image)

        arrays = work.cached(key, observe)
        for idx, name in enumerate(names):
            low[name] = min(low[name], float(arrays[f"low_{idx}"]))
            high[name] = max(high[name], float(arrays[f"high_{idx}"]))
            parts[name].append(np.asarray(arrays[f"samples_{idx}"], np.float32))
        progress("calibration", done, len(images))
    return Statistics(
        low=low,
        high=high,
        samples={name: np.concatenate(kept) for name, kept in parts.items()},
        exact=_moved_inputs(model, spec),
    )


def _moved_inputs(model: onnx.ModelProto, spec: InputSpec) -> dict[str, ValueRange]:
    """Return the range of the input and of what only moves it."""
    view = GraphView(model)
    values = input_range(spec)
    exact = {spec.name: values}
    for node in model.graph.node:
        if view.moves(node) and node.input[0] in exact:
            exact[node.output[0]] = values
    return exact


def input_range(spec: InputSpec) -> ValueRange:
    """Return the values that a network's input can have."""
    ends = [
        (pixel * spec.scale - mean) / std
        for pixel in (0.0, 255.0)
        for mean, std in zip(spec.mean, spec.std, strict=True)
    ]
    return ValueRange(min(ends), max(ends))


def _observer(
    model: onnx.ModelProto, names: Sequence[str], spec: InputSpec
) -> Callable[[ByteArray], Arrays]:
    """Return a function from an image to the extremes and samples of tensors."""
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    view = GraphView(model)
    outputs = [name for name in names if name not in view.inputs]
    for name in outputs:
        if name not in view.outputs:
            observed.graph.output.append(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            )
    session = make_session(
        to_bytes(observed), options=session_options(threads=1), where="calibration"
    )

    def run(image: ByteArray) -> Arrays:
        tensor = preprocess(image, spec).tensor
        try:
            values = dict(
                zip(outputs, session.run(outputs, {spec.name: tensor}), strict=True)
            )
        except ORT_ERRORS as exc:
            raise ModelError(
                f"the network does not take a {image.shape[1]}x{image.shape[0]} image: "
                f"{' '.join(str(exc).split())[:200]}"
            ) from exc
        values[spec.name] = tensor
        arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {}
        for idx, name in enumerate(names):
            flat = np.asarray(values[name], np.float32).reshape(-1)
            extremes = float(flat.min()), float(flat.max())
            if not np.all(np.isfinite(extremes)):
                raise ModelError(
                    f"activation {name!r} is not finite on a "
                    f"{image.shape[1]}x{image.shape[0]} image; the network is broken"
                )
            arrays[f"low_{idx}"], arrays[f"high_{idx}"] = map(np.float32, extremes)
            arrays[f"samples_{idx}"] = flat[_spread(len(flat), SAMPLES_PER_IMAGE)]
        return arrays

    return run


def _spread(total: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return `count` positions in `total`, without a period that a row could have."""
    if total <= count:
        return np.arange(total)
    # Multiples of the golden ratio, modulo 1, are spread evenly at every scale.
    golden = (np.sqrt(5.0) - 1.0) / 2.0
    return np.asarray((np.arange(count) * golden % 1.0) * total, np.int64)
