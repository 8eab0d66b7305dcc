"""What is inside a site."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeloc.tiles.reader import open_site


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
    return {
        "map_id": manifest.map_id,
        "name": manifest.name,
        "metric": manifest.metric,
        "features": manifest.family.name,
        "models": {role: model.name for role, model in manifest.models.items()},
        "rungs": list(manifest.rungs),
        "covariance_scale": manifest.covariance_scale,
        "cameras": {
            camera_id: f"{c.model} {c.width}x{c.height}"
            for camera_id, c in manifest.cameras.items()
        },
        "bytes": {
            "total": manifest.total_bytes,
            "tiles": manifest.tile_bytes,
            "models": sum(
                model.manifest.num_bytes + model.network.num_bytes
                for model in manifest.models.values()
            ),
            "codebooks": sum(c.num_bytes for c in manifest.codebooks.values()),
            "index": manifest.index.num_bytes,
            "site.json": (path / "site.json").stat().st_size,
        },
        "tiles": len(tiles),
        "keyframes": len(site.keyframes),
        "landmarks": len(observations),
        "descriptors": int(sum(len(t.landmarks.descriptors) for t in tiles)),
        "observations_per_landmark": _quantiles(observations),
        "landmark_sigma": _quantiles(sigmas),
        "landmarks_per_keyframe": _quantiles(per_keyframe),
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
