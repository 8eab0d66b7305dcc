"""Where the motion between frames comes from: inertial sensors and wheels.

A recorded file begins with the first frame. Live lines bear a clock of their own, and
come in bursts: what arrived with the least delay tells how that clock lies to the clock
of the frames (`ArrivalClock`). From both, the latency that the user knows of is taken
off, and Kalibr's shift of the clocks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from edgeloc.clock import Clock
from edgeloc.config import RunConfig
from edgeloc.errors import ConfigError
from edgeloc.runtime.extrinsics import load_extrinsics
from edgeloc.runtime.line_source import LineReader, is_recorded, recorded_lines
from edgeloc.runtime.motion_feed import MotionFeed, WheelOdometry
from edgeloc.runtime.motion_lines import (
    InertialSample,
    LineCounter,
    parse_imu_line,
    parse_trajectory_line,
)
from edgeloc.runtime.priors import Down, PriorFeed
from edgeloc.runtime.tilt_filter import TiltFilter
from edgeloc.types import Rigid3

_log = logging.getLogger(__name__)

_Value = TypeVar("_Value")


class ArrivalClock:
    """From the times of a sensor to the clock on which its lines arrive.

    Lines are late by different amounts and never early: the least that a line was late
    in the last seconds is taken for none. So clocks may drift apart, too, as that of a
    microcontroller does by up to half a percent.

    Parameters
    ----------
    window_ns : int
        The least is that of this window and the one before.
    restart_ns : int
        A sensor whose clock jumped further began anew.
    """

    def __init__(
        self, *, window_ns: int = 1_000_000_000, restart_ns: int = 1_000_000_000
    ) -> None:
        self._window_ns = window_ns
        self._restart_ns = restart_ns
        self._begin_ns: int | None = None
        self._before_ns = self._least_ns = 0

    def frame_time_ns(self, stamp_ns: int, arrival_ns: int) -> int:
        """Return when a line was measured, on the clock of its arrival."""
        offset_ns = arrival_ns - stamp_ns
        jumped = abs(offset_ns - self._least_ns) > self._restart_ns
        if self._begin_ns is None or jumped:
            self._begin_ns = arrival_ns
            self._before_ns = self._least_ns = offset_ns
        elif arrival_ns - self._begin_ns > self._window_ns:
            self._begin_ns = arrival_ns
            self._before_ns, self._least_ns = self._least_ns, offset_ns
        self._least_ns = min(self._least_ns, offset_ns)
        return stamp_ns + min(self._before_ns, self._least_ns)


def open_motion(
    config: RunConfig, clock: Clock, *, tilt: PriorFeed | None = None
) -> MotionFeed | None:
    """Open the sensors of motion that the options of a run name; None for none.

    Parameters
    ----------
    config : RunConfig
        Options.
    clock : Clock
        Of the frames.
    tilt : PriorFeed, optional
        Told by the inertial sensor which way is down.

    Raises
    ------
    ConfigError
        When a source or a file of extrinsics is wrong or not there.
    """
    if config.imu is None and config.wheel_odometry is None:
        return None
    imu, wheels = config.imu, config.wheel_odometry
    feed = MotionFeed(
        rates_recorded=imu is not None and is_recorded(imu),
        odometer=WheelOdometry(
            recorded=wheels is not None and is_recorded(wheels),
            drift=config.wheel_odometry_drift_percent / 100.0,
        ),
    )
    try:
        if imu is not None:
            _open_imu(imu, feed, config, clock=clock, tilt=tilt)
        if wheels is not None:
            _open_wheels(wheels, feed, config, clock)
    except ConfigError:
        feed.close()
        raise
    return feed


def _open_imu(
    source: str,
    feed: MotionFeed,
    config: RunConfig,
    *,
    clock: Clock,
    tilt: PriorFeed | None,
) -> None:
    extrinsics = load_extrinsics(
        str(config.imu_extrinsics), option="--imu-extrinsics", sensor="imu"
    )
    R_cam_from_imu = extrinsics.cam_from_sensor.R

    levels = TiltFilter()

    def push(timestamp_ns: int, sample: InertialSample) -> None:
        rate_rad_s = R_cam_from_imu @ sample.rate_rad_s
        feed.push_rate(timestamp_ns, rate_rad_s)
        if tilt is not None:
            down = levels.take(
                timestamp_ns, rate_rad_s, R_cam_from_imu @ sample.force_m_s2
            )
            if down is not None:
                tilt.push(timestamp_ns, Down(down_in_cam=down))

    _open(
        source,
        "--imu",
        counter=LineCounter(parse_imu_line),
        push=push,
        feed=feed,
        clock=clock,
        late_ns=round(config.imu_latency_ms * 1e6) + extrinsics.shift_ns,
    )


def _open_wheels(
    source: str, feed: MotionFeed, config: RunConfig, clock: Clock
) -> None:
    extrinsics = load_extrinsics(
        str(config.wheel_odometry_extrinsics),
        option="--wheel-odometry-extrinsics",
        sensor="base",
    )
    base_from_cam = extrinsics.cam_from_sensor.inverse()

    def push(timestamp_ns: int, odom_from_base: Rigid3) -> None:
        feed.push_pose(timestamp_ns, odom_from_base @ base_from_cam)

    _open(
        source,
        "--wheel-odometry",
        counter=LineCounter(parse_trajectory_line),
        push=push,
        feed=feed,
        clock=clock,
        late_ns=round(config.wheel_odometry_latency_ms * 1e6) + extrinsics.shift_ns,
    )


def _open(
    source: str,
    option: str,
    *,
    counter: LineCounter[tuple[int, _Value]],
    push: Callable[[int, _Value], None],
    feed: MotionFeed,
    clock: Clock,
    late_ns: int,
) -> None:
    """Have a source push what it measures from now on; a file, all of it at once."""
    if is_recorded(source):
        first_ns: int | None = None
        for line in recorded_lines(source, option=option):
            said = counter.feed(line)
            if said is not None:
                first_ns = said[0] if first_ns is None else first_ns
                push(said[0] - first_ns - late_ns, said[1])
        if first_ns is None:
            raise ConfigError(
                f"{option} {source}: no line in it says anything ({counter})"
            )
        _log.info("%s %s: %s", option, source, counter)
        return
    arrivals = ArrivalClock()

    def take(line: bytes, now_ns: int) -> None:
        said = counter.feed(line)
        if said is not None:
            push(arrivals.frame_time_ns(said[0], now_ns) - late_ns, said[1])

    reader = LineReader(source, option=option, take=take, clock=clock)

    def close() -> None:
        reader.close()
        _log.info("%s: %s", option, counter)

    feed.on_close.append(close)
