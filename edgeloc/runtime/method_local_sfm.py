"""LOCAL_SFM on the device."""

from __future__ import annotations

from dataclasses import replace

from edgeloc.errors import TileFormatError
from edgeloc.localize.candidate import LOST, Candidate
from edgeloc.localize.local_sfm import local_sfm_for, localize_by_local_sfm
from edgeloc.runtime.feature_matcher import FeatureMatcher
from edgeloc.runtime.frame_work import FrameWork
from edgeloc.tiles.reader import TileMissingError
from edgeloc.types import Cause


class LocalSfmMethod:
    """Fixes against points that are triangulated for each frame.

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
        self._calibration = matcher.calibration("local_sfm")
        options = local_sfm_for(matcher.parts.family)
        seed = matcher.parts.options.seed
        self._options = replace(options, pnp=replace(options.pnp, seed=seed))

    def answer(self, work: FrameWork) -> Candidate:
        """See `edgeloc.runtime.methods.Method`."""
        parts = self._matcher.parts
        if len(work.query().features) == 0:
            return replace(LOST, cause=Cause.FEW_FEATURES)
        work.retrieved()
        with parts.timer.stage("local_sfm"):
            try:
                views, matches = self._matcher.match(work)
            except TileMissingError:
                return replace(LOST, cause=Cause.TILE_MISSING)
            except TileFormatError:
                return replace(LOST, cause=Cause.TILE_CORRUPT)
            return localize_by_local_sfm(
                work.query(),
                views,
                matches,
                calibration=self._calibration,
                options=self._options,
            )
