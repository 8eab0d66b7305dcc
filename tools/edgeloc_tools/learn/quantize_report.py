"""Write a quantization as report.json and one self-contained report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import jinja2

from edgeloc_tools.evaluate import text
from edgeloc_tools.evaluate.draw import jpeg_bytes
from edgeloc_tools.evaluate.plots import render
from edgeloc_tools.evaluate.report import data_uri, write_pages
from edgeloc_tools.evaluate.result import Json, json_value
from edgeloc_tools.learn.quantize_pictures import draw_gate, draw_sensitivity
from edgeloc_tools.learn.quantize_run import (
    WEIGHT_BITS,
    QuantizeResult,
    VariantResult,
)
from edgeloc_tools.learn.sensitivity import Measurement

FORMAT_VERSION = 1
"""Of report.json."""


def _measurement(measurement: Measurement) -> dict[str, float]:
    return {"damage": measurement.damage, **measurement.facts}


def _cells(measurement: Measurement) -> list[str]:
    """Return the cells of a measurement: its damage and its figures."""
    facts = (text.number(value, 4) for value in measurement.facts.values())
    return [text.number(measurement.damage), *facts]


def _variant(result: QuantizeResult, variant: VariantResult) -> dict[str, object]:
    return {
        "name": variant.name,
        "model": variant.manifest.name,
        "accepted": variant.accepted,
        "bytes": len(variant.data),
        "sha256": variant.manifest.sha256,
        "median_ms": {
            str(threads): ms
            for threads, ms in result.times_ms.get(variant.name, {}).items()
        },
        "agreement": _measurement(variant.measurement),
        "recall": variant.score.recall,
        "median_error": variant.score.median_error,
        "errors": list(variant.score.errors),
        "calibration": variant.calibration,
        "weight_bits": WEIGHT_BITS.get(variant.manifest.flavour),
        "calibrations": {
            method: _measurement(measured)
            for method, measured in variant.calibrations.items()
        },
        "float_layers": list(variant.float_layers),
        "trials": [
            {
                "float_layers": list(trial.float_layers),
                "recall": trial.score.recall,
                "median_error": trial.score.median_error,
                "accepted": trial.accepted,
            }
            for trial in variant.trials
        ],
        "layers": [
            {
                "layer": entry.layer,
                "op_type": entry.op_type,
                "num_weights": entry.num_weights,
                **_measurement(entry.measurement),
            }
            for entry in variant.layers
        ],
    }


def report_json(
    result: QuantizeResult, *, machine: Mapping[str, str], command: Sequence[str]
) -> Json:
    """Return the JSON form of a report; inf and nan become null.

    Parameters
    ----------
    result : QuantizeResult
        What was found.
    machine : mapping of str to str
        See `edgeloc_tools.evaluate.machine.machine_facts`.
    command : sequence of str
        The command line.
    """
    options = result.options
    return json_value(
        {
            "format": "edgeloc-quantize-report",
            "version": FORMAT_VERSION,
            "model": result.model.manifest.name,
            "sha256": result.model.manifest.sha256,
            "recording": result.recording,
            "num_images": result.num_images,
            "gate": {
                "title": result.gate_title,
                "error": result.error_name,
                "num_queries": result.num_queries,
                "max_loss": options.limits.max_loss,
                "max_median_ratio": options.limits.max_median_ratio,
                "max_float_layers": options.limits.max_float_layers,
            },
            "seed": options.seed,
            "timed_px": list(result.timed_px),
            "variants": [_variant(result, variant) for variant in result.variants],
            "machine": dict(machine),
            "command": list(command),
        }
    )


def variant_table(result: QuantizeResult) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table of variants, for page and terminal."""
    threads = sorted({t for times in result.times_ms.values() for t in times})
    facts = list(result.variants[0].measurement.facts)
    header = [
        *("variant", "gate", "recall", "median", "float layers", "size"),
        *(f"ms, {t} thread{'s' * (t > 1)}" for t in threads),
        *(name.replace("_", " ") for name in facts),
    ]
    rows = [
        [
            variant.name,
            "passed" if variant.accepted else "refused",
            text.percent(variant.score.recall),
            text.number(variant.score.median_error),
            str(len(variant.float_layers)) if variant.layers else text.NONE,
            text.megabytes(len(variant.data)),
            *(
                text.number(result.times_ms.get(variant.name, {}).get(t, float("nan")))
                for t in threads
            ),
            *(text.number(variant.measurement.facts[name], 4) for name in facts),
        ]
        for variant in result.variants
    ]
    rows[0][1] = text.NONE  # float32 is what the others are judged by
    return header, rows


