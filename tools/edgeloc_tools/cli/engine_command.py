"""Build TensorRT engines of a site's networks, on the machine that will run them.

An engine is for one network, one version of TensorRT and one kind of GPU; a record
beside it says which. A fresh engine is left alone, a stale one named and built anew.
Where there is a GPU, an engine is compared with ONNX Runtime before it is kept.
TensorRT for RTX (--backend tensorrt-rtx) needs no GPU to build.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeloc.cli.common import EXIT_OK
from edgeloc.errors import (
    BackendUnavailableError,
    ConfigError,
    ModelError,
)

if TYPE_CHECKING:
    from edgeloc.inference.cuda import Device
    from edgeloc.inference.manifest import InputSpec, Model
    from edgeloc.inference.trt import TensorRt
    from edgeloc.types import ByteArray
    from edgeloc_tools.learn.engines import EngineRequest

BACKENDS = ("tensorrt", "tensorrt-rtx")
PRECISIONS = ("int8", "fp16", "fp32")
_DEFAULT_SHAPE = (640, 480)
_NUM_IMAGES = 8

EXAMPLES = """\
  edgeloc-build engine --map site/
  edgeloc-build engine --map site/ --precision fp16 --layers
  edgeloc-build engine --map site/ --check
  edgeloc-build engine --model features.json --backend tensorrt-rtx --shape 1280x720"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the subcommand."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--map", type=Path, metavar="SITE", help="the site whose networks will run"
    )
    what.add_argument(
        "--model",
        type=Path,
        action="append",
        metavar="MANIFEST",
        help="a model's manifest; may be given several times",
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default=BACKENDS[0],
        help="what will run the engines (default tensorrt)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="of the engines (default int8)",
    )
    parser.add_argument(
        "--shape",
        metavar="WxH",
        help="largest image (default: of the site's cameras, else 640x480)",
    )
    parser.add_argument(
        "--engines",
        type=Path,
        metavar="DIR",
        help="folder of engines (default: engines/ beside each model); edgeloc-run "
        "takes the same option",
    )
    parser.add_argument(
        "--images",
        metavar="SOURCE",
        help="real pictures to compare engines with ONNX Runtime on: a folder, video "
        "or camera, as for edgeloc-run --camera (default: frames of the packaged demo, "
        "which are rendered)",
    )
    parser.add_argument(
        "--gate",
        choices=("auto", "require"),
        default="auto",
        help="require: no engine without that comparison, which needs the GPU "
        "(default: where there is one)",
    )
    parser.add_argument("--force", action="store_true", help="build fresh ones, too")
    parser.add_argument(
        "--check",
        action="store_true",
        help="build nothing; exit code 4 when an engine is missing or stale",
    )
    parser.add_argument(
        "--layers", action="store_true", help="print every layer with its types"
    )


def run(args: argparse.Namespace) -> int:
    """Build engines; progress goes to stderr, what was done to stdout as JSON."""
    from edgeloc.inference.trt import open_tensorrt
    from edgeloc_tools.learn.engines import outdated

    library = open_tensorrt(args.backend)
    device = _device(args, library)
    requests = _requests(args)
    reasons = [outdated(request, library, device) for request in requests]
    if args.check:
        return _check(requests, library, reasons=reasons)
    images: Sequence[ByteArray] = []
    done = []
    for request, reason in zip(requests, reasons, strict=True):
        if not (reason or args.force):
            done.append(_entry(request, library, state="fresh"))
            continue
        print(f"engine: {reason or '--force'}", file=sys.stderr)
        if device is not None and not images:
            images = _images(args.images)
        _make(request, library, device, images=images, show_layers=args.layers)
        done.append(_entry(request, library, state="built"))
    print(json.dumps(done, indent=2))
    return EXIT_OK


def _device(args: argparse.Namespace, library: TensorRt) -> Device | None:
    """Return the GPU, None where one is not needed."""
    from edgeloc.inference.cuda import open_device

    try:
        return open_device()
    except BackendUnavailableError as exc:
        if not library.rtx:
            raise BackendUnavailableError(
                f"--backend {library.backend}: {exc}; its engines are built on the GPU "
                "that will run them"
            ) from exc
        if args.gate == "require":
            raise BackendUnavailableError(
                f"--gate require: {exc}; nothing can be compared with ONNX Runtime"
            ) from exc
        if not args.check:
            print(
                f"engine: not compared with ONNX Runtime, no engine runs here: {exc}",
                file=sys.stderr,
            )
        return None


