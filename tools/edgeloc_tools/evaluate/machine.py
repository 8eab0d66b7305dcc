"""What an evaluation ran on, so that its times can be read."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Mapping
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


INTEGER_FLAGS: Mapping[str, str] = {
    "amx_int8": "AMX (x86)",
    "avx512_vnni": "AVX-512 VNNI (x86)",
    "avx_vnni": "AVX-VNNI (x86)",
    "i8mm": "I8MM (Arm)",
    "asimddp": "dot product (Arm)",
}
"""Flags of instructions that multiply bytes and add them up in 32 bits."""


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return what the first core says that it can do; nothing where it is not told.

    Parameters
    ----------
    cpuinfo : Path
        Linux' description of the processor.
    """
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()


def integer_note(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return in one sentence whether INT8 networks can be faster here.

    Parameters
    ----------
    cpuinfo : Path
        Linux' description of the processor.
    """
    flags = cpu_flags(cpuinfo)
    if not flags:
        return (
            "The system does not tell what this processor can do: whether INT8 pays is "
            "what the ratios above say."
        )
    units = [name for flag, name in INTEGER_FLAGS.items() if flag in flags]
    if units:
        return f"This processor multiplies bytes with {', '.join(units)}: INT8 can pay."
    wide = [flag for flag in ("avx512f", "avx2", "asimd") if flag in flags]
    return (
        f"This processor has {wide[0] if wide else 'no vector unit'} but no "
        "instruction for products of bytes (VNNI, AMX; dot product, I8MM on Arm): "
        "INT8 saves memory here, not time."
    )


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
