"""All methods of a site on one recording: accuracy, time, bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeloc.errors import ConfigError
from edgeloc.runtime.estimator_options import METHOD_STEPS, EstimatorOptions
from edgeloc.runtime.ladder import LADDER, Need, Step, site_data
from edgeloc.tiles.reader import Site, SiteManifest
from edgeloc.types import PoseStatus
from edgeloc_tools.datasets.recording import Recording
from edgeloc_tools.evaluate import text
from edgeloc_tools.evaluate.result import EvaluationResult
from edgeloc_tools.evaluate.run import evaluate
from edgeloc_tools.progress import Progress, silent

ALL = "all"
"""As ``--method``: every one of `METHODS`, one after the other."""

METHODS = tuple(name for name in METHOD_STEPS if name != "auto")
"""The families that can answer alone."""

RECALL_LABELS = ("0.05 {unit}, 5°", "0.25 {unit}, 2°")
"""Bounds of the table; in maps without scale the last is that of their extent."""
EXTENT_LABEL = "1% of extent, 2°"

MODEL_NEEDS: Mapping[Need, str] = {
    Need.RETRIEVAL: "retrieval",
    Need.SCENE_MODEL: "scene_coords",
    Need.POSE_MODEL: "regress",
}
"""Roles of the networks that a method cannot do without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildFacts:
    """What making a method's data took.

    Parameters
    ----------
    seconds : float
        Of the site, and of the training of its head where it has one; nan = unknown.
    training_bytes : float
        Images (and depth) that it was made from, as files; nan = unknown.
    """

    seconds: float = math.nan
    training_bytes: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRow:
    """One method on one scene.

    Parameters
    ----------
    method : str
        As ``--method``.
    device_bytes : int
        What it needs of the site, networks included; 0 without data.
    build : BuildFacts
        What that took.
    result : EvaluationResult or None
        How it did; None where the site carries no data for it.
    """

    method: str
    device_bytes: int = 0
    build: BuildFacts = BuildFacts()
    result: EvaluationResult | None = None


def method_steps(method: str) -> list[Step]:
    """Return the steps of the ladder with which a method answers a single frame."""
    names = METHOD_STEPS[method] or frozenset()
    prior = {Need.PRIOR, Need.TRACKS, Need.MOTION}
    return [
        step
        for step in LADDER
        if step.name in names and step.needs and not step.needs & prior
    ]


def has_data(manifest: SiteManifest, method: str) -> bool:
    """Return whether a site carries data for a method."""
    have = site_data(manifest.rungs)
    return any(step.needs <= have for step in method_steps(method))


def device_bytes(manifest: SiteManifest, method: str) -> int:
    """Return the bytes of a site that a device needs for one method alone.

    The index always, since it holds keyframes, cameras and calibrations; tiles for
    landmarks and features of keyframes; the networks and codebooks that its stages use.

    Parameters
    ----------
    manifest : SiteManifest
        Of the site.
    method : str
        One of `METHODS`.
    """
    needs = frozenset[Need]().union(*(step.needs for step in method_steps(method)))
    stages = {stage for step in method_steps(method) for stage in step.stages}
    roles = {role for need, role in MODEL_NEEDS.items() if need in needs}
    # Heads stand on the local features, too.
    if "features" in stages or needs & {Need.SCENE_MODEL, Need.POSE_MODEL}:
        roles.add("features")
    total = manifest.index.num_bytes
    total += sum(
        model.manifest.num_bytes + model.network.num_bytes
        for role, model in manifest.models.items()
        if role in roles
    )
    if Need.RETRIEVAL in needs and "global" in manifest.codebooks:
        total += manifest.codebooks["global"].num_bytes
    # Alone, interpolation checks keyframes by what tiles say of them, where there are.
    if needs & {Need.TILES, Need.KEYFRAME_FEATURES} or method == "interpolate":
        total += manifest.tile_bytes
        if "descriptors" in manifest.codebooks:
            total += manifest.codebooks["descriptors"].num_bytes
    return total


