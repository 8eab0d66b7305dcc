"""Counting what happens in a run, without a line per frame."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator

from edgeloc.clock import Clock
from edgeloc.runtime.histogram import Histogram
from edgeloc.types import Cause, PoseEstimate, PoseStatus, Rung

_REPORT_EVERY_NS = 1_000_000_000

PROMETHEUS_BOUNDS_NS = tuple(
    mantissa * 10**exponent for exponent in range(5, 10) for mantissa in (1, 2, 5)
)
"""0.1 ms to 5 s, in steps of 1, 2, 5."""


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


class Telemetry:
    """What a run did: shares, losses and how long everything took.

    `add` is called once per record. The attributes below it are counted by whoever
    sees the event and set here before the numbers are asked for. Reading from another
    thread is safe, and then right to one frame.

    Attributes
    ----------
    num_frames : int
        Records emitted.
    num_unreadable : int
        Of those, frames without a usable image.
    num_late : int
        Of those, frames whose deadline was missed.
    num_dropped : int
        Frames that were replaced by newer ones before anybody looked at them.
    num_duplicates : int
        Frames whose timestamp did not move on.
    num_late_fixes : int
        Fixes that were ready only after their frame's deadline.
    num_restarts : int
        Times that the estimator was replaced.
    statuses, rungs, causes : Counter
        Records by status, rung and cause.
    latency : Histogram
        Capture to record, all rungs.
    """

    def __init__(self) -> None:
        self.num_frames = 0
        self.num_unreadable = 0
        self.num_late = 0
        self.num_dropped = 0
        self.num_duplicates = 0
        self.num_late_fixes = 0
        self.num_restarts = 0
        self.statuses: Counter[PoseStatus] = Counter()
        self.rungs: Counter[Rung] = Counter()
        self.causes: Counter[Cause] = Counter()
        self.latency = Histogram()
        self._rung_latency: dict[Rung, Histogram] = {}
        self._stages: dict[str, Histogram] = {}
        self._last: PoseEstimate | None = None

    def add(self, estimate: PoseEstimate) -> None:
        """Count one record."""
        self.num_frames += 1
        self.num_late += not estimate.deadline_met
        self.statuses[estimate.status] += 1
        self.rungs[estimate.rung] += 1
        self.causes[estimate.cause] += 1
        self.latency.add(estimate.latency_ns)
        self.rung_latency(estimate.rung).add(estimate.latency_ns)
        for stage, cost_ns in estimate.stage_ns.items():
            self.stage(stage).add(cost_ns)
        self._last = estimate

    def rung_latency(self, rung: Rung) -> Histogram:
        """Return the latencies of the records of one rung."""
        found = self._rung_latency.get(rung)
        if found is None:
            found = self._rung_latency[rung] = Histogram()
        return found

    def stage(self, name: str) -> Histogram:
        """Return the times of one stage, over the frames that ran it."""
        found = self._stages.get(name)
        if found is None:
            found = self._stages[name] = Histogram()
        return found

    def _losses(self) -> str:
        counts = {
            "late": self.num_late,
            "dropped": self.num_dropped,
            "unreadable": self.num_unreadable,
        }
        # Worth a word only when they happen.
        rare = {
            "duplicates": self.num_duplicates,
            "late fixes": self.num_late_fixes,
            "restarts": self.num_restarts,
        }
        counts.update({name: count for name, count in rare.items() if count})
        return ", ".join(f"{count} {name}" for name, count in counts.items())

    def summary_lines(self) -> list[str]:
        """Return what the run did, for people, one fact per line."""

        def share(kind: PoseStatus | Rung, count: int) -> str:
            return f"{100 * count / max(self.num_frames, 1):.1f} % {kind.value}"

        statuses = [share(status, self.statuses[status]) for status in PoseStatus]
        lines = [f"{self.num_frames} frames: {', '.join(statuses)}", self._losses()]
        if not self.num_frames:
            return lines
        rungs = [share(rung, self.rungs[rung]) for rung in Rung if self.rungs[rung]]
        lines.append(f"rungs: {', '.join(rungs)}")
        lines.append("ms, p50 / p95 / p99 / max:")
        rows = [("latency", self.latency)]
        rows += [
            (f"  {rung.value}", self._rung_latency[rung])
            for rung in Rung
            if rung in self._rung_latency
        ]
        rows += list(self._stages.items())
        width = max(len(name) for name, _ in rows)
        lines += [f"  {name:<{width}}  {_in_ms(times)}" for name, times in rows]
        return lines

    def summary_text(self) -> str:
        """Return `summary_lines` as one text."""
        return "\n".join(self.summary_lines())

    def status_line(self) -> str:
        """Return one short line about the run so far and its newest record."""
        if self._last is None:
            return "no frame yet"
        last = self._last
        why = "" if last.cause is Cause.NONE else f" ({last.cause.value})"
        localized = self.statuses[PoseStatus.LOCALIZED] / self.num_frames
        return (
            f"frame {last.frame_id}: {last.status.value} {last.rung.value}{why}, "
            f"{last.num_inliers} inliers, {last.latency_ns / 1e6:.1f} ms | "
            f"{100 * localized:.1f} % localized, p95 "
            f"{self.latency.quantile_ns(0.95) / 1e6:.1f} ms, {self._losses()}"
        )

    def prometheus_text(self) -> str:
        """Return all numbers in Prometheus' text format 0.0.4."""
        return "".join(f"{line}\n" for line in self._prometheus_lines())

    def _prometheus_lines(self) -> Iterator[str]:
        for name, total, text in (
            ("frames", self.num_frames, "Records emitted."),
            ("late", self.num_late, "Records after their deadline."),
            (
                "dropped",
                self.num_dropped,
                "Frames replaced by newer ones, not looked at.",
            ),
            ("unreadable", self.num_unreadable, "Frames without a usable image."),
            ("duplicates", self.num_duplicates, "Frames whose time did not move on."),
            ("late_fixes", self.num_late_fixes, "Fixes ready after their deadline."),
            ("restarts", self.num_restarts, "Times the estimator was replaced."),
        ):
            yield from _family(f"edgeloc_{name}_total", "counter", text)
            yield f"edgeloc_{name}_total {total}"
        # Series that are there from the start make rates right from the start.
        for kind, counts in (
            ("status", {member.value: self.statuses[member] for member in PoseStatus}),
            ("rung", {member.value: self.rungs[member] for member in Rung}),
            ("cause", {member.value: self.causes[member] for member in Cause}),
        ):
            name = f"edgeloc_records_by_{kind}_total"
            yield from _family(name, "counter", f"Records by {kind}.")
            for value, count in counts.items():
                yield f'{name}{{{kind}="{value}"}} {count}'
        yield from _histograms(
            "edgeloc_latency_seconds",
            "Capture to record, by rung.",
            "rung",
            [(rung.value, times) for rung, times in list(self._rung_latency.items())],
        )
        yield from _histograms(
            "edgeloc_stage_seconds",
            "Time in each stage of a frame.",
            "stage",
            list(self._stages.items()),
        )


def _in_ms(times: Histogram) -> str:
    values = (*(times.quantile_ns(share) for share in (0.5, 0.95, 0.99)), times.max_ns)
    return " / ".join(f"{value / 1e6:.1f}" for value in values)


def _family(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _histograms(
    name: str, text: str, label: str, series: Iterable[tuple[str, Histogram]]
) -> Iterator[str]:
    yield from _family(name, "histogram", text)
    for value, times in series:
        pair = f'{label}="{_escaped(value)}"'
        counts = times.cumulative(PROMETHEUS_BOUNDS_NS)
        # Counted from the same numbers as the buckets, which another thread may fill.
        total = max(times.count, counts[-1])
        for bound_ns, count in zip(PROMETHEUS_BOUNDS_NS, counts, strict=True):
            yield f'{name}_bucket{{{pair},le="{bound_ns / 1e9:g}"}} {count}'
        yield f'{name}_bucket{{{pair},le="+Inf"}} {total}'
        yield f"{name}_sum{{{pair}}} {times.sum_ns / 1e9:.9g}"
        yield f"{name}_count{{{pair}}} {total}"
