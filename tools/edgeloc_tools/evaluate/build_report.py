"""What came out of a build, as report.json and one self-contained report.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.figure import Figure

from edgeloc_tools.evaluate import text
from edgeloc_tools.evaluate.plots import render
from edgeloc_tools.evaluate.report import data_uri, write_pages
from edgeloc_tools.evaluate.result import json_value
from edgeloc_tools.mapping.build import BuildResult
from edgeloc_tools.mapping.curve import CurvePoint

FORMAT_VERSION = 1
"""Of report.json."""

_HEADER = ("size", "frames", "LOCALIZED", "median error", "90 % below")


def draw_curve(figure: Figure, curve: Sequence[CurvePoint]) -> None:
    """Draw error and share of answers by size.

    Parameters
    ----------
    figure : Figure
        Empty.
    curve : sequence of CurvePoint
        At least one.
    """
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    kilobytes = [point.num_bytes / 1e3 for point in curve]
    for name, label in (("median_error", "median"), ("p90_error", "90 % below")):
        errors = np.array([getattr(point, name) for point in curve])
        above.plot(
            kilobytes, np.where(np.isfinite(errors), errors, np.nan), "o-", label=label
        )
    above.set_yscale("log")
    above.set_ylabel("position error")
    above.legend()
    below.plot(kilobytes, [point.share_localized for point in curve], "o-")
    below.set_ylim(-0.03, 1.03)
    below.set_ylabel("LOCALIZED")
    below.set_xscale("log")
    below.set_xlabel("size of the map, kB")


def _cells(point: CurvePoint, unit: str) -> list[str]:
    def length(value: float) -> str:
        return text.length(value, unit) if np.isfinite(value) else text.NONE

    return [
        f"{point.num_bytes / 1e3:.1f} kB",
        str(point.num_frames),
        f"{point.share_localized:.2f}",
        length(point.median_error),
        length(point.p90_error),
    ]


def write_build_report(result: BuildResult, folder: Path) -> tuple[Path, Path]:
    """Write report.json and report.html; return their paths.

    Parameters
    ----------
    result : BuildResult
        What a build made.
    folder : Path
        Made when it does not exist.
    """
    manifest = result.manifest
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    unit = "m" if manifest.metric else "u"
    facts = {**result.facts, **result.cost}
    picture = ""
    if result.curve:
        svg = render(draw_curve, result.curve, size=(6.5, 5.0), kind="svg")
        picture = data_uri(svg, "image/svg+xml")
    page = environment.get_template("build_report.html.j2").render(
        title=f"Map of {manifest.name}",
        map_id=manifest.map_id,
        size=f"{result.counted_bytes / 1e3:.1f} kB",
        curve_header=_HEADER,
        curve=[_cells(point, unit) for point in result.curve],
        picture=picture,
        facts=[[name, str(value)] for name, value in facts.items()],
    )
    report = {
        "format": "edgeloc-build-report",
        "format_version": FORMAT_VERSION,
        "map_id": manifest.map_id,
        "map_bytes": result.counted_bytes,
        "total_bytes": manifest.total_bytes,
        "facts": facts,
        "curve": [asdict(point) for point in result.curve],
    }
    return write_pages(folder, facts=json_value(report), page=page)
