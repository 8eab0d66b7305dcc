"""`edgeloc-doctor`: what this machine has, what it lacks, and what to do about it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

from edgeloc import __version__
from edgeloc.cli.board import check_board
from edgeloc.cli.clocks import check_clocks, check_thermal
from edgeloc.cli.common import EXIT_OK, OneLineParser, run_command, silence_opencv
from edgeloc.cli.finding import MISSING, OK, WARN, Finding, read_text
from edgeloc.cli.v4l2 import check_cameras
from edgeloc.config import BACKEND_CHOICES
from edgeloc.errors import BackendUnavailableError, EdgelocError, ModelError

PROG = "edgeloc-doctor"

_MARKS = {OK: "ok", WARN: "WARN", MISSING: "MISSING"}

_REQUIRED = (
    ("numpy", "numpy"),
    ("cv2", "opencv-python-headless"),
    ("onnxruntime", "onnxruntime"),
    ("scipy", "scipy"),
    ("msgpack", "msgpack"),
)
_OPTIONAL = (
    ("poselib", "faster PnP", "pip install 'edgeloc[poselib]' (no aarch64 wheels)"),
    ("yaml", "Kalibr and ROS calibrations", "pip install 'edgeloc[yaml]'"),
    ("tensorrt_rtx", "TensorRT for RTX engines", "pip install tensorrt-rtx"),
    ("pycolmap", "building maps", "pip install 'edgeloc[build]'"),
    ("torch", "training", "see https://pytorch.org"),
)
# (flag in /proc/cpuinfo, what it is good for)
_CPU_FLAGS = (
    ("avx2", "INT8 at all speed levels on x86"),
    ("avx512_vnni", "INT8 dot products"),
    ("avx_vnni", "INT8 dot products"),
    ("amx_int8", "INT8 matrix unit"),
    ("asimddp", "INT8 dot products on Arm"),
    ("i8mm", "INT8 matrix multiply on Arm"),
)
_MIN_MEMORY_BYTES = 2 << 30
_MAX_JITTER_US = 1_000.0


def _check_import(module: str, distribution: str) -> Finding:
    try:
        version = getattr(import_module(module), "__version__", None)
    except (ImportError, OSError) as exc:
        return Finding(
            name=module,
            status=MISSING,
            value=" ".join(str(exc).split()),
            advice=f"pip install {distribution}",
            required=True,
        )
    version = version or metadata.version(distribution)
    return Finding(name=module, status=OK, value=str(version), required=True)


def check_required() -> list[Finding]:
    """Import what edgeloc cannot do without."""
    return [_check_import(module, distribution) for module, distribution in _REQUIRED]


def require_installation() -> dict[str, str]:
    """Return the versions of the required packages.

    Raises
    ------
    ModelError
        When one of them cannot be imported.
    """
    findings = check_required()
    for finding in findings:
        if finding.status != OK:
            raise ModelError(
                f"{finding.name} cannot be imported ({finding.value}); {finding.advice}"
            )
    return {finding.name: finding.value for finding in findings}


def _check_software() -> Iterable[Finding]:
    supported = sys.version_info >= (3, 10)
    yield Finding(
        name="python",
        status=OK if supported else MISSING,
        value=platform.python_version(),
        advice="" if supported else "edgeloc needs Python 3.10 or later",
        required=True,
    )
    yield Finding(name="platform", status=OK, value=platform.platform())
    yield Finding(name="edgeloc", status=OK, value=__version__)


def _check_optional() -> Iterable[Finding]:
    for module, purpose, advice in _OPTIONAL:
        present = find_spec(module) is not None
        yield Finding(
            name=module,
            # Not a warning: nothing is wrong with a device without training tools.
            status=OK if present else MISSING,
            value=f"{'present' if present else 'absent'}, for {purpose}",
            advice="" if present else advice,
        )


def _check_backend(name: str) -> Finding:
    from edgeloc.inference.backend import choose_backend

    try:
        choice = choose_backend(name)
    except BackendUnavailableError as exc:
        reason, _, advice = str(exc).partition(": ")[2].partition("; ")
        return Finding(
            name=f"backend {name}", status=MISSING, value=reason, advice=advice
        )
    value = f"{choice.name}, as {choice.reason}" if choice.reason else "there"
    return Finding(name=f"backend {name}", status=OK, value=value)


def _check_backends() -> Iterable[Finding]:
    try:
        import_module("numpy")
        import_module("onnxruntime")
    except (ImportError, OSError):
        return  # said by `check_required`
    for name in BACKEND_CHOICES:
        yield _check_backend(name)


def _check_model(path: Path) -> Finding:
    from edgeloc.inference.manifest import load_model

    try:
        manifest = load_model(path).manifest
    except EdgelocError as exc:
        return Finding(
            name=f"model {path.stem}",
            status=WARN,
            value=str(exc),
            advice="install edgeloc again",
        )
    return Finding(
        name=f"model {manifest.name}",
        status=OK,
        value=f"{manifest.role}, {manifest.precision}, flavour {manifest.flavour}, "
        f"{manifest.license}",
    )


def _check_models() -> Iterable[Finding]:
    from edgeloc.inference.manifest import shipped_manifests

    paths = shipped_manifests()
    if not paths:
        yield Finding(
            name="models",
            status=OK,
            value="none shipped; ORB, SIFT and VLAD need none",
        )
    for path in paths:
        yield _check_model(path)


def _build_flag(information: str, key: str) -> str:
    """Return the value of a line of `cv2.getBuildInformation`."""
    for line in information.splitlines():
        name, colon, value = line.strip().partition(":")
        if colon and name.lower() == key:
            return value.strip()
    return "NO"


def _check_opencv() -> Iterable[Finding]:
    try:
        import cv2
    except (ImportError, OSError):
        return
    information = cv2.getBuildInformation()
    for key, purpose, advice in (
        ("ffmpeg", "videos and streams", "use OpenCV's wheels, or rebuild with FFmpeg"),
        (
            "gstreamer",
            "GStreamer pipelines",
            "the CSI camera of a Jetson needs them: see deploy/jetson/README.md",
        ),
        ("v4l/v4l2", "/dev/video cameras", "rebuild OpenCV with V4L2"),
    ):
        value = _build_flag(information, key)
        present = value.upper().startswith("YES")
        yield Finding(
            name=f"opencv {key}",
            status=OK if present else WARN,
            value=f"{'yes' if present else 'no'}, for {purpose}",
            advice="" if present else advice,
        )


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """Return the feature flags in the text of /proc/cpuinfo (x86 and Arm)."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in {"flags", "features"}:
            return frozenset(value.split())
    return frozenset()


