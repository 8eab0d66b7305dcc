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
from site_factory import edit_site_json, make_contents

from edgeloc.errors import MapError, TileFormatError, TileMissingError
from edgeloc.tiles import reader
from edgeloc.tiles.layout import SiteModel
from edgeloc.tiles.manifest import decode_manifest, seal, tile_file_name
from edgeloc.tiles.reader import open_site, verify_site
from edgeloc.tiles.writer import write_site

MODELS = {"features": SiteModel(name="orb", manifest=b"{}", network=b"onnx")}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("manifest") / "site"
    contents = make_contents(np.random.default_rng(5))
    write_site(path, replace(contents, models=MODELS), max_tile_bytes=490)
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
        "geo_reference", "global_descriptor_dim", "rungs", "cameras", "family",
        "retrieval_arrays", "index", "tiles", "models",
    }  # fmt: skip
    free = [value for name, value in accepted if name == "index"]
    assert set(map(str, free)) <= {"0", "1", "4294967296"}  # sizes and checksums


OPTIONAL = {("models",)}


def test_every_key_dropped_renamed_or_added(document):
    free = {"cameras", "build", "retrieval_arrays"}
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
            b'{"format": "edgeloc-site", "format_version": 2}',
            "format_version is 2, expected 1, all that this edgeloc reads",
        ),
        (b'{"format": "edgeloc-site", "format_version": 1}', "build is missing"),
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
        (("tiles", 0, "file"), "../x", "tiles[0].file is '../x', expected 'tiles/0000"),
        (("tiles", 0, "file"), "/etc/passwd", "expected 'tiles/000000.tile'"),
        (("index", "file"), "../index.bin", "index.file is '../index.bin', expected"),
        (("index", "sha256"), "A" * 64, "expected 64 lower-case hexadecimal digits"),
        (("tiles",), [], "tiles is [], expected 1 to 1000000 tiles"),
        (("tiles", 1, "first_point3D_id"), 0, "next to the tile before"),
        (("tiles", 0, "box_min"), None, "tiles[0].box_min is None, expected a list"),
        (("tiles", 0, "bytes"), True, "tiles[0].bytes is True, expected an integer"),
        (("num_keyframes",), 7, "num_keyframes is 7, expected the sum over the tiles"),
        (("cameras",), {}, "cameras is {}, expected at least one camera"),
        (("cameras", "left", "model"), "FISH", "camera model 'FISH' is unknown"),
        (("cameras", "left", "params", 0), -5.0, "focal length must be > 0"),
        (("conventions", "pose"), "world_from_cam", "expected those of the format"),
        (("geo_reference", "latitude_deg"), 91, "expected a number from -90 to 90"),
        (("retrieval_arrays", "mean"), [1] * 9, "expected at most 8 dimensions"),
        (("retrieval_arrays", "mean"), [0, 2**32, 2**32], "expected a product of at"),
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


def test_a_box_around_no_landmarks_is_refused(tmp_path):
    contents = make_contents(np.random.default_rng(5), num_landmarks=0)
    write_site(tmp_path / "site", contents)
    edit_site_json(
        tmp_path / "site", lambda d: d["tiles"][0].update(box_min=[0.0, 0.0, 0.0])
    )
    with pytest.raises(TileFormatError, match="expected no box around no landmarks"):
        open_site(tmp_path / "site")


def test_too_many_landmarks_are_refused(path):
    def edit(document: dict) -> None:
        for tile in document["tiles"]:
            tile["num_landmarks"] = 2**32
            tile["box_min"] = tile["box_max"] = [0.0, 0.0, 0.0]
        for i, tile in enumerate(document["tiles"]):
            tile["first_point3D_id"] = i * 2**32

    edit_site_json(path, edit)
    with pytest.raises(TileFormatError, match="expected"):
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
    shutil.rmtree(path / "tiles")
    site = open_site(path)
    with pytest.raises(TileMissingError, match=r"tile: cannot be read \(No such file"):
        site.read_tile(0)
    with pytest.raises(TileMissingError, match="copy the site again"):
        verify_site(path)
    (path / tile_file_name(0)).mkdir(parents=True)
    with pytest.raises(TileMissingError, match=r"cannot be read \(Is a directory\)"):
        site.read_tile(0)


def test_a_missing_index(path):
    (path / "index.bin").unlink()
    with pytest.raises(TileMissingError, match=r"index.bin: cannot be read"):
        open_site(path)


def test_a_file_of_another_size(path):
    site = open_site(path)
    tile = path / tile_file_name(0)
    size = tile.stat().st_size
    tile.write_bytes(tile.read_bytes() + b"\0")
    with pytest.raises(TileFormatError, match=f"has {size + 1} bytes, site.json says"):
        site.read_tile(0)


def test_only_verify_needs_the_sha256(path):
    edit_site_json(path, lambda d: d["tiles"][0].update(sha256="0" * 64))
    site = open_site(path)
    assert site.read_tile(0).tile_idx == 0
    with pytest.raises(
        TileFormatError, match=r"000000\.tile: does not have the SHA-256"
    ):
        verify_site(path)
    with pytest.raises(TileFormatError, match="does not have the SHA-256"):
        open_site(path, verify=True)


def test_there_is_no_tile_before_the_first_or_after_the_last(path):
    site = open_site(path)
    for tile_idx in (-1, len(site.manifest.tiles)):
        with pytest.raises(IndexError, match=f"tile {tile_idx} of"):
            site.read_tile(tile_idx)
