"""The estimator: one frame in, one honest answer out, within its budget."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from edgeloc.clock import Clock, MonotonicClock
from edgeloc.errors import ConfigError, ModelError, TileFormatError
from edgeloc.features.family import FeatureFamily
from edgeloc.features.retrieve import Retrieval
from edgeloc.geometry.camera import project
from edgeloc.localize.candidate import LOST, Candidate, FrameTrace, Query
from edgeloc.runtime import ladder
from edgeloc.runtime.aids import Aids
from edgeloc.runtime.answer import best_answer
from edgeloc.runtime.believing import Believing
from edgeloc.runtime.ego_motion import EgoMotion
from edgeloc.runtime.estimator_options import METHOD_STEPS, EstimatorOptions
from edgeloc.runtime.focal_watch import FocalWatch
from edgeloc.runtime.following import Following, Prediction, lost_like
from edgeloc.runtime.frame_work import FrameWork
from edgeloc.runtime.ladder import Attempt, LadderState, Need
from edgeloc.runtime.looking import Looking
from edgeloc.runtime.method_structure import StructureMethod
from edgeloc.runtime.methods import open_methods
from edgeloc.runtime.motion_state import MotionState
from edgeloc.runtime.odometry import Odometry
from edgeloc.runtime.priors import PriorTrust
from edgeloc.runtime.site_parts import SiteParts, open_site_parts
from edgeloc.runtime.telemetry import RepeatedWarning
from edgeloc.runtime.tracker import MotionTracker
from edgeloc.tiles.reader import Site, TileMissingError, assemble_local_map
from edgeloc.types import (
    ByteArray,
    CameraModel,
    Cause,
    Features,
    Frame,
    FrameBudget,
    PoseEstimate,
    PoseStatus,
    RetrievalResult,
    Rung,
)

_log = logging.getLogger(__name__)

_LATE_SETTING = 2
"""Of `ladder.KNOBS`."""

_TURN_EVERY_NS = 1_000_000_000
"""A lost camera is seldom a rolled one, and turning a picture takes time."""

_AHEAD_KEYFRAMES, _AHEAD_S = 8.0, 2.0
"""Tiles are read ahead within so many distances of keyframes, or seconds of way."""

_LANDMARKS_AT = 5.0
"""Distance of landmarks where a fix tells of none, in distances of keyframes."""


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
    retrieval : Retrieval
        Makes global descriptors in place of the site's own.
    aids : Aids
        Masks and other sensors.

    Raises
    ------
    ConfigError
        When the site has no data for the method that was asked for.
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
        retrieval: Retrieval | None = None,
        aids: Aids | None = None,
    ) -> None:
        self._site = site
        self._camera = camera
        self._options = options = options or EstimatorOptions()
        self._clock = clock or MonotonicClock()
        self._data = ladder.site_data(site.manifest.rungs)
        self._steps = METHOD_STEPS[options.method]
        if self._steps is not None and not any(
            ladder.STEPS[name].needs <= self._data for name in self._steps - {"lost"}
        ):
            raise ConfigError(
                f"--method {options.method}: {site.path} carries no data for it, only "
                f"for {', '.join(site.manifest.rungs)}"
            )
        aids = aids or Aids()
        self._priors, self._motions = aids.priors, aids.motions
        self._ego_motion = EgoMotion(clock=self._clock)
        parts = open_site_parts(
            site,
            camera,
            options,
            clock=self._clock,
            family=family,
            retrieval=retrieval,
            masks=aids.masks,
        )
        self._methods = open_methods(parts)
        self._tiles, self._timer = parts.tiles, parts.timer
        self._following = _open_following(parts)
        self._believing = Believing(
            strong_inliers=options.follow.strong_inliers, clock=self._clock
        )
        self._focal_watch = FocalWatch(camera, cold=options.cold)
        self._looking = Looking(parts, self._following, self._clock)
        self._parts = parts
        self._late_setting = _LATE_SETTING
        self._turns = 0
        self._turned_ns: int | None = None
        self._failures = RepeatedWarning(_log, self._clock)

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
            self._timer.forget()
            now_ns = self._clock.now_ns()
            frame = Frame(frame_id=0, camera_id="", timestamp_ns=now_ns, image=noise)
            far = FrameBudget(
                start_ns=now_ns, deadline_ns=now_ns + 10**12, clock=self._clock
            )
            self._timer.start_frame()
            self._climb(FrameWork(self._parts, frame, far))
            self._relocalize_a_keyframe(noise)
            self._timer.end_frame()
        self._following.reset()
        self._focal_watch.reset()
        self._turned_ns = None
        self._looking.forget()
        if self._parts.masks is not None:
            self._parts.masks.forget()
        self._timer.call_provisional()
        if self._options.cold:
            self._timer.forget()

    def _relocalize_a_keyframe(self, grey: ByteArray) -> None:
        """Solve for a keyframe's pose from its own landmarks, without a picture."""
        method = self._methods.get("relocalize")
        if not isinstance(method, StructureMethod):
            return
        parts, keyframes = self._parts, self._site.keyframes
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
            descriptors=parts.decode_landmarks(features.descriptors),
            global_descriptor=parts.index.descriptors(np.zeros(1, np.int64))[0],
        )
        fix = method.solve(query, retrieved)
        if fix.status is not PoseStatus.LOCALIZED or self._options.cold:
            return
        # The landmarks do not move in the noise: this measures, and finds nothing.
        self._following.accept(fix, grey, 0, None)
        prediction = self._following.predict(0)
        assert prediction is not None
        assert fix.covariance is not None
        with self._timer.stage("track"):
            self._following.track(grey, 0, prediction)
        frame = Frame(frame_id=0, camera_id="", timestamp_ns=0, image=grey)
        for num_parts in self._looking.sizes:
            self._timer.end_frame()
            self._timer.start_frame()
            self._following.accept(fix, grey, 0, None)
            self._looking.rehearse(frame, fix.covariance, num_parts)

    @property
    def motion_state(self) -> MotionState | None:
        """What later frames can be predicted from; None when nothing is known."""
        return self._following.motion_state

    @property
    def motion(self) -> MotionTracker:
        """The motion filter, which takes measurements of other sensors, too."""
        return self._following.motion

    @property
    def trust(self) -> PriorTrust:
        """Which parts of what other sensors say are believed."""
        return self._believing.trust

    @property
    def ego_motion(self) -> EgoMotion:
        """Which sensors of motion are believed."""
        return self._ego_motion

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
        work = FrameWork(self._parts, frame, budget, offer=offer, turns=self._turns)
        self._looking.note_time(frame.timestamp_ns)
        self._sense(work)
        try:
            self._climb(work)
        except ModelError as exc:
            self._failures.warn(str(exc))
            work.candidates["LOST"] = replace(LOST, cause=Cause.BACKEND_ERROR)
        candidate = self._best(work)
        if candidate.status is not PoseStatus.LOCALIZED:
            self._following.lose(frame.timestamp_ns)
        elif self._motions is not None and not self._options.cold:
            self._ego_motion.learn(frame.timestamp_ns, candidate)
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
        spacing = self._parts.coarse.keyframe_spacing
        reach = max(_AHEAD_KEYFRAMES * spacing, _AHEAD_S * speed)
        self._tiles.prefetch(self._tiles.tiles_near(pose.origin_in_a, reach).tolist())

    def _estimate(self, candidate: Candidate, work: FrameWork) -> PoseEstimate:
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

    def _climb(self, work: FrameWork) -> None:
        """Take steps of the ladder until the best that there is time for answered."""
        options = self._options
        state = LadderState(
            have=self._have(work),
            only=self._steps,
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
            work.attempt = attempt = plan.attempts[0]
            if attempt.step.rung is Rung.LOST:
                return
            candidate = self._take(attempt, work)
            if attempt.late:
                # Quick first; with everything that there is when that did not do.
                failed = candidate.cam_from_world is None
                self._late_setting = 0 if failed else _LATE_SETTING
            work.candidates[attempt.step.name.upper()] = candidate
            if _looked_in_vain(attempt, candidate) and (
                work.widen() or self._turn(work)
            ):
                continue  # everywhere, or at a turned picture
            state = state.after(attempt.step.name, candidate.cause, stages=work.done)
            if candidate.cam_from_world is None:
                if work.has_no_features:
                    return
                continue
            if work.offer is not None:
                work.offer(self._estimate(self._best(work), work))
            if len(plan.attempts) == 1:
                return

    def _turn(self, work: FrameWork) -> bool:
        """Turn a frame that was looked at in vain; in a stream one in a second."""
        timestamp_ns, last_ns = work.frame.timestamp_ns, self._turned_ns
        if self._options.cold:
            return work.turn()
        if last_ns is not None and 0 <= timestamp_ns - last_ns < _TURN_EVERY_NS:
            return False
        self._turned_ns = timestamp_ns
        return work.turn()

    def _have(self, work: FrameWork) -> frozenset[Need]:
        have = set(self._data)
        if not self._options.cold:
            timestamp_ns = work.frame.timestamp_ns
            prediction = self._following.predict(timestamp_ns)
            work.prediction = prediction
            if prediction is not None and prediction.usable:
                have |= {Need.MOTION, Need.PRIOR}
            if self._following.can_track(work.grey(), timestamp_ns):
                have.add(Need.TRACKS)
        return frozenset(have)

    def _sense(self, work: FrameWork) -> None:
        """Take what other sensors say about a frame."""
        timestamp_ns = work.frame.timestamp_ns
        if self._motions is not None and not self._options.cold:
            sensed = self._motions.until(timestamp_ns)
            self._ego_motion.tell(self._following.motion, sensed)
        if self._priors is None:
            return
        if self._options.cold:
            self._believing.forget()
        work.measured = self._priors.at(timestamp_ns)
        work.prior = self._believing.believed(work.measured)
        position = work.prior.position
        if position is None or self._options.cold:
            return
        self._believing.tell(self._following.motion, timestamp_ns, position)
        if self._following.motion_state is None:
            # The first frame's tiles are read while its features are computed.
            reach = 2.0 * math.sqrt(float(np.trace(position.covariance[:2, :2])))
            self._tiles.prefetch(
                self._tiles.tiles_near(position.center, reach).tolist()
            )

    def _take(self, attempt: Attempt, work: FrameWork) -> Candidate:
        name = attempt.step.name
        if name == "predict":
            return _predicted(work.prediction)
        if name == "track":
            return self._track(work)
        if name == "guided":
            return self._guided(work, attempt)
        fix = self._methods[name].answer(work)
        work.done.update(attempt.step.stages)
        if attempt.step.status is not PoseStatus.LOCALIZED:
            return fix
        self._looking.forget()
        with self._timer.stage(attempt.step.stages[-1], setting=attempt.setting):
            fix = self._judged(fix, work)
        if fix.status is not PoseStatus.LOCALIZED:
            return fix
        if not self._believing.allows(work.measured, fix):
            return lost_like(fix, Cause.AMBIGUOUS)
        if not self._options.cold:
            self._turns = work.turns
            fix = self._following.accept(
                fix, work.grey(), work.frame.timestamp_ns, work.prediction
            )
        return fix

    def _judged(self, fix: Candidate, work: FrameWork) -> Candidate:
        """Return a fix, or what is left of it when the focal length is wrong."""
        if fix.status is not PoseStatus.LOCALIZED:
            return fix
        fix = self._focal_watch.judge(fix, work.frame.timestamp_ns)
        if fix.status is not PoseStatus.LOCALIZED:
            # The motion came from fixes through the same lens.
            self._following.forget()
            work.prediction = None
            work.candidates.pop("PREDICT", None)
        return fix

    def _track(self, work: FrameWork) -> Candidate:
        assert work.prediction is not None
        following, frame = self._following, work.frame
        grey = work.grey()
        with self._timer.stage("track"):
            candidate = following.track(grey, frame.timestamp_ns, work.prediction)
            candidate = self._judged(candidate, work)
        work.done.update(("preprocess", "track"))
        if candidate.status is not PoseStatus.LOCALIZED:
            self._looking.forget()
            return candidate
        self._believing.learn(work.measured, candidate)
        if work.offer is not None:
            work.offer(self._estimate(candidate, work))
        assert candidate.covariance is not None
        if Need.TILES in self._data:
            self._looking.look_for_landmarks(work, candidate.covariance)
        return candidate

    def _guided(self, work: FrameWork, attempt: Attempt) -> Candidate:
        prediction = work.prediction
        assert prediction is not None
        until_ns = None if attempt.late else work.budget.deadline_ns
        if not self._looking.near_map(prediction.cam_from_world, until_ns=until_ns):
            return replace(LOST, cause=Cause.TILE_MISSING)
        work.done.add("track_map")
        query = work.query()
        if len(query.features) == 0:
            return replace(LOST, cause=Cause.FEW_FEATURES)
        grey = work.grey()
        with self._timer.stage("guided", setting=attempt.setting):
            fix = self._following.guided(
                query, grey, work.frame.timestamp_ns, prediction=prediction
            )
            fix = self._judged(fix, work)
        if fix.status is PoseStatus.LOCALIZED:
            self._believing.learn(work.measured, fix)
        return fix

    def _best(self, work: FrameWork) -> Candidate:
        return best_answer(
            work.candidates, skipped=work.skipped, keyframes=self._site.keyframes
        )


def _open_following(parts: SiteParts) -> Following:
    follow, structure = parts.options.follow, parts.structure
    pnp = replace(
        structure.pnp,
        inlier_sigmas=follow.track.inlier_sigmas,
        max_iterations=max(1, structure.pnp.max_iterations // 4),
    )
    return Following(
        camera=parts.camera,
        family=parts.family,
        decode_landmarks=parts.decode_landmarks,
        calibration=parts.calibration,
        usual_distance=_LANDMARKS_AT * parts.coarse.keyframe_spacing,
        options=replace(
            follow,
            track=replace(
                follow.track,
                pnp=pnp,
                integrity=structure.integrity,
                guided=replace(
                    follow.track.guided,
                    min_similarity=structure.match.min_similarity,
                ),
            ),
        ),
    )


def _looked_in_vain(attempt: Attempt, candidate: Candidate) -> bool:
    return (
        candidate.cam_from_world is None
        and attempt.step.status is PoseStatus.LOCALIZED
        and Need.RETRIEVAL in attempt.step.needs
    )


def _predicted(prediction: Prediction | None) -> Candidate:
    if prediction is None:
        return LOST
    return Candidate(
        status=PoseStatus.PREDICTED,
        rung=Rung.PREDICT,
        cause=Cause.NONE,
        cam_from_world=prediction.cam_from_world,
        covariance=prediction.covariance,
    )
