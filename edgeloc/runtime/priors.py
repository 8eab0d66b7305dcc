"""What position, heading and tilt sensors say about frames, and what is believed.

Measurements come from a reading thread (`edgeloc.runtime.prior_source`) at any time and
are asked for by the time of a frame. They are kept for a while, so that the two of them
around a frame can be used; the newest wins where it is older than the frame.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from edgeloc.errors import MapError
from edgeloc.geometry.geodesy import GeoReference, enu_from_wgs84
from edgeloc.geometry.upright import Vertical
from edgeloc.localize.candidate import Candidate
from edgeloc.localize.pose_prior import (
    HeadingPrior,
    PosePrior,
    PositionPrior,
    contradictions,
)
from edgeloc.runtime.nmea import Attitude, Fix, Heading, Measurement
from edgeloc.runtime.series import Series
from edgeloc.tiles.manifest import SiteManifest
from edgeloc.types import FloatArray

_NS_PER_S = 1_000_000_000
_KEPT_NS = 30 * _NS_PER_S
_MAX_GAP_NS = 3 * _NS_PER_S
"""Older than that, a measurement says nothing about a frame."""
_MAX_TILT_GAP_NS = 100_000_000
"""The same of which way is down for a camera that is carried: it turns."""
_UNKNOWN_SPEED_M_S = 10.0
_SPEED_SLACK_M_S = 1.0
_TURN_RATE_RAD_S = math.radians(30.0)
_NUM_AGREEING = 3
"""Fixes with which a rejected part has to agree before it is believed again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorOptions:
    """What of the sensors is used, and how sure it is.

    Parameters
    ----------
    position : bool
        Whether positions are used.
    heading : bool
        Whether headings and courses are.
    heading_sigma_rad : float
        Standard deviation of a heading, where the sensor says none.
    heading_offset_rad : float
        Added to headings: how the camera is mounted, and the declination of a magnetic
        compass.
    down_in_cam : tuple of 3 float or None
        Gravity in camera axes of a camera that keeps its tilt.
    attitude : bool
        Whether measured tilt is used: which way is down, or roll and pitch, for a
        camera that looks ahead.
    tilt_sigma_rad : float
        Standard deviation of the vertical.
    """

    position: bool = True
    heading: bool = False
    heading_sigma_rad: float = math.radians(10.0)
    heading_offset_rad: float = 0.0
    down_in_cam: tuple[float, float, float] | None = None
    attitude: bool = False
    tilt_sigma_rad: float = math.radians(2.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Down:
    """Which way is down.

    Parameters
    ----------
    down_in_cam : ndarray of shape (3,), float64
        Of unit length, in camera axes.
    """

    down_in_cam: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Place:
    center: FloatArray
    variances: FloatArray
    speed_m_s: float


class PriorFeed:
    """Measurements in, priors of frames out; both from any thread, neither ever waits.

    Parameters
    ----------
    manifest : SiteManifest
        Of the site: where it lies on Earth, and which way is down.
    options : PriorOptions
        What is used.
    recorded : bool
        Whether all measurements are there from the start, on a clock of their own that
        begins with the first frame.
    tilt_recorded : bool
        The same of which way is down, which other sensors say.

    Raises
    ------
    MapError
        When the site does not know what a prior would have to be compared with.
    """

    def __init__(
        self,
        manifest: SiteManifest,
        options: PriorOptions,
        *,
        recorded: bool = False,
        tilt_recorded: bool = False,
    ) -> None:
        self._options = options
        self._geo = _geo_reference(manifest, options)
        self._down_in_world = _down_in_world(manifest, options)
        keep_ns = None if recorded else _KEPT_NS
        self._places: Series[_Place] = Series(keep_ns=keep_ns)
        self._headings: Series[Heading] = Series(keep_ns=keep_ns)
        self._courses: Series[Heading] = Series(keep_ns=keep_ns)
        self._attitudes: Series[FloatArray] = Series(keep_ns=keep_ns)
        self._downs: Series[FloatArray] = Series(
            keep_ns=None if tilt_recorded else _KEPT_NS
        )
        self._recorded = recorded
        self._tilt_recorded = tilt_recorded
        self._begin_ns: int | None = None
        self._lock = threading.Lock()
        self.on_close: Callable[[], None] | None = None

    def push(self, timestamp_ns: int, measurement: Measurement | Down) -> None:
        """Take a measurement.

        Parameters
        ----------
        timestamp_ns : int
            On the clock of the frames; of a recording, since its beginning.
        measurement : Fix, Heading, Attitude or Down
            What was measured.
        """
        if isinstance(measurement, Fix):
            if self._geo is not None and self._options.position:
                place = _place(measurement, self._geo)
                with self._lock:
                    self._places.add(timestamp_ns, place)
        elif isinstance(measurement, Heading):
            series = self._courses if measurement.course else self._headings
            with self._lock:
                series.add(timestamp_ns, measurement)
        elif isinstance(measurement, Attitude):
            down_in_cam = down_in_level_camera(measurement)
            with self._lock:
                self._attitudes.add(timestamp_ns, down_in_cam)
        else:
            with self._lock:
                self._downs.add(timestamp_ns, measurement.down_in_cam)

    def at(self, timestamp_ns: int) -> PosePrior:
        """Return what is known about a frame.

        Parameters
        ----------
        timestamp_ns : int
            Of the frame.
        """
        if self._begin_ns is None:
            self._begin_ns = timestamp_ns
        tilt_ns = timestamp_ns - (self._begin_ns if self._tilt_recorded else 0)
        timestamp_ns -= self._begin_ns if self._recorded else 0
        with self._lock:
            downs = self._downs.around(tilt_ns, max_gap_ns=_MAX_TILT_GAP_NS)
            places = self._places.around(timestamp_ns, max_gap_ns=_MAX_GAP_NS)
            headings = self._headings.around(timestamp_ns, max_gap_ns=_MAX_GAP_NS)
            courses = self._courses.around(timestamp_ns, max_gap_ns=_MAX_GAP_NS)
            attitudes = self._attitudes.around(timestamp_ns, max_gap_ns=_MAX_GAP_NS)
        return PosePrior(
            position=_position(places, timestamp_ns),
            heading=self._heading(headings or courses, timestamp_ns),
            vertical=self._vertical(downs or attitudes),
        )

    def close(self) -> None:
        """Stop whatever feeds it."""
        if self.on_close is not None:
            self.on_close()

    def _heading(
        self, near: list[tuple[int, Heading]], timestamp_ns: int
    ) -> HeadingPrior | None:
        options = self._options
        if not options.heading or not near:
            return None
        time_ns, heading = near[0]
        sigma_rad = max(heading.sigma_rad or 0.0, options.heading_sigma_rad)
        age_s = abs(timestamp_ns - time_ns) / _NS_PER_S
        return HeadingPrior(
            heading_rad=(heading.heading_rad + options.heading_offset_rad)
            % (2.0 * math.pi),
            sigma_rad=math.hypot(sigma_rad, _TURN_RATE_RAD_S * age_s),
        )

    def _vertical(self, near: list[tuple[int, FloatArray]]) -> Vertical | None:
        if self._down_in_world is None:
            return None
        if self._options.attitude:
            if not near:
                return None
            down = near[0][1]
        else:
            down = np.array(self._options.down_in_cam)
        return Vertical(
            down_in_cam=down / np.linalg.norm(down),
            down_in_world=self._down_in_world,
            sigma_rad=self._options.tilt_sigma_rad,
        )


def down_in_level_camera(attitude: Attitude) -> FloatArray:
    """Return gravity in the axes of a camera that looks as its vehicle does, (3,)."""
    roll, pitch = attitude.roll_rad, attitude.pitch_rad
    return np.array(
        [
            math.sin(roll) * math.cos(pitch),
            math.cos(roll) * math.cos(pitch),
            -math.sin(pitch),
        ]
    )


def _place(fix: Fix, geo: GeoReference) -> _Place:
    center = enu_from_wgs84(fix.latitude_deg, fix.longitude_deg, fix.altitude_m, geo)
    sigmas = [fix.east_sigma_m, fix.north_sigma_m, fix.altitude_sigma_m]
    speed = fix.speed_m_s
    return _Place(
        center=center[0],
        variances=np.square(sigmas),
        speed_m_s=_UNKNOWN_SPEED_M_S if speed is None else speed + _SPEED_SLACK_M_S,
    )


def _position(
    near: list[tuple[int, _Place]], timestamp_ns: int
) -> PositionPrior | None:
    """Return the place at a time: between two, or near one, which may have moved."""
    if not near:
        return None
    time_ns, place = near[0]
    center, variances = place.center, place.variances
    if len(near) == 2:
        other_ns, other = near[1]
        share = (timestamp_ns - time_ns) / max(abs(other_ns - time_ns), 1)
        center = center + abs(share) * (other.center - center)
        variances = np.maximum(variances, other.variances)
    else:
        moved = place.speed_m_s * (timestamp_ns - time_ns) / _NS_PER_S
        variances = variances + moved**2
    return PositionPrior(center=center, covariance=np.diag(variances))


def _geo_reference(
    manifest: SiteManifest, options: PriorOptions
) -> GeoReference | None:
    if not (options.position or options.heading):
        return None
    geo: Mapping[str, float] | None = manifest.geo_reference
    if geo is None:
        raise MapError(
            f"site {manifest.name}: does not know where on Earth it lies, which --gnss "
            "and --compass need; build it with `edgeloc-build map --geo-reference`"
        )
    return GeoReference(**geo)


def _down_in_world(manifest: SiteManifest, options: PriorOptions) -> FloatArray | None:
    if options.down_in_cam is None and not options.attitude:
        return None
    if manifest.gravity_in_world is None:
        raise MapError(
            f"site {manifest.name}: does not know which way is down, which --gravity "
            "needs; build it of a recording that says so, or with --geo-reference"
        )
    down = np.array(manifest.gravity_in_world)
    return np.asarray(down / np.linalg.norm(down))


@dataclass(slots=True, kw_only=True, eq=False)
class PriorTrust:
    """Which parts of priors are believed: what strong evidence contradicts is not.

    Parameters
    ----------
    strong_inliers : int
        A fix with so many inliers is believed against a prior.
    num_rejected_priors, num_gated_fixes : int
        How often a prior was rejected by a fix, and a fix by a prior.
    """

    strong_inliers: int = 60
    num_rejected_priors: int = 0
    num_gated_fixes: int = 0
    _agreed: dict[str, int] = field(default_factory=dict, init=False)
    """Of parts that are not believed: fixes in a row that they agreed with."""

    def forget(self) -> None:
        """Believe everything again."""
        self._agreed.clear()

    def believed(self, prior: PosePrior) -> PosePrior:
        """Return a prior without the parts that are not believed."""
        return replace(prior, **dict.fromkeys(self._agreed))

    def allows(self, prior: PosePrior, fix: Candidate) -> bool:
        """Return whether a fix may be told, and learn from it.

        Parameters
        ----------
        prior : PosePrior
            As it was measured, with the parts that are not believed.
        fix : Candidate
            LOCALIZED.

        Returns
        -------
        bool
            False for a weak fix that contradicts a part that is believed.
        """
        assert fix.cam_from_world is not None
        assert fix.covariance is not None
        against = contradictions(prior, fix.cam_from_world, fix.covariance)
        new = [part for part in against if part not in self._agreed]
        if new and fix.num_inliers < self.strong_inliers:
            self.num_gated_fixes += 1
            return False
        self.num_rejected_priors += len(new)
        for part in [part for part in self._agreed if getattr(prior, part) is not None]:
            self._agreed[part] = 0 if part in against else self._agreed[part] + 1
            if self._agreed[part] >= _NUM_AGREEING:
                del self._agreed[part]
        self._agreed.update(dict.fromkeys(new, 0))
        return True
