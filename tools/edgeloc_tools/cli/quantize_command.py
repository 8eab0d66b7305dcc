"""Write FP16 and INT8 variants of a network, gated on the site's own images.

Localization of held-out frames decides: a variant that loses more than --max-loss
points of recall, or whose median error grows by more than a tenth, gets its most
harmful layers back in float, and is not written when that is not enough.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from edgeloc.cli.common import EXIT_OK
from edgeloc.errors import ConfigError, ModelError

EXAMPLES = """\
  edgeloc-build quantize --model features.json --format 7scenes --input redkitchen \\
    --split train --stride 5 -o models/
  edgeloc-build quantize --model features.json --format folder --input photos/ \\
    --variants int8-cpu -o out/
  edgeloc-build quantize --model places.json --format video --input walk.mp4 -o out/"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the subcommand."""
    from edgeloc_tools.cli.recording_options import add_recording_arguments

    add_recording_arguments(parser)
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="MANIFEST",
        help="the float32 model's manifest",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for the variants: NAME-int8-cpu.onnx and .json, ...",
    )
    parser.add_argument(
        "--variants",
        default="fp16,int8-cpu,int8-tensorrt",
        metavar="LIST",
        help="of fp16, int8-cpu, int8-tensorrt (default all)",
    )
    parser.add_argument(
        "--num-images",
        type=int,
        default=64,
        metavar="N",
        help="images that activations are measured on (default 64)",
    )
    parser.add_argument(
        "--calibration",
        default="auto",
        choices=("auto", "minmax", "percentile", "mse"),
        help="from values to ranges; auto measures which serves best",
    )
    parser.add_argument(
        "--float-layers",
        default="",
        metavar="LIST",
        help="layers that stay float32 in any case, by name",
    )
    parser.add_argument(
        "--max-float-layers",
        type=int,
        default=4,
        metavar="N",
        help="layers that the gate may give back to float (default 4)",
    )
    parser.add_argument(
        "--max-loss",
        type=float,
        default=1.0,
        metavar="POINTS",
        help="of recall, per cent of the queries (default 1)",
    )
    parser.add_argument(
        "--max-median-ratio",
        type=float,
        default=1.1,
        metavar="R",
        help="of the median error, relative to float32's (default 1.1)",
    )
    parser.add_argument(
        "--max-held-out",
        type=int,
        default=60,
        metavar="N",
        help="frames held out of the map and localized (default 60)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="folder of report.json and report.html (default DIR/NAME.quantize)",
    )
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="intermediate results; interrupted work goes on from them (default "
        "DIR/NAME.work, removed when done)",
    )


def _names(value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",") if name.strip())


def run(args: argparse.Namespace) -> int:
    """Quantize; a table goes to stderr, what was written to stdout as JSON."""
    try:
        import onnx  # noqa: F401
    except ImportError as exc:
        raise ConfigError(
            "quantize needs the package onnx; pip install 'edgeloc[build]'"
        ) from exc
    from edgeloc_tools.cli.recording_options import open_from_arguments
    from edgeloc_tools.evaluate.machine import machine_facts
    from edgeloc_tools.evaluate.text import table
    from edgeloc_tools.learn.quantize_gate import GateLimits
    from edgeloc_tools.learn.quantize_report import variant_table, write_report
    from edgeloc_tools.learn.quantize_run import (
        QuantizeOptions,
        quantize_network,
        refusal,
        write_accepted,
    )
    from edgeloc_tools.progress import StderrProgress

    output = Path(args.output)
    name = Path(args.model).stem
    work = args.work or output / f"{name}.work"
    result = quantize_network(
        args.model,
        open_from_arguments(args),
        work=work,
        options=QuantizeOptions(
            variants=_names(args.variants),
            num_images=args.num_images,
            calibration=args.calibration,
            float_layers=_names(args.float_layers),
            limits=GateLimits(
                max_loss=args.max_loss / 100.0,
                max_median_ratio=args.max_median_ratio,
                max_float_layers=args.max_float_layers,
            ),
            max_held_out=args.max_held_out,
            seed=args.seed,
        ),
        progress=StderrProgress(),
    )
    _, page = write_report(
        result,
        args.report or output / f"{name}.quantize",
        machine=machine_facts(),
        command=sys.argv,
    )
    print(table(*variant_table(result)), file=sys.stderr)
    written = write_accepted(result, output)
    print(
        json.dumps(
            {"written": [str(path) for path in written], "report": str(page)}, indent=2
        )
    )
    if reason := refusal(result, page):
        raise ModelError(reason)
    if args.work is None:
        shutil.rmtree(work)
    return EXIT_OK
