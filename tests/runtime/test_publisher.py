"""When a record goes out, and which; time is a manual clock's."""

from __future__ import annotations

import os

import numpy as np
import pytest

from edgeloc.clock import ManualClock
from edgeloc.runtime.channel import Answer, Cell, Line, image_bytes
from edgeloc.runtime.frame_source import UnreadableFrame
from edgeloc.runtime.odometry import Odometry
from edgeloc.runtime.publisher import Publisher, PublisherOptions
from edgeloc.runtime.sinks import EncodingSink, json_line
from edgeloc.runtime.tracker import MotionTracker
from edgeloc.runtime.wire import odometry_vector
from edgeloc.types import Cause, Frame, PoseEstimate, PoseStatus, Rigid3, Rung

MS = 1_000_000
BUDGET = 33 * MS


class ListSink(EncodingSink):
    num_lost = 0

    def __init__(self, clock):
        self.clock = clock
        self.records = []
        self.times_ns = []
        self.open_for = 10**9

    def encode(self, estimate, record):
        self.records.append(record)
        return json_line(estimate, record).encode()

    def send(self, data):
        self.times_ns.append(self.clock.now_ns())
        return len(self.times_ns) < self.open_for

    def close(self):
        pass


class Case:
    def __init__(self, *, fixed=False, max_frames=None, odom=False):
        self.fds = Line.create_fds()
        self.line = Line.from_fds(self.fds)
        os.ftruncate(self.line.image_fd, image_bytes((8, 6)))
        self.line.attach_images((8, 6))
        self.board = self.line.board
        self.board.cells[Cell.ESTIMATOR_UP] = 1
        self.clock = ManualClock(1000 * MS)
        self.sink = ListSink(self.clock)
        self.publisher = Publisher(
            self.board,
            [self.sink],
            PublisherOptions(
                budget_ns=BUDGET,
                fixed=fixed,
                spin=False,
                max_frames=max_frames,
                map_id="m",
                odom=odom,
            ),
            clock=self.clock,
        )

    def capture(self, *, reason=""):
        now_ns = self.clock.now_ns()
        facts = {"frame_id": 0, "camera_id": "0", "timestamp_ns": 0, "source": "s"}
        frame = (
            UnreadableFrame(**facts, reason=reason)
            if reason
            else Frame(**facts, image=np.zeros((6, 8), np.uint8))
        )
        return self.board.frames.put(frame, timestamp_ns=now_ns, arrival_ns=now_ns)

    def answer(self, frame_id, *, final=True, rung=Rung.RELOCALIZE):
        header = self.board.frames.header(frame_id)
        estimate = PoseEstimate(
            frame_id=frame_id,
            timestamp_ns=header.timestamp_ns,
            status=PoseStatus.LOCALIZED,
            rung=rung,
            cause=Cause.NONE,
            cam_from_world=Rigid3.identity(),
            covariance=np.eye(6) * 1e-6,
            latency_ns=self.clock.now_ns() - header.timestamp_ns,
        )
        self.board.candidates.put(frame_id, Answer(estimate=estimate, final=final))
        if final:
            self.board.cells[Cell.NUM_SETTLED] = frame_id + 1

    def know_motion(self):
        tracker = MotionTracker()
        tracker.update(
            self.clock.now_ns(),
            Rigid3.identity(),
            np.eye(6) * 1e-6,
            landmark_distance=2.0,
        )
        self.board.motion.put(tracker.state.to_vector())

    def close(self):
        for fd in set(self.fds):
            os.close(fd)


@pytest.fixture
def case():
    made = []

    def make(**options):
        made.append(Case(**options))
        return made[-1]

    yield make
    for item in made:
        item.close()


def facts(record):
    return record["status"], record["rung"], record["cause"]


def test_final_answer_goes_out_at_once(case):
    c = case()
    c.capture()
    assert c.publisher.step() > c.clock.now_ns()
    assert c.sink.records == []
    c.clock.advance_ns(7 * MS)
    c.answer(0)
    c.publisher.step()
    assert facts(c.sink.records[0]) == ("LOCALIZED", "RELOCALIZE", "NONE")
    assert c.sink.records[0]["latency_ms"] == 7.0
    assert c.sink.records[0]["deadline_met"] is True
    emitted = c.board.emitted.get(0, map_id="m")
    assert emitted.estimate.latency_ns == 7 * MS


