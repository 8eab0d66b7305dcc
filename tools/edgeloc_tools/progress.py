"""Progress of long work, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

Progress = Callable[[str, int, int], None]
"""Called with (step, done, total)."""


def silent(step: str, done: int, total: int) -> None:
    """Say nothing."""


class StderrProgress:
    """One line per step on stderr, rewritten in place on a terminal."""

    def __init__(self) -> None:
        self._step = ""
        self._started_s = 0.0
        self._shown_s = 0.0

    def __call__(self, step: str, done: int, total: int) -> None:
        """Show that `done` of `total` are done in `step`."""
        now_s = time.monotonic()
        if step != self._step:
            self._step, self._started_s, self._shown_s = step, now_s, 0.0
        finished = done >= total
        terminal = sys.stderr.isatty()
        interval_s = 0.2 if terminal else 10.0
        if not finished and now_s - self._shown_s < interval_s:
            return
        self._shown_s = now_s
        text = f"{step}: {done}/{total} in {now_s - self._started_s:.1f} s"
        end = "\n" if finished or not terminal else ""
        start = "\r\x1b[K" if terminal else ""
        sys.stderr.write(f"{start}{text}{end}")
        sys.stderr.flush()


def track(
    items: Sequence[T] | Iterable[T], step: str, progress: Progress
) -> Iterator[T]:
    """Yield the items and report each one that is done."""
    sequence = items if isinstance(items, Sequence) else list(items)
    for done, item in enumerate(sequence, start=1):
        yield item
        progress(step, done, len(sequence))
