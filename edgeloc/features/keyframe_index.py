"""Which keyframes look like a query: the search over a site's global descriptors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgeloc.features.quantizer import ProductQuantizer
from edgeloc.types import Float32Array, IntArray, RetrievalResult

GLOBAL_CODINGS = ("float16", "int8", "pq")
"""How global descriptors are stored."""

MAX_RESIDENT = 4096
"""Of so many keyframes, all are decoded once: a product with 4 MB takes 1 ms."""
MIN_CANDIDATES = 2048
"""Keyframes of the nearest lists that are compared with a query."""
MIN_DECODED = 64
"""Of these, so many are decoded where codes can be compared without."""

Decode = Callable[[npt.NDArray[np.generic]], Float32Array]
Compare = Callable[[npt.NDArray[np.generic], Float32Array], Float32Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalCoding:
    """How stored global descriptors are read.

    Parameters
    ----------
    decode : callable
        From stored rows to L2-normalised float32 rows.
    compare : callable or None
        How similar stored rows are to a query, about, without decoding them.
    """

    decode: Decode
    compare: Compare | None = None

    def dim(self, codes: npt.NDArray[np.generic]) -> int:
        """Return the elements of what `codes` stand for."""
        return int(self.decode(codes[:1]).shape[1])


def global_coding(
    name: str, codebook: Mapping[str, npt.NDArray[np.generic]] | None
) -> GlobalCoding:
    """Return how global descriptors are read.

    Parameters
    ----------
    name : {"float16", "int8", "pq"}
        How they are stored.
    codebook : mapping of str to ndarray or None
        Arrays of the `ProductQuantizer`, for "pq".

    Raises
    ------
    ValueError
        When the name is unknown, or the codebook is missing or wrong.
    """
    if name not in GLOBAL_CODINGS:
        raise ValueError(f"global coding {name!r} is unknown")
    if name != "pq":
        return GlobalCoding(decode=_normalised)
    if codebook is None:
        raise ValueError("global descriptors lack their codebook")
    quantizer = ProductQuantizer.from_arrays(codebook)
    return GlobalCoding(decode=quantizer.decode, compare=quantizer.similarity)


def _normalised(rows: npt.NDArray[np.generic]) -> Float32Array:
    vectors = np.asarray(rows, np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-9), np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InvertedLists:
    """Keyframes grouped by the nearest of a few centroids [1]_.

    Parameters
    ----------
    centroids : ndarray of shape (C, G), float32
        L2-normalised.
    starts : ndarray of shape (C + 1,), int64
        Entries of `keyframe_idx` that belong to list i: [starts[i], starts[i + 1]).
    keyframe_idx : ndarray of shape (K,)
        Every keyframe once.

    References
    ----------
    .. [1] Jegou, Douze, Schmid, "Product quantization for nearest neighbor search",
       TPAMI 2011, section IV.
    """

    centroids: Float32Array
    starts: IntArray
    keyframe_idx: npt.NDArray[np.integer]

    def to_arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the arrays that a site stores."""
        return {
            "lists_centroids": self.centroids.astype(np.float16),
            "lists_starts": self.starts.astype(np.uint32),
            "lists_keyframe_idx": self.keyframe_idx.astype(np.uint32),
        }

    @staticmethod
    def from_arrays(
        arrays: Mapping[str, npt.NDArray[np.generic]], *, num_keyframes: int, dim: int
    ) -> InvertedLists | None:
        """Return the lists of a site's arrays, None when it has none.

        Raises
        ------
        ValueError
            When they do not fit together or to the site.
        """
        names = ("lists_centroids", "lists_starts", "lists_keyframe_idx")
        if not any(name in arrays for name in names):
            return None
        if not all(name in arrays for name in names):
            raise ValueError("some arrays of the inverted lists are missing")
        centroids = np.asarray(arrays[names[0]], np.float32)
        starts = np.asarray(arrays[names[1]], np.int64)
        keyframe_idx = np.asarray(arrays[names[2]])
        if (
            centroids.ndim != 2
            or centroids.shape[1] != dim
            or starts.shape != (len(centroids) + 1,)
            or keyframe_idx.shape != (num_keyframes,)
            or starts[0] != 0
            or starts[-1] != num_keyframes
            or np.any(np.diff(starts) < 0)
            or not np.isfinite(centroids).all()
        ):
            raise ValueError("the inverted lists do not fit the site")
        return InvertedLists(
            centroids=centroids,
            starts=starts,
            keyframe_idx=keyframe_idx,
        )

    def candidates(self, query: Float32Array, *, count: int) -> IntArray:
        """Return the keyframes of the nearest lists, at least `count` of them.

        Parameters
        ----------
        query : ndarray of shape (G,), float32
            L2-normalised.
        count : int
            How many at least, where there are so many.

        Raises
        ------
        ValueError
            When a list names a keyframe that does not exist.
        """
        order = np.argsort(-(self.centroids @ query), kind="stable")
        sizes = np.diff(self.starts)[order]
        needed = int(np.searchsorted(np.cumsum(sizes), count)) + 1
        idx = np.concatenate(
            [
                self.keyframe_idx[self.starts[i] : self.starts[i + 1]]
                for i in order[:needed].tolist()
            ]
        ).astype(np.int64)
        if np.any(idx >= len(self.keyframe_idx)):
            raise ValueError("the inverted lists name a keyframe that does not exist")
        return idx


