"""Projection, its derivatives and its inverse for COLMAP's camera models.

Pixels have their origin at the corner of the first pixel (`edgeloc.types`); OpenCV has
it at the first pixel's centre. `from_opencv_px`, `to_opencv_px` and `opencv_params` are
the only places that know.

A lens model is used only where it is one-to-one: from the axis out to the first
direction at which its radial polynomial turns back. Beyond that a point far outside the
field of view would land inside the image; such points count as not in front. The
tangential terms are left out of that limit, as they are small.
"""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np
import numpy.typing as npt

from edgeloc.types import BoolArray, ByteArray, CameraModel, FloatArray

_MIN_DEPTH = 1e-9
"""Smallest depth (distance for fisheye) that is projected, in the map's unit."""

_NEWTON_ITERATIONS = 40
_NEWTON_TOLERANCE = 1e-13
"""Largest last step, in normalized units (5e-11 px at f = 500 px)."""
_UNPROJECT_TOLERANCE = 1e-9
"""Largest residual of an accepted solution, in normalized units."""


def from_opencv_px(xy: npt.ArrayLike) -> FloatArray:
    """Return pixels in the corner convention of pixels in OpenCV's centre convention.

    Parameters
    ----------
    xy : array_like of shape (..., 2)
        Pixels, (0, 0) at the centre of the first one.

    Returns
    -------
    ndarray of shape (..., 2), float64
    """
    return np.asarray(xy, dtype=np.float64) + 0.5


def to_opencv_px(xy: npt.ArrayLike) -> FloatArray:
    """Return pixels in OpenCV's centre convention of pixels in the corner convention.

    Parameters
    ----------
    xy : array_like of shape (..., 2)
        Pixels, (0, 0) at the corner of the first one.

    Returns
    -------
    ndarray of shape (..., 2), float64
    """
    return np.asarray(xy, dtype=np.float64) - 0.5


def _rational_coefficients(
    camera: CameraModel,
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, float]]:
    """Return (k1 k2 k3), (k4 k5 k6) and (p1 p2) of a perspective model."""
    d = camera.distortion
    if camera.model == "SIMPLE_RADIAL":
        return (d[0], 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0)
    if camera.model == "RADIAL":
        return (d[0], d[1], 0.0), (0.0, 0.0, 0.0), (0.0, 0.0)
    if camera.model == "OPENCV":
        return (d[0], d[1], 0.0), (0.0, 0.0, 0.0), (d[2], d[3])
    return (d[0], d[1], d[4]), (d[5], d[6], d[7]), (d[2], d[3])  # FULL_OPENCV


def _smallest_positive_root(ascending: npt.ArrayLike) -> float:
    """Return the smallest positive real root of a polynomial, inf when it has none."""
    roots = np.roots(np.trim_zeros(np.asarray(ascending, np.float64), "b")[::-1])
    real = roots.real[(np.abs(roots.imag) < 1e-9) & (roots.real > 0)]
    return float(real.min()) if real.size else math.inf


@functools.lru_cache(maxsize=64)
def _max_radius_squared(camera: CameraModel) -> float:
    """Return the squared normalized radius at which a perspective model turns back."""
    if not any(camera.distortion):
        return math.inf
    numerator_k, denominator_k, _ = _rational_coefficients(camera)
    poly = np.polynomial.polynomial
    n = np.array([1.0, *numerator_k])
    d = np.array([1.0, *denominator_k])
    # r n(s)/d(s) with s = r^2 grows while n d + 2 s (n' d - n d') > 0.
    slope = poly.polysub(
        poly.polymul(poly.polyder(n), d), poly.polymul(n, poly.polyder(d))
    )
    growth = poly.polyadd(poly.polymul(n, d), poly.polymulx(2.0 * slope))
    return min(_smallest_positive_root(growth), _smallest_positive_root(d))


@functools.lru_cache(maxsize=64)
def _max_theta_rad(camera: CameraModel) -> float:
    """Return the angle from the axis at which a fisheye model turns back, <= pi."""
    k1, k2, k3, k4 = camera.distortion
    growth = [1.0, 3.0 * k1, 5.0 * k2, 7.0 * k3, 9.0 * k4]
    return min(math.pi, math.sqrt(_smallest_positive_root(growth)))


