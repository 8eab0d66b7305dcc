"""Which mapping images are worth matching with each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeloc.types import Float32Array, IntArray, Rigid3


def covisible_pairs(
    poses: Sequence[Rigid3],
    global_descriptors: Float32Array,
    *,
    num_similar: int = 10,
    num_near: int = 10,
    max_view_angle_deg: float = 70.0,
) -> IntArray:
    """Return pairs of images that probably see the same things.

    Each image is paired with the most similar ones by retrieval and with the nearest
    ones by pose; pairs that look in different directions are left out.

    Parameters
    ----------
    poses : sequence of Rigid3
        ``cam_from_world`` of K images.
    global_descriptors : ndarray of shape (K, G), float32
        L2-normalised.
    num_similar, num_near : int
        Partners per image from either source.
    max_view_angle_deg : float
        Largest angle between viewing directions.

    Returns
    -------
    ndarray of shape (E, 2), int64
        Index pairs (a, b), a < b, sorted.
    """
    count = len(poses)
    centers = np.stack([pose.origin_in_a for pose in poses])
    forward = np.stack([pose.R[2] for pose in poses])
    cosine = np.clip(forward @ forward.T, -1.0, 1.0)
    distance = np.linalg.norm(centers[:, None] - centers[None], axis=2)
    candidate = cosine >= np.cos(np.deg2rad(max_view_angle_deg))
    np.fill_diagonal(candidate, val=False)
    similarity = np.where(candidate, global_descriptors @ global_descriptors.T, -np.inf)
    # Distance and turn in one number: a turn of 30 degrees costs as much as the median
    # distance between cameras.
    scale = float(np.median(distance[distance > 0])) if count > 1 else 1.0
    cost = distance / max(scale, 1e-12) + np.arccos(cosine) / np.deg2rad(30.0)
    cost = np.where(candidate, cost, np.inf)
    pairs: set[tuple[int, int]] = set()
    for image_idx in range(count):
        similar = np.argsort(-similarity[image_idx], kind="stable")[:num_similar]
        near = np.argsort(cost[image_idx], kind="stable")[:num_near]
        for other in np.concatenate([similar, near]):
            if candidate[image_idx, other]:
                pairs.add((min(image_idx, int(other)), max(image_idx, int(other))))
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)
