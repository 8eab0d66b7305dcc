"""Which images of a place set are near each other, and so vouch for each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from edgeloc.localize.near_keyframes import keyframe_spacing
from edgeloc.localize.pose_weights import view_kernel
from edgeloc.localize.rerank import Agreement
from edgeloc.localize.view_motion import ViewMotion
from edgeloc.types import FloatArray, IntArray, Rigid3

NEAR_SPACINGS, NEAR_DEG = 6.0, 30.0
"""Standard deviations of the kernels: images of a walk, or distances between images,
and between lines of sight."""


class Neighbours(Protocol):
    """How near images are to a query, in [0, 1]."""

    def near(self, found: IntArray, agreement: Agreement) -> FloatArray:
        """Return how near images are to where the query is according to each, (K, K).

        Parameters
        ----------
        found : ndarray of shape (K,), int64
            Images found for the query.
        agreement : Agreement
            Of the query with them.
        """

    def near_image(self, found: IntArray, image_idx: int) -> FloatArray:
        """Return how near images are to one of them, (K,)."""


class WalkNeighbours:
    """Images of a walk, by their places in it."""

    def near(self, found: IntArray, agreement: Agreement) -> FloatArray:
        """See `Neighbours`."""
        del agreement  # without poses a change of scale is no way
        return np.stack([self.near_image(found, idx) for idx in found.tolist()], axis=1)

    def near_image(self, found: IntArray, image_idx: int) -> FloatArray:
        """See `Neighbours`."""
        return np.asarray(np.exp(-0.5 * ((found - image_idx) / NEAR_SPACINGS) ** 2))


class PoseNeighbours:
    """Images with poses.

    Parameters
    ----------
    poses : sequence of Rigid3
        ``cam_from_world`` of the images.
    motion : ViewMotion
        What pictures tell about the way from an image to a query.
    """

    def __init__(self, poses: Sequence[Rigid3], motion: ViewMotion) -> None:
        self._centers = np.stack([pose.origin_in_a for pose in poses])
        self._rotations = np.stack([pose.R for pose in poses])
        self._motion = motion
        spacing = max(keyframe_spacing(self._centers), 1e-9)
        self._bandwidth = NEAR_SPACINGS * spacing, float(np.deg2rad(NEAR_DEG))

    def near(self, found: IntArray, agreement: Agreement) -> FloatArray:
        """See `Neighbours`."""
        views = self._views(found)
        said = self._motion.query_poses(*views, agreement)
        return view_kernel(views, said, bandwidth=self._bandwidth)

    def near_image(self, found: IntArray, image_idx: int) -> FloatArray:
        """See `Neighbours`."""
        image = self._views(np.array([image_idx]))
        return view_kernel(self._views(found), image, bandwidth=self._bandwidth)[:, 0]

    def _views(self, found: IntArray) -> tuple[FloatArray, FloatArray]:
        return self._centers[found], self._rotations[found]
