"""From a site folder to arrays: every byte is checked before it is believed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeloc.errors import MapError, TileFormatError, TileMissingError
from edgeloc.tiles.index_file import decode_index
from edgeloc.tiles.layout import KeyframeTable, LocalMap, Tile
from edgeloc.tiles.manifest import (
    MAX_SITE_JSON_BYTES,
    SITE_FILE,
    FileEntry,
    ModelFile,
    SiteManifest,
    TileEntry,
    decode_manifest,
)
from edgeloc.tiles.tile_file import decode_tile
from edgeloc.types import Float32Array, FloatArray, IntArray

__all__ = [
    "Site",
    "SiteManifest",
    "TileEntry",
    "TileMissingError",
    "assemble_local_map",
    "open_site",
    "verify_site",
    "visible_point3D_ids",
]

TileSource = Mapping[int, Tile] | Callable[[int], Tile]
"""Gives a tile by its index: `TileCache.load`, `Site.read_tile` or a dict."""


@contextmanager
def _in_file(path: Path) -> Iterator[None]:
    """Add the file and what to do to format errors of the block."""
    try:
        yield
    except TileFormatError as exc:
        located = TileFormatError(f"{path}: {exc}; copy the site again or rebuild it")
        located.offset = exc.offset
        raise located from exc


def _read_file(folder: Path, entry: FileEntry, *, verify: bool) -> bytes:
    """Return the bytes of a file whose size is as listed."""
    path = folder / entry.file
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            # Read no more than the file has, whatever site.json says of it.
            data = file.read(size) if size == entry.num_bytes else b""
    except OSError as exc:
        raise TileMissingError(
            f"{path}: cannot be read ({exc.strerror}); copy the site again"
        ) from exc
    with _in_file(path):
        if len(data) != entry.num_bytes:
            raise TileFormatError(f"has {size} bytes, site.json says {entry.num_bytes}")
        if verify and hashlib.sha256(data).hexdigest() != entry.sha256:
            raise TileFormatError("does not have the SHA-256 that site.json says")
    return data


def _check_model_file(folder: Path, entry: ModelFile) -> Path:
    """Return the path of a model's file, which is as it was when the site was made."""
    path = folder / entry.file
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            while size == entry.num_bytes and (block := file.read(1 << 20)):
                digest.update(block)
    except OSError as exc:
        raise MapError(
            f"{path}: cannot be read ({exc.strerror}); copy the site again"
        ) from exc
    with _in_file(path):
        if size != entry.num_bytes:
            raise TileFormatError(f"has {size} bytes, site.json says {entry.num_bytes}")
        if digest.hexdigest() != entry.sha256:
            raise TileFormatError("does not have the SHA-256 that site.json says")
    return path


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Site:
    """An open site: what is resident, and how to read tiles.

    Parameters
    ----------
    path : Path
        The folder.
    manifest : SiteManifest
        What site.json says.
    keyframes : KeyframeTable
        Keyframes of all tiles.
    keyframe_tile_idx : ndarray of shape (K,), int64
        Tile of each keyframe.
    retrieval_arrays : mapping of str to ndarray, float32
        The retrieval model's arrays.
    """

    path: Path
    manifest: SiteManifest
    keyframes: KeyframeTable
    keyframe_tile_idx: IntArray
    retrieval_arrays: Mapping[str, Float32Array]

    def model_manifest(self, role: str) -> Path:
        """Return the manifest of a network that the site carries, both files checked.

        Parameters
        ----------
        role : {"features", "retrieval"}
            One of `SiteManifest.models`.

        Returns
        -------
        Path

        Raises
        ------
        MapError
            When one of the two files is missing or was changed.
        """
        entry = self.manifest.models[role]
        _check_model_file(self.path, entry.network)
        return _check_model_file(self.path, entry.manifest)

    def read_tile(self, tile_idx: int, *, verify: bool = False) -> Tile:
        """Return one tile, from disk.

        Parameters
        ----------
        tile_idx : int
            Row of the tile table.
        verify : bool
            Compare its SHA-256, too. Its CRC-32 is always compared.

        Returns
        -------
        Tile

        Raises
        ------
        TileFormatError
            When the file is not that tile.
        TileMissingError
            When the file is gone.
        """
        if not 0 <= tile_idx < len(self.manifest.tiles):
            raise IndexError(f"tile {tile_idx} of {len(self.manifest.tiles)}")
        entry = self.manifest.tiles[tile_idx]
        data = _read_file(self.path, entry.file, verify=verify)
        with _in_file(self.path / entry.file.file):
            return decode_tile(
                data,
                tile_idx=tile_idx,
                entry=entry,
                family=self.manifest.family,
                keyframe_ids=self.keyframes.keyframe_ids[
                    self.keyframe_tile_idx == tile_idx
                ],
                num_point3D_ids=self.manifest.num_landmarks,
            )


