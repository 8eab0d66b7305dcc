"""`make bench`: the hot path and the networks, timed as ratios of interleaved runs.

Absolute times change with the machine and its load; the ratio of two things that were
run in turn does not. Every kernel runs once per round, in a new order, and is compared
with a reference by the median of the per-round ratios: the pipeline's stages with a
fixed matrix product, networks with ORB on the same image, by one thread and by two.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from edgeloc.cli.common import EXIT_OK, run_command
from edgeloc.features.extract import extract_features, to_grey
from edgeloc.features.match import landmark_similarity
from edgeloc.features.registry import open_family
from edgeloc.features.retrieve import train_vlad
from edgeloc.geometry.camera import project
from edgeloc.geometry.pnp import PnpOptions, estimate_pose, resolve_backend
from edgeloc.geometry.refine import refine_pose
from edgeloc.types import ByteArray, CameraModel, Matches2D3D, Rigid3
from edgeloc_tools.evaluate.bench_networks import (
    AND_FEATURES,
    ORB,
    THIN,
    network_kernels,
    precision_pairs,
    shipped_networks,
)
from edgeloc_tools.evaluate.machine import integer_note, machine_facts
from edgeloc_tools.evaluate.text import markdown_table
from edgeloc_tools.evaluate.timing import (
    Kernel,
    Timing,
    median_ratio,
    summarize,
    time_kernels,
)
from edgeloc_tools.files import write_atomically
from edgeloc_tools.synth.render import render
from edgeloc_tools.synth.scene import make_room

REFERENCE = "reference: 512x512x512 product"

CAMERA = CameraModel(
    model="SIMPLE_PINHOLE", width=640, height=480, params=(525.0, 320.0, 240.0)
)


def room_image() -> ByteArray:
    """Return the grey picture of a procedural room, 640x480."""
    image, _, _ = render(
        make_room(seed=1),
        CAMERA,
        Rigid3(
            R=np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]]), t=np.array([0, 1.5, 0])
        ),
    )
    return to_grey(image)


def _pnp_matches(
    count: int, outliers: float, camera: CameraModel, rng: np.random.Generator
) -> Matches2D3D:
    points3D = rng.uniform([-2, -1.5, 2], [2, 1.5, 6], (count, 3))
    pixels, _ = project(camera, points3D)
    pixels = pixels + rng.normal(scale=1.0, size=pixels.shape)
    wrong = rng.random(count) < outliers
    pixels[wrong] = rng.uniform([0, 0], [640, 480], (int(wrong.sum()), 2))
    # Outliers tend to have worse scores, as real ratio tests give them.
    scores = rng.random(count) - 0.5 * wrong
    order = np.argsort(-scores)
    return Matches2D3D(
        points2D=pixels[order],
        points3D=points3D[order],
        point3D_ids=np.arange(count),
        scores=scores[order].astype(np.float32),
    )


def pipeline_kernels(grey: ByteArray) -> dict[str, Kernel]:
    """Return the stages of the pipeline on an image."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(512, 512)).astype(np.float32)
    kernels: dict[str, Kernel] = {REFERENCE: lambda: a @ a}
    for name, count in (("orb", 1000), ("sift", 2000)):
        family = open_family(name)
        features = extract_features(grey, family, max_keypoints=count)
        decoded = family.decode(features.descriptors)
        rows = np.repeat(decoded, 4, axis=0) + rng.normal(
            scale=0.02, size=(4 * len(decoded), decoded.shape[1])
        ).astype(np.float32)
        row_to_point = np.repeat(np.arange(2 * len(decoded)), 2)
        vlad = train_vlad(decoded, num_words=64, dim=32, seed=0)

        label = f"{name}-{count}"
        kernels[f"{label}: detect and describe"] = partial(
            extract_features, grey, family, max_keypoints=count
        )
        kernels[f"{label}: compare with {2 * len(decoded)} landmarks"] = partial(
            landmark_similarity, decoded, rows, row_to_point
        )
        kernels[f"{label}: global descriptor"] = partial(vlad.describe, decoded)
    backends = dict.fromkeys(["opencv", resolve_backend("auto")])
    for count, outliers in ((100, 0.3), (300, 0.5), (1000, 0.8)):
        matches = _pnp_matches(count, outliers, CAMERA, rng)
        for backend in backends:
            options = PnpOptions(backend=backend)
            kernels[f"PnP {backend}: {count} matches, {outliers:.0%} wrong"] = partial(
                estimate_pose, matches, CAMERA, options=options
            )
    matches = _pnp_matches(300, 0.0, CAMERA, rng)
    kernels["refine a pose on 300 matches"] = partial(
        refine_pose,
        points2D=matches.points2D,
        points3D=matches.points3D,
        camera=CAMERA,
        cam_from_world=Rigid3(R=np.eye(3), t=np.array([0.01, 0.0, 0.02])),
    )
    return kernels


