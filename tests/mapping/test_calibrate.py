"""What held-out mapping frames say about a map."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from site_fixture import (
    QUICK,
    BuiltSite,
    build,
    mapping_recording,
    small_recording,
    with_pose,
)

from edgeloc.geometry.se3 import exp_so3
from edgeloc.types import Rigid3
from edgeloc_tools.mapping.held_out import held_out_folds


@given(st.integers(1, 600), st.integers(6, 60))
def test_folds_are_disjoint_and_bounded(count, max_frames):
    folds = held_out_folds(count, max_frames=max_frames)
    chosen = np.concatenate(folds)
    assert len(np.unique(chosen)) == len(chosen) <= max_frames
    assert chosen.min() >= 0
    assert chosen.max() < count
    for fold in folds:
        assert len(fold) == 1 or len(fold) <= 0.3 * count


@pytest.mark.parametrize("count", [2, 5, 23])
def test_of_few_images_each_is_held_out_alone(count):
    folds = held_out_folds(count, max_frames=40)
    assert [fold.tolist() for fold in folds] == [[k] for k in range(count)]


@pytest.mark.parametrize("count", [24, 120, 500])
def test_of_many_images_runs_are_held_out(count):
    """A frame of a video is not held out without the frames right beside it."""
    folds = held_out_folds(count, max_frames=40)
    assert len(folds) <= 4
    for fold in folds:
        runs = np.split(fold, np.flatnonzero(np.diff(fold) > 1) + 1)
        assert min(map(len, runs)) >= 2
        # What lies between the runs stays in the map.
        gaps = [b[0] - a[-1] - 1 for a, b in itertools.pairwise(runs)]
        assert min(gaps) >= max(map(len, runs))


def test_folds_reach_over_the_whole_recording():
    folds = held_out_folds(400, max_frames=40)
    chosen = np.sort(np.concatenate(folds))
    assert chosen[0] < 50
    assert chosen[-1] >= 320
    assert np.diff(chosen).max() < 100


# On a mapped room


@pytest.mark.parametrize("site", ["orb_site", "sift_site"])
def test_held_out_frames_localize(site, request):
    built: BuiltSite = request.getfixturevalue(site)
    held_out = built.result.held_out
    assert held_out.num_frames == len(mapping_recording().images)
    # The ends of the walk see things that no other frame saw.
    assert held_out.num_localized >= 0.6 * held_out.num_frames
    assert held_out.median_error < 0.03
    assert 1.0 <= held_out.fix.scale < 20.0
    assert built.site.manifest.covariance_scale == held_out.fix.scale
    assert held_out.facts()["held_out_median_error"] == pytest.approx(
        held_out.median_error, abs=1e-6
    )


def test_the_build_says_how_honest_its_covariances_are(orb_site):
    """The scale is at least 1: here it is more careful than it would have to be."""
    facts = orb_site.result.held_out.facts()
    assert 1.5 < facts["held_out_nees"] < 9.0


def test_coarse_calibration_is_that_of_the_walk(orb_site):
    """Frames 13 degrees and some dm apart: so are interpolated poses, about."""
    coarse = orb_site.result.held_out.coarse
    centers = np.stack(
        [i.cam_from_world.origin_in_a for i in mapping_recording().images]
    )
    distance = np.linalg.norm(centers[:, None] - centers, axis=2)
    nearest = np.sort(distance, axis=1)[:, 1]
    assert coarse.keyframe_spacing == pytest.approx(np.median(nearest), rel=0.01)
    assert 0.05 < coarse.position_sigma < 1.5
    assert np.deg2rad(1.0) < coarse.rotation_sigma_rad < np.deg2rad(30.0)
    best = [
        max(
            float(orb_site.site.keyframes.global_codes[k] @ other)
            for j, other in enumerate(orb_site.site.keyframes.global_codes)
            if j != k
        )
        for k in range(len(centers))
    ]
    assert np.mean(np.array(best) >= coarse.min_score) > 0.6


def test_poses_that_are_off_make_the_site_less_sure(tmp_path):
    """Mapping poses with 3 cm and 0.6 degrees of noise, as of a poor tracker.

    Their covariances count 1 px of noise; what the poses add comes out in the scale.
    """
    rng = np.random.default_rng(4)
    recording = small_recording()
    images = []
    for image in recording.images:
        off = Rigid3(R=exp_so3(0.01 * rng.normal(size=3)), t=0.03 * rng.normal(size=3))
        images.append(with_pose(image, off @ image.cam_from_world))
    exact = build(tmp_path / "exact", recording, QUICK).result.held_out
    noisy = build(tmp_path / "noisy", recording.subset(images), QUICK).result.held_out
    assert noisy.median_error > 1.3 * exact.median_error
    assert noisy.fix.scale > 5.0 * exact.fix.scale
