"""Feature families that need no network: ORB and SIFT through OpenCV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import cv2
import numpy as np
import numpy.typing as npt

from edgeloc.features.corners import parabola_peak
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
    sigmas: Float32Array,
    keypoints: Sequence[cv2.KeyPoint],
    *,
    descriptors: ByteArray,
    max_keypoints: int,
) -> Features:
    """Return the strongest `max_keypoints`, strongest first."""
    scores = np.array([k.response for k in keypoints], np.float32)
    order = np.argsort(-scores, kind="stable")[:max_keypoints]
    return Features(
        keypoints=points[order],
        scores=scores[order],
        sigmas=sigmas[order],
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
    colour = False
    match_ratio = 0.9

    def extract(
        self, grey: ByteArray, /, *, max_keypoints: int, mask: ByteArray | None = None
    ) -> Features:
        """Detect and describe; see `FeatureFamily.extract`."""
        detector = cv2.ORB.create(
            nfeatures=max_keypoints, scaleFactor=_ORB_SCALE, fastThreshold=7
        )
        keypoints, descriptors = detector.detectAndCompute(grey, mask)
        octave = np.array([k.octave for k in keypoints], np.int64)
        points = _refine_orb(grey, _points(keypoints), octave)
        return _strongest(
            points,
            # A pixel of its level; measured on lund_door, 0.2 px to 1.2 px at the top.
            (_ORB_SCALE**octave).astype(np.float32),
            keypoints,
            descriptors=_rows(descriptors, self.stored_dim),
            max_keypoints=max_keypoints,
        )

    def decode(self, stored: npt.NDArray[np.generic]) -> Float32Array:
        """Return bits as +-1/16: the dot product is 1 - Hamming distance / 128."""
        bits = np.unpackbits(np.asarray(stored, np.uint8), axis=1)
        return np.asarray(bits.astype(np.float32) * 0.125 - 0.0625)


def _refine_orb(
    grey: ByteArray, points: Float32Array, octave: IntArray
) -> Float32Array:
    """Return ORB's keypoints with sub-pixel positions, in the corner convention.

    OpenCV gives whole pixels of a pyramid level times the nominal scale, centre
    convention. Each is moved to the peak of a parabola through the Harris response
    around it, which halves the distance of true matches to their epipolar lines
    (fountain-P11: 0.39 to 0.23 px; `cornerSubPix` does not help). Pixel i of a level
    covers [i, i + 1) * W / W_level of the image: without the half pixel and the
    rounding of W_level, coarse levels are off by up to 1.3 px.
    """
    size = np.array([grey.shape[1], grey.shape[0]], np.float64)
    refined = np.zeros((len(points), 2))
    for level in np.unique(octave).tolist():
        nominal = _ORB_SCALE**level
        level_size = np.maximum(np.round(size / nominal), 1.0)
        width, height = (int(side) for side in level_size)
        image = np.asarray(
            cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)
        )
        rows = octave == level
        at = np.round(points[rows] / nominal).astype(np.int64)
        peak = parabola_peak(cv2.cornerHarris(image, 3, 3, 0.04), at)
        refined[rows] = (peak + 0.5) * (size / level_size)
    return refined.astype(np.float32)


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
    colour = False
    match_ratio = 0.85

    def extract(
        self, grey: ByteArray, /, *, max_keypoints: int, mask: ByteArray | None = None
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
        # Their noise grows with the size, but slowly: by 1.5 to 2 up to 14 px, where
        # nearly all are. Weights by size made poses worse on fox and gardenspoint,
        # better on lund_door.
        return _strongest(
            points,
            np.ones(len(points), np.float32),
            keypoints,
            descriptors=_rows(descriptors, self.stored_dim),
            max_keypoints=max_keypoints,
        )

    def decode(self, stored: npt.NDArray[np.generic]) -> Float32Array:
        """Return the square root of the L1-normalised histogram."""
        values = np.asarray(stored, np.float32)
        total = np.maximum(values.sum(axis=1, keepdims=True), 1.0)
        return np.asarray(np.sqrt(values / total), np.float32)


CLASSICAL: Mapping[str, type[OrbFamily] | type[SiftFamily]] = MappingProxyType(
    {"orb": OrbFamily, "sift": SiftFamily}
)
"""By name."""
