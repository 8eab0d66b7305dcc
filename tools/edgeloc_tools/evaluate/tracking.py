"""What TRACK is worth: cost, accuracy, jitter, and honest predictions.

Frames of a recording as a stream with a budget, on one core: while a frame is in work,
the frames that come are answered by prediction, as the publisher does. The stream's
clock is the processor time of this process by default, so that other work on the
machine does not change the figures; `--clock wall` is the real thing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeloc.clock import Clock, MonotonicClock
from edgeloc.errors import ConfigError, EdgelocError
from edgeloc.geometry.se3 import log_se3
from edgeloc.runtime.estimator import Estimator
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.runtime.motion_state import predict_pose, prediction_is_usable
from edgeloc.tiles.reader import Site, open_site
from edgeloc.types import (
    ByteArray,
    CameraModel,
    Cause,
    FloatArray,
    Frame,
    FrameBudget,
    PoseEstimate,
    PoseStatus,
    Rigid3,
    Rung,
)
from edgeloc_tools.datasets.recording import Recording
from edgeloc_tools.datasets.registry import open_recording
from edgeloc_tools.evaluate import metrics, text
from edgeloc_tools.evaluate.run import true_pose


class ProcessorClock(MonotonicClock):
    """Processor time of this process: stands still while others run."""

    def now_ns(self) -> int:
        """Return the time, ns."""
        return time.process_time_ns()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One answered frame.

    Parameters
    ----------
    status, rung, cause : str
        Of the answer at the deadline.
    position_error : float
        m; nan without a pose.
    rotation_error_deg : float
        Likewise.
    nees : float
        Of the pose.
    inside : bool
        Whether all six errors are within three sigma.
    cost_ms : float
        What the estimator took for it; nan for a frame that it never saw.
    """

    status: str
    rung: str
    cause: str
    position_error: float
    rotation_error_deg: float
    nees: float
    inside: bool
    cost_ms: float


def _row(estimate: PoseEstimate, true: Rigid3, cost_ms: float) -> Row:
    pose, covariance = estimate.cam_from_world, estimate.covariance
    position = rotation = nees = float("nan")
    inside = True
    if pose is not None and covariance is not None:
        position, rotation = metrics.pose_error(pose, true)
        nees = metrics.nees(pose, true, covariance)
        errors = np.abs(log_se3(true @ pose.inverse()))
        inside = bool(np.all(errors <= 3.0 * np.sqrt(np.diag(covariance))))
    return Row(
        status=estimate.status.value,
        rung=estimate.rung.value,
        cause=estimate.cause.value,
        position_error=position,
        rotation_error_deg=rotation,
        nees=nees,
        inside=inside,
        cost_ms=cost_ms,
    )


def _predicted(estimator: Estimator, frame_id: int, timestamp_ns: int) -> PoseEstimate:
    """Return what the publisher says of a frame that the estimator did not answer."""
    state = estimator.motion_state
    pose, covariance = None, None
    if state is not None:
        pose, covariance = predict_pose(state, timestamp_ns)
        if not prediction_is_usable(
            covariance, landmark_distance=state.landmark_distance
        ):
            pose, covariance = None, None
    return PoseEstimate(
        frame_id=frame_id,
        timestamp_ns=timestamp_ns,
        status=PoseStatus.LOST if pose is None else PoseStatus.PREDICTED,
        rung=Rung.LOST if pose is None else Rung.PREDICT,
        cause=Cause.DEADLINE,
        cam_from_world=pose,
        covariance=covariance,
    )


