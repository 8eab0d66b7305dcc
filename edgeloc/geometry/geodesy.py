"""Positions on Earth: WGS84, Earth-centred coordinates, and local east-north-up.

Heights are above the ellipsoid; what receivers tell above sea level has to have the
separation of the geoid added first (`edgeloc.runtime.nmea` does).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeloc.types import FloatArray

WGS84_SEMI_MAJOR_M = 6378137.0
WGS84_FLATTENING = 1.0 / 298.257223563
_ECC2 = WGS84_FLATTENING * (2.0 - WGS84_FLATTENING)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeoReference:
    """Where the origin of an east-north-up world lies (WGS84, ellipsoidal height).

    Parameters
    ----------
    latitude_deg, longitude_deg, altitude_m : float
        Of the origin.
    """

    latitude_deg: float
    longitude_deg: float
    altitude_m: float

    def __post_init__(self) -> None:
        values = (self.latitude_deg, self.longitude_deg, self.altitude_m)
        if not all(math.isfinite(v) for v in values) or abs(self.latitude_deg) > 90:
            raise ValueError(f"not a position on Earth: {values}")


def _ecef_from_wgs84(
    lat_rad: FloatArray, lon_rad: FloatArray, alt_m: FloatArray
) -> FloatArray:
    sin_lat, cos_lat = np.sin(lat_rad), np.cos(lat_rad)
    normal = WGS84_SEMI_MAJOR_M / np.sqrt(1.0 - _ECC2 * sin_lat**2)
    return np.stack(
        [
            (normal + alt_m) * cos_lat * np.cos(lon_rad),
            (normal + alt_m) * cos_lat * np.sin(lon_rad),
            (normal * (1.0 - _ECC2) + alt_m) * sin_lat,
        ],
        axis=-1,
    )


def _enu_frame(origin: GeoReference) -> tuple[FloatArray, FloatArray]:
    """Return (R_enu_from_ecef, origin in ECEF)."""
    lat, lon = math.radians(origin.latitude_deg), math.radians(origin.longitude_deg)
    sin_lat, cos_lat, sin_lon, cos_lon = (
        math.sin(lat),
        math.cos(lat),
        math.sin(lon),
        math.cos(lon),
    )
    rotation = np.array(
        [
            [-sin_lon, cos_lon, 0.0],
            [-sin_lat * cos_lon, -sin_lat * sin_lon, cos_lat],
            [cos_lat * cos_lon, cos_lat * sin_lon, sin_lat],
        ]
    )
    at = _ecef_from_wgs84(
        np.asarray(lat), np.asarray(lon), np.asarray(origin.altitude_m)
    )
    return rotation, at


def enu_from_wgs84(
    latitude_deg: npt.ArrayLike,
    longitude_deg: npt.ArrayLike,
    altitude_m: npt.ArrayLike,
    origin: GeoReference,
) -> FloatArray:
    """Return positions in the east-north-up frame about `origin`, exactly (ECEF).

    Parameters
    ----------
    latitude_deg, longitude_deg, altitude_m : array_like of shape (N,)
        WGS84, ellipsoidal height.
    origin : GeoReference
        Of the frame.

    Returns
    -------
    ndarray of shape (N, 3), float64, m
    """
    lat, lon, alt = np.broadcast_arrays(
        np.radians(np.atleast_1d(np.asarray(latitude_deg, dtype=np.float64))),
        np.radians(np.atleast_1d(np.asarray(longitude_deg, dtype=np.float64))),
        np.atleast_1d(np.asarray(altitude_m, dtype=np.float64)),
    )
    rotation, at = _enu_frame(origin)
    return np.asarray((_ecef_from_wgs84(lat, lon, alt) - at) @ rotation.T)


def wgs84_from_enu(
    points_in_enu: npt.ArrayLike, origin: GeoReference
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return (latitude_deg, longitude_deg, altitude_m), each (N,), of ENU points.

    The inverse of `enu_from_wgs84`, to better than a micrometre on and near the ground
    (Bowring's iteration for the latitude).

    Parameters
    ----------
    points_in_enu : array_like of shape (N, 3)
        Positions, m.
    origin : GeoReference
        Of the frame.
    """
    rotation, at = _enu_frame(origin)
    points = np.atleast_2d(np.asarray(points_in_enu, dtype=np.float64))
    x, y, z = (points @ rotation + at).T
    horizontal = np.hypot(x, y)
    ratio = 1.0 - WGS84_FLATTENING
    polar = WGS84_SEMI_MAJOR_M * ratio
    lat = np.arctan2(z, horizontal * ratio**2)
    for _ in range(5):
        reduced = np.arctan2(ratio * np.sin(lat), np.cos(lat))
        lat = np.arctan2(
            z + _ECC2 / ratio**2 * polar * np.sin(reduced) ** 3,
            horizontal - _ECC2 * WGS84_SEMI_MAJOR_M * np.cos(reduced) ** 3,
        )
    sin_lat, cos_lat = np.sin(lat), np.cos(lat)
    normal = WGS84_SEMI_MAJOR_M / np.sqrt(1.0 - _ECC2 * sin_lat**2)
    # Of the two forms of the height, a blend that is exact at poles and equator alike.
    alt = horizontal * cos_lat + z * sin_lat - normal * (1.0 - _ECC2 * sin_lat**2)
    return np.degrees(lat), np.degrees(np.arctan2(y, x)), np.asarray(alt)
