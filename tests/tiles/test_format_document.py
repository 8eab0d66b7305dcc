"""FORMAT.md tells the truth: every size it quotes is compared with the code."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from site_factory import index_path, make_contents, tile_path, with_features

import edgeloc.tiles
from edgeloc.tiles import (
    arrays,
    bits,
    codec,
    container,
    index_file,
    layout,
    manifest,
    partition,
    tile_file,
    tile_table,
    tracks,
    writer,
)
from edgeloc.tiles.container import FileKind, unpack
from edgeloc.tiles.reader import open_site
from edgeloc.tiles.writer import write_site

TEXT = Path(edgeloc.tiles.__file__).with_name("FORMAT.md").read_text(encoding="utf-8")
FLAT = " ".join(TEXT.split())
NUM_LANDMARKS, NUM_KEYFRAMES, NUM_NEIGHBOURS = 11, 7, 1


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
    codecs = FLAT.split("Codecs: ")[1].split(". ")[0]
    named = dict(re.findall(r"(\d) ([A-Z]+)", codecs))
    assert {int(k): v for k, v in named.items()} == {c: c.name for c in codec.Codec}
    kinds = dict(re.findall(r"(\d) (tile|index|codebook|delta)", FLAT))
    assert {int(k): v for k, v in kinds.items()} == {
        kind: kind.name.lower() for kind in FileKind
    }


def test_the_number_codes():
    assert f"code {bits._CONSTANT}: all numbers are the argument" in FLAT
    assert f"code k from 0 to {bits._MAX_RICE}, a Rice code" in FLAT
    golomb = f"code {bits._EXP_GOLOMB} + k, k from 0 to {bits._MAX_EXP_GOLOMB}"
    assert golomb in FLAT
    assert f"there are {bits._HEAD.size} bytes" in FLAT
    assert bits.MAX_NUMBER == 2**32 - 1


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Two tiles, of which the first holds all keyframes and all but one landmark."""
    path = tmp_path_factory.mktemp("format") / "site"
    rng = np.random.default_rng(0)
    points3D = np.vstack([rng.uniform(0.1, 1.9, (NUM_LANDMARKS, 3)), [[3.9, 1, 1]]])
    contents = make_contents(
        rng, points3D=points3D, num_keyframes=NUM_KEYFRAMES, visible_share=1.0
    )
    write_site(path, replace(contents, grid_origin=(0.0, 0.0, 0.0)), cell_size=2.0)
    site = open_site(path)
    assert [tile.num_landmarks for tile in site.tiles] == [NUM_LANDMARKS, 1]
    return site


@pytest.mark.parametrize("kind", [FileKind.TILE, FileKind.INDEX])
def test_the_sections(site, kind):
    file, module, heading = {
        FileKind.TILE: (tile_path(site), tile_file, "Tile"),
        FileKind.INDEX: (index_path(site), index_file, "Index"),
    }[kind]
    sections = unpack(file.read_bytes(), kind, module.TAGS).sections
    table = [row for row in rows(heading) if row[0] != "section"]
    assert [row[0] for row in table] == list(sections)
    units = {
        "": 1,
        "landmark": NUM_LANDMARKS,
        "neighbour": NUM_NEIGHBOURS,
        "keyframe": site.tiles[0].num_keyframes if kind is FileKind.TILE else 7,
        "tile": 2,
    }
    for tag, codec_name, size, _ in table:
        section = sections[tag]
        assert codec.Codec(section.codec).name == codec_name
        stated = re.fullmatch(r"(\d+)(?: per (\w+))?", size)
        if stated:
            expected = int(stated[1]) * units[stated[2] or ""]
            assert len(section.payload) == expected, tag
        else:
            assert tag in {
                "POSN", "DCNT", "DESC", "VIDS", "KFID", "CNTR", "GDSC", "ADIR", "ADAT",
            }  # fmt: skip
    if kind is FileKind.INDEX:
        assert len(sections["GDSC"].payload) == 7 * 8 * 2


