"""Descriptor matching by dense products of L2-normalised rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeloc.types import Float32Array, IntArray


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
    """Return matches between two sets of descriptors; see `match_to_landmarks`.

    Parameters
    ----------
    a, b : ndarray of shape (N, D) and (P, D), float32
        L2-normalised.
    options : MatchOptions
        What counts as a match.
    """
    return match_to_landmarks(a, b, np.arange(len(b)), options)


def match_to_landmarks(
    query: Float32Array,
    rows: Float32Array,
    row_to_point: IntArray,
    options: MatchOptions,
) -> tuple[IntArray, IntArray, Float32Array]:
    """Return matches of query descriptors to landmarks with several descriptors each.

    A landmark is as similar as its most similar descriptor, so that the ratio test
    compares different landmarks and not two views of one.

    Parameters
    ----------
    query : ndarray of shape (N, D), float32
        L2-normalised descriptors of the query.
    rows : ndarray of shape (R, D), float32
        L2-normalised descriptors of landmarks.
    row_to_point : ndarray of shape (R,), int64
        Index of the landmark of each row, ascending, every index from 0 present.
    options : MatchOptions
        What counts as a match.

    Returns
    -------
    query_idx, point_idx : ndarray of shape (M,), int64
        Matched pairs, `query_idx` ascending.
    scores : ndarray of shape (M,), float32
        How distinct each match is: the gap of squared distances between best and second
        best landmark, relative to the second, in [0, 1].
    """
    if len(query) == 0 or len(rows) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    similarity = query @ rows.T
    query_idx = np.arange(len(query))
    best_row = np.argmax(similarity, axis=1)
    best = similarity[query_idx, best_row]
    point_idx = row_to_point[best_row]
    keep = best >= options.min_similarity

    starts = np.searchsorted(row_to_point, np.arange(row_to_point[-1] + 1))
    if options.mutual:
        # Mutual when no other query is more similar to any descriptor of the landmark.
        best_of_point = np.maximum.reduceat(similarity.max(axis=0), starts)
        keep &= best >= best_of_point[point_idx]
    # The second best of another landmark: hide the rows of the best one. (Reducing the
    # matrix to landmarks first with maximum.reduceat took ten times longer.)
    counts = np.diff(np.append(starts, len(rows)))
    for number in range(int(counts.max())):
        has_row = counts[point_idx] > number
        hidden = starts[point_idx[has_row]] + number
        similarity[query_idx[has_row], hidden] = -1.0
    second = similarity.max(axis=1)
    best_distance2 = np.maximum(2.0 - 2.0 * best, 0.0)
    second_distance2 = np.maximum(2.0 - 2.0 * second, 1e-6)
    if options.max_ratio < 1:
        keep &= best_distance2 <= options.max_ratio**2 * second_distance2
    kept = np.flatnonzero(keep)
    scores = 1.0 - best_distance2[kept] / second_distance2[kept]
    return kept, point_idx[kept].astype(np.int64), np.asarray(scores, np.float32)
