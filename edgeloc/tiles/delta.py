"""What changed between two versions of a site, as one file, and its application."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeloc.errors import MapError, TileFormatError
from edgeloc.tiles.codec import Codec
from edgeloc.tiles.container import FileKind, Section, pack, unpack
from edgeloc.tiles.index_file import LAZY_BYTES, decode_index
from edgeloc.tiles.manifest import (
    MAX_SITE_JSON_BYTES,
    SITE_FILE,
    FileEntry,
    SiteManifest,
    decode_manifest,
)
from edgeloc.tiles.reader import Site, open_site, open_version, read_manifest
from edgeloc.tiles.signing import check_signature
from edgeloc.tiles.site_folder import (
    install,
    referenced_files,
    replace_file,
    signature_of,
    staging_folder,
    write_file,
)
from edgeloc.tiles.versions import switch_to

TAGS = ("BASE", "SITE", "SIGN", "DATA")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteDelta:
    """What has to be transferred.

    Parameters
    ----------
    base_id, map_id : str
        Versions before and after.
    files : tuple of FileEntry
        Files that only the version after has, in the order in which a delta holds them.
    num_kept : int
        Files that both have.
    """

    base_id: str
    map_id: str
    files: tuple[FileEntry, ...]
    num_kept: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the files."""
        return sum(entry.num_bytes for entry in self.files)


def _new_files(
    base: Mapping[str, FileEntry], target: Mapping[str, FileEntry], index: str
) -> tuple[FileEntry, ...]:
    """Return the files that are not in the base; the index first, then by name."""
    new = [entry for name, entry in target.items() if name not in base]
    return tuple(sorted(new, key=lambda entry: (entry.file != index, entry.file)))


def site_delta(old: Path, new: Path) -> SiteDelta:
    """Return what has to be transferred to turn one site into another.

    Parameters
    ----------
    old, new : Path
        Folders of two versions of a site.

    Raises
    ------
    MapError
        When one of them is no site.
    """
    return _delta_of(open_site(old), open_site(new))


def _delta_of(base: Site, target: Site) -> SiteDelta:
    before = referenced_files(base.manifest, base.tiles)
    after = referenced_files(target.manifest, target.tiles)
    files = _new_files(before, after, target.manifest.index.file)
    return SiteDelta(
        base_id=base.manifest.map_id,
        map_id=target.manifest.map_id,
        files=files,
        num_kept=len(after) - len(files),
    )


def write_delta(old: Path, new: Path, out: Path) -> SiteDelta:
    """Write a file with which `apply_delta` turns one site into another.

    Parameters
    ----------
    old, new : Path
        Folders of two versions of a site; the new one is checked file by file.
    out : Path
        The delta; replaced if it exists.

    Returns
    -------
    SiteDelta

    Raises
    ------
    MapError
        When one of them is no site, or when the delta cannot be written.
    """
    target = open_site(new, verify=True)
    delta = _delta_of(open_site(old), target)
    signature = new / signature_of(target.manifest)
    try:
        blobs = [(new / entry.file).read_bytes() for entry in delta.files]
        sections = {
            "BASE": delta.base_id.encode("ascii"),
            "SITE": (new / SITE_FILE).read_bytes(),
            "SIGN": signature.read_bytes() if signature.is_file() else b"",
            "DATA": b"".join(blobs),
        }
        data = pack(
            FileKind.DELTA, {tag: (Codec.RAW, raw) for tag, raw in sections.items()}
        )
        replace_file(out, data)
    except OSError as exc:
        raise MapError(f"{out}: cannot be written: {exc.strerror or exc}") from exc
    except ValueError as exc:
        raise MapError(f"{out}: {exc}; copy the whole site instead") from exc
    return delta


