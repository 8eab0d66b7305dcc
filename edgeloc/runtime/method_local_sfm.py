"""LOCAL_SFM on the device."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from edgeloc.localize.candidate import Candidate
from edgeloc.localize.local_sfm import local_sfm_for, localize_by_local_sfm
from edgeloc.runtime.feature_matcher import FeatureMatcher
from edgeloc.runtime.frame_work import FrameWork


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
        solve = partial(
            localize_by_local_sfm,
            calibration=self._calibration,
            options=self._options,
        )
        return self._matcher.answer(work, stage="local_sfm", solve=solve)
