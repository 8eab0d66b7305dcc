"""RELOCALIZE on the device: retrieval, local map, matches, PnP."""

from __future__ import annotations

from dataclasses import replace

from edgeloc.errors import TileFormatError
from edgeloc.localize.candidate import LOST, Candidate, Query
from edgeloc.localize.comparison import LandmarkComparison
from edgeloc.localize.structure import StructureOptions, relocalize
from edgeloc.runtime.frame_work import FrameWork
from edgeloc.runtime.ladder import STEPS, Attempt
from edgeloc.runtime.site_parts import SiteParts
from edgeloc.tiles.layout import LocalMap
from edgeloc.tiles.reader import (
    TileMissingError,
    assemble_local_map,
    visible_point3D_ids,
)
from edgeloc.types import Cause, IntArray, PoseStatus, RetrievalResult

FULL_ATTEMPT = Attempt(step=STEPS["relocalize"])


class StructureMethod:
    """Fixes against the landmarks that retrieved keyframes see.

    Parameters
    ----------
    parts : SiteParts
        The opened site.
    """

    def __init__(self, parts: SiteParts) -> None:
        self._parts = parts

    def answer(self, work: FrameWork) -> Candidate:
        """See `edgeloc.runtime.methods.Method`."""
        if len(work.query().features) == 0:
            return replace(LOST, cause=Cause.FEW_FEATURES)
        retrieved = work.retrieved()
        return self.solve(work.query(), retrieved, attempt=work.attempt)

    def solve(
        self,
        query: Query,
        retrieved: RetrievalResult,
        *,
        attempt: Attempt = FULL_ATTEMPT,
    ) -> Candidate:
        """Try the best few keyframes, and all of them where those do not carry far.

        Parameters
        ----------
        query : Query
            The frame.
        retrieved : RetrievalResult
            Keyframes, best first.
        attempt : Attempt
            The knobs.
        """
        parts, settings = self._parts, attempt.settings
        options = parts.options
        comparison = LandmarkComparison(query.descriptors, parts.decode_landmarks)
        if settings.keyframes < 1.0:
            retrieved = retrieved.best(
                max(1, round(settings.keyframes * len(retrieved)))
            )
        pnp = parts.structure.pnp
        structure = replace(
            parts.structure,
            pnp=replace(
                pnp, max_iterations=max(1, round(settings.samples * pnp.max_iterations))
            ),
        )
        rounds = [retrieved]
        if options.num_first < len(retrieved):
            rounds.insert(0, retrieved.best(options.num_first))
        candidate = LOST
        try:
            for keyframes in rounds:
                candidate = self._match_and_solve(
                    query,
                    keyframes,
                    comparison,
                    structure=structure,
                    setting=attempt.setting,
                )
                if (
                    candidate.status is PoseStatus.LOCALIZED
                    and candidate.num_inliers >= options.num_enough
                ):
                    break
        except TileMissingError:
            return replace(LOST, cause=Cause.TILE_MISSING)
        except TileFormatError:
            return replace(LOST, cause=Cause.TILE_CORRUPT)
        return candidate

    def _match_and_solve(
        self,
        query: Query,
        retrieved: RetrievalResult,
        comparison: LandmarkComparison,
        *,
        structure: StructureOptions,
        setting: int,
    ) -> Candidate:
        parts = self._parts
        site, timer, load = parts.site, parts.timer, parts.tiles.load

        def load_local_map(keyframe_ids: IntArray) -> LocalMap:
            with timer.stage("local_map"):
                return assemble_local_map(load, site, keyframe_ids)

        ids = retrieved.keyframe_ids
        with timer.stage("local_map"):
            visible = visible_point3D_ids(load, site, ids)
        with timer.stage("match_pnp", setting=setting):
            return relocalize(
                query,
                retrieved,
                visible=visible,
                centers=site.keyframes.centers_of(site.keyframes.index_of(ids)),
                load_local_map=load_local_map,
                comparison=comparison,
                calibration=parts.calibration,
                options=structure,
            )
