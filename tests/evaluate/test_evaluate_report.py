"""The files of a report: complete, self-contained, and the numbers in them."""

from __future__ import annotations

import json
import math
import re
import stat
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from synthetic_results import make_result, make_row

from edgeloc_tools.evaluate import text
from edgeloc_tools.evaluate.draw import draw_explanation
from edgeloc_tools.evaluate.machine import cpu_name, machine_facts
from edgeloc_tools.evaluate.plots import PLOTS, render, top_view_basis
from edgeloc_tools.evaluate.report import (
    report_html,
    report_json,
    write_report,
)
from edgeloc_tools.files import write_atomically

MACHINE = {"processor": "Imaginary <CPU> 3000", "cores": "2"}
COMMAND = ["edgeloc-eval", "--map", "site"]
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and collects text, references and tables."""

    def __init__(self, source):
        super().__init__()
        self.open_tags = []
        self.references = []
        self.words = []
        self.tags = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open_tags.append(tag)
        self.references += [v for k, v in attrs if k in {"src", "href", "srcset"}]

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def source(mixed_result):
    return report_html(mixed_result, machine=MACHINE, command=COMMAND)


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def test_page_is_well_formed_and_needs_nothing_else(source, page):
    assert page.open_tags == []
    assert len(page.references) == len(PLOTS) + 2
    assert all(ref.startswith("data:image/") for ref in page.references)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert not re.search(r"url\(|@import|https?:", source)


def test_page_shows_the_numbers_of_the_json(mixed_result, page):
    stored = report_json(mixed_result, machine=MACHINE, command=COMMAND)
    summary = stored["summary"]
    for row in summary["recalls"]:
        line = (
            f"{row['label']} {100 * row['recall']:.1f} % {row['num_inside']} "
            f"{row['num_outside']} {row['num_lost']}"
        )
        assert line in page.text
    assert f"Wrong but confident: {len(summary['wrong_but_confident'])} of 120" in (
        page.text
    )
    for name in summary["wrong_but_confident"]:
        assert name in page.text
    median = summary["all_frames"]["median_position"]
    assert text.length(median, "m") in page.text
    assert "motion capture" in page.text
    assert "0123456789abcdef" in page.text
    assert "edgeloc-eval --map site" in page.text
    assert "2 images without it were left out" in page.text
    assert "structure.min" in page.text


def test_names_from_outside_are_escaped(source, page):
    assert "ring <site>" not in source
    assert "ring <site>" in page.text
    assert "Imaginary <CPU> 3000" in page.text


@pytest.mark.parametrize("metric", [True, False])
def test_nothing_answered_can_be_reported(metric):
    rows = [make_row(str(i), math.inf, math.inf, stage_ms={}) for i in range(3)]
    result = make_result(rows, metric=metric)
    page = Page(report_html(result, machine=MACHINE, command=COMMAND))
    assert page.open_tags == []
    assert "LOST 3" in page.text
    assert "LOST = inf" in page.text


def test_unknown_scale_is_said_and_so_is_that_nothing_is_wrong():
    result = make_result([make_row("a", 0.01, 0.1)], metric=False)
    page = Page(report_html(result, machine=MACHINE, command=COMMAND))
    assert "the map's own (u), scale unknown" in page.text
    assert "recall within 1% of extent, 2°" in page.text
    assert "more than 1.00 u or 10° off" in page.text
    assert "Wrong but confident: 0 of 1 frames." in page.text


def test_files_replace_those_of_an_earlier_report(mixed_result, tmp_path):
    folder = tmp_path / "new" / "report"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("old")
    paths = write_report(mixed_result, folder, machine=MACHINE, command=COMMAND)
    assert [path.name for path in paths] == ["report.json", "report.html"]
    assert sorted(p.name for p in folder.iterdir()) == ["report.html", "report.json"]
    stored = json.loads(paths[0].read_text(encoding="utf-8"))
    assert stored["machine"] == MACHINE
    assert stored["command"] == COMMAND
    assert paths[1].read_text(encoding="utf-8").startswith("<!doctype html>")
    assert stat.S_IMODE(paths[1].stat().st_mode) == 0o644


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "report.json"
    target.write_bytes(b"old")

    def broken(self, other):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", sorted(PLOTS))
def test_plots_are_pictures(mixed_result, name):
    draw, size = PLOTS[name]
    png = render(draw, mixed_result, size=size, kind="png")
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert image.shape[1] == pytest.approx(120 * size[0], abs=2)
    assert image.std() > 10  # not a blank sheet


def test_plots_repeat_byte_for_byte(mixed_result):
    draw, size = PLOTS["consistency"]
    svg = render(draw, mixed_result, size=size, kind="svg")
    assert svg == render(draw, mixed_result, size=size, kind="svg")


def test_top_view_drops_the_axis_of_gravity_or_of_least_spread(rng):
    points = rng.uniform(-1, 1, (50, 3)) * (5.0, 0.1, 3.0)
    basis, names = top_view_basis(points, None)
    assert names == ("x", "z")
    basis, names = top_view_basis(points, (0.0, 0.0, -1.0))
    assert names == ("x", "y")
    down = np.array([0.0, 0.8, 0.6])
    basis, names = top_view_basis(points, tuple(down))
    assert names == ("level 1", "level 2")
    assert basis @ down == pytest.approx([0, 0], abs=1e-12)
    assert basis @ basis.T == pytest.approx(np.eye(2))


def test_drawing_marks_inliers_green_and_outliers_red(mixed_result):
    item = mixed_result.explanations[0]
    image = draw_explanation(item, width_px=640)
    assert image.shape == (480, 640, 3)
    channels = image.astype(int)
    green = (channels[..., 1] > 180) & (channels[..., 2] < 110)
    red = (channels[..., 2] > 200) & (channels[..., 1] < 90)
    for mask, points in (
        (green, item.points2D[item.inlier_mask]),
        (red, item.points2D[~item.inlier_mask]),
    ):
        v, u = np.nonzero(mask)
        assert len(u) > 50
        distance = np.hypot(u[:, None] - points[:, 0], v[:, None] - points[:, 1])
        assert np.median(distance.min(axis=1)) < 12.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0123456, "1.23 cm"),
        (0.5, "50.0 cm"),
        (1.0, "1.00 m"),
        (1234.5, "1234 m"),
        (math.inf, "inf"),
        (math.nan, "–"),
        (0.0, "0 cm"),
    ],
)
def test_lengths(value, expected):
    assert text.length(value, "m") == expected


def test_per_cent_never_rounds_a_failure_away():
    assert text.percent(1.0) == "100.0 %"
    assert text.percent(0.99999) == "99.9 %"
    assert text.percent(math.nan) == "–"


def test_tables_line_up():
    assert text.table(["a", "long"], [["xyz", "1"], ["b", "22"]]).splitlines() == [
        "  a    long",
        "  xyz     1",
        "  b      22",
    ]
    assert text.markdown_table(["a", "b"], [["x|y", "1"]]).splitlines() == [
        "| a | b |",
        "| --- | ---: |",
        "| x\\|y | 1 |",
    ]


def test_text_names_ground_truth_and_everything_bad(mixed_result):
    shown = text.format_text(mixed_result)
    assert "ground truth: motion capture" in shown
    assert "left out: 2 images without ground truth" in shown
    assert re.search(r"wrong but confident +2 of 120", shown)
    assert re.search(r"seq/030.png +3.33 m +40.0° +1.00 cm +80 +position", shown)
    assert "(LOST = inf)" in shown
    assert re.search(r"deadline +0 of 120 over 33 ms", shown)


def test_processor_name(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Fast One\n")
    assert cpu_name(cpuinfo) == "Fast One"
    assert cpu_name(tmp_path / "missing")


def test_machine_facts_name_versions():
    facts = machine_facts()
    assert f"OpenCV {cv2.__version__}" in facts["versions"]
    assert f"numpy {np.__version__}" in facts["versions"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", facts["date"])
