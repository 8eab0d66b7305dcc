"""Exponential, logarithm, adjoint, quaternions and averages of rigid motions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from edgeloc.geometry.se3 import (
    adjoint,
    exp_se3,
    exp_so3,
    exp_so3_rows,
    log_se3,
    log_so3,
    mean_rotation,
    quat_from_rotation,
    rigid_from_quat,
    rotation_angle_rad,
    rotation_from_quat,
    skew,
)

repeatable = settings(deadline=None, derandomize=True, max_examples=100)

coordinate = st.floats(-20.0, 20.0)
vectors = st.tuples(coordinate, coordinate, coordinate).map(np.array)
directions = vectors.filter(lambda v: np.linalg.norm(v) > 1e-3).map(
    lambda v: v / np.linalg.norm(v)
)
angles = st.one_of(
    st.floats(0.0, np.pi - 1e-6),
    st.sampled_from([0.0, 1e-12, 1e-9, 1e-6, 9.99e-4, 1.001e-3, np.pi - 1e-6]),
)
rigids = st.builds(
    lambda axis, angle, v: exp_se3(np.concatenate([axis * angle, v])),
    directions,
    angles,
    vectors,
)


def matrix(rigid):
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = rigid.R, rigid.t
    return out


@repeatable
@given(directions, angles, vectors)
def test_log_undoes_exp(axis, angle, v):
    xi = np.concatenate([axis * angle, v])
    np.testing.assert_allclose(log_se3(exp_se3(xi)), xi, rtol=0, atol=2e-8)
    np.testing.assert_allclose(log_so3(exp_so3(xi[:3])), xi[:3], rtol=0, atol=1e-9)


@repeatable
@given(directions, angles, vectors)
def test_exp_is_the_matrix_exponential(axis, angle, v):
    generator = np.zeros((4, 4))
    generator[:3, :3] = skew(axis * angle)
    generator[:3, 3] = v
    np.testing.assert_allclose(
        matrix(exp_se3(np.concatenate([axis * angle, v]))), expm(generator), atol=1e-9
    )


@pytest.mark.parametrize("axis", np.vstack([np.eye(3), np.ones((1, 3)) / np.sqrt(3)]))
def test_log_of_a_half_turn_has_angle_pi(axis):
    omega = log_so3(Rotation.from_rotvec(np.pi * axis).as_matrix())
    assert np.linalg.norm(omega) == pytest.approx(np.pi, abs=1e-9)
    np.testing.assert_allclose(np.abs(omega), np.pi * axis, atol=1e-7)


@repeatable
@given(rigids, rigids)
def test_inverse_of_a_product(a, b):
    np.testing.assert_allclose(
        matrix((a @ b).inverse()), matrix(b.inverse() @ a.inverse()), atol=1e-9
    )
    np.testing.assert_allclose(matrix(a @ a.inverse()), np.eye(4), atol=1e-9)


@repeatable
@given(rigids, vectors)
def test_transform_agrees_with_the_matrix_and_the_origin(b_from_a, x_in_a):
    expected = (matrix(b_from_a) @ np.append(x_in_a, 1.0))[:3]
    np.testing.assert_allclose(b_from_a.transform(x_in_a), expected, atol=1e-9)
    np.testing.assert_allclose(
        b_from_a.transform(b_from_a.origin_in_a), np.zeros(3), atol=1e-9
    )


@repeatable
@given(rigids, directions, st.floats(0.0, 0.5), vectors)
def test_adjoint_moves_a_perturbation_to_the_left(b_from_a, axis, angle, v):
    xi = np.concatenate([axis * angle, 0.05 * v])
    np.testing.assert_allclose(
        matrix(b_from_a @ exp_se3(xi)),
        matrix(exp_se3(adjoint(b_from_a) @ xi) @ b_from_a),
        atol=1e-8,
    )


@repeatable
@given(rigids)
def test_quaternions_agree_with_scipy_and_have_w_not_negative(b_from_a):
    q = quat_from_rotation(b_from_a.R)
    # A copy: SciPy 1.11 refuses matrices that are read-only.
    x, y, z, w = Rotation.from_matrix(b_from_a.R.copy()).as_quat()
    expected = np.array([w, x, y, z])
    assert q[0] >= 0
    assert min(np.abs(q - expected).max(), np.abs(q + expected).max()) < 1e-9
    np.testing.assert_allclose(rotation_from_quat(-3.0 * q), b_from_a.R, atol=1e-12)
    np.testing.assert_allclose(
        matrix(rigid_from_quat(q, b_from_a.t)), matrix(b_from_a), atol=1e-12
    )


@pytest.mark.parametrize("q", [[0, 0, 0, 0], [np.nan, 0, 0, 1], [1, 0, 0]])
def test_what_is_no_quaternion_is_refused(q):
    with pytest.raises(ValueError, match="not a rotation quaternion"):
        rotation_from_quat(q)


@repeatable
@given(directions, angles)
def test_rotation_angle(axis, angle):
    R = exp_so3(axis * angle)
    assert rotation_angle_rad(R) == pytest.approx(angle, abs=1e-9)
    np.testing.assert_allclose(rotation_angle_rad(np.stack([R, R.T])), angle, atol=1e-9)


@repeatable
@given(vectors, vectors)
def test_skew_is_the_cross_product(a, b):
    np.testing.assert_allclose(skew(a) @ b, np.cross(a, b), atol=1e-9)


def test_mean_rotation_is_that_of_quaternions():
    """Also of rotations that are far apart: the largest eigenvector of q q^T."""
    rng = np.random.default_rng(3)
    rotations = np.stack([exp_so3(v) for v in rng.normal(scale=0.8, size=(7, 3))])
    weights = rng.uniform(0.1, 2.0, 7)
    quats = np.stack([quat_from_rotation(R) for R in rotations])
    _, vectors = np.linalg.eigh(np.einsum("k,ki,kj->ij", weights, quats, quats))
    expected = rotation_from_quat(vectors[:, -1])
    np.testing.assert_allclose(mean_rotation(rotations, weights), expected, atol=1e-12)


def test_mean_rotation_lies_between_and_follows_the_weights():
    centre = exp_so3([0.3, -2.0, 0.5])
    tilt = np.array([0.2, 0.1, -0.1])
    pair = np.stack([centre @ exp_so3(tilt), centre @ exp_so3(-tilt)])
    np.testing.assert_allclose(mean_rotation(pair), centre, atol=1e-12)
    np.testing.assert_allclose(mean_rotation(pair, [1.0, 0.0]), pair[0], atol=1e-12)


def test_rows_of_rotation_vectors_are_those_one_by_one(rng):
    omegas = rng.normal(size=(20, 3)) * np.geomspace(1e-9, 3.0, 20)[:, None]
    omegas[0] = 0.0
    alone = np.stack([exp_so3(omega) for omega in omegas])
    np.testing.assert_allclose(exp_so3_rows(omegas), alone, atol=1e-14)
