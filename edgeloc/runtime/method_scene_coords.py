"""SCENE_COORDS on the device."""

from __future__ import annotations

from dataclasses import replace

from edgeloc.errors import MapError
from edgeloc.inference.network import Network
from edgeloc.localize.candidate import LOST, Candidate, Query
from edgeloc.localize.scene_coords import (
    SceneCoordsOptions,
    ScenePoints,
    calibration_of,
    dense_scene_points,
    pose_from_scene_points,
    scene_points,
)
from edgeloc.runtime.frame_work import FrameWork
from edgeloc.runtime.site_models import open_site_head
from edgeloc.runtime.site_parts import SiteParts
from edgeloc.types import Cause


class SceneCoordsMethod:
    """The pose from where a network of the site places keypoints, or cells of pictures.

    Parameters
    ----------
    parts : SiteParts
        The opened site.

    Raises
    ------
    MapError
        When the site carries no such network, or it was changed.
    ModelError
        When the network cannot be used.
    """

    def __init__(self, parts: SiteParts) -> None:
        self._parts = parts
        self._head = open_site_head(
            parts.site, "scene_coords", options=parts.options.backend
        )
        try:
            self._calibration = calibration_of(parts.site.retrieval_arrays)
        except ValueError as exc:
            raise MapError(f"{parts.site.path}: {exc}; train the head again") from exc
        options = SceneCoordsOptions()
        self._options = replace(
            options, pnp=replace(options.pnp, seed=parts.options.seed)
        )

    def answer(self, work: FrameWork) -> Candidate:
        """See `edgeloc.runtime.methods.Method`."""
        head, options = self._head, self._options
        if isinstance(head, Network):
            mask = work.mask()
            with self._parts.timer.stage("scene_coords"):
                query, scene = dense_scene_points(
                    head,
                    work.frame.image,
                    self._parts.camera,
                    mask=mask,
                    max_points=options.max_points,
                )
                return self._pose(query, scene)
        query = work.query()
        if len(query.features) < options.integrity.min_inliers:
            return replace(LOST, cause=Cause.FEW_FEATURES)
        with self._parts.timer.stage("scene_coords"):
            return self._pose(query, scene_points(head, query.descriptors))

    def _pose(self, query: Query, scene: ScenePoints) -> Candidate:
        return pose_from_scene_points(
            query, scene, calibration=self._calibration, options=self._options
        )
