"""Exponential and logarithm of SO(3) and SE(3), rotation averages and text forms.

Tangent vectors are xi = (omega rad, v), and ``Exp(xi)`` is the matrix exponential, so
that ``v`` is not the translation unless omega = 0 (Barfoot, State Estimation for
Robotics, section 7.1).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgeloc.types import FloatArray, Rigid3


def skew(v: npt.ArrayLike) -> FloatArray:
    """Return the matrices of the cross product, ``skew(a) @ b = a x b``.

    Parameters
    ----------
    v : array_like of shape (..., 3)
        Vectors.

    Returns
    -------
    ndarray of shape (..., 3, 3), float64
    """
    v = np.asarray(v, dtype=np.float64)
    out = np.zeros((*v.shape[:-1], 3, 3))
    out[..., 0, 1], out[..., 0, 2] = -v[..., 2], v[..., 1]
    out[..., 1, 0], out[..., 1, 2] = v[..., 2], -v[..., 0]
    out[..., 2, 0], out[..., 2, 1] = -v[..., 1], v[..., 0]
    return out


def cross_rows(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return the cross product of each row with each row, (N, 3).

    As `numpy.cross`, which takes two to three times as long on 100 to 1000 rows.

    Parameters
    ----------
    a, b : ndarray of shape (N, 3) or (3,), float64
        At least one of them has rows.
    """
    ax, ay, az = a[..., 0], a[..., 1], a[..., 2]
    bx, by, bz = b[..., 0], b[..., 1], b[..., 2]
    return np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=-1)


def _exp_coefficients(angle_rad: float) -> tuple[float, float, float]:
    """Return sin(a)/a, (1-cos(a))/a^2 and (a-sin(a))/a^3, also near zero."""
    square = angle_rad * angle_rad
    if angle_rad < 1e-3:
        return (
            1.0 - square / 6.0,
            0.5 - square / 24.0,
            1.0 / 6.0 - square / 120.0,
        )
    half_sin = math.sin(0.5 * angle_rad)
    return (
        math.sin(angle_rad) / angle_rad,
        2.0 * half_sin * half_sin / square,
        (angle_rad - math.sin(angle_rad)) / (square * angle_rad),
    )


def _project_to_rotation(matrix: FloatArray) -> FloatArray:
    """Return the nearest rotation, so that long products stay orthonormal."""
    u, _, vt = np.linalg.svd(matrix)
    return np.asarray(u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt)


def exp_so3(omega_rad: npt.ArrayLike) -> FloatArray:
    """Return the rotation matrix of a rotation vector (Rodrigues' formula).

    Parameters
    ----------
    omega_rad : array_like of shape (3,)
        Axis times angle.

    Returns
    -------
    ndarray of shape (3, 3), float64
    """
    omega = np.asarray(omega_rad, dtype=np.float64)
    a, b, _ = _exp_coefficients(float(np.linalg.norm(omega)))
    w = skew(omega)
    return np.eye(3) + a * w + b * (w @ w)


def exp_so3_rows(omegas_rad: FloatArray) -> FloatArray:
    """Return the rotation matrices of rotation vectors.

    Parameters
    ----------
    omegas_rad : ndarray of shape (N, 3), float64
        Axes times angles.

    Returns
    -------
    ndarray of shape (N, 3, 3), float64
    """
    angles = np.linalg.norm(omegas_rad, axis=1)[:, None, None]
    w = skew(omegas_rad)
    # sinc(x) is sin(pi x) / (pi x), and 1 at 0.
    half = np.sinc(angles / (2.0 * np.pi))
    return np.asarray(np.eye(3) + np.sinc(angles / np.pi) * w + 0.5 * half**2 * (w @ w))


def log_so3(R: npt.ArrayLike) -> FloatArray:
    """Return the rotation vector of a rotation matrix, angle in [0, pi].

    Accurate at 0 and near pi, through the quaternion.

    Parameters
    ----------
    R : array_like of shape (3, 3)
        Rotation matrix.

    Returns
    -------
    ndarray of shape (3,), float64, rad
    """
    q = quat_from_rotation(R)
    sin_half = float(np.linalg.norm(q[1:]))
    if sin_half < 1e-9:
        return 2.0 * q[1:]
    angle_rad = 2.0 * math.atan2(sin_half, float(q[0]))
    return np.asarray(q[1:] * (angle_rad / sin_half))


def exp_se3(xi: npt.ArrayLike) -> Rigid3:
    """Return ``Exp(xi)``.

    Parameters
    ----------
    xi : array_like of shape (6,)
        (omega rad, v).

    Returns
    -------
    Rigid3
    """
    xi = np.asarray(xi, dtype=np.float64)
    omega, v = xi[:3], xi[3:]
    a, b, c = _exp_coefficients(float(np.linalg.norm(omega)))
    w = skew(omega)
    w2 = w @ w
    rotation = np.eye(3) + a * w + b * w2
    left_jacobian = np.eye(3) + b * w + c * w2
    return Rigid3(R=_project_to_rotation(rotation), t=left_jacobian @ v)


def log_se3(b_from_a: Rigid3) -> FloatArray:
    """Return xi with ``Exp(xi) = b_from_a``.

    Parameters
    ----------
    b_from_a : Rigid3
        Its rotation angle is below pi for a unique answer.

    Returns
    -------
    ndarray of shape (6,), float64
    """
    omega = log_so3(b_from_a.R)
    _, b, c = _exp_coefficients(float(np.linalg.norm(omega)))
    w = skew(omega)
    left_jacobian = np.eye(3) + b * w + c * (w @ w)
    return np.concatenate([omega, np.linalg.solve(left_jacobian, b_from_a.t)])


