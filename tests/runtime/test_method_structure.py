"""RELOCALIZE on the device: a few keyframes first, and what more of them may change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from site_fixture import budget_of, frame_of, query_images

from edgeloc.clock import ManualClock
from edgeloc.localize.candidate import LOST, Candidate
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.runtime.frame_work import FrameWork
from edgeloc.runtime.method_structure import StructureMethod
from edgeloc.runtime.site_parts import open_site_parts
from edgeloc.types import Cause, Matches2D3D, PoseStatus, Rigid3, Rung


def fix(num_inliers):
    return Candidate(
        status=PoseStatus.LOCALIZED,
        rung=Rung.RELOCALIZE,
        cause=Cause.NONE,
        cam_from_world=Rigid3(R=np.eye(3), t=np.zeros(3)),
        covariance=np.eye(6),
        matches=Matches2D3D(
            points2D=np.zeros((num_inliers, 2)),
            points3D=np.zeros((num_inliers, 3)),
            point3D_ids=np.arange(num_inliers),
            scores=np.ones(num_inliers, np.float32),
        ),
        inlier_mask=np.ones(num_inliers, bool),
    )


FEW = replace(LOST, cause=Cause.FEW_INLIERS)
AMBIGUOUS = replace(LOST, cause=Cause.AMBIGUOUS)


@pytest.mark.parametrize(
    ("said", "answer", "asked"),
    [
        ([fix(100), fix(200)], 0, 1),
        ([fix(20), fix(40)], 1, 2),
        ([FEW, fix(40)], 1, 2),
        ([fix(20), FEW], 1, 2),
        ([replace(fix(20), confirmed=True), FEW], 0, 2),
        ([replace(fix(20), confirmed=True), fix(18)], 1, 2),
        ([replace(fix(20), confirmed=True), AMBIGUOUS], 1, 2),
        ([FEW, AMBIGUOUS], 1, 2),
    ],
)
def test_more_keyframes_are_asked_when_few_do_not_carry_far(
    orb_site, monkeypatch, said, answer, asked
):
    camera = next(iter(orb_site.site.manifest.cameras.values()))
    parts = open_site_parts(
        orb_site.site, camera, EstimatorOptions(cold=True), clock=ManualClock()
    )
    method = StructureMethod(parts)
    rounds = []

    def match_and_solve(_query, retrieved, *_, **__):
        rounds.append(len(retrieved))
        return said[len(rounds) - 1]

    monkeypatch.setattr(method, "_match_and_solve", match_and_solve)
    image = query_images()[2].source.read()
    work = FrameWork(parts, frame_of(image), budget_of())
    assert method.solve(work.query(), work.retrieved()) is said[answer]
    assert len(rounds) == asked
    assert rounds == sorted(set(rounds))
