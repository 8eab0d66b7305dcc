"""From a float32 model and a recording to gated variants of it, with a report."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from edgeloc import __version__
from edgeloc.errors import ConfigError, DatasetError, ModelError
from edgeloc.inference.manifest import (
    Model,
    ModelManifest,
    encode_manifest,
    load_model,
)
from edgeloc.inference.preprocess import preprocess
from edgeloc.types import ByteArray
from edgeloc_tools.datasets.recording import Recording
from edgeloc_tools.evaluate.timing import Kernel, time_kernels
from edgeloc_tools.learn.agreement import FeatureProbe, RetrievalProbe, warped_pairs
from edgeloc_tools.learn.calibration import (
    METHODS,
    Statistics,
    measure_activations,
    sample_images,
)
from edgeloc_tools.learn.candidate import Workbench, variant_manifest
from edgeloc_tools.learn.graph import GraphView, load_truth, to_bytes
from edgeloc_tools.learn.half import half_model
from edgeloc_tools.learn.quantize import check_layers, quantize_model
from edgeloc_tools.learn.quantize_gate import (
    Gate,
    GateLimits,
    GateScore,
    HomographyGate,
    NeighbourGate,
    RememberingGate,
    Trial,
    search_float_layers,
)
from edgeloc_tools.learn.quantize_localize import LocalizationGate, held_out_split
from edgeloc_tools.learn.quantize_pictures import draw_matches
from edgeloc_tools.learn.sensitivity import (
    Judge,
    LayerDamage,
    Make,
    Measurement,
    layer_damages,
)
from edgeloc_tools.mapping.work import WorkFolder
from edgeloc_tools.model_files import write_model
from edgeloc_tools.progress import Progress, silent, track

VARIANTS: Mapping[str, tuple[str, str]] = {
    "fp16": ("fp16", "any"),
    "int8-cpu": ("int8", "cpu"),
    "int8-tensorrt": ("int8", "tensorrt"),
}
"""Precision and flavour of each variant, by its name."""

WEIGHT_BITS: Mapping[str, int] = {"cpu": 7, "tensorrt": 8}
"""Of INT8 weights. On processors without VNNI, onnxruntime's products of UINT8 and INT8
saturate at 16 bits: with 8 bits the outputs of the project's network were off by 3 to
7 %, with 7 by 1 to 1.7 %, where exact arithmetic gives 1.2 to 1.7 % for either (EPYC of
the first generation, onnxruntime 1.31). One bit less costs nothing elsewhere and makes
what passes the gate on one machine hold on every other."""

_TIMED_ROUNDS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """Options of a quantization.

    Parameters
    ----------
    variants : tuple of str
        Keys of `VARIANTS`.
    num_images : int
        Images that the activations are measured on.
    num_pairs : int
        Of these, how many are used to compare variants.
    max_keypoints : int
        Per image.
    calibration : {"auto", "minmax", "percentile", "mse"}
        How values become ranges; "auto" measures which serves best.
    float_layers : tuple of str
        Layers that stay float32 whatever the gate says.
    limits : GateLimits
        What a variant must still do.
    max_held_out : int
        Frames that are localized for the gate.
    threads : tuple of int
        With how many threads the variants are timed.
    seed : int
        Of the choice of images.
    """

    variants: tuple[str, ...] = tuple(VARIANTS)
    num_images: int = 64
    num_pairs: int = 16
    max_keypoints: int = 1000
    calibration: str = "auto"
    float_layers: tuple[str, ...] = ()
    limits: GateLimits = field(default_factory=GateLimits)
    max_held_out: int = 60
    threads: tuple[int, ...] = (1, 2)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.variants:
            if name not in VARIANTS:
                raise ConfigError(
                    f"variant {name!r} is unknown, expected {', '.join(VARIANTS)}"
                )
        for option, value in (
            ("num_images", self.num_images),
            ("num_pairs", self.num_pairs),
            ("max_held_out", self.max_held_out),
        ):
            if value < 1:
                raise ConfigError(f"{option} {value} must be at least 1")
        if self.calibration not in {"auto", *METHODS}:
            raise ConfigError(
                f"calibration {self.calibration!r} is unknown, expected auto, "
                f"{', '.join(METHODS)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VariantResult:
    """What became of one variant.

    Parameters
    ----------
    name : str
        Key of `VARIANTS`, or "fp32" for the truth.
    data : bytes
        ONNX file.
    manifest : ModelManifest
        Of the variant.
    measurement : Measurement
        Agreement with the truth.
    calibration : str
        How values became ranges; "" where there is nothing to calibrate.
    calibrations : mapping of str to Measurement
        What every way was worth.
    layers : tuple of LayerDamage
        What each layer's quantization does alone, worst first.
    trials : tuple of Trial
        What was put to the gate, in order; the last one is this.
    """

    name: str
    data: bytes
    manifest: ModelManifest
    measurement: Measurement
    calibration: str = ""
    calibrations: Mapping[str, Measurement] = field(default_factory=dict)
    layers: tuple[LayerDamage, ...] = ()
    trials: tuple[Trial, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether the gate lets it through."""
        return self.trials[-1].accepted

    @property
    def score(self) -> GateScore:
        """What the gate said last."""
        return self.trials[-1].score

    @property
    def float_layers(self) -> tuple[str, ...]:
        """Layers in float32."""
        return self.trials[-1].float_layers


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantizeResult:
    """What a quantization found.

    Parameters
    ----------
    model : Model
        The truth.
    variants : tuple of VariantResult
        The truth first.
    gate_title, error_name : str
        What the variants were judged by.
    num_queries : int
        Of the gate.
    recording : str
        Where the images come from.
    num_images : int
        Images that the activations were measured on.
    options : QuantizeOptions
        As given.
    pictures : tuple of (str, ndarray of shape (H, W, 3), uint8)
        For people: what the variants see, BGR.
    times_ms : mapping of str to mapping of int to float
        Median time of each variant by number of threads.
    timed_px : (int, int)
        Width and height of the timed image.
    """

    model: Model
    variants: tuple[VariantResult, ...]
    gate_title: str
    error_name: str
    num_queries: int
    recording: str
    num_images: int
    options: QuantizeOptions
    pictures: tuple[tuple[str, ByteArray], ...] = ()
    times_ms: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    timed_px: tuple[int, int] = (0, 0)


