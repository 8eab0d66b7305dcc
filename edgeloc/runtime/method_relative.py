"""RELATIVE on the device."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from edgeloc.localize.candidate import Candidate
from edgeloc.localize.relative import localize_by_relative, relative_for
from edgeloc.runtime.feature_matcher import FeatureMatcher
from edgeloc.runtime.frame_work import FrameWork


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
        solve = partial(
            localize_by_relative,
            calibration=self._calibration,
            coarse=self._matcher.parts.coarse,
            options=self._options,
        )
        return self._matcher.answer(work, stage="relative", solve=solve)
