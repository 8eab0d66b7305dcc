"""Engines of models: which ONNX file, built, compared with ONNX Runtime, written.

Nothing here needs more than the device half, so that engines can be built on the device
itself; only float16 files that nobody has written yet need the package onnx.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from edgeloc.errors import BackendUnavailableError, ModelError
from edgeloc.inference.cuda import Device
from edgeloc.inference.engine import (
    Engine,
    EngineFiles,
    EngineRecord,
    InputSizes,
    encode_record,
    engine_files,
    read_engine,
)
from edgeloc.inference.manifest import Model
from edgeloc.inference.ort import OrtBackend
from edgeloc.inference.preprocess import preprocess
from edgeloc.inference.tensorrt import TensorRtBackend, engine_key
from edgeloc.inference.trt import TensorRt
from edgeloc.inference.variants import find_variant
from edgeloc.types import ByteArray, Float32Array
from edgeloc_tools.files import write_atomically
from edgeloc_tools.learn.engine_build import BuildOptions, build_plan
from edgeloc_tools.learn.engine_layers import (
    EngineLayer,
    count_precisions,
    layers_of_inspector,
)
from edgeloc_tools.progress import Progress, silent

LEAST_AGREEMENT = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.99}
"""Cosine between an engine's outputs and those of ONNX Runtime on the same ONNX file:
they differ by the order of sums, and in INT8 by what falls on either side of a step."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EngineSource:
    """The ONNX file that an engine is built from.

    Parameters
    ----------
    name : str
        Of the variant.
    network : bytes
        ONNX file.
    precision : {"fp32", "fp16", "int8"}
        That the engine will have.
    half : bool
        Whether TensorRT is to choose float16 by itself.
    """

    name: str
    network: bytes
    precision: str
    half: bool = False

    @property
    def sha256(self) -> str:
        """Of the ONNX file."""
        return hashlib.sha256(self.network).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EngineRequest:
    """An engine that is wanted.

    Parameters
    ----------
    model : Model
        What for.
    precision : {"fp32", "fp16", "int8"}
        Of the engine.
    sizes : InputSizes
        What it takes.
    folder : Path or None
        Of engines; None = beside the manifest.
    """

    model: Model
    precision: str
    sizes: InputSizes
    folder: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MadeEngine:
    """An engine that was made.

    Parameters
    ----------
    record : EngineRecord
        As it was written.
    layers : tuple of EngineLayer
        As far as TensorRT told.
    """

    record: EngineRecord
    layers: tuple[EngineLayer, ...]


def find_source(model: Model, precision: str, library: TensorRt) -> EngineSource:
    """Return what an engine of a model is built from.

    Parameters
    ----------
    model : Model
        Any variant of it.
    precision : {"fp32", "fp16", "int8"}
        Wanted.
    library : TensorRt
        What builds.

    Raises
    ------
    ModelError
        When there is no such variant, with how to make one.
    """
    flavour = "tensorrt" if precision == "int8" else "any"
    found = find_variant(model, [(precision, flavour)])
    if found is not None:
        return EngineSource(
            name=found.manifest.name,
            network=found.network_path.read_bytes(),
            precision=precision,
        )
    truth = find_variant(model, [("fp32", "any")])
    variant = {"int8": "int8-tensorrt"}.get(precision, precision)
    if precision != "fp16" or truth is None:
        raise ModelError(
            f"{model.manifest_path}: no {variant} variant of {model.manifest.name} is "
            "beside it or among the models of this edgeloc; write one there with "
            f"edgeloc-build quantize --variants {variant}"
            f"{', or use --precision fp16' if precision == 'int8' and truth else ''}"
        )
    network = _half_network(truth, library)
    return EngineSource(
        name=f"{truth.manifest.name}-fp16",
        network=network or truth.network_path.read_bytes(),
        precision="fp16",
        half=network is None,
    )


