"""Pairwise matches, checked against the known poses, joined to tracks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeloc.features.match import MatchOptions, match_descriptors
from edgeloc.geometry.camera import normalized_from_pixels
from edgeloc.geometry.epipolar import essential_from_poses, sampson_error
from edgeloc.types import CameraModel, Float32Array, FloatArray, IntArray, Rigid3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MappingImage:
    """One mapping image, ready to be matched.

    Parameters
    ----------
    name : str
        Name in the recording.
    camera_id : str
        Its camera.
    camera : CameraModel
        Intrinsics.
    cam_from_world : Rigid3
        Pose.
    keypoints : ndarray of shape (N, 2), float32
        px.
    sigmas : ndarray of shape (N,), float32
        Of the keypoints, as in `Features`.
    stored : ndarray of shape (N, S)
        Descriptors in stored form.
    descriptors : ndarray of shape (N, D), float32
        The same, decoded.
    depth, depth_sigma : ndarray of shape (N,), float64
        Of the keypoints, m; nan where unknown.
    """

    name: str
    camera_id: str
    camera: CameraModel
    cam_from_world: Rigid3
    keypoints: Float32Array
    sigmas: Float32Array
    stored: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
    descriptors: Float32Array
    depth: FloatArray
    depth_sigma: FloatArray


def match_pair(
    a: MappingImage, b: MappingImage, *, options: MatchOptions, max_error_px: float
) -> tuple[IntArray, Float32Array]:
    """Return matches of two posed images that satisfy their epipolar geometry.

    Parameters
    ----------
    a, b : MappingImage
        The images.
    options : MatchOptions
        What counts as a match.
    max_error_px : float
        Largest Sampson distance.

    Returns
    -------
    keypoint_idx : ndarray of shape (M, 2), int64
        Keypoint indices in a and in b.
    scores : ndarray of shape (M,), float32
        How distinct each match is.
    """
    idx_a, idx_b, scores = match_descriptors(a.descriptors, b.descriptors, options)
    baseline = np.linalg.norm(
        a.cam_from_world.origin_in_a - b.cam_from_world.origin_in_a
    )
    if len(idx_a) and baseline > 1e-9:
        essential = essential_from_poses(a.cam_from_world, b.cam_from_world)
        x_a = normalized_from_pixels(a.camera, a.keypoints[idx_a].astype(np.float64))
        x_b = normalized_from_pixels(b.camera, b.keypoints[idx_b].astype(np.float64))
        focal_px = float(np.mean(a.camera.focal_px + b.camera.focal_px))
        error_px = np.abs(sampson_error(essential, x_a, x_b)) * focal_px
        keep = error_px <= max_error_px
        idx_a, idx_b, scores = idx_a[keep], idx_b[keep], scores[keep]
    return np.stack([idx_a, idx_b], axis=1), scores


def join_tracks(
    counts: Sequence[int],
    pairs: IntArray,
    matches: Sequence[tuple[IntArray, Float32Array]],
) -> tuple[IntArray, IntArray, IntArray]:
    """Return tracks: sets of keypoints of different images that match each other.

    Matches are taken from the most distinct one down; one that would put two keypoints
    of one image into the same track is left out. (Plain connected components of the
    match graph grow together through a few wrong matches: on 120 images of a room, two
    thirds of all keypoints ended in one.)

    Parameters
    ----------
    counts : sequence of int
        Keypoints of each image.
    pairs : ndarray of shape (E, 2), int64
        Image index pairs.
    matches : sequence of (ndarray of shape (M_e, 2), ndarray of shape (M_e,))
        Keypoint index pairs of each pair of images, and their scores.

    Returns
    -------
    track_idx, image_idx, keypoint_idx : ndarray of shape (N,), int64
        One row per keypoint, sorted by track, then image. Every keypoint belongs to one
        track, if need be alone in it.
    """
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    image_idx = np.repeat(np.arange(len(counts)), counts)
    nodes = [np.zeros((0, 2), np.int64)]
    scores = [np.zeros(0, np.float32)]
    for pair, (keypoints, score) in zip(pairs, matches, strict=True):
        nodes.append(keypoints + offsets[pair])
        scores.append(score)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    edges = np.concatenate(nodes)[order].tolist()
    parent = list(range(int(offsets[-1])))
    # One bit per image tells at once whether two tracks have an image in common.
    images_of = [1 << image for image in image_idx.tolist()]

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    for a, b in edges:
        root_a, root_b = root(a), root(b)
        if root_a != root_b and not images_of[root_a] & images_of[root_b]:
            parent[root_b] = root_a
            images_of[root_a] |= images_of[root_b]
    roots = np.array([root(node) for node in range(len(parent))], np.int64)
    _, track_idx = np.unique(roots, return_inverse=True)
    by_track = np.lexsort((image_idx, track_idx))
    return (
        track_idx[by_track].astype(np.int64),
        image_idx[by_track].astype(np.int64),
        (by_track - offsets[image_idx[by_track]]).astype(np.int64),
    )
