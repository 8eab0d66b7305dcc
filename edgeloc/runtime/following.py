"""What TRACK remembers between frames: landmarks in view, motion, and their age."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from edgeloc.features.family import FeatureFamily
from edgeloc.geometry.camera import project
from edgeloc.geometry.refine import refine_pose
from edgeloc.geometry.se3 import exp_se3, rotation_angle_rad
from edgeloc.localize.candidate import LOST, Candidate, Query
from edgeloc.localize.comparison import DecodeLandmarks
from edgeloc.localize.fix import FixCalibration
from edgeloc.localize.guided import (
    ViewedMap,
    expected_landmarks,
    make_viewed_map,
    match_expected,
)
from edgeloc.localize.klt import Tracks, follow
from edgeloc.localize.track import (
    TrackOptions,
    merged,
    seed_tracks,
    sightings,
    solve_tracks,
    track_frame,
)
from edgeloc.runtime.motion_state import (
    MotionState,
    predict_pose,
    prediction_is_usable,
)
from edgeloc.runtime.odometry import Odometer, Odometry
from edgeloc.runtime.tracker import MotionTracker, Verdict
from edgeloc.tiles.layout import LocalMap
from edgeloc.types import (
    BoolArray,
    ByteArray,
    CameraModel,
    Cause,
    Features,
    FloatArray,
    IntArray,
    Rigid3,
)

_NS_PER_S = 1e9
_NUM_BANDS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowOptions:
    """How frames are tied together.

    Parameters
    ----------
    track : TrackOptions
        Of TRACK.
    refresh_every : int
        Frames between two looks at a part of the picture for landmarks, when there are
        tracks enough.
    num_keyframes : int
        Keyframes around the camera whose landmarks are looked for.
    max_unconfirmed_s : float
        Pixels that were followed for longer without any landmark being recognised by
        its descriptor are no evidence any more.
    max_track_age_s : float
        Pixels that were last followed longer ago are not looked for any more.
    drift_s : float
        The covariance of followed pixels doubles within this time without one.
    strong_inliers : int
        A fix with so many inliers is believed against the prediction at once; a weaker
        one that contradicts it needs the next one to agree.
    """

    track: TrackOptions = field(default_factory=TrackOptions)
    refresh_every: int = 3
    num_keyframes: int = 12
    max_unconfirmed_s: float = 3.0
    max_track_age_s: float = 0.7
    drift_s: float = 2.0
    strong_inliers: int = 60


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """Where the camera should be.

    Parameters
    ----------
    cam_from_world : Rigid3
        Pose.
    covariance : ndarray of shape (6, 6), float64
        Its covariance.
    usable : bool
        Whether it is worth telling.
    """

    cam_from_world: Rigid3
    covariance: FloatArray
    usable: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Look:
    """Features of a part of a frame, in which landmarks were not looked for yet.

    Where the time does not reach for both, features are computed in one frame and
    recognised in a later one.

    Parameters
    ----------
    features : Features
        Px of the whole frame.
    rows_px : tuple of int
        The part.
    timestamp_ns : int
        Of the frame.
    grey : ndarray of shape (H, W), uint8
        The frame.
    cam_from_world : Rigid3
        Its pose.
    covariance : ndarray of shape (6, 6), float64
        Of the pose.
    """

    features: Features
    rows_px: tuple[int, int]
    timestamp_ns: int
    grey: ByteArray
    cam_from_world: Rigid3
    covariance: FloatArray


class Following:
    """Follows one camera through a site.

    Parameters
    ----------
    camera : CameraModel
        Intrinsics.
    family : FeatureFamily
        Of the landmarks' descriptors.
    decode_landmarks : callable
        From stored to decoded descriptors of landmarks.
    calibration : FixCalibration
        Of the site's covariances.
    usual_distance : float
        Of landmarks from the camera, for fixes that tell of none, m.
    options : FollowOptions
        How.
    """

    def __init__(
        self,
        *,
        camera: CameraModel,
        family: FeatureFamily,
        decode_landmarks: DecodeLandmarks,
        calibration: FixCalibration,
        usual_distance: float,
        options: FollowOptions,
    ) -> None:
        self._camera = camera
        self._family = family
        self._decode_landmarks = decode_landmarks
        self._calibration = calibration
        self._usual_distance = usual_distance
        self._options = options
        self.reset()

    def reset(self) -> None:
        """Forget all frames."""
        self._motion = MotionTracker()
        self._odometer = Odometer()
        self._tracks: Tracks | None = None
        self._tracks_pose: Rigid3 | None = None
        self._viewed: ViewedMap | None = None
        self._tracks_ns = 0
        self._confirmed_ns = 0
        self._since_refresh = 0
        # Per band of the picture: looks at others since the last one, and landmarks
        # that are recognised in it.
        self._waiting = np.ones(_NUM_BANDS)
        self._harvest = np.full(_NUM_BANDS, 4.0)

    def forget(self) -> None:
        """Forget what was found, but not the smooth frame, which never jumps."""
        self._motion.reset()
        self._tracks = self._tracks_pose = None

    @property
    def motion_state(self) -> MotionState | None:
        """What later frames are predicted from."""
        return self._motion.state

    @property
    def motion(self) -> MotionTracker:
        """The filter, for measurements of other sensors."""
        return self._motion

    @property
    def odometry(self) -> Odometry | None:
        """The smooth frame, at the newest frame with a pose."""
        return self._odometer.odometry

    @property
    def pose(self) -> Rigid3 | None:
        """Pose of the newest frame whose landmarks are followed."""
        return self._tracks_pose

    @property
    def num_tracks(self) -> int:
        """Landmarks followed."""
        return 0 if self._tracks is None else len(self._tracks)

    @property
    def wants_landmarks(self) -> bool:
        """Whether it is time to look for landmarks."""
        return (
            self._since_refresh >= self._options.refresh_every
            or self.num_tracks < self._options.track.few_tracks
        )

    @property
    def starves(self) -> bool:
        """Whether tracking will end soon without new landmarks."""
        return self._since_refresh > 1 and (
            self.num_tracks < 0.6 * self._options.track.few_tracks
        )

    def predict(self, timestamp_ns: int) -> Prediction | None:
        """Return where the camera should be at a time; None before the first fix."""
        state = self._motion.state
        if state is None:
            return None
        pose, covariance = predict_pose(state, timestamp_ns)
        usable = prediction_is_usable(
            covariance, landmark_distance=state.landmark_distance
        )
        return Prediction(cam_from_world=pose, covariance=covariance, usable=usable)

    def can_track(self, grey: ByteArray, timestamp_ns: int) -> bool:
        """Return whether there are pixels to follow into a picture of a time."""
        age_s = abs(timestamp_ns - self._tracks_ns) / _NS_PER_S
        return (
            self._tracks is not None
            and age_s <= self._options.max_track_age_s
            and len(self._tracks) >= self._options.track.integrity.min_inliers
            and self._tracks.grey.shape == grey.shape
        )

    def track(
        self, grey: ByteArray, timestamp_ns: int, prediction: Prediction
    ) -> Candidate:
        """Return the pose from pixels followed since the last frame.

        Parameters
        ----------
        grey : ndarray of shape (H, W), uint8
            The frame; kept, not to be written to.
        timestamp_ns : int
            Its time.
        prediction : Prediction
            For that time.
        """
        assert self._tracks is not None
        assert self._tracks_pose is not None
        options = self._options.track
        tracked = track_frame(
            self._tracks,
            grey,
            self._camera,
            prior=prediction.cam_from_world,
            last_pose=self._tracks_pose,
            calibration=self._calibration,
            options=options,
        )
        unconfirmed_s = max(timestamp_ns - self._confirmed_ns, 0) / _NS_PER_S
        if tracked.tracks is None or unconfirmed_s > self._options.max_unconfirmed_s:
            # Kept for the next frame: this one may only have been covered.
            return lost_like(tracked.candidate)
        candidate = _widened(
            tracked.candidate, 1.0 + unconfirmed_s / self._options.drift_s
        )
        assert candidate.cam_from_world is not None
        self._move(timestamp_ns, candidate.cam_from_world, self._tracks_pose)
        self._tracks = tracked.tracks
        self._tracks_pose = candidate.cam_from_world
        self._tracks_ns = timestamp_ns
        self._since_refresh += 1
        if self._tell_motion(timestamp_ns, candidate) is Verdict.REJECTED:
            # Jerked: pixels that were followed and agree are evidence enough.
            self._restart_motion(timestamp_ns, candidate)
        return candidate

    def accept(
        self,
        candidate: Candidate,
        grey: ByteArray,
        timestamp_ns: int,
        prediction: Prediction | None,
    ) -> Candidate:
        """Take a fix of another rung, and follow its landmarks from now on.

        Parameters
        ----------
        candidate : Candidate
            LOCALIZED.
        grey : ndarray of shape (H, W), uint8
            Its frame; kept, not to be written to.
        timestamp_ns : int
            Its time.
        prediction : Prediction or None
            For that time, from before.

        Returns
        -------
        Candidate
            The same; or LOST and AMBIGUOUS when it is weak and contradicts what was
            known, until the next one agrees with it.
        """
        verdict = self._tell_motion(timestamp_ns, candidate)
        if verdict is Verdict.REJECTED:
            strong = candidate.num_inliers >= self._options.strong_inliers
            known = prediction is not None and prediction.usable
            if known and not strong:
                return lost_like(candidate, Cause.AMBIGUOUS)
            self._restart_motion(timestamp_ns, candidate)
        assert candidate.cam_from_world is not None
        self._drift(timestamp_ns, candidate.cam_from_world)
        if candidate.matches is None:
            # Poses of keyframes alone leave nothing to follow.
            self._tracks = None
            return candidate
        self._tracks = seed_tracks(candidate, grey, self._options.track)
        self._tracks_pose = self._pose_of_tracks(candidate.cam_from_world)
        self._tracks_ns = timestamp_ns
        self._confirmed_ns = timestamp_ns
        self._since_refresh = 0
        return candidate

    def lose(self, timestamp_ns: int) -> None:
        """Note that no evidence was found in a frame."""
        state = self._motion.state
        if state is not None and self._odometer.odometry is not None:
            self._drift(timestamp_ns, predict_pose(state, timestamp_ns)[0])

    def guided(
        self,
        query: Query,
        grey: ByteArray,
        timestamp_ns: int,
        *,
        prediction: Prediction,
    ) -> Candidate:
        """Return the pose from landmarks looked for around their predicted pixels.

        Parameters
        ----------
        query : Query
            Features of the whole frame.
        grey : ndarray of shape (H, W), uint8
            The frame; kept.
        timestamp_ns : int
            Its time.
        prediction : Prediction
            For that time.
        """
        assert self._viewed is not None
        options = self._options.track
        expected = expected_landmarks(
            self._viewed,
            self._camera,
            cam_from_world=prediction.cam_from_world,
            covariance=prediction.covariance,
            rows_px=(0.0, float(self._camera.height)),
            followed_ids=np.zeros(0, np.int64),
            options=options.guided,
        )
        local_map = self._viewed.local_map
        feature_idx, point_idx, _ = match_expected(
            expected,
            local_map,
            features=query.features,
            descriptors=query.descriptors,
            decode=self._decode_landmarks,
            options=options.guided,
        )
        found = sightings(
            query.features,
            local_map,
            feature_idx=feature_idx,
            point_idx=point_idx,
            grey=grey,
        )
        if len(found) < options.integrity.min_inliers:
            return replace(LOST, cause=Cause.FEW_MATCHES)
        candidate, mask = solve_tracks(
            found,
            self._camera,
            prior=prediction.cam_from_world,
            calibration=self._calibration,
            options=options,
        )
        if mask is None:
            return candidate
        return self.accept(candidate, grey, timestamp_ns, prediction)

    def near_map(
        self,
        pose: Rigid3,
        *,
        choose: Callable[[Rigid3, int], IntArray],
        load: Callable[[IntArray], tuple[LocalMap, list[IntArray], FloatArray]],
        spacing: float,
    ) -> None:
        """Have the landmarks around a pose at hand.

        Parameters
        ----------
        pose : Rigid3
            Where the camera is, about.
        choose : callable
            From a pose and a number to the ids of keyframes around it.
        load : callable
            From keyframe ids to their landmarks, which each sees, and their centres.
        spacing : float
            The same landmarks serve until the camera moved so far, m.
        """
        if self._viewed is not None:
            made_at = self._viewed.made_at
            moved = float(np.linalg.norm(pose.origin_in_a - made_at.origin_in_a))
            turned = float(rotation_angle_rad(pose.R @ made_at.R.T))
            if moved <= spacing and turned <= np.deg2rad(12.0):
                return
        keyframe_ids = choose(pose, self._options.num_keyframes)
        local_map, visible, centers = load(keyframe_ids)
        self._viewed = make_viewed_map(
            local_map, visible=visible, centers=centers, made_at=pose
        )

    def next_rows(self, num_parts: int) -> tuple[int, int]:
        """Return the rows of the part of the picture that is looked at next.

        Each has its turn, those that landmarks were recognised in more often.
        """
        height = self._camera.height
        edges = [height * part // num_parts for part in range(num_parts + 1)]
        bins = len(self._waiting)
        best, best_worth = 0, -1.0
        for part in range(num_parts):
            span = slice(bins * part // num_parts, bins * (part + 1) // num_parts)
            worth = float(np.mean(self._waiting[span] * (self._harvest[span] + 0.25)))
            if worth > best_worth:
                best, best_worth = part, worth
        return edges[best], edges[best + 1]

    def _looked_at(self, rows_px: tuple[int, int], num_agree: int) -> None:
        bins = len(self._waiting)
        first, last = (round(bins * row / self._camera.height) for row in rows_px)
        self._waiting += 1.0
        self._waiting[first:last] = 0.0
        per_bin = num_agree / max(last - first, 1)
        self._harvest[first:last] += 0.5 * (per_bin - self._harvest[first:last])

    def look(
        self,
        features: Features,
        rows_px: tuple[int, int],
        timestamp_ns: int,
        covariance: FloatArray,
    ) -> Look:
        """Return features of a part of the newest frame, to be recognised later.

        Parameters
        ----------
        features : Features
            Of that part, px of the whole frame.
        rows_px : tuple of int
            The part.
        timestamp_ns : int
            Time of the frame.
        covariance : ndarray of shape (6, 6), float64
            Of the frame's pose.
        """
        assert self._tracks is not None
        assert self._tracks_pose is not None
        self._since_refresh = 0
        return Look(
            features=features,
            rows_px=rows_px,
            timestamp_ns=timestamp_ns,
            grey=self._tracks.grey,
            cam_from_world=self._tracks_pose,
            covariance=covariance,
        )

    def recognise(self, look: Look) -> int:
        """Add the landmarks among the features of a look to what is followed.

        When that was in an earlier frame, their pixels are followed to the newest one.

        Returns
        -------
        int
            Landmarks recognised where the pose says they are.
        """
        assert self._viewed is not None
        assert self._tracks is not None
        assert self._tracks_pose is not None
        options = self._options.track
        expected = expected_landmarks(
            self._viewed,
            self._camera,
            cam_from_world=look.cam_from_world,
            covariance=look.covariance,
            rows_px=(float(look.rows_px[0]), float(look.rows_px[1])),
            followed_ids=self._tracks.point3D_ids,
            # The covariance holds what all landmarks share; beside each other they lie
            # where the pixels that are followed say.
            options=replace(
                options.guided, max_window_px=options.guided.usual_window_px
            ),
        )
        features, local_map = look.features, self._viewed.local_map
        feature_idx, point_idx, _ = match_expected(
            expected,
            local_map,
            features=features,
            descriptors=self._family.decode(features.descriptors),
            decode=self._decode_landmarks,
            options=options.guided,
        )
        found = sightings(
            features,
            local_map,
            feature_idx=feature_idx,
            point_idx=point_idx,
            grey=look.grey,
        )
        found = found.select(self._agree(found, look.cam_from_world))
        num_agree = len(found)
        self._looked_at(look.rows_px, num_agree)
        if num_agree >= max(6, 0.3 * len(feature_idx)):
            self._confirmed_ns = look.timestamp_ns
        if look.grey is not self._tracks.grey:
            where, _ = project(
                self._camera, self._tracks_pose.transform(found.points3D)
            )
            found, _ = follow(
                found, self._tracks.grey, expected=where, options=options.klt
            )
            found = found.select(self._agree(found, self._tracks_pose))
        self._tracks = merged(self._tracks, found, options)
        self._tracks_pose = self._pose_of_tracks(self._tracks_pose)
        return num_agree

    def _agree(self, found: Tracks, cam_from_world: Rigid3) -> BoolArray:
        """Return which landmarks lie where a pose says they are."""
        options = self._options.track
        pixels, seen = project(self._camera, cam_from_world.transform(found.points3D))
        off = np.linalg.norm(pixels - found.points2D, axis=1)
        limit = options.sighting_sigmas * found.pixel_sigmas
        near = off <= np.minimum(limit, options.pnp.max_error_px)
        return np.asarray(seen & near)

    def _pose_of_tracks(self, start: Rigid3) -> Rigid3:
        """Return the pose that the landmarks followed say.

        The odometry compares like with like: the same landmarks in two frames.
        """
        assert self._tracks is not None
        if len(self._tracks) < self._options.track.integrity.min_inliers:
            return start
        return refine_pose(
            points2D=self._tracks.points2D,
            points3D=self._tracks.points3D,
            camera=self._camera,
            cam_from_world=start,
            point_sigmas=self._tracks.point_sigmas,
            pixel_sigmas=self._tracks.pixel_sigmas,
            options=self._options.track.pnp.refine,
        ).cam_from_world

    def _tell_motion(self, timestamp_ns: int, candidate: Candidate) -> Verdict:
        assert candidate.cam_from_world is not None
        assert candidate.covariance is not None
        return self._motion.update(
            timestamp_ns,
            candidate.cam_from_world,
            candidate.covariance,
            landmark_distance=self._landmark_distance(candidate),
        )

    def _landmark_distance(self, candidate: Candidate) -> float:
        if candidate.matches is None:
            state = self._motion.state
            return self._usual_distance if state is None else state.landmark_distance
        assert candidate.inlier_mask is not None
        assert candidate.cam_from_world is not None
        in_cam = candidate.cam_from_world.transform(
            candidate.matches.points3D[candidate.inlier_mask]
        )
        return float(np.median(np.linalg.norm(in_cam, axis=1)))

    def _restart_motion(self, timestamp_ns: int, candidate: Candidate) -> None:
        self._motion.reset()
        self._tell_motion(timestamp_ns, candidate)

    def _move(self, timestamp_ns: int, pose: Rigid3, before: Rigid3) -> None:
        self._odometer.advance(timestamp_ns, pose @ before.inverse(), pose)

    def _drift(self, timestamp_ns: int, pose: Rigid3) -> None:
        """Advance the odometry by what the filter knows of the motion alone."""
        last, state = self._odometer.odometry, self._motion.state
        step = Rigid3.identity()
        if last is not None and state is not None:
            dt = (timestamp_ns - last.timestamp_ns) / _NS_PER_S
            if 0.0 < dt < 1.0:
                step = exp_se3(state.velocity * dt)
        self._odometer.advance(timestamp_ns, step, pose)


def _widened(candidate: Candidate, factor: float) -> Candidate:
    assert candidate.covariance is not None
    return replace(candidate, covariance=candidate.covariance * factor)


def lost_like(candidate: Candidate, cause: Cause | None = None) -> Candidate:
    """Return a LOST candidate that keeps what was looked at."""
    if cause is None:
        cause = Cause.FEW_MATCHES if candidate.cause is Cause.NONE else candidate.cause
    return replace(
        LOST,
        cause=cause,
        matches=candidate.matches,
        inlier_mask=candidate.inlier_mask,
    )
