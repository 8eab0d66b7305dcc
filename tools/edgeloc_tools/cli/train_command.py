"""Train a feature or a retrieval network on photos and posed recordings."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from edgeloc.cli.common import EXIT_OK
from edgeloc.errors import ConfigError

EXAMPLES = """\
  edgeloc-build train features --photos photos/ -o run/
  edgeloc-build train features --photos photos/ --set steps=20000 -o run/
  edgeloc-build train retrieval --photos photos/ --start run/checkpoint.npz -o places/

An interrupted training goes on when the same command is given again."""

_NAMES = {"features": "edgeloc-features", "retrieval": "edgeloc-retrieval"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the subcommand."""
    parser.add_argument("role", choices=sorted(_NAMES), help="what is trained")
    parser.add_argument(
        "--photos", type=Path, required=True, metavar="DIR", help="folder of photos"
    )
    parser.add_argument(
        "--recording",
        action="append",
        default=[],
        metavar="FORMAT:DIR[#SPLIT]",
        help="posed recording with depth, for pairs with parallax; may be repeated",
    )
    parser.add_argument("--recipe", type=Path, metavar="TOML", help="options")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option that wins over the recipe's, such as steps=20000, views.tilt=0.2",
    )
    parser.add_argument(
        "--start",
        type=Path,
        metavar="NPZ",
        help="checkpoint of a feature network to begin with; retrieval needs one",
    )
    parser.add_argument(
        "--licence",
        default="not stated",
        metavar="TEXT",
        help="of the data, for the model card",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="checkpoint, log, and at the end the model with manifest and card",
    )


def parse_changes(texts: list[str]) -> dict[str, Any]:
    """Return the values of ``--set``, nested at dots.

    Raises
    ------
    ConfigError
        When one is not KEY=VALUE.
    """
    changes: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {text}: must be KEY=VALUE")
        table = changes
        *parents, last = key.split(".")
        for parent in parents:
            table = table.setdefault(parent, {})
        try:
            table[last] = json.loads(value)
        except json.JSONDecodeError:
            table[last] = value
    return changes


def run(args: argparse.Namespace) -> int:
    """Train, then write the model, its manifest and its card."""
    try:
        import torch
    except ImportError as exc:
        raise ConfigError(
            "edgeloc-build train needs PyTorch; pip install 'edgeloc[train]'"
        ) from exc
    del torch
    from edgeloc_tools.learn import training_session

    manifest = training_session.train(
        training_session.Request(
            role=args.role,
            name=_NAMES[args.role],
            photos=args.photos,
            recordings=tuple(args.recording),
            recipe=args.recipe,
            changes=parse_changes(args.set),
            start=args.start,
            licence=args.licence,
            out=args.output,
        )
    )
    print(json.dumps({"manifest": str(manifest)}))
    return EXIT_OK
