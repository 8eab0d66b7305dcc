"""What is inside a site."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from edgeloc.tiles import index_file, tile_file
from edgeloc.tiles.container import FileKind, unpack
from edgeloc.tiles.reader import Site, open_site
from edgeloc.tiles.site_folder import signature_of
from edgeloc.tiles.site_folder import tile_file as file_of_tile
from edgeloc.types import IntArray

_PARTS = {
    "POSN": "positions",
    "QUAL": "sigmas_and_counts",
    "DESC": "descriptors",
    "DCNT": "descriptors",
    "NBRS": "visibility",
    "VIDS": "visibility",
    "FMET": "keyframe_features",
    "FNUM": "keyframe_features",
    "FPTS": "keyframe_features",
    "FDSC": "keyframe_features",
    "TILE": "tile_table",
    "KFID": "keyframes",
    "KCAM": "keyframes",
    "CNTR": "keyframes",
    "QUAT": "keyframes",
    "GDSC": "global_descriptors",
    "ADIR": "retrieval_model",
    "ADAT": "retrieval_model",
}
"""What a section counts as; the rest are headers."""


WEAK_SPOTS = "weak_keyframe_ids"
"""Array of a site: keyframes beside which held-out frames failed, by id."""


def weak_keyframes(site: Site) -> IntArray:
    """Return the rows of the keyframes beside which held-out mapping frames failed.

    Parameters
    ----------
    site : Site
        Open.
    """
    ids = site.retrieval_arrays.get(WEAK_SPOTS, np.zeros(0, np.uint32))
    known = np.isin(ids, site.keyframes.keyframe_ids)
    return site.keyframes.index_of(np.asarray(ids[known], np.int64))


def bytes_by_part(site: Site) -> dict[str, int]:
    """Return the bytes of each part of a site, the largest first.

    Parameters
    ----------
    site : Site
        Open.
    """
    manifest = site.manifest
    parts: Counter[str] = Counter(
        {
            "site.json": (site.path / "site.json").stat().st_size,
            "codebooks": sum(c.num_bytes for c in manifest.codebooks.values()),
            "models": sum(
                m.manifest.num_bytes + m.network.num_bytes
                for m in manifest.models.values()
            ),
        }
    )
    names = [manifest.index.file, *(file_of_tile(tile).file for tile in site.tiles)]
    for name in names:
        data = (site.path / name).read_bytes()
        if name == manifest.index.file:
            sections = unpack(data, FileKind.INDEX, index_file.TAGS).sections
        else:
            sections = tile_file.unpack_tile(data).sections
        for tag, section in sections.items():
            parts[_PARTS.get(tag, "headers")] += len(section.payload)
            parts["headers"] -= len(section.payload)
        parts["headers"] += len(data)
    return {part: size for part, size in parts.most_common() if size > 0}


def describe_site(path: Path) -> dict[str, object]:
    """Return sizes by part and facts of a site, ready for JSON.

    Parameters
    ----------
    path : Path
        Site folder.
    """
    site = open_site(path)
    manifest = site.manifest
    tiles = [site.read_tile(idx) for idx in range(len(site.tiles))]
    observations = np.concatenate(
        [t.landmarks.num_observations for t in tiles] or [np.zeros(0, np.int64)]
    )
    sigmas = np.concatenate(
        [t.landmarks.sigmas for t in tiles] or [np.zeros(0, np.float32)]
    )
    centers = site.keyframes.centers
    seen = [np.diff(t.visible_offsets) for t in tiles]
    per_keyframe = np.concatenate(seen) if seen else np.zeros(0, np.int64)
    parts = bytes_by_part(site)
    visible = int(per_keyframe.sum())
    return {
        "map_id": manifest.map_id,
        "name": manifest.name,
        "metric": manifest.metric,
        "features": manifest.family.name,
        "coding": {
            "descriptors": manifest.family.coding,
            "global_descriptors": manifest.global_coding,
        },
        "models": {role: model.name for role, model in manifest.models.items()},
        "codebooks": {role: book.name for role, book in manifest.codebooks.items()},
        "signed": (path / signature_of(manifest)).is_file(),
        "rungs": list(manifest.rungs),
        "covariance_scale": manifest.covariance_scale,
        "cameras": {
            camera_id: f"{c.model} {c.width}x{c.height}"
            for camera_id, c in manifest.cameras.items()
        },
        "bytes": {
            "total": manifest.total_bytes,
            "tiles": manifest.tile_bytes,
            "models": parts.get("models", 0),
            "codebooks": parts.get("codebooks", 0),
            "index": manifest.index.num_bytes,
            "site.json": parts["site.json"],
        },
        "bytes_by_part": parts,
        "tiles": len(tiles),
        "largest_tile_bytes": max(tile.num_bytes for tile in site.tiles),
        "keyframes": len(site.keyframes),
        "landmarks": len(observations),
        "keyframe_features": int(sum(len(t.features or ()) for t in tiles)),
        "descriptors": int(sum(len(t.landmarks.descriptors) for t in tiles)),
        "visible_landmarks": visible,
        "bits_per_visible_landmark": round(
            8 * parts.get("visibility", 0) / max(visible, 1), 3
        ),
        "observations_per_landmark": _quantiles(observations),
        "landmark_sigma": _quantiles(sigmas),
        "landmarks_per_keyframe": _quantiles(per_keyframe),
        "weak_spots": [
            [round(float(v), 3) for v in center]
            for center in centers[weak_keyframes(site)]
        ],
        "extent": [round(float(v), 4) for v in np.ptp(centers, axis=0)],
        "build": dict(manifest.build),
    }


def _quantiles(
    values: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
) -> list[float]:
    """Return minimum, median and maximum."""
    if len(values) == 0:
        return []
    quantiles = np.quantile(np.asarray(values, np.float64), [0, 0.5, 1])
    return [float(f"{v:.4g}") for v in quantiles]
