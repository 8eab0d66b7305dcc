"""Retrieval: what the same place is, recall, and failures."""

import json

import cv2
import numpy as np
import pytest
from model_factory import write_retrieval

from edgeloc.errors import ConfigError
from edgeloc.features.registry import open_family, open_retrieval
from edgeloc.geometry.se3 import exp_so3
from edgeloc.types import CameraModel, Rigid3
from edgeloc_tools.datasets.recording import ImageFile, RecordedImage
from edgeloc_tools.evaluate.place_sets import (
    PlaceSet,
    near_by_pose,
    place_sets,
    recall_at,
    same_index,
    view_overlap,
)
from edgeloc_tools.evaluate.places import (
    GlobalNetwork,
    Vlad,
    chosen_sets,
    failure_sheet,
    main,
    retrieve,
    table,
    worst_failures,
)
from edgeloc_tools.progress import silent

CAMERA = CameraModel(
    model="SIMPLE_PINHOLE", width=640, height=480, params=(500.0, 320.0, 240.0)
)


def camera_at(x=0.0, y=0.0, z=0.0, *, turn_deg=0.0, roll_deg=0.0):
    """Looks along z, turned about y, then rolled."""
    R = exp_so3([0, 0, np.deg2rad(roll_deg)]) @ exp_so3([0, np.deg2rad(turn_deg), 0])
    return Rigid3(R=R, t=-R @ np.array([x, y, z]))


def test_recall_looks_at_the_first_k():
    ranking = np.array([[2, 0, 1], [1, 0, 2], [0, 1, 2], [2, 1, 0]])
    same = np.eye(4, 3, dtype=bool)
    same[3, 0] = True
    assert recall_at(ranking, same, 1) == pytest.approx(0.25)
    assert recall_at(ranking, same, 2) == pytest.approx(0.5)
    assert recall_at(ranking, same, 3) == 1.0
    assert recall_at(ranking, same, 10) == 1.0


def test_frames_of_nearly_the_same_number_are_the_same_place():
    same = same_index(5, 4, within=1)
    assert same.tolist()[0] == [True, True, False, False]
    assert same.sum() == 2 + 3 + 3 + 2 + 1


def test_near_cameras_that_look_the_same_way():
    database = [camera_at(x) for x in (0.0, 1.0, 2.0, 3.0, 4.0)]
    # The median distance to the median position is 1.
    queries = [camera_at(0.6), camera_at(0.6, turn_deg=40.0), camera_at(2.0, z=0.5)]
    near = near_by_pose(queries, database, share_of_extent=0.5, angle_deg=30)
    assert near.tolist() == [
        [False, True, False, False, False],
        [False] * 5,
        [False, False, True, False, False],
    ]


def test_view_overlap_of_simple_motions():
    here = camera_at()
    others = [
        camera_at(),
        camera_at(turn_deg=180),
        camera_at(roll_deg=180),
        camera_at(x=0.96),
        camera_at(turn_deg=30),
    ]
    shared = view_overlap([here], others, cameras=(CAMERA, CAMERA), depth=2.0)[0]
    assert shared[0] == 1.0
    assert shared[1] == 0.0
    assert shared[2] == 1.0
    # At 1.2, 2 and 3 away the views are 1.54, 2.56 and 3.84 wide.
    expected = np.mean([1 - 0.96 / w for w in (1.536, 2.56, 3.84)])
    assert shared[3] == pytest.approx(expected, abs=0.07)
    assert 0.2 < shared[4] < 0.7


def walk(tmp_path, rng, count=12):
    """Overlapping cut-outs of a wide picture, and the same a little aside."""
    noise = [cv2.GaussianBlur(rng.normal(size=(160, 1400)), (0, 0), s) for s in (1, 3)]
    wide = sum(n / n.std() for n in noise)
    wide = np.clip(127 + 50 * wide, 0, 255).astype(np.uint8)
    images = {"query": [], "database": []}
    for idx in range(count):
        for kind, aside in (("query", 12), ("database", 0)):
            path = tmp_path / f"{kind}{idx:02d}.png"
            x = 100 * idx + aside
            cv2.imwrite(str(path), wide[:, x : x + 200])
            images[kind].append(
                RecordedImage(name=path.name, camera_id="0", source=ImageFile(path))
            )
    return PlaceSet(
        name="walk",
        rule="±1 frame",
        queries=images["query"],
        database=images["database"],
        same=same_index(count, count, within=0),
    )


