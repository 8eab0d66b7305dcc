"""Local maps and the tile cache."""

from __future__ import annotations

import numpy as np
import pytest
from site_factory import landmark_of, make_contents, tile_path

from edgeloc.errors import ConfigError, TileFormatError, TileMissingError
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


def test_the_cache_keeps_the_tiles_used_last(site):
    sizes = [site.read_tile(i).num_bytes for i in range(4)]
    room = sizes[0] + sizes[2] + max(sizes[1], sizes[3])
    cache = TileCache(site, max_bytes=room)
    first = cache.load(0)
    cache.load(1)
    assert cache.load(0) is first
    assert (cache.hits, cache.misses, cache.num_bytes) == (1, 2, sum(sizes[:2]))
    cache.load(2)
    cache.load(3)
    assert 0 in cache
    assert 1 not in cache
    assert cache.num_bytes == sum(site.read_tile(i).num_bytes for i in (0, 2, 3))
    assert len(cache) == 3


def test_the_cache_never_exceeds_its_bound(site, rng):
    biggest = max(site.read_tile(i).num_bytes for i in range(len(site.tiles)))
    cache = TileCache(site, max_bytes=2 * biggest)
    for tile_idx in rng.integers(0, len(site.tiles), 200).tolist():
        assert cache.load(tile_idx).tile_idx == tile_idx
        assert cache.num_bytes <= 2 * biggest
    assert cache.hits + cache.misses == 200
    assert cache.hits > 0


def test_a_tile_larger_than_the_cache_is_handed_out_and_not_kept(site):
    cache = TileCache(site, max_bytes=1)
    assert cache.load(0).tile_idx == 0
    assert (len(cache), cache.num_bytes) == (0, 0)
    with pytest.raises(ConfigError, match="max_bytes=0 of the tile cache must be > 0"):
        TileCache(site, max_bytes=0)


def test_a_corrupt_tile_is_read_once_and_a_missing_one_again(site):
    path = tile_path(site)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"\1")
    cache = TileCache(site, max_bytes=1 << 20)
    with pytest.raises(TileFormatError) as first:
        cache.load(0)
    path.write_bytes(good)
    with pytest.raises(TileFormatError) as second:
        cache.load(0)
    assert str(second.value) == str(first.value)
    assert second.value.offset == first.value.offset
    assert second.value is not first.value
    assert cache.misses == 2

    other = tile_path(site, 1)
    data = other.read_bytes()
    other.unlink()
    with pytest.raises(TileMissingError):
        cache.load(1)
    other.write_bytes(data)
    assert cache.load(1).tile_idx == 1
