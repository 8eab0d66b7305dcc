"""Where the bytes of sinks go: directly, or without ever holding the caller up.

A `DirectOutlet` waits for a slow reader, as one process with nothing else to do may. In
the publisher nothing may wait: a pipe or terminal is written without blocking
(`PipeOutlet`), and anything else, where the kernel always blocks, by a thread
(`ThreadedOutlet`). Both keep a bounded backlog of whole records and count what they
must drop: the oldest, as nobody steers by an old pose.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import IO, Protocol

from edgeloc.clock import Clock
from edgeloc.errors import ConfigError
from edgeloc.runtime.telemetry import RepeatedWarning

_log = logging.getLogger(__name__)

PIPE_BACKLOG = 256
"""Records kept for a slow reader, beyond what the pipe itself holds (64 KiB)."""

FILE_BACKLOG = 16384
"""Records kept for a disk that stalls: minutes at 30 Hz, about 20 MiB."""

_CLOSE_WAIT_S = 2.0


class Outlet(Protocol):
    """Takes whole records as bytes."""

    def write(self, data: bytes) -> bool:
        """Pass data on; False when nobody will ever read it."""

    def pump(self) -> None:
        """Go on with what could not be written yet."""

    @property
    def blocked_fd(self) -> int | None:
        """What to wait for before the next `pump`, None when nothing waits."""

    @property
    def num_lost(self) -> int:
        """Records that were dropped."""

    def close(self) -> None:
        """Finish; a second call does nothing."""


class DirectOutlet:
    """Writes at once and waits as long as that takes.

    A full disk is reported and counted, and the run goes on: the pose matters more
    than its record.

    Parameters
    ----------
    fd : int
        Open file.
    name : str
        For messages.
    clock : Clock
        For the rate of warnings.
    owned : bool
        Whether to close it in the end.
    """

    blocked_fd = None

    def __init__(self, fd: int, *, name: str, clock: Clock, owned: bool) -> None:
        self._fd: int | None = fd
        self._name = name
        self._owned = owned
        self._warning = RepeatedWarning(_log, clock)

    @property
    def num_lost(self) -> int:
        """Records that could not be written."""
        return self._warning.count

    def write(self, data: bytes) -> bool:
        """Write everything; False when the reader is gone."""
        if self._fd is None:
            return True
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as exc:
            if exc.errno == errno.EPIPE and not self._owned:
                return False
            self._warning.warn(f"{self._name}: record lost ({exc.strerror or exc})")
        return True

    def pump(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Close the file if it is ours."""
        fd, self._fd = self._fd, None
        if fd is None or not self._owned:
            return
        try:
            os.close(fd)
        except OSError as exc:
            self._warning.warn(f"{self._name}: record lost ({exc.strerror or exc})")


