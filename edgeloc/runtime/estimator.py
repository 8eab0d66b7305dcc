"""The estimator: one frame in, one honest answer out, within its budget."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from edgeloc.clock import Clock, MonotonicClock
from edgeloc.errors import ConfigError, MapError, ModelError, TileFormatError
from edgeloc.features.extract import extract_prepared, prepare_image, to_grey
from edgeloc.features.family import FeatureFamily
from edgeloc.features.learned import LearnedFamily
from edgeloc.geometry.camera import project
from edgeloc.inference.backend import BackendOptions
from edgeloc.localize.candidate import Candidate, FrameTrace, Query
from edgeloc.localize.comparison import LandmarkComparison
from edgeloc.localize.interpolate import (
    CoarseCalibration,
    InterpolateOptions,
    interpolate_pose,
    keyframes_in_view,
    nearest_keyframes,
    widen_unconfirmed,
)
from edgeloc.localize.structure import (
    FixCalibration,
    StructureOptions,
    relocalize,
    structure_for,
)
from edgeloc.runtime import ladder
from edgeloc.runtime.following import (
    Following,
    FollowOptions,
    Look,
    Prediction,
)
from edgeloc.runtime.ladder import Attempt, LadderState, Need, Settings
from edgeloc.runtime.site_models import (
    open_keyframe_index,
    open_landmark_decoder,
    open_site_family,
    open_site_retrieval,
)
from edgeloc.runtime.stage_timer import StageTimer
from edgeloc.runtime.telemetry import RepeatedWarning
from edgeloc.runtime.tile_cache import TileCache
from edgeloc.runtime.tracker import MotionState, MotionTracker, Odometry
from edgeloc.tiles.layout import LocalMap
from edgeloc.tiles.reader import (
    Site,
    TileMissingError,
    assemble_local_map,
    visible_point3D_ids,
)
from edgeloc.types import (
    ByteArray,
    CameraModel,
    Cause,
    Features,
    FloatArray,
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

_STEPS = MappingProxyType(
    {
        "auto": None,
        "structure": frozenset({"track", "guided", "relocalize", "predict", "lost"}),
        "interpolate": frozenset({"interpolate", "lost"}),
    }
)
"""Steps of the ladder that a method takes."""

_PARTS = (1, 2, 3, 4, 6, 8)
"""Parts of the picture, one of which is looked at for landmarks."""

_NUM_GAPS = 16
"""Gaps between frames, of which the shortest is taken for their period."""

_LATE_SETTING = 2
"""Of `ladder.KNOBS`."""

_PART_MARGIN_PX = 24
"""Around a part: features near the border of what is looked at are not found."""

_AHEAD_KEYFRAMES, _AHEAD_S = 8.0, 2.0
"""Tiles are read ahead within so many distances of keyframes, or seconds of way."""

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
    follow : FollowOptions
        Of TRACK.
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
    cache_bytes: int = 64 << 20
    structure: StructureOptions | None = None
    interpolate: InterpolateOptions = field(default_factory=InterpolateOptions)
    follow: FollowOptions = field(default_factory=FollowOptions)
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


class _Work:
    """What is known of one frame while it is answered."""

    def __init__(
        self,
        frame: Frame,
        budget: FrameBudget,
        offer: Callable[[PoseEstimate], None] | None,
    ) -> None:
        self.frame = frame
        self.budget = budget
        self.offer = offer
        self.begin_ns = budget.clock.now_ns()
        self.candidates: dict[str, Candidate] = {}
        self.skipped: set[str] = set()
        self.prediction: Prediction | None = None
        self.grey: ByteArray | None = None
        self.query: Query | None = None
        self.retrieved: RetrievalResult | None = None
        self.done: set[str] = set()

    def trace(self) -> FrameTrace:
        return FrameTrace(
            retrieved=self.retrieved, query=self.query, candidates=self.candidates
        )


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
            self._calibration = FixCalibration.of_site(
                site.manifest.covariance_scale, site.retrieval_arrays
            )
        except ValueError as exc:
            raise MapError(f"{site.path}: {exc}; build the site again") from exc
        structure = self._options.structure or structure_for(self._family)
        pnp = replace(structure.pnp, seed=self._options.seed)
        self._structure = replace(structure, pnp=pnp)
        self._index = open_keyframe_index(site)
        self._decode_landmarks = open_landmark_decoder(site, self._family)
        self._tiles = TileCache(site, max_bytes=self._options.cache_bytes)
        self._timer = StageTimer(self._clock)
        self._following = Following(
            camera=camera,
            family=self._family,
            decode_landmarks=self._decode_landmarks,
            calibration=self._calibration,
            options=replace(
                self._options.follow,
                track=replace(
                    self._options.follow.track,
                    pnp=replace(
                        pnp,
                        inlier_sigmas=self._options.follow.track.inlier_sigmas,
                        max_iterations=max(1, pnp.max_iterations // 4),
                    ),
                    integrity=self._structure.integrity,
                    min_similarity=self._structure.match.min_similarity,
                ),
            ),
        )
        self._look: tuple[Look, int] | None = None
        self._late_setting = _LATE_SETTING
        self._last_timestamp_ns: int | None = None
        self._gaps_ns: deque[int] = deque(maxlen=_NUM_GAPS)
        self._failures = RepeatedWarning(_log, self._clock)
        # Images of another size than a network's own would reach it stretched.
        fixed = (
            isinstance(self._family, LearnedFamily)
            and self._family.network.manifest.input.size is not None
        )
        self._parts = _PARTS[:1] if fixed else _PARTS

    def warm_up(self) -> None:
        """Run every stage once, so that the first frame is not the slowest.

        What the stages take is remembered as what they will probably cost.

        Raises
        ------
        ModelError
            When one of the site's networks fails.
        """
        noise = np.random.default_rng(0).integers(
            0, 255, (self._camera.height, self._camera.width), dtype=np.uint8
        )
        for _ in range(2):  # the first time is slower than any after it
            self._timer = StageTimer(self._clock)
            now_ns = self._clock.now_ns()
            frame = Frame(frame_id=0, camera_id="", timestamp_ns=now_ns, image=noise)
            far = FrameBudget(
                start_ns=now_ns, deadline_ns=now_ns + 10**12, clock=self._clock
            )
            self._timer.start_frame()
            self._climb(_Work(frame, far, None))
            self._relocalize_a_keyframe(noise)
            self._timer.end_frame()
        self._following.reset()
        self._look = None
        self._timer.call_provisional()
        if self._options.cold:
            self._timer = StageTimer(self._clock)

    def _relocalize_a_keyframe(self, grey: ByteArray) -> None:
        """Solve for a keyframe's pose from its own landmarks, without a picture."""
        keyframes = self._site.keyframes
        retrieved = RetrievalResult(
            keyframe_ids=keyframes.keyframe_ids[:1], scores=np.ones(1, np.float32)
        )
        pose = keyframes.cam_from_world(0)
        try:
            seen = assemble_local_map(
                self._tiles.load, self._site, retrieved.keyframe_ids
            )
        except (TileMissingError, TileFormatError):
            return
        pixels, in_front = project(self._camera, pose.transform(seen.points3D))
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
            descriptors=self._decode_landmarks(features.descriptors),
            global_descriptor=self._index.descriptors(np.zeros(1, np.int64))[0],
        )
        fix = self._relocalize(query, retrieved)
        if fix.status is not PoseStatus.LOCALIZED or self._options.cold:
            return
        # The landmarks do not move in the noise: this measures, and finds nothing.
        self._following.accept(fix, grey, 0, None)
        prediction = self._following.predict(0)
        assert prediction is not None
        with self._timer.stage("track"):
            self._following.track(grey, 0, prediction)
        frame = Frame(frame_id=0, camera_id="", timestamp_ns=0, image=grey)
        for num_parts in self._parts:
            self._timer.end_frame()
            self._timer.start_frame()
            self._following.accept(fix, grey, 0, None)
            look = self._look_at_part(frame, self._covariance_of(fix), num_parts)
            self._recognise(look, _setting_of(num_parts))

    @property
    def motion_state(self) -> MotionState | None:
        """What later frames can be predicted from; None when nothing is known."""
        return self._following.motion_state

    @property
    def motion(self) -> MotionTracker:
        """The motion filter, which takes measurements of other sensors, too."""
        return self._following.motion

    @property
    def odometry(self) -> Odometry | None:
        """A frame in which the camera never jumps, and where it lies in the map."""
        return self._following.odometry

    def step(
        self,
        frame: Frame,
        budget: FrameBudget,
        *,
        offer: Callable[[PoseEstimate], None] | None = None,
    ) -> PoseEstimate:
        """Return the answer for one frame; never raises for what a frame can contain.

        Parameters
        ----------
        frame : Frame
            Of the size of the camera model.
        budget : FrameBudget
            Between stages, what no longer fits is not started; but a fix without which
            the frames that follow could not be answered either is finished late.
        offer : callable, optional
            Called with each candidate as soon as it is there, cheap ones first.
        """
        return self.explain(frame, budget, offer=offer)[0]

    def explain(
        self,
        frame: Frame,
        budget: FrameBudget,
        *,
        offer: Callable[[PoseEstimate], None] | None = None,
    ) -> tuple[PoseEstimate, FrameTrace]:
        """Return the answer and how it came about."""
        self._timer.start_frame()
        self._tiles.start_frame()
        work = _Work(frame, budget, offer)
        self._note_time(frame.timestamp_ns)
        try:
            self._climb(work)
        except ModelError as exc:
            self._failures.warn(str(exc))
            work.candidates["LOST"] = replace(_LOST, cause=Cause.BACKEND_ERROR)
        candidate = self._best(work)
        if candidate.status is not PoseStatus.LOCALIZED:
            self._following.lose(frame.timestamp_ns)
        self._timer.end_frame()
        estimate = self._estimate(candidate, work)
        self._read_ahead(estimate)
        return estimate, work.trace()

    def _read_ahead(self, estimate: PoseEstimate) -> None:
        """Ask for the tiles that the next frames will need, beside the frame loop."""
        pose, state = estimate.cam_from_world, self.motion_state
        if self._options.cold or pose is None or state is None:
            return
        speed = float(np.linalg.norm(state.velocity[3:]))
        reach = max(_AHEAD_KEYFRAMES * self._coarse.keyframe_spacing, _AHEAD_S * speed)
        self._tiles.prefetch(self._tiles.tiles_near(pose.origin_in_a, reach).tolist())

    def _estimate(self, candidate: Candidate, work: _Work) -> PoseEstimate:
        frame, budget = work.frame, work.budget
        now_ns = self._clock.now_ns()
        return PoseEstimate(
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

    def _climb(self, work: _Work) -> None:
        """Take steps of the ladder until the best that there is time for answered."""
        options = self._options
        state = LadderState(
            have=self._have(work),
            only=_STEPS[options.method],
            may_be_late=not options.cold,
            late_setting=self._late_setting,
            turn_down=not options.cold,
        )
        while True:
            plan = ladder.plan(state, work.budget.remaining_ns, self._timer)
            for step in plan.skipped:
                if step.name not in work.skipped:
                    work.skipped.add(step.name)
                    self._timer.forget_a_little(*(set(step.stages) - state.done))
            attempt = plan.attempts[0]
            if attempt.step.rung is Rung.LOST:
                return
            candidate = self._take(attempt, work)
            if attempt.late:
                # Quick first; with everything that there is when that did not do.
                failed = candidate.cam_from_world is None
                self._late_setting = 0 if failed else _LATE_SETTING
            work.candidates[attempt.step.name.upper()] = candidate
            state = state.after(attempt.step.name, candidate.cause, stages=work.done)
            if candidate.cam_from_world is None:
                if work.query is not None and len(work.query.features) == 0:
                    return
                continue
            if work.offer is not None:
                work.offer(self._estimate(self._best(work), work))
            if len(plan.attempts) == 1:
                return

    def _have(self, work: _Work) -> frozenset[Need]:
        have = set(ladder.site_data(self._site.manifest.rungs))
        if not self._options.cold:
            timestamp_ns = work.frame.timestamp_ns
            prediction = self._following.predict(timestamp_ns)
            work.prediction = prediction
            if prediction is not None and prediction.usable:
                have |= {Need.MOTION, Need.PRIOR}
            if self._following.can_track(self._grey(work), timestamp_ns):
                have.add(Need.TRACKS)
        return frozenset(have)

    def _grey(self, work: _Work) -> ByteArray:
        if work.grey is None:
            with self._timer.stage("preprocess"):
                image = work.frame.image
                # Kept beyond this frame, whose memory may be used again.
                work.grey = image.copy() if image.ndim == 2 else to_grey(image)
        return work.grey

    def _take(self, attempt: Attempt, work: _Work) -> Candidate:
        name = attempt.step.name
        if name == "predict":
            return _predicted(work.prediction)
        if name == "track":
            return self._track(work)
        if name == "guided":
            return self._guided(work, attempt)
        return self._from_retrieval(work, attempt)

    def _track(self, work: _Work) -> Candidate:
        assert work.prediction is not None
        following, frame = self._following, work.frame
        with self._timer.stage("track"):
            candidate = following.track(
                self._grey(work), frame.timestamp_ns, work.prediction
            )
        work.done.update(("preprocess", "track"))
        if candidate.status is not PoseStatus.LOCALIZED:
            self._look = None
            return candidate
        if work.offer is not None:
            work.offer(self._estimate(candidate, work))
        self._look_for_landmarks(work, self._covariance_of(candidate))
        return candidate

    def _look_for_landmarks(self, work: _Work, covariance: FloatArray) -> None:
        """Use what is left of a frame's time for the frames that follow."""
        following = self._following
        # Without new landmarks there will soon be nothing to follow. This frame is
        # answered, and one that is late now costs less than all that come after it.
        urgent = following.starves
        if self._look is None and following.wants_landmarks:
            num_parts = self._affordable_parts(work)
            if urgent and not num_parts:
                num_parts = self._parts[-1]
            if num_parts:
                look = self._look_at_part(work.frame, covariance, num_parts)
                self._look = look, _setting_of(num_parts)
        if self._look is None:
            return
        look, setting = self._look
        cost_ns = self._timer.cost_ns("track_map") + self._timer.cost_ns(
            "look_match", setting=setting, share=1.0
        )
        if urgent or cost_ns <= self._spare_ns(work):
            self._recognise(look, setting)
            self._look = None
        elif work.frame.timestamp_ns != look.timestamp_ns:
            self._timer.forget_a_little("look_match", "track_map")

    def _spare_ns(self, work: _Work) -> int:
        """Return the time for what this frame's answer does not need.

        Until its deadline, and until the next frame comes, which would have to wait.
        """
        spare_ns = work.budget.remaining_ns
        if self._gaps_ns:
            period_ns = min(self._gaps_ns)
            spent_ns = self._clock.now_ns() - work.begin_ns
            spare_ns = min(spare_ns, period_ns - spent_ns)
        return spare_ns

    def _note_time(self, timestamp_ns: int) -> None:
        if self._last_timestamp_ns is not None:
            gap_ns = timestamp_ns - self._last_timestamp_ns
            if gap_ns > 0:
                self._gaps_ns.append(gap_ns)
        self._last_timestamp_ns = timestamp_ns

    def _affordable_parts(self, work: _Work) -> int:
        """Return into how many parts the picture is divided; 0 = no time for any."""
        least = 1 if self._following.num_tracks < 40 else 3
        for num_parts in self._parts:
            if num_parts < least and len(self._parts) > 1:
                continue
            cost_ns = self._timer.cost_ns(
                "look", setting=_setting_of(num_parts), share=1.2 / num_parts
            )
            if cost_ns <= self._spare_ns(work):
                return num_parts
        self._timer.forget_a_little("look")
        return 0

    def _look_at_part(
        self, frame: Frame, covariance: FloatArray, num_parts: int
    ) -> Look:
        """Return the features of the part of the picture that is next."""
        with self._timer.stage("look", setting=_setting_of(num_parts)):
            rows = self._following.next_rows(num_parts)
            features = self._features_of_rows(frame.image, rows)
            return self._following.look(features, rows, frame.timestamp_ns, covariance)

    def _recognise(self, look: Look, setting: int) -> None:
        """Find landmarks among features; without tiles, none."""
        if not self._near_map(look.cam_from_world):
            return
        with self._timer.stage("look_match", setting=setting):
            self._following.recognise(look)

    def _near_map(self, pose: Rigid3) -> bool:
        """Have the landmarks around a pose at hand; False when tiles are not there."""
        keyframes = self._site.keyframes
        state = self._following.motion_state
        distance = 1.0 if state is None else state.landmark_distance

        def load(ids: IntArray) -> tuple[LocalMap, list[IntArray], FloatArray]:
            return (
                assemble_local_map(self._tiles.load, self._site, ids),
                visible_point3D_ids(self._tiles.load, self._site, ids),
                keyframes.centers_of(keyframes.index_of(ids)),
            )

        with self._timer.stage("track_map"):
            try:
                self._following.near_map(
                    pose,
                    choose=lambda at, k: keyframes_in_view(
                        keyframes, at, k=k, distance=distance
                    ),
                    load=load,
                    spacing=self._coarse.keyframe_spacing,
                )
            except (TileMissingError, TileFormatError):
                return False
        return True

    def _features_of_rows(self, image: ByteArray, rows: tuple[int, int]) -> Features:
        """Return the features in some rows of a picture, px of the whole of it."""
        spec = self._site.manifest.family
        height, width = image.shape[:2]
        first = max(rows[0] - _PART_MARGIN_PX, 0)
        last = min(rows[1] + _PART_MARGIN_PX, height)
        part = image[first:last]
        max_side_px = spec.max_side_px
        if max_side_px and max(height, width) > max_side_px:
            # As much smaller as the whole picture would be made.
            longest = max(part.shape[:2])
            max_side_px = max(1, round(longest * max_side_px / max(height, width)))
        else:
            max_side_px = 0
        wanted = self._options.max_keypoints or spec.max_keypoints
        features = extract_prepared(
            prepare_image(part, self._family, max_side_px=max_side_px),
            self._family,
            max_keypoints=max(1, round(wanted * (last - first) / height)),
        )
        return replace(
            features,
            keypoints=features.keypoints + np.array([0.0, first], np.float32),
        )

    def _guided(self, work: _Work, attempt: Attempt) -> Candidate:
        prediction = work.prediction
        assert prediction is not None
        if not self._near_map(prediction.cam_from_world):
            return replace(_LOST, cause=Cause.TILE_MISSING)
        work.done.add("track_map")
        query = self._describe(work, attempt)
        if len(query.features) == 0:
            return replace(_LOST, cause=Cause.FEW_FEATURES)
        with self._timer.stage("guided", setting=attempt.setting):
            return self._following.guided(
                query,
                self._grey(work),
                work.frame.timestamp_ns,
                prediction=prediction,
            )

    def _from_retrieval(self, work: _Work, attempt: Attempt) -> Candidate:
        query = self._describe(work, attempt)
        if len(query.features) == 0:
            return replace(_LOST, cause=Cause.FEW_FEATURES)
        if work.retrieved is None:
            with self._timer.stage("retrieve"):
                vector = self._retrieval.global_descriptor(
                    work.frame.image, query.descriptors
                )
                query = work.query = replace(query, global_descriptor=vector)
                work.retrieved = self._retrieve(query, work.prediction)
            work.done.add("retrieve")
        if attempt.step.name == "interpolate":
            with self._timer.stage("interpolate"):
                return interpolate_pose(
                    query=query.global_descriptor,
                    retrieved=work.retrieved,
                    keyframes=self._site.keyframes,
                    index=self._index,
                    calibration=self._coarse,
                    options=self._options.interpolate,
                )
        fix = self._relocalize(
            query, work.retrieved, settings=attempt.settings, setting=attempt.setting
        )
        self._look = None
        if fix.status is PoseStatus.LOCALIZED and not self._options.cold:
            fix = self._following.accept(
                fix, self._grey(work), work.frame.timestamp_ns, work.prediction
            )
        return fix

    def _describe(self, work: _Work, attempt: Attempt) -> Query:
        """Return the features of a frame, computed once."""
        if work.query is not None:
            return work.query
        spec = self._site.manifest.family
        image = work.frame.image
        with self._timer.stage("preprocess"):
            prepared = prepare_image(image, self._family, max_side_px=spec.max_side_px)
        wanted = self._options.max_keypoints or spec.max_keypoints
        with self._timer.stage("features", setting=attempt.setting):
            features = extract_prepared(
                prepared,
                self._family,
                max_keypoints=max(1, round(wanted * attempt.settings.keypoints)),
            )
            descriptors = self._family.decode(features.descriptors)
        work.done.update(("preprocess", "features"))
        work.query = Query(
            camera=self._camera,
            features=features,
            descriptors=descriptors,
            global_descriptor=np.zeros(self._retrieval.dim, np.float32),
        )
        return work.query

    def _retrieve(self, query: Query, prediction: Prediction | None) -> RetrievalResult:
        keyframes = self._site.keyframes
        found = self._index.search(
            query.global_descriptor, k=self._options.num_retrieved
        )
        if prediction is None or not prediction.usable:
            return found
        # The places around the last fix are worth a look whatever retrieval says.
        near = nearest_keyframes(keyframes, prediction.cam_from_world, k=3)
        near = near[~np.isin(near, found.keyframe_ids)]
        scores = (
            self._index.descriptors(keyframes.index_of(near)) @ query.global_descriptor
        )
        order = np.argsort(-scores, kind="stable")
        floor = found.scores[-1:] if len(found) else np.zeros(1, np.float32)
        return RetrievalResult(
            keyframe_ids=np.concatenate([found.keyframe_ids, near[order]]),
            scores=np.concatenate(
                [found.scores, np.minimum(scores[order], floor)]
            ).astype(np.float32),
        )

    def _relocalize(
        self,
        query: Query,
        retrieved: RetrievalResult,
        *,
        settings: Settings = ladder.FULL,
        setting: int = 0,
    ) -> Candidate:
        """Try the best few keyframes, and all of them where those do not carry far."""
        comparison = LandmarkComparison(query.descriptors, self._decode_landmarks)
        if settings.keyframes < 1.0:
            retrieved = _best_of(
                retrieved, max(1, round(settings.keyframes * len(retrieved)))
            )
        pnp = self._structure.pnp
        structure = replace(
            self._structure,
            pnp=replace(
                pnp, max_iterations=max(1, round(settings.samples * pnp.max_iterations))
            ),
        )
        try:
            first = self._options.num_first
            if first < len(retrieved):
                candidate = self._match_and_solve(
                    query,
                    _best_of(retrieved, first),
                    comparison,
                    structure=structure,
                    setting=setting,
                )
                if (
                    candidate.status is PoseStatus.LOCALIZED
                    and candidate.num_inliers >= self._options.num_enough
                ):
                    return candidate
            return self._match_and_solve(
                query, retrieved, comparison, structure=structure, setting=setting
            )
        except TileMissingError:
            return replace(_LOST, cause=Cause.TILE_MISSING)
        except TileFormatError:
            return replace(_LOST, cause=Cause.TILE_CORRUPT)

    def _match_and_solve(
        self,
        query: Query,
        retrieved: RetrievalResult,
        comparison: LandmarkComparison,
        *,
        structure: StructureOptions,
        setting: int,
    ) -> Candidate:
        def load_local_map(keyframe_ids: IntArray) -> LocalMap:
            with self._timer.stage("local_map"):
                return assemble_local_map(self._tiles.load, self._site, keyframe_ids)

        with self._timer.stage("local_map"):
            visible = visible_point3D_ids(
                self._tiles.load, self._site, retrieved.keyframe_ids
            )
        keyframes = self._site.keyframes
        with self._timer.stage("match_pnp", setting=setting):
            return relocalize(
                query,
                retrieved,
                visible=visible,
                centers=keyframes.centers_of(
                    keyframes.index_of(retrieved.keyframe_ids)
                ),
                load_local_map=load_local_map,
                comparison=comparison,
                calibration=self._calibration,
                options=structure,
            )

    def _best(self, work: _Work) -> Candidate:
        """Return the best candidate with a pose, and the cause why not a better one."""
        candidates = work.candidates
        for name in ("TRACK", "GUIDED", "RELOCALIZE"):
            fix = candidates.get(name)
            if fix is not None and fix.cam_from_world is not None:
                return fix
        fix = candidates.get("RELOCALIZE")
        coarse = candidates.get("INTERPOLATE")
        predicted = candidates.get("PREDICT")
        failed = candidates.get("LOST")
        cause = Cause.NONE
        if failed is not None:
            cause = failed.cause
        elif fix is not None:
            cause = fix.cause
        elif "relocalize" in work.skipped:
            cause = Cause.DEADLINE
        else:
            for name in ("GUIDED", "TRACK"):
                if name in candidates and cause is Cause.NONE:
                    cause = candidates[name].cause
        if coarse is not None and coarse.cam_from_world is not None:
            if fix is not None and fix.cause in _NOT_CONFIRMED:
                coarse = widen_unconfirmed(coarse, self._site.keyframes)
        elif coarse is not None and cause is Cause.NONE:
            cause = coarse.cause
        answers = [
            c
            for c in (coarse, predicted)
            if c is not None and c.cam_from_world is not None
        ]
        if not answers:
            lost = replace(
                _LOST, cause=Cause.DEADLINE if cause is Cause.NONE else cause
            )
            return lost if fix is None else replace(fix, cause=lost.cause)
        # A fresh prediction says more than a mean of keyframes.
        best = min(answers, key=_position_variance)
        if fix is not None:
            best = replace(best, matches=fix.matches, inlier_mask=fix.inlier_mask)
        return replace(best, cause=cause)

    @staticmethod
    def _covariance_of(candidate: Candidate) -> FloatArray:
        assert candidate.covariance is not None
        return candidate.covariance


def _setting_of(num_parts: int) -> int:
    """Return how `StageTimer` tells looks at parts from those at the whole picture."""
    return 0 if num_parts == 1 else num_parts


def _best_of(retrieved: RetrievalResult, count: int) -> RetrievalResult:
    return RetrievalResult(
        keyframe_ids=retrieved.keyframe_ids[:count], scores=retrieved.scores[:count]
    )


def _predicted(prediction: Prediction | None) -> Candidate:
    assert prediction is not None
    return Candidate(
        status=PoseStatus.PREDICTED,
        rung=Rung.PREDICT,
        cause=Cause.NONE,
        cam_from_world=prediction.cam_from_world,
        covariance=prediction.covariance,
    )


def _position_variance(candidate: Candidate) -> float:
    assert candidate.covariance is not None
    return float(np.trace(candidate.covariance[3:, 3:]))
