"""Frames of a synthetic city: what a device would have made of pictures not there."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgeloc.features.quantizer import ProductQuantizer
from edgeloc.localize.candidate import Query
from edgeloc.runtime.site_models import open_keyframe_index
from edgeloc.tiles.reader import Site
from edgeloc.types import ByteArray, Features, Float32Array


class KnownFrames:
    """A feature family and a retrieval model that know what they will be asked.

    Parameters
    ----------
    site : Site
        Whose descriptors they would make.

    Attributes
    ----------
    asked : Query or None
        What the next picture would become.
    """

    colour = False
    match_ratio = 0.99

    def __init__(self, site: Site) -> None:
        spec = site.manifest.family
        quantizer = ProductQuantizer.from_arrays(site.codebook("descriptors").arrays)
        self._name = spec.name
        self._stored_dim = spec.stored_dim
        self._dim = quantizer.dim
        self._global_dim = open_keyframe_index(site).dim
        self.asked: Query | None = None

    @property
    def name(self) -> str:
        """Of the site's family."""
        return self._name

    @property
    def stored_dtype(self) -> np.dtype[np.generic]:
        """Of the site's codes."""
        return np.dtype(np.uint8)

    @property
    def stored_dim(self) -> int:
        """Of the site's codes."""
        return self._stored_dim

    @property
    def dim(self) -> int:
        """Elements of a global descriptor."""
        return self._global_dim

    def begin(self, image: ByteArray, /) -> None:
        """Nothing is begun: there is no network."""

    def extract(
        self,
        image: ByteArray,  # noqa: ARG002 - what is in it is known
        /,
        *,
        max_keypoints: int,
        mask: ByteArray | None = None,  # noqa: ARG002
        begun: object = None,  # noqa: ARG002
    ) -> Features:
        """Return the features of the frame that is asked."""
        assert self.asked is not None
        features = self.asked.features
        return Features(
            keypoints=features.keypoints[:max_keypoints],
            scores=features.scores[:max_keypoints],
            sigmas=features.sigmas[:max_keypoints],
            descriptors=features.descriptors[:max_keypoints],
        )

    def decode(self, stored: npt.NDArray[np.generic]) -> Float32Array:
        """Return the descriptors of the frame that is asked."""
        if self.asked is None:
            return np.zeros((len(stored), self._dim), np.float32)
        return self.asked.descriptors[: len(stored)]

    def global_descriptor(
        self,
        image: ByteArray,  # noqa: ARG002
        descriptors: Float32Array,  # noqa: ARG002
        /,
        *,
        begun: object = None,  # noqa: ARG002
    ) -> Float32Array:
        """Return the global descriptor of the frame that is asked."""
        assert self.asked is not None
        return self.asked.global_descriptor
