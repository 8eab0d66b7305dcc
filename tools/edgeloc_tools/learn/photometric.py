"""Changes of light, weather, optics and sensor, on one picture at a time."""

from __future__ import annotations

import cv2
import numpy as np

from edgeloc.types import ByteArray, Float32Array, FloatArray


def random_grey(image: ByteArray, rng: np.random.Generator) -> Float32Array:
    """Return a grey picture in [0, 1] of a colour one, as some other sensor sees it.

    Weights of the channels are drawn anew, half of the time near the usual ones.

    Parameters
    ----------
    image : ndarray of shape (H, W, 3), uint8
        BGR.
    rng : Generator
        What is drawn from.
    """
    usual = np.array([0.114, 0.587, 0.299])
    spread = rng.choice([30.0, 3.0])
    weights = rng.dirichlet(usual * spread) / 255.0
    grey = cv2.transform(image.astype(np.float32), weights[None, :].astype(np.float32))
    return np.asarray(grey, np.float32).reshape(image.shape[:2])


def smooth_field(
    shape: tuple[int, int], rng: np.random.Generator, *, low: float, high: float
) -> Float32Array:
    """Return a smooth random field of factors, (H, W)."""
    cells = (int(rng.integers(2, 6)), int(rng.integers(2, 6)))
    coarse = rng.uniform(low, high, cells).astype(np.float32)
    return np.asarray(
        cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    )


def as_night(image: Float32Array, rng: np.random.Generator) -> Float32Array:
    """Return a picture as if by night: dark, unevenly lit by lamps, glowing.

    Parameters
    ----------
    image : ndarray of shape (H, W), float32
        Grey in [0, 1].
    rng : Generator
        What is drawn from.
    """
    height, width = image.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    light = np.full(image.shape, rng.uniform(0.05, 0.35), np.float32)
    glow = np.zeros(image.shape, np.float32)
    for _ in range(int(rng.integers(1, 5))):
        centre = rng.uniform(0, 1, 2) * [width, height]
        reach = rng.uniform(0.1, 0.5) * width
        away2 = ((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / np.float32(reach**2)
        light += np.float32(rng.uniform(0.2, 1.2)) / (1.0 + 4.0 * away2)
        if rng.random() < 0.5:
            bulb = np.float32(rng.uniform(0.01, 0.05) * width) ** 2
            glow += np.exp(-away2 * np.float32(reach**2) / bulb)
    # What shines by itself by day (the sky) is dark by night.
    dark = np.clip(image, 0, 1) ** np.float32(rng.uniform(0.8, 1.8))
    if rng.random() < 0.5:
        bright = cv2.GaussianBlur(image, (0, 0), width / 20.0)
        dark = dark * np.clip(1.3 - bright * rng.uniform(0.5, 1.3), 0.02, 1.0)
    return np.asarray(dark * light + glow, np.float32)


def motion_kernel(length_px: int, rng: np.random.Generator) -> Float32Array:
    """Return the kernel of a straight camera motion, sum 1."""
    angle = rng.uniform(0, np.pi)
    side = length_px | 1
    kernel = np.zeros((side, side), np.float32)
    for at in np.linspace(-(side // 2), side // 2, 4 * side):
        y = round(side // 2 + at * np.sin(angle))
        x = round(side // 2 + at * np.cos(angle))
        kernel[y, x] = 1.0
    return np.asarray(kernel / kernel.sum())


def change_picture(
    image: Float32Array, rng: np.random.Generator, *, strength: float = 1.0
) -> Float32Array:
    """Return a picture under other light, optics and sensor noise, in [0, 1].

    Parameters
    ----------
    image : ndarray of shape (H, W), float32
        Grey in [0, 1].
    rng : Generator
        What is drawn from.
    strength : float
        0 changes little, 1 a lot.
    """
    noise_sigma = rng.uniform(0.0, 0.04) * strength
    if rng.random() < 0.12 * strength:
        image = as_night(image, rng)
        noise_sigma = rng.uniform(0.01, 0.05)
    else:
        if rng.random() < 0.8:
            gamma = np.exp(rng.uniform(-0.8, 0.8) * strength)
            image = np.clip(image, 0.0, 1.0) ** np.float32(gamma)
        if rng.random() < 0.4 * strength:
            image = image * smooth_field(image.shape, rng, low=0.3, high=1.5)
        if rng.random() < 0.15 * strength:
            image = _cast_shadow(image, rng)
        contrast = np.exp(rng.uniform(-0.8, 0.4) * strength)
        image = (image - 0.5) * np.float32(contrast) + np.float32(
            0.5 + rng.uniform(-0.25, 0.25) * strength
        )
    if rng.random() < 0.4 * strength:
        image = _blur(image, rng)
    noise = rng.standard_normal(image.shape, np.float32)
    image = np.clip(image + noise * np.float32(noise_sigma), 0.0, 1.0)
    if rng.random() < 0.2 * strength:
        image = _compress(image, quality=int(rng.integers(25, 80)))
    return np.asarray(image, np.float32)


def _cast_shadow(image: Float32Array, rng: np.random.Generator) -> Float32Array:
    """Darken a random polygon with a hard edge."""
    height, width = image.shape
    corners: FloatArray = rng.uniform(-0.3, 1.3, (4, 2)) * [width, height]
    mask = np.zeros(image.shape, np.float32)
    hull = cv2.convexHull(corners.astype(np.int32))
    cv2.fillConvexPoly(mask, hull, (1.0,))
    mask = np.asarray(cv2.GaussianBlur(mask, (0, 0), rng.uniform(0.5, 4.0)))
    return np.asarray(
        image * (1.0 - mask * np.float32(rng.uniform(0.3, 0.7))), np.float32
    )


def _blur(image: Float32Array, rng: np.random.Generator) -> Float32Array:
    if rng.random() < 0.5:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 1.8)))
    kernel = motion_kernel(int(rng.integers(3, 12)), rng)
    return np.asarray(cv2.filter2D(image, -1, kernel))


def _compress(image: Float32Array, *, quality: int) -> Float32Array:
    """Return a picture as a camera's JPEG leaves it."""
    whole = np.round(image * 255.0).astype(np.uint8)
    _, data = cv2.imencode(".jpg", whole, [cv2.IMWRITE_JPEG_QUALITY, quality])
    back = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
    return np.asarray(np.asarray(back, np.float32) / np.float32(255.0))
