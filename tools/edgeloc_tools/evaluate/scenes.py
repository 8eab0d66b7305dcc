"""Build and evaluate a site for every known scene of the recordings folder.

Run as ``python -m edgeloc_tools.evaluate.scenes --data ../shared/data --out DIR``. The
result is the Markdown table of the README. Every (scene, family) leaves a JSON file,
so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeloc.errors import ConfigError
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.tiles.reader import Site, open_site
from edgeloc.types import PoseStatus
from edgeloc_tools.datasets import open_recording, select_frames
from edgeloc_tools.datasets.recording import Recording
from edgeloc_tools.evaluate import text
from edgeloc_tools.evaluate.machine import machine_facts
from edgeloc_tools.evaluate.report import write_report
from edgeloc_tools.evaluate.result import EvaluationResult, Json, json_value
from edgeloc_tools.evaluate.run import Runner, evaluate
from edgeloc_tools.evaluate.script import run_script, script_parser
from edgeloc_tools.files import write_atomically
from edgeloc_tools.progress import StderrProgress

FAMILIES = ("orb", "sift")
"""What is built by default."""

CACHE_VERSION = 1
"""Raised when the cached rows change their meaning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where images come from, in terms of the command line.

    Parameters
    ----------
    format : str
        As ``--format``.
    folder : str
        As ``--input``, below the recordings folder.
    images, poses : str or None
        As ``--images`` and ``--poses``, below the recordings folder.
    split : str or None
        As ``--split``.
    frames : str or None
        As ``--frames``.
    metric : bool or None
        Whether the unit is the metre, where the format does not tell.
    """

    format: str
    folder: str
    images: str | None = None
    poses: str | None = None
    split: str | None = None
    frames: str | None = None
    metric: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One place with mapping images and queries.

    Parameters
    ----------
    name : str
        For tables.
    place : str
        Scenes of the same place are not crossed with each other.
    ground_truth : str
        What the poses of the queries come from.
    mapping, queries : Source
        Images with poses.
    use_depth : bool
        Whether measured depth takes part in the map.
    """

    name: str
    place: str
    ground_truth: str
    mapping: Source
    queries: Source
    use_depth: bool = True


def _gardenspoint(segment: str) -> Scene:
    folder = f"gardenspoint_kapture/{segment}"
    return Scene(
        name=f"gardenspoint/{segment}",
        place=f"gardenspoint/{segment}",
        ground_truth="SfM pseudo ground truth",
        mapping=Source(format="kapture", folder=f"{folder}/mapping"),
        queries=Source(format="kapture", folder=f"{folder}/query"),
    )


# Every 5th frame of each sequence, the usual thinning of 7-Scenes.
_KITCHEN_MAP = Source(
    format="7scenes", folder="redkitchen", split="train", frames="::5"
)
_KITCHEN_QUERY = Source(
    format="7scenes", folder="redkitchen", split="test", frames="::5"
)

SCENES: tuple[Scene, ...] = (
    Scene(
        name="redkitchen",
        place="redkitchen",
        ground_truth="SfM pseudo ground truth",
        mapping=_KITCHEN_MAP,
        queries=_KITCHEN_QUERY,
    ),
    Scene(
        name="redkitchen-triangulated",
        place="redkitchen",
        ground_truth="SfM pseudo ground truth",
        mapping=_KITCHEN_MAP,
        queries=_KITCHEN_QUERY,
        use_depth=False,
    ),
    Scene(
        name="tum_fr1_rpy",
        place="tum_fr1_rpy",
        ground_truth="motion capture",
        # 362 images at 15 Hz: the first half, then a gap of 1 s.
        mapping=Source(format="tum", folder="tum_fr1_rpy", frames=":181"),
        queries=Source(format="tum", folder="tum_fr1_rpy", frames="196:"),
    ),
    Scene(
        name="fountain",
        place="fountain",
        ground_truth="surveyed with a laser scan",
        mapping=Source(
            format="colmap", folder="fountain", images="fountain/images", metric=True
        ),
        queries=Source(
            format="hloc",
            folder="fountain/queries.txt",
            images="fountain/images",
            poses="fountain/queries_gt.txt",
            metric=True,
        ),
    ),
    Scene(
        name="lund_door",
        place="lund_door",
        ground_truth="COLMAP",
        mapping=Source(format="colmap", folder="lund_door", images="lund_door/images"),
        queries=Source(
            format="hloc",
            folder="lund_door/queries.txt",
            images="lund_door/images",
            poses="lund_door/queries_gt.txt",
        ),
    ),
    Scene(
        name="fox",
        place="fox",
        ground_truth="COLMAP",
        mapping=Source(format="nerfstudio", folder="fox", split="train"),
        queries=Source(format="nerfstudio", folder="fox", split="test"),
    ),
    _gardenspoint("000-033"),
    _gardenspoint("044-084"),
)
"""All known scenes."""


