"""Landmarks on a wall in front of a camera, with features that show them."""

from __future__ import annotations

import numpy as np

from edgeloc.geometry.camera import project
from edgeloc.localize.guided import make_viewed_map
from edgeloc.tiles.layout import LocalMap
from edgeloc.types import CameraModel, Features, Rigid3

CAMERA = CameraModel(
    model="PINHOLE", width=320, height=240, params=(250.0, 250.0, 160.0, 120.0)
)
START = Rigid3.identity()
WALL_M = 3.0
"""The wall is in the plane z = 3 m, its middle on the axis."""


def local_map(points, seed=3):
    rng = np.random.default_rng(seed)
    descriptors = rng.normal(size=(len(points), 32)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    n = len(points)
    return LocalMap(
        point3D_ids=np.arange(n) * 3 + 5,
        points3D=points,
        sigmas=np.full(n, 1e-3, np.float32),
        num_observations=np.arange(n)[::-1] + 2,
        descriptors=descriptors,
        row_to_point=np.arange(n),
    )


def wall_points(count=60, seed=2):
    rng = np.random.default_rng(seed)
    return np.column_stack(
        [rng.uniform(-1.5, 1.5, count), rng.uniform(-1.1, 1.1, count), [WALL_M] * count]
    )


def wall_map(centers=((0.1, 0.0, 0.0),), count=60):
    landmarks = local_map(wall_points(count))
    return make_viewed_map(
        landmarks,
        visible=[landmarks.point3D_ids for _ in centers],
        centers=np.array(centers),
        made_at=START,
    )


def features_of(viewed, idx, *, shift=0.0):
    pixels, _ = project(CAMERA, viewed.local_map.points3D[idx])
    return Features(
        keypoints=(pixels + shift).astype(np.float32),
        scores=np.ones(len(idx), np.float32),
        sigmas=np.ones(len(idx), np.float32),
        descriptors=viewed.local_map.descriptors[idx],
    )
