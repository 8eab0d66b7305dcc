"""The table of known scenes, and the cache that lets a run go on."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from synthetic_results import make_result, make_row

from edgeloc.errors import ConfigError
from edgeloc.types import CameraModel, PoseStatus, Rigid3
from edgeloc_tools.datasets.recording import RecordedImage, Recording
from edgeloc_tools.evaluate import scenes


@pytest.fixture
def row():
    rows = [make_row("a", 0.004, 0.1), make_row("b", 0.03, 1.0)]
    return scenes.scene_row("redkitchen", make_result(rows))


def test_line_of_a_scene(row):
    cells = dict(zip(scenes.HEADER, scenes.cells(row), strict=False))
    assert cells["scene"] == "redkitchen"
    assert cells["ground truth"] == "motion capture"
    assert cells["median error"] == "1.70 cm, 0.550°"
    assert cells["5 cm, 5°"] == "1.00"
    assert cells["1 % of extent, 2°"] == "0.50"
    assert cells["wrong but confident"] == "0"
    assert cells["p50 / p95 ms"] == "20.0 / 20.0"
    assert cells["map MB"] == "3.21"


def test_line_of_a_scene_of_unknown_scale_where_most_are_lost():
    rows = [make_row("a", 0.004, 0.1), make_row("b", math.inf, math.inf)]
    row = scenes.scene_row("fox", make_result(rows, metric=False))
    cells = dict(zip(scenes.HEADER, scenes.cells(row), strict=False))
    assert cells["median error"] == "inf"
    assert cells["5 cm, 5°"] == "0.50"
    assert cells["LOST"] == "1"


def test_lines_survive_the_cache(row, tmp_path):
    path = tmp_path / "new" / "row.json"
    assert scenes.load_row(path) is None
    scenes.save_row(path, row)
    assert scenes.load_row(path) == row
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "cache_version": 0}))
    assert scenes.load_row(path) is None
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"row\.json: is not JSON .*delete it"):
        scenes.load_row(path)


def test_cached_scene_is_neither_built_nor_evaluated(row, tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "build", None)
    monkeypatch.setattr(scenes, "evaluate", None)
    scenes.save_row(tmp_path / "results" / "redkitchen-orb.json", row)
    found = scenes.run_scene(
        scenes.SCENES[0], family="orb", data=tmp_path, out=tmp_path
    )
    assert found == row


def test_finished_site_is_opened_and_not_built_again(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(scenes, "open_site", lambda path: path.name)
    monkeypatch.setattr(scenes, "build", lambda *args, **options: built.append(1))
    scene = scenes.chosen_scenes("gardenspoint/000-033")[0]
    for _ in range(2):
        name = scenes.ready_site(scene, family="sift", data=tmp_path, out=tmp_path)
        folder = scenes.site_folder(tmp_path, scene, "sift")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "site.json").write_text("{}")
    assert name == "gardenspoint-000-033-sift"
    assert built == [1]


def test_scenes_are_chosen_by_name():
    assert [s.name for s in scenes.chosen_scenes("fox, fountain")] == [
        "fox",
        "fountain",
    ]
    with pytest.raises(ConfigError, match="--scenes: moon is not among redkitchen"):
        scenes.chosen_scenes("moon,fox")
    with pytest.raises(ConfigError, match="--scenes: nothing is not among"):
        scenes.chosen_scenes("")


def test_errors_of_the_command_are_one_line(tmp_path, capsys):
    arguments = ["--data", str(tmp_path / "none"), "--out", str(tmp_path)]
    assert scenes.main(arguments) == 2
    err = capsys.readouterr().err
    assert err == f"scenes: error: --data {tmp_path / 'none'}: is not a folder\n"


def test_tables_on_stdout(row, tmp_path, monkeypatch, capsys):
    def crossed(chosen, *, family, data, out, limit):
        return [
            scenes.CrossRow(
                queries="fox",
                site="fountain",
                family=family,
                num_queries=10,
                num_localized=1,
                num_coarse=4,
            )
        ]

    monkeypatch.setattr(scenes, "run_scene", lambda scene, **options: row)
    monkeypatch.setattr(scenes, "run_cross", crossed)
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path), "--cross"]
    assert scenes.main([*arguments, "--scenes", "fox", "--families", "orb,sift"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| scene | features | ground truth |")
    assert sum(line.startswith("| redkitchen | orb |") for line in lines) == 2
    assert "| fox | fountain | sift | 10 | 1 | 4 |" in lines
    assert lines[-1] == "LOCALIZED in a foreign map: 2 of 20 queries"


def test_same_place_is_not_crossed_and_answers_are_counted(tmp_path, monkeypatch):
    statuses = iter([PoseStatus.LOCALIZED, PoseStatus.COARSE, PoseStatus.LOST] * 9)

    class Answers:
        def __init__(self, **options):
            pass

        def answer(self, image, pixels, *, frame_id):
            return SimpleNamespace(status=next(statuses)), None, 0.0

    source = SimpleNamespace(read=lambda: np.zeros((2, 2), np.uint8))
    images = [
        RecordedImage(
            name=str(i), camera_id="c", source=source, cam_from_world=Rigid3.identity()
        )
        for i in range(3)
    ]
    camera = CameraModel(
        model="SIMPLE_PINHOLE", width=2, height=2, params=(1.0, 1.0, 1.0)
    )
    recording = Recording(name="r", images=images, cameras={"c": camera})
    opened = []
    monkeypatch.setattr(scenes, "Runner", Answers)
    monkeypatch.setattr(scenes, "open_queries", lambda scene, data: recording)
    monkeypatch.setattr(
        scenes, "ready_site", lambda scene, **options: opened.append(scene.name)
    )
    chosen = scenes.chosen_scenes("redkitchen,redkitchen-triangulated,fox")
    for _ in range(2):  # the second time from the cache
        rows = scenes.run_cross(chosen, family="orb", data=tmp_path, out=tmp_path)
    assert [(row.queries, row.site) for row in rows] == [
        ("fox", "redkitchen"),
        ("redkitchen", "fox"),
    ]
    assert all(
        (r.num_localized, r.num_coarse, r.num_queries) == (1, 1, 3) for r in rows
    )
    assert len(opened) == 2


@pytest.mark.parametrize(("limit", "asked"), [(None, 25), (10, 9), (25, 25), (1, 1)])
def test_queries_of_a_pair_are_all_or_spread(limit, asked, monkeypatch):
    seen = []

    class Answers:
        def __init__(self, **options):
            pass

        def answer(self, image, pixels, *, frame_id):
            seen.append(int(image.name))
            return SimpleNamespace(status=PoseStatus.COARSE), None, 0.0

    source = SimpleNamespace(read=lambda: np.zeros((2, 2), np.uint8))
    images = [
        RecordedImage(
            name=str(i), camera_id="c", source=source, cam_from_world=Rigid3.identity()
        )
        for i in range(25)
    ]
    camera = CameraModel(
        model="SIMPLE_PINHOLE", width=2, height=2, params=(1.0, 1.0, 1.0)
    )
    recording = Recording(name="r", images=images, cameras={"c": camera})
    monkeypatch.setattr(scenes, "Runner", Answers)
    assert scenes.cross(None, recording, limit=limit) == (asked, 0, asked)
    assert seen == list(range(0, 25, -(-25 // asked)))


@pytest.mark.data
def test_every_scene_of_the_table_opens(shared_data):
    """Counts of posed images; TUM has 3 images outside of its motion capture."""
    counts = {
        scene.name: tuple(
            len(scenes.open_source(source, shared_data).posed().images)
            for source in (scene.mapping, scene.queries)
        )
        for scene in scenes.SCENES
    }
    assert counts == {
        "redkitchen": (120, 40),
        "redkitchen-triangulated": (120, 40),
        "tum_fr1_rpy": (181, 163),
        "fountain": (7, 4),
        "lund_door": (9, 3),
        "fox": (40, 10),
        "gardenspoint/000-033": (34, 34),
        "gardenspoint/044-084": (41, 40),
    }


@pytest.mark.data
def test_mapping_images_and_queries_of_a_scene_are_disjoint(shared_data):
    for scene in scenes.SCENES:
        mapped = scenes.open_source(scene.mapping, shared_data)
        asked = scenes.open_queries(scene, shared_data)
        assert asked.name == scene.name
        shared = {i.name for i in mapped.images} & {i.name for i in asked.images}
        assert not shared, scene.name


@pytest.mark.data
def test_gap_between_the_halves_of_tum_is_one_second(shared_data):
    scene = scenes.chosen_scenes("tum_fr1_rpy")[0]
    last = scenes.open_source(scene.mapping, shared_data).images[-1].timestamp_ns
    first = scenes.open_source(scene.queries, shared_data).images[0].timestamp_ns
    assert 1.0e9 <= first - last < 1.2e9
