"""`make bench`: the hot path, timed as ratios of interleaved runs.

Absolute times change with the machine and its load; the ratio of two things that were
run in turn does not. Every kernel runs once per round, in a new order, and is compared
with a fixed reference (a matrix product) by the median of the per-round ratios.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from edgeloc.cli.common import EXIT_OK, run_command
from edgeloc.features.classical import get_family
from edgeloc.features.extract import extract_features, to_grey
from edgeloc.features.match import landmark_similarity
from edgeloc.features.retrieve import train_vlad
from edgeloc.geometry.camera import project
from edgeloc.geometry.pnp import PnpOptions, estimate_pose, resolve_backend
from edgeloc.geometry.refine import refine_pose
from edgeloc.types import CameraModel, Matches2D3D, Rigid3
from edgeloc_tools.evaluate.machine import machine_facts
from edgeloc_tools.evaluate.text import markdown_table
from edgeloc_tools.files import write_atomically
from edgeloc_tools.synth.render import render
from edgeloc_tools.synth.scene import make_room

Kernel = Callable[[], object]

REFERENCE = "reference: 512x512x512 product"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One kernel, timed.

    Parameters
    ----------
    name : str
        What it does.
    median_ms, p95_ms : float
        Of its runs.
    ratio : float
        Median of its time over the reference's in the same round.
    ratio_low, ratio_high : float
        95 % bootstrap interval of that median.
    """

    name: str
    median_ms: float
    p95_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float


def time_kernels(kernels: Mapping[str, Kernel], *, rounds: int) -> dict[str, list[int]]:
    """Return the times of interleaved runs, ns, one list per kernel.

    Parameters
    ----------
    kernels : mapping of str to callable
        What to run; each runs once before, unmeasured.
    rounds : int
        How often.
    """
    rng = np.random.default_rng(0)
    for kernel in kernels.values():
        kernel()
    names = list(kernels)
    times: dict[str, list[int]] = {name: [] for name in names}
    for _ in range(rounds):
        for idx in rng.permutation(len(names)):
            start_ns = time.perf_counter_ns()
            kernels[names[idx]]()
            times[names[idx]].append(time.perf_counter_ns() - start_ns)
    return times


def summarize(times: Mapping[str, Sequence[int]], *, reference: str) -> list[Timing]:
    """Return medians and ratios to the reference.

    Parameters
    ----------
    times : mapping of str to sequence of int
        From `time_kernels`.
    reference : str
        Key of the reference kernel.
    """
    rng = np.random.default_rng(0)
    base = np.asarray(times[reference], np.float64)
    out = []
    for name, values in times.items():
        ns = np.asarray(values, np.float64)
        ratio = ns / base
        draws = rng.integers(0, len(ratio), (1000, len(ratio)))
        low, high = np.quantile(np.median(ratio[draws], axis=1), [0.025, 0.975])
        out.append(
            Timing(
                name=name,
                median_ms=float(np.median(ns)) * 1e-6,
                p95_ms=float(np.quantile(ns, 0.95)) * 1e-6,
                ratio=float(np.median(ratio)),
                ratio_low=float(low),
                ratio_high=float(high),
            )
        )
    return out


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


def make_kernels() -> dict[str, Kernel]:
    """Return the stages of the pipeline on a procedural room."""
    rng = np.random.default_rng(0)
    camera = CameraModel(
        model="SIMPLE_PINHOLE", width=640, height=480, params=(525.0, 320.0, 240.0)
    )
    image, _, _ = render(
        make_room(seed=1),
        camera,
        Rigid3(
            R=np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]]), t=np.array([0, 1.5, 0])
        ),
    )
    grey = to_grey(image)
    a = rng.normal(size=(512, 512)).astype(np.float32)
    kernels: dict[str, Kernel] = {REFERENCE: lambda: a @ a}
    for name, count in (("orb", 1000), ("sift", 2000)):
        family = get_family(name)
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
        matches = _pnp_matches(count, outliers, camera, rng)
        for backend in backends:
            options = PnpOptions(backend=backend)
            kernels[f"PnP {backend}: {count} matches, {outliers:.0%} wrong"] = partial(
                estimate_pose, matches, camera, options=options
            )
    matches = _pnp_matches(300, 0.0, camera, rng)
    kernels["refine a pose on 300 matches"] = partial(
        refine_pose,
        points2D=matches.points2D,
        points3D=matches.points3D,
        camera=camera,
        cam_from_world=Rigid3(R=np.eye(3), t=np.array([0.01, 0.0, 0.02])),
    )
    return kernels


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the table goes to stdout, the record to ``--out``."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args(argv)

    def body() -> int:
        timings = summarize(
            time_kernels(make_kernels(), rounds=args.rounds), reference=REFERENCE
        )
        rows = [
            [
                t.name,
                f"{t.median_ms:.2f}",
                f"{t.p95_ms:.2f}",
                f"{t.ratio:.2f} [{t.ratio_low:.2f}, {t.ratio_high:.2f}]",
            ]
            for t in timings
        ]
        header = ["kernel", "median ms", "p95 ms", "ratio to the reference [95 %]"]
        print(markdown_table(header, rows))  # noqa: T201 - this is the command
        record = {"machine": machine_facts(), "timings": [asdict(t) for t in timings]}
        args.out.mkdir(parents=True, exist_ok=True)
        write_atomically(args.out / "bench.json", json.dumps(record, indent=2).encode())
        return EXIT_OK

    return run_command("bench", body, debug=True)


if __name__ == "__main__":
    raise SystemExit(main())
