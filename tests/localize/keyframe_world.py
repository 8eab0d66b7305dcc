"""Points seen by a query and by posed keyframes, with exact ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeloc.features.match import MatchOptions
from edgeloc.geometry.camera import project
from edgeloc.geometry.se3 import exp_so3
from edgeloc.localize.candidate import Query
from edgeloc.localize.keyframe_matches import (
    KeyframeMatches,
    KeyframeViews,
    match_keyframes,
)
from edgeloc.tiles.layout import KeyframeFeatures
from edgeloc.types import CameraModel, Features, Rigid3

CAMERA = CameraModel(
    model="SIMPLE_PINHOLE", width=640, height=480, params=(500.0, 320.0, 240.0)
)
WIDE = CameraModel(
    model="OPENCV",
    width=800,
    height=600,
    params=(450.0, 460.0, 400.0, 300.0, -0.1, 0.02, 0.001, -0.001),
)
DIM = 32


def pose_at(center: Sequence[float], turn: Sequence[float] = (0, 0, 0)) -> Rigid3:
    R = exp_so3(np.asarray(turn, float))
    return Rigid3(R=R, t=-R @ np.asarray(center, float))


def box_points(rng: np.random.Generator, num: int = 400) -> np.ndarray:
    """In front of cameras around the origin that look along z."""
    return rng.uniform([-3, -2, 3], [3, 2, 7], (num, 3))


def plane_points(rng: np.random.Generator, num: int = 400) -> np.ndarray:
    """On a wall that is turned a little."""
    xy = rng.uniform([-3, -2], [3, 2], (num, 2))
    return np.column_stack([xy, 5.0 + 0.3 * xy[:, 0] - 0.2 * xy[:, 1]])


@dataclass
class World:
    """What a query and its keyframes see.

    Parameters
    ----------
    truth : Rigid3
        Pose of the query.
    query : Query
        Its features.
    views : KeyframeViews
        The keyframes.
    """

    truth: Rigid3
    query: Query
    views: KeyframeViews

    def matches(self) -> KeyframeMatches:
        return match_keyframes(
            self.query,
            self.views,
            decode=lambda rows: rows.astype(np.float32),
            options=MatchOptions(max_ratio=0.9),
        )

    def error(self, pose: Rigid3) -> float:
        """Distance of a camera centre from the truth."""
        return float(np.linalg.norm(pose.origin_in_a - self.truth.origin_in_a))


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def make_world(
    rng: np.random.Generator,
    points: np.ndarray,
    *,
    truth: Rigid3,
    keyframes: Sequence[Rigid3],
    cameras: Sequence[CameraModel] | None = None,
    noise_px: float = 0.5,
    wrong: float = 0.2,
) -> World:
    """Let everybody see the points.

    Parameters
    ----------
    wrong : float
        Share of the keyframes' features that look like the one of another point.
    """
    looks = unit(rng.normal(size=(len(points), DIM)))

    def see(camera: CameraModel, pose: Rigid3, share: float):
        pixels, seen = project(camera, pose.transform(points))
        inside = (pixels > 0).all(axis=1) & (
            pixels < (camera.width, camera.height)
        ).all(axis=1)
        idx = rng.permutation(np.flatnonzero(seen & inside))
        pixels = pixels[idx] + noise_px * rng.normal(size=(len(idx), 2))
        shown = idx.copy()
        swapped = rng.uniform(size=len(idx)) < share
        shown[swapped] = rng.permutation(shown[swapped])
        rows = unit(looks[shown] + 0.05 * rng.normal(size=(len(idx), DIM)))
        return np.clip(pixels, 0, None).astype(np.float32), rows

    cameras = cameras or [CAMERA] * len(keyframes)
    found = [
        see(camera, pose, wrong)
        for camera, pose in zip(cameras, keyframes, strict=True)
    ]
    pixels, rows = see(CAMERA, truth, 0.0)
    return World(
        truth=truth,
        query=Query(
            camera=CAMERA,
            features=Features(
                keypoints=pixels,
                scores=np.ones(len(rows), np.float32),
                sigmas=np.ones(len(rows), np.float32),
                descriptors=rows,
            ),
            descriptors=rows,
            global_descriptor=np.zeros(1, np.float32),
        ),
        views=KeyframeViews(
            cameras=cameras,
            poses=list(keyframes),
            features=KeyframeFeatures(
                offsets=np.cumsum([0, *(len(r) for _, r in found)]),
                keypoints=np.concatenate([p for p, _ in found]),
                sigmas=np.ones(sum(len(r) for _, r in found), np.float32),
                descriptors=np.concatenate([r for _, r in found]),
            ),
        ),
    )


TRUTH = pose_at([0.2, 0.1, 0.3], [0.05, -0.1, 0.02])
AROUND = [
    pose_at([-0.5, 0.0, 0.0], [0.0, 0.1, 0.0]),
    pose_at([0.6, -0.2, 0.1], [0.05, -0.1, 0.1]),
    pose_at([0.1, 0.4, -0.5], [-0.1, 0.0, -0.05]),
    pose_at([0.4, -0.5, 0.6]),
]
"""Keyframes at different places around the query."""
