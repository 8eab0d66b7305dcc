"""Groups of keyframes that look alike, so that large sites are searched quickly."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgeloc.features.keyframe_index import MAX_RESIDENT, Decode, InvertedLists
from edgeloc.features.quantizer import nearest_words

_SAMPLE = 20_000
_ROUNDS = 10
_ROWS = 8192


def make_lists(
    codes: npt.NDArray[np.generic], decode: Decode, *, seed: int = 0
) -> dict[str, npt.NDArray[np.generic]]:
    """Return the arrays of the inverted lists; none for sites that need none.

    Spherical k-means with as many groups as the square root of the keyframes.

    Parameters
    ----------
    codes : ndarray of shape (K, row)
        Global descriptors as stored.
    decode : callable
        To L2-normalised rows.
    seed : int
        For the first centroids.
    """
    count = len(codes)
    if count <= MAX_RESIDENT:
        return {}
    rng = np.random.default_rng(seed)
    sample = decode(codes[np.sort(rng.permutation(count)[:_SAMPLE])])
    num_lists = round(count**0.5)
    centroids = sample[rng.choice(len(sample), num_lists, replace=False)]
    for _ in range(_ROUNDS):
        nearest = nearest_words(sample, centroids, 0.0)
        order = np.argsort(nearest, kind="stable")
        used, first = np.unique(nearest[order], return_index=True)
        centroids = centroids.copy()
        centroids[used] = np.add.reduceat(sample[order], first, axis=0)
        lengths = np.linalg.norm(centroids, axis=1, keepdims=True)
        centroids = centroids / np.maximum(lengths, 1e-9)
    # As the site will hold them.
    centroids = centroids.astype(np.float16).astype(np.float32)
    nearest = np.concatenate(
        [
            nearest_words(decode(codes[start : start + _ROWS]), centroids, 0.0)
            for start in range(0, count, _ROWS)
        ]
    )
    order = np.argsort(nearest, kind="stable")
    starts = np.searchsorted(nearest[order], np.arange(num_lists + 1))
    lists = InvertedLists(centroids=centroids, starts=starts, keyframe_idx=order)
    return lists.to_arrays()
