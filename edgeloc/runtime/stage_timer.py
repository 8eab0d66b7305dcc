"""What each stage of a frame takes, and what it will probably take next time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from edgeloc.clock import Clock

_WINDOW = 40
"""Frames remembered. Up to 20 of them, the expected cost is the worst of them; of 40
the second worst, so that a hiccup in forty frames changes nothing."""
_QUANTILE = 0.95
_FORGET = 0.95
"""Of an expected cost, per frame in which it kept the stage from running."""


class StageTimer:
    """Times stages, which may be nested: time counts for the innermost one.

    Parameters
    ----------
    clock : Clock
        What tells the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.forget()

    def forget(self) -> None:
        """Forget all that was timed."""
        self._seen_ns: dict[tuple[str, int], deque[float]] = {}
        self._provisional: set[tuple[str, int]] = set()
        self._running: list[str] = []
        self._settings: dict[str, int] = {}
        self._mark_ns = 0
        self.stage_ns: dict[str, int] = {}

    def start_frame(self) -> None:
        """Forget the times of the last frame, but not what they teach."""
        self.stage_ns = {}
        self._settings = {}

    def end_frame(self) -> None:
        """Learn from the frame."""
        for name, spent_ns in self.stage_ns.items():
            key = name, self._settings.get(name, 0)
            if key in self._provisional:
                self._provisional.remove(key)
                self._seen_ns[key].clear()
            seen = self._seen_ns.setdefault(key, deque(maxlen=_WINDOW))
            seen.append(float(spent_ns))

    def call_provisional(self) -> None:
        """Forget what is known of each stage as soon as it runs again.

        For what was measured without real frames.
        """
        self._provisional.update(self._seen_ns)

    @contextmanager
    def stage(self, name: str, *, setting: int = 0) -> Iterator[None]:
        """Count the time inside the ``with`` block as stage `name`.

        Parameters
        ----------
        name : str
            The stage.
        setting : int
            How far knobs were turned down, see `edgeloc.runtime.ladder`; each setting
            has a cost of its own.
        """
        self._charge()
        self._settings[name] = setting
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

    def cost_ns(self, stage: str, /, *, setting: int = 0, share: float = 1.0) -> int:
        """Return what a stage is expected to cost: the 95 % quantile; 0 before it ran.

        Parameters
        ----------
        stage : str
            The stage.
        setting : int
            How far knobs are turned down.
        share : float
            What that is probably worth of the full cost, before it was tried.
        """
        seen = self._seen_ns.get((stage, setting))
        if seen:
            ordered = sorted(seen)
            return int(ordered[min(int(_QUANTILE * len(ordered)), len(ordered) - 1)])
        return 0 if setting == 0 else int(share * self.cost_ns(stage))

    def forget_a_little(self, *names: str) -> None:
        """Let stages that were skipped become affordable again."""
        for (name, _), seen in self._seen_ns.items():
            if name in names:
                for idx in range(len(seen)):
                    seen[idx] *= _FORGET
