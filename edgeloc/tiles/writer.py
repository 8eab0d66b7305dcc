"""From `SiteContents` to a site folder: checked, divided, written atomically."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeloc.errors import MapError, TileFormatError
from edgeloc.tiles import codec, index_file, tile_file
from edgeloc.tiles.arrays import encode_codebook
from edgeloc.tiles.bits import offsets_of, ranges
from edgeloc.tiles.container import HEADER, TABLE_ENTRY
from edgeloc.tiles.contents_check import check_contents
from edgeloc.tiles.layout import (
    LANDMARK_BITS,
    LandmarkTable,
    PoseArrays,
    SiteContents,
    Tile,
)
from edgeloc.tiles.manifest import (
    SITE_FILE,
    TILE_FOLDER,
    CodebookEntry,
    ModelEntry,
    SiteManifest,
    WrittenFiles,
    codebook_file_name,
    decode_manifest,
    encode_manifest,
    model_entry,
    tile_file_name,
)
from edgeloc.tiles.partition import Part, Partition, divide, grid_origin
from edgeloc.tiles.site_folder import (
    check_target,
    install,
    remove_tree,
    staging_folder,
    sync_folder,
    sync_tree,
    write_file,
)
from edgeloc.tiles.tile_table import MAX_TILES, Cell, TileEntry
from edgeloc.tiles.tracks import track_order
from edgeloc.tiles.versions import switch_to
from edgeloc.types import IntArray

MAX_TILE_BYTES = 256 << 10
"""What is read at once, and kept or dropped at once: a few frames' walk indoors."""
_LANDMARK_BYTES = 7
"""Position, sigma, number of observations, number of descriptors."""
_PAIRS_PER_BYTE = 3
"""Keyframes and landmarks that see each other; measured: 3 to 12."""
_MAX_ROUNDS = 8


def _gather(offsets: IntArray, rows: IntArray) -> tuple[IntArray, IntArray]:
    """Return the elements of some rows of a ragged array, and their new offsets."""
    counts = offsets[rows + 1] - offsets[rows]
    return ranges(offsets[rows], counts), offsets_of(counts)