def _half_network(truth: Model, library: TensorRt) -> bytes | None:
    """Return the float16 file of a float32 model; None to leave it to TensorRT 10.x."""
    try:
        from edgeloc_tools.learn.graph import load_truth, to_bytes
        from edgeloc_tools.learn.half import half_model
    except ImportError as exc:
        if library.weak_typing:
            return None
        raise ModelError(
            f"{truth.manifest_path}: making its float16 variant needs the package "
            "onnx; pip install onnx, or write it on a workstation with edgeloc-build "
            "quantize --variants fp16"
        ) from exc
    return to_bytes(half_model(load_truth(truth.network_path)))


def outdated(request: EngineRequest, library: TensorRt, device: Device | None) -> str:
    """Return why an engine must be built, "" when there is a fresh one.

    Parameters
    ----------
    request : EngineRequest
        What is wanted.
    library : TensorRt
        What will run it.
    device : Device or None
        The GPU; None only for TensorRT for RTX.
    """
    files = engine_files(request.model, library.backend, folder=request.folder)
    try:
        record = read_engine(files, engine_key(request.model, library, device)).record
    except (BackendUnavailableError, ModelError) as exc:
        return str(exc)
    wanted, had = request.sizes, record.sizes
    if record.precision != request.precision:
        return f"{files.plan}: is {record.precision}, {request.precision} is wanted"
    if not (had.takes(*wanted.least) and had.takes(*wanted.most)):
        return (
            f"{files.plan}: takes up to {had.most[1]}x{had.most[0]} px, "
            f"{wanted.most[1]}x{wanted.most[0]} is wanted"
        )
    source = find_variant(
        request.model,
        [(record.precision, "tensorrt" if record.precision == "int8" else "any")],
    )
    if source is not None and source.manifest.sha256 != record.network_sha256:
        return f"{files.plan}: was built from another version of {record.network}"
    return ""


def make_engine(
    request: EngineRequest,
    library: TensorRt,
    device: Device | None,
    *,
    images: Sequence[ByteArray] = (),
    progress: Progress = silent,
) -> MadeEngine:
    """Build an engine, compare it with ONNX Runtime where there is a GPU, and write it.

    Parameters
    ----------
    request : EngineRequest
        What is wanted.
    library : TensorRt
        What builds.
    device : Device or None
        The GPU; without one nothing is compared, and only RTX builds.
    images : sequence of ndarray of shape (H, W) or (H, W, 3), uint8
        To compare on.
    progress : callable
        Told about the steps.

    Raises
    ------
    BackendUnavailableError
        When the GPU is missing that TensorRT needs to build.
    ModelError
        When there is nothing to build from, TensorRT refuses it, or its outputs are
        others than those of ONNX Runtime; nothing is written then.
    """
    model = request.model
    source = find_source(model, request.precision, library)
    files = engine_files(model, library.backend, folder=request.folder)
    files.plan.parent.mkdir(parents=True, exist_ok=True)
    timing = files.plan.with_name(f"{library.backend}.timing")
    options = BuildOptions(
        sizes=request.sizes,
        half=source.half,
        timing_cache=timing.read_bytes() if timing.is_file() else b"",
    )
    try:
        built = build_plan(
            source.network,
            model.manifest.input,
            library,
            options=options,
            progress=lambda step, done, total: progress(
                f"{source.name}: {step.lower()}", done, total
            ),
        )
    except ModelError as exc:
        raise type(exc)(f"{source.name}: {exc}") from exc
    if built.timing_cache:
        write_atomically(timing, built.timing_cache)
    record = EngineRecord(
        key=engine_key(model, library, device),
        model=model.manifest.name,
        network=source.name,
        network_sha256=source.sha256,
        precision=source.precision,
        strongly_typed=built.strongly_typed,
        sizes=request.sizes,
        layers=count_precisions(built.layers),
    )
    if device is None:
        record = write_engine(files, record, built.plan)
        return MadeEngine(record=record, layers=built.layers)
    return _compared(
        model,
        source,
        Engine(record=record, plan=built.plan, files=files),
        library=library,
        device=device,
        images=images,
    )


