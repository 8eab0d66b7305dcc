"""Counting what happens in the loop, without a line per frame."""

from __future__ import annotations

import logging
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

from edgeloc.clock import Clock
from edgeloc.types import PoseEstimate, PoseStatus

_WINDOW = 10_000  # frames that percentiles look back on: bounds memory in long runs
_REPORT_EVERY_NS = 1_000_000_000


class RepeatedWarning:
    """A warning that may come with every frame: the first at once, then one a second.

    Parameters
    ----------
    logger : logging.Logger
        Where it goes.
    clock : Clock
        What a second is measured on.
    """

    def __init__(self, logger: logging.Logger, clock: Clock) -> None:
        self._logger = logger
        self._clock = clock
        self._last_ns: int | None = None
        self._unreported = 0
        self.count = 0

    def warn(self, message: str) -> None:
        """Count one, and log it when a second has passed since the last line."""
        self.count += 1
        self._unreported += 1
        now_ns = self._clock.now_ns()
        if self._last_ns is not None and now_ns - self._last_ns < _REPORT_EVERY_NS:
            return
        times = f" ({self._unreported} times)" if self._unreported > 1 else ""
        self._logger.warning("%s%s", message, times)
        self._last_ns, self._unreported = now_ns, 0


@dataclass(slots=True, kw_only=True)
class RunSummary:
    """What a run did.

    Parameters
    ----------
    num_frames : int
        Records emitted.
    num_unreadable : int
        Of those, frames without a usable image.
    num_late : int
        Of those, frames whose deadline was missed.
    num_dropped : int
        Frames that were replaced by newer ones before anybody looked at them.
    statuses : Counter of PoseStatus
        Records by status.
    """

    num_frames: int = 0
    num_unreadable: int = 0
    num_late: int = 0
    num_dropped: int = 0
    statuses: Counter[PoseStatus] = field(default_factory=Counter)
    _latencies_ns: deque[int] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    _stages_ns: dict[str, deque[int]] = field(default_factory=dict)

    def add(self, estimate: PoseEstimate) -> None:
        """Count one record."""
        self.num_frames += 1
        self.num_late += not estimate.deadline_met
        self.statuses[estimate.status] += 1
        self._latencies_ns.append(estimate.latency_ns)
        for stage, cost_ns in estimate.stage_ns.items():
            if stage not in self._stages_ns:
                self._stages_ns[stage] = deque(maxlen=_WINDOW)
            self._stages_ns[stage].append(cost_ns)

    def percentiles_ms(self) -> dict[str, tuple[float, float]]:
        """Return (p50, p95) of each stage and of "latency", ms, last 10,000 frames."""
        series = {**self._stages_ns, "latency": self._latencies_ns}
        out: dict[str, tuple[float, float]] = {}
        for name, values in series.items():
            if values:
                p50, p95 = np.percentile(np.array(values) * 1e-6, [50, 95])
                out[name] = (float(p50), float(p95))
        return out

    def lines(self) -> list[str]:
        """Return the summary for people, one fact per line."""
        share = {
            status.value: self.statuses[status] / max(self.num_frames, 1)
            for status in PoseStatus
        }
        lines = [
            f"{self.num_frames} frames: "
            + ", ".join(f"{100 * part:.1f} % {name}" for name, part in share.items()),
            f"{self.num_late} late, {self.num_dropped} dropped, "
            f"{self.num_unreadable} unreadable",
        ]
        stages = self.percentiles_ms()
        if stages:
            lines.append(
                "p50 / p95 ms: "
                + ", ".join(
                    f"{name} {p50:.1f} / {p95:.1f}"
                    for name, (p50, p95) in stages.items()
                )
            )
        return lines
