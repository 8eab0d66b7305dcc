"""The estimator process: the heavy one, which may be late, hang or die."""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING

from edgeloc.clock import Clock, MonotonicClock
from edgeloc.config import RunConfig
from edgeloc.runtime.aids import open_aids
from edgeloc.runtime.channel import (
    Answer,
    Bell,
    Board,
    Cell,
    Header,
    Line,
    fence,
    wait_for,
)
from edgeloc.runtime.control import Control
from edgeloc.runtime.frame_source import DEFAULT_CAMERA_ID
from edgeloc.runtime.intrinsics import fit_camera
from edgeloc.runtime.loop import Steps
from edgeloc.runtime.opening import (
    choose_camera,
    estimator_options,
    make_estimator,
    open_run_recorder,
    open_run_site,
)
from edgeloc.runtime.realtime import request_realtime
from edgeloc.runtime.source_names import seems_live
from edgeloc.runtime.wire import odometry_vector
from edgeloc.types import Frame, FrameBudget, PoseEstimate

if TYPE_CHECKING:
    from edgeloc.runtime.record import Recorder

_log = logging.getLogger(__name__)

_IDLE_S = 0.5

_LOGGED_CELLS = tuple(cell for cell in Cell if cell.name.startswith("NUM_"))


class EstimatorWorker:
    """Answers the newest frame, over and over.

    Frames that came while another was in work are skipped, and those whose deadline is
    over are not begun; the publisher answers both, and both are counted.

    Parameters
    ----------
    estimator : Steps
        Answers.
    board : Board
        Frames in, candidates out.
    answered : Bell
        Rung for each candidate.
    clock : Clock
        Of the budgets.
    budget_ns : int
        From capture to record.
    recorder : Recorder, optional
        Logs what the estimator sees and says.
    """

    def __init__(
        self,
        estimator: Steps,
        board: Board,
        *,
        answered: Bell,
        clock: Clock,
        budget_ns: int,
        recorder: Recorder | None = None,
    ) -> None:
        self._estimator = estimator
        self._board = board
        self._answered = answered
        self._clock = clock
        self._budget_ns = budget_ns
        self._recorder = recorder
        # A replaced worker begins with what is new, not with what killed the last one.
        self._seen = board.frames.num_done
        self._current = 0

    def take(self) -> Frame | None:
        """Return the newest frame that is worth beginning; None when there is none."""
        frames, cells = self._board.frames, self._board.cells
        while (num_done := frames.num_done) > self._seen:
            newest_id = num_done - 1
            cells.add(Cell.NUM_SKIPPED, newest_id - self._seen)
            self._seen = num_done
            header = frames.header(newest_id)
            if header is None:  # capture lapped us between two lines
                cells.add(Cell.NUM_SKIPPED)
                continue
            if not header.readable:
                continue
            if self._clock.now_ns() >= self._deadline_ns(header):
                cells.add(Cell.NUM_STALE)
                continue
            frame = frames.picture(header, camera_id=DEFAULT_CAMERA_ID)
            if frame is not None:
                return frame
            cells.add(Cell.NUM_SKIPPED)
        return None

    def _deadline_ns(self, frame: Header | Frame) -> int:
        return frame.timestamp_ns + self._budget_ns

    def answer(self, frame: Frame) -> PoseEstimate:
        """Answer one frame; candidates go out as they come."""
        cells = self._board.cells
        start_ns = self._clock.now_ns()
        cells[Cell.STEP_START_NS] = start_ns
        self._current = frame.frame_id
        budget = FrameBudget(
            start_ns=frame.timestamp_ns,
            deadline_ns=self._deadline_ns(frame),
            clock=self._clock,
        )
        if self._recorder is not None:
            budget = self._recorder.frame(frame, budget)
        estimate = self._estimator.step(frame, budget, offer=self._offer)
        # The motion goes first: with the answer, a later frame may need it.
        state = self._estimator.motion_state
        self._board.motion.put(None if state is None else state.to_vector())
        self._board.odometry.put(odometry_vector(self._estimator.odometry))
        self._put(estimate, final=True)
        if self._recorder is not None:
            self._recorder.estimate(estimate)
            self._recorder.counters(
                {cell.name.lower(): cells[cell] for cell in _LOGGED_CELLS}
            )
        cells[Cell.LONGEST_STEP_NS] = max(
            cells[Cell.LONGEST_STEP_NS], self._clock.now_ns() - start_ns
        )
        cells[Cell.STEP_START_NS] = 0
        cells.add(Cell.NUM_STEPS)
        return estimate

    def _offer(self, estimate: PoseEstimate) -> None:
        self._put(estimate, final=False)

    def _put(self, estimate: PoseEstimate, *, final: bool) -> None:
        answer = Answer(estimate=estimate, final=final)
        self._board.candidates.put(self._current, answer)
        if final:
            fence()
            self._board.cells[Cell.NUM_SETTLED] = self._current + 1
        self._answered.ring()


def run_estimator(control: Control, line: Line, config: RunConfig) -> None:
    """Be the estimator process of a run.

    Raises
    ------
    MapError, ModelError, ConfigError
        When the site, its networks or the options cannot be used.
    """
    clock = MonotonicClock()
    options = estimator_options(config)
    # First of all: thread pools that are made later inherit the priority.
    report = request_realtime("estimator", mode=config.realtime, cpus=config.cpu_list())
    site = open_run_site(config)
    camera = choose_camera(config, site)
    control.send(
        {
            "site": {
                "map_id": site.manifest.map_id,
                "size_hint": [camera.width, camera.height],
            }
        }
    )
    begin = control.wait_for("attach")["attach"]
    size = (int(begin["size"][0]), int(begin["size"][1]))
    camera = fit_camera(camera, size=size)
    aids = open_aids(config, site.manifest, camera, clock)
    recorder = open_run_recorder(
        config,
        site,
        camera,
        live=seems_live(str(config.camera)),
        offers=True,
        clock=clock,
        aids=aids,
    )
    estimator = make_estimator(
        options,
        site,
        camera,
        clock if recorder is None else recorder.clock,
        aids=aids if recorder is None else recorder.aids,
    )
    line.attach_images(size)
    worker = EstimatorWorker(
        estimator,
        line.board,
        answered=line.answer_for_publisher,
        clock=clock,
        budget_ns=int(begin["budget_ns"]),
        recorder=recorder,
    )
    gc.collect()
    gc.freeze()
    gc.disable()  # collecting is done between frames
    control.send({"ready": {"got": report.got, "missing": report.missing}})
    while not control.closed and line.board.cells[Cell.STOP_NS] == 0:
        frame = worker.take()
        if frame is not None:
            worker.answer(frame)
            del frame
            gc.collect(1)
            continue
        wait_for([line.frame_for_estimator, control], _IDLE_S)
        line.frame_for_estimator.clear()
        control.receive()
    aids.close()
    if recorder is not None:
        recorder.close()
