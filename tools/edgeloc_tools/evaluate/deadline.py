"""Whether records are on time, judged by who reads them, and what they are worth.

``python -m edgeloc_tools.evaluate.deadline --map SITE --camera DIR`` plays a folder of
images as a camera through `edgeloc-run`, once per combination of budget, load and
priority, and stamps each record when its line arrives at the other end of the pipe. A
record is on time when that is at most 2 ms after ``timestamp + budget``. The reader
runs with real-time priority above all others where that is permitted, so that it is not
its own lateness that is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeloc.errors import ConfigError, EdgelocError
from edgeloc.geometry.se3 import rigid_from_quat
from edgeloc.runtime.source_files import list_images
from edgeloc.types import FloatArray, Rigid3, Rung
from edgeloc_tools.datasets import open_recording
from edgeloc_tools.evaluate import metrics, text
from edgeloc_tools.evaluate.machine import cpu_name
from edgeloc_tools.files import write_atomically

ALLOWED_NS = 2_000_000
"""Between the deadline and the arrival at the reader: the way through the pipe."""

_READER_PRIORITY = 80
_MAX_SIGMAS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One way to run.

    Parameters
    ----------
    budget_ms : float
        ``--budget-ms``.
    emit, realtime : str
        ``--emit``, ``--realtime``.
    load : int
        Busy processes beside it.
    """

    budget_ms: float
    emit: str
    realtime: str
    load: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineRow:
    """What came of one setting.

    Parameters
    ----------
    setting : Setting
        How it was run.
    num_frames, num_records : int
        Images shown, lines that arrived.
    on_time : float
        Share of the frames whose record was on time.
    arrival_ms : mapping of str to float
        Quantiles ("p50" ...), "max" and standard deviation ("std") of the time from
        capture to arrival.
    rungs : mapping of str to float
        Share of each rung.
    localized : float
        Share of LOCALIZED.
    position_error, rotation_error_deg : float
        Medians of all poses; NaN without ground truth.
    inside_3_sigma : float
        Share of poses that are not LOCALIZED whose position and rotation errors both
        lie inside three standard deviations; NaN without any.
    num_wrong : int
        LOCALIZED, but far off; see `metrics.wrong_reasons`.
    """

    setting: Setting
    num_frames: int
    num_records: int
    on_time: float
    arrival_ms: Mapping[str, float]
    rungs: Mapping[str, float]
    localized: float
    position_error: float = math.nan
    rotation_error_deg: float = math.nan
    inside_3_sigma: float = math.nan
    num_wrong: int = 0


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep `count` processes computing, at normal priority."""
    processes = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(count)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def become_prompt() -> bool:
    """Ask for real-time priority for this process alone; return whether it was got."""
    try:
        os.sched_setscheduler(
            0,
            os.SCHED_FIFO | os.SCHED_RESET_ON_FORK,
            os.sched_param(_READER_PRIORITY),
        )
    except OSError:
        return False
    return True


def read_arrivals(fd: int) -> list[tuple[int, bytes]]:
    """Return each line and when its end arrived, monotonic ns, until the end."""
    lines: list[tuple[int, bytes]] = []
    rest = b""
    while data := os.read(fd, 1 << 20):
        now_ns = time.monotonic_ns()
        *whole, rest = (rest + data).split(b"\n")
        lines.extend((now_ns, line) for line in whole)
    return lines


def play(
    setting: Setting, *, site: Path, camera: Path, rate_hz: float, extra: Sequence[str]
) -> list[tuple[int, dict[str, Any]]]:
    """Run once and return the records and their arrival times, ns.

    Raises
    ------
    EdgelocError
        When `edgeloc-run` fails.
    """
    command = [
        *(sys.executable, "-m", "edgeloc.cli.run", "--quiet"),
        *("--camera", str(camera), "--map", str(site)),
        *("--pace", "realtime", "--rate", f"{rate_hz:g}"),
        *("--budget-ms", f"{setting.budget_ms:g}", "--emit", setting.emit),
        *("--realtime", setting.realtime, *extra),
    ]
    with busy(setting.load):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        assert process.stdout is not None
        assert process.stderr is not None
        gc.collect()
        gc.disable()
        try:
            lines = read_arrivals(process.stdout.fileno())
        finally:
            gc.enable()
            process.stdout.close()
        errors = process.stderr.read().decode(errors="replace")
        process.stderr.close()
    if process.wait() != 0:
        raise EdgelocError(
            errors.strip().splitlines()[-1] if errors else "it said nothing"
        )
    return [(arrival_ns, json.loads(line)) for arrival_ns, line in lines]


def read_truth(args: argparse.Namespace) -> dict[str, Rigid3]:
    """Return the true pose of each image by file name; nothing without ``--input``."""
    if args.input is None:
        return {}
    recording = open_recording(
        format=args.format, input=args.input, split=args.split, metric=None
    )
    return {
        Path(image.name).name: image.cam_from_world
        for image in recording.images
        if image.cam_from_world is not None
    }


def _pose(record: Mapping[str, Any]) -> tuple[Rigid3, FloatArray]:
    return (
        rigid_from_quat(record["qvec"], record["tvec"]),
        np.reshape(record["covariance"], (6, 6)),
    )


def row(
    setting: Setting,
    arrived: Sequence[tuple[int, dict[str, Any]]],
    *,
    num_frames: int,
    truth: Mapping[str, Rigid3],
) -> DeadlineRow:
    """Return the numbers of one or more runs with the same setting.

    Parameters
    ----------
    setting : Setting
        How it was run.
    arrived : sequence of (int, dict)
        Arrival times, ns, and records.
    num_frames : int
        Images shown.
    truth : mapping of str to Rigid3
        True poses by file name; may be empty.
    """
    records = [record for _, record in arrived]
    delays_ns = np.array(
        [arrival_ns - record["timestamp_ns"] for arrival_ns, record in arrived]
    )
    delays_ms = delays_ns * 1e-6
    on_time = int(np.sum(delays_ns <= setting.budget_ms * 1e6 + ALLOWED_NS))
    positions, rotations, insides, num_wrong = [], [], [], 0
    for record in records:
        true = truth.get(record["source"])
        if true is None or record["qvec"] is None:
            continue
        pose, covariance = _pose(record)
        position, rotation_deg = metrics.pose_error(pose, true)
        sigma = metrics.position_sigma(covariance)
        positions.append(position)
        rotations.append(rotation_deg)
        if record["status"] == "LOCALIZED":
            wrong = metrics.wrong_reasons(
                position=position,
                rotation_deg=rotation_deg,
                sigma=sigma,
                position_limit=metrics.wrong_position_limit(metric=True, extent=1.0),
            )
            num_wrong += bool(wrong)
        else:
            insides.append(
                position <= _MAX_SIGMAS * sigma
                and rotation_deg <= _MAX_SIGMAS * metrics.rotation_sigma_deg(covariance)
            )
    quantiles = {
        f"p{100 * q:g}": metrics.quantile(delays_ms, q) for q in (0.5, 0.95, 0.99)
    }
    return DeadlineRow(
        setting=setting,
        num_frames=num_frames,
        num_records=len(records),
        on_time=on_time / num_frames,
        arrival_ms={
            **quantiles,
            "max": float(delays_ms.max(initial=0.0)),
            "std": float(delays_ms.std()) if len(delays_ms) else math.nan,
        },
        rungs={
            rung.value: sum(r["rung"] == rung.value for r in records) / num_frames
            for rung in Rung
        },
        localized=sum(r["status"] == "LOCALIZED" for r in records) / num_frames,
        position_error=metrics.quantile(positions, 0.5),
        rotation_error_deg=metrics.quantile(rotations, 0.5),
        inside_3_sigma=float(np.mean(insides)) if insides else math.nan,
        num_wrong=num_wrong,
    )


HEADER = (
    "budget",
    "emit",
    "real time",
    "busy",
    "records",
    "on time",
    "arrival p50 / p99 / max",
    "std",
    "LOCALIZED",
    "rungs",
    "median error",
    "others in 3σ",
    "wrong",
)


def cells(item: DeadlineRow) -> list[str]:
    """Return a row of the table."""
    setting, arrival = item.setting, item.arrival_ms
    rungs = ", ".join(
        f"{name} {text.percent(share)}" for name, share in item.rungs.items() if share
    )
    return [
        f"{setting.budget_ms:g} ms",
        setting.emit,
        setting.realtime,
        str(setting.load),
        text.percent(item.num_records / item.num_frames),
        text.percent(item.on_time),
        f"{arrival['p50']:.2f} / {arrival['p99']:.2f} / {arrival['max']:.2f} ms",
        f"{arrival['std']:.3f} ms",
        text.percent(item.localized),
        rungs,
        f"{text.length(item.position_error, 'm')}, "
        f"{text.angle(item.rotation_error_deg)}",
        text.percent(item.inside_3_sigma),
        str(item.num_wrong),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edgeloc_tools.evaluate.deadline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--map", type=Path, required=True, metavar="SITE")
    parser.add_argument("--camera", type=Path, required=True, metavar="DIR")
    parser.add_argument("--budgets", default="33", metavar="MS,...")
    parser.add_argument("--rate", type=float, default=30.0, metavar="HZ")
    parser.add_argument("--emit", default="asap", metavar="asap,fixed")
    parser.add_argument("--realtime", default="off", metavar="off,auto,require")
    parser.add_argument(
        "--load", default="0", metavar="N,...", help="busy processes beside the run"
    )
    parser.add_argument("--repeat", type=int, default=1, metavar="N")
    parser.add_argument("--format", default="7scenes", help="of the ground truth")
    parser.add_argument(
        "--input", type=Path, metavar="DIR", help="recording with the ground truth"
    )
    parser.add_argument("--split", metavar="NAME", help="of it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it all there")
    parser.add_argument(
        "extra", nargs="*", help="options passed on to edgeloc-run, after --"
    )
    return parser


def _settings(args: argparse.Namespace) -> list[Setting]:
    try:
        budgets = [float(value) for value in args.budgets.split(",")]
        loads = [int(value) for value in args.load.split(",")]
    except ValueError as exc:
        raise ConfigError(f"--budgets, --load: {exc}") from exc
    return [
        Setting(budget_ms=budget_ms, emit=emit, realtime=realtime, load=load)
        for realtime, load, emit, budget_ms in itertools.product(
            args.realtime.split(","), loads, args.emit.split(","), budgets
        )
    ]


def run(argv: Sequence[str] | None = None) -> None:
    """Measure and print; `EdgelocError` when something is wrong."""
    args = _parser().parse_args(argv)
    if args.repeat < 1:
        raise ConfigError(f"--repeat {args.repeat}: must be at least 1")
    settings = _settings(args)
    truth = read_truth(args)
    num_images = len(list_images(args.camera))
    prompt = become_prompt()
    rows = []
    for setting in settings:
        sys.stderr.write(f"{setting}\n")
        arrived = [
            item
            for _ in range(args.repeat)
            for item in play(
                setting,
                site=args.map,
                camera=args.camera,
                rate_hz=args.rate,
                extra=args.extra,
            )
        ]
        rows.append(
            row(
                setting,
                arrived,
                num_frames=num_images * args.repeat,
                truth=truth,
            )
        )
    reader = "with" if prompt else "without"
    sys.stdout.write(
        f"{num_images * args.repeat} frames at {args.rate:g} Hz each, on {cpu_name()}, "
        f"{os.cpu_count()} cores; read {reader} real-time priority\n\n"
    )
    sys.stdout.write(text.markdown_table(HEADER, [cells(item) for item in rows]) + "\n")
    if args.json is not None:
        values = [dataclasses.asdict(item) for item in rows]
        write_atomically(args.json, json.dumps(values, indent=1).encode())


def main(argv: Sequence[str] | None = None) -> int:
    """Run and return the exit code."""
    try:
        run(argv)
    except EdgelocError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return exc.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
