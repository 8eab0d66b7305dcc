"""The options that name a recording, the same for every command that reads one."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgeloc.runtime.intrinsics import load_intrinsics
from edgeloc_tools.datasets.recording import Recording
from edgeloc_tools.datasets.registry import FORMATS, open_recording, select_frames


def add_recording_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `open_from_arguments` reads."""
    parser.add_argument(
        "--format", required=True, choices=FORMATS, help="of the recording on disk"
    )
    parser.add_argument(
        "--input", type=Path, required=True, metavar="DIR", help="the recording"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="images, when they lie elsewhere"
    )
    parser.add_argument(
        "--poses",
        metavar="FILE",
        help="poses, when not the format's default (7scenes: pose.txt = the originals)",
    )
    parser.add_argument(
        "--split", metavar="NAME", help="train or test, where there is one"
    )
    parser.add_argument(
        "--intrinsics",
        metavar="FILE",
        help="of all images, in place of the recording's own: COLMAP cameras.txt, "
        "JSON, ROS camera_info or Kalibr YAML; FILE#ID for one of several cameras",
    )
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument(
        "--metric",
        action="store_const",
        const=True,
        help="the poses are in metres, where the recording does not say so (colmap, "
        "nerfstudio)",
    )
    scale.add_argument(
        "--not-metric",
        action="store_const",
        const=False,
        dest="metric",
        help="the unit of the poses is arbitrary",
    )
    parser.add_argument(
        "--stride", type=int, default=1, metavar="N", help="every N-th image"
    )
    parser.add_argument(
        "--frames", metavar="A:B[:S]", help="slice of the images, as in Python"
    )


def open_from_arguments(args: argparse.Namespace) -> Recording:
    """Return the recording that the options name.

    Raises
    ------
    ConfigError
        When an option or the calibration file is wrong.
    DatasetError
        When the recording is wrong or partial.
    """
    recording = open_recording(
        format=args.format,
        input=args.input,
        images=args.images,
        poses=None if args.poses is None else Path(args.poses),
        split=args.split,
        cameras=None if args.intrinsics is None else load_intrinsics(args.intrinsics),
        metric=args.metric,
    )
    return select_frames(recording, stride=args.stride, frames=args.frames)
