"""The command line that evaluation scripts on recordings share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from edgeloc.cli.common import EXIT_OK, run_command, silence_opencv
from edgeloc.errors import ConfigError


def script_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all have: --data, --out, --debug.

    Parameters
    ----------
    name : str
        Of the module in `edgeloc_tools.evaluate`.
    description : str
        What the script does.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m edgeloc_tools.evaluate.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="recordings folder")
    parser.add_argument("--out", type=Path, required=True, help="where results go")
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of an error"
    )
    return parser


def run_script(
    parser: argparse.ArgumentParser,
    body: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None,
) -> int:
    """Run a script and return its exit code; errors are one line on stderr.

    Parameters
    ----------
    parser : ArgumentParser
        From `script_parser`.
    body : callable
        Takes the options.
    argv : sequence of str or None
        Arguments; None = those of the process.
    """
    args = parser.parse_args(argv)

    def checked() -> int:
        silence_opencv()
        if not args.data.is_dir():
            raise ConfigError(f"--data {args.data}: is not a folder")
        body(args)
        return EXIT_OK

    return run_command(parser.prog.rpartition(".")[2], checked, debug=args.debug)
