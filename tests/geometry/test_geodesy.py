"""Positions on Earth, against lengths that can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeloc.geometry.geodesy import GeoReference, enu_from_wgs84, wgs84_from_enu


class TestEnu:
    ZURICH = GeoReference(latitude_deg=47.0, longitude_deg=8.0, altitude_m=400.0)

    def test_one_arc_second_at_the_equator(self):
        """North: 30.715 m, from M = a(1-e2) = 6335439.327 m; east: 30.922 m."""
        origin = GeoReference(latitude_deg=0.0, longitude_deg=0.0, altitude_m=0.0)
        second = 1.0 / 3600.0
        east, north = enu_from_wgs84([0, second], [second, 0], [0, 0], origin)
        np.testing.assert_allclose(east, [30.9221, 0, 0], atol=1e-3)
        np.testing.assert_allclose(north, [0, 30.7151, 0], atol=1e-3)

    def test_one_arc_second_at_60_degrees(self):
        """East is N cos(60°)/206264.8 with N = 6394209.174 m: 15.500 m."""
        origin = GeoReference(latitude_deg=60.0, longitude_deg=25.0, altitude_m=0.0)
        (east,) = enu_from_wgs84([60.0], [25.0 + 1 / 3600], [0.0], origin)
        assert east[0] == pytest.approx(6394209.174 / 2 / 206264.806, abs=1e-4)

    def test_up_is_up_and_the_ground_curves_away(self):
        (up,) = enu_from_wgs84([47.0], [8.0], [410.0], self.ZURICH)
        np.testing.assert_allclose(up, [0, 0, 10.0], atol=1e-8)
        (far,) = enu_from_wgs84([47.09], [8.0], [400.0], self.ZURICH)  # about 10 km
        assert far[2] == pytest.approx(-(far[1] ** 2) / (2 * 6.37e6), rel=0.01)

    @settings(max_examples=80, deadline=None)
    @given(
        st.floats(-89.9, 89.9),
        st.floats(-179.9, 179.9),
        st.floats(-400, 9000),
        st.integers(0, 2**32 - 1),
    )
    def test_there_and_back(self, lat, lon, alt, seed):
        origin = GeoReference(latitude_deg=lat, longitude_deg=lon, altitude_m=alt)
        points = np.random.default_rng(seed).uniform(-5000, 5000, size=(5, 3))
        back = enu_from_wgs84(*wgs84_from_enu(points, origin), origin)
        np.testing.assert_allclose(back, points, atol=1e-6)

    def test_the_poles_are_places_too(self):
        origin = GeoReference(latitude_deg=90.0, longitude_deg=0.0, altitude_m=0.0)
        lat, _, alt = wgs84_from_enu([[0.0, 0.0, 5.0]], origin)
        assert lat[0] == pytest.approx(90.0)
        assert alt[0] == pytest.approx(5.0, abs=1e-6)

    @pytest.mark.parametrize("lat", [91.0, -90.5, math.nan])
    def test_refuses_a_place_not_on_earth(self, lat):
        with pytest.raises(ValueError, match="not a position on Earth"):
            GeoReference(latitude_deg=lat, longitude_deg=0.0, altitude_m=0.0)
