"""What is written comes back, within the stated bounds."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from site_factory import landmark_of, make_contents, tile_path, with_poses

from edgeloc.geometry.se3 import rotation_angle_rad
from edgeloc.tiles import codec, index_file, tile_file
from edgeloc.tiles.container import FileKind, unpack
from edgeloc.tiles.layout import LANDMARK_BITS, Codebook, SiteContents
from edgeloc.tiles.reader import Site, open_site, verify_site
from edgeloc.tiles.writer import write_site

MAX_ANGLE_RAD = 6.2e-5
"""0.0036 degrees: 16 bits per element of a quaternion."""


def stored_step(site: Site, tile_idx: int) -> float:
    sections = unpack(
        tile_path(site, tile_idx).read_bytes(), FileKind.TILE, tile_file.TAGS
    ).sections
    return 2.0 ** tile_file.META.unpack(sections["META"].payload)[7]


def center_step(site: Site) -> float:
    data = (site.path / site.manifest.index.file).read_bytes()
    sections = unpack(data, FileKind.INDEX, index_file.TAGS).sections
    return 2.0 ** index_file.META.unpack(sections["META"].payload)[5]


def assert_same_keyframes(contents: SiteContents, site: Site) -> None:
    keyframes, expected = site.keyframes, contents.keyframes
    order = expected.index_of(keyframes.keyframe_ids)
    assert sorted(order.tolist()) == list(range(len(expected)))
    assert list(keyframes.camera_ids) == [expected.camera_ids[i] for i in order]
    assert np.abs(keyframes.centers - expected.centers[order]).max() <= (
        # To a translation and back is rounded twice.
        center_step(site) / 2 * (1 + 1e-9) + 4e-15 * np.abs(expected.t).max()
    )
    turns = keyframes.R @ np.swapaxes(expected.R[order], 1, 2)
    assert rotation_angle_rad(turns).max() <= MAX_ANGLE_RAD
    codes = expected.global_codes[order]
    assert np.array_equal(keyframes.global_codes, codes.astype(np.float16))
    assert keyframes.global_codes.dtype == np.float16
    back = keyframes.index_of(expected.keyframe_ids)
    assert np.array_equal(keyframes.keyframe_ids[back], expected.keyframe_ids)
    few = np.arange(0, len(keyframes), 3)
    assert np.array_equal(keyframes.centers_of(few), keyframes.centers[few])


def assert_same(contents: SiteContents, site: Site) -> None:
    """Every array of the site is that of the contents, or within its bound."""
    manifest = site.manifest
    for name in (
        "name", "metric", "cameras", "family", "rungs", "covariance_scale",
        "gravity_in_world", "geo_reference", "build",
    ):  # fmt: skip
        assert getattr(manifest, name) == getattr(contents, name), name
    assert_same_keyframes(contents, site)
    assert site.retrieval_arrays.keys() == contents.retrieval_arrays.keys()
    for name, array in contents.retrieval_arrays.items():
        assert np.array_equal(site.retrieval_arrays[name], array)
        assert site.retrieval_arrays[name].dtype == array.dtype

    tiles = [site.read_tile(i) for i in range(len(site.tiles))]
    landmarks = contents.landmarks
    idx_of_id: dict[int, int] = {}
    for tile in tiles:
        table = tile.landmarks
        assert tile.first_point3D_id == tile.tile_idx << LANDMARK_BITS
        starts = table.descriptor_offsets[:-1]
        own = [landmark_of(d) for d in table.descriptors[starts]]
        idx_of_id |= {tile.first_point3D_id + i: idx for i, idx in enumerate(own)}
        rows = np.concatenate(
            [np.zeros(0, int)]
            + [
                np.arange(*landmarks.descriptor_offsets[i : i + 2])
                for i in own
            ]
        )  # fmt: skip
        assert np.array_equal(table.descriptors, landmarks.descriptors[rows])
        assert table.descriptors.dtype == landmarks.descriptors.dtype
        nearest = np.abs(
            np.array(codec.OBSERVATION_COUNTS)[:, None]
            - np.minimum(landmarks.num_observations[own], 64)
        ).min(axis=0)
        off = table.num_observations - np.minimum(landmarks.num_observations[own], 64)
        assert np.array_equal(np.abs(off), nearest)
        if own:
            error = np.abs(table.points3D - landmarks.points3D[own]).max()
            assert error <= stored_step(site, tile.tile_idx) / 2 * (1 + 1e-9)
            expected = np.clip(landmarks.sigmas[own], *table.sigmas[[0, 0]])
            low, high = table.sigmas.min(), table.sigmas.max()
            expected = np.clip(landmarks.sigmas[own], low, high)
            assert np.abs(np.log2(table.sigmas / expected)).max() <= 1 / 4 + 1e-6
            assert high / low <= 2**7.5 * (1 + 1e-6)
    assert sorted(idx_of_id.values()) == list(range(len(landmarks)))

    seen = {}
    for tile in tiles:
        for i, keyframe_id in enumerate(tile.keyframe_ids.tolist()):
            ids = tile.visible_point3D_ids[slice(*tile.visible_offsets[i : i + 2])]
            assert np.all(np.diff(ids) > 0)
            seen[keyframe_id] = sorted(idx_of_id[i] for i in ids.tolist())
    assert seen == {
        keyframe_id: contents.visible_landmark_idx[
            slice(*contents.visible_offsets[i : i + 2])
        ].tolist()
        for i, keyframe_id in enumerate(contents.keyframes.keyframe_ids.tolist())
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
    step=st.sampled_from([None, 0.001, 0.5]),
    origin=st.sampled_from([None, (0.0, 0.0, 0.0), (-6.4e6, 1.0, 0.3)]),
)
def test_a_site_comes_back(
    seed, num_landmarks, num_keyframes, extent, center, dtype, visible_share, cells,
    max_tile_bytes, step, origin,
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
    contents = replace(contents, position_step=step, grid_origin=origin)
    if origin is not None:
        cells = None
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
    manifest = write_site(tmp_path / "site", contents, cell_size=32.0)
    assert 27 <= manifest.num_tiles <= 64
    assert manifest.num_landmarks == 900
    site = open_site(tmp_path / "site")
    assert_same(contents, site)
    # A keyframe sees landmarks of other tiles than its own.
    tile = site.read_tile(int(site.tile_of(np.array([0]))[0]))
    assert len(np.unique(tile.visible_point3D_ids >> LANDMARK_BITS)) > 20


def test_tiles_stay_below_the_bound(tmp_path, rng):
    contents = make_contents(rng, num_landmarks=900, num_keyframes=12)
    for max_tile_bytes in (3000, 8000):
        path = tmp_path / str(max_tile_bytes)
        write_site(path, contents, max_tile_bytes=max_tile_bytes)
        sizes = [tile.num_bytes for tile in open_site(path).tiles]
        assert max(sizes) <= max_tile_bytes
        assert len(sizes) > 3


def test_a_bound_that_nothing_can_hold_is_tried_in_vain(tmp_path, rng):
    """Landmarks at one place cannot be divided; the keyframes of a tile neither."""
    contents = make_contents(rng, points3D=np.full((50, 3), 1.5))
    manifest = write_site(tmp_path / "site", contents, max_tile_bytes=200)
    assert manifest.num_tiles == 1
    assert manifest.tile_bytes > 200
    verify_site(tmp_path / "site")


def test_the_bytes_of_a_tile_do_not_depend_on_the_rows_of_others(tmp_path, rng):
    """A new wing renumbers tiles; tiles that it does not touch are the same files."""
    old = make_contents(
        rng, points3D=rng.uniform(0, 60, (500, 3)) * [1, 1, 0.1], visible_share=0.1
    )
    points3D = np.vstack(
        [old.landmarks.points3D, rng.uniform(0, 30, (80, 3)) - np.array([90.0, 0, 0])]
    )
    wing = make_contents(np.random.default_rng(1), points3D=points3D)
    landmarks = old.landmarks
    fresh = slice(landmarks.descriptor_offsets[-1], None)
    counts = np.diff(wing.landmarks.descriptor_offsets)[500:]
    new = replace(
        old,
        landmarks=replace(
            landmarks,
            points3D=points3D,
            sigmas=np.append(landmarks.sigmas, wing.landmarks.sigmas[500:]),
            num_observations=np.append(
                landmarks.num_observations, wing.landmarks.num_observations[500:]
            ),
            descriptor_offsets=np.append(
                landmarks.descriptor_offsets,
                landmarks.descriptor_offsets[-1] + np.cumsum(counts),
            ),
            descriptors=np.concatenate(
                [landmarks.descriptors, wing.landmarks.descriptors[-counts.sum() :]]
            ),
        ),
    )
    assert fresh.start < len(new.landmarks.descriptors)
    first = write_site(tmp_path / "a", old, cell_size=16.0)
    write_site(
        tmp_path / "b", replace(new, grid_origin=first.grid_origin), cell_size=16.0
    )
    names = [{f.name for f in (tmp_path / s / "tiles").iterdir()} for s in "ab"]
    assert names[0] < names[1]
    rows = [open_site(tmp_path / s).tiles for s in "ab"]
    moved = [rows[1].row_of(tile.cell) for tile in rows[0]]
    assert moved != list(range(len(moved)))


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
    counts = np.diff(site.read_tile(0).landmarks.descriptor_offsets)
    assert sorted(counts.tolist()) == [0, 0, 1]
    assert site.keyframes.global_codes.shape == (3, 0)
    assert site.retrieval_arrays["empty"].shape == (0, 7)
    assert site.manifest.gravity_in_world is None
    assert site.manifest.geo_reference is None
    assert not site.manifest.metric
    assert site.manifest.rungs == ()


def test_boxes_hold_the_landmarks_and_little_more(tmp_path, rng):
    contents = make_contents(rng, num_landmarks=100, extent=10.0)
    write_site(tmp_path / "site", contents, cell_size=4.0)
    site = open_site(tmp_path / "site")
    low, high = site.tiles.boxes
    for i, entry in enumerate(site.tiles):
        points3D = site.read_tile(i).landmarks.points3D
        slack = entry.cell.size / 256
        assert np.all(points3D >= low[i] - 1e-12)
        assert np.all(points3D <= high[i] + 1e-12)
        assert np.all(points3D.min(axis=0) - low[i] <= slack)
        assert np.all(high[i] - points3D.max(axis=0) <= slack)


def test_tiles_near_a_place_come_in_the_order_of_their_distance(tmp_path, rng):
    contents = make_contents(rng, num_landmarks=400, extent=60.0)
    write_site(tmp_path / "site", contents, cell_size=8.0)
    tiles = open_site(tmp_path / "site").tiles
    center = np.array([5.0, -3.0, 2.0])
    near = tiles.near(center, 12.0)
    low, high = tiles.boxes
    distance = np.linalg.norm(
        np.maximum(np.maximum(low - center, center - high), 0), axis=1
    )
    assert set(near.tolist()) == set(np.flatnonzero(distance <= 12.0).tolist())
    assert 3 < len(near) < len(tiles)
    assert np.all(np.diff(distance[near]) >= 0)


def test_codes_and_codebooks_come_back(tmp_path, rng):
    contents = make_contents(rng)
    books = {
        role: Codebook(
            name=f"{role} of the kitchen",
            arrays={
                "centroids": rng.normal(size=(4, 16, 2)).astype(np.float32),
                "rotation": np.eye(3, dtype=np.float16),
                "order": np.arange(5, dtype=dtype),
            },
        )
        for role, dtype in (("descriptors", np.uint16), ("global", np.uint32))
    }
    coded = replace(
        contents,
        codebooks=books,
        family=replace(contents.family, coding="pq"),
        global_coding="pq",
        keyframes=replace(
            contents.keyframes, global_codes=rng.integers(0, 255, (3, 16)).astype("u1")
        ),
        retrieval_arrays={
            "lists": np.arange(7, dtype=np.uint32),
            "bytes": np.arange(3, dtype=np.int8),
        },
    )
    manifest = write_site(tmp_path / "site", coded)
    site = open_site(tmp_path / "site", verify=True)
    assert (site.manifest.global_dtype, site.manifest.global_dim) == ("uint8", 16)
    assert np.array_equal(site.keyframes.global_codes, coded.keyframes.global_codes)
    for role, book in books.items():
        found = site.codebook(role)
        assert found.name == book.name
        assert found.arrays.keys() == book.arrays.keys()
        for name, array in book.arrays.items():
            assert np.array_equal(found.arrays[name], array)
            assert found.arrays[name].dtype == array.dtype
    for name, array in coded.retrieval_arrays.items():
        assert np.array_equal(site.retrieval_arrays[name], array)
        assert site.retrieval_arrays[name].dtype == array.dtype
    assert manifest.total_bytes == sum(
        f.stat().st_size for f in (tmp_path / "site").rglob("*") if f.is_file()
    )


@pytest.mark.parametrize("angle_rad", [0.0, 1e-9, np.pi - 1e-9, np.pi])
def test_rotations_near_the_ends_come_back(tmp_path, rng, angle_rad):
    contents = make_contents(rng, num_keyframes=1)
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    R = np.array([[[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]])
    write_site(
        tmp_path / "site",
        replace(contents, keyframes=with_poses(contents.keyframes, R=R)),
    )
    found = open_site(tmp_path / "site").keyframes.R
    assert rotation_angle_rad(found[0] @ R[0].T) <= MAX_ANGLE_RAD


@pytest.mark.parametrize(("count", "width"), [(1, 0), (2, 1), (256, 1), (257, 2)])
def test_cameras_take_as_many_bytes_as_they_need(tmp_path, rng, count, width):
    contents = make_contents(rng, num_keyframes=5)
    cameras = {f"{i:03d}": contents.cameras["left"] for i in range(count)}
    names = tuple(rng.choice(sorted(cameras), 5).tolist())
    changed = replace(
        contents,
        cameras=cameras,
        keyframes=replace(contents.keyframes, camera_ids=names),
    )
    write_site(tmp_path / "site", changed)
    site = open_site(tmp_path / "site")
    assert list(site.keyframes.camera_ids) == list(names)
    assert site.keyframes.camera_ids[-1] == names[-1]
    with pytest.raises(IndexError):
        site.keyframes.camera_ids[5]
    data = (site.path / site.manifest.index.file).read_bytes()
    sections = unpack(data, FileKind.INDEX, index_file.TAGS).sections
    assert len(sections["KCAM"].payload) == 5 * width
