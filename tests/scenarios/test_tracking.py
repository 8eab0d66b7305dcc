"""What a camera may show or a site may lack while TRACK follows it."""

from __future__ import annotations

import itertools
import shutil
import threading
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest
from site_fixture import frame_of, replace_everywhere
from tracking_walk import (
    NUM_FRAMES,
    STEP_NS,
    Walker,
    strange_pictures,
    walk_images,
)

from edgeloc.clock import ManualClock
from edgeloc.errors import ModelError
from edgeloc.geometry.se3 import log_se3
from edgeloc.tiles.reader import open_site
from edgeloc.types import Cause, PoseStatus, Rung

MS = 1_000_000


def test_a_walk_is_followed(orb_site):
    """The first frame RELOCALIZE, all others TRACK, none more than 4 cm off."""
    answers = Walker(orb_site).walk(0, NUM_FRAMES)
    assert [a.rung for a in answers] == [Rung.RELOCALIZE] + [Rung.TRACK] * (
        NUM_FRAMES - 1
    )
    assert all(a.status is PoseStatus.LOCALIZED for a in answers)
    assert all(a.cause is Cause.NONE for a in answers)
    assert max(a.position_error for a in answers) < 0.04
    assert {"track", "preprocess"} <= set(answers[3].estimate.stage_ns)


def test_cheap_answers_are_offered_first(orb_site):
    """Prediction, then TRACK; at the first frame interpolation, then RELOCALIZE."""
    first, second = Walker(orb_site).walk(0, 2)
    assert [o.rung for o in first.offers] == [Rung.INTERPOLATE, Rung.RELOCALIZE]
    rungs = [o.rung for o in second.offers]
    assert rungs[0] is Rung.PREDICT
    assert set(rungs[1:]) == {Rung.TRACK}
    assert second.offers[0].status is PoseStatus.PREDICTED
    assert second.offers[0].frame_id == second.estimate.frame_id


def test_each_frame_by_itself_when_cold(orb_site):
    answers = Walker(orb_site, cold=True).walk(0, 3)
    assert [a.rung for a in answers] == [Rung.RELOCALIZE] * 3
    assert answers[0].trace.candidates.keys() == {"INTERPOLATE", "RELOCALIZE"}