class StdoutOutlet:
    """Standard output of a process that may wait for its reader, as with any pipe.

    Parameters
    ----------
    stream : file
        Stays open.
    """

    blocked_fd = None
    num_lost = 0

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, data: bytes) -> bool:
        """Write; False when nobody reads any more (``| head``)."""
        try:
            self._stream.write(data.decode())
            self._stream.flush()
        except BrokenPipeError:
            # What is still buffered would raise again when Python exits.
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, self._stream.fileno())
            os.close(devnull)
            return False
        return True

    def pump(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do: everything was flushed."""


class PipeOutlet:
    """Writes to a pipe or terminal as much as it takes, and keeps a short backlog.

    Parameters
    ----------
    fd : int
        In non-blocking mode; taken over.
    name : str
        For messages.
    clock : Clock
        For the rate of warnings.
    backlog : int
        Records kept.
    """

    def __init__(
        self, fd: int, *, name: str, clock: Clock, backlog: int = PIPE_BACKLOG
    ) -> None:
        self._fd: int | None = fd
        self._name = name
        self._backlog = backlog
        self._begun = b""  # rest of a record whose beginning is out
        self._waiting: deque[bytes] = deque()
        self._warning = RepeatedWarning(_log, clock)

    @property
    def num_lost(self) -> int:
        """Records that the reader was too slow for."""
        return self._warning.count

    @property
    def blocked_fd(self) -> int | None:
        """The pipe, while something waits for it."""
        return self._fd if self._begun or self._waiting else None

    def write(self, data: bytes) -> bool:
        """Write, or keep for later; False when the reader is gone."""
        if self._fd is None:
            return False
        self._waiting.append(data)
        self.pump()
        if len(self._waiting) > self._backlog:
            self._waiting.popleft()
            self._warning.warn(f"{self._name}: record lost (its reader is too slow)")
        return self._fd is not None

    def pump(self) -> None:
        """Write what goes without waiting."""
        while self._fd is not None and (self._begun or self._waiting):
            data = self._begun or self._waiting.popleft()
            try:
                done = os.write(self._fd, data)
            except BlockingIOError:
                done = 0
            except InterruptedError:
                done = 0
            except OSError as exc:
                if exc.errno not in {errno.EPIPE, errno.EIO, errno.ECONNRESET}:
                    self._warning.warn(
                        f"{self._name}: record lost ({exc.strerror or exc})"
                    )
                    continue
                self._drop()
                return
            if done == 0 and not self._begun:
                self._waiting.appendleft(data)
                return
            self._begun = data[done:]
            if self._begun:
                return

    def _drop(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._begun = b""
        self._waiting.clear()

    def close(self) -> None:
        """Give the reader a last chance of two seconds, and close."""
        end_s = time.monotonic() + _CLOSE_WAIT_S
        while self.blocked_fd is not None and time.monotonic() < end_s:
            self.pump()
            time.sleep(0.005)
        for _ in range(len(self._waiting)):
            self._warning.warn(f"{self._name}: record lost (its reader is too slow)")
        self._drop()


class ThreadedOutlet:
    """Writes from a thread of its own, so that a slow disk delays nobody.

    Parameters
    ----------
    outlet : Outlet
        Taken over; only the thread calls it.
    name : str
        For messages.
    clock : Clock
        For the rate of warnings.
    backlog : int
        Records kept while it is slow.
    """

    blocked_fd = None

    def __init__(
        self, outlet: Outlet, *, name: str, clock: Clock, backlog: int = FILE_BACKLOG
    ) -> None:
        self._outlet = outlet
        self._name = name
        self._backlog = backlog
        self._waiting: deque[bytes] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._reader_gone = False
        self._warning = RepeatedWarning(_log, clock)
        self._thread = threading.Thread(
            target=self._work, name=f"edgeloc-{name}", daemon=True
        )
        self._thread.start()

    @property
    def num_lost(self) -> int:
        """Records dropped here or by the file."""
        return self._warning.count + self._outlet.num_lost

    def write(self, data: bytes) -> bool:
        """Leave it to the thread; False once nobody reads any more."""
        with self._wake:
            if len(self._waiting) >= self._backlog:
                self._waiting.popleft()
                self._warning.warn(f"{self._name}: record lost (writing is too slow)")
            self._waiting.append(data)
            self._wake.notify()
        return not self._reader_gone

    def pump(self) -> None:
        """Nothing to do: the thread does it."""

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                data = self._waiting.popleft()
            if not self._outlet.write(data):
                self._reader_gone = True

    def close(self) -> None:
        """Let the thread finish, for two seconds at most."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(_CLOSE_WAIT_S)
        if self._thread.is_alive():
            # Closing a file under a thread that writes to it would be worse.
            for _ in range(len(self._waiting)):
                self._warning.warn(f"{self._name}: record lost (writing is too slow)")
            return
        self._outlet.close()


def _own_nonblocking(fd: int) -> int | None:
    """Return the same pipe or terminal, opened again in non-blocking mode.

    The mode belongs to what is open, not to the descriptor: setting it on ours would
    set it for the shell and every other process that writes there.
    """
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISFIFO(mode) or os.isatty(fd)):
        return None
    with contextlib.suppress(OSError):
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    return None


def open_stdout(*, clock: Clock, may_wait: bool) -> Outlet:
    """Return standard output.

    Parameters
    ----------
    clock : Clock
        For the rate of warnings.
    may_wait : bool
        Whether a slow reader may hold the caller up.
    """
    if may_wait:
        return StdoutOutlet(sys.stdout)
    name, fd = "standard output", sys.stdout.fileno()
    again = _own_nonblocking(fd)
    if again is not None:
        return PipeOutlet(again, name=name, clock=clock)
    direct = DirectOutlet(fd, name=name, clock=clock, owned=False)
    return ThreadedOutlet(direct, name=name, clock=clock)


def open_file(path: Path, *, clock: Clock, may_wait: bool) -> Outlet:
    """Return a new file, in place of one that is there.

    Parameters
    ----------
    path : Path
        The file; a named pipe works, too, once somebody reads it.
    clock : Clock
        For the rate of warnings.
    may_wait : bool
        Whether a slow disk may hold the caller up.

    Raises
    ------
    ConfigError
        When it cannot be opened.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o666)
    except OSError as exc:
        raise ConfigError(
            f"--out {path}: cannot be written ({exc.strerror or exc})"
        ) from exc
    direct = DirectOutlet(fd, name=str(path), clock=clock, owned=True)
    if may_wait:
        return direct
    return ThreadedOutlet(direct, name=str(path), clock=clock)
