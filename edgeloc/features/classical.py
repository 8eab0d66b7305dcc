"""Feature families that need no network: ORB and SIFT through OpenCV."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from edgeloc.errors import ConfigError
from edgeloc.features.family import FeatureFamily
from edgeloc.types import ByteArray, Features, Float32Array, FloatArray, IntArray


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
    match_ratio = 0.9

    def extract(
        self, grey: ByteArray, *, max_keypoints: int, mask: ByteArray | None = None
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
            keypoints,
            _rows(descriptors, self.stored_dim),
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
        peak = _parabola_peak(cv2.cornerHarris(image, 3, 3, 0.04), at)
        refined[rows] = (peak + 0.5) * (size / level_size)
    return refined.astype(np.float32)


def _parabola_peak(response: npt.NDArray[np.generic], at: IntArray) -> FloatArray:
    """Return sub-pixel maxima of a response near whole pixels (x, y), (N, 2)."""
    values = np.asarray(response, np.float64)
    height, width = values.shape
    at = np.clip(at, 2, [max(width - 3, 2), max(height - 3, 2)])
    offsets = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), axis=-1).reshape(-1, 2)
    around = at[:, None] + offsets
    best = np.argmax(values[around[..., 1], around[..., 0]], axis=1)
    at = at + offsets[best]
    x, y = at[:, 0], at[:, 1]
    centre = values[y, x]

    def peak(before: FloatArray, after: FloatArray) -> FloatArray:
        curvature = before - 2.0 * centre + after
        flat = np.abs(curvature) < 1e-12
        shift = 0.5 * (before - after) / np.where(flat, 1.0, curvature)
        return np.where(flat, 0.0, np.clip(shift, -0.5, 0.5))

    shift_x = peak(values[y, x - 1], values[y, x + 1])
    shift_y = peak(values[y - 1, x], values[y + 1, x])
    return np.stack([x + shift_x, y + shift_y], axis=1)


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
    match_ratio = 0.85

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
