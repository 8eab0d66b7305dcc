"""Look into sites, sign them, and bring them from version to version."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeloc.cli.common import EXIT_OK


def _trusted_keys(args: argparse.Namespace) -> Sequence[bytes]:
    from edgeloc.tiles.signing import read_public_key

    return [] if args.trusted_key is None else [read_public_key(args.trusted_key)]


def _verify(args: argparse.Namespace) -> int:
    from edgeloc.tiles.reader import verify_site

    verify_site(args.site, trusted_keys=_trusted_keys(args))
    print(f"{args.site}: every file is as it was written")
    return EXIT_OK


def _inspect(args: argparse.Namespace) -> int:
    from edgeloc_tools.mapping.inspect import describe_site

    facts = describe_site(args.site)
    for out, name in ((args.png, "png"), (args.html, "html")):
        if out is not None:
            from edgeloc_tools.mapping.coverage import coverage_html, coverage_png

            data = coverage_png(args.site)
            if name == "html":
                data = coverage_html(facts, data).encode("utf-8")
            out.write_bytes(data)
    print(json.dumps(facts, indent=2))
    return EXIT_OK


def _keygen(args: argparse.Namespace) -> int:
    from edgeloc.tiles.signing import make_keys

    public = make_keys(args.key)
    print(
        f"{args.key}: the private key, keep it; {public}: the public one, for devices"
    )
    return EXIT_OK


def _sign(args: argparse.Namespace) -> int:
    from edgeloc.tiles.manifest import SITE_FILE
    from edgeloc.tiles.reader import open_site
    from edgeloc.tiles.signing import sign, write_signature
    from edgeloc.tiles.site_folder import signature_of

    # Nobody shall sign what was damaged on the way.
    site = open_site(args.site, verify=True)
    file = site.path / signature_of(site.manifest)
    write_signature(file, sign((site.path / SITE_FILE).read_bytes(), args.key))
    print(f"{file}: signs version {site.manifest.map_id}")
    return EXIT_OK


def _delta(args: argparse.Namespace) -> int:
    from edgeloc.tiles.delta import write_delta

    delta = write_delta(args.old, args.new, args.output)
    facts = {
        "delta": str(args.output),
        "base_id": delta.base_id,
        "map_id": delta.map_id,
        "bytes": args.output.stat().st_size,
        "files": len(delta.files),
        "files_kept": delta.num_kept,
    }
    print(json.dumps(facts, indent=2))
    return EXIT_OK


def _apply(args: argparse.Namespace) -> int:
    from edgeloc.tiles.delta import apply_delta

    manifest = apply_delta(args.site, args.delta, trusted_keys=_trusted_keys(args))
    print(f"{args.site}: is version {manifest.map_id}")
    return EXIT_OK


def _add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trusted-key",
        type=Path,
        metavar="FILE",
        help="the site has to be signed with this public key",
    )


def add_commands(
    subparsers: argparse._SubParsersAction[Any],
    prog: str,
) -> None:
    """Add the subcommands that take sites.

    Parameters
    ----------
    subparsers : argparse action
        Of the command.
    prog : str
        Its name, for examples.
    """

    def add(name: str, text: str, example: str, run: object) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = subparsers.add_parser(
            name, help=text, description=text, examples=f"  {prog} {name} {example}"
        )
        sub.set_defaults(run=run)
        return sub

    sub = add("verify", "check every byte of a site", "site/", _verify)
    sub.add_argument("site", type=Path, help="site folder")
    _add_key(sub)

    sub = add(
        "inspect",
        "sizes and facts of a site, as JSON",
        "site/ --png site.png",
        _inspect,
    )
    sub.add_argument("site", type=Path, help="site folder")
    sub.add_argument(
        "--png", type=Path, metavar="FILE", help="draw what the site covers"
    )
    sub.add_argument(
        "--html", type=Path, metavar="FILE", help="the picture and the facts, one page"
    )

    sub = add(
        "keygen",
        "a pair of keys to sign sites with; the public one gets the ending .pub",
        "site.key",
        _keygen,
    )
    sub.add_argument("key", type=Path, help="file of the private key, which is new")

    sub = add(
        "sign",
        "sign a site, so that devices can refuse any other",
        "site/ --key site.key",
        _sign,
    )
    sub.add_argument("site", type=Path, help="site folder")
    sub.add_argument(
        "--key", type=Path, required=True, metavar="FILE", help="the private key"
    )

    sub = add(
        "delta",
        "what changed between two versions of a site, as one file",
        "old/ new/ -o changes.delta",
        _delta,
    )
    sub.add_argument("old", type=Path, help="the version that devices have")
    sub.add_argument("new", type=Path, help="the version that they shall get")
    sub.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the delta"
    )

    sub = add(
        "apply",
        "turn a site into the next version; it is whole at every moment",
        "site/ changes.delta",
        _apply,
    )
    sub.add_argument("site", type=Path, help="site folder")
    sub.add_argument("delta", type=Path, help="file that `delta` wrote")
    _add_key(sub)
