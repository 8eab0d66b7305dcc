"""The writer: deterministic, atomic, and strict about what it is given."""

from __future__ import annotations

import errno
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from site_factory import digest, make_contents, with_poses

from edgeloc.errors import MapError, TileMissingError
from edgeloc.tiles import site_folder, writer
from edgeloc.tiles.layout import Codebook, PoseArrays
from edgeloc.tiles.reader import open_site, verify_site
from edgeloc.tiles.writer import write_site


@pytest.fixture
def contents(rng):
    return make_contents(rng, num_landmarks=40, extent=8.0)


def test_the_same_contents_give_the_same_bytes(tmp_path, contents):
    shuffled = replace(
        contents,
        cameras=dict(reversed(contents.cameras.items())),
        retrieval_arrays=dict(reversed(contents.retrieval_arrays.items())),
        build=dict(reversed(contents.build.items())),
        landmarks=replace(
            contents.landmarks,
            points3D=np.asfortranarray(contents.landmarks.points3D),
        ),
    )
    first = write_site(tmp_path / "a", contents, cell_size=4.0)
    second = write_site(tmp_path / "deeper" / "b", shuffled, cell_size=4.0)
    assert first == second
    assert digest(tmp_path / "a") == digest(tmp_path / "deeper" / "b")
    names = sorted(digest(tmp_path / "a"))
    for name, pattern in zip(
        names, ("index-[0-9a-f]{16}.bin", "site.json", "tiles/[0-9a-f]{16}.tile"),
        strict=False,
    ):  # fmt: skip
        assert re.fullmatch(pattern, name)
    for name, sha256 in digest(tmp_path / "a").items():
        assert name == "site.json" or sha256[:16] in name


def test_any_change_gives_another_map_id(tmp_path, contents):
    ids = {write_site(tmp_path / "s", contents).map_id}
    sigmas = contents.landmarks.sigmas.copy()
    sigmas[7] *= 2
    for change in (
        {"name": "Keller"},
        {"metric": False},
        {"covariance_scale": 1.5},
        {"build": {}},
        {"landmarks": replace(contents.landmarks, sigmas=sigmas)},
        {"keyframes": with_poses(contents.keyframes, t=contents.keyframes.t + 1e-3)},
    ):
        ids.add(write_site(tmp_path / "s", replace(contents, **change)).map_id)
    assert len(ids) == 7
    assert write_site(tmp_path / "s", contents).map_id in ids
    assert all(len(map_id) == 16 for map_id in ids)


def test_the_bytes_of_a_known_site_do_not_change(tmp_path):
    """Sites that are in the field must keep their meaning: a new hash, a new version.

    Only numbers that every machine computes alike go into this site.
    """
    known = make_contents(np.random.default_rng(7), num_landmarks=0, num_keyframes=1)
    points3D = np.array([[0.0, 1.0, 2.0], [0.5, -3.25, 8.0]])
    known = replace(
        known,
        keyframes=replace(
            known.keyframes,
            keyframe_ids=np.array([5]),
            camera_ids=("left",),
            poses=PoseArrays(R=np.eye(3)[None], t=np.array([[1.0, 2.0, 3.0]])),
            global_codes=np.array([[0.6, 0.8]], np.float32),
        ),
        landmarks=replace(
            known.landmarks,
            points3D=points3D,
            sigmas=np.array([0.5, 0.01], np.float32),
            num_observations=np.array([3, 300]),
            descriptor_offsets=np.array([0, 1, 3]),
            descriptors=np.arange(12, dtype=np.uint8).reshape(3, 4),
        ),
        visible_offsets=np.array([0, 2]),
        visible_landmark_idx=np.array([0, 1]),
        retrieval_arrays={"mean": np.array([1.5, -2.0], np.float32)},
    )
    manifest = write_site(tmp_path / "site", known)
    [tile] = open_site(tmp_path / "site", verify=True).tiles
    assert tile.sha256[:16] == "4aa63ff23ba8a1bb"
    assert manifest.index.sha256[:16] == "ef86718ab225b497"
    assert manifest.map_id == "cc111c65c220dc71"


class DiskFullError(OSError):
    def __init__(self) -> None:
        super().__init__(errno.ENOSPC, "No space left on device")


