"""Build a site from a recording with known poses."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeloc.cli.common import EXIT_OK
from edgeloc.errors import ConfigError

if TYPE_CHECKING:
    from edgeloc_tools.datasets.recording import Recording
    from edgeloc_tools.mapping.options import BuildOptions

EXAMPLES = """\
  edgeloc-build map --format 7scenes --input redkitchen --split train --stride 5 -o s/
  edgeloc-build map --format colmap --input model --images photos --features sift -o s/
  edgeloc-build map --format kapture --input k/ --features xfeat.json -o site/
  edgeloc-build map --format tum --input walk/ --no-depth --frames :500 -o site/
  edgeloc-build map --format colmap --input day/ --also colmap:night/ \\
    --features edgeloc --budget-mb 0.2 --report report/ -o site/"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the subcommand."""
    from edgeloc_tools.cli.recording_options import add_recording_arguments
    from edgeloc_tools.mapping.mask_options import add_mask_arguments
    from edgeloc_tools.mapping.options import FEATURES_PER_KEYFRAME, STORES

    add_recording_arguments(parser)
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="FORMAT:DIR[#SPLIT]",
        help="another recording of the place, as by night, in the same world frame "
        "(else see --align); may be repeated",
    )
    add_mask_arguments(parser)
    parser.add_argument(
        "--geo-reference",
        metavar="HOW",
        help="make the world east, north, up on Earth, which priors need: gnss (fit to "
        "the fixes of the recording) or LAT,LON,ALT[,HEADING] of the world's origin "
        "(degrees, m above the ellipsoid) and y axis (clockwise from north)",
    )
    parser.add_argument(
        "--align",
        action="store_true",
        help="the recordings of --also have world frames of their own: find where they "
        "lie by localizing their images in a map of the first",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="SITE", help="site folder"
    )
    parser.add_argument(
        "--features",
        default="edgeloc",
        metavar="FAMILY",
        help="edgeloc (the network that comes with edgeloc: accurate, robust), orb "
        "(fast where there is no GPU), sift or the manifest of an ONNX model; default "
        "edgeloc",
    )
    parser.add_argument(
        "--retrieval",
        default="auto",
        metavar="METHOD",
        help="vlad (of the local features), edgeloc (the network that comes with "
        "edgeloc) or the manifest of an ONNX model; default auto: edgeloc where the "
        "features are a network's, else vlad",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="CPU threads of each network; default 1",
    )
    parser.add_argument(
        "--max-keypoints",
        type=int,
        metavar="N",
        help="per image; default by family and image size",
    )
    parser.add_argument(
        "--max-side-px",
        type=int,
        default=1600,
        metavar="PX",
        help="larger images are scaled down; 0 = never (default 1600)",
    )
    parser.add_argument(
        "--no-depth",
        action="store_true",
        help="triangulate only, ignore measured depth",
    )
    parser.add_argument(
        "--store",
        default="landmarks",
        choices=STORES,
        help="what is kept of the images: landmarks (3D points: relocalize and track), "
        "features (of keyframes, without any 3D point: local-sfm and relative) or "
        "both; default landmarks",
    )
    parser.add_argument(
        "--features-per-keyframe",
        type=int,
        default=FEATURES_PER_KEYFRAME,
        metavar="N",
        help="with --store features or both (default %(default)s)",
    )
    parser.add_argument(
        "--budget-mb",
        type=float,
        metavar="MB",
        help="bound of the site's size, networks aside (10^6 bytes): keeps what serves "
        "localization best; default: everything",
    )
    parser.add_argument(
        "--code-bytes",
        type=int,
        metavar="N",
        help="bytes of a quantized descriptor, 0 = not quantized; default by features "
        "and budget",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="measure accuracy at several sizes, and write report.html and report.json",
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="intermediate results; an interrupted build goes on from them "
        "(default SITE.work, removed when done)",
    )


def _budget_bytes(budget_mb: float | None) -> int | None:
    if budget_mb is None:
        return None
    if not 0 < budget_mb < float("inf"):
        raise ConfigError(f"--budget-mb {budget_mb}: must be more than 0")
    return int(budget_mb * 1e6)


