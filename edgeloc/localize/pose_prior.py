"""What other sensors say about a frame's pose, before its picture is looked at.

A prior narrows where to look and breaks ties; it is never taken for evidence of what
the picture shows. Frames: the world is the site's; where a heading is used, it is east,
north, up, as a geo-referenced site is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgeloc.geometry.upright import Vertical
from edgeloc.tiles.layout import KeyframeTable
from edgeloc.types import FloatArray, IntArray, Rigid3

CHI2_Q999 = (0.0, 10.828, 13.816, 16.266, 18.467, 20.515, 22.458)
"""Of a chi-square by degrees of freedom: 0.999 lie below."""

_MIN_COSINE_LEVEL = 0.2
"""A camera that looks up or down more steeply has no heading."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PositionPrior:
    """Where the camera is.

    Parameters
    ----------
    center : ndarray of shape (3,), float64
        Camera centre in the world, m.
    covariance : ndarray of shape (3, 3), float64
        Its covariance, m^2.
    """

    center: FloatArray
    covariance: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadingPrior:
    """Where the camera looks.

    Parameters
    ----------
    heading_rad : float
        Of the optical axis on the ground, clockwise from north (+y of the world).
    sigma_rad : float
        Its standard deviation, > 0.
    """

    heading_rad: float
    sigma_rad: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PosePrior:
    """All that is known about one frame; each part may be missing.

    Parameters
    ----------
    position : PositionPrior or None
        From a GNSS receiver.
    heading : HeadingPrior or None
        From a compass or the course over ground.
    vertical : Vertical or None
        From an inertial sensor, or from how the camera is mounted.
    """

    position: PositionPrior | None = None
    heading: HeadingPrior | None = None
    vertical: Vertical | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known."""
        return self.position is None and self.heading is None and self.vertical is None


def heading_of(R_cam_from_world: FloatArray) -> FloatArray:
    """Return headings of optical axes, clockwise from +y, rad; nan for steep ones.

    Parameters
    ----------
    R_cam_from_world : ndarray of shape (..., 3, 3), float64
        Rotations.
    """
    east, north = R_cam_from_world[..., 2, 0], R_cam_from_world[..., 2, 1]
    level = np.hypot(east, north) >= _MIN_COSINE_LEVEL
    return np.where(level, np.arctan2(east, north), np.nan)


def angle_between(a: FloatArray | float, b: FloatArray | float) -> FloatArray:
    """Return ``a - b`` wrapped to [-pi, pi)."""
    return np.asarray((np.asarray(a) - b + math.pi) % (2.0 * math.pi) - math.pi)


def plausible_keyframes(
    prior: PosePrior,
    keyframes: KeyframeTable,
    *,
    reach: float,
    max_turn_rad: float = math.radians(75.0),
) -> IntArray | None:
    """Return the rows of keyframes that a prior allows; None when it allows all.

    Parameters
    ----------
    prior : PosePrior
        Position, and heading where there is one.
    keyframes : KeyframeTable
        All keyframes of the site.
    reach : float
        How far from the camera a keyframe may be that helps, m.
    max_turn_rad : float
        How far a keyframe may look elsewhere than the camera and still help; what the
        heading is uncertain by comes on top.

    Returns
    -------
    ndarray of shape (n,), int64, ascending, or None
    """
    if prior.position is None:
        return None
    off = keyframes.centers - prior.position.center
    covariance = prior.position.covariance + np.eye(3) * reach**2 / CHI2_Q999[3]
    # Few are near: one axis after the other, cheapest first, then the ellipsoid.
    limits = np.sqrt(CHI2_Q999[3] * np.diag(covariance))
    idx = np.flatnonzero(np.abs(off[:, 0]) <= limits[0])
    idx = idx[np.abs(off[idx, 1]) <= limits[1]]
    near = off[idx]
    distance2 = np.einsum("ni,ni->n", near @ np.linalg.inv(covariance), near)
    idx = idx[distance2 <= CHI2_Q999[3]]
    if prior.heading is not None and len(idx):
        turn = angle_between(
            heading_of(keyframes.rotations_of(idx)), prior.heading.heading_rad
        )
        slack = math.sqrt(CHI2_Q999[1]) * prior.heading.sigma_rad
        idx = idx[~(np.abs(turn) > max_turn_rad + slack)]  # steep ones stay
    return np.asarray(idx, np.int64)


def contradictions(
    prior: PosePrior, cam_from_world: Rigid3, covariance: FloatArray
) -> tuple[str, ...]:
    """Return which parts of a prior a pose contradicts: chi-square tests at 0.999.

    Parameters
    ----------
    prior : PosePrior
        What was known.
    cam_from_world : Rigid3
        Pose.
    covariance : ndarray of shape (6, 6), float64
        Of the pose, in the convention of `edgeloc.types`.

    Returns
    -------
    tuple of {"position", "heading", "vertical"}
    """
    R = cam_from_world.R
    found = []
    if prior.position is not None:
        off = cam_from_world.origin_in_a - prior.position.center
        # To first order the centre moves by -R^T v under Exp(omega, v).
        allowed = prior.position.covariance + R.T @ covariance[3:, 3:] @ R
        if float(off @ np.linalg.solve(allowed, off)) > CHI2_Q999[3]:
            found.append("position")
    turned = float(np.linalg.eigvalsh(covariance[:3, :3])[-1])
    if prior.heading is not None:
        off_rad = float(angle_between(heading_of(R), prior.heading.heading_rad))
        if off_rad**2 > CHI2_Q999[1] * (prior.heading.sigma_rad**2 + turned):
            found.append("heading")
    if prior.vertical is not None:
        tilt_rad = prior.vertical.tilt_rad(cam_from_world)
        if tilt_rad**2 > CHI2_Q999[2] * (prior.vertical.sigma_rad**2 + turned):
            found.append("vertical")
    return tuple(found)