def _partition(
    contents: SiteContents, *, max_tile_bytes: int, cell_size: float | None
) -> Partition:
    landmarks = contents.landmarks
    num_visible = np.diff(contents.visible_offsets)
    step = contents.position_step
    # Sections are padded, hence the 8 bytes for each.
    return Partition(
        points3D=landmarks.points3D,
        sigmas=landmarks.sigmas,
        landmark_bytes=_LANDMARK_BYTES
        + np.diff(landmarks.descriptor_offsets)
        * tile_file.descriptor_bytes(contents.family),
        centers=contents.keyframes.centers,
        keyframe_bytes=num_visible // _PAIRS_PER_BYTE,
        num_visible=num_visible,
        base_bytes=HEADER.size
        + len(tile_file.TAGS) * (TABLE_ENTRY.size + 8)
        + tile_file.META.size,
        max_tile_bytes=max_tile_bytes,
        position_step=step,
        cell_size=cell_size,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Numbering:
    """Where each landmark is.

    Parameters
    ----------
    ids : ndarray of shape (P,), int64
        Id of each landmark of the contents.
    order : list of ndarray
        Landmarks of each tile, in their order.
    """

    ids: IntArray
    order: list[IntArray]


def _number_landmarks(contents: SiteContents, parts: Sequence[Part]) -> _Numbering:
    """Order the landmarks of each tile so that what is seen of them is told shortly."""
    tile_of = np.empty(len(contents.landmarks), dtype=np.int64)
    for tile_idx, (_, landmark_idx, _) in enumerate(parts):
        tile_of[landmark_idx] = tile_idx
    ids = np.empty(len(contents.landmarks), dtype=np.int64)
    orders = []
    for tile_idx, (_, landmark_idx, keyframe_idx) in enumerate(parts):
        elements, offsets = _gather(contents.visible_offsets, keyframe_idx)
        seen = contents.visible_landmark_idx[elements]
        rows = np.repeat(np.arange(len(keyframe_idx)), np.diff(offsets))
        own = tile_of[seen] == tile_idx
        place = np.searchsorted(landmark_idx, seen[own])
        by_place = np.argsort(place, kind="stable")
        counts = np.bincount(place, minlength=len(landmark_idx))
        order = landmark_idx[track_order(rows[own][by_place], offsets_of(counts))]
        ids[order] = (tile_idx << LANDMARK_BITS) + np.arange(len(order))
        orders.append(order)
    return _Numbering(ids=ids, order=orders)


def _make_tiles(contents: SiteContents, parts: Sequence[Part]) -> Iterator[Tile]:
    landmarks, keyframes = contents.landmarks, contents.keyframes
    numbering = _number_landmarks(contents, parts)
    for tile_idx, (_, _, keyframe_idx) in enumerate(parts):
        order = numbering.order[tile_idx]
        rows, descriptor_offsets = _gather(landmarks.descriptor_offsets, order)
        elements, visible_offsets = _gather(contents.visible_offsets, keyframe_idx)
        ids = numbering.ids[contents.visible_landmark_idx[elements]]
        owners = np.repeat(np.arange(len(keyframe_idx)), np.diff(visible_offsets))
        yield Tile(
            tile_idx=tile_idx,
            landmarks=LandmarkTable(
                points3D=landmarks.points3D[order],
                sigmas=landmarks.sigmas[order],
                num_observations=landmarks.num_observations[order],
                descriptor_offsets=descriptor_offsets,
                descriptors=landmarks.descriptors[rows],
            ),
            keyframe_ids=keyframes.keyframe_ids[keyframe_idx],
            visible_offsets=visible_offsets,
            visible_point3D_ids=ids[np.lexsort((ids, owners))],
        )


def _write_tiles(
    folder: Path,
    contents: SiteContents,
    parts: Sequence[Part],
    *,
    origin: tuple[float, float, float],
) -> list[TileEntry]:
    """Write all tiles, one in memory at a time."""
    entries = []
    for tile in _make_tiles(contents, parts):
        step = codec.position_step(tile.landmarks.points3D, contents.position_step)
        data = tile_file.encode_tile(
            tile,
            contents.family,
            cell_of=lambda row: parts[row][0],
            step=step,
        )
        entry = tile_file.tile_entry(
            tile,
            data,
            cell=parts[tile.tile_idx][0],
            origin=origin,
            step=step,
        )
        write_file(folder / tile_file_name(entry.sha256), data)
        entries.append(entry)
    return entries


def _divide_and_write_tiles(
    folder: Path,
    contents: SiteContents,
    part: Partition,
    *,
    origin: tuple[float, float, float],
) -> tuple[list[Part], list[TileEntry]]:
    """Write tiles; divide again what came out larger than it had seemed."""
    too_large: frozenset[Cell] = frozenset()
    for _ in range(_MAX_ROUNDS):
        parts = divide(replace(part, too_large=too_large), origin)
        if len(parts) > MAX_TILES:
            raise MapError(
                f"the map falls into {len(parts)} tiles, at most {MAX_TILES} fit: give "
                "a larger cell_size or max_tile_bytes"
            )
        if (folder / TILE_FOLDER).exists():
            remove_tree(folder / TILE_FOLDER)
        entries = _write_tiles(folder, contents, parts, origin=origin)
        found = {e.cell for e in entries if e.num_bytes > part.max_tile_bytes}
        if found <= too_large:
            break
        too_large |= found
    return parts, entries


def _write_models(folder: Path, contents: SiteContents) -> dict[str, ModelEntry]:
    """Copy the networks; return their entries by role."""
    entries = {}
    for role, model in contents.models.items():
        sizes = [
            (len(data), hashlib.sha256(data).hexdigest())
            for data in (model.manifest, model.network)
        ]
        entry = model_entry(role, model.name, *sizes)
        write_file(folder / entry.manifest.file, model.manifest)
        write_file(folder / entry.network.file, model.network)
        entries[role] = entry
    return entries


def _write_codebooks(folder: Path, contents: SiteContents) -> dict[str, CodebookEntry]:
    entries = {}
    for role, codebook in contents.codebooks.items():
        data = encode_codebook(codebook)
        sha256 = hashlib.sha256(data).hexdigest()
        entries[role] = CodebookEntry(
            file=codebook_file_name(sha256),
            num_bytes=len(data),
            sha256=sha256,
            name=codebook.name,
        )
        if not (folder / entries[role].file).exists():
            write_file(folder / entries[role].file, data)
    return entries


def _write_contents(
    folder: Path, contents: SiteContents, part: Partition
) -> tuple[SiteManifest, bytes]:
    """Write all files of a site into an empty folder; return site.json, too."""
    origin = contents.grid_origin or grid_origin(contents.landmarks.points3D)
    parts, entries = _divide_and_write_tiles(folder, contents, part, origin=origin)
    keyframes = contents.keyframes
    order = np.concatenate([keyframe_idx for _, _, keyframe_idx in parts])
    index = index_file.encode_index(
        tiles=entries,
        keyframes=replace(
            keyframes,
            keyframe_ids=keyframes.keyframe_ids[order],
            camera_ids=tuple(keyframes.camera_ids[i] for i in order.tolist()),
            poses=PoseArrays(R=keyframes.R[order], t=keyframes.t[order]),
            global_codes=keyframes.global_codes[order],
        ),
        retrieval_arrays=contents.retrieval_arrays,
        camera_ids=tuple(sorted(contents.cameras)),
        position_step=contents.position_step,
    )
    files = WrittenFiles(
        index=index_file.index_entry(index),
        num_tiles=len(entries),
        num_landmarks=len(contents.landmarks),
        tile_bytes=sum(entry.num_bytes for entry in entries),
        grid_origin=origin,
        models=_write_models(folder, contents),
        codebooks=_write_codebooks(folder, contents),
    )
    write_file(folder / files.index.file, index)
    site_json = encode_manifest(contents, files)
    # What no reader would accept is not written.
    manifest = decode_manifest(site_json)
    index_file.decode_index(index, manifest)
    return manifest, site_json


def _storable(contents: SiteContents) -> SiteContents:
    """Return contents whose global codes have the type that is stored."""
    codes = contents.keyframes.global_codes
    if contents.global_coding != "float16" or codes.dtype != np.float32:
        return contents
    # What does not fit becomes infinite, and is refused with a name.
    with np.errstate(over="ignore"):
        halves = codes.astype(np.float16)
    return replace(contents, keyframes=replace(contents.keyframes, global_codes=halves))


def write_site(
    path: Path,
    contents: SiteContents,
    *,
    cell_size: float | None = None,
    max_tile_bytes: int = MAX_TILE_BYTES,
) -> SiteManifest:
    """Write a site folder, or its next version; the same contents give the same bytes.

    A new folder appears under its name when it is complete and on disk, or not at all.
    In a folder that holds a site, the new files are added, and the site becomes the new
    one when its site.json is renamed over the old one (`edgeloc.tiles.site_folder`).

    Parameters
    ----------
    path : Path
        The site's folder; its parents are made.
    contents : SiteContents
        What it holds. Landmarks are ordered anew within their tiles.
    cell_size : float, optional
        No cell is larger, in the unit of the map; by default cells are divided only as
        far as `max_tile_bytes` and the precision of positions need it, so that a small
        scene is one tile.
    max_tile_bytes : int
        Cells above it are divided into octants, as long as their landmarks differ in
        position.

    Returns
    -------
    SiteManifest

    Raises
    ------
    MapError
        When the contents contradict themselves or exceed the format, when something
        else is at `path`, or when the disk refuses.
    ConfigError
        When `cell_size` makes no sense.
    """
    path = Path(path).resolve()
    contents = _storable(contents)
    check_contents(contents)
    check_target(path)
    part = _partition(contents, max_tile_bytes=max_tile_bytes, cell_size=cell_size)
    is_update = (path / SITE_FILE).is_file()
    parent, prefix = (
        (path, ".tmp-") if is_update else (path.parent, f"{path.name}.tmp-")
    )
    try:
        with staging_folder(parent, prefix) as folder:
            manifest, site_json = _write_contents(folder, contents, part)
            if is_update:
                install(folder, path)
                switch_to(path, site_json)
            else:
                write_file(folder / SITE_FILE, site_json)
                sync_tree(folder)
                folder.replace(path)
                sync_folder(path.parent)
    except OSError as exc:
        raise MapError(f"{path}: cannot be written: {exc.strerror or exc}") from exc
    except (TileFormatError, TypeError, ValueError) as exc:
        raise MapError(f"{path}: the contents do not fit: {exc}") from exc
    return manifest
