"""A walk whose features and global descriptors are made up."""

from __future__ import annotations

import numpy as np

from edgeloc.features.keyframe_index import global_coding
from edgeloc.localize.structure import StructureOptions
from edgeloc.types import CameraModel, Rigid3
from edgeloc_tools.mapping.held_out import Describing
from edgeloc_tools.mapping.tracks import MappingImage

NUM_FEATURES = 40
CAMERA = CameraModel(
    model="PINHOLE", width=640, height=480, params=(500.0, 500.0, 320.0, 240.0)
)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def walk(rng, *, shows, step):
    """Images along a line, `step` apart; image k shows what stands beside `shows[k]`.

    Ten features stand at every step, and an image sees those of four steps.
    """
    per_step = NUM_FEATURES // 4
    descriptors = unit(rng.normal(size=((len(shows) + 4) * per_step, 32)))
    at = rng.uniform([-1.5, -1.0], [1.5, 1.0], (len(descriptors), 2))
    images = []
    for k in range(len(shows)):
        seen = np.arange(shows[k] * per_step, shows[k] * per_step + NUM_FEATURES)
        points = at[seen] - [0.05 * shows[k], 0.0]
        keypoints = (points * 100 + [320, 240]).astype(np.float32)
        rows = unit(descriptors[seen] + 0.02 * rng.normal(size=(NUM_FEATURES, 32)))
        images.append(
            MappingImage(
                name=f"{k}",
                camera_id="c",
                camera=CAMERA,
                cam_from_world=Rigid3(R=np.eye(3), t=[-step * k, 0.0, 0.0]),
                keypoints=keypoints,
                sigmas=np.ones(NUM_FEATURES, np.float32),
                stored=rows,
                descriptors=rows,
                depth=np.full(NUM_FEATURES, np.nan),
                depth_sigma=np.full(NUM_FEATURES, np.nan),
            )
        )
    return images


def smooth_vectors(rng, count):
    """Global descriptors that change slowly along the walk, by about 0.1 a step."""
    frequencies = rng.normal(scale=0.35, size=(1, 48))
    phases = rng.uniform(0, 2 * np.pi, (1, 48))
    return unit(np.cos(np.arange(count)[:, None] * frequencies + phases))


def describing():
    """Descriptors as they are."""
    return Describing(
        decode_landmarks=lambda rows: rows.astype(np.float32),
        decode_global=global_coding("float16", None).decode,
        structure=StructureOptions(),
    )
