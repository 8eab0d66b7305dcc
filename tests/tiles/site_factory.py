"""Small sites for tests, and how to damage them with checksums that still hold."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeloc.geometry.se3 import exp_so3
from edgeloc.tiles.container import HEADER, TABLE_ENTRY, header_crc32
from edgeloc.tiles.layout import (
    FamilySpec,
    KeyframeFeatures,
    KeyframeTable,
    LandmarkTable,
    PoseArrays,
    SiteContents,
)
from edgeloc.tiles.manifest import seal, tile_file_name
from edgeloc.tiles.reader import Site
from edgeloc.tiles.tile_table import ROW, TileTable, encode_tile_table
from edgeloc.types import CameraModel

CAMERA = CameraModel(
    model="PINHOLE", width=640, height=480, params=(500.0, 500.0, 320.0, 240.0)
)


def make_contents(
    rng: np.random.Generator,
    *,
    num_landmarks: int = 6,
    num_keyframes: int = 3,
    extent: float = 4.0,
    center: float = 0.0,
    dtype: str = "uint8",
    points3D: np.ndarray | None = None,
    visible_share: float = 0.5,
) -> SiteContents:
    """A random site; descriptors begin with (landmark % 100, landmark // 100, row)."""
    if points3D is None:
        points3D = center + extent * rng.uniform(-0.5, 0.5, (num_landmarks, 3))
    num_landmarks = len(points3D)
    counts = rng.integers(1, 4, num_landmarks)
    owners = np.repeat(np.arange(num_landmarks), counts)
    descriptors = np.zeros((len(owners), 4))
    descriptors[:, 0], descriptors[:, 1] = owners % 100, owners // 100
    descriptors[:, 2] = np.arange(len(owners)) % 100
    descriptors[:, 3] = rng.integers(0, 100, len(owners))
    visible = [
        np.flatnonzero(rng.uniform(size=num_landmarks) < visible_share)
        for _ in range(num_keyframes)
    ]
    rotations = np.array([exp_so3(rng.normal(size=3)) for _ in range(num_keyframes)])
    centers = center + extent * rng.uniform(-0.6, 0.6, (num_keyframes, 3))
    global_descriptors = rng.normal(size=(num_keyframes, 8))
    global_descriptors /= np.linalg.norm(global_descriptors, axis=1, keepdims=True)
    ids = np.cumsum(rng.integers(1, 9, num_keyframes)) - 1
    return SiteContents(
        name="Küche",
        metric=True,
        cameras={"left": CAMERA, "Rechts": replace(CAMERA, width=800)},
        family=FamilySpec(
            name="orb", stored_dtype=dtype, stored_dim=4, max_keypoints=1000
        ),
        keyframes=KeyframeTable(
            keyframe_ids=ids.astype(np.int64),
            camera_ids=tuple(rng.choice(["left", "Rechts"], num_keyframes).tolist()),
            poses=PoseArrays(
                R=rotations, t=-np.einsum("kij,kj->ki", rotations, centers)
            ),
            global_codes=global_descriptors.astype(np.float32),
        ),
        landmarks=LandmarkTable(
            points3D=points3D,
            sigmas=np.exp(rng.uniform(-7, 1, num_landmarks)).astype(np.float32),
            num_observations=rng.integers(0, 400, num_landmarks),
            descriptor_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(int),
            descriptors=descriptors.astype(dtype),
        ),
        visible_offsets=np.cumsum([0, *map(len, visible)]),
        visible_landmark_idx=np.concatenate(visible).astype(np.int64),
        retrieval_arrays={
            "words": rng.normal(size=(3, 4)).astype(np.float32),
            "mean": rng.normal(size=5).astype(np.float32),
        },
        gravity_in_world=(0.0, 0.6, 0.8),
        geo_reference={
            "latitude_deg": 47.5,
            "longitude_deg": -8.25,
            "altitude_m": 400.0,
        },
        build={"tool": "edgeloc-build 0.1", "num_images": 3, "rmse_px": 0.75},
    )


def with_features(
    contents: SiteContents, rng: np.random.Generator, *, most: int = 9
) -> SiteContents:
    """The site with up to so many features per keyframe, in 640 x 480 px."""
    offsets = np.concatenate(
        [[0], np.cumsum(rng.integers(0, most + 1, len(contents.keyframes)))]
    )
    num, family = int(offsets[-1]), contents.family
    return replace(
        contents,
        features=KeyframeFeatures(
            offsets=offsets,
            keypoints=rng.uniform(0, (640, 480), (num, 2)).astype(np.float32),
            sigmas=rng.uniform(0.25, 2.0, num).astype(np.float32),
            descriptors=rng.integers(0, 100, (num, family.stored_dim)).astype(
                family.stored_dtype
            ),
        ),
        rungs=("LOCAL_SFM", "RELATIVE", "INTERPOLATE"),
    )


def with_poses(keyframes: KeyframeTable, **change: np.ndarray) -> KeyframeTable:
    """The table with other rotations or translations."""
    poses = PoseArrays(**{"R": keyframes.R, "t": keyframes.t, **change})
    return replace(keyframes, poses=poses)


def landmark_of(descriptor: np.ndarray) -> int:
    """The index into the contents that `make_contents` wrote into a descriptor."""
    return int(descriptor[0]) + 100 * int(descriptor[1])


def table_of(data: bytes) -> list[tuple]:
    """The section table, as far as the file has it."""
    room = max(0, len(data) - HEADER.size) // TABLE_ENTRY.size
    count = min(HEADER.unpack_from(data)[3], room) if len(data) >= HEADER.size else 0
    return [
        TABLE_ENTRY.unpack_from(data, HEADER.size + i * TABLE_ENTRY.size)
        for i in range(count)
    ]


def reseal(data: bytes) -> bytes:
    """Recompute all checksums of a damaged file."""
    out = bytearray(data)
    table = table_of(data)
    offset = HEADER.size + len(table) * TABLE_ENTRY.size
    for i, (_, _, num_bytes, _) in enumerate(table):
        crc32 = zlib.crc32(data[offset : offset + num_bytes])
        at = HEADER.size + i * TABLE_ENTRY.size + 12
        struct.pack_into("<I", out, at, crc32)
        offset += -(-num_bytes // 8) * 8
    if len(out) >= HEADER.size:
        head = bytes(out[: HEADER.size + len(table) * TABLE_ENTRY.size])
        struct.pack_into("<I", out, 12, header_crc32(head))
    return bytes(out)


def stored_crc32(data: bytes) -> int:
    return HEADER.unpack_from(data)[4] if len(data) >= HEADER.size else 0


def with_row(tiles: TileTable, tile_idx: int, **change: object) -> TileTable:
    """The table with another row."""
    rows = [replace(tiles[tile_idx], **change) if i == tile_idx else tiles[i]
            for i in range(len(tiles))]  # fmt: skip
    packed = np.frombuffer(encode_tile_table(rows), ROW)
    return TileTable(packed, tiles.origin)


def listed(site: Site, data: bytes, **change: object) -> Site:
    """The site with size and checksum of tile 0 as those of `data`."""
    file = {"num_bytes": len(data), "crc32": stored_crc32(data)}
    return replace(site, tiles=with_row(site.tiles, 0, **file, **change))


def tile_path(site: Site, tile_idx: int = 0) -> Path:
    return site.path / tile_file_name(site.tiles[tile_idx].sha256)


def index_path(site: Site) -> Path:
    return site.path / site.manifest.index.file


def edit_site_json(path: Path, edit: Callable[[dict], object]) -> None:
    """Change site.json and give it the map id that goes with the change."""
    file = path / "site.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    edit(document)
    file.write_bytes(seal(document))


def digest(path: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, by name."""
    return {
        str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(path.rglob("*"))
        if f.is_file()
    }
