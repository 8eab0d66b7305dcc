"""What happens to a run when one of its parts fails; each docstring is the contract."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scenario_runs import STUB_RUN

LIVE = {"live": True, "num_frames": 10**6}


def test_estimator_killed(stub_run):
    """The estimator gets SIGKILL in the middle of a frame.

    Every frame keeps its record. Until a new estimator works, frames are PREDICTED from
    the last motion (rung PREDICT, cause BACKEND_ERROR once the death is known), never
    LOCALIZED; afterwards LOCALIZED again. Exit code 0, one restart.
    """
    run = stub_run(**LIVE, die_from=20)
    run.wait_for(lambda r: "works again" in r.err and r.ids and r.records[-1])
    count = len(run.records)
    run.wait_for(lambda r: len(r.records) > count + 10)
    run.process.terminate()
    assert run.finish().process.returncode == 0
    run.assert_one_record_per_frame()
    gap = [r for r in run.records if r["cause"] == "BACKEND_ERROR"]
    assert gap
    assert gap[0]["status"] == "PREDICTED"
    assert gap[0]["rung"] == "PREDICT"
    assert {r["status"] for r in gap} <= {"PREDICTED", "LOST"}
    assert run.records[10]["status"] == "LOCALIZED"
    assert "LOCALIZED" in {r["status"] for r in run.records[-10:]}
    assert "(SIGKILL)" in run.err
    assert "1 restarts" in run.err


def test_backend_hangs(stub_run):
    """A step of the estimator never returns.

    Its frame is answered at its deadline like those after it: PREDICTED with cause
    DEADLINE, covariance growing, LOST once the motion is too uncertain. After 2 s the
    estimator is replaced, and frames are LOCALIZED again. Exit code 0.
    """
    run = stub_run(**LIVE, hang_from=20, rate_hz=50)
    run.wait_for(lambda r: "works again" in r.err, timeout_s=15)
    count = len(run.records)
    run.wait_for(lambda r: len(r.records) > count + 10)
    run.process.terminate()
    assert run.finish().process.returncode == 0
    run.assert_one_record_per_frame()
    assert "the estimator hangs since 2." in run.err
    gap = run.records[20:100]
    assert {r["cause"] for r in gap} == {"DEADLINE"}
    predicted = [r for r in gap if r["status"] == "PREDICTED"]
    variances = [r["covariance"][35] for r in predicted]
    assert variances == sorted(variances)
    assert variances[-1] > 10 * variances[0]
    statuses = [r["status"] for r in gap]
    assert statuses == ["PREDICTED"] * len(predicted) + ["LOST"] * (
        len(gap) - len(predicted)
    )
    assert statuses[-1] == "LOST"
    assert "LOCALIZED" in {r["status"] for r in run.records[-10:]}


def test_estimator_that_never_survives(stub_run):
    """Every estimator dies at its first frame.

    It is replaced five times within a minute; then the run gives up: exit code 70 and
    one line of error. Until then every frame has its record (LOST: there never was a
    pose to predict from).
    """
    run = stub_run(**LIVE, die_from=0, die_always=True, rate_hz=30)
    assert run.finish(60).process.returncode == 70
    run.assert_one_record_per_frame()
    assert {r["status"] for r in run.records} == {"LOST"}
    assert run.err.count("starting a new one") == 5
    errors = [line for line in run.err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert "more than 5 times within 60 s, giving up" in errors[0]


def test_bug_in_the_estimator(stub_run):
    """A step raises what is not an answer of a backend: a programming error.

    No use in trying again: the frame gets its record, then the run ends with exit code
    70 and the same line as without processes.
    """
    run = stub_run(**LIVE, raise_from=10)
    assert run.finish().process.returncode == 70
    run.assert_one_record_per_frame()
    assert len(run.records) >= 11
    assert (
        "edgeloc-run: error: internal error, TypeError: a bug (run again with --debug "
        "for the traceback)"
    ) in run.err


def test_backend_raises(stub_run):
    """A network fails in frames 20 to 39, which the estimator answers itself.

    Those frames are LOST with cause BACKEND_ERROR at once, not at their deadline; the
    next ones are LOCALIZED. No restart.
    """
    run = stub_run(live=False, num_frames=60, lose_from=20, lose_until=40).finish()
    assert run.process.returncode == 0
    run.assert_one_record_per_frame()
    failed = [r for r in run.records if r["cause"] == "BACKEND_ERROR"]
    assert set(range(20, 40)) >= {r["frame_id"] for r in failed}
    assert len(failed) >= 15, "but those that came while another was in work"
    assert {r["status"] for r in failed} == {"LOST"}
    assert run.records[-1]["status"] == "LOCALIZED"
    assert "restarts" not in run.err


def test_camera_breaks_and_comes_back(stub_run):
    """The camera fails after 30 frames, and opening it again fails twice.

    It is opened again with growing pauses. Records go on with the next frame id and
    later times; nothing is answered for the time without pictures. Exit code 0.
    """
    run = stub_run(live=True, num_frames=60, break_at=30, num_failures=2)
    run.wait_for(lambda r: len(r.records) >= 50)
    run.process.terminate()
    assert run.finish().process.returncode == 0
    run.assert_one_record_per_frame()
    assert "stub: broke; opening it again" in run.err
    assert "stub: open again" in run.err
    times = [r["timestamp_ns"] for r in run.records]
    gaps_ms = [(b - a) / 1e6 for a, b in itertools.pairwise(times)]
    assert gaps_ms.index(max(gaps_ms)) == run.index_of(29)
    assert max(gaps_ms) > 1700, "0.25 + 0.5 + 1 s of pauses"
    assert "LOCALIZED" in {r["status"] for r in run.records[run.index_of(29) + 1 :]}


def test_camera_stalls(stub_run):
    """The camera gives nothing for 1.5 s (a blocked driver), then goes on.

    A warning after a second; no records for pictures that do not exist; afterwards
    LOCALIZED at once, with ids and times that go on. Exit code 0.
    """
    run = stub_run(**LIVE, stall_at=30, stall_s=1.5)
    run.wait_for(lambda r: len(r.records) >= 60)
    run.process.terminate()
    assert run.finish().process.returncode == 0
    run.assert_one_record_per_frame()
    assert run.err.count("stub: the camera stalls") == 1
    after = run.records[run.index_of(30) :]
    assert "LOCALIZED" in {r["status"] for r in after}


def test_capture_process_killed(stub_run):
    """The capture process dies: it is started again and opens the camera again.

    Records go on with the next frame id; exit code 0.
    """
    run = stub_run(**LIVE)
    run.wait_for(lambda r: len(r.records) >= 20)
    (pid,) = run.worker_pids("capture")
    os.kill(pid, signal.SIGKILL)
    count = len(run.records)
    run.wait_for(lambda r: len(r.records) > count + 30)
    run.process.terminate()
    assert run.finish().process.returncode == 0
    run.assert_one_record_per_frame()
    assert "capture process ended by itself (SIGKILL)" in run.err
    assert "LOCALIZED" in {r["status"] for r in run.records[-10:]}


def test_publisher_killed(stub_run):
    """Without a publisher there are no records: the run ends at once, exit code 70."""
    run = stub_run(**LIVE)
    run.wait_for(lambda r: len(r.records) >= 5)
    (pid,) = run.worker_pids("publisher")
    others = run.worker_pids("capture") + run.worker_pids("estimator")
    os.kill(pid, signal.SIGKILL)
    assert run.finish().process.returncode == 70
    assert "the publisher process ended by itself (SIGKILL)" in run.err
    assert not any(Path(f"/proc/{pid}").exists() for pid in others)


def test_supervisor_killed(stub_run):
    """The parent gets SIGKILL: no process of the run stays behind."""
    run = stub_run(**LIVE)
    run.wait_for(lambda r: len(r.records) >= 5)
    pids = [
        pid
        for role in ("capture", "estimator", "publisher")
        for pid in run.worker_pids(role)
    ]
    assert len(pids) == 3
    run.process.kill()
    run.finish()
    end_s = time.monotonic() + 5

    def alive(pid):
        try:
            return (
                b"Z" not in Path(f"/proc/{pid}/stat").read_bytes().split(b") ")[1][:1]
            )
        except OSError:
            return False

    while any(alive(pid) for pid in pids):
        assert time.monotonic() < end_s
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_mid_frame(stub_run, number):
    """SIGTERM or SIGINT while a frame of 150 ms is in work.

    The frame is finished and has its record, LOCALIZED; the run ends within two
    seconds with exit code 0 and its summary.
    """
    run = stub_run("--budget-ms", 500, **LIVE, cost_ms=150, rate_hz=5)
    run.wait_for(lambda r: len(r.records) >= 2)
    time.sleep(0.1)
    start_s = time.monotonic()
    run.process.send_signal(number)
    assert run.finish().process.returncode == 0
    assert time.monotonic() - start_s < 2
    run.assert_one_record_per_frame()
    assert {r["status"] for r in run.records} == {"LOCALIZED"}
    assert f"{len(run.records)} frames: 100.0 % LOCALIZED" in run.err


def test_signal_to_the_whole_group_like_ctrl_c(tmp_path):
    """Ctrl-C reaches all processes at once: they leave it to their parent."""
    (tmp_path / "stub.json").write_text(json.dumps(LIVE))
    process = subprocess.Popen(
        [
            *(sys.executable, STUB_RUN, "--camera", "0", "--map", tmp_path),
            *("--realtime", "off"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 0
    assert b"Traceback" not in err
    assert all(json.loads(line)["frame_id"] for line in out.splitlines())


def test_start_errors_are_one_line(stub_run, tmp_path):
    """What a worker cannot open ends the run with its own line and exit code."""
    run = stub_run("--out", f"jsonl:{tmp_path}/no/such/folder/x").finish()
    assert run.process.returncode == 2
    (line,) = run.err.splitlines()
    assert line.startswith("edgeloc-run: error: --out")
    assert "cannot be written" in line


def test_publisher_stopped(stub_run):
    """The publisher stands still (SIGSTOP): after 5 s the run ends, exit code 70.

    No record is invented by anybody else; no process stays behind.
    """
    run = stub_run(**LIVE)
    run.wait_for(lambda r: len(r.records) >= 5)
    (pid,) = run.worker_pids("publisher")
    os.kill(pid, signal.SIGSTOP)
    assert run.finish().process.returncode == 70
    run.assert_one_record_per_frame()
    assert "the publisher answers nothing since 5." in run.err
    assert not Path(f"/proc/{pid}").exists()
