"""What the commands share: parser, logging, and errors that become exit codes."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

from edgeloc import __version__
from edgeloc.errors import EdgelocError
from edgeloc.runtime.status_line import CLEAR_LINE

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130

_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, and which accepts no abbreviations.

    Parameters
    ----------
    prog : str
        Name of the command.
    description, examples : str
        For ``--help``.
    """

    def __init__(self, *, prog: str, description: str, examples: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "--version", action="version", version=f"{prog} {__version__}"
        )

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave with exit code 2."""
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message} (see {self.prog} -h)\n")


def set_up_logging(prog: str, *, quiet: bool, debug: bool) -> None:
    """Log to standard error, one line each, with the command's name.

    Parameters
    ----------
    prog : str
        Name of the command.
    quiet : bool
        Only warnings and errors.
    debug : bool
        Everything. The environment variable EDGELOC_LOG (DEBUG, INFO, WARNING, ERROR)
        sets the level when neither is given.
    """
    level = os.environ.get("EDGELOC_LOG", "").upper()
    if level not in _LOG_LEVELS:
        level = "INFO"
    if quiet:
        level = "WARNING"
    if debug:
        level = "DEBUG"
    handler = logging.StreamHandler(sys.stderr)
    # What is logged takes the place of a status line, which comes again below.
    clear = CLEAR_LINE if sys.stderr.isatty() else ""
    handler.setFormatter(logging.Formatter(f"{clear}{prog}: %(message)s"))
    logger = logging.getLogger("edgeloc")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level)


def silence_opencv() -> None:
    """Keep OpenCV and its FFmpeg from writing their own lines to standard error."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    import cv2

    set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
    set_level(0)


def error_text(error: BaseException, *, debug: bool) -> str:
    """Return one line about an error.

    Parameters
    ----------
    error : BaseException
        Any; one that is not `EdgelocError` is a bug and says so.
    debug : bool
        Whether the traceback is shown anyway.
    """
    text = " ".join(str(error).split())
    if isinstance(error, EdgelocError):
        return text
    text = f"internal error, {type(error).__name__}: {text}"
    return text if debug else f"{text} (run again with --debug for the traceback)"


class _ErrorBorder:
    """Turns every exception of a command into one line and an exit code."""

    def __init__(self, prog: str, *, debug: bool) -> None:
        self._prog = prog
        self._debug = debug
        self.exit_code = EXIT_OK

    def __enter__(self) -> _ErrorBorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if kind is None or error is None or isinstance(error, SystemExit):
            return False
        if self._debug:
            traceback.print_exception(kind, error, trace)
        if isinstance(error, KeyboardInterrupt):
            self.exit_code = EXIT_INTERRUPTED
            return True
        if isinstance(error, BrokenPipeError):
            # The reader has seen enough; what is still buffered has nowhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return True
        self.exit_code = EXIT_INTERNAL
        if isinstance(error, EdgelocError):
            self.exit_code = error.exit_code
        text = error_text(error, debug=self._debug)
        print(f"{self._prog}: error: {text}", file=sys.stderr)
        return True


def run_command(prog: str, body: Callable[[], int], *, debug: bool) -> int:
    """Run a command and return its exit code; never raises but for `SystemExit`.

    Parameters
    ----------
    prog : str
        Name of the command, in front of the error.
    body : callable
        Returns the exit code.
    debug : bool
        Also print the traceback.

    Returns
    -------
    int
        0, or that of the error's class, or 70 for an internal error.
    """
    with _ErrorBorder(prog, debug=debug) as border:
        return body()
    return border.exit_code
