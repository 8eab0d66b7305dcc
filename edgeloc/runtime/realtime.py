"""Real-time priority, CPU affinity and locked memory: what was got, and what was not.

Nothing here is needed for a run; it makes the wake-ups of the small processes exact
while other work wants the same cores.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import platform
import signal
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgeloc.errors import ConfigError

_log = logging.getLogger(__name__)

PRIORITIES = {"publisher": 60, "capture": 50, "supervisor": 45, "estimator": 20}
"""SCHED_FIFO priority of each process: below 50 is below interrupt threads.

The publisher is above all, as it keeps the deadline; the supervisor is above the
estimator, to end one that spins.
"""

# Pages are locked once they are used. Without ONFAULT all that is mapped becomes
# resident, the unused parts of OpenCV and of thread stacks too: 90 MB for the publisher
# in place of 20, 260 for capture.
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_PR_SET_PDEATHSIG, _PR_SET_TIMERSLACK = 1, 29

_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_SLICE_NS = 100_000  # the shortest that Linux allows

_SMALL_ROLES = frozenset({"publisher", "capture"})
"""Small processes; the estimator maps whole sites."""


@dataclass(slots=True)
class RealtimeReport:
    """What a process has got.

    Parameters
    ----------
    got : list of str
        What was granted.
    missing : list of str
        What was not, why, and what to do.
    """

    got: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def has_priority(self) -> bool:
        """Whether the process has real-time priority."""
        return any(text.startswith("SCHED_FIFO") for text in self.got)

    def __str__(self) -> str:
        text = ", ".join(self.got) or "nothing"
        return text + (f"; not: {'; '.join(self.missing)}" if self.missing else "")


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Ask for SIGKILL when the process that started this one is gone (Linux)."""
    libc = _libc()
    if libc is not None:
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _ask_short_slices(libc: ctypes.CDLL) -> None:
    """Ask the scheduler to prefer waking this thread up over fairness in the long run.

    Needs no permission and is ignored by Linux before 6.12. With seven processes on
    two cores it took the median lateness of a wake-up from 3 ms to 0.04 ms.
    """
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None:
        return
    # size, policy SCHED_OTHER, flags, nice, priority, runtime (the slice), ...
    attributes = struct.pack(
        "<IIQiIQQQ", 48, 0, 0, os.getpriority(os.PRIO_PROCESS, 0), 0, _SLICE_NS, 0, 0
    )
    libc.syscall(number, 0, attributes, 0)


def _ask_priority(role: str, report: RealtimeReport) -> None:
    if not hasattr(os, "sched_setscheduler"):
        report.missing.append("SCHED_FIFO: this system has none")
        return
    priority = PRIORITIES[role]
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except PermissionError:
        report.missing.append(
            "SCHED_FIFO is not permitted: run as root, or allow it with "
            "LimitRTPRIO=99 (systemd) or `ulimit -r 99`"
        )
    except OSError as exc:
        report.missing.append(f"SCHED_FIFO: {exc.strerror or exc}")
    else:
        report.got.append(f"SCHED_FIFO {priority}")


def _ask_cpus(cpus: Sequence[int], report: RealtimeReport) -> None:
    if not hasattr(os, "sched_setaffinity"):
        report.missing.append("CPU affinity: this system has none")
        return
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as exc:
        report.missing.append(f"CPUs {list(cpus)}: {exc.strerror or exc}")
    else:
        report.got.append(f"CPUs {','.join(map(str, cpus))}")


def _ask_locked_memory(libc: ctypes.CDLL, report: RealtimeReport) -> None:
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit != resource.RLIM_INFINITY and os.geteuid() != 0:
        # Locking would succeed now and make a later allocation fail.
        report.missing.append(
            f"locked memory: the limit is {limit >> 10} KiB; allow it with "
            "LimitMEMLOCK=infinity (systemd) or `ulimit -l unlimited`"
        )
        return
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0:
        report.got.append("locked memory")
        return
    code = ctypes.get_errno()
    report.missing.append(f"locked memory: {errno.errorcode.get(code, str(code))}")


def request_realtime(
    role: str, *, mode: str, cpus: Sequence[int] = ()
) -> RealtimeReport:
    """Ask for what keeps this process on time; raises only when it is required.

    Threads that exist already keep what they have.

    Parameters
    ----------
    role : str
        A key of `PRIORITIES`.
    mode : {"off", "auto", "require"}
        Whether to ask for priority and locked memory, and whether doing without is an
        error.
    cpus : sequence of int
        Cores to run on; none means all.

    Returns
    -------
    RealtimeReport

    Raises
    ------
    ConfigError
        With "require", when the priority was not got; and when there are no such cores.
    """
    report = RealtimeReport()
    libc = _libc()
    if libc is not None:
        # Sleeps are otherwise up to 50 us longer than asked; needs no permission.
        libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
        if role in _SMALL_ROLES:
            _ask_short_slices(libc)
    if cpus:
        _ask_cpus(cpus, report)
        if report.missing:
            raise ConfigError(f"--cpus: {report.missing[0]}")
    if mode == "off":
        return report
    _ask_priority(role, report)
    if mode == "require" and not report.has_priority:
        raise ConfigError(f"--realtime require: {report.missing[-1]}")
    if libc is not None and role in _SMALL_ROLES:
        _ask_locked_memory(libc, report)
    return report
