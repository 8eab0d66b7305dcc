"""A comparison of methods as report.json and one self-contained report.html."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from edgeloc_tools.evaluate import text
from edgeloc_tools.evaluate.comparison import HEADER, MethodRow, cells, to_json
from edgeloc_tools.evaluate.plots import render
from edgeloc_tools.evaluate.report import data_uri, write_pages
from edgeloc_tools.evaluate.result import EvaluationResult, Json, json_value
from edgeloc_tools.evaluate.style import GRID_COLOR, INK_COLOR, SERIES_COLORS

FORMAT_VERSION = 1
"""Of report.json."""

_DOT_AREA, _MIN_AREA = 900.0, 25.0
"""Points squared: of the largest method, and of the smallest that can be seen."""


def answered_rows(
    rows: Sequence[MethodRow],
) -> list[tuple[MethodRow, EvaluationResult]]:
    """Return the methods that can be drawn: that answered most frames."""
    return [
        (row, row.result)
        for row in rows
        if row.result is not None
        and math.isfinite(row.result.summary.all_frames.median_position)
    ]


def draw_methods(figure: Figure, rows: Sequence[MethodRow]) -> None:
    """Draw accuracy against time, the area of a dot by the bytes on the device.

    Parameters
    ----------
    figure : Figure
        Empty.
    rows : sequence of MethodRow
        Methods; those without data or with half of the frames LOST are left out.
    """
    axes = figure.subplots()
    shown = answered_rows(rows)
    if not shown:
        axes.text(0.5, 0.5, "no method answered most frames", ha="center")
        return
    axes.set_xscale("log")
    axes.set_yscale("log")
    largest = max(row.device_bytes for row, _ in shown)
    for number, (row, result) in enumerate(shown):
        error = max(result.summary.all_frames.median_position, 1e-6)
        total = result.summary.total_latency
        color = SERIES_COLORS[number % len(SERIES_COLORS)]
        area = max(_DOT_AREA * row.device_bytes / max(largest, 1), _MIN_AREA)
        axes.plot([total.p50_ms, total.p95_ms], [error, error], color=color, lw=1.2)
        axes.scatter(
            [total.p50_ms], [error], s=area, color=color, alpha=0.75, edgecolors="white"
        )
        axes.annotate(
            f"{row.method}, {text.megabytes(row.device_bytes)}",
            (total.p50_ms, error),
            xytext=(0, 6 + math.sqrt(area) / 2),
            textcoords="offset points",
            ha="center",
            color=INK_COLOR,
        )
    axes.grid(visible=True, which="minor", color=GRID_COLOR, lw=0.4)
    axes.margins(x=0.25, y=0.25)
    axes.set_xlabel("time of a frame [ms]: median, and line to the 95th percentile")
    axes.set_ylabel(f"median position error [{shown[0][1].site.unit}]")


def comparison_html(
    rows: Sequence[MethodRow], *, machine: Mapping[str, str], command: Sequence[str]
) -> str:
    """Return a page that needs no other file and no network.

    Parameters
    ----------
    rows : sequence of MethodRow
        At least one with a result.
    machine : mapping of str to str
        See `machine.machine_facts`.
    command : sequence of str
        The command line.
    """
    first = next(row.result for row in rows if row.result is not None)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgeloc_tools.evaluate", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    svg = render(draw_methods, rows, size=(7.5, 5.0), kind="svg")
    return environment.get_template("comparison_report.html.j2").render(
        title=f"Methods on {first.dataset}",
        first=first,
        num_frames=first.summary.num_frames,
        picture=data_uri(svg, "image/svg+xml"),
        header=HEADER,
        rows=[cells(row) for row in rows],
        provenance=list(machine.items()),
        command=" ".join(command),
    )


def comparison_json(
    rows: Sequence[MethodRow], *, machine: Mapping[str, str], command: Sequence[str]
) -> Json:
    """Return the JSON form; null stands for inf and NaN."""
    first = next(row.result for row in rows if row.result is not None)
    return json_value(
        {
            "format": "edgeloc-method-comparison",
            "format_version": FORMAT_VERSION,
            "dataset": first.dataset,
            "pose_source": first.pose_source,
            "map_id": first.site.map_id,
            "unit": first.site.unit,
            "methods": to_json(rows),
            "machine": machine,
            "command": list(command),
        }
    )


def write_comparison(
    rows: Sequence[MethodRow],
    folder: Path,
    *,
    machine: Mapping[str, str],
    command: Sequence[str],
) -> tuple[Path, Path]:
    """Write report.json and report.html; return their paths.

    Parameters
    ----------
    rows : sequence of MethodRow
        From `comparison.compare_methods`.
    folder : Path
        Made when it does not exist.
    machine : mapping of str to str
        See `machine.machine_facts`.
    command : sequence of str
        The command line.
    """
    return write_pages(
        folder,
        facts=comparison_json(rows, machine=machine, command=command),
        page=comparison_html(rows, machine=machine, command=command),
    )
