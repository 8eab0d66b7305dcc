"""One line of a report about a machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

OK, WARN, MISSING = "ok", "warn", "missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report.

    Parameters
    ----------
    name : str
        What was looked at.
    status : str
        "ok", "warn" or "missing".
    value : str
        What was found.
    advice : str
        What to do, empty when there is nothing to do.
    required : bool
        Whether edgeloc cannot run without it.
    """

    name: str
    status: str
    value: str
    advice: str = ""
    required: bool = False


def read_text(path: Path) -> str:
    """Return a small file of the system, "" when it is not there or tells nothing."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # sensors of what is switched off exist and cannot be read
        return ""


def read_int(path: Path) -> int | None:
    """Return the number in a file of the system, None without one."""
    text = read_text(path).strip()
    return int(text) if text.lstrip("-").isdecimal() else None
