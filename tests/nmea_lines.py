"""What a GNSS receiver in a site would say."""

from __future__ import annotations

from edgeloc.geometry.geodesy import GeoReference, wgs84_from_enu
from edgeloc.runtime.nmea import sentence

GEO = {"latitude_deg": 47.0, "longitude_deg": 8.0, "altitude_m": 400.0}
"""Where sites of tests lie."""


def gga(time_s: float, enu: tuple[float, float, float]) -> bytes:
    """The sentence of a place in the site."""
    (lat,), (lon,), (alt,) = wgs84_from_enu([enu], GeoReference(**GEO))
    hours, rest = divmod(time_s % 86400, 3600)
    minutes, seconds = divmod(rest, 60)

    def angle(value: float, digits: int) -> str:
        whole = int(value)
        return f"{whole:0{digits}d}{60 * (value - whole):011.8f}"

    return sentence(
        f"GPGGA,{int(hours):02d}{int(minutes):02d}{seconds:05.2f},{angle(lat, 2)},N,"
        f"{angle(lon, 3)},E,1,09,1.0,{alt:.3f},M,0.0,M,,"
    ).encode()
