"""Lines of inertial sensors and wheels: read, placed in time, asked for by frames."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import numpy as np
import pytest

from edgeloc.clock import ManualClock
from edgeloc.config import RunConfig
from edgeloc.errors import ConfigError
from edgeloc.geometry.se3 import exp_se3, log_se3
from edgeloc.runtime.extrinsics import load_extrinsics
from edgeloc.runtime.motion_feed import MotionFeed, WheelOdometry
from edgeloc.runtime.motion_lines import (
    LineCounter,
    LineError,
    parse_imu_line,
    parse_trajectory_line,
)
from edgeloc.runtime.motion_source import ArrivalClock, open_motion
from edgeloc.types import Rigid3

MS, S = 1_000_000, 1_000_000_000
EUROC = (
    b"1403636579758555392,-0.0991347015132,0.147305788868,0.027227136,8.14,-0.3,-2.4"
)
TUM = b"1403636579.7635 4.688 -1.786 0.783 0.0 0.0 0.6 0.8"
EXTRINSICS = "0,0,0,0,0,0,1"
KALIBR = """\
cam0:
  T_cam_imu:
  - [0.0148, 0.9998, 0.0041, -0.0216]
  - [-0.9998, 0.0149, -0.0257, -0.0647]
  - [-0.0258, -0.0037, 0.9996, 0.0098]
  - [0.0, 0.0, 0.0, 1.0]
  timeshift_cam_imu: 0.005
