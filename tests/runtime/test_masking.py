"""The masks of frames: a network that runs when there is time, and its last mask."""

from __future__ import annotations

import numpy as np
import pytest

from edgeloc.clock import ManualClock
from edgeloc.errors import ModelError
from edgeloc.runtime.masking import STAGE, FrameMasks
from edgeloc.runtime.stage_timer import StageTimer
from edgeloc.types import Frame

MS = 1_000_000
COST_NS = 20 * MS


class Slow:
    """Masks a column per call, and takes its time."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.calls = 0
        self.broken = False

    def keep_mask(self, image: np.ndarray) -> np.ndarray:
        self.calls += 1
        self.clock.advance_ns(COST_NS)
        if self.broken:
            raise ModelError("it broke")
        mask = np.full(image.shape[:2], 255, np.uint8)
        mask[:, 10 + self.calls] = 0
        return mask


def frame(ms: int) -> Frame:
    return Frame(
        frame_id=ms,
        camera_id="",
        timestamp_ns=ms * MS,
        image=np.zeros((20, 60), np.uint8),
    )


class Rig:
    def __init__(self, *, cold: bool = False, static: np.ndarray | None = None) -> None:
        self.clock = ManualClock()
        self.segmenter = Slow(self.clock)
        self.timer = StageTimer(self.clock)
        self.masks = FrameMasks(
            static, self.segmenter, clock=self.clock, cold=cold, margin_px=1
        )

    def at(self, ms: int, *, spare_ms: float) -> np.ndarray | None:
        self.timer.start_frame()
        mask = self.masks.mask(frame(ms), self.timer, spare_ns=round(spare_ms * MS))
        self.timer.end_frame()
        return mask


def ignored(mask: np.ndarray | None) -> list[int]:
    assert mask is not None
    return np.flatnonzero(mask[10] == 0).tolist()


def test_a_fresh_mask_serves_and_an_old_one_is_renewed() -> None:
    rig = Rig()
    assert ignored(rig.at(0, spare_ms=100)) == [10, 11, 12]
    assert ignored(rig.at(150, spare_ms=100)) == list(range(4, 19))  # 1 + 6 px
    assert rig.segmenter.calls == 1
    assert ignored(rig.at(201, spare_ms=100)) == [11, 12, 13]
    assert rig.segmenter.calls == 2
    assert rig.timer.stage_ns[STAGE] == COST_NS


def test_without_time_the_last_mask_serves_and_then_none() -> None:
    rig = Rig()
    rig.at(0, spare_ms=100)
    assert 11 in ignored(rig.at(900, spare_ms=19))
    assert rig.at(1100, spare_ms=10) is None
    assert rig.segmenter.calls == 1
    assert rig.at(1200, spare_ms=21) is not None
    assert rig.segmenter.calls == 2


def test_what_never_fits_is_tried_again_some_day() -> None:
    """One slow run must not keep the network off for good."""
    rig = Rig()
    rig.at(0, spare_ms=100)
    for k in range(1, 40):
        rig.at(1000 * k, spare_ms=15)
    assert rig.segmenter.calls > 1


def test_cold_frames_have_masks_of_their_own() -> None:
    rig = Rig(cold=True)
    for k in range(3):
        assert ignored(rig.at(k, spare_ms=0)) == [10 + k, 11 + k, 12 + k]


def test_a_network_that_fails_costs_its_mask_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    static = np.full((20, 60), 255, np.uint8)
    static[:, 50] = 0
    rig = Rig(static=static)
    assert ignored(rig.at(0, spare_ms=100)) == [10, 11, 12, 49, 50, 51]
    rig.segmenter.broken = True
    assert ignored(rig.at(500, spare_ms=100)) == [49, 50, 51]
    assert "--segmenter: it broke" in caplog.text
    rig.segmenter.broken = False
    assert ignored(rig.at(501, spare_ms=100)) == [12, 13, 14, 49, 50, 51]
    rig.masks.forget()
    assert ignored(rig.at(502, spare_ms=0)) == [49, 50, 51]


def test_a_static_mask_alone() -> None:
    clock = ManualClock()
    static = np.full((20, 60), 255, np.uint8)
    static[:, 30] = 0
    masks = FrameMasks(static, None, clock=clock, margin_px=2)
    mask = masks.mask(frame(0), StageTimer(clock), spare_ns=0)
    assert ignored(mask) == [28, 29, 30, 31, 32]
    none = FrameMasks(None, None, clock=clock)
    assert none.mask(frame(0), StageTimer(clock), spare_ns=0) is None
