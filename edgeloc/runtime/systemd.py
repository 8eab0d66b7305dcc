"""Telling systemd how the service does: sd_notify without libsystemd.

The protocol is one datagram per message to the socket named in ``NOTIFY_SOCKET``; see
sd_notify(3). Without that variable, and so outside of systemd, nothing happens.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

from edgeloc.clock import Clock
from edgeloc.runtime.telemetry import RepeatedWarning

_log = logging.getLogger(__name__)


class SystemdNotifier:
    """Sends states to the service manager.

    Only the main process of the service may send them (unless the unit says
    ``NotifyAccess=all``). Nothing here blocks or raises: a message that cannot be sent
    is counted and reported.

    Parameters
    ----------
    clock : Clock
        What the watchdog's interval and the rate of warnings are measured on.
    environment : mapping of str to str, optional
        In place of the process's own.

    Attributes
    ----------
    active : bool
        Whether somebody listens.
    watchdog_interval_ns : int or None
        Half of what the unit's ``WatchdogSec`` allows; None without a watchdog.
    """

    def __init__(
        self, *, clock: Clock, environment: Mapping[str, str] | None = None
    ) -> None:
        environment = os.environ if environment is None else environment
        self._clock = clock
        self._warning = RepeatedWarning(_log, clock)
        self._socket = _connect(environment.get("NOTIFY_SOCKET", ""))
        self.active = self._socket is not None
        self.watchdog_interval_ns = (
            _watchdog_interval_ns(environment) if self.active else None
        )
        self._last_watchdog_ns: int | None = None

    def ready(self, status: str = "") -> None:
        """Say that start-up is over: what waits for this service may start."""
        self._send("READY=1", *_status(status))

    def status(self, text: str) -> None:
        """Give the line that ``systemctl status`` shows."""
        self._send(*_status(text))

    def watchdog(self) -> None:
        """Say that the service is alive; sends at most once per interval."""
        if self.watchdog_interval_ns is None:
            return
        now_ns = self._clock.now_ns()
        last_ns = self._last_watchdog_ns
        if last_ns is None or now_ns - last_ns >= self.watchdog_interval_ns:
            self._last_watchdog_ns = now_ns
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that the service is about to end."""
        self._send("STOPPING=1")

    def close(self) -> None:
        """Close the socket; later messages go nowhere."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is None or not lines:
            return
        try:
            self._socket.send("\n".join(lines).encode())
        except OSError as exc:
            self._warning.warn(f"systemd was not told: {exc.strerror or exc}")


def _status(text: str) -> list[str]:
    # A message is made of lines, and a status is one of them.
    return [f"STATUS={' '.join(text.split())}"] if text else []


def _connect(address: str) -> socket.socket | None:
    if not address:
        return None
    if address[0] not in "/@":
        _log.warning(
            "NOTIFY_SOCKET=%s is not a path or an abstract name: ignored", address
        )
        return None
    # systemd writes the leading zero byte of an abstract name as @.
    name = "\0" + address[1:] if address[0] == "@" else address
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    notify.setblocking(False)
    try:
        notify.connect(name)
    except OSError as exc:
        notify.close()
        _log.warning(
            "NOTIFY_SOCKET=%s cannot be reached (%s): ignored",
            address,
            exc.strerror or exc,
        )
        return None
    return notify


def _watchdog_interval_ns(environment: Mapping[str, str]) -> int | None:
    usec = environment.get("WATCHDOG_USEC", "")
    pid = environment.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) * 1000 // 2
