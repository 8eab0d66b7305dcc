"""How pose interpolation compares with the most similar keyframe, for every scene.

Run as ``python -m edgeloc_tools.evaluate.interpolation --data DATA --out DIR``
after `edgeloc_tools.evaluate.scenes` with the same ``--out`` has built the sites.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeloc.cli.common import EXIT_OK, run_command, silence_opencv
from edgeloc.localize.interpolate import WEIGHTINGS, InterpolateOptions
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.tiles.reader import Site
from edgeloc_tools.datasets.recording import Recording
from edgeloc_tools.evaluate.metrics import pose_error
from edgeloc_tools.evaluate.run import Runner, true_pose
from edgeloc_tools.evaluate.scenes import (
    FAMILIES,
    SCENES,
    Scene,
    chosen_scenes,
    open_source,
    ready_site,
)
from edgeloc_tools.evaluate.text import markdown_table, number

TOP_1 = "top-1"


def median_errors(site: Site, recording: Recording) -> dict[str, tuple[float, float]]:
    """Return median position and rotation errors of the top-1 keyframe and each mean.

    Every frame gets an answer here: the gate on similarity, which turns frames of
    other places into LOST, is the same for all columns and would only blur them.

    Parameters
    ----------
    site : Site
        The map.
    recording : Recording
        Queries with ground truth.

    Returns
    -------
    dict of str to (float, float)
        Map units and degrees, by weighting.
    """
    alone = InterpolateOptions(weighting="ewb", num_keyframes=1, rerank=None)
    options = {TOP_1: alone}
    for weighting in WEIGHTINGS:
        options[weighting] = InterpolateOptions(weighting=weighting)
    out = {}
    for name, interpolate in options.items():
        runner = Runner(
            site=site,
            cameras=recording.cameras,
            options=EstimatorOptions(
                method="interpolate", cold=True, interpolate=interpolate
            ),
            budget_ms=None,
        )
        errors = []
        for idx, image in enumerate(recording.images):
            estimate, _, _ = runner.answer(image, image.source.read(), frame_id=idx)
            errors.append(pose_error(estimate.cam_from_world, true_pose(image)))
        position, rotation_deg = np.median(np.array(errors), axis=0)
        out[name] = (float(position), float(rotation_deg))
    return out


def without_gate(site: Site) -> Site:
    """Return the site with a similarity gate that lets everything pass."""
    calibration = site.retrieval_arrays["calibration"].copy()
    calibration[0] = -1.0
    arrays = {**site.retrieval_arrays, "calibration": calibration}
    return replace(site, retrieval_arrays=arrays)


def row(scene: Scene, *, family: str, data: Path, out: Path) -> list[str]:
    """Return one line of the table."""
    site = without_gate(ready_site(scene, family=family, data=data, out=out))
    errors = median_errors(site, open_source(scene.queries, data).posed())
    best = min(WEIGHTINGS, key=lambda name: errors[name][0])
    return [
        scene.name,
        family,
        *(f"{number(p)}, {number(r)}°" for p, r in errors.values()),
        best if errors[best][0] <= errors[TOP_1][0] else TOP_1,
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="interpolation", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="recordings folder")
    parser.add_argument("--out", type=Path, required=True, help="as for scenes")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument(
        "--scenes", default=",".join(s.name for s in SCENES if s.use_depth)
    )
    args = parser.parse_args(argv)

    def body() -> int:
        silence_opencv()
        rows = [
            row(scene, family=family, data=args.data, out=args.out)
            for scene in chosen_scenes(args.scenes)
            for family in args.families.split(",")
        ]
        header = ["scene", "family", TOP_1, *WEIGHTINGS, "best"]
        sys.stdout.write(markdown_table(header, rows) + "\n")
        return EXIT_OK

    return run_command("interpolation", body, debug=True)


if __name__ == "__main__":
    raise SystemExit(main())
