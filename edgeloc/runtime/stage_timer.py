"""What each stage of a frame takes, and what it will probably take next time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgeloc.clock import Clock

_DECAY = 0.95
"""Of the remembered worst case, per frame."""


class StageTimer:
    """Times stages, which may be nested: time counts for the innermost one.

    Parameters
    ----------
    clock : Clock
        What tells the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._cost_ns: dict[str, float] = {}
        self._running: list[str] = []
        self._mark_ns = 0
        self.stage_ns: dict[str, int] = {}

    def start_frame(self) -> None:
        """Forget the times of the last frame, but not what they teach."""
        self.stage_ns = {}

    def end_frame(self) -> None:
        """Learn from the frame: the worst time of each stage, slowly forgotten."""
        for name, spent_ns in self.stage_ns.items():
            remembered_ns = _DECAY * self._cost_ns.get(name, 0.0)
            self._cost_ns[name] = max(float(spent_ns), remembered_ns)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside the ``with`` block as stage `name`."""
        self._charge()
        self._running.append(name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def _charge(self) -> None:
        now_ns = self._clock.now_ns()
        if self._running:
            name = self._running[-1]
            self.stage_ns[name] = self.stage_ns.get(name, 0) + now_ns - self._mark_ns
        self._mark_ns = now_ns

    def cost_ns(self, *names: str) -> int:
        """Return what stages together are expected to cost; 0 before they ran."""
        return int(sum(self._cost_ns.get(name, 0.0) for name in names))

    def forget_a_little(self, *names: str) -> None:
        """Let stages that were skipped become affordable again."""
        for name in names:
            if name in self._cost_ns:
                self._cost_ns[name] *= _DECAY
