"""A wrong focal length is noticed, said once, and never told as LOCALIZED."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
from site_fixture import CAMERA, budget_of, frame_of, pose_error, query_images

from edgeloc.clock import ManualClock
from edgeloc.geometry.focal import FocalFit, scale_focal
from edgeloc.localize.candidate import Candidate
from edgeloc.runtime import focal_watch
from edgeloc.runtime.estimator import Estimator
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.runtime.focal_watch import FocalEvidence, FocalWatch, demoted
from edgeloc.types import Cause, Matches2D3D, PoseStatus, Rigid3, Rung

SECOND_NS = 1_000_000_000
RIGHT = FocalFit(log_focal=0.01, sigma=0.005)
SHORT = FocalFit(log_focal=0.18, sigma=0.005)


def make(site, factor, **options):
    return Estimator(
        site=site.site,
        camera=scale_focal(CAMERA, factor),
        options=EstimatorOptions(**options),
        clock=ManualClock(),
    )


def walk(estimator, images):
    """Return an answer per image, a thirtieth of a second apart."""
    return [
        estimator.step(
            replace(frame_of(image, idx), timestamp_ns=idx * SECOND_NS // 30),
            budget_of(),
        )
        for idx, image in enumerate(images)
    ]


@pytest.fixture(scope="module")
def pictures():
    return [query.source.read() for query in query_images()]


# Evidence


def test_the_first_fit_of_a_wrong_camera_is_enough():
    assert FocalEvidence().updated(SHORT).is_off


def test_one_right_camera_is_neither_off_nor_settled_at_once():
    evidence = FocalEvidence().updated(RIGHT)
    assert not evidence.is_off
    assert not evidence.is_settled
    assert evidence.updated(RIGHT).updated(RIGHT).is_settled


def test_vague_fits_say_nothing_alone_and_much_together():
    vague = FocalFit(log_focal=0.15, sigma=0.04)
    evidence = FocalEvidence().updated(vague)
    assert not evidence.is_off
    for _ in range(8):
        evidence = evidence.updated(vague)
    assert evidence.is_off
    assert evidence.log_focal == pytest.approx(0.15, abs=0.01)


def test_an_undetermined_fit_changes_nothing():
    evidence = FocalEvidence().updated(RIGHT)
    later = evidence.updated(FocalFit(log_focal=-0.7, sigma=1e5))
    assert later.log_focal == pytest.approx(evidence.log_focal, abs=1e-6)
    assert not later.is_off


def test_a_few_percent_are_borne_however_many_say_so():
    evidence = FocalEvidence()
    for _ in range(200):
        evidence = evidence.updated(FocalFit(log_focal=0.03, sigma=0.003))
    assert not evidence.is_off


# What is left of a fix


def some_fix(num_points=40):
    points3D = np.random.default_rng(3).uniform(-1, 1, (num_points, 3))
    points3D[:, 2] += 5.0
    return Candidate(
        status=PoseStatus.LOCALIZED,
        rung=Rung.RELOCALIZE,
        cause=Cause.NONE,
        cam_from_world=Rigid3.identity(),
        covariance=1e-6 * np.eye(6),
        matches=Matches2D3D(
            points2D=CAMERA.focal_px[0] * points3D[:, :2] / points3D[:, 2:]
            + CAMERA.principal_point_px,
            points3D=points3D,
            point3D_ids=np.arange(num_points),
            scores=np.ones(num_points, np.float32),
        ),
        inlier_mask=np.ones(num_points, dtype=bool),
    )


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_covariance_grows_by_the_share_of_the_distance(sign):
    left = demoted(some_fix(), sign * math.log(1.2))
    assert (left.status, left.rung) == (PoseStatus.COARSE, Rung.RELOCALIZE)
    assert left.cause is Cause.WRONG_INTRINSICS
    sigmas = np.sqrt(np.diag(left.covariance))
    np.testing.assert_allclose(sigmas[:3], 0.05, rtol=0.01)
    np.testing.assert_allclose(sigmas[3:], 1.0, rtol=0.1)


def test_without_landmarks_nothing_is_left():
    left = demoted(replace(some_fix(), matches=None, inlier_mask=None), 0.2)
    assert (left.status, left.cause) == (PoseStatus.LOST, Cause.WRONG_INTRINSICS)


def test_fits_are_rare_once_the_camera_is_known(monkeypatch):
    asked = []
    monkeypatch.setattr(
        focal_watch, "fit_focal", lambda *_, **__: asked.append(1) or RIGHT
    )
    watch = FocalWatch(CAMERA, cold=False)
    for idx in range(30 * 60):
        assert watch.judge(some_fix(), idx * SECOND_NS // 30).cause is Cause.NONE
    assert 3 <= len(asked) <= 9


def test_matches_that_were_found_without_a_pose_are_asked(monkeypatch):
    """Those that were looked for where it puts them agree with a wrong one, too."""
    asked = []
    monkeypatch.setattr(
        focal_watch, "fit_focal", lambda matches, *_, **__: asked.append(matches)
    )
    first = some_fix(30)
    FocalWatch(CAMERA, cold=True).judge(replace(some_fix(), first=first), 0)
    assert asked == [first.matches]


def statuses(monkeypatch, fits):
    """Return how fixes are told whose focal lengths fit so."""
    left = list(fits)
    monkeypatch.setattr(focal_watch, "fit_focal", lambda *_, **__: left.pop(0))
    watch = FocalWatch(CAMERA, cold=False)
    found = [
        watch.judge(some_fix(), idx * SECOND_NS).status for idx in range(len(left))
    ]
    return [status is PoseStatus.LOCALIZED for status in found]


def test_one_wild_fit_among_right_ones_counts_for_its_own_frame(monkeypatch):
    every_second_is_asked = [RIGHT] * 2 + [SHORT] + [RIGHT] * 2
    localized = statuses(monkeypatch, every_second_is_asked)
    assert localized == [True, True, False, True, True]


def test_a_wild_first_fit_is_soon_forgotten(monkeypatch):
    assert statuses(monkeypatch, [SHORT] + [RIGHT] * 4)[-3:] == [True] * 3


def test_a_lens_that_zooms_is_not_what_it_was(monkeypatch):
    localized = statuses(monkeypatch, [RIGHT] * 2 + [SHORT] * 8 + [RIGHT] * 8)
    assert localized[:10] == [True] * 2 + [False] * 8
    assert localized[-2:] == [True] * 2


def test_weak_fits_of_a_wrong_lens_do_not_clear_it(monkeypatch):
    """With half of the right matches among the outliers, many a fit stays at 1."""
    weak = FocalFit(log_focal=-0.01, sigma=0.012)
    assert not any(statuses(monkeypatch, [SHORT] * 30 + [weak] * 50))


def test_a_fix_without_landmarks_is_told_while_nothing_speaks_against_it():
    fix = replace(some_fix(), matches=None, inlier_mask=None)
    watch = FocalWatch(CAMERA, cold=False)
    assert watch.judge(fix, 0) is fix
    watch.evidence = FocalEvidence().updated(SHORT)
    assert watch.judge(fix, 1).status is PoseStatus.LOST


# The estimator


@pytest.mark.parametrize("cold", [True, False])
def test_the_right_camera_is_never_doubted(orb_site, pictures, cold, caplog):
    estimates = walk(make(orb_site, 1.0, cold=cold), pictures)
    assert {e.status for e in estimates} == {PoseStatus.LOCALIZED}
    assert not caplog.messages


@pytest.mark.parametrize("factor", [0.6, 0.8, 1.3])
@pytest.mark.parametrize(("cold", "num_allowed"), [(True, 1), (False, 0)])
def test_a_wrong_camera_is_not_localized_and_told_once(
    orb_site, pictures, factor, cold, num_allowed, caplog
):
    """In pictures of one wall squarely from ahead, a frame alone cannot tell."""
    caplog.set_level(logging.WARNING, logger="edgeloc")
    estimates = walk(make(orb_site, factor, cold=cold), pictures)
    localized = [e for e in estimates if e.status is PoseStatus.LOCALIZED]
    assert len(localized) <= num_allowed
    blamed = [e for e in estimates if e.cause is Cause.WRONG_INTRINSICS]
    assert blamed
    assert caplog.text.count("camera: the focal length given is") == 1
    assert f"given is {250 * factor:.0f} px, the pictures fit 2" in caplog.text
    for estimate, query in zip(estimates, query_images(), strict=True):
        if estimate in blamed and estimate.rung is Rung.RELOCALIZE:
            error = pose_error(estimate, query.cam_from_world)
            assert error.position_m < 3.0 * error.position_sigma_m
            assert error.nees < 20.0


def test_landmarks_that_are_followed_tell_too(orb_site, pictures, monkeypatch):
    """The first fix said nothing; nothing that came of it is told after that."""
    estimator = make(orb_site, 0.8)
    with monkeypatch.context() as patched:
        patched.setattr(focal_watch, "fit_focal", lambda *_, **__: None)
        first = walk(estimator, [pictures[0]] * 3)
    assert [e.rung for e in first][1:] == [Rung.TRACK] * 2
    frame = replace(frame_of(pictures[0], 3), timestamp_ns=SECOND_NS // 2)
    estimate = estimator.step(frame, budget_of())
    assert estimate.status is PoseStatus.COARSE
    assert estimate.cause is Cause.WRONG_INTRINSICS
    assert estimator.motion_state is None
