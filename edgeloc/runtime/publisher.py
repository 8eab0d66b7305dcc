"""The publisher: one record per captured frame, at its deadline at the latest.

It never waits for anybody. Whatever the estimator does, at ``timestamp + budget``, less
a margin learned from how late it wakes up, the best candidate there is goes out: the
estimator's, a prediction from the last known motion, or LOST. Records go out in the
order of frames.
"""

from __future__ import annotations

import gc
import logging
import select
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeloc.clock import Clock, MonotonicClock
from edgeloc.config import RunConfig
from edgeloc.runtime.channel import Answer, Board, Cell, Header, Line, Waitable
from edgeloc.runtime.control import Control
from edgeloc.runtime.motion_state import (
    MotionState,
    predict_pose,
    prediction_is_usable,
)
from edgeloc.runtime.odometry import Odometry
from edgeloc.runtime.realtime import request_realtime
from edgeloc.runtime.sinks import (
    EncodingSink,
    odometry_fields,
    open_sinks,
    record_from_estimate,
)
from edgeloc.runtime.tracker import MotionTracker
from edgeloc.runtime.wire import (
    odometry_from_vector,
    pack_estimate,
    unpack_estimate,
)
from edgeloc.types import Cause, PoseEstimate, PoseStatus, Rigid3, Rung

_log = logging.getLogger(__name__)

_FIRST_MARGIN_NS = 1_500_000
_MIN_MARGIN_NS = 200_000
_MAX_MARGIN_NS = 10_000_000
_MARGIN_DECAY = 0.99
_SPIN_NS = 150_000
_NAP_NS = 100_000_000
_DRAIN_NS = 1_000_000_000
_MAX_WATCHED = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherOptions:
    """How the publisher works.

    Parameters
    ----------
    budget_ns : int
        From capture to record.
    fixed : bool
        Whether records wait for their deadline.
    spin : bool
        Whether to busy-wait for the last 150 us before a fixed moment: exact, but only
        with real-time priority, as it would otherwise be punished for it.
    max_frames : int or None
        Stop after that many records.
    map_id : str
        For the records.
    odom : bool
        Whether records have the odometry frame.
    """

    budget_ns: int
    fixed: bool
    spin: bool
    max_frames: int | None
    map_id: str
    odom: bool = False