def test_nothing_goes_out_before_its_time_and_something_then(case):
    c = case()
    c.capture()
    wake_ns = c.publisher.step()
    assert wake_ns == 1000 * MS + BUDGET - c.publisher.margin_ns
    c.clock.sleep_until_ns(wake_ns - 1)
    c.publisher.step()
    assert c.sink.records == []
    c.clock.advance_ns(1)
    c.publisher.step()
    assert facts(c.sink.records[0]) == ("LOST", "LOST", "DEADLINE")
    assert c.sink.records[0]["deadline_met"] is True


def test_offered_candidate_goes_out_at_the_deadline(case):
    c = case()
    c.capture()
    c.answer(0, final=False, rung=Rung.TRACK)
    wake_ns = c.publisher.step()
    assert c.sink.records == []
    c.clock.sleep_until_ns(wake_ns)
    c.publisher.step()
    assert facts(c.sink.records[0]) == ("LOCALIZED", "TRACK", "DEADLINE")


def test_prediction_when_the_estimator_says_nothing(case):
    c = case()
    c.know_motion()
    c.clock.advance_ns(20 * MS)
    c.capture()
    c.clock.advance_ns(BUDGET)
    c.publisher.step()
    record = c.sink.records[0]
    assert facts(record) == ("PREDICTED", "PREDICT", "DEADLINE")
    assert np.diag(np.reshape(record["covariance"], (6, 6))).min() > 1e-6


def test_prediction_from_long_ago_is_no_pose(case):
    c = case()
    c.know_motion()
    c.clock.advance_ns(60_000 * MS)
    c.capture()
    c.clock.advance_ns(BUDGET)
    c.publisher.step()
    assert facts(c.sink.records[0]) == ("LOST", "LOST", "DEADLINE")


def test_dead_estimator_is_the_cause(case):
    c = case()
    c.board.cells[Cell.ESTIMATOR_UP] = 0
    c.capture()
    c.clock.advance_ns(BUDGET)
    c.publisher.step()
    assert facts(c.sink.records[0]) == ("LOST", "LOST", "BACKEND_ERROR")


def test_unreadable_frame_is_answered_at_once(case):
    c = case()
    c.know_motion()
    c.capture(reason="is empty")
    c.publisher.step()
    assert facts(c.sink.records[0]) == ("LOST", "LOST", "CAMERA_STALL")


def test_skipped_frames_do_not_hold_up_later_ones(case):
    """The estimator took frame 2 when 0 and 1 were old: they cannot get better."""
    c = case()
    for _ in range(3):
        c.capture()
        c.clock.advance_ns(MS)
    c.answer(2)
    c.publisher.step()
    assert [r["frame_id"] for r in c.sink.records] == [0, 1, 2]
    assert facts(c.sink.records[1])[2] == "DEADLINE"
    assert facts(c.sink.records[2]) == ("LOCALIZED", "RELOCALIZE", "NONE")


def test_records_go_out_in_order(case):
    c = case()
    c.capture()
    c.clock.advance_ns(10 * MS)
    c.capture(reason="is empty")
    c.publisher.step()
    assert c.sink.records == [], "the second is settled, the first is not"
    c.answer(0)
    c.publisher.step()
    assert [r["frame_id"] for r in c.sink.records] == [0, 1]


def test_fixed_records_leave_exactly_at_the_deadline(case):
    c = case(fixed=True)
    c.capture()
    c.clock.advance_ns(5 * MS)
    c.answer(0)
    wake_ns = c.publisher.step()
    assert c.sink.records == []
    c.clock.sleep_until_ns(wake_ns)
    c.publisher.step()
    assert c.sink.times_ns == [1000 * MS + BUDGET]
    assert c.sink.records[0]["latency_ms"] == 5.0, "when it was known"
    assert c.sink.records[0]["deadline_met"] is True


