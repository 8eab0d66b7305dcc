"""Find poses and intrinsics for plain photos or a video (structure from motion).

Makes a COLMAP model in OUT/sparse/0, images in OUT/images and facts in OUT/sfm.json.
Running the same command again goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgeloc.errors import ConfigError

if TYPE_CHECKING:
    from edgeloc.types import CameraModel
    from edgeloc_tools.mapping.sfm_plan import SfmOptions
    from edgeloc_tools.mapping.sfm_world import DistanceConstraint, GravityPrior

EXAMPLES = """\
  edgeloc-build sfm --format folder --input photos/ -o model/
  edgeloc-build sfm --format video --input walk.mp4 --stride 10 -o model/
  edgeloc-build sfm --format folder --input photos/ --distance a.jpg,b.jpg,2.35 -o m/
  edgeloc-build sfm --format video --input drive.mp4 --hood hood.png -o model/
  edgeloc-build sfm --format kapture --input walk/ --align-to gnss -o model/
  edgeloc-build map --format colmap --input model/ -o site/"""

EXIT_OK = 0
EXIT_INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the subcommand."""
    add = parser.add_argument
    add("--format", required=True, help="of the input: folder, video, kapture, ...")
    add("--input", type=Path, required=True, metavar="PATH", help="the recording")
    add("--images", type=Path, metavar="DIR", help="images, when they lie elsewhere")
    add(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="folder to make"
    )
    add("--frames", metavar="A:B[:S]", help="slice of the images, as in Python")
    add("--stride", type=int, default=1, metavar="N", help="every N-th image")
    from edgeloc_tools.mapping.mask_options import add_mask_arguments

    add_mask_arguments(parser)

    cameras = parser.add_argument_group("cameras")
    add = cameras.add_argument
    add(
        "--camera-model",
        default="SIMPLE_RADIAL",
        metavar="MODEL",
        help="what to estimate where intrinsics are unknown (default SIMPLE_RADIAL)",
    )
    add(
        "--intrinsics",
        default="auto",
        metavar="FILE|single-camera|per-image|auto",
        help="known intrinsics, or which images share unknown ones; auto: those of one "
        "size and EXIF focal length",
    )
    add("--refine-intrinsics", action="store_true", help="refine known ones too")

    steps = parser.add_argument_group("steps")
    add = steps.add_argument
    add("--max-keypoints", type=int, default=4096, metavar="N", help="default 4096")
    add(
        "--max-side-px",
        type=int,
        default=1600,
        metavar="PX",
        help="larger images are scaled down for features (default 1600)",
    )
    add(
        "--matching",
        choices=("auto", "exhaustive", "sequential"),
        default="auto",
        help="auto: all pairs up to 150 images, else neighbours and 2^k apart",
    )
    add("--overlap", type=int, default=10, metavar="N", help="neighbours (default 10)")
    add("--mapper", choices=("incremental", "global"), default="incremental")
    add("--threads", type=int, default=-1, metavar="N", help="default all")
    add("--seed", type=int, default=0, help="repeats exactly with --threads 1")
    add(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on where an earlier run stopped (default); --no-resume starts anew",
    )
    add("--copy-images", action="store_true", help="copy images instead of linking")

    world = parser.add_argument_group("scale, gravity and place")
    add = world.add_argument
    add(
        "--distance",
        action="append",
        default=[],
        metavar="IMAGE_A,IMAGE_B,METRES",
        help="measured between where two pictures were taken; may be repeated",
    )
    add(
        "--gravity",
        metavar="X,Y,Z[@IMAGE]",
        help="points down, in the camera of IMAGE (x right, y down, z forward: 0,1,0 "
        "for an upright picture) or in the world of recorded poses; write "
        "--gravity=-1,0,0 for negative numbers",
    )
    add(
        "--align-to",
        choices=("auto", "poses", "gnss", "none"),
        default="auto",
        help="auto: recorded poses, else GNSS, where there are 3 or more",
    )
    add(
        "--no-gravity-estimate",
        action="store_true",
        help="do not guess gravity from how the cameras were held",
    )


