"""Bringing a recording into the world frame of another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgeloc.errors import MapError
from edgeloc.geometry.se3 import mean_rotation, rotation_angle_rad
from edgeloc.types import BoolArray, FloatArray, Rigid3
from edgeloc_tools.datasets.recording import RecordedImage, Recording
from edgeloc_tools.mapping.align import (
    RobustSim3,
    Sim3,
    similarity_with_rotation,
)

MIN_AGREE = 6
MIN_SHARE = 0.3
"""Of the images whose poses are known in both frames: how many must agree."""
_MAX_TURN_RAD = np.deg2rad(3.0)
_MAX_SIGMAS = 3.75
_NUM_PAIRS = 400
_NUM_ROUNDS = 4


def similarity_of_poses(
    cam_from_a: Sequence[Rigid3],
    cam_from_b: Sequence[Rigid3],
    *,
    sigmas: FloatArray,
    with_scale: bool,
) -> RobustSim3:
    """Return the similarity ``b_from_a`` between two frames that see the same cameras.

    The rotation comes from the cameras' rotations, so that cameras on a line do; scale
    and translation from their centres, by consensus of pairs.

    Parameters
    ----------
    cam_from_a, cam_from_b : sequence of N Rigid3
        The same cameras in both frames; many of them may be wrong.
    sigmas : ndarray of shape (N,), float64
        Standard deviations of the centres in b, in its unit.
    with_scale : bool
        Whether the units differ.

    Raises
    ------
    MapError
        When too few of them agree.
    """
    num = len(cam_from_a)
    if num < MIN_AGREE:
        raise MapError(f"{num} poses are too few, {MIN_AGREE} are needed")
    turns = np.stack([q.R.T @ p.R for p, q in zip(cam_from_a, cam_from_b, strict=True)])
    between = turns[:, None] @ turns[None].transpose(0, 1, 3, 2)
    near = rotation_angle_rad(between) <= _MAX_TURN_RAD
    turned_alike = near[np.argmax(near.sum(axis=1))]
    a = np.stack([pose.origin_in_a for pose in cam_from_a])
    b = np.stack([pose.origin_in_a for pose in cam_from_b])
    mask = turned_alike
    sim = _by_consensus(a, b, turns, mask, sigmas=sigmas, with_scale=with_scale)
    for _ in range(_NUM_ROUNDS):
        off = np.linalg.norm(sim.apply(a) - b, axis=1)
        # What a fix says of itself is not trusted alone: recordings are never exact.
        limit = _MAX_SIGMAS * np.maximum(sigmas, np.median(off[mask]))
        mask = turned_alike & (off <= limit)
        _enough(mask)
        rotation = mean_rotation(turns[mask])
        sim = similarity_with_rotation(
            a[mask],
            b[mask],
            rotation,
            weights=sigmas[mask] ** -2.0,
            with_scale=with_scale,
        )
    off = np.linalg.norm(sim.apply(a) - b, axis=1)
    rmse = float(np.sqrt(np.mean(off[mask] ** 2)))
    return RobustSim3(sim=sim, inlier_mask=mask, rmse=rmse)


def _by_consensus(
    a: FloatArray,
    b: FloatArray,
    turns: FloatArray,
    mask: BoolArray,
    *,
    sigmas: FloatArray,
    with_scale: bool,
) -> Sim3:
    """Return the similarity of the pair of centres that most others agree with."""
    _enough(mask)
    rotation = mean_rotation(turns[mask])
    rows = np.flatnonzero(mask)
    rng = np.random.default_rng(0)
    best, best_cost = None, np.inf
    for _ in range(_NUM_PAIRS):
        pair = rng.choice(rows, 2, replace=False)
        try:
            sim = similarity_with_rotation(
                a[pair], b[pair], rotation, with_scale=with_scale
            )
        except ValueError:  # opposed, or in one place
            continue
        off = np.linalg.norm(sim.apply(a[rows]) - b[rows], axis=1)
        cost = float(np.median(off / np.maximum(sigmas[rows], 1e-9)))
        if cost < best_cost:
            best, best_cost = sim, cost
    if best is None:
        raise MapError("the centres of the cameras contradict their rotations")
    return best


def _enough(mask: BoolArray) -> None:
    agree = int(np.count_nonzero(mask))
    if agree < max(MIN_AGREE, MIN_SHARE * len(mask)):
        raise MapError(f"only {agree} of {len(mask)} poses agree on where it lies")


def moved(recording: Recording, b_from_a: Sim3) -> Recording:
    """Return a recording with its poses, and its depth, in another world frame.

    Gravity and geo-reference of its own are dropped.

    Parameters
    ----------
    recording : Recording
        In a.
    b_from_a : Sim3
        To the new frame and its unit.
    """

    def move(image: RecordedImage) -> RecordedImage:
        depth = image.depth
        if depth is not None:
            depth = replace(
                depth,
                metres_per_unit=depth.metres_per_unit * b_from_a.scale,
                cam_from_depth=Rigid3(
                    R=depth.cam_from_depth.R,
                    t=b_from_a.scale * depth.cam_from_depth.t,
                ),
            )
        pose = image.cam_from_world
        if pose is not None:
            pose = b_from_a.apply_to_pose(pose)
        return replace(image, cam_from_world=pose, depth=depth)

    return replace(
        recording,
        images=tuple(move(image) for image in recording.images),
        gravity_in_world=None,
        geo_reference=None,
    )
