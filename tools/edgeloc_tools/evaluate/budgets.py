"""Accuracy against size: every known scene at several budgets, ours and baselines.

Run as ``python -m edgeloc_tools.evaluate.budgets --data ../shared/data --out DIR``. The
result is a Markdown table and a drawing per scene. Every site measured leaves a JSON
file, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.tiles.reader import open_site
from edgeloc_tools.evaluate import text
from edgeloc_tools.evaluate.plots import render
from edgeloc_tools.evaluate.run import evaluate
from edgeloc_tools.evaluate.scenes import (
    SCENES,
    Scene,
    chosen_scenes,
    open_queries,
    open_source,
)
from edgeloc_tools.evaluate.script import run_script, script_parser
from edgeloc_tools.files import write_atomically
from edgeloc_tools.mapping.build import BuildResult, build_from_survey
from edgeloc_tools.mapping.held_out import HeldOutRun
from edgeloc_tools.mapping.options import BuildOptions
from edgeloc_tools.mapping.select import RANKINGS
from edgeloc_tools.mapping.survey import Survey, survey_recording
from edgeloc_tools.mapping.work import WorkFolder
from edgeloc_tools.progress import StderrProgress

FRACTIONS = (30, 60, 100, 150, 200, 300)
"""Budgets: these parts of the uncompressed SIFT map of the same images."""
KITCHEN_BUDGETS = (200_000, 150_000, 100_000, 50_000, 25_000, 15_000)
"""Of RedKitchen, bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRow:
    """One site of one size.

    Parameters
    ----------
    scene, ranking : str
        What was mapped, and what decided what is kept.
    budget_bytes : int or None
        Bound; None = everything.
    sift_bytes : int
        Size of the uncompressed SIFT map of the same images.
    map_bytes, num_landmarks, num_keyframes : int
        Of the site, networks and shared codebooks aside.
    unit : str
        Of lengths.
    num_queries, wrong_but_confident : int
        Queries, and confident answers that were wrong.
    median_position, median_rotation_deg : float or None
        Over all queries; None when more than half have no answer.
    recall_5cm, recall_25cm : float
        Within 0.05 units and 5 degrees, and 0.25 units and 2 degrees.
    match_ms : float
        Median time of matching and solving, per frame.
    """

    scene: str
    ranking: str
    budget_bytes: int | None
    sift_bytes: int
    map_bytes: int
    num_landmarks: int
    num_keyframes: int
    unit: str
    num_queries: int
    wrong_but_confident: int
    median_position: float | None
    median_rotation_deg: float | None
    recall_5cm: float
    recall_25cm: float
    match_ms: float


def _survey(scene: Scene, family: str, data: Path, out: Path) -> Survey:
    name = f"{scene.name.replace('/', '-')}-{family}"
    return survey_recording(
        dataclasses.replace(open_source(scene.mapping, data), name=scene.name),
        options=BuildOptions(features=family, use_depth=scene.use_depth),
        folder=WorkFolder(out / "work" / name),
        progress=StderrProgress(),
    )


def _measure(
    built: BuildResult, site: Path, scene: Scene, *, data: Path
) -> dict[str, object]:
    """Localize a scene's queries in a site."""
    opened = open_site(site)
    result = evaluate(
        opened,
        open_queries(scene, data),
        options=EstimatorOptions(cold=True),
        progress=StderrProgress(),
    )
    summary = result.summary
    recalls = {row.label: row.recall for row in summary.recalls}
    unit = result.site.unit
    median = summary.all_frames.median_position
    stages = {stage.name: stage.p50_ms for stage in summary.latency}
    return {
        "map_bytes": built.counted_bytes,
        "num_landmarks": opened.manifest.num_landmarks,
        "num_keyframes": opened.manifest.num_keyframes,
        "unit": unit,
        "num_queries": summary.num_frames,
        "wrong_but_confident": len(summary.wrong_but_confident),
        "median_position": median if median < float("inf") else None,
        "median_rotation_deg": summary.all_frames.median_rotation_deg
        if median < float("inf")
        else None,
        "recall_5cm": recalls[f"0.05 {unit}, 5°"],
        "recall_25cm": recalls[f"0.25 {unit}, 2°"],
        "match_ms": stages.get("match_pnp", 0.0),
    }


