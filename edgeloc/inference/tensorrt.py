"""TensorRT, and TensorRT for RTX: networks on the GPU, while the CPU does other things.

Everything that can be done once is done once: for each size of input there is an
execution context with its own buffers, whose work is captured as a CUDA graph and then
replayed with one call. A context that only ever sees one size keeps its graph valid. On
a Jetson host and GPU share the buffers, and nothing is copied.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeloc.errors import BackendUnavailableError, ModelError
from edgeloc.inference.cuda import Buffer, Device, Event, Graph, open_device
from edgeloc.inference.engine import (
    ANY_GPU,
    Engine,
    EngineKey,
    engine_files,
    read_engine,
)
from edgeloc.inference.manifest import Model
from edgeloc.inference.trt import TensorRt, open_tensorrt, require_tensorrt
from edgeloc.types import Float32Array

_log = logging.getLogger(__name__)

MAX_SIZES = 12
"""Sizes of input that are kept ready; TRACK alone looks at parts of six."""

_DTYPES = {"FLOAT": np.float32, "HALF": np.float16}


def engine_key(model: Model, library: TensorRt, device: Device | None) -> EngineKey:
    """Return what an engine must have been built for.

    Parameters
    ----------
    model : Model
        The model.
    library : TensorRt
        What runs it.
    device : Device or None
        The GPU; None only for TensorRT for RTX, whose plans are for any.
    """
    if library.rtx:
        compute_capability = ANY_GPU
    else:
        assert device is not None
        compute_capability = device.compute_capability
    return EngineKey(
        model_sha256=model.manifest.sha256,
        backend=library.backend,
        tensorrt=library.version,
        compute_capability=compute_capability,
    )


class TensorRtBackend:
    """A network as a TensorRT engine.

    Parameters
    ----------
    engine : Engine
        From `read_engine`.
    library : TensorRt
        Of the version that built it.
    device : Device
        The GPU.
    settled : bool
        For TensorRT for RTX: wait until kernels are compiled for a size, rather than
        run others until they are.

    Raises
    ------
    ModelError
        When TensorRT refuses the engine.
    """

    asynchronous = True

    def __init__(
        self,
        engine: Engine,
        library: TensorRt,
        device: Device,
        *,
        settled: bool = False,
    ) -> None:
        self._engine = engine
        self._library = library
        self._device = device
        self._settled = settled
        trt = library.module
        device.activate()
        library.logger.forget()
        self._runtime = trt.Runtime(library.logger)
        opened = self._runtime.deserialize_cuda_engine(engine.plan)
        if opened is None:
            raise ModelError(
                f"{engine.files.plan}: TensorRT refuses it: {library.logger.reason()}"
            )
        self._opened = opened
        self._config: Any = None
        self._cache: Any = None
        if library.rtx:
            self._configure_rtx()
        self.input_names, self.output_names = self._tensor_names()
        self._dtypes = {
            name: _dtype(opened.get_tensor_dtype(name), engine, name)
            for name in (*self.input_names, *self.output_names)
        }
        self._lanes: dict[tuple[tuple[int, ...], ...], _Lane] = {}
        self._graphs = True

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def _tensor_names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        mode = self._library.module.TensorIOMode
        opened = self._opened
        names = [opened.get_tensor_name(i) for i in range(opened.num_io_tensors)]
        inputs = tuple(n for n in names if opened.get_tensor_mode(n) == mode.INPUT)
        return inputs, tuple(n for n in names if n not in inputs)

    def _configure_rtx(self) -> None:
        trt = self._library.module
        self._config = self._opened.create_runtime_config()
        strategies = trt.DynamicShapesKernelSpecializationStrategy
        self._config.dynamic_shapes_kernel_specialization_strategy = (
            strategies.EAGER if self._settled else strategies.LAZY
        )
        self._config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._cache = self._config.create_runtime_cache()
        path = self._engine.files.cache
        # Of another driver or GPU it is refused, and made anew by the command.
        if path.is_file() and not self._cache.deserialize(path.read_bytes()):
            _log.warning(
                "%s: is of no use on this machine, kernels are compiled while it runs; "
                "run edgeloc-build engine",
                path,
            )
        self._config.set_runtime_cache(self._cache)

    @property
    def compiled(self) -> bytes:
        """What TensorRT for RTX compiled so far, for `EngineFiles.cache`."""
        return b"" if self._cache is None else bytes(self._cache.serialize())

    def layer_information(self) -> str:
        """Return the engine inspector's JSON: every layer with its precision."""
        inspector = self._opened.create_engine_inspector()
        kind = self._library.module.LayerInformationFormat.JSON
        return str(inspector.get_engine_information(kind))

    def run(self, inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
        """Return all outputs by name; see `Backend.run`."""
        return self.submit(inputs).collect()

    def submit(self, inputs: Mapping[str, Float32Array]) -> PendingOnGpu:
        """Give the GPU its work and return at once; see `Backend.submit`."""
        if set(inputs) != set(self.input_names):
            raise ModelError(
                f"{self._engine.files.plan}: takes {sorted(self.input_names)}, got "
                f"{sorted(inputs)}"
            )
        self._device.activate()
        lane = self._lane({name: inputs[name].shape for name in self.input_names})
        lane.fill(inputs)
        lane.start()
        return PendingOnGpu(lane)

    def _lane(self, shapes: Mapping[str, tuple[int, ...]]) -> _Lane:
        key = tuple(shapes[name] for name in self.input_names)
        lane = self._lanes.get(key)
        if lane is None:
            for shape in key:
                if not self._engine.record.sizes.takes(*shape[-2:]):
                    raise ModelError(self._too_large(shape))
            while len(self._lanes) >= MAX_SIZES:
                self._lanes.pop(next(iter(self._lanes))).close()
            lane = _Lane(self._new_context(), shapes, self)
        else:
            del self._lanes[key]
        # The one that was used longest ago comes first.
        self._lanes[key] = lane
        return lane

    def _too_large(self, shape: tuple[int, ...]) -> str:
        sizes = self._engine.record.sizes
        return (
            f"{self._engine.files.plan}: takes inputs from "
            f"{sizes.least[1]}x{sizes.least[0]} to {sizes.most[1]}x{sizes.most[0]} px, "
            f"this one has {shape[-1]}x{shape[-2]}; run edgeloc-build engine with "
            f"--shape {shape[-1]}x{shape[-2]}"
        )

    def _new_context(self) -> Any:  # noqa: ANN401
        self._library.logger.forget()
        if self._config is None:
            context = self._opened.create_execution_context()
        else:
            context = self._opened.create_execution_context(self._config)
        if context is None:
            raise ModelError(
                f"{self._engine.files.plan}: TensorRT cannot run it: "
                f"{self._library.logger.reason()}"
            )
        return context

    def fail(self, what: str) -> ModelError:
        """Return the error for something that TensorRT refused."""
        return ModelError(
            f"{self._engine.files.plan}: {what}: {self._library.logger.reason()}"
        )

    @property
    def device(self) -> Device:
        """The GPU."""
        return self._device

    def dtype(self, name: str) -> type[np.generic]:
        """Return the type of an input's or output's elements."""
        return self._dtypes[name]

    @property
    def captures(self) -> bool:
        """Whether work is captured here: TensorRT for RTX does that itself."""
        return self._graphs and not self._library.rtx

    def stop_capturing(self, reason: str) -> None:
        """Go on without graphs, and say so once."""
        if self._graphs:
            _log.warning("%s: runs without CUDA graph: %s", self.describe(), reason)
        self._graphs = False

    def describe(self) -> str:
        """Return where it runs, for people."""
        record = self._engine.record
        return (
            f"{self._library.backend} ({self._library.version}, {record.precision}, "
            f"{self._device.name})"
        )

    def close(self) -> None:
        """Give back what the GPU holds."""
        self._device.activate()
        self._device.synchronize()
        for lane in self._lanes.values():
            lane.close()
        self._lanes.clear()


def _dtype(kind: Any, engine: Engine, name: str) -> type[np.generic]:  # noqa: ANN401
    if kind.name not in _DTYPES:
        raise ModelError(
            f"{engine.files.plan}: {name!r} is of type {kind.name}, expected float or "
            "float16"
        )
    return _DTYPES[kind.name]


class _Lane:
    """An execution context, its buffers and its graph, for one size of input.

    Parameters
    ----------
    context : IExecutionContext
        New.
    shapes : mapping of str to tuple of int
        Of the inputs.
    backend : TensorRtBackend
        Whose it is.
    """

    def __init__(
        self,
        context: Any,  # noqa: ANN401
        shapes: Mapping[str, tuple[int, ...]],
        backend: TensorRtBackend,
    ) -> None:
        self._context = context
        self._backend = backend
        self.round = 0
        for name, shape in shapes.items():
            if not context.set_input_shape(name, tuple(shape)):
                raise backend.fail(f"input {name!r} of shape {shape} is refused")
        self._inputs: dict[str, Buffer] = {}
        self._outputs: dict[str, Buffer] = {}
        self._graph: Graph | None = None
        self._done = Event(backend.device)
        self._runs = 0
        for names, buffers in (
            (backend.input_names, self._inputs),
            (backend.output_names, self._outputs),
        ):
            for name in names:
                shape = tuple(int(side) for side in context.get_tensor_shape(name))
                if any(side < 0 for side in shape):
                    raise backend.fail(f"{name!r} has no fixed shape, {shape}")
                buffers[name] = Buffer(backend.device, shape, backend.dtype(name))
                if not context.set_tensor_address(name, buffers[name].address):
                    raise backend.fail(f"{name!r} cannot be bound")

    def fill(self, inputs: Mapping[str, Float32Array]) -> None:
        """Put inputs where the GPU takes them."""
        # The last round may still read them, when nobody wanted its results.
        if self._runs:
            self._done.wait()
        for name, buffer in self._inputs.items():
            np.copyto(buffer.host, inputs[name], casting="same_kind")

    def start(self) -> None:
        """Enqueue one round."""
        self.round += 1
        if self._graph is not None:
            self._graph.launch()
        else:
            self._enqueue()
            # The first round settles what TensorRT puts off; that must not be captured.
            if self._runs == 1 and self._backend.captures:
                self._capture()
        self._runs += 1
        self._done.record()

    def _enqueue(self) -> None:
        device = self._backend.device
        for buffer in self._inputs.values():
            buffer.upload()
        if not self._context.execute_async_v3(device.stream_handle):
            raise self._backend.fail("fails")
        for buffer in self._outputs.values():
            buffer.download()

    def _capture(self) -> None:
        try:
            self._graph = Graph(self._backend.device, self._enqueue)
        except ModelError as exc:
            self._backend.stop_capturing(str(exc))

    def collect(self) -> dict[str, Float32Array]:
        """Wait for the last round and return copies of its outputs."""
        self._backend.device.activate()
        self._done.wait()
        return {
            name: np.array(buffer.host, np.float32)
            for name, buffer in self._outputs.items()
        }

    def close(self) -> None:
        """Give back graph, buffers and event, when the GPU is done with them."""
        self.round += 1  # whoever still wants to collect is told
        if self._runs:
            self._done.wait()
        if self._graph is not None:
            self._graph.close()
        for buffer in (*self._inputs.values(), *self._outputs.values()):
            buffer.close()
        self._done.close()
        del self._context


class PendingOnGpu:
    """Outputs that the GPU is working on.

    Parameters
    ----------
    lane : _Lane
        Where.
    """

    def __init__(self, lane: _Lane) -> None:
        self._lane = lane
        self._round = lane.round

    def collect(self) -> dict[str, Float32Array]:
        """Wait, and return all outputs by name; see `Pending.collect`."""
        if self._lane.round != self._round:
            raise ModelError("outputs were not collected before the next submit")
        return self._lane.collect()


def open_engine(model: Model, backend: str, *, folder: Path | None) -> TensorRtBackend:
    """Return a model's engine, ready to run; never builds one.

    Parameters
    ----------
    model : Model
        The model.
    backend : {"tensorrt", "tensorrt-rtx"}
        What runs it.
    folder : Path or None
        Of engines; None = beside the manifest.

    Raises
    ------
    BackendUnavailableError
        When TensorRT, the GPU or a fresh engine is missing; with what to do.
    ModelError
        When the engine is broken.
    """
    require_tensorrt(backend)
    library, device = open_tensorrt(backend), open_device()
    files = engine_files(model, backend, folder=folder)
    try:
        engine = read_engine(files, engine_key(model, library, device))
    except BackendUnavailableError as exc:
        raise BackendUnavailableError(f"{exc}; {build_command(backend)}") from exc
    except ModelError as exc:
        raise ModelError(f"{exc}; {build_command(backend, force=True)}") from exc
    return TensorRtBackend(engine, library, device)


def build_command(backend: str, *, force: bool = False) -> str:
    """Return what to do about an engine that is missing or stale."""
    return (
        f"run edgeloc-build engine --map SITE --backend {backend}"
        f"{' --force' if force else ''}"
    )
