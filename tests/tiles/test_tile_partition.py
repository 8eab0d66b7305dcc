"""Division into tiles: cells of an octree."""

from __future__ import annotations

import numpy as np
import pytest

from edgeloc.errors import ConfigError
from edgeloc.tiles.codec import position_step
from edgeloc.tiles.partition import Partition, divide, grid_origin
from edgeloc.tiles.tile_table import Cell


def make_partition(
    points3D: np.ndarray, centers: np.ndarray | None = None, **options
) -> Partition:
    centers = np.zeros((1, 3)) if centers is None else centers
    sigma = options.pop("sigma", 0.01)
    values = {
        "landmark_bytes": np.full(len(points3D), 10),
        "keyframe_bytes": np.full(len(centers), 100),
        "num_visible": np.full(len(centers), 10),
        "base_bytes": 50,
        "max_tile_bytes": 10**9,
        **options,
    }
    return Partition(
        points3D=points3D,
        sigmas=np.full(len(points3D), sigma, np.float32),
        centers=centers,
        **values,
    )


def parts_of(part: Partition, origin=None):
    return divide(part, grid_origin(part.points3D) if origin is None else origin)


def test_a_small_scene_is_one_tile_wherever_it_lies(rng):
    for offset in (0.0, -1234.5, 6.4e6):
        part = make_partition(offset + rng.uniform(-5, 5, (500, 3)))
        [(cell, landmark_idx, keyframe_idx)] = parts_of(part)
        assert cell == Cell(4, 0, 0, 0)
        assert landmark_idx.tolist() == list(range(500))
        assert keyframe_idx.tolist() == [0]


def test_the_origin_is_round_and_below_the_landmarks(rng):
    points3D = rng.uniform(-5, 5, (50, 3)) + np.array([100, 0, -3])
    origin = np.array(grid_origin(points3D))
    assert np.all(origin <= points3D.min(axis=0))
    assert np.all(points3D.max(axis=0) - origin < 16)
    assert np.all(origin * 2 == np.rint(origin * 2))
    assert grid_origin(np.zeros((0, 3))) == (0.0, 0.0, 0.0)


def assert_a_division(part: Partition, parts, origin) -> None:
    for which, total in ((1, len(part.points3D)), (2, len(part.centers))):
        indices = np.concatenate([tile[which] for tile in parts])
        assert sorted(indices.tolist()) == list(range(total))
        assert all(np.all(np.diff(tile[which]) > 0) for tile in parts)
    cells = [cell for cell, _, _ in parts]
    assert cells == sorted(set(cells))
    for cell, landmark_idx, _ in parts:
        inside = (part.points3D[landmark_idx] - origin - cell.corner) / cell.size
        assert np.all((inside >= 0) & (inside < 1))


def test_every_index_is_in_exactly_one_tile_and_tiles_are_small(rng):
    part = make_partition(
        rng.normal(size=(2000, 3)) * [100, 100, 3],
        rng.normal(size=(50, 3)) * [100, 100, 3],
        max_tile_bytes=1500,
    )
    for origin in (grid_origin(part.points3D), (0.0, 0.0, 0.0), (7.0, 300.0, -1.0)):
        parts = parts_of(part, origin)
        assert_a_division(part, parts, np.array(origin))
        sizes = [50 + 10 * len(lm) + 100 * len(kf) for _, lm, kf in parts]
        assert max(sizes) <= 1500
        assert all(len(lm) > 0 for _, lm, _ in parts)


def test_cells_stay_where_they_are_when_a_map_grows(rng):
    """Another wing does not change how the rest is divided."""
    old = rng.uniform(0, 60, (2000, 3)) * [1, 1, 0.05]
    wing = rng.uniform(0, 60, (2000, 3)) * [1, 1, 0.05] - np.array([90, 0, 0])
    origin = grid_origin(old)
    before = parts_of(make_partition(old, max_tile_bytes=2000), origin)
    both = np.vstack([old, wing])
    after = parts_of(make_partition(both, max_tile_bytes=2000), origin)
    kept = {cell: lm.tolist() for cell, lm, _ in after}
    for cell, landmark_idx, _ in before:
        assert kept[cell] == landmark_idx.tolist()
    assert len(after) > len(before)
    assert min(cell.x for cell in kept) < 0


