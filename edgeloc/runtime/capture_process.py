"""The capture process: reads the camera, stamps, and puts frames where others look.

Times. A frame's timestamp is when it was taken: the driver's time where there is one on
the monotonic clock, its arrival otherwise. Every frame gets the next frame id and one
record, whatever its time says:

* a time that does not move on (a duplicate, a step back) becomes the last one plus
  1 ns, so that times increase as ids do;
* a live frame from the future or more than a second old has lost its clock: it is
  stamped with its arrival;
* both are counted (``duplicates`` in the summary).

A recording is decoded ahead by a thread, as a camera does not need this process to take
its pictures, and delivered at its times. When decoding cannot keep up, its time line is
shifted: it plays slower, but frames are not late before they are here.
"""

from __future__ import annotations

import gc
import logging
import queue
import threading
import time
from collections.abc import Callable

from edgeloc.clock import Clock, MonotonicClock
from edgeloc.config import RunConfig
from edgeloc.errors import CameraError, EdgelocError
from edgeloc.runtime.channel import Bell, Board, Cell, Line
from edgeloc.runtime.control import Control
from edgeloc.runtime.frame_source import (
    AnyFrame,
    FrameSource,
    UnreadableFrame,
    checked_frame,
)
from edgeloc.runtime.opening import open_run_source
from edgeloc.runtime.realtime import request_realtime
from edgeloc.runtime.telemetry import RepeatedWarning

_log = logging.getLogger(__name__)

MAX_AGE_NS = 1_000_000_000
"""A live frame that is older was not stamped by this clock."""

FIRST_BACKOFF_S = 0.25
LAST_BACKOFF_S = 2.0
_AHEAD_BYTES = 64 << 20
_MAX_AHEAD = 16
_NAP_NS = 20_000_000


class Stamper:
    """Gives frames times that increase, see the module's docstring.

    Parameters
    ----------
    live : bool
        Whether times can be compared with now.
    last_ns : int
        Time of the last frame before, -1 without one.
    """

    def __init__(self, *, live: bool, last_ns: int = -1) -> None:
        self._live = live
        self._last_ns = last_ns
        self.num_restamped = 0

    def stamp(self, timestamp_ns: int, *, now_ns: int) -> int:
        """Return the time to use for a frame that is here at `now_ns`."""
        out = timestamp_ns
        if self._live and not 0 <= now_ns - timestamp_ns <= MAX_AGE_NS:
            out = now_ns
        out = max(out, self._last_ns + 1)
        self.num_restamped += out != timestamp_ns
        self._last_ns = out
        return out


class AheadReader:
    """Decodes a recording a few frames ahead, in a thread.

    Parameters
    ----------
    source : FrameSource
        Not live; only the thread reads it.
    """

    def __init__(self, source: FrameSource) -> None:
        self._source = source
        ahead = _AHEAD_BYTES // (3 * source.size[0] * source.size[1])
        self._frames: queue.Queue[AnyFrame | EdgelocError | None] = queue.Queue(
            min(max(ahead, 2), _MAX_AHEAD)
        )
        self._stopping = False
        self._thread = threading.Thread(
            target=self._work, name="edgeloc-decode", daemon=True
        )
        self._thread.start()

    def _work(self) -> None:
        try:
            while not self._stopping:
                frame = self._source.read()
                self._frames.put(frame)
                if frame is None:
                    return
        except EdgelocError as exc:
            self._frames.put(exc)

    def fill(self) -> None:
        """Wait until as many frames are decoded as are kept, or all."""
        while self._thread.is_alive() and not self._frames.full():
            time.sleep(0.002)

    def read(self) -> AnyFrame | None:
        """Return the next frame, None at the end."""
        while True:
            try:
                frame = self._frames.get(timeout=0.5)
            except queue.Empty:
                if not self._thread.is_alive() and self._frames.empty():
                    raise EdgelocError(
                        f"{self._source.name}: decoding died; run again with --debug"
                    ) from None
                continue
            if isinstance(frame, EdgelocError):
                raise frame
            return frame

    def close(self) -> None:
        """Stop the thread; it ends with the process if it is still decoding."""
        self._stopping = True
        while not self._frames.empty():
            self._frames.get_nowait()


