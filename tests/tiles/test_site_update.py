"""Other landmarks for some tiles: the rest of the site goes on seeing the old ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from site_factory import digest, landmark_of, make_contents

from edgeloc.errors import MapError
from edgeloc.tiles.layout import LANDMARK_BITS
from edgeloc.tiles.reader import open_site, verify_site, visible_point3D_ids
from edgeloc.tiles.update import TileUpdate, update_tiles
from edgeloc.tiles.writer import write_site


@pytest.fixture
def path(tmp_path):
    contents = make_contents(
        np.random.default_rng(11),
        num_landmarks=200,
        num_keyframes=12,
        extent=8.0,
        visible_share=0.2,
    )
    write_site(tmp_path / "site", contents, cell_size=4.0)
    return tmp_path / "site"


def seen_by_name(site) -> dict[int, set[int]]:
    """What each keyframe sees, as the numbers that are written into descriptors."""
    ids = site.keyframes.keyframe_ids
    tiles = {i: site.read_tile(i) for i in range(len(site.tiles))}

    def name(point3D_id: int) -> int:
        tile = tiles[point3D_id >> LANDMARK_BITS]
        table = tile.landmarks
        row = table.descriptor_offsets[point3D_id - tile.first_point3D_id]
        return landmark_of(table.descriptors[row])

    return {
        int(keyframe_id): {name(i) for i in visible.tolist()}
        for keyframe_id, visible in zip(
            ids, visible_point3D_ids(tiles, site, ids), strict=True
        )
    }


def busiest(site) -> int:
    """The tile with the most keyframes."""
    return int(np.argmax([tile.num_keyframes for tile in site.tiles]))


def own_visible(tile):
    """Offsets and places of the tile's own landmarks that its keyframes see."""
    lists = [
        tile.visible_point3D_ids[slice(*tile.visible_offsets[i : i + 2])]
        for i in range(len(tile.keyframe_ids))
    ]
    return [
        ids[ids >> LANDMARK_BITS == tile.tile_idx] - tile.first_point3D_id
        for ids in lists
    ]


def without(tile, dropped: np.ndarray) -> TileUpdate:
    """The tile without some landmarks, the others in reverse."""
    table = tile.landmarks
    kept = np.setdiff1d(np.arange(len(table)), dropped)[::-1]
    place = np.full(len(table), -1)
    place[kept] = np.arange(len(kept))
    counts = np.diff(table.descriptor_offsets)[kept]
    rows = np.concatenate(
        [np.arange(*table.descriptor_offsets[i : i + 2]) for i in kept]
    )
    own = [place[places] for places in own_visible(tile)]
    own = [np.sort(places[places >= 0]) for places in own]
    return TileUpdate(
        landmarks=replace(
            table,
            points3D=table.points3D[kept],
            sigmas=table.sigmas[kept],
            num_observations=table.num_observations[kept],
            descriptor_offsets=np.concatenate([[0], np.cumsum(counts)]),
            descriptors=table.descriptors[rows],
        ),
        kept=kept,
        visible_offsets=np.cumsum([0, *map(len, own)]),
        visible_landmark_idx=np.concatenate(own),
    )


def test_landmarks_that_go_are_seen_no_more_and_all_others_as_before(path):
    site = open_site(path)
    before = seen_by_name(site)
    target = busiest(site)
    tile = site.read_tile(target)
    dropped = np.array([0, 3, len(tile.landmarks) - 1])
    rows = tile.landmarks.descriptor_offsets[dropped]
    names = {landmark_of(d) for d in tile.landmarks.descriptors[rows]}
    manifest = update_tiles(path, {target: without(tile, dropped)})
    verify_site(path)
    after = open_site(path)
    assert after.manifest == manifest
    assert manifest.num_landmarks == site.manifest.num_landmarks - 3
    assert seen_by_name(after) == {k: seen - names for k, seen in before.items()}
    # Someone who runs on the version before goes on.
    assert seen_by_name(site) == before


