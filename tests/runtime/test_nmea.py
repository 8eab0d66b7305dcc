"""NMEA sentences as receivers send them, and as they arrive when a wire is loose."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeloc.runtime.nmea import (
    Attitude,
    Fix,
    Heading,
    NmeaError,
    NmeaParser,
    checksum,
    sentence,
    split_sentence,
)

GGA = b"$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*47\r\n"
"""The example that every description of the format has."""
RMC = b"$GPRMC,123519,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W*6A"


def only(parser: NmeaParser, line: bytes) -> Fix:
    [found] = parser.feed(line)
    assert isinstance(found, Fix)
    return found


def test_a_position() -> None:
    fix = only(NmeaParser(), GGA)
    assert fix.time_s == 12 * 3600 + 35 * 60 + 19
    assert fix.latitude_deg == pytest.approx(48 + 7.038 / 60)
    assert fix.longitude_deg == pytest.approx(11 + 31 / 60)
    assert fix.altitude_m == pytest.approx(545.4 + 46.9)
    assert fix.east_sigma_m == fix.north_sigma_m == 5.0
    assert fix.altitude_sigma_m == 10.0


def test_the_southern_and_western_hemispheres() -> None:
    body = "GNGGA,000000.50,3352.000,S,07030.000,W,2,10,2.0,10,M,,M,,"
    fix = only(NmeaParser(), sentence(body).encode())
    assert fix.latitude_deg == pytest.approx(-(33 + 52 / 60))
    assert fix.longitude_deg == pytest.approx(-70.5)
    assert fix.time_s == 0.5
    assert fix.north_sigma_m == 10.0  # a dilution of 2
    assert fix.altitude_sigma_m > 1e3  # above the sea, which nobody placed


def test_the_receivers_own_deviations_are_taken() -> None:
    parser = NmeaParser()
    gst = "GPGST,123518,1.2,3.0,2.0,45.0,1.5,2.5,4.0"
    assert parser.feed(sentence(gst).encode()) == []
    fix = only(parser, GGA)
    assert (fix.north_sigma_m, fix.east_sigma_m, fix.altitude_sigma_m) == (1.5, 2.5, 4)
    late = GGA.replace(b"123519", b"123529").replace(b"*47", b"*44")
    assert only(parser, late).north_sigma_m == 5.0  # those were of ten seconds ago
    parser.sigma_m = 7.0
    assert only(parser, GGA).east_sigma_m == 7.0


def test_course_and_speed() -> None:
    parser = NmeaParser()
    course, fix = parser.feed(RMC)
    assert isinstance(course, Heading)
    assert course.course
    assert course.heading_rad == pytest.approx(math.radians(84.4))
    assert course.sigma_rad == pytest.approx(0.2 / (22.4 * 0.514444), rel=1e-4)
    assert isinstance(fix, Fix)
    assert fix.speed_m_s == pytest.approx(22.4 * 0.514444, rel=1e-5)
    assert only(parser, GGA).speed_m_s == fix.speed_m_s
    # Now that positions come with altitudes, those without are left out.
    assert [type(one) for one in parser.feed(RMC)] == [Heading]
    slow = sentence("GPVTG,270.0,T,,M,0.5,N,0.9,K").encode()
    assert parser.feed(slow) == []
    fast = sentence("GPVTG,270.0,T,,M,10.0,N,18.5,K").encode()
    [west] = parser.feed(fast)
    assert isinstance(west, Heading)
    assert west.heading_rad == pytest.approx(1.5 * math.pi)


def test_headings_and_attitudes() -> None:
    parser = NmeaParser()
    assert parser.feed(sentence("HEHDT,90.0,T").encode()) == [
        Heading(heading_rad=math.pi / 2)
    ]
    assert parser.feed(sentence("HCHDM,-90.0,M").encode()) == [
        Heading(heading_rad=1.5 * math.pi)
    ]
    pashr = "PASHR,120000.00,180.0,T,2.0,-3.0,0.1,0.2,0.2,0.5,1,0"
    assert parser.feed(sentence(pashr).encode()) == [
        Heading(heading_rad=math.pi),
        Attitude(roll_rad=math.radians(2.0), pitch_rad=math.radians(-3.0)),
    ]


@pytest.mark.parametrize(
    "line",
    [
        GGA.replace(b"4807", b"4808"),
        GGA.replace(b"*47", b"*zz"),
        GGA.replace(b"*47", b""),
        GGA[1:],
        b"\xff\xfe$GPGGA",
        b"$" + b"A" * 400,
        sentence("GPGGA,123519").encode(),
        sentence("GPGGA,993519,4807,N,01131,E,1,8,1,5,M,4,M,,").encode(),
        sentence("GPGGA,123519,9907,N,01131,E,1,8,1,5,M,4,M,,").encode(),
        sentence("GPGGA,123519,4807,X,01131,E,1,8,1,5,M,4,M,,").encode(),
        sentence("GPGGA,123519,nan,N,01131,E,1,8,1,5,M,4,M,,").encode(),
    ],
)
def test_damage_is_counted_and_gives_nothing(line: bytes) -> None:
    parser = NmeaParser()
    assert parser.feed(line) == []
    assert (parser.num_sentences, parser.num_damaged) == (1, 1)
    only(parser, GGA)


def test_without_a_fix_there_is_no_position_and_no_damage() -> None:
    parser = NmeaParser()
    for body in (
        "GPGGA,123519,,,,,0,00,,,M,,M,,",
        "GPRMC,123519,V,,,,,,,230394,,",
        "GPGSV,1,1,00",
        "PUBX,00,1",
        "HEHDT,,T",
    ):
        assert parser.feed(sentence(body).encode()) == []
    assert parser.feed(b"\r\n") == []
    assert (parser.num_sentences, parser.num_damaged) == (5, 0)


def test_no_bytes_raise(rng: np.random.Generator) -> None:
    """One byte of a good sentence after the other is replaced by any other."""
    parser = NmeaParser()
    for at in range(len(GGA)):
        for byte in rng.integers(0, 256, 8).tolist():
            line = GGA[:at] + bytes([byte]) + GGA[at + 1 :]
            parser.feed(line)
            body = line[1:].split(b"*")[0]
            try:
                text = body.decode("ascii")
            except UnicodeDecodeError:
                continue
            parser.feed(sentence(text).encode())  # right checksum, wrong content
    assert 0 < parser.num_damaged < parser.num_sentences


def test_the_checksum_of_the_standard_example() -> None:
    assert checksum("GPGLL,5057.970,N,00146.110,E,142451,A") == 0x27
    with pytest.raises(NmeaError, match="wrong checksum"):
        split_sentence(b"$GPGLL,5057.970,N*28")
