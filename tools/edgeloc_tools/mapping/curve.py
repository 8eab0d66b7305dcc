"""What accuracy costs: held-out frames in maps of several sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgeloc_tools.mapping.held_out import HeldOutRun

SHRINKS = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125)
"""Sizes tried, as shares of the whole map."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """Held-out frames in a map of one size.

    Parameters
    ----------
    num_bytes : int
        Of the site, about; without networks and the codebooks that come with edgeloc.
    num_frames, num_localized : int
        Held-out frames, and those answered LOCALIZED.
    median_error : float
        Position over all frames, m; inf when fewer than half are LOCALIZED.
    p90_error : float
        The same, which nine of ten frames stay below.
    """

    num_bytes: int
    num_frames: int
    num_localized: int
    median_error: float
    p90_error: float

    @property
    def share_localized(self) -> float:
        """Share of frames answered LOCALIZED."""
        return self.num_localized / max(self.num_frames, 1)


def curve_point(run: HeldOutRun, *, num_bytes: float) -> CurvePoint:
    """Return the point of one run."""
    errors = np.array([frame.position_error for frame in run.frames])
    return CurvePoint(
        num_bytes=round(num_bytes),
        num_frames=len(errors),
        num_localized=int(np.isfinite(errors).sum()),
        median_error=float(np.quantile(errors, 0.5, method="higher")),
        p90_error=float(np.quantile(errors, 0.9, method="higher")),
    )


def measure_curve(
    run_within: Callable[[float], HeldOutRun], sizes: Sequence[float]
) -> list[CurvePoint]:
    """Return accuracy at several sizes, the largest first.

    Parameters
    ----------
    run_within : callable
        Localizes held-out frames in a map of at most so many bytes.
    sizes : sequence of float
        Bytes.
    """
    ordered = sorted(set(sizes), reverse=True)
    return [curve_point(run_within(size), num_bytes=size) for size in ordered]
