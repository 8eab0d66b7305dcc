"""Feeding the loop: a newest-wins slot filled by a thread, or frame after frame."""

from __future__ import annotations

import logging
import threading
from typing import Generic, Protocol, TypeVar

from edgeloc.clock import Clock
from edgeloc.errors import CameraError, EdgelocError
from edgeloc.runtime.frame_source import AnyFrame, FrameSource

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

STALL_WARNING_S = 1.0
STALL_ERROR_S = 15.0
_POLL_S = 0.02  # how soon a stop request is seen while no frame comes
_JOIN_S = 1.0
_STEP_NS = 50_000_000


class NewestSlot(Generic[_T]):
    """A mailbox for one item: a newer one replaces it, and the loss is counted."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._item: _T | None = None
        self._closed = False
        self._error: EdgelocError | None = None
        self.num_dropped = 0

    def put(self, item: _T) -> None:
        """Leave an item; one that nobody took is gone and counted."""
        with self._condition:
            self.num_dropped += self._item is not None
            self._item = item
            self._condition.notify()

    def close(self, error: EdgelocError | None = None) -> None:
        """Say that nothing more comes, and why."""
        with self._condition:
            self._closed = True
            self._error = error
            self._condition.notify_all()

    def take(self, timeout_s: float) -> _T | None:
        """Return the newest item, or None when none came in time or ever will.

        Parameters
        ----------
        timeout_s : float
            How long to wait.

        Raises
        ------
        EdgelocError
            The one given to `close`, once the last item is taken.
        """
        with self._condition:
            self._condition.wait_for(
                lambda: self._item is not None or self._closed, timeout_s
            )
            item, self._item = self._item, None
            if item is None and self._error is not None:
                raise self._error
            return item

    @property
    def finished(self) -> bool:
        """Whether it is closed and empty."""
        with self._condition:
            return self._closed and self._item is None

    def forget(self) -> None:
        """Drop the waiting item and start counting losses again."""
        with self._condition:
            self._item = None
            self.num_dropped = 0


class FrameFeed(Protocol):
    """Where the loop takes its frames from."""

    @property
    def num_dropped(self) -> int:
        """Frames that nobody looked at."""

    def begin(self) -> None:
        """Start for real: what came before is stale."""

    def next(self, stop: threading.Event) -> AnyFrame | None:
        """Return the next frame; None at the end or once `stop` is set."""

    def close(self) -> None:
        """End the capture and close the source."""


class DirectFeed:
    """Every frame, in order, read when the loop is ready for it (``--pace every``).

    Parameters
    ----------
    source : FrameSource
        Taken over.
    """

    num_dropped = 0

    def __init__(self, source: FrameSource) -> None:
        self._source = source

    def begin(self) -> None:
        """Nothing to do."""

    def next(self, stop: threading.Event) -> AnyFrame | None:
        """Return the next frame; None at the end or once `stop` is set."""
        return None if stop.is_set() else self._source.read()

    def close(self) -> None:
        """Close the source."""
        self._source.close()


class RealtimeFeed:
    """The newest frame, captured by a thread (``--pace realtime``).

    A live source is drained from the moment this is made, so that no backlog builds up
    while models are loaded; a recording starts with `begin` and delivers each frame at
    its time.

    Parameters
    ----------
    source : FrameSource
        Taken over.
    clock : Clock
        What recordings are paced by.
    stall_error_s : float
        How long a live source may give nothing before that is an error.
    """

    def __init__(
        self,
        source: FrameSource,
        *,
        clock: Clock,
        stall_error_s: float = STALL_ERROR_S,
    ) -> None:
        self._source = source
        self._clock = clock
        self._stall_error_s = stall_error_s
        self._slot: NewestSlot[AnyFrame] = NewestSlot()
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._capture, name="edgeloc-capture", daemon=True
        )
        if source.live:
            self._thread.start()

    def _capture(self) -> None:
        # Replaced on every expected way out; a bug leaves it and the loop ends too.
        error: EdgelocError | None = EdgelocError(
            f"{self._source.name}: the capture thread died; see the traceback above"
        )
        try:
            while not self._stopping.is_set():
                frame = self._source.read()
                if frame is None:
                    break
                if not self._source.live:
                    self._wait_until_ns(frame.timestamp_ns)
                self._slot.put(frame)
            error = None
        except EdgelocError as exc:
            error = exc
        finally:
            self._slot.close(error)

    def _wait_until_ns(self, timestamp_ns: int) -> None:
        # In steps: `close` need not wait for the next frame of a slow recording.
        while not self._stopping.is_set():
            now_ns = self._clock.now_ns()
            if now_ns >= timestamp_ns:
                return
            self._clock.sleep_until_ns(min(timestamp_ns, now_ns + _STEP_NS))

    @property
    def num_dropped(self) -> int:
        """Frames that were replaced before the loop took them."""
        return self._slot.num_dropped

    def begin(self) -> None:
        """Start a recording, or forget what a camera sent so far."""
        if self._source.live:
            self._slot.forget()
        else:
            self._thread.start()

    def next(self, stop: threading.Event) -> AnyFrame | None:
        """Wait for the newest frame; None at the end or once `stop` is set.

        Raises
        ------
        CameraError
            When a live source broke or gave nothing for too long.
        """
        waited_s = 0.0
        warned = False
        while not stop.is_set():
            frame = self._slot.take(_POLL_S)
            if frame is not None:
                return frame
            if self._slot.finished:
                return None
            waited_s += _POLL_S
            if self._source.live and waited_s > self._stall_error_s:
                raise CameraError(
                    f"{self._source.name}: no frame for {self._stall_error_s:g} s; "
                    "check the cable or the stream"
                )
            if self._source.live and waited_s > STALL_WARNING_S and not warned:
                warned = True
                _log.warning("%s: the camera stalls", self._source.name)
        return None

    def close(self) -> None:
        """Stop the thread and close the source."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_S)
            if self._thread.is_alive():
                # Blocked in a driver: releasing under its feet would crash, and the
                # thread ends with the process.
                return
        self._source.close()