@pytest.fixture
def fail_at(monkeypatch):
    """Make the n-th of the calls that reach the disk fail, and count them."""

    def arm(n: int, error: BaseException) -> list[str]:
        calls: list[str] = []

        def wrap(owner, name):
            original = getattr(owner, name)

            def call(*args, **kwargs):
                calls.append(name)
                if len(calls) == n + 1:
                    raise error
                return original(*args, **kwargs)

            monkeypatch.setattr(owner, name, call)

        wrap(os, "fsync")
        wrap(Path, "replace")
        wrap(Path, "mkdir")
        wrap(Path, "unlink")
        wrap(site_folder.tempfile, "mkdtemp")
        return calls

    return arm


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("error", [DiskFullError(), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_site_or_nothing(
    tmp_path, rng, fail_at, monkeypatch, old, error
):
    """Fail at every step in turn. Afterwards there is the old site, whole, or the new
    one, whole, or none where there was none; and no scrap beside it. The next write
    removes what an interrupted one left inside."""
    path = tmp_path / "site"
    before, after = make_contents(rng), make_contents(rng, num_landmarks=20)
    new_id = write_site(tmp_path / "other", after, cell_size=4.0).map_id
    old_id = write_site(tmp_path / "before", before).map_id
    ids = []
    for n in range(200):
        if path.exists():
            shutil.rmtree(path)
        if old:
            write_site(path, before)
        calls = fail_at(n, error)
        message = ""
        try:
            write_site(path, after, cell_size=4.0)
        except (MapError, KeyboardInterrupt) as exc:
            message = str(exc) or "interrupted"
        monkeypatch.undo()
        assert {p.name for p in tmp_path.iterdir()} <= {"site", "other", "before"}
        assert message in {
            "",
            "interrupted",
            f"{path}: cannot be written: No space left on device",
        }
        if path.exists():
            ids.append(open_site(path, verify=True).manifest.map_id)
        if not message:
            break
        if old:
            write_site(path, before)
            write_site(path, after, cell_size=4.0)
            assert open_site(path, verify=True).manifest.map_id == new_id
            kept = {*digest(tmp_path / "other"), *digest(tmp_path / "before")}
            assert set(digest(path)) <= kept | {"previous.json"}
    assert n == len(calls) > 10
    assert ids[-1] == new_id
    if old:
        # There always is a site, and the new one once it has been there.
        assert len(ids) == n + 1
        assert ids == sorted(ids, key=[old_id, new_id].index)
        assert ids[0] == old_id


def test_only_a_site_or_an_empty_folder_is_replaced(tmp_path, contents):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"1")
    (tmp_path / "file").write_bytes(b"2")
    for name in ("photos", "file"):
        with pytest.raises(MapError, match="exists and is not a site: give another"):
            write_site(tmp_path / name, contents)
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == b"1"
    assert (tmp_path / "file").read_bytes() == b"2"
    (tmp_path / "empty").mkdir()
    write_site(tmp_path / "empty", contents)
    verify_site(tmp_path / "empty")


def test_a_link_to_a_site_keeps_pointing(tmp_path, contents):
    write_site(tmp_path / "v1", contents)
    (tmp_path / "current").symlink_to(tmp_path / "v1")
    write_site(tmp_path / "current", replace(contents, name="new"))
    assert (tmp_path / "current").is_symlink()
    assert open_site(tmp_path / "v1").manifest.name == "new"


def test_a_folder_that_cannot_be_made_is_a_map_error(tmp_path, contents):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MapError, match="cannot be written: "):
        write_site(tmp_path / "file" / "site", contents)


def test_a_new_version_keeps_the_files_of_the_one_before(tmp_path, rng, contents):
    """A device that runs on the version before goes on; after one more it cannot."""
    path = tmp_path / "site"
    points3D = contents.landmarks.points3D
    moved = replace(
        contents, landmarks=replace(contents.landmarks, points3D=points3D + 0.5)
    )
    third = replace(
        contents, landmarks=replace(contents.landmarks, points3D=points3D + 1.5)
    )
    (tmp_path / "notes.txt").write_text("mine")
    write_site(path, contents, cell_size=4.0)
    (path / "notes.txt").write_text("mine")
    running = open_site(path)
    assert len(running.tiles) > 3
    write_site(path, moved, cell_size=4.0)
    assert open_site(path, verify=True).manifest.map_id != running.manifest.map_id
    for tile_idx in range(len(running.tiles)):
        running.read_tile(tile_idx, verify=True)
    write_site(path, third, cell_size=4.0)
    with pytest.raises(TileMissingError):
        running.read_tile(0)
    # What is mapped stays.
    assert len(running.keyframes.R) == len(running.keyframes)
    fresh = tmp_path / "fresh"
    write_site(fresh, third, cell_size=4.0)
    write_site(fresh, moved, cell_size=4.0)
    write_site(fresh, third, cell_size=4.0)
    extra = set(digest(path)) - {"notes.txt"}
    assert extra == set(digest(fresh))
    assert (path / "notes.txt").read_text() == "mine"


