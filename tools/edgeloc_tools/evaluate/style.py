"""Colours of a report, the same in plots, pictures and tables."""

from __future__ import annotations

from edgeloc.types import PoseStatus

# Okabe and Ito's palette: told apart with any colour vision, also on grey paper.
STATUS_COLORS = {
    PoseStatus.LOCALIZED.value: "#0072b2",
    PoseStatus.COARSE.value: "#e69f00",
    PoseStatus.PREDICTED.value: "#cc79a7",
    PoseStatus.LOST.value: "#d55e00",
}
"""By status."""

RUNG_MARKERS = {
    "TRACK": "^",
    "RELOCALIZE": "o",
    "SCENE_COORDS": "D",
    "LOCAL_SFM": "v",
    "RELATIVE": "P",
    "INTERPOLATE": "s",
    "REGRESS": "X",
    "PREDICT": ">",
    "LOST": "x",
}
"""Matplotlib marker by rung."""

TRUTH_COLOR = "#009e73"
"""Ground truth."""
KEYFRAME_COLOR = "#b8b8b8"
"""Keyframes of the map."""
INK_COLOR = "#24292f"
"""Text and axes."""
GRID_COLOR = "#e3e6ea"
"""Grid lines."""

SERIES_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of lines that are compared, in order."""
