"""Smooth camera paths: a walk through a room, a drive along a street."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgeloc.types import FloatArray, Rigid3

Sines = tuple[tuple[float, float, float], ...]
"""(amplitude, frequency in rad/s, phase in rad) each."""


class CameraPath(Protocol):
    """Where a camera is at any time."""

    def pose_at(self, time_s: float) -> Rigid3:
        """Return cam_from_world."""


def look(
    position: npt.ArrayLike,
    *,
    yaw_rad: float,
    pitch_rad: float = 0.0,
    roll_rad: float = 0.0,
) -> Rigid3:
    """Return cam_from_world of a camera by the direction it looks in.

    Parameters
    ----------
    position : array_like of shape (3,)
        Camera centre, world, m.
    yaw_rad : float
        From the world's x axis towards y.
    pitch_rad : float
        Upwards positive, below pi/2 either way.
    roll_rad : float
        Clockwise as the camera sees it.

    Returns
    -------
    Rigid3
    """
    forward = np.array(
        [
            math.cos(yaw_rad) * math.cos(pitch_rad),
            math.sin(yaw_rad) * math.cos(pitch_rad),
            math.sin(pitch_rad),
        ]
    )
    right = np.array([math.sin(yaw_rad), -math.cos(yaw_rad), 0.0])
    level = np.stack([right, np.cross(forward, right), forward])
    c, s = math.cos(roll_rad), math.sin(roll_rad)
    R = np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]]) @ level
    return Rigid3(R=R, t=-R @ np.asarray(position, dtype=np.float64))


def _wave(sines: Sines, time_s: float) -> float:
    return sum(a * math.sin(w * time_s + phase) for a, w, phase in sines)


def _sines(
    rng: np.random.Generator, amplitude: float, periods_s: Sequence[float]
) -> Sines:
    """Return sines whose sum stays within `amplitude`."""
    shares = rng.uniform(0.5, 1.0, len(periods_s))
    shares *= amplitude / shares.sum()
    return tuple(
        (float(a), 2 * math.pi / float(p * rng.uniform(0.85, 1.15)), float(phase))
        for a, p, phase in zip(
            shares, periods_s, rng.uniform(0, 2 * math.pi, len(periods_s)), strict=True
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WavePath:
    """A steady motion plus sums of sines in each coordinate.

    Parameters
    ----------
    start, velocity_m_s : (float, float, float)
        Straight part of the motion.
    yaw_rad, yaw_rate_rad_s : float
        Steady part of the turn.
    pitch_rad : float
        Mean pitch.
    waves : tuple of six Sines
        Added to x, y, z (m), yaw, pitch and roll (rad).
    """

    start: tuple[float, float, float]
    velocity_m_s: tuple[float, float, float] = (0.0, 0.0, 0.0)
    yaw_rad: float = 0.0
    yaw_rate_rad_s: float = 0.0
    pitch_rad: float = 0.0
    waves: tuple[Sines, Sines, Sines, Sines, Sines, Sines]

    def position_at(self, time_s: float) -> FloatArray:
        """Return the camera centre, (3,), world, m."""
        return np.array(
            [
                self.start[i] + self.velocity_m_s[i] * time_s + _wave(wave, time_s)
                for i, wave in enumerate(self.waves[:3])
            ]
        )

    def pose_at(self, time_s: float) -> Rigid3:
        """Return cam_from_world."""
        yaw, pitch, roll = (_wave(wave, time_s) for wave in self.waves[3:])
        return look(
            self.position_at(time_s),
            yaw_rad=self.yaw_rad + self.yaw_rate_rad_s * time_s + yaw,
            pitch_rad=self.pitch_rad + pitch,
            roll_rad=roll,
        )


def room_walk(
    seed: int,
    extent_m: tuple[float, float, float],
    *,
    duration_s: float,
    turns: float = 1.0,
) -> WavePath:
    """Return a walk about the middle of a room, looking around.

    It stays within half of the half size of the room from its centre.

    Parameters
    ----------
    seed : int
        Equal seeds give equal paths.
    extent_m : (float, float, float)
        Of the room.
    duration_s : float
        In which the view turns `turns` times round.
    turns : float
        May be negative.
    """
    rng = np.random.default_rng([seed, 3])
    length, width, height = extent_m
    slow = (duration_s, 0.45 * duration_s)
    return WavePath(
        start=(0.0, 0.0, min(1.5, 0.58 * height)),
        yaw_rad=float(rng.uniform(-math.pi, math.pi)),
        yaw_rate_rad_s=2 * math.pi * turns / duration_s,
        pitch_rad=-0.12,
        waves=(
            _sines(rng, 0.25 * length, slow),
            _sines(rng, 0.25 * width, slow),
            _sines(rng, 0.12, (0.3 * duration_s, 3.0)),
            _sines(rng, 0.25, (0.25 * duration_s, 4.0)),
            _sines(rng, 0.16, (0.3 * duration_s, 3.0)),
            _sines(rng, 0.05, (0.4 * duration_s, 2.5)),
        ),
    )


def street_drive(
    seed: int,
    extent_m: tuple[float, float, float],
    *,
    duration_s: float,
    lateral_m: float = 0.0,
    backwards: bool = False,
) -> WavePath:
    """Return a drive from one end of a street to 8 m before the other.

    Parameters
    ----------
    seed : int
        Equal seeds give equal paths.
    extent_m : (float, float, float)
        Of the street.
    duration_s : float
        How long it takes.
    lateral_m : float
        Offset towards +y (left, as it drives along +x).
    backwards : bool
        Whether it comes from the far end.
    """
    rng = np.random.default_rng([seed, 4])
    distance = extent_m[0] - 8.0
    speed = distance / duration_s * (-1.0 if backwards else 1.0)
    return WavePath(
        start=(extent_m[0] if backwards else 0.0, lateral_m, 1.55),
        velocity_m_s=(speed, 0.0, 0.0),
        yaw_rad=math.pi if backwards else 0.0,
        waves=(
            (),
            _sines(rng, 0.2, (0.4 * duration_s, 4.0)),
            _sines(rng, 0.03, (1.1, 0.6)),
            _sines(rng, 0.10, (0.3 * duration_s, 3.0)),
            _sines(rng, 0.025, (2.0, 0.9)),
            _sines(rng, 0.015, (2.4, 1.3)),
        ),
    )


def rolling_poses(
    path: CameraPath, time_s: float, *, readout_s: float, num_rows: int
) -> list[Rigid3]:
    """Return the pose of each row of a rolling shutter, the middle row at `time_s`."""
    rows = (np.arange(num_rows) + 0.5) / num_rows - 0.5
    return [path.pose_at(time_s + readout_s * float(row)) for row in rows]
