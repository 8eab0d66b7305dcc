"""Recordings put on Earth, from fixes with outliers and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeloc.errors import ConfigError, MapError
from edgeloc.geometry.geodesy import GeoReference, enu_from_wgs84, wgs84_from_enu
from edgeloc.geometry.se3 import exp_so3
from edgeloc.types import CameraModel, Rigid3
from edgeloc_tools.datasets.recording import GnssFix, RecordedImage, Recording
from edgeloc_tools.mapping.georeference import (
    KnownOrigin,
    georeferenced,
    parse_geo_reference,
)
from edgeloc_tools.synth.record import ImageArray

CAMERA = CameraModel(model="PINHOLE", width=8, height=6, params=(5.0, 5.0, 4.0, 3.0))
ZURICH = GeoReference(latitude_deg=47.4, longitude_deg=8.5, altitude_m=450.0)


def walk(rng: np.random.Generator, *, scale: float, gnss: bool) -> Recording:
    """A walk around a block, in a world that is turned, moved and scaled."""
    turn = exp_so3(rng.normal(size=3))
    images = []
    for k in range(60):
        angle = 2 * np.pi * k / 60
        enu = np.array([80 * np.cos(angle), 50 * np.sin(angle), 2 * np.sin(3 * angle)])
        R_cam_from_enu = exp_so3(rng.normal(size=3) * 0.1) @ np.array(
            [[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]
        )
        # x_in_world = turn @ x_in_enu / scale
        R = R_cam_from_enu @ turn.T
        noisy = enu + rng.normal(size=3) * [1.0, 1.0, 2.0]
        if k % 7 == 0:
            noisy += np.array([200.0, -100.0, 0.0])
        (lat,), (lon,), (alt,) = wgs84_from_enu([noisy], ZURICH)
        fix = GnssFix(
            latitude_deg=float(lat),
            longitude_deg=float(lon),
            altitude_m=float(alt),
            horizontal_sigma_m=1.0,
            vertical_sigma_m=2.0,
        )
        images.append(
            RecordedImage(
                name=f"{k:03d}",
                camera_id="c",
                source=ImageArray(np.zeros((6, 8, 3), np.uint8)),
                cam_from_world=Rigid3(R=R, t=-R @ (turn @ enu / scale)),
                gnss=fix if gnss else None,
            )
        )
    return Recording(
        name="walk",
        images=tuple(images),
        cameras={"c": CAMERA},
        metric=scale == 1.0,
        gravity_in_world=tuple((turn @ [0.0, 0.0, -1.0]).tolist()),
    )


def centers(recording: Recording) -> np.ndarray:
    return np.array([i.cam_from_world.origin_in_a for i in recording.images])


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_fixes_of_which_every_seventh_is_wrong(
    scale: float, rng: np.random.Generator
) -> None:
    recording = walk(rng, scale=scale, gnss=True)
    placed, facts = georeferenced(recording, None, rng=rng)
    assert placed.metric
    assert placed.gravity_in_world == (0.0, 0.0, -1.0)
    assert 49 <= facts["num_gnss_fixes_used"] <= 51
    geo = GeoReference(**placed.geo_reference)
    on_earth = wgs84_from_enu(centers(placed), geo)
    found = enu_from_wgs84(*on_earth, ZURICH)
    angle = 2 * np.pi * np.arange(60) / 60
    true = np.stack(
        [80 * np.cos(angle), 50 * np.sin(angle), 2 * np.sin(3 * angle)], axis=1
    )
    # 1 m and 2 m of noise in 51 fixes.
    assert np.linalg.norm(found - true, axis=1).max() < 1.5
    assert np.abs(found - true)[:, :2].max() < 0.8


def test_by_hand_the_y_axis_has_a_heading(rng: np.random.Generator) -> None:
    recording = walk(rng, scale=1.0, gnss=False)
    upright = replace(recording, gravity_in_world=None)
    known = KnownOrigin(geo=ZURICH, heading_deg=90.0)
    placed, _ = georeferenced(upright, known, rng=rng)
    x, y, z = centers(upright).T
    np.testing.assert_allclose(centers(placed), np.stack([y, -x, z], axis=1))
    assert placed.geo_reference["latitude_deg"] == 47.4
    # What a camera sees does not change.
    before, after = upright.images[5].cam_from_world, placed.images[5].cam_from_world
    point = np.array([3.0, 4.0, 5.0])
    np.testing.assert_allclose(
        before.transform(point), after.transform(np.array([4.0, -3.0, 5.0]))
    )


def test_what_is_missing_is_named(rng: np.random.Generator) -> None:
    recording = walk(rng, scale=1.0, gnss=False)
    with pytest.raises(MapError, match="0 images of walk have a pose and a GNSS fix"):
        georeferenced(recording, None, rng=rng)
    known = KnownOrigin(geo=ZURICH)
    with pytest.raises(MapError, match="is not metric"):
        georeferenced(replace(recording, metric=False), known, rng=rng)


def test_the_option() -> None:
    assert parse_geo_reference("gnss") is None
    known = parse_geo_reference("47.4,8.5,450")
    assert known == KnownOrigin(geo=ZURICH)
    turned = parse_geo_reference("47.4,8.5,450,-12.5")
    assert turned is not None
    assert turned.heading_deg == -12.5
    for text in ("here", "47,8", "91,8,0", "47,200,0", "47,8,0,nan", "1,2,3,4,5"):
        with pytest.raises(ConfigError, match="--geo-reference"):
            parse_geo_reference(text)
