"""site.json under attack, and the messages of `open_site`."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from site_factory import edit_site_json, index_path, make_contents, tile_path

from edgeloc.errors import MapError, TileFormatError, TileMissingError
from edgeloc.tiles import reader
from edgeloc.tiles.layout import Codebook, SiteModel
from edgeloc.tiles.manifest import decode_manifest, seal
from edgeloc.tiles.reader import open_site, verify_site
from edgeloc.tiles.writer import write_site

MODELS = {"features": SiteModel(name="orb", manifest=b"{}", network=b"onnx")}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("manifest") / "site"
    contents = make_contents(np.random.default_rng(5))
    books = {
        role: Codebook(name=role, arrays={"a": np.ones(2, np.float32)})
        for role in ("descriptors", "global")
    }
    full = replace(contents, models=MODELS, codebooks=books)
    write_site(path, full, cell_size=2.0)
    return path


@pytest.fixture
def path(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "site"))


@pytest.fixture(scope="module")
def document(original) -> dict:
    return json.loads((original / "site.json").read_text(encoding="utf-8"))


def places(value: object, at: tuple = ()) -> list[tuple]:
    """Where the values of a JSON document are."""
    found = [at] if at else []
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            found += places(inner, (*at, key))
    return found


def parent_of(document: dict, at: tuple):
    parent = document
    for key in at[:-1]:
        parent = parent[key]
    return parent


def outcome(raw: bytes) -> bool:
    """Whether the text is accepted; any error but that of the format escapes."""
    try:
        manifest = decode_manifest(raw)
    except TileFormatError as exc:
        message = str(exc)
    else:
        message = ""
    assert "\n" not in message
    assert len(message) < 500
    if message:
        return False
    assert manifest.total_bytes >= len(raw)
    return True


WRONG = (
    None, True, False, 0, 1, -1, 1.5, -0.0, 1e308, 2**32, 2**63, 2**64, 10**400, "",
    "x", "../x", "/etc/passwd", "tiles/../../x", "\n\0", "y" * 5000, [], [None], [1e9],
    {}, {"": 0}, [[[[]]]],
)  # fmt: skip


def test_the_document_itself_is_accepted(document, original):
    raw = (original / "site.json").read_bytes()
    assert seal(document) == raw
    assert outcome(raw)


def test_every_value_replaced_by_every_wrong_one(document):
    """Most replacements are refused; those that are not are free values."""
    accepted = []
    copy = json.loads(json.dumps(document))
    for at in places(document):
        parent = parent_of(copy, at)
        right = parent[at[-1]]
        for value in WRONG:
            parent[at[-1]] = value
            same = type(value) is type(right) and value == right
            if outcome(seal(copy)) and at != ("map_id",) and not same:
                accepted.append((at[0], value))
        parent[at[-1]] = right
    assert {name for name, _ in accepted} <= {
        "name", "metric", "build", "covariance_scale", "gravity_in_world",
        "geo_reference", "global_descriptors", "rungs", "cameras", "family",
        "keyframes", "index", "tiles", "models", "codebooks",
    }  # fmt: skip
    free = [value for name, value in accepted if name == "index"]
    assert set(map(str, free)) <= {"0", "1", "4294967296"}  # sizes and checksums


OPTIONAL = {
    *[(key,) for key in ("models", "codebooks", "gravity_in_world", "geo_reference")],
    *[("models", role) for role in ("features", "retrieval")],
    *[("codebooks", role) for role in ("descriptors", "global")],
}


def test_every_key_dropped_renamed_or_added(document):
    free = {"cameras", "build"}
    for at in places(document):
        for edit in ("drop", "rename", "add"):
            copy = json.loads(json.dumps(document))
            parent = parent_of(copy, at)
            if isinstance(parent, list):
                continue
            if edit == "drop":
                del parent[at[-1]]
            elif edit == "rename":
                parent[f"{at[-1]}_"] = parent.pop(at[-1])
            else:
                parent["surplus"] = 0
            accepted = outcome(seal(copy))
            optional = at in OPTIONAL and edit == "drop"
            assert not accepted or optional or at[0] in free or at == ("map_id",), (
                at,
                edit,
            )


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=4,
)


@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_random_values_in_random_places(document, data):
    copy = json.loads(json.dumps(document))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(places(copy)))
        parent_of(copy, at)[at[-1]] = data.draw(json_values)
    raw = seal(copy)
    outcome(raw)
    cut = data.draw(st.integers(0, len(raw) - 1))
    assert not outcome(raw[:cut])
    assert not outcome(raw[:cut] + data.draw(st.binary(min_size=1, max_size=3)))


def test_every_bit_of_the_text_flipped(original):
    raw = (original / "site.json").read_bytes()
    for at in range(len(raw)):
        flipped = bytearray(raw)
        flipped[at] ^= 1 << at % 8
        assert not outcome(bytes(flipped))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", r"is \[\], expected an object"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a": NaN}', "is not JSON: NaN is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is"),
        (b"{}", "format is None, expected text"),
        (b'{"format": "zip"}', "format is 'zip', expected 'edgeloc-site'"),
        (
            b'{"format": "edgeloc-site", "format_version": 1}',
            "format_version is 1, expected 2 or 3, all that this edgeloc reads",
        ),
        (b'{"format": "edgeloc-site", "format_version": 2}', "build is missing"),
    ],
)
def test_texts_that_are_no_site(raw, message):
    with pytest.raises(TileFormatError, match=message):
        decode_manifest(raw)


def test_texts_that_say_the_same_in_another_way(original):
    """One site, one text: else equal ids would not mean equal bytes."""
    raw = (original / "site.json").read_bytes()
    text = raw.decode()
    for other in (
        text + "\n",
        text[:-1],
        "\ufeff" + text,
        text.replace("\n", "\n ", 1),
        text.replace('"metric": true', '"metric": false,\n"metric": true'),
        text.replace("Küche", "K\\u00fcche"),
        text.replace("Küche", "Küche2"),
        text.replace("Küche", "\\ud800"),
        text.replace('"covariance_scale": 1.0', '"covariance_scale": 1.00'),
        text.replace('"covariance_scale": 1.0', '"covariance_scale": 1e999'),
    ):
        assert other != text
        assert not outcome(other.encode())


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (("index", "sha256"), "../x", "expected 64 lower-case hexadecimal digits"),
        (("index", "sha256"), "A" * 64, "expected 64 lower-case hexadecimal digits"),
        (("index", "file"), "index.bin", "index.file is not a field of the format"),
        (("tiles", "count"), 0, "tiles.count is 0, expected an integer from 1 to 1048"),
        (("tiles", "landmarks"), 2**60, "expected an integer from 0 to"),
        (("tiles", "bytes"), True, "tiles.bytes is True, expected an integer"),
        (("tiles", "grid_origin"), [0, 0], "grid_origin is [0, 0], expected a list of"),
        (
            ("codebooks",),
            {},
            "codebooks is {}, expected at least one, or no such field",
        ),
        (
            ("codebooks", "descriptors", "sha256"),
            "x",
            "codebooks.descriptors.sha256 is",
        ),
        (("global_descriptors", "coding"), "zip", "expected one of float16, int8, pq"),
        (("global_descriptors", "dtype"), "int8", "expected one of float16"),
        (("global_descriptors", "coding"), "int8", "dtype is 'float16', expected one"),
        (("family", "coding"), "zip", "family.coding is 'zip', expected one of plain"),
        (("cameras",), {}, "cameras is {}, expected 1 to 65536 cameras"),
        (("cameras", "left", "model"), "FISH", "camera model 'FISH' is unknown"),
        (("cameras", "left", "params", 0), -5.0, "focal length must be > 0"),
        (("geo_reference", "latitude_deg"), 91, "expected a number from -90 to 90"),
        (("covariance_scale",), "1", "covariance_scale is '1', expected a number"),
        (("metric",), 1, "metric is 1, expected true or false"),
        (("rungs",), ["TRACK", "TRACK"], "expected different ones of TRACK"),
        (("gravity_in_world",), [0, 0, 0.9], "expected a vector of length 1"),
    ],
)
def test_messages_name_the_field(path, at, value, message):
    edit_site_json(path, lambda d: parent_of(d, at).__setitem__(at[-1], value))
    with pytest.raises(TileFormatError, match=re.escape(message)) as caught:
        open_site(path)
    assert str(caught.value).startswith(f"{path / 'site.json'}: ")
    assert str(caught.value).endswith("; copy the site again or rebuild it")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("keyframes", 4, "says (tiles, keyframes, camera bytes) ="),
        ("count", 99, "says (tiles, keyframes, camera bytes) ="),
        (
            "landmarks",
            7,
            "has tiles whose num_landmarks are 6 in all, site.json says 7",
        ),
        ("bytes", 7, "has tiles whose num_bytes are"),
    ],
)
def test_site_json_and_the_index_have_to_agree(path, field, value, message):
    def edit(document: dict) -> None:
        place = document if field == "keyframes" else document["tiles"]
        place[field] = value

    edit_site_json(path, edit)
    with pytest.raises(TileFormatError, match=re.escape(message)) as caught:
        open_site(path)
    assert "index-" in str(caught.value)


def test_codes_without_their_codebook_are_refused(path):
    def edit(document: dict) -> None:
        document["family"]["coding"] = "pq"
        del document["codebooks"]["descriptors"]

    edit_site_json(path, edit)
    with pytest.raises(
        TileFormatError, match=r"codebooks\.descriptors is missing: codes"
    ):
        open_site(path)


def test_a_folder_that_is_no_site(tmp_path, path):
    with pytest.raises(MapError, match=r"nowhere: is not a folder; give a site that"):
        open_site(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MapError, match=r"empty: has no site.json; give a site that"):
        open_site(tmp_path / "empty")
    with pytest.raises(MapError, match=r"site.json: is not a folder"):
        open_site(path / "site.json")


def test_a_site_json_that_cannot_be_read(path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(MapError, match=r"cannot be read \(Permission denied\); check"):
        open_site(path)


def test_a_huge_site_json_is_not_read_whole(path, monkeypatch):
    monkeypatch.setattr(reader, "MAX_SITE_JSON_BYTES", 100)
    with pytest.raises(TileFormatError, match="has more than 100 bytes"):
        open_site(path)


def test_opening_does_not_touch_tiles(path):
    file = tile_path(open_site(path))
    shutil.rmtree(path / "tiles")
    site = open_site(path)
    with pytest.raises(TileMissingError, match=r"tile: cannot be read \(No such file"):
        site.read_tile(0)
    with pytest.raises(TileMissingError, match="copy the site again"):
        verify_site(path)
    file.mkdir(parents=True)
    with pytest.raises(TileMissingError, match=r"cannot be read \(Is a directory\)"):
        site.read_tile(0)


def test_a_missing_index(path):
    file = index_path(open_site(path))
    file.unlink()
    with pytest.raises(TileMissingError, match=f"{file.name}: cannot be read"):
        open_site(path)
    file.write_bytes(b"")
    with pytest.raises(TileFormatError, match="has 0 bytes, the site says"):
        open_site(path)


def test_a_missing_or_damaged_codebook(path):
    site = open_site(path)
    file = path / site.manifest.codebooks["global"].file
    raw = file.read_bytes()
    file.write_bytes(raw[:-1] + b"\1")
    for refuse in (lambda: site.codebook("global"), lambda: verify_site(path)):
        with pytest.raises(TileFormatError, match="does not have the SHA-256"):
            refuse()
    file.unlink()
    with pytest.raises(TileMissingError, match=f"{file.name}: cannot be read"):
        site.codebook("global")


def test_a_codebook_has_the_name_that_the_site_says(path):
    edit_site_json(path, lambda d: d["codebooks"]["global"].update(name="other"))
    with pytest.raises(
        TileFormatError, match="is the codebook 'global', the site says"
    ):
        open_site(path).codebook("global")


def test_a_file_of_another_size(path):
    site = open_site(path)
    tile = tile_path(site)
    size = tile.stat().st_size
    tile.write_bytes(tile.read_bytes() + b"\0")
    with pytest.raises(TileFormatError, match=f"has {size + 1} bytes, the site says"):
        site.read_tile(0)


def test_only_verify_needs_the_sha256(path):
    """A tile whose own checksums are in order and which is not the one listed."""
    site = open_site(path)
    index = index_path(site)
    edit_site_json(
        path,
        lambda d: d["index"].update(sha256=index.name[6:22] + "0" * 48),
    )
    assert open_site(path).read_tile(0).tile_idx == 0
    with pytest.raises(TileFormatError, match=f"{index.name}: does not have the SHA-2"):
        verify_site(path)
    with pytest.raises(TileFormatError, match="does not have the SHA-256"):
        open_site(path, verify=True)


def test_there_is_no_tile_before_the_first_or_after_the_last(path):
    site = open_site(path)
    for tile_idx in (-1, len(site.tiles)):
        with pytest.raises(IndexError, match=f"tile {tile_idx} of"):
            site.read_tile(tile_idx)
