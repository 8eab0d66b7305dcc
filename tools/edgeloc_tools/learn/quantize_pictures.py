"""Drawings of a quantization report."""

from __future__ import annotations

import cv2
import numpy as np
from matplotlib.figure import Figure

from edgeloc.geometry.camera import to_opencv_px
from edgeloc.inference.network import Network
from edgeloc.runtime.picture import GREEN_BGR, RED_BGR
from edgeloc.types import ByteArray, FloatArray
from edgeloc_tools.evaluate.style import INK_COLOR, TRUTH_COLOR
from edgeloc_tools.learn.agreement import INLIER_PX, FeatureProbe, match_pair
from edgeloc_tools.learn.quantize_gate import GateScore
from edgeloc_tools.learn.sensitivity import LayerDamage

# Okabe and Ito's palette, as everywhere in reports.
VARIANT_COLORS = {
    "fp32": TRUTH_COLOR,
    "fp16": "#56b4e9",
    "int8-cpu": "#0072b2",
    "int8-tensorrt": "#d55e00",
}
"""By the name of the variant."""

_SHIFT = 4
_MAX_LINES = 150


def draw_matches(probe: FeatureProbe, network: Network, *, pair_idx: int) -> ByteArray:
    """Return a pair of pictures side by side with a variant's matches.

    Right matches are green, wrong ones red.

    Parameters
    ----------
    probe : FeatureProbe
        Has the pairs.
    network : Network
        The variant.
    pair_idx : int
        Which pair.
    """
    pair = probe.pairs[pair_idx]
    first, second = probe.describe_pair(network, pair)
    a, b = match_pair(first, second, max_ratio=probe.max_ratio)
    right = pair.warp.error_px(a, b) <= INLIER_PX
    height = max(pair.a.shape[0], pair.b.shape[0])
    canvas = np.concatenate([_panel(pair.a, height), _panel(pair.b, height)], axis=1)
    offset = np.array([pair.a.shape[1], 0.0])
    start, end = _fixed(a), _fixed(b + offset)
    every = max(1, len(a) // _MAX_LINES)
    # Wrong ones last: they are few, and what one looks for.
    for idx in np.argsort(~right, kind="stable")[::every].tolist():
        color = GREEN_BGR if right[idx] else RED_BGR
        cv2.line(canvas, start[idx], end[idx], color, 1, cv2.LINE_AA, _SHIFT)
    return np.asarray(canvas, np.uint8)


def _panel(grey: ByteArray, height: int) -> ByteArray:
    """Return a picture, darker and filled up below, for coloured lines on it."""
    filled = np.zeros((height, grey.shape[1]), np.uint8)
    filled[: grey.shape[0]] = grey * 0.8
    return np.asarray(cv2.cvtColor(filled, cv2.COLOR_GRAY2BGR), np.uint8)


def _fixed(points: FloatArray) -> list[tuple[int, int]]:
    fixed = np.rint(to_opencv_px(points) * (1 << _SHIFT)).astype(np.int64)
    return [(int(x), int(y)) for x, y in fixed]


def draw_sensitivity(
    figure: Figure, results: dict[str, tuple[tuple[LayerDamage, ...], tuple[str, ...]]]
) -> None:
    """Draw the damage of each layer's quantization, one row of bars per variant.

    Parameters
    ----------
    figure : Figure
        To draw on.
    results : dict of str to (tuple of LayerDamage, tuple of str)
        Layers of each variant, and which of them stayed float.
    """
    axes = figure.subplots(1, len(results), squeeze=False)[0]
    for one, (name, (layers, kept)) in zip(axes, results.items(), strict=True):
        shown = list(reversed(layers))
        places = np.arange(len(shown))
        one.barh(
            places,
            [max(entry.measurement.damage, 0.0) for entry in shown],
            color=[
                INK_COLOR if entry.layer in kept else VARIANT_COLORS.get(name, "grey")
                for entry in shown
            ],
        )
        one.set_yticks(places, [_short(entry.layer) for entry in shown])
        one.grid(visible=False, axis="y")
        one.set_xlabel("damage (0 = as float32)")
        one.set_title(name, loc="left")


def _short(name: str, length: int = 24) -> str:
    return name if len(name) <= length else f"…{name[1 - length :]}"


def draw_gate(figure: Figure, scores: dict[str, GateScore], *, error_name: str) -> None:
    """Draw the share of queries with at most an error, one line per variant."""
    axes = figure.subplots()
    finite = [e for s in scores.values() for e in s.errors if 0 < e < np.inf]
    if not finite:
        axes.text(0.5, 0.5, "no query was answered", ha="center")
        return
    low, high = min(finite) / 1.5, max(finite) * 1.5
    axes.set_xscale("log")
    for name, score in scores.items():
        errors = np.sort([e for e in score.errors if e < np.inf])
        share = np.arange(1, len(errors) + 1) / len(score.errors)
        axes.step(
            np.r_[low, np.maximum(errors, low), high],
            np.r_[0.0, share, share[-1:]] if len(errors) else np.zeros(2),
            where="post",
            color=VARIANT_COLORS.get(name, "grey"),
            label=name,
        )
    axes.set_xlim(low, high)
    axes.set_ylim(0.0, 1.02)
    axes.set_xlabel(error_name)
    axes.set_ylabel("share of all queries")
    axes.legend(loc="upper left")
