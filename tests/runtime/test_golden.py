"""The answers of the packaged demo stay what they are until somebody means it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeloc.cli import replay as replay_command
from edgeloc.cli.run import demo_paths
from edgeloc.runtime.log_reader import LogReader, Step
from edgeloc.types import PoseStatus, Rung

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
LOGS = ("cold.log", "warm.log")


def logged_answers(name):
    with LogReader(GOLDEN / name) as log:
        ((session, entries),) = [(s, list(e)) for s, e in log.sessions()]
        assert log.damage == []
    return session, [e.answer.estimate for e in entries if isinstance(e, Step)]


@pytest.mark.parametrize("name", LOGS)
def test_answers_are_those_of_the_reference(name, capsys):
    """Otherwise: see the table below, and tests/golden/README.md."""
    _, site = demo_paths()
    code = replay_command.main([str(GOLDEN / name), "--compare", "--map", str(site)])
    out, err = capsys.readouterr()
    assert code == 0, f"{out}\n{err}"
    assert "0 different; 0 could not be replayed" in out


@pytest.mark.parametrize("name", LOGS)
def test_a_renewed_reference_is_still_right(name):
    """What `--write` wrote without looking, this looks at: the truth is known."""
    clip, _ = demo_paths()
    truth = np.loadtxt(clip.with_name("clip_gt.txt"))[:, 1:4]
    session, answers = logged_answers(name)
    assert session.same_pixels
    for answer in answers:
        assert answer.status is PoseStatus.LOCALIZED
        off = truth[answer.frame_id] - answer.cam_from_world.origin_in_a
        sigma = np.sqrt(np.trace(answer.covariance[3:, 3:]))
        assert np.linalg.norm(off) < min(0.05, 3 * sigma)


def test_the_reference_shows_the_rungs_it_is_for():
    _, cold = logged_answers("cold.log")
    assert [a.rung for a in cold] == [Rung.RELOCALIZE] * 3
    _, warm = logged_answers("warm.log")
    assert [a.rung for a in warm] == [Rung.RELOCALIZE] + [Rung.TRACK] * 3


def test_the_reference_is_small():
    assert sum((GOLDEN / name).stat().st_size for name in LOGS) < 300_000
