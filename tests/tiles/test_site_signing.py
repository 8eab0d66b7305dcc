"""Signed sites: whom a device believes, and what it then believes of them."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
from site_factory import (
    edit_site_json,
    index_path,
    make_contents,
    stored_crc32,
    tile_path,
)

from edgeloc.errors import ConfigError, TileFormatError, UntrustedSiteError
from edgeloc.tiles.manifest import SITE_FILE
from edgeloc.tiles.reader import open_site, verify_site
from edgeloc.tiles.signing import (
    check_signature,
    key_name,
    make_keys,
    read_public_key,
    sign,
    write_signature,
)
from edgeloc.tiles.site_folder import signature_of
from edgeloc.tiles.writer import write_site

pytest.importorskip("cryptography")


@pytest.fixture
def keys(tmp_path):
    return tmp_path / "key", make_keys(tmp_path / "key")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "site"
    write_site(path, make_contents(np.random.default_rng(1)), cell_size=2.0)
    return path


def sign_site(path, key):
    manifest = open_site(path).manifest
    file = path / signature_of(manifest)
    write_signature(file, sign((path / SITE_FILE).read_bytes(), key))
    return file


def test_keys_are_lines_of_text_and_the_private_one_is_private(keys):
    key, public = keys
    assert public.name == "key.pub"
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.read_text().startswith("edgeloc-private-key ")
    assert public.read_text() == f"edgeloc-public-key {read_public_key(public).hex()}\n"
    with pytest.raises(ConfigError, match="key: cannot be written: File exists"):
        make_keys(key)


def test_a_signed_site_is_opened_with_its_key(path, keys):
    key, public = keys
    trusted = [bytes(32), read_public_key(public)]
    with pytest.raises(
        UntrustedSiteError, match="is not signed; sign it with `edgeloc"
    ):
        open_site(path, trusted_keys=trusted)
    file = sign_site(path, key)
    site = open_site(path, trusted_keys=trusted)
    assert site.read_tile(0).tile_idx == 0
    verify_site(path, trusted_keys=trusted)
    assert open_site(path).manifest == site.manifest
    assert file.name == f"site-{site.manifest.map_id}.sig"


def test_the_same_key_gives_the_same_signature(path, keys):
    raw = (path / SITE_FILE).read_bytes()
    assert sign(raw, keys[0]) == sign(raw, keys[0])


def test_a_foreign_key_is_named(path, keys, tmp_path):
    other = read_public_key(make_keys(tmp_path / "other"))
    sign_site(path, keys[0])
    own = key_name(read_public_key(keys[1]))
    with pytest.raises(
        UntrustedSiteError, match=f"{own}, trusted are {key_name(other)}"
    ):
        open_site(path, trusted_keys=[other])


def test_a_site_that_was_changed_after_signing_is_refused(path, keys):
    """Also by someone who gave it another map id, and took the signature along."""
    trusted = [read_public_key(keys[1])]
    file = sign_site(path, keys[0])
    edit_site_json(path, lambda d: d.update(name="mine"))
    with pytest.raises(UntrustedSiteError, match="the site is not signed"):
        open_site(path, trusted_keys=trusted)
    file.rename(path / signature_of(open_site(path).manifest))
    with pytest.raises(UntrustedSiteError, match=r"does not sign this site\.json"):
        open_site(path, trusted_keys=trusted)


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line[:-1],
        lambda line: line.upper(),
        lambda line: line.replace(b" ", b"  "),
        lambda line: line.replace(b"-1 ", b"-2 "),
        lambda line: line[:30] + b"0" + line[31:] if line[30:31] != b"0" else b"",
        lambda line: line + b" ",
        lambda line: b"",
        lambda line: b"\xff" * 200,
        lambda line: line * 100,
    ],
)
def test_a_damaged_signature_is_refused(path, keys, change):
    file = sign_site(path, keys[0])
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UntrustedSiteError) as caught:
        open_site(path, trusted_keys=[read_public_key(keys[1])])
    assert "\n" not in str(caught.value)


def test_checksums_that_were_made_right_do_not_help(path, keys):
    """CRC-32 is not cryptography: with a trusted key SHA-256 decides."""
    trusted = [read_public_key(keys[1])]
    sign_site(path, keys[0])
    site = open_site(path, trusted_keys=trusted)
    file = tile_path(site)
    good = file.read_bytes()
    assert stored_crc32(good) == site.tiles[0].crc32
    # The last byte is padding of the last section: as good as any for a forger who
    # makes CRC-32 collide; here the size is enough to get past the first check.
    file.write_bytes(good[:-1] + b"\1")
    with pytest.raises(
        TileFormatError, match="does not have the SHA-256 that the site"
    ):
        site.read_tile(0)
    file.write_bytes(good)
    index = index_path(site)
    raw = index.read_bytes()
    index.unlink()
    index.write_bytes(raw[:-1] + b"\1")
    with pytest.raises(TileFormatError, match="does not have the SHA-256"):
        open_site(path, trusted_keys=trusted)


@pytest.mark.parametrize(
    "text",
    ["", "edgeloc-public-key", "edgeloc-private-key " + "0" * 64 + "\n", "x" * 99],
)
def test_what_is_no_key_is_refused(tmp_path, text):
    file = tmp_path / "key.pub"
    file.write_text(text)
    with pytest.raises(ConfigError, match="is not a line 'edgeloc-public-key' and 64"):
        read_public_key(file)
    with pytest.raises(ConfigError, match="none: cannot be read"):
        read_public_key(tmp_path / "none")


def test_without_the_package_the_error_says_how_to_get_it(path, keys, monkeypatch):
    sign_site(path, keys[0])
    file = path / signature_of(open_site(path).manifest)
    for name in [m for m in sys.modules if m.split(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat", None)
    with pytest.raises(ConfigError, match=r"pip install 'edgeloc\[sign\]'"):
        check_signature(
            file, (path / SITE_FILE).read_bytes(), [read_public_key(keys[1])]
        )
    # Who does not ask for signatures does not need it.
    open_site(path)


def test_a_signature_that_cannot_be_read(path, keys):
    file = sign_site(path, keys[0])
    os.remove(file)  # noqa: PTH107 - plain
    file.mkdir()
    with pytest.raises(Exception, match=r"cannot be read \(Is a directory\)"):
        open_site(path, trusted_keys=[read_public_key(keys[1])])
