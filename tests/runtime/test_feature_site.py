"""Sites of keyframe features on the device: LOCAL_SFM and RELATIVE answer."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from site_fixture import (
    CAMERA,
    SIFT,
    BuiltSite,
    budget_of,
    build,
    frame_of,
    mapping_recording,
    pose_error,
    query_images,
    strange_images,
)

from edgeloc.clock import ManualClock
from edgeloc.errors import ConfigError, MapError
from edgeloc.localize.candidate import LOST
from edgeloc.runtime.estimator import Estimator
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.runtime.feature_matcher import FeatureMatcher
from edgeloc.runtime.frame_work import FrameWork
from edgeloc.tiles.reader import open_site
from edgeloc.types import Cause, PoseStatus, Rung
from edgeloc_tools.datasets import open_recording
from edgeloc_tools.mapping.options import BuildOptions


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> BuiltSite:
    """The room, without any 3D point."""
    out = tmp_path_factory.mktemp("features") / "site"
    return build(out, mapping_recording(), replace(SIFT, store="features"))


def make(site, **options) -> Estimator:
    return Estimator(
        site=site,
        camera=CAMERA,
        options=EstimatorOptions(**{"cold": True, **options}),
        clock=ManualClock(),
    )


def answers(site, images, **options):
    estimator = make(site, **options)
    return [
        estimator.step(frame_of(image.source.read()), budget_of()) for image in images
    ]


@pytest.mark.parametrize(
    ("method", "rung", "limit_m"),
    [
        ("auto", Rung.LOCAL_SFM, 0.05),
        ("local-sfm", Rung.LOCAL_SFM, 0.05),
        ("relative", Rung.RELATIVE, 0.1),
    ],
)
def test_frames_of_another_path(features, method, rung, limit_m):
    images = query_images()
    found = answers(features.site, images, method=method)
    fixes = [
        (estimate, pose_error(estimate, image.cam_from_world))
        for estimate, image in zip(found, images, strict=True)
        if estimate.status is PoseStatus.LOCALIZED
    ]
    assert len(fixes) >= 6
    assert {estimate.rung for estimate, _ in fixes} == {rung}
    assert np.median([error.position_m for _, error in fixes]) < limit_m
    assert np.median([error.rotation_deg for _, error in fixes]) < 1.0
    assert np.median([error.nees for _, error in fixes]) < 15
    assert all(rung.value.lower() in e.stage_ns for e, _ in fixes)


@pytest.mark.parametrize("method", ["auto", "local-sfm", "relative"])
def test_another_room_is_never_localized(features, method):
    for estimate in answers(features.site, strange_images(), method=method):
        assert estimate.status is not PoseStatus.LOCALIZED


def test_what_nothing_confirms_may_be_anywhere(features):
    """Retrieval finds something in every picture; who checked it in vain says so."""
    [found] = answers(features.site, strange_images()[:1])
    [alone] = answers(features.site, strange_images()[:1], method="interpolate")
    assert (found.status, found.rung) == (PoseStatus.COARSE, Rung.INTERPOLATE)
    assert found.cause in {Cause.FEW_MATCHES, Cause.FEW_INLIERS}
    sigmas = [
        float(np.sqrt(np.trace(estimate.covariance[3:, 3:])))
        for estimate in (found, alone)
    ]
    assert sigmas[0] > 1.0
    assert sigmas[0] > 1.5 * sigmas[1]


def test_warm_frames_and_warming_up(features):
    """TRACK follows the points that LOCAL_SFM made, and nothing needs landmarks."""
    estimator = make(features.site, cold=False)
    estimator.warm_up()
    image = query_images()[0]
    rungs = []
    for i in range(3):
        frame = replace(frame_of(image.source.read(), i), timestamp_ns=i * 50_000_000)
        estimate = estimator.step(frame, budget_of())
        assert estimate.status is PoseStatus.LOCALIZED
        assert pose_error(estimate, image.cam_from_world).position_m < 0.1
        rungs.append(estimate.rung)
    assert rungs[0] is Rung.LOCAL_SFM
    assert set(rungs[1:]) <= {Rung.TRACK, Rung.LOCAL_SFM}


def test_methods_without_data_are_refused(features, sift_site):
    with pytest.raises(ConfigError, match=r"--method structure: .* carries no data"):
        make(features.site, method="structure")
    for method in ("local-sfm", "relative"):
        with pytest.raises(
            ConfigError, match=rf"--method {method}: .* carries no data"
        ):
            make(sift_site.site, method=method)


@pytest.mark.parametrize("method", ["local-sfm", "relative"])
def test_tiles_that_are_gone_or_damaged_are_a_cause(features, tmp_path, method):
    path = tmp_path / "site"
    shutil.copytree(features.path, path)
    for file in (path / "tiles").iterdir():
        data = bytearray(file.read_bytes())
        data[-40] ^= 0xFF
        file.write_bytes(bytes(data))
    [damaged] = answers(open_site(path), query_images()[:1], method=method)
    assert (damaged.status, damaged.cause) == (PoseStatus.LOST, Cause.TILE_CORRUPT)
    shutil.rmtree(path / "tiles")
    [missing] = answers(open_site(path), query_images()[:1], method=method)
    assert (missing.status, missing.cause) == (PoseStatus.LOST, Cause.TILE_MISSING)


def test_a_blank_frame(features):
    blank = np.zeros((CAMERA.height, CAMERA.width), np.uint8)
    for method in ("auto", "local-sfm", "relative"):
        estimator = make(features.site, method=method)
        estimate = estimator.step(frame_of(blank), budget_of())
        assert estimate.status is PoseStatus.LOST
        assert estimate.cause is Cause.FEW_FEATURES


@pytest.mark.parametrize("arrays", [{}, {"local_sfm_calibration": np.zeros(2)}])
def test_a_site_that_does_not_say_how_sure_it_is(features, arrays):
    kept = {
        name: array
        for name, array in features.site.retrieval_arrays.items()
        if name != "local_sfm_calibration"
    }
    site = replace(features.site, retrieval_arrays={**kept, **arrays})
    with pytest.raises(MapError, match="local_sfm_calibration is missing or wrong"):
        make(site)


@pytest.mark.data
def test_a_fountain_outdoors(shared_data, tmp_path):
    """Surveyed with a laser scan; the network's features."""
    recording = open_recording(
        format="colmap",
        input=shared_data / "fountain",
        images=shared_data / "fountain" / "images",
        metric=True,
    )
    queries = open_recording(
        format="hloc",
        input=shared_data / "fountain" / "queries.txt",
        images=shared_data / "fountain" / "images",
        poses=shared_data / "fountain" / "queries_gt.txt",
        metric=True,
    ).posed()
    built = build(
        tmp_path / "site",
        recording,
        BuildOptions(features="edgeloc", store="features"),
    )
    for method, limit_m in (("local-sfm", 0.04), ("relative", 0.1)):
        for image in queries.images:
            estimator = Estimator(
                site=built.site,
                camera=queries.cameras[image.camera_id],
                options=EstimatorOptions(cold=True, method=method),
                clock=ManualClock(),
            )
            estimate = estimator.step(frame_of(image.source.read()), budget_of())
            assert estimate.status is PoseStatus.LOCALIZED
            assert pose_error(estimate, image.cam_from_world).position_m < limit_m


def test_matches_go_with_the_keyframes_that_were_retrieved(features):
    """Looking everywhere after a prior was wrong means matching anew, too."""
    estimator = make(features.site)
    image = query_images()[0].source.read()
    work = FrameWork(estimator._parts, frame_of(image), budget_of())
    seen = []

    def solve(query, views, matches):
        seen.append((len(views.poses), matches))
        return LOST

    matcher = FeatureMatcher(estimator._parts)
    work._plausible = lambda: np.array([0, 1])
    work._narrowed = True
    for _ in range(2):
        matcher.answer(work, stage="local_sfm", solve=solve)
    assert work.widen()
    matcher.answer(work, stage="local_sfm", solve=solve)
    assert [num for num, _ in seen] == [2, 2, 10]
    assert seen[0][1] is seen[1][1]
    assert seen[2][1] is not seen[0][1]
