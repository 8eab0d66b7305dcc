"""A smooth frame: where the camera is relative to where it was, without any jump."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeloc.types import Rigid3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Odometry:
    """A frame in which the camera never jumps, and where it lies in the map.

    ``cam_from_map = cam_from_odom @ map_from_odom^-1``: motion is integrated in the
    first, fixes move only the second.

    Parameters
    ----------
    timestamp_ns : int
        Of the frame.
    cam_from_odom : Rigid3
        Integrated motion since the first pose.
    map_from_odom : Rigid3
        Where the odometry frame lies in the map according to the newest pose.
    """

    timestamp_ns: int
    cam_from_odom: Rigid3
    map_from_odom: Rigid3


class Odometer:
    """Integrates relative motion into a frame that fixes do not disturb."""

    def __init__(self) -> None:
        self._odometry: Odometry | None = None

    @property
    def odometry(self) -> Odometry | None:
        """The newest; None before the first pose."""
        return self._odometry

    def advance(
        self, timestamp_ns: int, newer_from_older: Rigid3, cam_from_world: Rigid3
    ) -> Odometry:
        """Return the odometry of the next frame.

        Parameters
        ----------
        timestamp_ns : int
            Of the frame.
        newer_from_older : Rigid3
            Motion since the frame before, from one and the same evidence.
        cam_from_world : Rigid3
            Best pose of the frame; ignored but for `map_from_odom`.
        """
        if self._odometry is None:
            cam_from_odom = Rigid3.identity()
        else:
            moved = newer_from_older @ self._odometry.cam_from_odom
            # A product of many rotations drifts off them.
            u, _, vt = np.linalg.svd(moved.R)
            cam_from_odom = Rigid3(R=u @ vt, t=moved.t)
        self._odometry = Odometry(
            timestamp_ns=timestamp_ns,
            cam_from_odom=cam_from_odom,
            map_from_odom=cam_from_world.inverse() @ cam_from_odom,
        )
        return self._odometry