def test_record_that_is_decided_late_says_so(case):
    c = case()
    c.capture()
    c.clock.advance_ns(BUDGET + 1)
    c.publisher.step()
    assert c.sink.records[0]["deadline_met"] is False


def test_margin_grows_with_lateness_and_shrinks_slowly(case):
    c = case()
    c.publisher.margin_ns = first_ns = 1 * MS
    c.capture()
    c.clock.sleep_until_ns(c.publisher.step() + 4 * MS)
    c.publisher.step()
    grown_ns = c.publisher.margin_ns
    assert grown_ns == round(1.1 * 4 * MS)
    for _ in range(300):
        c.capture()
        c.clock.sleep_until_ns(c.publisher.step())
        c.publisher.step()
    assert 200_000 <= c.publisher.margin_ns < first_ns


def test_margin_is_bounded_and_ignores_a_machine_that_slept(case):
    c = case()
    for late_ms, expected_ms in ((18, 10), (60_000, 10)):
        c.capture()
        c.clock.sleep_until_ns(c.publisher.step() + late_ms * MS)
        c.publisher.step()
        assert c.publisher.margin_ns <= expected_ms * MS


def test_late_fix_is_counted_once(case):
    c = case()
    c.capture()
    c.clock.advance_ns(BUDGET)
    c.publisher.step()
    assert c.board.cells[Cell.NUM_LATE_FIXES] == 0
    c.answer(0)
    for _ in range(3):
        c.publisher.step()
    assert c.board.cells[Cell.NUM_LATE_FIXES] == 1
    assert len(c.sink.records) == 1


def test_end_of_capture_ends_after_the_last_record(case):
    c = case()
    c.capture()
    c.board.cells[Cell.CAPTURE_ENDED] = 1
    c.publisher.step()
    assert not c.publisher.done
    c.answer(0)
    c.publisher.step()
    assert c.publisher.done


def test_enough_records(case):
    c = case(max_frames=2)
    for _ in range(5):
        c.capture(reason="is empty")
    c.publisher.step()
    assert c.publisher.done
    assert len(c.sink.records) == 2


def test_reader_that_left_ends_it(case):
    c = case()
    c.sink.open_for = 2
    for _ in range(5):
        c.capture(reason="is empty")
    c.publisher.step()
    assert c.publisher.reader_gone
    assert c.publisher.done
    assert len(c.sink.records) == 2


def test_publisher_that_stood_still_counts_what_it_missed(case):
    c = case()
    for _ in range(300):
        c.capture(reason="is empty")
    c.publisher.step()
    assert c.publisher.num_missed == 300 - 256
    assert len(c.sink.records) == 256


def test_stop_does_not_wait_for_a_far_deadline(case):
    c = case()
    c.capture()
    c.publisher.step()
    c.board.cells[Cell.STOP_NS] = c.clock.now_ns() - 990 * MS
    c.publisher.step()
    assert c.sink.records == [], "a second is given to the frame in work"
    c.clock.advance_ns(11 * MS)
    c.publisher.step()
    assert len(c.sink.records) == 1


def test_odometry_of_the_frame_or_carried_on(case):
    c = case(odom=True)
    c.capture(reason="is empty")
    c.publisher.step()
    assert c.sink.records[0]["odom"] is None
    c.know_motion()
    c.capture()
    there = Rigid3(R=np.eye(3), t=[1.0, 2.0, 3.0])
    c.board.odometry.put(
        odometry_vector(
            Odometry(
                timestamp_ns=c.clock.now_ns(),
                cam_from_odom=there,
                map_from_odom=there,
            )
        )
    )
    c.answer(1)
    c.publisher.step()
    assert c.sink.records[1]["odom"]["tvec"] == [1.0, 2.0, 3.0]
    assert list(c.sink.records[1])[-2:] == ["odom", "map_from_odom"]
    c.clock.advance_ns(20 * MS)
    c.capture()
    c.clock.advance_ns(BUDGET)
    c.publisher.step()
    carried = c.sink.records[2]
    assert facts(carried)[0] == "PREDICTED"
    # cam_from_odom = cam_from_map @ map_from_odom, and the camera stands still.
    assert np.allclose(carried["odom"]["tvec"], [1.0, 2.0, 3.0])
