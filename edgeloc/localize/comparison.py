"""Query features against landmarks, each landmark once per frame."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edgeloc.features.match import landmark_similarity
from edgeloc.tiles.layout import LocalMap
from edgeloc.types import Float32Array, IntArray

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
        self._blocks: list[tuple[IntArray, Float32Array]] = []

    def similarity(self, local_map: LocalMap) -> Float32Array:
        """Return how similar the landmarks are to the query's features, (P, N).

        Parameters
        ----------
        local_map : LocalMap
            Landmarks; the same id always stands for the same descriptors.
        """
        ids = local_map.point3D_ids
        for known, block in self._blocks:
            if np.array_equal(known, ids):
                return block
        new = np.ones(len(ids), dtype=bool)
        for known, _ in self._blocks:
            new &= ~np.isin(ids, known)
        if new.any():
            rows = new[local_map.row_to_point]
            found = landmark_similarity(
                self._descriptors,
                self._decode(local_map.descriptors[rows]),
                np.cumsum(new)[local_map.row_to_point[rows]] - 1,
            )
            self._blocks.append((ids[new], found))
            if new.all():
                return found
        # One copy: with all blocks joined there would be two, tens of megabytes each.
        similarity = np.empty((len(ids), len(self._descriptors)), np.float32)
        for known, block in self._blocks:
            mine = np.flatnonzero(np.isin(ids, known))
            order = np.argsort(known)
            similarity[mine] = block[
                order[np.searchsorted(known, ids[mine], sorter=order)]
            ]
        return similarity
