"""NMEA 0183: the sentences in which receivers and compasses tell what they know.

Understood: GGA and RMC (position), GST (its standard deviations), RMC and VTG (course
and speed), HDT and HDM (heading), PASHR (heading, roll and pitch). Everything else is
skipped; what is damaged is counted, and no damage raises.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MAX_SENTENCE = 256
"""Characters; the standard allows 82, proprietary sentences are longer."""
_KNOT_M_S = 1852.0 / 3600.0
_UERE_M = 5.0
"""Error of a position at a dilution of 1, where the receiver tells none."""
_UNKNOWN_ALTITUDE_SIGMA_M = 1e4
_MIN_COURSE_M_S = 1.0
"""Slower than this, a course is noise."""
_VELOCITY_SIGMA_M_S = 0.2
_MAX_GST_AGE_S = 5.0
_DAY_S = 86400.0


class NmeaError(ValueError):
    """A sentence that is damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fix:
    """A position.

    Parameters
    ----------
    time_s : float
        UTC time of day, s.
    latitude_deg, longitude_deg : float
        WGS84.
    altitude_m : float
        Above the ellipsoid; 0 when unknown, and then `altitude_sigma_m` says so.
    east_sigma_m, north_sigma_m, altitude_sigma_m : float
        Standard deviations.
    speed_m_s : float or None
        Over ground, where it was told.
    """

    time_s: float
    latitude_deg: float
    longitude_deg: float
    altitude_m: float
    east_sigma_m: float
    north_sigma_m: float
    altitude_sigma_m: float
    speed_m_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """A direction, clockwise from north.

    Parameters
    ----------
    heading_rad : float
        In [0, 2 pi).
    sigma_rad : float or None
        What the sentence or the speed says; None = nothing.
    course : bool
        Whether it is the direction of the motion, not of the vehicle.
    """

    heading_rad: float
    sigma_rad: float | None = None
    course: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attitude:
    """How a vehicle leans.

    Parameters
    ----------
    roll_rad : float
        Positive with the right side down.
    pitch_rad : float
        Positive with the nose up.
    """

    roll_rad: float
    pitch_rad: float


Measurement = Fix | Heading | Attitude


def checksum(body: str) -> int:
    """Return the checksum of what stands between ``$`` and ``*``."""
    value = 0
    for byte in body.encode("ascii", "replace"):
        value ^= byte
    return value


def sentence(body: str) -> str:
    """Return a whole sentence, for tests and simulators.

    Parameters
    ----------
    body : str
        As ``GPGGA,...``, without ``$`` and checksum.
    """
    return f"${body}*{checksum(body):02X}\r\n"


def split_sentence(line: bytes) -> list[str]:
    """Return the fields of a sentence, its name first.

    Raises
    ------
    NmeaError
        When it is none, or its checksum is missing or wrong.
    """
    if len(line) > MAX_SENTENCE:
        raise NmeaError("is too long")
    try:
        text = line.decode("ascii").strip()
    except UnicodeDecodeError:
        raise NmeaError("is not text") from None
    body, star, given = text.removeprefix("$").rpartition("*")
    if not text.startswith("$") or not star or len(given) != 2:
        raise NmeaError("is no sentence with a checksum")
    try:
        right = int(given, 16) == checksum(body)
    except ValueError:
        right = False
    if not right:
        raise NmeaError("has a wrong checksum")
    return body.split(",")


