"""One process of `edgeloc-run`: started by it, of no use by itself."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgeloc.cli.common import (
    EXIT_INTERNAL,
    EXIT_OK,
    EXIT_USAGE,
    error_text,
    set_up_logging,
    silence_opencv,
)
from edgeloc.config import RunConfig
from edgeloc.errors import EdgelocError

if TYPE_CHECKING:
    from edgeloc.runtime.channel import Line
    from edgeloc.runtime.control import Control

    Body = Callable[[Control, Line, RunConfig], None]

_PROG = "edgeloc-run"


def _body(role: str) -> Body:
    if role == "capture":
        from edgeloc.runtime.capture_process import run_capture

        return run_capture
    if role == "estimator":
        from edgeloc.runtime.estimator_process import run_estimator

        return run_estimator
    from edgeloc.runtime.publisher import run_publisher

    return run_publisher


def config_from_message(values: dict[str, Any]) -> RunConfig:
    """Return the options that went through JSON."""
    return RunConfig(**{**values, "out": tuple(values["out"])})


class _Report:
    """Tells the supervisor what went wrong, in place of a traceback."""

    def __init__(self, control: Control, *, debug: bool) -> None:
        self._control = control
        self._debug = debug
        self.exit_code = EXIT_OK

    def __enter__(self) -> _Report:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> bool:
        if error is None or isinstance(error, SystemExit):
            return False
        self.exit_code = EXIT_INTERNAL
        if isinstance(error, EdgelocError):
            self.exit_code = error.exit_code
        if self._debug:
            traceback.print_exception(error)
        text = error_text(error, debug=self._debug)
        self._control.send({"error": {"text": text, "exit_code": self.exit_code}})
        return True


def main(argv: Sequence[str] | None = None) -> int:
    """Be one process of a run.

    Parameters
    ----------
    argv : sequence of str, optional
        Role, descriptor of the control socket, shared descriptors.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if len(arguments) != 3 or not arguments[1].isdigit():
        print(f"{_PROG}: error: this is a part of edgeloc-run", file=sys.stderr)
        return EXIT_USAGE
    from edgeloc.runtime.channel import Line
    from edgeloc.runtime.control import Control
    from edgeloc.runtime.realtime import die_with_parent

    role, control_fd, fds = arguments
    die_with_parent()
    control = Control(socket.socket(fileno=int(control_fd)))
    config = config_from_message(control.wait_for("config")["config"])
    set_up_logging(_PROG, quiet=config.quiet, debug=config.debug)
    if role != "publisher" and not config.debug:
        silence_opencv()
    line = Line.from_fds([int(fd) for fd in fds.split(",")])
    with _Report(control, debug=config.debug) as report:
        _body(role)(control, line, config)
    control.close()
    return report.exit_code


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # Without the interpreter's tidying: a thread may be blocked in a driver or on a
    # disk, and everything that matters is closed.
    os._exit(code)
