"""Masks and other sensors in the estimator: they help, and are never needed."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from site_fixture import CAMERA, BuiltSite, query_images

from edgeloc.clock import MonotonicClock
from edgeloc.config import RunConfig
from edgeloc.errors import MapError
from edgeloc.localize.candidate import FrameTrace
from edgeloc.localize.pose_prior import PosePrior, PositionPrior
from edgeloc.runtime.aids import Aids, open_aids
from edgeloc.runtime.estimator import Estimator
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.runtime.masking import FrameMasks
from edgeloc.runtime.site_models import open_keyframe_index
from edgeloc.types import Frame, FrameBudget, PoseEstimate, PoseStatus
from edgeloc_tools.evaluate.city_priors import OnePrior


class Rig:
    def __init__(self, built: BuiltSite, *, cold: bool, aids: Aids) -> None:
        self.clock = MonotonicClock()
        self.estimator = Estimator(
            site=built.site,
            camera=CAMERA,
            options=EstimatorOptions(cold=cold),
            clock=self.clock,
            aids=aids,
        )

    def answer(self, idx: int) -> tuple[PoseEstimate, FrameTrace, np.ndarray]:
        image = query_images()[idx]
        now_ns = self.clock.now_ns()
        estimate, trace = self.estimator.explain(
            Frame(
                frame_id=idx,
                camera_id="",
                timestamp_ns=image.timestamp_ns,
                image=image.source.read(),
            ),
            FrameBudget(start_ns=now_ns, deadline_ns=now_ns + 10**12, clock=self.clock),
        )
        return estimate, trace, image.cam_from_world.origin_in_a


def at(center: np.ndarray, sigma_m: float) -> PosePrior:
    position = PositionPrior(center=center, covariance=np.eye(3) * sigma_m**2)
    return PosePrior(position=position)


def test_only_some_keyframes_are_searched(orb_site: BuiltSite) -> None:
    index = open_keyframe_index(orb_site.site)
    [query] = index.descriptors(np.array([5]))
    rows = np.array([2, 5, 9])
    found = index.search(query, k=2, among=rows)
    assert index.num_compared == 3
    assert found.keyframe_ids[0] == index.keyframe_ids[5]
    assert set(found.keyframe_ids) <= set(index.keyframe_ids[rows])
    np.testing.assert_array_equal(
        index.search(query, k=3, among=np.arange(len(index.keyframe_ids))).keyframe_ids,
        index.search(query, k=3).keyframe_ids,
    )


@pytest.mark.parametrize("cold", [True, False])
def test_a_right_prior_narrows_and_a_wrong_one_is_not_believed(
    orb_site: BuiltSite, cold: bool
) -> None:
    num = len(orb_site.site.keyframes)
    priors = OnePrior()
    rig = Rig(orb_site, cold=cold, aids=Aids(priors=priors))
    image = query_images()[1]
    true = image.cam_from_world.origin_in_a
    priors.prior = at(true, 0.05)
    estimate, trace, _ = rig.answer(1)
    assert estimate.status is PoseStatus.LOCALIZED
    assert 0 < trace.num_compared < num
    # The keyframe furthest away, and sure of it.
    centers = orb_site.site.keyframes.centers
    far = centers[np.argmax(np.linalg.norm(centers - true, axis=1))]
    priors.prior = at(far, 0.05)
    wrong = Rig(orb_site, cold=cold, aids=Aids(priors=priors))
    estimate, trace, _ = wrong.answer(1)
    assert estimate.status is PoseStatus.LOCALIZED
    assert np.linalg.norm(estimate.cam_from_world.origin_in_a - true) < 0.1
    assert wrong.estimator.trust.num_rejected_priors == 1


def test_without_a_prior_for_a_frame_nothing_changes(orb_site: BuiltSite) -> None:
    with_it = Rig(orb_site, cold=True, aids=Aids(priors=OnePrior()))
    without = Rig(orb_site, cold=True, aids=Aids())
    for idx in range(3):
        a, trace, _ = with_it.answer(idx)
        b, _, _ = without.answer(idx)
        assert a.status is b.status is PoseStatus.LOCALIZED
        np.testing.assert_array_equal(a.cam_from_world.R, b.cam_from_world.R)
        assert trace.num_compared == len(orb_site.site.keyframes)


def test_no_sensor_is_asked_before_the_first_frame(orb_site: BuiltSite) -> None:
    """A recorded one begins with the frame that it is first asked about."""

    times_ns: list[int] = []

    class Asked(OnePrior):
        def at(self, timestamp_ns: int, /) -> PosePrior:
            times_ns.append(timestamp_ns)
            return super().at(timestamp_ns)

    priors = Asked()
    rig = Rig(orb_site, cold=False, aids=Aids(priors=priors))
    rig.estimator.warm_up()
    assert times_ns == []
    rig.answer(1)
    assert times_ns == [query_images()[1].timestamp_ns]


def test_features_stay_off_a_mask_and_frames_still_localize(
    orb_site: BuiltSite,
) -> None:
    mask = np.full((CAMERA.height, CAMERA.width), 255, np.uint8)
    mask[:, :100] = 0
    masks = FrameMasks(mask, None, clock=MonotonicClock())
    rig = Rig(orb_site, cold=False, aids=Aids(masks=masks))
    rig.estimator.warm_up()
    estimate, trace, true = rig.answer(1)
    assert estimate.status is PoseStatus.LOCALIZED
    assert np.linalg.norm(estimate.cam_from_world.origin_in_a - true) < 0.1
    assert trace.query is not None
    assert trace.query.features.keypoints[:, 0].min() >= 103
    free, free_trace, _ = Rig(orb_site, cold=False, aids=Aids()).answer(1)
    assert free.status is PoseStatus.LOCALIZED
    assert free_trace.query is not None
    assert free_trace.query.features.keypoints[:, 0].min() < 100


def test_the_options_of_a_run(orb_site: BuiltSite, tmp_path: Path) -> None:
    manifest, clock = orb_site.site.manifest, MonotonicClock()
    assert open_aids(RunConfig(), manifest, CAMERA, clock) == Aids()
    path = tmp_path / "hood.png"
    cv2.imwrite(str(path), np.zeros((CAMERA.height, CAMERA.width), np.uint8))
    config = RunConfig(mask=str(path), gravity="0,1,0", gravity_sigma_deg=1.0)
    aids = open_aids(config, manifest, CAMERA, clock)
    assert aids.masks is not None
    assert aids.priors is not None
    vertical = aids.priors.at(0).vertical
    assert vertical is not None
    assert vertical.sigma_rad == pytest.approx(np.deg2rad(1.0))
    aids.close()
    with pytest.raises(MapError, match="does not know where on Earth it lies"):
        open_aids(RunConfig(gnss="tcp://127.0.0.1:9"), manifest, CAMERA, clock)
