"""All methods of a site in one table and one picture."""

import json
import math
from dataclasses import replace

import pytest
from site_fixture import mapping_recording, query_images
from synthetic_results import make_result, make_row

from edgeloc.errors import ConfigError
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc_tools.cli import eval as command
from edgeloc_tools.evaluate.comparison import (
    EXTENT_LABEL,
    HEADER,
    METHODS,
    BuildFacts,
    MethodRow,
    cells,
    compare_methods,
    device_bytes,
    has_data,
    method_steps,
    read_build_facts,
)
from edgeloc_tools.evaluate.comparison_report import answered_rows, write_comparison

MACHINE = {"processor": "test"}


def result_of(position, lost=0):
    rows = [make_row(f"f{k}", position, 0.1) for k in range(4)]
    rows += [make_row(f"l{k}", math.inf, math.inf) for k in range(lost)]
    return make_result(rows)


def test_every_method_has_its_step():
    steps = {method: [s.name for s in method_steps(method)] for method in METHODS}
    assert steps == {
        "structure": ["relocalize"],
        "scene-coords": ["scene_coords"],
        "local-sfm": ["local_sfm"],
        "relative": ["relative"],
        "interpolate": ["interpolate"],
        "regress": ["regress"],
    }


def test_a_site_of_landmarks_is_compared_and_the_rest_is_listed(orb_site):
    recording = mapping_recording().subset(query_images()[:3])
    builds = dict.fromkeys(METHODS, BuildFacts(seconds=12.0, training_bytes=5e6))
    told = []
    rows = compare_methods(
        orb_site.site,
        recording,
        options=EstimatorOptions(),
        builds=builds,
        progress=lambda name, done, total: told.append((name, done, total)),
    )
    assert [row.method for row in rows] == list(METHODS)
    answered = [row.method for row in rows if row.result is not None]
    assert answered == ["structure", "interpolate"]
    by_name = {row.method: row for row in rows}
    structure = by_name["structure"].result.summary
    coarse = by_name["interpolate"].result.summary
    assert set(structure.rungs) <= {"RELOCALIZE", "LOST"}
    assert set(coarse.rungs) <= {"INTERPOLATE", "LOST"}
    assert structure.all_frames.median_position < coarse.all_frames.median_position
    assert told.count(("structure", 3, 3)) == 1
    line = dict(zip(HEADER, cells(by_name["structure"]), strict=True))
    assert line["training data"] == "5.00 MB"
    assert line["build"] == "12.0 s"
    missing = dict(zip(HEADER, cells(by_name["regress"]), strict=True))
    assert missing["answers"] == "no data in this site"
    assert missing["median error"] == "–"


def test_bytes_on_the_device_are_those_of_the_files(orb_site):
    manifest = orb_site.site.manifest
    # Without networks and codebooks: the index and the tiles.
    expected = manifest.index.num_bytes + manifest.tile_bytes
    assert device_bytes(manifest, "structure") == expected
    assert device_bytes(manifest, "regress") == manifest.index.num_bytes
    assert has_data(manifest, "interpolate")
    assert not has_data(manifest, "scene-coords")


def test_a_site_without_any_data_is_refused(orb_site):
    manifest = replace(orb_site.site.manifest, rungs=())
    site = replace(orb_site.site, manifest=manifest)
    with pytest.raises(ConfigError, match="carries no data for any method"):
        compare_methods(site, mapping_recording(), options=EstimatorOptions())


def test_the_report_holds_the_picture_and_the_numbers(tmp_path):
    rows = [
        MethodRow(method="structure", device_bytes=2_000_000, result=result_of(0.01)),
        MethodRow(method="relative", device_bytes=500_000, result=result_of(0.1, 9)),
        MethodRow(method="regress"),
    ]
    # Half LOST: in the table, not in the picture.
    assert [row.method for row, _ in answered_rows(rows)] == ["structure"]
    paths = write_comparison(rows, tmp_path, machine=MACHINE, command=["eval", "<x>"])
    facts = json.loads(paths[0].read_text())
    structure, relative, regress = facts["methods"]
    assert structure["summary"]["all_frames"]["median_position"] == pytest.approx(0.01)
    assert structure["build_seconds"] is None
    assert relative["summary"]["statuses"] == {"LOST": 9, "LOCALIZED": 4}
    assert (regress["has_data"], regress["summary"]) == (False, None)
    page = paths[1].read_text()
    assert "data:image/svg+xml;base64," in page
    assert "eval &lt;x&gt;" in page
    assert "no data in this site" in page
    assert "<script" not in page


def test_an_empty_picture_says_so(tmp_path):
    rows = [MethodRow(method="relative", result=result_of(0.1, 9))]
    _, page = write_comparison(rows, tmp_path, machine=MACHINE, command=["eval"])
    assert "inf" in page.read_text()


def test_labels_of_the_table_are_those_of_results():
    line = dict(
        zip(HEADER, cells(MethodRow(method="x", result=result_of(0.01))), strict=True)
    )
    assert [line[name] for name in HEADER[4:7]] == ["1.00", "1.00", "1.00"]
    assert EXTENT_LABEL in {r.label for r in result_of(0.01).summary.recalls}


def test_build_facts_are_read_from_the_report(tmp_path):
    path = tmp_path / "report.json"
    path.write_text('{"facts": {"build_seconds": 33.5, "training_bytes": 1000}}')
    assert read_build_facts(path) == BuildFacts(seconds=33.5, training_bytes=1000)
    path.write_text('{"facts": {}}')
    with pytest.raises(ConfigError, match="has no build time and training bytes"):
        read_build_facts(path)
    with pytest.raises(ConfigError, match=r"give report\.json of edgeloc-build map"):
        read_build_facts(tmp_path / "nowhere.json")


def test_builds_tell_what_they_took(orb_site):
    cost = orb_site.result.cost
    assert cost["build_seconds"] > 0
    assert cost["training_bytes"] >= 0
    # The same images make the same site, however long that takes.
    assert "build_seconds" not in orb_site.site.manifest.build


def test_a_build_report_is_for_all_methods_only(capsys):
    code = command.main(
        ["--map", "s", "--format", "kapture", "--input", "q", "--build-report", "r"]
    )
    assert code == 2
    assert "--build-report: is for --method all only" in capsys.readouterr().err
