"""`edgeloc-build`: from recordings to sites."""

from __future__ import annotations

from collections.abc import Sequence

from edgeloc.cli.common import OneLineParser, run_command, silence_opencv
from edgeloc_tools.cli import (
    attach_command,
    codebook_command,
    engine_command,
    map_command,
    quantize_command,
    site_commands,
    train_command,
)
from edgeloc_tools.mapping import sfm_command
from edgeloc_tools.synth import command as synth_command

PROG = "edgeloc-build"

_DESCRIPTION = (
    "Build, check and look into sites. Results on stdout, progress on stderr."
)

_EXAMPLES = """\
  edgeloc-build map --format 7scenes --input redkitchen --split train -o site/
  edgeloc-build sfm --format video --input walk.mp4 -o model/ && \\
    edgeloc-build map --format colmap --input model/ -o site/
  edgeloc-build verify site/
  edgeloc-build engine --map site/
  edgeloc-build inspect site/ --png site.png
  edgeloc-build delta old/ new/ -o changes.delta && \\
    edgeloc-build apply site/ changes.delta
  edgeloc-build synth --kind room -o recording/

exit codes: 0 ok, 2 usage or recording, 3 map, 4 model, 70 other"""


def make_parser() -> OneLineParser:
    """Return the parser of all subcommands."""
    parser = OneLineParser(prog=PROG, description=_DESCRIPTION, examples=_EXAMPLES)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_text, module in (
        ("map", "a posed recording to a site", map_command),
        ("sfm", "poses from plain photos or a video", sfm_command),
        ("train", "a feature or retrieval network, or a head of a site", train_command),
        ("attach", "a network of your own, for a site", attach_command),
        ("quantize", "FP16 and INT8 variants of a network, gated", quantize_command),
        ("engine", "TensorRT engines of a site's networks", engine_command),
        ("codebook", "what quantized descriptors stand for", codebook_command),
        ("synth", "a procedural recording with exact ground truth", synth_command),
    ):
        sub = subparsers.add_parser(
            name,
            help=help_text,
            description=module.__doc__,
            examples=module.EXAMPLES,
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    site_commands.add_commands(subparsers, PROG)
    for sub in subparsers.choices.values():
        sub.add_argument(
            "--debug", action="store_true", help="show the traceback of an error"
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = make_parser().parse_args(argv)

    def body() -> int:
        silence_opencv()
        return int(args.run(args))

    return run_command(PROG, body, debug=args.debug)


if __name__ == "__main__":
    raise SystemExit(main())
