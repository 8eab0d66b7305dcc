"""Query features against the features of retrieved keyframes.

What LOCAL_SFM and RELATIVE begin with: a site that has them needs no 3D points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeloc.features.match import MatchOptions, match_to_keyframes
from edgeloc.geometry.camera import normalized_from_pixels
from edgeloc.localize.candidate import Query
from edgeloc.localize.comparison import DecodeLandmarks
from edgeloc.tiles.layout import KeyframeFeatures
from edgeloc.types import (
    CameraModel,
    Float32Array,
    FloatArray,
    IntArray,
    Rigid3,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeyframeViews:
    """Retrieved keyframes, best first.

    Parameters
    ----------
    cameras : sequence of CameraModel
        Intrinsics of each.
    poses : sequence of Rigid3
        ``cam_from_world`` of each.
    features : KeyframeFeatures
        Theirs, in the same order.
    """

    cameras: Sequence[CameraModel]
    poses: Sequence[Rigid3]
    features: KeyframeFeatures

    def __len__(self) -> int:
        return len(self.poses)

    @property
    def centers(self) -> FloatArray:
        """Camera centres in the world, (K, 3), m."""
        return np.array([p.origin_in_a for p in self.poses]).reshape(-1, 3)

    def plane_points(self, feature_idx: IntArray, keyframe_idx: IntArray) -> FloatArray:
        """Return features on the plane z = 1 of their cameras, (M, 2); nan without.

        Parameters
        ----------
        feature_idx : ndarray of shape (M,), int64
            Rows of `features`.
        keyframe_idx : ndarray of shape (M,), int64
            Whose they are.
        """
        pixels = self.features.keypoints[feature_idx].astype(np.float64)
        plane = np.full((len(pixels), 2), np.nan)
        for camera in dict.fromkeys(self.cameras):
            same = np.array([other == camera for other in self.cameras])
            rows = np.flatnonzero(same[keyframe_idx])
            if len(rows):
                plane[rows] = normalized_from_pixels(camera, pixels[rows])
        return plane


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeyframeMatches:
    """Which feature of which keyframe a query feature looks like; best first.

    Parameters
    ----------
    query_idx : ndarray of shape (M,), int64
        Query features.
    feature_idx : ndarray of shape (M,), int64
        Rows of `KeyframeViews.features`.
    keyframe_idx : ndarray of shape (M,), int64
        The keyframes of these.
    scores : ndarray of shape (M,), float32
        How distinct each match is.
    """

    query_idx: IntArray
    feature_idx: IntArray
    keyframe_idx: IntArray
    scores: Float32Array

    def __len__(self) -> int:
        return len(self.query_idx)


def match_keyframes(
    query: Query,
    views: KeyframeViews,
    *,
    decode: DecodeLandmarks,
    options: MatchOptions,
) -> KeyframeMatches:
    """Return the matches of a frame to each of some keyframes.

    Parameters
    ----------
    query : Query
        The frame.
    views : KeyframeViews
        Retrieved keyframes.
    decode : callable
        From stored to decoded descriptors.
    options : MatchOptions
        What counts as a match.
    """
    features = views.features
    similarity = decode(features.descriptors) @ query.descriptors.T
    query_idx, feature_idx, scores = match_to_keyframes(
        similarity,
        [
            np.arange(start, end)
            for start, end in zip(
                features.offsets[:-1], features.offsets[1:], strict=True
            )
        ],
        options,
    )
    return KeyframeMatches(
        query_idx=query_idx,
        feature_idx=feature_idx,
        keyframe_idx=np.searchsorted(features.offsets, feature_idx, side="right") - 1,
        scores=scores,
    )
