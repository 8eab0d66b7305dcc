"""Run an estimator over a recording with ground truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeloc.clock import Clock, MonotonicClock
from edgeloc.errors import DatasetError
from edgeloc.features.family import FeatureFamily
from edgeloc.geometry.se3 import quat_from_rotation
from edgeloc.localize.candidate import FrameTrace
from edgeloc.runtime.estimator import Estimator
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.tiles.layout import KeyframeTable
from edgeloc.tiles.reader import Site
from edgeloc.types import (
    ByteArray,
    CameraModel,
    Frame,
    FrameBudget,
    PoseEstimate,
    PoseStatus,
    Rigid3,
)
from edgeloc_tools.datasets.recording import RecordedImage, Recording
from edgeloc_tools.evaluate import metrics
from edgeloc_tools.evaluate.explain import evidence
from edgeloc_tools.evaluate.result import (
    EvaluationResult,
    Explanation,
    FrameRow,
    SiteFacts,
    summarize,
)
from edgeloc_tools.progress import Progress, silent

NO_BUDGET_MS = 3_600_000.0
"""Stands for no deadline: no single frame takes an hour."""

FRAME_PERIOD_NS = 33_333_333
"""Assumed between the images of a recording without times."""


class Runner:
    """Answers images of a recording, with one estimator per camera.

    Parameters
    ----------
    site : Site
        The map, shared by the estimators.
    cameras : mapping of str to CameraModel
        Of the recording.
    options : EstimatorOptions
        Of every estimator.
    budget_ms : float or None
        Time for each frame; None = as long as it takes.
    clock : Clock, optional
        Tells the time; the machine's by default.
    family : FeatureFamily, optional
        Describes the images; the site's own by default.
    """

    def __init__(
        self,
        *,
        site: Site,
        cameras: Mapping[str, CameraModel],
        options: EstimatorOptions,
        budget_ms: float | None,
        clock: Clock | None = None,
        family: FeatureFamily | None = None,
    ) -> None:
        self._site = site
        self._family = family
        self._cameras = cameras
        self._options = options
        self._budget_ns = round((budget_ms or NO_BUDGET_MS) * 1e6)
        self._clock = MonotonicClock() if clock is None else clock
        self._estimators: dict[str, Estimator] = {}

    def answer(
        self, image: RecordedImage, pixels: ByteArray, *, frame_id: int
    ) -> tuple[PoseEstimate, FrameTrace, float]:
        """Return the estimate, how it came about, and the time it took, ms.

        Parameters
        ----------
        image : RecordedImage
            Where the pixels come from.
        pixels : ndarray of shape (H, W, 3) or (H, W), uint8
            BGR or grey.
        frame_id : int
            Index in the recording; also stands for the time when that is unknown.

        Raises
        ------
        DatasetError
            When the picture has another size than its camera.
        """
        camera = self._cameras[image.camera_id]
        height, width = pixels.shape[:2]
        if (width, height) != (camera.width, camera.height):
            raise DatasetError(
                f"{image.name}: the picture is {width}x{height}, its camera "
                f"{image.camera_id!r} is {camera.width}x{camera.height}; give the "
                "images that the calibration belongs to"
            )
        estimator = self._estimators.get(image.camera_id)
        if estimator is None:
            estimator = Estimator(
                site=self._site,
                camera=camera,
                options=self._options,
                clock=self._clock,
                family=self._family,
            )
            estimator.warm_up()
            self._estimators[image.camera_id] = estimator
        timestamp_ns = image.timestamp_ns
        if timestamp_ns is None:
            timestamp_ns = frame_id * FRAME_PERIOD_NS
        frame = Frame(
            frame_id=frame_id,
            camera_id=image.camera_id,
            timestamp_ns=timestamp_ns,
            image=pixels,
            source=image.name,
        )
        start_ns = self._clock.now_ns()
        budget = FrameBudget(
            start_ns=start_ns,
            deadline_ns=start_ns + self._budget_ns,
            clock=self._clock,
        )
        estimate, trace = estimator.explain(frame, budget)
        return estimate, trace, (self._clock.now_ns() - start_ns) * 1e-6


def true_pose(image: RecordedImage) -> Rigid3:
    """Return the ground truth of an image; `DatasetError` when it has none."""
    if image.cam_from_world is None:
        raise DatasetError(f"{image.name}: has no ground-truth pose")
    return image.cam_from_world


def _floats(values: npt.ArrayLike) -> tuple[float, ...]:
    return tuple(float(value) for value in np.asarray(values))


def frame_row(
    image: RecordedImage,
    estimate: PoseEstimate,
    *,
    wall_ms: float,
    position_limit: float,
    ranks: tuple[int | None, bool | None] = (None, None),
) -> FrameRow:
    """Return the row of one answered image.

    Parameters
    ----------
    image : RecordedImage
        With its ground truth.
    estimate : PoseEstimate
        The answer.
    wall_ms : float
        How long it took.
    position_limit : float
        See `metrics.wrong_position_limit`.
    ranks : tuple of (int or None, bool or None)
        `FrameRow.first_near_rank` and `FrameRow.has_near_keyframe`.

    Returns
    -------
    FrameRow
    """
    true = true_pose(image)
    pose, covariance = estimate.cam_from_world, estimate.covariance
    position, rotation_deg = metrics.pose_error(pose, true)
    sigma = rotation_sigma_deg = nees = math.nan
    if pose is not None and covariance is not None:
        sigma = metrics.position_sigma(covariance)
        rotation_sigma_deg = metrics.rotation_sigma_deg(covariance)
        nees = metrics.nees(pose, true, covariance)
    wrong: tuple[str, ...] = ()
    if estimate.status is PoseStatus.LOCALIZED:
        wrong = metrics.wrong_reasons(
            position=position,
            rotation_deg=rotation_deg,
            sigma=sigma,
            position_limit=position_limit,
        )
    return FrameRow(
        name=image.name,
        camera_id=image.camera_id,
        status=estimate.status.value,
        rung=estimate.rung.value,
        cause=estimate.cause.value,
        position_error=position,
        rotation_error_deg=rotation_deg,
        position_sigma=sigma,
        rotation_sigma_deg=rotation_sigma_deg,
        nees=nees,
        wrong=wrong,
        num_matches=estimate.num_matches,
        num_inliers=estimate.num_inliers,
        reproj_rmse_px=float(estimate.reproj_rmse_px),
        wall_ms=wall_ms,
        deadline_met=estimate.deadline_met,
        stage_ms={name: ns * 1e-6 for name, ns in estimate.stage_ns.items()},
        true_center=_floats(true.origin_in_a),
        center=None if pose is None else _floats(pose.origin_in_a),
        qvec=None if pose is None else _floats(quat_from_rotation(pose.R)),
        tvec=None if pose is None else _floats(pose.t),
        first_near_rank=ranks[0],
        has_near_keyframe=ranks[1],
    )


def retrieval_ranks(
    keyframes: KeyframeTable,
    trace: FrameTrace,
    true: Rigid3,
    *,
    max_position: float,
) -> tuple[int | None, bool | None]:
    """Return the rank of the first near keyframe and whether there is one at all.

    Parameters
    ----------
    keyframes : KeyframeTable
        Of the site.
    trace : FrameTrace
        With what retrieval proposed.
    true : Rigid3
        Ground truth of the query.
    max_position : float
        What counts as near.

    Returns
    -------
    tuple of (int or None, bool or None)
        (None, None) when nothing was retrieved.
    """
    if trace.retrieved is None:
        return None, None
    near = metrics.near_mask(
        keyframes.R, keyframes.centers, true, max_position=max_position
    )
    ranked = near[keyframes.index_of(trace.retrieved.keyframe_ids)]
    return metrics.first_near_rank(ranked), bool(near.any())


def site_bytes(root: Path) -> dict[str, int]:
    """Return the size of each file or folder at the top of a site, largest first."""
    sizes = {
        entry.name: sum(
            p.stat().st_size for p in (entry, *entry.rglob("*")) if p.is_file()
        )
        for entry in sorted(root.iterdir())
    }
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def site_facts(site: Site) -> SiteFacts:
    """Return what a report says about a site."""
    centers = site.keyframes.centers
    return SiteFacts(
        map_id=site.manifest.map_id,
        name=site.manifest.name,
        family=site.manifest.family.name,
        metric=site.manifest.metric,
        extent=metrics.extent_of(centers),
        num_keyframes=len(site.keyframes),
        keyframe_centers=tuple(_floats(center) for center in centers),
        bytes_by_part=site_bytes(Path(site.path)),
    )


def severity(row: FrameRow, *, position_unit: float) -> tuple[bool, bool, float]:
    """Return a key that sorts rows from good to bad.

    Wrong but confident is worst, since nobody downstream can know; then LOST; then
    the error in units of `position_unit` or 5 degrees, whichever is larger.
    """
    size = max(row.position_error / position_unit, row.rotation_error_deg / 5.0)
    return bool(row.wrong), row.is_lost, size


def chosen_frames(
    rows: Sequence[FrameRow], count: int, *, position_unit: float
) -> list[tuple[int, str]]:
    """Return (index, title) of the worst rows, and of a median one to compare with."""
    if count <= 0 or not rows:
        return []
    order = sorted(
        range(len(rows)),
        key=lambda i: severity(rows[i], position_unit=position_unit),
        reverse=True,
    )
    out = [(idx, f"worst {rank}") for rank, idx in enumerate(order[:count], start=1)]
    answered = [idx for idx in order[count:] if not rows[idx].is_lost]
    if answered:
        out.append((answered[len(answered) // 2], "typical, for comparison"))
    return out


def evaluate(
    site: Site,
    recording: Recording,
    *,
    options: EstimatorOptions,
    budget_ms: float | None = None,
    explain_worst: int = 0,
    limit: int | None = None,
    progress: Progress = silent,
    clock: Clock | None = None,
) -> EvaluationResult:
    """Localize every posed image of a recording and compare with its ground truth.

    Parameters
    ----------
    site : Site
        The map, in the same world as the recording's poses.
    recording : Recording
        Images without a pose or a camera are left out and counted.
    options : EstimatorOptions
        Of the estimators, one per camera.
    budget_ms : float, optional
        Time for each frame; by default as long as it takes.
    explain_worst : int
        So many of the worst frames are kept with what they were computed from, and a
        typical one to compare them with.
    limit : int, optional
        Only the first so many images.
    progress : callable, optional
        Called with ("localize", frames done, frames to do).
    clock : Clock, optional
        The machine's by default.

    Returns
    -------
    EvaluationResult

    Raises
    ------
    DatasetError
        For a recording without ground truth or with an unreadable image.
    """
    posed = recording.posed()
    images = tuple(posed.images)[:limit]
    facts = site_facts(site)
    position_limit = metrics.wrong_position_limit(
        metric=facts.metric, extent=facts.extent
    )
    runner = Runner(
        site=site,
        cameras=recording.cameras,
        options=options,
        budget_ms=budget_ms,
        clock=clock,
    )
    rows, evidences = [], []
    for idx, image in enumerate(images):
        estimate, trace, wall_ms = runner.answer(
            image, image.source.read(), frame_id=idx
        )
        true = true_pose(image)
        rows.append(
            frame_row(
                image,
                estimate,
                wall_ms=wall_ms,
                position_limit=position_limit,
                ranks=retrieval_ranks(
                    site.keyframes, trace, true, max_position=position_limit
                ),
            )
        )
        if explain_worst > 0:
            evidences.append(
                evidence(
                    estimate,
                    trace,
                    camera=recording.cameras[image.camera_id],
                    keyframes=site.keyframes,
                    true=true,
                )
            )
        progress("localize", idx + 1, len(images))
    position_unit = 0.25 if facts.metric or facts.extent == 0 else 0.1 * facts.extent
    explanations = tuple(
        Explanation(
            row=rows[idx],
            title=title,
            image=images[idx].source.read(),
            points2D=evidences[idx].points2D,
            projected=evidences[idx].projected,
            inlier_mask=evidences[idx].inlier_mask,
            retrieved=evidences[idx].retrieved,
        )
        for idx, title in chosen_frames(
            rows, explain_worst, position_unit=position_unit
        )
    )
    return EvaluationResult(
        dataset=recording.name,
        pose_source=recording.pose_source or "not stated",
        num_without_pose=len(recording.images) - len(posed.images),
        gravity_in_world=(recording.gravity_in_world or site.manifest.gravity_in_world),
        site=facts,
        options={**asdict(options), "budget_ms": budget_ms},
        position_limit=position_limit,
        rows=tuple(rows),
        summary=summarize(
            rows, metrics.thresholds(extent=facts.extent, unit=facts.unit)
        ),
        explanations=explanations,
    )
