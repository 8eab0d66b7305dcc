"""ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from onnxruntime.capi import (  # type: ignore[import-untyped]
    onnxruntime_pybind11_state as _state,
)

from edgeloc.errors import BackendUnavailableError, ModelError
from edgeloc.inference.backend import Done
from edgeloc.inference.engine import FOLDER, InputSizes, input_sizes
from edgeloc.inference.manifest import Model
from edgeloc.types import Float32Array

# ONNX Runtime's errors have no common base but Exception.
_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(
        kind
        for kind in vars(_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
)
_PROVIDERS = {
    "ort-cpu": ("CPUExecutionProvider",),
    "ort-cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "ort-tensorrt": (
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ),
}
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_MAX_REASON = 200


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}..."


class OrtBackend:
    """A network in an ONNX Runtime session.

    Parameters
    ----------
    path : Path
        ONNX file.
    name : {"ort-cpu", "ort-cuda", "ort-tensorrt"}
        Where it runs.
    threads : int
        Of the CPU.
    provider_options : mapping of str to str, optional
        Of the execution provider that the name stands for.

    Raises
    ------
    BackendUnavailableError
        When the session does not run where it was told to.
    ModelError
        When the file is no network that ONNX Runtime can run.
    """

    asynchronous = False

    def __init__(
        self,
        path: Path,
        name: str,
        *,
        threads: int,
        provider_options: Mapping[str, str] | None = None,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # Spinning threads keep cores busy for a second after each run.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # problems come as exceptions
        first, *others = _PROVIDERS[name]
        providers = [(first, dict(provider_options or {})), *others]
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), sess_options=options, providers=providers
            )
        except _ERRORS as exc:
            raise ModelError(f"{path}: is no network to run: {_reason(exc)}") from exc
        if self._session.get_providers()[0] != first:
            raise BackendUnavailableError(
                f"--backend {name}: {first} does not start on this machine; "
                "check the driver and the CUDA and cuDNN libraries, or use "
                "--backend ort-cpu"
            )
        self._path = path
        self._name = name
        self._threads = threads
        self._dtypes = {}
        for node in self._session.get_inputs():
            if node.type not in _DTYPES or len(node.shape) != 4:
                raise ModelError(
                    f"{path}: input {node.name!r} is {node.type} of rank "
                    f"{len(node.shape)}, expected float or float16 of rank 4"
                )
            self._dtypes[node.name] = _DTYPES[node.type]
        self._outputs = tuple(node.name for node in self._session.get_outputs())

    @property
    def input_names(self) -> tuple[str, ...]:
        """What `run` needs."""
        return tuple(self._dtypes)

    @property
    def output_names(self) -> tuple[str, ...]:
        """What `run` gives."""
        return self._outputs

    def run(self, inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
        """Return all outputs by name; see `Backend.run`."""
        if set(inputs) != set(self._dtypes):
            raise ModelError(
                f"{self._path}: takes {sorted(self._dtypes)}, got {sorted(inputs)}"
            )
        feed = {
            name: np.asarray(array, self._dtypes[name])
            for name, array in inputs.items()
        }
        try:
            outputs = self._session.run(self._outputs, feed)
        except _ERRORS as exc:
            shapes = ", ".join(f"{k} {v.shape}" for k, v in inputs.items())
            raise ModelError(
                f"{self._path}: fails on {shapes}: {_reason(exc)}"
            ) from exc
        return {
            name: np.asarray(output, np.float32)
            for name, output in zip(self._outputs, outputs, strict=True)
        }

    def submit(self, inputs: Mapping[str, Float32Array]) -> Done:
        """Compute at once; see `Backend.submit`."""
        return Done(outputs=self.run(inputs))

    def describe(self) -> str:
        """Return where it runs, for people."""
        threads = f", {self._threads} thread{'s' * (self._threads > 1)}"
        return f"{self._name} (onnxruntime {onnxruntime.__version__}{threads})"


_PROFILE_PX = (640, 480), (1920, 1088)
"""Usual and largest image whose engines onnxruntime builds in advance."""


def tensorrt_options(model: Model, *, folder: Path | None) -> dict[str, str]:
    """Return the options of onnxruntime's TensorRT provider.

    It builds engines by itself: when a session begins for the sizes named here, and
    for any other size in the middle of a run. All are kept.

    Parameters
    ----------
    model : Model
        The model.
    folder : Path or None
        Where engines are kept; None = beside the manifest.
    """
    if folder is None:
        folder = model.manifest_path.parent / FOLDER
    spec, precision = model.manifest.input, model.manifest.precision
    options = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        "trt_fp16_enable": "0" if precision == "fp32" else "1",
        "trt_int8_enable": "1" if precision == "int8" else "0",
    }
    if spec.size is None:
        usual, most = (
            input_sizes(spec, width=width, height=height)
            for width, height in _PROFILE_PX
        )
        sizes = InputSizes(least=usual.least, usual=usual.usual, most=most.most)
        for part, size in (
            ("min", sizes.least),
            ("opt", sizes.usual),
            ("max", sizes.most),
        ):
            options[f"trt_profile_{part}_shapes"] = (
                f"{spec.name}:1x{spec.channels}x{size[0]}x{size[1]}"
            )
    return options
