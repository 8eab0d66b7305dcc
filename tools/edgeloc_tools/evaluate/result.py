"""The outcome of an evaluation: one row per frame, and what they add up to."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TypeAlias

import numpy as np

from edgeloc.types import BoolArray, ByteArray, Float32Array, PoseStatus
from edgeloc_tools.evaluate import metrics

REPORT_VERSION = 1
"""Of the JSON form; raised when a key changes its meaning or goes away."""

RETRIEVAL_KS = (1, 3, 5, 10)
"""The k of the recall@k of retrieval."""

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameRow:
    """One frame of an evaluation.

    Parameters
    ----------
    name, camera_id : str
        Of the image.
    status, rung, cause : str
        Of the answer.
    position_error, rotation_error_deg : float
        inf when LOST.
    position_sigma, rotation_sigma_deg : float
        Claimed, along the worst axis; NaN when LOST.
    nees : float
        See `metrics.nees`; NaN when LOST.
    wrong : tuple of str
        Reasons of `metrics.wrong_reasons`, for LOCALIZED answers only.
    num_matches, num_inliers : int
        2D-3D matches found and kept.
    reproj_rmse_px : float
        Of the inliers.
    wall_ms : float
        Time of the whole answer, without reading the image.
    deadline_met : bool
        Whether the answer came within the budget, by the estimator's own word.
    stage_ms : mapping of str to float
        Time in each stage.
    true_center : tuple of 3 float
        Camera centre in the world, ground truth.
    center : tuple of 3 float or None
        Camera centre in the world, estimated.
    qvec, tvec : tuple of float or None
        Estimated ``cam_from_world``, (w, x, y, z) and translation.
    first_near_rank : int or None
        Rank, from 1, of the first retrieved keyframe that is near the ground truth.
    has_near_keyframe : bool or None
        Whether the site has such a keyframe; None when nothing was retrieved.
    """

    name: str
    camera_id: str
    status: str
    rung: str
    cause: str
    position_error: float
    rotation_error_deg: float
    position_sigma: float = math.nan
    rotation_sigma_deg: float = math.nan
    nees: float = math.nan
    wrong: tuple[str, ...] = ()
    num_matches: int = 0
    num_inliers: int = 0
    reproj_rmse_px: float = 0.0
    wall_ms: float = 0.0
    deadline_met: bool = True
    stage_ms: Mapping[str, float] = field(default_factory=dict)
    true_center: tuple[float, ...]
    center: tuple[float, ...] | None = None
    qvec: tuple[float, ...] | None = None
    tvec: tuple[float, ...] | None = None
    first_near_rank: int | None = None
    has_near_keyframe: bool | None = None

    @property
    def is_lost(self) -> bool:
        """Whether the frame has no pose."""
        return self.status == PoseStatus.LOST.value


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorStats:
    """Errors of a set of frames; inf where LOST frames reach the quantile.

    Parameters
    ----------
    num_frames : int
        Size of the set.
    median_position, p90_position, max_position : float
        Unit of the map; NaN for an empty set.
    median_rotation_deg, p90_rotation_deg, max_rotation_deg : float
        Degrees; NaN for an empty set.
    """

    num_frames: int
    median_position: float
    p90_position: float
    max_position: float
    median_rotation_deg: float
    p90_rotation_deg: float
    max_rotation_deg: float

    @staticmethod
    def of(rows: Sequence[FrameRow]) -> ErrorStats:
        """Return the statistics of rows."""
        position = [row.position_error for row in rows]
        rotation_deg = [row.rotation_error_deg for row in rows]
        return ErrorStats(
            num_frames=len(rows),
            median_position=metrics.quantile(position, 0.5),
            p90_position=metrics.quantile(position, 0.9),
            max_position=metrics.quantile(position, 1.0),
            median_rotation_deg=metrics.quantile(rotation_deg, 0.5),
            p90_rotation_deg=metrics.quantile(rotation_deg, 0.9),
            max_rotation_deg=metrics.quantile(rotation_deg, 1.0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallRow:
    """Frames inside one bound; LOST counts as a failure.

    Parameters
    ----------
    label : str
        Name of the bound.
    max_position, max_rotation_deg : float
        The bound, inclusive.
    num_inside, num_outside, num_lost : int
        They add up to the number of frames.
    recall : float
        Share of all frames that is inside.
    """

    label: str
    max_position: float
    max_rotation_deg: float
    num_inside: int
    num_outside: int
    num_lost: int
    recall: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Consistency:
    """Whether claimed covariances match the errors.

    Parameters
    ----------
    num_frames : int
        Answers with a usable covariance.
    nees_mean, nees_median : float
        A consistent estimator has 6 and 5.35.
    position_within_3sigma, rotation_within_3sigma : float
        Share of the errors inside three standard deviations along the worst axis.
    median_position_sigma, median_rotation_sigma_deg : float
        What is claimed.
    """

    num_frames: int
    nees_mean: float
    nees_median: float
    position_within_3sigma: float
    rotation_within_3sigma: float
    median_position_sigma: float
    median_rotation_sigma_deg: float

    @staticmethod
    def of(rows: Sequence[FrameRow]) -> Consistency:
        """Return the statistics of the rows that have a usable covariance."""
        used = [row for row in rows if math.isfinite(row.nees)]
        if not used:
            nan = math.nan
            return Consistency(
                num_frames=0,
                nees_mean=nan,
                nees_median=nan,
                position_within_3sigma=nan,
                rotation_within_3sigma=nan,
                median_position_sigma=nan,
                median_rotation_sigma_deg=nan,
            )
        values = np.array([row.nees for row in used])
        position = np.array([(r.position_error, r.position_sigma) for r in used])
        rotation = np.array(
            [(r.rotation_error_deg, r.rotation_sigma_deg) for r in used]
        )
        return Consistency(
            num_frames=len(used),
            nees_mean=float(values.mean()),
            nees_median=float(np.median(values)),
            position_within_3sigma=float(
                np.mean(position[:, 0] <= 3.0 * position[:, 1])
            ),
            rotation_within_3sigma=float(
                np.mean(rotation[:, 0] <= 3.0 * rotation[:, 1])
            ),
            median_position_sigma=float(np.median(position[:, 1])),
            median_rotation_sigma_deg=float(np.median(rotation[:, 1])),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyStats:
    """Time of one stage, over the frames in which it ran.

    Parameters
    ----------
    name : str
        Of the stage; "total" for the whole answer.
    num_frames : int
        Frames in which it ran.
    p50_ms, p95_ms, p99_ms, max_ms : float
        Quantiles.
    """

    name: str
    num_frames: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    @staticmethod
    def of(name: str, values_ms: Sequence[float]) -> LatencyStats:
        """Return the statistics of times."""
        return LatencyStats(
            name=name,
            num_frames=len(values_ms),
            p50_ms=metrics.quantile(values_ms, 0.5),
            p95_ms=metrics.quantile(values_ms, 0.95),
            p99_ms=metrics.quantile(values_ms, 0.99),
            max_ms=metrics.quantile(values_ms, 1.0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalRecall:
    """How often a near keyframe is among the first k.

    Parameters
    ----------
    k : int
        Length of the list looked at.
    recall : float
        Over the frames that have a near keyframe at all.
    num_frames : int
        How many those are.
    """

    k: int
    recall: float
    num_frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the rows add up to.

    Parameters
    ----------
    num_frames, num_answered : int
        All frames, and those that are not LOST.
    answered : ErrorStats
        Over answered frames: flattering when many are LOST.
    all_frames : ErrorStats
        Over all frames, LOST = inf.
    by_status : mapping of str to ErrorStats
        For each status that occurs, LOST left out.
    statuses, rungs, causes : mapping of str to int
        How often each occurs, most frequent first.
    recalls : tuple of RecallRow
        For each bound.
    wrong_but_confident : tuple of str
        Names of LOCALIZED frames that are wrong.
    consistency : mapping of str to Consistency
        For each status that occurs, LOST left out.
    latency : tuple of LatencyStats
        Stages in the order of their first use, then "total".
    num_deadline_missed : int
        Answers after their deadline.
    retrieval : tuple of RetrievalRecall
        Empty when no frame has a near keyframe.
    """

    num_frames: int
    num_answered: int
    answered: ErrorStats
    all_frames: ErrorStats
    by_status: Mapping[str, ErrorStats]
    statuses: Mapping[str, int]
    rungs: Mapping[str, int]
    causes: Mapping[str, int]
    recalls: tuple[RecallRow, ...]
    wrong_but_confident: tuple[str, ...]
    consistency: Mapping[str, Consistency]
    latency: tuple[LatencyStats, ...]
    num_deadline_missed: int
    retrieval: tuple[RetrievalRecall, ...] = ()

    @property
    def total_latency(self) -> LatencyStats:
        """The row of the whole answer."""
        return self.latency[-1]

    @property
    def localized_consistency(self) -> Consistency:
        """Consistency of LOCALIZED answers; empty when there are none."""
        found = self.consistency.get(PoseStatus.LOCALIZED.value)
        return Consistency.of([]) if found is None else found

    def recall_at(self, max_position: float, max_rotation_deg: float) -> float:
        """Return the recall at one of the reported bounds; `KeyError` for others."""
        for row in self.recalls:
            if (row.max_position, row.max_rotation_deg) == (
                max_position,
                max_rotation_deg,
            ):
                return row.recall
        raise KeyError(f"no recall at ({max_position}, {max_rotation_deg}°)")


