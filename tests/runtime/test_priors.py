"""Priors from NMEA over TCP, a serial line and a file, and what is believed."""

from __future__ import annotations

import math
import os
import pty
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from nmea_lines import GEO, gga

from edgeloc.clock import ManualClock, MonotonicClock
from edgeloc.errors import ConfigError, MapError
from edgeloc.geometry.geodesy import GeoReference, wgs84_from_enu
from edgeloc.localize.candidate import Candidate
from edgeloc.localize.pose_prior import (
    HeadingPrior,
    PosePrior,
    PositionPrior,
    contradictions,
    heading_of,
    plausible_keyframes,
)
from edgeloc.runtime.line_source import is_recorded
from edgeloc.runtime.nmea import Attitude, Fix, Heading, sentence
from edgeloc.runtime.prior_source import open_prior_source
from edgeloc.runtime.priors import (
    PriorFeed,
    PriorOptions,
    PriorTrust,
    down_in_level_camera,
)
from edgeloc.tiles.layout import KeyframeTable, PoseArrays
from edgeloc.types import Cause, Matches2D3D, PoseStatus, Rigid3, Rung

S = 1_000_000_000
SITE = SimpleNamespace(
    name="town",
    geo_reference=GEO,
    gravity_in_world=(0.0, 0.0, -1.0),
)
NOWHERE = SimpleNamespace(name="cellar", geo_reference=None, gravity_in_world=None)


def looking(heading_deg: float, at: tuple[float, float, float]) -> Rigid3:
    """A level camera."""
    h = math.radians(heading_deg)
    R = np.array(
        [
            [math.cos(h), -math.sin(h), 0.0],
            [0.0, 0.0, -1.0],
            [math.sin(h), math.cos(h), 0.0],
        ]
    )
    return Rigid3(R=R, t=-R @ np.array(at))


def wait_until(done: Callable[[], bool]) -> None:
    until = time.monotonic() + 10.0
    while not done():
        assert time.monotonic() < until, "nothing came"
        time.sleep(0.01)