def _requests(args: argparse.Namespace) -> list[EngineRequest]:
    from edgeloc.inference.engine import input_sizes
    from edgeloc_tools.learn.engines import EngineRequest

    models, shape = _models(args)
    if args.shape is not None:
        shape = _shape(args.shape)

    def request(model: Model) -> EngineRequest:
        spec: InputSpec = model.manifest.input
        sizes = input_sizes(spec, width=shape[0], height=shape[1])
        return EngineRequest(
            model=model, precision=args.precision, sizes=sizes, folder=args.engines
        )

    return [request(model) for model in models]


def _models(args: argparse.Namespace) -> tuple[list[Model], tuple[int, int]]:
    """Return the models, and the largest image that they will see."""
    from edgeloc.inference.manifest import load_model

    if args.map is None:
        return [load_model(path) for path in args.model], _DEFAULT_SHAPE
    from edgeloc.tiles.reader import open_site

    site = open_site(args.map)
    every = [load_model(site.model_manifest(role)) for role in site.manifest.models]
    models = [model for model in every if model.manifest.takes_pictures]
    if not models:
        raise ConfigError(
            f"{args.map}: needs no engine, its features "
            f"({site.manifest.family.name}) run in OpenCV on the CPU"
        )
    largest = [0, 0]
    max_side_px = site.manifest.family.max_side_px
    for camera in site.manifest.cameras.values():
        longest = max(camera.width, camera.height)
        scale = min(1.0, max_side_px / longest) if max_side_px else 1.0
        for axis, side in enumerate((camera.width, camera.height)):
            largest[axis] = max(largest[axis], round(scale * side))
    return models, (largest[0], largest[1])


def _shape(text: str) -> tuple[int, int]:
    width, times, height = text.lower().partition("x")
    if not (times and width.isdigit() and height.isdigit()):
        raise ConfigError(f"--shape {text}: expected WxH, as in 640x480")
    if not (16 <= int(width) <= 8192 and 16 <= int(height) <= 8192):
        raise ConfigError(f"--shape {text}: sides must be from 16 to 8192 px")
    return int(width), int(height)


def _check(
    requests: Sequence[EngineRequest], library: TensorRt, *, reasons: Sequence[str]
) -> int:
    entries = [
        _entry(request, library, state="stale" if reason else "fresh", reason=reason)
        for request, reason in zip(requests, reasons, strict=True)
    ]
    print(json.dumps(entries, indent=2))
    stale = [reason for reason in reasons if reason]
    if stale:
        raise ModelError(
            f"{stale[0]}{f' (and {len(stale) - 1} more)' if len(stale) > 1 else ''}; "
            "run the command without --check"
        )
    return EXIT_OK


def _entry(
    request: EngineRequest, library: TensorRt, *, state: str, reason: str = ""
) -> dict[str, object]:
    from edgeloc.inference.engine import engine_files, read_record

    files = engine_files(request.model, library.backend, folder=request.folder)
    entry: dict[str, object] = {
        "model": request.model.manifest.name,
        "plan": str(files.plan),
        "state": state,
    }
    if state == "stale":
        return {**entry, "reason": reason}
    record = read_record(files)
    return {
        **entry,
        "precision": record.precision,
        "tensorrt": record.key.tensorrt,
        "compute_capability": record.key.compute_capability,
        "layers": record.layers,
        "agreement": record.agreement,
    }


def _make(
    request: EngineRequest,
    library: TensorRt,
    device: Device | None,
    *,
    images: Sequence[ByteArray],
    show_layers: bool,
) -> None:
    from edgeloc_tools.evaluate.text import table
    from edgeloc_tools.learn.engine_layers import layer_rows
    from edgeloc_tools.learn.engines import make_engine
    from edgeloc_tools.progress import StderrProgress

    made = make_engine(
        request, library, device, images=images, progress=StderrProgress()
    )
    told = ", ".join(f"{count} {name}" for name, count in made.record.layers.items())
    agreement = made.record.agreement
    print(
        f"engine: {made.record.model}: convolutions and products: {told or 'not told'}"
        + ("" if agreement is None else f"; cosine with ONNX Runtime {agreement:.5f}"),
        file=sys.stderr,
    )
    if show_layers:
        header = ["nodes", "kind", "reads", "weights", "writes"]
        print(table(header, layer_rows(made.layers)), file=sys.stderr)


def _images(source: str | None) -> list[ByteArray]:
    """Return pictures to compare on."""
    from edgeloc.cli.run import demo_paths
    from edgeloc.runtime.sources import open_source
    from edgeloc.types import Frame

    frames = open_source(source or str(demo_paths()[0]))
    images: list[ByteArray] = []
    try:
        while len(images) < _NUM_IMAGES and (frame := frames.read()) is not None:
            if isinstance(frame, Frame):
                images.append(frame.image)
    finally:
        frames.close()
    if not images:
        raise ConfigError(f"--images {source}: has no pictures that OpenCV reads")
    return images
