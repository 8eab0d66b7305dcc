"""One line on a terminal that shows how a run does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import IO

from edgeloc.clock import Clock

_EVERY_NS = 500_000_000

CLEAR_LINE = "\r\x1b[2K"
"""Back to the first column, and nothing left of what stood there."""


class StatusLine:
    """One line on a terminal that is written over and over.

    Parameters
    ----------
    stream : file
        Written to only if it is a terminal.
    clock : Clock
        For the rate: twice a second at most.
    text : callable
        Returns the line.
    """

    def __init__(
        self, stream: IO[str], *, clock: Clock, text: Callable[[], str]
    ) -> None:
        self._stream = stream if stream.isatty() else None
        self._clock = clock
        self._text = text
        self._last_ns: int | None = None

    def tick(self) -> None:
        """Write the line when it is time."""
        if self._stream is None:
            return
        now_ns = self._clock.now_ns()
        if self._last_ns is None or now_ns - self._last_ns >= _EVERY_NS:
            self._last_ns = now_ns
            # A line that wraps could not be written over.
            text = self._text()[: shutil.get_terminal_size().columns - 1]
            self._write(CLEAR_LINE + text)

    def close(self) -> None:
        """Clear the line, if there is one."""
        if self._last_ns is not None:
            self._write(CLEAR_LINE)
            self._last_ns = None

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            # The terminal was closed; the run may well go on without it.
            self._stream = None
