"""The options that name a recording, the same for every command that reads one."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgeloc_tools.datasets.recording import Recording
from edgeloc_tools.datasets.registry import FORMATS, open_recording, select_frames


def add_recording_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--format --input --images --poses --split --stride --frames``."""
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
        "--stride", type=int, default=1, metavar="N", help="every N-th image"
    )
    parser.add_argument(
        "--frames", metavar="A:B[:S]", help="slice of the images, as in Python"
    )


def open_from_arguments(args: argparse.Namespace) -> Recording:
    """Return the recording that the options name."""
    recording = open_recording(
        format=args.format,
        input=args.input,
        images=args.images,
        poses=None if args.poses is None else Path(args.poses),
        split=args.split,
    )
    return select_frames(recording, stride=args.stride, frames=args.frames)
