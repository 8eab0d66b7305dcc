from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeloc.geometry.se3 import (
    exp_so3,
    log_so3,
    minimal_rotation,
    rotation_angle_rad,
)
from edgeloc.types import Rigid3
from edgeloc_tools.mapping.align import (
    Sim3,
    expected_tilt_rad,
    gravity_from_upright_cameras,
    robust_similarity,
    rotation_to_z_up,
    similarity_with_rotation,
    umeyama,
    upright_similarity,
)


def random_sim(rng: np.random.Generator) -> Sim3:
    return Sim3(
        scale=float(rng.uniform(0.05, 20)),
        R=exp_so3(rng.normal(size=3)),
        t=rng.normal(size=3) * 10,
    )


def assert_same(a: Sim3, b: Sim3, *, atol: float = 1e-9) -> None:
    assert a.scale == pytest.approx(b.scale, rel=atol)
    np.testing.assert_allclose(a.R, b.R, atol=atol)
    np.testing.assert_allclose(a.t, b.t, atol=atol * 100)


class TestSim3:
    def test_inverse_and_product_agree_with_points(self, rng):
        a, b = random_sim(rng), random_sim(rng)
        points = rng.normal(size=(5, 3))
        np.testing.assert_allclose((a @ b).apply(points), a.apply(b.apply(points)))
        np.testing.assert_allclose(a.inverse().apply(a.apply(points)), points)

    def test_a_moved_camera_sees_moved_points_in_the_same_pixels(self, rng):
        sim = random_sim(rng)
        cam_from_a = Rigid3(R=exp_so3(rng.normal(size=3)), t=rng.normal(size=3))
        points = rng.normal(size=(5, 3))
        cam_from_b = sim.apply_to_pose(cam_from_a)
        before = cam_from_a.transform(points)
        after = cam_from_b.transform(sim.apply(points))
        np.testing.assert_allclose(after, sim.scale * before, atol=1e-9)
        np.testing.assert_allclose(
            cam_from_b.origin_in_a, sim.apply(cam_from_a.origin_in_a), atol=1e-9
        )

    @pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
    def test_refuses_a_scale_that_is_none(self, scale):
        with pytest.raises(ValueError, match="must be finite and > 0"):
            Sim3(scale=scale, R=np.eye(3), t=np.zeros(3))


class TestUmeyama:
    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.integers(4, 30))
    def test_recovers_an_exact_similarity(self, seed, count):
        rng = np.random.default_rng(seed)
        sim, src = random_sim(rng), rng.normal(size=(count, 3))
        fit = umeyama(src, sim.apply(src), rng.uniform(0.1, 2, count))
        assert_same(fit, sim, atol=1e-8)
        assert not fit.line_ambiguous

    def test_coplanar_points_give_a_rotation_not_a_reflection(self, rng):
        sim = random_sim(rng)
        src = rng.normal(size=(8, 3)) * [1, 1, 0]
        fit = umeyama(src, sim.apply(src))
        assert np.linalg.det(fit.R) == pytest.approx(1.0)
        assert_same(fit, sim, atol=1e-8)

    def test_a_mirror_image_is_not_fitted_by_a_reflection(self, rng):
        src = rng.normal(size=(20, 3))
        fit = umeyama(src, src * [1, 1, -1])
        assert np.linalg.det(fit.R) == pytest.approx(1.0)

    def test_without_scale_keeps_it_one(self, rng):
        src = rng.normal(size=(10, 3))
        fit = umeyama(src, 3.0 * src, with_scale=False)
        assert fit.scale == 1.0
        np.testing.assert_allclose(fit.R, np.eye(3), atol=1e-9)

    def test_a_point_without_weight_does_not_count(self, rng):
        sim, src = random_sim(rng), rng.normal(size=(6, 3))
        dst = sim.apply(src)
        dst[2] += 50.0
        assert_same(umeyama(src, dst, [1, 1, 0, 1, 1, 1]), sim, atol=1e-8)

    def test_collinear_cameras_give_scale_and_say_that_the_turn_is_open(self, rng):
        """A straight path: everything but the rotation about it is determined."""
        sim = random_sim(rng)
        src = np.outer(np.linspace(-2, 5, 9), rng.normal(size=3)) + rng.normal(size=3)
        fit = umeyama(src, sim.apply(src))
        assert fit.line_ambiguous
        assert fit.scale == pytest.approx(sim.scale, rel=1e-9)
        np.testing.assert_allclose(fit.apply(src), sim.apply(src), atol=1e-8)

    def test_two_points_are_a_line(self, rng):
        sim, src = random_sim(rng), rng.normal(size=(2, 3))
        fit = umeyama(src, sim.apply(src))
        assert fit.line_ambiguous
        np.testing.assert_allclose(fit.apply(src), sim.apply(src), atol=1e-9)

    @pytest.mark.parametrize(
        ("src", "message"),
        [
            (np.ones((4, 3)), "all in one place"),
            (np.ones((1, 3)), "at least 2 points"),
            (np.ones((4, 2)), "must both be"),
            (np.full((4, 3), np.nan), "must be finite"),
        ],
    )
    def test_refuses_points_that_tell_nothing(self, src, message):
        with pytest.raises(ValueError, match=message):
            umeyama(src, src)


