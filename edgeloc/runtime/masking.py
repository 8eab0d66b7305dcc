"""Which pixels of a frame are left out: the vehicle's own, and what moves by itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from edgeloc.clock import Clock
from edgeloc.errors import ModelError
from edgeloc.features.mask import DEFAULT_MARGIN_PX, joined, with_margin
from edgeloc.runtime.stage_timer import StageTimer
from edgeloc.runtime.telemetry import RepeatedWarning
from edgeloc.types import ByteArray, Frame

_log = logging.getLogger(__name__)

_NS_PER_S = 1_000_000_000
STAGE = "segment"


class Segmenting(Protocol):
    """What tells apart what moves; see `edgeloc.features.segment.Segmenter`."""

    def keep_mask(self, image: ByteArray) -> ByteArray:
        """Return 0 on what is to be ignored, 255 elsewhere, (H, W) uint8."""


class FrameMasks:
    """The masks of frames, one after the other.

    A segmentation network runs in frames that have the time for it; in others its last
    mask serves for a while, with a margin that grows as things move on.

    Parameters
    ----------
    static : ndarray of shape (H, W), uint8, or None
        Of every frame: 0 = ignore.
    segmenter : Segmenting or None
        Finds what moves.
    clock : Clock
        Of warnings.
    cold : bool
        Whether each frame is by itself, and gets a mask of its own.
    margin_px : int
        Around what is ignored.
    refresh_s : float
        A mask is renewed when it is older and there is time.
    max_age_s : float
        An older mask is none.
    drift_px_s : float
        How fast the margin of an old mask grows.

    Attributes
    ----------
    static : ndarray of shape (H, W), uint8, or None
        As it was given, without margin.
    segmenter : Segmenting or None
        As it was given.
    on_segmented : callable or None
        Called with each new mask of the network, None where it failed.
    """

    def __init__(
        self,
        static: ByteArray | None,
        segmenter: Segmenting | None,
        *,
        clock: Clock,
        cold: bool = False,
        margin_px: int = DEFAULT_MARGIN_PX,
        refresh_s: float = 0.2,
        max_age_s: float = 1.0,
        drift_px_s: float = 40.0,
    ) -> None:
        self.static = static
        self.segmenter = segmenter
        self.on_segmented: Callable[[ByteArray | None], None] | None = None
        self._with_margin = None if static is None else with_margin(static, margin_px)
        self._cold = cold
        self._margin_px = margin_px
        self._refresh_s = refresh_s
        self._max_age_s = max_age_s
        self._drift_px_s = drift_px_s
        self._last: tuple[int, ByteArray] | None = None
        self._failures = RepeatedWarning(_log, clock)

    def mask(
        self, frame: Frame, timer: StageTimer, *, spare_ns: int
    ) -> ByteArray | None:
        """Return the mask of a frame, (H, W) uint8, 0 = ignore; None without any.

        Parameters
        ----------
        frame : Frame
            The frame.
        timer : StageTimer
            Knows what a mask costs.
        spare_ns : int
            Time that nothing else of the frame needs.
        """
        if self.segmenter is None:
            return self._with_margin
        if self._is_due(frame.timestamp_ns):
            if self._cold or timer.cost_ns(STAGE) <= spare_ns:
                self._segment(self.segmenter, frame, timer)
            else:
                timer.forget_a_little(STAGE)
        return joined(self._with_margin, self._last_mask(frame.timestamp_ns))

    def forget(self) -> None:
        """Forget the last mask."""
        self._last = None

    def _age_s(self, timestamp_ns: int) -> float:
        if self._last is None:
            return float("inf")
        return abs(timestamp_ns - self._last[0]) / _NS_PER_S

    def _is_due(self, timestamp_ns: int) -> bool:
        return self._cold or self._age_s(timestamp_ns) > self._refresh_s

    def _segment(self, segmenter: Segmenting, frame: Frame, timer: StageTimer) -> None:
        keep: ByteArray | None
        with timer.stage(STAGE):
            try:
                keep = segmenter.keep_mask(frame.image)
            except ModelError as exc:
                # A frame without a mask is worth more than none.
                self._failures.warn(f"--segmenter: {exc}")
                self._last = keep = None
        if self.on_segmented is not None:
            self.on_segmented(keep)
        if keep is not None:
            self._last = frame.timestamp_ns, keep

    def _last_mask(self, timestamp_ns: int) -> ByteArray | None:
        age_s = self._age_s(timestamp_ns)
        if self._last is None or age_s > (0.0 if self._cold else self._max_age_s):
            return None
        margin_px = self._margin_px + round(self._drift_px_s * age_s)
        return with_margin(self._last[1], margin_px)
