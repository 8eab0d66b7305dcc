"""From an ONNX file to TensorRT's plan.

The ONNX file says the type of every tensor: INT8 by Q/DQ nodes, float16 by its own
types. A strongly typed network keeps to that on every TensorRT from 10.0; only 10.x can
choose float16 by itself for a float32 file, which is what `BuildOptions.half` asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeloc.errors import BackendUnavailableError, ModelError
from edgeloc.inference.engine import InputSizes
from edgeloc.inference.manifest import InputSpec
from edgeloc.inference.trt import TensorRt
from edgeloc_tools.learn.engine_layers import EngineLayer, layers_of_log
from edgeloc_tools.progress import Progress, silent


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """Options of a build.

    Parameters
    ----------
    sizes : InputSizes
        What the engine takes.
    half : bool
        Let TensorRT 10.x choose float16 in a float32 network.
    timing_cache : bytes
        What an earlier build measured; b"" for none.
    """

    sizes: InputSizes
    half: bool = False
    timing_cache: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """An input or output of an engine.

    Parameters
    ----------
    name : str
        Of the tensor.
    is_input : bool
        Whether it goes in.
    dtype : str
        "FLOAT", "HALF", ...
    shape : tuple of int
        -1 for sides that are free.
    """

    name: str
    is_input: bool
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BuiltPlan:
    """What a build gives.

    Parameters
    ----------
    plan : bytes
        For TensorRT.
    bindings : tuple of Binding
        Inputs and outputs.
    layers : tuple of EngineLayer
        Where TensorRT told them; only RTX does without a GPU.
    strongly_typed : bool
        Whether the types are those of the ONNX file.
    timing_cache : bytes
        For the next build on this machine.
    """

    plan: bytes
    bindings: tuple[Binding, ...]
    layers: tuple[EngineLayer, ...]
    strongly_typed: bool
    timing_cache: bytes = b""


def build_plan(
    network: bytes,
    spec: InputSpec,
    library: TensorRt,
    *,
    options: BuildOptions,
    progress: Progress = silent,
) -> BuiltPlan:
    """Return the plan of a network.

    Parameters
    ----------
    network : bytes
        ONNX file.
    spec : InputSpec
        Its input.
    library : TensorRt
        What builds.
    options : BuildOptions
        How.
    progress : callable
        Told about the steps.

    Raises
    ------
    BackendUnavailableError
        When TensorRT finds no GPU; RTX needs none.
    ModelError
        When TensorRT cannot build it.
    """
    trt: Any = library.module
    logger = library.logger
    logger.forget()
    said: list[str] = []
    logger.lines = said
    try:
        try:
            builder = trt.Builder(logger)
        except (TypeError, RuntimeError) as exc:
            raise BackendUnavailableError(
                f"{library.backend} {library.version} cannot build engines here: "
                f"{logger.reason()}; it needs the GPU that the engine is for"
            ) from exc
        weak = options.half and library.weak_typing
        flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        definition = builder.create_network(0 if weak else 1 << int(flag))
        parser = trt.OnnxParser(definition, logger)
        if not parser.parse(network):
            raise ModelError(f"TensorRT does not take the network: {_first(parser)}")
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if weak:
            config.set_flag(trt.BuilderFlag.FP16)
        _add_profile(builder, definition, config, spec=spec, sizes=options.sizes)
        cache = None
        if not library.rtx:  # RTX measures nothing when it builds
            cache = config.create_timing_cache(options.timing_cache)
            # Of another GPU or version: begin anew.
            if not config.set_timing_cache(cache, ignore_mismatch=False):
                cache = config.create_timing_cache(b"")
                config.set_timing_cache(cache, ignore_mismatch=False)
        monitor = _monitor(trt, progress)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(definition, config)
        if plan is None:
            if monitor.stopped is not None:
                raise monitor.stopped
            raise ModelError(f"TensorRT cannot build the engine: {logger.reason()}")
        return BuiltPlan(
            plan=bytes(plan),
            bindings=_bindings(definition),
            layers=tuple(layers_of_log(said)),
            strongly_typed=not weak,
            timing_cache=b"" if cache is None else bytes(cache.serialize()),
        )
    finally:
        logger.lines = None


def _first(parser: Any) -> str:  # noqa: ANN401
    if parser.num_errors == 0:
        return "it says no reason"
    return " ".join(str(parser.get_error(0)).split())[:300]


def _add_profile(
    builder: Any,  # noqa: ANN401
    definition: Any,  # noqa: ANN401
    config: Any,  # noqa: ANN401
    *,
    spec: InputSpec,
    sizes: InputSizes,
) -> None:
    """Say which sizes of input are to be taken, where the network leaves them free."""
    if definition.num_inputs != 1:
        raise ModelError(f"the network has {definition.num_inputs} inputs, expected 1")
    given = definition.get_input(0)
    if -1 not in tuple(given.shape):
        return
    shapes: Sequence[tuple[int, ...]] = [
        (1, spec.channels, *size) for size in (sizes.least, sizes.usual, sizes.most)
    ]
    profile = builder.create_optimization_profile()
    profile.set_shape(given.name, *shapes)
    config.add_optimization_profile(profile)


def _bindings(definition: Any) -> tuple[Binding, ...]:  # noqa: ANN401
    tensors = [
        *((definition.get_input(i), True) for i in range(definition.num_inputs)),
        *((definition.get_output(i), False) for i in range(definition.num_outputs)),
    ]
    return tuple(
        Binding(
            name=tensor.name,
            is_input=is_input,
            dtype=tensor.dtype.name,
            shape=tuple(int(side) for side in tensor.shape),
        )
        for tensor, is_input in tensors
    )


def _monitor(trt: Any, progress: Progress) -> Any:  # noqa: ANN401
    """Return what TensorRT tells of its progress to."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped: BaseException | None = None
            self._outer: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, num_steps: int) -> None:
            if parent is None:
                self._outer[name] = num_steps

        def step_complete(self, name: str, step: int) -> bool:
            # An exception would end in TensorRT's own code; False makes it stop.
            try:
                if name in self._outer:
                    progress(name, step + 1, max(self._outer[name], step + 1))
            except BaseException as exc:  # noqa: BLE001 - raised again by the caller
                self.stopped = exc
            return self.stopped is None

        def phase_finish(self, name: str) -> None:
            self._outer.pop(name, None)

    return Monitor()
