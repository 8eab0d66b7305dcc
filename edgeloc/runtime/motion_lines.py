"""Lines in which inertial sensors and odometry tell what they measure.

Inertial sensors, as EuRoC's ``imu0/data.csv`` and Kalibr have them: ``t_ns, wx, wy, wz,
ax, ay, az`` in rad/s and m/s^2.

Odometry, as TUM has trajectories and as ``evo_traj --save_as_tum`` makes them of ROS
nav_msgs/Odometry: ``t x y z qx qy qz qw`` in s and m, the vehicle in the frame in which
its odometry began.

Commas and blanks both part numbers; empty lines and those with ``#`` are skipped. What
is damaged is counted, and no damage raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from edgeloc.geometry.se3 import rigid_from_quat
from edgeloc.runtime.line_source import MAX_LINE_BYTES
from edgeloc.types import FloatArray, Rigid3

_MAX_RATE_RAD_S = 100.0
"""More than any gyroscope of a camera measures, 4000 deg/s: degrees, or damage."""
_MAX_FORCE_M_S2 = 1e4
_MAX_WAY_M = 1e7
_MAX_TIME_NS = 2**62
_NS_PER_S = 1e9

_Value = TypeVar("_Value")


class LineError(ValueError):
    """A line that is damaged."""


def _numbers(line: bytes, count: int) -> list[str]:
    if len(line) > MAX_LINE_BYTES:
        raise LineError("is too long")
    try:
        words = line.decode("ascii").replace(",", " ").split()
    except UnicodeDecodeError:
        raise LineError("is not text") from None
    if len(words) != count:
        raise LineError(f"has {len(words)} numbers, expected {count}")
    return words


def _floats(words: list[str], limit: float) -> FloatArray:
    try:
        values = np.array([float(word) for word in words])
    except ValueError:
        raise LineError("has something that is not a number") from None
    if not np.all(np.abs(values) <= limit):  # also nan
        raise LineError(f"has a number beyond {limit:g}")
    return values


class InertialSample(NamedTuple):
    """What an inertial sensor measures, in its own axes.

    Parameters
    ----------
    rate_rad_s : ndarray of shape (3,), float64
        Angular rate.
    force_m_s2 : ndarray of shape (3,), float64
        Acceleration less gravity: upwards when at rest.
    """

    rate_rad_s: FloatArray
    force_m_s2: FloatArray


def parse_imu_line(line: bytes) -> tuple[int, InertialSample]:
    """Return the time, ns, of a line and what it says.

    Parameters
    ----------
    line : bytes
        ``t_ns, wx, wy, wz, ax, ay, az``.

    Raises
    ------
    LineError
        When it is none.
    """
    stamp, *words = _numbers(line, 7)
    if not stamp.isdecimal() or len(stamp) > 19 or int(stamp) > _MAX_TIME_NS:
        raise LineError(f"{stamp[:20]!r} is not a time in ns")
    return int(stamp), InertialSample(
        rate_rad_s=_floats(words[:3], _MAX_RATE_RAD_S),
        force_m_s2=_floats(words[3:], _MAX_FORCE_M_S2),
    )


def parse_trajectory_line(line: bytes) -> tuple[int, Rigid3]:
    """Return the time, ns, and the pose of a line: ``odom_from_base``.

    Parameters
    ----------
    line : bytes
        ``t x y z qx qy qz qw``.

    Raises
    ------
    LineError
        When it is none.
    """
    words = _numbers(line, 8)
    (time_s,) = _floats(words[:1], _MAX_TIME_NS / _NS_PER_S)
    return round(time_s * _NS_PER_S), parse_transform(words[1:])


def _unit_wxyz(words: list[str]) -> FloatArray:
    x, y, z, w = _floats(words, 1.01)
    if not abs(math.hypot(x, y, z, w) - 1.0) < 0.01:
        raise LineError("has a quaternion that is not of length 1")
    return np.array([w, x, y, z])


def parse_transform(words: list[str]) -> Rigid3:
    """Return the transform of seven numbers: ``x y z qx qy qz qw``.

    Raises
    ------
    LineError
        When they are something else.
    """
    if len(words) != 7:
        raise LineError(f"has {len(words)} numbers, expected 7")
    t = _floats(words[:3], _MAX_WAY_M)
    return rigid_from_quat(_unit_wxyz(words[3:]), t)


class LineCounter(Generic[_Value]):
    """Parses lines, and counts those that are damaged.

    Parameters
    ----------
    parse : callable
        From a line to what it says; raises `LineError`.

    Attributes
    ----------
    num_lines, num_damaged : int
        Counted so far, without comments.
    problem : str
        What is wrong with the first damaged one.
    """

    def __init__(self, parse: Callable[[bytes], _Value]) -> None:
        self._parse = parse
        self.num_lines = self.num_damaged = 0
        self.problem = ""

    def __str__(self) -> str:
        """Return the counts, for people."""
        first = f", the first one {self.problem}" if self.problem else ""
        return f"{self.num_damaged} of {self.num_lines} are damaged{first}"

    def feed(self, line: bytes) -> _Value | None:
        """Return what a line says; None for a damaged or empty one and a comment."""
        line = line.strip()
        if not line or line.startswith(b"#"):
            return None
        self.num_lines += 1
        try:
            return self._parse(line)
        except LineError as exc:
            self.num_damaged += 1
            self.problem = self.problem or str(exc)
            return None
