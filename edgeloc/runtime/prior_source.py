"""Where priors come from: NMEA over a serial line, TCP or from a file.

A live source is read in a thread of its own in the estimator process, which alone
uses priors: it waits for bytes outside the interpreter lock and holds a lock of the
feed for microseconds, so that no frame ever waits for a sensor. What arrives is stamped
with the clock of the frames, less the latency of the receiver. A line that breaks is
opened again until the run ends; meanwhile there are just no priors.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import stat
import termios
import threading
from pathlib import Path
from typing import Protocol

from edgeloc.clock import Clock
from edgeloc.errors import ConfigError
from edgeloc.runtime.nmea import MAX_SENTENCE, Fix, NmeaParser
from edgeloc.runtime.priors import PriorFeed

_log = logging.getLogger(__name__)

DEFAULT_BAUD = 9600
_MAX_FILE_BYTES = 256 << 20
_WAIT_S = 0.2
_RETRY_S = 1.0
_CONNECT_S = 3.0
_NS_PER_S = 1_000_000_000
_HALF_DAY_S, _DAY_S = 43_200.0, 86_400.0


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

    def __init__(self, path: str, baud: int) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            mode = termios.tcgetattr(self._fd)
        except termios.error as exc:
            os.close(self._fd)
            raise OSError(f"is no serial line ({exc})") from exc
        speed = _speed(baud)
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


def _speed(baud: int) -> int:
    speed = getattr(termios, f"B{baud}", None)
    if not isinstance(speed, int) or baud == 0:
        raise ConfigError(
            f"--gnss: {baud} baud is no speed of a serial line; 4800, 9600, 38400 and "
            "115200 are usual"
        )
    return speed


def _open_line(source: str) -> _Line:
    if source.startswith("tcp://"):
        return _Tcp(*_address(source))
    return _Serial(*_device(source))


def _address(source: str) -> tuple[str, int]:
    host, colon, port = source.removeprefix("tcp://").rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"--gnss {source}: expected tcp://HOST:PORT")
    return host.strip("[]"), int(port)


def _device(source: str) -> tuple[str, int]:
    path, at, baud = source.partition("@")
    if at and not baud.isdecimal():
        raise ConfigError(f"--gnss {source}: expected DEVICE@BAUD")
    return path, int(baud) if at else DEFAULT_BAUD


def open_prior_source(
    source: str,
    feed: PriorFeed,
    *,
    clock: Clock,
    sigma_m: float | None = None,
    latency_ns: int = 0,
) -> None:
    """Have a source feed measurements to a feed from now on.

    Parameters
    ----------
    source : str
        ``tcp://HOST:PORT``, a serial device as ``/dev/ttyUSB0`` or
        ``/dev/ttyUSB0@38400`` (baud), or a file, whose first sentence belongs to the
        first frame.
    feed : PriorFeed
        Takes the measurements; closing it ends the reading. For a file it has to be
        made with ``recorded=True``, see `is_recorded`.
    clock : Clock
        Of the frames.
    sigma_m : float or None
        Of every position, in place of what the receiver says.
    latency_ns : int
        How old measurements are when they arrive.

    Raises
    ------
    ConfigError
        When it cannot be one, or is not there.
    """
    parser = NmeaParser(sigma_m=sigma_m)
    if is_recorded(source):
        _load_file(Path(source), feed, parser)
        return
    line = None
    if source.startswith("tcp://"):
        _address(source)  # whoever serves it may start later
    else:
        try:
            line = _open_line(source)
        except OSError as exc:
            raise ConfigError(
                f"--gnss {source}: cannot be opened ({exc.strerror or exc}); give a "
                "serial device, tcp://HOST:PORT or a file"
            ) from exc
    reader = _Reader(
        source, feed, parser, line=line, clock=clock, latency_ns=latency_ns
    )
    feed.on_close = reader.close
    reader.start()


def is_recorded(source: str) -> bool:
    """Return whether a source is a file, which has all its measurements already."""
    if source.startswith("tcp://"):
        return False
    try:
        return stat.S_ISREG(os.stat(source).st_mode)  # noqa: PTH116 - may be no path
    except OSError:
        return False


def _load_file(path: Path, feed: PriorFeed, parser: NmeaParser) -> None:
    """Feed all of a file; sentences without a time have that of the one before."""
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ConfigError(
                f"--gnss {path}: has more than {_MAX_FILE_BYTES >> 20} MiB; cut it"
            )
        lines = path.read_bytes().splitlines()
    except OSError as exc:
        raise ConfigError(f"--gnss {path}: cannot be read ({exc.strerror})") from exc
    first_s: float | None = None
    last_s = 0.0
    pending = []
    num = 0
    for line in lines:
        for measurement in parser.feed(line):
            num += 1
            if isinstance(measurement, Fix):
                if first_s is None:
                    first_s = last_s = measurement.time_s
                # Over midnight the time of day begins again.
                step = measurement.time_s - last_s % _DAY_S
                if step < -_HALF_DAY_S:
                    step += _DAY_S
                last_s += step
            if first_s is None:
                pending.append(measurement)
                continue
            for early in pending:
                feed.push(0, early)
            pending.clear()
            feed.push(round((last_s - first_s) * _NS_PER_S), measurement)
    for early in pending:
        feed.push(0, early)
    if num == 0:
        raise ConfigError(
            f"--gnss {path}: no NMEA sentence in it says anything "
            f"({parser.num_damaged} of {parser.num_sentences} lines are damaged)"
        )
    _log.info("gnss: %d measurements in %s", num, path)


class _Reader:
    """Reads a line until it is closed, in a thread of its own."""

    def __init__(
        self,
        source: str,
        feed: PriorFeed,
        parser: NmeaParser,
        *,
        line: _Line | None,
        clock: Clock,
        latency_ns: int,
    ) -> None:
        self._source = source
        self._feed = feed
        self._parser = parser
        self._line = line
        self._clock = clock
        self._latency_ns = latency_ns
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gnss", daemon=True)
        self._rest = b""

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        parser = self._parser
        _log.info(
            "gnss: %d sentences, %d damaged", parser.num_sentences, parser.num_damaged
        )

    def _run(self) -> None:
        complained = False
        while not self._stop.is_set():
            try:
                if self._line is None:
                    self._line = _open_line(self._source)
                    complained = False
                if self._read(self._line):
                    continue
                reason = "ended"
            except OSError as exc:
                reason = exc.strerror or str(exc)
            if not complained:
                _log.warning("gnss %s: %s; trying again", self._source, reason)
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
        now_ns = self._clock.now_ns() - self._latency_ns
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-MAX_SENTENCE:]
        for text in lines:
            for measurement in self._parser.feed(text):
                self._feed.push(now_ns, measurement)
        return True