def memory_bytes(meminfo: str) -> int:
    """Return MemTotal of the text of /proc/meminfo, 0 when it is not there."""
    for line in meminfo.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "MemTotal:" and words[1].isdigit():
            return int(words[1]) * 1024
    return 0


def _check_machine() -> Iterable[Finding]:
    flags = cpu_flags(read_text(Path("/proc/cpuinfo")))
    present = [name for name, _ in _CPU_FLAGS if name in flags]
    has_int8 = bool(set(present) - {"avx2"})
    yield Finding(
        name="cpu features",
        status=OK if has_int8 else WARN,
        value=", ".join(present) or "none known",
        advice=""
        if has_int8
        else "no INT8 dot product: quantized networks gain little on this CPU",
    )
    usable = (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )
    yield Finding(
        name="cores",
        status=OK if usable >= 2 else WARN,
        value=f"{usable} usable of {os.cpu_count()}",
        advice="" if usable >= 2 else "capture and estimation share one core",
    )
    total = memory_bytes(read_text(Path("/proc/meminfo")))
    enough = total == 0 or total >= _MIN_MEMORY_BYTES
    yield Finding(
        name="memory",
        status=OK if enough else WARN,
        value=f"{total / 2**30:.1f} GiB" if total else "unknown",
        advice="" if enough else "2 GiB are recommended",
    )


