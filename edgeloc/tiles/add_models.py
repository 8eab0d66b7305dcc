"""Further networks for a site that is there already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgeloc.errors import MapError, TileFormatError
from edgeloc.tiles.arrays import AnyArray
from edgeloc.tiles.index_file import decode_index, index_entry, with_arrays
from edgeloc.tiles.layout import SiteModel
from edgeloc.tiles.manifest import (
    MODEL_ROLES,
    SITE_FILE,
    SiteManifest,
    decode_manifest,
    with_models,
)
from edgeloc.tiles.reader import open_site, read_manifest
from edgeloc.tiles.site_folder import install, staging_folder, write_file
from edgeloc.tiles.versions import switch_to
from edgeloc.tiles.writer import write_models


def add_models(
    path: Path,
    models: Mapping[str, SiteModel],
    *,
    rungs: Sequence[str],
    arrays: Mapping[str, AnyArray],
) -> SiteManifest:
    """Make a site its next version, which carries further networks, at once.

    Tiles and keyframes stay as they are; only site.json and the index are written anew,
    beside the networks themselves.

    Parameters
    ----------
    path : Path
        The site's folder.
    models : mapping of str to SiteModel
        Networks by role; one of the same role is replaced.
    rungs : sequence of str
        Names of the `Rung` members that the site carries data for from now on.
    arrays : mapping of str to ndarray
        What these networks need beside themselves, such as their calibration; finite.

    Returns
    -------
    SiteManifest
        Of the new version.

    Raises
    ------
    MapError
        When there is no site, something does not fit, or the disk refuses.
    """
    path = Path(path).resolve()
    site = open_site(path)
    if unknown := set(models) - set(MODEL_ROLES):
        raise MapError(
            f"cannot add models: {', '.join(sorted(unknown))} is none of the roles "
            f"{', '.join(MODEL_ROLES)}"
        )
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
            raise MapError(f"cannot add models: array {name!r} is not finite")
    try:
        with staging_folder(path) as folder:
            before = (site.path / site.manifest.index.file).read_bytes()
            index = with_arrays(before, arrays)
            entry = index_entry(index)
            write_file(folder / entry.file, index)
            _, raw = read_manifest(path / SITE_FILE)
            site_json = with_models(
                raw, index=entry, models=write_models(folder, models), rungs=rungs
            )
            # What no reader would accept is not written.
            decode_index(index, decode_manifest(site_json))
            install(folder, path)
            switch_to(path, site_json)
    except OSError as exc:
        raise MapError(f"{path}: cannot be written: {exc.strerror or exc}") from exc
    except (TileFormatError, ValueError) as exc:
        raise MapError(f"{path}: the models do not fit: {exc}") from exc
    return read_manifest(path / SITE_FILE)[0]