class Stream:
    """A recording as a stream of frames that do not wait.

    Parameters
    ----------
    site : Site
        The map.
    recording : Recording
        Frames with true poses, of one camera.
    clock : Clock
        Of the costs.
    options : EstimatorOptions
        Of the estimator.
    """

    def __init__(
        self,
        site: Site,
        recording: Recording,
        *,
        clock: Clock,
        options: EstimatorOptions | None = None,
    ) -> None:
        self._images = recording.posed().images
        if not self._images:
            raise ConfigError(f"{recording.name}: has no images with poses")
        self._site = site
        self._camera: CameraModel = recording.cameras[self._images[0].camera_id]
        self._clock = clock
        self._options = options or EstimatorOptions()

    def estimator(self, **changes: object) -> Estimator:
        """Return a fresh estimator, warmed up."""
        estimator = Estimator(
            site=self._site,
            camera=self._camera,
            options=replace(self._options, **changes),  # type: ignore[arg-type]
            clock=self._clock,
        )
        estimator.warm_up()
        return estimator

    def run(self, *, budget_ms: float, rate_hz: float) -> list[Row]:
        """Return the answer of every frame at its deadline.

        Parameters
        ----------
        budget_ms : float
            From capture to answer.
        rate_hz : float
            Of the frames.
        """
        estimator = self.estimator()
        period_ns = round(1e9 / rate_hz)
        start_ns = 10**9
        free_ns = 0  # in the stream's time: when the estimator has time again
        rows: list[Row] = []
        for idx, image in enumerate(self._images):
            timestamp_ns = start_ns + idx * period_ns
            true = true_pose(image)
            pixels = image.source.read()
            deadline_ns = timestamp_ns + round(budget_ms * 1e6)
            if free_ns > timestamp_ns:
                # Newest wins: the estimator takes the frame that is there when it is
                # free. This one will be replaced by the next one, or begin late.
                late_ns = free_ns - timestamp_ns
                if late_ns >= period_ns or late_ns >= budget_ms * 1e6:
                    estimate = _predicted(estimator, idx, timestamp_ns)
                    rows.append(_row(estimate, true, float("nan")))
                    continue
            begin_ns = max(free_ns, timestamp_ns)
            estimate, cost_ns = self._answer(
                estimator,
                pixels,
                idx=idx,
                timestamp_ns=timestamp_ns,
                left_ns=deadline_ns - begin_ns,
            )
            free_ns = begin_ns + cost_ns
            rows.append(_row(estimate, true, cost_ns * 1e-6))
        return rows

    def _answer(
        self,
        estimator: Estimator,
        pixels: ByteArray,
        *,
        idx: int,
        timestamp_ns: int,
        left_ns: int,
    ) -> tuple[PoseEstimate, int]:
        """Return the best answer at the deadline, and what the frame took."""
        frame = Frame(
            frame_id=idx, camera_id="", timestamp_ns=timestamp_ns, image=pixels
        )
        in_time = _predicted(estimator, idx, timestamp_ns)
        begin_ns = self._clock.now_ns()
        budget = FrameBudget(
            start_ns=begin_ns,
            deadline_ns=begin_ns + max(left_ns, 0),
            clock=self._clock,
        )
        offers: list[tuple[int, PoseEstimate]] = []
        final = estimator.step(
            frame,
            budget,
            offer=lambda estimate: offers.append((self._clock.now_ns(), estimate)),
        )
        end_ns = self._clock.now_ns()
        for at_ns, offer in [*offers, (end_ns, final)]:
            if at_ns <= budget.deadline_ns:
                in_time = offer
        return in_time, end_ns - begin_ns

    def still(
        self, image_idx: int, *, num_frames: int, noise: float, cold: bool
    ) -> tuple[FloatArray, list[float]]:
        """Return the positions of one picture again and again, with fresh noise.

        Parameters
        ----------
        image_idx : int
            Which picture.
        num_frames : int
            How often.
        noise : float
            Standard deviation of the sensor's noise, grey levels.
        cold : bool
            Each by itself.

        Returns
        -------
        positions : ndarray of shape (n, 3), float64
            Of the LOCALIZED answers, m.
        costs_ms : list of float
            Of all.
        """
        estimator = self.estimator(cold=cold)
        clean = self._images[image_idx].source.read().astype(np.float32)
        rng = np.random.default_rng(image_idx)
        positions, costs_ms = [], []
        for idx in range(num_frames):
            noisy = clean + rng.normal(0.0, noise, clean.shape)
            pixels = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
            frame = Frame(
                frame_id=idx,
                camera_id="",
                timestamp_ns=10**9 + idx * 33_333_333,
                image=pixels,
            )
            begin_ns = self._clock.now_ns()
            budget = FrameBudget(
                start_ns=begin_ns, deadline_ns=begin_ns + 10**12, clock=self._clock
            )
            estimate = estimator.step(frame, budget)
            costs_ms.append((self._clock.now_ns() - begin_ns) * 1e-6)
            pose = estimate.cam_from_world
            if estimate.status is PoseStatus.LOCALIZED and pose is not None:
                positions.append(pose.origin_in_a)
        return np.array(positions).reshape(-1, 3), costs_ms


