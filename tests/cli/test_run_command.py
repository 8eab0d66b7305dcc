"""`edgeloc-run` from arguments to records and exit codes; the estimator is a fake."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys

import cv2
import msgpack
import numpy as np
import pytest

from edgeloc import __version__


def assert_one_line_error(outcome, code, *parts):
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    errors = [
        line for line in outcome.err.splitlines() if line.startswith("edgeloc-run: err")
    ]
    assert len(errors) == 1
    assert "Traceback" not in outcome.err
    for part in parts:
        assert part in errors[0]


def test_folder_gives_one_record_per_image(edgeloc_run, images, site):
    outcome = edgeloc_run("--camera", images, "--map", site, "--seed", 7)
    assert outcome.code == 0
    assert [r["source"] for r in outcome.records] == [f"{i}.png" for i in range(5)]
    assert {r["map_id"] for r in outcome.records} == {"fake"}
    assert outcome.records[0]["position"] == [64.0, 7.0, 0.0]
    assert all(r["deadline_met"] for r in outcome.records), "budget from processing"
    assert "5 frames: 100.0 % LOCALIZED" in outcome.err
    assert "backend auto: ort-cpu, as this site needs no network" in outcome.err


def test_damaged_image_still_has_its_record(edgeloc_run, images, site):
    data = (images / "2.png").read_bytes()
    (images / "2.png").write_bytes(data[:-30])
    outcome = edgeloc_run("--camera", images, "--map", site)
    assert outcome.code == 0
    assert [r["frame_id"] for r in outcome.records] == [0, 1, 2, 3, 4]
    assert outcome.records[2]["status"] == "LOST"
    assert outcome.records[2]["cause"] == "CAMERA_STALL"
    assert "2.png is a truncated PNG" in outcome.err
    assert "1 unreadable" in outcome.err


def test_quiet_leaves_only_warnings(edgeloc_run, images, site):
    outcome = edgeloc_run("--camera", images, "--map", site, "--quiet")
    assert outcome.code == 0
    assert outcome.err == ""
    assert len(outcome.records) == 5


def test_all_sinks_get_every_record(edgeloc_run, images, site, tmp_path):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(5)
        outcome = edgeloc_run(
            *("--camera", images, "--map", site),
            *("--out", f"jsonl:{tmp_path}/o.jsonl", "--out", f"tum:{tmp_path}/o.txt"),
            *("--out", f"udp://127.0.0.1:{receiver.getsockname()[1]}"),
        )
        received = [msgpack.unpackb(receiver.recv(65536)) for _ in range(5)]
    assert outcome.code == 0
    assert outcome.out == "", "standard output was not asked for"
    written = [json.loads(x) for x in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert written == received
    assert np.loadtxt(tmp_path / "o.txt")[:, 1].tolist() == [64.0] * 5


def test_video_in_real_time_keeps_the_newest_frames(edgeloc_run, tmp_path, fake):
    """25 frames at 250 Hz and 20 ms each: most are dropped, and that is counted."""
    writer = cv2.VideoWriter(
        str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 250, (64, 48)
    )
    for _ in range(25):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    site = fake.make_fake_site(tmp_path / "slow-site", "slow")
    outcome = edgeloc_run(
        *("--camera", tmp_path / "v.avi", "--map", site, "--pace", "realtime"),
        "--single-process",
    )
    ids = [r["frame_id"] for r in outcome.records]
    assert ids == sorted(set(ids))
    assert ids[-1] == 24
    assert len(ids) < 20
    assert f"{25 - len(ids)} dropped" in outcome.err


def test_recording_has_no_deadline_unless_asked(edgeloc_run, images, tmp_path, fake):
    """Every frame is to be localized, not to be answered with cause DEADLINE."""
    site = fake.make_fake_site(tmp_path / "slow-site", "slow")
    arguments = ("--camera", images, "--map", site, "--max-frames", 2)
    patient = edgeloc_run(*arguments)
    assert [r["deadline_met"] for r in patient.records] == [True, True]
    assert "pace every, no deadline" in patient.err
    strict = edgeloc_run(*arguments, "--budget-ms", 1)
    assert [r["deadline_met"] for r in strict.records] == [False, False]
    assert "pace every, budget 1 ms" in strict.err
    realtime = edgeloc_run(*arguments, "--pace", "realtime", "--single-process")
    assert "pace realtime, budget 33 ms" in realtime.err


@pytest.mark.parametrize("check", [(), ("--check",)])
def test_fixed_emission_of_a_recording_needs_a_budget(edgeloc_run, images, site, check):
    arguments = ("--camera", images, "--map", site, "--emit", "fixed", *check)
    assert_one_line_error(edgeloc_run(*arguments), 2, "--emit fixed needs --budget-ms")
    assert edgeloc_run(*arguments, "--budget-ms", 5).code == 0


def test_other_image_size_is_scaled(edgeloc_run, tmp_path, site):
    cv2.imwrite(str(tmp_path / "half.png"), np.zeros((24, 32, 3), np.uint8))
    outcome = edgeloc_run("--camera", tmp_path / "half.png", "--map", site)
    assert outcome.records[0]["position"][0] == 32.0
    assert "intrinsics are for 64x48, images are 32x24: scaled" in outcome.err


def test_config_file_names_everything(edgeloc_run, images, site, tmp_path):
    (tmp_path / "run.toml").write_text(
        f'camera = "{images}"\nmap = "{site}"\nmax-frames = 4\nseed = 1\n'
    )
    outcome = edgeloc_run("--config", tmp_path / "run.toml", "--max-frames", 2)
    assert [r["position"][1] for r in outcome.records] == [1.0, 1.0]


def test_missing_map_is_exit_3(edgeloc_run, images, tmp_path):
    outcome = edgeloc_run("--camera", images, "--map", tmp_path / "none")
    assert_one_line_error(outcome, 3, "has no site.json")


@pytest.mark.parametrize(
    "camera", ["no/such/clip.mp4", "/dev/video97", "http://127.0.0.1:1/"]
)
def test_missing_camera_is_exit_5(edgeloc_run, site, camera):
    outcome = edgeloc_run("--camera", camera, "--map", site)
    assert_one_line_error(outcome, 5)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--kamera", "0"), "unrecognized arguments: --kamera"),
        (("--came", "0"), "unrecognized arguments: --came"),
        ((), "--camera SOURCE is missing (or use --demo); --map SITE is missing"),
        (("--camera",), "argument --camera: expected one argument"),
        (("--demo", "--emit", "later"), "--emit must be one of asap, fixed"),
        (("--demo", "--threads", "0"), "--threads must be from 1 to 256, got '0'"),
    ],
)
def test_usage_errors_are_exit_2(edgeloc_run, arguments, part):
    assert_one_line_error(edgeloc_run(*arguments), 2, part)


def test_bad_config_file_is_exit_2(edgeloc_run, tmp_path):
    (tmp_path / "run.toml").write_text("camra = 1\n")
    outcome = edgeloc_run("--config", tmp_path / "run.toml")
    assert_one_line_error(outcome, 2, "unknown key camra, did you mean camera")


@pytest.mark.parametrize(
    "backend", ["ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx"]
)
def test_missing_backend_is_exit_4(edgeloc_run, images, site, backend):
    outcome = edgeloc_run("--camera", images, "--map", site, "--backend", backend)
    assert_one_line_error(outcome, 4, f"--backend {backend}", "use --backend auto")


def test_bad_model_is_exit_4(edgeloc_run, images, tmp_path, fake):
    site = fake.make_fake_site(tmp_path / "s", "bad-model")
    outcome = edgeloc_run("--camera", images, "--map", site)
    assert_one_line_error(outcome, 4, "features.onnx")


def test_site_with_two_cameras_asks_for_intrinsics(edgeloc_run, images, tmp_path, fake):
    site = fake.make_fake_site(tmp_path / "s", "two-cameras")
    outcome = edgeloc_run("--camera", images, "--map", site)
    assert_one_line_error(outcome, 2, "--intrinsics is needed", "2 cameras (0, 1)")
    (tmp_path / "c.txt").write_text("SIMPLE_PINHOLE 64 48 50 32 24\n")
    again = edgeloc_run(
        *("--camera", images, "--map", site, "--intrinsics", tmp_path / "c.txt")
    )
    assert again.code == 0
    assert len(again.records) == 5


def test_other_shape_is_exit_2(edgeloc_run, tmp_path, site):
    cv2.imwrite(str(tmp_path / "tall.png"), np.zeros((64, 48, 3), np.uint8))
    outcome = edgeloc_run("--camera", tmp_path / "tall.png", "--map", site)
    assert_one_line_error(outcome, 2, "images are 48x64, another shape")


def test_bug_is_exit_70_and_shows_its_traceback_only_with_debug(
    edgeloc_run, images, tmp_path, fake
):
    site = fake.make_fake_site(tmp_path / "s", "buggy")
    arguments = ("--camera", images, "--map", site)
    assert_one_line_error(
        edgeloc_run(*arguments), 70, "internal error, TypeError: a bug", "--debug"
    )
    outcome = edgeloc_run(*arguments, "--debug")
    assert outcome.code == 70
    assert "Traceback" in outcome.err


def test_check_loads_everything_and_touches_no_output(
    edgeloc_run, images, site, tmp_path
):
    kept = tmp_path / "kept.jsonl"
    kept.write_text("yesterday's run\n")
    outcome = edgeloc_run(
        *("--check", "--camera", images, "--map", site, "--out", f"jsonl:{kept}")
    )
    assert outcome.code == 0
    (facts,) = outcome.records
    assert facts["ok"] is True
    assert facts["map_id"] == "fake"
    assert facts["size"] == [64, 48]
    assert facts["backend"] == "ort-cpu"
    assert facts["numpy"] == np.__version__
    assert kept.read_text() == "yesterday's run\n"


def test_check_without_a_camera_warms_up_with_the_sites(edgeloc_run, tmp_path, fake):
    site = fake.make_fake_site(tmp_path / "s", "two-cameras")
    assert edgeloc_run("--check", "--map", site).code == 0


def test_check_finds_a_damaged_site(edgeloc_run, tmp_path, fake):
    site = fake.make_fake_site(tmp_path / "s", "damaged")
    outcome = edgeloc_run("--check", "--map", site)
    assert_one_line_error(outcome, 3, "another sha256")


def test_demo_that_is_not_packaged_says_so(edgeloc_run, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    outcome = edgeloc_run("--demo")
    assert_one_line_error(outcome, 2, "has no clip.mp4 and site/", "or use --camera")
    checked = edgeloc_run("--check")
    assert checked.code == 0
    assert checked.records[0]["demo"] == "absent"


def test_version_and_help(edgeloc_run):
    outcome = edgeloc_run("--version")
    assert (outcome.code, outcome.out) == (0, f"edgeloc-run {__version__}\n")
    outcome = edgeloc_run("--help")
    assert outcome.code == 0
    assert "examples:" in outcome.out
    assert "exit codes: 0 ok" in outcome.out


def start(fake_run_path, *arguments):
    return subprocess.Popen(
        [sys.executable, str(fake_run_path), *(str(a) for a in arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("pace", ["every", "realtime"])
def test_signal_ends_the_run_within_a_frame(fake_run_path, images, site, number, pace):
    """At one frame in 20 s, the process must not wait for the next one either."""
    rate = 0.05 if pace == "realtime" else 30
    (site / "slow").touch()
    clip = images.parent / "long"
    clip.mkdir()
    data = (images / "0.png").read_bytes()
    for idx in range(300):
        (clip / f"{idx}.png").write_bytes(data)
    process = start(
        fake_run_path,
        *("--camera", clip, "--map", site, "--pace", pace, "--rate", rate),
        "--single-process",
    )
    try:
        first = json.loads(process.stdout.readline())
        assert first["frame_id"] == 0
        process.send_signal(number)
        out, err = process.communicate(timeout=5)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    records = [json.loads(line) for line in out.splitlines()]
    assert [r["frame_id"] for r in records] == list(range(1, len(records) + 1))
    assert len(records) < 250
    assert f"{len(records) + 1} frames: 100.0 % LOCALIZED" in err
    assert "Traceback" not in err


def test_reader_of_standard_output_may_leave(fake_run_path, images, site):
    """`edgeloc-run ... | head -1`."""
    (site / "slow").touch()
    process = start(fake_run_path, "--camera", images, "--map", site)
    assert json.loads(process.stdout.readline())["frame_id"] == 0
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(10) == 0
    assert "standard output was closed: ending" in err
    assert "BrokenPipe" not in err
