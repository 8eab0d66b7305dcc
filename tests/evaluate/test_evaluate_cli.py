"""`edgeloc-eval`: what it prints and the exit codes of what can be wrong."""

from __future__ import annotations

import json
import sys

import pytest

from edgeloc_tools.cli import eval as command

RECORDING = ["--format", "kapture", "--input", "queries"]


def run(*arguments):
    try:
        return command.main(list(arguments))
    except SystemExit as exc:
        return exc.code


@pytest.fixture
def working(mixed_result, monkeypatch):
    """The command around an evaluation that has been made."""
    asked = {}

    def evaluate(site, recording, **options):
        asked.update(options, site=site, recording=recording)
        return mixed_result

    monkeypatch.setattr("edgeloc.tiles.reader.open_site", lambda path: f"site {path}")
    monkeypatch.setattr(
        "edgeloc_tools.cli.recording_options.open_from_arguments",
        lambda args: f"{args.format} {args.input} {args.stride}",
    )
    monkeypatch.setattr("edgeloc_tools.evaluate.run.evaluate", evaluate)
    return asked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--map", "s"], "the following arguments are required: --format, --input"),
        (["--format", "kapture", "--input", "x"], "arguments are required: --map"),
        (["--map", "s", *RECORDING, "--budget-ms", "0"], "'0' is not a number > 0"),
        (["--map", "s", *RECORDING, "--budget-ms", "x"], "'x' is not a number > 0"),
        (["--map", "s", *RECORDING, "--limit", "0"], "0 must be at least 1"),
        (["--map", "s", *RECORDING, "--worst", "-1"], "'-1' is not a count"),
        (["--map", "s", *RECORDING, "--weighting", "none"], "invalid choice: 'none'"),
        (
            ["--map", "s", *RECORDING, "--method", "magic"],
            "--method magic is unknown, expected one of auto, structure",
        ),
        (["--map", "s", *RECORDING, "--budg", "33"], "unrecognized arguments: --budg"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(arguments, message, capsys):
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("edgeloc-eval: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_missing_site_exits_3(tmp_path, capsys):
    assert run("--map", str(tmp_path / "nowhere"), *RECORDING) == 3
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"{tmp_path / 'nowhere'}: is not a folder" in err


def test_missing_recording_exits_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("edgeloc.tiles.reader.open_site", lambda path: None)
    arguments = ["--format", "kapture", "--input", str(tmp_path / "none")]
    assert run("--map", "s", *arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(tmp_path / "none") in err


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_report_without_its_packages_says_what_to_install(
    package, monkeypatch, capsys, tmp_path
):
    for module in ("report", "plots"):
        name = f"edgeloc_tools.evaluate.{module}"
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    assert run("--map", "s", *RECORDING, "--report", str(tmp_path / "r")) == 2
    assert f"--report needs {package}: pip install 'edgeloc[build]'" in (
        capsys.readouterr().err
    )


def test_tables_on_stdout(working, capsys):
    assert run("--map", "here", *RECORDING, "--stride", "5") == 0
    out, err = capsys.readouterr()
    assert "ground truth: motion capture" in out
    assert "0.05 m, 5°" in out
    assert err == ""
    assert working["recording"] == "kapture queries 5"
    assert working["site"] == "site here"
    assert working["explain_worst"] == 0
    assert working["budget_ms"] is None


def test_json_on_stdout_and_nothing_else(working, capsys):
    assert run("--map", "s", *RECORDING, "--json") == 0
    stored = json.loads(capsys.readouterr().out)
    assert stored["summary"]["num_frames"] == 120
    assert stored["command"] == ["edgeloc-eval", "--map", "s", *RECORDING, "--json"]
    assert "processor" in stored["machine"]


def test_options_reach_the_estimator(working):
    run(
        *["--map", "s", *RECORDING, "--method", "interpolate", "--cold"],
        *["--weighting", "ewb", "--num-interpolated", "5", "--max-keypoints", "700"],
        *["--budget-ms", "33", "--limit", "7"],
        *["--backend", "ort-cpu", "--threads", "2"],
    )
    options = working["options"]
    assert (options.method, options.cold, options.max_keypoints) == (
        "interpolate",
        True,
        700,
    )
    assert (options.backend.backend, options.backend.threads) == ("ort-cpu", 2)
    assert options.interpolate.weighting == "ewb"
    assert options.interpolate.num_keyframes == 5
    assert working["budget_ms"] == 33.0
    assert working["limit"] == 7


def test_report_is_written_and_named_on_stderr(working, tmp_path, capsys):
    folder = tmp_path / "report"
    assert run("--map", "s", *RECORDING, "--report", str(folder)) == 0
    assert f"wrote {folder / 'report.html'}" in capsys.readouterr().err
    assert working["explain_worst"] == 6
    stored = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert stored["command"][-1] == str(folder)


def test_help_shows_examples_and_exit_codes(capsys):
    assert run("--help") == 0
    out = capsys.readouterr().out
    assert "edgeloc-eval --map site/ --format 7scenes" in out
    assert "exit codes: 0 ok, 2 usage" in out
