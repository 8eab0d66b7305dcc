"""Numbers and tables as text, for the terminal and the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from edgeloc_tools.evaluate.result import EvaluationResult

NONE = "–"
"""Stands for a number that does not exist."""


def number(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits; "inf" and a dash stay."""
    if math.isnan(value):
        return NONE
    if math.isinf(value):
        return "inf"
    if value == 0:
        return "0"
    if abs(value) >= 10**digits:
        return f"{value:.0f}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(max(decimals, 0), 6)}f}"


def length(value: float, unit: str) -> str:
    """Return a length with its unit; below 1 m in centimetres.

    Parameters
    ----------
    value : float
        In `unit`.
    unit : str
        "m", or the name of a map's own unit.
    """
    if not math.isfinite(value):
        return number(value)
    if unit == "m" and abs(value) < 1.0:
        return f"{number(100.0 * value)} cm"
    return f"{number(value)} {unit}"


def angle(value_deg: float) -> str:
    """Return an angle with its unit."""
    text = number(value_deg)
    return f"{text}°" if math.isfinite(value_deg) else text


def percent(share: float) -> str:
    """Return a share in per cent; 100.0 % only when nothing is missing."""
    if math.isnan(share):
        return NONE
    text = f"{100.0 * share:.1f}"
    if text == "100.0" and share < 1.0:
        text = "99.9"
    return f"{text} %"


def megabytes(num_bytes: int) -> str:
    """Return a size, in MB of 10^6 bytes."""
    return f"{number(num_bytes / 1e6)} MB"


