"""`edgeloc-replay`: run a log of `edgeloc-run --record` again, and say why.

Heavy modules are imported where they are needed: ``--help`` and a wrong option answer
before NumPy or OpenCV load.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeloc import __version__
from edgeloc.cli.common import (
    EXIT_OK,
    OneLineParser,
    run_command,
    set_up_logging,
    silence_opencv,
)
from edgeloc.config import BACKEND_CHOICES, config_from_options
from edgeloc.errors import ConfigError

if TYPE_CHECKING:
    from edgeloc.runtime.log_format import Counters, Session
    from edgeloc.runtime.log_reader import LogReader, Step
    from edgeloc.runtime.replay import ReplayedFrame, ReplayGaps, Tolerances
    from edgeloc.tiles.reader import Site

PROG = "edgeloc-replay"

EXIT_DIFFERENT = 1

TOLERANCE_CHOICES = ("auto", "exact", "close")

_log = logging.getLogger("edgeloc.cli.replay")  # also under `python -m`

_DESCRIPTION = """\
Answer the frames of a log again, with the log's options, clock and pictures. Without
--compare, --why, --info or --recorded it prints the new answers, one JSON object per
frame, as edgeloc-run does.

A log has a session for each start of edgeloc-run. Equal means: every field of every
answer but its times is the same, within tolerances. `exact` (the default for
the same pixels, site, libraries and processor) allows 1e-6 of the map's unit, rad,
covariance and residual, and no other match or inlier. `close` (the default otherwise)
wants the same status, rung and cause, and a pose within three standard deviations."""

_EXAMPLES = """\
  edgeloc-replay run.log --compare
  edgeloc-replay run.log --frame 120 --why --picture frame120.png
  edgeloc-replay run.log --map new-site/ --compare --tolerance close
  edgeloc-replay run.log --recorded > answers.jsonl
  edgeloc-replay run.log --info
  edgeloc-replay golden.log --write golden-new.log

exit codes: 0 ok, with --compare: all compared frames are equal; 1 some are different,
2 usage or a log that cannot be read, 3 map, 4 model or backend, 70 other"""


_AIDS = ("mask", "segmenter", "gnss", "gravity")
"""Options of a run whose masks and measurements a log of format 1 does not hold."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = OneLineParser(prog=PROG, description=_DESCRIPTION, examples=_EXAMPLES)

    def flag(option: str, text: str) -> None:
        parser.add_argument(option, action="store_true", help=text)

    parser.add_argument("log", metavar="LOG", help="file that --record wrote")
    parser.add_argument(
        "--map", metavar="SITE", help="site to use (default: where it was in the run)"
    )
    parser.add_argument(
        "--source",
        metavar="PATH",
        help="where the folder or video of the run is now, when the log refers to it",
    )
    parser.add_argument(
        "--session", metavar="N", type=int, help="only the Nth start, from 1"
    )
    parser.add_argument("--frame", metavar="ID", type=int, help="only this frame_id")
    parser.add_argument(
        "--max-frames", metavar="N", type=int, help="stop after N frames"
    )
    parser.add_argument(
        "--backend",
        choices=BACKEND_CHOICES,
        help="where networks run (default: as in the run)",
    )
    flag("--compare", "print a table of what is not as in the log; exit code 0 or 1")
    parser.add_argument(
        "--tolerance",
        choices=TOLERANCE_CHOICES,
        default="auto",
        help="of --compare (default: auto)",
    )
    flag("--why", "print how the answers came about")
    parser.add_argument(
        "--picture",
        metavar="FILE",
        help="draw the frame with its matches beside a plan of the site; needs --frame",
    )
    parser.add_argument(
        "--write",
        metavar="FILE",
        help="write the log with the new answers: how a reference is renewed",
    )
    flag("--info", "print the facts of each session as JSON, without replaying")
    flag("--recorded", "print the answers in the log, without replaying")
    flag("--quiet", "log only warnings and errors")
    flag("--debug", "log everything, and tracebacks")
    return parser


def _check_arguments(args: argparse.Namespace) -> None:
    if args.picture is not None and args.frame is None:
        raise ConfigError("--picture needs --frame ID")
    if args.quiet and args.debug:
        raise ConfigError("--quiet and --debug exclude each other")
    for name in ("session", "max_frames"):
        value = getattr(args, name)
        if value is not None and value < 1:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} must be at least 1, got {value}")
    chosen = [f"--{name}" for name in ("info", "recorded") if getattr(args, name)]
    chosen += ["--compare"] * args.compare + ["--why"] * args.why
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} exclude each other")
    if args.write is not None and (args.frame is not None or args.session is not None):
        raise ConfigError("--write takes the whole log: leave --frame, --session away")


