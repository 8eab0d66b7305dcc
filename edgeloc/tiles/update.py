"""Other landmarks for some tiles of a site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeloc.errors import MapError, TileFormatError
from edgeloc.tiles import codec
from edgeloc.tiles.bits import offsets_of, ranges
from edgeloc.tiles.index_file import decode_index, index_entry, with_tiles
from edgeloc.tiles.layout import LANDMARK_BITS, LandmarkTable, Tile
from edgeloc.tiles.manifest import (
    SITE_FILE,
    SiteManifest,
    decode_manifest,
    with_tile_table,
)
from edgeloc.tiles.reader import Site, open_site, read_manifest
from edgeloc.tiles.site_folder import install, staging_folder, tile_file, write_file
from edgeloc.tiles.tile_file import encode_tile, tile_entry
from edgeloc.tiles.tracks import track_order
from edgeloc.tiles.versions import switch_to
from edgeloc.types import IntArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TileUpdate:
    """What a tile holds from now on; its cell and its keyframes stay.

    Parameters
    ----------
    landmarks : LandmarkTable
        Within the cell of the tile.
    kept : ndarray of shape (P,), int64
        Which landmark of the tile each was before, by its place in it; -1 for new ones.
        Keyframes of other tiles go on seeing those that are kept.
    visible_offsets : ndarray of shape (Kt + 1,), int64
        Entries of `visible_landmark_idx` that belong to keyframe i of the tile.
    visible_landmark_idx : ndarray of shape (V,), int64
        Landmarks of this tile that each of its keyframes sees, as indices into
        `landmarks`, ascending. What the keyframes see of other tiles stays.
    """

    landmarks: LandmarkTable
    kept: IntArray
    visible_offsets: IntArray
    visible_landmark_idx: IntArray


def _check_update(site: Site, tile_idx: int, update: TileUpdate) -> None:
    entry = site.tiles[tile_idx]
    num = len(update.landmarks)

    def require(ok: object, message: str) -> None:
        if not ok:
            raise MapError(f"cannot update tile {tile_idx}: {message}")

    points = update.landmarks.points3D - np.array(site.tiles.origin)
    inside = (points - entry.cell.corner) / entry.cell.size
    require(
        np.all((inside >= 0) & (inside <= 1)),
        "a landmark lies outside of the cell; write the whole site",
    )
    require(update.kept.shape == (num,), f"kept has shape {update.kept.shape}")
    old = update.kept[update.kept >= 0]
    require(
        np.all(old < entry.num_landmarks) and len(np.unique(old)) == len(old),
        "kept must be different places of landmarks of the tile, or -1",
    )
    require(
        len(update.visible_offsets) == entry.num_keyframes + 1,
        f"it has {entry.num_keyframes} keyframes, visible_offsets another number",
    )
    visible = update.visible_landmark_idx
    require(
        np.all((visible >= 0) & (visible < num)),
        "visible_landmark_idx must be indices of its landmarks",
    )


def _owners(offsets: IntArray) -> IntArray:
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def _renumbered(tile: Tile, place_of: Mapping[int, IntArray]) -> Tile:
    """Return a tile that sees landmarks of others at their new places."""
    ids = tile.visible_point3D_ids
    new_ids = ids.copy()
    for owner, places in place_of.items():
        if owner != tile.tile_idx:
            mask = ids >> LANDMARK_BITS == owner
            found = places[ids[mask] - (owner << LANDMARK_BITS)]
            new_ids[mask] = np.where(found >= 0, (owner << LANDMARK_BITS) + found, -1)
    keep = new_ids >= 0
    rows = _owners(tile.visible_offsets)[keep]
    return _with_visible(tile, new_ids[keep], rows)


def _with_visible(tile: Tile, ids: IntArray, rows: IntArray) -> Tile:
    counts = np.bincount(rows, minlength=len(tile.keyframe_ids))
    return replace(
        tile,
        visible_offsets=offsets_of(counts),
        visible_point3D_ids=ids[np.lexsort((ids, rows))],
    )


def _updated(tile: Tile, update: TileUpdate) -> tuple[Tile, IntArray]:
    """Return the new tile, its landmarks in order, and where the old ones are now."""
    rows = _owners(update.visible_offsets)
    by_landmark = np.lexsort((rows, update.visible_landmark_idx))
    counts = np.bincount(update.visible_landmark_idx, minlength=len(update.landmarks))
    order = track_order(rows[by_landmark], offsets_of(counts))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    landmarks = update.landmarks
    starts = landmarks.descriptor_offsets[order]
    num_descriptors = np.diff(landmarks.descriptor_offsets)[order]
    others = tile.visible_point3D_ids >> LANDMARK_BITS != tile.tile_idx
    own_ids = tile.first_point3D_id + place[update.visible_landmark_idx]
    new = _with_visible(
        replace(
            tile,
            landmarks=LandmarkTable(
                points3D=landmarks.points3D[order],
                sigmas=landmarks.sigmas[order],
                num_observations=landmarks.num_observations[order],
                descriptor_offsets=offsets_of(num_descriptors),
                descriptors=landmarks.descriptors[ranges(starts, num_descriptors)],
            ),
        ),
        np.concatenate([tile.visible_point3D_ids[others], own_ids]),
        np.concatenate([_owners(tile.visible_offsets)[others], rows]),
    )
    places = np.full(len(tile.landmarks), -1, dtype=np.int64)
    kept = update.kept >= 0
    places[update.kept[kept]] = place[kept]
    return new, places


def update_tiles(
    path: Path,
    updates: Mapping[int, TileUpdate],
    *,
    position_step: float | None = None,
) -> SiteManifest:
    """Give some tiles of a site other landmarks, at once.

    Only these tiles, those whose keyframes see landmarks of them, the tile table and
    site.json are written anew.

    Parameters
    ----------
    path : Path
        The site's folder.
    updates : mapping of int to TileUpdate
        By row of the tile table.
    position_step : float, optional
        As in `SiteContents`.

    Returns
    -------
    SiteManifest
        Of the new version.

    Raises
    ------
    MapError
        When an update does not fit, or when the disk refuses.
    """
    path = Path(path).resolve()
    site = open_site(path)
    for tile_idx, update in updates.items():
        _check_update(site, tile_idx, update)
    changed: dict[int, Tile] = {}
    place_of: dict[int, IntArray] = {}
    for tile_idx, update in updates.items():
        changed[tile_idx], place_of[tile_idx] = _updated(
            site.read_tile(tile_idx), update
        )
    for tile_idx in range(len(site.tiles)):
        tile = changed.get(tile_idx) or site.read_tile(tile_idx)
        if tile_idx in changed or not place_of.keys().isdisjoint(
            tile.seen_tile_idx.tolist()
        ):
            changed[tile_idx] = _renumbered(tile, place_of)
    try:
        with staging_folder(path) as folder:
            site_json = _write_changed(folder, site, changed, position_step)
            install(folder, path)
            switch_to(path, site_json)
    except OSError as exc:
        raise MapError(f"{path}: cannot be written: {exc.strerror or exc}") from exc
    except (TileFormatError, ValueError) as exc:
        raise MapError(f"{path}: the update does not fit: {exc}") from exc
    return read_manifest(path / SITE_FILE)[0]


def _write_changed(
    folder: Path,
    site: Site,
    changed: Mapping[int, Tile],
    position_step: float | None,
) -> bytes:
    """Write the new files of an update; return the new site.json."""
    rows = list(site.tiles)
    for tile_idx, tile in changed.items():
        step = codec.position_step(tile.landmarks.points3D, position_step)
        data = encode_tile(
            tile,
            site.manifest.family,
            cell_of=lambda row: site.tiles[row].cell,
            step=step,
        )
        rows[tile_idx] = tile_entry(
            tile, data, cell=rows[tile_idx].cell, origin=site.tiles.origin, step=step
        )
        write_file(folder / tile_file(rows[tile_idx]).file, data)
    old_index = (site.path / site.manifest.index.file).read_bytes()
    index = with_tiles(old_index, rows)
    entry = index_entry(index)
    write_file(folder / entry.file, index)
    _, raw = read_manifest(site.path / SITE_FILE)
    site_json = with_tile_table(
        raw,
        index=entry,
        tile_bytes=sum(row.num_bytes for row in rows),
        num_landmarks=sum(row.num_landmarks for row in rows),
    )
    # What no reader would accept is not written.
    decode_index(index, decode_manifest(site_json))
    return site_json
