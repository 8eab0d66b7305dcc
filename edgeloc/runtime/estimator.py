"""The estimator: one frame in, one honest answer out, within its budget."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

import numpy as np

from edgeloc.clock import Clock, MonotonicClock
from edgeloc.errors import ConfigError, MapError, ModelError, TileFormatError
from edgeloc.features.extract import extract_prepared, prepare_image
from edgeloc.features.family import FeatureFamily
from edgeloc.features.retrieve import decode_global_codes, search
from edgeloc.geometry.camera import project
from edgeloc.inference.backend import BackendOptions
from edgeloc.localize.candidate import Candidate, FrameTrace, Query
from edgeloc.localize.comparison import LandmarkComparison
from edgeloc.localize.interpolate import (
    CoarseCalibration,
    InterpolateOptions,
    interpolate_pose,
    nearest_keyframes,
    widen_unconfirmed,
)
from edgeloc.localize.structure import (
    StructureOptions,
    relocalize,
    structure_for,
)
from edgeloc.runtime.site_models import open_site_family, open_site_retrieval
from edgeloc.runtime.stage_timer import StageTimer
from edgeloc.runtime.telemetry import RepeatedWarning
from edgeloc.runtime.tile_cache import TileCache
from edgeloc.tiles.layout import LocalMap
from edgeloc.tiles.reader import (
    Site,
    TileMissingError,
    assemble_local_map,
    visible_point3D_ids,
)
from edgeloc.types import (
    CameraModel,
    Cause,
    Features,
    Frame,
    FrameBudget,
    IntArray,
    PoseEstimate,
    PoseStatus,
    RetrievalResult,
    Rigid3,
    Rung,
)

_log = logging.getLogger(__name__)

METHODS = ("auto", "structure", "interpolate")

_LOST = Candidate(status=PoseStatus.LOST, rung=Rung.LOST, cause=Cause.NONE)

_NOT_CONFIRMED = frozenset({Cause.FEW_MATCHES, Cause.FEW_INLIERS, Cause.AMBIGUOUS})
"""Causes that say that retrieval was checked against the landmarks, in vain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorOptions:
    """Options of the estimator.

    Parameters
    ----------
    method : {"auto", "structure", "interpolate"}
        "auto" answers with the best that is sound and fits; the others with that family
        alone.
    cold : bool
        No prior between frames: each is localized by itself.
    max_keypoints : int or None
        Keypoints per frame; None = as in mapping.
    num_retrieved : int
        Keyframes whose landmarks are matched.
    num_first : int
        Of these, how many are tried first; the others only when the pose that comes of
        them has fewer than `num_enough` inliers.
    num_enough : int
        See `num_first`.
    cache_bytes : int
        Bound of the decoded tiles kept in memory.
    structure : StructureOptions or None
        Of RELOCALIZE; None = what serves the site's feature family.
    interpolate : InterpolateOptions
        Of INTERPOLATE.
    backend : BackendOptions
        Where the site's networks run.
    seed : int
        Of RANSAC.
    """

    method: str = "auto"
    cold: bool = False
    max_keypoints: int | None = None
    num_retrieved: int = 10
    num_first: int = 5
    num_enough: int = 80
    cache_bytes: int = 256 << 20
    structure: StructureOptions | None = None
    interpolate: InterpolateOptions = field(default_factory=InterpolateOptions)
    backend: BackendOptions = field(default_factory=BackendOptions)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(
                f"--method {self.method}: this version of edgeloc cannot do that yet, "
                f"only {', '.join(METHODS)}"
            )
        if self.num_retrieved < 1:
            raise ConfigError(f"num_retrieved {self.num_retrieved} must be at least 1")
        if self.max_keypoints is not None and self.max_keypoints < 1:
            raise ConfigError(f"max_keypoints {self.max_keypoints} must be at least 1")


