"""Replaying logs: the same answers again, and whatever is different is seen."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from log_cases import MS, estimate_of, lost_estimate_of

from edgeloc.cli import replay as replay_command
from edgeloc.cli.run import demo_paths
from edgeloc.clock import ManualClock
from edgeloc.errors import ConfigError
from edgeloc.geometry.se3 import exp_se3
from edgeloc.runtime.estimator import Estimator
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.runtime.frame_source import UnreadableFrame
from edgeloc.runtime.log_format import record_bytes
from edgeloc.runtime.log_reader import LogReader
from edgeloc.runtime.loop import lost_estimate
from edgeloc.runtime.record import (
    RecordOptions,
    open_recorder,
    session_of,
    source_facts,
)
from edgeloc.runtime.replay import (
    CLOSE,
    EXACT,
    LogRewriter,
    ReplayClock,
    ReplayGaps,
    differences,
    replay_session,
)
from edgeloc.runtime.sources import open_source
from edgeloc.tiles.reader import open_site
from edgeloc.types import Cause, FrameBudget, Rung

OPTIONS = {"method": "auto", "cold": True, "seed": 0, "backend": "auto", "threads": 1}


class RestlessClock:
    """A machine under changing load: every look at the clock takes a while."""

    def __init__(self, seed, longest_ns):
        self._rng = np.random.default_rng(seed)
        self._longest_ns = longest_ns
        self._now_ns = 1_000

    def now_ns(self):
        self._now_ns += int(self._rng.integers(self._longest_ns))
        return self._now_ns

    def sleep_until_ns(self, deadline_ns):
        self._now_ns = max(self._now_ns, deadline_ns)

    def patience_s(self, deadline_ns):
        return None


@pytest.fixture(scope="module")
def demo():
    try:
        return demo_paths()
    except ConfigError as exc:
        pytest.skip(str(exc))


def record(
    path, demo, clock, num_frames, *, cold, images, budget_ms=None, unreadable=()
):
    """Record a run on the demo; return its answers."""
    clip, site_path = demo
    site = open_site(site_path)
    (camera,) = site.manifest.cameras.values()
    source = open_source(str(clip), clock=clock)
    recorder = open_recorder(
        path,
        session_of(
            site=site,
            camera=camera,
            source=source_facts(source.name, live=False),
            config={**OPTIONS, "cold": cold, "an-option-of-later": 1},
            images=images,
            offers=not cold,
            clock=clock,
        ),
        clock=clock,
        options=RecordOptions(jpeg_quality=80),
    )
    estimator = Estimator(
        site=site,
        camera=camera,
        options=EstimatorOptions(cold=cold),
        clock=recorder.clock,
    )
    estimator.warm_up()
    budget_ns = 10**15 if budget_ms is None else round(budget_ms * MS)
    offered = []
    answers = []
    for _ in range(num_frames):
        frame = source.read()
        start_ns = clock.now_ns()
        budget = FrameBudget(
            start_ns=start_ns, deadline_ns=start_ns + budget_ns, clock=clock
        )
        if frame.frame_id in unreadable:
            frame = UnreadableFrame(
                frame_id=frame.frame_id,
                camera_id="0",
                timestamp_ns=frame.timestamp_ns,
                source=frame.source,
                reason=f"{frame.source} is empty",
            )
        budget = recorder.frame(frame, budget)
        if isinstance(frame, UnreadableFrame):
            estimate = lost_estimate(frame, budget, map_id=site.manifest.map_id)
        elif cold:
            estimate = estimator.step(frame, budget)
        else:
            estimate = estimator.step(frame, budget, offer=offered.append)
        recorder.estimate(estimate)
        answers.append(estimate)
    source.close()
    recorder.close()
    assert recorder.num_lost_frames == 0
    return answers


@pytest.fixture(scope="module")
def hurried(demo, tmp_path_factory):
    """A run, cold and then warm, that has no time for all: its log and its answers."""
    path = tmp_path_factory.mktemp("log") / "hurried.log"
    answers = []
    for cold, budget_ms in ((True, 40), (False, 25)):
        clock = RestlessClock(seed=4, longest_ns=6 * MS)
        answers += record(
            *(path, demo, clock, 5),
            cold=cold,
            images="reference",
            budget_ms=budget_ms,
            unreadable={3},
        )
    return path, answers


@pytest.fixture(scope="module")
def calm(demo, tmp_path_factory):
    """A cold run of two frames, as JPEG."""
    path = tmp_path_factory.mktemp("log") / "calm.log"
    answers = record(path, demo, ManualClock(), 2, cold=True, images="jpeg")
    return path, answers


def replayed_frames(path, demo, **changes):
    site, found, gaps = open_site(demo[1]), [], ReplayGaps()
    with LogReader(path) as log:
        for session, entries in log.sessions():
            cold = bool(session.config["cold"])
            options = {"options": EstimatorOptions(cold=cold), **changes}
            steps = (entry for entry in entries if hasattr(entry, "frame"))
            found += replay_session(session, steps, site=site, gaps=gaps, **options)
    return found, gaps


def same_but_times(a, b):
    return not differences(a, b, EXACT)


# --- the same again


def test_a_hurried_run_repeats_with_every_decision_it_made(hurried, demo):
    """Budget decisions depend on the clock alone, and the log has what that said."""
    path, answers = hurried
    assert {a.rung for a in answers} >= {
        *(Rung.TRACK, Rung.RELOCALIZE, Rung.INTERPOLATE, Rung.LOST)
    }
    assert {Cause.DEADLINE, Cause.CAMERA_STALL} <= {a.cause for a in answers}
    found, gaps = replayed_frames(path, demo)
    assert gaps.num_lost == 0
    assert [f.num_readings_off for f in found] == [0] * len(answers)
    for then, now in zip(answers, found, strict=True):
        assert same_but_times(then, now.answer.estimate)
        assert differences(then, now.estimate, EXACT) == []
        # The clock is the run's, so that even the times are.
        assert now.estimate.latency_ns == then.latency_ns
        assert now.estimate.stage_ns == then.stage_ns


def test_without_the_clock_of_the_run_other_decisions_are_made(hurried, demo, tmp_path):
    """What the test before shows is not that decisions do not matter."""
    path, answers = hurried
    timeless = tmp_path / "timeless.log"
    with LogReader(path) as log, timeless.open("wb") as out:
        for session, entries in log.sessions():
            out.write(record_bytes(session))
            for step in entries:
                if hasattr(step, "frame"):
                    out.write(record_bytes(replace(step.frame, before=())))
                    out.write(record_bytes(replace(step.answer, readings=())))
    found, _ = replayed_frames(timeless, demo)
    assert any(f.num_readings_off > 0 for f in found)
    assert not all(
        same_but_times(then, now.estimate)
        for then, now in zip(answers, found, strict=True)
    )


def test_another_option_is_seen(calm, demo):
    path, _ = calm
    options = EstimatorOptions(cold=True, method="interpolate")
    found, _ = replayed_frames(path, demo, options=options)
    for frame in found:
        fields = {
            d.field for d in differences(frame.answer.estimate, frame.estimate, CLOSE)
        }
        assert {"status", "rung"} <= fields


def test_jpeg_pictures_give_close_answers_and_not_the_same(calm, demo):
    path, _ = calm
    found, _ = replayed_frames(path, demo)
    assert [f.num_readings_off for f in found] == [0, 0]
    for frame in found:
        assert differences(frame.answer.estimate, frame.estimate, CLOSE) == []
        assert differences(frame.answer.estimate, frame.estimate, EXACT) != []


def test_frames_that_are_not_there_are_counted(hurried, demo, tmp_path):
    path, _ = hurried
    short = tmp_path / "short.log"
    with LogReader(path) as log, short.open("wb") as out:
        for session, entries in log.sessions():
            out.write(record_bytes(session))
            for step in list(entries)[: 3 * session.config["cold"]]:
                if step.frame_id == 0:  # the disk was too slow
                    out.write(record_bytes(step.answer))
                    continue
                frame = step.frame
                if step.frame_id == 1:  # the video is another one
                    other = replace(frame.image, pixels_sha256="00" * 32)
                    frame = replace(frame, image=other)
                out.write(record_bytes(frame))
                if step.frame_id != 2:  # the program died in it
                    out.write(record_bytes(step.answer))
    found, gaps = replayed_frames(short, demo)
    assert [f.frame.frame_id for f in found] == [2]
    assert found[0].answer is None
    assert gaps.num_lost == 2
    assert gaps.reasons[0] == "frame 0 is not in the log"
    assert gaps.reasons[1].endswith("has other pixels for clip.mp4#1 than in the run")


# --- parts


def test_replay_clock_says_again_what_was_said():
    clock = ReplayClock(7)
    assert clock.now_ns() == 7
    clock.begin((10, 20, 30))
    assert (clock.now_ns(), clock.now_ns()) == (10, 20)
    clock.sleep_until_ns(10**18)
    assert clock.said == (10, 20)
    assert clock.end() == 1
    clock.begin((40,))
    assert [clock.now_ns() for _ in range(3)] == [40, 40, 40]
    assert clock.end() == 2


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"timestamp_ns": 1}, "timestamp_ns"),
        ({"deadline_met": False}, "deadline_met"),
        ({"map_id": "other"}, "map_id"),
        ({"rung": Rung.TRACK}, "rung"),
        ({"cause": Cause.DEADLINE}, "cause"),
        ({"num_matches": 301}, "num_matches"),
        ({"num_inliers": 199}, "num_inliers"),
        ({"reproj_rmse_px": 0.31}, "reproj_rmse_px"),
        ({"covariance": np.eye(6)}, "covariance"),
    ],
)
def test_every_field_is_compared(change, field):
    found = differences(estimate_of(3), estimate_of(3, **change), EXACT)
    assert [d.field for d in found] == [field]
    assert found[0].frame_id == 3


def test_times_are_not_compared_and_equal_is_equal():
    again = estimate_of(0, latency_ns=1, stage_ns={"x": 1})
    assert differences(estimate_of(0), again, EXACT) == []
    nan = estimate_of(0, reproj_rmse_px=float("nan"))
    assert differences(nan, nan, EXACT) == []


def moved(estimate, xi):
    return replace(estimate, cam_from_world=exp_se3(xi) @ estimate.cam_from_world)


@pytest.mark.parametrize(
    ("xi", "exact", "close"),
    [
        (np.zeros(6), [], []),
        (np.full(6, 1e-9), [], []),
        ([0, 0, 0, 1e-4, 0, 0], ["position"], []),
        ([0, 0, 0.01, 0, 0, 0], ["rotation"], []),
        ([0, 0, 0, 0.5, 0, 0], ["position"], ["position"]),
        ([0.5, 0, 0, 0, 0, 0], ["rotation"], ["rotation"]),
    ],
)
def test_poses_are_compared(xi, exact, close):
    """The logged sigma is 0.1 * sqrt(3), so that close means 0.52."""
    before = estimate_of(0, covariance=np.eye(6) * 0.01)
    before = moved(before, np.zeros(6))
    origin = replace(before, cam_from_world=exp_se3(np.zeros(6)))
    after = moved(origin, np.asarray(xi, float))
    assert [d.field for d in differences(origin, after, EXACT)] == exact
    after = moved(origin, np.asarray(xi, float) * 1.1)
    assert [d.field for d in differences(origin, after, CLOSE)] == close


def test_a_lost_pose_is_told_by_the_status():
    found = differences(estimate_of(0), lost_estimate_of(0), CLOSE)
    assert [(d.field, d.logged, d.replayed) for d in found] == [
        ("status", "LOCALIZED", "LOST"),
        ("rung", "RELOCALIZE", "LOST"),
        ("cause", "NONE", "FEW_MATCHES"),
    ]


def test_a_log_that_cannot_be_written_leaves_the_old_one(calm, demo, tmp_path):
    path = tmp_path / "again.log"
    path.write_bytes(b"precious")

    def fail():
        with LogRewriter(path):
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ConfigError, match=r"--write .* cannot be written"):
        LogRewriter(tmp_path / "no" / "x.log")


# --- the command


@pytest.fixture
def edgeloc_replay(capsys):
    def call(*arguments):
        try:
            code = replay_command.main([str(argument) for argument in arguments])
        except SystemExit as exc:  # argparse leaves this way
            code = exc.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_compare_prints_a_table_of_differences(edgeloc_replay, calm):
    path, _ = calm
    code, out, err = edgeloc_replay(path, "--compare", "--tolerance", "exact")
    lines = out.splitlines()
    assert code == 1
    assert lines[0].split() == ["frame", "field", "log", "replay"]
    assert {line.split()[0] for line in lines[1:-1]} == {"0", "1"}
    assert lines[-1].startswith("2 frames compared with exact tolerances: 0 equal, 2")
    code, out, err = edgeloc_replay(path, "--compare", "--max-frames", "1")
    assert (code, out[:37]) == (0, "1 frames compared with close tolerances"[:37])
    assert "comparing with close tolerances: the pictures are JPEG" in err


def test_renewed_answers_are_exact(edgeloc_replay, calm, demo, tmp_path):
    """How a reference is renewed: the pictures stay, the answers are those of today.

    Where things are on this machine stays out of it.
    """
    path, _ = calm
    again = tmp_path / "again.log"
    code, out, _ = edgeloc_replay(path, "--write", again)
    assert (code, out) == (0, "")
    assert str(demo[1].parent).encode() not in again.read_bytes()
    code, out, err = edgeloc_replay(again, "--map", demo[1], "--compare")
    assert code == 0
    assert out == (
        "2 frames compared with exact tolerances: 2 equal, 0 different; 0 could not be "
        "replayed\n"
    )
    assert "options of the run that this edgeloc does not know: an-option-of-later" in (
        err
    )


def test_without_more_words_it_prints_the_new_records(edgeloc_replay, calm):
    path, answers = calm
    code, out, _ = edgeloc_replay(path)
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [r["frame_id"] for r in records] == [0, 1]
    assert [r["source"] for r in records] == ["clip.mp4#0", "clip.mp4#1"]
    assert records[0]["status"] == "LOCALIZED"
    assert records[0]["num_inliers"] != answers[0].num_inliers  # JPEG
    code, out, _ = edgeloc_replay(path, "--recorded")
    recorded = [json.loads(line) for line in out.splitlines()]
    assert [r["num_inliers"] for r in recorded] == [a.num_inliers for a in answers]
    assert set(recorded[0]) == set(records[0])
    code, out, _ = edgeloc_replay(path, "--recorded", "--frame", "1")
    assert [json.loads(line)["frame_id"] for line in out.splitlines()] == [1]


def test_why(edgeloc_replay, calm, tmp_path):
    path, _ = calm
    picture = tmp_path / "why.png"
    code, out, _ = edgeloc_replay(path, "--frame", "1", "--why", "--picture", picture)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "frame 1 (clip.mp4#1): LOCALIZED by RELOCALIZE"
    assert lines[1].startswith("  position (")
    text = "\n".join(lines[2:])
    for part in (
        " ms in the run",
        "stages, ms: ",
        " features",
        "10 keyframes retrieved, best first:",
        "    keyframe ",
        "    RELOCALIZE: LOCALIZED, ",
        " inliers, residual ",
    ):
        assert part in text, part
    drawn = cv2.imread(str(picture))
    assert drawn.shape == (675, 1575, 3)
    greens = np.all(np.abs(drawn.astype(int) - (80, 220, 60)) < 40, axis=2)
    assert greens[:, :900].sum() > 1000  # inliers on the picture
    assert greens[:, 900:].sum() > 100  # landmarks on the plan


def test_why_of_frames_without_an_answer(edgeloc_replay, hurried):
    path, _ = hurried
    code, out, err = edgeloc_replay(path, "--frame", "3", "--why", "--picture", "x.png")
    assert out.splitlines() == [
        "frame 3 (clip.mp4#3): LOST by LOST, since nothing better: CAMERA_STALL",
        "  unreadable: clip.mp4#3 is empty",
    ]
    assert (code, err.splitlines()[-1]) == (
        2,
        "edgeloc-replay: error: frame 3 has no picture to draw on",
    )


def test_info(edgeloc_replay, hurried, demo):
    path, _ = hurried
    code, out, _ = edgeloc_replay(path, "--info")
    cold, facts = (json.loads(line) for line in out.splitlines())
    assert code == 0
    assert (cold["session"], facts["session"]) == (1, 2)
    assert facts["frames"] == facts["answers"] == 5
    assert facts["pictures"] == 4
    assert facts["map"]["path"] == str(demo[1])
    assert facts["config"]["method"] == "auto"
    assert facts["ended"] is True
    assert facts["counters"]["log_lost_frames"] == 0


def test_sessions_are_told_apart(edgeloc_replay, calm, tmp_path):
    path = tmp_path / "two.log"
    data = calm[0].read_bytes()
    path.write_bytes(data[: len(data) // 2] + data)
    code, out, err = edgeloc_replay(path, "--recorded")
    assert code == 0
    assert len(out.splitlines()) == 1 + 2
    assert "the session breaks off at byte" in err
    assert len(edgeloc_replay(path, "--recorded", "--session", 2)[1].splitlines()) == 2
    code, _, err = edgeloc_replay(path, "--recorded", "--session", 3)
    assert code == 2
    assert f"--session 3: {path} has 2 of them" in err
    infos = [json.loads(x) for x in edgeloc_replay(path, "--info")[1].splitlines()]
    assert [info["ended"] for info in infos] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--picture", "x.png"], "--picture needs --frame ID"),
        (["--why", "--compare"], "--compare and --why exclude each other"),
        (["--info", "--recorded"], "--info and --recorded exclude each other"),
        (["--session", "0"], "--session must be at least 1, got 0"),
        (["--max-frames", "-1"], "--max-frames must be at least 1, got -1"),
        (["--write", "x", "--frame", "1"], "--write takes the whole log"),
        (["--quiet", "--debug"], "--quiet and --debug exclude each other"),
        (["--frame", "99"], "--frame 99: "),
        (["--map", "nowhere"], "nowhere"),
    ],
)
def test_wrong_calls_are_one_line(edgeloc_replay, calm, arguments, message):
    code, _, err = edgeloc_replay(calm[0], *arguments)
    assert code == (3 if "--map" in arguments else 2)
    last = err.splitlines()[-1]
    assert last.startswith("edgeloc-replay: error: ")
    assert message in last


def test_a_site_that_is_gone_is_asked_for(edgeloc_replay, calm, tmp_path):
    path = tmp_path / "moved.log"
    with LogReader(calm[0]) as log:
        ((session, _),) = [(s, list(e)) for s, e in log.sessions()]
    path.write_bytes(record_bytes(replace(session, map_path="/gone")))
    code, _, err = edgeloc_replay(path, "--compare")
    assert code == 2
    assert "/gone: the site of the run is not here; say where it is with --map" in err
    code, _, err = edgeloc_replay(path, "--compare", "--map", session.map_path)
    assert code == 2
    assert "has no answer that can be compared" in err


def test_a_file_that_is_no_log_is_one_line(edgeloc_replay, tmp_path):
    path = tmp_path / "x.log"
    path.write_text("hello")
    code, _, err = edgeloc_replay(path)
    assert code == 2
    assert err == (
        f"edgeloc-replay: error: {path}: is not a log of edgeloc-run; expected what "
        "--record wrote\n"
    )


def test_help_and_version(edgeloc_replay):
    code, out, _ = edgeloc_replay("--help")
    assert code == 0
    assert "exit codes: 0 ok" in out
    assert edgeloc_replay("--version")[1].startswith("edgeloc-replay ")
