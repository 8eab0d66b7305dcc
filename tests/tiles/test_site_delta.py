"""From version to version: what is transferred, and what an interruption leaves."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from site_factory import digest, make_contents, reseal

from edgeloc.errors import MapError, TileFormatError, TileMissingError
from edgeloc.tiles import site_folder
from edgeloc.tiles.container import FileKind, pack, unpack
from edgeloc.tiles.delta import TAGS, apply_delta, site_delta, write_delta
from edgeloc.tiles.layout import SiteModel
from edgeloc.tiles.reader import open_site, verify_site
from edgeloc.tiles.writer import write_site

MODELS = {"features": SiteModel(name="orb", manifest=b"{}", network=b"n" * 5000)}


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """A site and the same with landmarks of one corner moved, and the delta."""
    folder = tmp_path_factory.mktemp("versions")
    old = replace(
        make_contents(
            np.random.default_rng(8), num_landmarks=300, extent=16.0, visible_share=0.1
        ),
        models=MODELS,
        grid_origin=(-8.0, -8.0, -8.0),
    )
    points3D = old.landmarks.points3D.copy()
    corner = np.all(points3D > 4.5, axis=1)
    points3D[corner] -= 0.2
    new = replace(
        old, name="later", landmarks=replace(old.landmarks, points3D=points3D)
    )
    write_site(folder / "old", old, cell_size=4.0)
    write_site(folder / "new", new, cell_size=4.0)
    write_delta(folder / "old", folder / "new", folder / "delta")
    return folder


@pytest.fixture
def path(versions, tmp_path):
    return Path(shutil.copytree(versions / "old", tmp_path / "site"))


def test_only_what_changed_is_transferred(versions):
    delta = site_delta(versions / "old", versions / "new")
    old, new = open_site(versions / "old"), open_site(versions / "new")
    names = [entry.file for entry in delta.files]
    assert names[0] == new.manifest.index.file
    assert all(name.startswith("tiles/") for name in names[1:])
    assert 1 <= len(names) - 1 <= 8 < len(new.tiles)
    assert delta.num_kept == len(new.tiles) + 2 - (len(names) - 1)
    size = (versions / "delta").stat().st_size
    site_json = (versions / "new" / "site.json").stat().st_size
    assert delta.num_bytes < size < delta.num_bytes + site_json + 200
    assert (delta.base_id, delta.map_id) == (old.manifest.map_id, new.manifest.map_id)
    same = site_delta(versions / "new", versions / "new")
    assert (same.files, same.num_bytes) == ((), 0)


def test_a_site_becomes_the_next_version(versions, path):
    running = open_site(path)
    manifest = apply_delta(path, versions / "delta")
    assert manifest == open_site(versions / "new").manifest
    verify_site(path)
    files = digest(path)
    assert {k: files[k] for k in digest(versions / "new")} == digest(versions / "new")
    # Who runs on the old version goes on.
    for tile_idx in range(len(running.tiles)):
        running.read_tile(tile_idx, verify=True)
    assert apply_delta(path, versions / "delta") == manifest
    assert digest(path) == files


def test_the_same_versions_give_the_same_delta(versions, tmp_path):
    write_delta(versions / "old", versions / "new", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (versions / "delta").read_bytes()


def test_a_delta_for_another_version_is_refused(versions, tmp_path):
    path = Path(shutil.copytree(versions / "old", tmp_path / "site"))
    third = make_contents(np.random.default_rng(9))
    write_site(path, third)
    before = digest(path)
    with pytest.raises(
        MapError, match=r"is the version \w{16}, the delta is for '\w{16}"
    ):
        apply_delta(path, versions / "delta")
    assert digest(path) == before


def test_a_site_that_lacks_a_file_that_stays_is_refused(versions, path):
    delta = site_delta(versions / "old", versions / "new")
    new = {entry.file for entry in delta.files}
    kept = sorted(f"tiles/{f.name}" for f in (versions / "new" / "tiles").iterdir())
    name = next(n for n in kept if n not in new)
    (path / name).unlink()
    with pytest.raises(MapError, match="is missing or was changed, and the delta does"):
        apply_delta(path, versions / "delta")
    assert open_site(path).manifest.map_id == delta.base_id


class DiskFullError(OSError):
    def __init__(self) -> None:
        super().__init__(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "stride"), [(DiskFullError(), 1), (KeyboardInterrupt(), 4)]
)
def test_an_interrupted_update_leaves_a_whole_site(
    versions, tmp_path, monkeypatch, error, stride
):
    """Fail at every step in turn; the delta can be applied again afterwards."""
    expected = open_site(versions / "new").manifest.map_id
    ids = []
    for n in range(0, 500, stride):
        path = tmp_path / "site"
        if path.exists():
            shutil.rmtree(path)
        shutil.copytree(versions / "old", path)
        calls = 0

        def step(original, *args, n=n, **kwargs):
            nonlocal calls
            calls += 1
            if calls == n + 1:
                raise error
            return original(*args, **kwargs)

        for owner, name in (
            (os, "fsync"), (Path, "replace"), (Path, "mkdir"), (Path, "unlink"),
            (site_folder.tempfile, "mkdtemp"),
        ):  # fmt: skip
            original = getattr(owner, name)
            monkeypatch.setattr(
                owner, name, lambda *a, o=original, **k: step(o, *a, **k)
            )
        done = False
        try:
            apply_delta(path, versions / "delta")
            done = True
        except (MapError, KeyboardInterrupt):
            pass
        monkeypatch.undo()
        ids.append(open_site(path, verify=True).manifest.map_id)
        if done:
            break
        if n % 8 == 0:
            apply_delta(path, versions / "delta")
            assert open_site(path, verify=True).manifest.map_id == expected
    assert n >= calls > 20
    assert ids[0] != expected
    assert ids == sorted(ids, key=[ids[0], expected].index)
    assert ids[-1] == expected


def test_every_damage_is_found_before_anything_is_written(versions, path):
    good = (versions / "delta").read_bytes()
    before = digest(path)
    file = path.parent / "damaged"
    for at in range(0, len(good), 211):
        flipped = good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :]
        for damaged in (good[:at], flipped, reseal(flipped)):
            file.unlink(missing_ok=True)
            file.write_bytes(damaged)
            with pytest.raises(MapError) as caught:
                apply_delta(path, file)
            assert "\n" not in str(caught.value)
            assert not isinstance(caught.value, TileMissingError)
    assert digest(path) == before


def test_files_that_are_too_many_too_few_or_others(versions, path):
    data = (versions / "delta").read_bytes()
    sections = {
        tag: (section.codec, bytes(section.payload))
        for tag, section in unpack(data, FileKind.DELTA, TAGS).sections.items()
    }
    before = digest(path)
    file = path.parent / "changed"
    for tag, change, message in (
        ("DATA", lambda p: p + b"\0", "has 1 bytes after its last file"),
        ("DATA", lambda p: p[:-1], "ends inside tiles/"),
        ("DATA", lambda p: p[:-1] + b"\1", "has another tiles/"),
        ("DATA", lambda p: b"\1" + p[1:], "has another index-"),
        ("SITE", lambda p: p + b" ", "was changed: its text does not go"),
        ("BASE", lambda p: b"\xff" * 16, "the delta is for"),
    ):
        codec, payload = sections[tag]
        file.write_bytes(
            pack(FileKind.DELTA, {**sections, tag: (codec, change(payload))})
        )
        with pytest.raises(MapError, match=message):
            apply_delta(path, file)
        file.unlink()
    file.write_bytes(pack(FileKind.DELTA, {**sections, "SIGN": (9, b"")}))
    with pytest.raises(TileFormatError, match="section SIGN uses codec 9"):
        apply_delta(path, file)
    file.write_bytes(b"")
    with pytest.raises(MapError, match="changed: is empty; copy it again"):
        apply_delta(path, file)
    with pytest.raises(MapError, match="none: cannot be read"):
        apply_delta(path, path.parent / "none")
    assert digest(path) == before


def test_a_signed_version_comes_with_its_signature(versions, path, tmp_path):
    pytest.importorskip("cryptography")
    from edgeloc.errors import UntrustedSiteError
    from edgeloc.tiles.signing import make_keys, read_public_key, sign, write_signature
    from edgeloc.tiles.site_folder import signature_of

    new = Path(shutil.copytree(versions / "new", tmp_path / "new"))
    trusted = [read_public_key(make_keys(tmp_path / "key"))]
    with pytest.raises(UntrustedSiteError, match="is not signed"):
        apply_delta(path, versions / "delta", trusted_keys=trusted)
    raw = (new / "site.json").read_bytes()
    name = signature_of(open_site(new).manifest)
    write_signature(new / name, sign(raw, tmp_path / "key"))
    write_delta(path, new, tmp_path / "signed")
    apply_delta(path, tmp_path / "signed", trusted_keys=trusted)
    open_site(path, trusted_keys=trusted)


def test_a_delta_between_what_are_no_sites(versions, tmp_path):
    with pytest.raises(MapError, match="is not a folder; give a site"):
        site_delta(versions / "old", tmp_path / "none")
    with pytest.raises(MapError, match="cannot be written"):
        write_delta(versions / "old", versions / "new", tmp_path)
