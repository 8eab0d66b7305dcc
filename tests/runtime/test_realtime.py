"""Asking for priority, and saying what was not given."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edgeloc.errors import ConfigError
from edgeloc.runtime import realtime
from edgeloc.runtime.realtime import PRIORITIES, RealtimeReport, request_realtime


def in_a_process(script):
    """Run it elsewhere: priorities and locked memory would stay with the tests."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def denied(monkeypatch):
    """A system on which nothing is permitted."""

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (8 << 20, 8 << 20))
    monkeypatch.setattr(realtime, "_ask_short_slices", lambda libc: None)


def test_publisher_is_above_all_and_the_estimator_below():
    assert max(PRIORITIES, key=PRIORITIES.get) == "publisher"
    assert min(PRIORITIES, key=PRIORITIES.get) == "estimator"
    assert max(PRIORITIES.values()) < 99


def test_off_asks_for_nothing():
    report = request_realtime("supervisor", mode="off")
    assert (report.got, report.missing) == ([], [])
    assert not report.has_priority
    assert str(report) == "nothing"


def test_what_is_not_permitted_is_explained(denied):
    report = request_realtime("publisher", mode="auto")
    assert report.got == []
    assert "LimitRTPRIO=99" in report.missing[0]
    assert "LimitMEMLOCK=infinity" in report.missing[1]
    assert "8192 KiB" in report.missing[1]
    assert str(report).startswith("nothing; not: SCHED_FIFO is not permitted")


def test_doing_without_is_an_error_when_required(denied):
    with pytest.raises(ConfigError, match="--realtime require: SCHED_FIFO is not perm"):
        request_realtime("publisher", mode="require")


def test_cores_that_do_not_exist_are_an_error():
    with pytest.raises(ConfigError, match=r"--cpus: CPUs \[4000\]"):
        request_realtime("supervisor", mode="off", cpus=[4000])


def test_granted_priority_is_the_one_reported():
    out = in_a_process(
        "import os\n"
        "from edgeloc.runtime.realtime import request_realtime\n"
        "report = request_realtime('publisher', mode='auto', cpus=[0])\n"
        "fifo = os.sched_getscheduler(0) == os.SCHED_FIFO\n"
        "assert fifo == report.has_priority, report\n"
        "assert os.sched_getaffinity(0) == {0}\n"
        "if fifo: assert os.sched_getparam(0).sched_priority == 60\n"
        "print(report)\n"
    )
    assert "CPUs 0" in out


def test_locked_memory_is_what_is_used_and_not_all_that_is_mapped():
    out = in_a_process(
        "import mmap\n"
        "from pathlib import Path\n"
        "from edgeloc.runtime.realtime import request_realtime\n"
        "def resident_kb():\n"
        "    lines = Path('/proc/self/status').read_text().splitlines()\n"
        "    return int(next(l for l in lines if l.startswith('VmRSS:')).split()[1])\n"
        "mapped = [mmap.mmap(-1, 64 << 20)]\n"
        "before = resident_kb()\n"
        "report = request_realtime('publisher', mode='auto')\n"
        "mapped.append(mmap.mmap(-1, 64 << 20))\n"
        "grown = resident_kb() - before\n"
        "mapped[1][: 8 << 20] = bytes(8 << 20)\n"
        "print('locked memory' in report.got, grown, resident_kb() - before)\n"
    )
    locked, unused_kb, used_kb = out.split()
    if locked != "True":
        pytest.skip("locking memory is not permitted here")
    assert int(unused_kb) < 8 << 10
    assert 8 << 10 <= int(used_kb) < 32 << 10


def test_report_reads_well():
    report = RealtimeReport(got=["SCHED_FIFO 60"], missing=["locked memory: ENOMEM"])
    assert str(report) == "SCHED_FIFO 60; not: locked memory: ENOMEM"
    assert report.has_priority
