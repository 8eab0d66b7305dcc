"""Time as an argument: monotonic nanoseconds from an injected clock."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Source of monotonic time."""

    def now_ns(self) -> int:
        """Return the time now, ns, monotonic, arbitrary origin."""

    def sleep_until_ns(self, deadline_ns: int) -> None:
        """Return at `deadline_ns` or at once when that is past."""

    def patience_s(self, deadline_ns: int) -> float | None:
        """Return how long to wait for another thread, which ends at `deadline_ns`.

        None for as long as it takes: where time passes only by what is computed here.
        """


class MonotonicClock:
    """The machine's monotonic clock (CLOCK_MONOTONIC on Linux, as V4L2 stamps)."""

    def now_ns(self) -> int:
        """Return CLOCK_MONOTONIC, ns."""
        return time.monotonic_ns()

    def sleep_until_ns(self, deadline_ns: int) -> None:
        """Sleep until `deadline_ns`."""
        remaining_ns = deadline_ns - time.monotonic_ns()
        if remaining_ns > 0:
            time.sleep(remaining_ns * 1e-9)

    def patience_s(self, deadline_ns: int) -> float:
        """Return the time until `deadline_ns`, or 0."""
        return max(0.0, (deadline_ns - time.monotonic_ns()) * 1e-9)


class ManualClock:
    """A clock that moves only when told, for tests and replay.

    Parameters
    ----------
    start_ns : int
        Its first reading.
    """

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        """Return the reading, ns."""
        return self._now_ns

    def advance_ns(self, delta_ns: int) -> None:
        """Move forward by `delta_ns` >= 0."""
        if delta_ns < 0:
            raise ValueError(
                f"{delta_ns=} must be >= 0: a monotonic clock never steps back"
            )
        self._now_ns += delta_ns

    def sleep_until_ns(self, deadline_ns: int) -> None:
        """Jump to `deadline_ns` when it is ahead."""
        self._now_ns = max(self._now_ns, deadline_ns)

    def patience_s(self, deadline_ns: int) -> None:
        """Return None: this clock does not move while another thread works."""
