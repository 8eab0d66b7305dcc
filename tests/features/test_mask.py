"""Masks from images and polygons, their margin, and a segmentation network's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from model_factory import FEATURES, constant_network

from edgeloc.errors import ConfigError, ModelError
from edgeloc.features.mask import (
    joined,
    load_polygons,
    load_static_mask,
    parse_polygon,
    polygon_mask,
    with_margin,
)
from edgeloc.features.segment import open_segmenter
from edgeloc.inference.manifest import decode_manifest, encode_manifest
from edgeloc_tools.model_files import write_model
from edgeloc_tools.synth.colour_segmenter import MANIFEST as SEGMENTATION
from edgeloc_tools.synth.colour_segmenter import network as magenta_network

SQUARE = [(10.0, 5.0), (20.0, 5.0), (20.0, 15.0), (10.0, 15.0)]


class TestPolygons:
    def test_inside_is_ignored_to_the_pixel(self) -> None:
        mask = polygon_mask([SQUARE], size=(40, 30))
        assert mask.shape == (30, 40)
        inside = np.zeros((30, 40), bool)
        inside[5:15, 10:20] = True
        # OpenCV fills the border, too: at most one pixel more.
        assert np.all(mask[inside] == 0)
        wrong = (mask == 0) & ~inside
        assert np.all(cv2.dilate(inside.astype(np.uint8), np.ones((3, 3)))[wrong] == 1)

    def test_toml_and_json_by_camera(self, tmp_path: Path) -> None:
        toml = tmp_path / "hood.toml"
        toml.write_text(
            "polygons = [[[0, 20], [40, 20], [40, 30], [0, 30]]]\n"
            "[cameras.left]\npolygons = [[[0, 0], [5, 0], [5, 5], [0, 5]]]\n",
            encoding="ascii",
        )
        left = load_static_mask(str(toml), size=(40, 30), camera_id="left")
        other = load_static_mask(str(toml), size=(40, 30), camera_id="right")
        assert left[25, 20] == other[25, 20] == 0
        assert (left[2, 2], other[2, 2]) == (0, 255)
        file = tmp_path / "hood.json"
        file.write_text(json.dumps({"polygons": [SQUARE]}), encoding="ascii")
        assert load_polygons(file) == {"": (tuple(SQUARE),)}
        text = load_static_mask("10,5 20,5 20,15 10,15", size=(40, 30))
        np.testing.assert_array_equal(text, polygon_mask([SQUARE], size=(40, 30)))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "is not valid JSON"),
            ("[]", "expected polygons"),
            ("{}", "has no polygon"),
            ('{"polygon": []}', "has other fields than"),
            ('{"polygons": [[[0, 0], [1, 1]]]}', "three or more corners"),
            ('{"polygons": [[[0, 0], [1, 1], [1e9, 0]]]}', "three or more corners"),
            ('{"polygons": [[[0, 0], [1], [2, 2]]]}', "three or more corners"),
            ('{"cameras": {"a": {}}}', "cameras.a.polygons is missing"),
        ],
    )
    def test_files_that_say_something_else(
        self, tmp_path: Path, text: str, message: str
    ) -> None:
        file = tmp_path / "m.json"
        file.write_text(text, encoding="ascii")
        with pytest.raises(ConfigError, match=message):
            load_polygons(file)

    def test_text_that_is_no_polygon(self) -> None:
        with pytest.raises(ConfigError, match="three or more corners"):
            parse_polygon("1,2 3,4")
        with pytest.raises(ConfigError, match="three or more corners"):
            parse_polygon("1,2 3,4 x,y")

    def test_a_mask_image_has_the_size_of_the_camera(self, tmp_path: Path) -> None:
        path = tmp_path / "mask.png"
        cv2.imwrite(str(path), np.zeros((30, 40), np.uint8))
        assert load_static_mask(str(path), size=(40, 30)).max() == 0
        with pytest.raises(ConfigError, match="is 40x30 px, the camera's pictures are"):
            load_static_mask(str(path), size=(80, 60))
        with pytest.raises(ConfigError, match="is missing"):
            load_static_mask(str(tmp_path / "none.png"), size=(40, 30))


def test_the_margin_is_a_distance_and_the_border_is_free() -> None:
    mask = np.full((31, 31), 255, np.uint8)
    mask[15, 15] = 0
    wide = with_margin(mask, 4)
    y, x = np.mgrid[-15:16, -15:16]
    distance = np.hypot(x, y)
    assert np.all(wide[distance <= 3.5] == 0)
    assert np.all(wide[distance > 5] == 255)
    assert with_margin(np.full((5, 5), 255, np.uint8), 3).min() == 255
    assert with_margin(mask, 0) is mask


def test_joined_ignores_what_any_does() -> None:
    a, b = np.array([[0, 255]], np.uint8), np.array([[255, 255]], np.uint8)
    assert joined(None, None) is None
    assert joined(None, a) is a
    out = joined(a, b)
    assert out is not None
    assert out.tolist() == [[0, 255]]


class TestSegmenter:
    def picture(self) -> np.ndarray:
        image = np.full((50, 70, 3), 120, np.uint8)
        image[8:32, 16:40] = (220, 60, 230)  # BGR
        return image

    def test_logits_become_a_mask_of_the_pictures_size(self, tmp_path: Path) -> None:
        """50 x 70 is padded to 64 x 80: the padding is no part of the mask."""
        path = write_model(tmp_path, SEGMENTATION, magenta_network())
        mask = open_segmenter(path).keep_mask(self.picture())
        assert mask.shape == (50, 70)
        assert np.all(mask[10:30, 18:38] == 0)
        assert np.all(mask[36:, :] == 255)
        assert np.all(mask[:, 44:] == 255)

    def test_class_ids(self, tmp_path: Path) -> None:
        ids = np.zeros((1, 4, 5), np.int64)
        ids[0, :2] = 1
        manifest = replace(SEGMENTATION, decoder="class-ids")
        network = constant_network({"logits": ids}, channels=3)
        path = write_model(tmp_path, manifest, network)
        mask = open_segmenter(path, ignore=["background"]).keep_mask(self.picture())
        assert np.all(mask[:20] == 255)
        assert np.all(mask[-10:] == 0)

    @pytest.mark.parametrize(
        ("decoder", "output", "message"),
        [
            ("class-logits", np.zeros((1, 3, 4, 5), np.float32), "for its 2 classes"),
            ("class-ids", np.full((1, 4, 5), 7, np.int64), "gives class 7"),
            ("class-ids", np.full((1, 4, 5), -1, np.int64), "gives class -1"),
            ("class-ids", np.zeros((2, 4, 5), np.int64), "expected .1, H, W."),
        ],
    )
    def test_a_network_that_is_not_what_its_manifest_says(
        self, tmp_path: Path, decoder: str, output: np.ndarray, message: str
    ) -> None:
        manifest = replace(SEGMENTATION, decoder=decoder)
        network = constant_network({"logits": output}, channels=3)
        segmenter = open_segmenter(write_model(tmp_path, manifest, network))
        with pytest.raises(ModelError, match=message):
            segmenter.keep_mask(self.picture())

    def test_classes_are_named(self, tmp_path: Path) -> None:
        path = write_model(tmp_path, SEGMENTATION, magenta_network())
        with pytest.raises(ConfigError, match=r"--ignore-classes car: .* knows only"):
            open_segmenter(path, ignore=["car"])
        other = replace(SEGMENTATION, name="other", classes=("a", "b"))
        folder = tmp_path / "other"
        folder.mkdir()
        with pytest.raises(ConfigError, match="is known to move"):
            open_segmenter(write_model(folder, other, magenta_network()))

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (replace(SEGMENTATION, classes=()), "classes is missing"),
            (replace(SEGMENTATION, classes=("a",)), "as many names as descriptor_dim"),
            (replace(SEGMENTATION, classes=("a", "a")), "that differ from each other"),
            (replace(FEATURES, classes=("a",)), "classes is only for segmentation"),
        ],
    )
    def test_manifests_are_checked(self, wrong: object, message: str) -> None:
        with pytest.raises(ModelError, match=message):
            encode_manifest(wrong)  # type: ignore[arg-type]
        good = decode_manifest(encode_manifest(SEGMENTATION))
        assert good.classes == ("background", "person")