def quantize_network(
    manifest_path: Path,
    recording: Recording,
    *,
    work: Path,
    options: QuantizeOptions | None = None,
    progress: Progress = silent,
) -> QuantizeResult:
    """Return variants of a network, each with what the gate says about it.

    Nothing is written but intermediate results; see `write_accepted`.

    Parameters
    ----------
    manifest_path : Path
        Of the float32 model.
    recording : Recording
        Of the site: with poses, localization is the gate.
    work : Path
        Folder for intermediate results: interrupted work goes on from it.
    options : QuantizeOptions
        Options.
    progress : callable
        Told about each step.

    Raises
    ------
    ConfigError
        When there is no such model.
    DatasetError
        When the images do not do.
    ModelError
        When the model is not float32, or does not itself do its task here.
    """
    options = options or QuantizeOptions()
    run = _Run(
        load_model(manifest_path),
        recording,
        work=work,
        options=options,
        progress=progress,
    )
    return run.result()


def write_accepted(result: QuantizeResult, folder: Path) -> list[Path]:
    """Write the variants that passed the gate, and return their manifests' paths."""
    return [
        write_model(folder, variant.manifest, variant.data)
        for variant in result.variants
        if variant.name != "fp32" and variant.accepted
    ]


def refusal(result: QuantizeResult, report: Path) -> str:
    """Return why variants were refused, "" when none was.

    Parameters
    ----------
    result : QuantizeResult
        What was found.
    report : Path
        Where the details are.
    """
    truth = result.variants[0].score
    reasons = []
    for variant in result.variants:
        if not variant.accepted:
            tried = len(variant.trials) - 1
            text = f"{variant.name} reaches recall {variant.score.recall:.3f}"
            if np.isfinite(variant.score.median_error):
                text += f", median {variant.score.median_error:.3g}"
            reasons.append(f"{text} with {tried} more layers in float")
    if not reasons:
        return ""
    median = ""
    if np.isfinite(truth.median_error):
        median = f", median {truth.median_error:.3g}"
    return (
        f"{result.model.manifest_path}: the gate refuses {'; '.join(reasons)}; float32 "
        f"has {truth.recall:.3f}{median}; see {report}, raise --max-float-layers or "
        "--max-loss"
    )