def test_what_does_not_change_is_not_written_again(tmp_path, contents, monkeypatch):
    path = tmp_path / "site"
    write_site(path, contents, cell_size=4.0)
    before = digest(path)
    write_site(path, contents, cell_size=4.0)
    assert digest(path) == before
    assert not (path / "previous.json").exists()


def test_a_damaged_file_is_mended_by_writing_the_site_again(tmp_path, contents):
    path = tmp_path / "site"
    write_site(path, contents)
    [tile] = (path / "tiles").iterdir()
    tile.write_bytes(b"damaged")
    with pytest.raises(MapError):
        verify_site(path)
    write_site(path, contents)
    verify_site(path)


def test_a_folder_with_the_remains_of_another_site_is_taken_over(tmp_path, contents):
    """Of an older format, say: its site.json is replaced, its files are removed."""
    path = tmp_path / "site"
    (path / "tiles").mkdir(parents=True)
    (path / "site.json").write_text('{"format_version": 1}')
    (path / "index.bin").write_bytes(b"old")
    (path / "tiles" / "000000.tile").write_bytes(b"old")
    (path / "tiles" / "link").symlink_to(tmp_path)
    write_site(path, contents)
    names = set(digest(path))
    assert names == {*digest(path), "previous.json"}
    assert "index.bin" not in names
    assert len(list((path / "tiles").iterdir())) == 1
    verify_site(path)


def test_too_many_tiles_are_refused(tmp_path, contents, monkeypatch):
    monkeypatch.setattr(writer, "MAX_TILES", 3)
    with pytest.raises(MapError, match="at most 3 fit: give a larger cell_size"):
        write_site(tmp_path / "site", contents, cell_size=1.0)
    assert not (tmp_path / "site").exists()


def _keyframes(**change):
    return lambda c: replace(c, keyframes=replace(c.keyframes, **change))


def _poses(**change):
    return lambda c: replace(c, keyframes=with_poses(c.keyframes, **change))


def _landmarks(**change):
    return lambda c: replace(c, landmarks=replace(c.landmarks, **change))


