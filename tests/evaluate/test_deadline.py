"""The tool that judges deadlines from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from edgeloc.geometry.se3 import exp_se3, quat_from_rotation
from edgeloc_tools.evaluate import deadline
from edgeloc_tools.evaluate.deadline import HEADER, Setting, cells, read_arrivals, row

MS = 1_000_000
SETTING = Setting(budget_ms=33.0, emit="asap", realtime="off", load=0)


def record(number, pose=None, *, status="LOCALIZED", rung="TRACK", sigma=0.01):
    return {
        "frame_id": number,
        "source": f"{number}.png",
        "timestamp_ns": number * 100 * MS,
        "status": status,
        "rung": rung,
        "qvec": None if pose is None else quat_from_rotation(pose.R).tolist(),
        "tvec": None if pose is None else pose.t.tolist(),
        "covariance": (np.eye(6) * sigma**2).ravel().tolist(),
    }


def test_arrival_is_when_the_end_of_the_line_comes():
    reader, writer = os.pipe()

    def write():
        os.write(writer, b"one\ntw")
        time.sleep(0.2)
        os.write(writer, b"o\nthree\n")
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    lines = read_arrivals(reader)
    thread.join()
    os.close(reader)
    assert [line for _, line in lines] == [b"one", b"two", b"three"]
    assert lines[1][0] - lines[0][0] > 100 * MS


def test_on_time_counts_missing_records_and_allows_two_milliseconds():
    delays_ms = [5.0, 33.0, 34.9, 35.1, 80.0]
    arrived = [
        (number * 100 * MS + round(delay * MS), record(number))
        for number, delay in enumerate(delays_ms)
    ]
    found = row(SETTING, arrived, num_frames=6, truth={})
    assert found.on_time == 3 / 6
    assert found.num_records == 5
    assert found.arrival_ms["max"] == 80.0
    assert found.arrival_ms["p50"] == 34.9
    assert np.isclose(found.arrival_ms["std"], np.std(delays_ms))
    assert found.localized == 5 / 6
    assert found.rungs["TRACK"] == 5 / 6
    assert len(cells(found)) == len(HEADER)


def test_poses_are_compared_with_the_truth():
    true = exp_se3([0.1, 0.2, 0.3, 1.0, 2.0, 3.0])
    off = exp_se3([0, 0, 0, 0.02, 0, 0])
    arrived = [
        (0, record(0, off @ true)),
        (1, record(1, off @ true, status="PREDICTED", rung="PREDICT", sigma=0.01)),
        (2, record(2, off @ true, status="PREDICTED", rung="PREDICT", sigma=0.001)),
        (3, record(3, exp_se3([0, 0, 0, 5.0, 0, 0]) @ true)),
        (4, record(4, status="LOST", rung="LOST")),
        (5, record(5, off @ true)),
    ]
    truth = {f"{number}.png": true for number in range(5)}
    found = row(SETTING, arrived, num_frames=6, truth=truth)
    assert np.isclose(found.position_error, 0.02)
    assert found.inside_3_sigma == 0.5
    assert found.num_wrong == 1


def test_settings_are_all_combinations():
    args = deadline._parser().parse_args(
        [
            *("--map", "m", "--camera", "c", "--budgets", "20,33"),
            *("--load", "0,2", "--emit", "asap,fixed", "--realtime", "off,auto"),
        ]
    )
    settings = deadline._settings(args)
    assert len(settings) == len(set(settings)) == 16
    assert settings[0] == Setting(budget_ms=20.0, emit="asap", realtime="off", load=0)


def test_busy_processes_end_with_the_measurement():
    with deadline.busy(2):
        pass
    left = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "args="],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    assert "while True: pass" not in left


def test_run_that_fails_says_why(tmp_path):
    with pytest.raises(deadline.EdgelocError, match=r"has no site\.json"):
        deadline.play(
            SETTING,
            site=deadline.Path(tmp_path),
            camera=tmp_path / "none",
            rate_hz=30,
            extra=(),
        )


@pytest.mark.parametrize("option", [("--budgets", "soon"), ("--repeat", "0")])
def test_nonsense_is_a_usage_error(option, capsys):
    assert deadline.main(["--map", "m", "--camera", "c", *option]) == 2
    assert capsys.readouterr().err.startswith("error: --")


def test_demo_clip_as_a_camera(tmp_path):
    """The whole tool on a few pictures of the packaged clip: a row comes out."""
    import cv2

    from edgeloc.cli.run import demo_paths

    clip, site = demo_paths()
    video = cv2.VideoCapture(str(clip))
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        _, image = video.read()
        cv2.imwrite(str(folder / f"{number:03d}.jpg"), image)
    video.release()
    script = (
        "import sys\n"
        "from edgeloc_tools.evaluate.deadline import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-c", script, "--map", str(site)),
            *("--camera", str(folder), "--budgets", "2000", "--rate", "5"),
            *("--json", str(tmp_path / "rows.json")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n|") == 3
    (found,) = json.loads((tmp_path / "rows.json").read_text())
    assert found["num_records"] == found["num_frames"] == 12
    assert found["on_time"] == 1.0
    assert found["localized"] > 0.0, "generous: other work may hold the cores"
