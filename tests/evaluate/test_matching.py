"""Scores of feature families that match images."""

import json
from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest
from model_factory import write_features

from edgeloc.features.extract import extract_features
from edgeloc.features.registry import open_family
from edgeloc_tools.evaluate.correspondence import apply
from edgeloc_tools.evaluate.match_scores import (
    FamilyScores,
    WarpScore,
    WideBaseline,
    measure_warp,
    measure_wide,
    scores_from,
    summary,
    wxbs_pairs,
)
from edgeloc_tools.evaluate.match_tables import draw_curves, tables
from edgeloc_tools.evaluate.matching import main
from edgeloc_tools.evaluate.plots import render
from edgeloc_tools.evaluate.warps import KINDS, held_out_photos, rotated


def texture(rng, size=(320, 240)):
    image = np.zeros(size[::-1])
    for blur in (1.5, 4, 9):
        noise = rng.normal(size=size[::-1])
        smooth = cv2.GaussianBlur(noise, (0, 0), blur)
        image += smooth / smooth.std()
    return np.clip(127 + 35 * image, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", ["orb", "sift"])
def test_a_turned_texture_is_matched(name, rng):
    image, family = texture(rng), open_family(name)
    features = extract_features(image, family, max_keypoints=1000)
    score = measure_warp(rotated(image, 40.0), features, family)
    assert score.num_correct[1] > 80
    assert score.num_correct[1] > 0.9 * score.num_matches
    assert score.num_correct[0] <= score.num_correct[1] <= score.num_correct[2]
    assert score.repeatability[1] > 0.3
    assert len(score.errors_px) == score.num_correct[1]
    assert np.median(score.errors_px) < 1.0


def test_another_picture_has_no_correct_matches(rng):
    family = open_family("orb")
    features = extract_features(texture(rng), family, max_keypoints=1000)
    score = measure_warp(rotated(texture(rng), 0.0), features, family)
    assert score.num_correct[2] <= 2


def test_a_network_is_measured_like_the_others(rng, tmp_path):
    family = open_family(str(write_features(tmp_path)))
    image = texture(rng)
    features = extract_features(image, family, max_keypoints=300)
    score = measure_warp(rotated(image, 0.0), features, family)
    assert score.num_correct[1] > 0.95 * score.num_matches > 50


def test_a_blank_image_scores_nothing(rng):
    family = open_family("sift")
    blank = np.full((120, 160), 90, np.uint8)
    features = extract_features(blank, family, max_keypoints=100)
    score = measure_warp(rotated(blank, 0.0), features, family)
    assert (score.num_keypoints, score.num_matches) == (0, 0)
    assert score.num_correct == (0, 0, 0)


def score(matches, correct, errors, *, keypoints=100):
    return WarpScore(
        num_keypoints=keypoints,
        num_matches=matches,
        num_correct=correct,
        repeatability=(0.2, 0.4, 0.5),
        errors_px=errors,
    )


def test_shares_are_means_over_pairs_and_localization_is_over_matches():
    values = summary(
        [
            score(100, (50, 80, 90), (0.1, 0.2, 0.3)),
            score(10, (1, 2, 3), (0.9,)),
        ]
    )
    assert values["accuracy_1px"] == pytest.approx((0.5 + 0.1) / 2)
    assert values["correct_3px"] == pytest.approx(41)
    assert values["score"] == pytest.approx((0.8 + 0.02) / 2)
    assert values["localization_px"] == pytest.approx(0.25)
    assert values["repeatability_3px"] == pytest.approx(0.4)
    none = summary([score(0, (0, 0, 0), (), keypoints=0)])
    assert none["accuracy_3px"] == 0.0
    assert np.isnan(none["localization_px"])


def family_scores(family, factor):
    wide = WideBaseline(
        category="WGLBS",
        pair="him",
        num_matches=50 * factor,
        num_correct=6 * factor,
        num_epipolar=8 * factor,
        num_chance=0.1,
        num_mutual=9 * factor,
        mutual_chance=0.4,
    )
    values = summary([score(100, (50, 80, 90), (0.1, 0.2, 0.3))])
    return FamilyScores(
        family=family,
        wide=(wide,),
        rotation={"0": 100.0 * factor, "45": 40.0},
        scale={"0.5": 30.0, "1": 100.0 * factor},
        homography=dict.fromkeys(KINDS, values),
    )


def test_tables_compare_with_sift():
    markdown = tables([family_scores("sift", 1), family_scores("new", 3)])
    lines = markdown.splitlines()
    row = next(line for line in lines if line.startswith("| WGLBS") and "new" in line)
    assert "| 18 | 18.0 (3.0) | 24.0 | 0.100 | 150 | 27.0 (3.0) | 0.400 |" in row
    assert "| WGLBS/him | 6 / 50 | 18 / 150 |" in lines
    assert "| 0 | 100 (1.0) | 300 (3.0) |" in lines
    assert "| 0.5 | 30.0 (1.0) | 30.0 (1.0) |" in lines
    row = next(line for line in lines if line.startswith("| viewpoint | new"))
    assert "| 0.50 / 0.80 / 0.90 | 50 / 80 / 90 | 0.80 | 0.20 px |" in row


def test_without_sift_there_are_no_ratios():
    assert "(" not in tables([family_scores("new", 3)]).split("## Correct")[2]


def test_what_does_not_exist_is_a_dash():
    nothing = summary([score(0, (0, 0, 0), (), keypoints=0)])
    scores = replace(family_scores("sift", 0), homography=dict.fromkeys(KINDS, nothing))
    row = next(r for r in tables([scores]).splitlines() if r.startswith("| light"))
    assert row.endswith("| 0.00 / 0.00 / 0.00 | 0 / 0 / 0 | 0.00 | – px |")


def test_scores_survive_json_and_are_drawn():
    scores = family_scores("orb", 2)
    assert scores_from(asdict(scores)) == scores
    plot = render(draw_curves, [scores, scores], size=(6, 3), kind="svg")
    assert plot.startswith(b"<?xml")
    assert plot == render(draw_curves, [scores, scores], size=(6, 3), kind="svg")


@pytest.mark.data
def test_wide_baselines_are_measured(shared_data):
    pairs = wxbs_pairs(shared_data / "wxbs")
    assert len(pairs) == 17
    kremlin = next(path for path in pairs if path.name == "kremlin")
    row = measure_wide(kremlin, open_family("sift"))
    assert row.category == "WGABS"
    assert row.num_correct >= 10
    assert row.num_correct <= row.num_epipolar <= row.num_matches
    assert row.num_mutual >= row.num_correct
    assert row.num_chance < 0.5


@pytest.mark.data
def test_the_held_out_photos_are_a_tenth(shared_data):
    photos = held_out_photos(shared_data / "photos")
    assert (len(photos), photos[0].name) == (143, "0007.jpg")


def small_data(tmp_path, rng):
    """One held-out photo and one pair with clicked points."""
    photos, pair = tmp_path / "photos", tmp_path / "wxbs" / "WGABS" / "wall"
    photos.mkdir(parents=True)
    pair.mkdir(parents=True)
    image = texture(rng, (200, 160))
    for idx in range(8):
        cv2.imwrite(str(photos / f"{idx}.jpg"), image)
    turned = rotated(image, 8.0)
    cv2.imwrite(str(pair / "01.jpg"), turned.a)
    cv2.imwrite(str(pair / "02.jpg"), turned.b)
    a = rng.uniform([0, 0], turned.warp.size_a, (20, 2))
    b = apply(turned.warp.b_from_a, a) + rng.normal(scale=0.3, size=a.shape)
    np.savetxt(pair / "corrs.txt", np.hstack([a, b]))
    return tmp_path


def test_the_command_measures_once_and_writes_all(tmp_path, rng, capsys):
    data, out = small_data(tmp_path / "data", rng), tmp_path / "out"
    command = ["--data", str(data), "--out", str(out), "--families", "orb"]
    assert main(command) == 0
    first = capsys.readouterr()
    assert "orb: warps: 1/1" in first.err
    assert (out / "matching.md").read_text() == first.out
    record = json.loads((out / "matching.json").read_text())
    (family,) = record["families"]
    assert family["wide"][0]["num_correct"] > 50
    assert set(family["homography"]) == set(KINDS)
    assert (out / "turns.svg").stat().st_size > 1000
    # Again: nothing is measured, the same tables.
    assert main(command) == 0
    again = capsys.readouterr()
    assert (again.out, again.err) == (first.out, "")


def test_a_folder_without_recordings_is_one_line(tmp_path, capsys):
    code = main(["--data", str(tmp_path), "--out", str(tmp_path / "o")])
    assert code != 0
    assert capsys.readouterr().err == (
        f"matching: error: {tmp_path}/wxbs: has no WxBS pairs "
        "(CATEGORY/NAME/corrs.txt)\n"
    )
