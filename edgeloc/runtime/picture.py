"""Drawings of what an answer was computed from."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from edgeloc.geometry.camera import project, to_opencv_px
from edgeloc.localize.candidate import Candidate, FrameTrace
from edgeloc.tiles.layout import KeyframeTable
from edgeloc.types import (
    BoolArray,
    ByteArray,
    CameraModel,
    Float32Array,
    FloatArray,
    PoseEstimate,
    Rigid3,
)

GREEN_BGR = (80, 220, 60)
RED_BGR = (60, 60, 235)
YELLOW_BGR = (40, 220, 255)
BLUE_BGR = (240, 160, 60)
GREY_BGR = (130, 130, 130)

MAX_INLIER_VECTOR_PX = 40.0
MAX_OUTLIER_VECTOR_PX = 14.0

_PLAN_MARGIN = 0.12  # of the plan's width, on each side
_MAX_PLAN_LANDMARKS = 2000

# Pixels are drawn with 4 fractional bits.
_SHIFT = 4
_ONE = 1 << _SHIFT


def deciding_candidate(estimate: PoseEstimate, trace: FrameTrace) -> Candidate | None:
    """Return the candidate whose matches explain an answer.

    Parameters
    ----------
    estimate : PoseEstimate
        The answer.
    trace : FrameTrace
        Of the same frame.

    Returns
    -------
    Candidate or None
        That of the rung which answered when it has matches; otherwise the one with
        the most inliers, then matches: the better rung that failed. None when no
        candidate has any.
    """
    with_matches = [c for c in trace.candidates.values() if c.matches]
    if not with_matches:
        return None
    return max(
        with_matches,
        key=lambda c: (c.rung is estimate.rung, c.num_inliers, c.num_matches),
    )


def matches_for_drawing(
    candidate: Candidate | None, pose: Rigid3 | None, camera: CameraModel
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Return image points, projections of their landmarks, and which are inliers.

    Parameters
    ----------
    candidate : Candidate or None
        With the matches.
    pose : Rigid3 or None
        ``cam_from_world`` to project with.
    camera : CameraModel
        Intrinsics.

    Returns
    -------
    points2D : ndarray of shape (M, 2), float64
        Px, corner convention.
    projected : ndarray of shape (M, 2), float64
        NaN behind the camera and without a pose.
    inlier_mask : ndarray of shape (M,), bool
        All False when nothing was kept.
    """
    if candidate is None or candidate.matches is None:
        return np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0, dtype=bool)
    matches = candidate.matches
    projected = np.full((len(matches), 2), np.nan)
    if pose is not None and len(matches):
        projected, _ = project(camera, pose.transform(matches.points3D))
    inlier_mask = candidate.inlier_mask
    if inlier_mask is None:
        inlier_mask = np.zeros(len(matches), dtype=bool)
    return matches.points2D, projected, inlier_mask


def _fixed(point: FloatArray) -> tuple[int, int]:
    return round(float(point[0]) * _ONE), round(float(point[1]) * _ONE)


