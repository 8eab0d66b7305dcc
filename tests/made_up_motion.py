"""What sensors of motion would say of cameras whose poses are known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation, RotationSpline

from edgeloc.geometry.se3 import exp_se3, log_se3, log_so3
from edgeloc.types import FloatArray, IntArray, Rigid3

BIAS_RAD_S = np.array([0.02, -0.015, 0.01])


def smooth_rates(
    times_ns: IntArray, poses: Sequence[Rigid3], *, every_ns: int = 5_000_000
) -> tuple[IntArray, FloatArray]:
    """Times and angular rates, rad/s, in camera axes, of a turn through poses."""
    spline = RotationSpline(
        times_ns / 1e9, Rotation.from_matrix([pose.R.T for pose in poses])
    )
    at_ns = np.arange(times_ns[0], times_ns[-1], every_ns)
    return at_ns, spline(at_ns / 1e9, 1)


def steady_rates(
    times_ns: Sequence[int], poses: Sequence[Rigid3], *, every_ns: int = 10_000_000
) -> list[tuple[int, FloatArray]]:
    """Times and rates of a camera that turns steadily from each pose to the next."""
    said = []
    for start_ns, end_ns, old, new in zip(
        times_ns[:-1], times_ns[1:], poses[:-1], poses[1:], strict=True
    ):
        rate = -log_so3(new.R @ old.R.T) * 1e9 / (end_ns - start_ns)
        said += [(at_ns, rate) for at_ns in range(start_ns + 1, end_ns, every_ns)]
        said.append((end_ns, rate))
    return said


def wheels(
    poses: Sequence[Rigid3], rng: np.random.Generator, *, scale: float = 1.02
) -> list[Rigid3]:
    """Poses ``odom_from_cam`` by wheels of a wrong diameter that slip a little."""
    odom_from_cam = [Rigid3.identity()]
    sigmas = np.repeat([0.0005, 0.001], 3)
    for old, new in itertools.pairwise(poses):
        step = scale * log_se3(new @ old.inverse()) + rng.normal(size=6) * sigmas
        odom_from_cam.append(odom_from_cam[-1] @ exp_se3(step).inverse())
    return odom_from_cam
