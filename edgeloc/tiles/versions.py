"""From one version of a site to the next, in its own folder."""

from __future__ import annotations

from pathlib import Path

from edgeloc.errors import MapError
from edgeloc.tiles.manifest import PREVIOUS_FILE, SITE_FILE
from edgeloc.tiles.reader import open_version, read_manifest
from edgeloc.tiles.site_folder import (
    referenced_files,
    remove_unreferenced,
    signature_of,
    switch,
)


def files_in_use(path: Path) -> set[str]:
    """Return the names of the files of a site and of the version before it.

    Parameters
    ----------
    path : Path
        The folder. What cannot be read of the version before is not in use.
    """
    manifest, _ = read_manifest(path / SITE_FILE)
    site = open_version(path, manifest)
    names = {signature_of(manifest), *referenced_files(manifest, site.tiles)}
    try:
        before, _ = read_manifest(path / PREVIOUS_FILE)
        tiles = open_version(path, before).tiles
    except MapError:
        return names
    return names | {signature_of(before), *referenced_files(before, tiles)}


def switch_to(path: Path, site_json: bytes) -> None:
    """Make a site the version whose files are in place, and tidy up.

    Parameters
    ----------
    path : Path
        The folder.
    site_json : bytes
        Of the new version.
    """
    if (path / SITE_FILE).read_bytes() != site_json:
        switch(path, site_json)
    remove_unreferenced(path, files_in_use(path))
