"""Absolute pose with a known vertical: more wrong matches, the same accuracy."""

from __future__ import annotations

import numpy as np
import pytest
from geometry_cases import CAMERAS, make_scene, pose_error

from edgeloc.geometry.pnp import PnpOptions, estimate_pose
from edgeloc.geometry.se3 import exp_so3
from edgeloc.geometry.upright import Vertical
from edgeloc.types import Rigid3


def tilted(cam_from_world: Rigid3, off_deg: float) -> Vertical:
    """The vertical as a sensor that is off by an angle says it."""
    down = np.array([0.0, 0.0, -1.0])
    turn = exp_so3(np.deg2rad(off_deg) * np.array([0.6, 0.0, 0.8]))
    return Vertical(
        down_in_cam=turn @ cam_from_world.R @ down,
        down_in_world=down,
        sigma_rad=np.deg2rad(1.0),
    )


@pytest.mark.parametrize("name", ["pinhole", "fisheye_tumvi"])
def test_few_samples_suffice_among_many_wrong_matches(
    name: str, rng: np.random.Generator
) -> None:
    """At 88 % wrong, 300 samples of three hold a good one in four cases of ten."""
    options = PnpOptions(max_iterations=300, backend="opencv")
    found = {"with": 0, "without": 0}
    for _ in range(12):
        scene = make_scene(
            rng, camera=CAMERAS[name], num_points=300, outlier_ratio=0.88, noise_px=0.5
        )
        matches = scene.matches(rng)
        vertical = tilted(scene.cam_from_world, 1.0)
        for how, known in (("with", vertical), ("without", None)):
            result = estimate_pose(
                matches, scene.camera, options=options, vertical=known
            )
            if result is None:
                continue
            angle_rad, distance_m = pose_error(
                result.cam_from_world, scene.cam_from_world
            )
            found[how] += angle_rad < 0.01 and distance_m < 0.05
    assert found["with"] >= 11
    assert found["without"] <= 8


def test_a_wrong_vertical_does_no_harm(rng: np.random.Generator) -> None:
    for off_deg in (15.0, 90.0, 180.0):
        scene = make_scene(rng, num_points=300, outlier_ratio=0.6, noise_px=0.5)
        matches = scene.matches(rng)
        result = estimate_pose(
            matches, scene.camera, vertical=tilted(scene.cam_from_world, off_deg)
        )
        assert result is not None
        angle_rad, distance_m = pose_error(result.cam_from_world, scene.cam_from_world)
        assert angle_rad < 4e-3
        assert distance_m < 0.02


def test_an_easy_pose_is_not_touched(rng: np.random.Generator) -> None:
    scene = make_scene(rng, num_points=200, outlier_ratio=0.2, noise_px=0.5)
    matches = scene.matches(rng)
    without = estimate_pose(matches, scene.camera)
    with_it = estimate_pose(
        matches, scene.camera, vertical=tilted(scene.cam_from_world, 3.0)
    )
    assert without is not None
    assert with_it is not None
    np.testing.assert_array_equal(without.cam_from_world.R, with_it.cam_from_world.R)
