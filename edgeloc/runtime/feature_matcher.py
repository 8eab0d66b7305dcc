"""Frames against the features of retrieved keyframes, once per frame."""

from __future__ import annotations

from edgeloc.errors import MapError
from edgeloc.features.match import MatchOptions
from edgeloc.localize.keyframe_matches import (
    KeyframeMatches,
    KeyframeViews,
    match_keyframes,
)
from edgeloc.localize.structure import FixCalibration
from edgeloc.runtime.frame_work import FrameWork
from edgeloc.runtime.site_parts import SiteParts
from edgeloc.tiles.reader import assemble_features


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
        self._last: tuple[FrameWork, KeyframeViews, KeyframeMatches] | None = None

    def match(self, work: FrameWork) -> tuple[KeyframeViews, KeyframeMatches]:
        """Return the retrieved keyframes and the frame's matches with them.

        Parameters
        ----------
        work : FrameWork
            The frame.

        Raises
        ------
        TileFormatError, TileMissingError
            When a tile cannot be read.
        """
        if self._last is not None and self._last[0] is work:
            return self._last[1:]
        parts = self.parts
        site, ids = parts.site, work.retrieved().keyframe_ids
        keyframes, cameras = site.keyframes, site.manifest.cameras
        rows = keyframes.index_of(ids).tolist()
        views = KeyframeViews(
            cameras=[cameras[keyframes.camera_ids[row]] for row in rows],
            poses=[keyframes.cam_from_world(row) for row in rows],
            features=assemble_features(parts.tiles.load, site, ids),
        )
        matches = match_keyframes(
            work.query(), views, decode=parts.decode_landmarks, options=self._options
        )
        self._last = (work, views, matches)
        return views, matches

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
