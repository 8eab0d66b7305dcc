"""Lines of sensors: over a serial line, TCP or from a file.

A live source is read in a thread of its own in the estimator process, which alone uses
other sensors: it waits for bytes outside the interpreter lock, so that no frame ever
waits for a sensor. A line that breaks is opened again until the run ends; meanwhile the
sensor just says nothing.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import stat
import termios
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from edgeloc.clock import Clock
from edgeloc.errors import ConfigError

_log = logging.getLogger(__name__)

DEFAULT_BAUD = 9600
MAX_LINE_BYTES = 1024
_MAX_FILE_BYTES = 256 << 20
_WAIT_S = 0.2
_RETRY_S = 1.0
_CONNECT_S = 3.0


class _Line(Protocol):
    """Something that bytes come from."""

    def fileno(self) -> int: ...

    def read(self) -> bytes:
        """Return what is there; b"" at its end. `OSError` when it broke."""

    def close(self) -> None: ...


class _Tcp:
    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), timeout=_CONNECT_S)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> bytes:
        return self._socket.recv(4096)

    def close(self) -> None:
        self._socket.close()


class _Serial:
    """A serial line, raw: eight bits, no parity, no flow control."""

    def __init__(self, path: str, speed: int) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            mode = termios.tcgetattr(self._fd)
        except termios.error as exc:
            os.close(self._fd)
            raise OSError(f"is no serial line ({exc})") from exc
        mode[0] = mode[1] = mode[3] = 0
        mode[2] = termios.CS8 | termios.CREAD | termios.CLOCAL
        mode[4] = mode[5] = speed
        termios.tcsetattr(self._fd, termios.TCSANOW, mode)

    def fileno(self) -> int:
        return self._fd

    def read(self) -> bytes:
        return os.read(self._fd, 4096)

    def close(self) -> None:
        os.close(self._fd)


def is_recorded(source: str) -> bool:
    """Return whether a source is a file, which has all its measurements already."""
    if source.startswith("tcp://"):
        return False
    try:
        return stat.S_ISREG(os.stat(source).st_mode)  # noqa: PTH116 - may be no path
    except OSError:
        return False


def recorded_lines(source: str, *, option: str) -> list[bytes]:
    """Return the lines of a file.

    Parameters
    ----------
    source : str
        Its path.
    option : str
        Of the command line, for messages.

    Raises
    ------
    ConfigError
        When it cannot be read, or is too long.
    """
    path = Path(source)
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ConfigError(
                f"{option} {path}: has more than {_MAX_FILE_BYTES >> 20} MiB; cut it"
            )
        return path.read_bytes().splitlines()
    except OSError as exc:
        raise ConfigError(f"{option} {path}: cannot be read ({exc.strerror})") from exc


class LineReader:
    """Reads a live source until it is closed, in a thread of its own.

    Parameters
    ----------
    source : str
        ``tcp://HOST:PORT``, or a serial device as ``/dev/ttyUSB0`` or
        ``/dev/ttyUSB0@38400`` (baud).
    option : str
        Of the command line, for messages and the name of the thread.
    take : callable
        Called in that thread with each line, without its end, and the time at which it
        came, on the clock.
    clock : Clock
        Of the frames.

    Raises
    ------
    ConfigError
        When it cannot be one, or is a device that is not there.
    """

    def __init__(
        self,
        source: str,
        *,
        option: str,
        take: Callable[[bytes, int], None],
        clock: Clock,
    ) -> None:
        self._what = f"{option} {source}"
        self._source = source
        self._take = take
        self._clock = clock
        self._stop = threading.Event()
        self._rest = b""
        self._line: _Line | None = None
        if source.startswith("tcp://"):
            self._address()  # whoever serves it may start later
        else:
            try:
                self._line = self._open()
            except OSError as exc:
                raise ConfigError(
                    f"{self._what}: cannot be opened ({exc.strerror or exc}); give a "
                    "serial device, tcp://HOST:PORT or a file"
                ) from exc
        self._thread = threading.Thread(
            target=self._run, name=option.lstrip("-"), daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End the reading."""
        self._stop.set()
        self._thread.join()

    def _open(self) -> _Line:
        if self._source.startswith("tcp://"):
            return _Tcp(*self._address())
        return _Serial(*self._device())

    def _address(self) -> tuple[str, int]:
        host, colon, port = self._source.removeprefix("tcp://").rpartition(":")
        if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(f"{self._what}: expected tcp://HOST:PORT")
        return host.strip("[]"), int(port)

    def _device(self) -> tuple[str, int]:
        path, at, baud = self._source.partition("@")
        if at and not baud.isdecimal():
            raise ConfigError(f"{self._what}: expected DEVICE@BAUD")
        number = int(baud) if at else DEFAULT_BAUD
        speed = getattr(termios, f"B{number}", None)
        if not isinstance(speed, int) or number == 0:
            raise ConfigError(
                f"{self._what}: {number} baud is no speed of a serial line; 4800, "
                "9600, 38400 and 115200 are usual"
            )
        return path, speed

    def _run(self) -> None:
        complained = False
        while not self._stop.is_set():
            try:
                if self._line is None:
                    self._line = self._open()
                    complained = False
                if self._read(self._line):
                    continue
                reason = "ended"
            except OSError as exc:
                reason = exc.strerror or str(exc)
            if not complained:
                _log.warning("%s: %s; trying again", self._what, reason)
                complained = True
            self._hang_up()
            self._stop.wait(_RETRY_S)
        self._hang_up()

    def _hang_up(self) -> None:
        self._rest = b""
        if self._line is not None:
            self._line.close()
            self._line = None

    def _read(self, line: _Line) -> bool:
        """Take what is there; False at its end."""
        if not select.select([line], [], [], _WAIT_S)[0]:
            return True
        try:
            data = line.read()
        except BlockingIOError:
            return True
        if not data:
            return False
        now_ns = self._clock.now_ns()
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-MAX_LINE_BYTES:]
        for text in lines:
            self._take(text, now_ns)
        return True
