"""Masks: where in a picture features are unwanted. 0 = ignore, as COLMAP has them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from edgeloc.config import load_config_file
from edgeloc.errors import ConfigError
from edgeloc.geometry.camera import to_opencv_px
from edgeloc.types import BoolArray, ByteArray, CameraModel, FloatArray

DEFAULT_MARGIN_PX = 4
"""Features beside a mask describe what is under it, too."""
_SUBPIXEL_BITS = 4
_MAX_COORDINATE_PX = 1e5

Polygon = Sequence[tuple[float, float]]


def polygon_mask(polygons: Sequence[Polygon], *, size: tuple[int, int]) -> ByteArray:
    """Return the mask that ignores what is inside polygons, (H, W) uint8.

    Parameters
    ----------
    polygons : sequence of sequences of (x, y)
        Corners, px from the corner of the first pixel; at least three each.
    size : (int, int)
        Width and height of the picture, px.
    """
    mask = np.full((size[1], size[0]), 255, np.uint8)
    for polygon in polygons:
        corners = to_opencv_px(np.asarray(polygon, np.float64)) * 2**_SUBPIXEL_BITS
        cv2.fillPoly(mask, [np.rint(corners).astype(np.int32)], 0, shift=_SUBPIXEL_BITS)
    return mask


def with_margin(mask: ByteArray, margin_px: int) -> ByteArray:
    """Return a mask that ignores everything within a distance of what it ignored."""
    if margin_px <= 0:
        return mask
    side = 2 * margin_px + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    # Nothing is known to be ignored beyond the border.
    return np.asarray(
        cv2.erode(mask, disc, borderType=cv2.BORDER_CONSTANT, borderValue=255), np.uint8
    )


def joined(*masks: ByteArray | None) -> ByteArray | None:
    """Return the mask that ignores what any of them does; None for none at all."""
    known = [mask for mask in masks if mask is not None]
    if not known:
        return None
    out = known[0]
    for mask in known[1:]:
        out = np.minimum(out, mask)
    return out


def inside_image(
    pixels: FloatArray, camera: CameraModel, *, mask: ByteArray | None = None
) -> BoolArray:
    """Return which points lie in a picture, and where it is not masked, (N,) bool.

    Parameters
    ----------
    pixels : ndarray of shape (N, 2), float64
        Px; may be nan.
    camera : CameraModel
        Of the picture.
    mask : ndarray of shape (H, W), uint8, optional
        0 = ignored.
    """
    size = np.array([camera.width, camera.height])
    inside = np.all((pixels >= 0) & (pixels < size), axis=1)  # False for nan
    if mask is not None:
        x, y = pixels[inside].astype(np.int64).T
        inside[inside] = mask[y, x] > 0
    return np.asarray(inside)


def read_mask_file(path: Path) -> ByteArray:
    """Return the mask in an image file, (H, W) uint8.

    Raises
    ------
    ConfigError
        When it is none.
    """
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
    mask = cv2.imread(str(path), flags)
    if mask is None:
        state = "is not a readable image" if path.is_file() else "is missing"
        raise ConfigError(f"{path}: {state}; a mask is an image, 0 = ignore")
    return np.asarray(mask, np.uint8)


def load_polygons(path: Path) -> Mapping[str, tuple[Polygon, ...]]:
    """Return polygons by camera id, "" for those of all cameras.

    The file is TOML or JSON: ``polygons = [[[x, y], ...], ...]`` for all cameras, and
    the same under ``[cameras.ID]`` for one of them.

    Raises
    ------
    ConfigError
        When it cannot be read or says something else.
    """
    if path.suffix == ".toml":
        document: object = load_config_file(path)
    else:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except OSError as exc:
            raise ConfigError(f"{path}: cannot be read ({exc.strerror})") from exc
        except ValueError as exc:
            raise ConfigError(f"{path}: is not valid JSON ({exc})") from exc
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected polygons = [[[x, y], ...], ...]")
    cameras = document.get("cameras", {})
    if not isinstance(cameras, dict) or set(document) - {"polygons", "cameras"}:
        raise ConfigError(f"{path}: has other fields than polygons and cameras")
    found = {"": _polygons(document.get("polygons", []), f"{path}: polygons")}
    for camera_id, fields in cameras.items():
        where = f"{path}: cameras.{camera_id}.polygons"
        if not isinstance(fields, dict) or set(fields) != {"polygons"}:
            raise ConfigError(f"{where} is missing, or not alone")
        found[str(camera_id)] = _polygons(fields["polygons"], where)
    if not any(found.values()):
        raise ConfigError(f"{path}: has no polygon")
    return found


def parse_polygon(text: str) -> Polygon:
    """Return the corners of ``X,Y X,Y X,Y ...``.

    Raises
    ------
    ConfigError
        When there are fewer than three, or they are not numbers.
    """
    try:
        pairs = [tuple(map(float, corner.split(","))) for corner in text.split()]
    except ValueError:
        pairs = []
    return _polygons([[list(pair) for pair in pairs]], repr(text))[0]


def _polygons(value: object, where: str) -> tuple[Polygon, ...]:
    expected = f"{where}: expected polygons of three or more corners [x, y], px"
    if not isinstance(value, list):
        raise ConfigError(expected)
    out = []
    for polygon in value:
        try:
            corners = np.array(polygon, np.float64)
        except (TypeError, ValueError):
            corners = np.zeros((0, 0))
        if (
            corners.ndim != 2
            or corners.shape[1] != 2
            or len(corners) < 3
            or not np.all(np.abs(corners) <= _MAX_COORDINATE_PX)
        ):
            raise ConfigError(expected)
        out.append(tuple((float(x), float(y)) for x, y in corners))
    return tuple(out)


def load_static_mask(
    source: str, *, size: tuple[int, int], camera_id: str = ""
) -> ByteArray:
    """Return the mask of a camera that always sees the same of its own vehicle.

    Parameters
    ----------
    source : str
        Image file, TOML or JSON file of polygons, or ``X,Y X,Y X,Y ...``.
    size : (int, int)
        Width and height of the camera's pictures, px.
    camera_id : str
        Whose polygons are taken beside those of all cameras.

    Returns
    -------
    ndarray of shape (H, W), uint8
        0 = ignore.

    Raises
    ------
    ConfigError
        When it is none, or an image of another size.
    """
    path = Path(source)
    if path.suffix.lower() in {".toml", ".json"}:
        by_camera = load_polygons(path)
        polygons = (*by_camera[""], *by_camera.get(camera_id, ()))
        return polygon_mask(polygons, size=size)
    if "," in source and not path.exists():
        return polygon_mask([parse_polygon(source)], size=size)
    mask = read_mask_file(path)
    if mask.shape != (size[1], size[0]):
        raise ConfigError(
            f"{path}: is {mask.shape[1]}x{mask.shape[0]} px, the camera's pictures are "
            f"{size[0]}x{size[1]}; make them the same size"
        )
    return mask