def _compared(
    model: Model,
    source: EngineSource,
    engine: Engine,
    *,
    library: TensorRt,
    device: Device,
    images: Sequence[ByteArray],
) -> MadeEngine:
    """Run an engine on the GPU before it is written."""
    files = engine.files
    files.cache.unlink(missing_ok=True)  # of the plan before
    backend = TensorRtBackend(engine, library, device, settled=True)
    try:
        layers = tuple(layers_of_inspector(backend.layer_information()))
        agreement = engine_agreement(
            backend, model, source, sizes=engine.record.sizes, images=images
        )
        compiled = backend.compiled
    finally:
        backend.close()
    least = LEAST_AGREEMENT[source.precision]
    if not agreement >= least:
        raise ModelError(
            f"{source.name}: the engine's outputs have a cosine of {agreement:.5f} "
            f"with those of ONNX Runtime on {len(images)} images, at least {least:g} "
            "is wanted; the engine was not kept"
        )
    record = replace(
        engine.record, layers=count_precisions(layers), agreement=agreement
    )
    record = write_engine(files, record, engine.plan)
    if compiled:
        write_atomically(files.cache, compiled)
    return MadeEngine(record=record, layers=layers)


def engine_agreement(
    backend: TensorRtBackend,
    model: Model,
    source: EngineSource,
    *,
    sizes: InputSizes,
    images: Sequence[ByteArray],
) -> float:
    """Return the least cosine between an engine's outputs and ONNX Runtime's.

    Parameters
    ----------
    backend : TensorRtBackend
        The engine.
    model : Model
        Whose preprocessing.
    source : EngineSource
        What ONNX Runtime runs.
    sizes : InputSizes
        Of the engine.
    images : sequence of ndarray of shape (H, W) or (H, W, 3), uint8
        Resized to the size that the engine is tuned for.
    """
    if not images:
        raise ModelError("there are no images to compare the engine on")
    spec = model.manifest.input
    height, width = sizes.usual
    worst = 1.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{source.name}.onnx"
        path.write_bytes(source.network)
        reference = OrtBackend(path, "ort-cpu", threads=1)
        for image in images:
            resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            tensor = preprocess(np.asarray(resized, np.uint8), spec).tensor
            expected = reference.run({spec.name: tensor})
            got = backend.run({spec.name: tensor})
            for name in model.manifest.outputs.values():
                worst = min(worst, cosine(expected[name], got[name]))
    return worst


def cosine(a: Float32Array, b: Float32Array) -> float:
    """Return the cosine between two arrays of the same shape; -1 for NaN."""
    if a.shape != b.shape:
        raise ModelError(f"an output has shape {b.shape}, ONNX Runtime's {a.shape}")
    x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    if norm == 0.0:
        return 1.0 if np.array_equal(x, y) else -1.0
    value = float(x @ y) / norm
    return value if np.isfinite(value) else -1.0


def write_engine(files: EngineFiles, record: EngineRecord, plan: bytes) -> EngineRecord:
    """Write an engine so that a reader finds the old one, the new one, or an error.

    Parameters
    ----------
    files : EngineFiles
        Where; the folder is made when it is not there.
    record : EngineRecord
        What is known of it; its `sha256` and `num_bytes` are replaced.
    plan : bytes
        For TensorRT.

    Returns
    -------
    EngineRecord
        As it was written.
    """
    digest = hashlib.sha256(plan).hexdigest()
    record = replace(record, sha256=digest, num_bytes=len(plan))
    raw = encode_record(record)
    files.plan.parent.mkdir(parents=True, exist_ok=True)
    # What was compiled of the plan before is of no use for this one.
    files.cache.unlink(missing_ok=True)
    write_atomically(files.plan, plan)
    write_atomically(files.record, raw)
    return record
