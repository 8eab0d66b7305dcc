"""Product quantization: a descriptor in a few bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgeloc.types import ByteArray, Float32Array, IntArray

NUM_WORDS = 256
"""Words of each part: one byte of a code."""
_ENCODE_ROWS = 4096
_NEAREST_ROWS = 8192


def nearest_words(
    vectors: Float32Array, words: Float32Array, half_squares: Float32Array | float
) -> IntArray:
    """Return the index of each vector's nearest word, (N,) int64.

    Parameters
    ----------
    vectors : ndarray of shape (N, D), float32
        Any number: the products with words are made of some at a time.
    words : ndarray of shape (W, D), float32
        What they are compared with.
    half_squares : ndarray of shape (W,), float32, or float
        Half of the words' squared lengths; one number for words of the same length,
        where the nearest is the most similar.
    """
    # |x - w|^2 is smallest where x.w - |w|^2 / 2 is largest.
    out = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), _NEAREST_ROWS):
        rows = slice(start, start + _NEAREST_ROWS)
        out[rows] = np.argmax(vectors[rows] @ words.T - half_squares, axis=1)
    return out


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProductQuantizer:
    """Optimized product quantization [1]_ [2]_.

    A vector is rotated and cut into M parts, and each part is replaced by the nearest
    of 256 words. Queries stay as they are: decoded rows are compared with them by
    one matrix product, which on a CPU is faster than summing tabled distances of codes.

    Parameters
    ----------
    rotation : ndarray of shape (D, D), float32
        Orthogonal; ``rotated = x @ rotation``.
    words : ndarray of shape (M, 256, D / M), float32
        Words of each part.

    References
    ----------
    .. [1] Jegou, Douze, Schmid, "Product quantization for nearest neighbor search",
       TPAMI 2011, section II.
    .. [2] Ge, He, Ke, Sun, "Optimized product quantization", CVPR 2013, section 3.1.
    """

    rotation: Float32Array
    words: Float32Array
    _rotated_back: Float32Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if (
            self.words.ndim != 3
            or self.words.shape[1] != NUM_WORDS
            or self.rotation.shape != (self.dim, self.dim)
        ):
            raise ValueError(
                f"codebook shapes do not fit: rotation {self.rotation.shape}, "
                f"words {self.words.shape}"
            )
        parts = self.rotation.reshape(self.dim, self.num_parts, -1)
        # Each word as the vector that it adds: decoding needs no rotation then.
        back = np.matmul(self.words, parts.transpose(1, 2, 0))
        object.__setattr__(self, "_rotated_back", np.asarray(back, np.float32))

    @property
    def num_parts(self) -> int:
        """Parts of a vector, and bytes of a code."""
        return int(self.words.shape[0])

    @property
    def dim(self) -> int:
        """Elements of a vector."""
        return int(self.words.shape[0] * self.words.shape[2])

    def to_arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the arrays of a codebook file."""
        return {
            "rotation": self.rotation.astype(np.float16),
            "words": self.words.astype(np.float16),
        }

    @staticmethod
    def from_arrays(
        arrays: Mapping[str, npt.NDArray[np.generic]],
    ) -> ProductQuantizer:
        """Return the quantizer of a codebook's arrays.

        Raises
        ------
        ValueError
            When one is missing, not finite, or the shapes do not fit together.
        """
        if set(arrays) != {"rotation", "words"}:
            raise ValueError("a codebook must hold rotation and words, nothing else")
        rotation, words = (
            np.asarray(arrays[name], np.float32) for name in ("rotation", "words")
        )
        if not (np.isfinite(rotation).all() and np.isfinite(words).all()):
            raise ValueError("a codebook must be finite")
        return ProductQuantizer(rotation=rotation, words=words)

    def encode(self, vectors: Float32Array) -> ByteArray:
        """Return codes.

        Parameters
        ----------
        vectors : ndarray of shape (N, D), float32
            L2-normalised.

        Returns
        -------
        ndarray of shape (N, M), uint8
        """
        codes = np.empty((len(vectors), self.num_parts), np.uint8)
        half = 0.5 * np.sum(self.words**2, axis=2)
        for start in range(0, len(vectors), _ENCODE_ROWS):
            rows = slice(start, start + _ENCODE_ROWS)
            rotated = np.asarray(vectors[rows] @ self.rotation)
            parts = rotated.reshape(len(rotated), self.num_parts, -1)
            for m in range(self.num_parts):
                codes[rows, m] = nearest_words(parts[:, m], self.words[m], half[m])
        return codes

    def decode(self, codes: npt.NDArray[np.generic]) -> Float32Array:
        """Return L2-normalised vectors, comparable with queries by a dot product.

        Parameters
        ----------
        codes : ndarray of shape (N, M), uint8
            From `encode`.

        Returns
        -------
        ndarray of shape (N, D), float32
        """
        indices = codes.astype(np.intp)
        vectors = self._rotated_back[0].take(indices[:, 0], axis=0)
        for m in range(1, self.num_parts):
            vectors += self._rotated_back[m].take(indices[:, m], axis=0)
        norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
        vectors /= np.maximum(norms, np.float32(1e-9))[:, None]
        return np.asarray(vectors)

    def similarity(
        self, codes: npt.NDArray[np.generic], query: Float32Array
    ) -> Float32Array:
        """Return how similar a vector is to what codes stand for, without decoding.

        Sums of tabled products and lengths, for one query and many codes. Differs from
        the dot product with `decode` by as much as the stored rotation is off.

        Parameters
        ----------
        codes : ndarray of shape (N, M), uint8
            From `encode`.
        query : ndarray of shape (D,), float32
            L2-normalised.

        Returns
        -------
        ndarray of shape (N,), float32
        """
        rotated = (query @ self.rotation).reshape(self.num_parts, -1, 1)
        products = np.matmul(self.words, rotated).ravel()
        lengths = np.einsum("mwk,mwk->mw", self.words, self.words).ravel()
        places = codes.astype(np.intp) + NUM_WORDS * np.arange(self.num_parts)
        squared = lengths.take(places).sum(axis=1)
        dots = products.take(places).sum(axis=1)
        return np.asarray(dots / np.sqrt(np.maximum(squared, 1e-18)), np.float32)
