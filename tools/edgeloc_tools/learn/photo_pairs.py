"""Training pairs out of single photos: two views of a plane picture, in other light."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from edgeloc.errors import DatasetError
from edgeloc.types import BoolArray, ByteArray, Float32Array, FloatArray
from edgeloc_tools.learn.corners import Corners, corners_in_view, find_corners
from edgeloc_tools.learn.photometric import change_picture, random_grey

_SUFFIXES = {".jpg", ".jpeg", ".png"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewOptions:
    """How a view of a photo is drawn.

    Parameters
    ----------
    width, height : int
        Of a view, px.
    max_log_zoom : float
        Natural logarithm of the largest magnification and reduction.
    rotation_sigma_deg : float
        Of most views.
    any_rotation : float
        Share of views that are turned by anything up to `max_rotation_deg`.
    max_rotation_deg : float
        See `any_rotation`.
    tilt : float
        Largest shift of a view's corners, of its size.
    shift : float
        Largest shift of a view's centre, of the photo's size.
    strength : float
        Of the strongest changes of light, 0 to 1.
    """

    width: int = 320
    height: int = 240
    max_log_zoom: float = 0.5
    rotation_sigma_deg: float = 15.0
    any_rotation: float = 0.15
    max_rotation_deg: float = 60.0
    tilt: float = 0.16
    shift: float = 0.13
    strength: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two views with known correspondences.

    Parameters
    ----------
    images : ndarray of shape (2, H, W), float32
        Grey in [0, 1].
    points : ndarray of shape (2, N, 2), float32
        Corresponding points, px, corner convention.
    valid : ndarray of shape (N,), bool
        Whether a row of `points` is one, and not filled up.
    """

    images: Float32Array
    points: Float32Array
    valid: BoolArray


def list_photos(folder: Path) -> list[Path]:
    """Return the photos of a folder, by name.

    Raises
    ------
    DatasetError
        When there are none.
    """
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES)
    if not paths:
        raise DatasetError(f"{folder}: holds no photo (.jpg, .png)")
    return paths


def training_photos(paths: Sequence[Path]) -> list[Path]:
    """Return nine of ten photos; the others are kept for evaluation."""
    return [path for idx, path in enumerate(paths) if idx % 10 != 7]


@dataclass(frozen=True, slots=True, kw_only=True)
class Photo:
    """A photo in memory and its corners."""

    image: ByteArray
    corners: Corners


