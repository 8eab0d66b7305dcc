"""Images with a known warp between them, made from photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from edgeloc.errors import DatasetError
from edgeloc.types import ByteArray, FloatArray
from edgeloc_tools.evaluate.correspondence import KnownWarp, apply

HELD_OUT_EVERY, HELD_OUT_AT = 10, 7
"""Photos number 7, 17, 27 ... by name are for measuring: no training sees them."""


def held_out_photos(folder: Path) -> list[Path]:
    """Return the photos that no training has seen, by name.

    Parameters
    ----------
    folder : Path
        All photos.

    Raises
    ------
    DatasetError
        When there are none.
    """
    photos = sorted(path for path in folder.glob("*") if path.suffix == ".jpg")
    chosen = photos[HELD_OUT_AT::HELD_OUT_EVERY]
    if not chosen:
        raise DatasetError(f"{folder}: has no photos (at least 8 JPEG files)")
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WarpedImage:
    """An image, the same under a homography, and where the latter shows it.

    Parameters
    ----------
    a, b : ndarray of shape (H, W), uint8
        Grey.
    mask_b : ndarray, uint8
        Of b's size; 0 where the picture is filled up.
    warp : KnownWarp
        The truth.
    """

    a: ByteArray
    b: ByteArray
    mask_b: ByteArray
    warp: KnownWarp


# The border of what is shown is an edge that is not in the scene.
_MARGIN_PX = 6


def warp_image(
    image: ByteArray, b_from_a: FloatArray, size_b: tuple[int, int]
) -> WarpedImage:
    """Return an image under a homography, without aliasing.

    Parameters
    ----------
    image : ndarray of shape (H, W), uint8
        Grey.
    b_from_a : ndarray of shape (3, 3)
        Homography.
    size_b : tuple of int
        Width and height of the result, px.
    """
    height, width = image.shape
    size_a = (width, height)
    scale = _smallest_scale(b_from_a, size_a)
    smooth = image
    if scale < 1.0:
        # What a pixel of b covers in a, less the pixel that a itself has.
        sigma = 0.5 * float(np.sqrt(max(scale**-2 - 1.0, 0.0)))
        if sigma > 0.1:
            smooth = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)
    # OpenCV's pixel centres are integers, ours are at halves.
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
    centred = np.linalg.inv(half) @ b_from_a @ half
    warped = cv2.warpPerspective(
        smooth, centred, size_b, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )
    shown = cv2.warpPerspective(
        np.full_like(image, 255), centred, size_b, flags=cv2.INTER_NEAREST
    )
    kernel = np.ones((2 * _MARGIN_PX + 1,) * 2, np.uint8)
    # Outside of b itself nothing is filled up.
    mask = cv2.erode(shown, kernel, borderType=cv2.BORDER_REPLICATE)
    return WarpedImage(
        a=image,
        b=np.asarray(warped, np.uint8),
        mask_b=np.asarray(mask, np.uint8),
        warp=KnownWarp(b_from_a=b_from_a, size_a=size_a, size_b=size_b),
    )


def _smallest_scale(b_from_a: FloatArray, size_a: tuple[int, int]) -> float:
    """Return the median over the image of the scale in its most shrunk direction."""
    x = np.linspace(0.1, 0.9, 5) * size_a[0]
    y = np.linspace(0.1, 0.9, 5) * size_a[1]
    at = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    step = np.eye(2)
    moved = [apply(b_from_a, at + d) - apply(b_from_a, at) for d in step]
    jacobians = np.stack(moved, axis=-1)
    return float(np.median(np.linalg.svd(jacobians, compute_uv=False)[:, -1]))


def rotated(image: ByteArray, angle_deg: float) -> WarpedImage:
    """Return an image turned about its centre, all of it shown.

    Parameters
    ----------
    image : ndarray of shape (H, W), uint8
        Grey.
    angle_deg : float
        Clockwise on the screen.
    """
    height, width = image.shape
    cos, sin = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])
    corners = apply(turn, np.array([[0, 0], [width, 0], [0, height], [width, height]]))
    low, high = corners.min(axis=0), corners.max(axis=0)
    size_b = np.ceil(high - low - 1e-6).astype(int)
    shift = np.eye(3)
    shift[:2, 2] = 0.5 * size_b - 0.5 * (low + high)
    return warp_image(image, shift @ turn, (int(size_b[0]), int(size_b[1])))


def scaled(image: ByteArray, scale: float) -> WarpedImage:
    """Return two scales of an image.

    The larger of both is the image as given: a picture that is only blown up has its
    pixels as new texture and no detail.

    Parameters
    ----------
    image : ndarray of shape (H, W), uint8
        Grey.
    scale : float
        Pixels of the second per pixel of the first.
    """
    height, width = image.shape
    shrink = min(scale, 1.0 / scale)
    small = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    small_from_large = np.diag([small[0] / width, small[1] / height, 1.0])
    pair = warp_image(image, small_from_large, small)
    if scale <= 1.0:
        return pair
    return WarpedImage(
        a=pair.b,
        b=pair.a,
        mask_b=np.full_like(pair.a, 255),
        warp=KnownWarp(
            b_from_a=pair.warp.a_from_b,
            size_a=pair.warp.size_b,
            size_b=pair.warp.size_a,
        ),
    )


def random_homography(
    size: tuple[int, int], strength: float, rng: np.random.Generator
) -> tuple[FloatArray, tuple[int, int]]:
    """Return the homography of another view of a picture, and the view's size.

    Parameters
    ----------
    size : tuple of int
        Width and height, px.
    strength : float
        1: turns of up to 30 degrees, scales of 0.55 to 1.1, and a perspective that
        shrinks one side by up to a third. Hardly ever larger, see `scaled`.
    rng : numpy.random.Generator
        Source of chance.
    """
    half = 0.5 * np.array(size, np.float64)
    angle = np.deg2rad(rng.uniform(-30, 30) * strength)
    scale = float(np.exp(rng.uniform(-0.6, 0.1) * strength))
    stretch = float(np.exp(rng.uniform(-0.2, 0.2) * strength))
    shear = rng.uniform(-0.2, 0.2) * strength
    tilt = rng.uniform(-0.2, 0.2, 2) * strength / half
    shift = rng.uniform(-0.12, 0.12, 2) * strength * scale * 2.0 * half
    cos, sin = np.cos(angle), np.sin(angle)
    linear = (
        scale
        * np.array([[cos, -sin], [sin, cos]])
        @ np.array([[stretch, shear], [0.0, 1.0 / stretch]])
    )
    centred = np.eye(3)
    centred[:2, :2], centred[:2, 2], centred[2, :2] = linear, shift, tilt
    to_centre, back = np.eye(3), np.eye(3)
    size_b = np.ceil(np.array(size) * min(scale, 1.0)).astype(int)
    to_centre[:2, 2], back[:2, 2] = -half, 0.5 * size_b
    return back @ centred @ to_centre, (int(size_b[0]), int(size_b[1]))


def other_light(
    image: ByteArray, strength: float, rng: np.random.Generator
) -> ByteArray:
    """Return a picture in other light, by another camera.

    Parameters
    ----------
    image : ndarray of shape (H, W), uint8
        Grey.
    strength : float
        1: gamma of 0.4 to 2.5, half to 1.3 of the contrast, a shadow across the
        picture, blur of up to 1.2 px and noise of up to 10 grey values.
    rng : numpy.random.Generator
        Source of chance.
    """
    height, width = image.shape
    value = image.astype(np.float64) / 255.0
    blur_px = 1.2 * strength * rng.random()
    if blur_px > 0.2:
        value = np.asarray(cv2.GaussianBlur(value, (0, 0), blur_px))
    value **= float(np.exp(rng.uniform(-0.9, 0.9) * strength))
    # A smooth shadow: a step across the picture, as wide as a third of it.
    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    across = x * np.cos(angle) + y * np.sin(angle) + rng.uniform(-0.5, 0.5)
    depth = 0.7 * strength * rng.random()
    value *= 1.0 - depth / (1.0 + np.exp(-6.0 * across))
    contrast = 1.0 + strength * rng.uniform(-0.5, 0.3)
    value = (value - 0.5) * contrast + 0.5 + 0.15 * strength * rng.uniform(-1, 1)
    noise = rng.normal(size=value.shape) * 10.0 * strength * rng.random()
    return np.asarray(np.clip(np.round(value * 255.0 + noise), 0, 255), np.uint8)


VIEW, LIGHT = "viewpoint", "light"
KINDS = (VIEW, LIGHT)
"""Strong homography in mild light changes, and the other way round."""


def homography_pair(image: ByteArray, kind: str, *, seed: Sequence[int]) -> WarpedImage:
    """Return an image and another view of it, in other light.

    Also in `LIGHT` the view moves a little: pixels that stay where they are would
    favour detectors that work on a grid.

    Parameters
    ----------
    image : ndarray of shape (H, W), uint8
        Grey.
    kind : str
        One of `KINDS`.
    seed : sequence of int
        Of everything random.
    """
    rng = np.random.default_rng(seed)
    height, width = image.shape
    view, light = (1.0, 0.3) if kind == VIEW else (0.15, 1.0)
    pair = warp_image(image, *random_homography((width, height), view, rng))
    return WarpedImage(
        a=pair.a,
        b=other_light(pair.b, light, rng),
        mask_b=pair.mask_b,
        warp=pair.warp,
    )
