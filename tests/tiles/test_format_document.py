"""FORMAT.md tells the truth: every size it quotes is compared with the code."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from site_factory import make_contents

import edgeloc.tiles
from edgeloc.tiles import codec, container, index_file, manifest, partition, tile_file
from edgeloc.tiles.container import FileKind, unpack
from edgeloc.tiles.reader import open_site
from edgeloc.tiles.writer import write_site

TEXT = Path(edgeloc.tiles.__file__).with_name("FORMAT.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of the tables below a heading."""
    part = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_frame():
    cells = dict(row for row in rows("Binary files") if len(row) == 2)
    assert cells["header"] == str(container.HEADER.size)
    assert cells["section table, per section"] == str(container.TABLE_ENTRY.size)
    padding = cells["sections, each padded with zeros to a multiple of"]
    assert padding == str(container.ALIGNMENT_BYTES)
    assert f"magic `{container.MAGIC.hex(' ')}`" in TEXT
    assert TEXT.startswith(f"# The site format, version {container.FORMAT_VERSION}\n")
    named = dict(re.findall(r"(\d) ([A-Z0-9_]+)(?: \(|,|\.)", TEXT))
    assert {int(k): v for k, v in named.items()} == {c: c.name for c in codec.Codec}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    path = tmp_path_factory.mktemp("format") / "site"
    contents = make_contents(
        np.random.default_rng(0), num_landmarks=11, num_keyframes=7
    )
    write_site(path, contents)
    return open_site(path)


@pytest.mark.parametrize("kind", list(FileKind))
def test_the_sections(site, kind):
    entry, module, heading = {
        FileKind.TILE: (site.manifest.tiles[0].file, tile_file, "Tile"),
        FileKind.INDEX: (site.manifest.index, index_file, "Index"),
    }[kind]
    data = (site.path / entry.file).read_bytes()
    sections = unpack(data, kind, module.TAGS).sections
    table = [row for row in rows(heading) if row[0] != "section"]
    assert [row[0] for row in table] == list(sections)
    units = {"": 1, "landmark": 11, "keyframe": 7, "G per keyframe": 7 * 8}
    for tag, codec_name, size, _ in table:
        section = sections[tag]
        assert codec.Codec(section.codec).name == codec_name
        stated = re.fullmatch(r"(\d+)(?: per | )?(G per keyframe|\w*)", size)
        if stated:
            expected = int(stated[1]) * units[stated[2]]
            assert len(section.payload) == expected, tag
        else:
            assert tag in {"DESC", "VIDS", "RARR"}


def test_the_sizes_of_an_empty_tile_and_of_a_landmark(tmp_path):
    stated = re.search(
        r"An empty tile has (\d+) bytes; a landmark with one 32-byte descriptor\s+"
        r"adds (\d+)\.",
        TEXT,
    )
    contents = make_contents(np.random.default_rng(0), num_landmarks=0)
    [empty] = write_site(tmp_path / "empty", contents).tiles
    own = 24 + 16  # three keyframes: their ids, and their counts with padding
    assert empty.file.num_bytes - own == int(stated[1])
    contents = make_contents(
        np.random.default_rng(0), num_landmarks=800, visible_share=0.0
    )
    full = replace(
        contents,
        family=replace(contents.family, stored_dim=32),
        landmarks=replace(
            contents.landmarks,
            descriptor_offsets=np.arange(801),
            descriptors=np.zeros((800, 32), np.uint8),
        ),
    )
    [tile] = write_site(tmp_path / "full", full).tiles
    assert tile.file.num_bytes - empty.file.num_bytes == 800 * int(stated[2])


def test_the_numbers_in_the_text():
    limits = dict(rows("Limits"))
    assert float(limits["coordinates"]) == codec.MAX_COORDINATE
    assert int(limits["landmarks"]) == codec.MAX_IDS
    assert int(limits["descriptors of a landmark"]) == codec.MAX_COUNT
    assert int(limits["tiles"]) == manifest.MAX_TILES
    assert limits["site.json"] == f"{manifest.MAX_SITE_JSON_BYTES} bytes"
    assert partition.MAX_STEP == 2.0**-10
    assert f"first {manifest.MAP_ID_CHARS} hexadecimal digits" in TEXT
    assert f"(code - {codec.SIGMA_ZERO_CODE}) / {codec.SIGMA_STEPS_PER_OCTAVE}" in TEXT
    assert codec.position_step(np.array([[0.0] * 3, [60.0] * 3])) < 1e-3
    fields = re.findall(r"`(\w+)`", "".join(row[0] for row in rows("site.json")))
    assert sorted(fields) == sorted((*manifest._SITE_KEYS, "models"))