def compare_methods(
    site: Site,
    recording: Recording,
    *,
    options: EstimatorOptions,
    builds: Mapping[str, BuildFacts] | None = None,
    budget_ms: float | None = None,
    limit: int | None = None,
    progress: Progress = silent,
) -> list[MethodRow]:
    """Localize a recording with each method alone, every frame by itself.

    Parameters
    ----------
    site : Site
        The map.
    recording : Recording
        Queries with ground truth.
    options : EstimatorOptions
        Of the estimators; its method does not matter.
    builds : mapping of str to BuildFacts, optional
        What making each method's data took, as far as known.
    budget_ms : float, optional
        Time for each frame; by default as long as it takes.
    limit : int, optional
        Only the first so many images.
    progress : callable, optional
        Told about each frame.

    Returns
    -------
    list of MethodRow
        In the order of `METHODS`, those without data among them.

    Raises
    ------
    ConfigError
        When the site carries no data for any.
    DatasetError
        For a recording without ground truth or with an unreadable image.
    """
    builds = builds or {}
    rows = []
    for method in METHODS:
        if not has_data(site.manifest, method):
            rows.append(MethodRow(method=method))
            continue

        def step(_name: str, done: int, total: int, method: str = method) -> None:
            progress(method, done, total)

        result = evaluate(
            site,
            recording,
            options=replace(options, method=method, cold=True),
            budget_ms=budget_ms,
            limit=limit,
            progress=step,
        )
        rows.append(
            MethodRow(
                method=method,
                device_bytes=device_bytes(site.manifest, method),
                build=builds.get(method, BuildFacts()),
                result=result,
            )
        )
    if all(row.result is None for row in rows):
        raise ConfigError(f"{site.path} carries no data for any method")
    return rows


HEADER = (
    "method",
    "answers",
    "LOST",
    "median error",
    "5 cm, 5°",
    "25 cm, 2°",
    "1 % of extent, 2°",
    "p50 / p95 ms",
    "on the device",
    "training data",
    "build",
)
"""Columns of `cells`; 5 and 25 cm are 0.05 and 0.25 units in maps without scale."""


def cells(row: MethodRow) -> list[str]:
    """Return the cells of one line, for the terminal, the report and Markdown."""
    if row.result is None:
        return [row.method, "no data in this site", *[text.NONE] * (len(HEADER) - 2)]
    summary, unit = row.result.summary, row.result.site.unit
    recalls = {item.label: item.recall for item in summary.recalls}
    labels = [*(label.format(unit=unit) for label in RECALL_LABELS), EXTENT_LABEL]
    statuses = {k: v for k, v in summary.statuses.items() if k != PoseStatus.LOST.value}
    total = summary.total_latency
    return [
        row.method,
        text.counts(statuses),
        str(summary.statuses.get(PoseStatus.LOST.value, 0)),
        f"{text.length(summary.all_frames.median_position, unit)}, "
        f"{text.angle(summary.all_frames.median_rotation_deg)}",
        *(
            f"{recalls[label]:.2f}" if label in recalls else text.NONE
            for label in labels
        ),
        f"{text.number(total.p50_ms)} / {text.number(total.p95_ms)}",
        text.megabytes(row.device_bytes),
        known_megabytes(row.build.training_bytes),
        known_seconds(row.build.seconds),
    ]


def known_megabytes(num_bytes: float) -> str:
    """Return a size in MB, a dash when it is not known."""
    return text.megabytes(round(num_bytes)) if math.isfinite(num_bytes) else text.NONE


def known_seconds(seconds: float) -> str:
    """Return a time in seconds, a dash when it is not known."""
    return f"{text.number(seconds)} s" if math.isfinite(seconds) else text.NONE


def read_build_facts(path: Path) -> BuildFacts:
    """Return what a build says about itself.

    Parameters
    ----------
    path : Path
        report.json of ``edgeloc-build map --report``.

    Raises
    ------
    ConfigError
        When it is not there, or something else.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))["facts"]
        return BuildFacts(
            seconds=float(facts["build_seconds"]),
            training_bytes=float(facts["training_bytes"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ConfigError(
            f"--build-report {path}: has no build time and training bytes ({exc}); "
            "give report.json of edgeloc-build map --report"
        ) from exc


def to_json(rows: Sequence[MethodRow]) -> list[dict[str, object]]:
    """Return rows as plain values; what `result.json_value` takes."""
    return [
        {
            "method": row.method,
            "has_data": row.result is not None,
            "device_bytes": row.device_bytes,
            "build_seconds": row.build.seconds,
            "training_bytes": row.build.training_bytes,
            "summary": None if row.result is None else row.result.summary,
        }
        for row in rows
    ]