def load_photo(path: Path, *, max_side_px: int = 640) -> Photo:
    """Read a photo and find its corners.

    Raises
    ------
    DatasetError
        When the file is not a picture.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DatasetError(f"{path}: is not a picture that OpenCV reads")
    longest = max(image.shape[:2])
    if longest > max_side_px:
        zoom = max_side_px / longest
        image = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
    pixels = np.asarray(image, np.uint8)
    grey = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), np.uint8)
    return Photo(image=pixels, corners=find_corners(grey))


def photo_pair(
    photo: Photo, rng: np.random.Generator, *, options: ViewOptions, num_points: int
) -> Pair:
    """Return two random views of a photo.

    Parameters
    ----------
    photo : Photo
        Source.
    rng : Generator
        What is drawn from.
    options : ViewOptions
        How views are drawn.
    num_points : int
        Rows of `Pair.points`.
    """
    images, views = photo_views(photo, rng, options=options)
    corners = corners_in_view(
        photo.corners,
        np.asarray(np.linalg.inv(views[0]), np.float64),
        width=options.width,
        height=options.height,
    )
    b_from_a = np.linalg.inv(views[1]) @ views[0]

    def into_b(at_a: FloatArray) -> tuple[FloatArray, BoolArray]:
        return map_points(b_from_a, at_a)

    points, valid = draw_correspondences(
        corners, into_b, rng, options=options, num_points=num_points
    )
    return Pair(images=images, points=points, valid=valid)


def photo_views(
    photo: Photo, rng: np.random.Generator, *, options: ViewOptions
) -> tuple[Float32Array, list[FloatArray]]:
    """Return two random views of a photo in different light.

    Returns
    -------
    images : ndarray of shape (2, H, W), float32
        Grey in [0, 1].
    image_from_view : list of two ndarray of shape (3, 3), float64
        Homographies, corner convention.
    """
    mirrored = rng.random() < 0.5
    images, views = [], []
    for _ in range(2):
        views.append(random_view(photo.image, rng, options, mirrored=mirrored))
        images.append(take_view(photo.image, views[-1], rng, options))
    return np.stack(images), views


def map_points(
    b_from_a: FloatArray, points: FloatArray
) -> tuple[FloatArray, BoolArray]:
    """Return points under a homography and which of them lie in front of it."""
    mapped = np.c_[points, np.ones(len(points))] @ b_from_a.T
    in_front = mapped[:, 2] > 1e-6
    return mapped[:, :2] / np.where(in_front, mapped[:, 2], 1.0)[:, None], in_front


def random_view(
    image: ByteArray,
    rng: np.random.Generator,
    options: ViewOptions,
    *,
    mirrored: bool = False,
) -> FloatArray:
    """Return where a random view looks: image_from_view, (3, 3), corner convention."""
    width, height = options.width, options.height
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    # Photos are larger or smaller than a view: a zoom of 1 shows most of one.
    fit = min(image.shape[1] / width, image.shape[0] / height)
    zoom = min(fit, 1.25) * np.exp(rng.uniform(-1, 1) * options.max_log_zoom)
    if rng.random() < options.any_rotation:
        angle = np.deg2rad(options.max_rotation_deg) * rng.uniform(-1, 1)
    else:
        angle = np.deg2rad(options.rotation_sigma_deg) * rng.standard_normal()
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shape = np.array([width, height])
    moved = (corners - shape / 2) * zoom @ turn.T
    moved += rng.uniform(-1, 1, (4, 2)) * options.tilt * shape * zoom
    room = np.array([image.shape[1], image.shape[0]])
    moved += room / 2 + rng.uniform(-1, 1, 2) * options.shift * room
    image_from_view = np.asarray(
        cv2.getPerspectiveTransform(
            corners.astype(np.float32), moved.astype(np.float32)
        ),
        np.float64,
    )
    if mirrored:
        mirror = np.diag([-1.0, 1.0, 1.0])
        mirror[0, 2] = image.shape[1]
        image_from_view = mirror @ image_from_view
    return image_from_view


def take_view(
    image: ByteArray,
    image_from_view: FloatArray,
    rng: np.random.Generator,
    options: ViewOptions,
) -> Float32Array:
    """Return a view of an image in some other light, (H, W), grey in [0, 1]."""
    view = _warp(image, image_from_view, width=options.width, height=options.height)
    strength = options.strength * rng.uniform(0.2, 1.0)
    return change_picture(random_grey(view, rng), rng, strength=strength)


def _warp(
    image: ByteArray, image_from_view: FloatArray, *, width: int, height: int
) -> ByteArray:
    """Return a view of an image, without aliasing."""
    centre = image_from_view @ np.array([width / 2, height / 2, 1.0])
    area = np.abs(np.linalg.det(image_from_view)) / np.abs(centre[2]) ** 3
    reduction = float(np.sqrt(area))
    if reduction > 1.3:
        smaller = cv2.resize(
            image,
            None,
            fx=1 / reduction,
            fy=1 / reduction,
            interpolation=cv2.INTER_AREA,
        )
        image_from_view = (
            np.diag(
                [
                    smaller.shape[1] / image.shape[1],
                    smaller.shape[0] / image.shape[0],
                    1,
                ]
            )
            @ image_from_view
        )
        image = np.asarray(smaller, np.uint8)
    half = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    centres = np.linalg.inv(half) @ image_from_view @ half
    return np.asarray(
        cv2.warpPerspective(
            image,
            centres,
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        ),
        np.uint8,
    )


def draw_correspondences(
    corners: FloatArray,
    b_from_a: Callable[[FloatArray], tuple[FloatArray, BoolArray]],
    rng: np.random.Generator,
    *,
    options: ViewOptions,
    num_points: int,
) -> tuple[Float32Array, BoolArray]:
    """Return points that both views show: near corners and anywhere, half each.

    Parameters
    ----------
    corners : ndarray of shape (M, 2), float64
        Of view A, px.
    b_from_a : callable
        Maps points (N, 2) of view A; returns them in view B and which are seen there.
    rng : Generator
        What is drawn from.
    options : ViewOptions
        Size of the views.
    num_points : int
        Rows of the result.

    Returns
    -------
    points : ndarray of shape (2, num_points, 2), float32
        In A and in B, px, corner convention.
    valid : ndarray of shape (num_points,), bool
        Whether a row is a correspondence, and not filled up.
    """
    size = np.array([options.width, options.height], np.float64)
    near = corners[rng.permutation(len(corners))[:num_points]]
    near = near + rng.uniform(-1.0, 1.0, near.shape)
    anywhere = rng.uniform(0.0, 1.0, (2 * num_points, 2)) * size

    def shown(points: FloatArray) -> tuple[FloatArray, FloatArray]:
        there, seen = b_from_a(points)
        ok = seen & np.all((points > 3) & (points < size - 3), axis=1)
        ok &= np.all((there > 3) & (there < size - 3), axis=1)
        return points[ok], there[ok]

    near_a, near_b = shown(near)
    any_a, any_b = shown(anywhere)
    half = num_points // 2
    a = np.concatenate([near_a[:half], any_a])[:num_points]
    b = np.concatenate([near_b[:half], any_b])[:num_points]
    points = np.zeros((2, num_points, 2), np.float32)
    points[0, : len(a)], points[1, : len(b)] = a, b
    return points, np.arange(num_points) < len(a)
