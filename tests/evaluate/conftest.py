"""A synthetic result with everything that a report shows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from synthetic_results import make_result, make_row

from edgeloc_tools.evaluate.result import Explanation


@pytest.fixture(scope="session")
def mixed_result():
    """120 frames: good, coarse, lost, and two that are wrong but confident."""
    rng = np.random.default_rng(1)
    rows = []
    for idx in range(120):
        angle = idx * 0.02
        true = (2 * math.cos(angle), 0.0, 2 * math.sin(angle))
        name = f"seq/{idx:03d}.png"
        wall_ms = float(18 + 6 * rng.random() + 20 * (rng.random() > 0.95))
        common = {"true_center": true, "wall_ms": wall_ms}
        if 50 <= idx < 56:
            rows.append(make_row(name, math.inf, math.inf, **common))
        elif idx % 17 == 3:
            rows.append(
                make_row(
                    name,
                    0.4 * float(rng.random()) + 0.1,
                    4.0,
                    status="COARSE",
                    rung="INTERPOLATE",
                    cause="FEW_INLIERS",
                    position_sigma=0.3,
                    **common,
                )
            )
        elif idx in {30, 90}:
            rows.append(
                make_row(
                    name,
                    3.0 + idx / 90,
                    40.0,
                    nees=900.0,
                    wrong=("position",),
                    **common,
                )
            )
        else:
            error = 0.01 * float(np.exp(rng.normal()))
            sigma = 0.01 * float(np.exp(0.3 * rng.normal()))
            rows.append(
                make_row(name, error, 20 * error, position_sigma=sigma, **common)
            )
    image = rng.integers(0, 255, (60, 80), dtype=np.uint8)
    image = np.repeat(np.repeat(image, 8, 0), 8, 1)
    points = rng.uniform((0, 0), (640, 480), (60, 2)).astype(np.float32)
    inliers = rng.random(60) < 0.6
    noise = np.where(inliers[:, None], 4.0, 60.0) * rng.normal(size=(60, 2))
    explanations = [
        Explanation(
            row=row,
            title=title,
            image=image,
            points2D=points,
            projected=(points + noise).astype(np.float32),
            inlier_mask=inliers,
            retrieved=((7, 0.81, 0.3), (12, 0.74, 1.25)),
        )
        for row, title in ((rows[30], "worst 1"), (rows[50], "worst 2"))
    ]
    return make_result(rows, budget_ms=33.0, explanations=explanations)
