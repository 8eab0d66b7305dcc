"""Descriptor matching by dense products of L2-normalised rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeloc.types import Float32Array, IntArray

_POINTS_AT_ONCE = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchOptions:
    """What counts as a match.

    Parameters
    ----------
    max_ratio : float
        Lowe's ratio of the best to the second best distance; 1 = no test.
    min_similarity : float
        Smallest cosine of a match.
    mutual : bool
        Whether both sides must be each other's best.
    """

    max_ratio: float = 0.9
    min_similarity: float = 0.5
    mutual: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.max_ratio <= 1:
            raise ValueError(f"{self.max_ratio=} must be in (0, 1]")
        if not -1 <= self.min_similarity < 1:
            raise ValueError(f"{self.min_similarity=} must be in [-1, 1)")


def match_descriptors(
    a: Float32Array, b: Float32Array, options: MatchOptions
) -> tuple[IntArray, IntArray, Float32Array]:
    """Return matches between two sets of descriptors.

    Parameters
    ----------
    a, b : ndarray of shape (N, D) and (P, D), float32
        L2-normalised.
    options : MatchOptions
        What counts as a match.

    Returns
    -------
    idx_a, idx_b : ndarray of shape (M,), int64
        Matched pairs, `idx_a` ascending.
    scores : ndarray of shape (M,), float32
        How distinct each match is: the gap of squared distances between best and second
        best, relative to the second, in [0, 1].
    """
    return _best_matches(np.asarray(a @ b.T), options)


def landmark_similarity(
    query: Float32Array, rows: Float32Array, row_to_point: IntArray
) -> Float32Array:
    """Return how similar landmarks are to query features, (P, N).

    A landmark is as similar as its most similar descriptor, so that a ratio test
    compares different landmarks and not two views of one.

    Parameters
    ----------
    query : ndarray of shape (N, D), float32
        L2-normalised descriptors of the query.
    rows : ndarray of shape (R, D), float32
        L2-normalised descriptors of landmarks.
    row_to_point : ndarray of shape (R,), int64
        Index of the landmark of each row, ascending, every index from 0 present.
    """
    starts = np.flatnonzero(np.diff(row_to_point, prepend=-1))
    ends = np.append(starts[1:], len(rows))
    best = np.empty((len(starts), len(query)), np.float32)
    # In parts: the products of all rows at once are most of a device's peak of memory.
    for first in range(0, len(starts), _POINTS_AT_ONCE):
        part = slice(first, first + _POINTS_AT_ONCE)
        begin, counts = starts[part], ends[part] - starts[part]
        similarity = rows[begin[0] : ends[part][-1]] @ query.T
        top = similarity[begin - begin[0]]
        # maximum.reduceat does the same, ten times slower.
        for number in range(1, int(counts.max())):
            several = np.flatnonzero(counts > number)
            others = similarity[begin[several] - begin[0] + number]
            top[several] = np.maximum(top[several], others)
        best[part] = top
    return best


def match_to_keyframes(
    similarity: Float32Array, keyframes: Sequence[IntArray], options: MatchOptions
) -> tuple[IntArray, IntArray, Float32Array]:
    """Return matches of query features to the landmarks that each keyframe sees.

    Mutual nearest neighbours and the ratio test run within each keyframe, as between
    two images: among all landmarks of the place at once, things that look alike would
    throw each other out. What several keyframes find is one match with more score.

    Parameters
    ----------
    similarity : ndarray of shape (P, N), float32
        From `landmark_similarity`.
    keyframes : sequence of ndarray of int64
        Landmark indices that each keyframe sees.
    options : MatchOptions
        What counts as a match.

    Returns
    -------
    query_idx, point_idx : ndarray of shape (M,), int64
        Distinct pairs, best first.
    scores : ndarray of shape (M,), float32
        Sum over keyframes of 0.1 + distinctiveness.
    """
    num_query = similarity.shape[1]
    pairs = [np.zeros(0, np.int64)]
    values = [np.zeros(0, np.float32)]
    for points in keyframes:
        query_idx, local_idx, scores = _best_matches(similarity[points].T, options)
        pairs.append(points[local_idx] * num_query + query_idx)
        values.append(np.float32(0.1) + np.maximum(scores, np.float32(0.0)))
    unique, inverse = np.unique(np.concatenate(pairs), return_inverse=True)
    total = np.bincount(inverse, np.concatenate(values), minlength=len(unique))
    order = np.argsort(-total, kind="stable")
    return (
        unique[order] % max(num_query, 1),
        unique[order] // max(num_query, 1),
        total[order].astype(np.float32),
    )


def _best_matches(
    similarity: npt.NDArray[np.float32], options: MatchOptions
) -> tuple[IntArray, IntArray, Float32Array]:
    """Return matches of rows to columns, rows ascending, and their scores.

    A score says how distinct a match is: the gap of squared distances between best and
    second best column, relative to the second.
    """
    num_rows, num_cols = similarity.shape
    if num_rows == 0 or num_cols == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    rows = np.arange(num_rows)
    cols = np.argmax(similarity, axis=1)
    best = similarity[rows, cols]
    keep = best >= options.min_similarity
    if options.mutual:
        keep &= best >= similarity.max(axis=0)[cols]
    similarity[rows, cols] = -1.0
    second_distance2 = np.maximum(2.0 - 2.0 * similarity.max(axis=1), 1e-6)
    similarity[rows, cols] = best
    best_distance2 = np.maximum(2.0 - 2.0 * best, 0.0)
    if options.max_ratio < 1:
        keep &= best_distance2 <= options.max_ratio**2 * second_distance2
    kept = np.flatnonzero(keep)
    scores = 1.0 - best_distance2[kept] / second_distance2[kept]
    return kept, cols[kept].astype(np.int64), np.asarray(scores, np.float32)
