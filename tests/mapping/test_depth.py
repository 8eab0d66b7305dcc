"""Measured depth at the keypoints of the colour image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeloc.geometry.camera import unproject
from edgeloc.geometry.se3 import exp_so3
from edgeloc.types import CameraModel, Rigid3
from edgeloc_tools.mapping.depth import depth_at_keypoints, depth_in_camera
from edgeloc_tools.synth.record import DepthArray

COLOUR = CameraModel(
    model="OPENCV",
    width=200,
    height=150,
    params=(180.0, 182.0, 101.0, 74.0, -0.12, 0.03, 0.001, -0.0005),
)
DEPTH = CameraModel(
    model="PINHOLE", width=320, height=240, params=(220.0, 220.0, 158.0, 121.0)
)
IN_COLOUR = Rigid3(R=exp_so3([0.01, -0.03, 0.02]), t=np.array([0.06, -0.01, 0.02]))
"""The depth camera sits beside the colour camera and looks a little elsewhere."""


def pixel_centres(camera):
    """The centres of all pixels, row by row."""
    cols, rows = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    return np.stack([cols.ravel(), rows.ravel()], axis=1) + 0.5


def plane_depth(camera, pixels, normal, distance):
    """Depth along z of the plane normal . x = distance, in the camera's frame."""
    rays = unproject(camera, pixels)
    return rays[:, 2] * distance / (rays @ normal)


def measured(depth_m, camera=DEPTH, cam_from_depth=IN_COLOUR):
    return DepthArray(
        path=Path("depth.png"),
        metres_per_unit=1.0,
        camera=camera,
        cam_from_depth=cam_from_depth,
        depth_m=np.asarray(depth_m, float).reshape(camera.height, camera.width),
    )


def seen_by_depth_camera(normal, distance):
    """What the depth camera measures of a plane that is given in the colour camera."""
    normal_there = IN_COLOUR.R.T @ normal
    distance_there = distance - normal @ IN_COLOUR.t
    return plane_depth(DEPTH, pixel_centres(DEPTH), normal_there, distance_there)


def test_a_slanted_plane_is_registered_to_the_colour_camera(rng):
    """Another lens, another size, another place: the same depth to a few mm."""
    normal = np.array([0.35, -0.2, 1.0])
    distance = 2.0
    depth = depth_in_camera(measured(seen_by_depth_camera(normal, distance)), COLOUR)
    assert depth.shape == (150, 200)
    truth = plane_depth(COLOUR, pixel_centres(COLOUR), normal, distance)
    error = depth - truth.reshape(depth.shape)
    # A colour pixel gets a point that lies anywhere within it.
    assert np.nanmax(np.abs(error)) < 0.02
    inner = error[20:-20, 20:-20]
    assert np.isfinite(inner).mean() > 0.95
    assert abs(np.nanmedian(inner)) < 0.002

    keypoints = rng.uniform([25, 25], [175, 125], (200, 2)).astype(np.float32)
    at_keypoints, sigma = depth_at_keypoints(depth, keypoints)
    truth = plane_depth(COLOUR, keypoints.astype(float), normal, distance)
    assert np.isfinite(at_keypoints).all()
    assert np.abs(at_keypoints - truth).max() < 0.02
    # Neither too sure nor useless: Kinect noise is 6 mm at 2 m.
    assert np.all(np.abs(at_keypoints - truth) < 3 * sigma)
    assert np.all((sigma > 0.002) & (sigma < 0.1))


def test_without_registration_the_depth_would_be_off():
    """The same picture, taken as registered, is wrong by centimetres."""
    normal = np.array([0.35, -0.2, 1.0])
    measurement = seen_by_depth_camera(normal, 2.0)
    naive = depth_in_camera(
        measured(measurement, cam_from_depth=Rigid3.identity()), COLOUR
    )
    truth = plane_depth(COLOUR, pixel_centres(COLOUR), normal, 2.0)
    assert abs(np.nanmedian(naive - truth.reshape(naive.shape))) > 0.02