def recall_rows(
    rows: Sequence[FrameRow], bounds: Sequence[metrics.Threshold]
) -> tuple[RecallRow, ...]:
    """Return the recall of rows at each bound."""
    position = [row.position_error for row in rows]
    rotation_deg = [row.rotation_error_deg for row in rows]
    num_lost = sum(row.is_lost for row in rows)
    out = []
    for bound in bounds:
        inside = int(np.count_nonzero(metrics.within(position, rotation_deg, bound)))
        out.append(
            RecallRow(
                label=bound.label,
                max_position=bound.max_position,
                max_rotation_deg=bound.max_rotation_deg,
                num_inside=inside,
                num_outside=len(rows) - inside - num_lost,
                num_lost=num_lost,
                recall=inside / len(rows) if rows else math.nan,
            )
        )
    return tuple(out)


def retrieval_recalls(rows: Sequence[FrameRow]) -> tuple[RetrievalRecall, ...]:
    """Return recall@k of retrieval over the rows that have a near keyframe."""
    possible = [row for row in rows if row.has_near_keyframe]
    if not possible:
        return ()
    return tuple(
        RetrievalRecall(
            k=k,
            recall=sum(
                row.first_near_rank is not None and row.first_near_rank <= k
                for row in possible
            )
            / len(possible),
            num_frames=len(possible),
        )
        for k in RETRIEVAL_KS
    )


