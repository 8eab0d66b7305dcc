"""Frames against the features of retrieved keyframes, once per frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from edgeloc.errors import MapError, TileFormatError
from edgeloc.features.match import MatchOptions
from edgeloc.localize.candidate import LOST, Candidate, Query
from edgeloc.localize.fix import FixCalibration
from edgeloc.localize.keyframe_matches import (
    KeyframeMatches,
    KeyframeViews,
    match_keyframes,
)
from edgeloc.runtime.frame_work import FrameWork
from edgeloc.runtime.site_parts import SiteParts
from edgeloc.tiles.reader import TileMissingError, assemble_features
from edgeloc.types import Cause

Solve = Callable[[Query, KeyframeViews, KeyframeMatches], Candidate]


class FeatureMatcher:
    """Matches frames with keyframes, for all methods that need no 3D points.

    Parameters
    ----------
    parts : SiteParts
        The opened site.
    """

    def __init__(self, parts: SiteParts) -> None:
        self.parts = parts
        self._options = MatchOptions(max_ratio=parts.family.match_ratio)

    def answer(self, work: FrameWork, *, stage: str, solve: Solve) -> Candidate:
        """Return what a method makes of a frame's matches.

        Parameters
        ----------
        work : FrameWork
            The frame.
        stage : str
            What the time of it counts as.
        solve : callable
            From the frame's features, the retrieved keyframes and the matches between
            them to an answer.
        """
        query = work.query()
        if len(query.features) == 0:
            return replace(LOST, cause=Cause.FEW_FEATURES)
        work.retrieved()
        with self.parts.timer.stage(stage):
            try:
                views, matches = self._match(work)
            except TileMissingError:
                return replace(LOST, cause=Cause.TILE_MISSING)
            except TileFormatError:
                return replace(LOST, cause=Cause.TILE_CORRUPT)
            return solve(work.query(), views, matches)

    def _match(self, work: FrameWork) -> tuple[KeyframeViews, KeyframeMatches]:
        if work.keyframe_matches is None:
            parts = self.parts
            site, ids = parts.site, work.retrieved().keyframe_ids
            keyframes, cameras = site.keyframes, site.manifest.cameras
            rows = keyframes.index_of(ids).tolist()
            views = KeyframeViews(
                cameras=[cameras[keyframes.camera_ids[row]] for row in rows],
                poses=[keyframes.cam_from_world(row) for row in rows],
                features=assemble_features(parts.tiles.load, site, ids),
            )
            work.keyframe_matches = (
                views,
                match_keyframes(
                    work.query(),
                    views,
                    decode=parts.decode_landmarks,
                    options=self._options,
                ),
            )
        return work.keyframe_matches

    def calibration(self, method: str) -> FixCalibration:
        """Return what the site says about the covariances of a method.

        Parameters
        ----------
        method : {"local_sfm", "relative"}
            Step of the ladder.

        Raises
        ------
        MapError
            When the site says nothing, or nonsense.
        """
        site, name = self.parts.site, f"{method}_calibration"
        try:
            return FixCalibration.from_array(site.retrieval_arrays[name])
        except (KeyError, ValueError) as exc:
            raise MapError(
                f"{site.path}: {name} is missing or wrong ({exc}); build the site again"
            ) from exc
