"""The tile cache: bounded, read ahead, and never later than asked for."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
from site_factory import make_contents, tile_path

from edgeloc.errors import (
    ConfigError,
    TileFormatError,
    TileMissingError,
    TileSlowError,
)
from edgeloc.runtime.tile_cache import TileCache
from edgeloc.tiles.layout import LANDMARK_BITS
from edgeloc.tiles.reader import Site, open_site
from edgeloc.tiles.writer import write_site


@pytest.fixture
def site(tmp_path) -> Site:
    contents = make_contents(
        np.random.default_rng(4),
        num_landmarks=300,
        num_keyframes=20,
        extent=6.0,
        visible_share=0.1,
    )
    write_site(tmp_path / "site", contents, cell_size=2.0)
    return open_site(tmp_path / "site")


@dataclass
class Disk:
    """A site on a disk that answers when it is told to."""

    site: Site
    gate: threading.Event = field(default_factory=threading.Event)
    asked: list[int] = field(default_factory=list)
    began: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    @property
    def tiles(self):
        return self.site.tiles

    def read_tile(self, tile_idx):
        self.asked.append(tile_idx)
        self.began.release()
        assert self.gate.wait(10)
        return self.site.read_tile(tile_idx)


@pytest.fixture
def disk(site):
    return Disk(site)


@pytest.fixture
def cache(disk):
    cache = TileCache(disk, max_bytes=1 << 20)
    yield cache
    disk.gate.set()
    cache.close()


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
    assert cache.num_reads == 4
    assert cache.bytes_read == sum(site.tiles[i].num_bytes for i in range(4))


def test_reads_are_counted_by_frame(site):
    cache = TileCache(site, max_bytes=1 << 20)
    cache.load(0)
    cache.start_frame()
    cache.load(0)
    cache.load(1)
    cache.load(2)
    assert cache.frame_reads == 2
    assert cache.frame_bytes == site.tiles[1].num_bytes + site.tiles[2].num_bytes


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
    assert cache.load(0, timeout_s=10.0).tile_idx == 0
    assert (len(cache), cache.num_bytes) == (0, 0)
    cache.close()
    with pytest.raises(ConfigError, match="max_bytes=0 of the tile cache must be > 0"):
        TileCache(site, max_bytes=0)


@pytest.mark.parametrize("timeout_s", [None, 10.0])
def test_a_corrupt_tile_is_read_once_and_a_missing_one_again(site, timeout_s):
    path = tile_path(site)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"\1")
    cache = TileCache(site, max_bytes=1 << 20)
    with pytest.raises(TileFormatError) as first:
        cache.load(0, timeout_s=timeout_s)
    path.write_bytes(good)
    with pytest.raises(TileFormatError) as second:
        cache.load(0, timeout_s=timeout_s)
    assert str(second.value) == str(first.value)
    assert second.value.offset == first.value.offset
    assert second.value is not first.value
    assert cache.misses == 2
    assert cache.num_reads == 1

    other = tile_path(site, 1)
    data = other.read_bytes()
    other.unlink()
    with pytest.raises(TileMissingError):
        cache.load(1, timeout_s=timeout_s)
    other.write_bytes(data)
    assert cache.load(1, timeout_s=timeout_s).tile_idx == 1
    cache.close()


def test_a_slow_disk_costs_the_tile_and_not_the_frame(disk, cache):
    """The tile goes on being read, once, and is there for a later frame."""
    for _ in range(3):
        with pytest.raises(TileSlowError, match=r"tile 2 was not read within 0.01 s"):
            cache.load(2, timeout_s=0.01)
    disk.gate.set()
    assert cache.load(2, timeout_s=10.0).tile_idx == 2
    assert disk.asked == [2]
    assert cache.wait(10.0)
    assert cache.load(2, timeout_s=0.0).tile_idx == 2
    assert cache.hits == 1
    assert issubclass(TileSlowError, TileMissingError)


def test_prefetched_tiles_are_there_when_they_are_asked_for(disk, cache):
    disk.gate.set()
    cache.prefetch([3, 1, 4])
    assert cache.wait(10.0)
    assert disk.asked == [3, 1, 4]
    assert cache.load(4, timeout_s=0.0).tile_idx == 4
    assert (cache.hits, cache.misses, cache.num_reads) == (1, 0, 3)
    cache.prefetch([3, 1, 4])
    assert cache.wait(10.0)
    assert cache.num_reads == 3


def test_a_tile_that_is_being_read_is_waited_for(disk, cache):
    cache.prefetch([5])
    assert disk.began.acquire(timeout=10)
    threading.Timer(0.05, disk.gate.set).start()
    assert cache.load(5).tile_idx == 5
    assert disk.asked == [5]


def test_what_is_needed_now_goes_before_what_was_announced(disk, cache):
    cache.prefetch([0, 1, 2, 3])
    assert disk.began.acquire(timeout=10)
    with pytest.raises(TileSlowError):
        cache.load(3, timeout_s=0.01)
    with pytest.raises(TileSlowError):
        cache.load(6, timeout_s=0.01)
    disk.gate.set()
    assert cache.wait(10.0)
    assert disk.asked == [0, 3, 6, 1, 2]


def test_a_tile_that_was_announced_is_read_by_who_cannot_wait(disk, cache):
    cache.prefetch([0, 1])
    assert disk.began.acquire(timeout=10)
    disk.gate.set()
    assert cache.load(1).tile_idx == 1
    assert cache.wait(10.0)
    assert sorted(disk.asked) == [0, 1]


def test_a_new_prediction_replaces_the_old_one(disk, cache):
    cache.prefetch([0, 1, 2])
    assert disk.began.acquire(timeout=10)
    cache.prefetch([4])
    disk.gate.set()
    assert cache.wait(10.0)
    assert disk.asked == [0, 4]


def test_prefetching_leaves_room_for_what_is_in_use(site):
    sizes = [site.read_tile(i).num_bytes for i in range(len(site.tiles))]
    cache = TileCache(site, max_bytes=6 * max(sizes))
    cache.load(0)
    cache.prefetch(range(1, len(site.tiles)))
    assert cache.wait(10.0)
    assert 0 in cache
    assert 2 <= len(cache) <= 6
    cache.close()


def test_a_broken_tile_does_not_stop_the_reading_of_others(site):
    tile_path(site, 1).write_bytes(b"")
    tile_path(site, 2).unlink()
    cache = TileCache(site, max_bytes=1 << 20)
    cache.prefetch([1, 2, 3])
    assert cache.wait(10.0)
    assert [i in cache for i in (1, 2, 3)] == [False, False, True]
    with pytest.raises(TileFormatError, match="has 0 bytes"):
        cache.load(1)
    with pytest.raises(TileMissingError):
        cache.load(2)
    cache.close()


def test_tiles_near_a_place_and_what_is_seen_from_there(site):
    cache = TileCache(site, max_bytes=1 << 20)
    home = site.read_tile(int(site.tile_of(np.array([0]))[0]))
    center = site.tiles.boxes[0][home.tile_idx]
    near = cache.tiles_near(center, 0.5).tolist()
    assert near == site.tiles.near(center, 0.5).tolist()
    cache.load(home.tile_idx)
    more = cache.tiles_near(center, 0.5).tolist()
    assert more[: len(near)] == near
    seen = {int(i) >> LANDMARK_BITS for i in home.visible_point3D_ids}
    assert home.tile_idx in near
    assert set(more) == set(near) | seen
    assert len(set(more)) == len(more) > len(near)


def test_a_bug_in_reading_does_not_hang_whoever_waits(disk, cache, monkeypatch):
    """It shows on stderr; the next tile is read by another thread."""
    shown = []
    monkeypatch.setattr(threading, "excepthook", lambda args: shown.append(args))
    with monkeypatch.context() as broken:
        broken.setattr(Disk, "read_tile", lambda self, tile_idx: 1 // 0)
        cache.prefetch([1])
        assert cache.wait(10.0)
    disk.gate.set()
    assert cache.load(2, timeout_s=10.0).tile_idx == 2
    assert [args.exc_type for args in shown] == [ZeroDivisionError]


def test_a_closed_cache_gives_what_it_has_and_reads_for_itself(disk, cache):
    cache.prefetch([0, 1])
    assert disk.began.acquire(timeout=10)
    closing = threading.Timer(0.02, disk.gate.set)
    closing.start()
    cache.close()
    assert cache.wait(0.0)
    assert disk.asked == [0]
    assert cache.load(1).tile_idx == 1
    assert cache.load(0).tile_idx == 0
    with pytest.raises(TileSlowError):
        cache.load(2, timeout_s=0.01)
