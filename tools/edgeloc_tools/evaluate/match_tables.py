"""Tables and the plot of what feature families reach."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from edgeloc_tools.evaluate.match_scores import (
    CATEGORIES,
    RADII_PX,
    FamilyScores,
    WideBaseline,
)
from edgeloc_tools.evaluate.style import SERIES_COLORS
from edgeloc_tools.evaluate.text import NONE, markdown_table, number
from edgeloc_tools.evaluate.warps import KINDS

REFERENCE = "sift"
"""Family that the others are compared with."""


def _ratio(value: float, reference: float | None) -> str:
    if reference is None:
        return number(value)
    ratio = value / reference if reference else float("inf" if value else "nan")
    return f"{number(value)} ({number(ratio, 2)})"


def _fixed(value: float, form: str) -> str:
    return NONE if math.isnan(value) else format(value, form)


def _reference(scores: Sequence[FamilyScores]) -> FamilyScores | None:
    return next((s for s in scores if s.family == REFERENCE), None)


def _mean(rows: Sequence[WideBaseline], field: str) -> float:
    return float(np.mean([getattr(row, field) for row in rows]))


def wide_table(scores: Sequence[FamilyScores]) -> str:
    """Return correct matches on WxBS by category, with the ratio to the reference."""
    reference = _reference(scores)
    names = [*CATEGORIES, "all"]
    lines = []
    for name in names:
        for family in scores:
            rows = [r for r in family.wide if name in {"all", r.category}]
            others = [] if reference is None else reference.wide
            against = [r for r in others if name in {"all", r.category}]
            if not rows:
                continue
            mean = _mean(rows, "num_correct")
            base = _mean(against, "num_correct") if against else None
            mutual_base = _mean(against, "num_mutual") if against else None
            lines.append(
                [
                    f"{name} ({CATEGORIES.get(name, 'all pairs')})",
                    family.family,
                    str(len(rows)),
                    str(sum(r.num_correct for r in rows)),
                    _ratio(mean, base),
                    number(_mean(rows, "num_epipolar")),
                    number(_mean(rows, "num_chance")),
                    number(_mean(rows, "num_matches")),
                    _ratio(_mean(rows, "num_mutual"), mutual_base),
                    number(_mean(rows, "mutual_chance")),
                ]
            )
    header = [
        "category",
        "features",
        "pairs",
        "correct, sum",
        f"correct, mean (ratio to {REFERENCE})",
        "epipolar only",
        "by chance",
        "matches",
        "correct without ratio test (ratio)",
        "by chance",
    ]
    return markdown_table(header, lines)


def pair_table(scores: Sequence[FamilyScores]) -> str:
    """Return correct matches of matches for every WxBS pair."""
    pairs = {(r.category, r.pair): None for s in scores for r in s.wide}
    by_pair = [{(r.category, r.pair): r for r in s.wide} for s in scores]
    lines = []
    for key in pairs:
        cells = [rows.get(key) for rows in by_pair]
        lines.append(
            [
                "/".join(key),
                *(
                    NONE if c is None else f"{c.num_correct} / {c.num_matches}"
                    for c in cells
                ),
            ]
        )
    return markdown_table(["pair", *(s.family for s in scores)], lines)


def curve_table(scores: Sequence[FamilyScores], curve: str, header: str) -> str:
    """Return correct matches against angle or scale, with the ratio to the reference.

    Parameters
    ----------
    scores : sequence of FamilyScores
        Families.
    curve : str
        "rotation" or "scale".
    header : str
        Of the first column.
    """
    reference = _reference(scores)
    base = None if reference is None else getattr(reference, curve)
    lines = [
        [
            key,
            *(
                _ratio(getattr(s, curve)[key], None if base is None else base[key])
                for s in scores
            ),
        ]
        for key in getattr(scores[0], curve)
    ]
    return markdown_table([header, *(s.family for s in scores)], lines)


def homography_table(scores: Sequence[FamilyScores]) -> str:
    """Return repeatability, accuracy and localization by kind of change."""
    radii = "/".join(f"{radius:g}" for radius in RADII_PX) + " px"
    header = ["change", "features", "keypoints", "matches"]
    header += [
        f"{what} {radii}" for what in ("repeatability", "correct share", "correct")
    ]
    header += ["correct per keypoint", "localization"]
    lines = []
    for kind in KINDS:
        for family in scores:
            values = family.homography[kind]
            line = [kind, family.family]
            line += [f"{values[key]:.0f}" for key in ("keypoints", "matches")]
            for key, form in (
                ("repeatability", ".2f"),
                ("accuracy", ".2f"),
                ("correct", ".0f"),
            ):
                cells = [_fixed(values[f"{key}_{r:g}px"], form) for r in RADII_PX]
                line.append(" / ".join(cells))
            line.append(f"{values['score']:.2f}")
            line.append(_fixed(values["localization_px"], ".2f") + " px")
            lines.append(line)
    return markdown_table(header, lines)


def tables(scores: Sequence[FamilyScores]) -> str:
    """Return all tables as Markdown."""
    parts = [
        "## Wide baselines (WxBS), correct matches per pair",
        wide_table(scores),
        "Correct of all matches:",
        pair_table(scores),
        "## Correct matches of a turned image",
        curve_table(scores, "rotation", "degrees"),
        "## Correct matches of a scaled image",
        curve_table(scores, "scale", "scale"),
        "## Photos under homographies, in other light",
        homography_table(scores),
    ]
    return "\n\n".join(parts) + "\n"


def draw_curves(figure: Figure, scores: Sequence[FamilyScores]) -> None:
    """Draw correct matches against angle and scale, one line per family."""
    left, right = figure.subplots(1, 2, sharey=True)
    for idx, family in enumerate(scores):
        color = SERIES_COLORS[idx % len(SERIES_COLORS)]
        for axes, curve in ((left, family.rotation), (right, family.scale)):
            x = [float(key) for key in curve]
            axes.plot(
                x,
                list(curve.values()),
                marker="o",
                markersize=3.5,
                color=color,
                label=family.family,
            )
    left.set_xticks([0, 45, 90, 135, 180])
    left.set_xlabel("rotation, degrees")
    left.set_ylabel("correct matches per image")
    left.set_ylim(bottom=0)
    right.set_xscale("log", base=2)
    right.set_xticks([0.4, 0.5, 0.7, 1.0, 1.4, 2.0, 2.5])
    right.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    right.set_xlabel("scale")
    right.legend()
