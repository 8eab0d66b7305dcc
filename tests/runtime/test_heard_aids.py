"""What helped a run is in its log, and helps its replay in the same way."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgpack
import numpy as np
import pytest
from log_cases import MOTION, MS, PRIOR, logged_answer, logged_frame, session_of_test
from made_up_motion import steady_rates
from site_fixture import CAMERA, BuiltSite, query_images
from test_replay import RestlessClock

from edgeloc.cli import replay as replay_command
from edgeloc.errors import LogFormatError, ModelError
from edgeloc.localize.pose_prior import PosePrior, PositionPrior
from edgeloc.runtime.aids import Aids
from edgeloc.runtime.estimator import Estimator
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.runtime.heard_aids import ReplayedAids
from edgeloc.runtime.log_aids import NO_AIDS, LoggedAids, LoggedMask, SessionAids
from edgeloc.runtime.log_format import MAGIC, parse_payload, record_bytes
from edgeloc.runtime.log_reader import LogReader, Step
from edgeloc.runtime.masking import FrameMasks
from edgeloc.runtime.motion_feed import MotionFeed
from edgeloc.runtime.record import open_recorder, session_of, source_facts
from edgeloc.runtime.replay import EXACT, ReplayGaps, differences, replay_session
from edgeloc.types import ByteArray, Frame, FrameBudget, PoseStatus


def column(x: int, *, width: int = 64, height: int = 48) -> ByteArray:
    mask = np.full((height, width), 255, np.uint8)
    mask[:, x] = 0
    return mask


SAID = LoggedAids(motion=MOTION).to_payload()["motion"]


# --- the format


def test_masks_and_priors_come_back_to_the_last_bit() -> None:
    masks = (LoggedMask.of(column(3)), None)
    said = LoggedAids(prior=PRIOR, motion=MOTION, masks=masks)
    answer = logged_answer(aids=said)
    again = parse_payload(msgpack.packb(answer.to_payload())).aids
    assert again.to_payload() == said.to_payload()
    np.testing.assert_array_equal(again.prior.position.center, [1.0, 2.0, 0.1 + 0.2])
    np.testing.assert_array_equal(
        again.prior.position.covariance, np.diag([1.0, 4.0, 9.0])
    )
    assert again.prior.heading == PRIOR.heading
    np.testing.assert_array_equal(again.prior.vertical.down_in_world, [0, 0, -1])
    assert (again.motion.start_ns, again.motion.end_ns) == (-5 * MS, 33 * MS)
    np.testing.assert_array_equal(again.motion.rates_rad_s, MOTION.rates_rad_s)
    np.testing.assert_array_equal(
        again.motion.odometry.newer_from_older.t, MOTION.odometry.newer_from_older.t
    )
    mask, failed = again.masks
    np.testing.assert_array_equal(mask.mask(), column(3))
    assert failed is None


def test_a_mask_takes_little_room_and_nothing_none() -> None:
    vga = LoggedMask.of(column(3, width=640, height=480))
    assert len(msgpack.packb(vga.to_payload())) < 600
    odd = np.array([[0, 7, 255]], np.uint8)
    np.testing.assert_array_equal(LoggedMask.of(odd).mask(), [[0, 255, 255]])
    plain, helped = logged_answer(), logged_answer(aids=LoggedAids(prior=PRIOR))
    size = len(record_bytes(plain))
    assert len(record_bytes(helped)) - size < 250
    assert plain.to_payload()["aids"] == {}
    assert parse_payload(msgpack.packb(plain.to_payload())).aids is NO_AIDS


@pytest.mark.parametrize(
    ("aids", "message"),
    [
        ({"wind": 1}, "aids.wind is not a field of the format"),
        ({"position": b"x"}, "aids.position is .*, expected binary data of 96 bytes"),
        ({"position": bytes(96)}, "expected a place and a covariance"),
        ({"position": b"\xff" * 96}, "expected 12 finite numbers"),
        ({"heading": bytes(16)}, "expected a heading with a sigma above 0"),
        ({"vertical": bytes(56)}, "aids.vertical: down_in_cam has length 0"),
        ({"motion": {"start_ns": 1}}, "aids.motion.* is missing"),
        (
            {"motion": {**SAID, "end_ns": -6 * MS}},
            "end_ns is -6000000, expected an int",
        ),
        ({"motion": {**SAID, "rate_times_ns": b"1"}}, "expected whole times"),
        ({"motion": {**SAID, "rates": b""}}, "expected binary data of 48 bytes"),
        ({"motion": {**SAID, "rates": b"\xff" * 48}}, "expected 6 finite numbers"),
        (
            {"motion": {**SAID, "rate_times_ns": bytes([1] * 8 + [0] * 8)}},
            "expected times in their order",
        ),
        ({"motion": {**SAID, "odometry": bytes(384)}}, "a motion and a covariance"),
        (
            {"motion": {**SAID, "odometry": bytes(96) + SAID["odometry"][96:]}},
            "aids.motion.odometry: R is not a rotation",
        ),
        ({"masks": [1]}, r"aids.masks\[0\] is 1, expected an object"),
        ({"masks": [None] * 1001}, "expected a list of at most 1000"),
        ({"masks": [{"size": [0, 4], "bits": b"x"}]}, "expected an integer from 1"),
        ({"masks": [{"size": [8, 2], "bits": b"x"}]}, "expected 2 bytes, compressed"),
        (
            {"masks": [{"size": [65535, 65535], "bits": b"x"}]},
            "expected the size of a picture",
        ),
        (
            {"masks": [{"size": [8, 2], "bits": zlib.compress(bytes(10**6))}]},
            "expected 2 bytes, compressed with zlib",
        ),
        (
            {"masks": [{"size": [8, 2], "bits": zlib.compress(b"ab")[:-1]}]},
            "expected 2 bytes, compressed with zlib",
        ),
    ],
)
def test_wrong_contents_are_refused(aids: dict, message: str) -> None:
    payload = {**logged_answer().to_payload(), "aids": aids}
    with pytest.raises(LogFormatError, match=message):
        parse_payload(msgpack.packb(payload))


def test_logs_of_version_1_are_read() -> None:
    """They have none of this."""
    for entry in (session_of_test(), logged_frame(), logged_answer()):
        payload = entry.to_payload()
        del payload["aids"]
        if "format" in payload:
            payload["format"] = 1
        again = parse_payload(msgpack.packb(payload))
        assert again.to_payload() == entry.to_payload()


def test_logs_of_version_2_are_read() -> None:
    """They know nothing of sensors of motion."""
    aids = SessionAids(static_mask=None, segmenter=False, priors=True)
    payload = {**session_of_test(aids=aids).to_payload(), "format": 2}
    del payload["aids"]["motions"]
    again = parse_payload(msgpack.packb(payload))
    assert again.aids == aids
    assert not again.aids.motions


# --- runs


@dataclass
class Network:
    """Masks a column that moves on, and fails once."""

    num_calls: int = 0

    def keep_mask(self, image: ByteArray) -> ByteArray:
        self.num_calls += 1
        if self.num_calls == 4:
            raise ModelError("it broke")
        mask = np.full(image.shape[:2], 255, np.uint8)
        mask[:, 40 * self.num_calls : 40 * self.num_calls + 60] = 0
        return mask


@dataclass
class Sensors:
    """Say where the camera is, of some frames."""

    true: dict[int, np.ndarray]
    asked_ns: list[int] = field(default_factory=list)

    def at(self, timestamp_ns: int, /) -> PosePrior:
        self.asked_ns.append(timestamp_ns)
        if len(self.asked_ns) == 2:
            return PosePrior()
        center = self.true[timestamp_ns]
        position = PositionPrior(center=center, covariance=np.eye(3) * 0.04)
        return PosePrior(position=position)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def helped(
    orb_site: BuiltSite, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Sensors]:
    """The log of a run of six frames with all that helps."""
    path = tmp_path_factory.mktemp("helped") / "run.log"
    images = query_images()[:6]
    sensors = Sensors({i.timestamp_ns: i.cam_from_world.origin_in_a for i in images})
    clock = RestlessClock(seed=1, longest_ns=MS // 2)
    static = np.full((CAMERA.height, CAMERA.width), 255, np.uint8)
    static[200:] = 0
    motions = MotionFeed()
    times_ns = [image.timestamp_ns for image in images]
    for rate in steady_rates(times_ns, [image.cam_from_world for image in images]):
        motions.push_rate(*rate)
    aids = Aids(
        masks=FrameMasks(static, Network(), clock=clock),
        priors=sensors,
        motions=motions,
    )
    config = {"method": "auto", "gnss": "tcp://127.0.0.1:9", "mask": "hood.png"}
    session = session_of(
        site=orb_site.site,
        camera=CAMERA,
        source=source_facts("0", live=True),
        config={**config, "segmenter": "movers.json"},
        images="png",
        offers=False,
        clock=clock,
        aids=aids,
    )
    recorder = open_recorder(path, session, clock=clock, aids=aids)
    estimator = Estimator(
        site=orb_site.site, camera=CAMERA, clock=recorder.clock, aids=recorder.aids
    )
    estimator.warm_up()
    for idx, image in enumerate(images):
        frame = Frame(
            frame_id=idx,
            camera_id="0",
            timestamp_ns=image.timestamp_ns,
            image=image.source.read(),
        )
        now_ns = clock.now_ns()
        budget = FrameBudget(start_ns=now_ns, deadline_ns=now_ns + 10**12, clock=clock)
        estimate = estimator.step(frame, recorder.frame(frame, budget))
        assert estimate.status is PoseStatus.LOCALIZED
        recorder.estimate(estimate)
    recorder.close()
    assert len(sensors.asked_ns) == 6
    assert estimator.ego_motion.believed == ("--imu",)
    return path, sensors


def replayed(path: Path, built: BuiltSite, **changes: object) -> list:
    with LogReader(path) as log:
        ((session, entries),) = [(s, list(e)) for s, e in log.sessions()]
        steps = (entry for entry in entries if isinstance(entry, Step))
        found = replay_session(
            replace(session, **changes),
            steps,
            site=built.site,
            options=EstimatorOptions(),
            gaps=ReplayGaps(),
        )
        return list(found)


def test_a_run_with_masks_and_sensors_repeats(
    orb_site: BuiltSite, helped: tuple[Path, Sensors]
) -> None:
    path, sensors = helped
    found = replayed(path, orb_site)
    assert [f.num_readings_off for f in found] == [0] * 6
    for frame in found:
        assert differences(frame.answer.estimate, frame.estimate, EXACT) == []
        assert frame.estimate.stage_ns == frame.answer.estimate.stage_ns
    # The prior of the second frame was empty; the others are the sensors'.
    centers = [f.answer.aids.prior.position for f in found]
    assert centers[1] is None
    np.testing.assert_array_equal(centers[2].center, sensors.true[sensors.asked_ns[2]])
    # So were the rates, from 10 ms to 10 ms between frames; the estimator used them.
    assert [len(f.answer.aids.motion.rate_times_ns) for f in found][:2] == [0, 78]
    # The network ran in the warm-up, then on frames.
    assert len(found[0].frame.aids.masks) == 1
    masks = [mask for f in found for mask in f.answer.aids.masks]
    assert masks[0].mask()[0].tolist() == [255] * 80 + [0] * 60 + [255] * 180
    assert [i for i, mask in enumerate(masks) if mask is None] == [2]
    assert len(masks) > 3


def test_without_what_helped_the_answers_are_others(
    orb_site: BuiltSite, helped: tuple[Path, Sensors]
) -> None:
    """What the test before shows is not that masks do not matter."""
    found = replayed(helped[0], orb_site, aids=None)
    assert any(f.num_readings_off for f in found)
    assert any(differences(f.answer.estimate, f.estimate, EXACT) for f in found)


def test_the_command(
    orb_site: BuiltSite,
    helped: tuple[Path, Sensors],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Renewed, the log still has what helped; of version 1, it is said to lack it."""
    again = tmp_path / "again.log"
    assert replay_command.main([str(helped[0]), "--info"]) == 0
    facts = json.loads(capsys.readouterr().out)
    helped_by = {"static_mask": True, "segmenter": True, "priors": True}
    assert facts["aids"] == {**helped_by, "motions": True}
    assert replay_command.main([str(helped[0]), "--write", str(again)]) == 0
    site = ["--map", str(orb_site.path)]
    assert replay_command.main([str(again), *site, "--compare"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("6 frames compared with exact tolerances: 6 equal")
    assert "does not hold" not in err
    old = tmp_path / "old.log"
    with LogReader(again) as log, old.open("wb") as file:
        for session, entries in log.sessions():
            payload = {**session.to_payload(), "format": 1}
            del payload["aids"]
            file.write(record_bytes(parse_payload(msgpack.packb(payload))))
            for step in list(entries)[:1]:
                file.write(record_bytes(step.frame))
                file.write(record_bytes(step.answer))
    assert old.read_bytes().startswith(MAGIC)
    replay_command.main([str(old), *site, "--compare", "--max-frames", "1"])
    assert (
        "the run had --mask, --segmenter, --gnss, and the log, of an older edgeloc, "
        "does not hold what that said"
    ) in capsys.readouterr().err


def test_a_replay_that_asks_for_more_than_was_said() -> None:
    session = SessionAids(static_mask=None, segmenter=True, priors=False)
    aids = ReplayedAids(session, size=(64, 48), cold=True)
    assert aids.aids.priors is None
    picture = np.zeros((48, 64), np.uint8)
    wide = LoggedMask.of(column(1, width=65))
    aids.begin(LoggedAids(masks=(LoggedMask.of(column(1)), None, wide)))
    np.testing.assert_array_equal(aids.keep_mask(picture), column(1))
    with pytest.raises(ModelError, match="failed here in the run, too"):
        aids.keep_mask(picture)
    with pytest.raises(LogFormatError, match=r"65x48 px does not belong to .* 64x48"):
        aids.keep_mask(picture)
    with pytest.raises(ModelError, match="the log has none"):
        aids.keep_mask(picture)
