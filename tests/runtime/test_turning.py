"""A camera that was rolled: networks see its pictures turned back by right angles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from site_fixture import (
    CAMERA,
    ORB,
    budget_of,
    build,
    frame_of,
    mapping_recording,
    pose_error,
    query_images,
    strange_images,
)

from edgeloc.clock import ManualClock
from edgeloc.features.extract import extract_prepared, prepare_image, quarter_turned
from edgeloc.runtime.estimator import Estimator
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.types import Features, PoseStatus, Rigid3, Rung

QUARTER = Rigid3(
    R=np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), t=np.zeros(3)
)
"""From a camera to the one that is rolled by 90 degrees clockwise."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The room, seen by the shipped networks."""
    out = tmp_path_factory.mktemp("networks") / "site"
    return build(out, mapping_recording(), replace(ORB, features="edgeloc")).site


def rolled(camera, pose, turns):
    for _ in range(turns):
        fx, fy, cx, cy = camera.params
        camera = replace(
            camera,
            width=camera.height,
            height=camera.width,
            params=(fy, fx, cy, camera.width - cx),
        )
        pose = QUARTER @ pose
    return camera, pose


def make(site, camera, *, cold=True):
    return Estimator(
        site=site,
        camera=camera,
        options=EstimatorOptions(cold=cold),
        clock=ManualClock(),
    )


class Brightest:
    """A family that sees one thing, the brightest pixel where the mask lets it."""

    colour = False

    def extract(self, image, /, *, max_keypoints, mask=None):
        assert mask.shape == image.shape
        y, x = np.unravel_index(np.argmax(np.where(mask > 0, image, 0)), image.shape)
        return Features(
            keypoints=np.array([[x + 0.5, y + 0.5]], np.float32),
            scores=np.ones(1, np.float32),
            sigmas=np.ones(1, np.float32),
            descriptors=np.ones((1, 4), np.float32),
        )


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("max_side_px", [0, 20])
def test_keypoints_are_those_of_the_picture_as_it_was(turns, max_side_px):
    image = np.zeros((30, 40), np.uint8)
    image[4:6, 12:14] = 200
    image[20:22, 30:32] = 250
    mask = np.full((30, 40), 255, np.uint8)
    mask[18:24, 28:34] = 0
    found = extract_prepared(
        prepare_image(image, Brightest(), max_side_px=max_side_px),
        Brightest(),
        max_keypoints=1,
        mask=mask,
        turns=turns,
    )
    np.testing.assert_allclose(found.keypoints, [[13.0, 5.0]], atol=0.5)


@pytest.mark.parametrize("turns", range(4))
def test_a_rolled_camera_is_localized(site, turns):
    for image in query_images()[1:7:2]:
        camera, truth = rolled(CAMERA, image.cam_from_world, turns)
        picture = quarter_turned(image.source.read(), turns)
        answer = make(site, camera).step(frame_of(picture), budget_of())
        assert answer.status is PoseStatus.LOCALIZED
        assert pose_error(answer, truth).position_m < 0.05
        assert ("turn" in answer.stage_ns) == (turns != 0)


def test_the_turn_is_remembered(site):
    image = query_images()[1]
    camera, truth = rolled(CAMERA, image.cam_from_world, 3)
    picture = quarter_turned(image.source.read(), 3)
    estimator = make(site, camera, cold=False)
    estimator.warm_up()
    first, *later = (
        estimator.step(
            replace(frame_of(picture, i), timestamp_ns=i * 50_000_000), budget_of()
        )
        for i in range(4)
    )
    assert (first.rung, "turn" in first.stage_ns) == (Rung.RELOCALIZE, True)
    for answer in later:
        assert answer.status is PoseStatus.LOCALIZED
        assert "turn" not in answer.stage_ns
        assert pose_error(answer, truth).position_m < 0.05


def test_another_room_is_turned_once_a_second_and_never_localized(site):
    picture = strange_images()[0].source.read()
    estimator = make(site, CAMERA, cold=False)
    turned = []
    for i in range(4):
        frame = replace(frame_of(picture, i), timestamp_ns=i * 400_000_000)
        answer = estimator.step(frame, budget_of())
        assert answer.status is not PoseStatus.LOCALIZED
        turned.append("turn" in answer.stage_ns)
    assert turned == [True, False, False, True]
