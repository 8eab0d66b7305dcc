"""Values by time, as measurements of a sensor come."""

from __future__ import annotations

import bisect
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


class Series(Generic[_Value]):
    """Values by time, some seconds of them.

    Parameters
    ----------
    keep_ns : int or None
        How long; None = for ever.
    """

    def __init__(self, *, keep_ns: int | None) -> None:
        self._keep_ns = keep_ns
        self._times: list[int] = []
        self._values: list[_Value] = []

    def add(self, timestamp_ns: int, value: _Value) -> None:
        """Take a value, mostly the newest."""
        at = bisect.bisect_right(self._times, timestamp_ns)
        self._times.insert(at, timestamp_ns)
        self._values.insert(at, value)
        if self._keep_ns is not None:
            gone = bisect.bisect_left(self._times, self._times[-1] - self._keep_ns)
            del self._times[:gone], self._values[:gone]

    def clear(self) -> None:
        """Forget all."""
        self._times.clear()
        self._values.clear()

    def around(self, timestamp_ns: int, *, max_gap_ns: int) -> list[tuple[int, _Value]]:
        """Return the last before and the first after a time, nearest first.

        Parameters
        ----------
        timestamp_ns : int
            The time.
        max_gap_ns : int
            Those that are further away are left out.
        """
        at = bisect.bisect_right(self._times, timestamp_ns)
        near = [
            (self._times[i], self._values[i])
            for i in (at - 1, at)
            if 0 <= i < len(self._times)
            and abs(self._times[i] - timestamp_ns) <= max_gap_ns
        ]
        return sorted(near, key=lambda item: abs(item[0] - timestamp_ns))

    def covering(self, start_ns: int, end_ns: int) -> list[tuple[int, _Value]]:
        """Return values from the last at or before a time to the first behind another.

        Parameters
        ----------
        start_ns, end_ns : int
            The first may have no value before it, the second none behind it.
        """
        first = max(bisect.bisect_right(self._times, start_ns) - 1, 0)
        last = bisect.bisect_left(self._times, end_ns) + 1
        return list(zip(self._times[first:last], self._values[first:last], strict=True))
