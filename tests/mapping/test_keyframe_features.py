"""What a site keeps of its images, and how held-out frames do with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from site_fixture import QUICK, SIFT, build, mapping_recording, small_recording

from edgeloc.errors import ConfigError
from edgeloc.localize.fix import FixCalibration
from edgeloc.tiles.reader import assemble_features
from edgeloc.types import CameraModel, Rigid3
from edgeloc_tools.mapping.held_out import HeldOutFrame
from edgeloc_tools.mapping.inspect import describe_site
from edgeloc_tools.mapping.keyframe_features import (
    FeatureHeldOut,
    keyframe_features,
)
from edgeloc_tools.mapping.options import BuildOptions
from edgeloc_tools.mapping.tracks import MappingImage

CAMERA = CameraModel(
    model="SIMPLE_PINHOLE", width=64, height=48, params=(50.0, 32.0, 24.0)
)


def image_of(num: int, first: int) -> MappingImage:
    """Keypoint i lies at (i, i) and is described by its number."""
    numbers = np.arange(num, dtype=np.float32)
    return MappingImage(
        name="",
        camera_id="c",
        camera=CAMERA,
        cam_from_world=Rigid3.identity(),
        keypoints=np.column_stack([numbers, numbers]),
        sigmas=numbers + 1,
        stored=(first + np.arange(num, dtype=np.uint8))[:, None],
        descriptors=np.ones((num, 4), np.float32),
        depth=np.full(num, np.nan),
        depth_sigma=np.ones(num),
    )


# Tracks of 3, 2, 1, 1 and 1 images: (track, image, keypoint).
TRACKS = tuple(
    np.array(column)
    for column in zip(
        (0, 0, 2), (0, 1, 0), (0, 2, 1), (1, 0, 1), (1, 2, 0), (2, 0, 0), (3, 1, 1),
        (4, 2, 2), strict=True,
    )
)  # fmt: skip


def test_what_most_images_found_comes_first():
    images = [image_of(3, 0), image_of(2, 10), image_of(3, 20)]
    found = keyframe_features(images, TRACKS, per_keyframe=2, quantizer=None)
    assert found.offsets.tolist() == [0, 2, 4, 6]
    assert found.descriptors[:, 0].tolist() == [2, 1, 10, 11, 21, 20]
    assert found.keypoints[:, 0].tolist() == [2, 1, 0, 1, 1, 0]
    assert found.sigmas.tolist() == [3, 2, 1, 2, 2, 1]


def test_images_that_are_left_out_do_not_count():
    images = [image_of(3, 0), image_of(2, 10), image_of(3, 20)]
    left_out = np.array([False, False, True])
    found = keyframe_features(
        images, TRACKS, per_keyframe=3, quantizer=None, left_out=left_out
    )
    assert found.offsets.tolist() == [0, 3, 5, 5]
    # Without the third image only the first track is seen twice.
    assert found.descriptors[:, 0].tolist() == [2, 0, 1, 10, 11]


def held_out(error: float) -> HeldOutFrame:
    xi = np.full(6, error)
    return HeldOutFrame(
        image_idx=0,
        fold=0,
        position_error=error,
        rotation_error_rad=error,
        num_inliers=50,
        xi=xi,
        covariance=np.eye(6) * 1e-4,
    )


def test_calibrations_go_into_the_site_and_out_again():
    missed = replace(held_out(1.0), xi=None, covariance=None)
    run = FeatureHeldOut(
        frames={"local_sfm": [held_out(0.03)] * 8, "relative": [missed]}
    )
    arrays = run.to_arrays()
    sure = FixCalibration.from_array(arrays["local_sfm_calibration"])
    assert sure.scale == pytest.approx(6 * 0.03**2 / 1e-4 / 5.348 * 0.7, rel=0.3)
    unknown = FixCalibration.from_array(arrays["relative_calibration"])
    assert unknown == FixCalibration(scale=4.0)
    assert run.facts() == {
        "held_out_local_sfm_localized": 8,
        "held_out_local_sfm_median_error": 0.03,
        "held_out_relative_localized": 0,
        "held_out_relative_median_error": -1.0,
    }
    with pytest.raises(ValueError, match=r"has shape \(3,\), expected \(2,\)"):
        FixCalibration.from_array(np.zeros(3, np.float32))


def test_a_site_of_features_alone(tmp_path):
    options = replace(SIFT, store="features", features_per_keyframe=120)
    built = build(tmp_path / "site", mapping_recording(), options)
    site, manifest = built.site, built.site.manifest
    assert manifest.rungs == ("LOCAL_SFM", "RELATIVE", "INTERPOLATE")
    assert manifest.num_landmarks == 0
    assert built.result.facts["held_out_local_sfm_localized"] >= 7
    assert "num_landmarks" not in built.result.facts
    found = assemble_features(site.read_tile, site, site.keyframes.keyframe_ids)
    assert np.diff(found.offsets).tolist() == [120] * len(site.keyframes)
    described = describe_site(built.path)
    assert described["keyframe_features"] == len(found)
    assert described["landmarks"] == 0
    parts = described["bytes_by_part"]
    assert 128 * len(found) < parts["keyframe_features"] < 133 * len(found)


def test_both_have_the_same_landmarks_as_without(tmp_path):
    alone = build(tmp_path / "alone", small_recording(), QUICK)
    both = build(
        tmp_path / "both",
        small_recording(),
        replace(QUICK, store="both", features_per_keyframe=100),
    )
    assert both.site.manifest.rungs == (
        "RELOCALIZE", "LOCAL_SFM", "RELATIVE", "INTERPOLATE",
    )  # fmt: skip
    assert both.site.manifest.num_landmarks == alone.site.manifest.num_landmarks
    tile = both.site.read_tile(0)
    assert len(tile.features) <= 100 * len(tile.keyframe_ids)
    assert alone.site.manifest.format_version == 2


def test_two_builds_give_the_same_bytes(tmp_path):
    options = replace(QUICK, store="features")
    ids = [
        build(tmp_path / name, small_recording(), options).site.manifest.map_id
        for name in "ab"
    ]
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"store": "points"}, "--store points: must be one of landmarks, features"),
        ({"features_per_keyframe": 8}, "--features-per-keyframe 8: must be at least"),
        (
            {"store": "features", "budget_bytes": 10**5},
            "--store features: has no landmarks for --budget-mb",
        ),
        ({"store": "features", "curve": True}, "give --features-per-keyframe"),
    ],
)
def test_options_that_make_no_sense(change, message):
    with pytest.raises(ConfigError, match=message):
        BuildOptions(**change)


@pytest.mark.slow
def test_a_budget_for_both_takes_landmarks_away_and_leaves_features(tmp_path):
    options = replace(QUICK, store="both", features_per_keyframe=50)
    whole = build(tmp_path / "whole", small_recording(), options)
    budget = round(0.6 * whole.result.counted_bytes)
    small = build(
        tmp_path / "small", small_recording(), replace(options, budget_bytes=budget)
    )
    assert 0.8 * budget < small.result.counted_bytes <= budget
    assert 0 < small.site.manifest.num_landmarks < whole.site.manifest.num_landmarks
    ids = small.site.keyframes.keyframe_ids
    found = assemble_features(small.site.read_tile, small.site, ids)
    assert np.all(np.diff(found.offsets) == 50)
