"""A recording with a world of its own is brought into that of another one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from site_fixture import (
    Beside,
    film_room,
    mapping_path,
    other_room,
    room,
    small_recording,
)

from edgeloc.errors import MapError
from edgeloc.geometry.se3 import exp_se3, exp_so3, log_se3
from edgeloc.types import Rigid3
from edgeloc_tools.evaluate.place_recording import place_recording
from edgeloc_tools.mapping.align import Sim3
from edgeloc_tools.mapping.align_recording import moved, similarity_of_poses
from edgeloc_tools.synth.trajectory import room_walk

SIM = Sim3(scale=2.5, R=exp_so3(np.array([0.4, -1.1, 2.0])), t=np.array([7.0, -3, 11]))


def cameras(rng, count, *, line=False):
    """Poses in a; on a line on request."""
    centers = rng.normal(size=(count, 3)) * ([1.0, 0.0, 0.0] if line else 1.0)
    turns = [exp_so3(turn) for turn in rng.normal(size=(count, 3))]
    return [
        Rigid3(R=R, t=-R @ center) for R, center in zip(turns, centers, strict=True)
    ]


def noisy(pose, rng, sigma):
    return exp_se3(rng.normal(scale=sigma, size=6)) @ pose


@pytest.mark.parametrize("line", [False, True])
@pytest.mark.parametrize("wrong", [0, 12])
def test_the_similarity_is_found(rng, line, wrong):
    """Also with cameras on a line, and with 12 of 30 poses anywhere."""
    in_a = cameras(rng, 30, line=line)
    in_b = [noisy(SIM.apply_to_pose(pose), rng, 0.005) for pose in in_a]
    in_b[:wrong] = cameras(rng, wrong)
    fit = similarity_of_poses(in_a, in_b, sigmas=np.full(30, 0.01), with_scale=True)
    assert fit.sim.scale == pytest.approx(SIM.scale, rel=0.01)
    off = log_se3(Rigid3(R=fit.sim.R, t=fit.sim.t) @ Rigid3(R=SIM.R, t=SIM.t).inverse())
    assert np.linalg.norm(off[:3]) < 0.01
    assert not fit.inlier_mask[:wrong].any()
    assert fit.inlier_mask[wrong:].mean() > 0.9
    assert fit.rmse < 0.03


def test_in_one_unit_there_is_no_scale(rng):
    sim = replace(SIM, scale=1.0)
    in_a = cameras(rng, 12)
    in_b = [noisy(sim.apply_to_pose(pose), rng, 0.02) for pose in in_a]
    fit = similarity_of_poses(in_a, in_b, sigmas=np.full(12, 0.02), with_scale=False)
    assert fit.sim.scale == 1.0
    np.testing.assert_allclose(fit.sim.t, sim.t, atol=0.1)


@pytest.mark.parametrize(
    ("count", "right", "message"),
    [
        (4, 4, "4 poses are too few, 6 are needed"),
        (30, 4, r"only \d+ of 30 poses agree on where it lies"),
    ],
)
def test_too_little_agreement_is_refused(rng, count, right, message):
    in_a = cameras(rng, count)
    in_b = cameras(rng, count)
    in_b[:right] = [SIM.apply_to_pose(pose) for pose in in_a[:right]]
    with pytest.raises(MapError, match=message):
        similarity_of_poses(in_a, in_b, sigmas=np.ones(count), with_scale=True)


def test_poses_and_depth_are_moved_alike(rng):
    """A pixel's point, found with its depth, is where the similarity takes it."""
    recording = small_recording()
    other = moved(recording, SIM)
    before, after = recording.images[1], other.images[1]
    ray = np.array([0.1, -0.2, 1.0])
    point = before.cam_from_world.inverse().transform(2.0 * ray[None])
    there = after.cam_from_world.inverse().transform(SIM.scale * 2.0 * ray[None])
    np.testing.assert_allclose(there, SIM.apply(point), atol=1e-9)
    ratio = after.depth.metres_per_unit / before.depth.metres_per_unit
    assert ratio == pytest.approx(SIM.scale)


def test_a_recording_is_placed_in_a_site(orb_site):
    """Filmed beside the mapping path, then moved away and scaled."""
    truth = film_room(
        room(), Beside(mapping_path()), num_frames=14, rate_hz=2.0, start_s=0.2, seed=4
    )
    lost = replace(moved(truth, SIM), metric=False)
    placed = place_recording(lost, orb_site.site)
    assert placed.num_asked == 14
    assert placed.num_agree >= 10
    assert placed.scale == pytest.approx(1 / SIM.scale, rel=0.01)
    assert placed.recording.metric
    off = [
        np.linalg.norm(a.cam_from_world.origin_in_a - b.cam_from_world.origin_in_a)
        for a, b in zip(placed.recording.images, truth.images, strict=True)
    ]
    assert max(off) < 0.03


def test_a_recording_of_another_place_is_refused(orb_site):
    path = room_walk(7, other_room().extent_m, duration_s=6.0)
    strange = film_room(other_room(), path, num_frames=6, rate_hz=1.0)
    with pytest.raises(MapError, match="cannot be aligned, 0 of 6 of its images are"):
        place_recording(strange, orb_site.site)