class Publisher:
    """Turns headers and candidates into records.

    Parameters
    ----------
    board : Board
        Headers and candidates in, emitted estimates out.
    sinks : sequence of EncodingSink
        Must not block.
    options : PublisherOptions
        How.
    clock : Clock
        Of the deadlines.
    """

    def __init__(
        self,
        board: Board,
        sinks: Sequence[EncodingSink],
        options: PublisherOptions,
        *,
        clock: Clock,
    ) -> None:
        self._board = board
        self._sinks = sinks
        self._options = options
        self._clock = clock
        self._next_id = 0
        self._pending: deque[Header] = deque()
        self._watched: dict[int, int] = {}
        self._motion: MotionState | None = None
        self._motion_version = 0
        self._most_ns = min(_MAX_MARGIN_NS, options.budget_ns // 3)
        self.margin_ns = min(_FIRST_MARGIN_NS, self._most_ns)
        self.num_emitted = 0
        self.num_missed = 0
        self.reader_gone = False

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        cells = self._board.cells
        return (
            self.reader_gone
            or self.num_emitted == self._options.max_frames
            or (
                bool(cells[Cell.CAPTURE_ENDED])
                and not self._pending
                and self._next_id >= self._board.frames.num_done
            )
        )

    def warm_up(self) -> None:
        """Go once through all that a record takes: the first time costs 10 ms."""
        tracker = MotionTracker()
        tracker.update(0, Rigid3.identity(), np.eye(6), landmark_distance=1.0)
        assert tracker.state is not None
        state = MotionState.from_vector(tracker.state.to_vector())
        pose, covariance = predict_pose(state, 1)
        prediction_is_usable(covariance, landmark_distance=state.landmark_distance)
        estimate = PoseEstimate(
            frame_id=0,
            timestamp_ns=1,
            status=PoseStatus.PREDICTED,
            rung=Rung.PREDICT,
            cause=Cause.DEADLINE,
            cam_from_world=pose,
            covariance=covariance,
            stage_ns={"none": 0},
        )
        again = unpack_estimate(pack_estimate(estimate), map_id="")
        record = record_from_estimate(replace(again, latency_ns=1), source="")
        for sink in self._sinks:
            sink.encode(again, record)

    def step(self) -> int:
        """Emit what is due; return when to look again unless a bell rings, ns."""
        self._collect()
        while self._pending and not self.done:
            emit_ns = self._emit_ns(self._pending[0])
            now_ns = self._clock.now_ns()
            if now_ns < emit_ns and not self._is_settled(self._pending[0]):
                break
            self._emit(self._pending.popleft(), due_ns=emit_ns)
            self._collect()
        self._count_late_fixes()
        if self._pending:
            return self._emit_ns(self._pending[0])
        return self._clock.now_ns() + _NAP_NS

    def _collect(self) -> None:
        while self._next_id < self._board.frames.num_done:
            header = self._board.frames.header(self._next_id)
            self._next_id += 1
            if header is None:
                self.num_missed += 1  # this process stood still for 256 frames
            else:
                self._pending.append(header)

    def _emit_ns(self, header: Header) -> int:
        due_ns = header.timestamp_ns + self._options.budget_ns - self.margin_ns
        stop_ns = self._board.cells[Cell.STOP_NS]
        return min(due_ns, stop_ns + _DRAIN_NS) if stop_ns else due_ns

    def _is_settled(self, header: Header) -> bool:
        """Return whether waiting cannot make the answer better, and may be spared."""
        if self._options.fixed:
            return False
        if not header.readable:
            return True
        # The estimator goes on only forwards: what it skipped, it skipped for good.
        return self._board.cells[Cell.NUM_SETTLED] > header.frame_id

    def _answer(self, frame_id: int) -> Answer | None:
        return self._board.candidates.get(frame_id, map_id=self._options.map_id)

    def _emit(self, header: Header, *, due_ns: int) -> None:
        options = self._options
        deadline_ns = header.timestamp_ns + options.budget_ns
        estimate, final = self._estimate(header, deadline_ns)
        record = record_from_estimate(estimate, source=header.source)
        if options.odom:
            record.update(odometry_fields(self._odometry(header)))
        encoded = [sink.encode(estimate, record) for sink in self._sinks]
        if options.fixed and not self._board.cells[Cell.STOP_NS]:
            self._learn_margin(due_ns)
            self._wait_until(deadline_ns)
        for sink, data in zip(self._sinks, encoded, strict=True):
            if data is not None and not sink.send(data):
                self.reader_gone = True
        if not options.fixed and self._clock.now_ns() >= due_ns:
            self._learn_margin(due_ns)
        self._board.emitted.put(
            self.num_emitted, Answer(estimate=estimate, final=final)
        )
        self.num_emitted += 1
        self._board.cells[Cell.NUM_PUBLISHED] = self.num_emitted
        if not final and header.readable:
            if len(self._watched) >= _MAX_WATCHED:
                del self._watched[next(iter(self._watched))]
            self._watched[header.frame_id] = 0

    def _estimate(self, header: Header, deadline_ns: int) -> tuple[PoseEstimate, bool]:
        """Return the best there is for a frame, and whether nothing better follows."""
        final = not header.readable
        answer = self._answer(header.frame_id) if header.readable else None
        if answer is None:
            estimate = self._without_estimator(header)
        else:
            estimate, final = answer.estimate, answer.final
            if not final and estimate.cause is Cause.NONE:
                estimate = replace(estimate, cause=Cause.DEADLINE)
        now_ns = self._clock.now_ns()
        known_ns = estimate.latency_ns
        if answer is None or not self._options.fixed:
            known_ns = max(now_ns - header.timestamp_ns, 0)
        return (
            replace(estimate, latency_ns=known_ns, deadline_met=now_ns <= deadline_ns),
            final,
        )

    def _without_estimator(self, header: Header) -> PoseEstimate:
        """Return a prediction, or LOST when there is nothing to predict from."""
        pose = covariance = None
        motion = self._newest_motion() if header.readable else None
        if not header.readable:
            cause = Cause.CAMERA_STALL
        elif self._board.cells[Cell.ESTIMATOR_UP]:
            cause = Cause.DEADLINE
        else:
            cause = Cause.BACKEND_ERROR
        if motion is not None:
            pose, covariance = predict_pose(motion, header.timestamp_ns)
            if not prediction_is_usable(
                covariance, landmark_distance=motion.landmark_distance
            ):
                pose = covariance = None
        return PoseEstimate(
            frame_id=header.frame_id,
            timestamp_ns=header.timestamp_ns,
            status=PoseStatus.LOST if pose is None else PoseStatus.PREDICTED,
            rung=Rung.LOST if pose is None else Rung.PREDICT,
            cause=cause,
            cam_from_world=pose,
            covariance=covariance,
            map_id=self._options.map_id,
        )

    def _newest_motion(self) -> MotionState | None:
        version = self._board.motion.version
        if version != self._motion_version:
            vector = self._board.motion.get()
            self._motion = None if vector is None else MotionState.from_vector(vector)
            self._motion_version = version
        return self._motion

    def _odometry(self, header: Header) -> Odometry | None:
        """Return the odometry at a frame, carried on by prediction where need be."""
        vector, motion = self._board.odometry.get(), self._newest_motion()
        if vector is None:
            return None
        newest = odometry_from_vector(vector)
        if newest.timestamp_ns == header.timestamp_ns:
            return newest
        if motion is None:
            return None
        cam_from_world, _ = predict_pose(motion, header.timestamp_ns)
        return replace(
            newest,
            timestamp_ns=header.timestamp_ns,
            cam_from_odom=cam_from_world @ newest.map_from_odom,
        )

    def _wait_until(self, moment_ns: int) -> None:
        if not self._options.spin:
            self._clock.sleep_until_ns(moment_ns)
            return
        self._clock.sleep_until_ns(moment_ns - _SPIN_NS)
        while self._clock.now_ns() < moment_ns:
            pass

    def _learn_margin(self, due_ns: int) -> None:
        """Remember the worst lateness of late, slowly forgotten."""
        late_ns = self._clock.now_ns() - due_ns
        if late_ns > 2 * _MAX_MARGIN_NS:
            return  # the whole machine stood still; no margin would help
        learned = max(round(1.1 * late_ns), round(_MARGIN_DECAY * self.margin_ns))
        self.margin_ns = min(max(learned, _MIN_MARGIN_NS), self._most_ns)
        self._board.cells[Cell.PUBLISHER_MARGIN_NS] = self.margin_ns

    def _count_late_fixes(self) -> None:
        """Count fixes that came when their record was out; the tracker has them."""
        for frame_id, seen in list(self._watched.items()):
            version = self._board.candidates.version(frame_id)
            if version == seen:
                continue
            self._watched[frame_id] = version
            answer = self._answer(frame_id)
            if answer is not None and answer.final:
                del self._watched[frame_id]
                if answer.estimate.status is PoseStatus.LOCALIZED:
                    self._board.cells.add(Cell.NUM_LATE_FIXES)


def run_publisher(control: Control, line: Line, config: RunConfig) -> None:
    """Be the publisher process of a run.

    Raises
    ------
    ConfigError
        When a sink cannot be opened.
    """
    clock = MonotonicClock()
    start = control.wait_for("publish")["publish"]
    # Before sinks: a thread of another priority could be descheduled with the
    # interpreter lock in its hand.
    report = request_realtime("publisher", mode=config.realtime, cpus=config.cpu_list())
    sinks = open_sinks(config.out, clock=clock, may_wait=False)
    publisher = Publisher(
        line.board,
        sinks,
        PublisherOptions(
            budget_ns=int(start["budget_ns"]),
            fixed=config.emit == "fixed",
            spin=report.has_priority,
            max_frames=config.max_frames,
            map_id=start["map_id"],
            odom=config.odom,
        ),
        clock=clock,
    )
    publisher.warm_up()
    gc.collect()
    gc.freeze()
    control.send({"ready": {"got": report.got, "missing": report.missing}})
    bells = (line.frame_for_publisher, line.answer_for_publisher)
    waited_for: tuple[Waitable, ...] = (*bells, control)
    while not publisher.done and not control.closed:
        next_ns = publisher.step()
        if publisher.done:
            break
        blocked = [fd for sink in sinks if (fd := sink.blocked_fd) is not None]
        timeout_s = max(next_ns - clock.now_ns(), 0) * 1e-9
        readable, writable, _ = select.select(waited_for, blocked, (), timeout_s)
        for bell in bells:
            if bell in readable:
                bell.clear()
        if control in readable:
            control.receive()
        if writable:
            for sink in sinks:
                sink.pump()
    for sink in sinks:
        sink.close()
    control.send(
        {
            "done": {
                "reader_gone": publisher.reader_gone,
                "num_missed": publisher.num_missed,
                "num_lost": sum(sink.num_lost for sink in sinks),
            }
        }
    )
