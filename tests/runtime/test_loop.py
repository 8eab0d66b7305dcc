"""One record per frame, whatever the frame is."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest

from edgeloc.clock import ManualClock
from edgeloc.errors import CameraError
from edgeloc.runtime.frame_source import UnreadableFrame
from edgeloc.runtime.loop import LoopOptions, run_loop
from edgeloc.runtime.telemetry import RepeatedWarning, Telemetry
from edgeloc.types import Cause, Frame, PoseEstimate, PoseStatus, Rigid3, Rung

MS = 1_000_000


def frame_of(frame_id, *, timestamp_ns=0, size=(8, 6)):
    return Frame(
        frame_id=frame_id,
        camera_id="0",
        timestamp_ns=timestamp_ns,
        image=np.zeros((size[1], size[0]), np.uint8),
        source=f"{frame_id}.png",
    )


def unreadable(frame_id):
    return UnreadableFrame(
        frame_id=frame_id,
        camera_id="0",
        timestamp_ns=0,
        source=f"{frame_id}.png",
        reason=f"{frame_id}.png is empty",
    )


class FakeFeed:
    num_dropped = 4

    def __init__(self, items):
        self.items = list(items)
        self.begun = False

    def begin(self):
        self.begun = True

    def next(self, stop):
        assert self.begun
        if stop.is_set() or not self.items:
            return None
        item = self.items.pop(0)
        if isinstance(item, Exception):
            raise item
        return item

    def close(self):
        pass


class FakeEstimator:
    """Takes `cost_ns` and answers identity; remembers the budgets it was given."""

    def __init__(self, clock, cost_ns=10 * MS):
        self.clock = clock
        self.cost_ns = cost_ns
        self.budgets = []

    def step(self, frame, budget):
        self.budgets.append((budget.start_ns, budget.deadline_ns))
        self.clock.advance_ns(self.cost_ns)
        now_ns = self.clock.now_ns()
        return PoseEstimate(
            frame_id=frame.frame_id,
            timestamp_ns=frame.timestamp_ns,
            status=PoseStatus.LOCALIZED,
            rung=Rung.RELOCALIZE,
            cause=Cause.NONE,
            cam_from_world=Rigid3.identity(),
            covariance=np.eye(6),
            latency_ns=now_ns - budget.start_ns,
            deadline_met=now_ns <= budget.deadline_ns,
            stage_ns={"features": self.cost_ns},
            map_id="m",
        )


class ListSink:
    def __init__(self, clock, open_for=10**9):
        self.clock = clock
        self.records = []
        self.times_ns = []
        self.open_for = open_for

    def emit(self, estimate, record):
        self.records.append(record)
        self.times_ns.append(self.clock.now_ns())
        return len(self.records) < self.open_for

    def close(self):
        pass


class Run:
    """A loop with fakes around it."""

    def __init__(self, items, *, start_ns=1000, cost_ns=10 * MS, sinks=None, **changes):
        self.clock = ManualClock(start_ns)
        self.estimator = FakeEstimator(self.clock, cost_ns)
        self.sink = ListSink(self.clock)
        self.sinks = [self.sink] if sinks is None else sinks(self.clock)
        self.telemetry = Telemetry()
        self.stop = threading.Event()
        self.feed = FakeFeed(items)
        options = {
            "budget_ns": 33 * MS,
            "from_capture": True,
            "fixed": False,
            "max_frames": None,
            "image_size": (8, 6),
            "map_id": "m",
        }
        self.options = LoopOptions(**{**options, **changes})

    def go(self):
        run_loop(
            self.feed,
            self.estimator,
            self.sinks,
            self.options,
            clock=self.clock,
            stop=self.stop,
            telemetry=self.telemetry,
        )
        return self


def test_every_frame_gets_one_record_in_order():
    run = Run([frame_of(0), unreadable(1), frame_of(2), frame_of(3, size=(9, 6))]).go()
    assert [r["frame_id"] for r in run.sink.records] == [0, 1, 2, 3]
    assert [r["source"] for r in run.sink.records] == [f"{i}.png" for i in range(4)]
    assert [r["status"] for r in run.sink.records] == [
        "LOCALIZED",
        "LOST",
        "LOCALIZED",
        "LOST",
    ]
    assert [r["cause"] for r in run.sink.records][1::2] == ["CAMERA_STALL"] * 2
    assert {r["map_id"] for r in run.sink.records} == {"m"}
    assert len(run.estimator.budgets) == 2, "the estimator never sees the others"
    assert run.telemetry.num_unreadable == 2


def test_frame_of_another_size_says_so_once(caplog):
    """Its keypoints would be right and its intrinsics wrong: a wrong pose."""
    Run([frame_of(i, size=(16, 12)) for i in range(5)]).go()
    expected = "0.png is 16x12, the camera model is for 8x6"
    assert caplog.messages == [expected]


def test_budget_starts_at_capture_for_live_frames():
    run = Run([frame_of(0, timestamp_ns=400)], start_ns=1000).go()
    assert run.estimator.budgets == [(400, 400 + 33 * MS)]


def test_budget_starts_with_processing_for_recordings():
    frames = [frame_of(i, timestamp_ns=0) for i in range(2)]
    run = Run(frames, start_ns=1000, from_capture=False).go()
    assert run.estimator.budgets == [
        (1000, 1000 + 33 * MS),
        (1000 + 10 * MS, 1000 + 43 * MS),
    ]


def test_without_a_deadline_no_answer_is_late():
    items = [frame_of(0, timestamp_ns=0), unreadable(1)]
    run = Run(items, start_ns=0, cost_ns=3_600_000 * MS, budget_ns=None).go()
    assert [r["deadline_met"] for r in run.sink.records] == [True, True]
    assert run.sink.records[0]["latency_ms"] == 3_600_000.0
    assert run.telemetry.num_late == 0
    ((start_ns, deadline_ns),) = run.estimator.budgets
    assert deadline_ns - start_ns > 3600 * 24 * 365 * 1000 * MS, "nothing is skipped"


def test_fixed_records_need_a_deadline():
    with pytest.raises(ValueError, match="a deadline that does not exist"):
        Run([], budget_ns=None, fixed=True)


def test_asap_emits_when_the_answer_is_there():
    run = Run([frame_of(0, timestamp_ns=0)], start_ns=0).go()
    assert run.sink.times_ns == [10 * MS]


def test_fixed_emits_exactly_at_the_deadline():
    frames = [frame_of(i, timestamp_ns=i * 40 * MS) for i in range(3)]
    run = Run(frames, start_ns=0, fixed=True).go()
    assert run.sink.times_ns == [33 * MS, 73 * MS, 113 * MS]
    assert run.sink.records[0]["latency_ms"] == 10.0, "when it was known"


def test_late_answer_is_emitted_at_once_and_counted():
    run = Run([frame_of(0)], start_ns=0, cost_ns=50 * MS, fixed=True).go()
    assert run.sink.times_ns == [50 * MS]
    assert run.sink.records[0]["deadline_met"] is False
    assert run.telemetry.num_late == 1


def test_unreadable_frame_that_is_already_late_says_so():
    run = Run([unreadable(0)], start_ns=34 * MS).go()
    assert run.sink.records[0]["deadline_met"] is False
    assert run.sink.records[0]["latency_ms"] == 34.0


def test_max_frames_counts_records():
    run = Run([unreadable(0), *[frame_of(i) for i in range(1, 9)]], max_frames=3).go()
    assert len(run.sink.records) == 3
    assert len(run.feed.items) == 6, "nothing is read ahead"


def test_stop_finishes_the_frame_in_work():
    run = Run([frame_of(i) for i in range(5)])
    step = run.estimator.step

    def step_and_stop(frame, budget):
        if frame.frame_id == 2:
            run.stop.set()
        return step(frame, budget)

    run.estimator.step = step_and_stop
    run.go()
    assert [r["frame_id"] for r in run.sink.records] == [0, 1, 2]


def test_closed_standard_output_ends_the_run_but_others_get_the_record():
    run = Run(
        [frame_of(i) for i in range(9)],
        sinks=lambda clock: [ListSink(clock, open_for=2), ListSink(clock)],
    ).go()
    assert [len(sink.records) for sink in run.sinks] == [2, 2]


def test_broken_camera_leaves_records_and_summary():
    run = Run([frame_of(0), frame_of(1), CameraError("unplugged")])
    with pytest.raises(CameraError, match="unplugged"):
        run.go()
    assert len(run.sink.records) == 2
    assert run.telemetry.num_frames == 2


def test_repeated_warning_comes_once_a_second_with_its_count(caplog):
    clock = ManualClock()
    warning = RepeatedWarning(logging.getLogger("edgeloc.test"), clock)
    for _ in range(25):
        warning.warn("bad frame")
        clock.advance_ns(100 * MS)
    assert caplog.messages == [
        "bad frame",
        "bad frame (10 times)",
        "bad frame (10 times)",
    ]
    assert warning.count == 25