def _take_new_files(
    base: Site, manifest: SiteManifest, data: Section
) -> list[tuple[FileEntry, memoryview]]:
    """Return the files in a delta, each with the SHA-256 that the new site says."""
    before = referenced_files(base.manifest, base.tiles)
    payload = data.payload
    index = manifest.index
    if index.file in before:
        tiles = open_version(base.path, manifest).tiles
    else:
        blob = payload[: index.num_bytes]
        _check_blob(index, blob)
        tiles = decode_index(blob, manifest, lazy_bytes=LAZY_BYTES).tiles
    after = referenced_files(manifest, tiles)
    found: list[tuple[FileEntry, memoryview]] = []
    at = 0
    for entry in _new_files(before, after, index.file):
        blob = payload[at : at + entry.num_bytes]
        _check_blob(entry, blob)
        found.append((entry, blob))
        at += entry.num_bytes
    if at != len(payload):
        raise TileFormatError(
            f"has {len(payload) - at} bytes after its last file",
            offset=data.offset + at,
        )
    for name, entry in after.items():
        path = base.path / name
        if name in before and (
            not path.is_file() or path.stat().st_size != entry.num_bytes
        ):
            raise MapError(
                f"{path}: is missing or was changed, and the delta does not bring it; "
                "copy the whole site"
            )
    return found


def _check_blob(entry: FileEntry, blob: memoryview) -> None:
    if len(blob) != entry.num_bytes:
        raise TileFormatError(f"ends inside {entry.file}")
    if hashlib.sha256(blob).hexdigest() != entry.sha256:
        raise TileFormatError(f"has another {entry.file} than its site.json says")


def apply_delta(
    path: Path, delta: Path, *, trusted_keys: Sequence[bytes] = ()
) -> SiteManifest:
    """Turn a site into the next version.

    Everything in the delta is checked before anything is written; the site changes at
    once, when its site.json does (`edgeloc.tiles.site_folder`). Interrupted before, it
    is the old one, and the delta can be applied again; it can be applied twice, too.

    Parameters
    ----------
    path : Path
        The site's folder.
    delta : Path
        From `write_delta`.
    trusted_keys : sequence of bytes
        As for `edgeloc.tiles.reader.open_site`, of the new version.

    Returns
    -------
    SiteManifest
        Of the site as it is now.

    Raises
    ------
    TileFormatError
        When the delta is damaged.
    UntrustedSiteError
        When it is not signed with a trusted key.
    MapError
        When it is for another version of the site, or when the disk refuses.
    """
    path = Path(path).resolve()
    base = open_site(path)
    try:
        with delta.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise MapError(f"{delta}: is empty; copy it again")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as exc:
        raise MapError(f"{delta}: cannot be read ({exc.strerror})") from exc
    try:
        return _apply(base, data, trusted_keys)
    except TileFormatError as exc:
        located = TileFormatError(f"{delta}: {exc}; copy the delta again")
        located.offset = exc.offset
        raise located from exc
    except OSError as exc:
        raise MapError(f"{path}: cannot be written: {exc.strerror or exc}") from exc


def _apply(base: Site, data: mmap.mmap, trusted_keys: Sequence[bytes]) -> SiteManifest:
    sections = unpack(data, FileKind.DELTA, TAGS).sections
    for section in sections.values():
        if section.codec != Codec.RAW:
            raise TileFormatError(f"section {section.tag} uses codec {section.codec}")
    site_json = bytes(sections["SITE"].payload[: MAX_SITE_JSON_BYTES + 1])
    if len(site_json) > MAX_SITE_JSON_BYTES:
        raise TileFormatError(f"has a site.json above {MAX_SITE_JSON_BYTES} bytes")
    manifest = decode_manifest(site_json)
    signature = bytes(sections["SIGN"].payload)
    path = base.path
    with staging_folder(path) as folder:
        name = signature_of(manifest)
        if signature:
            write_file(folder / name, signature)
        if trusted_keys:
            check_signature(folder / name, site_json, trusted_keys)
        if base.manifest.map_id == manifest.map_id:
            return manifest
        base_id = bytes(sections["BASE"].payload).decode("ascii", "replace")
        if base_id != base.manifest.map_id:
            raise MapError(
                f"{path}: is the version {base.manifest.map_id}, the delta is for "
                f"{base_id!r}; make one for this version or copy the whole site"
            )
        for entry, blob in _take_new_files(base, manifest, sections["DATA"]):
            write_file(folder / entry.file, bytes(blob))
        install(folder, path)
        switch_to(path, site_json)
    return read_manifest(path / SITE_FILE)[0]
