"""TensorRT and TensorRT for RTX: two modules with nearly the same classes.

What differs, and what is made of it (read in the modules of TensorRT 10.3, 10.16 and
11.4 and of TensorRT for RTX 1.7):

- TensorRT 11 and RTX are always strongly typed; 10.x is when it is told so, with a flag
  of `create_network` that all of them have.
- ``BuilderFlag.FP16`` exists in 10.x only: `TensorRt.weak_typing`.
- RTX compiles for the GPU when an engine is opened, not when it is built: a plan runs
  on every GPU, needs none to be built, and has a cache of what was compiled beside it.
  TensorRT's plans are for one compute capability, and it needs that very GPU.
- RTX captures CUDA graphs itself, since it replaces kernels while it runs.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType, ModuleType
from typing import Any

from edgeloc.errors import BackendUnavailableError
from edgeloc.inference.cuda import open_device

_log = logging.getLogger(__name__)

BACKENDS = ("tensorrt", "tensorrt-rtx")
MODULES = MappingProxyType({"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"})
_FIXES = MappingProxyType(
    {
        "tensorrt": "on a Jetson: sudo apt install python3-libnvinfer, and a venv with "
        "--system-site-packages; on a PC: pip install tensorrt",
        "tensorrt-rtx": "pip install tensorrt-rtx (Linux and Windows on x86-64)",
    }
)
_OLDEST = (10, 0)
"""Explicit batches and tensors by name only; of TensorRT, RTX began later."""


class TensorRt:
    """A TensorRT module that is there.

    Parameters
    ----------
    backend : {"tensorrt", "tensorrt-rtx"}
        Which.

    Raises
    ------
    BackendUnavailableError
        When it is not there, or too old.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend
        try:
            self.module: ModuleType = import_module(MODULES[backend])
        except (ImportError, OSError) as exc:
            reason = " ".join(str(exc).split())
            raise BackendUnavailableError(
                f"--backend {backend}: {reason}; {_FIXES[backend]}, or use --backend "
                "auto"
            ) from exc
        self.version = str(self.module.__version__)
        if not self.rtx and _numbers(self.version) < _OLDEST:
            raise BackendUnavailableError(
                f"--backend {backend}: TensorRT {self.version} is here, 10.0 or later "
                "is needed (JetPack 6.1 or later)"
            )
        self.logger = _make_logger(self.module)

    @property
    def rtx(self) -> bool:
        """Whether this is TensorRT for RTX."""
        return self.backend == "tensorrt-rtx"

    @property
    def weak_typing(self) -> bool:
        """Whether it may choose float16 by itself for a float32 network."""
        return hasattr(self.module.BuilderFlag, "FP16")


def _numbers(version: str) -> tuple[int, int]:
    major, minor = (*version.split("."), "0")[:2]
    return int(major), int(minor) if minor.isdigit() else 0


@cache
def open_tensorrt(backend: str) -> TensorRt:
    """Return a TensorRT module; once per process, which it wants of its logger, too.

    Raises
    ------
    BackendUnavailableError
        When it is not there, or too old; with what to do.
    """
    return TensorRt(backend)


def is_installed(backend: str) -> bool:
    """Whether a TensorRT module is there; nothing is imported."""
    return find_spec(MODULES[backend]) is not None


def require_tensorrt(backend: str) -> str:
    """Return why networks can run in TensorRT here.

    Raises
    ------
    BackendUnavailableError
        When TensorRT or a GPU is missing; with what to do.
    """
    if not is_installed(backend):
        open_tensorrt(backend)
    try:
        # TensorRT itself is not imported: that takes a second and a hundred MB.
        device = open_device()
    except BackendUnavailableError as exc:
        raise BackendUnavailableError(
            f"--backend {backend}: {exc}, or use --backend auto"
        ) from exc
    return f"{MODULES[backend]} and a GPU ({device.name}) are here"


def _make_logger(module: Any) -> Any:  # noqa: ANN401
    """Return a logger that hands on what TensorRT says, and remembers errors."""
    severity = module.ILogger.Severity

    class Logger(module.ILogger):  # type: ignore[misc]
        """Errors since `forget`, and all lines while `lines` is a list."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []
            self.lines: list[str] | None = None

        def log(self, level: object, message: str) -> None:
            """Take a message; called from threads of TensorRT, must not raise."""
            if self.lines is not None:
                self.lines.append(message)
            if level in {severity.ERROR, severity.INTERNAL_ERROR}:
                self.errors.append(" ".join(message.split()))
            if level != severity.VERBOSE:
                # Errors, too: whoever called says them in a line of its own.
                _log.debug("TensorRT: %s", message)

        def forget(self) -> None:
            """Begin anew."""
            self.errors.clear()

        def reason(self) -> str:
            """Return what went wrong first, in a line."""
            return self.errors[0][:300] if self.errors else "TensorRT says no reason"

    return Logger()