def adjoint(b_from_a: Rigid3) -> FloatArray:
    """Return Ad with ``T @ Exp(xi) = Exp(Ad @ xi) @ T`` for T = b_from_a.

    Returns
    -------
    ndarray of shape (6, 6), float64
        In (rotation, translation) order.
    """
    out = np.zeros((6, 6))
    out[:3, :3] = out[3:, 3:] = b_from_a.R
    out[3:, :3] = skew(b_from_a.t) @ b_from_a.R
    return out


def quat_from_rotation(R: npt.ArrayLike) -> FloatArray:
    """Return the unit quaternion (w, x, y, z), w >= 0, of a rotation matrix.

    Parameters
    ----------
    R : array_like of shape (3, 3)
        Rotation matrix.

    Returns
    -------
    ndarray of shape (4,), float64
    """
    m = np.asarray(R, dtype=np.float64)
    trace = m[0, 0] + m[1, 1] + m[2, 2]
    # 4 q q^T, of which the row with the largest diagonal is the best conditioned.
    outer = np.array(
        [
            [1 + trace, m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]],
            [0, 1 + 2 * m[0, 0] - trace, m[0, 1] + m[1, 0], m[0, 2] + m[2, 0]],
            [0, 0, 1 + 2 * m[1, 1] - trace, m[1, 2] + m[2, 1]],
            [0, 0, 0, 1 + 2 * m[2, 2] - trace],
        ]
    )
    outer = outer + np.triu(outer, 1).T
    q = outer[int(np.argmax(np.diag(outer)))]
    q = q / np.linalg.norm(q)
    return np.asarray(-q if q[0] < 0 else q)


def rotation_from_quat(q_wxyz: npt.ArrayLike) -> FloatArray:
    """Return the rotation matrix of a quaternion (w, x, y, z) of any length > 0.

    Parameters
    ----------
    q_wxyz : array_like of shape (4,)
        Hamilton quaternion.

    Returns
    -------
    ndarray of shape (3, 3), float64

    Raises
    ------
    ValueError
        When the quaternion is zero or not finite.
    """
    q = np.asarray(q_wxyz, dtype=np.float64)
    norm = float(np.linalg.norm(q))
    if q.shape != (4,) or not math.isfinite(norm) or norm < 1e-9:
        raise ValueError(f"not a rotation quaternion: {q.tolist()}")
    w, x, y, z = q / norm
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def rigid_from_quat(q_wxyz: npt.ArrayLike, t: npt.ArrayLike) -> Rigid3:
    """Return the transform of a quaternion (w, x, y, z) and a translation (3,)."""
    return Rigid3(R=rotation_from_quat(q_wxyz), t=np.asarray(t, dtype=np.float64))


def rotation_angle_rad(R: npt.ArrayLike) -> FloatArray:
    """Return the rotation angles of rotation matrices, accurate also near 0.

    Parameters
    ----------
    R : array_like of shape (..., 3, 3)
        Rotation matrices.

    Returns
    -------
    ndarray of shape (...), float64, rad in [0, pi]
    """
    m = np.asarray(R, dtype=np.float64)
    axis2sin = np.stack(
        [
            m[..., 2, 1] - m[..., 1, 2],
            m[..., 0, 2] - m[..., 2, 0],
            m[..., 1, 0] - m[..., 0, 1],
        ],
        axis=-1,
    )
    trace = np.trace(m, axis1=-2, axis2=-1)
    return np.asarray(np.arctan2(np.linalg.norm(axis2sin, axis=-1), trace - 1.0))


def minimal_rotation(a: npt.ArrayLike, b: npt.ArrayLike) -> FloatArray:
    """Return the rotation of smallest angle that turns direction a into b, (3, 3)."""
    u = np.asarray(a, dtype=np.float64)
    v = np.asarray(b, dtype=np.float64)
    u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
    cosine = float(u @ v)
    if cosine < -1.0 + 1e-12:
        helper = np.eye(3)[int(np.argmin(np.abs(u)))]
        axis = np.cross(u, helper)
        axis /= np.linalg.norm(axis)
        return np.asarray(2.0 * np.outer(axis, axis) - np.eye(3))
    # R = 2 h h^T - I composed with 2 u u^T - I, two half turns, h between u and v.
    half = (u + v) / np.linalg.norm(u + v)
    turn = 2.0 * np.outer(half, half) - np.eye(3)
    return np.asarray(turn @ (2.0 * np.outer(u, u) - np.eye(3)))


def mean_rotation(
    rotations: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> FloatArray:
    """Return the weighted chordal mean of rotations [1]_.

    Parameters
    ----------
    rotations : array_like of shape (K, 3, 3)
        Rotation matrices.
    weights : array_like of shape (K,), optional
        Weights, equal by default.

    Returns
    -------
    ndarray of shape (3, 3), float64

    References
    ----------
    .. [1] Hartley, Trumpf, Dai, Li, "Rotation Averaging", IJCV 2013, section 5.3; the
       same as Markley et al., "Averaging Quaternions", JGCD 2007, at a tenth of the
       cost.
    """
    R = np.asarray(rotations, np.float64)
    w = np.ones(len(R)) if weights is None else np.asarray(weights, np.float64)
    u, _, vt = np.linalg.svd(np.einsum("k,kij->ij", w, R))
    # Of the two orthogonal matrices next to the mean, the one that is a rotation.
    u[:, 2] *= np.sign(np.linalg.det(u) * np.linalg.det(vt))
    return np.asarray(u @ vt)