def open_source(source: Source, data: Path) -> Recording:
    """Return the images of a source.

    Parameters
    ----------
    source : Source
        Where they come from.
    data : Path
        The recordings folder.

    Raises
    ------
    DatasetError
        When they are not there.
    """
    recording = open_recording(
        format=source.format,
        input=data / source.folder,
        images=None if source.images is None else data / source.images,
        poses=None if source.poses is None else data / source.poses,
        split=source.split,
        metric=source.metric,
    )
    return select_frames(recording, frames=source.frames)


def open_queries(scene: Scene, data: Path) -> Recording:
    """Return the queries of a scene, named as in the table."""
    recording = open_source(scene.queries, data)
    return dataclasses.replace(
        recording, name=scene.name, pose_source=scene.ground_truth
    )


def build(scene: Scene, *, family: str, data: Path, out: Path) -> None:
    """Build the site of a scene: the only place that knows how sites are built.

    Parameters
    ----------
    scene : Scene
        What to map.
    family : str
        Feature family.
    data : Path
        The recordings folder.
    out : Path
        The site's folder; an unfinished one is replaced.
    """
    # Here and not above: no other line depends on how sites are built.
    from edgeloc_tools.mapping.build import build_site
    from edgeloc_tools.mapping.options import BuildOptions

    if out.exists():
        shutil.rmtree(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    recording = open_source(scene.mapping, data)
    build_site(
        dataclasses.replace(recording, name=scene.name),
        out=out,
        options=BuildOptions(features=family, use_depth=scene.use_depth),
        progress=StderrProgress(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneRow:
    """One line of the table.

    Parameters
    ----------
    scene, family, pose_source, unit : str
        What was measured against what.
    num_queries, num_lost : int
        Queries, and those without an answer.
    median_position, median_rotation_deg : float or None
        Over all queries; None when more than half are LOST.
    recalls : tuple of (str, float)
        Label and recall of each bound.
    wrong_but_confident : int
        See `metrics.wrong_reasons`.
    nees_median : float or None
        Of LOCALIZED answers.
    p50_ms, p95_ms : float
        Of the whole answer.
    map_bytes : int
        Of the whole site.
    """

    scene: str
    family: str
    pose_source: str
    unit: str
    num_queries: int
    num_lost: int
    median_position: float | None
    median_rotation_deg: float | None
    recalls: tuple[tuple[str, float], ...]
    wrong_but_confident: int
    nees_median: float | None
    p50_ms: float
    p95_ms: float
    map_bytes: int


def scene_row(scene: str, result: EvaluationResult) -> SceneRow:
    """Return the line of one evaluation."""
    summary, site = result.summary, result.site
    total = summary.total_latency

    def finite(value: float) -> float | None:
        return value if value < float("inf") else None  # also for NaN

    return SceneRow(
        scene=scene,
        family=site.family,
        pose_source=result.pose_source,
        unit=site.unit,
        num_queries=summary.num_frames,
        num_lost=summary.statuses.get(PoseStatus.LOST.value, 0),
        median_position=finite(summary.all_frames.median_position),
        median_rotation_deg=finite(summary.all_frames.median_rotation_deg),
        recalls=tuple((row.label, row.recall) for row in summary.recalls),
        wrong_but_confident=len(summary.wrong_but_confident),
        nees_median=finite(summary.localized_consistency.nees_median),
        p50_ms=total.p50_ms,
        p95_ms=total.p95_ms,
        map_bytes=site.total_bytes,
    )


def load_row(path: Path) -> SceneRow | None:
    """Return a cached line, None when there is none of this version.

    Parameters
    ----------
    path : Path
        Written by `save_row`.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as exc:
        raise ConfigError(f"{path}: is not JSON ({exc}); delete it") from exc
    if stored.get("cache_version") != CACHE_VERSION:
        return None
    fields = dict(stored["row"])
    fields["recalls"] = tuple((label, value) for label, value in fields["recalls"])
    return SceneRow(**fields)


def save_row(path: Path, row: SceneRow) -> None:
    """Write a line for `load_row`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored: dict[str, Json] = {"cache_version": CACHE_VERSION, "row": json_value(row)}
    write_atomically(path, json.dumps(stored, indent=1).encode())


HEADER = (
    "scene",
    "features",
    "ground truth",
    "queries",
    "LOST",
    "median error",
    "5 cm, 5°",
    "25 cm, 2°",
    "1 % of extent, 2°",
    "wrong but confident",
    "median NEES",
    "p50 / p95 ms",
    "map MB",
)
"""Columns of `cells`; 5 and 25 cm are 0.05 and 0.25 units in maps without scale."""


def cells(row: SceneRow) -> list[str]:
    """Return the cells of one line, for the terminal and for Markdown."""
    recalls = dict(row.recalls)

    def recall(label: str) -> str:
        value = recalls.get(label)
        return text.NONE if value is None else f"{value:.2f}"

    def rounded(value: float | None) -> str:
        return text.NONE if value is None else text.number(value)

    median = "inf"
    if row.median_position is not None and row.median_rotation_deg is not None:
        median = (
            f"{text.length(row.median_position, row.unit)}, "
            f"{text.angle(row.median_rotation_deg)}"
        )
    return [
        row.scene,
        row.family,
        row.pose_source,
        str(row.num_queries),
        str(row.num_lost),
        median,
        recall(f"0.05 {row.unit}, 5°"),
        recall(f"0.25 {row.unit}, 2°"),
        recall("1% of extent, 2°"),
        str(row.wrong_but_confident),
        rounded(row.nees_median),
        f"{text.number(row.p50_ms)} / {text.number(row.p95_ms)}",
        text.number(row.map_bytes / 1e6),
    ]


def site_folder(out: Path, scene: Scene, family: str) -> Path:
    """Return where the site of a scene lies."""
    return out / "sites" / f"{scene.name.replace('/', '-')}-{family}"


def ready_site(scene: Scene, *, family: str, data: Path, out: Path) -> Site:
    """Return the site of a scene, built when it is not there yet."""
    folder = site_folder(out, scene, family)
    if not (folder / "site.json").is_file():
        build(scene, family=family, data=data, out=folder)
    return open_site(folder)


def run_scene(scene: Scene, *, family: str, data: Path, out: Path) -> SceneRow:
    """Return the line of a scene, from the cache or by building and evaluating.

    Parameters
    ----------
    scene : Scene
        What to run.
    family : str
        Feature family.
    data, out : Path
        The recordings folder, and where sites, reports and cached lines go.

    Returns
    -------
    SceneRow
    """
    name = f"{scene.name.replace('/', '-')}-{family}"
    cached = out / "results" / f"{name}.json"
    row = load_row(cached)
    if row is not None:
        return row
    site = ready_site(scene, family=family, data=data, out=out)
    result = evaluate(
        site,
        open_queries(scene, data),
        options=EstimatorOptions(cold=True),
        explain_worst=6,
        progress=StderrProgress(),
    )
    command = ["python", "-m", "edgeloc_tools.evaluate.scenes", "--scenes", scene.name]
    write_report(
        result, out / "reports" / name, machine=machine_facts(), command=command
    )
    row = scene_row(scene.name, result)
    save_row(cached, row)
    return row


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossRow:
    """Queries of one scene in the map of another, where nothing may be LOCALIZED.

    Parameters
    ----------
    queries, site, family : str
        Scene of the queries, scene of the map, feature family.
    num_queries, num_localized : int
        Queries, and LOCALIZED answers: each of them is wrong.
    num_coarse : int
        COARSE answers: wrong too, but they say so.
    """

    queries: str
    site: str
    family: str
    num_queries: int
    num_localized: int
    num_coarse: int


def cross(
    site: Site, recording: Recording, *, limit: int | None = None
) -> tuple[int, int, int]:
    """Return how many frames were asked, LOCALIZED and COARSE in a foreign map.

    Parameters
    ----------
    site : Site
        Of another place.
    recording : Recording
        Queries.
    limit : int or None
        At most so many of them, spread over the recording; None = all.
    """
    images = recording.posed().images
    if limit is not None:
        images = images[:: -(-len(images) // limit)]
    runner = Runner(
        site=site,
        cameras=recording.cameras,
        options=EstimatorOptions(cold=True),
        budget_ms=None,
    )
    statuses = [
        runner.answer(image, image.source.read(), frame_id=idx)[0].status
        for idx, image in enumerate(images)
    ]
    return (
        len(statuses),
        statuses.count(PoseStatus.LOCALIZED),
        statuses.count(PoseStatus.COARSE),
    )


def run_cross(
    scenes: Sequence[Scene],
    *,
    family: str,
    data: Path,
    out: Path,
    limit: int | None = None,
) -> list[CrossRow]:
    """Return the answers of every scene's queries in every other place's map.

    One scene for each place: the others have the same queries. At most `limit` queries
    a pair, see `cross`.
    """
    scenes = list({scene.place: scene for scene in reversed(scenes)}.values())[::-1]
    rows = []
    for site_scene in scenes:
        for query_scene in scenes:
            if site_scene.place == query_scene.place:
                continue
            name = f"{query_scene.name}-in-{site_scene.name}-{family}-{limit or 'all'}"
            cached = out / "results" / "cross" / f"{name.replace('/', '-')}.json"
            if cached.is_file():
                stored = json.loads(cached.read_text(encoding="utf-8"))
                rows.append(CrossRow(**stored))
                continue
            sys.stderr.write(f"{name}\n")
            site = ready_site(site_scene, family=family, data=data, out=out)
            num, localized, coarse = cross(
                site, open_queries(query_scene, data), limit=limit
            )
            row = CrossRow(
                queries=query_scene.name,
                site=site_scene.name,
                family=family,
                num_queries=num,
                num_localized=localized,
                num_coarse=coarse,
            )
            cached.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(cached, json.dumps(dataclasses.asdict(row)).encode())
            rows.append(row)
    return rows


CROSS_HEADER = ("queries", "map of", "features", "queries", "LOCALIZED", "COARSE")
"""Columns of the cross table."""


def _parser() -> argparse.ArgumentParser:
    parser = script_parser("scenes", "Build and evaluate a site for every known scene.")
    parser.add_argument(
        "--families", default=",".join(FAMILIES), help="feature families, by comma"
    )
    parser.add_argument(
        "--scenes",
        default=",".join(scene.name for scene in SCENES),
        help="names, by comma (default: all)",
    )
    parser.add_argument(
        "--cross",
        action="store_true",
        help="also ask every scene's queries in every other scene's map",
    )
    parser.add_argument(
        "--cross-limit",
        type=int,
        metavar="N",
        help="at most N queries a pair of scenes, spread over each (default: all)",
    )
    return parser


def chosen_scenes(names: str) -> list[Scene]:
    """Return scenes by their names.

    Raises
    ------
    ConfigError
        For a name that is not in `SCENES`.
    """
    known = {scene.name: scene for scene in SCENES}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise ConfigError(
            f"--scenes: {', '.join(unknown) or 'nothing'} is not among "
            f"{', '.join(known)}"
        )
    return [known[name] for name in wanted]


def run(args: argparse.Namespace) -> None:
    """Build, evaluate and print the tables; `EdgelocError` when something is wrong."""
    scenes = chosen_scenes(args.scenes)
    families = [name.strip() for name in args.families.split(",")]
    if args.cross_limit is not None and args.cross_limit < 1:
        raise ConfigError(f"--cross-limit {args.cross_limit}: must be at least 1")
    rows = []
    for scene in scenes:
        for family in families:
            sys.stderr.write(f"{scene.name}, {family}\n")
            rows.append(run_scene(scene, family=family, data=args.data, out=args.out))
    sys.stdout.write(text.markdown_table(HEADER, [cells(row) for row in rows]) + "\n")
    if not args.cross:
        return
    crossed = [
        row
        for family in families
        for row in run_cross(
            scenes,
            family=family,
            data=args.data,
            out=args.out,
            limit=args.cross_limit,
        )
    ]
    table = [
        [
            r.queries,
            r.site,
            r.family,
            str(r.num_queries),
            str(r.num_localized),
            str(r.num_coarse),
        ]
        for r in crossed
    ]
    wrong = sum(row.num_localized for row in crossed)
    asked = sum(row.num_queries for row in crossed)
    sys.stdout.write("\n" + text.markdown_table(CROSS_HEADER, table) + "\n")
    sys.stdout.write(f"\nLOCALIZED in a foreign map: {wrong} of {asked} queries\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run and return the exit code."""
    return run_script(_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