class Estimator:
    """Localizes frames of one camera in one site.

    Parameters
    ----------
    site : Site
        Opened site.
    camera : CameraModel
        Intrinsics of the frames.
    options : EstimatorOptions
        Options.
    clock : Clock
        What tells the time.
    family : FeatureFamily
        Describes frames in place of the site's own family: a variant of it.

    Raises
    ------
    MapError
        When the site was built with other models than are here, or one of its own is
        missing or was changed.
    ModelError
        When one of its networks cannot be used.
    """

    def __init__(
        self,
        *,
        site: Site,
        camera: CameraModel,
        options: EstimatorOptions | None = None,
        clock: Clock | None = None,
        family: FeatureFamily | None = None,
    ) -> None:
        self._site = site
        self._camera = camera
        self._options = options or EstimatorOptions()
        self._clock = clock or MonotonicClock()
        backend = self._options.backend
        self._family = family or open_site_family(site, options=backend)
        self._retrieval = open_site_retrieval(site, options=backend)
        try:
            self._coarse = CoarseCalibration.from_arrays(site.retrieval_arrays)
        except ValueError as exc:
            raise MapError(f"{site.path}: {exc}; build the site again") from exc
        structure = self._options.structure or structure_for(self._family)
        pnp = replace(structure.pnp, seed=self._options.seed)
        self._structure = replace(structure, pnp=pnp)
        self._global_descriptors = decode_global_codes(site.keyframes.global_codes)
        self._tiles = TileCache(site, max_bytes=self._options.cache_bytes)
        self._timer = StageTimer(self._clock)
        self._last_fix: Rigid3 | None = None
        self._failures = RepeatedWarning(_log, self._clock)

    def warm_up(self) -> None:
        """Run every stage once, so that the first frame is not the slowest.

        Raises
        ------
        ModelError
            When one of the site's networks fails.
        """
        noise = np.random.default_rng(0).integers(
            0, 255, (self._camera.height, self._camera.width), dtype=np.uint8
        )
        now_ns = self._clock.now_ns()
        frame = Frame(frame_id=0, camera_id="", timestamp_ns=now_ns, image=noise)
        far = FrameBudget(
            start_ns=now_ns, deadline_ns=now_ns + 10**12, clock=self._clock
        )
        self._trace(frame, far)
        self._relocalize_a_keyframe()
        self._last_fix = None
        self._timer = StageTimer(self._clock)

    def _relocalize_a_keyframe(self) -> None:
        """Solve for a keyframe's pose from its own landmarks, without a picture."""
        keyframes = self._site.keyframes
        retrieved = RetrievalResult(
            keyframe_ids=keyframes.keyframe_ids[:1], scores=np.ones(1, np.float32)
        )
        try:
            seen = assemble_local_map(
                self._tiles.load, self._site, retrieved.keyframe_ids
            )
        except (TileMissingError, TileFormatError):
            return
        pixels, in_front = project(
            self._camera, keyframes.cam_from_world(0).transform(seen.points3D)
        )
        usable = in_front & np.all(np.isfinite(pixels), axis=1)
        first_rows = np.searchsorted(seen.row_to_point, np.flatnonzero(usable))
        features = Features(
            keypoints=pixels[usable].astype(np.float32),
            scores=np.ones(len(first_rows), np.float32),
            sigmas=np.ones(len(first_rows), np.float32),
            descriptors=seen.descriptors[first_rows],
        )
        query = Query(
            camera=self._camera,
            features=features,
            descriptors=self._family.decode(features.descriptors),
            global_descriptor=self._global_descriptors[0],
        )
        self._relocalize(query, retrieved)

    def step(self, frame: Frame, budget: FrameBudget) -> PoseEstimate:
        """Return the answer for one frame; never raises for what a frame can contain.

        Parameters
        ----------
        frame : Frame
            Of the size of the camera model.
        budget : FrameBudget
            Between stages, what no longer fits is not started.
        """
        return self.explain(frame, budget)[0]

    def explain(
        self, frame: Frame, budget: FrameBudget
    ) -> tuple[PoseEstimate, FrameTrace]:
        """Return the answer and how it came about."""
        self._timer.start_frame()
        try:
            trace = self._trace(frame, budget)
        except ModelError as exc:
            self._failures.warn(str(exc))
            lost = replace(_LOST, cause=Cause.BACKEND_ERROR)
            trace = FrameTrace(candidates={"LOST": lost})
        self._timer.end_frame()
        candidate = self._best(trace)
        if candidate.status is PoseStatus.LOCALIZED and not self._options.cold:
            self._last_fix = candidate.cam_from_world
        now_ns = self._clock.now_ns()
        estimate = PoseEstimate(
            frame_id=frame.frame_id,
            timestamp_ns=frame.timestamp_ns,
            status=candidate.status,
            rung=candidate.rung,
            cause=candidate.cause,
            cam_from_world=candidate.cam_from_world,
            covariance=candidate.covariance,
            num_matches=candidate.num_matches,
            num_inliers=candidate.num_inliers,
            reproj_rmse_px=candidate.reproj_rmse_px,
            latency_ns=now_ns - budget.start_ns,
            deadline_met=now_ns <= budget.deadline_ns,
            stage_ns=dict(self._timer.stage_ns),
            map_id=self._site.manifest.map_id,
        )
        return estimate, trace

    def _affordable(self, budget: FrameBudget, *stages: str) -> bool:
        if budget.allows(self._timer.cost_ns(*stages)):
            return True
        self._timer.forget_a_little(*stages)
        return False

    def _trace(self, frame: Frame, budget: FrameBudget) -> FrameTrace:
        if not self._affordable(budget, "preprocess", "features", "retrieve"):
            return FrameTrace(candidates={"LOST": replace(_LOST, cause=Cause.DEADLINE)})
        query = self._describe(frame)
        if len(query.features) == 0:
            return FrameTrace(
                query=query,
                candidates={"LOST": replace(_LOST, cause=Cause.FEW_FEATURES)},
            )
        with self._timer.stage("retrieve"):
            retrieved = self._retrieve(query)
        candidates: dict[str, Candidate] = {}
        if self._options.method != "structure":
            with self._timer.stage("interpolate"):
                candidates["INTERPOLATE"] = interpolate_pose(
                    query=query.global_descriptor,
                    retrieved=retrieved,
                    keyframes=self._site.keyframes,
                    calibration=self._coarse,
                    options=self._options.interpolate,
                )
        if self._options.method != "interpolate":
            if self._affordable(budget, "local_map", "match_pnp"):
                candidates["RELOCALIZE"] = self._relocalize(query, retrieved)
            else:
                candidates["RELOCALIZE"] = replace(_LOST, cause=Cause.DEADLINE)
        return FrameTrace(retrieved=retrieved, query=query, candidates=candidates)

    def _describe(self, frame: Frame) -> Query:
        spec = self._site.manifest.family
        with self._timer.stage("preprocess"):
            prepared = prepare_image(
                frame.image, self._family, max_side_px=spec.max_side_px
            )
        with self._timer.stage("features"):
            features = extract_prepared(
                prepared,
                self._family,
                max_keypoints=self._options.max_keypoints or spec.max_keypoints,
            )
            descriptors = self._family.decode(features.descriptors)
        global_descriptor = np.zeros(self._retrieval.dim, np.float32)
        if len(features):
            with self._timer.stage("retrieve"):
                global_descriptor = self._retrieval.global_descriptor(
                    frame.image, descriptors
                )
        return Query(
            camera=self._camera,
            features=features,
            descriptors=descriptors,
            global_descriptor=global_descriptor,
        )

    def _retrieve(self, query: Query) -> RetrievalResult:
        keyframes = self._site.keyframes
        found = search(
            query.global_descriptor,
            keyframe_ids=keyframes.keyframe_ids,
            global_descriptors=self._global_descriptors,
            k=self._options.num_retrieved,
        )
        if self._last_fix is None:
            return found
        # The places around the last fix are worth a look whatever retrieval says.
        near = nearest_keyframes(keyframes, self._last_fix, k=3)
        near = near[~np.isin(near, found.keyframe_ids)]
        scores = (
            self._global_descriptors[keyframes.index_of(near)] @ query.global_descriptor
        )
        order = np.argsort(-scores, kind="stable")
        floor = found.scores[-1:] if len(found) else np.zeros(1, np.float32)
        return RetrievalResult(
            keyframe_ids=np.concatenate([found.keyframe_ids, near[order]]),
            scores=np.concatenate(
                [found.scores, np.minimum(scores[order], floor)]
            ).astype(np.float32),
        )

    def _relocalize(self, query: Query, retrieved: RetrievalResult) -> Candidate:
        """Try the best few keyframes, and all of them where those do not carry far."""
        comparison = LandmarkComparison(query.descriptors, self._family.decode)
        try:
            first = self._options.num_first
            if first < len(retrieved):
                few = RetrievalResult(
                    keyframe_ids=retrieved.keyframe_ids[:first],
                    scores=retrieved.scores[:first],
                )
                candidate = self._match_and_solve(query, few, comparison)
                if (
                    candidate.status is PoseStatus.LOCALIZED
                    and candidate.num_inliers >= self._options.num_enough
                ):
                    return candidate
            return self._match_and_solve(query, retrieved, comparison)
        except TileMissingError:
            return replace(_LOST, cause=Cause.TILE_MISSING)
        except TileFormatError:
            return replace(_LOST, cause=Cause.TILE_CORRUPT)

    def _match_and_solve(
        self, query: Query, retrieved: RetrievalResult, comparison: LandmarkComparison
    ) -> Candidate:
        def load_local_map(keyframe_ids: IntArray) -> LocalMap:
            with self._timer.stage("local_map"):
                return assemble_local_map(self._tiles.load, self._site, keyframe_ids)

        with self._timer.stage("local_map"):
            visible = visible_point3D_ids(
                self._tiles.load, self._site, retrieved.keyframe_ids
            )
        keyframes = self._site.keyframes
        with self._timer.stage("match_pnp"):
            return relocalize(
                query,
                retrieved,
                visible=visible,
                centers=keyframes.centers_of(
                    keyframes.index_of(retrieved.keyframe_ids)
                ),
                load_local_map=load_local_map,
                comparison=comparison,
                covariance_scale=self._site.manifest.covariance_scale,
                options=self._structure,
            )

    def _best(self, trace: FrameTrace) -> Candidate:
        """Return the best candidate with a pose, and the cause why not a better one."""
        fix = trace.candidates.get("RELOCALIZE")
        if fix is not None and fix.cam_from_world is not None:
            return fix
        coarse = trace.candidates.get("INTERPOLATE")
        if coarse is not None and coarse.cam_from_world is not None:
            if fix is None:
                return coarse
            if fix.cause in _NOT_CONFIRMED:
                coarse = widen_unconfirmed(coarse, self._site.keyframes)
            return replace(
                coarse,
                cause=fix.cause,
                matches=fix.matches,
                inlier_mask=fix.inlier_mask,
            )
        for candidate in (fix, coarse, *trace.candidates.values()):
            if candidate is not None:
                return candidate
        return _LOST
