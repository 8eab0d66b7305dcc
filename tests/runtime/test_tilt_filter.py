"""Which way is down, from an inertial sensor that is carried around."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgeloc.clock import ManualClock
from edgeloc.config import RunConfig
from edgeloc.geometry.se3 import exp_so3
from edgeloc.runtime.aids import open_aids
from edgeloc.runtime.tilt_filter import TiltFilter
from edgeloc.types import CameraModel, FloatArray

STEP_NS = 5_000_000
DOWN = np.array([0.0, 0.0, -1.0])
BIAS = np.array([0.02, -0.01, 0.015])
CAMERA = CameraModel(
    model="PINHOLE", width=64, height=48, params=(50.0, 50.0, 32.0, 24.0)
)
SITE = SimpleNamespace(name="hall", geo_reference=None, gravity_in_world=(0, 0, -1))


def carried(seconds: float, *, push_m_s2: float = 0.0) -> list[tuple[FloatArray, ...]]:
    """Rates, forces and true directions of a camera that somebody walks with.

    From 6 to 9 s somebody pushes it ahead all the time.
    """
    rng = np.random.default_rng(2)
    R_cam_from_world = exp_so3([-1.4, 0.1, 0.0])
    said = []
    for k in range(round(seconds * 200)):
        t = k / 200
        rate = np.array([0.4 * np.sin(2 * t), np.sin(0.7 * t), 0.2 * np.cos(3 * t)])
        R_cam_from_world = exp_so3(-rate / 200) @ R_cam_from_world
        steps = 1.5 * np.array([np.sin(12 * t), 0.3 * np.cos(6 * t), np.cos(12 * t)])
        steps[0] += push_m_s2 * (6.0 < t < 9.0)
        force = R_cam_from_world @ (steps - 9.81 * DOWN)
        noise = rng.normal(size=(2, 3)) * [[0.005], [0.05]]
        said.append((rate + BIAS + noise[0], force + noise[1], R_cam_from_world @ DOWN))
    return said


def errors_deg(said: list[tuple[FloatArray, ...]]) -> dict[int, float]:
    levels, errors = TiltFilter(), {}
    for k, (rate, force, down) in enumerate(said):
        found = levels.take(k * STEP_NS, rate, force)
        if found is not None:
            assert np.linalg.norm(found) == pytest.approx(1.0)
            sine = np.linalg.norm(np.cross(found, down))
            errors[k * STEP_NS] = float(np.rad2deg(np.arctan2(sine, found @ down)))
    return errors


def test_of_somebody_who_walks_and_looks_around() -> None:
    errors = errors_deg(carried(14.0))
    assert 1_000_000_000 < min(errors) < 4_000_000_000
    late = [error for at_ns, error in errors.items() if at_ns > 8 * 10**9]
    assert len(late) > 550
    assert max(late) < 2.0


def test_a_strong_push_is_not_taken_for_gravity() -> None:
    errors = errors_deg(carried(12.0, push_m_s2=5.0))
    pushed = [error for at_ns, error in errors.items() if 6e9 < at_ns < 9.5e9]
    assert len(pushed) > 300
    assert max(pushed) < 4.0


def test_nothing_is_said_before_it_was_at_rest_and_after_a_gap() -> None:
    levels = TiltFilter()
    still, falling = np.array([0.0, -9.81, 0.0]), np.array([0.0, -1.0, 0.0])
    none = np.zeros(3)
    for k in range(400):
        assert levels.take(k * STEP_NS * 2, none, falling) is None
    found = [levels.take(k * STEP_NS * 2, none, still) for k in range(400, 1000)]
    np.testing.assert_allclose(found[-1], [0, 1, 0], atol=1e-9)
    assert found[50] is None
    again = [levels.take(k * STEP_NS * 2, none, still) for k in range(1200, 1500)]
    assert all(down is None for down in again[:100])
    assert again[-1] is not None
    blind = [levels.take(k * STEP_NS * 2, none, falling) for k in range(1500, 2700)]
    assert all(down is not None for down in blind[:1000])
    assert all(down is None for down in blind[1050:])


def test_a_run_with_gravity_from_a_file(tmp_path: Path) -> None:
    """Frames get the vertical of their time, on the clock of the recording."""
    said = carried(6.0)
    path = tmp_path / "imu.csv"
    path.write_text(
        "".join(
            f"{10**18 + k * STEP_NS},"
            + ",".join(f"{value:.6f}" for value in (*rate, *force))
            + "\n"
            for k, (rate, force, _) in enumerate(said)
        ),
        encoding="ascii",
    )
    config = RunConfig(
        imu=str(path), imu_extrinsics="0,0,0,0,0,0,1", gravity="imu", cold=True
    )
    aids = open_aids(config, SITE, CAMERA, ManualClock())
    assert aids.priors is not None
    start_ns = 300 * 10**9
    assert aids.priors.at(start_ns).is_empty
    vertical = aids.priors.at(start_ns + 5 * 10**9).vertical
    assert vertical is not None
    assert float(vertical.down_in_cam @ said[1000][2]) > np.cos(np.deg2rad(4.0))
    aids.close()
