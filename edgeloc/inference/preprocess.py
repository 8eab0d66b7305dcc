"""The one way from an image to a network's input: calibration, checks, the device."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from edgeloc.inference.manifest import InputSpec
from edgeloc.types import ByteArray, Float32Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NetworkInput:
    """An image as a network takes it.

    Parameters
    ----------
    tensor : ndarray of shape (1, C, H, W), float32
        Contiguous.
    width, height : int
        The part of the tensor that is image and not padding, px.
    image_from_tensor : ndarray of shape (2,), float32
        What pixel coordinates (x, y) in the tensor are multiplied with to be those of
        the image; the corner convention needs no other term.
    """

    tensor: Float32Array
    width: int
    height: int
    image_from_tensor: Float32Array


def preprocess(image: ByteArray, spec: InputSpec) -> NetworkInput:
    """Return the network's input for an image.

    Parameters
    ----------
    image : ndarray of shape (H, W) or (H, W, 3), uint8
        Grey or BGR.
    spec : InputSpec
        What the network takes.
    """
    image_height, image_width = image.shape[:2]
    if spec.size is not None and (image_height, image_width) != spec.size:
        height, width = spec.size
        # Area averages for smaller, since plain interpolation would alias.
        smaller = height * width < image_height * image_width
        interpolation = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        image = np.asarray(
            cv2.resize(image, (width, height), interpolation=interpolation), np.uint8
        )
    height, width = image.shape[:2]
    planes = _planes(image, spec.channels)
    # (pixel * scale - mean) / std, as one factor and one offset per channel.
    std = np.asarray(spec.std, np.float64)
    factor = np.asarray(spec.scale / std, np.float32)
    offset = np.asarray(-np.asarray(spec.mean) / std, np.float32)
    tensor = np.empty(
        (
            1,
            spec.channels,
            -(-height // spec.size_multiple) * spec.size_multiple,
            -(-width // spec.size_multiple) * spec.size_multiple,
        ),
        np.float32,
    )
    for channel, plane in enumerate(planes):
        out = tensor[0, channel]
        np.multiply(plane, factor[channel], out=out[:height, :width])
        if offset[channel] != 0.0:
            out[:height, :width] += offset[channel]
        out[:height, width:] = out[:height, width - 1 : width]
        out[height:] = out[height - 1]
    return NetworkInput(
        tensor=tensor,
        width=width,
        height=height,
        image_from_tensor=np.array(
            [image_width / width, image_height / height], np.float32
        ),
    )


def _planes(image: ByteArray, channels: int) -> list[ByteArray]:
    """Return grey, or red, green and blue."""
    if channels == 1:
        if image.ndim == 3:
            image = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)
        return [image]
    if image.ndim == 2:
        return [image] * 3
    return [image[..., 2], image[..., 1], image[..., 0]]
