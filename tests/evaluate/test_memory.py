"""Memory of a run: how it is counted, and that the demo stays within its figure."""

from __future__ import annotations

import sys

import pytest

from edgeloc_tools.evaluate import memory

MAX_BYTES = 260_000_000

# Of a real process.
ROLLUP = """\
564d02a81000-7ffee1f2d000 ---p 00000000 00:00 0                          [rollup]
Rss:               20348 kB
Pss:               17721 kB
Pss_Dirty:         12912 kB
Pss_Anon:          12912 kB
Pss_File:           4809 kB
Shared_Clean:       3208 kB
"""


def test_proportional_size_is_read_from_its_line():
    assert memory.pss_bytes(ROLLUP) == 17721 * 1024
    assert memory.pss_bytes("") == 0


def test_descendants_are_found_and_those_that_ended_are_not(tmp_path):
    for pid, children in ((1, "2 3"), (2, "4"), (3, "")):
        folder = tmp_path / str(pid) / "task" / str(pid)
        folder.mkdir(parents=True)
        (folder / "children").write_text(children)
    assert memory.process_tree(1, proc=tmp_path) == [1, 2, 4, 3]


def test_processes_of_a_run_are_told_apart():
    worker = "python\0-m\0edgeloc.cli.worker\0estimator\x007\x001,2\0"
    assert memory.role_of(worker) == "estimator"
    assert memory.role_of("python\0/bin/edgeloc-run\0--demo\0") == "main"


def test_the_worst_moment_counts_and_descendants_too():
    script = "import time; x = bytearray(b'1') * (40 << 20); time.sleep(0.5)"
    parent = (
        "import subprocess, sys; "
        f"subprocess.run([sys.executable, '-c', {script!r}, 'capture'], check=True)"
    )
    footprint = memory.measure([sys.executable, "-c", parent])
    assert footprint.exit_code == 0
    assert 40 << 20 < footprint.bytes_of["capture"] < 64 << 20
    assert footprint.total_bytes > footprint.bytes_of["capture"]


@pytest.mark.parametrize("pace", ["every", "realtime"])
def test_the_demo_stays_within_its_figure(pace):
    footprint = memory.measure(
        [
            *(sys.executable, "-m", "edgeloc.cli.run", "--demo", "--quiet"),
            *("--pace", pace, "--max-frames", "90"),
        ]
    )
    assert footprint.exit_code == 0
    roles = {"main", "capture", "estimator", "publisher"}
    assert set(footprint.bytes_of) == (roles if pace == "realtime" else {"main"})
    assert footprint.total_bytes < MAX_BYTES, footprint