def _georeferenced(recording: Recording, how: str, *, seed: int) -> Recording:
    import numpy as np

    from edgeloc_tools.mapping.georeference import georeferenced, parse_geo_reference

    placed, facts = georeferenced(
        recording, parse_geo_reference(how), rng=np.random.default_rng(seed)
    )
    for warning in facts["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    if "gnss_rmse_m" in facts:
        print(
            f"geo-reference: {facts['num_gnss_fixes_used']} of "
            f"{facts['num_gnss_fixes']} fixes agree, {facts['gnss_rmse_m']:.2f} m rms",
            file=sys.stderr,
        )
    return placed


def _aligned(
    recordings: Sequence[Recording],
    args: argparse.Namespace,
    *,
    options: BuildOptions,
    work: Path,
) -> list[Recording]:
    """Bring all recordings but the first into the first one's world frame."""
    from edgeloc.tiles.reader import open_site
    from edgeloc_tools.evaluate.place_recording import place_recording
    from edgeloc_tools.mapping.build import build_site
    from edgeloc_tools.mapping.mask_options import masked_from_arguments
    from edgeloc_tools.progress import StderrProgress

    first, *others = recordings
    if not others:
        raise ConfigError("--align: there is nothing to align without --also")
    progress = StderrProgress()
    aligned = [first]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "first"
        build_site(
            masked_from_arguments(args, first),
            out=path,
            options=replace(options, store="landmarks", budget_bytes=None, curve=False),
            work=work,
            progress=progress,
        )
        for other in others:
            placed = place_recording(other, open_site(path), progress=progress)
            aligned.append(placed.recording)
            print(
                f"{other.name}: {placed.num_localized} of {placed.num_asked} images "
                f"localized in {first.name}, {placed.num_agree} agree within "
                f"{placed.rmse:.3g} on where it lies (scale {placed.scale:.4g})",
                file=sys.stderr,
            )
    return aligned


def run(args: argparse.Namespace) -> int:
    """Build the site; its facts go to stdout as JSON."""
    from edgeloc.inference.backend import BackendOptions
    from edgeloc_tools.cli.recording_options import open_from_arguments
    from edgeloc_tools.datasets.join import join_recordings
    from edgeloc_tools.datasets.registry import open_named
    from edgeloc_tools.mapping.build import build_site
    from edgeloc_tools.mapping.mask_options import masked_from_arguments
    from edgeloc_tools.mapping.options import BuildOptions
    from edgeloc_tools.progress import StderrProgress

    output = Path(args.output)
    if (
        output.exists()
        and not (output / "site.json").is_file()
        and any(output.iterdir() if output.is_dir() else [output])
    ):
        raise ConfigError(f"{output}: exists and is not a site; choose another folder")
    options = BuildOptions(
        features=args.features,
        retrieval=args.retrieval,
        backend=BackendOptions(backend="ort-cpu", threads=args.threads),
        max_keypoints=args.max_keypoints,
        max_side_px=args.max_side_px,
        use_depth=not args.no_depth,
        store=args.store,
        features_per_keyframe=args.features_per_keyframe,
        budget_bytes=_budget_bytes(args.budget_mb),
        code_bytes=args.code_bytes,
        curve=args.report is not None,
        seed=args.seed,
    )
    work = args.work or output.with_name(output.name + ".work")
    recordings = [
        open_from_arguments(args),
        *(open_named(text, option="--also") for text in args.also),
    ]
    if args.align:
        recordings = _aligned(
            recordings, args, options=options, work=work.with_name(f"{work.name}-first")
        )
    recording = join_recordings(recordings)
    if args.geo_reference is not None:
        recording = _georeferenced(recording, args.geo_reference, seed=args.seed)
    result = build_site(
        masked_from_arguments(args, recording),
        out=output,
        options=options,
        work=work,
        progress=StderrProgress(),
    )
    if args.report is not None:
        from edgeloc_tools.evaluate.build_report import write_build_report

        write_build_report(result, args.report)
    held_out = result.held_out
    if 2 * held_out.num_localized < held_out.num_frames:
        print(
            f"warning: only {held_out.num_localized} of {held_out.num_frames} mapping "
            "frames that were held out localized in this map; check poses, intrinsics "
            "and overlap before you trust it",
            file=sys.stderr,
        )
    print(
        json.dumps(
            {
                "site": str(output),
                "map_id": result.manifest.map_id,
                "bytes": result.manifest.total_bytes,
                "map_bytes": result.counted_bytes,
                **result.facts,
                **result.cost,
            },
            indent=2,
        )
    )
    return EXIT_OK
