"""From `SiteContents` to a site folder: checked, divided, written atomically."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from edgeloc.errors import MapError, TileFormatError
from edgeloc.tiles import codec, index_file, tile_file
from edgeloc.tiles.container import HEADER, TABLE_ENTRY, FileKind, unpack
from edgeloc.tiles.contents_check import check_contents
from edgeloc.tiles.layout import LandmarkTable, SiteContents, Tile
from edgeloc.tiles.manifest import (
    INDEX_FILE,
    MAX_TILES,
    MODEL_FOLDER,
    SITE_FILE,
    TILE_FOLDER,
    FileEntry,
    ModelEntry,
    ModelFile,
    SiteManifest,
    TileEntry,
    decode_manifest,
    encode_manifest,
    model_manifest_name,
    model_network_name,
    tile_file_name,
)
from edgeloc.tiles.partition import Partition, divide
from edgeloc.types import IntArray

_FIXED_LANDMARK_BYTES = 9
"""Position, sigma, number of observations, number of descriptors."""
_FIXED_KEYFRAME_BYTES = 12
"""Id and number of visible landmarks."""


def _gather(offsets: IntArray, rows: IntArray) -> tuple[IntArray, IntArray]:
    """Return the elements of some rows of a ragged array, and their new offsets."""
    counts = offsets[rows + 1] - offsets[rows]
    new_offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    elements = np.repeat(offsets[rows] - new_offsets[:-1], counts)
    return elements + np.arange(new_offsets[-1]), new_offsets


def _partition(contents: SiteContents, max_tile_bytes: int) -> Partition:
    landmarks = contents.landmarks
    num_visible = np.diff(contents.visible_offsets)
    # Sections are padded, hence the 8 bytes for each; ids take at most what the
    # largest one takes.
    return Partition(
        points3D=landmarks.points3D,
        sigmas=landmarks.sigmas,
        landmark_bytes=_FIXED_LANDMARK_BYTES
        + np.diff(landmarks.descriptor_offsets)
        * tile_file.descriptor_bytes(contents.family),
        centers=contents.keyframes.centers,
        keyframe_bytes=_FIXED_KEYFRAME_BYTES
        + num_visible * codec.varint_bytes(len(landmarks)),
        base_bytes=HEADER.size
        + len(tile_file.TAGS) * (TABLE_ENTRY.size + 8)
        + tile_file.META.size,
        max_tile_bytes=max_tile_bytes,
    )


def _make_tiles(
    contents: SiteContents, divided: list[tuple[IntArray, IntArray]]
) -> Iterator[Tile]:
    landmarks, keyframes = contents.landmarks, contents.keyframes
    order = np.concatenate([landmark_idx for landmark_idx, _ in divided])
    id_of_landmark = np.empty(len(landmarks), dtype=np.int64)
    id_of_landmark[order] = np.arange(len(order))
    num_visible = np.diff(contents.visible_offsets)
    ids = id_of_landmark[contents.visible_landmark_idx]
    # Ascending within each keyframe, as the format wants them.
    ids = ids[np.lexsort((ids, np.repeat(np.arange(len(keyframes)), num_visible)))]

    first_id = 0
    for tile_idx, (landmark_idx, keyframe_idx) in enumerate(divided):
        rows, descriptor_offsets = _gather(landmarks.descriptor_offsets, landmark_idx)
        visible, visible_offsets = _gather(contents.visible_offsets, keyframe_idx)
        yield Tile(
            tile_idx=tile_idx,
            first_point3D_id=first_id,
            landmarks=LandmarkTable(
                points3D=landmarks.points3D[landmark_idx],
                sigmas=landmarks.sigmas[landmark_idx],
                num_observations=landmarks.num_observations[landmark_idx],
                descriptor_offsets=descriptor_offsets,
                descriptors=landmarks.descriptors[rows],
            ),
            keyframe_ids=keyframes.keyframe_ids[keyframe_idx],
            visible_offsets=visible_offsets,
            visible_point3D_ids=ids[visible],
        )
        first_id += len(landmark_idx)


def _file_entry(name: str, data: bytes, crc32: int) -> FileEntry:
    return FileEntry(
        file=name,
        num_bytes=len(data),
        crc32=crc32,
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _tile_entry(tile: Tile, data: bytes) -> TileEntry:
    container = unpack(data, FileKind.TILE, tile_file.TAGS)
    box_min = box_max = None
    if len(tile.landmarks):
        # Of the positions as they are stored, half a step from the true ones.
        _, origin, step = codec.encode_positions(tile.landmarks.points3D)
        stored = codec.decode_positions(
            container.sections["POSN"], len(tile.landmarks), origin=origin, step=step
        )
        x0, y0, z0 = stored.min(axis=0).tolist()
        x1, y1, z1 = stored.max(axis=0).tolist()
        box_min, box_max = (x0, y0, z0), (x1, y1, z1)
    return TileEntry(
        file=_file_entry(tile_file_name(tile.tile_idx), data, container.crc32),
        box_min=box_min,
        box_max=box_max,
        first_point3D_id=tile.first_point3D_id,
        num_landmarks=len(tile.landmarks),
        num_descriptors=len(tile.landmarks.descriptors),
        num_keyframes=len(tile.keyframe_ids),
        num_visible=len(tile.visible_point3D_ids),
    )


def _write_file(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    # A new name is on disk only when its folder is.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_models(folder: Path, contents: SiteContents) -> dict[str, ModelEntry]:
    """Copy the networks; return their entries by role."""

    def write(name: str, data: bytes) -> ModelFile:
        _write_file(folder / name, data)
        digest = hashlib.sha256(data).hexdigest()
        return ModelFile(file=name, num_bytes=len(data), sha256=digest)

    if not contents.models:
        return {}
    (folder / MODEL_FOLDER).mkdir()
    entries = {
        role: ModelEntry(
            name=model.name,
            manifest=write(model_manifest_name(role), model.manifest),
            network=write(model_network_name(role), model.network),
        )
        for role, model in contents.models.items()
    }
    _sync_folder(folder / MODEL_FOLDER)
    return entries


def _write_contents(
    folder: Path, contents: SiteContents, divided: list[tuple[IntArray, IntArray]]
) -> SiteManifest:
    """Write all files of a site into an empty folder, one tile in memory at a time."""
    (folder / TILE_FOLDER).mkdir()
    entries: list[TileEntry] = []
    tile_of_keyframe = np.empty(len(contents.keyframes), dtype=np.int64)
    for tile in _make_tiles(contents, divided):
        data = tile_file.encode_tile(tile, contents.family)
        entries.append(_tile_entry(tile, data))
        tile_of_keyframe[divided[tile.tile_idx][1]] = tile.tile_idx
        _write_file(folder / entries[-1].file.file, data)

    index = index_file.encode_index(
        index_file.Index(
            keyframes=contents.keyframes,
            keyframe_tile_idx=tile_of_keyframe,
            retrieval_arrays=contents.retrieval_arrays,
        ),
        tuple(sorted(contents.cameras)),
    )
    crc32 = unpack(index, FileKind.INDEX, index_file.TAGS).crc32
    index_entry = _file_entry(INDEX_FILE, index, crc32)
    _write_file(folder / INDEX_FILE, index)
    site_json = encode_manifest(
        contents,
        index=index_entry,
        tiles=entries,
        models=_write_models(folder, contents),
    )
    # What no reader would accept is not written.
    manifest = decode_manifest(site_json)
    index_file.decode_index(index, manifest)
    _write_file(folder / SITE_FILE, site_json)
    _sync_folder(folder / TILE_FOLDER)
    _sync_folder(folder)
    return manifest


def _check_target(path: Path) -> None:
    """Refuse to replace anything but a site or an empty folder."""
    is_site = (path / SITE_FILE).is_file()
    is_empty = path.is_dir() and not any(path.iterdir())
    if path.exists() and not is_site and not is_empty:
        raise MapError(
            f"{path}: exists and is not a site: give another path or remove it"
        )


def _put_in_place(new: Path, path: Path) -> None:
    """Rename a finished folder to `path`, whatever site was there before."""
    if not path.exists():
        new.replace(path)
    else:
        # No call swaps two folders everywhere; between these two renames the old
        # site is complete under another name, and it comes back if the second fails.
        old = new.with_name(new.name.replace(".tmp-", ".old-"))
        path.replace(old)
        try:
            new.replace(path)
        except BaseException:
            old.replace(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    _sync_folder(path.parent)


@contextmanager
def _work_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path` that does not outlive the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{path.name}.tmp-", dir=path.parent))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_site(
    path: Path,
    contents: SiteContents,
    *,
    cell_size: float | None = None,
    max_tile_bytes: int = 4 << 20,
) -> SiteManifest:
    """Write a site folder; the same contents give the same bytes.

    The folder appears under its name when it is complete and on disk, or not at all;
    a site that was there before is replaced as a whole.

    Parameters
    ----------
    path : Path
        The site's folder; its parents are made.
    contents : SiteContents
        What it holds. Landmarks get consecutive ids tile by tile, and keep their
        order within a tile.
    cell_size : float, optional
        Divide along a grid of such cubes, in the unit of the map; by default only as
        far as `max_tile_bytes` and the precision of positions need it, so that a
        small scene is one tile.
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
    check_contents(contents)
    _check_target(path)
    divided = divide(_partition(contents, max_tile_bytes), cell_size=cell_size)
    if len(divided) > MAX_TILES:
        raise MapError(
            f"{path}: the map falls into {len(divided)} tiles, at most {MAX_TILES} "
            "fit: give a larger cell_size or max_tile_bytes"
        )
    try:
        with _work_folder(path) as folder:
            manifest = _write_contents(folder, contents, divided)
            _put_in_place(folder, path)
    except OSError as exc:
        raise MapError(f"{path}: cannot be written: {exc.strerror or exc}") from exc
    except (TileFormatError, TypeError, ValueError) as exc:
        raise MapError(f"{path}: the contents do not fit: {exc}") from exc
    return manifest
