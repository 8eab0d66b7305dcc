"""What a Jetson board is and how it is set up, from the files that its system keeps.

No program is started and no library loaded. Every function takes the root of the file
system, so that a copy of a board's files can be looked at anywhere; what is absent is
no error. On a PC, versions of CUDA and TensorRT are found the same way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from edgeloc.cli.finding import MISSING, OK, WARN, Finding, read_text

_RELEASE = re.compile(r"# R(\d+) \(release\), REVISION: ([\d.]+)")
_POWER_MODEL = re.compile(r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", re.M)
_POWER_STATUS = re.compile(r"pmode:(\d+)")
_KERNEL_MODULE = re.compile(r"Kernel Module(?: for \S+)?\s+(\d[\d.]*)")
_OLDEST_JETPACK = 6
# Linux for Tegra by JetPack.
_JETPACK_OF_L4T = {32: 4, 34: 5, 35: 5, 36: 6, 38: 7, 39: 7}


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A release of Linux for Tegra.

    Parameters
    ----------
    l4t : str
        Its version, "36.4.3".
    jetpack : int or None
        The JetPack that it belongs to; None when that is not known here.
    """

    l4t: str
    jetpack: int | None


def parse_release(nv_tegra_release: str) -> Release | None:
    """Return the release in the text of /etc/nv_tegra_release, None without one."""
    match = _RELEASE.search(nv_tegra_release)
    if match is None:
        return None
    major, revision = match.groups()
    return Release(l4t=f"{major}.{revision}", jetpack=_JETPACK_OF_L4T.get(int(major)))


def package_versions(dpkg_status: str, names: Iterable[str]) -> dict[str, str]:
    """Return versions of installed packages in the text of /var/lib/dpkg/status."""
    found = {}
    for name in names:
        at = dpkg_status.find(f"Package: {name}\n")
        # At the start of a line; the name may also be the end of another field.
        while at > 0 and dpkg_status[at - 1] != "\n":
            at = dpkg_status.find(f"Package: {name}\n", at + 1)
        if at < 0:
            continue
        end = dpkg_status.find("\n\n", at)
        lines = dpkg_status[at : end if end >= 0 else None].splitlines()
        fields = dict(line.split(": ", 1) for line in lines if ": " in line)
        if fields.get("Status", "").endswith(" installed") and "Version" in fields:
            found[name] = fields["Version"]
    return found


def parse_power_modes(nvpmodel_conf: str) -> dict[int, str]:
    """Return names of power modes by id, from the text of /etc/nvpmodel.conf."""
    return {int(number): name for number, name in _POWER_MODEL.findall(nvpmodel_conf)}


def parse_power_status(status: str) -> int | None:
    """Return the id of the power mode in the text of /var/lib/nvpmodel/status."""
    match = _POWER_STATUS.search(status)
    return int(match.group(1)) if match else None


def parse_cuda_version(version_json: str) -> str:
    """Return the version in the text of /usr/local/cuda/version.json, "" without."""
    try:
        document = json.loads(version_json)
    except json.JSONDecodeError:
        return ""
    entry = document.get("cuda", {}) if isinstance(document, dict) else {}
    return str(entry.get("version", "")) if isinstance(entry, dict) else ""


def parse_driver_version(version: str) -> str:
    """Return the driver's version in /proc/driver/nvidia/version, "" without one."""
    match = _KERNEL_MODULE.search(version)
    return match.group(1) if match else ""


_PACKAGES = ("nvidia-jetpack", "libnvinfer10", "libnvinfer8", "python3-libnvinfer")


def check_board(root: Path = Path("/")) -> list[Finding]:
    """Return what is known of board, JetPack, CUDA, TensorRT and power mode.

    Parameters
    ----------
    root : Path
        Of the file system.

    Returns
    -------
    list of Finding
    """
    packages = package_versions(read_text(root / "var/lib/dpkg/status"), _PACKAGES)
    release = parse_release(read_text(root / "etc/nv_tegra_release"))
    findings = [_check_release(root, release, packages)]
    findings.append(_check_cuda(root))
    findings.append(_check_tensorrt(packages))
    if release is not None:
        findings.append(_check_power_mode(root))
    return findings


def _check_release(
    root: Path, release: Release | None, packages: Mapping[str, str]
) -> Finding:
    if release is None:
        return Finding(name="jetson", status=OK, value="no")
    model = read_text(root / "proc/device-tree/model").strip("\0\n ") or "Jetson"
    jetpack = packages.get("nvidia-jetpack", "").partition("+")[0]
    jetpack = jetpack or (
        "unknown" if release.jetpack is None else f"{release.jetpack}"
    )
    value = f"{model}, L4T {release.l4t}, JetPack {jetpack}"
    if release.jetpack is not None and release.jetpack < _OLDEST_JETPACK:
        return Finding(
            name="jetson",
            status=WARN,
            value=value,
            advice=f"edgeloc needs JetPack {_OLDEST_JETPACK} or later (Python 3.10): "
            "flash the board anew",
        )
    return Finding(name="jetson", status=OK, value=value)


def _check_cuda(root: Path) -> Finding:
    version = parse_cuda_version(read_text(root / "usr/local/cuda/version.json"))
    driver = parse_driver_version(read_text(root / "proc/driver/nvidia/version"))
    parts = [f"toolkit {version}"] if version else []
    parts += [f"driver {driver}"] if driver else []
    return Finding(
        name="cuda",
        # Not a warning: networks run on the CPU too.
        status=OK if parts else MISSING,
        value=", ".join(parts) or "neither driver nor toolkit",
        advice="" if parts else "on a Jetson: sudo apt install nvidia-jetpack",
    )


def _check_tensorrt(packages: Mapping[str, str]) -> Finding:
    system = packages.get("libnvinfer10") or packages.get("libnvinfer8")
    module = find_spec("tensorrt") is not None
    try:
        value = metadata.version("tensorrt") if module else ""
    except metadata.PackageNotFoundError:
        value = ""
    if module:
        return Finding(name="tensorrt", status=OK, value=value or system or "present")
    if system is not None:
        advice = (
            "make the environment with --system-site-packages, as deploy/jetson does"
            if "python3-libnvinfer" in packages
            else "sudo apt install python3-libnvinfer"
        )
        return Finding(
            name="tensorrt",
            status=WARN,
            value=f"{system} is installed, but Python does not find it",
            advice=advice,
        )
    return Finding(
        name="tensorrt",
        status=MISSING,
        value="absent, for TensorRT engines",
        advice="comes with JetPack: sudo apt install nvidia-jetpack",
    )


def _check_power_mode(root: Path) -> Finding:
    number = parse_power_status(read_text(root / "var/lib/nvpmodel/status"))
    modes = parse_power_modes(read_text(root / "etc/nvpmodel.conf"))
    if number is None:
        return Finding(
            name="power mode",
            status=WARN,
            value="unknown",
            advice="ask the board itself: sudo nvpmodel -q",
        )
    name = modes.get(number, f"mode {number}")
    others = [other for other in modes.values() if other != name]
    return Finding(
        name="power mode",
        status=OK,
        value=f"{name} (mode {number})"
        + (f"; there are also {', '.join(others)}" if others else ""),
    )
