"""Projection, derivatives and inverse of all camera models."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from geometry_cases import CAMERAS

from edgeloc.geometry.camera import (
    camera_matrix,
    from_opencv_px,
    normalized_from_pixels,
    opencv_params,
    project,
    project_with_jacobian,
    scaled_camera,
    to_opencv_px,
    undistort_image,
    unproject,
)
from edgeloc.types import CAMERA_MODEL_NUM_PARAMS, CameraModel

all_cameras = pytest.mark.parametrize("camera", CAMERAS.values(), ids=CAMERAS.keys())


def points_in_view(camera: CameraModel, rng: np.random.Generator, n: int = 200):
    size = (camera.width, camera.height)
    pixels = rng.uniform((0, 0), size, (n, 2))
    return unproject(camera, pixels) * rng.uniform(0.5, 20.0, (n, 1))


def test_every_model_is_among_the_cases():
    assert {c.model for c in CAMERAS.values()} == set(CAMERA_MODEL_NUM_PARAMS)


@all_cameras
def test_project_undoes_unproject_over_the_whole_image(camera):
    columns = np.linspace(0, camera.width, 61)
    rows = np.linspace(0, camera.height, 61)
    pixels = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
    bearings = unproject(camera, pixels)
    np.testing.assert_allclose(np.linalg.norm(bearings, axis=1), 1.0, atol=1e-12)
    projected, in_front = project(camera, 3.7 * bearings)
    assert in_front.all()
    np.testing.assert_allclose(projected, pixels, rtol=0, atol=1e-8)


@all_cameras
def test_project_undoes_unproject_at_the_principal_point(camera):
    offsets = 1e-6 * np.array([[0, 0], [1, 0], [0, 1], [-1, 0], [1, -1]])
    pixels = np.array(camera.principal_point_px) + offsets
    bearings = unproject(camera, pixels)
    np.testing.assert_allclose(
        bearings[:, :2], offsets / camera.focal_px, rtol=1e-4, atol=1e-15
    )
    projected, in_front = project(camera, bearings)
    assert in_front.all()
    np.testing.assert_allclose(projected, pixels, rtol=0, atol=1e-10)


@all_cameras
def test_jacobian_is_the_central_difference(camera, rng):
    points = points_in_view(camera, rng)
    points[0] = (0.0, 0.0, 2.0)
    points[1] = (1e-7, -1e-7, 2.0)
    pixels, jac, in_front = project_with_jacobian(camera, points)
    assert in_front.all()
    np.testing.assert_allclose(pixels, project(camera, points)[0], atol=1e-9)
    step = 1e-6
    for axis, direction in enumerate(np.eye(3)):
        ahead, _ = project(camera, points + step * direction)
        behind, _ = project(camera, points - step * direction)
        expected = (ahead - behind) / (2.0 * step)
        scale = np.linalg.norm(jac, axis=(1, 2))[:, None]
        assert np.max(np.abs(jac[:, :, axis] - expected) / scale) < 1e-5


@all_cameras
def test_project_agrees_with_opencv(camera, rng):
    points = points_in_view(camera, rng)
    points = points[points[:, 2] > 0.05]
    K, distortion = opencv_params(camera)
    module = cv2.fisheye if camera.model == "OPENCV_FISHEYE" else cv2
    centre_px, _ = module.projectPoints(
        points[:, None], np.zeros(3), np.zeros(3), K, distortion
    )
    np.testing.assert_allclose(
        project(camera, points)[0], from_opencv_px(centre_px[:, 0]), atol=1e-6
    )


@all_cameras
def test_normalized_coordinates_are_the_bearings_on_the_plane(camera, rng):
    pixels = rng.uniform((0, 0), (camera.width, camera.height), (100, 2))
    bearings = unproject(camera, pixels)
    plane = normalized_from_pixels(camera, pixels)
    ahead = bearings[:, 2] > 1e-3
    assert ahead.mean() > 0.8
    np.testing.assert_allclose(
        plane[ahead], bearings[ahead, :2] / bearings[ahead, 2:], rtol=1e-10
    )


def test_normalized_coordinates_of_what_looks_backwards_are_nan():
    camera = CAMERAS["fisheye_tumvi"]
    wide = np.array([[254.932 + 190.978 * 1.7, 256.897]])
    assert unproject(camera, wide)[0, 2] < 0
    assert np.isnan(normalized_from_pixels(camera, wide)).all()


@all_cameras
def test_points_behind_are_not_seen(camera):
    points = np.array([[0.1, 0.2, -3.0], [0.0, 0.0, 0.0], [0.1, 0.2, 3.0]])
    pixels, jac, in_front = project_with_jacobian(camera, points)
    if camera.model == "OPENCV_FISHEYE":
        # A fisheye sees almost all directions, but never the camera's own centre.
        assert in_front.tolist()[1:] == [False, True]
    else:
        assert in_front.tolist() == [False, False, True]
    assert np.isnan(pixels[~in_front]).all()
    assert np.isnan(jac[~in_front]).all()
    assert np.isfinite(pixels[in_front]).all()


def test_an_ideal_fisheye_sees_almost_straight_back():
    camera = CameraModel(
        model="OPENCV_FISHEYE",
        width=800,
        height=800,
        params=(100.0, 100.0, 400.0, 400.0, 0.0, 0.0, 0.0, 0.0),
    )
    theta = np.array([0.5, np.pi / 2, 3.0])
    points = np.stack([np.sin(theta), 0 * theta, np.cos(theta)], axis=1)
    pixels, in_front = project(camera, points)
    assert in_front.all()
    np.testing.assert_allclose(pixels[:, 0], 400.0 + 100.0 * theta, atol=1e-9)
    np.testing.assert_allclose(unproject(camera, pixels), points, atol=1e-9)


def test_a_point_beyond_the_fold_of_the_lens_is_not_seen():
    """r (1 - 0.2 r^2) turns back at r = 1.29; r = 2 would land at 0.4, in the image."""
    camera = CAMERAS["simple_radial"]
    _, in_front = project(camera, [[1.28, 0.0, 1.0], [1.30, 0.0, 1.0], [2.0, 0.0, 1.0]])
    assert in_front.tolist() == [True, False, False]


@pytest.mark.parametrize("name", ["simple_radial", "fisheye_tumvi"])
def test_a_pixel_that_no_direction_reaches_is_nan(name):
    camera = CAMERAS[name]
    if name == "simple_radial":
        # The largest image radius is 1.291 * (1 - 0.2 * 1.667) = 0.8607.
        inside, outside = 321 + 500 * 0.860, 321 + 500 * 0.8615
    else:
        inside, outside = 400.0, 254.932 + 190.978 * 4.0
    pixels = np.array([[inside, 239.0], [outside, 239.0], [np.nan, 1.0], [np.inf, 1.0]])
    bearings = unproject(camera, pixels)
    assert np.isfinite(bearings[0]).all()
    assert np.isnan(bearings[1:]).all()


@all_cameras
def test_scaling_is_exact_in_the_corner_convention(camera, rng):
    points = points_in_view(camera, rng, 20)
    pixels, _ = project(camera, points)
    half = scaled_camera(camera, 0.5, 0.5, width=camera.width // 2, height=240)
    assert (half.model, half.width, half.height) == (
        camera.model,
        camera.width // 2,
        240,
    )
    np.testing.assert_allclose(project(half, points)[0], 0.5 * pixels, atol=1e-9)
    squeezed = scaled_camera(camera, 0.5, 2.0, width=320, height=960)
    np.testing.assert_allclose(
        project(squeezed, points)[0], pixels * (0.5, 2.0), atol=1e-9
    )
    with pytest.raises(ValueError, match="scales must be > 0"):
        scaled_camera(camera, 0.0, 1.0, width=1, height=1)


def test_conventions_of_opencv():
    np.testing.assert_array_equal(to_opencv_px([[0.5, 0.5]]), [[0.0, 0.0]])
    np.testing.assert_array_equal(from_opencv_px([[0.0, 3.0]]), [[0.5, 3.5]])
    camera = CAMERAS["pinhole"]
    np.testing.assert_array_equal(
        camera_matrix(camera), [[500, 0, 321], [0, 510, 239], [0, 0, 1]]
    )
    K, distortion = opencv_params(camera)
    np.testing.assert_array_equal(K[:2, 2], [320.5, 238.5])
    np.testing.assert_array_equal(distortion, np.zeros(4))


@pytest.mark.parametrize("name", ["opencv_euroc", "full_opencv_tum_fr1"])
def test_undistorted_image_is_that_of_opencv(name, rng):
    camera = CAMERAS[name]
    shape = (camera.height, camera.width)
    image = cv2.GaussianBlur(rng.integers(0, 255, shape).astype(np.uint8), (0, 0), 3.0)
    straight, pinhole = undistort_image(camera, image)
    K, distortion = opencv_params(camera)
    expected = cv2.undistort(image, K, distortion)
    assert pinhole.model == "PINHOLE"
    assert pinhole.params[:2] == camera.focal_px
    difference = np.abs(straight.astype(int) - expected.astype(int))
    assert np.quantile(difference, 0.99) <= 1


def test_undistorted_fisheye_shows_points_where_the_pinhole_sees_them():
    camera = CAMERAS["fisheye_tumvi"]
    point = np.array([[0.6, -0.4, 1.0]])
    image = np.zeros((512, 512, 3), np.uint8)
    seen, _ = project(camera, point)
    column, row = np.floor(seen[0]).astype(int)
    image[row - 1 : row + 2, column - 1 : column + 2] = 255
    straight, pinhole = undistort_image(camera, image)
    rows, columns = np.nonzero(straight[:, :, 1])
    found = np.array([columns.mean() + 0.5, rows.mean() + 0.5])
    assert np.linalg.norm(found - project(pinhole, point)[0][0]) < 1.5


def test_undistorting_an_image_of_another_size_is_refused():
    image = np.zeros((10, 20), np.uint8)
    with pytest.raises(ValueError, match="image is 20x10 but the camera 640x480"):
        undistort_image(CAMERAS["radial"], image)


def test_undistorting_a_pinhole_image_changes_nothing(rng):
    image = rng.integers(0, 255, (480, 640)).astype(np.uint8)
    straight, _ = undistort_image(CAMERAS["simple_pinhole"], image)
    np.testing.assert_array_equal(straight, image)
    assert not np.shares_memory(straight, image)


def test_wrong_shapes_are_refused():
    camera = CAMERAS["pinhole"]
    with pytest.raises(ValueError, match=r"expected \(N, 3\)"):
        project(camera, np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"expected \(N, 2\)"):
        unproject(camera, np.zeros(2))


def test_no_points_are_no_error():
    for camera in CAMERAS.values():
        pixels, jac, in_front = project_with_jacobian(camera, np.zeros((0, 3)))
        assert (pixels.shape, jac.shape, in_front.shape) == ((0, 2), (0, 2, 3), (0,))
        assert unproject(camera, np.zeros((0, 2))).shape == (0, 3)


def test_unproject_agrees_with_pycolmap(rng):
    pycolmap = pytest.importorskip("pycolmap")
    for camera in CAMERAS.values():
        pixels = rng.uniform((0, 0), (camera.width, camera.height), (50, 2))
        peer = pycolmap.Camera(
            model=camera.model,
            width=camera.width,
            height=camera.height,
            params=list(camera.params),
        )
        if camera.model == "OPENCV_FISHEYE":
            pixels = camera.principal_point_px + 0.3 * (pixels - 256.0)
        np.testing.assert_allclose(
            normalized_from_pixels(camera, pixels), peer.cam_from_img(pixels), atol=1e-6
        )
