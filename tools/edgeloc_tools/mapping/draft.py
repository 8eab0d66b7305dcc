"""A site in the making."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeloc import __version__
from edgeloc.errors import ConfigError, MapError
from edgeloc.localize.coarse import CoarseCalibration
from edgeloc.localize.near_keyframes import keyframe_spacing
from edgeloc.localize.structure import structure_for
from edgeloc.tiles.layout import (
    Codebook,
    KeyframeFeatures,
    KeyframeTable,
    PoseArrays,
    SiteContents,
)
from edgeloc.tiles.reader import SiteManifest
from edgeloc.tiles.writer import write_site
from edgeloc.types import BoolArray, IntArray
from edgeloc_tools.mapping.calibrate import HeldOut, calibrate
from edgeloc_tools.mapping.coarse_lists import make_lists
from edgeloc_tools.mapping.codebooks import (
    Coder,
    GlobalCoder,
    global_coder,
    landmark_coder,
)
from edgeloc_tools.mapping.compress import Appearances, appearances, coded
from edgeloc_tools.mapping.fix_calibration import held_out_runs
from edgeloc_tools.mapping.held_out import (
    Describing,
    HeldOutRun,
    localize_held_out,
)
from edgeloc_tools.mapping.held_out_coarse import CoarseTrials
from edgeloc_tools.mapping.inspect import WEAK_SPOTS
from edgeloc_tools.mapping.keyframe_features import (
    FeatureHeldOut,
    keyframe_features,
    localize_held_out_by_features,
)
from edgeloc_tools.mapping.landmarks import (
    LandmarkMap,
    LandmarkOptions,
    make_landmarks,
)
from edgeloc_tools.mapping.options import BuildOptions
from edgeloc_tools.mapping.shrink import RankedMap, rank_map
from edgeloc_tools.mapping.survey import Survey
from edgeloc_tools.mapping.value import Trials, footprints
from edgeloc_tools.progress import Progress

_STEP_PX = 0.1
"""Step of stored positions in the pictures of near cameras, px.

A wall along an axis of the world moves by up to half a step as a whole: 0.7 px cost a
third of the accuracy on one, and 0.1 px takes 5 % more bytes.
"""
_FIT_ATTEMPTS = 6
_MAX_HELD_OUT = 40
_FIGURES_BYTES = 512
"""Of figures, and of weak spots, that are known only when the size is."""
_FILLED = 0.97
"""Share of a budget that is worth no further attempt."""

_RUNGS = {
    "landmarks": ("RELOCALIZE",),
    "features": ("LOCAL_SFM", "RELATIVE"),
    "both": ("RELOCALIZE", "LOCAL_SFM", "RELATIVE"),
}
"""What a site answers with, by `BuildOptions.store`; INTERPOLATE always."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredMap:
    """All landmarks of all images but some.

    Parameters
    ----------
    landmark_map : LandmarkMap
        Descriptors as a site stores them.
    looks : Appearances or None
        What they were made of, where that is needed again.
    """

    landmark_map: LandmarkMap
    looks: Appearances | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fitted:
    """A part of the map.

    Parameters
    ----------
    part : LandmarkMap
        What is kept.
    estimate : float or None
        Bytes it was asked to have; None = all of the map.
    """

    part: LandmarkMap
    estimate: float | None