def test_floors_are_told_apart(rng):
    """Nothing is special about z: storeys become cells of their own."""
    points3D = rng.uniform(0, 30, (3000, 3))
    points3D[:, 2] = rng.choice([0.0, 4.1, 8.2, 12.3], 3000) + rng.uniform(0, 2.5, 3000)
    part = make_partition(points3D, max_tile_bytes=4000)
    for cell, landmark_idx, _ in parts_of(part):
        storeys = np.unique(points3D[landmark_idx][:, 2] // 4.1)
        assert len(storeys) <= np.ceil(cell.size / 4.1) + 1


def test_a_keyframe_goes_to_the_tile_of_its_centre_or_the_nearest():
    points3D = np.array([[1.0, 1, 1], [7.5, 1, 1], [1, 7.5, 1]])
    centers = np.array([[2.0, 2, 2], [7, 3, 1], [30, 1, 1], [7.5, 6.5, 1], [1, 80, 0]])
    parts = divide(make_partition(points3D, centers, cell_size=5.0), (0.0, 0.0, 0.0))
    owner = {int(kf): lm.tolist() for _, lm, kfs in parts for kf in kfs}
    assert owner[0] == [0]
    assert owner[1] == [1]
    assert owner[2] == [1]
    assert owner[3] in ([1], [2])  # its own cell is empty
    assert owner[4] == [2]


def test_octants_take_the_keyframes_inside_them():
    corners = np.array([[x, y, z] for x in (0, 8) for y in (0, 8) for z in (0, 8)])
    part = make_partition(corners * 1.0, corners + 0.25, max_tile_bytes=170)
    parts = divide(part, (0.0, 0.0, 0.0))
    assert [(lm.tolist(), kf.tolist()) for _, lm, kf in parts] == [
        ([i], [i]) for i in range(8)
    ]


def test_cells_are_small_enough_for_millimetres_unless_landmarks_are_vague(rng):
    points3D = rng.uniform(-500, 500, (300, 3))
    fine = parts_of(make_partition(points3D, sigma=0.001))
    assert len(fine) > 100
    assert max(position_step(points3D[lm]) for _, lm, _ in fine) <= 2.0**-10
    assert len(parts_of(make_partition(points3D, sigma=0.5))) == 1


def test_a_step_that_was_asked_for_takes_twenty_bits_at_most(rng):
    points3D = rng.uniform(-500, 500, (300, 3))
    assert len(parts_of(make_partition(points3D, position_step=2.0**-9))) == 1
    divided = parts_of(make_partition(points3D, position_step=2.0**-12))
    assert 8 <= len(divided) <= 64
    for _, landmark_idx, _ in divided:
        assert np.ptp(points3D[landmark_idx], axis=0).max() < 2.0**8


def test_one_outlier_does_not_spoil_a_room(rng):
    points3D = np.vstack([rng.uniform(-3, 3, (200, 3)), [[1e5, 0, 0]]])
    parts = parts_of(make_partition(points3D, sigma=0.001))
    assert sorted(len(lm) for _, lm, _ in parts)[-1] > 20
    alone = [lm for _, lm, _ in parts if 200 in lm]
    assert [lm.tolist() for lm in alone] == [[200]]
    for _, landmark_idx, _ in parts:
        assert position_step(points3D[landmark_idx]) <= 2.0**-10


def test_landmarks_at_one_place_stay_together(rng):
    points3D = np.full((100, 3), 0.1)
    assert len(parts_of(make_partition(points3D, max_tile_bytes=60))) == 1
    nearly = points3D + rng.integers(0, 2, (100, 3)) * 1e-16
    assert len(parts_of(make_partition(nearly, max_tile_bytes=60))) <= 8


def test_a_cell_that_came_out_too_large_is_divided(rng):
    part = make_partition(rng.uniform(0, 8, (100, 3)))
    [(cell, _, _)] = divide(part, (0.0, 0.0, 0.0))
    again = make_partition(part.points3D, too_large={cell})
    parts = divide(again, (0.0, 0.0, 0.0))
    assert {c.exponent for c, _, _ in parts} == {cell.exponent - 1}
    assert len(parts) == 8


def test_no_landmarks_is_one_tile():
    part = make_partition(
        np.zeros((0, 3)), np.zeros((3, 3)), max_tile_bytes=60, cell_size=1.0
    )
    [(cell, landmark_idx, keyframe_idx)] = parts_of(part)
    assert cell == Cell(0, 0, 0, 0)
    assert len(landmark_idx) == 0
    assert keyframe_idx.tolist() == [0, 1, 2]


@pytest.mark.parametrize("cell_size", [0.0, -1.0, np.nan, np.inf, 1e-300])
def test_senseless_cell_sizes_are_refused(cell_size):
    part = make_partition(np.array([[0.0] * 3, [9.0] * 3]), cell_size=cell_size)
    with pytest.raises(ConfigError, match=r"cell_size .* give a size like 32"):
        parts_of(part)
