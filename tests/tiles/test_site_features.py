"""Features of keyframes: written, read, divided into tiles, carried along."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from site_factory import digest, make_contents, with_features

from edgeloc.errors import MapError
from edgeloc.tiles.delta import apply_delta, write_delta
from edgeloc.tiles.layout import LandmarkTable
from edgeloc.tiles.reader import assemble_features, open_site
from edgeloc.tiles.update import TileUpdate, update_tiles
from edgeloc.tiles.writer import write_site, write_site_in_blocks


def contents_of(seed: int, *, num_landmarks: int, most: int = 9, **options):
    rng = np.random.default_rng(seed)
    contents = make_contents(rng, num_landmarks=num_landmarks, **options)
    return with_features(contents, rng, most=most)


@pytest.mark.parametrize("num_landmarks", [0, 40])
def test_they_come_back_in_any_order(tmp_path, num_landmarks):
    contents = contents_of(
        0, num_landmarks=num_landmarks, num_keyframes=30, extent=50.0, most=200
    )
    write_site(tmp_path / "site", contents, max_tile_bytes=8000)
    site = open_site(tmp_path / "site", verify=True)
    assert len(site.tiles) > 4
    assert max(tile.num_bytes for tile in site.tiles) <= 8000
    rows = np.random.default_rng(1).permutation(30)[:20]
    found = assemble_features(
        site.read_tile, site, contents.keyframes.keyframe_ids[rows]
    )
    expected = contents.features.of(rows)
    assert np.array_equal(found.offsets, expected.offsets)
    assert np.abs(found.keypoints - expected.keypoints).max() <= 1 / 16
    octaves = np.abs(np.log2(found.sigmas / expected.sigmas))
    # The 2 % smallest of a tile are rounded up.
    assert np.quantile(octaves, 0.96) <= 0.25 + 1e-6
    assert np.array_equal(found.descriptors, expected.descriptors)


def test_a_site_without_is_of_the_version_before(tmp_path):
    contents = contents_of(0, num_landmarks=5)
    bare = replace(contents, features=None)
    assert write_site(tmp_path / "bare", bare).format_version == 2
    assert write_site(tmp_path / "site", contents).format_version == 3
    site = open_site(tmp_path / "bare")
    none = assemble_features(site.read_tile, site, site.keyframes.keyframe_ids)
    assert (len(none), none.offsets.tolist()) == (0, [0, 0, 0, 0])
    assert site.read_tile(0).features is None


def test_features_take_memory(tmp_path):
    contents = contents_of(0, num_landmarks=5, most=50)
    write_site(tmp_path / "site", contents)
    write_site(tmp_path / "bare", replace(contents, features=None))
    tiles = [open_site(tmp_path / name).read_tile(0) for name in ("site", "bare")]
    num = len(contents.features)
    assert tiles[0].num_bytes - tiles[1].num_bytes == num * (8 + 4 + 4) + 4 * 8


def test_tiles_without_landmarks_are_near_where_their_keyframes_are(tmp_path):
    contents = contents_of(0, num_landmarks=0, num_keyframes=30, extent=50.0, most=200)
    write_site(tmp_path / "site", contents, max_tile_bytes=8000)
    site = open_site(tmp_path / "site")
    centers = site.keyframes.centers
    for idx in range(0, 30, 5):
        near = site.tiles.near(centers[idx], 0.1)
        assert near[0] == site.tile_of(np.array([idx]))[0]
        assert len(near) < len(site.tiles)


def test_an_update_keeps_them(tmp_path):
    contents = contents_of(2, num_landmarks=20, extent=0.5)
    write_site(tmp_path / "site", contents, max_tile_bytes=10**6)
    before = open_site(tmp_path / "site").read_tile(0)
    kept = np.arange(3)
    landmarks = before.landmarks
    ends = landmarks.descriptor_offsets[:4]
    update = TileUpdate(
        landmarks=LandmarkTable(
            points3D=landmarks.points3D[kept],
            sigmas=landmarks.sigmas[kept],
            num_observations=landmarks.num_observations[kept],
            descriptor_offsets=ends,
            descriptors=landmarks.descriptors[: ends[-1]],
        ),
        kept=kept,
        visible_offsets=np.zeros(len(before.keyframe_ids) + 1, np.int64),
        visible_landmark_idx=np.zeros(0, np.int64),
    )
    update_tiles(tmp_path / "site", {0: update})
    site = open_site(tmp_path / "site", verify=True)
    after = site.read_tile(0)
    assert len(after.landmarks) == 3
    assert np.array_equal(after.features.keypoints, before.features.keypoints)
    assert np.array_equal(after.features.descriptors, before.features.descriptors)


def test_a_delta_carries_them(tmp_path):
    old = replace(contents_of(3, num_landmarks=5), features=None)
    new = contents_of(3, num_landmarks=5)
    write_site(tmp_path / "device", old)
    write_site(tmp_path / "new", new)
    write_delta(tmp_path / "device", tmp_path / "new", tmp_path / "d.delta")
    apply_delta(tmp_path / "device", tmp_path / "d.delta")
    assert open_site(tmp_path / "device", verify=True).manifest.has_features
    files = digest(tmp_path / "device")
    assert digest(tmp_path / "new").items() <= files.items()


def test_blocks_have_them_all_or_none(tmp_path):
    first = replace(contents_of(4, num_landmarks=5), grid_origin=(-8.0, -8.0, -8.0))
    ids = first.keyframes.keyframe_ids + 100
    second = replace(
        contents_of(5, num_landmarks=5, center=40.0),
        grid_origin=first.grid_origin,
    )
    second = replace(second, keyframes=replace(second.keyframes, keyframe_ids=ids))
    manifest = write_site_in_blocks(tmp_path / "s", [first, second], cell_size=16.0)
    assert manifest.format_version == 3
    open_site(tmp_path / "s", verify=True)
    with pytest.raises(MapError, match="whether there are features"):
        write_site_in_blocks(
            tmp_path / "t", [first, replace(second, features=None)], cell_size=16.0
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keypoints": np.full((9, 2), -1, np.float32)}, "features.keypoints must be"),
        ({"sigmas": np.full(9, np.nan, np.float32)}, "features.sigmas must be finite"),
        ({"sigmas": np.ones(8, np.float32)}, "features.sigmas has shape"),
        ({"descriptors": np.zeros((9, 4), np.int8)}, "features.descriptors are int8"),
        ({"offsets": np.array([0, 5, 9])}, "features.offsets has shape"),
        ({"offsets": np.array([0, 5, 4, 9])}, "features.offsets must ascend"),
    ],
)
def test_what_cannot_be_written_has_a_name(tmp_path, change, message):
    contents = contents_of(0, num_landmarks=2)
    whole = {
        "offsets": np.array([0, 3, 6, 9]),
        "keypoints": np.ones((9, 2), np.float32),
        "sigmas": np.ones(9, np.float32),
        "descriptors": np.zeros((9, 4), np.uint8),
    }
    features = replace(contents.features, **{**whole, **change})
    with pytest.raises(MapError, match=message):
        write_site(tmp_path / "site", replace(contents, features=features))
