"""Writing without waiting: backlogs are bounded, records stay whole, losses counted."""

from __future__ import annotations

import os
import threading

import pytest

from edgeloc.clock import ManualClock
from edgeloc.runtime.outlets import PipeOutlet, ThreadedOutlet, _own_nonblocking


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.set_blocking(reader, False)
    yield reader, writer
    os.close(reader)


def read_all(fd):
    data = b""
    try:
        while part := os.read(fd, 1 << 20):
            data += part
    except BlockingIOError:
        pass
    return data


def line_of(number):
    return f"{number:06d}".encode() + b"x" * 1993 + b"\n"


def test_slow_reader_loses_the_oldest_whole_records(pipe, caplog):
    reader, writer = pipe
    outlet = PipeOutlet(writer, name="p", clock=ManualClock(), backlog=10)
    for number in range(100):
        assert outlet.write(line_of(number))
    assert outlet.blocked_fd == writer
    data = read_all(reader)
    outlet.pump()
    data += read_all(reader)
    assert outlet.blocked_fd is None
    lines = data.splitlines(keepends=True)
    assert all(len(line) == 2000 for line in lines)
    numbers = [int(line[:6]) for line in lines]
    assert numbers == sorted(numbers)
    assert numbers[-10:] == list(range(90, 100))
    assert numbers[:30] == list(range(30)), "what the pipe itself holds"
    assert outlet.num_lost == 100 - len(lines) > 0
    assert len(caplog.messages) == 1, "one line a second, not one a record"
    outlet.close()


def test_reader_that_leaves_is_noticed(pipe):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    outlet = PipeOutlet(writer, name="p", clock=ManualClock())
    assert outlet.write(b"one\n")
    os.close(reader)
    assert not outlet.write(b"two\n")
    assert outlet.blocked_fd is None
    outlet.close()
    outlet.close()
    os.close(pipe[1])


def test_pipe_is_made_non_blocking_for_nobody_else():
    """The mode belongs to the open file, which the shell and others share."""
    reader, writer = os.pipe()
    own = _own_nonblocking(writer)
    assert own is not None
    assert os.get_blocking(writer)
    assert not os.get_blocking(own)
    os.write(own, b"x")
    assert os.read(reader, 1) == b"x"
    for fd in (reader, writer, own):
        os.close(fd)


def test_regular_file_is_not_opened_twice(tmp_path):
    """It would have a second position, and overwrite itself."""
    with (tmp_path / "f").open("wb") as file:
        assert _own_nonblocking(file.fileno()) is None


class SlowFile:
    blocked_fd = None
    num_lost = 0

    def __init__(self):
        self.may_write = threading.Semaphore(0)
        self.written = []
        self.closed = False

    def write(self, data):
        assert self.may_write.acquire(timeout=10)
        self.written.append(data)
        return data != b"last"

    def pump(self):
        pass

    def close(self):
        self.closed = True


def test_slow_disk_keeps_records_in_memory_up_to_a_bound(caplog):
    file = SlowFile()
    outlet = ThreadedOutlet(file, name="f", clock=ManualClock(), backlog=5)
    outlet.write(b"0")
    while outlet._waiting:  # until the thread has it in hand
        pass
    for number in range(1, 11):
        assert outlet.write(str(number).encode())
    assert outlet.num_lost == 5
    file.may_write.release(100)
    outlet.close()
    assert file.written == [b"0", b"6", b"7", b"8", b"9", b"10"]
    assert file.closed


def test_end_of_a_file_reaches_the_caller_later():
    file = SlowFile()
    file.may_write.release(100)
    outlet = ThreadedOutlet(file, name="f", clock=ManualClock())
    outlet.write(b"last")
    while not file.written or not outlet._reader_gone:
        pass
    assert not outlet.write(b"more")
    outlet.close()
