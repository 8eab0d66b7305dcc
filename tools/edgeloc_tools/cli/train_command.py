"""Train a feature or retrieval network on photos, or a head of a site."""

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
  edgeloc-build train scene-coords --site site/ --recording 7scenes:redkitchen#train
  edgeloc-build train regress --site site/ --recording 7scenes:redkitchen#train

scene-coords and regress make a site its next version, which carries the head; give the
recording that it was built from, with the same --stride or --frames.
scene-coords learns from measured depth and the site's landmarks; where there is
neither, or with --set supervision=poses, from pictures and poses alone, by the
reprojection error.

An interrupted training goes on when the same command is given again."""

_NAMES = {"features": "edgeloc-features", "retrieval": "edgeloc-retrieval"}
_HEADS = ("scene-coords", "regress")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the subcommand."""
    parser.add_argument(
        "role", choices=(*sorted(_NAMES), *_HEADS), help="what is trained"
    )
    parser.add_argument(
        "--photos", type=Path, metavar="DIR", help="folder of photos (not for heads)"
    )
    parser.add_argument(
        "--site", type=Path, metavar="SITE", help="site that gets the head"
    )
    parser.add_argument(
        "--recording",
        action="append",
        default=[],
        metavar="FORMAT:DIR[#SPLIT]",
        help="posed recording with depth, for pairs with parallax; may be repeated. Of "
        "a head: what the site was built from",
    )
    parser.add_argument(
        "--stride", type=int, default=1, metavar="N", help="every N-th image (heads)"
    )
    parser.add_argument(
        "--frames", metavar="A:B[:S]", help="slice of the images (heads)"
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
        metavar="DIR",
        help="checkpoint, log, and at the end the model with manifest and card; of a "
        "head by default SITE.ROLE",
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
    if args.role in _HEADS:
        return _run_head(args)
    from edgeloc_tools.learn import training_session

    for option in ("photos", "output"):
        if getattr(args, option) is None:
            raise ConfigError(f"train {args.role}: --{option} is missing")
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


def _run_head(args: argparse.Namespace) -> int:
    """Train a head of a site; its facts go to stdout as JSON."""
    from edgeloc_tools.datasets.registry import open_named, select_frames
    from edgeloc_tools.learn.recipe import load_recipe
    from edgeloc_tools.learn.regress_session import train_regress_head
    from edgeloc_tools.learn.scene_session import train_scene_head
    from edgeloc_tools.learn.train_regress import RegressRecipe
    from edgeloc_tools.learn.train_scene_coords import SceneRecipe
    from edgeloc_tools.progress import StderrProgress

    if args.site is None or len(args.recording) != 1:
        raise ConfigError(
            f"train {args.role}: give --site, and with --recording FORMAT:DIR[#SPLIT] "
            "the one recording that it was built from"
        )
    for option in ("photos", "start"):
        if getattr(args, option) is not None:
            raise ConfigError(f"train {args.role}: takes no --{option}")
    site = Path(args.site)
    recording = select_frames(
        open_named(args.recording[0], option="--recording"),
        stride=args.stride,
        frames=args.frames,
    )
    out = args.output or site.with_name(f"{site.name}.{args.role}")
    changes = parse_changes(args.set)
    if args.role == "scene-coords":
        facts = train_scene_head(
            site,
            recording,
            out=out,
            recipe=load_recipe(args.recipe, SceneRecipe, changes),
            progress=StderrProgress(),
        )
    else:
        facts = train_regress_head(
            site,
            recording,
            out=out,
            recipe=load_recipe(args.recipe, RegressRecipe, changes),
            progress=StderrProgress(),
        )
    print(json.dumps(facts, indent=2))
    return EXIT_OK
