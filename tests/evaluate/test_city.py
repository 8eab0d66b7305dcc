"""The synthetic city: a site as any other, written block by block, localized in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeloc.errors import ConfigError, MapError
from edgeloc.features.keyframe_index import MAX_RESIDENT
from edgeloc.runtime.site_models import open_keyframe_index
from edgeloc.tiles.bits import ranges
from edgeloc.tiles.layout import KeyframeTable, LandmarkTable, PoseArrays, SiteContents
from edgeloc.tiles.reader import open_site, verify_site
from edgeloc.tiles.writer import write_site, write_site_in_blocks
from edgeloc_tools.evaluate import city as city_command
from edgeloc_tools.evaluate.city import (
    CODE_BYTES,
    FEATURES,
    PLACES,
    CityQuery,
    make_city,
    measure,
    measure_latencies,
    prepare_queries,
    report,
    shipped_codebook,
)
from edgeloc_tools.evaluate.city_streets import (
    BLOCK_M,
    CAMERA,
    STREET_KEYFRAMES,
    City,
    draw_codes,
)

NUM_QUERIES = 5


def small_city(num_keyframes: int, landmarks_per_keyframe: int) -> City:
    return City(
        num_keyframes=num_keyframes,
        landmarks_per_keyframe=landmarks_per_keyframe,
        descriptor_codebook=shipped_codebook(FEATURES, CODE_BYTES),
        global_codebook=shipped_codebook(PLACES, 32),
    )


def joined(blocks: list[SiteContents]) -> SiteContents:
    """Return all blocks as one."""
    landmarks = [block.landmarks for block in blocks]
    keyframes = [block.keyframes for block in blocks]
    first = np.cumsum([0, *(len(one) for one in landmarks)])
    num = [len(one) for one in landmarks]
    return replace(
        blocks[0],
        landmarks=LandmarkTable(
            points3D=np.concatenate([one.points3D for one in landmarks]),
            sigmas=np.concatenate([one.sigmas for one in landmarks]),
            num_observations=np.concatenate(
                [one.num_observations for one in landmarks]
            ),
            descriptor_offsets=np.arange(sum(num) + 1),
            descriptors=np.concatenate([one.descriptors for one in landmarks]),
        ),
        keyframes=KeyframeTable(
            keyframe_ids=np.concatenate([one.keyframe_ids for one in keyframes]),
            camera_ids=tuple(i for one in keyframes for i in one.camera_ids),
            poses=PoseArrays(
                R=np.concatenate([one.R for one in keyframes]),
                t=np.concatenate([one.t for one in keyframes]),
            ),
            global_codes=np.concatenate([one.global_codes for one in keyframes]),
        ),
        visible_offsets=np.cumsum(
            [0, *np.concatenate([np.diff(b.visible_offsets) for b in blocks]).tolist()]
        ),
        visible_landmark_idx=np.concatenate(
            [b.visible_landmark_idx + at for b, at in zip(blocks, first, strict=False)]
        ),
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def site_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("city") / "site"
    make_city(path, km=0.1)
    return path


def test_a_city_is_a_site_in_order(site_path: Path) -> None:
    verify_site(site_path)
    site = open_site(site_path)
    assert site.manifest.num_keyframes == 100
    assert site.manifest.num_landmarks == 20_000
    assert site.manifest.family.coding == "pq"


def test_a_keyframe_sees_what_projects_into_its_picture() -> None:
    [block] = small_city(60, 50).blocks()
    visible = np.diff(block.visible_offsets)
    assert 60 < np.median(visible) < 400
    assert 3 < len(block.visible_landmark_idx) / len(block.landmarks) < 6
    for idx in (0, 30, 59):
        begin, end = block.visible_offsets[idx : idx + 2]
        points = block.landmarks.points3D[block.visible_landmark_idx[begin:end]]
        seen = block.keyframes.cam_from_world(idx).transform(points)
        px = 450.0 * seen[:, :2] / seen[:, 2:] + [CAMERA.width / 2, CAMERA.height / 2]
        assert np.all(seen[:, 2] > 1.0)
        assert np.all((px > -40) & (px < [CAMERA.width + 40, CAMERA.height + 40]))


def test_frames_are_localized_and_measured(site_path: Path, tmp_path: Path) -> None:
    files = prepare_queries(site_path, tmp_path / "q", count=NUM_QUERIES, seed=1)
    found = measure(site_path, files, cache_bytes=8 << 20)
    assert found.localized == 1.0
    assert max(found.errors_m) < 0.1
    assert max(found.errors_deg) < 0.5
    num_tiles = len(open_site(site_path).tiles)
    assert 1 <= min(found.frame_reads) <= max(found.frame_reads) <= num_tiles
    times, _ = measure_latencies(
        [(site_path, files), (site_path, files)], cache_bytes=8 << 20
    )
    assert len(times.cold_wall) == len(times.kept_cpu) == NUM_QUERIES
    assert min(times.cold_cpu) > 0
    text = report([found, found], [times, times])
    assert "| localized within 0.25 m | 100.0 % | 100.0 % |" in text
    assert "x 1.00 / 1.00" in text


def test_queries_come_back_from_their_files(site_path: Path, tmp_path: Path) -> None:
    first, *_ = prepare_queries(site_path, tmp_path / "a", count=2, seed=3)
    again, *_ = prepare_queries(site_path, tmp_path / "b", count=2, seed=3)
    one, two = CityQuery.load(first), CityQuery.load(again)
    np.testing.assert_array_equal(one.query.descriptors, two.query.descriptors)
    np.testing.assert_array_equal(one.cam_from_world.t, two.cam_from_world.t)
    lengths = np.linalg.norm(one.query.descriptors, axis=1)
    np.testing.assert_allclose(lengths, 1.0, atol=1e-5)


def test_block_by_block_gives_the_bytes_of_all_at_once(tmp_path: Path) -> None:
    city = small_city(4 * STREET_KEYFRAMES + 60, 12)
    blocks = list(city.blocks())
    assert len(blocks) == 2
    write_site_in_blocks(
        tmp_path / "blocks", reversed(blocks), cell_size=BLOCK_M, max_tile_bytes=60_000
    )
    write_site(
        tmp_path / "whole",
        joined(blocks),
        cell_size=BLOCK_M,
        max_tile_bytes=60_000,
    )
    in_blocks, at_once = files_of(tmp_path / "blocks"), files_of(tmp_path / "whole")
    assert in_blocks == at_once
    assert len(in_blocks) > 10


def test_one_block_is_in_memory_at_a_time(tmp_path: Path) -> None:
    asked: list[int] = []
    city = small_city(4 * STREET_KEYFRAMES + 10, 4)

    def blocks() -> object:
        for number, block in enumerate(city.blocks()):
            written = len(list(tmp_path.rglob("*.tile")))
            asked.append(written)
            assert number == 0 or written > 0
            yield block

    write_site_in_blocks(tmp_path / "site", blocks(), cell_size=BLOCK_M)  # type: ignore[arg-type]
    assert asked[0] == 0
    assert len(asked) == 2


def test_blocks_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    [block] = small_city(20, 10).blocks()
    path = tmp_path / "site"
    with pytest.raises(MapError, match="it has no blocks"):
        write_site_in_blocks(path, [], cell_size=BLOCK_M)
    later = replace(
        block,
        keyframes=replace(
            block.keyframes, keyframe_ids=block.keyframes.keyframe_ids + 20
        ),
    )
    moved = replace(
        later,
        landmarks=replace(later.landmarks, points3D=later.landmarks.points3D + 0.25),
    )
    with pytest.raises(MapError, match="is not in the order of the cells"):
        write_site_in_blocks(path, [block, moved], cell_size=BLOCK_M)
    other = replace(moved, position_step=0.5)
    with pytest.raises(MapError, match="blocks differ in what is said of the whole"):
        write_site_in_blocks(path, [block, other], cell_size=BLOCK_M)
    assert not path.exists()
    assert list(tmp_path.iterdir()) == []


def test_arrays_of_rows_are_made_of_the_codes_as_stored(tmp_path: Path) -> None:
    """Lists name rows of the site, in which keyframes are grouped by tile."""
    [block] = small_city(100, 40).blocks()

    def arrays(codes: object) -> dict[str, np.ndarray]:
        return {"seen": np.array(codes)}

    backwards = np.arange(100)[::-1]
    offsets = block.visible_offsets
    counts = np.diff(offsets)[backwards]
    mixed = replace(
        block,
        keyframes=KeyframeTable(
            keyframe_ids=block.keyframes.keyframe_ids,
            camera_ids=block.keyframes.camera_ids,
            poses=PoseArrays(
                R=block.keyframes.R[backwards], t=block.keyframes.t[backwards]
            ),
            global_codes=block.keyframes.global_codes[backwards],
        ),
        visible_offsets=np.cumsum([0, *counts.tolist()]),
        visible_landmark_idx=block.visible_landmark_idx[
            ranges(offsets[backwards], counts)
        ],
        row_arrays=arrays,
    )
    write_site(tmp_path / "site", mixed, max_tile_bytes=20_000)
    site = open_site(tmp_path / "site")
    assert len(site.tiles) > 2
    assert not np.array_equal(site.keyframes.global_codes, mixed.keyframes.global_codes)
    np.testing.assert_array_equal(
        site.retrieval_arrays["seen"], site.keyframes.global_codes
    )


def test_every_place_of_a_large_site_is_found(tmp_path: Path) -> None:
    city = small_city(MAX_RESIDENT + 100, 3)
    write_site_in_blocks(tmp_path / "site", city.blocks(), cell_size=BLOCK_M)
    site = open_site(tmp_path / "site")
    # Keyframes are not where they were in the contents, and yet found.
    assert np.any(np.diff(site.keyframes.keyframe_ids) < 0)
    index = open_keyframe_index(site)
    assert index.lists is not None
    for idx in range(0, len(site.keyframes), 500):
        [query] = index.descriptors(np.array([idx]))
        found = index.search(query, k=3)
        assert found.keyframe_ids[0] == site.keyframes.keyframe_ids[idx]
        assert found.scores[0] > 0.999


def test_drawn_codes_come_from_real_ones() -> None:
    quantizer = small_city(1, 1).descriptor_quantizer
    rng = np.random.default_rng(0)
    real = np.arange(80, dtype=np.uint8).reshape(10, 8)
    codes = draw_codes(rng, 500, quantizer, real)
    for part in range(8):
        assert set(codes[:, part]) <= set(real[:, part])
    assert len(np.unique(codes, axis=0)) > 100
    np.testing.assert_array_equal(real, np.arange(80).reshape(10, 8))


def test_real_descriptors_of_another_length_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "codes.npy", np.zeros((4, 16), np.uint8))
    with pytest.raises(ConfigError, match="holds no codes of 8 bytes"):
        make_city(tmp_path / "s", km=0.01, descriptors=tmp_path / "codes.npy")


def test_the_command_prints_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(city_command, "STREET_KEYFRAMES", 40)
    argv = ["--out", str(tmp_path), "--km", "0.06", "--queries", "2"]
    assert city_command.main(argv) == 0
    table = capsys.readouterr().out
    assert "| keyframes | 40 | 60 |" in table
    assert (tmp_path / "city-0.06km.md").read_text(encoding="utf-8") == table
