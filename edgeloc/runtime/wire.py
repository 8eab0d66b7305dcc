"""Estimates and odometry as bytes and numbers, for shared memory."""

from __future__ import annotations

import struct

import numpy as np

from edgeloc.runtime.odometry import Odometry
from edgeloc.types import Cause, FloatArray, PoseEstimate, PoseStatus, Rigid3, Rung

_NS_PER_S = 1_000_000_000
_MAX_STAGES = 16
_STATUSES, _RUNGS, _CAUSES = tuple(PoseStatus), tuple(Rung), tuple(Cause)
_STATUS_CODES = {status: code for code, status in enumerate(_STATUSES)}
_RUNG_CODES = {rung: code for code, rung in enumerate(_RUNGS)}
_CAUSE_CODES = {cause: code for code, cause in enumerate(_CAUSES)}

# ids and time; codes and counts; latency and residual; pose; covariance
_FIXED = struct.Struct("<qqBBBBiiidq12d36d")
_STAGE = struct.Struct("<24sq")

PACKED_BYTES = _FIXED.size + _MAX_STAGES * _STAGE.size
"""Size of every packed estimate."""

_NO_POSE = (0.0,) * 48


def odometry_vector(odometry: Odometry | None) -> FloatArray | None:
    """Return an odometry as numbers, None for none."""
    if odometry is None:
        return None
    poses = (odometry.cam_from_odom, odometry.map_from_odom)
    # A time as one float64 would be rounded after 104 days.
    return np.concatenate(
        [
            np.array(divmod(odometry.timestamp_ns, _NS_PER_S), dtype=np.float64),
            *(part for pose in poses for part in (pose.R.ravel(), pose.t)),
        ]
    )


def odometry_from_vector(vector: FloatArray) -> Odometry:
    """Return what `odometry_vector` made numbers of."""
    cam, world = (
        Rigid3(R=part[:9].reshape(3, 3), t=part[9:]) for part in np.split(vector[2:], 2)
    )
    return Odometry(
        timestamp_ns=int(vector[0]) * _NS_PER_S + int(vector[1]),
        cam_from_odom=cam,
        map_from_odom=world,
    )


def pack_estimate(estimate: PoseEstimate) -> bytes:
    """Return an estimate as `PACKED_BYTES` bytes; `map_id` is left out.

    Of more than 16 stages only the first are kept, of their names the first 24 bytes.
    """
    pose, covariance = estimate.cam_from_world, estimate.covariance
    numbers = _NO_POSE
    if pose is not None and covariance is not None:
        numbers = (*pose.R.ravel(), *pose.t, *covariance.ravel())
    stages = list(estimate.stage_ns.items())[:_MAX_STAGES]
    head = _FIXED.pack(
        estimate.frame_id,
        estimate.timestamp_ns,
        _STATUS_CODES[estimate.status],
        _RUNG_CODES[estimate.rung],
        _CAUSE_CODES[estimate.cause],
        int(estimate.deadline_met),
        estimate.num_matches,
        estimate.num_inliers,
        len(stages),
        estimate.reproj_rmse_px,
        estimate.latency_ns,
        *numbers,
    )
    tail = b"".join(
        _STAGE.pack(name.encode("ascii", "replace"), cost_ns)
        for name, cost_ns in stages
    )
    return (head + tail).ljust(PACKED_BYTES, b"\0")


def unpack_estimate(data: bytes, *, map_id: str) -> PoseEstimate:
    """Return what `pack_estimate` packed.

    Parameters
    ----------
    data : bytes
        `PACKED_BYTES` of them.
    map_id : str
        Which site answered.
    """
    fields = _FIXED.unpack_from(data)
    status = _STATUSES[fields[2]]
    pose = covariance = None
    if status is not PoseStatus.LOST:
        numbers = np.array(fields[11:])
        pose = Rigid3(R=numbers[:9].reshape(3, 3), t=numbers[9:12])
        covariance = numbers[12:].reshape(6, 6)
    stages = (
        _STAGE.unpack_from(data, _FIXED.size + idx * _STAGE.size)
        for idx in range(fields[8])
    )
    return PoseEstimate(
        frame_id=fields[0],
        timestamp_ns=fields[1],
        status=status,
        rung=_RUNGS[fields[3]],
        cause=_CAUSES[fields[4]],
        cam_from_world=pose,
        covariance=covariance,
        num_matches=fields[6],
        num_inliers=fields[7],
        reproj_rmse_px=fields[9],
        latency_ns=fields[10],
        deadline_met=bool(fields[5]),
        stage_ns={
            name.rstrip(b"\0").decode("ascii", "replace"): cost for name, cost in stages
        },
        map_id=map_id,
    )
