"""Heads as ONNX files: float32, float16 and INT8, and how they get into a site."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from edgeloc.inference.manifest import (
    ModelManifest,
    encode_manifest,
    load_model,
    with_file,
)
from edgeloc.tiles.layout import SiteModel
from edgeloc.types import Float32Array
from edgeloc_tools.learn.graph import (
    GraphView,
    load_truth,
    make_session,
    session_options,
    to_bytes,
)
from edgeloc_tools.learn.half import half_model
from edgeloc_tools.learn.quantize import (
    ValueRange,
    activation_names,
    quantize_model,
)
from edgeloc_tools.learn.quantize_run import VARIANTS, WEIGHT_BITS
from edgeloc_tools.model_files import write_model


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeadFiles:
    """A head on disk.

    Parameters
    ----------
    truth : Path
        Manifest of the float32 network.
    variants : mapping of str to Path
        Manifests of its variants: "fp16", "int8-cpu", "int8-tensorrt".
    """

    truth: Path
    variants: Mapping[str, Path]


def write_head(
    folder: Path,
    manifest: ModelManifest,
    graph: onnx.ModelProto,
    *,
    examples: Sequence[Float32Array],
    float_layers: Collection[str] = (),
    positive: Collection[str] = (),
) -> HeadFiles:
    """Write a head and its variants.

    Parameters
    ----------
    folder : Path
        Made when it is not there.
    manifest : ModelManifest
        Of the float32 network.
    graph : ModelProto
        That network.
    examples : sequence of ndarray of shape (1, C, H, W), float32
        What it may be given, to measure the ranges of activations.
    float_layers : collection of str
        Layers that are never rounded.
    positive : collection of str
        Activations of which only what is above 0 matters.
    """
    truth = write_model(folder, manifest, graph.SerializeToString())
    model = load_truth(folder / f"{manifest.name}.onnx")
    ranges = measure_ranges(model, manifest.input.name, examples)
    for name in positive:
        ranges[name] = ValueRange(0.0, max(ranges[name].high, 1e-3))
    paths = {}
    for variant, (precision, flavour) in VARIANTS.items():
        made = (
            half_model(model)
            if precision == "fp16"
            else quantize_model(
                model,
                ranges=ranges,
                flavour=flavour,
                float_layers=float_layers,
                weight_bits=WEIGHT_BITS[flavour],
            )
        )
        paths[variant] = write_model(
            folder,
            replace(
                manifest,
                name=f"{manifest.name}-{variant}",
                precision=precision,
                flavour=flavour,
            ),
            to_bytes(made),
        )
    return HeadFiles(truth=truth, variants=paths)


def measure_ranges(
    model: onnx.ModelProto, input_name: str, examples: Sequence[Float32Array]
) -> dict[str, ValueRange]:
    """Return the smallest and largest values of what `quantize_model` may round.

    Parameters
    ----------
    model : ModelProto
        From `edgeloc_tools.learn.graph.load_truth`.
    input_name : str
        Of its input.
    examples : sequence of ndarray
        Of that input.
    """
    names = activation_names(model)
    view = GraphView(model)
    computed = [name for name in names if name not in view.inputs]
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    for name in computed:
        if name not in view.outputs:
            observed.graph.output.append(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            )
    session = make_session(
        to_bytes(observed), options=session_options(threads=1), where="calibration"
    )
    low = dict.fromkeys(names, np.inf)
    high = dict.fromkeys(names, -np.inf)
    for example in examples:
        arrays = dict(
            zip(computed, session.run(computed, {input_name: example}), strict=True)
        )
        arrays[input_name] = example
        for name in names:
            low[name] = min(low[name], float(np.min(arrays[name])))
            high[name] = max(high[name], float(np.max(arrays[name])))
    return {name: ValueRange(low[name], high[name]) for name in names}


def site_model(role: str, manifest_path: Path) -> SiteModel:
    """Return a network as a site carries it.

    Raises
    ------
    ModelError
        When its files are not as they should be.
    """
    model = load_model(manifest_path)
    network = model.network_path.read_bytes()
    manifest = with_file(model.manifest, f"{role}.onnx", network)
    return SiteModel(
        name=manifest.name, manifest=encode_manifest(manifest), network=network
    )
