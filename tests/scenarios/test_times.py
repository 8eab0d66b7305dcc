"""Times that are wrong, frames that are late, and answers that are."""

from __future__ import annotations

MS = 1_000_000


def test_duplicate_backward_and_jumping_timestamps(stub_run):
    """A live camera repeats a time, steps back, and jumps an hour both ways.

    Each frame has one record; ids count frames, and times increase: a time that does
    not move on becomes the last plus 1 ns, one that cannot be on this clock becomes the
    arrival. No deadline is an hour away, and frames are LOCALIZED.
    """
    hour_ms = 3_600_000
    offsets = {"20": -10, "30": -25, "40": hour_ms, "50": -hour_ms}
    run = stub_run(live=True, num_frames=80, offsets_ms=offsets, rate_hz=100)
    run.wait_for(lambda r: len(r.records) >= 70)
    run.process.terminate()
    assert run.finish().process.returncode == 0
    run.assert_one_record_per_frame()
    times = [r["timestamp_ns"] for r in run.records]
    back = run.index_of(30)
    assert times[back] == times[back - 1] + 1
    for jumped in (run.index_of(40), run.index_of(50)):
        assert 0 < times[jumped] - times[jumped - 1] < 100 * MS
    assert all(
        abs(arrival - r["timestamp_ns"]) < 1000 * MS
        for arrival, r in zip(run.arrivals_ns, run.records, strict=True)
    )
    assert len(run.of(status="LOCALIZED")) >= 60
    assert "duplicates" in run.err


def test_recording_with_repeated_times(stub_run):
    """The same for a recording, whose times only need to increase."""
    run = stub_run(live=False, num_frames=40, offsets_ms={"10": -10, "20": -60})
    assert run.finish().process.returncode == 0
    run.assert_one_record_per_frame()
    assert len(run.records) == 40
    assert "2 duplicates" in run.err


def test_frames_older_than_the_budget(stub_run):
    """Frames that arrive when their deadline is over are counted, not processed.

    They still have their record at once: PREDICTED or LOST, cause DEADLINE, late.
    """
    offsets = {str(number): -200 for number in range(20, 40)}
    run = stub_run(live=True, num_frames=70, offsets_ms=offsets, rate_hz=50)
    run.wait_for(lambda r: len(r.records) >= 60)
    run.process.terminate()
    assert run.finish().process.returncode == 0
    old = run.records[20]
    assert old["cause"] == "DEADLINE"
    # 200 ms before the last frame; its time is the last one plus 1 ns.
    assert old["timestamp_ns"] == run.records[19]["timestamp_ns"] + 1
    stale = [r for r in run.records[20:40] if not r["deadline_met"]]
    assert len(stale) >= 8  # of 20, however busy the machine is
    assert {r["status"] for r in stale} <= {"PREDICTED", "LOST"}
    assert run.records[-2]["status"] == "LOCALIZED"


def test_estimator_slower_than_the_budget(stub_run):
    """Each fix takes 60 ms, the budget is 20 ms, frames come every 25 ms.

    All records are on time: PREDICT (cause DEADLINE) from fixes that came too late for
    their own frame and are counted as late fixes; frames that came meanwhile are
    counted as dropped, and have their record, too.
    """
    run = stub_run(
        *("--budget-ms", 20), live=False, num_frames=60, rate_hz=40, cost_ms=60
    ).finish()
    assert run.process.returncode == 0
    run.assert_one_record_per_frame()
    assert len(run.records) == 60
    assert run.of(status="LOCALIZED") == []
    assert {r["cause"] for r in run.records} == {"DEADLINE"}
    assert len(run.of(status="PREDICTED")) >= 40
    assert "late fixes" in run.err
    assert " 0 dropped" not in run.err


def test_cheap_candidate_stands_in_at_the_deadline(stub_run):
    """A coarse pose is offered after 5 ms, the fix takes 80 ms, the budget is 40 ms.

    At the deadline the coarse pose goes out: COARSE by INTERPOLATE, cause DEADLINE.
    """
    run = stub_run(
        *("--budget-ms", 40),
        live=False,
        num_frames=10,
        rate_hz=8,
        cost_ms=80,
        offer_after_ms=5,
        motion=False,
    ).finish()
    run.assert_one_record_per_frame()
    coarse = run.of(status="COARSE")
    assert len(coarse) >= 8
    assert {(r["rung"], r["cause"]) for r in coarse} == {("INTERPOLATE", "DEADLINE")}
    latencies_ms = [r["latency_ms"] for r in coarse]
    assert min(latencies_ms) > 30


def test_without_motion_a_late_answer_is_no_pose(stub_run):
    """No prediction is made up where nothing is known: LOST, cause DEADLINE."""
    run = stub_run(
        *("--budget-ms", 20),
        live=False,
        num_frames=20,
        rate_hz=40,
        cost_ms=60,
        motion=False,
    ).finish()
    run.assert_one_record_per_frame()
    assert {(r["status"], r["cause"]) for r in run.records} == {("LOST", "DEADLINE")}
    assert all(r["position"] is None for r in run.records)


def test_fixed_records_come_at_their_deadline(stub_run):
    """`--emit fixed`: records arrive at timestamp + budget, however fast the answer."""
    run = stub_run(
        *("--emit", "fixed", "--budget-ms", 50), live=False, num_frames=30, rate_hz=25
    ).finish()
    run.assert_one_record_per_frame()
    delays_ms = [
        (arrival - r["timestamp_ns"]) / MS
        for arrival, r in zip(run.arrivals_ns, run.records, strict=True)
    ]
    assert min(delays_ms) >= 50
    assert sorted(delays_ms)[15] < 60, "generous: other work may hold the cores"
    assert run.records[15]["latency_ms"] < 40, "when it was known"
