"""The one way from an image to local features, for mapping and on the device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from edgeloc.features.family import FeatureFamily
from edgeloc.types import ByteArray, Features, Float32Array


def to_grey(image: ByteArray) -> ByteArray:
    """Return the grey image of a grey or BGR one, (H, W) uint8."""
    if image.ndim == 2:
        return image
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)


def quarter_turned(image: ByteArray, turns: int) -> ByteArray:
    """Return an image turned counterclockwise by so many right angles.

    Parameters
    ----------
    image : ndarray of shape (H, W) or (H, W, 3), uint8
        Grey or BGR.
    turns : int
        From 0, the image itself, to 3.
    """
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _turned_back(
    points: Float32Array, turns: int, *, width: int, height: int
) -> Float32Array:
    """Return points of a turned image in the original of width and height, px."""
    x, y = points[:, 0], points[:, 1]
    if turns == 1:
        return np.stack([width - y, x], axis=1)
    if turns == 2:
        return np.stack([width - x, height - y], axis=1)
    if turns == 3:
        return np.stack([y, height - x], axis=1)
    return points


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedImage:
    """An image as a feature family takes it.

    Parameters
    ----------
    pixels : ndarray of shape (H, W) or (H, W, 3), uint8
        Grey, or BGR for a family that sees colour; maybe scaled down.
    width, height : int
        Of the image that it comes from, px.
    """

    pixels: ByteArray
    width: int
    height: int


def prepare_image(
    image: ByteArray, family: FeatureFamily, *, max_side_px: int = 0
) -> PreparedImage:
    """Return an image as a feature family takes it.

    Parameters
    ----------
    image : ndarray of shape (H, W) or (H, W, 3), uint8
        Grey or BGR.
    family : FeatureFamily
        Extractor.
    max_side_px : int
        Larger images are scaled down to this; 0 = never.
    """
    pixels = image if family.colour else to_grey(image)
    height, width = pixels.shape[:2]
    longest_px = max(height, width)
    if max_side_px and longest_px > max_side_px:
        scale = max_side_px / longest_px
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = np.asarray(
            cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8
        )
    return PreparedImage(pixels=pixels, width=width, height=height)


def extract_prepared(
    prepared: PreparedImage,
    family: FeatureFamily,
    *,
    max_keypoints: int,
    mask: ByteArray | None = None,
    turns: int = 0,
) -> Features:
    """Return features in pixels of the image that was prepared.

    Parameters
    ----------
    prepared : PreparedImage
        From `prepare_image`.
    family : FeatureFamily
        Extractor.
    max_keypoints : int
        Keep the strongest.
    mask : ndarray of shape (H, W), uint8, optional
        Of the size of the original; no feature where it is 0.
    turns : int
        Right angles by which the extractor sees the image turned counterclockwise: a
        network knows what it was trained on, pictures that are about upright.
    """
    height, width = prepared.pixels.shape[:2]
    if mask is not None and mask.shape != (height, width):
        mask = np.asarray(
            cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8
        )
    features = family.extract(
        quarter_turned(prepared.pixels, turns),
        max_keypoints=max_keypoints,
        mask=None if mask is None else quarter_turned(mask, turns),
    )
    # The corner convention makes turning and scaling exact: no half-pixel terms.
    back = np.array([prepared.width / width, prepared.height / height], np.float32)
    upright = _turned_back(features.keypoints, turns, width=width, height=height)
    return Features(
        keypoints=upright * back,
        scores=features.scores,
        sigmas=features.sigmas * np.float32(math.sqrt(back[0] * back[1])),
        descriptors=features.descriptors,
    )


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
    prepared = prepare_image(image, family, max_side_px=max_side_px)
    return extract_prepared(prepared, family, max_keypoints=max_keypoints, mask=mask)
