"""Entries of logs, shared by the tests of recording and replay."""

from __future__ import annotations

import cv2
import numpy as np

from edgeloc.geometry.se3 import exp_se3
from edgeloc.geometry.upright import Vertical
from edgeloc.localize.pose_prior import HeadingPrior, PosePrior, PositionPrior
from edgeloc.runtime.log_format import (
    Counters,
    EncodedImage,
    LoggedAnswer,
    LoggedFrame,
    Session,
    SourceFacts,
    record_bytes,
)
from edgeloc.runtime.sensed_motion import RelativeMotion, SensedMotion
from edgeloc.types import CameraModel, Cause, PoseEstimate, PoseStatus, Rung

CAMERA = CameraModel(
    model="PINHOLE", width=64, height=48, params=(50.0, 50.0, 32.0, 24.0)
)
MS = 1_000_000
PRIOR = PosePrior(
    position=PositionPrior(
        center=np.array([1.0, 2.0, 0.1 + 0.2]), covariance=np.diag([1.0, 4.0, 9.0])
    ),
    heading=HeadingPrior(heading_rad=1.5, sigma_rad=0.1),
    vertical=Vertical(
        down_in_cam=np.array([0.0, 1.0, 0.0]),
        down_in_world=np.array([0.0, 0.0, -1.0]),
        sigma_rad=0.05,
    ),
)
MOTION = SensedMotion(
    start_ns=-5 * MS,
    end_ns=33 * MS,
    rate_times_ns=np.array([-6 * MS, 34 * MS]),
    rates_rad_s=np.array([[0.1, 0.2, 0.1 + 0.2], [0.0, -0.1, 0.0]]),
    odometry=RelativeMotion(
        newer_from_older=exp_se3([0.1, -0.2, 0.3, 1.0, 2.0, 3.0]),
        covariance=np.diag([1e-6, 1e-6, 1e-6, 1e-4, 1e-4, 1e-4]),
    ),
)


def session_of_test(**changes):
    values = {
        "edgeloc_version": "0.1.0",
        "libraries": {"numpy": "2.4.0"},
        "config": {"method": "auto", "cold": False, "out": ("jsonl:-",), "rate": None},
        "map_path": "/maps/site",
        "map_id": "room",
        "map_sha256": "ab" * 32,
        "camera": CAMERA,
        "source": SourceFacts(kind="live", name="/dev/video0"),
        "images": "png",
        "same_pixels": True,
        "offers": False,
        "start_ns": 5,
        "unix_time_ns": 1_700_000_000_000_000_000,
    }
    return Session(**{**values, **changes})


def picture(frame_id=0, *, size=(64, 48)):
    rng = np.random.default_rng(frame_id)
    return rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)


def png(image):
    return EncodedImage(kind="png", data=cv2.imencode(".png", image)[1].tobytes())


def logged_frame(frame_id=0, **changes):
    values = {
        "frame_id": frame_id,
        "camera_id": "0",
        "timestamp_ns": frame_id * 33 * MS,
        "source": f"video0#{frame_id}",
        "start_ns": frame_id * 33 * MS,
        "deadline_ns": (frame_id + 1) * 33 * MS,
        "before": (5, 6, 1_000),
        "image": png(picture(frame_id)),
    }
    return LoggedFrame(**{**values, **changes})


def estimate_of(frame_id=0, **changes):
    xi = np.array([0.1, -0.2, 0.3, 1.0, 2.0, 3.0 + frame_id])
    half = np.random.default_rng(frame_id).normal(size=(6, 6))
    values = {
        "frame_id": frame_id,
        "timestamp_ns": frame_id * 33 * MS,
        "status": PoseStatus.LOCALIZED,
        "rung": Rung.RELOCALIZE,
        "cause": Cause.NONE,
        "cam_from_world": exp_se3(xi),
        "covariance": half @ half.T + np.eye(6),
        "num_matches": 300,
        "num_inliers": 200,
        "reproj_rmse_px": 0.1 + 0.2,
        "latency_ns": 12_345_678,
        "deadline_met": True,
        "stage_ns": {"features": 8 * MS, "match_pnp": 3 * MS},
        "map_id": "room",
    }
    return PoseEstimate(**{**values, **changes})


def lost_estimate_of(frame_id=0, **changes):
    values = {
        "status": PoseStatus.LOST,
        "rung": Rung.LOST,
        "cause": Cause.FEW_MATCHES,
        "cam_from_world": None,
        "covariance": None,
        "num_inliers": 0,
        "reproj_rmse_px": 0.0,
    }
    return estimate_of(frame_id, **{**values, **changes})


def logged_answer(frame_id=0, **changes):
    values = {
        "estimate": estimate_of(frame_id),
        "readings": (frame_id * 33 * MS, frame_id * 33 * MS + 7),
    }
    return LoggedAnswer(**{**values, **changes})


def small_log(num_frames=3, **changes):
    """The bytes of a log that ended well."""
    entries = [session_of_test(**changes)]
    for frame_id in range(num_frames):
        entries += [logged_frame(frame_id), logged_answer(frame_id)]
    entries.append(Counters(values={"dropped": 2}, end=True))
    return b"".join(record_bytes(entry) for entry in entries)


def assert_same_estimate(a, b):
    for name in PoseEstimate.__slots__:
        then, now = getattr(a, name), getattr(b, name)
        if name == "cam_from_world":
            assert (then is None) == (now is None)
            if then is not None:
                np.testing.assert_array_equal(then.R, now.R)
                np.testing.assert_array_equal(then.t, now.t)
        elif name == "covariance" and then is not None:
            np.testing.assert_array_equal(then, now)
        else:
            assert then == now, name
