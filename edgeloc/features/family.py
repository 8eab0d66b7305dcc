"""Feature families: an extractor, its stored descriptors and how to compare them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgeloc.types import ByteArray, Features, Float32Array


class FeatureFamily(Protocol):
    """What mapping and localization need to know about a kind of local feature."""

    @property
    def name(self) -> str:
        """Name in manifests and on the command line."""

    @property
    def stored_dtype(self) -> np.dtype[np.generic]:
        """Element type of stored descriptors."""

    @property
    def stored_dim(self) -> int:
        """Elements of a stored descriptor."""

    @property
    def match_ratio(self) -> float:
        """Lowe's ratio that serves it best between a query and a keyframe."""

    @property
    def colour(self) -> bool:
        """Whether it takes BGR images, too, and not only grey ones."""

    def extract(
        self, image: ByteArray, /, *, max_keypoints: int, mask: ByteArray | None = None
    ) -> Features:
        """Detect and describe.

        Parameters
        ----------
        image : ndarray of shape (H, W), uint8
            Grey; or BGR (H, W, 3) where `colour` says so.
        max_keypoints : int
            Keep the strongest.
        mask : ndarray of shape (H, W), uint8, optional
            No feature where it is 0.

        Returns
        -------
        Features
        """

    def decode(self, stored: npt.NDArray[np.generic]) -> Float32Array:
        """Return L2-normalised float32 rows, comparable by their dot product.

        Parameters
        ----------
        stored : ndarray of shape (N, stored_dim)
            As in `Features.descriptors` and in tiles.

        Returns
        -------
        ndarray of shape (N, D), float32
        """
