"""Progress on standard error, on a terminal and in a log."""

from __future__ import annotations

import re

import pytest

from edgeloc_tools.progress import StderrProgress, silent, track


class Steps:
    """Remembers what it is told."""

    def __init__(self):
        self.told = []

    def __call__(self, step, done, total):
        self.told.append((step, done, total))


def test_track_reports_each_item_when_it_is_done():
    steps = Steps()
    for item in track(["a", "b", "c"], "features", steps):
        steps.told.append(item)
    assert steps.told == [
        *("a", ("features", 1, 3)),
        *("b", ("features", 2, 3)),
        *("c", ("features", 3, 3)),
    ]


def test_track_takes_a_generator_and_knows_its_length():
    steps = Steps()
    assert list(track((k for k in range(2)), "pairs", steps)) == [0, 1]
    assert steps.told == [("pairs", 1, 2), ("pairs", 2, 2)]


def test_track_of_nothing_reports_nothing():
    steps = Steps()
    assert list(track([], "features", steps)) == []
    assert steps.told == []


def test_an_item_that_fails_is_not_reported():
    steps = Steps()
    inverses = (1 // item for item in track([1, 0], "features", steps))
    with pytest.raises(ZeroDivisionError):
        list(inverses)
    assert steps.told == [("features", 1, 2)]


def test_silence(capsys):
    silent("features", 1, 1)
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [1000.0]
    monkeypatch.setattr("edgeloc_tools.progress.time.monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(capsys, clock):
    """100 frames of half a second each: not 100 lines."""
    progress = StderrProgress()
    for done in range(1, 101):
        clock[0] += 0.5
        progress("features", done, 100)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert 3 <= len(lines) <= 8
    assert "\r" not in err
    assert "\x1b" not in err
    assert lines[-1].startswith("features: 100/100 in ")
    seconds = float(re.fullmatch(r"features: 100/100 in (\d+\.\d) s", lines[-1])[1])
    assert 49.0 <= seconds <= 50.0


def test_every_step_gets_its_end(capsys, clock):
    progress = StderrProgress()
    for step in ("features", "matches"):
        for done in (1, 2):
            clock[0] += 0.1
            progress(step, done, 2)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "2/2" in line] == [
        "features: 2/2 in 0.1 s",
        "matches: 2/2 in 0.1 s",
    ]


def test_a_terminal_gets_one_line_that_is_rewritten(capsys, clock, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress = StderrProgress()
    for done in range(1, 41):
        clock[0] += 0.05
        progress("features", done, 40)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.search(r"features: 40/40 in (1\.9|2\.0) s\n$", err)
    shown = err.split("\r\x1b[K")[1:]
    assert 8 <= len(shown) <= 15
    assert all(text.startswith("features: ") for text in shown)