def timing_table(timings: Sequence[Timing], *, reference: str) -> str:
    """Return times and ratios as Markdown."""
    rows = [
        [
            t.name,
            f"{t.median_ms:.2f}",
            f"{t.p95_ms:.2f}",
            f"{t.ratio:.2f} [{t.ratio_low:.2f}, {t.ratio_high:.2f}]",
        ]
        for t in timings
    ]
    header = ["kernel", "median ms", "p95 ms", f"ratio to {reference} [95 %]"]
    return markdown_table(header, rows)


def int8_lines(times: Mapping[str, Sequence[int]]) -> list[str]:
    """Return how long INT8 takes of FP32, for every model that is here as both."""
    lines = []
    for int8, fp32 in precision_pairs(list(times)):
        ratio, low, high = median_ratio(times[int8], times[fp32])
        lines.append(f"{int8} / {fp32}: {ratio:.2f} [{low:.2f}, {high:.2f}]")
    return lines


def decoder_lines(times: Mapping[str, Sequence[int]]) -> list[str]:
    """Return what the way from outputs to features takes, for every feature network."""
    lines = []
    for name in times:
        whole = name + AND_FEATURES
        if whole in times:
            apart = np.subtract(times[whole], times[name])
            lines.append(f"{name}: its decoder alone {np.median(apart) * 1e-6:.2f} ms")
    return lines


def bench_networks(
    grey: ByteArray, *, manifests: Sequence[Path] | None, threads: int, rounds: int
) -> tuple[list[Timing], list[str]]:
    """Return the times of ORB, SIFT and all networks, and notes on them.

    Parameters
    ----------
    grey : ndarray of shape (H, W), uint8
        What they see.
    manifests : sequence of Path or None
        Models; None = the shipped ones.
    threads : int
        Of each network and of OpenCV.
    rounds : int
        How often.
    """
    models = shipped_networks(manifests)
    notes = [] if models else ["no model is shipped: only the shape is timed"]
    with tempfile.TemporaryDirectory() as folder:
        thin: Path | None = Path(folder) / "thin.onnx"
        try:
            from edgeloc_tools.evaluate.thin_network import thin_network
        except ModuleNotFoundError:
            thin = None
            notes.append(f"onnx is not installed: {THIN} is left out")
        else:
            network, macs = thin_network(*grey.shape)
            Path(folder, "thin.onnx").write_bytes(network)
            notes.append(f"{THIN}: {macs / 1e9:.2f} GMAC")
        before = cv2.getNumThreads()
        cv2.setNumThreads(threads)
        try:
            kernels = network_kernels(grey, models, threads=threads, thin=thin)
            times = time_kernels(kernels, rounds=rounds)
        finally:
            cv2.setNumThreads(before)
    return summarize(times, reference=ORB), notes + decoder_lines(times) + int8_lines(
        times
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the tables go to stdout and, with the record, to ``--out``."""
    parser = argparse.ArgumentParser(
        prog="bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--models", type=Path, nargs="+", help="manifests (default: the shipped ones)"
    )
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args(argv)

    def body() -> int:
        grey = room_image()
        times = time_kernels(pipeline_kernels(grey), rounds=args.rounds)
        timings = summarize(times, reference=REFERENCE)
        parts = ["## Stages", timing_table(timings, reference="the product")]
        record: dict[str, object] = {"timings": [asdict(t) for t in timings]}
        for threads in args.threads:
            timings, notes = bench_networks(
                grey, manifests=args.models, threads=threads, rounds=args.rounds
            )
            parts.append(f"## Networks, 640x480, threads: {threads}")
            parts.append(timing_table(timings, reference=ORB))
            parts.append("\n".join(f"- {note}" for note in notes))
            record[f"networks_threads_{threads}"] = {
                "timings": [asdict(t) for t in timings],
                "notes": notes,
            }
        parts.append(integer_note())
        record["machine"] = machine_facts()
        markdown = "\n\n".join(parts) + "\n"
        args.out.mkdir(parents=True, exist_ok=True)
        write_atomically(args.out / "bench.json", json.dumps(record, indent=2).encode())
        write_atomically(args.out / "bench.md", markdown.encode())
        sys.stdout.write(markdown)
        return EXIT_OK

    return run_command("bench", body, debug=True)


if __name__ == "__main__":
    raise SystemExit(main())
