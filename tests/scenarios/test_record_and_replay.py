"""A run in three processes is logged, and the log runs again in one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

from scenario_runs import Run


def edgeloc_replay(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "edgeloc.cli.replay", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_estimator_killed_while_it_is_logged(tmp_path):
    """The estimator gets SIGKILL in the middle of a logged run.

    Expected: one record per frame all the same; the log has two sessions, the first of
    which did not end by itself and misses at most the answer in work; what the
    estimators said in real time, in a hurry and one after the other, comes out of the
    replay to the last digit.
    """
    log = tmp_path / "run.log"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "edgeloc.cli.run", "--demo", "--pace", "realtime"),
            *("--record", str(log), "--max-frames", "90"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    run = Run(process)
    try:
        run.wait_for(lambda run: len(run.records) >= 12, timeout_s=60.0)
        (pid,) = run.worker_pids("estimator")
        os.kill(pid, signal.SIGKILL)
    finally:
        run.finish(timeout_s=60.0)
    assert process.returncode == 0, run.err
    run.assert_one_record_per_frame()
    assert len(run.records) == 90

    info = edgeloc_replay(log, "--info")
    first, second = (json.loads(line) for line in info.stdout.splitlines())
    assert (first["ended"], second["ended"]) == (False, True)
    assert second["counters"]["num_restarts"] == 1
    for facts in (first, second):
        assert facts["frames"] >= 1
        assert facts["answers"] >= facts["frames"] - 1
    compared = edgeloc_replay(log, "--compare")
    assert compared.returncode == 0, compared.stdout
    assert f"{first['answers'] + second['answers']} frames compared with exact" in (
        compared.stdout
    )
    assert " 0 different; 0 could not be replayed" in compared.stdout
