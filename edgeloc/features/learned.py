"""Networks as feature families and as retrieval."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgeloc.errors import ModelError
from edgeloc.features.decode import DECODERS, DecodeRequest, normalize_rows
from edgeloc.inference.network import Network, Submitted
from edgeloc.types import ByteArray, Features, Float32Array

_STORED_SCALE = 256.0
"""Of an L2-normalised row of 64 elements hardly any is above 0.5; int8 ends there."""


class LearnedFamily:
    """A feature network: L2-normalised descriptors, stored as int8.

    Parameters
    ----------
    network : Network
        Its role is "features".
    """

    stored_dtype = np.dtype(np.int8)

    def __init__(self, network: Network) -> None:
        self._network = network
        manifest = network.manifest
        self._decode = DECODERS[manifest.decoder]
        self.name = manifest.name
        self.stored_dim = manifest.descriptor_dim
        self.match_ratio = manifest.match_ratio or 1.0
        self.colour = manifest.input.channels == 3

    @property
    def network(self) -> Network:
        """What it runs."""
        return self._network

    def extract(
        self, image: ByteArray, /, *, max_keypoints: int, mask: ByteArray | None = None
    ) -> Features:
        """Detect and describe; see `FeatureFamily.extract`.

        Raises
        ------
        ModelError
            When the network fails, or gives what its decoder cannot read.
        """
        outputs, given = self._network.run(image)
        height, width = given.tensor.shape[2:]
        request = DecodeRequest(
            max_keypoints=max_keypoints,
            width=given.width,
            height=given.height,
            tensor_width=width,
            tensor_height=height,
            image_from_tensor=given.image_from_tensor,
            plane=given.tensor[0, 0],
            mask=mask,
        )
        try:
            decoded = self._decode(outputs, request)
        except ModelError as exc:
            path = self._network.model.manifest_path
            raise ModelError(f"{path}: {exc}") from exc
        if decoded.descriptors.shape[1] != self.stored_dim:
            raise ModelError(
                f"{self._network.model.manifest_path}: descriptor_dim is "
                f"{self.stored_dim}, the network's descriptors have "
                f"{decoded.descriptors.shape[1]} elements"
            )
        scale = math.sqrt(float(np.prod(given.image_from_tensor)))
        return Features(
            keypoints=decoded.keypoints * given.image_from_tensor,
            scores=decoded.scores,
            sigmas=np.full(len(decoded.scores), scale, np.float32),
            descriptors=encode_descriptors(decoded.descriptors),
        )

    def decode(self, stored: npt.NDArray[np.generic]) -> Float32Array:
        """Return L2-normalised float32 rows."""
        return normalize_rows(np.asarray(stored, np.float32))


def encode_descriptors(descriptors: Float32Array) -> npt.NDArray[np.int8]:
    """Return L2-normalised descriptors in their stored form.

    Parameters
    ----------
    descriptors : ndarray of shape (N, D), float32
        L2-normalised.
    """
    scaled = np.rint(_STORED_SCALE * descriptors)
    return np.asarray(np.clip(scaled, -127.0, 127.0), np.int8)


class LearnedRetrieval:
    """A network that makes one vector of an image.

    Parameters
    ----------
    network : Network
        Its role is "retrieval".
    """

    def __init__(self, network: Network) -> None:
        self._network = network

    @property
    def network(self) -> Network:
        """What it runs."""
        return self._network

    @property
    def dim(self) -> int:
        """Elements of a global descriptor."""
        return self._network.manifest.descriptor_dim

    def begin(self, image: ByteArray, /) -> Submitted | None:
        """Give an image to a GPU and return at once; see `Retrieval`.

        Raises
        ------
        ModelError
            When the network fails.
        """
        return self._network.submit(image) if self._network.asynchronous else None

    def global_descriptor(
        self,
        image: ByteArray,
        _descriptors: Float32Array,
        /,
        *,
        begun: Submitted | None = None,
    ) -> Float32Array:
        """Return the global descriptor of an image; see `Retrieval`.

        Raises
        ------
        ModelError
            When the network fails, or gives something else than one vector.
        """
        outputs, _ = (begun or self._network.submit(image)).collect()
        vector = outputs["global_descriptor"]
        # Some models put out (1, D, 1, 1).
        if vector.size != self.dim or vector.shape[0] != 1:
            raise ModelError(
                f"{self._network.model.manifest_path}: descriptor_dim is {self.dim}, "
                f"the network's output has shape {vector.shape}"
            )
        return normalize_rows(vector.reshape(1, -1)).ravel()
