"""Where networks run: chosen once, said aloud, never descended from in silence."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from edgeloc.errors import BackendUnavailableError, ConfigError, ModelError
from edgeloc.inference.manifest import Model
from edgeloc.inference.trt import BACKENDS as TENSORRT
from edgeloc.inference.variants import find_variant
from edgeloc.types import Float32Array

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_PROVIDERS = {
    "ort-cuda": "CUDAExecutionProvider",
    "ort-tensorrt": "TensorrtExecutionProvider",
}
_GPU_VARIANTS = {
    # A GPU has no use for INT8 that was rounded for a CPU, see `find_variant`.
    "ort-cuda": (("fp16", "any"), ("fp32", "any")),
    "ort-tensorrt": (("int8", "tensorrt"), ("fp16", "any"), ("fp32", "any")),
}
_AUTO = ("tensorrt", "tensorrt-rtx", "ort-cuda")
"""What "auto" takes, best first, before the CPU. Not ort-tensorrt: it builds engines
when it meets a new size, in the middle of a run."""


class Pending(Protocol):
    """Outputs that are being computed."""

    def collect(self) -> dict[str, Float32Array]:
        """Wait, and return all outputs by name; once per `Backend.submit`.

        Raises
        ------
        ModelError
            When the network failed, or another submit came in between.
        """


class Backend(Protocol):
    """A network that is ready to run."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """What `run` needs."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """What `run` gives."""

    @property
    def asynchronous(self) -> bool:
        """Whether `submit` returns before the work is done."""

    def run(self, inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
        """Return all outputs by name.

        Raises
        ------
        ModelError
            When the network does not take these inputs, or fails.
        """

    def submit(self, inputs: Mapping[str, Float32Array]) -> Pending:
        """Begin to compute; the inputs may be changed as soon as this returns.

        What is not collected before the next submit of inputs of the same size is lost.

        Raises
        ------
        ModelError
            As `run`.
        """

    def describe(self) -> str:
        """Return where it runs, for people."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Done:
    """Outputs of a backend that is not asynchronous.

    Parameters
    ----------
    outputs : dict of str to ndarray
        By name.
    """

    outputs: dict[str, Float32Array]

    def collect(self) -> dict[str, Float32Array]:
        """Return them; see `Pending.collect`."""
        return self.outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendOptions:
    """Where and how networks run.

    Parameters
    ----------
    backend : {"auto", "ort-cpu", "ort-cuda", "ort-tensorrt", "tensorrt", \
"tensorrt-rtx"}
        Where; "auto" takes the first of `_AUTO` that can run the model, else the CPU.
    threads : int
        Of each network on the CPU.
    engines : Path or None
        Folder of TensorRT's engines; None = ``engines`` beside the model's manifest.
    """

    backend: str = "auto"
    threads: int = 1
    engines: Path | None = None

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ConfigError(f"threads {self.threads} must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendChoice:
    """A backend that exists here.

    Parameters
    ----------
    name : {"ort-cpu", "ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx"}
        Which.
    reason : str
        Why, when it was not asked for by name.
    """

    name: str
    reason: str = ""


def choose_backend(backend: str) -> BackendChoice:
    """Return where networks run, as far as that can be said without a model.

    Raises
    ------
    BackendUnavailableError
        When what was asked for is not here; with what to do.
    """
    if backend != "auto":
        return BackendChoice(name=backend, reason=_require(backend))
    choice, reason = _first_of_auto(lambda name: BackendChoice(name=name))
    return BackendChoice(name=choice.name if choice else "ort-cpu", reason=reason)


def _first_of_auto(make: Callable[[str], _T]) -> tuple[_T | None, str]:
    """Return what can be made with the best backend, if any, and why that one."""
    reasons = []
    made: _T | None = None
    for name in _AUTO:
        made, reason = _attempt(name, make)
        reasons += [reason] if reason else []
        if made is not None:
            break
    # Nearest to the choice comes first.
    return made, "; ".join(reversed(reasons))


def _attempt(name: str, make: Callable[[str], _T]) -> tuple[_T | None, str]:
    try:
        reason = _require(name)
        return make(name), reason
    except BackendUnavailableError as exc:
        # It may be in the package, and yet not work on the machine.
        return None, _worth_saying(name, exc)


def _require(name: str) -> str:
    """Return why a backend can be used; raise unless it can."""
    if name in _PROVIDERS:
        from onnxruntime import (  # type: ignore[import-untyped]
            get_available_providers,
        )

        provider, providers = _PROVIDERS[name], get_available_providers()
        if provider not in providers:
            raise BackendUnavailableError(
                f"--backend {name}: this onnxruntime has no {provider} (it has "
                f"{', '.join(providers)}); install onnxruntime-gpu in its place, or "
                "use --backend auto or ort-cpu"
            )
        return f"this onnxruntime has {provider}"
    if name in TENSORRT:
        from edgeloc.inference.trt import require_tensorrt

        return require_tensorrt(name)
    return ""


def _worth_saying(name: str, error: BackendUnavailableError) -> str:
    """Return why "auto" does not take a backend, where somebody might expect it to."""
    text = str(error).removeprefix("--backend ")
    if name not in TENSORRT:
        return text.partition(": ")[2].partition(" (it has")[0].partition("; ")[0]
    from edgeloc.inference.trt import is_installed

    if not is_installed(name):
        return ""
    return text.removesuffix(", or use --backend auto")


def open_backend(model: Model, options: BackendOptions) -> Backend:
    """Return a network that is ready to run.

    Parameters
    ----------
    model : Model
        From `load_model`.
    options : BackendOptions
        Where to run it; for "auto" the choice and its reason are logged. Heads that
        take descriptors run on the CPU whatever it says.

    Raises
    ------
    BackendUnavailableError
        When what was asked for is not here.
    ModelError
        When the network and its manifest contradict each other, or it does not load.
    """
    if not model.manifest.takes_pictures:
        # A few products of matrices: sending them to a GPU takes longer.
        backend = _open(model, "ort-cpu", options)
    elif options.backend != "auto":
        _require(options.backend)
        backend = _open(model, options.backend, options)
    else:
        best, reason = _first_of_auto(lambda name: _open(model, name, options))
        backend = best or _open(model, "ort-cpu", options)
        _log.info(
            "backend auto: %s for %s%s%s",
            backend.describe().partition(" ")[0],
            model.manifest.name,
            ": " if reason else "",
            reason,
        )
    _check_names(model, backend)
    return backend


def _open(model: Model, name: str, options: BackendOptions) -> Backend:
    if name in TENSORRT:
        from edgeloc.inference.tensorrt import open_engine

        return open_engine(model, name, folder=options.engines)
    from edgeloc.inference.ort import OrtBackend, tensorrt_options

    if name in _GPU_VARIANTS:
        model = find_variant(model, _GPU_VARIANTS[name]) or model
    manifest = model.manifest
    if name == "ort-tensorrt":
        if manifest.flavour == "cpu":
            raise ModelError(
                f"{model.manifest_path}: flavour is 'cpu', which TensorRT refuses, and "
                "no other variant is beside it; write one with edgeloc-build quantize "
                "--variants int8-tensorrt"
            )
        return OrtBackend(
            model.network_path,
            name,
            threads=options.threads,
            provider_options=tensorrt_options(model, folder=options.engines),
        )
    if manifest.flavour == "tensorrt":
        raise ModelError(
            f"{model.manifest_path}: flavour is 'tensorrt', which {name} would "
            "run slowly or not at all; use the model's cpu flavour"
        )
    return OrtBackend(model.network_path, name, threads=options.threads)


def _check_names(model: Model, backend: Backend) -> None:
    manifest = model.manifest
    if backend.input_names != (manifest.input.name,):
        raise ModelError(
            f"{model.manifest_path}: input.name is {manifest.input.name!r}, the "
            f"network takes {', '.join(map(repr, backend.input_names))}"
        )
    for key, name in manifest.outputs.items():
        if name not in backend.output_names:
            raise ModelError(
                f"{model.manifest_path}: outputs.{key} is {name!r}, the network gives "
                f"{', '.join(map(repr, backend.output_names))}"
            )


def all_finite(array: npt.NDArray[np.generic]) -> bool:
    """Return whether an array has neither NaN nor infinity."""
    # One sum is much cheaper than a mask; only an overflow needs the mask.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.sum(array)) or np.all(np.isfinite(array)))
