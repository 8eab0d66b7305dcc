"""Histograms of durations with fixed buckets: bounded memory, cheap to fill."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence

_MANTISSAS = (*range(100, 200, 10), *range(200, 400, 20), *range(400, 1000, 50))
"""Of one decade: steps of 5 to 13 %, with 1, 2 and 5 among them."""

_FIRST_EXPONENT, _LAST_EXPONENT = 2, 9
"""1e2 * 100 ns = 10 µs to 1e9 * 100 ns = 100 s."""

BOUNDS_NS = (
    *(
        mantissa * 10**exponent
        for exponent in range(_FIRST_EXPONENT, _LAST_EXPONENT)
        for mantissa in _MANTISSAS
    ),
    100 * 10**_LAST_EXPONENT,
)
"""Upper bounds of the buckets, inclusive; beyond the last one there is one more."""


class Histogram:
    """Counts durations.

    A quantile is interpolated inside its bucket, so that it is off by a few percent at
    most; the largest value, the sum and the count are exact. `add` takes about a
    microsecond and allocates nothing that stays.
    """

    __slots__ = ("_counts", "count", "max_ns", "sum_ns")

    def __init__(self) -> None:
        self._counts = array("Q", bytes(8 * (len(BOUNDS_NS) + 1)))
        self.count = 0
        self.sum_ns = 0
        self.max_ns = 0

    def add(self, duration_ns: int) -> None:
        """Count one duration; a negative one counts as 0."""
        duration_ns = max(int(duration_ns), 0)
        self._counts[bisect_left(BOUNDS_NS, duration_ns)] += 1
        self.count += 1
        self.sum_ns += duration_ns
        self.max_ns = max(self.max_ns, duration_ns)

    def quantile_ns(self, share: float) -> float:
        """Return the duration that a share of all durations do not exceed; 0 for none.

        Parameters
        ----------
        share : float
            From 0 to 1.
        """
        rank = share * self.count
        below = 0
        for bucket, count in enumerate(self._counts):
            if count and below + count >= rank:
                low = BOUNDS_NS[bucket - 1] if bucket else 0
                high = BOUNDS_NS[bucket] if bucket < len(BOUNDS_NS) else self.max_ns
                inside = low + (high - low) * (rank - below) / count
                return min(inside, float(self.max_ns))
            below += count
        return 0.0

    def cumulative(self, bounds_ns: Sequence[int]) -> list[int]:
        """Return how many durations do not exceed each bound.

        Parameters
        ----------
        bounds_ns : sequence of int
            Ascending, each one of `BOUNDS_NS`.
        """
        out: list[int] = []
        total = start = 0
        for bound_ns in bounds_ns:
            end = bisect_left(BOUNDS_NS, bound_ns) + 1
            total += sum(self._counts[start:end])
            out.append(total)
            start = end
        return out