def _trial_rows(variant: VariantResult) -> list[list[str]]:
    return [
        [
            ", ".join(trial.float_layers) or "none",
            text.percent(trial.score.recall),
            text.number(trial.score.median_error),
            "passed" if trial.accepted else "refused",
        ]
        for trial in variant.trials
    ]


def _layer_rows(variant: VariantResult) -> list[list[str]]:
    return [
        [
            entry.layer,
            entry.op_type,
            str(entry.num_weights),
            *_cells(entry.measurement),
            "float" if entry.layer in variant.float_layers else "INT8",
        ]
        for entry in variant.layers
    ]


def _plots(result: QuantizeResult) -> dict[str, str]:
    """Return the plots that there is something to show in, as data URIs."""
    plots: dict[str, str] = {}
    layers = {
        variant.name: (variant.layers, variant.float_layers)
        for variant in result.variants
        if variant.layers
    }
    if layers:
        height = 1.2 + 0.22 * max(len(entries) for entries, _ in layers.values())
        picture = render(draw_sensitivity, layers, size=(9.4, height), kind="svg")
        plots["layers"] = data_uri(picture, "image/svg+xml")
    scores = {v.name: v.score for v in result.variants if v.score.errors}
    if scores:
        draw = partial(draw_gate, error_name=result.error_name)
        picture = render(draw, scores, size=(8.6, 3.2), kind="svg")
        plots["gate"] = data_uri(picture, "image/svg+xml")
    return plots


def report_html(
    result: QuantizeResult, *, machine: Mapping[str, str], command: Sequence[str]
) -> str:
    """Return a page that needs no other file and no network.

    Parameters
    ----------
    result : QuantizeResult
        What was found.
    machine : mapping of str to str
        See `edgeloc_tools.evaluate.machine.machine_facts`.
    command : sequence of str
        The command line.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [
                jinja2.PackageLoader("edgeloc_tools.learn", "."),
                jinja2.PackageLoader("edgeloc_tools.evaluate", "."),
            ]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    header, rows = variant_table(result)
    facts = [name.replace("_", " ") for name in result.variants[0].measurement.facts]
    return environment.get_template("quantize_report.html.j2").render(
        title=f"{result.model.manifest.name}, quantized on {result.recording}",
        result=result,
        limits=result.options.limits,
        loss=f"{100.0 * result.options.limits.max_loss:g}",
        refused=[v.name for v in result.variants if not v.accepted],
        header=header,
        rows=rows,
        plots=_plots(result),
        pictures=[
            (name, data_uri(jpeg_bytes(image), "image/jpeg"))
            for name, image in result.pictures
        ],
        calibration_header=["values to range", "damage", *facts],
        calibrations={
            v.name: [
                [
                    m,
                    text.number(d.damage),
                    *(text.number(f, 4) for f in d.facts.values()),
                ]
                for m, d in v.calibrations.items()
            ]
            for v in result.variants
            if v.calibrations
        },
        chosen={v.name: v.calibration for v in result.variants},
        trial_header=["float layers", "recall", "median", "gate"],
        trials={v.name: _trial_rows(v) for v in result.variants if v.name != "fp32"},
        layer_header=["layer", "operator", "weights", "damage", *facts, "in the file"],
        layers={v.name: _layer_rows(v) for v in result.variants if v.layers},
        provenance=list(machine.items()),
        command=" ".join(command),
    )


def write_report(
    result: QuantizeResult,
    folder: Path,
    *,
    machine: Mapping[str, str],
    command: Sequence[str],
) -> tuple[Path, Path]:
    """Write report.json and report.html.

    Parameters
    ----------
    result : QuantizeResult
        What was found.
    folder : Path
        Made when it does not exist.
    machine : mapping of str to str
        See `edgeloc_tools.evaluate.machine.machine_facts`.
    command : sequence of str
        The command line.

    Returns
    -------
    tuple of Path
        The two files.
    """
    return write_pages(
        folder,
        facts=report_json(result, machine=machine, command=command),
        page=report_html(result, machine=machine, command=command),
    )