@dataclass(slots=True, kw_only=True, eq=False)
class KeyframeIndex:
    """The search over all keyframes of a site.

    Exact for some thousand keyframes; above `MAX_RESIDENT`, nothing is decoded before
    it is asked for, and `lists` say what is worth it.

    Parameters
    ----------
    keyframe_ids : ndarray of shape (K,), int64
        Ids of the rows.
    codes : ndarray of shape (K, row)
        Global descriptors as stored.
    coding : GlobalCoding
        How they are read.
    lists : InvertedLists or None
        Groups of keyframes, for large sites.

    Attributes
    ----------
    num_compared : int
        Keyframes that the last search compared with its query.
    """

    keyframe_ids: IntArray
    codes: npt.NDArray[np.generic]
    coding: GlobalCoding
    lists: InvertedLists | None = None
    num_compared: int = field(default=0, init=False)
    _resident: Float32Array | None = field(default=None, init=False, repr=False)

    @property
    def dim(self) -> int:
        """Elements of a global descriptor."""
        return self.coding.dim(self.codes)

    def descriptors(self, keyframe_idx: IntArray) -> Float32Array:
        """Return global descriptors, (n, G) float32, L2-normalised.

        Parameters
        ----------
        keyframe_idx : ndarray of shape (n,), int64
            Rows.
        """
        if len(self.codes) > MAX_RESIDENT:
            return self.coding.decode(self.codes[keyframe_idx])
        if self._resident is None:
            self._resident = self.coding.decode(self.codes)
        return np.asarray(self._resident[keyframe_idx])

    def search(
        self, query: Float32Array, *, k: int, among: IntArray | None = None
    ) -> RetrievalResult:
        """Return the `k` keyframes most similar to a query.

        Parameters
        ----------
        query : ndarray of shape (G,), float32
            L2-normalised.
        k : int
            How many.
        among : ndarray of shape (n,), int64, optional
            Rows of the only keyframes that are looked at.
        """
        if among is not None:
            idx = among
            self.num_compared = len(idx)
            scores = self.descriptors(idx) @ query
        elif len(self.codes) > MAX_RESIDENT and self.lists is not None:
            idx = self.lists.candidates(query, count=max(k, MIN_CANDIDATES))
            self.num_compared = len(idx)
            wanted = max(4 * k, MIN_DECODED)
            compare = self.coding.compare
            if compare is not None and len(idx) > wanted:
                about = compare(self.codes[idx], query)
                idx = idx[np.argpartition(-about, wanted)[:wanted]]
            scores = self.descriptors(idx) @ query
        else:
            idx = np.arange(len(self.codes))
            self.num_compared = len(idx)
            scores = np.concatenate(
                [
                    self.descriptors(idx[start : start + MAX_RESIDENT]) @ query
                    for start in range(0, max(len(idx), 1), MAX_RESIDENT)
                ]
            )
        ids = self.keyframe_ids[idx]
        top = np.lexsort((ids, -scores))[:k]
        return RetrievalResult(
            keyframe_ids=ids[top], scores=np.asarray(scores[top], np.float32)
        )