def sleep_jitter_us(count: int = 50, duration_s: float = 0.001) -> tuple[float, float]:
    """Return by how much short sleeps overrun, (median, worst), us."""
    late_us = []
    for _ in range(count):
        start_ns = time.monotonic_ns()
        time.sleep(duration_s)
        late_us.append((time.monotonic_ns() - start_ns) * 1e-3 - duration_s * 1e6)
    late_us.sort()
    return late_us[count // 2], late_us[-1]


def _check_time() -> Iterable[Finding]:
    resolution_s = time.get_clock_info("monotonic").resolution
    fine = resolution_s <= 1e-6
    yield Finding(
        name="clock",
        status=OK if fine else WARN,
        value=f"monotonic, resolution {resolution_s * 1e9:g} ns",
        advice="" if fine else "frame times are coarse: check the kernel's clocksource",
    )
    median_us, worst_us = sleep_jitter_us()
    calm = worst_us <= _MAX_JITTER_US
    yield Finding(
        name="sleep jitter",
        status=OK if calm else WARN,
        value=f"median {median_us:.0f} us, worst {worst_us:.0f} us (50 sleeps, 1 ms)",
        advice=""
        if calm
        else "the machine is busy, or a virtual one: --emit fixed will be late by this",
    )


def _check_realtime() -> Iterable[Finding]:
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_RTPRIO)[0]
    except (ImportError, AttributeError):
        yield Finding(
            name="real-time priority", status=WARN, value="not on this system"
        )
        return
    root = os.geteuid() == 0
    allowed = root or limit != 0
    yield Finding(
        name="real-time priority",
        status=OK if allowed else WARN,
        value="root" if root else f"RLIMIT_RTPRIO {limit}",
        advice=""
        if allowed
        else "add `@video - rtprio 70` to /etc/security/limits.d/, or use the systemd "
        "unit in deploy/systemd",
    )


_CHECKS: tuple[Callable[[], Iterable[Finding]], ...] = (
    _check_software,
    check_required,
    _check_optional,
    _check_backends,
    _check_models,
    _check_opencv,
    _check_machine,
    check_board,
    check_clocks,
    check_thermal,
    check_cameras,
    _check_time,
    _check_realtime,
)


def examine() -> list[Finding]:
    """Return all findings about this machine and installation."""
    return [finding for check in _CHECKS for finding in check()]


def _print_table(findings: Sequence[Finding]) -> None:
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{_MARKS[finding.status]:8}{finding.name:{width}}  {finding.value}")
        if finding.advice:
            print(f"{'':8}{'':{width}}  -> {finding.advice}")


def _main(arguments: argparse.Namespace) -> int:
    silence_opencv_if_there()
    findings = examine()
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        _print_table(findings)
    broken = any(finding.required and finding.status == MISSING for finding in findings)
    return ModelError.exit_code if broken else EXIT_OK


def silence_opencv_if_there() -> None:
    """Silence OpenCV; the doctor must also run where it cannot be imported."""
    try:
        silence_opencv()
    except (ImportError, OSError):
        return


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = OneLineParser(
        prog=PROG,
        description="Report what this machine has, what it lacks, and what to do.\n"
        "Optional parts that are MISSING are no error.",
        examples="  edgeloc-doctor\n  edgeloc-doctor --json\n\n"
        "exit codes: 0 ok, 2 usage, 4 something required is missing",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--debug", action="store_true", help="tracebacks")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments, those of the process by default.

    Returns
    -------
    int
    """
    arguments = build_parser().parse_args(argv)
    return run_command(PROG, lambda: _main(arguments), debug=arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
