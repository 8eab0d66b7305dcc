"""From `SiteContents` to a site folder: checked, divided, written atomically."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    KeyframeTable,
    LandmarkTable,
    PoseArrays,
    SiteContents,
    SiteModel,
    Tile,
)
from edgeloc.tiles.manifest import (
    SITE_FILE,
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
_KEYPOINT_BYTES = 4
"""Of a feature beside its descriptor."""
_PAIRS_PER_BYTE = 3
"""Keyframes and landmarks that see each other; measured: 3 to 12."""
_MAX_ROUNDS = 8
_NO_LANDMARKS = LandmarkTable(
    points3D=np.zeros((0, 3)),
    sigmas=np.zeros(0, np.float32),
    num_observations=np.zeros(0, np.int64),
    descriptor_offsets=np.zeros(1, np.int64),
    descriptors=np.zeros((0, 1), np.uint8),
)


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
    descriptor_bytes = tile_file.descriptor_bytes(contents.family)
    keyframe_bytes = num_visible // _PAIRS_PER_BYTE
    features = contents.features
    if features is not None:
        num_features = np.diff(features.offsets)
        keyframe_bytes = keyframe_bytes + num_features * (
            descriptor_bytes + _KEYPOINT_BYTES
        )
    # Sections are padded, hence the 8 bytes for each.
    return Partition(
        points3D=landmarks.points3D,
        sigmas=landmarks.sigmas,
        landmark_bytes=_LANDMARK_BYTES
        + np.diff(landmarks.descriptor_offsets) * descriptor_bytes,
        centers=contents.keyframes.centers,
        keyframe_bytes=keyframe_bytes,
        num_visible=num_visible,
        base_bytes=HEADER.size
        + len(tile_file.TAGS) * (TABLE_ENTRY.size + 8)
        + tile_file.META.size,
        max_tile_bytes=max_tile_bytes,
        position_step=step,
        cell_size=cell_size,
        by_keyframes=features is not None,
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
            features=None
            if contents.features is None
            else contents.features.of(keyframe_idx),
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
    entries: list[TileEntry] = []
    for _ in range(_MAX_ROUNDS):
        parts = divide(replace(part, too_large=too_large), origin)
        if len(parts) > MAX_TILES:
            raise MapError(
                f"the map falls into {len(parts)} tiles, at most {MAX_TILES} fit: give "
                "a larger cell_size or max_tile_bytes"
            )
        for entry in entries:
            (folder / tile_file_name(entry.sha256)).unlink()
        entries = _write_tiles(folder, contents, parts, origin=origin)
        found = {e.cell for e in entries if e.num_bytes > part.max_tile_bytes}
        if found <= too_large:
            break
        too_large |= found
    return parts, entries


def write_models(
    folder: Path, models: Mapping[str, SiteModel]
) -> dict[str, ModelEntry]:
    """Copy networks into a folder; return their entries by role."""
    entries = {}
    for role, model in models.items():
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


def _rows_of(keyframes: KeyframeTable, rows: IntArray) -> KeyframeTable:
    """Return some keyframes, in a new order."""
    return KeyframeTable(
        keyframe_ids=keyframes.keyframe_ids[rows],
        camera_ids=tuple(keyframes.camera_ids[i] for i in rows.tolist()),
        poses=PoseArrays(R=keyframes.R[rows], t=keyframes.t[rows]),
        global_codes=keyframes.global_codes[rows],
    )


def _joined(tables: Sequence[KeyframeTable]) -> KeyframeTable:
    return KeyframeTable(
        keyframe_ids=np.concatenate([table.keyframe_ids for table in tables]),
        camera_ids=tuple(i for table in tables for i in table.camera_ids),
        poses=PoseArrays(
            R=np.concatenate([table.R for table in tables]),
            t=np.concatenate([table.t for table in tables]),
        ),
        global_codes=np.concatenate([table.global_codes for table in tables]),
    )


def _write_blocks(
    folder: Path,
    blocks: Iterable[SiteContents],
    *,
    max_tile_bytes: int,
    cell_size: float | None,
) -> tuple[SiteContents, list[TileEntry]]:
    """Write the tiles of all blocks, one block in memory at a time.

    Returns
    -------
    whole : SiteContents
        What is said of all of the site; keyframes are grouped by tile, and landmarks
        are left out.
    entries : list of TileEntry
        In the order of the cells.
    """
    whole: SiteContents | None = None
    entries: list[TileEntry] = []
    tables: list[KeyframeTable] = []
    for given in blocks:
        contents = _storable(given)
        check_contents(contents)
        part = _partition(contents, max_tile_bytes=max_tile_bytes, cell_size=cell_size)
        everything = (
            np.arange(len(contents.landmarks)), np.arange(len(contents.keyframes))
        )  # fmt: skip
        origin = contents.grid_origin or grid_origin(part.places(*everything))
        parts, written = _divide_and_write_tiles(folder, contents, part, origin=origin)
        order = np.concatenate([keyframe_idx for _, _, keyframe_idx in parts])
        tables.append(_rows_of(contents.keyframes, order))
        entries += written
        bare = replace(
            contents,
            grid_origin=origin,
            landmarks=_NO_LANDMARKS,
            visible_offsets=np.zeros(1, np.int64),
            visible_landmark_idx=np.zeros(0, np.int64),
            # That there are some is said of the whole site.
            features=contents.features and contents.features.of(np.zeros(0, np.int64)),
        )
        # What was written is let go before the next block is made.
        del given, contents, part, parts
        if whole is None:
            whole = bare
        elif _common(bare) != _common(whole):
            raise MapError(
                "cannot write the site: its blocks differ in what is said of the whole "
                "site (cameras, family, global_coding, position_step, grid_origin, "
                "whether there are features)"
            )
    if whole is None:
        raise MapError("cannot write the site: it has no blocks")
    by_cell = np.array(sorted(range(len(entries)), key=lambda i: entries[i].cell))
    counts = np.array([entry.num_keyframes for entry in entries])
    rows = ranges(offsets_of(counts)[by_cell], counts[by_cell])
    keyframes = _rows_of(_joined(tables), rows)
    return replace(whole, keyframes=keyframes), [entries[i] for i in by_cell.tolist()]


def _common(contents: SiteContents) -> tuple[object, ...]:
    return (
        dict(contents.cameras),
        contents.family,
        contents.global_coding,
        contents.position_step,
        contents.grid_origin,
        contents.features is None,
    )


def _write_contents(
    folder: Path,
    blocks: Iterable[SiteContents],
    *,
    max_tile_bytes: int,
    cell_size: float | None,
) -> tuple[SiteManifest, bytes]:
    """Write all files of a site into an empty folder; return site.json, too."""
    contents, entries = _write_blocks(
        folder, blocks, max_tile_bytes=max_tile_bytes, cell_size=cell_size
    )
    arrays = dict(contents.retrieval_arrays)
    if contents.row_arrays is not None:
        arrays.update(contents.row_arrays(contents.keyframes.global_codes))
    index = index_file.encode_index(
        tiles=entries,
        keyframes=contents.keyframes,
        retrieval_arrays=arrays,
        camera_ids=tuple(sorted(contents.cameras)),
        position_step=contents.position_step,
    )
    assert contents.grid_origin is not None
    files = WrittenFiles(
        index=index_file.index_entry(index),
        num_tiles=len(entries),
        num_landmarks=sum(entry.num_landmarks for entry in entries),
        tile_bytes=sum(entry.num_bytes for entry in entries),
        grid_origin=contents.grid_origin,
        models=write_models(folder, contents.models),
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
    return _write(path, [contents], cell_size=cell_size, max_tile_bytes=max_tile_bytes)


def write_site_in_blocks(
    path: Path,
    blocks: Iterable[SiteContents],
    *,
    cell_size: float,
    max_tile_bytes: int = MAX_TILE_BYTES,
) -> SiteManifest:
    """Write a site that is larger than memory, block by block.

    The bytes are those that `write_site` makes of all blocks at once, where each
    keyframe lies in a cell that has landmarks.

    Parameters
    ----------
    path : Path
        As for `write_site`.
    blocks : iterable of SiteContents
        Asked for one after the other; none is kept. No two have landmarks in the same
        cell of `cell_size`, and keyframes see landmarks of their own block. All have
        the same `grid_origin`; what is said of the whole site is that of the first one.
    cell_size : float
        No cell is larger, in the unit of the map; a power of two is best.
    max_tile_bytes : int
        As for `write_site`.

    Returns
    -------
    SiteManifest

    Raises
    ------
    MapError
        As `write_site`; also when two blocks share a cell, or differ in what has to be
        the same.
    ConfigError
        When `cell_size` makes no sense.
    """
    return _write(path, blocks, cell_size=cell_size, max_tile_bytes=max_tile_bytes)


def _write(
    path: Path,
    blocks: Iterable[SiteContents],
    *,
    cell_size: float | None,
    max_tile_bytes: int,
) -> SiteManifest:
    path = Path(path).resolve()
    check_target(path)
    is_update = (path / SITE_FILE).is_file()
    parent, prefix = (
        (path, ".tmp-") if is_update else (path.parent, f"{path.name}.tmp-")
    )
    try:
        with staging_folder(parent, prefix) as folder:
            manifest, site_json = _write_contents(
                folder, blocks, max_tile_bytes=max_tile_bytes, cell_size=cell_size
            )
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
