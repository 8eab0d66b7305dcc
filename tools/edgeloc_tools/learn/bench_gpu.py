"""Backends of a machine with a GPU: agreement with the CPU, and time per frame.

    python -m edgeloc_tools.learn.bench_gpu --out out/bench-gpu

Builds engines of the shipped models, compares every backend's outputs with FP32 on the
CPU, and times what a frame costs: retrieval, features, matching with 2,000 landmarks,
and all three as the estimator runs them, where the GPU works beside the CPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from edgeloc.cli.common import EXIT_OK, run_command
from edgeloc.cli.run import demo_paths
from edgeloc.errors import BackendUnavailableError, ModelError
from edgeloc.features.extract import extract_features
from edgeloc.features.learned import LearnedFamily, LearnedRetrieval
from edgeloc.features.match import landmark_similarity
from edgeloc.inference.backend import BackendOptions, choose_backend
from edgeloc.inference.cuda import Device, open_device
from edgeloc.inference.engine import input_sizes
from edgeloc.inference.manifest import load_model, shipped_model
from edgeloc.inference.network import Network, open_network
from edgeloc.inference.trt import BACKENDS as TENSORRT
from edgeloc.inference.trt import open_tensorrt
from edgeloc.inference.variants import find_variant
from edgeloc.types import ByteArray
from edgeloc_tools.evaluate.machine import machine_facts
from edgeloc_tools.evaluate.text import markdown_table
from edgeloc_tools.evaluate.timing import Kernel, time_kernels
from edgeloc_tools.files import write_atomically
from edgeloc_tools.learn.engines import EngineRequest, cosine, make_engine, outdated
from edgeloc_tools.progress import StderrProgress

PROG = "bench_gpu"
NUM_KEYPOINTS = 1000
NUM_LANDMARKS = 2000
NUM_FRAMES = 16
ENGINE_PRECISIONS = ("int8", "fp16")
STAGES = ("retrieval", "features", "matching", "frame")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contender:
    """Both networks in one backend.

    Parameters
    ----------
    name : str
        Of the row.
    retrieval, features : Network
        Ready to run.
    """

    name: str
    retrieval: Network
    features: Network


def open_contender(name: str, options: BackendOptions) -> Contender:
    """Return the shipped networks in a backend."""

    def network(role: str) -> Network:
        path = shipped_model(role)
        assert path is not None
        return open_network(path, role=role, options=options)

    return Contender(
        name=name, retrieval=network("retrieval"), features=network("features")
    )


def build_engines(
    backend: str,
    precision: str,
    device: Device,
    *,
    images: Sequence[ByteArray],
    out: Path,
) -> Path:
    """Build engines of the shipped models where they are not fresh; return the folder.

    Parameters
    ----------
    backend : {"tensorrt", "tensorrt-rtx"}
        Of the engines.
    precision : {"int8", "fp16"}
        Of the engines.
    device : Device
        The GPU.
    images : sequence of ndarray of shape (H, W, 3), uint8
        To compare on; all of one size.
    out : Path
        Each precision has a folder in it.
    """
    library = open_tensorrt(backend)
    folder = out / "engines" / precision
    height, width = images[0].shape[:2]
    for role in ("retrieval", "features"):
        path = shipped_model(role)
        assert path is not None
        model = load_model(path)
        sizes = input_sizes(model.manifest.input, width=width, height=height)
        request = EngineRequest(
            model=model, precision=precision, sizes=sizes, folder=folder
        )
        if outdated(request, library, device):
            make_engine(
                request, library, device, images=images, progress=StderrProgress()
            )
    return folder


def contenders(
    device: Device, images: Sequence[ByteArray], *, out: Path, threads: int
) -> tuple[list[Contender], list[str]]:
    """Return every backend that works here, the CPU first, and why others do not."""
    found = [open_contender("ort-cpu int8", _options("ort-cpu", threads))]
    missing = []
    for backend in ("ort-cuda", *TENSORRT):
        try:
            choose_backend(backend)
            if backend not in TENSORRT:
                found.append(open_contender(backend, _options(backend, threads)))
            for precision in ENGINE_PRECISIONS if backend in TENSORRT else ():
                folder = build_engines(
                    backend, precision, device, images=images, out=out
                )
                options = _options(backend, threads, engines=folder)
                found.append(open_contender(f"{backend} {precision}", options))
        except ModelError as exc:  # noqa: PERF203 - a handful
            # Not there, or not good enough: the table says so, and shows the others.
            missing.append(
                f"{backend}: {str(exc).removeprefix(f'--backend {backend}: ')}"
            )
    return found, missing


def _options(
    backend: str, threads: int, *, engines: Path | None = None
) -> BackendOptions:
    return BackendOptions(backend=backend, threads=threads, engines=engines)


def truth() -> Contender:
    """Return both networks in FP32 on the CPU, what all others are compared with."""

    def network(role: str) -> Network:
        path = shipped_model(role)
        assert path is not None
        found = find_variant(load_model(path), [("fp32", "any")])
        assert found is not None
        options = BackendOptions(backend="ort-cpu")
        return open_network(found.manifest_path, role=role, options=options)

    return Contender(
        name="fp32", retrieval=network("retrieval"), features=network("features")
    )


def agreement(
    one: Contender, other: Contender, images: Sequence[ByteArray]
) -> dict[str, float]:
    """Return the least cosine of each output over some images, by its name."""
    least: dict[str, float] = {}
    for image in images:
        for a, b in ((one.retrieval, other.retrieval), (one.features, other.features)):
            expected, _ = a.run(image)
            got, _ = b.run(image)
            for key, array in expected.items():
                least[key] = min(least.get(key, 1.0), cosine(array, got[key]))
    return least


class Frames:
    """What the stages of a frame do, on one image after the other.

    Parameters
    ----------
    contender : Contender
        The networks.
    images : sequence of ndarray of shape (H, W, 3), uint8
        Frames.
    """

    def __init__(self, contender: Contender, images: Sequence[ByteArray]) -> None:
        self._images = images
        self._next = 0
        self._family = LearnedFamily(contender.features)
        self._retrieval = LearnedRetrieval(contender.retrieval)
        features = extract_features(
            images[0], self._family, max_keypoints=NUM_KEYPOINTS
        )
        rng = np.random.default_rng(0)
        self._descriptors = self._family.decode(features.descriptors)
        rows = rng.choice(len(self._descriptors), NUM_LANDMARKS)
        noise = rng.normal(scale=0.1, size=(NUM_LANDMARKS, self._descriptors.shape[1]))
        self._landmarks = (self._descriptors[rows] + noise).astype(np.float32)
        self._row_to_point = np.arange(NUM_LANDMARKS)

    def _image(self) -> ByteArray:
        self._next += 1
        return self._images[self._next % len(self._images)]

    def retrieval(self) -> None:
        """From an image to its global descriptor."""
        self._retrieval.global_descriptor(self._image(), self._descriptors)

    def features(self) -> None:
        """From an image to keypoints and descriptors."""
        extract_features(self._image(), self._family, max_keypoints=NUM_KEYPOINTS)

    def matching(self) -> None:
        """Compare with landmarks, on the CPU."""
        landmark_similarity(self._descriptors, self._landmarks, self._row_to_point)

    def frame(self) -> None:
        """All of it, as the estimator does."""
        image = self._image()
        begun = self._retrieval.begin(image)
        features = extract_features(image, self._family, max_keypoints=NUM_KEYPOINTS)
        descriptors = self._family.decode(features.descriptors)
        self._retrieval.global_descriptor(image, descriptors, begun=begun)
        landmark_similarity(descriptors, self._landmarks, self._row_to_point)


def time_stages(
    found: Sequence[Contender], images: Sequence[ByteArray], *, rounds: int
) -> dict[str, dict[str, tuple[float, float]]]:
    """Return median and 95th percentile of each stage, ms, by backend."""
    kernels: dict[str, Kernel] = {}
    for contender in found:
        frames = Frames(contender, images)
        for stage in STAGES:
            kernels[f"{contender.name}\t{stage}"] = partial(getattr(frames, stage))
    times: dict[str, dict[str, tuple[float, float]]] = {}
    for key, spent_ns in time_kernels(kernels, rounds=rounds).items():
        name, _, stage = key.partition("\t")
        median, p95 = np.percentile(np.asarray(spent_ns) * 1e-6, [50, 95])
        times.setdefault(name, {})[stage] = (float(median), float(p95))
    return times


def table(
    times: Mapping[str, Mapping[str, tuple[float, float]]],
    agreements: Mapping[str, Mapping[str, float]],
) -> str:
    """Return the Markdown table of all backends."""
    header = ["backend", *(f"{stage} ms" for stage in STAGES)]
    header += ["least cosine with FP32: global", "descriptors", "reliability"]
    rows = [
        [
            name,
            *(f"{stages[s][0]:.2f} ({stages[s][1]:.2f})" for s in STAGES),
            *(
                f"{agreements[name][key]:.4f}"
                for key in ("global_descriptor", "descriptors", "reliability")
            ),
        ]
        for name, stages in times.items()
    ]
    return markdown_table(header, rows)


def hardware_lines(device: Device, *, threads: int) -> list[str]:
    """Return what it ran on, as Markdown."""
    facts = {
        "GPU": f"{device.name}, compute capability {device.compute_capability}, "
        f"{device.memory_bytes / 2**30:.0f} GiB"
        f"{', memory shared with the CPU' if device.integrated else ''}",
        "driver": f"CUDA {device.cuda_version}",
        "CPU threads of a network": str(threads),
        **machine_facts(),
    }
    for backend in TENSORRT:
        try:
            facts[backend] = open_tensorrt(backend).version
        except BackendUnavailableError:  # noqa: PERF203 - two of them
            continue
    return [f"- {name}: {value}" for name, value in facts.items()]


def demo_frames(count: int) -> list[ByteArray]:
    """Return frames of the packaged demo, BGR."""
    video = cv2.VideoCapture(str(demo_paths()[0]))
    frames: list[ByteArray] = []
    while len(frames) < count:
        good, frame = video.read()
        if not good:
            break
        frames.append(np.asarray(frame, np.uint8))
    video.release()
    return frames


def _main(args: argparse.Namespace) -> int:
    # First of all: without a GPU there is nothing to measure.
    device = open_device()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(args.threads)
    images = demo_frames(NUM_FRAMES)
    found, missing = contenders(device, images, out=out, threads=args.threads)
    reference = truth()
    agreements = {c.name: agreement(reference, c, images) for c in found}
    times = time_stages(found, images, rounds=args.rounds)
    height, width = images[0].shape[:2]
    lines = [
        f"Median (95th percentile) of {args.rounds} frames of {width}x{height}, "
        f"{NUM_KEYPOINTS} keypoints, {NUM_LANDMARKS} landmarks; matching runs on the "
        "CPU.",
        "",
        table(times, agreements),
        "",
        *hardware_lines(device, threads=args.threads),
        *(f"- left out: {reason}" for reason in missing),
        "",
        f"`python -m edgeloc_tools.learn.bench_gpu --rounds {args.rounds} "
        f"--threads {args.threads}`",
    ]
    text = "\n".join(lines) + "\n"
    write_atomically(out / "bench-gpu.md", text.encode())
    sys.stdout.write(text)
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", default="out/bench-gpu", help="folder of the table")
    parser.add_argument("--rounds", type=int, default=200, help="frames per backend")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(argv)
    return run_command(PROG, lambda: _main(args), debug=args.debug)


if __name__ == "__main__":
    raise SystemExit(main())
