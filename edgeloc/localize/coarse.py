"""What a site's own held-out frames say about poses from retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgeloc.types import Float32Array

_CHECKED = "_checked"
"""What the names of arrays end in, see `CoarseCalibration.to_arrays`."""

_MAX_FACTOR = 10.0
"""Held-out frames are too few to say more about how much less or more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpreadByScore:
    """How the error of an interpolated pose goes with what speaks for it.

    ``sigma(score) = sigma * exp(slope * (middle - score))``, at most ten times more or
    less: the less a frame looks like the keyframes, the further it is away from them.
    The score is the best cosine, or, of checked keyframes, `Agreement.evidence`.

    Parameters
    ----------
    middle : float
        Score at which nothing changes.
    position_slope, rotation_slope : float
        At least 0; 0 = the same at every similarity.
    """

    middle: float = 0.0
    position_slope: float = 0.0
    rotation_slope: float = 0.0

    def __post_init__(self) -> None:
        values = (self.middle, self.position_slope, self.rotation_slope)
        if not np.all(np.isfinite(values)) or min(values[1:]) < 0:
            raise ValueError(f"coarse_spread {values}: slopes must be finite and >= 0")

    def factors(self, score: float) -> tuple[float, float]:
        """Return what standard deviations of position and rotation change by."""
        low = self.middle - score
        limit = np.log(_MAX_FACTOR)
        slopes = np.array([self.position_slope, self.rotation_slope])
        position, rotation = np.exp(np.clip(slopes * low, -limit, limit))
        return float(position), float(rotation)

    def to_array(self) -> Float32Array:
        """Return what a site stores."""
        values = [self.middle, self.position_slope, self.rotation_slope]
        return np.array(values, np.float32)

    @staticmethod
    def from_array(values: Float32Array) -> SpreadByScore:
        """Return what `to_array` was given; `ValueError` when it is wrong."""
        if values.shape != (3,):
            raise ValueError(f"coarse_spread has shape {values.shape}, expected (3,)")
        middle, position, rotation = (float(v) for v in values)
        return SpreadByScore(
            middle=middle, position_slope=position, rotation_slope=rotation
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CoarseCalibration:
    """What a site's own held-out frames say about retrieval.

    Parameters
    ----------
    min_score : float
        Best cosine below which nothing of the site is in the picture.
    position_sigma : float
        Standard deviation of an interpolated position, per axis, m.
    rotation_sigma_rad : float
        Standard deviation of an interpolated rotation, per axis.
    keyframe_spacing : float
        Median distance from a keyframe to its nearest neighbour, m.
    spread : SpreadByScore
        How both standard deviations depend on what speaks for a pose.

    A site stores two: of retrieval alone, and of what it found when that was checked.
    """

    min_score: float
    position_sigma: float
    rotation_sigma_rad: float
    keyframe_spacing: float
    spread: SpreadByScore = field(default_factory=SpreadByScore)

    def sigmas(self, score: float) -> tuple[float, float]:
        """Return the standard deviations, m and rad, at a score of `spread`."""
        position, rotation = self.spread.factors(score)
        return self.position_sigma * position, self.rotation_sigma_rad * rotation

    def to_arrays(self, *, checked: bool = False) -> Mapping[str, Float32Array]:
        """Return the arrays that a site stores.

        Parameters
        ----------
        checked : bool
            Whether they are of answers from checked keyframes, see `edgeloc.localize.
            rerank`.
        """
        suffix = _CHECKED if checked else ""
        values = [
            self.min_score,
            self.position_sigma,
            self.rotation_sigma_rad,
            self.keyframe_spacing,
        ]
        return {
            f"calibration{suffix}": np.array(values, np.float32),
            f"coarse_spread{suffix}": self.spread.to_array(),
        }

    @staticmethod
    def from_arrays(
        arrays: Mapping[str, Float32Array], *, checked: bool = False
    ) -> CoarseCalibration:
        """Return the calibration of a site's arrays; `ValueError` when it is wrong.

        Parameters
        ----------
        arrays : mapping of str to ndarray
            Of the site.
        checked : bool
            As for `to_arrays`; sites of before have none of their own.
        """
        suffix = _CHECKED if checked and f"calibration{_CHECKED}" in arrays else ""
        values = arrays.get(f"calibration{suffix}", np.zeros(0, np.float32))
        if values.shape != (4,) or not np.all(np.isfinite(values)):
            raise ValueError("the retrieval model has no calibration of 4 numbers")
        min_score, position, rotation, spacing = (float(v) for v in values)
        spread = arrays.get(f"coarse_spread{suffix}")
        return CoarseCalibration(
            min_score=min_score,
            position_sigma=position,
            rotation_sigma_rad=rotation,
            keyframe_spacing=spacing,
            # Sites of before have none: the same at every similarity.
            spread=SpreadByScore()
            if spread is None
            else SpreadByScore.from_array(spread),
        )
