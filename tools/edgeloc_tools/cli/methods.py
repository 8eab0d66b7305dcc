"""Every family of methods on an indoor and an outdoor scene, as one table each.

Run as ``python -m edgeloc_tools.cli.methods --data ../shared/data --out DIR``.
Builds what is needed: a site with landmarks and features of keyframes and, where
PyTorch is installed, its heads; what is there already is used as it is. The result is
the Markdown of the README, and a report with a picture for each scene.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeloc.cli.common import EXIT_OK, run_command, silence_opencv
from edgeloc.clock import MonotonicClock
from edgeloc.errors import ConfigError
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.tiles.reader import open_site
from edgeloc_tools.datasets.recording import Recording, source_bytes
from edgeloc_tools.evaluate.comparison import (
    HEADER,
    METHODS,
    BuildFacts,
    cells,
    compare_methods,
    has_data,
)
from edgeloc_tools.evaluate.comparison_report import write_comparison
from edgeloc_tools.evaluate.machine import machine_facts
from edgeloc_tools.evaluate.scenes import (
    Scene,
    chosen_scenes,
    open_queries,
    open_source,
)
from edgeloc_tools.evaluate.text import markdown_table
from edgeloc_tools.files import write_atomically
from edgeloc_tools.mapping.build import build_site
from edgeloc_tools.mapping.options import BuildOptions
from edgeloc_tools.progress import StderrProgress

SCENES = "redkitchen,fountain"
"""Indoors and outdoors, both in metres."""

FACTS_FILE = "build_facts.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A network that is trained for a site.

    Parameters
    ----------
    method : str
        As ``--method``.
    train : callable
        Trains it: site, recording, folder of its own.
    """

    method: str
    train: Callable[[Path, Recording, Path], None]


def heads() -> list[Head]:
    """Return the heads that can be trained here; none without PyTorch."""
    try:
        import torch
    except ImportError:
        return []
    del torch
    from edgeloc_tools.learn.recipe import load_recipe
    from edgeloc_tools.learn.regress_session import train_regress_head
    from edgeloc_tools.learn.scene_session import train_scene_head
    from edgeloc_tools.learn.train_regress import RegressRecipe
    from edgeloc_tools.learn.train_scene_coords import SceneRecipe

    def scene_coords(site: Path, recording: Recording, out: Path) -> None:
        recipe = load_recipe(None, SceneRecipe, {})
        train_scene_head(
            site, recording, out=out, recipe=recipe, progress=StderrProgress()
        )

    def regress(site: Path, recording: Recording, out: Path) -> None:
        recipe = load_recipe(None, RegressRecipe, {})
        train_regress_head(
            site, recording, out=out, recipe=recipe, progress=StderrProgress()
        )

    return [
        Head(method="scene-coords", train=scene_coords),
        Head(method="regress", train=regress),
    ]


def ready_site(
    recording: Recording,
    folder: Path,
    *,
    options: BuildOptions,
    trained: Sequence[Head],
) -> dict[str, BuildFacts]:
    """Build a site and its heads where they are not there yet; return what that took.

    Parameters
    ----------
    recording : Recording
        Mapping images.
    folder : Path
        Gets the site, ``site``, and what making it took.
    options : BuildOptions
        Of the site.
    trained : sequence of Head
        Its heads.

    Returns
    -------
    dict of str to BuildFacts
        By method.
    """
    site, facts_file = folder / "site", folder / FACTS_FILE
    clock = MonotonicClock()
    if not (site / "site.json").is_file() or not facts_file.is_file():
        if site.exists():
            shutil.rmtree(site)
        folder.mkdir(parents=True, exist_ok=True)
        built = build_site(
            recording, out=site, options=options, progress=StderrProgress()
        )
        seconds = {"site": float(built.cost["build_seconds"])}
        save_seconds(facts_file, seconds)
    seconds = json.loads(facts_file.read_text(encoding="utf-8"))
    for head in trained:
        if has_data(open_site(site).manifest, head.method):
            continue
        begin_ns = clock.now_ns()
        head.train(site, recording, folder / head.method)
        seconds[head.method] = round((clock.now_ns() - begin_ns) * 1e-9, 1)
        save_seconds(facts_file, seconds)
    num_bytes = source_bytes(recording, depth=options.use_depth)
    return {
        method: BuildFacts(
            # A head needs the site that it is a head of.
            seconds=seconds["site"] + seconds.get(method, 0.0),
            training_bytes=num_bytes,
        )
        for method in METHODS
    }


def save_seconds(path: Path, seconds: Mapping[str, float]) -> None:
    """Write what steps took, for `ready_site`."""
    write_atomically(path, json.dumps(seconds, indent=1).encode())


def run_scene(
    scene: Scene,
    *,
    features: str,
    data: Path,
    out: Path,
    command: Sequence[str],
) -> str:
    """Return the table of one scene as Markdown, and write its report.

    Parameters
    ----------
    scene : Scene
        In metres.
    features : str
        Feature family.
    data, out : Path
        The recordings folder, and where sites and reports go.
    command : sequence of str
        For the report.
    """
    name = f"{scene.name.replace('/', '-')}-{features}"
    recording = replace(open_source(scene.mapping, data), name=scene.name).posed()
    builds = ready_site(
        recording,
        out / name,
        options=BuildOptions(
            features=features, use_depth=scene.use_depth, store="both"
        ),
        trained=heads(),
    )
    rows = compare_methods(
        open_site(out / name / "site"),
        open_queries(scene, data),
        options=EstimatorOptions(cold=True),
        builds=builds,
        progress=StderrProgress(),
    )
    write_comparison(
        rows, out / "reports" / name, machine=machine_facts(), command=command
    )
    table = markdown_table(HEADER, [cells(row) for row in rows])
    return f"*{scene.name}*, {features} features:\n\n{table}\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; they and the reports go to ``--out``."""
    parser = argparse.ArgumentParser(
        prog="python -m edgeloc_tools.cli.methods",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="recordings folder")
    parser.add_argument("--out", type=Path, required=True, help="where results go")
    parser.add_argument(
        "--scenes", default=SCENES, help="names, by comma (default: %(default)s)"
    )
    parser.add_argument(
        "--features", default="edgeloc", help="feature family (default: %(default)s)"
    )
    args = parser.parse_args(argv)

    def body() -> int:
        silence_opencv()
        if not args.data.is_dir():
            raise ConfigError(f"--data {args.data}: is not a folder")
        command = ["python", "-m", "edgeloc_tools.cli.methods"]
        tables = [
            run_scene(
                scene,
                features=args.features,
                data=args.data,
                out=args.out,
                command=[*command, "--scenes", scene.name],
            )
            for scene in chosen_scenes(args.scenes)
        ]
        markdown = "\n".join(tables)
        write_atomically(args.out / "methods.md", markdown.encode())
        sys.stdout.write(markdown)
        return EXIT_OK

    return run_command("methods", body, debug=False)


if __name__ == "__main__":
    raise SystemExit(main())