def counts(values: Mapping[str, int]) -> str:
    """Return "A 3, B 1"."""
    return ", ".join(f"{name} {count}" for name, count in values.items()) or "none"


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, indent: str = "  "
) -> str:
    """Return an aligned table: first column to the left, others to the right.

    Parameters
    ----------
    header : sequence of str
        Names of the columns.
    rows : sequence of sequence of str
        Cells, as many as in `header`.
    indent : str
        Before each line.
    """
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        (
            indent
            + "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
        ).rstrip()
        for line in lines
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: first column to the left, others to the right."""
    marks = ["---", *("---:" for _ in header[1:])]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
        for line in (header, marks, *rows)
    )


def headline(result: EvaluationResult) -> list[tuple[str, str]]:
    """Return the few numbers that matter most, as (name, value)."""
    summary, site = result.summary, result.site
    unit, total = site.unit, summary.total_latency
    consistency = summary.localized_consistency
    wrong = len(summary.wrong_but_confident)
    out = [
        ("frames", f"{summary.num_frames}: {counts(summary.statuses)}"),
        (
            "median error, all frames",
            f"{length(summary.all_frames.median_position, unit)}, "
            f"{angle(summary.all_frames.median_rotation_deg)} (LOST = inf)",
        ),
        (
            "median error, answered",
            f"{length(summary.answered.median_position, unit)}, "
            f"{angle(summary.answered.median_rotation_deg)} "
            f"({summary.num_answered} frames)",
        ),
        ("wrong but confident", f"{wrong} of {summary.num_frames}"),
        (
            "NEES of LOCALIZED",
            f"median {number(consistency.nees_median)}, "
            f"mean {number(consistency.nees_mean)} (consistent: 5.35 and 6)",
        ),
        (
            "errors inside 3 sigma",
            f"position {percent(consistency.position_within_3sigma)}, "
            f"rotation {percent(consistency.rotation_within_3sigma)} of LOCALIZED",
        ),
        (
            "latency",
            f"p50 {number(total.p50_ms)}, p95 {number(total.p95_ms)}, "
            f"p99 {number(total.p99_ms)} ms",
        ),
    ]
    budget_ms = result.options.get("budget_ms")
    if isinstance(budget_ms, int | float):
        missed = summary.num_deadline_missed
        out.append(
            ("deadline", f"{missed} of {summary.num_frames} over {budget_ms:g} ms")
        )
    out.append(
        (
            "map",
            f"{megabytes(site.total_bytes)}, {site.num_keyframes} keyframes, "
            f"extent {length(site.extent, unit)}",
        )
    )
    return out


def recall_cells(result: EvaluationResult) -> list[list[str]]:
    """Return label, recall, inside, outside and LOST for each bound."""
    return [
        [
            row.label,
            percent(row.recall),
            str(row.num_inside),
            str(row.num_outside),
            str(row.num_lost),
        ]
        for row in result.summary.recalls
    ]


RECALL_HEADER = ("within", "recall", "inside", "outside", "LOST")
"""Columns of `recall_cells`."""


def status_cells(result: EvaluationResult) -> list[list[str]]:
    """Return errors and consistency for each status that has poses."""
    unit, summary = result.site.unit, result.summary
    out = []
    for status, stats in summary.by_status.items():
        consistency = summary.consistency[status]
        out.append(
            [
                status,
                str(stats.num_frames),
                length(stats.median_position, unit),
                length(stats.p90_position, unit),
                length(stats.max_position, unit),
                angle(stats.median_rotation_deg),
                angle(stats.max_rotation_deg),
                number(consistency.nees_median),
                percent(consistency.position_within_3sigma),
                percent(consistency.rotation_within_3sigma),
            ]
        )
    return out


STATUS_HEADER = (
    "status",
    "frames",
    "position p50",
    "p90",
    "max",
    "rotation p50",
    "max",
    "NEES p50",
    "pos. in 3σ",
    "rot. in 3σ",
)
"""Columns of `status_cells`."""


def latency_cells(result: EvaluationResult) -> list[list[str]]:
    """Return the quantiles of each stage."""
    return [
        [
            row.name,
            str(row.num_frames),
            number(row.p50_ms),
            number(row.p95_ms),
            number(row.p99_ms),
            number(row.max_ms),
        ]
        for row in result.summary.latency
    ]


LATENCY_HEADER = ("stage", "frames", "p50 ms", "p95 ms", "p99 ms", "max ms")
"""Columns of `latency_cells`."""


def wrong_cells(result: EvaluationResult) -> list[list[str]]:
    """Return the frames that are wrong but confident, with the reason."""
    unit = result.site.unit
    return [
        [
            row.name,
            length(row.position_error, unit),
            angle(row.rotation_error_deg),
            length(row.position_sigma, unit),
            str(row.num_inliers),
            ", ".join(row.wrong),
        ]
        for row in result.rows
        if row.wrong
    ]


WRONG_HEADER = ("frame", "position", "rotation", "claimed σ", "inliers", "broken rule")
"""Columns of `wrong_cells`."""


def format_text(result: EvaluationResult) -> str:
    """Return the result as the tables that the command line prints."""
    site, summary = result.site, result.summary
    parts = [
        f"{result.dataset} on {site.name} ({site.family}, {site.map_id})",
        f"ground truth: {result.pose_source}",
    ]
    if result.num_without_pose:
        parts.append(f"left out: {result.num_without_pose} images without ground truth")
    names = headline(result)
    width = max(len(name) for name, _ in names)
    parts += ["", *(f"  {name.ljust(width)}  {value}" for name, value in names)]
    parts += ["", table(RECALL_HEADER, recall_cells(result))]
    if summary.by_status:
        parts += ["", table(STATUS_HEADER, status_cells(result))]
    parts += ["", table(LATENCY_HEADER, latency_cells(result))]
    if summary.retrieval:
        recalls = ", ".join(f"@{r.k} {percent(r.recall)}" for r in summary.retrieval)
        parts += [
            "",
            f"  retrieval recall {recalls} "
            f"(of {summary.retrieval[0].num_frames} frames with a near keyframe)",
        ]
    parts += ["", f"  rungs: {counts(summary.rungs)}"]
    parts.append(f"  causes: {counts(summary.causes)}")
    if summary.wrong_but_confident:
        parts += [
            "",
            "  wrong but confident:",
            table(WRONG_HEADER, wrong_cells(result)),
        ]
    return "\n".join(parts)
