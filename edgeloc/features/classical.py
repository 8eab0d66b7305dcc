"""Feature families that need no network: ORB and SIFT through OpenCV."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from edgeloc.errors import ConfigError
from edgeloc.features.family import FeatureFamily
from edgeloc.types import ByteArray, Features, Float32Array, IntArray


def _points(keypoints: Sequence[cv2.KeyPoint]) -> Float32Array:
    points = np.array([k.pt for k in keypoints], np.float32)
    return points.reshape(-1, 2)


def _rows(descriptors: npt.NDArray[np.generic] | None, dim: int) -> ByteArray:
    """Return OpenCV's descriptors, also when it gives None for none."""
    if descriptors is None:
        return np.zeros((0, dim), np.uint8)
    return np.asarray(descriptors, np.uint8)


def _strongest(
    points: Float32Array,
    keypoints: Sequence[cv2.KeyPoint],
    descriptors: ByteArray,
    *,
    max_keypoints: int,
) -> Features:
    """Return the strongest `max_keypoints`, strongest first."""
    scores = np.array([k.response for k in keypoints], np.float32)
    order = np.argsort(-scores, kind="stable")[:max_keypoints]
    return Features(
        keypoints=points[order],
        scores=scores[order],
        descriptors=descriptors[order],
    )


_ORB_SCALE = 1.2


class OrbFamily:
    """ORB [1]_: 256-bit descriptors, stored as 32 bytes.

    References
    ----------
    .. [1] Rublee et al., "ORB: an efficient alternative to SIFT or SURF", ICCV 2011.
    """

    name = "orb"
    stored_dtype = np.dtype(np.uint8)
    stored_dim = 32

    def extract(
        self, grey: ByteArray, *, max_keypoints: int, mask: ByteArray | None = None
    ) -> Features:
        """Detect and describe; see `FeatureFamily.extract`."""
        detector = cv2.ORB.create(
            nfeatures=max_keypoints, scaleFactor=_ORB_SCALE, fastThreshold=7
        )
        keypoints, descriptors = detector.detectAndCompute(grey, mask)
        octave = np.array([k.octave for k in keypoints], np.int64)
        points = _orb_corner_px(_points(keypoints), octave, grey.shape)
        return _strongest(
            points,
            keypoints,
            _rows(descriptors, self.stored_dim),
            max_keypoints=max_keypoints,
        )

    def decode(self, stored: npt.NDArray[np.generic]) -> Float32Array:
        """Return bits as +-1/16: the dot product is 1 - Hamming distance / 128."""
        bits = np.unpackbits(np.asarray(stored, np.uint8), axis=1)
        return np.asarray(bits.astype(np.float32) * 0.125 - 0.0625)


def _orb_corner_px(
    points: Float32Array, octave: IntArray, shape: tuple[int, ...]
) -> Float32Array:
    """Return ORB's keypoints in the corner convention.

    OpenCV multiplies the position in a pyramid level, centre convention, by the nominal
    scale. The level's pixel i really covers [i, i + 1) * W / W_level: half a pixel of
    the level is missing, up to 1.3 px of the image, and the rounding of W_level.
    """
    nominal = np.power(_ORB_SCALE, octave)[:, None]
    size = np.array([shape[1], shape[0]], np.float64)
    level_size = np.maximum(np.round(size / nominal), 1.0)
    return np.asarray((points / nominal + 0.5) * (size / level_size), np.float32)


class SiftFamily:
    """SIFT [1]_, stored as OpenCV's bytes, compared as RootSIFT [2]_.

    References
    ----------
    .. [1] Lowe, "Distinctive image features from scale-invariant keypoints", IJCV 2004.
    .. [2] Arandjelovic, Zisserman, "Three things everyone should know to improve object
       retrieval", CVPR 2012, section 3.
    """

    name = "sift"
    stored_dtype = np.dtype(np.uint8)
    stored_dim = 128

    def extract(
        self, grey: ByteArray, *, max_keypoints: int, mask: ByteArray | None = None
    ) -> Features:
        """Detect and describe; see `FeatureFamily.extract`."""
        detector = cv2.SIFT.create(
            nfeatures=max_keypoints,
            nOctaveLayers=3,
            contrastThreshold=0.02,
            edgeThreshold=10,
            sigma=1.6,
            descriptorType=cv2.CV_8U,
            enable_precise_upscale=True,
        )
        keypoints, descriptors = detector.detectAndCompute(grey, mask)
        # OpenCV puts (0, 0) on the centre of the first pixel.
        points = _points(keypoints) + np.float32(0.5)
        return _strongest(
            points,
            keypoints,
            _rows(descriptors, self.stored_dim),
            max_keypoints=max_keypoints,
        )

    def decode(self, stored: npt.NDArray[np.generic]) -> Float32Array:
        """Return the square root of the L1-normalised histogram."""
        values = np.asarray(stored, np.float32)
        total = np.maximum(values.sum(axis=1, keepdims=True), 1.0)
        return np.asarray(np.sqrt(values / total), np.float32)


_FAMILIES: dict[str, type[OrbFamily] | type[SiftFamily]] = {
    "orb": OrbFamily,
    "sift": SiftFamily,
}


def get_family(name: str) -> FeatureFamily:
    """Return a feature family by name.

    Raises
    ------
    ConfigError
        When there is none of that name.
    """
    if name not in _FAMILIES:
        raise ConfigError(
            f"feature family {name!r} is unknown, expected {', '.join(_FAMILIES)}"
        )
    return _FAMILIES[name]()
