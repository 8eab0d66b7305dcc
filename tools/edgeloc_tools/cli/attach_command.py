"""Make a network of your own part of a site: scene coordinates, or absolute poses.

The network is an ONNX file with a manifest (models/MANIFEST.md). It takes pictures and
answers in the world of the site. With a recording, its covariances say what it is off
by there; without one they are wide.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from edgeloc.cli.common import EXIT_OK

EXAMPLES = """\
  edgeloc-build attach --site site/ --model ace.json --recording 7scenes:kitchen#test
  edgeloc-build attach --site site/ --model posenet.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the subcommand."""
    parser.add_argument(
        "--site", type=Path, required=True, help="becomes its next version"
    )
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="MANIFEST",
        help="of the role scene_coords or regress",
    )
    parser.add_argument(
        "--recording",
        metavar="FORMAT:DIR[#SPLIT]",
        help="pictures with poses in the site's world, best such as the network has "
        "not seen",
    )
    parser.add_argument(
        "--stride", type=int, default=1, metavar="N", help="every N-th picture"
    )
    parser.add_argument(
        "--frames", metavar="A:B[:S]", help="slice of the pictures, as in Python"
    )


def run(args: argparse.Namespace) -> int:
    """Attach the network; the facts go to stdout as JSON."""
    from edgeloc_tools.datasets.registry import open_named, select_frames
    from edgeloc_tools.learn.attach import attach_network
    from edgeloc_tools.progress import StderrProgress

    recording = None
    if args.recording is not None:
        recording = select_frames(
            open_named(args.recording, option="--recording"),
            stride=args.stride,
            frames=args.frames,
        )
    facts = attach_network(
        args.site, args.model, recording=recording, progress=StderrProgress()
    )
    print(json.dumps(facts, indent=2))
    return EXIT_OK
