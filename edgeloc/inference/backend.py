"""Where networks run: chosen once, said aloud, never descended from in silence."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgeloc import __version__
from edgeloc.errors import BackendUnavailableError, ConfigError, ModelError
from edgeloc.inference.manifest import Model
from edgeloc.types import Float32Array

_log = logging.getLogger(__name__)

_CUDA = "CUDAExecutionProvider"


class Backend(Protocol):
    """A network that is ready to run."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """What `run` needs."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """What `run` gives."""

    def run(self, inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
        """Return all outputs by name.

        Raises
        ------
        ModelError
            When the network does not take these inputs, or fails.
        """

    def describe(self) -> str:
        """Return where it runs, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendOptions:
    """Where and how networks run.

    Parameters
    ----------
    backend : {"auto", "ort-cpu", "ort-cuda", "tensorrt", "tensorrt-rtx"}
        Where; "auto" takes CUDA where ONNX Runtime has it.
    threads : int
        Of each network on the CPU.
    """

    backend: str = "auto"
    threads: int = 1

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ConfigError(f"threads {self.threads} must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendChoice:
    """A backend that exists here.

    Parameters
    ----------
    name : {"ort-cpu", "ort-cuda"}
        Which.
    reason : str
        Why, when it was not asked for by name.
    """

    name: str
    reason: str = ""


def choose_backend(backend: str) -> BackendChoice:
    """Return where networks run.

    Raises
    ------
    BackendUnavailableError
        When what was asked for is not here; with what to do.
    """
    if backend in {"tensorrt", "tensorrt-rtx"}:
        raise BackendUnavailableError(
            f"--backend {backend}: edgeloc {__version__} has no TensorRT backend yet; "
            "use --backend auto, ort-cuda or ort-cpu"
        )
    if backend == "ort-cpu":
        return BackendChoice(name="ort-cpu")
    from onnxruntime import (  # type: ignore[import-untyped]
        get_available_providers,
    )

    providers = get_available_providers()
    if _CUDA in providers:
        return BackendChoice(name="ort-cuda", reason=f"this onnxruntime has {_CUDA}")
    if backend == "ort-cuda":
        raise BackendUnavailableError(
            f"--backend ort-cuda: this onnxruntime has no {_CUDA} (it has "
            f"{', '.join(providers)}); install onnxruntime-gpu in its place, or use "
            "--backend auto or ort-cpu"
        )
    return BackendChoice(name="ort-cpu", reason=f"this onnxruntime has no {_CUDA}")


def open_backend(model: Model, options: BackendOptions) -> Backend:
    """Return a network that is ready to run.

    Parameters
    ----------
    model : Model
        From `load_model`.
    options : BackendOptions
        Where to run it; for "auto" the choice and its reason are logged.

    Raises
    ------
    BackendUnavailableError
        When what was asked for is not here.
    ModelError
        When the network and its manifest contradict each other, or it does not load.
    """
    from edgeloc.inference.ort import OrtBackend

    manifest = model.manifest
    choice = choose_backend(options.backend)
    if manifest.flavour == "tensorrt":
        raise ModelError(
            f"{model.manifest_path}: flavour is 'tensorrt', which {choice.name} would "
            "run slowly or not at all; use the model's cpu flavour"
        )
    try:
        backend = OrtBackend(model.network_path, choice.name, threads=options.threads)
    except BackendUnavailableError as exc:
        if options.backend != "auto":
            raise
        # CUDA is in the package and yet not on the machine.
        choice = BackendChoice(name="ort-cpu", reason=str(exc))
        backend = OrtBackend(model.network_path, choice.name, threads=options.threads)
    if options.backend == "auto":
        _log.info(
            "backend auto: %s for %s: %s", choice.name, manifest.name, choice.reason
        )
    _check_names(model, backend)
    return backend


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
