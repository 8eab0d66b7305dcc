"""verify, inspect, keygen, sign, delta and apply, as a user runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from site_fixture import ORB, build, small_recording

from edgeloc.cli import run as run_command
from edgeloc.tiles.reader import open_site
from edgeloc_tools.cli import build as build_command


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("built") / "site"
    return build(out, small_recording(), ORB).path


@pytest.fixture
def site(built, tmp_path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "site"))


@pytest.fixture(scope="module")
def later(tmp_path_factory) -> Path:
    """The same place, filmed with one image less."""
    recording = small_recording()
    out = tmp_path_factory.mktemp("later") / "site"
    return build(out, recording.subset(recording.images[:4]), ORB).path


@pytest.fixture
def edgeloc_build(capsys):
    def call(*words: object) -> tuple[int, str, str]:
        code = build_command.main([str(word) for word in words])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return call


def test_inspect_draws_what_a_site_covers(site, tmp_path, edgeloc_build):
    png, page = tmp_path / "s.png", tmp_path / "s.html"
    code, out, _ = edgeloc_build("inspect", site, "--png", png, "--html", page)
    assert code == 0
    facts = json.loads(out)
    image = cv2.imdecode(np.frombuffer(png.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape[:2] == (840, 960)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50
    text = page.read_text(encoding="utf-8")
    assert facts["map_id"] in text
    assert "data:image/png;base64," in text
    edgeloc_build("inspect", site, "--png", tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == png.read_bytes()


def test_the_sizes_of_the_parts_add_up(site, edgeloc_build):
    facts = json.loads(edgeloc_build("inspect", site)[1])
    files = [file for file in site.rglob("*") if file.is_file()]
    total = sum(file.stat().st_size for file in files)
    assert sum(facts["bytes_by_part"].values()) == facts["bytes"]["total"] == total
    assert facts["bytes_by_part"]["descriptors"] > 0.5 * facts["bytes"]["tiles"]
    assert 0.05 < facts["bits_per_visible_landmark"] < 8
    assert facts["visible_landmarks"] > facts["landmarks"]
    assert facts["signed"] is False


def test_a_signed_site_is_verified_and_run_with_its_key(site, tmp_path, edgeloc_build):
    pytest.importorskip("cryptography")
    key, public = tmp_path / "site.key", tmp_path / "site.key.pub"
    assert edgeloc_build("keygen", key)[:2] == (
        0,
        f"{key}: the private key, keep it; {public}: the public one, for devices\n",
    )
    code, _, err = edgeloc_build("verify", site, "--trusted-key", public)
    assert code == 3
    assert "the site is not signed" in err
    map_id = open_site(site).manifest.map_id
    code, out, _ = edgeloc_build("sign", site, "--key", key)
    assert (code, out) == (0, f"{site}/site-{map_id}.sig: signs version {map_id}\n")
    code, out, _ = edgeloc_build("verify", site, "--trusted-key", public)
    assert (code, out) == (0, f"{site}: every file is as it was written\n")
    assert json.loads(edgeloc_build("inspect", site)[1])["signed"] is True


def test_run_refuses_a_site_that_nobody_trusted_has_signed(
    site, tmp_path, edgeloc_build, capsys
):
    pytest.importorskip("cryptography")
    for name in ("own", "foreign"):
        edgeloc_build("keygen", tmp_path / name)
    edgeloc_build("sign", site, "--key", tmp_path / "own")
    words = ["--check", "--map", str(site), "--trusted-key"]
    assert run_command.main([*words, str(tmp_path / "own.pub")]) == 0
    capsys.readouterr()
    assert run_command.main([*words, str(tmp_path / "foreign.pub")]) == 3
    err = capsys.readouterr().err.splitlines()
    assert "the site is signed with the key" in err[-1]
    assert run_command.main([*words, str(tmp_path / "none.pub")]) == 2


def test_a_damaged_site_is_not_signed(site, tmp_path, edgeloc_build):
    pytest.importorskip("cryptography")
    edgeloc_build("keygen", tmp_path / "key")
    tile = next((site / "tiles").iterdir())
    tile.write_bytes(tile.read_bytes()[:-8])
    code, _, err = edgeloc_build("sign", site, "--key", tmp_path / "key")
    assert code == 3
    assert str(tile) in err
    assert not list(site.glob("*.sig"))


def test_a_delta_makes_the_old_site_the_new_one(site, later, tmp_path, edgeloc_build):
    delta = tmp_path / "changes.delta"
    code, out, _ = edgeloc_build("delta", site, later, "-o", delta)
    assert code == 0
    facts = json.loads(out)
    map_id = open_site(later).manifest.map_id
    assert facts["map_id"] == map_id != facts["base_id"]
    assert facts["bytes"] == delta.stat().st_size
    assert facts["files"] >= 2
    code, out, _ = edgeloc_build("apply", site, delta)
    assert (code, out) == (0, f"{site}: is version {map_id}\n")
    assert edgeloc_build("verify", site)[0] == 0
    code, _, err = edgeloc_build("apply", tmp_path / "none", delta)
    assert code == 3
    assert "is not a folder; give a site that edgeloc-build wrote" in err