def open_site(path: Path, *, verify: bool = False) -> Site:
    """Return an open site; tiles are left on disk.

    Parameters
    ----------
    path : Path
        The folder that edgeloc-build wrote.
    verify : bool
        Read and check every file first, as `verify_site`.

    Returns
    -------
    Site

    Raises
    ------
    MapError
        When there is no site.
    TileFormatError
        When site.json or the index is not what FORMAT.md says; with `verify` also for
        tiles.
    TileMissingError
        When the index is missing; with `verify` also for tiles.
    """
    path = Path(path)
    site_json = path / SITE_FILE
    if not site_json.is_file():
        state = f"has no {SITE_FILE}" if path.is_dir() else "is not a folder"
        raise MapError(f"{path}: {state}; give a site that edgeloc-build wrote")
    try:
        with site_json.open("rb") as file:
            raw = file.read(MAX_SITE_JSON_BYTES + 1)
    except OSError as exc:
        raise MapError(
            f"{site_json}: cannot be read ({exc.strerror}); check its permissions"
        ) from exc
    with _in_file(site_json):
        if len(raw) > MAX_SITE_JSON_BYTES:
            raise TileFormatError(f"has more than {MAX_SITE_JSON_BYTES} bytes")
        manifest = decode_manifest(raw)
    data = _read_file(path, manifest.index, verify=verify)
    with _in_file(path / manifest.index.file):
        index = decode_index(data, manifest)
    site = Site(
        path=path,
        manifest=manifest,
        keyframes=index.keyframes,
        keyframe_tile_idx=index.keyframe_tile_idx,
        retrieval_arrays=index.retrieval_arrays,
    )
    if verify:
        for tile_idx in range(len(manifest.tiles)):
            site.read_tile(tile_idx, verify=True)
        for role in manifest.models:
            site.model_manifest(role)
    return site


def verify_site(path: Path) -> None:
    """Read and check every file of a site, down to its SHA-256.

    Parameters
    ----------
    path : Path
        The folder.

    Raises
    ------
    MapError
        As `open_site`, for the first file that is wrong.
    """
    open_site(path, verify=True)


def _ranges(starts: IntArray, counts: IntArray) -> IntArray:
    """Return ``starts[i] + 0 .. counts[i] - 1`` for all i, in a row."""
    ends = np.cumsum(counts)
    shifted = np.repeat(starts - (ends - counts), counts)
    return shifted + np.arange(len(shifted))


def _load(tiles: TileSource, tile_idx: int) -> Tile:
    if not isinstance(tiles, Mapping):
        return tiles(tile_idx)
    if tile_idx not in tiles:
        raise TileMissingError(f"tile {tile_idx} is not loaded; load it first")
    return tiles[tile_idx]