class TestFeed:
    def test_between_two_places(self) -> None:
        feed = PriorFeed(SITE, PriorOptions())
        for at, east in ((10, 0.0), (11, 4.0)):
            feed.push(at * S, fix_at(east))
        prior = feed.at(10 * S + S // 4).position
        assert prior is not None
        np.testing.assert_allclose(prior.center, [1.0, 2.0, 3.0], atol=1e-4)
        np.testing.assert_allclose(np.diag(prior.covariance), [25.0, 25.0, 100.0])

    def test_after_the_newest_it_may_have_moved(self) -> None:
        feed = PriorFeed(SITE, PriorOptions())
        feed.push(10 * S, fix_at(0.0, speed_m_s=3.0))
        prior = feed.at(12 * S).position
        assert prior is not None
        assert prior.covariance[0, 0] == pytest.approx(25.0 + (2 * (3.0 + 1.0)) ** 2)
        assert feed.at(14 * S).is_empty

    def test_only_seconds_are_kept(self) -> None:
        feed = PriorFeed(SITE, PriorOptions())
        for second in range(100):
            feed.push(second * S, fix_at(float(second)))
        assert feed.at(50 * S).position is None
        assert feed.at(80 * S).position is not None

    def test_headings_before_courses(self) -> None:
        options = PriorOptions(heading=True, heading_offset_rad=0.1)
        feed = PriorFeed(SITE, options)
        feed.push(S, Heading(heading_rad=1.0, sigma_rad=0.3, course=True))
        found = feed.at(S).heading
        assert found is not None
        assert found.heading_rad == pytest.approx(1.1)
        assert found.sigma_rad == pytest.approx(0.3)
        feed.push(S, Heading(heading_rad=6.25))
        found = feed.at(S).heading
        assert found is not None
        assert found.heading_rad == pytest.approx(6.35 - 2 * math.pi)
        assert found.sigma_rad == pytest.approx(math.radians(10.0))
        assert PriorFeed(SITE, PriorOptions()).at(S).heading is None

    def test_a_leaning_vehicle(self) -> None:
        """Nose up: gravity comes from behind. Right side down: from the right."""
        up = down_in_level_camera(Attitude(roll_rad=0.0, pitch_rad=0.2))
        np.testing.assert_allclose(up, [0.0, math.cos(0.2), -math.sin(0.2)])
        right = down_in_level_camera(Attitude(roll_rad=0.3, pitch_rad=0.0))
        np.testing.assert_allclose(right, [math.sin(0.3), math.cos(0.3), 0.0])
        feed = PriorFeed(SITE, PriorOptions(attitude=True))
        assert feed.at(S).vertical is None
        feed.push(S, Attitude(roll_rad=0.0, pitch_rad=0.0))
        vertical = feed.at(S).vertical
        assert vertical is not None
        assert vertical.tilt_rad(looking(70.0, (0, 0, 0))) == pytest.approx(0.0)

    def test_a_camera_that_keeps_its_tilt(self) -> None:
        options = PriorOptions(position=False, down_in_cam=(0.0, 2.0, 0.0))
        vertical = PriorFeed(SITE, options).at(0).vertical
        assert vertical is not None
        np.testing.assert_allclose(vertical.down_in_cam, [0.0, 1.0, 0.0])

    def test_a_site_has_to_know_where_it_is(self) -> None:
        with pytest.raises(MapError, match="--geo-reference"):
            PriorFeed(NOWHERE, PriorOptions())
        tilt = PriorOptions(position=False, down_in_cam=(0.0, 1.0, 0.0))
        with pytest.raises(MapError, match="which way is down"):
            PriorFeed(NOWHERE, tilt)


def fix_at(east: float, *, speed_m_s: float | None = None) -> Fix:
    (lat,), (lon,), (alt,) = wgs84_from_enu([[east, 2.0, 3.0]], GeoReference(**GEO))
    return Fix(
        time_s=0.0,
        latitude_deg=float(lat),
        longitude_deg=float(lon),
        altitude_m=float(alt),
        east_sigma_m=5.0,
        north_sigma_m=5.0,
        altitude_sigma_m=10.0,
        speed_m_s=speed_m_s,
    )


@pytest.fixture
def server() -> Iterator[tuple[str, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10.0)
        yield f"tcp://127.0.0.1:{listening.getsockname()[1]}", listening


class TestSources:
    def test_tcp_in_pieces_and_damaged(self, server: tuple[str, socket.socket]) -> None:
        address, listening = server
        clock = ManualClock(start_ns=50 * S)
        feed = PriorFeed(SITE, PriorOptions())
        open_prior_source(address, feed, clock=clock, sigma_m=2.0, latency_ns=S // 10)
        try:
            connection, _ = listening.accept()
            with connection:
                line = gga(0.0, (7.0, 8.0, 9.0))
                connection.sendall(b"\xff\x00broken\n" + line[:30])
                time.sleep(0.05)
                assert feed.at(50 * S).position is None
                connection.sendall(line[30:])
                wait_until(lambda: feed.at(50 * S).position is not None)
            prior = feed.at(50 * S - S // 10).position
            assert prior is not None
            np.testing.assert_allclose(prior.center, [7.0, 8.0, 9.0], atol=1e-3)
            assert prior.covariance[0, 0] == pytest.approx(4.0)
        finally:
            feed.close()
        assert not [t for t in threading.enumerate() if t.name == "gnss"]

    def test_a_line_that_breaks_is_opened_again(
        self,
        server: tuple[str, socket.socket],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr("edgeloc.runtime.line_source._RETRY_S", 0.01)
        address, listening = server
        clock = ManualClock()
        feed = PriorFeed(SITE, PriorOptions())
        open_prior_source(address, feed, clock=clock)
        try:
            listening.accept()[0].close()
            connection, _ = listening.accept()
            with connection:
                connection.sendall(gga(0.0, (1.0, 1.0, 1.0)))
                wait_until(lambda: feed.at(0).position is not None)
        finally:
            feed.close()
        assert "ended; trying again" in caplog.text

    def test_asking_does_not_wait_for_a_silent_sensor(
        self, server: tuple[str, socket.socket]
    ) -> None:
        feed = PriorFeed(SITE, PriorOptions())
        open_prior_source(server[0], feed, clock=MonotonicClock())
        try:
            connection, _ = server[1].accept()
            with connection:
                begin = time.monotonic()
                for _ in range(100):
                    assert feed.at(0).is_empty
                assert time.monotonic() - begin < 0.1
        finally:
            feed.close()

    def test_a_serial_line(self) -> None:
        master, slave = pty.openpty()
        try:
            clock = ManualClock(start_ns=S)
            feed = PriorFeed(SITE, PriorOptions())
            open_prior_source(f"{os.ttyname(slave)}@38400", feed, clock=clock)
            try:
                os.write(master, gga(0.0, (4.0, 5.0, 6.0)))
                wait_until(lambda: feed.at(S).position is not None)
            finally:
                feed.close()
            prior = feed.at(S).position
            assert prior is not None
            np.testing.assert_allclose(prior.center, [4.0, 5.0, 6.0], atol=1e-3)
        finally:
            os.close(master)
            os.close(slave)

    def test_a_file_begins_with_the_first_frame(self, tmp_path: Path) -> None:
        """Over midnight, and with headings that have the time of their neighbours."""
        path = tmp_path / "log.nmea"
        lines = [sentence("HEHDT,10.0,T").encode()]
        for k in range(6):
            lines.append(gga(86397.0 + k, (float(k), 0.0, 0.0)))
            lines.append(sentence(f"HEHDT,{20 + k}.0,T").encode())
        path.write_bytes(b"".join(lines))
        assert is_recorded(str(path))
        feed = PriorFeed(SITE, PriorOptions(heading=True), recorded=True)
        open_prior_source(str(path), feed, clock=MonotonicClock())
        begin = 123 * S
        first = feed.at(begin)
        assert first.position is not None
        np.testing.assert_allclose(first.position.center, 0.0, atol=1e-3)
        later = feed.at(begin + 4 * S + S // 2)
        assert later.position is not None
        np.testing.assert_allclose(later.position.center, [4.5, 0, 0], atol=1e-3)
        assert later.heading is not None
        assert math.degrees(later.heading.heading_rad) == pytest.approx(24.5, abs=0.6)
        assert feed.at(begin + 60 * S).is_empty

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("tcp://localhost", "expected tcp://HOST:PORT"),
            ("tcp://:99999", "expected tcp://HOST:PORT"),
            ("/dev/no-such-line", "cannot be opened"),
            ("/dev/null", "is no serial line"),
            ("/dev/null@fast", "expected DEVICE@BAUD"),
        ],
    )
    def test_what_is_no_source(self, source: str, message: str) -> None:
        feed = PriorFeed(SITE, PriorOptions())
        with pytest.raises(ConfigError, match=message):
            open_prior_source(source, feed, clock=MonotonicClock())

    def test_a_file_that_says_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "notes.txt"
        path.write_text("hello\nworld\n", encoding="ascii")
        feed = PriorFeed(SITE, PriorOptions(), recorded=True)
        with pytest.raises(ConfigError, match="2 of 2 lines are damaged"):
            open_prior_source(str(path), feed, clock=MonotonicClock())


def street(num: int) -> KeyframeTable:
    """A keyframe per metre to the east; every other one looks back."""
    poses = [looking(90.0 + 180.0 * (k % 2), (float(k), 0, 0)) for k in range(num)]
    return KeyframeTable(
        keyframe_ids=np.arange(num) * 2 + 5,
        camera_ids=("c",) * num,
        poses=PoseArrays(
            R=np.stack([p.R for p in poses]), t=np.stack([p.t for p in poses])
        ),
        global_codes=np.zeros((num, 4), np.float16),
    )


def place(x: float, sigma: float) -> PositionPrior:
    return PositionPrior(
        center=np.array([x, 0.0, 0.0]), covariance=np.eye(3) * sigma**2
    )


class TestNarrowing:
    def test_keyframes_around_a_place(self) -> None:
        table = street(1000)
        rows = plausible_keyframes(PosePrior(position=place(500, 5)), table, reach=5.0)
        assert rows is not None
        limit = math.sqrt(16.266 * 25 + 25)
        assert rows.tolist() == [k for k in range(1000) if abs(k - 500) <= limit]
        ahead = HeadingPrior(heading_rad=math.radians(80.0), sigma_rad=0.1)
        both = PosePrior(position=place(500, 5), heading=ahead)
        rows = plausible_keyframes(both, table, reach=5.0)
        assert rows is not None
        assert set(rows % 2) == {0}

    def test_nothing_known_excludes_nothing(self) -> None:
        assert plausible_keyframes(PosePrior(), street(5), reach=1.0) is None
        far = PosePrior(position=place(1e6, 5))
        rows = plausible_keyframes(far, street(5), reach=1.0)
        assert rows is not None
        assert len(rows) == 0

    @pytest.mark.parametrize("heading_deg", [0.0, 45.0, 135.0, -90.0])
    def test_headings_are_clockwise_from_north(self, heading_deg: float) -> None:
        pose = looking(heading_deg, (1, 2, 3))
        assert math.degrees(heading_of(pose.R)) == pytest.approx(heading_deg)


def fix(pose: Rigid3, num_inliers: int) -> Candidate:
    return Candidate(
        status=PoseStatus.LOCALIZED,
        rung=Rung.RELOCALIZE,
        cause=Cause.NONE,
        cam_from_world=pose,
        covariance=np.eye(6) * 0.01**2,
        matches=Matches2D3D(
            points2D=np.zeros((num_inliers, 2)),
            points3D=np.zeros((num_inliers, 3)),
            point3D_ids=np.arange(num_inliers),
            scores=np.ones(num_inliers, np.float32),
        ),
        inlier_mask=np.ones(num_inliers, bool),
    )


class TestTrust:
    def test_each_part_is_tested_by_itself(self) -> None:
        pose = looking(90.0, (0, 0, 0))
        small = np.eye(6) * 1e-6
        near = PosePrior(
            position=place(15.0, 5.0),
            heading=HeadingPrior(heading_rad=math.radians(110), sigma_rad=0.15),
        )
        assert contradictions(near, pose, small) == ()
        off = PosePrior(
            position=place(25.0, 5.0),
            heading=HeadingPrior(heading_rad=math.radians(-60), sigma_rad=0.15),
        )
        assert contradictions(off, pose, small) == ("position", "heading")
        assert contradictions(off, pose, np.eye(6) * 100.0) == ()

    def test_a_weak_fix_far_from_the_prior_is_not_told(self) -> None:
        trust = PriorTrust()
        prior = PosePrior(position=place(100.0, 5.0))
        assert not trust.allows(prior, fix(looking(0, (0, 0, 0)), 20))
        assert trust.num_gated_fixes == 1
        assert trust.believed(prior) is not None
        assert trust.believed(prior).position is prior.position
        assert trust.allows(prior, fix(looking(0, (95, 0, 0)), 20))

    def test_strong_evidence_rejects_a_wrong_prior(self) -> None:
        """100 m off with a claimed 5 m: the picture wins, until they agree again."""
        trust = PriorTrust()
        wrong = PosePrior(position=place(100.0, 5.0))
        right = PosePrior(position=place(2.0, 5.0))
        here = looking(0, (0, 0, 0))
        assert trust.allows(wrong, fix(here, 200))
        assert trust.num_rejected_priors == 1
        assert trust.believed(wrong).position is None
        # A prior that is not believed does not stop weak fixes either.
        assert trust.allows(wrong, fix(here, 20))
        for believed in (False, False, True):
            assert trust.allows(right, fix(here, 20))
            assert (trust.believed(right).position is not None) is believed
        assert not trust.allows(wrong, fix(here, 20))
