"""Division into tiles."""

from __future__ import annotations

import numpy as np
import pytest

from edgeloc.errors import ConfigError
from edgeloc.tiles.codec import position_step
from edgeloc.tiles.partition import Partition, divide


def make_partition(
    points3D: np.ndarray,
    centers: np.ndarray | None = None,
    *,
    sigma: float = 0.01,
    max_tile_bytes: int = 10**9,
) -> Partition:
    centers = np.zeros((1, 3)) if centers is None else centers
    return Partition(
        points3D=points3D,
        sigmas=np.full(len(points3D), sigma, np.float32),
        landmark_bytes=np.full(len(points3D), 10),
        centers=centers,
        keyframe_bytes=np.full(len(centers), 100),
        base_bytes=50,
        max_tile_bytes=max_tile_bytes,
    )


def test_a_small_scene_is_one_tile_wherever_it_lies(rng):
    for offset in (0.0, -1234.5):
        part = make_partition(offset + rng.uniform(-5, 5, (500, 3)))
        [(landmark_idx, keyframe_idx)] = divide(part)
        assert landmark_idx.tolist() == list(range(500))
        assert keyframe_idx.tolist() == [0]


def test_every_index_is_in_exactly_one_tile_and_tiles_are_small(rng):
    part = make_partition(
        rng.normal(size=(2000, 3)) * [100, 100, 3],
        rng.normal(size=(50, 3)) * [100, 100, 3],
        max_tile_bytes=1500,
    )
    for cell_size in (None, 40.0):
        tiles = divide(part, cell_size=cell_size)
        for which, total in ((0, 2000), (1, 50)):
            indices = np.concatenate([tile[which] for tile in tiles])
            assert sorted(indices.tolist()) == list(range(total))
            assert all(np.all(np.diff(tile[which]) > 0) for tile in tiles)
        sizes = [50 + 10 * len(lm) + 100 * len(kf) for lm, kf in tiles]
        assert max(sizes) <= 1500
        assert all(len(lm) > 0 for lm, _ in tiles)


def test_a_keyframe_goes_to_the_tile_of_its_centre_or_the_nearest():
    points3D = np.array([[1.0, 1, 1], [9, 1, 1], [1, 9, 1]])
    centers = np.array([[2.0, 2, 2], [7, 3, 1], [30, 1, 1], [9.5, 8.5, 1], [1, 80, 0]])
    part = make_partition(points3D, centers)
    tiles = divide(part, cell_size=5.0)
    owner = {int(kf): lm.tolist() for lm, kfs in tiles for kf in kfs}
    assert owner[0] == [0]
    assert owner[1] == [1]
    assert owner[2] == [1]
    assert owner[3] in ([1], [2])  # its own cell is empty
    assert owner[4] == [2]


def test_octants_take_the_keyframes_inside_them():
    corners = np.array([[x, y, z] for x in (0, 8) for y in (0, 8) for z in (0, 8)])
    part = make_partition(corners * 1.0, corners + 0.25, max_tile_bytes=170)
    tiles = divide(part)
    assert [(lm.tolist(), kf.tolist()) for lm, kf in tiles] == [
        ([i], [i]) for i in range(8)
    ]


def test_cells_are_small_enough_for_millimetres_unless_landmarks_are_vague(rng):
    points3D = rng.uniform(-500, 500, (300, 3))
    fine = divide(make_partition(points3D, sigma=0.001))
    assert len(fine) > 100
    assert max(position_step(points3D[lm]) for lm, _ in fine) <= 2.0**-10
    assert len(divide(make_partition(points3D, sigma=0.5))) == 1


def test_one_outlier_does_not_spoil_a_room(rng):
    points3D = np.vstack([rng.uniform(-3, 3, (200, 3)), [[1e5, 0, 0]]])
    tiles = divide(make_partition(points3D, sigma=0.001))
    assert [len(lm) for lm, _ in tiles] == [200, 1]
    assert position_step(points3D[tiles[0][0]]) <= 2.0**-13


def test_landmarks_at_one_place_stay_together(rng):
    points3D = np.full((100, 3), 0.1)
    assert len(divide(make_partition(points3D, max_tile_bytes=60))) == 1
    nearly = points3D + rng.integers(0, 2, (100, 3)) * 1e-16
    assert len(divide(make_partition(nearly, max_tile_bytes=60))) <= 8


def test_no_landmarks_is_one_tile():
    part = make_partition(np.zeros((0, 3)), np.zeros((3, 3)), max_tile_bytes=60)
    [(landmark_idx, keyframe_idx)] = divide(part, cell_size=1.0)
    assert len(landmark_idx) == 0
    assert keyframe_idx.tolist() == [0, 1, 2]


@pytest.mark.parametrize("cell_size", [0.0, -1.0, np.nan, np.inf, 1e-300])
def test_senseless_cell_sizes_are_refused(cell_size):
    with pytest.raises(ConfigError, match=r"cell_size .* give a size like 32"):
        divide(make_partition(np.ones((3, 3))), cell_size=cell_size)