def _sessions(
    log: LogReader, args: argparse.Namespace
) -> Iterator[tuple[int, Session, Iterator[Step | Counters]]]:
    """Yield the sessions asked for, with their numbers."""
    number = 0
    for number, (session, entries) in enumerate(log.sessions(), start=1):
        if args.session in {None, number}:
            yield number, session, entries
    if args.session is not None and args.session > number:
        raise ConfigError(f"--session {args.session}: {args.log} has {number} of them")


def _say_damage(log: LogReader, args: argparse.Namespace) -> None:
    for problem in log.damage:
        _log.warning("%s: %s", args.log, problem)


def _info(log: LogReader, args: argparse.Namespace) -> int:
    from edgeloc.runtime.log_format import Counters

    for number, session, entries in _sessions(log, args):
        facts = session.to_payload()
        counts = {"frames": 0, "pictures": 0, "answers": 0}
        counters: Counters | None = None
        for entry in entries:
            if isinstance(entry, Counters):
                counters = entry
                continue
            counts["frames"] += entry.frame is not None
            counts["pictures"] += entry.frame is not None and (
                entry.frame.image is not None
            )
            counts["answers"] += entry.answer is not None
        del facts["type"]
        if session.aids is not None:
            facts["aids"]["static_mask"] = session.aids.static_mask is not None
        facts = {"session": number, **facts, **counts}
        facts["counters"] = {} if counters is None else dict(counters.values)
        facts["ended"] = counters is not None and counters.end
        print(json.dumps(facts))
    _say_damage(log, args)
    return EXIT_OK


def _recorded(log: LogReader, args: argparse.Namespace) -> int:
    from edgeloc.runtime.log_format import Counters
    from edgeloc.runtime.sinks import record_from_estimate

    num_frames = 0
    for _, _, entries in _sessions(log, args):
        for entry in entries:
            if isinstance(entry, Counters) or entry.answer is None:
                continue
            if args.frame not in {None, entry.frame_id}:
                continue
            source = "" if entry.frame is None else entry.frame.source
            print(
                json.dumps(record_from_estimate(entry.answer.estimate, source=source))
            )
            num_frames += 1
            if num_frames == args.max_frames:
                return EXIT_OK
    _say_damage(log, args)
    return EXIT_OK


def _open_site(session: Session, args: argparse.Namespace) -> tuple[Site, bool]:
    """Return the site, and whether it is that of the run."""
    from edgeloc.runtime.record import site_sha256
    from edgeloc.tiles.reader import open_site

    path = Path(args.map or session.map_path)
    if args.map is None and not path.is_dir():
        raise ConfigError(
            f"{path}: the site of the run is not here; say where it is with --map"
        )
    site = open_site(path)
    same = site_sha256(path) == session.map_sha256
    if not same:
        _log.warning("%s: is not the site of the run (map_id %s)", path, session.map_id)
    return site, same


def _tolerances(
    session: Session, args: argparse.Namespace, *, same_site: bool
) -> Tolerances:
    from edgeloc.runtime.record import library_versions
    from edgeloc.runtime.replay import CLOSE, EXACT

    if args.tolerance != "auto":
        return EXACT if args.tolerance == "exact" else CLOSE
    now = library_versions()
    reasons = [
        f"{name} {then} then and {now.get(name, 'unknown')} now"
        for name, then in session.libraries.items()
        if now.get(name) != then
    ]
    if not session.same_pixels:
        reasons.append("the pictures are JPEG")
    if not same_site:
        reasons.append("the site is another one")
    if reasons:
        _log.info("comparing with close tolerances: %s", "; ".join(reasons))
    return CLOSE if reasons else EXACT