def visible_point3D_ids(
    tiles: TileSource, site: Site, keyframe_ids: IntArray
) -> list[IntArray]:
    """Return the landmarks that each of some keyframes sees.

    Parameters
    ----------
    tiles : mapping of int to Tile, or callable
        Gives a tile by its index; only the tiles of the keyframes are asked for.
    site : Site
        The site of the tiles.
    keyframe_ids : array_like of shape (n,), int
        Keyframes of the site.

    Returns
    -------
    list of n ndarray of int64
        Landmark ids, ascending, in the order of `keyframe_ids`.

    Raises
    ------
    TileFormatError, TileMissingError
        From reading, or when a mapping lacks a tile.
    KeyError
        When the site has no such keyframe.
    """
    keyframe_idx = site.keyframes.index_of(np.asarray(keyframe_ids, dtype=np.int64))
    visible: list[IntArray] = []
    for idx in keyframe_idx:
        tile = _load(tiles, int(site.keyframe_tile_idx[idx]))
        row = np.searchsorted(tile.keyframe_ids, site.keyframes.keyframe_ids[idx])
        start, end = tile.visible_offsets[row : row + 2]
        visible.append(tile.visible_point3D_ids[start:end])
    return visible


def assemble_local_map(
    tiles: TileSource, site: Site, keyframe_ids: IntArray
) -> LocalMap:
    """Return the landmarks that at least one of some keyframes sees.

    Parameters
    ----------
    tiles : mapping of int to Tile, or callable
        Gives a tile by its index: `TileCache.load`, `Site.read_tile` or a dict.
    site : Site
        The site of the tiles.
    keyframe_ids : array_like of shape (n,), int
        Keyframes of the site.

    Returns
    -------
    LocalMap
        Landmarks come from the tiles that own them, wherever the keyframes are.

    Raises
    ------
    TileFormatError, TileMissingError
        From reading, or when a mapping lacks a tile.
    KeyError
        When the site has no such keyframe.
    """
    seen = visible_point3D_ids(tiles, site, keyframe_ids)
    # Sorted by hand: np.unique hashes in NumPy 2.3+, ten times slower on such lists
    # (40,000 ids: 6.5 ms and 0.7 ms on one x86 core).
    ids = np.sort(np.concatenate([np.zeros(0, np.int64), *seen]))
    ids = ids[np.diff(ids, prepend=-1) > 0]

    first_ids = [tile.first_point3D_id for tile in site.manifest.tiles]
    bounds = np.searchsorted(ids, [*first_ids, site.manifest.num_landmarks])
    family = site.manifest.family
    points3D: list[FloatArray] = [np.zeros((0, 3))]
    sigmas: list[Float32Array] = [np.zeros(0, np.float32)]
    num_observations: list[IntArray] = [np.zeros(0, np.int64)]
    counts: list[IntArray] = [np.zeros(0, np.int64)]
    descriptors: list[npt.NDArray[np.generic]] = [
        np.zeros((0, family.stored_dim), family.stored_dtype)
    ]
    for tile_idx in np.flatnonzero(np.diff(bounds)).tolist():
        tile = _load(tiles, tile_idx)
        landmarks = tile.landmarks
        rows = ids[bounds[tile_idx] : bounds[tile_idx + 1]] - tile.first_point3D_id
        starts = landmarks.descriptor_offsets[rows]
        counts.append(landmarks.descriptor_offsets[rows + 1] - starts)
        points3D.append(landmarks.points3D.take(rows, axis=0))
        sigmas.append(landmarks.sigmas[rows])
        num_observations.append(landmarks.num_observations[rows])
        descriptors.append(
            landmarks.descriptors.take(_ranges(starts, counts[-1]), axis=0)
        )
    return LocalMap(
        point3D_ids=ids,
        points3D=np.concatenate(points3D),
        sigmas=np.concatenate(sigmas),
        num_observations=np.concatenate(num_observations),
        descriptors=np.concatenate(descriptors),
        row_to_point=np.repeat(np.arange(len(ids)), np.concatenate(counts)),
    )
