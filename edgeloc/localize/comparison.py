"""Query features against landmarks, each landmark once per frame."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edgeloc.features.match import landmark_similarity
from edgeloc.tiles.layout import LocalMap
from edgeloc.types import Float32Array

DecodeLandmarks = Callable[[npt.NDArray[np.generic]], Float32Array]
"""From stored to decoded descriptors of landmarks: L2-normalised float32 rows."""


class LandmarkComparison:
    """Compares the features of one query with landmarks and remembers the result.

    Comparing is most of the time of RELOCALIZE, and a frame that looks at a few
    keyframes first and at more of them later meets the same landmarks again.

    Parameters
    ----------
    descriptors : ndarray of shape (N, D), float32
        Of the query, decoded.
    decode : callable
        From stored to decoded descriptors.
    """

    def __init__(
        self,
        descriptors: Float32Array,
        decode: DecodeLandmarks,
    ) -> None:
        self._descriptors = descriptors
        self._decode = decode
        self._ids = np.zeros(0, np.int64)
        self._similarity = np.zeros((0, len(descriptors)), np.float32)

    def similarity(self, local_map: LocalMap) -> Float32Array:
        """Return how similar the landmarks are to the query's features, (P, N).

        Parameters
        ----------
        local_map : LocalMap
            Landmarks; the same id always stands for the same descriptors.
        """
        ids = local_map.point3D_ids
        new = ~np.isin(ids, self._ids)
        if new.any():
            rows = new[local_map.row_to_point]
            found = landmark_similarity(
                self._descriptors,
                self._decode(local_map.descriptors[rows]),
                np.cumsum(new)[local_map.row_to_point[rows]] - 1,
            )
            if len(self._ids):
                found = np.concatenate([self._similarity, found])
            self._ids = np.concatenate([self._ids, ids[new]])
            self._similarity = found
        if np.array_equal(self._ids, ids):
            return self._similarity
        order = np.argsort(self._ids)
        return self._similarity[order[np.searchsorted(self._ids, ids, sorter=order)]]