DAMAGED = {
    "black": lambda image: np.zeros_like(image),
    "saturated": lambda image: np.full_like(image, 255),
    "blurred": lambda image: cv2.GaussianBlur(image, (0, 0), 15.0),
    "noise": lambda image: np.random.default_rng(1).integers(
        0, 256, image.shape, dtype=np.uint8
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_frames_that_show_nothing_are_predicted_and_then_left_behind(orb_site, kind):
    """Three useless frames: PREDICTED, with a cause and a growing covariance.

    Recovery: LOCALIZED with the first good frame.
    """
    walker = Walker(orb_site)
    walker.walk(0, 4)
    sigmas = []
    for k in (4, 5, 6):
        image, truth = walk_images()[k]
        answer = walker.step(DAMAGED[kind](image), truth)
        assert answer.status in {PoseStatus.PREDICTED, PoseStatus.COARSE}
        assert answer.cause in {
            Cause.FEW_FEATURES,
            Cause.FEW_MATCHES,
            Cause.FEW_INLIERS,
        }
        sigmas.append(np.trace(answer.estimate.covariance[3:, 3:]))
    assert sigmas == sorted(sigmas)
    (after,) = walker.walk(7, 8)
    assert after.status is PoseStatus.LOCALIZED
    assert after.position_error < 0.06


def test_a_half_covered_frame_is_still_tracked(orb_site):
    """The left half black: LOCALIZED from the other half, or PREDICTED; never wrong."""
    walker = Walker(orb_site)
    walker.walk(0, 4)
    for k in (4, 5, 6):
        image, truth = walk_images()[k]
        covered = image.copy()
        covered[:, : image.shape[1] // 2] = 0
        answer = walker.step(covered, truth)
        assert answer.status in {PoseStatus.LOCALIZED, PoseStatus.PREDICTED}
        assert answer.position_error < 0.08
    (after,) = walker.walk(7, 8)
    assert after.status is PoseStatus.LOCALIZED
    assert after.position_error < 0.06


def test_frames_of_another_scene_are_never_localized(orb_site):
    """PREDICTED at first, then COARSE or LOST; the walk is found again at once."""
    walker = Walker(orb_site)
    walker.walk(0, 4)
    for picture in strange_pictures():
        answer = walker.step(picture)
        assert answer.status is not PoseStatus.LOCALIZED
        assert answer.cause in {
            Cause.FEW_MATCHES,
            Cause.FEW_INLIERS,
            Cause.AMBIGUOUS,
        }
    answers = walker.walk(8, 11)
    assert answers[-1].status is PoseStatus.LOCALIZED
    assert not any(a.is_wrong for a in answers)
    assert answers[-1].position_error < 0.06


def test_a_kidnapped_camera_is_found_again(orb_site):
    """From one end of the walk to another place of the site, within one frame.

    Never LOCALIZED where it was before; LOCALIZED where it is within three frames.
    """
    walker = Walker(orb_site)
    walker.walk(0, 4)
    image, truth = walk_images()[NUM_FRAMES - 1]
    flipped = [walker.step(image, truth) for _ in range(3)]
    assert not any(a.is_wrong for a in flipped)
    assert flipped[-1].status is PoseStatus.LOCALIZED
    assert flipped[-1].position_error < 0.06


def test_a_camera_kidnapped_while_covered_is_found_again(orb_site):
    """Half a second of black, and then another place."""
    walker = Walker(orb_site)
    walker.walk(0, 4)
    black = np.zeros_like(walk_images()[0][0])
    for _ in range(10):
        walker.step(black)
    answers = walker.walk(12, 15)
    assert not any(a.is_wrong for a in answers)
    assert answers[-1].status is PoseStatus.LOCALIZED


def test_predictions_end(orb_site):
    """A camera in the dark is PREDICTED for a while and then LOST, not guessed."""
    walker = Walker(orb_site)
    walker.walk(0, 6)
    black = np.zeros_like(walk_images()[0][0])
    statuses = [walker.step(black).status for _ in range(100)]
    assert statuses[0] is PoseStatus.PREDICTED
    assert statuses[-1] is PoseStatus.LOST
    end = statuses.index(PoseStatus.LOST)
    assert all(s is PoseStatus.PREDICTED for s in statuses[:end])
    assert all(s is PoseStatus.LOST for s in statuses[end:])


def test_static_camera_jitter(orb_site):
    """The same view with fresh sensor noise: TRACK jitters a third of RELOCALIZE.

    Once each landmark was recognised a few times.
    """
    rng = np.random.default_rng(5)
    image, truth = walk_images()[5]
    spread = {}
    for cold in (False, True):
        walker = Walker(orb_site, cold=cold)
        positions = []
        for _ in range(20):
            noisy = image + rng.normal(0, 3.0, image.shape)
            answer = walker.step(np.clip(noisy, 0, 255).astype(np.uint8), truth)
            assert answer.status is PoseStatus.LOCALIZED
            positions.append(answer.estimate.cam_from_world.origin_in_a)
        spread[cold] = np.sqrt(np.var(positions[8:], axis=0).sum())
    assert spread[False] < spread[True] / 3


# Tiles


@pytest.fixture
def copied(orb_site, tmp_path):
    shutil.copytree(orb_site.path, tmp_path / "site")
    return replace(orb_site, site=open_site(tmp_path / "site"))


def test_tiles_gone_while_tracking(copied):
    """What is followed needs no tiles: TRACK goes on; a lost camera says TILE_MISSING.

    Recovery with the first frame after the tiles are back.
    """
    walker = Walker(copied, cache_bytes=1)
    walker.walk(0, 3)
    away = copied.path / "away"
    (copied.path / "tiles").rename(away)
    tracked = walker.walk(3, 6)
    assert [a.rung for a in tracked] == [Rung.TRACK] * 3
    black = np.zeros_like(walk_images()[0][0])
    walker.step(black)
    elsewhere = walker.step(*walk_images()[15])
    assert elsewhere.status is not PoseStatus.LOCALIZED
    assert elsewhere.cause is Cause.TILE_MISSING
    away.rename(copied.path / "tiles")
    assert walker.step(*walk_images()[15]).status is PoseStatus.LOCALIZED


def test_tiles_corrupt(copied):
    """Every tile with a flipped byte: TILE_CORRUPT with a COARSE pose, never more."""
    for file in (copied.path / "tiles").iterdir():
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 0x10
        file.write_bytes(data)
    for answer in Walker(copied).walk(0, 3):
        assert answer.status in {PoseStatus.COARSE, PoseStatus.LOST}
        assert answer.cause is Cause.TILE_CORRUPT


# Time


def slow_down(monkeypatch, walker, costs_ms):
    """Let functions of the estimator take time on the walker's clock."""

    def slowed(real, cost_ns):
        def slow(*args, **kwargs):
            walker.clock.advance_ns(cost_ns)
            return real(*args, **kwargs)

        return slow

    for name, cost_ms in costs_ms.items():
        replace_everywhere(
            monkeypatch, name, partial(slowed, cost_ns=round(cost_ms * MS))
        )


COSTS_MS = {"extract_prepared": 27, "relocalize": 60, "assemble_local_map": 1}


def test_a_tile_that_takes_300_ms_to_read(orb_site, monkeypatch):
    """The frame that reads it is late, its deadline was answered; then TRACK."""
    walker = Walker(orb_site)
    slow_down(monkeypatch, walker, {**COSTS_MS, "assemble_local_map": 300})
    (first,) = walker.walk(0, 1, budget_ms=100)
    assert not first.estimate.deadline_met
    assert first.status is PoseStatus.LOCALIZED
    assert first.offers[0].rung is Rung.INTERPOLATE
    assert first.offers[0].deadline_met
    for answer in walker.walk(1, 6, budget_ms=30):
        assert answer.rung is Rung.TRACK
        track = [o for o in answer.offers if o.rung is Rung.TRACK]
        assert track[0].deadline_met


class ImpatientClock(ManualClock):
    """Stands still, and lets nobody wait for another thread."""

    def patience_s(self, deadline_ns):
        return 0.0


class BlockedDisk:
    """A site whose tiles cannot be read until the gate is open."""

    def __init__(self, site):
        self._site = site
        self.tiles = site.tiles
        self.gate = threading.Event()

    def read_tile(self, tile_idx):
        assert self.gate.wait(30)
        return self._site.read_tile(tile_idx)


def test_a_disk_that_hangs_is_not_waited_for(orb_site):
    """TRACK goes on without new landmarks, and finds them when the disk answers."""
    walker = Walker(orb_site, clock=ImpatientClock())
    walker.walk(0, 1)
    cache = walker.estimator._parts.tiles
    assert cache.wait(10.0)
    cache._tiles.clear()
    disk = cache._site = BlockedDisk(cache._site)
    for answer in walker.walk(1, 8):
        assert answer.rung is Rung.TRACK
        assert "look_match" not in answer.estimate.stage_ns
    disk.gate.set()
    assert cache.wait(10.0)
    stages = set()
    for answer in walker.walk(8, 14):
        assert answer.rung is Rung.TRACK
        stages |= set(answer.estimate.stage_ns)
        assert cache.wait(10.0)
    assert "look_match" in stages
    cache.close()


@pytest.mark.parametrize("factor", [1, 3])
def test_every_stage_slower(orb_site, monkeypatch, factor):
    """A budget of 33 ms and features alone for 27 or 81 ms.

    TRACK all the same in every frame but the first; looks for landmarks only where
    their parts fit, so that no later frame misses its deadline once costs are known.
    """
    walker = Walker(orb_site)
    slow_down(monkeypatch, walker, {name: factor * ms for name, ms in COSTS_MS.items()})
    answers = walker.walk(0, NUM_FRAMES, budget_ms=33)
    assert not answers[0].estimate.deadline_met
    assert [a.rung for a in answers[1:]] == [Rung.TRACK] * (NUM_FRAMES - 1)
    late = [a for a in answers[1:] if not a.estimate.deadline_met]
    # One look of each of four sizes may have to find out what it costs.
    assert len(late) <= 4
    for answer in answers[1:]:
        assert next(o for o in answer.offers if o.rung is Rung.TRACK).deadline_met


def test_a_budget_too_small_for_anything(orb_site, monkeypatch):
    """No time even for following pixels: predictions at every deadline, and honest.

    The late fixes behind them keep the filter going.
    """
    walker = Walker(orb_site)
    walker.walk(0, 3)
    real = walker.estimator._following.track

    def slow(*args, **kwargs):
        walker.clock.advance_ns(12 * MS)
        return real(*args, **kwargs)

    monkeypatch.setattr(walker.estimator._following, "track", slow)
    slow_down(monkeypatch, walker, COSTS_MS)
    walker.walk(3, 4)
    black = np.zeros_like(walk_images()[0][0])
    walker.step(black)
    walker.walk(5, 6)
    for answer in walker.walk(6, 11, budget_ms=5):
        in_time = [o for o in answer.offers if o.deadline_met]
        assert [o.rung for o in in_time] == [Rung.PREDICT]
        xi = log_se3(answer.truth @ in_time[-1].cam_from_world.inverse())
        assert np.all(np.abs(xi) < 3 * np.sqrt(np.diag(in_time[-1].covariance)))
        assert answer.rung is Rung.TRACK
        assert not answer.estimate.deadline_met


def test_a_backend_that_raises(orb_site, monkeypatch):
    """BACKEND_ERROR with a prediction while there is one; TRACK needs no backend."""
    walker = Walker(orb_site)
    walker.walk(0, 2)

    def broken(*args, **kwargs):
        raise ModelError("net.onnx: the session failed")

    replace_everywhere(monkeypatch, "extract_prepared", lambda real: broken)
    tracked = walker.walk(2, 3)[0]
    assert tracked.rung is Rung.TRACK
    black = np.zeros_like(walk_images()[0][0])
    answer = walker.step(black)
    assert (answer.status, answer.cause) == (
        PoseStatus.PREDICTED,
        Cause.BACKEND_ERROR,
    )
    monkeypatch.undo()
    assert walker.walk(4, 5)[0].status is PoseStatus.LOCALIZED


# Timestamps


def test_timestamps_that_repeat_and_run_back(orb_site):
    """Each frame is answered right; the filter is not thrown off."""
    walker = Walker(orb_site)
    walker.walk(0, 4)
    for k, timestamp_ns in ((4, 10**9), (5, 10**9), (6, 10**9 - 5 * STEP_NS)):
        answer = walker.step(*walk_images()[k], timestamp_ns=timestamp_ns)
        assert answer.status is PoseStatus.LOCALIZED
        assert answer.position_error < 0.06
    for answer in walker.walk(7, 10):
        assert answer.status is PoseStatus.LOCALIZED
        assert answer.position_error < 0.06


def test_a_clock_that_jumps_ahead(orb_site):
    """An hour later: nothing is predicted over it, and the place is found again."""
    walker = Walker(orb_site)
    walker.walk(0, 4)
    answer = walker.step(*walk_images()[4], timestamp_ns=3600 * 10**9)
    assert (answer.status, answer.rung) == (PoseStatus.LOCALIZED, Rung.RELOCALIZE)


# Beside the pose


def test_the_odometry_never_jumps(orb_site):
    """Fixes move map_from_odom alone; the integrated motion is that of the camera."""
    walker = Walker(orb_site)
    rows = []
    for k in range(NUM_FRAMES):
        answer = walker.step(*walk_images()[k])
        odometry = walker.estimator.odometry
        rows.append((odometry, answer.truth))
        again = odometry.cam_from_odom @ odometry.map_from_odom.inverse()
        pose = answer.estimate.cam_from_world
        np.testing.assert_allclose(log_se3(again @ pose.inverse()), 0, atol=1e-6)
    off = []
    for (a, true_a), (b, true_b) in itertools.pairwise(rows):
        moved = b.cam_from_odom @ a.cam_from_odom.inverse()
        truth = true_b @ true_a.inverse()
        off.append(np.linalg.norm(log_se3(truth @ moved.inverse())[3:]))
    # Steps of 5 to 13 cm between frames.
    assert np.median(off) < 0.012
    assert max(off) < 0.06
    assert walker.estimator.motion_state.timestamp_ns == 10**9 + 15 * STEP_NS


def test_a_grey_picture_may_be_written_over_by_the_next(orb_site):
    """The camera's memory is used again: what is followed must not change with it."""
    walker, buffer = Walker(orb_site), None
    for k in range(5):
        image, truth = walk_images()[k]
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        buffer = grey.copy() if buffer is None else buffer
        buffer[...] = grey
        answer = walker.step(buffer, truth)
        assert answer.position_error < 0.06
    assert answer.rung is Rung.TRACK
    assert frame_of(buffer).image is buffer
