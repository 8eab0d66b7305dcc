"""RELATIVE on the device."""

from __future__ import annotations

from dataclasses import replace

from edgeloc.errors import TileFormatError
from edgeloc.localize.candidate import LOST, Candidate
from edgeloc.localize.relative import localize_by_relative, relative_for
from edgeloc.runtime.feature_matcher import FeatureMatcher
from edgeloc.runtime.frame_work import FrameWork
from edgeloc.tiles.reader import TileMissingError
from edgeloc.types import Cause


class RelativeMethod:
    """Fixes from the frame's epipolar geometry with keyframes.

    Parameters
    ----------
    matcher : FeatureMatcher
        Of the opened site.

    Raises
    ------
    MapError
        When the site does not say how sure such fixes are.
    """

    def __init__(self, matcher: FeatureMatcher) -> None:
        self._matcher = matcher
        self._calibration = matcher.calibration("relative")
        options = relative_for(matcher.parts.family)
        self._options = replace(options, seed=matcher.parts.options.seed)

    def answer(self, work: FrameWork) -> Candidate:
        """See `edgeloc.runtime.methods.Method`."""
        parts = self._matcher.parts
        if len(work.query().features) == 0:
            return replace(LOST, cause=Cause.FEW_FEATURES)
        work.retrieved()
        with parts.timer.stage("relative"):
            try:
                views, matches = self._matcher.match(work)
            except TileMissingError:
                return replace(LOST, cause=Cause.TILE_MISSING)
            except TileFormatError:
                return replace(LOST, cause=Cause.TILE_CORRUPT)
            return localize_by_relative(
                work.query(),
                views,
                matches,
                calibration=self._calibration,
                coarse=parts.coarse,
                options=self._options,
            )