def test_a_registered_depth_image_is_kept_as_it_is(rng):
    depth_m = rng.uniform(1.0, 3.0, (240, 320))
    depth_m[:, :40] = 0.0
    same = depth_in_camera(measured(depth_m, cam_from_depth=Rigid3.identity()), DEPTH)
    assert np.isnan(same[:, :40]).all()
    np.testing.assert_allclose(same[:, 40:], depth_m[:, 40:], rtol=1e-12)


def test_the_nearest_surface_is_on_top():
    """A post at 1 m hides the wall at 3 m, also where both fall on one pixel."""
    depth_m = np.full((240, 320), 3.0)
    depth_m[:, 150:170] = 1.0
    seen = depth_in_camera(measured(depth_m), COLOUR)
    # Its width in the colour image: 20 px * 180 / 220.
    per_row = np.count_nonzero(np.abs(seen - 1.0) < 0.1, axis=1)
    assert abs(np.median(per_row[10:-10]) - 16.4) <= 2.0
    # By parallax the post covers more of the wall than it does for the depth camera.
    row = seen[75]
    post = np.flatnonzero(np.abs(row - 1.0) < 0.1)
    assert np.all(np.diff(post) == 1)


def test_what_lies_behind_the_colour_camera_is_left_out():
    behind = Rigid3(R=exp_so3([0.0, np.pi, 0.0]), t=np.zeros(3))
    depth = depth_in_camera(
        measured(np.full((240, 320), 2.0), cam_from_depth=behind), COLOUR
    )
    assert np.isnan(depth).all()


def test_nothing_measured_gives_nothing():
    depth = depth_in_camera(measured(np.zeros((240, 320))), COLOUR)
    assert np.isnan(depth).all()
    at_keypoints, sigma = depth_at_keypoints(depth, np.full((3, 2), 50.0, np.float32))
    assert np.isnan(at_keypoints).all()
    assert np.isnan(sigma).all()


@pytest.fixture
def step():
    """A wall at 2 m left of column 50, at 3 m from there on."""
    depth = np.full((100, 100), 2.0)
    depth[:, 50:] = 3.0
    return depth


def at(depth, *points):
    return depth_at_keypoints(depth, np.array(points, np.float32))


def test_keypoints_at_an_edge_have_no_depth(step):
    """Such a keypoint may belong to either side; half a metre between would be wrong"""
    depth, sigma = at(step, (50.0, 40.0), (49.5, 40.0), (51.5, 40.0))
    assert np.isnan(depth).all()
    assert np.isnan(sigma).all()


def test_keypoints_beside_an_edge_keep_their_depth(step):
    depth, sigma = at(step, (40.0, 40.0), (60.0, 40.0))
    np.testing.assert_allclose(depth, [2.0, 3.0])
    assert 0 < sigma[0] < sigma[1] < 0.05


def test_holes_in_the_window_do_not_matter_until_most_of_it_is_gone(step):
    some, most = step.copy(), step.copy()
    some[39:41, 19:22] = np.nan
    most[38:43, 18:23] = np.nan
    most[38, 18] = 2.0
    assert at(some, (20.5, 40.5))[0] == pytest.approx(2.0)
    assert np.isnan(at(most, (20.5, 40.5))[0])


def test_keypoints_in_the_corners_have_depth(step):
    depth, _ = at(step, (0.0, 0.0), (99.99, 99.99), (0.2, 99.9))
    np.testing.assert_allclose(depth, [2.0, 3.0, 2.0])


def test_no_keypoints_give_no_depth(step):
    depth, sigma = depth_at_keypoints(step, np.zeros((0, 2), np.float32))
    assert depth.shape == sigma.shape == (0,)


def test_uncertainty_grows_with_depth():
    """Structured light: with the square of the distance."""
    near, far = np.full((9, 9), 1.0), np.full((9, 9), 4.0)
    sigma_near, sigma_far = at(near, (4.5, 4.5))[1][0], at(far, (4.5, 4.5))[1][0]
    assert 4 < sigma_far / sigma_near < 16