class TestUpright:
    def test_recovers_a_turn_about_z(self, rng):
        sim = Sim3(scale=2.5, R=exp_so3([0, 0, 2.2]), t=np.array([1.0, 2.0, 3.0]))
        src = rng.normal(size=(6, 3))
        assert_same(upright_similarity(src, sim.apply(src)), sim)

    def test_a_straight_path_is_enough(self):
        """Gravity takes away the freedom about the line."""
        sim = Sim3(scale=2.5, R=exp_so3([0, 0, -1.0]), t=np.zeros(3))
        src = np.outer(np.linspace(0, 4, 5), [1.0, 0.5, 0.1])
        assert_same(upright_similarity(src, sim.apply(src)), sim)

    def test_points_above_each_other_have_no_heading(self):
        src = np.outer(np.arange(4.0), [0.0, 0.0, 1.0])
        with pytest.raises(ValueError, match="no heading"):
            upright_similarity(src, src)


class TestRobust:
    def test_outliers_are_left_out(self, rng):
        sim, src = random_sim(rng), rng.normal(size=(40, 3)) * 5
        dst = sim.apply(src) + rng.normal(size=src.shape) * 0.01
        bad = np.zeros(40, dtype=bool)
        bad[[3, 9, 17, 20, 28, 31, 33, 36]] = True
        dst[bad] += rng.normal(size=(8, 3)) * 30 * sim.scale
        fit = robust_similarity(src, dst, sigmas=0.01, rng=rng)
        np.testing.assert_array_equal(fit.inlier_mask, ~bad)
        assert fit.sim.scale == pytest.approx(sim.scale, rel=0.01 / sim.scale)
        assert rotation_angle_rad(fit.sim.R @ sim.R.T) < 0.01 / sim.scale
        assert fit.rmse == pytest.approx(0.01 * math.sqrt(3), rel=0.3)

    def test_precise_points_count_more(self, rng):
        """Half of the points are 100 times worse: the fit is as good as the others."""
        src = rng.normal(size=(60, 3)) * 10
        sigma = np.where(np.arange(60) % 2 == 0, 0.01, 1.0)
        dst = src + rng.normal(size=src.shape) * sigma[:, None]
        fit = robust_similarity(src, dst, sigmas=sigma, rng=rng)
        assert abs(fit.sim.scale - 1.0) < 5e-4
        assert np.linalg.norm(fit.sim.t) < 0.01

    def test_upright_stays_upright(self, rng):
        src = rng.normal(size=(20, 3)) * [10, 10, 0.1]
        dst = src @ exp_so3([0, 0, 0.7]).T + rng.normal(size=src.shape) * [0.1, 0.1, 3]
        fit = robust_similarity(
            src, dst, sigmas=np.tile([0.1, 0.1, 3.0], (20, 1)), rng=rng, upright=True
        )
        np.testing.assert_allclose(fit.sim.R @ [0, 0, 1], [0, 0, 1], atol=1e-12)
        np.testing.assert_allclose(log_so3(fit.sim.R), [0, 0, 0.7], atol=0.01)

    def test_nothing_in_common_is_an_error(self, rng):
        src, dst = rng.normal(size=(12, 3)), rng.normal(size=(12, 3)) * 100
        with pytest.raises(ValueError, match="of 12 points agree"):
            robust_similarity(src, dst, sigmas=0.001, rng=rng)

    def test_needs_enough_points(self, rng):
        with pytest.raises(ValueError, match="at least 3 points, got 2"):
            robust_similarity(np.eye(3)[:2], np.eye(3)[:2], sigmas=1.0, rng=rng)