def test_only_tiles_that_are_touched_are_written(path):
    site = open_site(path)
    target = busiest(site)
    tile = site.read_tile(target)
    before = digest(path)
    update_tiles(path, {target: without(tile, np.array([1]))})
    after = open_site(path)
    changed = [
        i
        for i, (a, b) in enumerate(zip(site.tiles, after.tiles, strict=True))
        if a != b
    ]
    sees = [
        i for i in range(len(site.tiles))
        if target in site.read_tile(i).seen_tile_idx or i == target
    ]  # fmt: skip
    assert changed == sees
    assert len(changed) < len(site.tiles)
    new = set(digest(path)) - set(before) - {"previous.json"}
    assert len(new) == len(changed) + 1


def test_the_same_landmarks_in_another_order_are_seen_as_before(path):
    site = open_site(path)
    target = busiest(site)
    update = without(site.read_tile(target), np.zeros(0, int))
    before = digest(path)
    update_tiles(path, {target: update})
    names = seen_by_name(open_site(path))
    assert names == seen_by_name(site)
    changed = set(digest(path)) - set(before) - {"previous.json"}
    # Landmarks with equal tracks are stored in the order given.
    assert len(changed) <= len(site.tiles) + 1


def test_new_landmarks_are_seen_by_the_keyframes_of_the_tile(path):
    site = open_site(path)
    target = busiest(site)
    tile = site.read_tile(target)
    table = tile.landmarks
    old = without(tile, np.zeros(0, int))
    num = len(table)
    own = [
        np.append(places, num)
        for places in np.split(old.visible_landmark_idx, old.visible_offsets[1:-1])
    ]
    descriptor = np.array([[99, 9, 0, 0]], table.descriptors.dtype)
    update = TileUpdate(
        landmarks=replace(
            old.landmarks,
            points3D=np.vstack([old.landmarks.points3D, table.points3D.mean(axis=0)]),
            sigmas=np.append(old.landmarks.sigmas, np.float32(0.01)),
            num_observations=np.append(old.landmarks.num_observations, 7),
            descriptor_offsets=np.append(
                old.landmarks.descriptor_offsets, len(table.descriptors) + 1
            ),
            descriptors=np.concatenate([old.landmarks.descriptors, descriptor]),
        ),
        kept=np.append(old.kept, -1),
        visible_offsets=np.cumsum([0, *map(len, own)]),
        visible_landmark_idx=np.concatenate(own),
    )
    before = seen_by_name(site)
    update_tiles(path, {target: update})
    verify_site(path)
    after = seen_by_name(open_site(path))
    own_keyframes = set(tile.keyframe_ids.tolist())
    assert after == {
        k: seen | ({999} if k in own_keyframes else set()) for k, seen in before.items()
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda u: {
                "landmarks": replace(u.landmarks, points3D=u.landmarks.points3D + 9)
            },
            "a landmark lies outside of the cell; write the whole site",
        ),
        (lambda u: {"kept": u.kept[:-1]}, r"kept has shape \(\d+,\)"),
        (lambda u: {"kept": u.kept * 0}, "different places of landmarks"),
        (lambda u: {"kept": u.kept + 1000}, "different places of landmarks"),
        (lambda u: {"visible_offsets": u.visible_offsets[:-1]}, "visible_offsets an"),
        (
            lambda u: {"visible_landmark_idx": u.visible_landmark_idx + 1000},
            "must be indices of its landmarks",
        ),
    ],
)  # fmt: skip
def test_updates_that_do_not_fit_are_named(path, change, message):
    site = open_site(path)
    target = busiest(site)
    update = without(site.read_tile(target), np.zeros(0, int))
    before = digest(path)
    with pytest.raises(MapError, match=message):
        update_tiles(path, {target: replace(update, **change(update))})
    assert digest(path) == before
