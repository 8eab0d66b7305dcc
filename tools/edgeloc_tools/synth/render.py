"""Ray casting of textured rectangles: exact colour, depth and moving-object mask.

In the camera, a point of a plane is ``z * d`` with the bearing d = (x/z, y/z, 1). The
inverse depth 1/z of a plane, and u/z and v/z of its texture coordinates, are linear in
d, so that each rectangle costs three fused multiply-adds a pixel, for any camera model
whose bearings are known, and for a rolling shutter, where the three rows of
coefficients change from image row to image row.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from edgeloc.geometry.camera import unproject
from edgeloc.types import (
    BoolArray,
    ByteArray,
    CameraModel,
    Float32Array,
    FloatArray,
    Rigid3,
)
from edgeloc_tools.synth.effects import Light
from edgeloc_tools.synth.scene import Quad, Scene
from edgeloc_tools.synth.textures import Texture

NEAR_M = 0.05
"""Nothing nearer than this is drawn."""
MIN_BEARING_Z = 0.05
"""Pixels further than 87 degrees off the axis stay black: depth runs along z."""
_NOTHING = -1


class Rendering(NamedTuple):
    """A picture and what is known about it."""

    image: ByteArray
    """(H, W, 3) uint8, BGR."""
    depth_m: Float32Array
    """(H, W), along z, 0 where there is nothing (the sky)."""
    moving: BoolArray
    """(H, W), True on moving objects."""


@dataclass(frozen=True, slots=True, eq=False)
class _Rays:
    """Bearings of the pixel centres, (x/z, y/z), nan where the lens sees nothing."""

    x: Float32Array
    y: Float32Array
    column_range: tuple[Float32Array, Float32Array]
    row_range: tuple[Float32Array, Float32Array]
    pixel: tuple[float, float]
    """Width and height of a pixel in bearing units, at the centre of the image."""


@functools.lru_cache(maxsize=8)
def _rays(camera: CameraModel, supersample: int) -> _Rays:
    height, width = camera.height * supersample, camera.width * supersample
    columns = (np.arange(width) + 0.5) / supersample
    rows = (np.arange(height) + 0.5) / supersample
    pixels = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
    bearings = unproject(camera, pixels)
    bearings[~(bearings[:, 2] > MIN_BEARING_Z)] = np.nan
    xy = (bearings[:, :2] / bearings[:, 2:]).reshape(height, width, 2)
    x = np.ascontiguousarray(xy[..., 0], dtype=np.float32)
    y = np.ascontiguousarray(xy[..., 1], dtype=np.float32)
    fx, fy = camera.focal_px
    return _Rays(
        x,
        y,
        (np.fmin.reduce(x, axis=0), np.fmax.reduce(x, axis=0)),
        (np.fmin.reduce(y, axis=1), np.fmax.reduce(y, axis=1)),
        (1.0 / (fx * supersample), 1.0 / (fy * supersample)),
    )


def _plane_rows(quad: Quad, R: FloatArray, t: FloatArray) -> FloatArray:
    """Return (u/z, v/z, 1/z) as rows of coefficients of d, (N, 3, 3), NaN if unseen.

    `R` (N, 3, 3) and `t` (N, 3) are cam_from_world.
    """
    p = quad.origin @ R.transpose(0, 2, 1) + t
    u, v = quad.edge_u @ R.transpose(0, 2, 1), quad.edge_v @ R.transpose(0, 2, 1)
    normal = np.cross(u, v)
    distance = np.einsum("ni,ni->n", normal, p)
    area = np.einsum("ni,ni->n", normal, normal)
    hidden = np.abs(distance) < 1e-9 if quad.two_sided else distance < 1e-9
    inverse_depth = normal / np.where(hidden, np.nan, distance)[:, None]
    # (u*, v*) is the basis dual to (edge_u, edge_v) in the plane.
    dual_u, dual_v = np.cross(v, normal), np.cross(normal, u)
    dual_u, dual_v = dual_u / area[:, None], dual_v / area[:, None]
    rows = [
        dual - np.einsum("ni,ni->n", dual, p)[:, None] * inverse_depth
        for dual in (dual_u, dual_v)
    ]
    return np.stack([*rows, inverse_depth], axis=1)


def _clip_near(points_in_cam: FloatArray) -> FloatArray:
    """Return the part of a polygon with z >= NEAR_M (Sutherland-Hodgman)."""
    out: list[FloatArray] = []
    for a, b in zip(points_in_cam, np.roll(points_in_cam, -1, axis=0), strict=True):
        if a[2] >= NEAR_M:
            out.append(a)
        if (a[2] >= NEAR_M) != (b[2] >= NEAR_M):
            out.append(a + (NEAR_M - a[2]) / (b[2] - a[2]) * (b - a))
    return np.array(out).reshape(-1, 3)


def _window(
    quad: Quad, poses: Sequence[Rigid3], rays: _Rays
) -> tuple[slice, slice] | None:
    """Return rows and columns outside of which the rectangle is not seen."""
    seen = [_clip_near(pose.transform(quad.corners)) for pose in poses]
    polygons = [polygon[:, :2] / polygon[:, 2:] for polygon in seen if len(polygon)]
    if not polygons:
        return None
    corners = np.concatenate(polygons)
    low, high = corners.min(axis=0), corners.max(axis=0)
    if len(poses) > 1:
        # Only some poses of a rolling shutter are looked at.
        margin = 0.02 + 0.1 * (high - low) / len(poses)
        low, high = low - margin, high + margin
    ranges = []
    for axis, (first, last) in enumerate((rays.column_range, rays.row_range)):
        inside = np.flatnonzero((last >= low[axis]) & (first <= high[axis]))
        if not len(inside):
            return None
        ranges.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return ranges[1], ranges[0]


class _Canvas:
    """The z-buffer: which rectangle is seen at each pixel, and where on it."""

    def __init__(self, rays: _Rays) -> None:
        shape = rays.x.shape
        self.rays = rays
        self.inverse_depth = np.zeros(shape, np.float32)
        self.u_over_z = np.zeros(shape, np.float32)
        self.v_over_z = np.zeros(shape, np.float32)
        self.quad_idx = np.full(shape, _NOTHING, np.int16)
        self.drawn: dict[int, tuple[Quad, FloatArray, tuple[slice, slice]]] = {}

    def _linear(
        self, coefficients: FloatArray, rows: slice, columns: slice
    ) -> Float32Array:
        x, y = self.rays.x[rows, columns], self.rays.y[rows, columns]
        if len(coefficients) == 1:
            a, b, c = (float(k) for k in coefficients[0])
            return np.asarray(cv2.addWeighted(x, a, y, b, c), dtype=np.float32)
        k = coefficients[rows].astype(np.float32)[:, :, None]
        return np.asarray(k[:, 0] * x + k[:, 1] * y + k[:, 2])

    def draw(
        self, quad_idx: int, quad: Quad, window: tuple[slice, slice], plane: FloatArray
    ) -> None:
        """Put a rectangle in, where it is nearer than what is there."""
        rows, columns = window
        iz = self._linear(plane[:, 2], rows, columns)
        uz = self._linear(plane[:, 0], rows, columns)
        vz = self._linear(plane[:, 1], rows, columns)
        nearest = self.inverse_depth[rows, columns]
        hit = (iz > nearest) & (uz >= 0) & (uz <= iz) & (vz >= 0) & (vz <= iz)
        if quad.texture.alpha is not None and hit.any():
            z = 1.0 / np.where(hit, iz, 1.0).astype(np.float32)
            height, width = quad.texture.alpha.shape
            opaque = cv2.remap(
                quad.texture.alpha,
                uz * z * np.float32(width) - np.float32(0.5),
                vz * z * np.float32(height) - np.float32(0.5),
                cv2.INTER_LINEAR,
            )
            hit &= opaque >= 128
        if not hit.any():
            return
        np.copyto(nearest, iz, where=hit)
        np.copyto(self.u_over_z[rows, columns], uz, where=hit)
        np.copyto(self.v_over_z[rows, columns], vz, where=hit)
        np.copyto(self.quad_idx[rows, columns], np.int16(quad_idx), where=hit)
        self.drawn[quad_idx] = (quad, plane, window)


def _mip_level(
    quad: Quad,
    plane: FloatArray,
    at: tuple[Float32Array, Float32Array, Float32Array],
    pixel: tuple[float, float],
) -> Float32Array:
    """Return log2 of the larger side of a pixel's footprint, in texels of level 0.

    `pixel` is the size of a pixel in bearing units.
    """
    u, v, iz = at
    middle = plane[len(plane) // 2]
    width, height = quad.texture.size_px
    square = np.float32(0.0)
    for axis in (0, 1):
        across = np.float32(0.0)
        for row, (coordinate, texels) in enumerate(
            ((u, width * quad.repeat[0]), (v, height * quad.repeat[1]))
        ):
            slope = np.float32(middle[row, axis]) - coordinate * np.float32(
                middle[2, axis]
            )
            across = across + (slope * np.float32(texels * pixel[axis])) ** 2
        square = np.maximum(square, across)
    # Half a level towards sharp: the larger side alone would blur slanted planes.
    level = 0.5 * np.log2(np.maximum(square, 1e-12)) - np.log2(iz) - 0.5
    return np.asarray(np.clip(level, 0, len(quad.texture.levels) - 1), np.float32)


def _sample(
    texture: Texture, at: tuple[Float32Array, Float32Array], level: int
) -> ByteArray:
    image = texture.levels[level]
    height, width = image.shape[:2]
    u, v = at
    x = u * np.float32(width) - np.float32(0.5)
    y = v * np.float32(height) - np.float32(0.5)
    border = cv2.BORDER_WRAP if texture.wrap else cv2.BORDER_REPLICATE
    return np.asarray(cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=border))


def _shade_quad(
    canvas: _Canvas,
    colour: Float32Array,
    quad_idx: int,
    seen: tuple[Quad, FloatArray, tuple[slice, slice]],
) -> None:
    """Write the texture of one rectangle where it is seen (trilinear filtering)."""
    quad, plane, (rows, columns) = seen
    visible = canvas.quad_idx[rows, columns] == quad_idx
    x, y, width, height = cv2.boundingRect(visible.view(np.uint8))
    if not width:
        return
    rows = slice(rows.start + y, rows.start + y + height)
    columns = slice(columns.start + x, columns.start + x + width)
    visible = visible[y : y + height, x : x + width]
    iz: Float32Array = np.where(
        visible, canvas.inverse_depth[rows, columns], np.float32(1.0)
    ).astype(np.float32, copy=False)
    u: Float32Array = np.divide(canvas.u_over_z[rows, columns], iz, dtype=np.float32)
    v: Float32Array = np.divide(canvas.v_over_z[rows, columns], iz, dtype=np.float32)
    level = _mip_level(quad, plane, (u, v, iz), canvas.rays.pixel)
    at = (u * np.float32(quad.repeat[0]), v * np.float32(quad.repeat[1]))
    seen_levels = level[visible]
    first, last = math.floor(seen_levels.min()), math.ceil(seen_levels.max())
    out = np.zeros((height, width, 3), np.float32)
    for index in range(first, last + 1):
        weight = np.maximum(0, 1 - np.abs(level - np.float32(index))) * visible
        left, top, across, down = cv2.boundingRect((weight > 0).view(np.uint8))
        if not across:
            continue
        part = (slice(top, top + down), slice(left, left + across))
        texels = _sample(quad.texture, (at[0][part], at[1][part]), index)
        scaled = weight[part] * np.float32(quad.shade)
        out[part] += texels * scaled[..., None]
    np.copyto(colour[rows, columns], out, where=visible[..., None])


def _draw_sky(
    colour: Float32Array, empty: BoolArray, sky: Texture, context: tuple[_Rays, Rigid3]
) -> None:
    rays, cam_from_world = context
    x, y, width, height = cv2.boundingRect(empty.view(np.uint8))
    if not width:
        return
    part = (slice(y, y + height), slice(x, x + width))
    R = cam_from_world.R.astype(np.float32)
    dx, dy = rays.x[part], rays.y[part]
    world = [R[0, i] * dx + R[1, i] * dy + R[2, i] for i in range(3)]
    azimuth = np.arctan2(world[1], world[0]) / np.float32(2 * math.pi) + np.float32(0.5)
    level = np.arctan2(world[2], np.hypot(world[0], world[1]))
    down = np.float32(0.5) - level / np.float32(math.pi)
    texels = _sample(sky, (azimuth, down), 0)
    np.copyto(colour[part], texels, where=empty[part][..., None], casting="unsafe")


def render(
    scene: Scene,
    camera: CameraModel,
    cam_from_world: Rigid3 | Sequence[Rigid3],
    *,
    light: Light | None = None,
    time_s: float = 0.0,
    supersample: int = 1,
) -> Rendering:
    """Return what a camera sees.

    Parameters
    ----------
    scene : Scene
        The place.
    camera : CameraModel
        Any model; all of its bearings must have z > 0.
    cam_from_world : Rigid3 or sequence of Rigid3
        The pose; a sequence is a rolling shutter, its poses those of equal bands of
        rows from the top (the pose of each row, when there are as many as rows).
        Moving objects stand still while the shutter rolls.
    light : Light, optional
        Illumination; daylight by default.
    time_s : float
        Where the moving objects are.
    supersample : int
        Rays along each side of a pixel, for smooth edges.

    Returns
    -------
    Rendering
        Depth and mask are those of the ray through the centre of the pixel, the
        picture is the mean of all its rays.

    Raises
    ------
    ValueError
        When `supersample` is below 1 or there is no pose.
    """
    poses = (
        [cam_from_world] if isinstance(cam_from_world, Rigid3) else [*cam_from_world]
    )
    if supersample < 1 or not poses:
        raise ValueError(f"{supersample=} must be >= 1, with at least one pose")
    middle = poses[len(poses) // 2]
    movers = [q for m in scene.movers for q in m.quads_at(time_s, middle)]
    quads = [*scene.quads, *movers]
    canvas = _trace(quads, poses, _rays(camera, supersample))
    # An even number of rays has none through the centre.
    exact = canvas if supersample == 1 else _trace(quads, poses, _rays(camera, 1))
    colour = _colour(canvas, scene.sky, middle)
    if light is not None:
        bearings = (canvas.rays.x, canvas.rays.y)
        light.apply(colour, bearings, canvas.inverse_depth, cam_from_world=middle)
    if supersample > 1:
        size = (camera.width, camera.height)
        colour = np.asarray(
            cv2.resize(colour, size, interpolation=cv2.INTER_AREA), dtype=np.float32
        )
    inverse_depth = exact.inverse_depth
    depth_m = np.divide(
        1.0, inverse_depth, out=np.zeros_like(inverse_depth), where=inverse_depth > 0
    )
    image = np.clip(colour + np.float32(0.5), 0, 255).astype(np.uint8)
    return Rendering(image, depth_m, exact.quad_idx >= len(scene.quads))


def _trace(quads: Sequence[Quad], poses: Sequence[Rigid3], rays: _Rays) -> _Canvas:
    """Return which rectangle is seen where."""
    num_rows = rays.x.shape[0]
    bands = np.arange(num_rows) * len(poses) // num_rows if len(poses) > 1 else [0]
    R = np.stack([pose.R for pose in poses])[bands]
    t = np.stack([pose.t for pose in poses])[bands]
    looked_at = [*poses[:: max(1, len(poses) // 8)], *poses[-1:]]
    canvas = _Canvas(rays)
    for idx, quad in enumerate(quads):
        window = _window(quad, looked_at if len(poses) > 1 else poses, rays)
        if window is None:
            continue
        plane = _plane_rows(quad, R, t)
        if not np.isnan(plane).all():
            canvas.draw(idx, quad, window, plane)
    return canvas


def _colour(
    canvas: _Canvas, sky: Texture | None, cam_from_world: Rigid3
) -> Float32Array:
    """Return the unlit picture, (H, W, 3) float32."""
    colour = np.zeros((*canvas.quad_idx.shape, 3), np.float32)
    for idx in np.unique(canvas.quad_idx):
        if idx != _NOTHING:
            _shade_quad(canvas, colour, int(idx), canvas.drawn[int(idx)])
    if sky is not None:
        empty = (canvas.quad_idx == _NOTHING) & np.isfinite(canvas.rays.x)
        _draw_sky(colour, empty, sky, (canvas.rays, cam_from_world))
    return colour
