"""Engines on disk: TensorRT's plan, and beside it the JSON that says what it is for.

A plan belongs to one network, one version of TensorRT, one kind of GPU. Nothing of that
can be read off the plan, and TensorRT runs what is in it: so it is opened only when its
`EngineRecord` names this model, this TensorRT and this GPU, and its SHA-256 fits. All
else is an error that says what is stale; `edgeloc-build engine` builds anew, the frame
loop never does.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from edgeloc.errors import BackendUnavailableError, ModelError
from edgeloc.fields import Field, parse_json
from edgeloc.inference.manifest import PRECISIONS, InputSpec, Model
from edgeloc.inference.trt import BACKENDS

FORMAT_NAME = "edgeloc-engine"
FORMAT_VERSION = 1
FOLDER = "engines"
"""Beside the model's manifest, unless another folder is named."""
ANY_GPU = "any"
"""Compute capability of plans that are compiled for the GPU when they are opened."""

_MAX_RECORD_BYTES = 64 << 10
_MAX_PLAN_BYTES = 2 << 30
_MAX_SIDE_PX = 1 << 14
_KEYS = (
    *("format", "version", "model", "model_sha256", "network", "network_sha256"),
    *("backend", "tensorrt", "compute_capability", "precision", "strongly_typed"),
    *("sizes", "sha256", "num_bytes", "layers", "agreement"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKey:
    """What an engine depends on; another value of any of them makes it stale.

    Parameters
    ----------
    model_sha256 : str
        Of the ONNX file that the manifest names, not of the flavour it was built from.
    backend : {"tensorrt", "tensorrt-rtx"}
        What built it.
    tensorrt : str
        Version.
    compute_capability : str
        Of the GPU, "8.7", or `ANY_GPU`.
    """

    model_sha256: str
    backend: str
    tensorrt: str
    compute_capability: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSizes:
    """Heights and widths that an engine takes, px.

    Parameters
    ----------
    least, usual, most : (int, int)
        Height and width; `usual` is what the engine is tuned for.
    """

    least: tuple[int, int]
    usual: tuple[int, int]
    most: tuple[int, int]

    def __post_init__(self) -> None:
        for low, middle, high in zip(self.least, self.usual, self.most, strict=True):
            if not 1 <= low <= middle <= high:
                raise ModelError(
                    f"sizes {self.least}, {self.usual}, {self.most} do not ascend"
                )

    def takes(self, height: int, width: int) -> bool:
        """Whether an engine takes an input of this size."""
        return (
            self.least[0] <= height <= self.most[0]
            and self.least[1] <= width <= self.most[1]
        )


LEAST_SIDE_PX = 64
"""Of an input whose size is free: TRACK looks at strips of the picture."""


def input_sizes(spec: InputSpec, *, width: int, height: int) -> InputSizes:
    """Return what an engine for images of a camera must take.

    Parameters
    ----------
    spec : InputSpec
        Of the network.
    width, height : int
        Of the images, px; without effect where the network has a size of its own.
        They may come turned by a right angle.
    """
    if spec.size is not None:
        return InputSizes(least=spec.size, usual=spec.size, most=spec.size)

    def padded(side: int) -> int:
        return -(-side // spec.size_multiple) * spec.size_multiple

    usual = (padded(height), padded(width))
    least, most = min(padded(LEAST_SIDE_PX), *usual), max(usual)
    return InputSizes(least=(least, least), usual=usual, most=(most, most))


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """What is known of an engine.

    Parameters
    ----------
    key : EngineKey
        What it depends on.
    model : str
        Name of the model, for people.
    network, network_sha256 : str
        Name and SHA-256 of what it was built from: a variant of the model.
    precision : {"fp32", "fp16", "int8"}
        Of that network.
    strongly_typed : bool
        Whether every tensor has the type that the ONNX file says.
    sizes : InputSizes
        What it takes.
    sha256 : str
        Of the plan.
    num_bytes : int
        Of the plan.
    layers : dict of str to int
        Layers that multiply by their precision, as far as TensorRT told.
    agreement : float or None
        Least cosine between its outputs and those of ONNX Runtime on real images; None
        when there was no GPU to compare on.
    """

    key: EngineKey
    model: str
    network: str
    network_sha256: str
    precision: str
    strongly_typed: bool
    sizes: InputSizes
    sha256: str = "0" * 64
    num_bytes: int = 1
    layers: dict[str, int]
    agreement: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFiles:
    """Where an engine is.

    Parameters
    ----------
    plan, record, cache : Path
        The plan, its record, and what TensorRT for RTX compiled of it on this machine.
    """

    plan: Path
    record: Path
    cache: Path


def engine_files(model: Model, backend: str, *, folder: Path | None) -> EngineFiles:
    """Return where a model's engine is, whether it is there or not.

    Parameters
    ----------
    model : Model
        The model.
    backend : {"tensorrt", "tensorrt-rtx"}
        What runs it.
    folder : Path or None
        Of engines; None = `FOLDER` beside the manifest.
    """
    if folder is None:
        folder = model.manifest_path.parent / FOLDER
    stem = f"{model.manifest.name}-{backend}"
    return EngineFiles(
        plan=folder / f"{stem}.plan",
        record=folder / f"{stem}.json",
        cache=folder / f"{stem}.cache",
    )


def encode_record(record: EngineRecord) -> bytes:
    """Return the text of a record."""
    key = record.key
    document = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "model": record.model,
        "model_sha256": key.model_sha256,
        "network": record.network,
        "network_sha256": record.network_sha256,
        "backend": key.backend,
        "tensorrt": key.tensorrt,
        "compute_capability": key.compute_capability,
        "precision": record.precision,
        "strongly_typed": record.strongly_typed,
        "sizes": [record.sizes.least, record.sizes.usual, record.sizes.most],
        "sha256": record.sha256,
        "num_bytes": record.num_bytes,
        "layers": record.layers,
        "agreement": record.agreement,
    }
    raw = json.dumps(document, indent=2).encode() + b"\n"
    decode_record(raw)
    return raw


def decode_record(raw: bytes) -> EngineRecord:
    """Return what the text of a record says.

    Raises
    ------
    ModelError
        With the field that is wrong.
    """
    root = parse_json(raw, ModelError)
    top = root.members()
    top.get("format", Field("format", None, ModelError)).choice((FORMAT_NAME,))
    version = top.get("version", Field("version", None, ModelError))
    if version.integer(0, 2**53) != FORMAT_VERSION:
        version.fail(f"{FORMAT_VERSION}, all that this edgeloc reads")
    fields = root.members(_KEYS)
    sides = []
    for size in fields["sizes"].items(3):
        height, width = (side.integer(1, _MAX_SIDE_PX) for side in size.items(2))
        sides.append((height, width))
    agreement = fields["agreement"]
    return EngineRecord(
        key=EngineKey(
            model_sha256=fields["model_sha256"].sha256(),
            backend=fields["backend"].choice(BACKENDS),
            tensorrt=fields["tensorrt"].text(),
            compute_capability=fields["compute_capability"].text(),
        ),
        model=fields["model"].text(),
        network=fields["network"].text(),
        network_sha256=fields["network_sha256"].sha256(),
        precision=fields["precision"].choice(PRECISIONS),
        strongly_typed=fields["strongly_typed"].flag(),
        sizes=InputSizes(least=sides[0], usual=sides[1], most=sides[2]),
        sha256=fields["sha256"].sha256(),
        num_bytes=fields["num_bytes"].integer(1, _MAX_PLAN_BYTES),
        layers={
            name: count.integer(0, 1 << 20)
            for name, count in fields["layers"].members().items()
        },
        agreement=None if agreement.value is None else agreement.number(-1.0, 1.0),
    )


def read_record(files: EngineFiles) -> EngineRecord:
    """Return the record of an engine.

    Raises
    ------
    BackendUnavailableError
        When there is no engine.
    ModelError
        When the record is broken.
    """
    try:
        with files.record.open("rb") as file:
            raw = file.read(_MAX_RECORD_BYTES + 1)
    except FileNotFoundError as exc:
        raise BackendUnavailableError(f"{files.record}: no such engine") from exc
    except OSError as exc:
        raise ModelError(f"{files.record}: cannot be read ({exc.strerror})") from exc
    if len(raw) > _MAX_RECORD_BYTES:
        raise ModelError(f"{files.record}: has more than {_MAX_RECORD_BYTES} bytes")
    try:
        return decode_record(raw)
    except ModelError as exc:
        raise ModelError(f"{files.record}: {exc}") from exc


def staleness(record: EngineRecord, key: EngineKey) -> str:
    """Return what an engine was built for instead of what is wanted; "" when it fits.

    Parameters
    ----------
    record : EngineRecord
        Of the engine.
    key : EngineKey
        Of this model on this machine.
    """
    had = record.key
    reasons = []
    if had.model_sha256 != key.model_sha256:
        reasons.append(
            f"for another version of the model (SHA-256 {had.model_sha256[:12]}, here "
            f"{key.model_sha256[:12]})"
        )
    if had.backend != key.backend:
        reasons.append(f"by {had.backend}, here {key.backend} is to run it")
    elif had.tensorrt != key.tensorrt:
        reasons.append(f"by TensorRT {had.tensorrt}, here {key.tensorrt} is installed")
    if had.compute_capability != key.compute_capability:
        reasons.append(
            f"for a GPU of compute capability {had.compute_capability}, this one has "
            f"{key.compute_capability}"
        )
    return "was built " + " and ".join(reasons) if reasons else ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Engine:
    """A plan that was found to be the right one.

    Parameters
    ----------
    record : EngineRecord
        What is known of it.
    plan : bytes
        For TensorRT.
    files : EngineFiles
        Where it came from.
    """

    record: EngineRecord
    plan: bytes
    files: EngineFiles


def read_engine(files: EngineFiles, key: EngineKey) -> Engine:
    """Return an engine that was built for this model on this machine.

    Raises
    ------
    BackendUnavailableError
        When there is none, or a stale one.
    ModelError
        When the record or the plan is broken.
    """
    record = read_record(files)
    if stale := staleness(record, key):
        raise BackendUnavailableError(f"{files.plan}: {stale}")
    try:
        with files.plan.open("rb") as file:
            plan = file.read(record.num_bytes + 1)
    except OSError as exc:
        raise ModelError(
            f"{files.plan}: cannot be read ({exc.strerror}), {files.record.name} names "
            "it"
        ) from exc
    if len(plan) != record.num_bytes:
        size = "more" if len(plan) > record.num_bytes else str(len(plan))
        raise ModelError(
            f"{files.plan}: has {size} bytes, {files.record.name} says "
            f"{record.num_bytes}"
        )
    if hashlib.sha256(plan).hexdigest() != record.sha256:
        raise ModelError(
            f"{files.plan}: is not the plan that {files.record.name} was written for "
            "(SHA-256)"
        )
    return Engine(record=record, plan=plan, files=files)
