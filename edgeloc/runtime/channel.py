"""Shared memory between the processes of a run: newest wins, and nothing locks.

One process writes each part and others read it. A part has two areas, which the writer
fills in turn; a counter says which one is whole. So a writer that dies halfway leaves
the last whole value behind, readers never wait for anybody, and a new writer goes on
where the dead one stopped.

The memory has no name: it belongs to the processes that hold its file descriptor and
is gone with the last of them, whatever ends them.
"""

from __future__ import annotations

import contextlib
import enum
import mmap
import os
import platform
import select
import struct
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgeloc.runtime.frame_source import AnyFrame, UnreadableFrame
from edgeloc.runtime.wire import PACKED_BYTES, pack_estimate, unpack_estimate
from edgeloc.types import ByteArray, FloatArray, Frame, PoseEstimate

HEADER_SLOTS = 256
"""Frames that the publisher may lag behind before it misses one: 8 s at 30 Hz."""

IMAGE_SLOTS = 4
"""Pictures kept, so that one can be read while newer ones are written."""

_ESTIMATE_SLOTS = 64
_EMITTED_SLOTS = 256
_VECTOR_BYTES = 4096
_CELL_BYTES = 8

# x86 keeps the order of stores and that of loads; other processors may not.
_KEEPS_ORDER = platform.machine().lower() in {"x86_64", "amd64", "i386", "i686"}
_fence_lock = threading.Lock()


def fence() -> None:
    """Keep memory accesses before this before those after it.

    Python has no barrier, but a lock is one in each direction: what comes before the
    first release stays before the second acquire, and what comes after it, after.
    """
    if not _KEEPS_ORDER:
        with _fence_lock:
            pass
        with _fence_lock:
            pass


class SharedMemory:
    """Memory without a name, shared by whoever holds its file descriptor.

    Parameters
    ----------
    fd : int
        Open file of at least `size` bytes; stays open.
    size : int
        Bytes to map.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._map = mmap.mmap(fd, size)
        self.view = memoryview(self._map)

    @staticmethod
    def create_file(size: int = 0) -> int:
        """Return the descriptor of new memory; `os.ftruncate` gives it another size."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("edgeloc")
        else:
            fd, path = tempfile.mkstemp(prefix="edgeloc-")
            os.unlink(path)  # noqa: PTH108 - a bare descriptor, there is no Path
        os.ftruncate(fd, size)
        return fd

    def close(self) -> None:
        """Unmap, unless arrays still look at it: then it goes with them."""
        with contextlib.suppress(BufferError):
            self.view.release()
            self._map.close()


class Bell:
    """Wakes another process; ringing twice before it looks counts once.

    Parameters
    ----------
    fds : (int, int)
        Where to wait and where to ring; the same for an eventfd.
    """

    def __init__(self, fds: Sequence[int]) -> None:
        self.fds = (fds[0], fds[1])

    @staticmethod
    def create() -> Bell:
        """Return a new bell."""
        if hasattr(os, "eventfd"):
            fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            return Bell((fd, fd))
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        return Bell((reader, writer))

    def fileno(self) -> int:
        """Return what `select.select` waits for."""
        return self.fds[0]

    def ring(self) -> None:
        """Wake the other side; never blocks."""
        with contextlib.suppress(BlockingIOError):
            os.write(self.fds[1], b"\x01\0\0\0\0\0\0\0")

    def clear(self) -> None:
        """Forget the ringing so far."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fds[0], 4096)

    def close(self) -> None:
        """Close the descriptors."""
        for fd in set(self.fds):
            os.close(fd)


class Waitable(Protocol):
    """What can be waited for."""

    def fileno(self) -> int:
        """Return the descriptor."""


def wait_for(readable: Sequence[Waitable], timeout_s: float) -> list[Waitable]:
    """Return which of `readable` (with ``fileno()``) are, at once or in time."""
    ready, _, _ = select.select(readable, (), (), max(timeout_s, 0.0))
    return ready


class Cell(enum.IntEnum):
    """The counters of a run, each with one writer; 0 at the start."""

    # Written by capture.
    FRAMES_STARTED = 0
    FRAMES_DONE = enum.auto()
    CAPTURE_ENDED = enum.auto()
    CAPTURE_BEAT_NS = enum.auto()
    NUM_RESTAMPED = enum.auto()
    NUM_REOPENED = enum.auto()
    NUM_UNREADABLE = enum.auto()
    # Written by the estimator.
    STEP_START_NS = enum.auto()
    LONGEST_STEP_NS = enum.auto()
    NUM_STEPS = enum.auto()
    NUM_SKIPPED = enum.auto()
    NUM_STALE = enum.auto()
    NUM_SETTLED = enum.auto()  # newest frame with a final answer, plus 1
    # Written by the publisher.
    NUM_PUBLISHED = enum.auto()
    NUM_LATE_FIXES = enum.auto()
    PUBLISHER_MARGIN_NS = enum.auto()
    # Written by the supervisor.
    ESTIMATOR_UP = enum.auto()
    STOP_NS = enum.auto()
    NUM_RESTARTS = enum.auto()


class Cells:
    """Counters in shared memory, unsigned and 64 bits wide: never seen half-written."""

    BYTES = _CELL_BYTES * len(Cell)

    def __init__(self, view: memoryview) -> None:
        self._cells = view[: self.BYTES].cast("Q")

    def __getitem__(self, cell: Cell) -> int:
        return self._cells[cell]

    def __setitem__(self, cell: Cell, value: int) -> None:
        self._cells[cell] = value

    def add(self, cell: Cell, count: int = 1) -> None:
        """Count; only for the cell's one writer."""
        self._cells[cell] += count