def _theta_distorted(camera: CameraModel, theta: FloatArray) -> FloatArray:
    k1, k2, k3, k4 = camera.distortion
    t2 = theta * theta
    return np.asarray(theta * (1.0 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4)))))


def _theta_slope(camera: CameraModel, theta: FloatArray) -> FloatArray:
    k1, k2, k3, k4 = camera.distortion
    t2 = theta * theta
    return np.asarray(1.0 + t2 * (3 * k1 + t2 * (5 * k2 + t2 * (7 * k3 + t2 * 9 * k4))))


_Distorted = tuple[FloatArray, FloatArray]
_Slopes = tuple[FloatArray, FloatArray, FloatArray]


def _distort(
    camera: CameraModel, x: FloatArray, y: FloatArray, r2: FloatArray
) -> _Distorted:
    """Return the distorted normalized coordinates of a perspective model."""
    (k1, k2, k3), (k4, k5, k6), (p1, p2) = _rational_coefficients(camera)
    radial = 1.0 + r2 * (k1 + r2 * (k2 + r2 * k3))
    if k4 or k5 or k6:
        radial = radial / (1.0 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    if not (p1 or p2):
        return radial * x, radial * y
    xy = x * y
    return (
        radial * x + 2.0 * p1 * xy + p2 * (r2 + 2.0 * x * x),
        radial * y + 2.0 * p2 * xy + p1 * (r2 + 2.0 * y * y),
    )


def _distort_slopes(
    camera: CameraModel, x: FloatArray, y: FloatArray, r2: FloatArray
) -> tuple[_Distorted, _Slopes]:
    """Return `_distort` and its derivatives d xd/dx, d xd/dy = d yd/dx, d yd/dy."""
    (k1, k2, k3), (k4, k5, k6), (p1, p2) = _rational_coefficients(camera)
    radial = 1.0 + r2 * (k1 + r2 * (k2 + r2 * k3))
    slope = k1 + r2 * (2.0 * k2 + r2 * (3.0 * k3))  # d radial / d r2
    if k4 or k5 or k6:
        inverse = 1.0 / (1.0 + r2 * (k4 + r2 * (k5 + r2 * k6)))
        radial = radial * inverse
        slope = (slope - radial * (k4 + r2 * (2.0 * k5 + r2 * (3.0 * k6)))) * inverse
    slope2 = 2.0 * slope
    xx, xy, yy = x * x, x * y, y * y
    x_x, x_y, y_y = radial + slope2 * xx, slope2 * xy, radial + slope2 * yy
    x_d, y_d = radial * x, radial * y
    if p1 or p2:
        x_d = x_d + 2.0 * p1 * xy + p2 * (r2 + 2.0 * xx)
        y_d = y_d + 2.0 * p2 * xy + p1 * (r2 + 2.0 * yy)
        x_x = x_x + 2.0 * p1 * y + 6.0 * p2 * x
        x_y = x_y + 2.0 * p1 * x + 2.0 * p2 * y
        y_y = y_y + 2.0 * p2 * x + 6.0 * p1 * y
    return (x_d, y_d), (x_x, x_y, y_y)


def _perspective(
    camera: CameraModel, points: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, BoolArray]:
    """Return x/z, y/z, 1/z, r^2 and which points can be seen."""
    z = points[:, 2]
    in_front = z > _MIN_DEPTH
    # Anything finite will do behind the camera: those pixels become nan.
    inverse_z = 1.0 / np.where(in_front, z, 1.0)
    x = points[:, 0] * inverse_z
    y = points[:, 1] * inverse_z
    r2 = x * x + y * y
    in_front &= r2 < _max_radius_squared(camera)
    return x, y, inverse_z, r2, in_front


def _as_points(points_in_cam: npt.ArrayLike) -> FloatArray:
    points = np.asarray(points_in_cam, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"{points.shape=} but expected (N, 3)")
    return points


@np.errstate(invalid="ignore", over="ignore")
def project(
    camera: CameraModel, points_in_cam: npt.ArrayLike
) -> tuple[FloatArray, BoolArray]:
    """Return where a camera sees points.

    Whether a pixel lies inside the image is not looked at.

    Parameters
    ----------
    camera : CameraModel
        Intrinsics.
    points_in_cam : array_like of shape (N, 3)
        Points in the camera frame.

    Returns
    -------
    pixels : ndarray of shape (N, 2), float64
        Px, corner convention; nan where not in front.
    in_front : ndarray of shape (N,), bool
        Whether a point is in front of the camera (at any angle up to pi for a fisheye)
        and within the range in which the lens model is one-to-one.

    Raises
    ------
    ValueError
        When the points are not (N, 3).
    """
    points = _as_points(points_in_cam)
    fx, fy = camera.focal_px
    cx, cy = camera.principal_point_px
    pixels = np.empty((len(points), 2))
    if camera.model == "OPENCV_FISHEYE":
        x, y = points[:, 0], points[:, 1]
        radius = np.hypot(x, y)
        theta = np.arctan2(radius, points[:, 2])
        in_front = (theta < _max_theta_rad(camera)) & (
            np.hypot(radius, points[:, 2]) > _MIN_DEPTH
        )
        scale = _fisheye_scale(camera, radius, theta, points[:, 2])
        x_d, y_d = x * scale, y * scale
    else:
        x_d, y_d, _, r2, in_front = _perspective(camera, points)
        if camera.distortion:
            x_d, y_d = _distort(camera, x_d, y_d, r2)
    np.multiply(x_d, fx, out=pixels[:, 0])
    np.multiply(y_d, fy, out=pixels[:, 1])
    pixels += (cx, cy)
    pixels[~in_front] = np.nan
    return pixels, in_front


def _fisheye_scale(
    camera: CameraModel, radius: FloatArray, theta: FloatArray, z: FloatArray
) -> FloatArray:
    """Return theta_d / radius, 1/z on the axis."""
    on_axis = radius < 1e-9 * np.abs(z)
    safe_radius = np.where(on_axis | (radius == 0), 1.0, radius)
    inverse_z = 1.0 / np.where(z == 0, 1.0, z)
    return np.where(on_axis, inverse_z, _theta_distorted(camera, theta) / safe_radius)


@np.errstate(invalid="ignore", over="ignore")
def project_with_jacobian(
    camera: CameraModel, points_in_cam: npt.ArrayLike
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Return `project` and its derivative with respect to the points.

    Parameters
    ----------
    camera : CameraModel
        Intrinsics.
    points_in_cam : array_like of shape (N, 3)
        Points in the camera frame.

    Returns
    -------
    pixels : ndarray of shape (N, 2), float64
        As `project` gives them.
    jac : ndarray of shape (N, 2, 3), float64
        d pixel / d point, px per unit of the map; nan where not in front.
    in_front : ndarray of shape (N,), bool
        As `project` gives it.

    Raises
    ------
    ValueError
        When the points are not (N, 3).
    """
    points = _as_points(points_in_cam)
    if camera.model == "OPENCV_FISHEYE":
        pixels, in_front = project(camera, points)
        jac = _fisheye_jacobian(camera, points)
    else:
        fx, fy = camera.focal_px
        cx, cy = camera.principal_point_px
        x, y, inverse_z, r2, in_front = _perspective(camera, points)
        pixels = np.empty((len(points), 2))
        jac = np.empty((len(points), 2, 3))
        fx_z, fy_z = fx * inverse_z, fy * inverse_z
        if camera.distortion:
            (x_d, y_d), (x_x, x_y, y_y) = _distort_slopes(camera, x, y, r2)
            jac[:, 0, 0], jac[:, 0, 1] = fx_z * x_x, fx_z * x_y
            jac[:, 1, 0], jac[:, 1, 1] = fy_z * x_y, fy_z * y_y
            jac[:, 0, 2] = -fx_z * (x_x * x + x_y * y)
            jac[:, 1, 2] = -fy_z * (x_y * x + y_y * y)
        else:
            x_d, y_d = x, y
            jac[:, 0, 0], jac[:, 0, 1] = fx_z, 0.0
            jac[:, 1, 0], jac[:, 1, 1] = 0.0, fy_z
            jac[:, 0, 2] = -fx_z * x
            jac[:, 1, 2] = -fy_z * y
        np.multiply(x_d, fx, out=pixels[:, 0])
        np.multiply(y_d, fy, out=pixels[:, 1])
        pixels += (cx, cy)
        pixels[~in_front] = np.nan
    jac[~in_front] = np.nan
    return pixels, jac, in_front


def _fisheye_jacobian(camera: CameraModel, points: FloatArray) -> FloatArray:
    """Return d pixel / d point; u = (x, y) theta_d / radius."""
    fx, fy = camera.focal_px
    x, y, z = points[:, 0], points[:, 1], points[:, 2]
    radius = np.hypot(x, y)
    theta = np.arctan2(radius, z)
    scale = _fisheye_scale(camera, radius, theta, z)
    squared = radius * radius + z * z
    squared = np.where(squared == 0, 1.0, squared)
    slope = _theta_slope(camera, theta)
    # d theta = (z d radius - radius d z) / squared. On the axis the radial slope
    # z slope / squared equals the scale, and the direction (x, y) / radius is moot.
    safe_radius = np.where(radius == 0, 1.0, radius)
    ex, ey = x / safe_radius, y / safe_radius
    stretch = slope * z / squared - scale
    d_z = -slope / squared
    jac = np.empty((len(points), 2, 3))
    jac[:, 0, 0] = fx * (scale + stretch * ex * ex)
    jac[:, 0, 1] = fx * stretch * ex * ey
    jac[:, 0, 2] = fx * d_z * x
    jac[:, 1, 0] = fy * stretch * ex * ey
    jac[:, 1, 1] = fy * (scale + stretch * ey * ey)
    jac[:, 1, 2] = fy * d_z * y
    return jac


def _undistort(camera: CameraModel, x_d: FloatArray, y_d: FloatArray) -> FloatArray:
    """Return undistorted normalized coordinates (N, 2), nan where there are none.

    Newton's method; a step that makes the residual grow or leaves the one-to-one range
    is halved. From the distorted point it walks to the solution monotonically for
    barrel and for pincushion lenses alike, since the radial curve bends one way.
    """
    limit = _max_radius_squared(camera)
    if math.isfinite(limit):
        # Pixels clearly beyond the image of the one-to-one range have no solution and
        # would keep all others iterating; 5 % leave room for the tangential terms.
        edge = np.array([math.sqrt(limit)])
        reach = 1.05 * float(_distort(camera, edge, 0.0 * edge, edge * edge)[0][0])
        unreachable = _sq(x_d, y_d) > reach * reach
        x_d = np.where(unreachable, np.nan, x_d)
    # The start has to lie inside the one-to-one range.
    shrink = np.minimum(1.0, np.sqrt(0.8 * limit / np.maximum(_sq(x_d, y_d), 1e-300)))
    out = np.stack([x_d * shrink, y_d * shrink], axis=1)
    errors = np.full(len(out), np.nan)
    active = np.flatnonzero(np.isfinite(out).all(axis=1))
    target = np.stack([x_d, y_d], axis=1)
    step = np.ones(len(out))
    for _ in range(_NEWTON_ITERATIONS):
        if not active.size:
            break
        x, y = out[active, 0], out[active, 1]
        (fx, fy), (a, b, c) = _distort_slopes(camera, x, y, _sq(x, y))
        ex, ey = target[active, 0] - fx, target[active, 1] - fy
        errors[active] = error = _sq(ex, ey)
        det = a * c - b * b
        factor = step[active] / np.where(np.abs(det) < 1e-12, 1e-12, det)
        dx, dy = factor * (c * ex - b * ey), factor * (a * ey - b * ex)
        x, y = x + dx, y + dy
        r2 = _sq(x, y)
        fx, fy = _distort(camera, x, y, r2)
        better = (r2 < limit) & (
            _sq(target[active, 0] - fx, target[active, 1] - fy) <= error
        )
        out[active[better], 0] = x[better]
        out[active[better], 1] = y[better]
        step[active] = np.where(
            better, np.minimum(1.0, 2.0 * step[active]), 0.5 * step[active]
        )
        active = active[np.abs(dx) + np.abs(dy) > _NEWTON_TOLERANCE]
    out[~(errors < _UNPROJECT_TOLERANCE**2)] = np.nan
    return out


def _sq(x: FloatArray, y: FloatArray) -> FloatArray:
    return np.asarray(x * x + y * y)


def _theta_from_distorted(camera: CameraModel, theta_d: FloatArray) -> FloatArray:
    """Return the angles from the axis, nan where no direction is seen there.

    Newton's method inside a bracket, halved where a step leaves it.
    """
    low = np.zeros_like(theta_d)
    high = np.full_like(theta_d, _max_theta_rad(camera))
    reachable = theta_d <= _theta_distorted(camera, high)
    theta = np.minimum(theta_d, 0.9 * high)
    for _ in range(_NEWTON_ITERATIONS):
        residual = _theta_distorted(camera, theta) - theta_d
        low = np.where(residual < 0, theta, low)
        high = np.where(residual > 0, theta, high)
        slope = np.maximum(_theta_slope(camera, theta), 1e-12)
        moved = theta - residual / slope
        moved = np.where((moved < low) | (moved > high), 0.5 * (low + high), moved)
        change = np.abs(moved - theta)
        theta = moved
        if not np.any(change[reachable] > _NEWTON_TOLERANCE):
            break
    return np.where(reachable, theta, np.nan)


def _as_pixels(pixels: npt.ArrayLike) -> FloatArray:
    out = np.asarray(pixels, dtype=np.float64)
    if out.ndim != 2 or out.shape[1] != 2:
        raise ValueError(f"pixels have shape {out.shape} but expected (N, 2)")
    return out


def _distorted_from_pixels(
    camera: CameraModel, pixels: npt.ArrayLike
) -> tuple[FloatArray, FloatArray]:
    px = _as_pixels(pixels)
    fx, fy = camera.focal_px
    cx, cy = camera.principal_point_px
    return (px[:, 0] - cx) / fx, (px[:, 1] - cy) / fy


@np.errstate(invalid="ignore", over="ignore")
def unproject(camera: CameraModel, pixels: npt.ArrayLike) -> FloatArray:
    """Return the directions in which a camera sees pixels.

    Parameters
    ----------
    camera : CameraModel
        Intrinsics.
    pixels : array_like of shape (N, 2)
        Px, corner convention.

    Returns
    -------
    ndarray of shape (N, 3), float64
        Unit vectors in the camera frame. nan where the pixel is not finite or no
        direction in the one-to-one range of the lens model is seen there.

    Raises
    ------
    ValueError
        When the pixels are not (N, 2).
    """
    if camera.model == "OPENCV_FISHEYE":
        x_d, y_d = _distorted_from_pixels(camera, pixels)
        theta_d = np.hypot(x_d, y_d)
        theta = _theta_from_distorted(camera, theta_d)
        scale = np.sin(theta) / np.where(theta_d == 0, 1.0, theta_d)
        return np.stack([x_d * scale, y_d * scale, np.cos(theta)], axis=1)
    xy = normalized_from_pixels(camera, pixels)
    bearings = np.ones((len(xy), 3))
    bearings[:, :2] = xy
    bearings /= np.sqrt(1.0 + _sq(xy[:, 0], xy[:, 1]))[:, None]
    return bearings


@np.errstate(invalid="ignore", over="ignore")
def normalized_from_pixels(camera: CameraModel, pixels: npt.ArrayLike) -> FloatArray:
    """Return undistorted coordinates in the plane z = 1.

    Parameters
    ----------
    camera : CameraModel
        Intrinsics.
    pixels : array_like of shape (N, 2)
        Px, corner convention.

    Returns
    -------
    ndarray of shape (N, 2), float64
        x/z and y/z of `unproject`; nan where that is nan or does not point forward.

    Raises
    ------
    ValueError
        When the pixels are not (N, 2).
    """
    if camera.model == "OPENCV_FISHEYE":
        bearings = unproject(camera, pixels)
        z = bearings[:, 2:]
        return bearings[:, :2] / np.where(z > 1e-6, z, np.nan)
    x_d, y_d = _distorted_from_pixels(camera, pixels)
    if any(camera.distortion):
        return _undistort(camera, x_d, y_d)
    return np.stack([x_d, y_d], axis=1)


def camera_matrix(camera: CameraModel) -> FloatArray:
    """Return K, the principal point in the corner convention.

    Returns
    -------
    ndarray of shape (3, 3), float64
    """
    fx, fy = camera.focal_px
    cx, cy = camera.principal_point_px
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def opencv_params(camera: CameraModel) -> tuple[FloatArray, FloatArray]:
    """Return what OpenCV's functions take for a camera.

    Parameters
    ----------
    camera : CameraModel
        Intrinsics. An OPENCV_FISHEYE one is for the functions in ``cv2.fisheye``.

    Returns
    -------
    K : ndarray of shape (3, 3), float64
        Camera matrix for pixels in OpenCV's centre convention.
    distortion : ndarray of shape (4,) or (8,), float64
        k1 k2 k3 k4 for a fisheye; k1 k2 p1 p2 or k1 k2 p1 p2 k3 k4 k5 k6 otherwise.
    """
    K = camera_matrix(camera)
    K[:2, 2] = to_opencv_px(K[:2, 2])
    if camera.model in {"OPENCV", "OPENCV_FISHEYE", "FULL_OPENCV"}:
        return K, np.array(camera.distortion)
    return K, np.array([*camera.distortion, 0.0, 0.0, 0.0, 0.0][:4])


def undistort_image(
    camera: CameraModel, image: ByteArray
) -> tuple[ByteArray, CameraModel]:
    """Return an image as a pinhole camera with the same K and size would have taken it.

    Parameters
    ----------
    camera : CameraModel
        What took the image.
    image : ndarray of shape (height, width) or (height, width, 3), uint8
        The image; black where the pinhole camera looks past it.

    Returns
    -------
    image : ndarray, uint8
        Of the same shape.
    camera : CameraModel
        The PINHOLE camera.

    Raises
    ------
    ValueError
        When image and camera differ in size.
    """
    if image.shape[:2] != (camera.height, camera.width):
        raise ValueError(
            f"image is {image.shape[1]}x{image.shape[0]} but the camera "
            f"{camera.width}x{camera.height}: scale the camera or the image"
        )
    pinhole = CameraModel(
        model="PINHOLE",
        width=camera.width,
        height=camera.height,
        params=(*camera.focal_px, *camera.principal_point_px),
    )
    if not any(camera.distortion) and camera.model != "OPENCV_FISHEYE":
        return image.copy(), pinhole
    map_x, map_y = _undistort_maps(camera, pinhole)
    out = cv2.remap(image, map_x, map_y, cv2.INTER_LINEAR)
    return np.asarray(out, dtype=np.uint8), pinhole


@functools.lru_cache(maxsize=4)
def _undistort_maps(
    camera: CameraModel, pinhole: CameraModel
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return where each pixel of the pinhole camera comes from, OpenCV's convention."""
    rows, columns = np.mgrid[: camera.height, : camera.width]
    centres = from_opencv_px(np.stack([columns.ravel(), rows.ravel()], axis=1))
    directions = unproject(pinhole, centres)
    sources, _ = project(camera, directions)
    # A coordinate far outside makes cv2.remap write its border value.
    sources = np.nan_to_num(to_opencv_px(sources), nan=-1e4)
    maps = sources.astype(np.float32).reshape(camera.height, camera.width, 2)
    return np.ascontiguousarray(maps[..., 0]), np.ascontiguousarray(maps[..., 1])


def scaled_camera(
    camera: CameraModel, scale_x: float, scale_y: float, *, width: int, height: int
) -> CameraModel:
    """Return the camera of a resized image.

    Exact in the corner convention, where resizing multiplies coordinates.

    Parameters
    ----------
    camera : CameraModel
        Of the original image.
    scale_x, scale_y : float
        New size over old size. When they differ, a model with one focal length becomes
        the equivalent one with two.
    width, height : int
        Size of the resized image, px.

    Returns
    -------
    CameraModel

    Raises
    ------
    ValueError
        When a scale is not positive.
    """
    if not (scale_x > 0 and scale_y > 0):
        raise ValueError(f"scales must be > 0, got {scale_x} and {scale_y}")
    fx, fy = camera.focal_px
    cx, cy = camera.principal_point_px
    model, distortion = camera.model, camera.distortion
    if camera.has_single_focal and scale_x == scale_y:
        params = (fx * scale_x, cx * scale_x, cy * scale_y, *distortion)
        return CameraModel(model=model, width=width, height=height, params=params)
    if camera.has_single_focal:
        model = "PINHOLE" if model == "SIMPLE_PINHOLE" else "OPENCV"
        if model == "OPENCV":
            distortion = (*distortion, 0.0, 0.0, 0.0)[:4]
    params = (fx * scale_x, fy * scale_y, cx * scale_x, cy * scale_y, *distortion)
    return CameraModel(model=model, width=width, height=height, params=params)
