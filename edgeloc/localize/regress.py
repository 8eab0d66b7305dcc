"""REGRESS: a head of the site says straight away where the camera is [1]_.

From what is where in the picture: the mean descriptors of the cells of a grid. No
evidence stands behind such a pose but that the head was right on other frames, so that
it is always COARSE, with what those frames were off by as its covariance.

References
----------
.. [1] Kendall, Grimes, Cipolla, "PoseNet", ICCV 2015.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgeloc.errors import ModelError
from edgeloc.features.view import pooled_view
from edgeloc.geometry.se3 import exp_so3, rotation_from_quat
from edgeloc.inference.head import Head
from edgeloc.inference.manifest import HeadSpec
from edgeloc.inference.network import Network
from edgeloc.localize.candidate import LOST, Candidate, Query
from edgeloc.types import (
    ByteArray,
    Cause,
    Float32Array,
    FloatArray,
    PoseStatus,
    Rigid3,
    Rung,
)

CALIBRATION = "regress_calibration"
"""Of the arrays in a site's index."""

MIN_FEATURES = 15
"""With fewer the picture says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegressCalibration:
    """What a head was off by on frames that it had not seen.

    Parameters
    ----------
    position_sigma : float
        Standard deviation of a position, per axis, m.
    rotation_sigma_rad : float
        Standard deviation of a rotation, per axis.
    """

    position_sigma: float
    rotation_sigma_rad: float

    def __post_init__(self) -> None:
        if not (self.position_sigma > 0 and self.rotation_sigma_rad > 0):
            raise ValueError(
                f"{self.position_sigma=} and {self.rotation_sigma_rad=} must be > 0"
            )

    def to_arrays(self) -> Mapping[str, Float32Array]:
        """Return the array that a site stores."""
        values = [self.position_sigma, self.rotation_sigma_rad]
        return {CALIBRATION: np.array(values, np.float32)}

    @staticmethod
    def from_arrays(arrays: Mapping[str, Float32Array]) -> RegressCalibration:
        """Return the calibration of a site's arrays; `ValueError` when it is wrong."""
        values = arrays.get(CALIBRATION, np.zeros(0, np.float32))
        if values.shape != (2,):
            raise ValueError(f"{CALIBRATION} has shape {values.shape}, expected (2,)")
        return RegressCalibration(
            position_sigma=float(values[0]), rotation_sigma_rad=float(values[1])
        )


def rotation_from_six(values: FloatArray) -> FloatArray | None:
    """Return the rotation whose first two rows are nearest to six numbers.

    Gram and Schmidt's; continuous, unlike quaternions and angles [1]_.

    Parameters
    ----------
    values : ndarray of shape (6,), float64
        Two rows, of any length.

    Returns
    -------
    ndarray of shape (3, 3), float64, or None
        None when the rows are 0 or parallel.

    References
    ----------
    .. [1] Zhou et al., "On the Continuity of Rotation Representations in Neural
       Networks", CVPR 2019, section 4.2.
    """
    first, second = values[:3], values[3:]
    length = float(np.linalg.norm(first))
    if not length > 1e-9:
        return None
    first = first / length
    second = second - first * float(first @ second)
    length = float(np.linalg.norm(second))
    if not length > 1e-9:
        return None
    second = second / length
    return np.stack([first, second, np.cross(first, second)])


def head_view(query: Query, head: Head) -> Float32Array:
    """Return what a head takes of a frame, (D, rows, columns)."""
    return pooled_view(
        query.features.keypoints,
        query.descriptors,
        query.camera,
        grid=head.spec.grid,
        extent=head.spec.extent,
    )


def regress_pose(
    query: Query, head: Head, *, calibration: RegressCalibration
) -> Candidate:
    """Return the pose that a head sees in a frame.

    Parameters
    ----------
    query : Query
        The frame.
    head : Head
        Of the role "regress".
    calibration : RegressCalibration
        Of the head.

    Returns
    -------
    Candidate
        COARSE; LOST when the picture is all but empty.

    Raises
    ------
    ModelError
        When the head fails, or gives something else.
    """
    if len(query.features) < MIN_FEATURES:
        return replace(LOST, cause=Cause.FEW_FEATURES)
    outputs = head.run(head_view(query, head)[None])
    center, rotation = outputs["center"], outputs["rotation"]
    if center.size != 3 or rotation.size != 6:
        raise ModelError(
            f"{head.path}: gives center {center.shape} and rotation {rotation.shape}, "
            "expected 3 and 6 numbers"
        )
    R = rotation_from_six(rotation.reshape(6).astype(np.float64))
    if R is None:
        return replace(LOST, cause=Cause.AMBIGUOUS)
    return _coarse(R, center, head.spec, calibration)


def regress_picture(
    network: Network, image: ByteArray, *, calibration: RegressCalibration
) -> Candidate:
    """Return the pose that a network sees in a picture.

    Parameters
    ----------
    network : Network
        Of the role "regress": the decoders "pose-quaternion", "pose-log-quaternion".
    image : ndarray of shape (H, W) or (H, W, 3), uint8
        The picture.
    calibration : RegressCalibration
        Of the network.

    Returns
    -------
    Candidate
        COARSE; LOST when the quaternion is 0.

    Raises
    ------
    ModelError
        When the network fails, or gives something else.
    """
    outputs, _ = network.run(image)
    [turn] = set(outputs) - {"center"}
    center, rotation = outputs["center"], outputs[turn]
    count = 4 if turn == "quaternion" else 3
    if center.size != 3 or rotation.size != count:
        raise ModelError(
            f"{network.model.manifest_path}: gives center {center.shape} and {turn} "
            f"{rotation.shape}, expected 3 and {count} numbers"
        )
    numbers = rotation.ravel().astype(np.float64)
    if turn == "log_quaternion":
        R = exp_so3(2.0 * numbers)  # the angle of a quaternion is half the rotation's
    elif not np.any(numbers):
        return replace(LOST, cause=Cause.AMBIGUOUS)
    else:
        R = rotation_from_quat(numbers)
    spec = network.manifest.head
    assert spec is not None  # manifests of this role have one
    return _coarse(R, center, spec, calibration)


def _coarse(
    R: FloatArray,
    center: Float32Array,
    spec: HeadSpec,
    calibration: RegressCalibration,
) -> Candidate:
    in_world = center.reshape(3).astype(np.float64) + np.array(spec.origin)
    return Candidate(
        status=PoseStatus.COARSE,
        rung=Rung.REGRESS,
        cause=Cause.NONE,
        cam_from_world=Rigid3(R=R, t=-R @ in_world),
        covariance=np.diag(
            [calibration.rotation_sigma_rad**2] * 3
            + [calibration.position_sigma**2] * 3
        ),
    )
