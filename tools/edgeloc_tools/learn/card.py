"""Model cards and training curves: what a network was made of, for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from edgeloc.errors import ConfigError
from edgeloc_tools.evaluate.plots import render
from edgeloc_tools.evaluate.style import SERIES_COLORS
from edgeloc_tools.files import write_atomically

Point = tuple[float, float]

_NOTES = {
    "features": (
        "Input: one grey image, (1, 1, H, W) in [0, 1], sides multiples of 16. Outputs "
        "at stride 8: L2-normalised descriptors, and the logit of whether a descriptor "
        "finds its partner. Keypoints are no output: they are maxima of a corner "
        "response of the image."
    ),
    "retrieval": (
        "Input: one grey image, (1, 1, 240, 320) in [0, 1]. Output: one L2-normalised "
        "global descriptor; alike places have a large dot product."
    ),
    "scene_coords": (
        "Input: descriptors of keypoints, (1, 1, N, D). Outputs: where in the world "
        "they are, relative to the origin in the manifest, and the logarithm of the "
        "standard deviation of that along each axis, m. It serves one site only."
    ),
    "regress": (
        "Input: mean descriptors of the cells of a view, (1, D, rows, columns). "
        "Outputs: the camera centre, relative to the origin in the manifest, m, and "
        "the first two rows of the rotation of cam_from_world. It serves one site only."
    ),
}


def read_log(path: Path) -> list[dict[str, float]]:
    """Return the entries of a training log, the last of each step.

    Raises
    ------
    ConfigError
        When the file is none.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        entries = {int(entry["step"]): entry for entry in map(json.loads, lines)}
    except (ValueError, KeyError, TypeError) as exc:
        raise ConfigError(f"{path}: is not the log of a training ({exc})") from exc
    return [entries[step] for step in sorted(entries)]


def _draw_curves(figure: Figure, curves: Mapping[str, Sequence[Point]]) -> None:
    """Draw one curve beside the other over the steps."""
    for idx, (name, points) in enumerate(curves.items()):
        axes = figure.add_subplot(1, len(curves), idx + 1)
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=SERIES_COLORS[idx % len(SERIES_COLORS)])
        axes.set_title(name)
        axes.set_xlabel("steps")


def write_card(
    folder: Path,
    *,
    name: str,
    role: str,
    recipe: Mapping[str, Any],
    data: Sequence[str],
    log: Path,
) -> Path:
    """Write NAME.md and NAME.svg, the card of a model and its training curves.

    Parameters
    ----------
    folder : Path
        Where the model is.
    name : str
        Of the model.
    role : {"features", "retrieval", "scene_coords", "regress"}
        What it is for.
    recipe : mapping
        Of the training.
    data : sequence of str
        One line for each source of data, its licence included.
    log : Path
        Of the training.
    """
    entries = read_log(log)
    curves = {
        key: [(entry["step"], entry[key]) for entry in entries if key in entry]
        for key in entries[-1]
        if key not in {"step", "seconds", "total"}
    }
    picture = render(_draw_curves, curves, size=(3.0 * len(curves), 2.6), kind="svg")
    write_atomically(folder / f"{name}.svg", picture)
    last = ", ".join(f"{key} {points[-1][1]:.4g}" for key, points in curves.items())
    options = "\n".join(
        f"- {key}: {json.dumps(value)}" for key, value in recipe.items()
    )
    lines = [
        f"# {name}",
        "",
        _NOTES[role],
        "",
        "Trained from nothing by `edgeloc-build train`; the weights are under "
        "Apache-2.0 like the rest of this project. No weights of others went into it.",
        "",
        "## Data",
        "",
        *(f"- {line}" for line in data),
        "",
        "## Training",
        "",
        f"{entries[-1]['step']} steps; at the end {last}.",
        "",
        f"![curves]({name}.svg)",
        "",
        options,
        "",
        "## Accuracy",
        "",
        "See the tables in the README of the project, with their commands.",
        "",
    ]
    path = folder / f"{name}.md"
    write_atomically(path, "\n".join(lines).encode())
    return path
