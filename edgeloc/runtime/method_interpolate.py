"""INTERPOLATE on the device."""

from __future__ import annotations

from dataclasses import replace

from edgeloc.localize.candidate import LOST, Candidate
from edgeloc.localize.interpolate import interpolate_pose
from edgeloc.runtime.frame_work import FrameWork
from edgeloc.runtime.site_parts import SiteParts
from edgeloc.types import Cause


class InterpolateMethod:
    """The pose from retrieved keyframes' poses.

    Parameters
    ----------
    parts : SiteParts
        The opened site.
    """

    def __init__(self, parts: SiteParts) -> None:
        self._parts = parts

    def answer(self, work: FrameWork) -> Candidate:
        """See `edgeloc.runtime.methods.Method`."""
        parts = self._parts
        if len(work.query().features) == 0:
            return replace(LOST, cause=Cause.FEW_FEATURES)
        retrieved = work.retrieved()
        with parts.timer.stage("interpolate"):
            return interpolate_pose(
                query=work.query().global_descriptor,
                retrieved=retrieved,
                keyframes=parts.site.keyframes,
                index=parts.index,
                calibration=parts.coarse,
                options=parts.options.interpolate,
            )