def test_similarity_with_rotation_refuses_opposed_points():
    src = np.eye(3)
    with pytest.raises(ValueError, match="give no scale"):
        similarity_with_rotation(src, -src, np.eye(3))


def test_expected_tilt_is_noise_over_spread():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(100, 3)) * [50, 20, 0]
    # 100 points of 20 m std about an axis, 5 m noise: 5 / (20 * sqrt(100)) rad
    assert expected_tilt_rad(plane, 5.0) == pytest.approx(0.025, rel=0.2)
    assert expected_tilt_rad(np.outer(np.arange(9.0), [1, 2, 3]), 5.0) == math.pi


def camera(heading: float, pitch: float, roll: float = 0.0) -> np.ndarray:
    """Rotation cam_from_world in a z-up world, all in rad; pitch > 0 looks down."""
    level = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
    turn = exp_so3([0, 0, -heading])
    return exp_so3([0, 0, -roll]) @ exp_so3([-pitch, 0, 0]) @ level @ turn


class TestGravity:
    def test_a_common_pitch_does_not_matter_when_headings_differ(self):
        """Everyone looks down by 40°: the mean 'down' of a half circle is 16° off."""
        cams = np.array([camera(h, 0.7) for h in np.linspace(0, 2.0, 12)])
        guess = gravity_from_upright_cameras(cams)
        assert guess.from_headings
        np.testing.assert_allclose(guess.gravity, [0, 0, -1], atol=1e-9)
        assert guess.roll_rms_rad < 1e-9
        mean_down = cams[:, 1].mean(axis=0)
        assert np.degrees(np.arccos(-mean_down[2] / np.linalg.norm(mean_down))) > 10

    def test_tilted_shots_are_outvoted(self):
        cams = [camera(h, 0.2) for h in np.linspace(0, 6, 20)]
        cams += [camera(1.0, 0.1, math.pi / 2), camera(4.0, 0.3, math.pi / 2)]
        guess = gravity_from_upright_cameras(cams)
        tilt = np.arccos(-guess.gravity[2])
        assert np.degrees(tilt) < 1.0

    def test_one_heading_takes_the_mean_down(self):
        cams = [camera(0.5 + d, 0.1) for d in (-0.02, 0.0, 0.02)]
        guess = gravity_from_upright_cameras(cams)
        assert not guess.from_headings
        assert np.arccos(-guess.gravity[2]) == pytest.approx(0.1, abs=0.01)

    def test_no_common_down_is_an_error(self):
        cams = [camera(0.0, 0.0), camera(0.0, 0.0, math.pi)]
        with pytest.raises(ValueError, match="no common 'down'"):
            gravity_from_upright_cameras(cams)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_rotation_to_z_up_makes_gravity_minus_z(seed):
    gravity = np.random.default_rng(seed).normal(size=3)
    R = rotation_to_z_up(gravity)
    np.testing.assert_allclose(
        R @ gravity / np.linalg.norm(gravity), [0, 0, -1], atol=1e-12
    )
    assert np.linalg.det(R) == pytest.approx(1.0)


def test_rotation_to_z_up_of_an_upside_down_world():
    R = rotation_to_z_up([0.0, 0.0, 9.81])
    np.testing.assert_allclose(R @ [0, 0, 1], [0, 0, -1], atol=1e-12)
    assert np.linalg.det(R) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="must be a direction"):
        rotation_to_z_up([0.0, 0.0, 0.0])


def test_minimal_rotation_has_the_angle_between_the_directions(rng):
    a, b = rng.normal(size=3), rng.normal(size=3)
    R = minimal_rotation(a, b)
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert float(rotation_angle_rad(R)) == pytest.approx(np.arccos(cosine))
