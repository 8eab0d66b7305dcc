"""The capture process without a process: times, pace, a camera that comes back."""

from __future__ import annotations

import os

import numpy as np
import pytest

from edgeloc.clock import ManualClock
from edgeloc.errors import CameraError
from edgeloc.runtime import capture_process
from edgeloc.runtime.capture_process import MAX_AGE_NS, AheadReader, Capture, Stamper
from edgeloc.runtime.channel import Cell, Line, image_bytes
from edgeloc.types import Frame

MS = 1_000_000
SIZE = (4, 4)


class ListSource:
    """Gives what is listed; a live one takes `cost_ns` for each."""

    name = "list"
    fps = 10.0
    size = SIZE

    def __init__(self, items, *, live, clock=None, cost_ns=0):
        self.items = list(items)
        self.live = live
        self.clock = clock
        self.cost_ns = cost_ns
        self.closed = False

    def read(self):
        if self.clock is not None:
            self.clock.advance_ns(self.cost_ns)
        item = self.items.pop(0) if self.items else None
        if isinstance(item, Exception):
            raise item
        return item

    def close(self):
        self.closed = True


def frame_of(timestamp_ns, *, size=SIZE):
    return Frame(
        frame_id=0,
        camera_id="0",
        timestamp_ns=timestamp_ns,
        image=np.zeros((size[1], size[0]), np.uint8),
    )


@pytest.fixture
def line():
    fds = Line.create_fds()
    line = Line.from_fds(fds)
    os.ftruncate(line.image_fd, image_bytes(SIZE))
    line.attach_images(SIZE)
    yield line
    for fd in set(fds):
        os.close(fd)


def capture(line, source, clock, *, reopen=None, stopping=lambda: False):
    return Capture(
        source,
        line.board,
        bells=(line.frame_for_publisher,),
        clock=clock,
        budget_ns=33 * MS,
        reopen=reopen,
        stopping=stopping,
    )


def times(line):
    return [
        line.board.frames.header(idx).timestamp_ns
        for idx in range(line.board.frames.num_done)
    ]


def test_times_of_a_live_camera_stay_on_this_clock_and_increase():
    stamper = Stamper(live=True)
    now_ns = 10 * MAX_AGE_NS
    assert stamper.stamp(now_ns - 5, now_ns=now_ns) == now_ns - 5
    assert stamper.stamp(now_ns - 5, now_ns=now_ns + 1) == now_ns - 4, "a duplicate"
    assert stamper.stamp(now_ns - 99, now_ns=now_ns + 2) == now_ns - 3, "a step back"
    assert stamper.stamp(now_ns + 50, now_ns=now_ns + 3) == now_ns + 3, "the future"
    assert stamper.stamp(7, now_ns=now_ns + 9) == now_ns + 9, "long ago"
    assert stamper.num_restamped == 4


def test_times_of_a_recording_only_increase():
    stamper = Stamper(live=False)
    given = [5, 5, 3, 10**15, 6]
    assert [stamper.stamp(t, now_ns=0) for t in given] == [
        5,
        6,
        7,
        10**15,
        10**15 + 1,
    ]


def test_stamps_go_on_after_a_restart(line):
    clock = ManualClock(100 * MS)
    source = ListSource([frame_of(100 * MS), None], live=True)
    capture(line, source, clock).run()
    again = ListSource([frame_of(99 * MS), None], live=True)
    capture(line, again, clock).run()
    assert times(line) == [100 * MS, 100 * MS + 1]


def test_recording_is_delivered_at_its_times_from_now_on(line):
    clock = ManualClock(1000 * MS)
    source = ListSource([frame_of(k * 40 * MS) for k in range(4)], live=False)
    capture(line, source, clock).run()
    assert times(line) == [(1000 + 40 * k) * MS for k in range(4)]
    arrivals = [line.board.frames.header(k).arrival_ns for k in range(4)]
    assert arrivals == times(line)


def test_recording_that_cannot_be_decoded_in_time_plays_slower(line, caplog):
    """Frames would otherwise be older than their budget before anybody sees them."""
    clock = ManualClock(1000 * MS)
    source = ListSource([frame_of(k * 10 * MS) for k in range(50)], live=False)
    put = line.board.frames.put

    def slow_put(frame, **times):
        clock.advance_ns(40 * MS)
        return put(frame, **times)

    line.board.frames.put = slow_put
    capture(line, source, clock).run()
    headers = [line.board.frames.header(k) for k in range(50)]
    assert max(h.arrival_ns - h.timestamp_ns for h in headers) <= 33 * MS
    assert caplog.text.count("it plays slower") == 1


def test_frame_of_another_size_is_unreadable(line, caplog):
    source = ListSource([frame_of(5, size=(8, 4)), None], live=True)
    capture(line, source, ManualClock(5)).run()
    assert line.board.frames.header(0).reason.endswith("the camera model is for 4x4")
    assert line.board.cells[Cell.NUM_UNREADABLE] == 1


def test_broken_camera_is_opened_again_with_growing_pauses(line, caplog):
    clock = ManualClock(1000 * MS)
    tries_ns = []

    def reopen():
        tries_ns.append(clock.now_ns())
        if len(tries_ns) < 6:
            raise CameraError("still broken")
        return ListSource([frame_of(clock.now_ns()), None], live=True)

    broken = ListSource([frame_of(1000 * MS), CameraError("unplugged")], live=True)
    capture(line, broken, clock, reopen=reopen).run()
    pauses = np.diff([1000 * MS, *tries_ns]) / MS
    assert np.allclose(pauses, [250, 500, 1000, 2000, 2000, 2000])
    assert broken.closed
    assert len(times(line)) == 2
    assert line.board.cells[Cell.NUM_REOPENED] == 1
    assert caplog.text.count("unplugged; opening it again") == 1


def test_stop_ends_the_wait_for_a_camera(line):
    clock = ManualClock(0)
    capture(
        line,
        ListSource([CameraError("unplugged")], live=True),
        clock,
        stopping=lambda: clock.now_ns() > 100 * MS,
    ).run()
    assert clock.now_ns() < 200 * MS


def test_no_frame_is_delivered_after_a_stop(line):
    answers = iter([False, True, True])
    source = ListSource([frame_of(1), frame_of(2)], live=True)
    capture(line, source, ManualClock(9), stopping=lambda: next(answers)).run()
    assert times(line) == []


def test_decoding_ahead_keeps_the_order_and_the_end():
    reader = AheadReader(ListSource([frame_of(k) for k in range(40)], live=False))
    reader.fill()
    got = [frame.timestamp_ns for frame in iter(reader.read, None)]
    assert got == list(range(40))
    reader.close()


def test_decoding_ahead_passes_errors_on():
    items = [frame_of(0), CameraError("list: broken file")]
    reader = AheadReader(ListSource(items, live=False))
    assert reader.read().timestamp_ns == 0
    with pytest.raises(CameraError, match="broken file"):
        reader.read()
    reader.close()


def test_large_pictures_are_decoded_less_far_ahead(monkeypatch):
    monkeypatch.setattr(capture_process, "_AHEAD_BYTES", 3 * 4 * 4 * 5)
    source = ListSource([frame_of(k) for k in range(40)], live=False)
    reader = AheadReader(source)
    reader.fill()
    assert len(source.items) in {40 - 5, 40 - 6}, "five kept, one in hand"
    reader.close()
