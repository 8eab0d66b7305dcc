"""What is written comes back, within the stated bounds."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from site_factory import landmark_of, make_contents, with_poses

from edgeloc.tiles import tile_file
from edgeloc.tiles.container import FileKind, unpack
from edgeloc.tiles.layout import SiteContents
from edgeloc.tiles.reader import Site, open_site
from edgeloc.tiles.writer import write_site


def stored_step(site: Site, tile_idx: int) -> float:
    data = (site.path / site.manifest.tiles[tile_idx].file.file).read_bytes()
    meta = unpack(data, FileKind.TILE, tile_file.TAGS).sections["META"].payload
    return tile_file.META.unpack(meta)[-1]


def assert_same(contents: SiteContents, site: Site) -> None:
    """Every array of the site is that of the contents, or within its bound."""
    manifest = site.manifest
    for name in (
        "name", "metric", "cameras", "family", "rungs", "covariance_scale",
        "gravity_in_world", "geo_reference", "build",
    ):  # fmt: skip
        assert getattr(manifest, name) == getattr(contents, name), name
    keyframes, expected = site.keyframes, contents.keyframes
    assert np.array_equal(keyframes.keyframe_ids, expected.keyframe_ids)
    assert keyframes.camera_ids == expected.camera_ids
    assert np.allclose(keyframes.t, expected.t, rtol=1e-14, atol=1e-14)
    assert np.abs(keyframes.R - expected.R).max() < 1e-14
    difference = keyframes.global_codes - expected.global_codes
    assert np.abs(difference).max() <= 2.0**-12
    assert keyframes.global_codes.dtype == np.float32
    assert site.retrieval_arrays.keys() == contents.retrieval_arrays.keys()
    for name, array in contents.retrieval_arrays.items():
        assert np.array_equal(site.retrieval_arrays[name], array)
        assert site.retrieval_arrays[name].dtype == np.float32

    tiles = [site.read_tile(i) for i in range(len(manifest.tiles))]
    landmarks = contents.landmarks
    idx_of_id: list[int] = []
    for tile in tiles:
        table = tile.landmarks
        assert tile.first_point3D_id == len(idx_of_id)
        starts = table.descriptor_offsets[:-1]
        own = [landmark_of(d) for d in table.descriptors[starts]]
        assert own == sorted(own)
        idx_of_id += own
        rows = np.concatenate(
            [np.zeros(0, int)]
            + [
                np.arange(*landmarks.descriptor_offsets[i : i + 2])
                for i in own
            ]
        )  # fmt: skip
        assert np.array_equal(table.descriptors, landmarks.descriptors[rows])
        assert table.descriptors.dtype == landmarks.descriptors.dtype
        assert table.num_observations.tolist() == [
            min(255, n) for n in landmarks.num_observations[own]
        ]
        if own:
            error = np.abs(table.points3D - landmarks.points3D[own]).max()
            assert error <= stored_step(site, tile.tile_idx) / 2 * (1 + 1e-9)
            ratio = np.log2(table.sigmas / landmarks.sigmas[own])
            assert np.abs(ratio).max() <= 1 / 12 + 1e-6
    assert sorted(idx_of_id) == list(range(len(landmarks)))

    seen = {}
    for tile in tiles:
        for i, keyframe_id in enumerate(tile.keyframe_ids.tolist()):
            ids = tile.visible_point3D_ids[slice(*tile.visible_offsets[i : i + 2])]
            assert np.all(np.diff(ids) > 0)
            seen[keyframe_id] = sorted(idx_of_id[i] for i in ids)
    assert seen == {
        keyframe_id: contents.visible_landmark_idx[
            slice(*contents.visible_offsets[i : i + 2])
        ].tolist()
        for i, keyframe_id in enumerate(expected.keyframe_ids.tolist())
    }


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    num_landmarks=st.sampled_from([0, 1, 2, 7, 60]),
    num_keyframes=st.sampled_from([1, 2, 9]),
    extent=st.sampled_from([0.0, 1e-3, 1.0, 50.0, 1e5]),
    center=st.sampled_from([0.0, -7.3, 4e5, -6.4e6]),
    dtype=st.sampled_from(["uint8", "int8", "float16", "float32"]),
    visible_share=st.sampled_from([0.0, 0.3, 1.0]),
    cells=st.sampled_from([None, 1, 3]),
    max_tile_bytes=st.sampled_from([1, 1000, 4 << 20]),
)
def test_a_site_comes_back(
    seed, num_landmarks, num_keyframes, extent, center, dtype, visible_share, cells,
    max_tile_bytes,
):  # fmt: skip
    contents = make_contents(
        np.random.default_rng(seed),
        num_landmarks=num_landmarks,
        num_keyframes=num_keyframes,
        extent=extent,
        center=center,
        dtype=dtype,
        visible_share=visible_share,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "site"
        manifest = write_site(
            path,
            contents,
            cell_size=None if cells is None else (extent or 1.0) / cells,
            max_tile_bytes=max_tile_bytes,
        )
        site = open_site(path, verify=True)
        assert site.manifest == manifest
        assert_same(contents, site)
        files = [f for f in path.rglob("*") if f.is_file()]
        assert manifest.total_bytes == sum(f.stat().st_size for f in files)


def test_landmarks_over_many_tiles(tmp_path, rng):
    contents = make_contents(rng, num_landmarks=900, num_keyframes=12, extent=90.0)
    manifest = write_site(tmp_path / "site", contents, cell_size=30.0)
    assert 27 <= len(manifest.tiles) <= 64
    assert manifest.num_landmarks == 900
    site = open_site(tmp_path / "site")
    assert_same(contents, site)
    # A keyframe sees landmarks of other tiles than its own.
    tile = site.read_tile(int(site.keyframe_tile_idx[0]))
    own = tile.visible_point3D_ids - tile.first_point3D_id
    assert np.any((own < 0) | (own >= len(tile.landmarks)))


def test_tiles_stay_below_the_bound(tmp_path, rng):
    contents = make_contents(rng, num_landmarks=900, num_keyframes=12)
    for max_tile_bytes in (3000, 8000):
        manifest = write_site(
            tmp_path / str(max_tile_bytes), contents, max_tile_bytes=max_tile_bytes
        )
        sizes = [tile.file.num_bytes for tile in manifest.tiles]
        assert max(sizes) <= max_tile_bytes
        assert len(sizes) > 3


def test_landmarks_without_descriptors_and_a_bare_site(tmp_path, rng):
    contents = make_contents(rng, num_landmarks=3)
    bare = replace(
        contents,
        landmarks=replace(
            contents.landmarks,
            descriptor_offsets=np.array([0, 0, 1, 1]),
            descriptors=contents.landmarks.descriptors[:1],
        ),
        keyframes=replace(
            contents.keyframes, global_codes=np.zeros((3, 0), np.float32)
        ),
        retrieval_arrays={"empty": np.zeros((0, 7), np.float32)},
        gravity_in_world=None,
        geo_reference=None,
        metric=False,
        build={},
        rungs=(),
    )
    write_site(tmp_path / "site", bare)
    site = open_site(tmp_path / "site", verify=True)
    assert site.read_tile(0).landmarks.descriptor_offsets.tolist() == [0, 0, 1, 1]
    assert site.keyframes.global_codes.shape == (3, 0)
    assert site.retrieval_arrays["empty"].shape == (0, 7)
    assert site.manifest.gravity_in_world is None
    assert site.manifest.geo_reference is None
    assert not site.manifest.metric
    assert site.manifest.rungs == ()


def test_boxes_hold_the_landmarks(tmp_path, rng):
    contents = make_contents(rng, num_landmarks=100, extent=10.0)
    manifest = write_site(tmp_path / "site", contents, cell_size=5.0)
    site = open_site(tmp_path / "site")
    for i, entry in enumerate(manifest.tiles):
        points3D = site.read_tile(i).landmarks.points3D
        assert tuple(points3D.min(axis=0)) == entry.box_min
        assert tuple(points3D.max(axis=0)) == entry.box_max


@pytest.mark.parametrize("angle_rad", [0.0, 1e-9, np.pi - 1e-9, np.pi])
def test_rotations_near_the_ends_come_back(tmp_path, rng, angle_rad):
    contents = make_contents(rng, num_keyframes=1)
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    R = np.array([[[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]])
    write_site(
        tmp_path / "site",
        replace(contents, keyframes=with_poses(contents.keyframes, R=R)),
    )
    assert np.abs(open_site(tmp_path / "site").keyframes.R - R).max() < 1e-14