def parse_distance(text: str) -> DistanceConstraint:
    """Return the constraint that ``IMAGE_A,IMAGE_B,METRES`` says.

    Raises
    ------
    ConfigError
        When it is written otherwise.
    """
    from edgeloc_tools.mapping.sfm_world import DistanceConstraint

    parts = text.split(",")
    try:
        name_a, name_b, metres = parts
        value = float(metres)
    except ValueError:
        raise ConfigError(
            f"--distance {text!r}: write IMAGE_A,IMAGE_B,METRES, for example "
            "a.jpg,b.jpg,2.35"
        ) from None
    return DistanceConstraint(
        name_a=name_a.strip(), name_b=name_b.strip(), metres=value
    )


def parse_gravity(text: str) -> GravityPrior:
    """Return the prior that ``X,Y,Z`` or ``X,Y,Z@IMAGE`` says.

    Raises
    ------
    ConfigError
        When it is written otherwise.
    """
    from edgeloc_tools.mapping.sfm_world import GravityPrior

    vector, _, image = text.partition("@")
    try:
        x, y, z = (float(v) for v in vector.split(","))
    except ValueError:
        raise ConfigError(
            f"--gravity {text!r}: write X,Y,Z@IMAGE, for example 0,1,0@a.jpg"
        ) from None
    return GravityPrior(direction=(x, y, z), image=image.strip() or None)


def _intrinsics(text: str) -> tuple[str, CameraModel | None]:
    """Return (which images share a camera, known intrinsics)."""
    choices: Mapping[str, str] = {
        "auto": "auto",
        "single-camera": "single",
        "per-image": "per-image",
    }
    if text in choices:
        return choices[text], None
    from edgeloc.runtime.intrinsics import load_intrinsics

    return "auto", load_intrinsics(text)


def options_from_arguments(args: argparse.Namespace) -> SfmOptions:
    """Return the options that the command line says.

    Raises
    ------
    ConfigError
        When one makes no sense.
    """
    from edgeloc_tools.mapping.sfm_plan import SfmOptions

    cameras, intrinsics = _intrinsics(args.intrinsics)
    return SfmOptions(
        camera_model=args.camera_model,
        intrinsics=intrinsics,
        cameras=cameras,
        refine_intrinsics=args.refine_intrinsics,
        max_keypoints=args.max_keypoints,
        max_side_px=args.max_side_px,
        matching=args.matching,
        overlap=args.overlap,
        mapper=args.mapper,
        distances=tuple(parse_distance(text) for text in args.distance),
        gravity=None if args.gravity is None else parse_gravity(args.gravity),
        align_to=args.align_to,
        estimate_gravity=not args.no_gravity_estimate,
        num_threads=args.threads,
        random_seed=args.seed,
        resume=args.resume,
        copy_images=args.copy_images,
    )


def _progress(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def run(args: argparse.Namespace) -> int:
    """Make the model; the facts of `sfm.json` go to stdout."""
    from edgeloc_tools.datasets.registry import open_recording, select_frames
    from edgeloc_tools.mapping.mask_options import masked_from_arguments
    from edgeloc_tools.mapping.sfm import read_summary, run_sfm

    options = options_from_arguments(args)
    recording = select_frames(
        open_recording(format=args.format, input=args.input, images=args.images),
        stride=args.stride,
        frames=args.frames,
    )
    recording = masked_from_arguments(args, recording)
    try:
        run_sfm(recording, args.output, options=options, progress=_progress)
    except KeyboardInterrupt:
        _progress("interrupted; run the same command again to go on from here")
        return EXIT_INTERRUPTED
    summary = read_summary(args.output)
    sys.stdout.write(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return EXIT_OK