class _Run:
    """One quantization: what its steps share."""

    def __init__(
        self,
        model: Model,
        recording: Recording,
        *,
        work: Path,
        options: QuantizeOptions,
        progress: Progress,
    ) -> None:
        if model.manifest.precision != "fp32":
            raise ModelError(
                f"{model.manifest_path}: precision is {model.manifest.precision!r}; "
                "quantize the float32 model"
            )
        self._model = model
        self._options = options
        self._progress = progress
        self._work_path = work
        self._work = WorkFolder(work / "measured")
        self._truth = load_truth(model.network_path)
        check_layers(GraphView(self._truth), options.float_layers)
        self._bench = Workbench(model.manifest, work / "trial")
        self._truth_network = self._bench.open(self._truth)
        self._recording = recording
        is_features = model.manifest.role == "features"
        calibration, self._split = recording, None
        if is_features:
            self._split = held_out_split(recording, max_held_out=options.max_held_out)
            if self._split is not None:
                calibration = self._split[0]
        chosen = sample_images(calibration, count=options.num_images, seed=options.seed)
        self._images = [
            image.source.read() for image in track(chosen, "images", progress)
        ]
        if len(self._images) < 3:
            raise DatasetError(
                f"{recording.name}: has {len(self._images)} images to calibrate on; "
                "give at least 3"
            )
        self._key = self._digest_of_inputs()
        self._probe = self._make_probe(is_features)
        self._judge = Judge(
            probe=self._probe, bench=self._bench, work=self._work, key=self._key
        )
        gate = self._make_gate()
        self._gate_title, self._error_name = gate.title, gate.error_name
        self._gate = RememberingGate(
            gate, bench=self._bench, work=self._work, key=self._key
        )

    def _digest_of_inputs(self) -> str:
        """Return what all measurements depend on, besides the variant itself."""
        digest = hashlib.sha256(encode_manifest(self._model.manifest))
        options = self._options
        for value in (
            *(__version__, options.num_pairs, options.max_keypoints),
            *(options.max_held_out, options.seed, self._recording.name),
        ):
            digest.update(f"{value}\n".encode())
        for image in self._images:
            digest.update(f"{image.shape}".encode() + image.tobytes())
        for recorded in self._recording.images:
            pose = recorded.cam_from_world
            digest.update(f"{recorded.name}\n".encode())
            if pose is not None:
                digest.update(pose.R.tobytes() + pose.t.tobytes())
        return digest.hexdigest()

    def _make_probe(self, is_features: bool) -> FeatureProbe | RetrievalProbe:
        if not is_features:
            return RetrievalProbe(self._images, truth=self._truth_network)
        step = max(1, len(self._images) // self._options.num_pairs)
        chosen = self._images[::step][: self._options.num_pairs]
        return FeatureProbe(
            warped_pairs(chosen, seed=self._options.seed),
            truth=self._truth_network,
            max_keypoints=self._options.max_keypoints,
        )

    def _make_gate(self) -> Gate:
        if isinstance(self._probe, RetrievalProbe):
            return NeighbourGate(self._probe)
        if self._split is None:
            return HomographyGate(self._probe)
        mapping, held_out = self._split
        return LocalizationGate.build(
            self._model.manifest_path,
            mapping=mapping,
            held_out=held_out,
            folder=self._work_path / f"map-{self._key[:16]}",
            max_keypoints=self._options.max_keypoints,
            progress=self._progress,
        )

    def result(self) -> QuantizeResult:
        truth = self._truth_result()
        if truth.score.recall <= 0.0:
            raise ModelError(
                f"{self._model.manifest_path}: float32 itself does not do the task on "
                f"{self._recording.name} ({self._gate_title}): nothing to compare "
                "variants with; give other images, or check the model"
            )
        statistics = None
        variants = [truth]
        for name in self._options.variants:
            precision, flavour = VARIANTS[name]
            if precision == "fp16":
                variants.append(self._half(name, truth.score))
                continue
            statistics = statistics or measure_activations(
                self._truth,
                self._images,
                spec=self._model.manifest.input,
                work=self._work,
                progress=self._progress,
            )
            variants.append(self._integer(name, flavour, statistics, truth.score))
        return QuantizeResult(
            model=self._model,
            variants=tuple(variants),
            gate_title=self._gate_title,
            error_name=self._error_name,
            num_queries=len(truth.score.errors) or len(self._images),
            recording=self._recording.name,
            num_images=len(self._images),
            options=self._options,
            pictures=self._pictures(variants),
            times_ms=self._times(variants),
            timed_px=self._timed_px(),
        )

    def _timed_px(self) -> tuple[int, int]:
        tensor = preprocess(self._images[0], self._model.manifest.input).tensor
        return int(tensor.shape[3]), int(tensor.shape[2])

    def _times(self, variants: Sequence[VariantResult]) -> dict[str, dict[int, float]]:
        """Return the median time of each variant, ms, run in turn with the others."""
        spec = self._model.manifest.input
        feed = {spec.name: preprocess(self._images[0], spec).tensor}
        times: dict[str, dict[int, float]] = {variant.name: {} for variant in variants}
        for threads in self._options.threads:
            kernels: dict[str, Kernel] = {
                variant.name: partial(
                    self._bench.open_backend(variant.data, threads=threads).run, feed
                )
                for variant in variants
            }
            for name, ns in time_kernels(kernels, rounds=_TIMED_ROUNDS).items():
                times[name][threads] = float(np.median(ns)) * 1e-6
        return times

    def _pictures(
        self, variants: Sequence[VariantResult]
    ) -> tuple[tuple[str, ByteArray], ...]:
        """Return what each variant matches in one pair of pictures."""
        if isinstance(self._probe, RetrievalProbe):
            return ()
        out = []
        for variant in variants:
            network = self._bench.open(variant.data)
            if variant.score.recall > 0:
                picture = draw_matches(self._probe, network, pair_idx=0)
                out.append((variant.name, picture))
        return tuple(out)

    def _truth_result(self) -> VariantResult:
        score = self._gate.score(self._truth)
        return VariantResult(
            name="fp32",
            data=self._model.network_path.read_bytes(),
            manifest=self._model.manifest,
            measurement=self._judge.measure(self._truth),
            trials=(Trial(float_layers=(), score=score, accepted=True),),
        )

    def _half(self, name: str, truth: GateScore) -> VariantResult:
        model, trials = search_float_layers(
            lambda _: half_model(self._truth),
            self._gate.score,
            truth=truth,
            order=list,
            limits=self._options.limits,
            progress=self._said(name),
        )
        return self._variant(name, model, trials=tuple(trials))

    def _integer(
        self, name: str, flavour: str, statistics: Statistics, truth: GateScore
    ) -> VariantResult:
        forced = self._options.float_layers
        calibrations = {}
        wanted = self._options.calibration
        methods = METHODS if wanted == "auto" else (wanted,)
        for method in track(methods, f"{name}: ranges", self._progress):
            make = self._maker(flavour, statistics, method)
            calibrations[method] = self._judge.measure(make(forced))
        best = min(methods, key=lambda method: calibrations[method].damage)
        make = self._maker(flavour, statistics, best)
        layers = layer_damages(
            self._truth, make, self._judge, progress=self._said(name)
        )
        model, trials = search_float_layers(
            make,
            self._gate.score,
            truth=truth,
            order=lambda: [entry.layer for entry in layers],
            limits=self._options.limits,
            float_layers=forced,
            progress=self._said(name),
        )
        return self._variant(
            name,
            model,
            calibration=best,
            calibrations=calibrations,
            layers=tuple(layers),
            trials=tuple(trials),
        )

    def _variant(
        self,
        name: str,
        model: onnx.ModelProto,
        *,
        trials: tuple[Trial, ...],
        calibration: str = "",
        calibrations: Mapping[str, Measurement] | None = None,
        layers: tuple[LayerDamage, ...] = (),
    ) -> VariantResult:
        precision, flavour = VARIANTS[name]
        data = to_bytes(model)
        return VariantResult(
            name=name,
            data=data,
            manifest=variant_manifest(
                self._model.manifest, data, precision=precision, flavour=flavour
            ),
            measurement=self._judge.measure(model),
            calibration=calibration,
            calibrations=calibrations or {},
            layers=layers,
            trials=trials,
        )

    def _said(self, name: str) -> Progress:
        def say(step: str, done: int, total: int) -> None:
            self._progress(f"{name}: {step}", done, total)

        return say

    def _maker(self, flavour: str, statistics: Statistics, method: str) -> Make:
        ranges = statistics.ranges(method)

        def make(float_layers: Collection[str]) -> onnx.ModelProto:
            return quantize_model(
                self._truth,
                ranges=ranges,
                flavour=flavour,
                float_layers=float_layers,
                weight_bits=WEIGHT_BITS[flavour],
            )

        return make