"""


class TestLines:
    def test_as_euroc_has_them(self) -> None:
        time_ns, (rate, force) = parse_imu_line(EUROC)
        assert time_ns == 1403636579758555392
        np.testing.assert_allclose(rate, [-0.0991347, 0.1473058, 0.0272271], atol=1e-7)
        np.testing.assert_array_equal(force, [8.14, -0.3, -2.4])
        assert parse_imu_line(b"7 0.1 0.2 0.3 0 0 9.8")[0] == 7

    def test_as_tum_has_them(self) -> None:
        time_ns, odom_from_base = parse_trajectory_line(TUM)
        assert abs(time_ns - 1403636579763500000) < 1000
        np.testing.assert_allclose(odom_from_base.t, [4.688, -1.786, 0.783])
        # About z by twice the angle whose sine is 0.6.
        np.testing.assert_allclose(odom_from_base.R[0, 0], 0.8**2 - 0.6**2)
        np.testing.assert_allclose(odom_from_base.R[1, 0], 2 * 0.6 * 0.8)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (b"1,2,3", "has 3 numbers, expected 7"),
            (b"1.5,0,0,0,0,0,0", "'1.5' is not a time in ns"),
            (b"-1,0,0,0,0,0,0", "'-1' is not a time in ns"),
            (b"99999999999999999999,0,0,0,0,0,0", "is not a time in ns"),
            (b"1,0,0,x,0,0,0", "something that is not a number"),
            (b"1,0,0,nan,0,0,0", "a number beyond 100"),
            (b"1,0,0,180.5,0,0,0", "a number beyond 100"),
            (b"1,0,0,0,0,0,nan", "a number beyond 10000"),
            (b"\xff" * 9, "is not text"),
            (b"1 " * 2000, "is too long"),
        ],
    )
    def test_damaged_ones(self, line: bytes, message: str) -> None:
        with pytest.raises(LineError, match=message):
            parse_imu_line(line)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (b"1 0 0 0 0 0 0", "has 7 numbers, expected 8"),
            (b"1 0 0 0 0 0 0 0", "not of length 1"),
            (b"1 0 0 0 0 0 0 2", "beyond 1.01"),
            (b"1 0 inf 0 0 0 0 1", "beyond 1e"),
            (b"1e30 0 0 0 0 0 0 1", "beyond"),
        ],
    )
    def test_damaged_poses(self, line: bytes, message: str) -> None:
        with pytest.raises(LineError, match=message):
            parse_trajectory_line(line)

    @pytest.mark.parametrize(
        ("parse", "line"), [(parse_imu_line, EUROC), (parse_trajectory_line, TUM)]
    )
    def test_garbage_is_counted_and_never_raises(self, parse, line: bytes) -> None:
        rng = np.random.default_rng(4)
        counter = LineCounter(parse)
        num_said = 0
        for _ in range(1500):
            damaged = bytearray(line)
            for at in rng.integers(0, len(line), rng.integers(1, 6)):
                damaged[at] = rng.integers(0, 256)
            said = counter.feed(bytes(damaged[: rng.integers(1, len(line) + 1)]))
            if said is not None:
                num_said += 1
                assert 0 <= said[0] <= 2**62
        assert counter.feed(b"#timestamp [ns],w_RS_S_x") is None
        assert counter.feed(b"  ") is None
        assert counter.num_damaged > 1000
        assert 1500 - counter.num_damaged - num_said < 30  # became comments
        assert counter.problem


class TestExtrinsics:
    def test_of_kalibr(self, tmp_path: Path) -> None:
        path = tmp_path / "camchain-imucam.yaml"
        path.write_text(KALIBR, encoding="utf-8")
        found = load_extrinsics(f"{path}#cam0", option="--x", sensor="imu")
        np.testing.assert_allclose(found.cam_from_sensor.t, [-0.0216, -0.0647, 0.0098])
        # Its x axis points against the camera's y.
        np.testing.assert_allclose(
            found.cam_from_sensor.R[:, 0], [0.0148, -0.9998, -0.0258], atol=1e-3
        )
        assert found.shift_ns == 5 * MS

    def test_seven_numbers(self) -> None:
        text = "1, 2, 3, 0, 0, 0.70710678, 0.70710678"
        found = load_extrinsics(text, option="--x", sensor="base")
        np.testing.assert_allclose(
            found.cam_from_sensor.transform([1.0, 0, 0]), [1, 3, 3], atol=1e-7
        )

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("cam0: {intrinsics: [1]}", "has no camera with T_cam_imu"),
            ("cam0: {T_cam_imu: 7}", "cam0 T_cam_imu: expected a list of numbers"),
            ("cam0: {T_cam_imu: [[1, 0], [0, 1]]}", "T_cam_imu: expected numbers"),
            (KALIBR.replace("0.9998, 0.0041", "0.5, 0.0041"), "is not a transform"),
            (KALIBR.replace("0.9996", ".nan"), "is not a transform"),
            (KALIBR.replace("shift_cam_imu: 0.005", "shift_cam_imu: 60"), "no shift"),
            (KALIBR + KALIBR.replace("cam0", "cam1"), "choose one with --x '.*#cam0'"),
            ("{", "is not valid YAML"),
        ],
    )
    def test_what_is_wrong(self, tmp_path: Path, content: str, message: str) -> None:
        path = tmp_path / "imu.yaml"
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            load_extrinsics(str(path), option="--x", sensor="imu")

    def test_neither(self) -> None:
        with pytest.raises(ConfigError, match=r"--x 1,0,0,0,0,0,0: .* not of length 1"):
            load_extrinsics("1,0,0,0,0,0,0", option="--x", sensor="imu")
        with pytest.raises(ConfigError, match=r"cannot be read .* x,y,z,qx,qy,qz,qw"):
            load_extrinsics("nowhere.yaml", option="--x", sensor="imu")


class TestTime:
    def test_lines_that_come_in_bursts(self) -> None:
        """100 Hz, sent ten at a time: the last of each is the one that was not late."""
        arrivals, start = ArrivalClock(), 77 * S
        off_ns = []
        for k in range(300):
            stamp_ns = k * 10 * MS
            burst_ns = start + (k // 10 * 10 + 9) * 10 * MS
            placed_ns = arrivals.frame_time_ns(stamp_ns, burst_ns)
            off_ns.append(placed_ns - (start + stamp_ns))
        assert set(off_ns[9:]) == {0}
        assert max(off_ns) == 90 * MS

    def test_clocks_that_drift_and_restart(self) -> None:
        for drift in (0.995, 0.9999, 1.005):
            arrivals = ArrivalClock()
            for k in range(4_000):
                now_ns = round(k * 10 * MS * drift)
                placed_ns = arrivals.frame_time_ns(k * 10 * MS, now_ns + k % 3 * MS)
                assert abs(placed_ns - now_ns) < abs(drift - 1.0) * 2.1 * S + 1
            assert arrivals.frame_time_ns(5, 300 * S) == 300 * S


class TestFeed:
    def test_rates_between_frames_and_around_them(self) -> None:
        feed = MotionFeed()
        for k in range(20):
            feed.push_rate(k * 10 * MS, np.array([float(k), 0, 0]))
        assert feed.until(25 * MS).is_empty
        said = feed.until(55 * MS)
        assert (said.start_ns, said.end_ns) == (25 * MS, 55 * MS)
        np.testing.assert_array_equal(said.rate_times_ns, np.arange(2, 7) * 10 * MS)
        np.testing.assert_array_equal(said.rates_rad_s[:, 0], [2, 3, 4, 5, 6])
        assert feed.until(10 * S).is_empty  # too far away from the one before
        assert feed.until(9 * S).is_empty  # set back

    def test_wheels_between_frames_and_a_little_ahead(self) -> None:
        step = exp_se3([0, 0.1, 0, 0, 0, -0.4])
        poses = [Rigid3.identity()]
        for _ in range(5):
            poses.append(poses[-1] @ step.inverse())
        odometry = WheelOdometry(drift=0.1)
        feed = MotionFeed(odometer=odometry)
        for k in range(5):
            feed.push_pose(k * 100 * MS, poses[k])
        assert feed.until(100 * MS).odometry is None
        way = feed.until(350 * MS).odometry
        assert way is not None
        half = exp_se3(2.5 * log_se3(step))
        np.testing.assert_allclose(way.newer_from_older.t, half.t, atol=1e-9)
        np.testing.assert_allclose(
            way.covariance[3, 3],
            0.01**2 * 0.25 + 0.1**2 * np.linalg.norm(half.t),
        )
        # Nothing came since 400: it goes on, and what came instead is told later.
        ahead = feed.until(500 * MS).odometry
        assert ahead is not None
        np.testing.assert_allclose(
            ahead.newer_from_older.t, exp_se3(1.5 * log_se3(step)).t, atol=1e-9
        )
        feed.push_pose(500 * MS, poses[4])
        feed.push_pose(600 * MS, poses[4])
        back = feed.until(600 * MS).odometry
        assert back is not None
        np.testing.assert_allclose(back.newer_from_older.t, step.inverse().t, atol=1e-9)
        assert feed.until(800 * MS).odometry is None  # silent
        feed.push_pose(900 * MS, poses[4])
        feed.push_pose(1000 * MS, poses[4])
        assert feed.until(950 * MS).odometry is None
        feed.push_pose(1100 * MS, exp_se3([0, 0, 0, 50.0, 0, 0]))
        assert feed.until(1100 * MS).odometry is None  # began anew

    def test_files_begin_with_the_first_frame(self, tmp_path: Path) -> None:
        imu, odometry = tmp_path / "imu.csv", tmp_path / "odometry.txt"
        start = 1403636579758555392
        imu.write_text(
            "#timestamp [ns],w_RS_S_x [rad s^-1],...\n"
            + "".join(f"{start + k * 10 * MS},0,{k},0,0,0,9.8\n" for k in range(50)),
            encoding="ascii",
        )
        odometry.write_text(
            "".join(f"{70 + 0.05 * k:.3f} {0.1 * k} 0 0 0 0 0 1\n" for k in range(50)),
            encoding="ascii",
        )
        config = RunConfig(
            imu=str(imu),
            imu_extrinsics="0,0,0,0,0,0.70710678,0.70710678",
            imu_latency_ms=20.0,
            wheel_odometry=str(odometry),
            wheel_odometry_extrinsics="0,0,0,0.5,-0.5,0.5,0.5",
        )
        feed = open_motion(config, ManualClock())
        assert feed is not None
        feed.until(500 * S)
        said = feed.until(500 * S + 100 * MS)
        # The file began 20 ms before the first frame; y of the sensor is -x here.
        np.testing.assert_array_equal(
            said.rate_times_ns - 500 * S, np.arange(11) * 10 * MS
        )
        np.testing.assert_allclose(
            said.rates_rad_s, [[-k - 2.0, 0, 0] for k in range(11)], atol=1e-6
        )
        # The vehicle drives ahead, which is z of the camera.
        assert said.odometry is not None
        np.testing.assert_allclose(
            said.odometry.newer_from_older.t, [0, 0, -0.2], atol=1e-9
        )
        feed.close()

    def test_a_live_sensor_in_bursts(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            config = RunConfig(imu=f"tcp://127.0.0.1:{port}", imu_extrinsics=EXTRINSICS)
            feed = open_motion(config, ManualClock(start_ns=50 * S))
            assert feed is not None
            connection, _ = listening.accept()
            with connection:
                lines = [b"%d,0,0,0.5,0,0,0\n" % (k * 10 * MS) for k in range(11)]
                connection.sendall(b"".join(lines)[:-5])
                connection.sendall(b"".join(lines)[-5:])
                feed.until(50 * S - 60 * MS)
                until = time.monotonic() + 10.0
                said = feed.until(50 * S - 30 * MS)
                while said.is_empty:
                    assert time.monotonic() < until, "nothing came"
                    time.sleep(0.01)
                    feed.until(50 * S - 60 * MS)
                    said = feed.until(50 * S - 30 * MS)
            feed.close()
        steps = np.diff(said.rate_times_ns)
        np.testing.assert_array_equal(steps, 10 * MS)
        assert said.rate_times_ns[-1] >= 50 * S - 30 * MS

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "",
                r"no line in it says anything \(0 of 0 are damaged\)",
            ),
            (
                "1,2\n3,4\n",
                r"\(2 of 2 are damaged, the first one has 2 numbers, expected 7\)",
            ),
        ],
    )
    def test_a_file_that_says_nothing(
        self, tmp_path: Path, text: str, message: str
    ) -> None:
        path = tmp_path / "imu.csv"
        path.write_text(text, encoding="ascii")
        config = RunConfig(imu=str(path), imu_extrinsics=EXTRINSICS)
        with pytest.raises(ConfigError, match=message):
            open_motion(config, ManualClock())

    def test_what_is_no_source(self) -> None:
        config = RunConfig(imu="/dev/no-such-line", imu_extrinsics=EXTRINSICS)
        with pytest.raises(ConfigError, match="--imu /dev/no-such-line: cannot be op"):
            open_motion(config, ManualClock())
        assert open_motion(RunConfig(), ManualClock()) is None
