"""Learn the codebooks of a feature family and of a retrieval network from photos."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from edgeloc.cli.common import EXIT_OK

EXAMPLES = """\
  edgeloc-build codebook --photos photos/ -o models/
  edgeloc-build codebook --photos photos/ --features my-xfeat.json -o models/"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the subcommand."""
    parser.add_argument(
        "--photos", type=Path, required=True, metavar="DIR", help="photos of all kinds"
    )
    parser.add_argument(
        "--features",
        default="edgeloc",
        metavar="FAMILY",
        help="as for `edgeloc-build map`; default edgeloc",
    )
    parser.add_argument(
        "--retrieval",
        default="edgeloc",
        metavar="METHOD",
        help="edgeloc or the manifest of an ONNX model; vlad: none; default edgeloc",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="where the files go, beside the models",
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random")


def run(args: argparse.Namespace) -> int:
    """Write the codebooks; their paths go to stdout as JSON."""
    from edgeloc.features.registry import open_family, open_retrieval
    from edgeloc_tools.learn.photo_pairs import list_photos, training_photos
    from edgeloc_tools.mapping.universal import (
        write_feature_codebooks,
        write_global_codebooks,
    )
    from edgeloc_tools.progress import StderrProgress

    # The others are kept for evaluation, as in training.
    photos = training_photos(list_photos(args.photos))
    args.output.mkdir(parents=True, exist_ok=True)
    paths = write_feature_codebooks(
        photos,
        open_family(args.features),
        folder=args.output,
        seed=args.seed,
        progress=StderrProgress(),
    )
    retrieval = open_retrieval(args.retrieval, features=args.features)
    if retrieval is not None:
        paths += write_global_codebooks(
            photos,
            retrieval,
            folder=args.output,
            seed=args.seed,
            progress=StderrProgress(),
        )
    print(json.dumps({"codebooks": [str(path) for path in paths]}, indent=2))
    return EXIT_OK