def draw_matches(
    image: ByteArray,
    points2D: FloatArray | Float32Array,
    projected: FloatArray | Float32Array,
    inlier_mask: BoolArray,
    *,
    width_px: int = 900,
) -> ByteArray:
    """Return the picture of a frame with its matches.

    Inliers are green, outliers red; a line, cut when it is long, leads from each
    towards where its landmark falls under the estimated pose.

    Parameters
    ----------
    image : ndarray of shape (H, W) or (H, W, 3), uint8
        The frame.
    points2D, projected, inlier_mask : ndarray
        From `matches_for_drawing`.
    width_px : int
        Width of the drawing; larger pictures are scaled down, smaller ones up to
        twice their size.

    Returns
    -------
    ndarray of shape (H, width, 3), uint8, BGR
    """
    scale = min(width_px / image.shape[1], 2.0)
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(grey, size, interpolation=interpolation)
    # Grey and a little dark: the coloured points must be seen on any picture.
    canvas = cv2.cvtColor((small * 0.85).astype(np.uint8), cv2.COLOR_GRAY2BGR)
    at = to_opencv_px(points2D * scale)
    to = to_opencv_px(projected * scale)
    # Outliers first: they must not hide the inliers.
    for idx in np.argsort(inlier_mask, kind="stable"):
        inlier = bool(inlier_mask[idx])
        if np.isfinite(to[idx]).all():
            # Long vectors would cover the picture: only their start.
            reach = MAX_INLIER_VECTOR_PX if inlier else MAX_OUTLIER_VECTOR_PX
            length = max(float(np.linalg.norm(to[idx] - at[idx])), 1e-9)
            end = at[idx] + (to[idx] - at[idx]) * min(1.0, reach / length)
            cv2.line(
                canvas,
                _fixed(at[idx]),
                _fixed(end),
                YELLOW_BGR if inlier else RED_BGR,
                1,
                cv2.LINE_AA,
                _SHIFT,
            )
        cv2.circle(
            canvas,
            _fixed(at[idx]),
            (3 if inlier else 2) * _ONE,
            GREEN_BGR if inlier else RED_BGR,
            1,
            cv2.LINE_AA,
            _SHIFT,
        )
    return np.asarray(canvas, dtype=np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Plan:
    """A view of the world along the direction in which the cameras spread least."""

    origin: FloatArray
    axes: FloatArray
    px_per_unit: float
    size_px: int

    @staticmethod
    def around(points: FloatArray, *, spread: FloatArray, size_px: int) -> _Plan:
        """Return the plan that shows `points`, flat where `spread` is flattest."""
        centred = spread - spread.mean(axis=0)
        axes = np.linalg.eigh(centred.T @ centred)[1][:, :0:-1].T
        flat = points @ axes.T
        low, high = flat.min(axis=0), flat.max(axis=0)
        extent = max(float((high - low).max()), 1e-9)
        return _Plan(
            origin=(low + high) / 2,
            axes=axes,
            px_per_unit=size_px * (1 - 2 * _PLAN_MARGIN) / extent,
            size_px=size_px,
        )

    def px(self, points: FloatArray) -> FloatArray:
        """Return pixels of points in the world; the last axis is xyz."""
        flat = (points @ self.axes.T - self.origin) * self.px_per_unit
        # Far outside, OpenCV's fixed-point numbers would overflow.
        return np.asarray(np.clip(flat + self.size_px / 2, -1e4, 1e4))


def draw_plan(
    estimate: PoseEstimate,
    trace: FrameTrace,
    keyframes: KeyframeTable,
    *,
    size_px: int,
) -> ByteArray:
    """Return a plan of the site around a frame.

    Keyframes are grey dots, retrieved ones blue with their rank, each with a line the
    way it looks; inlier landmarks are small and green; the answer is yellow, with the
    ellipse of three standard deviations of its position.

    Parameters
    ----------
    estimate : PoseEstimate
        The answer.
    trace : FrameTrace
        Of the same frame.
    keyframes : KeyframeTable
        Of the site.
    size_px : int
        Side of the drawing.

    Returns
    -------
    ndarray of shape (size, size, 3), uint8, BGR
    """
    canvas = np.full((size_px, size_px, 3), 24, np.uint8)
    ids = () if trace.retrieved is None else trace.retrieved.keyframe_ids
    found = keyframes.index_of(np.asarray(ids, np.int64))
    shown = [keyframes.centers_of(found)]
    landmarks = _inlier_landmarks(deciding_candidate(estimate, trace))
    pose = estimate.cam_from_world
    if pose is not None:
        shown.append(pose.origin_in_a[None])
        if len(landmarks):
            # Without the furthest, which may be very far.
            shown.append(np.quantile(landmarks, [0.1, 0.9], axis=0))
    points = np.concatenate(shown)
    plan = _Plan.around(
        points if len(points) > 1 else keyframes.centers,
        spread=keyframes.centers,
        size_px=size_px,
    )
    for center in plan.px(keyframes.centers):
        cv2.circle(canvas, _fixed(center), _ONE, GREY_BGR, -1, cv2.LINE_AA, _SHIFT)
    if len(landmarks):
        for point in plan.px(landmarks[:_MAX_PLAN_LANDMARKS]):
            cv2.circle(canvas, _fixed(point), _ONE, GREEN_BGR, -1, cv2.LINE_8, _SHIFT)
    for rank, idx in reversed(list(enumerate(found.tolist(), start=1))):
        _draw_camera(canvas, plan, keyframes.cam_from_world(idx), colour=BLUE_BGR)
        at = plan.px(keyframes.cam_from_world(idx).origin_in_a)
        corner = (int(at[0]) + 5, int(at[1]) - 5)
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(canvas, str(rank), corner, font, 0.45, BLUE_BGR, 1, cv2.LINE_AA)
    if pose is not None:
        _draw_camera(canvas, plan, pose, colour=YELLOW_BGR)
        _draw_ellipse(canvas, plan, estimate)
    return canvas


def _inlier_landmarks(candidate: Candidate | None) -> FloatArray:
    if candidate is None or candidate.matches is None or candidate.inlier_mask is None:
        return np.zeros((0, 3))
    return candidate.matches.points3D[candidate.inlier_mask]


def _draw_camera(
    canvas: ByteArray, plan: _Plan, pose: Rigid3, *, colour: tuple[int, int, int]
) -> None:
    at = plan.px(pose.origin_in_a)
    forward = plan.axes @ pose.R[2]
    end = at + 0.06 * plan.size_px * forward
    cv2.line(canvas, _fixed(at), _fixed(end), colour, 1, cv2.LINE_AA, _SHIFT)
    cv2.circle(canvas, _fixed(at), 4 * _ONE, colour, -1, cv2.LINE_AA, _SHIFT)


def _draw_ellipse(canvas: ByteArray, plan: _Plan, estimate: PoseEstimate) -> None:
    pose, covariance = estimate.cam_from_world, estimate.covariance
    if pose is None or covariance is None:
        return
    # To first order the centre moves by -R^T v under Exp(omega, v).
    to_plan = plan.axes @ pose.R.T
    values, vectors = np.linalg.eigh(to_plan @ covariance[3:, 3:] @ to_plan.T)
    radii = 3.0 * np.sqrt(np.maximum(values, 0.0)) * plan.px_per_unit
    angles = np.linspace(0.0, 2 * np.pi, 65)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    outline = (vectors * radii) @ circle + plan.px(pose.origin_in_a)[:, None]
    points = np.rint(np.clip(outline.T, -1e4, 1e4) * _ONE).astype(np.int32)
    cv2.polylines(canvas, [points], True, YELLOW_BGR, 1, cv2.LINE_AA, _SHIFT)


def draw_answer(
    image: ByteArray,
    estimate: PoseEstimate,
    trace: FrameTrace,
    *,
    camera: CameraModel,
    keyframes: KeyframeTable,
) -> ByteArray:
    """Return a frame with its matches, and beside it the plan of the site.

    Parameters
    ----------
    image : ndarray of shape (H, W) or (H, W, 3), uint8
        The frame.
    estimate : PoseEstimate
        The answer.
    trace : FrameTrace
        Of the same frame.
    camera : CameraModel
        Intrinsics.
    keyframes : KeyframeTable
        Of the site.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8, BGR
    """
    candidate = deciding_candidate(estimate, trace)
    left = draw_matches(
        image, *matches_for_drawing(candidate, estimate.cam_from_world, camera)
    )
    plan = draw_plan(estimate, trace, keyframes, size_px=left.shape[0])
    return np.concatenate([left, plan], axis=1)
