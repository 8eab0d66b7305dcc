"""What rows add up to, and its JSON form."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from synthetic_results import make_result, make_row

from edgeloc_tools.evaluate.result import ErrorStats, json_value, summarize


def test_lost_frames_fail_every_recall_and_reach_the_median_over_all():
    rows = [
        make_row("a", 0.01, 1.0),
        make_row("b", 0.03, 1.0),
        make_row("c", math.inf, math.inf),
        make_row("d", math.inf, math.inf),
    ]
    summary = make_result(rows).summary
    assert summary.recall_at(5.0, 10.0) == 0.5
    assert summary.recall_at(0.02, 2.0) == 0.25
    assert summary.answered.median_position == pytest.approx(0.02)
    assert summary.all_frames.median_position == math.inf
    assert (summary.num_frames, summary.num_answered) == (4, 2)
    fine = summary.recalls[0]
    assert (fine.num_inside, fine.num_outside, fine.num_lost) == (1, 1, 2)


def test_recall_relative_to_the_extent():
    rows = [make_row("a", 0.02, 2.0), make_row("b", 0.0201, 2.0)]
    relative = make_result(rows, metric=False).summary.recalls[-1]
    assert relative.label == "1% of extent, 2°"
    assert relative.recall == 0.5


def test_unknown_recall_is_an_error():
    with pytest.raises(KeyError, match=r"no recall at \(0.3, 1"):
        make_result([make_row("a", 0.0, 0.0)]).summary.recall_at(0.3, 1.0)


def test_statuses_are_kept_apart():
    rows = [
        make_row("a", 0.01, 1.0),
        make_row("b", 0.03, 2.0, nees=12.0),
        make_row("c", 0.5, 8.0, status="COARSE", rung="INTERPOLATE", nees=1.0),
        make_row("d", math.inf, math.inf),
    ]
    summary = make_result(rows).summary
    assert summary.statuses == {"LOCALIZED": 2, "COARSE": 1, "LOST": 1}
    assert summary.rungs == {"RELOCALIZE": 2, "INTERPOLATE": 1, "LOST": 1}
    assert summary.by_status["COARSE"].median_position == 0.5
    assert summary.by_status["LOCALIZED"].max_rotation_deg == 2.0
    assert "LOST" not in summary.by_status
    assert summary.localized_consistency.nees_mean == 9.0
    assert summary.localized_consistency.num_frames == 2
    assert summary.consistency["COARSE"].nees_median == 1.0


def test_share_of_errors_inside_three_sigma():
    rows = [
        make_row("a", 0.03, 0.6, position_sigma=0.01, rotation_sigma_deg=0.2),
        make_row("b", 0.031, 0.5, position_sigma=0.01, rotation_sigma_deg=0.2),
        make_row("c", 0.0, 0.7, position_sigma=0.01, rotation_sigma_deg=0.2),
        make_row("d", 0.0, 0.0, nees=math.nan),
    ]
    consistency = make_result(rows).summary.localized_consistency
    assert consistency.num_frames == 3
    assert consistency.position_within_3sigma == pytest.approx(2 / 3)


def test_stages_are_counted_where_they_ran_and_total_comes_last():
    rows = [
        make_row("a", 0.0, 0.0, wall_ms=10.0, stage_ms={"features": 4.0}),
        make_row("b", 0.0, 0.0, wall_ms=30.0, stage_ms={"features": 6.0, "pnp": 9.0}),
    ]
    latency = make_result(rows).summary.latency
    assert [(s.name, s.num_frames, s.p50_ms) for s in latency] == [
        ("features", 2, 5.0),
        ("pnp", 1, 9.0),
        ("total", 2, 20.0),
    ]
    assert latency[-1].p95_ms == pytest.approx(29.0)


def test_retrieval_recall_leaves_out_frames_without_a_near_keyframe():
    ranks = [(1, True), (7, True), (None, True), (None, False), (None, None)]
    rows = [
        make_row(str(i), 0.0, 0.0, first_near_rank=rank, has_near_keyframe=near)
        for i, (rank, near) in enumerate(ranks)
    ]
    retrieval = make_result(rows).summary.retrieval
    assert {r.k: r.recall for r in retrieval} == pytest.approx(
        {1: 1 / 3, 3: 1 / 3, 5: 1 / 3, 10: 2 / 3}
    )
    assert retrieval[0].num_frames == 3


def test_wrong_and_late_frames_are_named_and_counted():
    rows = [
        make_row("ok", 0.0, 0.0),
        make_row("bad", 2.0, 0.0, wrong=("position",), deadline_met=False),
    ]
    summary = make_result(rows).summary
    assert summary.wrong_but_confident == ("bad",)
    assert summary.num_deadline_missed == 1


def test_nothing_answered():
    summary = make_result([make_row("a", math.inf, math.inf)]).summary
    assert math.isnan(summary.answered.median_position)
    assert summary.localized_consistency.num_frames == 0
    assert summary.recall_at(5.0, 10.0) == 0.0


def test_empty_statistics():
    assert ErrorStats.of([]).num_frames == 0
    assert math.isnan(summarize([], []).total_latency.p50_ms)


def test_json_form_is_strict_and_complete(mixed_result):
    text = json.dumps(mixed_result.to_json(), allow_nan=False)
    stored = json.loads(text)
    assert stored["report_version"] == 1
    assert stored["site"]["total_bytes"] == 3_209_000
    assert stored["rows"][50]["position_error"] is None
    assert stored["rows"][50]["status"] == "LOST"
    assert len(stored["rows"]) == 120
    assert stored["summary"]["wrong_but_confident"] == ["seq/030.png", "seq/090.png"]
    assert stored["options"]["structure"] == {"min": 3}
    assert "explanations" not in stored


def test_json_value_knows_numpy_and_refuses_the_rest():
    assert json_value({"a": (np.int64(3), np.float32(0.5), math.nan)}) == {
        "a": [3, 0.5, None]
    }
    with pytest.raises(TypeError, match="set has no JSON form"):
        json_value({1, 2})
