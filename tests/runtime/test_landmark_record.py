"""Landmarks that stop being seen lose weight, and come back when seen again."""

from __future__ import annotations

import numpy as np
import pytest
from site_fixture import CAMERA, BuiltSite

from edgeloc.runtime.estimator import Estimator
from edgeloc.runtime.landmark_record import LandmarkRecord, RecordOptions, updated

IDS = np.arange(1000, 1100)
GONE = IDS[:20]
HERE = np.zeros(3)
S = 1_000_000_000


def frames(
    record: LandmarkRecord,
    rng: np.random.Generator,
    *,
    num: int,
    share: float,
    gone: np.ndarray,
    first: int = 0,
) -> None:
    for k in range(first, first + num):
        # Only what is not left out can be found.
        tried = IDS[record.weights(IDS) > 0]
        there = tried[~np.isin(tried, gone)]
        found = there[rng.random(len(there)) < share]
        record.note(IDS, found, timestamp_ns=k * S, center=HERE)


@pytest.mark.parametrize(("share", "num"), [(0.3, 40), (0.7, 12)])
def test_what_is_gone_is_left_out_and_nothing_else(
    share: float, num: int, rng: np.random.Generator
) -> None:
    """The fewer landmarks are found as a rule, the longer it takes."""
    record = LandmarkRecord()
    np.testing.assert_allclose(record.weights(IDS), 0.95, atol=1e-6)
    frames(record, rng, num=num, share=share, gone=GONE)
    left_out = []
    for k in range(num, num + 20):
        frames(record, rng, num=1, share=share, gone=GONE, first=k)
        weights = record.weights(IDS)
        np.testing.assert_array_equal(record.wanted(IDS), weights > 0.0)
        assert np.all(weights[:20] < 0.1)
        assert np.all(weights[20:] > 0.0)
        assert np.mean(weights[20:]) > 0.95
        left_out.append(np.mean(weights[:20] == 0.0))
    assert np.mean(left_out) > 0.7


def test_weight_falls_before_it_is_gone(rng: np.random.Generator) -> None:
    record = LandmarkRecord()
    last = record.weights(GONE)
    for k in range(4):
        frames(record, rng, num=1, share=0.5, gone=GONE, first=k)
        now = record.weights(GONE)
        assert np.all(now < last)
        last = now
    assert np.all(last > 0)


def test_what_comes_back_is_believed_again(rng: np.random.Generator) -> None:
    record = LandmarkRecord()
    frames(record, rng, num=40, share=0.6, gone=GONE)
    assert np.mean(record.weights(GONE) == 0.0) > 0.5
    frames(record, rng, num=30, share=0.6, gone=IDS[:0], first=40)
    assert np.all(record.weights(GONE) > 0.5)
    assert np.mean(record.weights(GONE)) > 0.95


def test_a_frame_in_which_nothing_is_found_blames_no_landmark() -> None:
    options = RecordOptions()
    before = np.array([0.0, 3.0, 7.0])
    nothing = np.zeros(3, bool)
    np.testing.assert_allclose(
        updated(before, nothing, options), [0.0, 3.0, 7.0 * options.recovery]
    )


def test_one_sighting_outweighs_many_misses() -> None:
    options = RecordOptions()
    log_odds = np.zeros(10)
    found = np.arange(10) < 3
    for _ in range(6):
        log_odds = updated(log_odds, found, options)
    assert log_odds[9] == pytest.approx(6 * np.log(0.98 / 0.7))
    once = updated(log_odds, ~found, options)
    assert once[9] < 0.0


def test_a_standing_camera_counts_once_a_second() -> None:
    record = LandmarkRecord(min_moved=0.5)
    assert record.wants(0, HERE)
    record.note(IDS, IDS[50:], timestamp_ns=0, center=HERE)
    assert not record.wants(S // 2, HERE)
    assert not record.wants(S // 2, HERE + 0.2)
    assert record.wants(S // 2, HERE + 0.4)
    assert record.wants(S, HERE)


def test_memory_is_bounded() -> None:
    record = LandmarkRecord(RecordOptions(max_landmarks=150))
    for first in range(0, 1000, 100):
        ids = np.arange(first, first + 100)
        record.note(ids, ids[50:], timestamp_ns=0, center=HERE)
    assert len(record) == 150
    assert record.weights(np.array([0]))[0] == pytest.approx(0.95)
    assert record.weights(np.array([901]))[0] < 0.95
    record.note(IDS[:10], IDS[:10], timestamp_ns=0, center=HERE)  # too few to tell
    assert len(record) == 150


def test_track_does_not_look_for_what_is_gone(
    orb_site: BuiltSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimator = Estimator(site=orb_site.site, camera=CAMERA)
    looking, record = estimator._looking, estimator._parts.record
    assert record is not None
    looked_for = []

    def near_map(_pose, *, choose, load, spacing):
        local_map, visible, _ = load(choose(pose, 12))
        looked_for.append(np.unique(np.concatenate(visible)))
        assert set(looked_for[-1]) <= set(local_map.point3D_ids)

    monkeypatch.setattr(estimator._following, "near_map", near_map)
    pose = orb_site.site.keyframes.cam_from_world(3)
    assert looking.near_map(pose, until_ns=None)
    gone = looked_for[0][::10]
    there = np.setdiff1d(looked_for[0], gone)
    for k in range(12):
        record.note(looked_for[0], there, timestamp_ns=k * S, center=HERE)
    assert looking.near_map(pose, until_ns=None)
    np.testing.assert_array_equal(looked_for[1], there)
