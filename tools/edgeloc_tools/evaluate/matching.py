"""How well feature families match: wide baselines, turns, scales, other light.

Run as ``python -m edgeloc_tools.evaluate.matching --data ../shared/data --out DIR``.
Three measurements, each with mutual nearest neighbours and the family's own ratio test:

* WxBS pairs (night, season, sensor, viewpoint) with clicked correspondences. A match is
  correct when it obeys the epipolar geometry fitted to all clicked points (both
  distances below 3 px) and lies where the clicked points around it say: within the
  tolerance, 10 to 50 px, with which nine in ten of them predict each other. Also
  reported: correct by the epipolar geometry alone, and how many matches between
  keypoints drawn by chance would pass.
* The same photo turned and scaled; correct = within 3 px of the homography.
* Photos under random homographies in other light: repeatability of keypoints, share and
  number of correct matches at 1, 3 and 5 px, and how exact correct matches are.

Distances are in pixels of the coarser image. Photos are those that training leaves out.
Every family leaves a file in ``results``; those with the same settings are not measured
again, so that a new model is compared in minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from edgeloc.features.family import FeatureFamily
from edgeloc_tools.evaluate.machine import machine_facts
from edgeloc_tools.evaluate.match_scores import (
    FamilyScores,
    measure_family,
    scores_from,
)
from edgeloc_tools.evaluate.match_tables import draw_curves, tables
from edgeloc_tools.evaluate.measured import cached, fingerprint, open_families
from edgeloc_tools.evaluate.plots import render
from edgeloc_tools.evaluate.result import json_value
from edgeloc_tools.evaluate.script import run_script, script_parser
from edgeloc_tools.files import write_atomically
from edgeloc_tools.progress import StderrProgress

SETTINGS_VERSION = 1
"""Raised when a number changes its meaning."""


def ready_scores(
    family: FeatureFamily, *, data: Path, out: Path, num_photos: int | None
) -> FamilyScores:
    """Return the scores of a family, measured when they are not there yet.

    Parameters
    ----------
    family : FeatureFamily
        To measure.
    data, out : Path
        The recordings folder, and where results go.
    num_photos : int or None
        See `measure_family`.
    """
    value = cached(
        out / "results" / f"{family.name}.json",
        key=f"{SETTINGS_VERSION} {num_photos} {fingerprint(family)}",
        make=lambda: asdict(
            measure_family(
                family, data=data, num_photos=num_photos, progress=StderrProgress()
            )
        ),
    )
    return scores_from(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; they, the record and the plot go to ``--out``."""
    parser = script_parser("matching", __doc__)
    parser.add_argument(
        "--families",
        help="names or paths to manifests, by comma (default: all that there are)",
    )
    parser.add_argument("--photos", type=int, help="so many photos only")

    def body(args: argparse.Namespace) -> None:
        scores = [
            ready_scores(family, data=args.data, out=args.out, num_photos=args.photos)
            for family in open_families(args.families)
        ]
        markdown = tables(scores)
        record = {
            "machine": machine_facts(),
            "photos": args.photos,
            "families": json_value(scores),
        }
        args.out.mkdir(parents=True, exist_ok=True)
        write_atomically(
            args.out / "matching.json", json.dumps(record, indent=1).encode()
        )
        write_atomically(args.out / "matching.md", markdown.encode())
        plot = render(draw_curves, scores, size=(9.0, 3.4), kind="svg")
        write_atomically(args.out / "turns.svg", plot)
        sys.stdout.write(markdown)

    return run_script(parser, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
