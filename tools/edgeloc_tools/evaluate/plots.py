"""The plots of a report, as SVG text."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from edgeloc.types import BoolArray, FloatArray, PoseStatus
from edgeloc_tools.evaluate.result import EvaluationResult, FrameRow
from edgeloc_tools.evaluate.style import (
    GRID_COLOR,
    INK_COLOR,
    KEYFRAME_COLOR,
    RUNG_MARKERS,
    STATUS_COLORS,
    TRUTH_COLOR,
)

# Any: its keys are a closed list in the stubs of some versions of matplotlib only.
RC: Any = {
    "svg.fonttype": "path",
    # A fixed salt and no date: the same result gives the same bytes.
    "svg.hashsalt": "edgeloc",
    "font.size": 9.0,
    "axes.edgecolor": INK_COLOR,
    "axes.labelcolor": INK_COLOR,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID_COLOR,
    "xtick.color": INK_COLOR,
    "ytick.color": INK_COLOR,
    "legend.frameon": False,
}
"""Matplotlib settings, for the time of drawing only."""

MANY_POINTS = 2000
"""From here on points are drawn as pixels: an SVG of them would be slow to open."""

Draw = Callable[[Figure, EvaluationResult], None]
Shown = TypeVar("Shown")


def render(
    draw: Callable[[Figure, Shown], None],
    result: Shown,
    *,
    size: tuple[float, float],
    kind: str,
) -> bytes:
    """Return a drawing as a file's bytes.

    Parameters
    ----------
    draw : callable
        One of the functions below, or another.
    result : object
        What to draw, an `EvaluationResult` for those below.
    size : tuple of float
        Width and height, inches.
    kind : str
        "svg" or "png".

    Returns
    -------
    bytes
    """
    with mpl.rc_context(RC):
        figure = Figure(figsize=size, layout="constrained")
        # A canvas of its own: no global state of pyplot, no display needed.
        FigureCanvasAgg(figure)
        draw(figure, result)
        buffer = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(buffer, format=kind, dpi=120, metadata=metadata)
    return buffer.getvalue()


def _cumulative(axes: Axes, errors: FloatArray, *, color: str) -> None:
    """Draw the share of all frames whose error is at most x; LOST never arrives."""
    finite = np.sort(errors[np.isfinite(errors)])
    if len(finite) == 0:
        axes.text(
            0.5, 0.5, "no frame was answered", ha="center", transform=axes.transAxes
        )
        return
    positive = np.maximum(finite, 1e-7)
    share = np.arange(1, len(finite) + 1) / len(errors)
    axes.set_xscale("log")
    right = max(positive[-1] * 1.5, positive[0] * 10.0)
    axes.step(
        np.r_[positive[0], positive, right],
        np.r_[0.0, share, share[-1]],
        where="post",
        color=color,
        linewidth=1.8,
    )
    axes.set_xlim(positive[0] / 1.5, right)
    if share[-1] < 1.0:
        axes.axhspan(share[-1], 1.0, color=STATUS_COLORS["LOST"], alpha=0.12, lw=0)
        axes.annotate(
            f"{len(errors) - len(finite)} LOST",
            (0.02, (share[-1] + 1.0) / 2.0),
            xycoords=("axes fraction", "data"),
            va="center",
            color=STATUS_COLORS["LOST"],
        )


def draw_error_curves(figure: Figure, result: EvaluationResult) -> None:
    """Draw the cumulative position and rotation errors over all frames."""
    left, right = figure.subplots(1, 2, sharey=True)
    color = STATUS_COLORS["LOCALIZED"]
    rows, unit = result.rows, result.site.unit
    _cumulative(left, np.array([r.position_error for r in rows]), color=color)
    _cumulative(right, np.array([r.rotation_error_deg for r in rows]), color=color)
    for axes, attribute in ((left, "max_position"), (right, "max_rotation_deg")):
        low, high = axes.get_xlim()
        for bound in sorted({getattr(r, attribute) for r in result.summary.recalls}):
            if low < bound < high:
                axes.axvline(bound, color=INK_COLOR, linewidth=0.7, linestyle=":")
    left.set_xlabel(f"position error [{unit}]")
    right.set_xlabel("rotation error [°]")
    left.set_ylabel("share of all frames")
    left.set_ylim(0.0, 1.02)


def top_view_basis(
    points: FloatArray, gravity_in_world: tuple[float, float, float] | None
) -> tuple[FloatArray, tuple[str, str]]:
    """Return two directions to draw along, and their names.

    Parameters
    ----------
    points : ndarray of shape (N, 3)
        What will be drawn.
    gravity_in_world : tuple of 3 float or None
        Unit vector that points down, when known.

    Returns
    -------
    basis : ndarray of shape (2, 3), float64
        Orthonormal rows: the two world axes that are horizontal or, without gravity,
        that the points spread most along; a horizontal pair when gravity lies
        between the axes.
    names : tuple of str
        Of the rows.
    """
    axes = "xyz"
    if gravity_in_world is None:
        spread = np.ptp(points, axis=0)
        dropped = int(np.argmin(spread))
    else:
        down = np.asarray(gravity_in_world, np.float64)
        dropped = int(np.argmax(np.abs(down)))
        if abs(down[dropped]) < 0.99:
            first = np.cross(down, np.eye(3)[(dropped + 1) % 3])
            first /= np.linalg.norm(first)
            return np.stack([first, np.cross(down, first)]), ("level 1", "level 2")
    kept = [axis for axis in range(3) if axis != dropped]
    return np.eye(3)[kept], (axes[kept[0]], axes[kept[1]])


def _view_limits(points: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the corners of a box around points, with a margin."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = max(0.12 * float((high - low).max()), 1e-3)
    return low - margin, high + margin


def _outside(points: FloatArray, low: FloatArray, high: FloatArray) -> BoolArray:
    return np.asarray(np.any((points < low) | (points > high), axis=1))


def draw_top_view(figure: Figure, result: EvaluationResult) -> None:
    """Draw keyframes, ground truth and estimates from above."""
    axes = figure.subplots()
    keyframes = np.array(result.site.keyframe_centers).reshape(-1, 3)
    true = np.array([row.true_center for row in result.rows]).reshape(-1, 3)
    world = np.concatenate([keyframes, true])
    basis, names = top_view_basis(world, result.gravity_in_world)
    low, high = _view_limits(world @ basis.T)
    rasterized = len(world) > MANY_POINTS
    keyframes_2d, true_2d = keyframes @ basis.T, true @ basis.T
    axes.plot(
        *keyframes_2d.T,
        "o",
        color=KEYFRAME_COLOR,
        markersize=4,
        label=f"keyframes ({len(keyframes)})",
        rasterized=rasterized,
    )
    axes.plot(
        *true_2d.T,
        "o",
        color=TRUTH_COLOR,
        markersize=5,
        markerfacecolor="none",
        label=f"ground truth ({len(true)})",
        rasterized=rasterized,
    )
    for status, color in STATUS_COLORS.items():
        chosen = [row for row in result.rows if row.status == status]
        if not chosen:
            continue
        if status == PoseStatus.LOST.value:
            at = np.array([row.true_center for row in chosen]) @ basis.T
            axes.plot(*at.T, "x", color=color, label=f"LOST ({len(chosen)})")
            continue
        at = np.array([row.center for row in chosen]) @ basis.T
        truth = np.array([row.true_center for row in chosen]) @ basis.T
        outside = _outside(at, low, high)
        note = f", {outside.sum()} outside" if outside.any() else ""
        shown = np.clip(at, low, high)
        for start, end in zip(truth, shown, strict=True):
            axes.plot(
                *np.stack([start, end]).T, color=color, lw=0.7, rasterized=rasterized
            )
        axes.plot(
            *shown[~outside].T,
            "o",
            color=color,
            markersize=3,
            label=f"{status} ({len(chosen)}{note})",
            rasterized=rasterized,
        )
        axes.plot(*shown[outside].T, "*", color=color, markersize=9, clip_on=False)
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
    axes.set_aspect("equal")
    unit = result.site.unit
    axes.set_xlabel(f"{names[0]} [{unit}]")
    axes.set_ylabel(f"{names[1]} [{unit}]")
    figure.legend(loc="outside right upper")


def _strip_points(
    axes: Axes, rows: Sequence[FrameRow], values: Sequence[float], *, rasterized: bool
) -> None:
    for status, color in STATUS_COLORS.items():
        for rung, marker in RUNG_MARKERS.items():
            points = [
                (idx, value)
                for idx, (row, value) in enumerate(zip(rows, values, strict=True))
                if row.status == status and row.rung == rung and math.isfinite(value)
            ]
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(
                    x,
                    np.maximum(y, 1e-7),
                    marker,
                    color=color,
                    markersize=3.5,
                    rasterized=rasterized,
                )


def draw_strip(figure: Figure, result: EvaluationResult) -> None:
    """Draw position error, rotation error and latency of each frame, in order."""
    rows = result.rows
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    rasterized = len(rows) > MANY_POINTS
    for axes, values, label in (
        (top, [r.position_error for r in rows], f"position [{result.site.unit}]"),
        (middle, [r.rotation_error_deg for r in rows], "rotation [°]"),
    ):
        axes.set_yscale("log")
        _strip_points(axes, rows, values, rasterized=rasterized)
        axes.set_ylabel(label)
        for idx, row in enumerate(rows):
            if row.is_lost:
                axes.axvspan(
                    idx - 0.5, idx + 0.5, color=STATUS_COLORS["LOST"], alpha=0.25, lw=0
                )
            elif row.wrong:
                axes.axvline(idx, color="red", lw=1.0, alpha=0.6)
    _strip_points(bottom, rows, [r.wall_ms for r in rows], rasterized=rasterized)
    bottom.set_ylabel("latency [ms]")
    bottom.set_xlabel("frame")
    bottom.set_ylim(bottom=0.0)
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    bottom.set_xlim(-0.5, max(len(rows), 1) - 0.5)
    budget_ms = result.options.get("budget_ms")
    if isinstance(budget_ms, int | float):
        bottom.axhline(float(budget_ms), color="red", lw=1.0, linestyle="--")
    seen = dict.fromkeys((row.status, row.rung) for row in rows)
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=RUNG_MARKERS.get(rung, "o"),
            color=STATUS_COLORS[status],
            label=status if status == rung else f"{status} by {rung}",
        )
        for status, rung in seen
    ]
    if any(row.wrong for row in rows):
        handles.append(Line2D([], [], color="red", label="wrong but confident"))
    figure.legend(handles=handles, loc="outside upper left", ncols=4)


def draw_consistency(figure: Figure, result: EvaluationResult) -> None:
    """Draw the position error of answered frames against the claimed sigma."""
    axes = figure.subplots()
    rows = [r for r in result.rows if math.isfinite(r.nees)]
    if not rows:
        axes.text(0.5, 0.5, "no covariance to show", ha="center")
        return
    sigma = np.maximum([r.position_sigma for r in rows], 1e-7)
    error = np.maximum([r.position_error for r in rows], 1e-7)
    colors = [STATUS_COLORS[r.status] for r in rows]
    axes.scatter(sigma, error, s=12, c=colors, rasterized=len(rows) > MANY_POINTS)
    axes.set_xscale("log")
    axes.set_yscale("log")
    span = np.array([sigma.min() / 1.5, sigma.max() * 1.5])
    for factor, style in ((1.0, ":"), (3.0, "-"), (30.0, "--")):
        axes.plot(span, factor * span, style, color=INK_COLOR, lw=0.8)
        axes.annotate(f" {factor:g}σ", (span[1], factor * span[1]), va="center")
    axes.set_xlabel(f"claimed σ of the position [{result.site.unit}]")
    axes.set_ylabel(f"position error [{result.site.unit}]")


PLOTS: dict[str, tuple[Draw, tuple[float, float]]] = {
    "errors": (draw_error_curves, (8.6, 3.0)),
    "top_view": (draw_top_view, (8.6, 4.8)),
    "strip": (draw_strip, (8.6, 5.4)),
    "consistency": (draw_consistency, (5.4, 3.6)),
}
"""Every plot of a report by its name, with its size in inches."""