def _bad(array_name: str, value: float, table: str = "landmarks"):
    def change(c):
        array = getattr(getattr(c, table), array_name).copy()
        array.reshape(-1)[1] = value
        return replace(c, **{table: replace(getattr(c, table), **{array_name: array})})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_keyframes(keyframe_ids=np.zeros(0, int)), "has no keyframes"),
        (_keyframes(keyframe_ids=np.array([3, 2, 7])), "must be integers, ascending"),
        (_keyframes(keyframe_ids=np.array([-1, 2, 7])), "must be integers, ascending"),
        (_keyframes(keyframe_ids=np.array([0.0, 1, 2])), "must be integers"),
        (_keyframes(keyframe_ids=np.array([0, 1, 2**32])), "at most 4294967295"),
        (_keyframes(camera_ids=("left", "left", "up")), "must name one of the site's"),
        (_keyframes(camera_ids=("left", "left")), "must name one of the site's"),
        (_poses(R=np.eye(3)), r"R has shape \(3, 3\), expected \(3, 3, 3\)"),
        (_poses(R=np.array([2 * np.eye(3)] * 3)), "R must be finite and from"),
        (_poses(R=np.array([0.9 * np.eye(3)] * 3)), "R must be rotations"),
        (_poses(R=np.array([-np.eye(3)] * 3)), "R must be rotations"),
        (_poses(t=np.full((3, 3), np.nan)), "keyframes.t must be finite"),
        (_poses(t=np.full((3, 3), 1e9)), r"from -1e\+08 to 1e\+08"),
        (_keyframes(global_codes=np.zeros(3, np.float32)), r"expected \(3, G\)"),
        (_bad("global_codes", np.nan, "keyframes"), "global_codes must be finite"),
        (_bad("global_codes", 1e9, "keyframes"), "global_codes must be finite"),
        (_keyframes(global_codes=np.zeros((3, 2))), "float64, expected float16 for"),
        (lambda c: replace(c, global_coding="zip"), "'zip', expected one of float16"),
        (lambda c: replace(c, global_coding="int8"), "expected int8 for 'int8'"),
        (
            lambda c: replace(
                _keyframes(global_codes=np.zeros((3, 2), np.uint8))(c),
                global_coding="pq",
            ),
            r"codebooks\['global'\] is missing: codes say nothing without it",
        ),
        (
            lambda c: replace(c, family=replace(c.family, coding="pq")),
            r"codebooks\['descriptors'\] is missing",
        ),
        (lambda c: replace(c, family=replace(c.family, coding="x")), "family.coding"),
        (
            lambda c: replace(c, codebooks={"x": Codebook(name="", arrays={})}),
            "codebooks are for descriptors and global, not x",
        ),
        (
            lambda c: replace(
                c,
                codebooks={
                    "global": Codebook(name="", arrays={"a": np.float32([np.nan])})
                },
            ),
            r"codebooks\['global'\].arrays\['a'\] must be finite and of the types",
        ),
        (lambda c: replace(c, position_step=0.0), "position_step is 0.0, expected a"),
        (lambda c: replace(c, position_step=np.nan), "position_step is nan"),
        (lambda c: replace(c, grid_origin=(0.0, 1e9, 0.0)), "grid_origin is"),
        (_bad("points3D", np.nan), "landmarks.points3D must be finite"),
        (_bad("points3D", -2e8), "landmarks.points3D must be finite"),
        (_landmarks(sigmas=np.ones(3, np.float32)), r"sigmas has shape \(3,\)"),
        (_bad("sigmas", -1.0), "landmarks.sigmas must be finite and from 0"),
        (_bad("sigmas", np.inf), "landmarks.sigmas must be finite"),
        (_bad("num_observations", -1), "num_observations must not be negative"),
        (_bad("descriptor_offsets", 10**6), "descriptor_offsets must ascend from 0"),
        (_landmarks(descriptors=np.zeros((9, 4))), "are float64, the family says"),
        (_landmarks(descriptors=np.zeros((9, 5), "u1")), r"expected \(9, 4\)"),
        (
            _landmarks(
                descriptors=np.zeros((256, 4), "u1"),
                descriptor_offsets=np.array([0, *[256] * 40]),
            ),
            "a landmark has 256 descriptors, at most 255 fit: keep fewer",
        ),
        (lambda c: replace(c, visible_offsets=np.array([0, 1])), "expected \\(4,\\)"),
        (
            lambda c: replace(c, visible_landmark_idx=c.visible_landmark_idx + 40),
            "must be indices of landmarks",
        ),
        (
            lambda c: replace(c, visible_landmark_idx=c.visible_landmark_idx * 0),
            "must ascend within each keyframe",
        ),
        (
            lambda c: replace(c, retrieval_arrays={"a": np.zeros(2)}),
            r"retrieval_arrays\['a'\] must be finite and of the types uint8",
        ),
        (
            lambda c: replace(c, retrieval_arrays={"a": np.float32([np.nan])}),
            r"retrieval_arrays\['a'\] must be finite and of the types uint8",
        ),
        (lambda c: replace(c, covariance_scale=0.0), "covariance_scale is 0.0"),
        (lambda c: replace(c, covariance_scale=np.nan), "do not fit: "),
        (lambda c: replace(c, rungs=("FLY",)), "rungs is ..FLY.., expected different"),
        (lambda c: replace(c, gravity_in_world=(0, 0, 0.5)), "a vector of length 1"),
        (lambda c: replace(c, build={"a": np.int64(1)}), "not JSON serializable"),
        (lambda c: replace(c, build={"a": True}), "build.a is True, expected an int"),
        (lambda c: replace(c, name="\ud800"), "do not fit: "),
        (lambda c: replace(c, family=replace(c.family, stored_dim=0)), "descriptors"),
        (
            lambda c: replace(
                replace(c, family=replace(c.family, stored_dtype="float64")),
                landmarks=replace(
                    c.landmarks, descriptors=c.landmarks.descriptors.astype("f8")
                ),
            ),
            "family.stored_dtype is 'float64', expected one of uint8",
        ),
    ],
)
def test_contents_that_do_not_fit_are_named(tmp_path, contents, change, message):
    with pytest.raises(MapError, match=message) as caught:
        write_site(tmp_path / "site", change(contents))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_descriptors_that_are_not_finite_are_refused(tmp_path, rng):
    contents = make_contents(rng, dtype="float32")
    with pytest.raises(MapError, match=r"landmarks\.descriptors must be finite"):
        write_site(tmp_path / "site", _bad("descriptors", np.nan)(contents))
