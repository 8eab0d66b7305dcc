"""Mapping frames, held out of the map, and how they are localized in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeloc.features.keyframe_index import Decode, GlobalCoding, KeyframeIndex
from edgeloc.geometry.se3 import log_se3, rotation_angle_rad
from edgeloc.localize.candidate import Candidate, Query
from edgeloc.localize.comparison import LandmarkComparison
from edgeloc.localize.fix import FixCalibration
from edgeloc.localize.structure import StructureOptions, relocalize
from edgeloc.tiles.layout import KeyframeTable, PoseArrays
from edgeloc.types import (
    BoolArray,
    Features,
    Float32Array,
    FloatArray,
    IntArray,
    PoseStatus,
)
from edgeloc_tools.mapping.landmarks import LandmarkMap
from edgeloc_tools.mapping.tracks import MappingImage
from edgeloc_tools.mapping.value import Trials, join_trials, should_see, view_cones
from edgeloc_tools.progress import Progress, silent


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Describing:
    """What mapping images are compared by.

    Parameters
    ----------
    decode_landmarks : callable
        From stored to decoded descriptors of landmarks.
    decode_global : callable
        The same of global descriptors.
    structure : StructureOptions
        Of RELOCALIZE.
    """

    decode_landmarks: Callable[[npt.NDArray[np.generic]], Float32Array]
    decode_global: Decode
    structure: StructureOptions


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOutFrame:
    """How one held-out frame was localized.

    Parameters
    ----------
    image_idx, fold : int
        Which frame, and which others were held out with it.
    position_error, rotation_error_rad : float
        Of the fix, m and rad; inf without one.
    num_inliers : int
        Of the fix.
    xi : ndarray of shape (6,), float64, or None
        ``cam_from_world_true = Exp(xi) @ cam_from_world``.
    covariance : ndarray of shape (6, 6), float64, or None
        Of the fix, before any calibration.
    """

    image_idx: int
    fold: int
    position_error: float
    rotation_error_rad: float
    num_inliers: int
    xi: FloatArray | None
    covariance: FloatArray | None

    @property
    def localized(self) -> bool:
        """Whether the answer was LOCALIZED."""
        return self.xi is not None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOutRun:
    """How all held-out frames were localized.

    Parameters
    ----------
    frames : sequence of HeldOutFrame
        In order.
    trials : sequence of Trials
        What each fold says about landmarks.
    """

    frames: Sequence[HeldOutFrame]
    trials: Sequence[Trials]

    def trials_without(self, fold: int) -> Trials:
        """Return what all other folds say about landmarks."""
        return join_trials([t for i, t in enumerate(self.trials) if i != fold])


def held_out_folds(count: int, *, max_frames: int) -> list[IntArray]:
    """Return which images to hold out together, fold by fold.

    Runs of neighbours in time, so that a held-out frame is not answered by its twin a
    moment earlier: on a video, frames picked at random look three times as accurate as
    frames of a later walk really are.

    Parameters
    ----------
    count : int
        Images of the recording, in its order.
    max_frames : int
        Bound of all held-out images together.

    Returns
    -------
    list of ndarray of int64
        Disjoint folds; each holds out at most a quarter of the images.
    """
    if count < 24:
        # Too few for runs: one by one, for as many as there are.
        chosen = np.arange(count)[: min(count, max_frames)]
        return [np.array([idx]) for idx in chosen]
    runs = np.array_split(np.arange(count), 12)
    per_run = max(1, max_frames // 6)
    # Every second run, in two folds, so that each fold keeps both neighbours.
    return [
        np.concatenate([run[:per_run] for run in runs[start::4]]) for start in (0, 2)
    ]


def localize_held_out(
    images: Sequence[MappingImage],
    global_codes: npt.NDArray[np.generic],
    query_vectors: Float32Array,
    *,
    folds: Sequence[tuple[IntArray, IntArray]],
    remake: Callable[[int], LandmarkMap],
    describing: Describing,
    num_retrieved: int = 10,
    progress: Progress = silent,
) -> HeldOutRun:
    """Localize held-out mapping frames against the map made without them.

    Parameters
    ----------
    images : sequence of MappingImage
        All mapping images.
    global_codes : ndarray of shape (K, row)
        Their global descriptors, as a site stores them.
    query_vectors : ndarray of shape (K, G), float32
        The same as a query has them.
    folds : sequence of (ndarray of int64, ndarray of int64)
        See `held_out_runs`.
    remake : callable
        From the number of a fold to the landmarks of the images that are not left out.
        Images that see nothing are no keyframes.
    describing : Describing
        What they are compared by.
    num_retrieved : int
        Keyframes used per frame.
    progress : callable
        Told about each frame.
    """
    total = sum(len(asked) for _, asked in folds)
    centers = np.stack([i.cam_from_world.origin_in_a for i in images])
    frames: list[HeldOutFrame] = []
    trials: list[Trials] = []
    for number, (run, asked) in enumerate(folds):
        left_out = np.zeros(len(images), dtype=bool)
        left_out[run] = True
        landmark_map = remake(number)
        has = np.array([len(ids) > 0 for ids in landmark_map.visible])
        kept = ~left_out & (has if np.any(has & ~left_out) else True)
        _, index = keyframes_of(images, global_codes, kept, describing)
        seen: list[tuple[int, Candidate]] = []
        for idx in asked.tolist():
            query = query_of(images[idx], query_vectors[idx])
            retrieved = index.search(query.global_descriptor, k=num_retrieved)
            fix = relocalize(
                query,
                retrieved,
                visible=[landmark_map.visible[i] for i in retrieved.keyframe_ids],
                centers=centers[retrieved.keyframe_ids],
                load_local_map=landmark_map.local_map,
                comparison=LandmarkComparison(
                    query.descriptors, describing.decode_landmarks
                ),
                calibration=FixCalibration(),
                options=describing.structure,
            )
            frames.append(held_out_frame(images[idx], idx, number, fix))
            if frames[-1].localized:
                seen.append((idx, fix))
            progress("held-out frames", len(frames), total)
        trials.append(_trials(images, landmark_map, seen))
    return HeldOutRun(frames=frames, trials=trials)


def keyframes_of(
    images: Sequence[MappingImage],
    global_codes: npt.NDArray[np.generic],
    kept: BoolArray,
    describing: Describing,
) -> tuple[KeyframeTable, KeyframeIndex]:
    """Return some of the images as keyframes, their places as their ids."""
    ids = np.flatnonzero(kept).astype(np.int64)
    poses = [images[i].cam_from_world for i in ids.tolist()]
    table = KeyframeTable(
        keyframe_ids=ids,
        camera_ids=tuple(images[i].camera_id for i in ids.tolist()),
        poses=PoseArrays(
            R=np.stack([pose.R for pose in poses]),
            t=np.stack([pose.t for pose in poses]),
        ),
        global_codes=global_codes[ids],
    )
    index = KeyframeIndex(
        keyframe_ids=ids,
        codes=global_codes[ids],
        coding=GlobalCoding(decode=describing.decode_global),
    )
    return table, index


def held_out_frame(
    image: MappingImage, image_idx: int, fold: int, fix: Candidate
) -> HeldOutFrame:
    """Return how an answer compares with the image's own pose.

    Parameters
    ----------
    image : MappingImage
        The image that was asked for.
    image_idx, fold : int
        As in `HeldOutFrame`.
    fix : Candidate
        The answer.
    """
    errors = pose_errors(fix, image)
    if (
        fix.status is not PoseStatus.LOCALIZED
        or errors is None
        or fix.cam_from_world is None
    ):
        return HeldOutFrame(
            image_idx=image_idx,
            fold=fold,
            position_error=float("inf"),
            rotation_error_rad=float("inf"),
            num_inliers=fix.num_inliers,
            xi=None,
            covariance=None,
        )
    return HeldOutFrame(
        image_idx=image_idx,
        fold=fold,
        position_error=errors[0],
        rotation_error_rad=errors[1],
        num_inliers=fix.num_inliers,
        xi=log_se3(image.cam_from_world @ fix.cam_from_world.inverse()),
        covariance=fix.covariance,
    )


def pose_errors(answer: Candidate, image: MappingImage) -> tuple[float, float] | None:
    """Return the errors of a pose, m and rad; None without a pose."""
    if answer.cam_from_world is None:
        return None
    off = answer.cam_from_world @ image.cam_from_world.inverse()
    moved = answer.cam_from_world.origin_in_a - image.cam_from_world.origin_in_a
    return float(np.linalg.norm(moved)), float(rotation_angle_rad(off.R))


def _trials(
    images: Sequence[MappingImage],
    landmark_map: LandmarkMap,
    seen: Sequence[tuple[int, Candidate]],
) -> Trials:
    """Return which landmarks localized frames should have used, and which they did."""
    num = len(landmark_map.landmarks)
    in_view, found = np.zeros(num, np.int64), np.zeros(num, np.int64)
    observed = landmark_map.observed
    points3D = landmark_map.landmarks.points3D
    centers = np.stack([i.cam_from_world.origin_in_a for i in images])
    cones = view_cones(points3D, centers[observed.image_idx], observed.landmark_idx)
    everything = np.arange(num)
    for idx, fix in seen:
        used = np.zeros(num, bool)
        if fix.matches is not None and fix.inlier_mask is not None:
            used[fix.matches.point3D_ids[fix.inlier_mask]] = True
        expected = np.zeros(num, bool)
        expected[should_see(images[idx], points3D, cones, everything)] = True
        in_view += expected | used
        found += used
    tried = np.flatnonzero(in_view)
    return Trials(
        track_idx=landmark_map.track_idx[tried],
        in_view=in_view[tried],
        found=found[tried],
    )


def query_of(image: MappingImage, global_descriptor: Float32Array) -> Query:
    """Return a mapping image as a query."""
    return Query(
        camera=image.camera,
        features=Features(
            keypoints=image.keypoints,
            scores=np.zeros(len(image.keypoints), np.float32),
            sigmas=image.sigmas,
            descriptors=image.stored,
        ),
        descriptors=image.descriptors,
        global_descriptor=global_descriptor,
    )
