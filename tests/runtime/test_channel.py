"""Shared memory: newest wins, whole values only, whoever dies."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from edgeloc.geometry.se3 import exp_se3
from edgeloc.runtime.channel import (
    HEADER_SLOTS,
    IMAGE_SLOTS,
    Answer,
    Bell,
    Board,
    Cell,
    Line,
    SharedMemory,
    Slot,
    image_bytes,
    wait_for,
)
from edgeloc.runtime.frame_source import UnreadableFrame
from edgeloc.runtime.odometry import Odometry
from edgeloc.runtime.wire import (
    PACKED_BYTES,
    odometry_from_vector,
    odometry_vector,
    pack_estimate,
    unpack_estimate,
)
from edgeloc.types import Cause, Frame, PoseEstimate, PoseStatus, Rung

SIZE = (8, 6)


@pytest.fixture
def line():
    fds = Line.create_fds()
    line = Line.from_fds(fds)
    os.ftruncate(line.image_fd, image_bytes(SIZE))
    line.attach_images(SIZE)
    yield line
    for fd in set(fds):
        os.close(fd)


def frame_of(number, *, grey=False):
    shape = (6, 8) if grey else (6, 8, 3)
    return Frame(
        frame_id=900 + number,
        camera_id="0",
        timestamp_ns=number,
        image=np.full(shape, number % 256, np.uint8),
        source=f"{number}.png",
    )


def put(board, number, **kind):
    return board.frames.put(
        frame_of(number, **kind), timestamp_ns=10 * number, arrival_ns=10 * number + 3
    )


def estimate_of(frame_id, rng, **changes):
    spread = rng.normal(size=(6, 6))
    values = {
        "frame_id": frame_id,
        "timestamp_ns": 2**62 + 1,
        "status": PoseStatus.COARSE,
        "rung": Rung.INTERPOLATE,
        "cause": Cause.AMBIGUOUS,
        "cam_from_world": exp_se3(rng.normal(size=6)),
        "covariance": spread @ spread.T,
        "num_matches": 7,
        "num_inliers": 5,
        "reproj_rmse_px": 0.25,
        "latency_ns": 12_345_678,
        "deadline_met": False,
        "stage_ns": {"features": 123, "match_pnp": 456},
        "map_id": "m",
    }
    return PoseEstimate(**{**values, **changes})


def assert_same(a, b):
    for name in PoseEstimate.__dataclass_fields__:
        if name not in {"cam_from_world", "covariance"}:
            assert getattr(a, name) == getattr(b, name), name
    if a.cam_from_world is None:
        assert b.cam_from_world is None
        return
    assert np.array_equal(a.cam_from_world.R, b.cam_from_world.R)
    assert np.array_equal(a.cam_from_world.t, b.cam_from_world.t)
    assert np.array_equal(a.covariance, b.covariance)


def lost(frame_id):
    return PoseEstimate(
        frame_id=frame_id,
        timestamp_ns=1,
        status=PoseStatus.LOST,
        rung=Rung.LOST,
        cause=Cause.DEADLINE,
        cam_from_world=None,
        covariance=None,
        map_id="m",
    )


def test_packed_estimate_comes_back_bit_for_bit(rng):
    for estimate in (estimate_of(3, rng), lost(4)):
        packed = pack_estimate(estimate)
        assert len(packed) == PACKED_BYTES
        assert_same(unpack_estimate(packed, map_id="m"), estimate)


def test_packing_bounds_what_has_no_bound(rng):
    stages = {f"{'stage' * 10}{idx}": idx for idx in range(30)}
    packed = pack_estimate(estimate_of(3, rng, stage_ns=stages))
    assert len(packed) == PACKED_BYTES
    assert len(unpack_estimate(packed, map_id="m").stage_ns) <= 16


def test_odometry_comes_back_bit_for_bit(rng):
    odometry = Odometry(
        timestamp_ns=9_007_199_254_740_993,  # 2^53 + 1
        cam_from_odom=exp_se3(rng.normal(size=6)),
        map_from_odom=exp_se3(rng.normal(size=6)),
    )
    back = odometry_from_vector(odometry_vector(odometry))
    assert back.timestamp_ns == odometry.timestamp_ns
    assert np.array_equal(back.cam_from_odom.R, odometry.cam_from_odom.R)
    assert np.array_equal(back.map_from_odom.t, odometry.map_from_odom.t)
    assert odometry_vector(None) is None


def test_slot_gives_the_newest_whole_value():
    slot = Slot(memoryview(bytearray(Slot.bytes_for(10))), 10)
    assert slot.get() is None
    for value in (b"one", b"", b"0123456789"):
        slot.put(value)
        assert slot.get() == value
    assert slot.version == 3
    with pytest.raises(ValueError, match="more than 10"):
        slot.put(b"0123456789a")


def test_writer_that_dies_halfway_leaves_the_last_value_and_a_successor_goes_on():
    memory = memoryview(bytearray(Slot.bytes_for(8)))
    slot = Slot(memory, 8)
    slot.put(b"whole")
    # What a writer does before it counts: fill the other area.
    next_area = slot._areas[(slot.version + 1) % 2]
    next_area[:] = b"\xff" * len(next_area)
    assert slot.get() == b"whole"
    successor = Slot(memory, 8)
    successor.put(b"next")
    assert slot.get() == b"next"


def test_values_are_never_torn():
    """A writer in another process, as fast as it can; each value is of one byte."""
    fd = SharedMemory.create_file(1 << 16)
    script = (
        "import sys\n"
        "from edgeloc.runtime.channel import SharedMemory, Slot\n"
        "slot = Slot(SharedMemory(int(sys.argv[1]), 1 << 16).view, 4000)\n"
        "for number in range(30000): slot.put(bytes([number % 256]) * 4000)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(fd)], pass_fds=[fd])
    slot = Slot(SharedMemory(fd, 1 << 16).view, 4000)
    seen = set()
    while writer.poll() is None or slot.version < 30000:
        value = slot.get()
        if value is not None:
            assert len(set(value)) == 1
            assert len(value) == 4000
            seen.add(value[0])
        if writer.poll() not in {None, 0}:
            pytest.fail("the writer failed")
    os.close(fd)
    assert len(seen) > 10


def test_frames_get_ids_of_their_own_and_their_pictures(line):
    board = line.board
    for number in range(3):
        assert put(board, number, grey=number == 1) == number
    assert board.frames.num_done == 3
    header = board.frames.header(1)
    assert (header.frame_id, header.timestamp_ns, header.arrival_ns) == (1, 10, 13)
    assert (header.source, header.readable, header.grey) == ("1.png", True, True)
    frame = board.frames.picture(header, camera_id="7")
    assert (frame.frame_id, frame.camera_id, frame.timestamp_ns) == (1, "7", 10)
    assert frame.image.shape == (6, 8)
    assert np.all(frame.image == 1)
    other = board.frames.picture(board.frames.header(2), camera_id="7")
    assert other.image.shape == (6, 8, 3)


def test_picture_is_a_copy(line):
    put(line.board, 1)
    frame = line.board.frames.picture(line.board.frames.header(0), camera_id="0")
    for number in range(2, 9):
        put(line.board, number)
    assert np.all(frame.image == 1)


def test_overwritten_pictures_and_headers_are_not_given(line):
    board = line.board
    for number in range(IMAGE_SLOTS + 1):
        put(board, number)
    assert board.frames.picture(board.frames.header(0), camera_id="0") is None
    assert board.frames.picture(board.frames.header(1), camera_id="0") is not None
    for number in range(HEADER_SLOTS):
        put(board, number)
    assert board.frames.header(IMAGE_SLOTS) is None
    assert board.frames.header(IMAGE_SLOTS + 1) is not None


def test_picture_that_is_being_overwritten_is_not_given(line):
    """Capture has begun the frame that takes the place of frame 0."""
    board = line.board
    for number in range(IMAGE_SLOTS):
        put(board, number)
    header = board.frames.header(0)
    assert board.frames.picture(header, camera_id="0") is not None
    board.cells[Cell.FRAMES_STARTED] = IMAGE_SLOTS + 1
    assert board.frames.picture(header, camera_id="0") is None


def test_frame_that_capture_died_in_is_written_again(line):
    board = line.board
    put(board, 0)
    board.cells[Cell.FRAMES_STARTED] = 2
    assert board.frames.num_done == 1
    assert put(board, 5) == 1
    assert board.frames.header(1).source == "5.png"


def test_unreadable_frame_has_a_header_and_a_reason(line):
    long = "/far/away" * 100 + "/x.png is empty"
    frame = UnreadableFrame(
        frame_id=0, camera_id="0", timestamp_ns=5, source="é" * 200, reason=long
    )
    line.board.frames.put(frame, timestamp_ns=5, arrival_ns=6)
    header = line.board.frames.header(0)
    assert not header.readable
    assert header.reason.endswith("/x.png is empty")
    assert len(header.reason.encode()) <= 224
    assert set(header.source) == {"é"}


def test_answers_are_found_by_frame_until_they_are_replaced(line, rng):
    candidates = line.board.candidates
    assert candidates.get(3, map_id="m") is None
    candidates.put(3, Answer(estimate=estimate_of(3, rng), final=False))
    better = estimate_of(3, rng, rung=Rung.RELOCALIZE, status=PoseStatus.LOCALIZED)
    candidates.put(3, Answer(estimate=better, final=True))
    found = candidates.get(3, map_id="m")
    assert found.final
    assert_same(found.estimate, better)
    assert candidates.get(4, map_id="m") is None
    candidates.put(3 + 64, Answer(estimate=lost(67), final=True))
    assert candidates.get(3, map_id="m") is None


def test_motion_may_become_unknown_again(line):
    motion = line.board.motion
    assert motion.get() is None
    motion.put(np.arange(5.0))
    assert motion.get().tolist() == [0, 1, 2, 3, 4]
    motion.put(None)
    assert motion.get() is None
    assert motion.version == 2


def test_bell_wakes_and_never_blocks():
    bell = Bell.create()
    assert wait_for([bell], 0) == []
    threading.Timer(0.05, bell.ring).start()
    start_s = time.monotonic()
    assert wait_for([bell], 10) == [bell]
    assert time.monotonic() - start_s < 5
    for _ in range(100_000):
        bell.ring()
    bell.clear()
    assert wait_for([bell], 0) == []
    bell.close()


def test_bell_without_eventfd(monkeypatch):
    monkeypatch.delattr(os, "eventfd", raising=False)
    bell = Bell.create()
    for _ in range(100_000):  # more than a pipe holds
        bell.ring()
    assert wait_for([bell], 0) == [bell]
    for _ in range(200):
        bell.clear()
    assert wait_for([bell], 0) == []
    bell.close()


def test_memory_without_memfd(monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    fd = SharedMemory.create_file(Board.BYTES)
    one, two = (Board(SharedMemory(fd, Board.BYTES)) for _ in range(2))
    one.cells[Cell.NUM_STEPS] = 7
    assert two.cells[Cell.NUM_STEPS] == 7
    os.close(fd)