class Slot:
    """One value of bounded size that is replaced as a whole.

    Parameters
    ----------
    view : memoryview
        `Slot.bytes_for(max_bytes)` bytes, aligned to 8.
    max_bytes : int
        Largest value.
    """

    def __init__(self, view: memoryview, max_bytes: int) -> None:
        self._head = view[:_CELL_BYTES].cast("Q")
        area = _CELL_BYTES + _round_up(max_bytes)
        self._areas = tuple(
            view[_CELL_BYTES + idx * area : _CELL_BYTES + (idx + 1) * area]
            for idx in range(2)
        )
        self._max_bytes = max_bytes

    @staticmethod
    def bytes_for(max_bytes: int) -> int:
        """Return how much memory a slot takes."""
        return _CELL_BYTES + 2 * (_CELL_BYTES + _round_up(max_bytes))

    @property
    def version(self) -> int:
        """How many values were put so far."""
        return self._head[0]

    def put(self, value: bytes) -> None:
        """Replace the value; readers see the one before until this is done."""
        if len(value) > self._max_bytes:
            raise ValueError(f"{len(value)=} is more than {self._max_bytes}")
        version = self._head[0] + 1
        area = self._areas[version % 2]
        area[:_CELL_BYTES] = len(value).to_bytes(_CELL_BYTES, "little")
        area[_CELL_BYTES : _CELL_BYTES + len(value)] = value
        fence()
        self._head[0] = version

    def get(self) -> bytes | None:
        """Return the newest whole value, None before the first one."""
        while True:
            version = self._head[0]
            if version == 0:
                return None
            fence()
            area = self._areas[version % 2]
            size = int.from_bytes(area[:_CELL_BYTES], "little")
            value = bytes(area[_CELL_BYTES : _CELL_BYTES + size])
            fence()
            # The writer touches this area again only after the next value is out.
            if self._head[0] == version:
                return value


