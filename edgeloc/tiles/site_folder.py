"""The files of a site folder: written once, never changed, switched to at once.

A file is named by its contents, so that a new version of a site adds files beside those
of the old one. The rename of a new site.json over the old one is the moment at which
the site changes; before it and after it there is a whole site. What the version before
refers to (`previous.json`) stays until the next change, so that a device that runs on
it goes on reading tiles.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeloc.errors import MapError
from edgeloc.tiles.manifest import (
    MODEL_FOLDER,
    PREVIOUS_FILE,
    SITE_FILE,
    TILE_FOLDER,
    FileEntry,
    SiteManifest,
    signature_file_name,
    tile_file_name,
)
from edgeloc.tiles.tile_table import TileEntry, TileTable

STAGING_PREFIX = ".tmp-"
_OWN_FOLDERS = (TILE_FOLDER, MODEL_FOLDER)
_OWN_PATTERNS = ("index*.bin", "codebook*.bin", "site-*.sig")
"""What the format puts beside site.json; other files are left alone."""


def write_file(path: Path, data: bytes) -> None:
    """Write a new file that is on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make sure that the names in a folder are on disk."""
    # A new name is on disk only when its folder is.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Make sure that the names in a folder and below are on disk."""
    for folder, _, _ in os.walk(path):
        sync_folder(Path(folder))


def remove_tree(path: Path) -> None:
    """Remove a file or folder; links are removed, not followed."""
    if path.is_dir() and not path.is_symlink():
        for entry in path.iterdir():
            remove_tree(entry)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


@contextmanager
def staging_folder(parent: Path, prefix: str = STAGING_PREFIX) -> Iterator[Path]:
    """Give an empty folder that does not outlive the block."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        with contextlib.suppress(OSError):
            if folder.exists():
                remove_tree(folder)


def referenced_files(manifest: SiteManifest, tiles: TileTable) -> dict[str, FileEntry]:
    """Return all files of a site but site.json and its signature, sorted by name.

    Parameters
    ----------
    manifest : SiteManifest
        Of the site.
    tiles : TileTable
        Its tile table.
    """
    entries: list[FileEntry] = [manifest.index, *manifest.codebooks.values()]
    for model in manifest.models.values():
        entries += [model.manifest, model.network]
    entries += [tile_file(tile) for tile in tiles]
    return {entry.file: entry for entry in sorted(entries, key=lambda e: e.file)}


def tile_file(tile: TileEntry) -> FileEntry:
    """Return the file of a row of the tile table."""
    return FileEntry(
        file=tile_file_name(tile.sha256), num_bytes=tile.num_bytes, sha256=tile.sha256
    )


def install(staging: Path, site: Path) -> None:
    """Move the files of a staging folder into a site, site.json apart.

    A file that is there already has the same contents, since it has the same name; it
    is replaced all the same, which mends a damaged one.
    """
    for source in sorted(staging.rglob("*")):
        name = source.relative_to(staging)
        if source.is_file() and str(name) != SITE_FILE:
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            source.replace(site / name)
    sync_tree(site)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file under its name at once, whatever was there."""
    with staging_folder(path.parent) as folder:
        write_file(folder / path.name, data)
        (folder / path.name).replace(path)
    sync_folder(path.parent)


def switch(site: Path, site_json: bytes) -> None:
    """Make a site another version of itself; its files are in place.

    Parameters
    ----------
    site : Path
        The folder.
    site_json : bytes
        Of the new version.
    """
    current = site / SITE_FILE
    with contextlib.suppress(FileNotFoundError):
        replace_file(site / PREVIOUS_FILE, current.read_bytes())
    replace_file(current, site_json)


def remove_unreferenced(site: Path, keep: set[str]) -> list[str]:
    """Remove the files that no version in use refers to.

    Parameters
    ----------
    site : Path
        The folder.
    keep : set of str
        Names within the site.

    Returns
    -------
    list of str
        Names that were removed.
    """
    found = [entry for pattern in _OWN_PATTERNS for entry in site.glob(pattern)]
    found += [entry for name in _OWN_FOLDERS for entry in (site / name).rglob("*")]
    found += site.glob(f"{STAGING_PREFIX}*")
    removed = []
    # The deepest first, so that a folder is empty when its turn comes.
    for entry in sorted(found, key=lambda path: (-len(path.parts), path)):
        name = entry.relative_to(site).as_posix()
        if entry.is_dir() and not entry.is_symlink():
            if entry.parent == site:
                remove_tree(entry)
            elif not any(entry.iterdir()):
                entry.rmdir()
        elif name not in keep:
            entry.unlink()
            removed.append(name)
    return sorted(removed)


def signature_of(manifest: SiteManifest) -> str:
    """Return the name of the file that would sign a version of a site."""
    return signature_file_name(manifest.map_id)


def check_target(path: Path) -> None:
    """Refuse to replace anything but a site or an empty folder."""
    is_site = (path / SITE_FILE).is_file()
    is_empty = path.is_dir() and not any(path.iterdir())
    if path.exists() and not is_site and not is_empty:
        raise MapError(
            f"{path}: exists and is not a site: give another path or remove it"
        )
