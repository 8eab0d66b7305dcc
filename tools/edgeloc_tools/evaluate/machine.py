"""What an evaluation ran on, so that its times can be read."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from pathlib import Path

import cv2

PACKAGES = ("edgeloc", "numpy", "scipy", "onnxruntime", "poselib")
"""Distributions whose versions change the numbers."""


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the name of the processor, as good as the system tells it.

    Parameters
    ----------
    cpuinfo : Path
        Linux' description of the processor.
    """
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "Model", "Hardware"} and value.strip():
            return value.strip()
    # ARM boards name themselves in the device tree, not in cpuinfo.
    try:
        board = Path("/proc/device-tree/model").read_text(encoding="utf-8")
    except OSError:
        board = ""
    return board.strip("\0\n ") or platform.processor() or platform.machine()


def _version(package: str) -> str:
    """Return the version of an installed distribution, "" when there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def machine_facts() -> dict[str, str]:
    """Return processor, cores, load, system and versions, for people."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    versions = [f"Python {platform.python_version()}", f"OpenCV {cv2.__version__}"]
    versions += [
        f"{name} {version}" for name in PACKAGES if (version := _version(name))
    ]
    return {
        "processor": cpu_name(),
        "cores": f"{os.cpu_count()}" + (f" ({usable} usable)" if usable else ""),
        "load": f"{os.getloadavg()[0]:.1f} when the evaluation ended",
        "system": f"{platform.system()} {platform.machine()}",
        "versions": ", ".join(versions),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