def _round_up(num_bytes: int) -> int:
    return -(-num_bytes // _CELL_BYTES) * _CELL_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the publisher and the estimator know of a frame without its picture.

    Parameters
    ----------
    frame_id : int
        Counts what capture delivered.
    timestamp_ns, arrival_ns : int
        When the frame was taken, and when it was here.
    reason : str
        Why there is no picture; empty when there is one.
    source : str
        File name or device.
    grey : bool
        Whether the picture has one channel.
    """

    frame_id: int
    timestamp_ns: int
    arrival_ns: int
    reason: str
    source: str
    grey: bool

    @property
    def readable(self) -> bool:
        """Whether there is a picture."""
        return not self.reason


_HEADER = struct.Struct("<qqqI128s224s")
_HEADER_BYTES = _round_up(_HEADER.size)


def _fit(text: str, size: int) -> bytes:
    """Return the end of a text, as file names differ there."""
    return text.encode("utf-8", "replace")[-size:]


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", "replace")


def image_bytes(size: tuple[int, int]) -> int:
    """Return how much memory the pictures of a camera take, width and height in px."""
    return IMAGE_SLOTS * _round_up(3 * size[0] * size[1])


class Frames:
    """Frame headers, and the pictures of the newest ones.

    Parameters
    ----------
    view : memoryview
        Memory of the headers, `Frames.BYTES`.
    cells : Cells
        Where it counts.
    """

    BYTES = HEADER_SLOTS * _HEADER_BYTES

    def __init__(self, view: memoryview, cells: Cells) -> None:
        self._headers = view
        self._cells = cells
        self._images: list[ByteArray] = []
        self._size = (0, 0)

    def attach_images(self, memory: SharedMemory, size: tuple[int, int]) -> None:
        """Use `memory` of `image_bytes` for pictures of `size` (width, height), px."""
        slot = image_bytes(size) // IMAGE_SLOTS
        self._size = size
        self._images = [
            np.frombuffer(memory.view, np.uint8, 3 * size[0] * size[1], idx * slot)
            for idx in range(IMAGE_SLOTS)
        ]

    @property
    def num_done(self) -> int:
        """Frames delivered so far."""
        return self._cells[Cell.FRAMES_DONE]

    def put(self, frame: AnyFrame, *, timestamp_ns: int, arrival_ns: int) -> int:
        """Deliver a frame of the camera's size; return the id that it got here."""
        frame_id = self._cells[Cell.FRAMES_DONE]
        self._cells[Cell.FRAMES_STARTED] = frame_id + 1
        fence()
        reason, grey = "", False
        if isinstance(frame, UnreadableFrame):
            reason = frame.reason or "unreadable"
        else:
            grey = frame.image.ndim == 2
            picture = self._images[frame_id % IMAGE_SLOTS]
            shaped = picture[: frame.image.size].reshape(frame.image.shape)
            np.copyto(shaped, frame.image)
        _HEADER.pack_into(
            self._headers,
            frame_id % HEADER_SLOTS * _HEADER_BYTES,
            frame_id,
            timestamp_ns,
            arrival_ns,
            int(grey),
            _fit(frame.source, 128),
            _fit(reason, 224),
        )
        fence()
        self._cells[Cell.FRAMES_DONE] = frame_id + 1
        return frame_id

    def header(self, frame_id: int) -> Header | None:
        """Return the header of a delivered frame, None when it was overwritten."""
        fence()
        frame, timestamp_ns, arrival_ns, grey, source, reason = _HEADER.unpack_from(
            self._headers, frame_id % HEADER_SLOTS * _HEADER_BYTES
        )
        fence()
        started = self._cells[Cell.FRAMES_STARTED]
        if frame != frame_id or started > frame_id + HEADER_SLOTS:
            return None
        return Header(
            frame_id=frame_id,
            timestamp_ns=timestamp_ns,
            arrival_ns=arrival_ns,
            reason=_text(reason),
            source=_text(source),
            grey=bool(grey),
        )

    def picture(self, header: Header, *, camera_id: str) -> Frame | None:
        """Return a frame with its own copy of the picture, None when overwritten."""
        width, height = self._size
        shape = (height, width) if header.grey else (height, width, 3)
        picture = self._images[header.frame_id % IMAGE_SLOTS]
        image = picture[: int(np.prod(shape))].reshape(shape).copy()
        fence()
        if self._cells[Cell.FRAMES_STARTED] > header.frame_id + IMAGE_SLOTS:
            return None
        return Frame(
            frame_id=header.frame_id,
            camera_id=camera_id,
            timestamp_ns=header.timestamp_ns,
            image=image,
            source=header.source,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A candidate of the estimator for one frame.

    Parameters
    ----------
    estimate : PoseEstimate
        What it is.
    final : bool
        Whether the estimator is done with the frame.
    """

    estimate: PoseEstimate
    final: bool


class Estimates:
    """The newest answer for each of the last frames.

    Parameters
    ----------
    view : memoryview
        Memory, `Estimates.bytes_for(num_slots)`.
    num_slots : int
        How many frames.
    """

    def __init__(self, view: memoryview, num_slots: int) -> None:
        size = Slot.bytes_for(_KEY.size + PACKED_BYTES)
        self._slots = [
            Slot(view[idx * size : (idx + 1) * size], _KEY.size + PACKED_BYTES)
            for idx in range(num_slots)
        ]

    @staticmethod
    def bytes_for(num_slots: int) -> int:
        """Return how much memory it takes."""
        return num_slots * Slot.bytes_for(_KEY.size + PACKED_BYTES)

    def put(self, key: int, answer: Answer) -> None:
        """Replace the answer for `key`: a frame id, or a running number."""
        packed = pack_estimate(answer.estimate)
        self._slots[key % len(self._slots)].put(_KEY.pack(key, answer.final) + packed)

    def version(self, key: int) -> int:
        """Return a number that changes when an answer is put where `key` goes."""
        return self._slots[key % len(self._slots)].version

    def get(self, key: int, *, map_id: str) -> Answer | None:
        """Return the newest answer for `key`, None when there is none (any more)."""
        value = self._slots[key % len(self._slots)].get()
        if value is None:
            return None
        found, final = _KEY.unpack_from(value)
        if found != key:
            return None
        return Answer(
            estimate=unpack_estimate(value[_KEY.size :], map_id=map_id),
            final=bool(final),
        )


_KEY = struct.Struct("<qq")


class VectorSlot:
    """The newest of some state, a vector of float64."""

    BYTES = Slot.bytes_for(_VECTOR_BYTES)

    def __init__(self, view: memoryview) -> None:
        self._slot = Slot(view, _VECTOR_BYTES)

    @property
    def version(self) -> int:
        """How many states were put so far."""
        return self._slot.version

    def put(self, vector: FloatArray | None) -> None:
        """Replace the state; None says that nothing is known."""
        empty = np.zeros(0)
        self._slot.put(np.asarray(empty if vector is None else vector, "<f8").tobytes())

    def get(self) -> FloatArray | None:
        """Return the newest state, None when nothing is known."""
        value = self._slot.get()
        return np.frombuffer(value, "<f8") if value else None


class Board:
    """All that the processes of a run share but the pictures.

    Parameters
    ----------
    memory : SharedMemory
        `Board.BYTES`.
    """

    BYTES = (
        Cells.BYTES
        + Frames.BYTES
        + 2 * VectorSlot.BYTES
        + Estimates.bytes_for(_ESTIMATE_SLOTS)
        + Estimates.bytes_for(_EMITTED_SLOTS)
    )

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        rest = memory.view

        def take(num_bytes: int) -> memoryview:
            nonlocal rest
            part, rest = rest[:num_bytes], rest[num_bytes:]
            return part

        self.cells = Cells(take(Cells.BYTES))
        self.frames = Frames(take(Frames.BYTES), self.cells)
        self.motion = VectorSlot(take(VectorSlot.BYTES))
        self.odometry = VectorSlot(take(VectorSlot.BYTES))
        self.candidates = Estimates(
            take(Estimates.bytes_for(_ESTIMATE_SLOTS)), _ESTIMATE_SLOTS
        )
        self.emitted = Estimates(
            take(Estimates.bytes_for(_EMITTED_SLOTS)), _EMITTED_SLOTS
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a process of a run holds: shared memory and bells.

    Parameters
    ----------
    board : Board
        Everything but pictures.
    image_fd : int
        Memory of the pictures; its size is known once the camera is open.
    frame_for_estimator, frame_for_publisher, answer_for_publisher : Bell
        Who is woken by what.
    """

    board: Board
    image_fd: int
    frame_for_estimator: Bell
    frame_for_publisher: Bell
    answer_for_publisher: Bell

    @staticmethod
    def create_fds() -> tuple[int, ...]:
        """Return the descriptors that all processes of a new run share."""
        bells = [Bell.create().fds for _ in range(3)]
        board_fd = SharedMemory.create_file(Board.BYTES)
        return (board_fd, SharedMemory.create_file(), *(fd for b in bells for fd in b))

    @staticmethod
    def from_fds(fds: Sequence[int]) -> Line:
        """Return the line behind descriptors made by `create_fds`."""
        return Line(
            board=Board(SharedMemory(fds[0], Board.BYTES)),
            image_fd=fds[1],
            frame_for_estimator=Bell(fds[2:4]),
            frame_for_publisher=Bell(fds[4:6]),
            answer_for_publisher=Bell(fds[6:8]),
        )

    def attach_images(self, size: tuple[int, int]) -> None:
        """Map the pictures of a camera with images of `size` (width, height), px."""
        self.board.frames.attach_images(
            SharedMemory(self.image_fd, image_bytes(size)), size
        )