def test_the_sections_of_features(tmp_path):
    rng = np.random.default_rng(1)
    contents = with_features(make_contents(rng), rng)
    write_site(tmp_path / "site", contents)
    data = tile_path(open_site(tmp_path / "site")).read_bytes()
    sections = tile_file.unpack_tile(data).sections
    table = rows("Keyframe features")[1:]
    assert tuple(row[0] for row in table) == tile_file.FEATURE_TAGS
    for tag, codec_name, size, _ in table:
        assert codec.Codec(sections[tag].codec).name == codec_name
        if size.isdigit():
            assert len(sections[tag].payload) == int(size)
    assert (tag, size) == ("FDSC", "F descriptors")
    assert len(sections["FDSC"].payload) == 4 * len(contents.features)
    assert f"sigma ({codec._SIGMA_BITS} bits)" in FLAT
    assert codec.KEYPOINT_STEPS_PER_PX == 8
    assert "in eighths of a pixel" in FLAT
    assert "off by at most 1/16 px" in FLAT


def test_the_sizes_of_features(tmp_path):
    stated = re.search(
        r"No features add (\d+) bytes to a tile; (\d+) features with one (\d+)-byte "
        r"descriptor each, in an image of 640 x 480, add ([\d.]+) bytes each\.",
        FLAT,
    )
    num, dim = int(stated[2]), int(stated[3])
    rng = np.random.default_rng(0)
    bare = make_contents(rng, num_landmarks=0, num_keyframes=1)
    bare = replace(
        bare,
        family=replace(bare.family, stored_dim=dim),
        landmarks=replace(bare.landmarks, descriptors=np.zeros((0, dim), np.uint8)),
    )
    sizes = []
    none = with_features(bare, rng, most=0)
    full = layout.KeyframeFeatures(
        offsets=np.array([0, num]),
        keypoints=rng.uniform(0, (640, 480), (num, 2)).astype(np.float32),
        sigmas=np.ones(num, np.float32),
        descriptors=np.zeros((num, dim), np.uint8),
    )
    for name, contents in (
        ("bare", bare), ("none", none), ("full", replace(none, features=full)),
    ):  # fmt: skip
        write_site(tmp_path / name, contents)
        [tile] = open_site(tmp_path / name).tiles
        sizes.append(tile.num_bytes)
    assert sizes[1] - sizes[0] == int(stated[1])
    assert f"{(sizes[2] - sizes[1]) / num:.1f}" == stated[4]


def test_the_other_files():
    for heading, tags in (("Codebook", arrays.CODEBOOK_TAGS),):
        found = [tag for row in rows(heading)[1:] for tag in row[0].split(", ")]
        assert tuple(found) == tags


def test_the_sizes_of_an_empty_tile_and_of_a_landmark(tmp_path):
    stated = re.search(
        r"An empty tile has (\d+) bytes .*; (\d+) landmarks with one (\d+)-byte "
        r"descriptor each, in a cube, add ([\d.]+) bytes each\.",
        FLAT,
    )
    num, descriptor_bytes = int(stated[2]), int(stated[3])
    empty = make_contents(np.random.default_rng(0), num_landmarks=0)
    write_site(tmp_path / "empty", empty)
    [tile] = open_site(tmp_path / "empty").tiles
    assert tile.num_bytes == int(stated[1])
    contents = make_contents(
        np.random.default_rng(0), num_landmarks=num, visible_share=0.0
    )
    full = replace(
        contents,
        family=replace(contents.family, stored_dim=descriptor_bytes),
        landmarks=replace(
            contents.landmarks,
            descriptor_offsets=np.arange(num + 1),
            descriptors=np.zeros((num, descriptor_bytes), np.uint8),
        ),
    )
    write_site(tmp_path / "full", full)
    [other] = open_site(tmp_path / "full").tiles
    assert f"{(other.num_bytes - tile.num_bytes) / num:.1f}" == stated[4]


