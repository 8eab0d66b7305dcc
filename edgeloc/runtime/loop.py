"""The run loop: one record per frame, always."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from edgeloc.clock import Clock
from edgeloc.runtime.capture import FrameFeed
from edgeloc.runtime.frame_source import UnreadableFrame, checked_frame
from edgeloc.runtime.motion_state import MotionState
from edgeloc.runtime.odometry import Odometry
from edgeloc.runtime.sinks import Sink, odometry_fields, record_from_estimate
from edgeloc.runtime.telemetry import RepeatedWarning, Telemetry
from edgeloc.types import (
    Cause,
    Frame,
    FrameBudget,
    PoseEstimate,
    PoseStatus,
    Rung,
)

if TYPE_CHECKING:
    from edgeloc.runtime.record import Recorder

_log = logging.getLogger(__name__)

_NO_DEADLINE_NS = 10**18  # 31 years


class Steps(Protocol):
    """What the loop needs of `edgeloc.runtime.estimator.Estimator`."""

    def step(
        self,
        frame: Frame,
        budget: FrameBudget,
        *,
        offer: Callable[[PoseEstimate], None] | None = None,
    ) -> PoseEstimate:
        """Answer one frame; does not raise for anything that is in the frame."""

    @property
    def motion_state(self) -> MotionState | None:
        """What later frames can be predicted from."""

    @property
    def odometry(self) -> Odometry | None:
        """A frame in which the camera never jumps, and where it lies in the map."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopOptions:
    """How the loop runs.

    Parameters
    ----------
    budget_ns : int or None
        From capture (`from_capture`) or from the start of processing to the record;
        None = no deadline.
    from_capture : bool
        Whether the budget starts with the frame's timestamp. With ``--pace every`` a
        recording's timestamps have nothing to do with now, and it does not.
    fixed : bool
        Hold each record back until its deadline.
    max_frames : int or None
        Stop after that many records.
    image_size : (int, int)
        Width and height that the camera model is for, px.
    map_id : str
        For the records of frames that the estimator never sees.
    odom : bool
        Whether records have the odometry frame.
    """

    budget_ns: int | None
    from_capture: bool
    fixed: bool
    max_frames: int | None
    image_size: tuple[int, int]
    map_id: str
    odom: bool = False

    def __post_init__(self) -> None:
        if self.fixed and self.budget_ns is None:
            raise ValueError("records cannot wait for a deadline that does not exist")


def lost_estimate(
    frame: UnreadableFrame, budget: FrameBudget, *, map_id: str
) -> PoseEstimate:
    """Return the answer for a frame without a usable image."""
    now_ns = budget.clock.now_ns()
    return PoseEstimate(
        frame_id=frame.frame_id,
        timestamp_ns=frame.timestamp_ns,
        status=PoseStatus.LOST,
        rung=Rung.LOST,
        cause=Cause.CAMERA_STALL,
        cam_from_world=None,
        covariance=None,
        latency_ns=max(now_ns - budget.start_ns, 0),
        deadline_met=now_ns <= budget.deadline_ns,
        map_id=map_id,
    )


def _emit(
    sinks: Sequence[Sink], estimate: PoseEstimate, record: dict[str, Any]
) -> bool:
    """Give a record to every sink; False when standard output is closed."""
    return all([sink.emit(estimate, record) for sink in sinks])  # noqa: C419 - all emit


def run_loop(
    feed: FrameFeed,
    estimator: Steps,
    sinks: Sequence[Sink],
    options: LoopOptions,
    *,
    clock: Clock,
    stop: threading.Event,
    telemetry: Telemetry,
    recorder: Recorder | None = None,
) -> None:
    """Answer frames until they end, `stop` is set or nobody reads any more.

    Parameters
    ----------
    feed : FrameFeed
        Frames.
    estimator : Steps
        Answers.
    sinks : sequence of Sink
        Take the records.
    options : LoopOptions
        How.
    clock : Clock
        Of the budgets.
    stop : threading.Event
        Set by a signal; the frame in work is finished.
    telemetry : Telemetry
        Filled as the run goes, so that it is there whatever ends the run.
    recorder : Recorder, optional
        Logs what the estimator sees and says.

    Raises
    ------
    CameraError
        When a live source broke; all records so far are out.
    """
    unreadable = RepeatedWarning(_log, clock)
    budget_ns = _NO_DEADLINE_NS if options.budget_ns is None else options.budget_ns
    feed.begin()
    while options.max_frames is None or telemetry.num_frames < options.max_frames:
        frame = feed.next(stop)
        if frame is None:
            break
        frame = checked_frame(frame, options.image_size)
        start_ns = frame.timestamp_ns if options.from_capture else clock.now_ns()
        budget = FrameBudget(
            start_ns=start_ns,
            deadline_ns=start_ns + budget_ns,
            clock=clock,
        )
        if recorder is not None:
            budget = recorder.frame(frame, budget)
        if isinstance(frame, UnreadableFrame):
            unreadable.warn(frame.reason)
            estimate = lost_estimate(frame, budget, map_id=options.map_id)
        else:
            estimate = estimator.step(frame, budget)
        if recorder is not None:
            recorder.estimate(estimate)
            recorder.counters({"num_dropped": feed.num_dropped})
        record = record_from_estimate(estimate, source=frame.source)
        if options.odom:
            odometry = estimator.odometry
            if odometry is not None and odometry.timestamp_ns != frame.timestamp_ns:
                odometry = None
            record.update(odometry_fields(odometry))
        if options.fixed:
            clock.sleep_until_ns(budget.deadline_ns)
        telemetry.add(estimate)
        telemetry.num_unreadable = unreadable.count
        telemetry.num_dropped = feed.num_dropped
        if not _emit(sinks, estimate, record):
            _log.info("standard output was closed: ending")
            break