def test_vlad_and_networks_find_places(tmp_path, rng):
    places = walk(tmp_path, rng)
    vlad = Vlad(open_family("orb"))
    network = GlobalNetwork(open_retrieval(str(write_retrieval(tmp_path / "model"))))
    assert (vlad.name, network.name) == ("VLAD-orb", "tiny-retrieval")
    assert vlad.key != network.key
    for method, least in ((vlad, 0.75), (network, 0.3)):
        query, database = method.describe(places, silent)
        assert query.shape == database.shape
        np.testing.assert_allclose(np.linalg.norm(query, axis=1), 1.0, atol=1e-5)
        found = retrieve(query, database)
        assert recall_at(found.ranking, places.same, 1) >= least
        itself = retrieve(database, database)
        assert recall_at(itself.ranking, places.same, 1) == 1.0


def test_failures_are_sorted_by_how_sure_they_are(tmp_path, rng):
    places = walk(tmp_path, rng, count=3)
    similarity = np.array([[0.9, 0.1, 0.2], [0.8, 0.7, 0.1], [0.9, 0.1, 0.2]])
    found = retrieve(similarity.astype(np.float32), np.eye(3, dtype=np.float32))
    failures = worst_failures(found, places)
    assert failures == [(2, 0, 2), (1, 0, 1)]
    sheet = failure_sheet(failures, places)
    assert sheet.shape == (2 * 262, 3 * 324, 3)
    # The pictures are in there, not only their frame.
    assert sheet[100:200, 100:200].std() > 20


def test_sets_that_measure_nothing_say_why(tmp_path, rng):
    places = walk(tmp_path, rng, count=3)
    assert places.unfit == ""
    assert places.chance == pytest.approx(1 / 3)

    def with_same(same):
        return PlaceSet(
            name="",
            rule="",
            queries=places.queries,
            database=places.database,
            same=same,
        )

    lost = np.eye(3, dtype=bool)
    lost[1] = False
    assert with_same(lost).unfit == "1 queries show no place of the database"
    everything = with_same(np.ones((3, 3), bool))
    assert everything.unfit == "every image shows the place of every query"


def test_the_table_leaves_out_what_does_not_count():
    facts = {
        "set": "walk",
        "rule": "±2 frames",
        "queries": 10,
        "database": 20,
        "chance": 0.051,
        "unfit": "",
    }
    recalls = {"recall_at_1": 0.5, "recall_at_5": 0.75, "recall_at_10": 1.0}
    markdown = table(
        {"VLAD-orb": {"a": {**facts, **recalls}, "b": {**facts, "unfit": "no reason"}}}
    )
    assert "| walk | 10 / 20 | ±2 frames | 0.05 | 0.50 / 0.75 / 1.00 |" in markdown
    assert "| – / – / – |" in markdown
    assert markdown.endswith("walk does not count: no reason.\n")


def test_unknown_sets_are_named():
    assert chosen_sets(None) == list(place_sets())
    with pytest.raises(ConfigError, match="--sets: moon is not among day-day, night"):
        chosen_sets("day-day,moon")


@pytest.mark.data
def test_posed_sets_can_be_measured(shared_data):
    """Every query has its place, and chance does not find it."""
    for name in ("fox", "gardenspoint/000-033", "tum_fr1_rpy"):
        places = place_sets()[name](shared_data)
        assert places.unfit == ""
        assert places.chance < 0.5


@pytest.mark.data
def test_a_short_walk_by_day(shared_data):
    whole = place_sets()["day-day"](shared_data)
    assert whole.same.sum() == 100 * 5 - 6
    part = PlaceSet(
        name="part",
        rule=whole.rule,
        queries=whole.queries[10:90:20],
        database=whole.database[::10],
        same=whole.same[10:90:20, ::10],
    )
    found = retrieve(*Vlad(open_family("orb")).describe(part, silent))
    assert recall_at(found.ranking, part.same, 1) >= 0.5


@pytest.mark.data
def test_the_command_measures_once_and_writes_all(shared_data, tmp_path, capsys):
    model = write_retrieval(tmp_path)
    command = ["--data", str(shared_data), "--out", str(tmp_path / "out")]
    command += ["--sets", "lund_door", "--families", "orb", "--retrieval", str(model)]
    assert main(command) == 0
    first = capsys.readouterr()
    header = first.out.splitlines()[0]
    assert "VLAD-orb @1/5/10 | tiny-retrieval @1/5/10 |" in header
    assert (tmp_path / "out" / "places.md").read_text() == first.out
    record = json.loads((tmp_path / "out" / "places.json").read_text())
    facts = record["results"]["VLAD-orb"]["lund_door"]
    assert (facts["queries"], facts["database"]) == (3, 9)
    assert facts["recall_at_5"] == 1.0
    assert main(command) == 0
    again = capsys.readouterr()
    assert (again.out, again.err) == (first.out, "")
