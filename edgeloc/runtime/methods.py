"""The families of methods under one interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from edgeloc.localize.candidate import Candidate
from edgeloc.runtime.feature_matcher import FeatureMatcher
from edgeloc.runtime.frame_work import FrameWork
from edgeloc.runtime.ladder import Need, site_data
from edgeloc.runtime.method_interpolate import InterpolateMethod
from edgeloc.runtime.method_local_sfm import LocalSfmMethod
from edgeloc.runtime.method_regress import RegressMethod
from edgeloc.runtime.method_relative import RelativeMethod
from edgeloc.runtime.method_scene_coords import SceneCoordsMethod
from edgeloc.runtime.method_structure import StructureMethod
from edgeloc.runtime.site_parts import SiteParts


class Method(Protocol):
    """One way to localize a frame by itself."""

    def answer(self, work: FrameWork) -> Candidate:
        """Return what the method says of a frame; never raises for what is in it.

        Parameters
        ----------
        work : FrameWork
            The frame; `FrameWork.attempt` has the knobs. The method times what it does
            beyond features and retrieval in the stages of its step of the ladder.

        Raises
        ------
        ModelError
            When a network fails.
        """


def open_methods(parts: SiteParts) -> Mapping[str, Method]:
    """Return the methods that a site carries data for, by step of the ladder.

    Parameters
    ----------
    parts : SiteParts
        The opened site.

    Raises
    ------
    MapError
        When data of a method is missing or wrong.
    ModelError
        When a network cannot be used.
    """
    data = site_data(parts.site.manifest.rungs)
    methods: dict[str, Method] = {}
    if Need.RETRIEVAL in data:
        methods["interpolate"] = InterpolateMethod(parts)
    if Need.TILES in data:
        methods["relocalize"] = StructureMethod(parts)
    if Need.KEYFRAME_FEATURES in data:
        matcher = FeatureMatcher(parts)
        methods["local_sfm"] = LocalSfmMethod(matcher)
        methods["relative"] = RelativeMethod(matcher)
    if Need.SCENE_MODEL in data:
        methods["scene_coords"] = SceneCoordsMethod(parts)
    if Need.POSE_MODEL in data:
        methods["regress"] = RegressMethod(parts)
    return methods