def run_scene(
    scene: Scene, *, data: Path, out: Path, rankings: Sequence[str]
) -> list[BudgetRow]:
    """Return the rows of one scene, from the cache or by building and measuring.

    Parameters
    ----------
    scene : Scene
        What is mapped and asked.
    data, out : Path
        The recordings folder, and where results go.
    rankings : sequence of str
        See `BuildOptions.ranking`.
    """
    stem = scene.name.replace("/", "-")
    surveys: dict[str, Survey] = {}
    tried: list[HeldOutRun] = []

    def survey(family: str) -> Survey:
        if family not in surveys:
            surveys[family] = _survey(scene, family, data, out)
        return surveys[family]

    def cached(name: str, options: BuildOptions, sift_bytes: int) -> BudgetRow:
        path = out / "results" / f"{stem}-{name}.json"
        if path.is_file():
            return BudgetRow(**json.loads(path.read_text(encoding="utf-8")))
        sys.stderr.write(f"{scene.name}, {name}\n")
        site = out / "sites" / f"{stem}-{name}"
        options = dataclasses.replace(options, use_depth=scene.use_depth)
        if not tried:
            # Once for all sizes: covariances are not what is measured here.
            whole = build_from_survey(
                survey(options.features),
                out=site,
                options=BuildOptions(features="edgeloc", use_depth=scene.use_depth),
                progress=StderrProgress(),
            )
            tried.append(whole.tried)
        built = build_from_survey(
            survey(options.features), out=site, options=options, tried=tried[0]
        )
        measured = _measure(built, site, scene, data=data)
        row = BudgetRow(
            scene=scene.name,
            ranking=options.ranking,
            budget_bytes=options.budget_bytes,
            sift_bytes=sift_bytes,
            **measured,  # type: ignore[arg-type]
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(dataclasses.asdict(row)).encode())
        return row

    sift = out / "results" / f"{stem}-sift-bytes.json"
    if not sift.is_file():
        sys.stderr.write(f"{scene.name}, uncompressed SIFT\n")
        nothing = HeldOutRun(frames=[], trials=[])
        num_bytes = build_from_survey(
            survey("sift"),
            out=out / "sites" / f"{stem}-sift",
            options=BuildOptions(
                features="sift",
                use_depth=scene.use_depth,
                code_bytes=0,
                ranking="random",
            ),
            tried=nothing,
        ).counted_bytes
        surveys.pop("sift")
        sift.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(sift, json.dumps(num_bytes).encode())
    sift_bytes = int(json.loads(sift.read_text(encoding="utf-8")))
    budgets = [sift_bytes // fraction for fraction in FRACTIONS]
    if scene.place == "redkitchen":
        budgets = list(KITCHEN_BUDGETS)
    plain = BuildOptions(features="edgeloc", code_bytes=0)
    rows = [
        dataclasses.replace(cached("plain", plain, sift_bytes), ranking="uncompressed"),
        cached("all", BuildOptions(features="edgeloc"), sift_bytes),
    ]
    for ranking in rankings:
        for budget in budgets:
            options = BuildOptions(
                features="edgeloc", budget_bytes=budget, ranking=ranking
            )
            rows.append(cached(f"{ranking}-{budget}", options, sift_bytes))
    return rows


def draw_budgets(figure: Figure, rows: Sequence[BudgetRow]) -> None:
    """Draw error and recall of one scene by size.

    Parameters
    ----------
    figure : Figure
        Empty.
    rows : sequence of BudgetRow
        Of one scene.
    """
    above, below = figure.subplots(2, 1, sharex=True)
    for ranking in ("uncompressed", *RANKINGS):
        own = sorted(
            (row for row in rows if row.ranking == ranking), key=lambda r: r.map_bytes
        )
        if not own:
            continue
        sizes = [row.map_bytes / 1e3 for row in own]
        medians = [
            float("nan") if row.median_position is None else row.median_position
            for row in own
        ]
        above.plot(sizes, medians, "o-", label=ranking)
        below.plot(sizes, [row.recall_5cm for row in own], "o-")
    above.set_ylabel(f"median error, {rows[0].unit}")
    above.set_yscale("log")
    above.legend()
    below.set_ylabel(f"within 0.05 {rows[0].unit}, 5°")
    below.set_ylim(-0.03, 1.03)
    below.set_xscale("log")
    below.set_xlabel("map, kB")


HEADER = (
    "scene",
    "kept by",
    "map kB",
    "of SIFT's",
    "landmarks",
    "keyframes",
    "median error",
    "5 cm, 5°",
    "25 cm, 2°",
    "wrong but confident",
    "match ms",
)
"""Columns of the table; 5 and 25 cm are 0.05 and 0.25 units in maps without scale."""


def cells(row: BudgetRow) -> list[str]:
    """Return the cells of one row."""
    median = "inf"
    if row.median_position is not None and row.median_rotation_deg is not None:
        median = (
            f"{text.length(row.median_position, row.unit)}, "
            f"{text.angle(row.median_rotation_deg)}"
        )
    return [
        row.scene,
        row.ranking if row.budget_bytes or row.ranking == "uncompressed" else "all",
        f"{row.map_bytes / 1e3:.1f}",
        f"1/{row.sift_bytes / row.map_bytes:.0f}",
        str(row.num_landmarks),
        str(row.num_keyframes),
        median,
        f"{row.recall_5cm:.2f}",
        f"{row.recall_25cm:.2f}",
        str(row.wrong_but_confident),
        text.number(row.match_ms),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = script_parser("budgets", "Measure accuracy against the size of the map.")
    parser.add_argument(
        "--scenes",
        default=",".join(s.name for s in SCENES if s.name != "redkitchen-triangulated"),
        help="names, by comma",
    )
    parser.add_argument(
        "--rankings",
        default=",".join(RANKINGS),
        help=f"by comma, of {', '.join(RANKINGS)}",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Build, measure and print; `EdgelocError` when something is wrong."""
    rankings = [name.strip() for name in args.rankings.split(",")]
    table = []
    for scene in chosen_scenes(args.scenes):
        rows = run_scene(scene, data=args.data, out=args.out, rankings=rankings)
        picture = args.out / f"{scene.name.replace('/', '-')}.svg"
        write_atomically(
            picture, render(draw_budgets, rows, size=(6.5, 5.5), kind="svg")
        )
        table += [cells(row) for row in rows]
    sys.stdout.write(text.markdown_table(HEADER, table) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run and return the exit code."""
    return run_script(_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
