"""Write an evaluation as report.json and one self-contained report.html."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jinja2

from edgeloc_tools.evaluate import metrics, text
from edgeloc_tools.evaluate.draw import draw_explanation, jpeg_bytes
from edgeloc_tools.evaluate.plots import PLOTS, render
from edgeloc_tools.evaluate.result import (
    EvaluationResult,
    Explanation,
    FrameRow,
    Json,
    json_value,
)
from edgeloc_tools.evaluate.style import STATUS_COLORS
from edgeloc_tools.files import write_atomically

FRAMES_HEADER = (
    "frame",
    "status",
    "rung",
    "cause",
    "position",
    "rotation",
    "inliers",
    "ms",
)
"""Columns of the table of all frames."""


def report_json(
    result: EvaluationResult, *, machine: Mapping[str, str], command: Sequence[str]
) -> dict[str, Json]:
    """Return the JSON form of a report.

    Parameters
    ----------
    result : EvaluationResult
        What was measured.
    machine : mapping of str to str
        See `machine.machine_facts`.
    command : sequence of str
        The command line.
    """
    return {
        **result.to_json(),
        "machine": json_value(machine),
        "command": json_value(list(command)),
    }


def data_uri(data: bytes, mime: str) -> str:
    """Return bytes as a link that holds them."""
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"


def _answer(row: FrameRow, unit: str) -> str:
    if row.is_lost:
        return f"LOST, cause {row.cause}"
    return (
        f"{row.status} by {row.rung}, cause {row.cause}; off by "
        f"{text.length(row.position_error, unit)}, "
        f"{text.angle(row.rotation_error_deg)}; claimed σ "
        f"{text.length(row.position_sigma, unit)}, "
        f"{text.angle(row.rotation_sigma_deg)}"
    )


def _explanation_view(item: Explanation, unit: str) -> dict[str, str]:
    row = item.row
    retrieved = ", ".join(
        f"{keyframe_id} ({score:.2f}, {text.length(distance, unit)} away)"
        for keyframe_id, score, distance in item.retrieved[:4]
    )
    rmse = f", {text.number(row.reproj_rmse_px)} px rms" if row.reproj_rmse_px else ""
    failed = "" if row.status == "LOCALIZED" else " of the fix that was refused"
    return {
        "title": item.title,
        "name": row.name,
        "image": data_uri(jpeg_bytes(draw_explanation(item)), "image/jpeg"),
        "answer": _answer(row, unit),
        "matches": f"{row.num_inliers} inliers of {len(item.points2D)} matches"
        f"{failed}{rmse}",
        "retrieved": f"retrieved: {retrieved}" if retrieved else "nothing retrieved",
    }


def _flat(options: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "none" if value is None else str(value)


def _cards(result: EvaluationResult) -> list[tuple[str, str]]:
    """Return the numbers at the top of the page, as (value, name)."""
    summary, unit = result.summary, result.site.unit
    total = summary.total_latency
    first = next(r for r in summary.recalls if r.max_position == 0.05)
    recall = first if result.site.metric else summary.recalls[-1]
    return [
        (text.percent(recall.recall), f"recall within {recall.label}"),
        (
            text.length(summary.all_frames.median_position, unit),
            "median position error, all frames",
        ),
        (
            text.angle(summary.all_frames.median_rotation_deg),
            "median rotation error, all frames",
        ),
        (str(summary.statuses.get("LOST", 0)), f"LOST of {summary.num_frames} frames"),
        (f"{text.number(total.p95_ms)} ms", "latency, 95th percentile"),
        (text.megabytes(result.site.total_bytes), "map"),
    ]


def _frame_cells(result: EvaluationResult) -> list[list[str]]:
    return [
        [
            row.name,
            row.status,
            row.rung,
            row.cause,
            text.length(row.position_error, result.site.unit),
            text.angle(row.rotation_error_deg),
            f"{row.num_inliers}/{row.num_matches}",
            text.number(row.wall_ms),
        ]
        for row in result.rows
    ]


def report_html(
    result: EvaluationResult, *, machine: Mapping[str, str], command: Sequence[str]
) -> str:
    """Return a page that needs no other file and no network.

    Parameters
    ----------
    result : EvaluationResult
        What was measured.
    machine : mapping of str to str
        See `machine.machine_facts`.
    command : sequence of str
        The command line.
    """
    site, summary = result.site, result.summary
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgeloc_tools.evaluate", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    plots = {
        name: data_uri(render(draw, result, size=size, kind="svg"), "image/svg+xml")
        for name, (draw, size) in PLOTS.items()
    }
    return environment.get_template("report.html.j2").render(
        title=f"{result.dataset} on {site.name}",
        result=result,
        site=site,
        summary=summary,
        plots=plots,
        cards=_cards(result),
        headline=text.headline(result),
        wrong=text.wrong_cells(result),
        wrong_header=text.WRONG_HEADER,
        wrong_limit=text.length(result.position_limit, site.unit),
        wrong_rotation=f"{metrics.WRONG_ROTATION_DEG:g}",
        wrong_factor=f"{metrics.WRONG_SIGMA_FACTOR:g}",
        recall_header=text.RECALL_HEADER,
        recalls=text.recall_cells(result),
        status_header=text.STATUS_HEADER,
        statuses=text.status_cells(result),
        colors=STATUS_COLORS,
        status_counts=text.counts(summary.statuses),
        rung_counts=text.counts(summary.rungs),
        cause_counts=text.counts(summary.causes),
        budget=result.options.get("budget_ms") is not None,
        latency_header=text.LATENCY_HEADER,
        latency=text.latency_cells(result),
        retrieval=[[str(r.k), text.percent(r.recall)] for r in summary.retrieval],
        retrieval_frames=summary.retrieval[0].num_frames if summary.retrieval else 0,
        explanations=[_explanation_view(e, site.unit) for e in result.explanations],
        provenance=list(machine.items()),
        command=" ".join(command),
        map_size=text.megabytes(site.total_bytes),
        map_parts=[[k, text.megabytes(v)] for k, v in site.bytes_by_part.items()],
        options=list(_flat(result.options)),
        frames_header=FRAMES_HEADER,
        frames=_frame_cells(result),
    )


def write_report(
    result: EvaluationResult,
    folder: Path,
    *,
    machine: Mapping[str, str],
    command: Sequence[str],
) -> tuple[Path, Path]:
    """Write report.json and report.html.

    Parameters
    ----------
    result : EvaluationResult
        What was measured.
    folder : Path
        Made when it does not exist.
    machine : mapping of str to str
        See `machine.machine_facts`.
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


def write_pages(folder: Path, *, facts: Json, page: str) -> tuple[Path, Path]:
    """Write report.json and report.html of any report; return their paths.

    Parameters
    ----------
    folder : Path
        Made when it does not exist.
    facts : object
        JSON without inf and nan.
    page : str
        HTML.
    """
    folder.mkdir(parents=True, exist_ok=True)
    json_path, html_path = folder / "report.json", folder / "report.html"
    write_atomically(
        json_path,
        json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False).encode(),
    )
    write_atomically(html_path, page.encode())
    return json_path, html_path
