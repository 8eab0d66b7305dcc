"""The one way from an image to local features, for mapping and on the device."""

from __future__ import annotations

import cv2
import numpy as np

from edgeloc.features.family import FeatureFamily
from edgeloc.types import ByteArray, Features


def to_grey(image: ByteArray) -> ByteArray:
    """Return the grey image of a grey or BGR one, (H, W) uint8."""
    if image.ndim == 2:
        return image
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)


def extract_features(
    image: ByteArray,
    family: FeatureFamily,
    *,
    max_keypoints: int,
    max_side_px: int = 0,
    mask: ByteArray | None = None,
) -> Features:
    """Return features in pixels of the image as given.

    Parameters
    ----------
    image : ndarray of shape (H, W) or (H, W, 3), uint8
        Grey or BGR.
    family : FeatureFamily
        Extractor.
    max_keypoints : int
        Keep the strongest.
    max_side_px : int
        Larger images are scaled down to this; 0 = never.
    mask : ndarray of shape (H, W), uint8, optional
        No feature where it is 0.
    """
    grey = to_grey(image)
    height, width = grey.shape
    longest_px = max(height, width)
    if max_side_px and longest_px > max_side_px:
        scale = max_side_px / longest_px
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        grey = np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA))
        if mask is not None:
            mask = np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST))
    features = family.extract(
        np.asarray(grey, np.uint8), max_keypoints=max_keypoints, mask=mask
    )
    # The corner convention makes scaling exact: no half-pixel terms.
    back = np.array([width / grey.shape[1], height / grey.shape[0]], np.float32)
    return Features(
        keypoints=features.keypoints * back,
        scores=features.scores,
        descriptors=features.descriptors,
    )