class _Output:
    """What is done with the replayed frames."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._rows: list[tuple[str, str, str, str]] = []
        self._num_compared = 0
        self._num_different = 0
        self._num_other_clock = 0
        self._tolerances = ""

    def add(
        self,
        replayed: ReplayedFrame,
        *,
        session: Session,
        site: Site,
        tolerances: Tolerances,
    ) -> None:
        """Print or compare one frame."""
        args = self._args
        if args.frame not in {None, replayed.frame.frame_id}:
            return
        if args.compare:
            self._compare(replayed, tolerances)
        elif args.why:
            from edgeloc.runtime.why import why_lines

            print("\n".join(why_lines(replayed, site.keyframes)))
        elif args.write is None:
            from edgeloc.runtime.sinks import record_from_estimate

            source = replayed.frame.source
            print(json.dumps(record_from_estimate(replayed.estimate, source=source)))
        if args.picture is not None:
            _write_picture(replayed, session, site, path=Path(args.picture))

    def _compare(self, replayed: ReplayedFrame, tolerances: Tolerances) -> None:
        from edgeloc.runtime.replay import differences

        self._tolerances = tolerances.name
        if replayed.answer is None:
            return
        self._num_compared += 1
        self._num_other_clock += replayed.num_readings_off != 0
        found = differences(replayed.answer.estimate, replayed.estimate, tolerances)
        self._num_different += bool(found)
        self._rows += [
            (str(row.frame_id), row.field, row.logged, row.replayed) for row in found
        ]

    def finish(self, gaps: ReplayGaps) -> int:
        """Print what was compared; return the exit code."""
        for reason in gaps.reasons:
            _log.warning("%s", reason)
        if not self._args.compare:
            return EXIT_OK
        if self._num_other_clock:
            _log.warning(
                "in %d frames the program looked at the clock more or less often than "
                "in the run: it is another one, or what it works with is",
                self._num_other_clock,
            )
        if self._num_compared == 0:
            raise ConfigError(f"{self._args.log}: has no answer that can be compared")
        if self._rows:
            print(_table(("frame", "field", "log", "replay"), self._rows))
        equal = self._num_compared - self._num_different
        print(
            f"{self._num_compared} frames compared with {self._tolerances} tolerances: "
            f"{equal} equal, {self._num_different} different; {gaps.num_lost} could "
            "not be replayed"
        )
        return EXIT_DIFFERENT if self._num_different else EXIT_OK


def _table(
    head: tuple[str, str, str, str], rows: Sequence[tuple[str, str, str, str]]
) -> str:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(4)]
    return "\n".join(
        "  ".join(
            text.ljust(width) for text, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in (head, *rows)
    )


def _write_picture(
    replayed: ReplayedFrame, session: Session, site: Site, *, path: Path
) -> None:
    import cv2

    from edgeloc.runtime.picture import draw_answer

    if replayed.image is None:
        raise ConfigError(f"frame {replayed.frame.frame_id} has no picture to draw on")
    drawn = draw_answer(
        replayed.image,
        replayed.estimate,
        replayed.trace,
        camera=session.camera,
        keyframes=site.keyframes,
    )
    try:
        written = cv2.imwrite(str(path), drawn)
    except cv2.error:
        written = False
    if not written:
        raise ConfigError(f"--picture {path}: cannot be written as a PNG or JPEG")


def _replay(log: LogReader, args: argparse.Namespace) -> int:
    from edgeloc.runtime.log_format import Counters
    from edgeloc.runtime.opening import estimator_options
    from edgeloc.runtime.replay import ReplayGaps, replay_session

    output, gaps = _Output(args), ReplayGaps()
    num_frames = 0
    with ExitStack() as stack:
        writer = None
        if args.write is not None:
            from edgeloc.runtime.replay import LogRewriter

            writer = stack.enter_context(LogRewriter(Path(args.write)))
        for _, session, entries in _sessions(log, args):
            site, same_site = _open_site(session, args)
            config, unknown = config_from_options(session.config)
            if unknown:
                _log.warning(
                    "options of the run that this edgeloc does not know: %s",
                    ", ".join(unknown),
                )
            aided = [n for n in _AIDS if getattr(config, n) is not None]
            if aided and session.aids is None:
                _log.warning(
                    "the run had --%s, and the log, of an older edgeloc, does not hold "
                    "what that said: frames may be answered otherwise",
                    ", --".join(aided),
                )
            if args.backend is not None:
                config = replace(config, backend=args.backend)
            tolerances = _tolerances(session, args, same_site=same_site)
            if writer is not None:
                writer.session(session)
            for replayed in replay_session(
                session,
                (entry for entry in entries if not isinstance(entry, Counters)),
                site=site,
                options=estimator_options(config),
                source=None if args.source is None else Path(args.source),
                gaps=gaps,
            ):
                output.add(replayed, session=session, site=site, tolerances=tolerances)
                if writer is not None:
                    writer.step(replayed)
                num_frames += 1
                if (
                    num_frames == args.max_frames
                    or replayed.frame.frame_id == args.frame
                ):
                    return output.finish(gaps)
    _say_damage(log, args)
    if args.frame is not None:
        raise ConfigError(f"--frame {args.frame}: {args.log} has no such frame")
    return output.finish(gaps)


def _main(args: argparse.Namespace) -> int:
    _check_arguments(args)
    set_up_logging(PROG, quiet=args.quiet, debug=args.debug)
    if not args.debug:
        silence_opencv()
    from edgeloc.runtime.log_reader import LogReader

    _log.debug("edgeloc %s", __version__)
    with LogReader(Path(args.log)) as log:
        if args.info:
            return _info(log, args)
        return _recorded(log, args) if args.recorded else _replay(log, args)


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
    args: Any = build_parser().parse_args(argv)
    return run_command(PROG, lambda: _main(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
