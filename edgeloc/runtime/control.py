"""Messages between the supervisor and a worker process: JSON lines on a socket."""

from __future__ import annotations

import contextlib
import json
import select
import socket
from typing import Any

from edgeloc.errors import EdgelocError

Message = dict[str, Any]

_MAX_BYTES = 1 << 20


class ControlClosedError(EdgelocError):
    """The process at the other end is gone."""


class WorkerError(EdgelocError):
    """A worker process could not go on.

    Parameters
    ----------
    text : str
        One line.
    exit_code : int
        That of the command.
    """

    def __init__(self, text: str, *, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Control:
    """One end of the socket.

    Parameters
    ----------
    end : socket.socket
        Taken over.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._socket.setblocking(False)
        self._rest = b""
        self._waiting: list[Message] = []
        self.closed = False

    def fileno(self) -> int:
        """Return what `select.select` waits for."""
        return self._socket.fileno()

    def send(self, message: Message) -> None:
        """Send a message; lost when nobody is there, or does not read for long."""
        data = json.dumps(message).encode() + b"\n"
        with contextlib.suppress(OSError):
            self._socket.setblocking(True)
            self._socket.settimeout(1.0)
            self._socket.sendall(data)
        with contextlib.suppress(OSError):
            self._socket.setblocking(False)

    def receive(self) -> list[Message]:
        """Return what has come, without waiting."""
        while not self.closed and len(self._rest) < _MAX_BYTES:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self.closed = True
                break
            self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        messages = self._waiting + [json.loads(line) for line in lines]
        self._waiting = []
        return messages

    def wait_for(self, kind: str, timeout_s: float | None = None) -> Message:
        """Return the first message that has the key `kind`; others wait for later.

        Raises
        ------
        ControlClosedError
            When the other side is gone, or the time is over.
        """
        kept: list[Message] = []
        while True:
            messages = self.receive()
            for idx, message in enumerate(messages):
                if kind in message:
                    self._waiting = kept + messages[idx + 1 :]
                    return message
                kept.append(message)
            if self.closed:
                self._waiting = kept
                raise ControlClosedError("the process at the other end is gone")
            if not select.select([self], (), (), timeout_s)[0]:
                self._waiting = kept
                raise ControlClosedError(f"no {kind} came in {timeout_s:g} s")

    def close(self) -> None:
        """Close the socket."""
        self.closed = True
        self._socket.close()