def _number(text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        raise NmeaError(f"{text!r} is not a number") from None
    if not low <= value <= high:  # also nan
        raise NmeaError(f"{text!r} is not from {low:g} to {high:g}")
    return value


def _time_s(text: str) -> float:
    if len(text) < 6 or not text[:6].isdecimal():
        raise NmeaError(f"{text!r} is not a time")
    hours, minutes = int(text[:2]), int(text[2:4])
    seconds = _number(text[4:], 0.0, 61.0)
    if hours > 23 or minutes > 59:
        raise NmeaError(f"{text!r} is not a time")
    return hours * 3600.0 + minutes * 60.0 + seconds


def _degrees(text: str, side: str, sides: str, limit: float) -> float:
    """Return ``ddmm.mmmm`` and a hemisphere in degrees."""
    value = _number(text, 0.0, 100.0 * limit)
    whole = math.floor(value / 100.0)
    degrees = whole + (value - 100.0 * whole) / 60.0
    if degrees > limit or len(side) != 1 or side not in sides:
        raise NmeaError(f"{text!r} {side!r} is no angle")
    return degrees if side == sides[0] else -degrees


@dataclass(slots=True, kw_only=True)
class NmeaParser:
    """Turns lines into measurements; keeps what later sentences refer to.

    Parameters
    ----------
    sigma_m : float or None
        Horizontal standard deviation of every position, in place of what the receiver
        says.
    num_sentences, num_damaged : int
        Counted so far.
    """

    sigma_m: float | None = None
    num_sentences: int = 0
    num_damaged: int = 0
    _sigmas: tuple[float, float, float] | None = None
    _sigmas_time_s: float = 0.0
    _speed_m_s: float | None = None
    _has_gga: bool = False

    def feed(self, line: bytes) -> list[Measurement]:
        """Return what a line says; nothing for what is damaged or of no interest.

        Parameters
        ----------
        line : bytes
            With or without its end.
        """
        if not line.strip():
            return []
        self.num_sentences += 1
        try:
            name, *fields = split_sentence(line)
            return self._measurements(name, fields)
        except (NmeaError, IndexError):
            self.num_damaged += 1
            return []

    def _measurements(self, name: str, fields: Sequence[str]) -> list[Measurement]:
        if name == "PASHR":
            return self._pashr(fields)
        if name.startswith("P"):  # another maker's own
            return []
        kind = name[-3:]
        if kind == "GGA":
            return self._gga(fields)
        if kind == "RMC":
            return self._rmc(fields)
        if kind == "GST":
            self._gst(fields)
        elif kind == "VTG":
            return self._vtg(fields)
        elif kind in {"HDT", "HDM"} and fields[0]:
            degrees = _number(fields[0], -360.0, 360.0)
            return [Heading(heading_rad=math.radians(degrees % 360.0))]
        return []

    def _gga(self, fields: Sequence[str]) -> list[Measurement]:
        if fields[5] in {"", "0"}:
            return []
        self._has_gga = True
        time_s = _time_s(fields[0])
        latitude = _degrees(fields[1], fields[2], "NS", 90.0)
        longitude = _degrees(fields[3], fields[4], "EW", 180.0)
        dilution = _number(fields[7], 0.0, 1e3) if fields[7] else 1.0
        altitude, known = 0.0, bool(fields[8] and fields[10])
        if known:
            # Above the sea, and the sea above the ellipsoid.
            altitude = _number(fields[8], -1e4, 1e5) + _number(fields[10], -200, 200)
        return [
            self._fix(
                time_s,
                (latitude, longitude, altitude if known else None),
                dilution=dilution,
            )
        ]

    def _rmc(self, fields: Sequence[str]) -> list[Measurement]:
        if fields[1] != "A":
            return []
        found: list[Measurement] = []
        if fields[6]:
            self._speed_m_s = _number(fields[6], 0.0, 2e3) * _KNOT_M_S
            found += self._course(fields[7])
        if not self._has_gga:
            latitude = _degrees(fields[2], fields[3], "NS", 90.0)
            longitude = _degrees(fields[4], fields[5], "EW", 180.0)
            found.append(
                self._fix(_time_s(fields[0]), (latitude, longitude, None), dilution=1.0)
            )
        return found

    def _fix(
        self,
        time_s: float,
        place: tuple[float, float, float | None],
        *,
        dilution: float,
    ) -> Fix:
        horizontal = _UERE_M * max(dilution, 1.0)
        east, north, up = horizontal, horizontal, 2.0 * horizontal
        age_s = abs(time_s - self._sigmas_time_s)
        if self._sigmas is not None and min(age_s, _DAY_S - age_s) <= _MAX_GST_AGE_S:
            east, north, up = self._sigmas
        if self.sigma_m is not None:
            east, north, up = self.sigma_m, self.sigma_m, 2.0 * self.sigma_m
        latitude, longitude, altitude = place
        return Fix(
            time_s=time_s,
            latitude_deg=latitude,
            longitude_deg=longitude,
            altitude_m=0.0 if altitude is None else altitude,
            east_sigma_m=east,
            north_sigma_m=north,
            altitude_sigma_m=_UNKNOWN_ALTITUDE_SIGMA_M if altitude is None else up,
            speed_m_s=self._speed_m_s,
        )

    def _gst(self, fields: Sequence[str]) -> None:
        time_s = _time_s(fields[0])
        if not all(fields[5:8]):
            return
        north, east, up = (_number(text, 0.0, 1e6) for text in fields[5:8])
        self._sigmas = max(east, 0.01), max(north, 0.01), max(up, 0.01)
        self._sigmas_time_s = time_s

    def _vtg(self, fields: Sequence[str]) -> list[Measurement]:
        if not fields[4]:
            return []
        self._speed_m_s = _number(fields[4], 0.0, 2e3) * _KNOT_M_S
        return self._course(fields[0])

    def _course(self, text: str) -> list[Measurement]:
        if not text or self._speed_m_s is None or self._speed_m_s < _MIN_COURSE_M_S:
            return []
        degrees = _number(text, -360.0, 360.0)
        return [
            Heading(
                heading_rad=math.radians(degrees % 360.0),
                sigma_rad=_VELOCITY_SIGMA_M_S / self._speed_m_s,
                course=True,
            )
        ]

    def _pashr(self, fields: Sequence[str]) -> list[Measurement]:
        _time_s(fields[0])
        found: list[Measurement] = []
        if fields[1]:
            degrees = _number(fields[1], -360.0, 360.0)
            found.append(Heading(heading_rad=math.radians(degrees % 360.0)))
        if fields[3] and fields[4]:
            found.append(
                Attitude(
                    roll_rad=math.radians(_number(fields[3], -180.0, 180.0)),
                    pitch_rad=math.radians(_number(fields[4], -90.0, 90.0)),
                )
            )
        return found
