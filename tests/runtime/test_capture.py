"""Newest wins, and losses are counted; no sleeps, events only."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest

from edgeloc.clock import ManualClock
from edgeloc.errors import CameraError, EdgelocError
from edgeloc.runtime import capture
from edgeloc.runtime.capture import DirectFeed, NewestSlot, RealtimeFeed
from edgeloc.types import Frame


def frame_of(frame_id, timestamp_ns=0):
    return Frame(
        frame_id=frame_id,
        camera_id="0",
        timestamp_ns=timestamp_ns,
        image=np.zeros((4, 4), np.uint8),
    )


class ScriptedSource:
    """Gives frames when the test says so; an exception in the script is raised."""

    name = "scripted"
    fps = 10.0
    size = (4, 4)

    def __init__(self, script, *, live):
        self.live = live
        self._script = list(script)
        self.may_read = threading.Semaphore(0 if live else len(self._script) + 1)
        self.asked = threading.Semaphore(0)
        self.closed = False

    def read(self):
        self.asked.release()
        assert self.may_read.acquire(timeout=5)
        item = self._script.pop(0) if self._script else None
        if isinstance(item, Exception):
            raise item
        return item

    def deliver(self, count):
        """Let `count` frames through and wait until all of them are in the slot."""
        for _ in range(count):
            assert self.asked.acquire(timeout=5)
            self.may_read.release()
        assert self.asked.acquire(timeout=5)  # it came back for one more

    def close(self):
        self.closed = True


def test_slot_gives_the_newest_and_counts_the_rest():
    slot = NewestSlot()
    for item in "abc":
        slot.put(item)
    assert slot.take(0) == "c"
    assert slot.num_dropped == 2
    slot.put("d")
    assert slot.take(0) == "d"
    assert slot.num_dropped == 2, "an item that was taken is not lost"


def test_slot_without_an_item_gives_none_and_is_not_finished():
    slot = NewestSlot()
    assert slot.take(0) is None
    assert not slot.finished


def test_closed_slot_still_gives_its_last_item():
    slot = NewestSlot()
    slot.put("last")
    slot.close()
    assert not slot.finished
    assert slot.take(0) == "last"
    assert slot.finished


def test_error_comes_after_the_last_item():
    slot = NewestSlot()
    slot.put("last")
    slot.close(CameraError("unplugged"))
    assert slot.take(0) == "last"
    with pytest.raises(CameraError, match="unplugged"):
        slot.take(0)


def test_put_wakes_a_waiting_taker():
    slot = NewestSlot()
    taken = []
    thread = threading.Thread(target=lambda: taken.append(slot.take(10)))
    thread.start()
    slot.put("now")
    thread.join(5)
    assert taken == ["now"]


def test_forget_drops_what_waits_without_counting_it():
    slot = NewestSlot()
    slot.put("stale")
    slot.put("stale too")
    slot.forget()
    assert slot.take(0) is None
    assert slot.num_dropped == 0


def test_live_feed_skips_what_came_while_the_loop_was_busy():
    source = ScriptedSource([frame_of(idx) for idx in range(6)], live=True)
    feed = RealtimeFeed(source, clock=ManualClock())
    stop = threading.Event()
    source.deliver(2)  # while models are loaded
    feed.begin()
    source.asked.release()
    source.deliver(3)
    assert feed.next(stop).frame_id == 4
    assert feed.num_dropped == 2, "frames 2 and 3; those before begin do not count"
    source.may_read.release(2)
    assert feed.next(stop).frame_id == 5
    assert feed.next(stop) is None
    feed.close()
    assert source.closed


def test_recording_is_delivered_at_its_times():
    clock = ManualClock(100)
    frames = [frame_of(idx, timestamp_ns=1_000 * (idx + 1)) for idx in range(3)]
    source = ScriptedSource(frames, live=False)
    seen_ns = []

    class WatchedSlot(NewestSlot):
        def put(self, item):
            seen_ns.append((item.frame_id, clock.now_ns()))
            super().put(item)

    feed = RealtimeFeed(source, clock=clock)
    feed._slot = WatchedSlot()
    feed.begin()
    last = None
    while (frame := feed.next(threading.Event())) is not None:
        last = frame
    feed.close()
    assert seen_ns == [(0, 1_000), (1, 2_000), (2, 3_000)]
    assert last.frame_id == 2, "the newest is never lost"


def test_recording_is_not_read_before_begin():
    source = ScriptedSource([frame_of(0)], live=False)
    feed = RealtimeFeed(source, clock=ManualClock())
    assert not source.asked.acquire(blocking=False)
    feed.close()
    assert source.closed


def test_broken_camera_is_reported_to_the_loop():
    source = ScriptedSource([CameraError("scripted: unplugged")], live=True)
    feed = RealtimeFeed(source, clock=ManualClock())
    feed.begin()
    source.may_read.release()
    with pytest.raises(CameraError, match="unplugged"):
        feed.next(threading.Event())
    feed.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_bug_in_the_capture_thread_ends_the_run_instead_of_hanging_it():
    source = ScriptedSource([TypeError("bug")], live=True)
    feed = RealtimeFeed(source, clock=ManualClock())
    source.may_read.release()
    with pytest.raises(EdgelocError, match="the capture thread died"):
        feed.next(threading.Event())
    feed.close()


def test_silent_camera_is_warned_about_and_then_an_error(monkeypatch, caplog):
    monkeypatch.setattr(capture, "STALL_WARNING_S", 0.04)
    source = ScriptedSource([None], live=True)
    feed = RealtimeFeed(source, clock=ManualClock(), stall_error_s=0.1)
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(CameraError, match=r"no frame for 0\.1 s"),
    ):
        feed.next(threading.Event())
    assert caplog.messages == ["scripted: the camera stalls"]
    source.may_read.release()
    feed.close()


@pytest.mark.parametrize("live", [True, False])
def test_stop_request_ends_both_feeds(live):
    stop = threading.Event()
    stop.set()
    source = ScriptedSource([frame_of(0)], live=live)
    realtime = RealtimeFeed(source, clock=ManualClock())
    assert realtime.next(stop) is None
    assert DirectFeed(ScriptedSource([frame_of(0)], live=live)).next(stop) is None
    source.may_read.release(2)
    realtime.close()


def test_direct_feed_loses_nothing():
    source = ScriptedSource([frame_of(idx) for idx in range(3)], live=False)
    feed = DirectFeed(source)
    feed.begin()
    stop = threading.Event()
    ids = [frame.frame_id for frame in iter(lambda: feed.next(stop), None)]
    assert ids == [0, 1, 2]
    assert feed.num_dropped == 0
    feed.close()
    assert source.closed
