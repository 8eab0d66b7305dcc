"""`edgeloc-eval`: localize a recording with ground truth and report how well."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from edgeloc.cli.common import EXIT_OK, OneLineParser, run_command, silence_opencv
from edgeloc.config import BACKEND_CHOICES
from edgeloc.errors import ConfigError

if TYPE_CHECKING:
    from edgeloc.runtime.estimator_options import EstimatorOptions

PROG = "edgeloc-eval"

_EXAMPLES = """\
  edgeloc-eval --map site/ --format 7scenes --input redkitchen --split test --stride 5
  edgeloc-eval --map site/ --format kapture --input query/ --report report/
  edgeloc-eval --map site/ --format colmap --input model/ --images photos/ \\
      --method interpolate --weighting ewb --json
  edgeloc-eval --map site/ --format kapture --input query/ --method all \\
      --build-report built/report.json --report methods/

exit codes: 0 ok, 2 usage or recording, 3 map, 4 model or backend, 70 other"""


def _count(value: str) -> int:
    if not value.isascii() or not value.isdigit():
        raise argparse.ArgumentTypeError(f"{value!r} is not a count")
    return int(value)


def _positive_count(value: str) -> int:
    number = _count(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return number


def _milliseconds(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number > 0")
    return number


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    from edgeloc_tools.cli.recording_options import add_recording_arguments

    out = OneLineParser(
        prog=PROG,
        description="Localize a recording with ground truth and report how well.",
        examples=_EXAMPLES,
    )
    out.add_argument("--map", type=Path, required=True, metavar="SITE", help="the site")
    add_recording_arguments(out)
    out.add_argument(
        "--limit", type=_positive_count, metavar="N", help="the first N images only"
    )
    method = out.add_argument_group("method")
    method.add_argument(
        "--method",
        default="auto",
        metavar="{auto,structure,scene-coords,local-sfm,relative,interpolate,regress,all}",
        help="which path may answer; all: each by itself, in one table and one picture "
        "of accuracy, time and bytes (default: %(default)s)",
    )
    method.add_argument(
        "--weighting",
        choices=("ewb", "bdi", "csi"),
        help="of interpolated poses (default: the estimator's)",
    )
    method.add_argument(
        "--num-interpolated",
        type=_positive_count,
        metavar="K",
        help="keyframes in an interpolated pose (default: the estimator's)",
    )
    method.add_argument(
        "--cold",
        action="store_true",
        help="each frame by itself, no prior between them",
    )
    method.add_argument(
        "--budget-ms",
        type=_milliseconds,
        metavar="MS",
        help="time for each frame (default: as long as it takes)",
    )
    method.add_argument(
        "--max-keypoints",
        type=_positive_count,
        metavar="N",
        help="features per frame (default: as in the map)",
    )
    method.add_argument(
        "--backend",
        choices=BACKEND_CHOICES,
        default="auto",
        help="where the map's networks run (default: %(default)s)",
    )
    method.add_argument(
        "--threads",
        type=_positive_count,
        default=1,
        metavar="N",
        help="CPU threads of each network (default: %(default)s)",
    )
    method.add_argument(
        "--build-report",
        type=Path,
        metavar="JSON",
        help="report.json of the map's build: adds build time and bytes of training "
        "data to the table of --method all",
    )
    output = out.add_argument_group("output")
    output.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="write report.json and report.html there",
    )
    output.add_argument(
        "--worst",
        type=_count,
        default=6,
        metavar="N",
        help="draw the N worst frames in the report (default: %(default)s)",
    )
    output.add_argument(
        "--json", action="store_true", help="print JSON instead of the tables"
    )
    output.add_argument(
        "--debug", action="store_true", help="show the traceback of an error"
    )
    return out


def estimator_options(args: argparse.Namespace) -> EstimatorOptions:
    """Return the options of the estimator that a command line asks for."""
    from edgeloc.inference.backend import BackendOptions
    from edgeloc.localize.interpolate import InterpolateOptions
    from edgeloc.runtime.estimator_options import EstimatorOptions

    default, interpolate = InterpolateOptions(), None
    if args.weighting or args.num_interpolated:
        interpolate = InterpolateOptions(
            weighting=args.weighting or default.weighting,
            num_keyframes=args.num_interpolated or default.num_keyframes,
        )
    return EstimatorOptions(
        method="auto" if args.method == "all" else args.method,
        cold=args.cold,
        max_keypoints=args.max_keypoints,
        backend=BackendOptions(backend=args.backend, threads=args.threads),
        interpolate=interpolate,
    )


def _report_writer() -> Callable[..., tuple[Path, Path]]:
    """Return `write_report`; only reports need matplotlib and jinja2."""
    try:
        from edgeloc_tools.evaluate.report import write_report
    except ModuleNotFoundError as exc:
        if exc.name not in {"matplotlib", "jinja2"}:
            raise
        raise ConfigError(
            f"--report needs {exc.name}: pip install 'edgeloc[build]'"
        ) from exc
    return write_report


def _comparison_report() -> ModuleType:
    """Return the module that writes comparisons; it needs matplotlib and jinja2."""
    try:
        from edgeloc_tools.evaluate import comparison_report
    except ModuleNotFoundError as exc:
        if exc.name not in {"matplotlib", "jinja2"}:
            raise
        raise ConfigError(
            f"--report needs {exc.name}: pip install 'edgeloc[build]'"
        ) from exc
    return comparison_report


def run(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Evaluate, print, and return the exit code.

    Parameters
    ----------
    args : Namespace
        Of `parser`.
    command : sequence of str
        The command line, for the report.

    Raises
    ------
    EdgelocError
        When the recording, the site or an option is wrong.
    """
    # Imported here: `--help` and usage errors answer at once.
    from edgeloc.tiles.reader import open_site
    from edgeloc_tools.cli.recording_options import open_from_arguments
    from edgeloc_tools.evaluate.machine import machine_facts
    from edgeloc_tools.evaluate.run import evaluate
    from edgeloc_tools.evaluate.text import format_text
    from edgeloc_tools.progress import StderrProgress

    if not args.debug:
        silence_opencv()
    if args.build_report is not None and args.method != "all":
        raise ConfigError("--build-report: is for --method all only")
    if args.method == "all":
        return _run_all(args, command)
    # Whatever can be wrong with the call is found before the work starts.
    options = estimator_options(args)
    write_report = _report_writer() if args.report else None
    site = open_site(args.map)
    recording = open_from_arguments(args)
    result = evaluate(
        site,
        recording,
        options=options,
        budget_ms=args.budget_ms,
        explain_worst=args.worst if args.report else 0,
        limit=args.limit,
        progress=StderrProgress(),
    )
    machine = machine_facts()
    if write_report is not None:
        written = write_report(result, args.report, machine=machine, command=command)
        print(f"wrote {written[1]}", file=sys.stderr)
    if args.json:
        facts = {**result.to_json(), "machine": machine, "command": list(command)}
        print(json.dumps(facts, ensure_ascii=False, allow_nan=False))
    else:
        print(format_text(result))
    return EXIT_OK


