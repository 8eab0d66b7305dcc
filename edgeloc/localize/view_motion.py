"""Where a query was taken, as far as the picture of a keyframe tells.

Two pictures of one place differ by how they are turned, shifted and scaled. A camera
that rolled turned its picture; one that came nearer enlarged it. What shifted it, a
pan or a step aside, a single picture cannot tell: how a site's own cameras moved says
how much of it was a pan, and how far away things are says what a change of scale is
worth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeloc.geometry.se3 import exp_so3_rows
from edgeloc.localize.rerank import Agreement
from edgeloc.types import Float32Array, FloatArray

MIN_SUPPORT = 8.0
"""With fewer matches that agree, a picture says nothing about the way."""

_MAX_LOG_ZOOM = 0.5
"""Larger changes of scale are mostly wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewMotion:
    """How cameras of a site move between pictures that show the same.

    Parameters
    ----------
    roll, turn : float
        Share of the turn seen about the line of sight, and across it, that the camera
        made, in [0, 1]; the rest are wrong matches, and steps aside.
    depth : float
        Way along the line of sight per logarithm of the change of scale, m: how far
        away things are, at least 0.
    """

    roll: float = 0.0
    turn: float = 0.0
    depth: float = 0.0

    def __post_init__(self) -> None:
        for name in ("roll", "turn"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} must be in [0, 1]")
        if not 0 <= self.depth < np.inf:
            raise ValueError(f"depth {self.depth} must be finite and >= 0")

    @property
    def still(self) -> bool:
        """Whether nothing is known: a query is where its keyframe is."""
        return self == ViewMotion()

    def to_array(self) -> Float32Array:
        """Return what a site stores."""
        return np.array([self.roll, self.turn, self.depth], np.float32)

    @staticmethod
    def from_array(values: Float32Array) -> ViewMotion:
        """Return what `to_array` was given; `ValueError` when it is wrong."""
        if values.shape != (3,):
            raise ValueError(f"view_motion has shape {values.shape}, expected (3,)")
        roll, turn, depth = (float(v) for v in values)
        return ViewMotion(roll=roll, turn=turn, depth=depth)

    def query_poses(
        self, centers: FloatArray, rotations: FloatArray, agreement: Agreement
    ) -> tuple[FloatArray, FloatArray]:
        """Return where a query is, and how it is turned, according to each keyframe.

        Parameters
        ----------
        centers : ndarray of shape (K, 3), float64
            Of the keyframes, m.
        rotations : ndarray of shape (K, 3, 3), float64
            Of their ``cam_from_world``.
        agreement : Agreement
            Of the query with each of them; those with little support stay as they are.

        Returns
        -------
        centers : ndarray of shape (K, 3), float64
        rotations : ndarray of shape (K, 3, 3), float64
        """
        said = agreement.support >= MIN_SUPPORT
        if self.still or not said.any():
            return centers, rotations
        zooms = np.clip(agreement.log_zooms, -_MAX_LOG_ZOOM, _MAX_LOG_ZOOM)
        # What looks larger in a keyframe was seen by it from nearer.
        way = np.where(said, -self.depth * zooms, 0.0)
        turns, rolls = turn_and_roll(agreement.image_from_query)
        keyframe_from_query = _rotations(
            np.where(said[:, None], self.turn * turns, 0.0),
            np.where(said, self.roll * rolls, 0.0),
        )
        return (
            centers + way[:, None] * rotations[:, 2],
            keyframe_from_query.swapaxes(1, 2) @ rotations,
        )

    def unsure_rad(self, agreement: Agreement) -> FloatArray:
        """Return how far off rotations may be: by the turn seen that was not believed.

        Where the cameras of a map hardly rolled, most rolls that they saw were wrong
        matches; one that rolls for once is believed too little.

        Parameters
        ----------
        agreement : Agreement
            As for `query_poses`.

        Returns
        -------
        ndarray of shape (K,), float64
        """
        turns, rolls = turn_and_roll(agreement.image_from_query)
        turn = (1.0 - self.turn) * np.linalg.norm(turns, axis=1)
        left = np.hypot(turn, (1.0 - self.roll) * rolls)
        said = agreement.support >= MIN_SUPPORT
        return np.where(said & (not self.still), left, 0.0)


def turn_and_roll(b_from_a: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return rotations as a turn across the line of sight after a roll about it.

    Parameters
    ----------
    b_from_a : ndarray of shape (K, 3, 3), float64
        Rotations between cameras.

    Returns
    -------
    turns : ndarray of shape (K, 2), float64
        Rotation vectors about x and y, rad: the smallest that brings the line of sight
        to where it goes.
    rolls : ndarray of shape (K,), float64
        About z, rad.
    """
    ahead = b_from_a[:, :, 2]
    across = np.hypot(ahead[:, 0], ahead[:, 1])
    angle = np.arctan2(across, ahead[:, 2])
    per_sine = np.where(across > 1e-9, angle / np.maximum(across, 1e-9), 1.0)
    turns = np.stack([-ahead[:, 1], ahead[:, 0]], axis=1) * per_sine[:, None]
    rolls = np.arctan2(
        b_from_a[:, 1, 0] - b_from_a[:, 0, 1], b_from_a[:, 0, 0] + b_from_a[:, 1, 1]
    )
    return turns, rolls


def _rotations(turns: FloatArray, rolls: FloatArray) -> FloatArray:
    """Return the rotations that `turn_and_roll` was given."""
    still = np.zeros(len(rolls))
    turned = exp_so3_rows(np.column_stack([turns, still]))
    rolled = exp_so3_rows(np.column_stack([still, still, rolls]))
    return np.asarray(turned @ rolled)
