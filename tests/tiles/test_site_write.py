"""The writer: deterministic, atomic, and strict about what it is given."""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from site_factory import make_contents, with_poses

from edgeloc.errors import MapError
from edgeloc.tiles import writer
from edgeloc.tiles.layout import PoseArrays
from edgeloc.tiles.reader import open_site, verify_site
from edgeloc.tiles.writer import write_site


def digest(path: Path) -> dict[str, str]:
    return {
        str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(path.rglob("*"))
        if f.is_file()
    }


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
    assert sorted(digest(tmp_path / "a"))[:3] == [
        "index.bin",
        "site.json",
        "tiles/000000.tile",
    ]


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
        {"keyframes": with_poses(contents.keyframes, t=contents.keyframes.t + 1e-9)},
    ):
        ids.add(write_site(tmp_path / "s", replace(contents, **change)).map_id)
    assert len(ids) == 7
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
    assert manifest.tiles[0].file.sha256[:16] == "5842f1ae4813f267"
    assert manifest.index.sha256[:16] == "7388837e79c5186a"
    assert manifest.map_id == "ee9dbe6b4f406a3a"


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
        wrap(writer.tempfile, "mkdtemp")
        return calls

    return arm


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("error", [DiskFullError(), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_site_or_nothing(
    tmp_path, rng, fail_at, monkeypatch, old, error
):
    """Fail at every step in turn. Afterwards there is the old site, whole, or the new
    one, whole, or none where there was none; and no scrap beside it."""
    path = tmp_path / "site"
    before, after = make_contents(rng), make_contents(rng, num_landmarks=20)
    new_id = write_site(tmp_path / "other", after, cell_size=2.0).map_id
    for n in range(100):
        if old:
            write_site(path, before)
        expected = open_site(path).manifest.map_id if old else None
        calls = fail_at(n, error)
        message = ""
        try:
            write_site(path, after, cell_size=2.0)
        except (MapError, KeyboardInterrupt) as exc:
            message = str(exc) or "interrupted"
        monkeypatch.undo()
        assert {p.name for p in tmp_path.iterdir()} <= {"site", "other"}
        found = open_site(path, verify=True).manifest.map_id if path.exists() else None
        assert message in {
            "",
            "interrupted",
            f"{path}: cannot be written: No space left on device",
        }
        if not message:
            assert found == new_id
            break
        if "replace" not in calls[: n + (not old)]:
            assert found == expected
        assert found in {expected, new_id}
        if path.exists() and not old:
            writer.shutil.rmtree(path)
    assert n == len(calls) > 10


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
        (_keyframes(camera_ids=("left", "left", "up")), "must name one of the site's"),
        (_keyframes(camera_ids=("left", "left")), "must name one of the site's"),
        (_poses(R=np.eye(3)), r"R has shape \(3, 3\), expected \(3, 3, 3\)"),
        (_poses(R=np.array([2 * np.eye(3)] * 3)), "R must be finite and from"),
        (_poses(R=np.array([0.9 * np.eye(3)] * 3)), "R must be rotations"),
        (_poses(R=np.array([-np.eye(3)] * 3)), "R must be rotations"),
        (_poses(t=np.full((3, 3), np.nan)), "keyframes.t must be finite"),
        (_poses(t=np.full((3, 3), 1e9)), r"from -1e\+08 to 1e\+08"),
        (_keyframes(global_codes=np.zeros(3, np.float32)), r"expected \(3, G\)"),
        (_bad("global_codes", 2.0, "keyframes"), "finite and from -1 to 1"),
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
            r"retrieval_arrays\['a'\] must be finite float32",
        ),
        (
            lambda c: replace(c, retrieval_arrays={"a": np.float32([np.nan])}),
            r"retrieval_arrays\['a'\] must be finite float32",
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
