"""What a map is worth, learned on mapping frames that are held out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgeloc.features.family import FeatureFamily
from edgeloc.features.keyframe_index import KeyframeIndex, global_decoder
from edgeloc.geometry.se3 import log_se3, rotation_angle_rad
from edgeloc.localize.candidate import Query
from edgeloc.localize.comparison import LandmarkComparison
from edgeloc.localize.interpolate import (
    CoarseCalibration,
    InterpolateOptions,
    interpolate_pose,
    keyframe_spacing,
)
from edgeloc.localize.structure import FixCalibration, relocalize, structure_for
from edgeloc.tiles.layout import KeyframeTable, PoseArrays
from edgeloc.types import BoolArray, Features, Float32Array, IntArray, PoseStatus
from edgeloc_tools.mapping.landmarks import LandmarkMap
from edgeloc_tools.mapping.tracks import MappingImage
from edgeloc_tools.progress import Progress

MIN_SCORE = 0.05
"""Global descriptors of unrelated pictures rarely are more similar than this."""

MAX_COVARIANCE_SCALE = 1e6
"""A larger factor says that held-out frames were taken for another place; no
covariance covers that, and a site cannot hold any number."""

_CHI2_6_MEDIAN = 5.348
_CHI2_6_Q90 = 10.645
_CHI2_3_Q90 = 6.251


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """How held-out mapping frames localized.

    Parameters
    ----------
    num_frames, num_localized : int
        Frames tried and answered LOCALIZED.
    median_error : float
        Position, m; nan without any.
    covariance_scale : float
        What makes their covariances honest.
    coarse : CoarseCalibration
        Of retrieval.
    """

    num_frames: int
    num_localized: int
    median_error: float
    covariance_scale: float
    coarse: CoarseCalibration

    def facts(self) -> dict[str, int | float]:
        """Return the figures for a build report."""
        return {
            "held_out_frames": self.num_frames,
            "held_out_localized": self.num_localized,
            "held_out_median_error": round(self.median_error, 6)
            if np.isfinite(self.median_error)
            else -1.0,
        }


def calibrate(
    images: Sequence[MappingImage],
    global_descriptors: Float32Array,
    *,
    remake: Callable[[BoolArray], LandmarkMap],
    family: FeatureFamily,
    progress: Progress,
    num_retrieved: int = 10,
    max_frames: int = 40,
) -> HeldOut:
    """Localize held-out mapping frames against the map made without them.

    Parameters
    ----------
    images : sequence of MappingImage
        All mapping images.
    global_descriptors : ndarray of shape (K, G), float32
        Theirs.
    remake : callable
        From a mask of images left out to the landmarks of the others.
    family : FeatureFamily
        Of the descriptors.
    progress : callable
        Told about each frame.
    num_retrieved : int
        Keyframes used per frame.
    max_frames : int
        Bound of the work.
    """
    folds = held_out_folds(len(images), max_frames=max_frames)
    total = sum(len(fold) for fold in folds)
    done = 0
    nees: list[float] = []
    errors: list[float] = []
    coarse: list[tuple[float, float, float]] = []
    centers = np.stack([i.cam_from_world.origin_in_a for i in images])
    uncalibrated = CoarseCalibration(
        min_score=-1.0,
        position_sigma=1e-9,
        rotation_sigma_rad=1e-9,
        keyframe_spacing=keyframe_spacing(centers),
    )
    for fold in folds:
        left_out = np.zeros(len(images), dtype=bool)
        left_out[fold] = True
        landmark_map = remake(left_out)
        kept = np.flatnonzero(~left_out).tolist()
        keyframes = KeyframeTable(
            keyframe_ids=np.array(kept, np.int64),
            camera_ids=tuple(images[i].camera_id for i in kept),
            poses=PoseArrays(
                R=np.stack([images[i].cam_from_world.R for i in kept]),
                t=np.stack([images[i].cam_from_world.t for i in kept]),
            ),
            global_codes=global_descriptors[kept],
        )
        index = KeyframeIndex(
            keyframe_ids=keyframes.keyframe_ids,
            codes=keyframes.global_codes,
            decode=global_decoder("float16", None),
        )
        for idx in fold.tolist():
            image = images[idx]
            query = _query(image, global_descriptors[idx])
            retrieved = index.search(query.global_descriptor, k=num_retrieved)
            mean = interpolate_pose(
                query=query.global_descriptor,
                retrieved=retrieved,
                keyframes=keyframes,
                index=index,
                calibration=uncalibrated,
                options=InterpolateOptions(),
            )
            if mean.cam_from_world is not None:
                off = mean.cam_from_world @ image.cam_from_world.inverse()
                coarse.append(
                    (
                        float(retrieved.scores[0]),
                        float(
                            np.linalg.norm(
                                mean.cam_from_world.origin_in_a
                                - image.cam_from_world.origin_in_a
                            )
                        ),
                        float(rotation_angle_rad(off.R)),
                    )
                )
            fix = relocalize(
                query,
                retrieved,
                visible=[landmark_map.visible[i] for i in retrieved.keyframe_ids],
                centers=centers[retrieved.keyframe_ids],
                load_local_map=landmark_map.local_map,
                comparison=LandmarkComparison(query.descriptors, family.decode),
                calibration=FixCalibration(),
                options=structure_for(family),
            )
            if (
                fix.status is PoseStatus.LOCALIZED
                and fix.cam_from_world is not None
                and fix.covariance is not None
            ):
                xi = log_se3(image.cam_from_world @ fix.cam_from_world.inverse())
                nees.append(float(xi @ np.linalg.solve(fix.covariance, xi)))
                errors.append(
                    float(
                        np.linalg.norm(
                            fix.cam_from_world.origin_in_a
                            - image.cam_from_world.origin_in_a
                        )
                    )
                )
            done += 1
            progress("held-out frames", done, total)
    return HeldOut(
        num_frames=total,
        num_localized=len(errors),
        median_error=float(np.median(errors)) if errors else float("nan"),
        covariance_scale=covariance_scale(nees),
        coarse=_coarse(coarse, uncalibrated.keyframe_spacing),
    )


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


def covariance_scale(nees: Sequence[float]) -> float:
    """Return the factor that makes covariances honest, 1 to `MAX_COVARIANCE_SCALE`.

    The larger of what the median and what the 90 % quantile of the normalised squared
    errors ask for; both ignore a few gross outliers, which are not the covariance's
    business. Few frames say little: the factor is at least 4 below five frames.

    Parameters
    ----------
    nees : sequence of float
        Normalised estimation errors squared, 6 degrees of freedom.
    """
    if not nees:
        return 4.0
    wanted = max(
        float(np.median(nees)) / _CHI2_6_MEDIAN,
        float(np.quantile(nees, 0.9)) / _CHI2_6_Q90,
    )
    return min(max(wanted, 1.0 if len(nees) >= 5 else 4.0), MAX_COVARIANCE_SCALE)


def _coarse(
    samples: Sequence[tuple[float, float, float]], spacing: float
) -> CoarseCalibration:
    values = np.array(samples, dtype=np.float64).reshape(-1, 3)
    if len(values) == 0:
        values = np.array([[0.0, 2.0 * spacing, np.deg2rad(30.0)]])
    # 90 % of the errors lie inside sqrt(6.25) sigma of three axes.
    quantile = np.quantile(values, 0.9, axis=0) / np.sqrt(_CHI2_3_Q90)
    return CoarseCalibration(
        min_score=max(0.6 * float(np.quantile(values[:, 0], 0.05)), MIN_SCORE),
        position_sigma=max(float(quantile[1]), 1e-6),
        rotation_sigma_rad=max(float(quantile[2]), 1e-3),
        keyframe_spacing=spacing,
    )


def _query(image: MappingImage, global_descriptor: Float32Array) -> Query:
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
