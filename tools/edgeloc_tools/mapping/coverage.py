"""What a site covers, as a picture: landmarks, cells, and what each keyframe sees."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from edgeloc.tiles.reader import Site, open_site
from edgeloc.types import FloatArray
from edgeloc_tools.mapping.inspect import weak_keyframes

MANY_LANDMARKS = 200_000
"""Of more, so many are drawn."""
_INK, _LANDMARK, _CELL, _WEAK = "#333333", "#9aa5b1", "#d9b36c", "#c0392b"


def plan_axes(site: Site) -> tuple[FloatArray, str]:
    """Return two directions to look at a site in, (2, 3), and their names.

    From above where it is known where that is; otherwise onto the plane in which the
    cameras moved most.

    Parameters
    ----------
    site : Site
        Open.
    """
    down = site.manifest.gravity_in_world
    if site.manifest.geo_reference is not None:
        return np.eye(3)[:2], "east, north"
    centers = site.keyframes.centers
    spread = (centers - centers.mean(axis=0)).T @ (centers - centers.mean(axis=0))
    if down is not None:
        across = np.eye(3) - np.outer(down, down)
        spread = across @ spread @ across
    _, directions = np.linalg.eigh(spread)
    plane = directions[:, ::-1].T[:2].copy()
    # eigh leaves signs to chance: the largest element is positive.
    for axis in plane:
        axis *= np.sign(axis[np.argmax(np.abs(axis))])
    return plane, "from above" if down is not None else "in the plane of the walk"


def coverage_png(path: Path) -> bytes:
    """Return a picture of a site, as PNG.

    Keyframes are coloured by how many landmarks they see: the weak ones are where a
    device will not find itself. Rings are where mapping frames that were held out of
    the map when it was built were not localized.

    Parameters
    ----------
    path : Path
        Site folder.
    """
    site = open_site(path)
    plane, view = plan_axes(site)
    tiles = [site.read_tile(idx) for idx in range(len(site.tiles))]
    points3D = np.concatenate([tile.landmarks.points3D for tile in tiles])
    if len(points3D) > MANY_LANDMARKS:
        chosen = np.random.default_rng(0).permutation(len(points3D))
        points3D = points3D[chosen[:MANY_LANDMARKS]]
    points = points3D @ plane.T
    centers = site.keyframes.centers @ plane.T
    forward = site.keyframes.R[:, 2, :] @ plane.T
    seen = np.concatenate([np.diff(tile.visible_offsets) for tile in tiles])

    with mpl.rc_context({"font.size": 9.0}):
        figure = Figure(figsize=(8.0, 7.0), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        low, high = _limits(points, centers)
        axes.scatter(
            points[:, 0],
            points[:, 1],
            s=1.0,
            c=_LANDMARK,
            linewidths=0,
            label="landmarks",
        )
        axes.add_collection(_cells(site, plane))
        reach = 0.02 * float(np.max(high - low))
        arrows = np.stack([centers, centers + reach * forward], axis=1)
        axes.add_collection(LineCollection(list(arrows), colors=_INK, linewidths=0.6))
        shown = axes.scatter(
            centers[:, 0], centers[:, 1], c=seen, s=14.0, cmap="viridis", zorder=3
        )
        weak = centers[weak_keyframes(site)]
        if len(weak):
            axes.scatter(
                weak[:, 0],
                weak[:, 1],
                s=110.0,
                facecolors="none",
                edgecolors=_WEAK,
                linewidths=1.6,
                zorder=4,
                label="held-out frames failed here",
            )
            axes.legend(loc="upper right", framealpha=0.9)
        figure.colorbar(shown, ax=axes, shrink=0.7, label="landmarks that it sees")
        unit = "m" if site.manifest.metric else "unit of the map"
        axes.set(
            xlim=(low[0], high[0]),
            ylim=(low[1], high[1]),
            aspect="equal",
            xlabel=f"{unit}, {view}",
            ylabel=unit,
            title=f"{site.manifest.name}: {len(site.keyframes)} keyframes, "
            f"{site.manifest.num_landmarks} landmarks, {len(site.tiles)} tiles, "
            f"{site.manifest.total_bytes / 1e6:.2f} MB",
        )
        out = io.BytesIO()
        # No date: the same site gives the same picture.
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _limits(points: FloatArray, centers: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return what to show: all cameras, and landmarks but for a few far ones."""
    both = centers
    if len(points):
        both = np.vstack([centers, np.quantile(points, [0.01, 0.99], axis=0)])
    low, high = both.min(axis=0), both.max(axis=0)
    margin = 0.05 * max(float(np.max(high - low)), 1e-9)
    return low - margin, high + margin


def _cells(site: Site, plane: FloatArray) -> LineCollection:
    """Return the boxes of tiles, as they look from there."""
    corners = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)])
    edges = [(a, b) for a in range(8) for b in range(a) if (a ^ b).bit_count() == 1]
    low, high = site.tiles.boxes
    lines = []
    for row, tile in enumerate(site.tiles):
        if tile.num_landmarks:
            box = (low[row] + corners * (high[row] - low[row])) @ plane.T
            lines += [box[[a, b]] for a, b in edges]
    return LineCollection(lines, colors=_CELL, linewidths=0.5, alpha=0.7)


def coverage_html(facts: Mapping[str, object], png: bytes) -> str:
    """Return a page with the picture and the facts of a site.

    Parameters
    ----------
    facts : mapping
        From `edgeloc_tools.mapping.inspect.describe_site`.
    png : bytes
        From `coverage_png`.
    """
    title = html.escape(str(facts["name"]))
    image = base64.b64encode(png).decode("ascii")
    text = html.escape(json.dumps(facts, indent=2))
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>{title}</title><style>body{{font:15px sans-serif;margin:2em}}"
        "pre{font-size:13px}</style>"
        f'<h1>{title}</h1><img alt="What the site covers" '
        f'src="data:image/png;base64,{image}"><pre>{text}</pre></html>\n'
    )