def test_the_bytes_of_a_keyframe(tmp_path):
    """17 bytes beside the global descriptor, in a map of the size of a town."""
    sizes = []
    for num_keyframes in (1000, 2000):
        contents = make_contents(
            np.random.default_rng(0),
            num_landmarks=3,
            num_keyframes=num_keyframes,
            extent=1000.0,
            visible_share=0.0,
        )
        one = {"left": contents.cameras["left"]}
        keyframes = replace(contents.keyframes, camera_ids=("left",) * num_keyframes)
        path = tmp_path / str(num_keyframes)
        manifest = write_site(path, replace(contents, cameras=one, keyframes=keyframes))
        sizes.append(manifest.index.num_bytes)
    each = (sizes[1] - sizes[0]) / 1000 - 8 * 2
    stated = re.search(r"tables cost (\d+) bytes per keyframe", FLAT)
    assert round(each) == int(stated[1])


def test_the_numbers_in_the_text():
    limits = dict(rows("Limits"))
    assert float(limits["coordinates"]) == codec.MAX_COORDINATE
    assert int(limits["landmarks of a tile"]) == tile_table.MAX_TILE_LANDMARKS
    assert int(limits["visible landmarks of a tile"]) == tracks.MAX_VISIBLE
    assert int(limits["keyframes"]) == manifest.MAX_KEYFRAMES
    assert int(limits["keyframe ids"]) == bits.MAX_NUMBER
    assert int(limits["tiles"]) == tile_table.MAX_TILES
    assert int(limits["cameras"]) == manifest.MAX_CAMERAS
    assert limits["a coordinate of a keypoint"] == f"{codec.MAX_KEYPOINT_PX} px"
    assert (codec.MAX_KEYPOINT_PX * 8).bit_length() == codec.MAX_KEYPOINT_BITS
    versions = f'`"edgeloc-site"`, {container.BASE_VERSION} or '
    assert f"{versions}{container.FORMAT_VERSION}: looked at" in FLAT
    assert limits["a section"] == f"{container.MAX_SECTION_BYTES} bytes"
    assert limits["site.json"] == f"{manifest.MAX_SITE_JSON_BYTES} bytes"
    most = codec.MAX_DESCRIPTORS_PER_LANDMARK
    assert int(limits["descriptors of a landmark"]) == most
    assert f"row of the tile << {layout.LANDMARK_BITS}" in FLAT
    assert f"({writer.MAX_TILE_BYTES >> 10} KiB unless told otherwise)" in FLAT
    assert f"Sections above {index_file.LAZY_BYTES} bytes are not read" in FLAT
    assert f"told in {tile_table.BOX_PARTS}ths of its cell" in FLAT
    assert f"w x y z times {index_file.QUAT_SCALE}" in FLAT
    assert partition.MAX_STEP == index_file.CENTER_STEP == 2.0**-10
    assert f"until {partition.MAX_BITS} bits per axis suffice" in FLAT
    assert f"{codec.SIGMA_QUANTILE:.0%}".replace("%", " %") in FLAT
    assert codec.SIGMA_STEPS_PER_OCTAVE == 2
    assert (codec.SIGMA_CODES - 1) / codec.SIGMA_STEPS_PER_OCTAVE == 7.5
    assert codec.OBSERVATION_COUNTS[:8] == tuple(range(8))
    counts = ", ".join(map(str, codec.OBSERVATION_COUNTS[8:-1]))
    assert f"the other codes stand for {counts} and 64 or more" in FLAT
    assert codec.OBSERVATION_COUNTS[-1] == 64
    digits = f"first {manifest.NAME_CHARS} hexadecimal digits of the SHA-256 of the fi"
    assert digits in FLAT
    assert (
        f"first {manifest.MAP_ID_CHARS} hexadecimal digits of the SHA-256 of this"
        in (FLAT)
    )
    assert codec.position_step(np.array([[0.0] * 3, [60.0] * 3])) < 1e-3
    fields = re.findall(r"`(\w+)`", "".join(row[0] for row in rows("site.json")))
    assert sorted(fields) == sorted((*manifest._SITE_KEYS, *manifest._OPTIONAL_KEYS))
