"""Retrieval: what makes one vector of an image, VLAD for one, and exact search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from edgeloc.inference.network import Submitted
from edgeloc.types import ByteArray, Float32Array


class Retrieval(Protocol):
    """Makes the global descriptor that keyframes are searched with."""

    @property
    def dim(self) -> int:
        """Elements of a global descriptor."""

    def begin(self, image: ByteArray, /) -> Submitted | None:
        """Give an image to a GPU and return at once; None where that saves no time.

        Parameters
        ----------
        image : ndarray of shape (H, W) or (H, W, 3), uint8
            Grey or BGR.
        """

    def global_descriptor(
        self,
        image: ByteArray,
        descriptors: Float32Array,
        /,
        *,
        begun: Submitted | None = None,
    ) -> Float32Array:
        """Return the global descriptor of an image.

        Parameters
        ----------
        image : ndarray of shape (H, W) or (H, W, 3), uint8
            Grey or BGR; a network sees this.
        descriptors : ndarray of shape (N, D), float32
            Its decoded local descriptors; VLAD sees these.
        begun : Submitted, optional
            From `begin` with the same image.

        Returns
        -------
        ndarray of shape (dim,), float32
            L2-normalised; zeros when there was nothing to describe.
        """


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VladModel:
    """VLAD [1]_ with intra-normalisation [2]_ over PCA-reduced descriptors.

    Parameters
    ----------
    mean : ndarray of shape (D,), float32
        Mean of the decoded local descriptors.
    projection : ndarray of shape (d, D), float32
        Principal directions.
    centroids : ndarray of shape (C, d), float32
        The vocabulary.

    References
    ----------
    .. [1] Jegou et al., "Aggregating local descriptors into a compact image
       representation", CVPR 2010.
    .. [2] Arandjelovic, Zisserman, "All about VLAD", CVPR 2013, section 3.1.
    """

    mean: Float32Array
    projection: Float32Array
    centroids: Float32Array

    def to_arrays(self) -> Mapping[str, npt.NDArray[np.float16]]:
        """Return the arrays that a site stores, in half precision."""
        return {
            "mean": self.mean.astype(np.float16),
            "projection": self.projection.astype(np.float16),
            "centroids": self.centroids.astype(np.float16),
        }

    @staticmethod
    def from_arrays(arrays: Mapping[str, npt.NDArray[np.generic]]) -> VladModel:
        """Return the model of a site's arrays.

        Raises
        ------
        ValueError
            When one is missing or the shapes do not fit together.
        """
        missing = {"mean", "projection", "centroids"} - set(arrays)
        if missing:
            raise ValueError(f"the retrieval model lacks {', '.join(sorted(missing))}")
        model = VladModel(
            mean=np.asarray(arrays["mean"], np.float32),
            projection=np.asarray(arrays["projection"], np.float32),
            centroids=np.asarray(arrays["centroids"], np.float32),
        )
        if (
            model.projection.ndim != 2
            or model.centroids.ndim != 2
            or model.mean.shape != model.projection.shape[1:]
            or model.centroids.shape[1] != model.projection.shape[0]
        ):
            raise ValueError(
                f"retrieval model shapes do not fit: mean {model.mean.shape}, "
                f"projection {model.projection.shape}, "
                f"centroids {model.centroids.shape}"
            )
        return model

    @property
    def dim(self) -> int:
        """Elements of a global descriptor."""
        return int(self.centroids.size)

    def begin(self, _image: ByteArray, /) -> None:
        """Do nothing: descriptors come first; see `Retrieval`."""

    def global_descriptor(
        self,
        _image: ByteArray,
        descriptors: Float32Array,
        /,
        *,
        begun: Submitted | None = None,  # noqa: ARG002 - of networks only
    ) -> Float32Array:
        """Return the global descriptor of an image; see `Retrieval`."""
        return self.describe(descriptors)

    def describe(self, descriptors: Float32Array) -> Float32Array:
        """Return the global descriptor of an image.

        Parameters
        ----------
        descriptors : ndarray of shape (N, D), float32
            Decoded local descriptors.

        Returns
        -------
        ndarray of shape (C * d,), float32
            L2-normalised; zeros when there are no local descriptors.
        """
        vlad = np.zeros_like(self.centroids)
        if len(descriptors) == 0:
            return vlad.ravel()
        reduced = (descriptors - self.mean) @ self.projection.T
        # argmin |x - c|^2 = argmax (x.c - |c|^2 / 2)
        affinity = reduced @ self.centroids.T
        affinity -= 0.5 * np.sum(self.centroids**2, axis=1)
        word = np.argmax(affinity, axis=1)
        order = np.argsort(word, kind="stable")
        word = word[order]
        starts = np.flatnonzero(np.diff(word, prepend=-1))
        residual = reduced[order] - self.centroids[word]
        vlad[word[starts]] = np.add.reduceat(residual, starts, axis=0)
        vlad /= np.maximum(np.linalg.norm(vlad, axis=1, keepdims=True), 1e-9)
        return np.asarray(vlad.ravel() / np.linalg.norm(vlad), np.float32)


def train_vlad(
    descriptors: Float32Array, *, num_words: int, dim: int, seed: int
) -> VladModel:
    """Return a VLAD model fitted to a site's own local descriptors.

    Parameters
    ----------
    descriptors : ndarray of shape (N, D), float32
        A sample of decoded local descriptors.
    num_words : int
        Size of the vocabulary; less when N is small.
    dim : int
        Dimensions kept by the PCA; at most D.
    seed : int
        For k-means.
    """
    # In double precision, so that the number of threads does not show in the result.
    mean = descriptors.mean(axis=0, dtype=np.float64)
    centred = descriptors - mean
    _, vectors = np.linalg.eigh(centred.T @ centred)
    projection = np.ascontiguousarray(vectors[:, ::-1][:, :dim].T, np.float32)
    reduced = np.ascontiguousarray(centred @ projection.T, np.float32)
    num_words = max(1, min(num_words, len(reduced) // 4))
    cv2.setRNGSeed(seed)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 25, 1e-4)
    labels = np.zeros((0, 1), np.int32)
    _, _, centroids = cv2.kmeans(
        reduced, num_words, labels, criteria, 1, cv2.KMEANS_PP_CENTERS
    )
    return VladModel(
        mean=mean.astype(np.float32),
        projection=projection,
        centroids=np.asarray(centroids, np.float32),
    )