class Capture:
    """Moves frames from a source to the board until they end.

    Parameters
    ----------
    source : FrameSource
        Taken over.
    board : Board
        Where to, with pictures attached.
    bells : sequence of Bell
        Rung for each frame.
    clock : Clock
        Of arrival.
    budget_ns : int
        A frame of a recording that would be older on arrival shifts its time line.
    reopen : callable
        Opens a live source again.
    stopping : callable
        Returns whether to end.
    """

    def __init__(
        self,
        source: FrameSource,
        board: Board,
        *,
        bells: tuple[Bell, ...],
        clock: Clock,
        budget_ns: int,
        reopen: Callable[[], FrameSource],
        stopping: Callable[[], bool],
    ) -> None:
        self._source = source
        self._board = board
        self._bells = bells
        self._clock = clock
        self._budget_ns = budget_ns
        self._reopen = reopen
        self._stopping = stopping
        self._size = source.size
        newest = board.frames.header(board.frames.num_done - 1)
        last_ns = -1 if newest is None else newest.timestamp_ns
        self._stamper = Stamper(live=source.live, last_ns=last_ns)
        self._shift_ns = 0
        self._slower = False
        self._unreadable = RepeatedWarning(_log, clock)

    def run(self) -> None:
        """Deliver frames until there are no more, or it is told to stop."""
        if self._source.live:
            self._run_live()
        else:
            self._run_recording()

    def _run_live(self) -> None:
        while not self._stopping():
            try:
                frame = self._source.read()
            except CameraError as exc:
                if not self._open_again(exc):
                    return
                continue
            if frame is None or self._stopping():
                return
            now_ns = self._clock.now_ns()
            self._deliver(frame, self._stamped(frame, now_ns), now_ns=now_ns)

    def _run_recording(self) -> None:
        reader = AheadReader(self._source)
        first = True
        try:
            reader.fill()
            while not self._stopping():
                frame = reader.read()
                if frame is None:
                    return
                recorded_ns = self._stamped(frame, self._clock.now_ns())
                if first:  # the first frame is now, not when its decoding began
                    self._shift_ns = max(self._clock.now_ns() - recorded_ns, 0)
                    first = False
                if not self._wait_for(recorded_ns):
                    return
                self._deliver(
                    frame, recorded_ns + self._shift_ns, now_ns=self._clock.now_ns()
                )
        finally:
            reader.close()

    def _stamped(self, frame: AnyFrame, now_ns: int) -> int:
        before = self._stamper.num_restamped
        timestamp_ns = self._stamper.stamp(frame.timestamp_ns, now_ns=now_ns)
        self._board.cells.add(Cell.NUM_RESTAMPED, self._stamper.num_restamped - before)
        return timestamp_ns

    def _wait_for(self, recorded_ns: int) -> bool:
        """Wait for a recorded frame's moment; False when told to stop meanwhile."""
        due_ns = recorded_ns + self._shift_ns
        late_ns = self._clock.now_ns() - due_ns
        if late_ns > self._budget_ns:
            if not self._slower:
                self._slower = True
                _log.warning(
                    "%s: decoding cannot keep up with its rate: it plays slower",
                    self._source.name,
                )
            self._shift_ns += late_ns
            return True
        while not self._stopping():
            now_ns = self._clock.now_ns()
            self._board.cells[Cell.CAPTURE_BEAT_NS] = now_ns
            if now_ns >= due_ns:
                return True
            self._clock.sleep_until_ns(min(due_ns, now_ns + _NAP_NS))
        return False

    def _deliver(self, frame: AnyFrame, timestamp_ns: int, *, now_ns: int) -> None:
        cells = self._board.cells
        frame = checked_frame(frame, self._size)
        if isinstance(frame, UnreadableFrame):
            self._unreadable.warn(frame.reason)
            cells.add(Cell.NUM_UNREADABLE)
        self._board.frames.put(frame, timestamp_ns=timestamp_ns, arrival_ns=now_ns)
        for bell in self._bells:
            bell.ring()
        cells[Cell.CAPTURE_BEAT_NS] = now_ns

    def _open_again(self, error: CameraError) -> bool:
        """Open a broken camera again, with growing pauses; False when told to stop."""
        _log.warning("%s; opening it again", error)
        backoff_s = FIRST_BACKOFF_S
        while True:
            self._source.close()
            wake_ns = self._clock.now_ns() + round(backoff_s * 1e9)
            while (now_ns := self._clock.now_ns()) < wake_ns:
                if self._stopping():
                    return False
                self._board.cells[Cell.CAPTURE_BEAT_NS] = now_ns
                self._clock.sleep_until_ns(min(wake_ns, now_ns + _NAP_NS))
            try:
                self._source = self._reopen()
            except CameraError as exc:
                _log.debug("%s", exc)
                backoff_s = min(2 * backoff_s, LAST_BACKOFF_S)
                continue
            self._board.cells.add(Cell.NUM_REOPENED)
            _log.info("%s: open again", self._source.name)
            return True

    def close(self) -> None:
        """Close the source."""
        self._source.close()


def run_capture(control: Control, line: Line, config: RunConfig) -> None:
    """Be the capture process of a run.

    Raises
    ------
    CameraError, ConfigError
        When the source cannot be opened.
    """
    clock = MonotonicClock()
    width, height = control.wait_for("open")["open"]["size_hint"]

    def open_again() -> FrameSource:
        return open_run_source(config, size_hint=(width, height), clock=clock)

    source = open_again()
    control.send(
        {
            "source": {
                "name": source.name,
                "size": list(source.size),
                "live": source.live,
                "fps": source.fps,
            }
        }
    )
    begin = _wait_for_begin(control, source)
    if begin is None:
        source.close()
        return
    line.attach_images(source.size)
    report = request_realtime("capture", mode=config.realtime, cpus=config.cpu_list())
    control.send({"ready": {"got": report.got, "missing": report.missing}})
    gc.collect()
    gc.freeze()

    def stopping() -> bool:
        control.receive()
        return control.closed or line.board.cells[Cell.STOP_NS] != 0

    capture = Capture(
        source,
        line.board,
        bells=(line.frame_for_estimator, line.frame_for_publisher),
        clock=clock,
        budget_ns=begin["budget_ns"],
        reopen=open_again,
        stopping=stopping,
    )
    try:
        capture.run()
    finally:
        line.board.cells[Cell.CAPTURE_ENDED] = 1
        line.frame_for_publisher.ring()
        capture.close()


def _wait_for_begin(control: Control, source: FrameSource) -> dict[str, int] | None:
    """Wait for the others; a live source is drained meanwhile, as frames get old."""
    while not control.closed:
        if not source.live:
            return dict(control.wait_for("begin")["begin"])
        source.read()
        for message in control.receive():
            if "begin" in message:
                return dict(message["begin"])
    return None
