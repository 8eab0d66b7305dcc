"""Light, night, blur, noise."""

from __future__ import annotations

import numpy as np
import pytest

from edgeloc_tools.synth.effects import (
    Lamp,
    Light,
    add_sensor_noise,
    average,
    evening_light,
    exposure_times_s,
    jpeg,
    night_light,
)
from edgeloc_tools.synth.render import render
from edgeloc_tools.synth.trajectory import look

POSE = look((0.2, 0.1, 1.5), yaw_rad=0.7)


def test_gain_and_colour_scale_the_picture(room, small):
    day = render(room, small, POSE).image.astype(float)
    light = Light(gain=0.5, colour=(0.8, 1.0, 1.2))
    image = render(room, small, POSE, light=light).image
    expected = np.clip(day * 0.5 * np.array([0.8, 1.0, 1.2]), 0, 255)
    assert np.abs(image - expected).max() <= 1.0


def test_gamma_bends_the_tone_curve(room, small):
    day = render(room, small, POSE).image.astype(float)
    image = render(room, small, POSE, light=Light(gamma=0.5)).image
    # Rounding counts for much where the curve is steep.
    bright = day > 40
    expected = 255 * np.sqrt(day / 255)
    assert np.abs(image - expected)[bright].max() < 2.0


def test_evening_is_warmer_and_darker(room, small):
    day = render(room, small, POSE).image.mean(axis=(0, 1))
    evening = render(room, small, POSE, light=evening_light()).image.mean(axis=(0, 1))
    assert evening.mean() < 0.85 * day.mean()
    assert evening[2] / evening[0] > 1.3 * day[2] / day[0]


def test_night_is_dark_with_lit_places(room, street, small):
    for scene, pose, along_x in (
        (room, look((0.2, 0.1, 1.5), yaw_rad=-0.8), False),
        (street, look((1.0, 0.0, 1.5), yaw_rad=0.0), True),
    ):
        day = render(scene, small, pose).image
        light = night_light(scene.extent_m, along_x=along_x)
        night = render(scene, small, pose, light=light).image
        assert night.mean() < 0.45 * day.mean()
        ratio = (night.mean(axis=2) + 1) / (day.mean(axis=2) + 1)
        assert np.percentile(ratio, 99) > 2 * np.percentile(ratio, 10)


def test_a_lamp_falls_off_with_distance(room, small):
    """Half of its strength at its radius, whatever the surface."""
    day = render(room, small, POSE)
    point = POSE.inverse().transform([0.0, 0.0, float(day.depth_m[60, 80])])
    away = POSE.inverse().R @ np.array([0.0, 0.0, -1.0])
    lit = []
    for distance_m in (0.0, 1.0):
        position = tuple(float(c) for c in point + distance_m * away)
        lamp = Lamp(position=position, strength=0.9, radius_m=1.0, colour=(1, 1, 1))
        light = Light(ambient=0.0, lamps=(lamp,))
        lit.append(render(room, small, POSE, light=light).image[60, 80].mean())
    here = day.image[60, 80].mean()
    assert lit[0] == pytest.approx(0.9 * here, rel=0.05, abs=1.5)
    assert lit[1] == pytest.approx(0.45 * here, rel=0.05, abs=1.5)


def test_exposure_is_centred_and_blurs(room, small):
    times = exposure_times_s(2.0, 0.04, 4)
    assert times == pytest.approx([1.985, 1.995, 2.005, 2.015])
    assert exposure_times_s(2.0, 0.0, 4).tolist() == [2.0]
    sharp = render(room, small, POSE).image
    shots = [
        render(room, small, look((0.2, 0.1, 1.5), yaw_rad=0.7 + a)).image
        for a in (-0.02, 0.0, 0.02)
    ]
    blurred = average(shots)
    assert np.array_equal(
        blurred, np.floor(np.mean([s.astype(float) for s in shots], 0) + 0.5)
    )
    steps = [np.abs(np.diff(i.astype(float), axis=1)).mean() for i in (sharp, blurred)]
    assert steps[1] < 0.8 * steps[0]


def test_sensor_noise_has_its_sigma_and_grows_with_light(rng):
    for level, factor in (
        (60, np.sqrt(1 + 3 * 60 / 255)),
        (200, np.sqrt(1 + 600 / 255)),
    ):
        flat = np.full((120, 160, 3), level, np.uint8)
        noisy = add_sensor_noise(flat, rng, sigma=3.0).astype(float)
        assert noisy.std() == pytest.approx(3.0 * factor, rel=0.03)
        assert noisy.mean() == pytest.approx(level, abs=0.15)
    assert add_sensor_noise(flat, rng, sigma=0.0) is flat


def test_jpeg_loses_more_at_low_quality(room, small):
    image = render(room, small, POSE).image
    loss = [np.abs(jpeg(image, q).astype(int) - image).mean() for q in (95, 30)]
    assert 0 < loss[0] < loss[1] < 12
