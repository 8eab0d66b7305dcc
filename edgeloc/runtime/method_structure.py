"""RELOCALIZE on the device: retrieval, local map, matches, PnP."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgeloc.errors import TileFormatError
from edgeloc.features.mask import inside_image
from edgeloc.geometry.camera import project
from edgeloc.geometry.upright import Vertical
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
        self._local_maps: list[LocalMap] = []

    def answer(self, work: FrameWork) -> Candidate:
        """See `edgeloc.runtime.methods.Method`."""
        if len(work.query().features) == 0:
            return replace(LOST, cause=Cause.FEW_FEATURES)
        retrieved = work.retrieved()
        fix = self.solve(
            work.query(),
            retrieved,
            attempt=work.attempt,
            vertical=work.prior.vertical,
        )
        self._note(work, fix)
        return fix

    def solve(
        self,
        query: Query,
        retrieved: RetrievalResult,
        *,
        attempt: Attempt = FULL_ATTEMPT,
        vertical: Vertical | None = None,
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
        vertical : Vertical, optional
            Which way is down.
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
        best = LOST
        try:
            for keyframes in rounds:
                candidate = self._match_and_solve(
                    query,
                    keyframes,
                    comparison,
                    structure=structure,
                    setting=attempt.setting,
                    vertical=vertical,
                )
                # A pose that only matches speak for must be found among more, too.
                if (
                    not best.confirmed
                    or candidate.status is PoseStatus.LOCALIZED
                    or candidate.cause is Cause.AMBIGUOUS
                ):
                    best = candidate
                if (
                    best.status is PoseStatus.LOCALIZED
                    and best.num_inliers >= options.num_enough
                ):
                    break
        except TileMissingError:
            return replace(LOST, cause=Cause.TILE_MISSING)
        except TileFormatError:
            return replace(LOST, cause=Cause.TILE_CORRUPT)
        return best

    def _match_and_solve(
        self,
        query: Query,
        retrieved: RetrievalResult,
        comparison: LandmarkComparison,
        *,
        structure: StructureOptions,
        setting: int,
        vertical: Vertical | None,
    ) -> Candidate:
        parts = self._parts
        site, timer, load = parts.site, parts.timer, parts.tiles.load

        def load_local_map(keyframe_ids: IntArray) -> LocalMap:
            with timer.stage("local_map"):
                local_map = assemble_local_map(load, site, keyframe_ids)
            self._local_maps.append(local_map)
            return local_map

        self._local_maps = []
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
                vertical=vertical,
                weigh=None if parts.record is None else parts.record.weights,
            )

    def _note(self, work: FrameWork, fix: Candidate) -> None:
        """Note which landmarks should have been found by a strong fix, and were."""
        record, camera = self._parts.record, self._parts.camera
        pose = fix.cam_from_world
        if (
            record is None
            or pose is None
            or fix.matches is None
            or fix.num_inliers < self._parts.options.follow.strong_inliers
            or not record.wants(work.frame.timestamp_ns, pose.origin_in_a)
        ):
            return
        found_ids = fix.matches.point3D_ids[fix.inlier_mask]
        for local_map in self._local_maps:
            if np.isin(found_ids[0], local_map.point3D_ids):
                pixels, seen = project(camera, pose.transform(local_map.points3D))
                expected = seen & inside_image(pixels, camera, mask=work.mask())
                record.note(
                    local_map.point3D_ids[expected],
                    found_ids,
                    timestamp_ns=work.frame.timestamp_ns,
                    center=pose.origin_in_a,
                )
                return
