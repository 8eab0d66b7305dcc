"""A map in fewer bytes: descriptors per landmark, their codes, and parts of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeloc.features.quantizer import ProductQuantizer
from edgeloc.tiles.layout import LandmarkTable
from edgeloc.types import BoolArray, Float32Array, FloatArray, IntArray
from edgeloc_tools.mapping.landmarks import LandmarkMap, Observed
from edgeloc_tools.mapping.tracks import MappingImage

_COHERENT = 0.9
"""Below this length of the mean descriptor, a landmark has two appearances."""
_MIN_IN_GROUP = 2
"""Measurements that make an appearance: one may be a wrong match."""
_MEANS_ROUNDS = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Appearances:
    """Mean descriptors of landmarks: one of each, two of those that look two ways.

    Parameters
    ----------
    rows : ndarray of shape (R, D), float32
        L2-normalised.
    offsets : ndarray of shape (P + 1,), int64
        Rows that belong to landmark i: [offsets[i], offsets[i + 1]).
    coherence : ndarray of shape (P,), float64
        Length of the mean of a landmark's descriptors, 1 when all agree.
    """

    rows: Float32Array
    offsets: IntArray
    coherence: FloatArray


def appearances(
    images: Sequence[MappingImage], landmark_map: LandmarkMap
) -> Appearances:
    """Return what landmarks look like, from all their measurements.

    Parameters
    ----------
    images : sequence of MappingImage
        All mapping images.
    landmark_map : LandmarkMap
        Their landmarks.
    """
    observed = landmark_map.observed
    first = np.concatenate([[0], np.cumsum([len(i.keypoints) for i in images])])
    node = first[observed.image_idx] + observed.keypoint_idx
    rows = np.concatenate([i.descriptors for i in images])[node]
    num = len(landmark_map.landmarks)
    counts = np.bincount(observed.landmark_idx, minlength=num)
    starts = np.concatenate([[0], np.cumsum(counts)])
    sums = np.add.reduceat(rows, starts[:-1], axis=0) if num else rows[:0]
    coherence = np.linalg.norm(sums, axis=1) / np.maximum(counts, 1)
    means: list[Float32Array] = [np.zeros((0, rows.shape[1]), np.float32)]
    num_rows = np.ones(num, np.int64)
    done = 0
    for idx in np.flatnonzero((coherence < _COHERENT) & (counts >= 2 * _MIN_IN_GROUP)):
        own = rows[starts[idx] : starts[idx + 1]]
        second = _two_groups(own)
        if second is None:
            continue
        means += [sums[done:idx], own[~second].sum(axis=0)[None]]
        means += [own[second].sum(axis=0)[None]]
        num_rows[idx] = 2
        done = idx + 1
    means.append(sums[done:])
    joined = np.concatenate(means)
    joined /= np.maximum(np.linalg.norm(joined, axis=1, keepdims=True), 1e-9)
    return Appearances(
        rows=np.asarray(joined, np.float32),
        offsets=np.concatenate([[0], np.cumsum(num_rows)]).astype(np.int64),
        coherence=np.asarray(coherence, np.float64),
    )


def _two_groups(rows: Float32Array) -> BoolArray | None:
    """Return which rows form a second group around its own mean; None without one."""
    similarity = rows @ rows.T
    a, b = np.unravel_index(int(np.argmin(similarity)), similarity.shape)
    second = np.asarray(similarity[:, b] > similarity[:, a])
    for _ in range(_MEANS_ROUNDS):
        if min(second.sum(), (~second).sum()) < _MIN_IN_GROUP:
            return None
        means = [rows[group].sum(axis=0) for group in (~second, second)]
        affinity = rows @ np.stack([m / np.linalg.norm(m) for m in means]).T
        moved = affinity[:, 1] > affinity[:, 0]
        if np.array_equal(moved, second):
            break
        second = moved
    return None if min(second.sum(), (~second).sum()) < _MIN_IN_GROUP else second


def coded(
    landmark_map: LandmarkMap, looks: Appearances, quantizer: ProductQuantizer
) -> LandmarkMap:
    """Return a map whose landmarks have quantized mean descriptors.

    Parameters
    ----------
    landmark_map : LandmarkMap
        Landmarks.
    looks : Appearances
        Theirs.
    quantizer : ProductQuantizer
        Of the descriptors.
    """
    table = replace(
        landmark_map.landmarks,
        descriptor_offsets=looks.offsets,
        descriptors=quantizer.encode(looks.rows),
    )
    return replace(landmark_map, landmarks=table)


def part_of(
    landmark_map: LandmarkMap, landmarks: IntArray, stand_in: IntArray
) -> LandmarkMap:
    """Return a map of some of the landmarks and keyframes.

    Parameters
    ----------
    landmark_map : LandmarkMap
        The whole.
    landmarks : ndarray of shape (n,), int64
        Landmarks to keep, in any order.
    stand_in : ndarray of shape (K,), int64
        For each image, the kept one that takes over what it sees; a kept one names
        itself.

    Returns
    -------
    LandmarkMap
        Images that are not kept see nothing.
    """
    kept = np.sort(landmarks)
    new_idx = np.full(len(landmark_map.landmarks), -1, np.int64)
    new_idx[kept] = np.arange(len(kept))
    observed = landmark_map.observed
    use = new_idx[observed.landmark_idx] >= 0
    remaining = Observed(
        landmark_idx=new_idx[observed.landmark_idx[use]],
        image_idx=observed.image_idx[use],
        keypoint_idx=observed.keypoint_idx[use],
    )
    visible = []
    for image in range(len(landmark_map.visible)):
        members = np.flatnonzero(stand_in == image)
        seen = [np.zeros(0, np.int64)]
        seen += [new_idx[landmark_map.visible[i]] for i in members.tolist()]
        ids = np.unique(np.concatenate(seen))
        visible.append(ids[ids >= 0])
    return LandmarkMap(
        landmarks=_rows_of(landmark_map.landmarks, kept),
        track_idx=landmark_map.track_idx[kept],
        observed=remaining,
        visible=visible,
        errors_px=landmark_map.errors_px,
    )


def _rows_of(table: LandmarkTable, landmarks: IntArray) -> LandmarkTable:
    counts = np.diff(table.descriptor_offsets)[landmarks]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    rows = np.repeat(table.descriptor_offsets[landmarks] - offsets[:-1], counts)
    return LandmarkTable(
        points3D=table.points3D[landmarks],
        sigmas=table.sigmas[landmarks],
        num_observations=table.num_observations[landmarks],
        descriptor_offsets=offsets.astype(np.int64),
        descriptors=table.descriptors[rows + np.arange(counts.sum())],
    )


def shared_views(landmark_map: LandmarkMap) -> FloatArray:
    """Return which share of its landmarks each image has in common with each other.

    Parameters
    ----------
    landmark_map : LandmarkMap
        Landmarks.

    Returns
    -------
    ndarray of shape (K, K), float64
        Row i: shares of what image i sees; 1 on the diagonal.
    """
    from scipy.sparse import csr_matrix

    observed = landmark_map.observed
    num_images = len(landmark_map.visible)
    sees = csr_matrix(
        (
            np.ones(len(observed.image_idx)),
            (observed.image_idx, observed.landmark_idx),
        ),
        shape=(num_images, len(landmark_map.landmarks)),
    )
    common = np.asarray((sees @ sees.T).todense(), np.float64)
    shares = common / np.maximum(np.diag(common), 1.0)[:, None]
    np.fill_diagonal(shares, 1.0)
    return shares
