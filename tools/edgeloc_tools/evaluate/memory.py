"""How much memory a run takes: all its processes together, at the worst moment.

    python -m edgeloc_tools.evaluate.memory
    python -m edgeloc_tools.evaluate.memory -- --camera clip.mp4 --map site/

Counted is the proportional set size (PSS): what processes share, as code of libraries
and pictures, counts once. Resident sizes would count it once for each process.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeloc.errors import ConfigError

_PROC = Path("/proc")
_ROLES = ("capture", "estimator", "publisher")
_INTERVAL_S = 0.05
_DEMO = ("--demo", "--pace", "realtime")


def pss_bytes(smaps_rollup: str) -> int:
    """Return the proportional set size in the text of /proc/PID/smaps_rollup."""
    for line in smaps_rollup.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "Pss:":
            return int(words[1]) * 1024
    return 0


def process_tree(pid: int, *, proc: Path = _PROC) -> list[int]:
    """Return a process and all that descend from it; those that end are left out."""
    found = [pid]
    for children in sorted((proc / str(pid) / "task").glob("*/children")):
        for child in _read(children).split():
            found += process_tree(int(child), proc=proc)
    return found


def role_of(command_line: str) -> str:
    """Return what a process of a run does, from its /proc/PID/cmdline."""
    words = command_line.split("\0")
    return next((word for word in words if word in _ROLES), "main")


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:  # it has ended
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Memory at the worst moment of a run.

    Parameters
    ----------
    bytes_of : dict of str to int
        PSS by process.
    exit_code : int
        Of the run.
    """

    bytes_of: dict[str, int]
    exit_code: int

    @property
    def total_bytes(self) -> int:
        """All processes together."""
        return sum(self.bytes_of.values())


def measure(command: Sequence[str]) -> Footprint:
    """Start a run, look at it until it ends, and return its worst moment.

    Parameters
    ----------
    command : sequence of str
        Program and arguments; its standard output goes nowhere.

    Raises
    ------
    ConfigError
        When this system has no /proc/PID/smaps_rollup (Linux has, since 4.14).
    """
    if not (_PROC / "self" / "smaps_rollup").exists():
        raise ConfigError("memory is measured on Linux 4.14 or later only")
    worst: dict[str, int] = {}
    with subprocess.Popen(list(command), stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            now: dict[str, int] = {}
            for pid in process_tree(process.pid):
                folder = _PROC / str(pid)
                role = role_of(_read(folder / "cmdline"))
                pss = pss_bytes(_read(folder / "smaps_rollup"))
                now[role] = now.get(role, 0) + pss
            if sum(now.values()) > sum(worst.values()):
                worst = now
            time.sleep(_INTERVAL_S)
    return Footprint(bytes_of=worst, exit_code=process.returncode)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments, those of the process by default.
    """
    parser = argparse.ArgumentParser(
        prog="python -m edgeloc_tools.evaluate.memory",
        description="Print the memory (PSS) of a run at its worst moment, by process.",
    )
    parser.add_argument(
        "options",
        nargs="*",
        metavar="-- OPTION",
        help=f"of edgeloc-run (default: {' '.join(_DEMO)})",
    )
    options = parser.parse_args(argv).options or _DEMO
    footprint = measure([sys.executable, "-m", "edgeloc.cli.run", *options])
    for role, size in (*footprint.bytes_of.items(), ("all", footprint.total_bytes)):
        sys.stdout.write(f"{role:10} {size / 1e6:7.1f} MB\n")
    return footprint.exit_code


if __name__ == "__main__":
    sys.exit(main())
