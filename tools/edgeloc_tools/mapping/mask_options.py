"""The options that say what is ignored in images, the same for every command."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from edgeloc_tools.datasets.recording import Recording


def add_mask_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `masked_from_arguments` reads."""
    parser.add_argument(
        "--masks",
        type=Path,
        metavar="DIR",
        help="masks named like the images (IMAGE.png, as COLMAP): no feature where one "
        "is 0",
    )
    parser.add_argument(
        "--hood",
        metavar="MASK",
        help="what every image shows of the vehicle itself: an image (0 = ignore), a "
        "TOML or JSON file of polygons, by camera if need be, or 'X,Y X,Y X,Y ...' px",
    )
    parser.add_argument(
        "--segmenter",
        type=Path,
        metavar="MANIFEST",
        help="segmentation network (ONNX with a manifest), for what moves",
    )
    parser.add_argument(
        "--ignore-classes",
        metavar="NAMES",
        help="its classes to ignore, with commas (default: people, vehicles, animals)",
    )


def masked_from_arguments(args: argparse.Namespace, recording: Recording) -> Recording:
    """Return a recording with the masks that the options name.

    Raises
    ------
    ConfigError
        When an option is wrong.
    ModelError
        When the network cannot be used.
    """
    from edgeloc.errors import ConfigError
    from edgeloc.features.segment import open_segmenter
    from edgeloc.inference.backend import BackendOptions
    from edgeloc_tools.mapping.masks import MaskSources, mask_recording

    segmenter = None
    if args.segmenter is not None:
        names = args.ignore_classes
        segmenter = open_segmenter(
            args.segmenter,
            ignore=None if names is None else class_names(names),
            options=BackendOptions(
                backend="ort-cpu",
                threads=args.threads if args.threads > 0 else os.cpu_count() or 1,
            ),
        )
    elif args.ignore_classes is not None:
        raise ConfigError("--ignore-classes is for --segmenter, which is missing")
    if args.masks is None and args.hood is None and segmenter is None:
        return recording
    sources = MaskSources(folder=args.masks, hood=args.hood, segmenter=segmenter)
    return mask_recording(recording, sources)


def class_names(text: str) -> list[str]:
    """Return the names in a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
