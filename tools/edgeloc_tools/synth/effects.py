"""What comes between a place and a picture: light, exposure, sensor and JPEG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from edgeloc.types import ByteArray, Float32Array, FloatArray, Rigid3


@dataclass(frozen=True, slots=True, kw_only=True)
class Lamp:
    """A small lamp without shadows.

    Parameters
    ----------
    position : (float, float, float)
        World, m.
    strength : float
        Brightness factor that it adds right beside it.
    radius_m : float
        Distance at which its light has fallen to one half.
    colour : (float, float, float)
        BGR factors.
    """

    position: tuple[float, float, float]
    strength: float = 1.0
    radius_m: float = 1.5
    colour: tuple[float, float, float] = (0.65, 0.9, 1.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Light:
    """Illumination and exposure: ``255 * (gain * lit / 255) ** gamma``.

    Parameters
    ----------
    ambient : float
        Brightness factor of the light from everywhere.
    colour : (float, float, float)
        BGR factors of that light (colour temperature).
    gain, gamma : float
        Of the camera.
    lamps : tuple of Lamp
        Local lights.
    noise_scale : float
        How much stronger the sensor noise is than by day.
    """

    ambient: float = 1.0
    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gain: float = 1.0
    gamma: float = 1.0
    lamps: tuple[Lamp, ...] = ()
    noise_scale: float = 1.0

    def apply(
        self,
        colour: Float32Array,
        bearings: tuple[Float32Array, Float32Array],
        inverse_depth: Float32Array,
        *,
        cam_from_world: Rigid3,
    ) -> None:
        """Light a picture in place.

        Parameters
        ----------
        colour : ndarray of shape (H, W, 3), float32
            BGR in [0, 255].
        bearings : tuple of two ndarrays of shape (H, W), float32
            x/z and y/z of the pixels.
        inverse_depth : ndarray of shape (H, W), float32
            1/m, 0 where there is nothing.
        cam_from_world : Rigid3
            The pose.
        """
        base = np.float32(self.ambient) * np.asarray(self.colour, np.float32)
        if self.lamps:
            lit = np.empty_like(colour)
            lit[:] = base
            for lamp in self.lamps:
                lit += _lamplight(lamp, bearings, inverse_depth, cam_from_world)
            colour *= lit
        else:
            colour *= base
        colour *= np.float32(self.gain)
        if self.gamma != 1.0:
            np.clip(colour, 0, None, out=colour)
            colour /= np.float32(255)
            np.power(colour, np.float32(self.gamma), out=colour)
            colour *= np.float32(255)


def _lamplight(
    lamp: Lamp,
    bearings: tuple[Float32Array, Float32Array],
    inverse_depth: Float32Array,
    cam_from_world: Rigid3,
) -> Float32Array:
    """Return the factor that a lamp adds, (H, W, 3); nothing where there is nothing."""
    x, y, z = (np.float32(k) for k in cam_from_world.transform(lamp.position))
    seen = inverse_depth > 0
    depth = 1.0 / np.where(seen, inverse_depth, np.float32(1.0))
    square = (
        (bearings[0] * depth - x) ** 2
        + (bearings[1] * depth - y) ** 2
        + (depth - z) ** 2
    )
    falloff = seen * np.float32(lamp.strength) / (1 + square / lamp.radius_m**2)
    tint = np.asarray(lamp.colour, np.float32)
    return np.asarray(falloff[..., None] * tint, np.float32)


def evening_light() -> Light:
    """Return the same place with warm light, darker, another tone curve."""
    return Light(ambient=0.8, colour=(0.8, 0.95, 1.06), gamma=1.15, noise_scale=1.5)


def night_light(extent_m: tuple[float, float, float], *, along_x: bool) -> Light:
    """Return night: dark, bluish, noisy, with lamps every few metres.

    Parameters
    ----------
    extent_m : (float, float, float)
        Of the scene.
    along_x : bool
        Whether the lamps line a street from x = 0; else two stand in a room.
    """
    length, width, height = extent_m
    if along_x:
        places = [
            (float(x), side * 0.3 * width, 4.3)
            for i, x in enumerate(np.arange(4.0, length, 13.0))
            for side in ((1.0,) if i % 2 else (-1.0,))
        ]
        radius_m = 3.5
    else:
        places = [
            (0.42 * length, -0.36 * width, 0.6 * height),
            (-0.42 * length, 0.36 * width, 0.5 * height),
        ]
        radius_m = 0.7
    lamps = tuple(Lamp(position=p, strength=1.1, radius_m=radius_m) for p in places)
    return Light(
        ambient=0.08, colour=(1.25, 1.0, 0.85), gamma=1.0, lamps=lamps, noise_scale=4.0
    )


def average(images: Sequence[ByteArray]) -> ByteArray:
    """Return the mean of sub-frame pictures: motion blur.

    Parameters
    ----------
    images : sequence of ndarray of shape (H, W, 3), uint8
        At equal steps of the exposure.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
    """
    total = np.zeros(images[0].shape, np.float32)
    for image in images:
        total += image
    return np.asarray((total / len(images) + 0.5).astype(np.uint8))


def add_sensor_noise(
    image: ByteArray, rng: np.random.Generator, *, sigma: float
) -> ByteArray:
    """Return an image with read noise and shot noise.

    Parameters
    ----------
    image : ndarray of shape (H, W, 3), uint8
        BGR.
    rng : Generator
        Source of randomness.
    sigma : float
        Standard deviation at black, grey levels; at white it is doubled.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
    """
    if sigma <= 0:
        return image
    scale = np.sqrt(1.0 + 3.0 * np.arange(256) / 255.0).astype(np.float32) * sigma
    grain = rng.standard_normal(image.shape, dtype=np.float32) * scale[image]
    return np.asarray(np.clip(image + grain + 0.5, 0, 255).astype(np.uint8))


def jpeg(image: ByteArray, quality: int) -> ByteArray:
    """Return an image as it comes back from JPEG of that quality (1 to 100)."""
    _, coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), dtype=np.uint8)


def exposure_times_s(middle_s: float, exposure_s: float, num: int) -> FloatArray:
    """Return `num` instants, evenly spread over an exposure around its middle."""
    if num <= 1 or exposure_s <= 0 or not math.isfinite(exposure_s):
        return np.array([middle_s])
    return middle_s + exposure_s * ((np.arange(num) + 0.5) / num - 0.5)