def _run_all(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Evaluate every method by itself, print, and return the exit code."""
    from edgeloc.tiles.reader import open_site
    from edgeloc_tools.cli.recording_options import open_from_arguments
    from edgeloc_tools.evaluate.comparison import (
        HEADER,
        METHODS,
        cells,
        compare_methods,
        read_build_facts,
    )
    from edgeloc_tools.evaluate.machine import machine_facts
    from edgeloc_tools.evaluate.text import table
    from edgeloc_tools.progress import StderrProgress

    options = estimator_options(args)
    reports = _comparison_report() if args.report or args.json else None
    facts = read_build_facts(args.build_report) if args.build_report else None
    rows = compare_methods(
        open_site(args.map),
        open_from_arguments(args),
        options=options,
        builds=None if facts is None else dict.fromkeys(METHODS, facts),
        budget_ms=args.budget_ms,
        limit=args.limit,
        progress=StderrProgress(),
    )
    machine = machine_facts()
    if reports is not None and args.report:
        written = reports.write_comparison(
            rows, args.report, machine=machine, command=command
        )
        print(f"wrote {written[1]}", file=sys.stderr)
    if reports is not None and args.json:
        values = reports.comparison_json(rows, machine=machine, command=command)
        print(json.dumps(values, ensure_ascii=False, allow_nan=False))
    else:
        print(table(HEADER, [cells(row) for row in rows]))
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments, those of the process by default.

    Returns
    -------
    int
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(arguments)
    command = [PROG, *map(shlex.quote, arguments)]
    return run_command(PROG, lambda: run(args, command), debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
