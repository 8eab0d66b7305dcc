"""From a site folder to arrays: every byte is checked before it is believed."""

from __future__ import annotations

import hashlib
import itertools
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeloc.errors import MapError, TileFormatError, TileMissingError
from edgeloc.tiles.arrays import AnyArray, decode_codebook
from edgeloc.tiles.bits import offsets_of, ranges
from edgeloc.tiles.index_file import LAZY_BYTES, check_all, decode_index
from edgeloc.tiles.layout import (
    LANDMARK_BITS,
    Codebook,
    KeyframeFeatures,
    KeyframeTable,
    LocalMap,
    Tile,
)
from edgeloc.tiles.manifest import (
    MAX_SITE_JSON_BYTES,
    SITE_FILE,
    FileEntry,
    SiteManifest,
    decode_manifest,
)
from edgeloc.tiles.signing import check_signature
from edgeloc.tiles.site_folder import signature_of, tile_file
from edgeloc.tiles.tile_file import decode_tile, is_canonical
from edgeloc.tiles.tile_table import TileEntry, TileTable
from edgeloc.types import Float32Array, FloatArray, IntArray

__all__ = [
    "Site",
    "SiteManifest",
    "TileEntry",
    "TileMissingError",
    "assemble_features",
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


def _missing(path: Path, exc: OSError) -> TileMissingError:
    return TileMissingError(
        f"{path}: cannot be read ({exc.strerror}); copy the site again"
    )


def _check_size(size: int, expected: int) -> None:
    if size != expected:
        raise TileFormatError(f"has {size} bytes, the site says {expected}")


def _check_sha256(data: bytes | mmap.mmap, expected: str) -> None:
    if hashlib.sha256(data).hexdigest() != expected:
        raise TileFormatError("does not have the SHA-256 that the site says")


def _read_file(folder: Path, entry: FileEntry, *, verify: bool) -> bytes:
    """Return the bytes of a file whose size is as listed."""
    path = folder / entry.file
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            # Read no more than the file has, whatever the site says of it.
            data = file.read(size) if size == entry.num_bytes else b""
    except OSError as exc:
        raise _missing(path, exc) from exc
    with _in_file(path):
        _check_size(len(data) or size, entry.num_bytes)
        if verify:
            _check_sha256(data, entry.sha256)
    return data


def _map_file(folder: Path, entry: FileEntry, *, verify: bool) -> mmap.mmap:
    """Return a file in memory, of which pages are read when they are looked at.

    No file of a site is ever changed or shortened, so that the pages stay what they are
    as long as they are mapped, even when the file is removed.
    """
    path = folder / entry.file
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            with _in_file(path):
                _check_size(size, entry.num_bytes)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as exc:
        raise _missing(path, exc) from exc
    if verify:
        with _in_file(path):
            _check_sha256(data, entry.sha256)
    return data


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Site:
    """An open site: what is resident, and how to read tiles.

    Parameters
    ----------
    path : Path
        The folder.
    manifest : SiteManifest
        What site.json says.
    tiles : TileTable
        The tile table.
    keyframes : KeyframeTable
        Keyframes of all tiles, those of tile 0 first.
    retrieval_arrays : mapping of str to ndarray
        The retrieval model's arrays.
    verify : bool
        Compare the SHA-256 of every file that is read.
    """

    path: Path
    manifest: SiteManifest
    tiles: TileTable
    keyframes: KeyframeTable
    retrieval_arrays: Mapping[str, AnyArray]
    verify: bool = False

    def tile_of(self, keyframe_idx: IntArray) -> IntArray:
        """Return the tiles of keyframes, by their indices."""
        first = self.tiles.first_keyframe
        return np.searchsorted(first, keyframe_idx, side="right") - 1

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
        for file in (entry.network, entry.manifest):
            _map_file(self.path, file, verify=True).close()
        return self.path / entry.manifest.file

    def codebook(self, role: str) -> Codebook:
        """Return a codebook that the site carries.

        Parameters
        ----------
        role : {"descriptors", "global"}
            One of `SiteManifest.codebooks`.

        Raises
        ------
        MapError
            When it is missing or was changed.
        """
        entry = self.manifest.codebooks[role]
        data = _read_file(self.path, entry, verify=True)
        with _in_file(self.path / entry.file):
            codebook = decode_codebook(data)
            if codebook.name != entry.name:
                raise TileFormatError(
                    f"is the codebook {codebook.name!r}, the site says {entry.name!r}"
                )
        return codebook

    def read_tile(self, tile_idx: int, *, verify: bool = False) -> Tile:
        """Return one tile, from disk.

        Parameters
        ----------
        tile_idx : int
            Row of the tile table.
        verify : bool
            Compare its SHA-256, too, and whether it is written as the writer would. Its
            CRC-32 is always compared.

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
        entry = tile_file(self.tiles[tile_idx])
        data = _read_file(self.path, entry, verify=verify or self.verify)
        start, end = self.tiles.first_keyframe[tile_idx : tile_idx + 2]
        with _in_file(self.path / entry.file):
            tile = decode_tile(
                data,
                tile_idx=tile_idx,
                tiles=self.tiles,
                family=self.manifest.family,
                keyframe_ids=self.keyframes.keyframe_ids[start:end],
            )
            if (tile.features is not None) != self.manifest.has_features:
                raise TileFormatError(
                    "has keyframe features or lacks them, the site says otherwise"
                )
            if verify and not is_canonical(
                data, tile, self.manifest.family, self.tiles
            ):
                raise TileFormatError("is not written as the format wants it")
        return tile


def read_manifest(path: Path) -> tuple[SiteManifest, bytes]:
    """Return what site.json says, and its bytes.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    TileFormatError
        When it is not what FORMAT.md says.
    MapError
        When it cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            # A read of the limit would take that much memory first.
            raw = file.read(min(size, MAX_SITE_JSON_BYTES)) if size else b""
    except OSError as exc:
        raise MapError(
            f"{path}: cannot be read ({exc.strerror}); check its permissions"
        ) from exc
    with _in_file(path):
        if size > MAX_SITE_JSON_BYTES:
            raise TileFormatError(f"has more than {MAX_SITE_JSON_BYTES} bytes")
        return decode_manifest(raw), raw


def open_version(path: Path, manifest: SiteManifest, *, verify: bool = False) -> Site:
    """Return a version of a site whose site.json was read.

    Parameters
    ----------
    path : Path
        The folder.
    manifest : SiteManifest
        The version.
    verify : bool
        Compare the SHA-256 of every file that is read.
    """
    data = _map_file(path, manifest.index, verify=verify)
    with _in_file(path / manifest.index.file):
        index = decode_index(data, manifest, lazy_bytes=LAZY_BYTES)
    return Site(
        path=path,
        manifest=manifest,
        tiles=index.tiles,
        keyframes=index.keyframes,
        retrieval_arrays=index.retrieval_arrays,
        verify=verify,
    )


def open_site(
    path: Path, *, verify: bool = False, trusted_keys: Sequence[bytes] = ()
) -> Site:
    """Return an open site; tiles are left on disk.

    Parameters
    ----------
    path : Path
        The folder that edgeloc-build wrote.
    verify : bool
        Read and check every file first, as `verify_site`.
    trusted_keys : sequence of bytes
        Public keys, from `edgeloc.tiles.signing.read_public_key`. With any, site.json
        has to be signed with one of them, and the SHA-256 of every file that is read
        has to be that which was signed.

    Returns
    -------
    Site

    Raises
    ------
    MapError
        When there is no site.
    UntrustedSiteError
        When it is not signed with a trusted key.
    TileFormatError
        When site.json or the index is not what FORMAT.md says; with `verify` also for
        tiles.
    TileMissingError
        When the index is missing; with `verify` also for tiles.
    """
    path = Path(path)
    if not (path / SITE_FILE).is_file():
        state = f"has no {SITE_FILE}" if path.is_dir() else "is not a folder"
        raise MapError(f"{path}: {state}; give a site that edgeloc-build wrote")
    manifest, raw = read_manifest(path / SITE_FILE)
    if trusted_keys:
        check_signature(path / signature_of(manifest), raw, trusted_keys)
    site = open_version(path, manifest, verify=bool(trusted_keys))
    if verify:
        _check_files(site)
    return site


def _check_files(site: Site) -> None:
    index = site.manifest.index
    data = _map_file(site.path, index, verify=True)
    with _in_file(site.path / index.file):
        check_all(data, site.manifest)
    for tile_idx in range(len(site.tiles)):
        site.read_tile(tile_idx, verify=True)
    for role in site.manifest.models:
        site.model_manifest(role)
    for role in site.manifest.codebooks:
        site.codebook(role)


def verify_site(path: Path, *, trusted_keys: Sequence[bytes] = ()) -> None:
    """Read and check every file of a site, down to its SHA-256.

    Parameters
    ----------
    path : Path
        The folder.
    trusted_keys : sequence of bytes
        As for `open_site`.

    Raises
    ------
    MapError
        As `open_site`, for the first file that is wrong.
    """
    open_site(path, verify=True, trusted_keys=trusted_keys)


def _load(tiles: TileSource, tile_idx: int) -> Tile:
    if not isinstance(tiles, Mapping):
        return tiles(tile_idx)
    if tile_idx not in tiles:
        raise TileMissingError(f"tile {tile_idx} is not loaded; load it first")
    return tiles[tile_idx]


def _owners_of(site: Site, keyframe_ids: IntArray) -> Iterator[tuple[int, int]]:
    """Yield the tile of each keyframe, and its place in it."""
    keyframe_idx = site.keyframes.index_of(np.asarray(keyframe_ids, dtype=np.int64))
    for idx, owner in zip(
        keyframe_idx.tolist(), site.tile_of(keyframe_idx).tolist(), strict=True
    ):
        yield owner, idx - int(site.tiles.first_keyframe[owner])


def assemble_features(
    tiles: TileSource, site: Site, keyframe_ids: IntArray
) -> KeyframeFeatures:
    """Return the local features of some keyframes.

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
    KeyframeFeatures
        In the order of `keyframe_ids`; none where the site has none.

    Raises
    ------
    TileFormatError, TileMissingError
        From reading, or when a mapping lacks a tile.
    KeyError
        When the site has no such keyframe.
    """
    family = site.manifest.family
    offsets = np.zeros(2, np.int64)
    parts = [
        KeyframeFeatures(
            offsets=offsets[:1],
            keypoints=np.zeros((0, 2), np.float32),
            sigmas=np.zeros(0, np.float32),
            descriptors=np.zeros((0, family.stored_dim), family.stored_dtype),
        )
    ]
    for owner, row in _owners_of(site, keyframe_ids):
        found = _load(tiles, owner).features
        parts.append(
            replace(parts[0], offsets=offsets)
            if found is None
            else found.of(np.array([row]))
        )
    return KeyframeFeatures(
        offsets=offsets_of(np.concatenate([np.diff(part.offsets) for part in parts])),
        keypoints=np.concatenate([part.keypoints for part in parts]),
        sigmas=np.concatenate([part.sigmas for part in parts]),
        descriptors=np.concatenate([part.descriptors for part in parts]),
    )


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
    visible: list[IntArray] = []
    for owner, row in _owners_of(site, keyframe_ids):
        tile = _load(tiles, owner)
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

    owners = ids >> LANDMARK_BITS
    bounds = [*np.flatnonzero(np.diff(owners, prepend=-1)).tolist(), len(ids)]
    family = site.manifest.family
    points3D: list[FloatArray] = [np.zeros((0, 3))]
    sigmas: list[Float32Array] = [np.zeros(0, np.float32)]
    num_observations: list[IntArray] = [np.zeros(0, np.int64)]
    counts: list[IntArray] = [np.zeros(0, np.int64)]
    descriptors: list[npt.NDArray[np.generic]] = [
        np.zeros((0, family.stored_dim), family.stored_dtype)
    ]
    for begin, end in itertools.pairwise(bounds):
        tile = _load(tiles, int(owners[begin]))
        landmarks = tile.landmarks
        rows = ids[begin:end] - tile.first_point3D_id
        starts = landmarks.descriptor_offsets[rows]
        counts.append(landmarks.descriptor_offsets[rows + 1] - starts)
        points3D.append(landmarks.points3D.take(rows, axis=0))
        sigmas.append(landmarks.sigmas[rows])
        num_observations.append(landmarks.num_observations[rows])
        descriptors.append(
            landmarks.descriptors.take(ranges(starts, counts[-1]), axis=0)
        )
    return LocalMap(
        point3D_ids=ids,
        points3D=np.concatenate(points3D),
        sigmas=np.concatenate(sigmas),
        num_observations=np.concatenate(num_observations),
        descriptors=np.concatenate(descriptors),
        row_to_point=np.repeat(np.arange(len(ids)), np.concatenate(counts)),
    )