def _latency(rows: Sequence[FrameRow]) -> tuple[LatencyStats, ...]:
    stages: dict[str, list[float]] = {}
    for row in rows:
        for name, value_ms in row.stage_ms.items():
            stages.setdefault(name, []).append(value_ms)
    total = LatencyStats.of("total", [row.wall_ms for row in rows])
    # An estimator may report its own total; the measured one replaces it.
    return (
        *(LatencyStats.of(name, v) for name, v in stages.items() if name != "total"),
        total,
    )


def summarize(rows: Sequence[FrameRow], bounds: Sequence[metrics.Threshold]) -> Summary:
    """Return what rows add up to.

    Parameters
    ----------
    rows : sequence of FrameRow
        All frames of an evaluation.
    bounds : sequence of Threshold
        For the recalls.

    Returns
    -------
    Summary
    """
    statuses = dict(Counter(row.status for row in rows).most_common())
    of_status = {
        status: [row for row in rows if row.status == status]
        for status in statuses
        if status != PoseStatus.LOST.value
    }
    answered = [row for row in rows if not row.is_lost]
    return Summary(
        num_frames=len(rows),
        num_answered=len(answered),
        answered=ErrorStats.of(answered),
        all_frames=ErrorStats.of(rows),
        by_status={status: ErrorStats.of(v) for status, v in of_status.items()},
        statuses=statuses,
        rungs=dict(Counter(row.rung for row in rows).most_common()),
        causes=dict(Counter(row.cause for row in rows).most_common()),
        recalls=recall_rows(rows, bounds),
        wrong_but_confident=tuple(row.name for row in rows if row.wrong),
        consistency={status: Consistency.of(v) for status, v in of_status.items()},
        latency=_latency(rows),
        num_deadline_missed=sum(not row.deadline_met for row in rows),
        retrieval=retrieval_recalls(rows),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFacts:
    """What a report says about the site.

    Parameters
    ----------
    map_id, name, family : str
        Identity, name and feature family.
    metric : bool
        Whether its unit is the metre.
    extent : float
        See `metrics.extent_of`.
    num_keyframes : int
        Keyframes.
    keyframe_centers : tuple of tuple of 3 float
        For the drawing.
    bytes_by_part : mapping of str to int
        Size on disk of each file or folder at the top of the site.
    """

    map_id: str
    name: str
    family: str
    metric: bool
    extent: float
    num_keyframes: int
    keyframe_centers: tuple[tuple[float, ...], ...]
    bytes_by_part: Mapping[str, int]

    @property
    def total_bytes(self) -> int:
        """Size on disk."""
        return sum(self.bytes_by_part.values())

    @property
    def unit(self) -> str:
        """Name of the unit of length."""
        return "m" if self.metric else "u"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Explanation:
    """One frame with what its answer was computed from; for the report only.

    Parameters
    ----------
    row : FrameRow
        The answer.
    title : str
        Why the frame is shown.
    image : ndarray of shape (H, W) or (H, W, 3), uint8
        The picture.
    points2D : ndarray of shape (M, 2), float32
        Matched image points, px, corner convention.
    projected : ndarray of shape (M, 2), float32
        Where their landmarks fall under the estimated pose; NaN behind the camera.
    inlier_mask : ndarray of shape (M,), bool
        Which agree with the pose.
    retrieved : tuple of (int, float, float)
        Keyframe id, score and true distance of its centre, best first.
    """

    row: FrameRow
    title: str
    image: ByteArray
    points2D: Float32Array
    projected: Float32Array
    inlier_mask: BoolArray
    retrieved: tuple[tuple[int, float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """Everything that a report shows.

    Parameters
    ----------
    dataset : str
        Name of the recording.
    pose_source : str
        What its ground truth comes from.
    num_without_pose : int
        Images left out for want of a pose or a camera.
    gravity_in_world : tuple of 3 float or None
        For the drawing.
    site : SiteFacts
        The map.
    options : mapping of str to object
        Of the estimator, and "budget_ms".
    position_limit : float
        From which a LOCALIZED answer is called wrong.
    rows : tuple of FrameRow
        In the order of the recording.
    summary : Summary
        What the rows add up to.
    explanations : tuple of Explanation
        Not part of the JSON form.
    """

    dataset: str
    pose_source: str
    num_without_pose: int
    gravity_in_world: tuple[float, float, float] | None
    site: SiteFacts
    options: Mapping[str, object]
    position_limit: float
    rows: tuple[FrameRow, ...]
    summary: Summary
    explanations: tuple[Explanation, ...] = field(default=(), compare=False)

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form; null stands for inf and NaN (LOST, none)."""
        out: dict[str, Json] = {"report_version": REPORT_VERSION}
        for item in dataclasses.fields(self):
            if item.name != "explanations":
                out[item.name] = json_value(getattr(self, item.name))
        site = out["site"]
        if isinstance(site, dict):
            site["total_bytes"] = self.site.total_bytes
            site["unit"] = self.site.unit
        return out


def json_value(value: object) -> Json:
    """Return a value in terms of JSON: tuples as lists, inf and NaN as null.

    Parameters
    ----------
    value : object
        Dataclass, mapping, sequence, path, NumPy or Python scalar.

    Returns
    -------
    JSON value

    Raises
    ------
    TypeError
        For anything else.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        number = float(value)
        return number if math.isfinite(number) else None
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            item.name: json_value(getattr(value, item.name))
            for item in dataclasses.fields(value)
        }
    raise TypeError(f"{type(value).__name__} has no JSON form")
