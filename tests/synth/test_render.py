"""The renderer is exact: corners, depth, lenses, shutters, masks, visibility."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edgeloc.geometry.camera import project, unproject
from edgeloc.geometry.se3 import exp_se3, exp_so3
from edgeloc.types import CameraModel, Rigid3
from edgeloc_tools.synth.render import render
from edgeloc_tools.synth.scene import Quad, Scene
from edgeloc_tools.synth.textures import make_texture
from edgeloc_tools.synth.trajectory import look, rolling_poses, room_walk

SQUARE_M = 0.1
COLUMNS, ROWS = 9, 7


def board_scene(*, texels: int = 64) -> Scene:
    """A checkerboard in the plane z = 0 of the world, u along x, v along y."""
    squares = (np.add.outer(np.arange(ROWS), np.arange(COLUMNS)) % 2) * 200 + 30
    image = np.kron(squares, np.ones((texels, texels))).astype(np.uint8)
    if texels > 8:
        # Steps within a pixel would bias the corner finder, not the picture.
        image = cv2.GaussianBlur(image, (0, 0), 2.5)
    quad = Quad(
        origin=np.zeros(3),
        edge_u=np.array([COLUMNS * SQUARE_M, 0.0, 0.0]),
        edge_v=np.array([0.0, ROWS * SQUARE_M, 0.0]),
        texture=make_texture(np.repeat(image[..., None], 3, axis=2)),
    )
    return Scene(name="board", quads=(quad,))


def inner_corners() -> np.ndarray:
    x, y = np.meshgrid(np.arange(1, COLUMNS), np.arange(1, ROWS))
    flat = np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], axis=1)
    return flat * SQUARE_M


def facing_board(tilt: tuple[float, float, float], distance_m: float) -> Rigid3:
    """A camera `distance_m` before the middle of the board, then turned."""
    middle = np.array([COLUMNS * SQUARE_M / 2, ROWS * SQUARE_M / 2, 0.0])
    R = exp_so3(tilt)
    return Rigid3(R=R, t=np.array([0.0, 0.0, distance_m]) - R @ middle)


CAMERAS = {
    "pinhole": CameraModel(
        model="PINHOLE", width=640, height=480, params=(510, 500, 322.5, 236.25)
    ),
    "opencv": CameraModel(
        model="OPENCV",
        width=640,
        height=480,
        params=(510, 500, 322.5, 236.25, -0.28, 0.09, 0.001, -0.002),
    ),
    "fisheye": CameraModel(
        model="OPENCV_FISHEYE",
        width=640,
        height=480,
        params=(380, 385, 322.5, 236.25, 0.02, -0.01, 0.003, -0.001),
    ),
}


@pytest.mark.parametrize("supersample", [1, 2])
@pytest.mark.parametrize("lens", list(CAMERAS))
def test_checkerboard_corners_are_where_they_project(lens, supersample):
    camera = CAMERAS[lens]
    scene = board_scene()
    for tilt in ((0.0, 0.0, 0.0), (0.5, 0.2, 0.1), (-0.3, -0.5, 0.4)):
        cam_from_world = facing_board(tilt, 1.1)
        shot = render(scene, camera, cam_from_world, supersample=supersample)
        expected, seen = project(camera, cam_from_world.transform(inner_corners()))
        assert seen.all()
        # OpenCV's pixels have their origin at the centre of the first one.
        start = (expected - 0.5 + 0.7).astype(np.float32).reshape(-1, 1, 2)
        grey = cv2.cvtColor(shot.image, cv2.COLOR_BGR2GRAY)
        stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 60, 1e-4)
        found = cv2.cornerSubPix(grey, start, (5, 5), (-1, -1), stop)
        error = np.linalg.norm(found.reshape(-1, 2) + 0.5 - expected, axis=1)
        assert np.median(error) < 0.05
        assert error.max() < 0.12


@pytest.mark.parametrize("lens", list(CAMERAS))
def test_depth_is_that_of_the_plane(lens):
    camera = CAMERAS[lens]
    cam_from_world = facing_board((0.4, -0.3, 0.2), 1.0)
    depth = render(board_scene(), camera, cam_from_world).depth_m
    rows, columns = np.nonzero(depth)
    assert len(rows) > 40_000
    pixels = np.stack([columns + 0.5, rows + 0.5], axis=1)
    ray = unproject(camera, pixels)
    normal, point = cam_from_world.R[:, 2], cam_from_world.t
    along = (normal @ point) / (ray @ normal)
    assert np.abs(depth[rows, columns] - along * ray[:, 2]).max() < 2e-6
    on_board = cam_from_world.inverse().transform(ray * along[:, None])
    assert on_board[:, :2].min() > -1e-5
    assert (on_board[:, :2].max(axis=0) < np.array([0.90001, 0.70001])).all()


def test_depth_and_mask_do_not_depend_on_supersampling(room, small):
    pose = look((0.4, -0.3, 1.5), yaw_rad=0.8, pitch_rad=-0.2)
    one, three = (render(room, small, pose, supersample=n) for n in (1, 3))
    assert np.array_equal(one.depth_m, three.depth_m)
    assert np.array_equal(one.moving, three.moving)


def test_the_nearer_of_two_is_seen_and_backs_are_not(small):
    white, grey = (
        make_texture(np.full((8, 8, 3), value, np.uint8)) for value in (255, 90)
    )
    far = Quad(
        origin=np.array([-2.0, -2.0, 2.0]),
        edge_u=np.array([4.0, 0.0, 0.0]),
        edge_v=np.array([0.0, 4.0, 0.0]),
        texture=white,
    )
    near = Quad(
        origin=np.array([-0.2, -0.2, 1.0]),
        edge_u=np.array([0.4, 0.0, 0.0]),
        edge_v=np.array([0.0, 0.4, 0.0]),
        texture=grey,
    )
    back = Quad(
        origin=np.array([0.2, -0.2, 0.5]),
        edge_u=np.array([-0.4, 0.0, 0.0]),
        edge_v=np.array([0.0, 0.4, 0.0]),
        texture=grey,
    )
    for quads in ((far, near, back), (back, near, far)):
        shot = render(Scene(name="", quads=quads), small, Rigid3.identity())
        assert shot.image[60, 80].tolist() == [90, 90, 90]
        assert shot.image[5, 5].tolist() == [255, 255, 255]
        assert shot.depth_m[60, 80] == pytest.approx(1.0, abs=1e-6)
        # 0.4 m at 1 m are 50 px.
        assert int((shot.depth_m < 1.5).sum()) == 50 * 50


def test_a_quad_behind_the_camera_is_not_seen(small):
    quad = board_scene().quads[0]
    behind = Rigid3(R=np.eye(3), t=np.array([0.0, 0.0, -1.0]))
    shot = render(Scene(name="", quads=(quad,)), small, behind)
    assert not shot.depth_m.any()
    assert not shot.image.any()


def test_a_quad_through_the_camera_plane_is_cut(small):
    """A floor that reaches behind the camera fills the lower half of the picture."""
    floor = Quad(
        origin=np.array([-50.0, 1.0, 50.0]),
        edge_u=np.array([100.0, 0.0, 0.0]),
        edge_v=np.array([0.0, 0.0, -100.0]),
        texture=make_texture(np.full((8, 8, 3), 77, np.uint8)),
    )
    shot = render(Scene(name="", quads=(floor,)), small, Rigid3.identity())
    assert (shot.image[65:] == 77).all()
    assert not shot.image[:60].any()
    assert shot.depth_m[100, 10] == pytest.approx(125.0 / 40.5, rel=1e-5)


def warp_error(scene, camera, first: Rigid3, second: Rigid3) -> np.ndarray:
    """Grey differences of what both views see, by depth from the first."""
    a, b = (render(scene, camera, pose) for pose in (first, second))
    rows, columns = np.nonzero((a.depth_m > 0) & ~a.moving)
    pixels = np.stack([columns + 0.5, rows + 0.5], axis=1)
    ray = unproject(camera, pixels)
    points = ray / ray[:, 2:] * a.depth_m[rows, columns, None]
    in_b = (second @ first.inverse()).transform(points)
    at, seen = project(camera, in_b)
    at -= 0.5
    inside = seen & (at > 1).all(axis=1)
    inside &= (at < np.array([camera.width, camera.height]) - 2).all(axis=1)
    at, in_b = at[inside], in_b[inside]
    nearest = b.depth_m[np.rint(at[:, 1]).astype(int), np.rint(at[:, 0]).astype(int)]
    same = np.abs(nearest - in_b[:, 2]) < 0.01 * in_b[:, 2]
    assert same.mean() > 0.8
    grey = cv2.cvtColor(b.image, cv2.COLOR_BGR2GRAY).astype(np.float32)
    # OpenCV's limit on the size of an image is below the number of points.
    parts = np.array_split(at.astype(np.float32), 20)
    there = np.concatenate(
        [cv2.remap(grey, part[None], None, cv2.INTER_LINEAR).ravel() for part in parts]
    )
    here = cv2.cvtColor(a.image, cv2.COLOR_BGR2GRAY)[rows, columns][inside]
    return np.abs(there - here)[same]


def test_two_views_of_a_room_agree_through_depth(room, vga):
    first = look((0.5, 0.3, 1.5), yaw_rad=2.2, pitch_rad=-0.15)
    second = look((0.42, 0.42, 1.53), yaw_rad=2.25, pitch_rad=-0.12, roll_rad=0.02)
    error = warp_error(room, vga, first, second)
    assert np.median(error) < 2.5
    assert error.mean() < 6.0
    # A wrong pose must not pass: a degree is nine pixels.
    wrong = exp_se3([0.0, np.radians(1.0), 0.0, 0.0, 0.0, 0.0]) @ second
    a, b = (render(room, vga, pose).image.astype(float) for pose in (second, wrong))
    assert np.abs(a - b).mean() > 2 * error.mean()


def test_two_views_of_a_street_agree_through_depth(street, vga):
    first = look((2.0, 0.2, 1.5), yaw_rad=0.1)
    second = look((2.2, 0.1, 1.55), yaw_rad=0.12, pitch_rad=0.01)
    assert np.median(warp_error(street, vga, first, second)) < 4.0


def test_rolling_shutter_shows_each_row_from_its_own_pose(room, small):
    path = room_walk(4, room.extent_m, duration_s=4.0)
    rolling = rolling_poses(path, 1.0, readout_s=0.3, num_rows=small.height)
    shot = render(room, small, rolling)
    for row in (0, 17, 60, 101, 119):
        still = render(room, small, rolling[row])
        assert np.allclose(shot.depth_m[row], still.depth_m[row], rtol=1e-5)
        # The level of detail is that of the middle row.
        difference = shot.image[row].astype(int) - still.image[row]
        assert np.abs(difference).mean() < 4.0
    still = render(room, small, rolling[60])
    assert np.abs(shot.depth_m[0] - still.depth_m[0]).max() > 0.02


def test_rolling_shutter_shears_by_speed_over_depth(small):
    """A camera that slides right at 1 m/s shifts a row read 0.1 s later by 0.1 m."""
    scene = board_scene()
    start = facing_board((0.0, 0.0, 0.0), 1.0)
    poses = [
        Rigid3(R=start.R, t=start.t - np.array([0.1 * row / 119, 0.0, 0.0]))
        for row in range(small.height)
    ]
    depth = render(scene, small, poses).depth_m
    left = [int(np.flatnonzero(depth[row])[0]) for row in (20, 100)]
    # f = 125 px at 1 m.
    assert left[0] - left[1] == pytest.approx(125 * 0.1 * 80 / 119, abs=1.0)


def test_a_pose_list_of_one_is_a_global_shutter(room, small):
    pose = look((0.0, 0.0, 1.5), yaw_rad=0.3)
    assert np.array_equal(
        render(room, small, [pose]).image, render(room, small, pose).image
    )


def test_textures_are_filtered_at_a_distance(small):
    """A fine checkerboard far away is even grey, not a moire pattern."""
    scene = board_scene(texels=2)
    quad = scene.quads[0]
    fine = Quad(
        origin=np.array([-5.0, -4.0, 0.0]),
        edge_u=np.array([10.0, 0.0, 0.0]),
        edge_v=np.array([0.0, 8.0, 0.0]),
        texture=make_texture(np.tile(quad.texture.levels[0], (40, 40, 1))),
    )
    pose = Rigid3(R=np.eye(3), t=np.array([0.0, 0.0, 8.0]))
    image = render(Scene(name="", quads=(fine,)), small, pose).image[20:100, 30:130]
    assert image.mean() == pytest.approx(130, abs=12)
    assert image.std() < 15


def test_bad_arguments_are_refused(room, small):
    with pytest.raises(ValueError, match="supersample=0"):
        render(room, small, Rigid3.identity(), supersample=0)
    with pytest.raises(ValueError, match="at least one pose"):
        render(room, small, [])
