"""Synthetic rows and results with known errors, without a site or images."""

from __future__ import annotations

import math

import numpy as np

from edgeloc_tools.evaluate import metrics
from edgeloc_tools.evaluate.result import (
    EvaluationResult,
    FrameRow,
    SiteFacts,
    summarize,
)


def make_row(name, position, rotation_deg, **fields):
    """A row whose estimate is `position` metres along x from the truth."""
    lost = math.isinf(position)
    true = fields.pop("true_center", (0.0, 0.0, 0.0))
    defaults = {
        "camera_id": "cam",
        "status": "LOST" if lost else "LOCALIZED",
        "rung": "LOST" if lost else "RELOCALIZE",
        "cause": "FEW_MATCHES" if lost else "NONE",
        "position_sigma": math.nan if lost else 0.01,
        "rotation_sigma_deg": math.nan if lost else 0.2,
        "nees": math.nan if lost else 6.0,
        "num_matches": 100,
        "num_inliers": 0 if lost else 80,
        "reproj_rmse_px": 0.0 if lost else 0.9,
        "wall_ms": 20.0,
        "stage_ms": {"features": 12.0, "retrieve": 1.0},
        "center": None if lost else (true[0] + position, true[1], true[2]),
    }
    return FrameRow(
        name=name,
        position_error=position,
        rotation_error_deg=rotation_deg,
        true_center=true,
        **{**defaults, **fields},
    )


def make_result(rows, *, metric=True, budget_ms=None, explanations=()):
    """A result on a ring of 40 keyframes of radius 2."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    centers = np.stack([2 * np.cos(angle), 0.1 * np.sin(3 * angle), 2 * np.sin(angle)])
    site = SiteFacts(
        map_id="0123456789abcdef",
        name="ring <site>",
        family="orb",
        metric=metric,
        extent=2.0,
        num_keyframes=40,
        keyframe_centers=tuple(map(tuple, centers.T.tolist())),
        bytes_by_part={"tiles": 3_000_000, "index.bin": 200_000, "site.json": 9_000},
    )
    return EvaluationResult(
        dataset="synthetic & test",
        pose_source="motion capture",
        num_without_pose=2,
        gravity_in_world=None,
        site=site,
        options={"method": "auto", "structure": {"min": 3}, "budget_ms": budget_ms},
        position_limit=metrics.wrong_position_limit(metric=metric, extent=2.0),
        rows=tuple(rows),
        summary=summarize(rows, metrics.thresholds(extent=2.0, unit=site.unit)),
        explanations=tuple(explanations),
    )