HEADER = (
    "run",
    "frames",
    "LOCALIZED",
    "TRACK",
    "PREDICT",
    "LOST",
    "p50 / p95 ms of TRACK",
    "median, p95 error",
    "NEES mean",
    "within 3σ",
)
"""Columns of `cells`."""


def cells(name: str, rows: Sequence[Row]) -> list[str]:
    """Return the line of one run."""
    num = len(rows)

    def share(which: list[bool]) -> str:
        return f"{sum(which) / num:.3f}"

    costs = [r.cost_ms for r in rows if r.rung == Rung.TRACK.value]
    posed = [r for r in rows if np.isfinite(r.position_error)]
    position = np.array([r.position_error for r in posed] or [np.nan])
    rotation = np.array([r.rotation_error_deg for r in posed] or [np.nan])
    quantiles = np.quantile(costs, [0.5, 0.95]) if costs else np.full(2, np.nan)
    return [
        name,
        str(num),
        share([r.status == PoseStatus.LOCALIZED.value for r in rows]),
        share([r.rung == Rung.TRACK.value for r in rows]),
        share([r.rung == Rung.PREDICT.value for r in rows]),
        share([r.rung == Rung.LOST.value for r in rows]),
        f"{quantiles[0]:.1f} / {quantiles[1]:.1f}",
        f"{100 * np.median(position):.2f} cm {np.median(rotation):.2f}°, "
        f"{100 * np.quantile(position, 0.95):.2f} cm",
        f"{np.mean([r.nees for r in posed]):.2f}" if posed else text.NONE,
        f"{np.mean([r.inside for r in posed]):.3f}" if posed else text.NONE,
    ]


def jitter(positions: FloatArray) -> float:
    """Return the standard deviation of positions, all axes together, m."""
    return float(np.sqrt(np.var(positions, axis=0).sum()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edgeloc_tools.evaluate.tracking",
        description="Measure TRACK on a recording as a stream.",
    )
    parser.add_argument("--map", type=Path, required=True, help="the site")
    parser.add_argument("--format", default="7scenes", help="of the recording")
    parser.add_argument("--input", type=Path, required=True, help="the recording")
    parser.add_argument("--split", default=None, help="part of the recording")
    parser.add_argument("--frames", type=int, default=None, help="only so many")
    parser.add_argument("--rate", type=float, default=30.0, help="frames per second")
    parser.add_argument("--budgets", default="33", help="ms, by comma; each is a run")
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument(
        "--still", type=int, default=0, help="repeat one picture so often for jitter"
    )
    parser.add_argument("--noise", type=float, default=2.0, help="grey levels")
    parser.add_argument("--json", type=Path, default=None, help="rows, for machines")
    return parser


def run(argv: Sequence[str] | None = None) -> None:
    """Measure and print the table; `EdgelocError` when something is wrong."""
    args = _parser().parse_args(argv)
    recording = open_recording(format=args.format, input=args.input, split=args.split)
    if args.frames is not None:
        recording = recording.subset(recording.images[: args.frames])
    clock: Clock = MonotonicClock() if args.clock == "wall" else ProcessorClock()
    stream = Stream(open_site(args.map), recording, clock=clock)
    lines, stored = [], {}
    for budget in args.budgets.split(","):
        rows = stream.run(budget_ms=float(budget), rate_hz=args.rate)
        lines.append(cells(f"{budget} ms", rows))
        stored[budget] = [dataclasses.asdict(row) for row in rows]
    sys.stdout.write(text.markdown_table(HEADER, lines) + "\n")
    if args.still:
        half = len(recording.images) // 2
        found = {
            cold: stream.still(half, num_frames=args.still, noise=args.noise, cold=cold)
            for cold in (False, True)
        }
        warm, cold = jitter(found[False][0]), jitter(found[True][0])
        costs = {key: float(np.median(ms[1:])) for key, (_, ms) in found.items()}
        sys.stdout.write(
            f"\nstill camera: {1e3 * warm:.2f} mm with TRACK, {1e3 * cold:.2f} mm "
            f"without, ratio {warm / cold:.2f}; p50 {costs[False]:.1f} and "
            f"{costs[True]:.1f} ms, ratio {costs[False] / costs[True]:.2f}\n"
        )
    if args.json is not None:
        args.json.write_text(json.dumps(stored, indent=1), encoding="utf-8")


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
