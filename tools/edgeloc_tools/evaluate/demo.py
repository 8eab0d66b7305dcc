"""`make demo`: localize the packaged clip in the packaged site and show the result."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgeloc.cli.common import EXIT_OK, run_command, silence_opencv
from edgeloc.cli.run import demo_paths
from edgeloc.errors import DatasetError
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.tiles.reader import Site, open_site
from edgeloc_tools.datasets.recording import Recording
from edgeloc_tools.datasets.registry import open_recording
from edgeloc_tools.datasets.tum import read_trajectory
from edgeloc_tools.evaluate.machine import machine_facts
from edgeloc_tools.evaluate.plots import draw_top_view, render
from edgeloc_tools.evaluate.report import write_report
from edgeloc_tools.evaluate.run import evaluate
from edgeloc_tools.evaluate.text import format_text
from edgeloc_tools.files import write_atomically
from edgeloc_tools.progress import StderrProgress


def demo_recording(clip: Path, site: Site) -> Recording:
    """Return the packaged clip with its ground truth.

    Parameters
    ----------
    clip : Path
        The video; `clip_gt.txt` beside it has one line per frame.
    site : Site
        Whose only camera took it.

    Raises
    ------
    DatasetError
        When the ground truth has another number of lines than the clip has frames.
    """
    (camera,) = site.manifest.cameras.values()
    recording = open_recording(format="video", input=clip, cameras=camera, metric=True)
    truth = read_trajectory(clip.with_name("clip_gt.txt"))
    poses = [pose.inverse() for pose in truth.world_from_cam]
    if len(poses) != len(recording.images):
        raise DatasetError(
            f"{clip}: {len(recording.images)} frames, clip_gt.txt {len(poses)} poses"
        )
    images = [
        replace(image, cam_from_world=pose)
        for image, pose in zip(recording.images, poses, strict=True)
    ]
    return replace(
        recording, images=tuple(images), pose_source="exact, the scene is procedural"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; the table goes to stdout, pictures and the report to ``--out``."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    parser.add_argument("--limit", type=int, help="only the first frames")
    args = parser.parse_args(argv)

    def body() -> int:
        silence_opencv()
        clip, site_folder = demo_paths()
        site = open_site(site_folder)
        result = evaluate(
            site,
            demo_recording(clip, site),
            options=EstimatorOptions(cold=True),
            explain_worst=4,
            limit=args.limit,
            progress=StderrProgress(),
        )
        _, report = write_report(
            result, args.out, machine=machine_facts(), command=["make", "demo"]
        )
        picture = args.out / "trajectory.png"
        write_atomically(
            picture, render(draw_top_view, result, size=(8.0, 6.0), kind="png")
        )
        sys.stdout.write(format_text(result))
        sys.stdout.write(f"\ntrajectory: {picture}\nreport:     {report}\n")
        sys.stdout.write("live records: edgeloc-run --demo\n")
        return EXIT_OK

    return run_command("demo", body, debug=False)


if __name__ == "__main__":
    raise SystemExit(main())