class Draft:
    """A site in the making: everything that its maps of any size have in common.

    Parameters
    ----------
    survey : Survey
        What was measured in the images.
    options : BuildOptions
        Options.
    progress : callable
        Told about each step.

    Raises
    ------
    MapError
        When no landmark passes the gates.
    """

    def __init__(
        self, survey: Survey, options: BuildOptions, progress: Progress
    ) -> None:
        self._survey = survey
        self._options = options
        self._progress = progress
        self._landmark_options = LandmarkOptions(
            triangulation=options.triangulation,
            use_depth=options.use_depth,
            max_descriptors=options.max_descriptors,
        )
        progress("landmarks", 0, 1)
        self._landmark_map = self._landmarks(None)
        progress("landmarks", 1, 1)
        num_rows = len(self._landmark_map.landmarks)
        if options.keeps_landmarks and num_rows == 0:
            raise MapError(
                f"{survey.posed.name}: no landmark passed the gates; are the poses and "
                "the intrinsics right, and do the images overlap?"
            )
        if options.keeps_features:
            num_rows += options.features_per_keyframe * len(survey.images)
        self._coder: Coder = landmark_coder(
            survey, num_rows=num_rows, options=options, progress=progress
        )
        self._folds = held_out_runs(len(survey.images), max_frames=_MAX_HELD_OUT)
        self._global: GlobalCoder = global_coder(survey, options)
        self._global_codes = self._global.encode(survey.global_descriptors)

    def _landmarks(self, left_out: BoolArray | None) -> LandmarkMap:
        if not self._options.keeps_landmarks:
            left_out = np.ones(len(self._survey.images), dtype=bool)
        return make_landmarks(
            self._survey.images,
            self._survey.tracks,
            self._landmark_options,
            left_out=left_out,
        )

    def features(self, left_out: BoolArray | None) -> KeyframeFeatures:
        """Return the features that images keep, but for some images."""
        return keyframe_features(
            self._survey.images,
            self._survey.tracks,
            per_keyframe=self._options.features_per_keyframe,
            quantizer=self._coder.quantizer,
            left_out=left_out,
        )

    def localize_by_features(self, coarse: CoarseCalibration) -> FeatureHeldOut:
        """Localize held-out frames with the features of the others."""
        return localize_held_out_by_features(
            self._survey.images,
            self._global_codes,
            self._survey.global_descriptors,
            folds=self._folds,
            remake=self.features,
            describing=self._describing(),
            family=self._survey.family,
            coarse=coarse,
            progress=self._progress,
        )

    def _left_out(self, fold: int) -> BoolArray:
        left_out = np.zeros(len(self._survey.images), dtype=bool)
        left_out[self._folds[fold][0]] = True
        return left_out

    def share_without(self, fold: int) -> float:
        """Return which share of the images stays when a fold is left out."""
        return float(1.0 - self._left_out(fold).mean())

    def whole(self) -> StoredMap:
        """Return all landmarks of all images, in their stored form."""
        return self._stored(self._landmark_map)

    def whole_without(self, fold: int) -> StoredMap:
        """Return the same without a fold of held-out images."""
        return self._stored(self._landmarks(self._left_out(fold)))

    def _stored(self, landmark_map: LandmarkMap) -> StoredMap:
        quantizer = self._coder.quantizer
        if quantizer is None and not self._options.is_cut:
            return StoredMap(landmark_map=landmark_map, looks=None)
        looks = appearances(self._survey.images, landmark_map)
        if quantizer is not None:
            landmark_map = coded(landmark_map, looks, quantizer)
        return StoredMap(landmark_map=landmark_map, looks=looks)

    def ranked(self, stored: StoredMap, *, trials: Trials) -> RankedMap:
        """Return a map that is ready to be cut to any size.

        Parameters
        ----------
        stored : StoredMap
            The map.
        trials : Trials
            What held-out frames say about landmarks.
        """
        assert stored.looks is not None
        return rank_map(
            self._survey.images,
            stored.landmark_map,
            coherence=stored.looks.coherence,
            global_bytes=self._global_codes.shape[1] * self._global_codes.itemsize,
            options=self._options,
            trials=trials,
        )

    def localize_held_out(self, remake: Callable[[int], LandmarkMap]) -> HeldOutRun:
        """Localize held-out frames in the maps that were made without them."""
        return localize_held_out(
            self._survey.images,
            self._global_codes,
            self._survey.global_descriptors,
            folds=self._folds,
            remake=remake,
            describing=self._describing(),
            progress=self._progress,
        )

    def _describing(self) -> Describing:
        quantizer, family = self._coder.quantizer, self._survey.family
        return Describing(
            decode_landmarks=family.decode if quantizer is None else quantizer.decode,
            decode_global=self._global.decode,
            structure=structure_for(family),
        )

    def calibrated(self, run: HeldOutRun, part: LandmarkMap) -> HeldOut:
        """Return what held-out frames say about a part of the map."""
        images, kept = self._survey.images, self._keyframe_idx(part)
        centers = np.stack([i.cam_from_world.origin_in_a for i in images])
        spacing = keyframe_spacing(centers[kept])
        trials = CoarseTrials(
            images,
            self._global_codes,
            self._survey.global_descriptors,
            keyframe_idx=kept,
            describing=self._describing(),
            spacing=spacing,
        )
        interpolate = trials.choose()
        held_out = calibrate(
            run,
            trials.samples(interpolate, checked=False),
            trials.samples(interpolate, checked=True),
            keyframe_spacing=spacing,
        )
        return replace(held_out, interpolate=interpolate)

    def _weak_spots(
        self, held_out: HeldOut, kept: IntArray
    ) -> dict[str, npt.NDArray[np.generic]]:
        """Return the ids of the keyframes where held-out frames failed."""
        weak = list(held_out.weak_image_idx)
        if not weak:
            return {}
        centers = np.stack([i.cam_from_world.origin_in_a for i in self._survey.images])
        off = np.linalg.norm(centers[weak][:, None] - centers[kept], axis=2)
        return {WEAK_SPOTS: np.unique(kept[np.argmin(off, axis=1)]).astype(np.uint32)}

    def _keyframe_idx(self, part: LandmarkMap) -> IntArray:
        """Return the images that are keyframes of a part of the map."""
        if len(part.landmarks) == len(self._landmark_map.landmarks):
            # A picture without landmarks still says where it was taken.
            return np.arange(len(self._survey.images))
        return np.flatnonzero([len(ids) > 0 for ids in part.visible])

    def fit(self, ranked: RankedMap, budget_bytes: int, held_out: HeldOut) -> Fitted:
        """Return the largest part whose site, as written, is within a budget.

        Raises
        ------
        ConfigError
            When the budget is too small for any.
        """
        estimate = min(float(budget_bytes), ranked.total_bytes)
        best: Fitted | None = None
        smallest = 0
        with tempfile.TemporaryDirectory() as folder:
            for attempt in range(_FIT_ATTEMPTS):
                part = ranked.within(estimate)
                whole = estimate >= ranked.total_bytes
                if len(part.landmarks) == 0:
                    break
                manifest = write_site(
                    Path(folder) / str(attempt),
                    self.contents(part, held_out, self.facts()),
                    max_tile_bytes=self._options.max_tile_bytes,
                )
                size = self.counted_bytes(manifest) + _FIGURES_BYTES
                if size <= budget_bytes:
                    best = Fitted(part=part, estimate=None if whole else estimate)
                    if whole or size >= _FILLED * budget_bytes:
                        break
                else:
                    smallest = size
                estimate += 0.99 * budget_bytes - size
                estimate = min(estimate, ranked.total_bytes)
        if best is None:
            raise ConfigError(
                f"a budget of {budget_bytes} bytes is too small for "
                f"{self._survey.posed.name}: the smallest tried takes {smallest}; give "
                "more, or fewer images"
            )
        return best

    def counted_bytes(self, manifest: SiteManifest) -> int:
        """Return what of a site counts: all but networks and shipped codebooks."""
        universal = {
            role
            for role, coder in (
                ("descriptors", self._coder),
                ("global", self._global.coder),
            )
            if coder.universal
        }
        models = sum(
            model.manifest.num_bytes + model.network.num_bytes
            for model in manifest.models.values()
        )
        codebooks = sum(
            entry.num_bytes
            for role, entry in manifest.codebooks.items()
            if role in universal
        )
        return manifest.total_bytes - models - codebooks

    def facts(self) -> dict[str, str | int | float]:
        """Return what went into the build."""
        survey = self._survey
        used_depth = self._options.use_depth and any(
            i.depth for i in survey.posed.images
        )
        return {
            "edgeloc_version": __version__,
            "recording": survey.posed.name,
            "pose_source": survey.posed.pose_source,
            "num_images": len(survey.images),
            "used_depth": int(used_depth),
            "retrieval": "vlad"
            if survey.retrieval is None
            else survey.retrieval.network.manifest.name,
            "num_pairs": survey.num_pairs,
            "num_matches": survey.num_matches,
        }

    def contents(
        self,
        part: LandmarkMap,
        held_out: HeldOut,
        facts: Mapping[str, str | int | float],
        *,
        by_features: FeatureHeldOut | None = None,
    ) -> SiteContents:
        """Return what the site of a part of the map holds."""
        survey = self._survey
        kept = self._keyframe_idx(part)
        images = [survey.images[i] for i in kept.tolist()]
        visible = [part.visible[i] for i in kept.tolist()]
        keyframes = KeyframeTable(
            keyframe_ids=kept.astype(np.int64),
            camera_ids=tuple(i.camera_id for i in images),
            poses=PoseArrays(
                R=np.stack([i.cam_from_world.R for i in images]),
                t=np.stack([i.cam_from_world.t for i in images]),
            ),
            global_codes=self._global_codes[kept],
        )
        codebooks: dict[str, Codebook] = {}
        spec = survey.spec
        if self._coder.codebook is not None:
            codebooks["descriptors"] = self._coder.codebook
            spec = replace(
                spec,
                coding="pq",
                stored_dtype="uint8",
                stored_dim=part.landmarks.descriptors.shape[1],
            )
        if self._global.coder.codebook is not None:
            codebooks["global"] = self._global.coder.codebook
        position_step = None
        if len(part.landmarks):
            pixel = np.quantile(footprints(survey.images, part), 0.1)
            position_step = 2.0 ** np.floor(np.log2(_STEP_PX * pixel))
        return SiteContents(
            name=survey.posed.name,
            metric=survey.posed.metric,
            cameras={i.camera_id: i.camera for i in images},
            family=spec,
            keyframes=keyframes,
            landmarks=part.landmarks,
            visible_offsets=np.cumsum([0, *(len(v) for v in visible)]),
            visible_landmark_idx=np.concatenate(visible),
            retrieval_arrays={
                **survey.retrieval_arrays,
                **held_out.coarse.to_arrays(),
                **held_out.checked.to_arrays(checked=True),
                **held_out.interpolate.to_arrays(),
                **held_out.fix.to_arrays(),
                **self._weak_spots(held_out, kept),
                **({} if by_features is None else by_features.to_arrays()),
            },
            features=self.features(None).of(kept)
            if self._options.keeps_features
            else None,
            rungs=(*_RUNGS[self._options.store], "INTERPOLATE"),
            row_arrays=lambda codes: make_lists(codes, self._global.decode),
            models=survey.models,
            codebooks=codebooks,
            global_coding=self._global.coding,
            position_step=position_step,
            covariance_scale=held_out.fix.scale,
            gravity_in_world=survey.posed.gravity_in_world,
            geo_reference=survey.posed.geo_reference,
            build=facts,
        )
