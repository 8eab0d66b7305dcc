"""Local maps and the tile cache."""

from __future__ import annotations

import numpy as np
import pytest
from site_factory import landmark_of, make_contents

from edgeloc.errors import TileMissingError
from edgeloc.runtime.tile_cache import TileCache
from edgeloc.tiles.reader import (
    assemble_local_map,
    open_site,
    visible_point3D_ids,
)
from edgeloc.tiles.writer import write_site


@pytest.fixture
def contents(rng):
    return make_contents(rng, num_landmarks=300, num_keyframes=20, visible_share=0.1)


@pytest.fixture
def site(tmp_path, contents):
    write_site(tmp_path / "site", contents, cell_size=1.5)
    return open_site(tmp_path / "site")


def seen_by(contents, keyframe_idx: int) -> set[int]:
    bounds = contents.visible_offsets[keyframe_idx : keyframe_idx + 2]
    return set(contents.visible_landmark_idx[slice(*bounds)].tolist())


def test_it_holds_what_the_keyframes_see(site, contents):
    chosen = [3, 17, 3, 8]
    ids = contents.keyframes.keyframe_ids[chosen]
    local_map = assemble_local_map(site.read_tile, site, ids)
    expected = set().union(*(seen_by(contents, i) for i in chosen))

    assert np.all(np.diff(local_map.point3D_ids) > 0)
    first_rows = np.searchsorted(local_map.row_to_point, np.arange(len(local_map)))
    own = [landmark_of(d) for d in local_map.descriptors[first_rows]]
    assert set(own) == expected
    assert len(own) == len(expected)

    landmarks = contents.landmarks
    assert np.abs(local_map.points3D - landmarks.points3D[own]).max() < 1e-4
    ratio = np.log2(local_map.sigmas / landmarks.sigmas[own])
    assert np.quantile(np.abs(ratio), 0.8) < 0.26
    counts = landmarks.num_observations[own].clip(0, 64)
    assert np.all(np.abs(local_map.num_observations - counts) <= counts / 4)
    rows = [
        r for i in own for r in range(*landmarks.descriptor_offsets[i : i + 2])
    ]  # fmt: skip
    assert np.array_equal(local_map.descriptors, landmarks.descriptors[rows])
    counts = np.diff(landmarks.descriptor_offsets)[own]
    assert (
        local_map.row_to_point.tolist() == np.repeat(range(len(own)), counts).tolist()
    )


def test_a_mapping_a_reader_and_a_cache_give_the_same(site):
    ids = site.keyframes.keyframe_ids[:6]
    tiles = {i: site.read_tile(i) for i in range(len(site.tiles))}
    assert len(tiles) > 8
    cache = TileCache(site, max_bytes=1 << 20)
    maps = [
        assemble_local_map(source, site, ids)
        for source in (tiles, site.read_tile, cache.load)
    ]
    for name in ("point3D_ids", "points3D", "sigmas", "descriptors", "row_to_point"):
        for other in maps[1:]:
            assert np.array_equal(getattr(maps[0], name), getattr(other, name))


def test_visible_ids_come_in_the_order_asked_for(site, contents):
    keyframe_ids = contents.keyframes.keyframe_ids
    both = visible_point3D_ids(site.read_tile, site, keyframe_ids[[9, 2]])
    [alone] = visible_point3D_ids(site.read_tile, site, keyframe_ids[[2]])
    assert both[1].tolist() == alone.tolist()
    assert len(both[0]) == len(seen_by(contents, 9))
    assert np.all(np.diff(both[0]) > 0)


def test_no_keyframes_and_keyframes_that_see_nothing(tmp_path, rng, site):
    empty = assemble_local_map({}, site, np.zeros(0, np.int64))
    assert len(empty) == 0
    assert empty.points3D.shape == (0, 3)
    assert empty.descriptors.shape == (0, 4)
    assert empty.descriptors.dtype == np.uint8
    blind = make_contents(rng, visible_share=0.0)
    write_site(tmp_path / "blind", blind)
    other = open_site(tmp_path / "blind")
    ids = other.keyframes.keyframe_ids
    assert len(assemble_local_map(other.read_tile, other, ids)) == 0


def test_a_tile_that_is_not_loaded_and_a_keyframe_that_is_not_there(site):
    ids = site.keyframes.keyframe_ids
    with pytest.raises(TileMissingError, match=r"tile \d+ is not loaded; load it"):
        assemble_local_map({}, site, ids)
    with pytest.raises(KeyError):
        assemble_local_map(site.read_tile, site, np.array([ids[-1] + 1]))
