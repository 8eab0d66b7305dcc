"""`edgeloc-run --demo`: the real estimator on the packaged site and clip."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from edgeloc.cli.run import demo_paths, main
from edgeloc.errors import ConfigError

NUM_FRAMES = 12


@pytest.fixture(scope="module")
def demo():
    try:
        return demo_paths()
    except ConfigError as exc:
        pytest.skip(str(exc))


def test_demo_localizes_its_first_frames(demo):
    clip, _ = demo
    done = subprocess.run(
        [
            *(sys.executable, "-m", "edgeloc.cli.run", "--demo", "--cold"),
            # The budget is not what is tested: slow machines must pass, too.
            *("--budget-ms", "20000", "--max-frames", str(NUM_FRAMES)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["frame_id"] for r in records] == list(range(NUM_FRAMES))
    localized = [r for r in records if r["status"] == "LOCALIZED"]
    assert len(localized) >= NUM_FRAMES // 2
    assert len({r["map_id"] for r in records}) == 1
    truth_file = clip.with_name("clip_gt.txt")
    if truth_file.is_file():
        truth = np.loadtxt(truth_file)[:, 1:4]
        errors_m = [
            np.linalg.norm(truth[r["frame_id"]] - r["position"]) for r in localized
        ]
        assert np.median(errors_m) < 0.1


def test_installation_check_covers_the_demo(demo):
    done = subprocess.run(
        [sys.executable, "-m", "edgeloc.cli.run", "--check", "--quiet"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["ok"] is True
    assert facts["map"] == str(demo[1])
    assert facts["map_id"]


@pytest.mark.parametrize("method", ["scene-coords", "local-sfm", "relative", "regress"])
def test_a_method_without_data_is_exit_2(demo, capsys, method):
    clip, site = demo
    code = main(["--camera", str(clip), "--map", str(site), "--method", method])
    assert code == 2
    assert (
        f"edgeloc-run: error: --method {method}: {site} carries no data for it, only "
        "for RELOCALIZE, INTERPOLATE\n"
    ) in capsys.readouterr().err
