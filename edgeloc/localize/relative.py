"""RELATIVE: essential matrices to the retrieved keyframes, then one pose for all.

Two views give a rotation and a direction; the directions to keyframes at different
places meet in the camera's centre, so that their known poses give the scale [1]_ [2]_.
What meets is only where the search begins: all matches with all keyframes then correct
the six parameters of one pose together, which is ten times as accurate as the
directions by themselves.

References
----------
.. [1] Zhou, Sattler, Pollefeys, Leal-Taixe, "To Learn or Not to Learn: Visual
   Localization from Essential Matrices", ICRA 2020, section III.
.. [2] Laskar, Melekhov, Kalia, Kannala, "Camera Relocalization by Computing Pairwise
   Relative Poses Using Convolutional Neural Network", ICCVW 2017, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edgeloc.features.family import FeatureFamily
from edgeloc.features.match import MatchOptions
from edgeloc.geometry.camera import normalized_from_pixels
from edgeloc.geometry.epipolar import estimate_essential
from edgeloc.geometry.generalized import (
    RayMatches,
    has_parallax,
    noise_ratio,
    ray_depths,
    ray_residuals,
    refine_on_rays,
    robust_cost,
)
from edgeloc.geometry.se3 import mean_rotation, rotation_angle_rad
from edgeloc.localize.candidate import LOST, Candidate, Query
from edgeloc.localize.coarse import CoarseCalibration
from edgeloc.localize.fix import FixCalibration
from edgeloc.localize.integrity import count_witnesses
from edgeloc.localize.keyframe_matches import KeyframeMatches, KeyframeViews
from edgeloc.types import (
    BoolArray,
    Cause,
    FloatArray,
    IntArray,
    PoseStatus,
    Rigid3,
    Rung,
)

_MIN_NOISE, _MAX_NOISE = 0.25, 3.0
"""Of the announced noise; beyond, the median says something else."""
_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RelativeOptions:
    """Options of RELATIVE.

    Parameters
    ----------
    match : MatchOptions
        Of the query to each keyframe.
    max_pairs : int
        Keyframes that an essential matrix is estimated for: those with most matches.
    min_matches : int
        Matches, and then inliers, that a keyframe must have for one.
    max_error_px : float
        Largest Sampson distance of an inlier.
    max_rotation_deg : float
        Rotations that differ by more say different things.
    min_ray_angle_deg : float
        Directions that meet at a smaller angle do not tell where.
    loss_scale, inlier_sigmas : float
        Of the joint refinement; in standard deviations.
    min_inliers : int
        Inliers, counted once per query feature and image cell, of a LOCALIZED pose.
    min_inlier_ratio : float
        The same as a share of the matches of the keyframes that take part.
    cell_px : float
        As in `IntegrityOptions`.
    max_sigma_ratio : float
        Largest standard deviation of the camera centre, relative to the median depth.
    seed : int
        Of the sampling.
    """

    match: MatchOptions = field(default_factory=MatchOptions)
    max_pairs: int = 4
    min_matches: int = 12
    max_error_px: float = 2.0
    max_rotation_deg: float = 10.0
    min_ray_angle_deg: float = 2.0
    loss_scale: float = 2.0
    inlier_sigmas: float = 3.0
    min_inliers: int = 30
    min_inlier_ratio: float = 0.2
    cell_px: float = 1 / 64
    max_sigma_ratio: float = 0.05
    seed: int = 0


def relative_for(family: FeatureFamily) -> RelativeOptions:
    """Return the options that serve a feature family."""
    return RelativeOptions(match=MatchOptions(max_ratio=family.match_ratio))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RelativePose:
    """What one keyframe says about the query.

    Parameters
    ----------
    view_idx : int
        The keyframe.
    R : ndarray of shape (3, 3), float64
        Rotation of ``query_from_world``.
    direction : ndarray of shape (3,), float64
        From the keyframe's centre to the query's, in the world, of length 1.
    num_inliers : int
        Matches that agree.
    """

    view_idx: int
    R: FloatArray
    direction: FloatArray
    num_inliers: int


def relative_poses(
    rays: RayMatches, *, max_error: float, options: RelativeOptions
) -> list[RelativePose]:
    """Return what each of the best matched keyframes says, the surest first.

    Parameters
    ----------
    rays : RayMatches
        Matches with all keyframes.
    max_error : float
        Largest Sampson distance of an inlier, on the plane z = 1.
    options : RelativeOptions
        Options.
    """
    counts = np.bincount(rays.view_idx, minlength=len(rays.R))
    best = np.argsort(-counts, kind="stable")[: options.max_pairs]
    found = []
    for view in best[counts[best] >= options.min_matches].tolist():
        mine = rays.view_idx == view
        estimate = estimate_essential(
            rays.view_rays[mine][:, :2],
            rays.query_rays[mine][:, :2],
            max_error=max_error,
            confidence=0.999,
            seed=options.seed,
        )
        if estimate is None:
            continue
        query_from_view, inliers = estimate
        num = int(np.count_nonzero(inliers))
        if num < options.min_matches:
            continue
        found.append(
            RelativePose(
                view_idx=view,
                R=query_from_view.R @ rays.R[view],
                direction=rays.R[view].T @ query_from_view.origin_in_a,
                num_inliers=num,
            )
        )
    return sorted(found, key=lambda pose: -pose.num_inliers)


def meeting_poses(
    said: Sequence[RelativePose], centers: FloatArray, *, options: RelativeOptions
) -> list[Rigid3]:
    """Return the poses at which the directions of two keyframes each meet.

    Parameters
    ----------
    said : sequence of RelativePose
        What keyframes say.
    centers : ndarray of shape (K, 3), float64
        Their centres, m.
    options : RelativeOptions
        Which angles are large enough, and which rotations agree.
    """
    poses = []
    largest = np.cos(np.deg2rad(options.min_ray_angle_deg))
    for i, a in enumerate(said):
        for b in said[:i]:
            if rotation_angle_rad(a.R @ b.R.T) > np.deg2rad(options.max_rotation_deg):
                continue
            cosine = float(a.direction @ b.direction)
            if abs(cosine) > largest:
                continue
            # The points of both rays that are closest to each other.
            off = centers[b.view_idx] - centers[a.view_idx]
            lengths = np.linalg.solve(
                np.array([[1.0, -cosine], [-cosine, 1.0]]),
                np.array([off @ a.direction, -(off @ b.direction)]),
            )
            if lengths.min() <= 0:
                continue
            center = 0.5 * (
                centers[a.view_idx]
                + lengths[0] * a.direction
                + centers[b.view_idx]
                + lengths[1] * b.direction
            )
            weights = np.array([a.num_inliers, b.num_inliers], np.float64)
            R = mean_rotation(np.stack([a.R, b.R]), weights / weights.sum())
            poses.append(Rigid3(R=R, t=-R @ center))
    return poses


def _ray_matches(
    query: Query, views: KeyframeViews, matches: KeyframeMatches
) -> tuple[RayMatches, IntArray]:
    """Return rays of all matches that have them, and their query features."""
    plane_q = normalized_from_pixels(
        query.camera,
        query.features.keypoints[matches.query_idx].astype(np.float64),
    )
    plane_v = views.plane_points(matches.feature_idx, matches.keyframe_idx)
    usable = np.flatnonzero(np.isfinite(np.hstack([plane_q, plane_v])).all(axis=1))
    ones = np.ones((len(usable), 1))
    view_idx = matches.keyframe_idx[usable]
    focal_v = np.array([np.mean(camera.focal_px) for camera in views.cameras])
    query_idx = matches.query_idx[usable]
    rays = RayMatches(
        query_rays=np.hstack([plane_q[usable], ones]),
        view_rays=np.hstack([plane_v[usable], ones]),
        query_sigmas=query.features.sigmas[query_idx] / np.mean(query.camera.focal_px),
        view_sigmas=views.features.sigmas[matches.feature_idx[usable]]
        / focal_v[view_idx],
        view_idx=view_idx,
        R=np.stack([pose.R for pose in views.poses]),
        centers=views.centers,
    )
    return rays, query_idx


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Solved:
    pose: Rigid3
    covariance: FloatArray
    inliers: BoolArray
    rms_sigmas: float
    depth: float


def _solve(
    rays: RayMatches, starts: Sequence[Rigid3], options: RelativeOptions
) -> _Solved:
    """Return the pose that all matches agree on, from the best of some starts."""
    scale = options.loss_scale
    costs = [robust_cost(rays, start, loss_scale=2.0 * scale) for start in starts]
    pose, _ = refine_on_rays(rays, starts[int(np.argmin(costs))], loss_scale=scale)
    inliers = _inliers(rays, pose, options.inlier_sigmas)
    covariance = np.eye(6)
    for _ in range(_ROUNDS):
        noise = noise_ratio(ray_residuals(rays.where(inliers), pose))
        tight = rays.scaled(min(max(noise, _MIN_NOISE), _MAX_NOISE))
        before = inliers
        inliers = _inliers(tight, pose, options.inlier_sigmas)
        if np.count_nonzero(inliers) < options.min_matches:
            break
        pose, covariance = refine_on_rays(tight.where(inliers), pose, loss_scale=scale)
        if np.array_equal(before, inliers):
            break
    residuals = ray_residuals(rays.where(inliers), pose)
    depths, _ = ray_depths(rays.where(inliers), pose)
    return _Solved(
        pose=pose,
        covariance=covariance,
        inliers=inliers,
        rms_sigmas=float(np.sqrt(np.mean(residuals**2))) if inliers.any() else 0.0,
        depth=float(np.median(depths)) if inliers.any() else 0.0,
    )


def _inliers(rays: RayMatches, pose: Rigid3, max_sigmas: float) -> BoolArray:
    near = np.abs(ray_residuals(rays, pose)) <= max_sigmas
    in_query, in_view = ray_depths(rays, pose)
    return np.asarray(near & (in_query > 0) & (in_view > 0))


def localize_by_relative(
    query: Query,
    views: KeyframeViews,
    matches: KeyframeMatches,
    *,
    calibration: FixCalibration,
    coarse: CoarseCalibration,
    options: RelativeOptions,
) -> Candidate:
    """Return the pose of a frame from its epipolar geometry with keyframes.

    Parameters
    ----------
    query : Query
        The frame.
    views : KeyframeViews
        Retrieved keyframes.
    matches : KeyframeMatches
        Of the frame with them.
    calibration : FixCalibration
        Learned on the site's held-out frames.
    coarse : CoarseCalibration
        How far from a retrieved keyframe frames are.
    options : RelativeOptions
        Options.

    Returns
    -------
    Candidate
        LOCALIZED where keyframes at different places say where the camera is. COARSE,
        with the rotation and a keyframe's place, where they do not: one keyframe alone,
        all on one line with the camera, or the camera where a keyframe was. LOST, with
        the cause, where no two views agree.
    """
    if len(query.features) < options.min_inliers:
        return replace(LOST, cause=Cause.FEW_FEATURES)
    rays, query_idx = _ray_matches(query, views, matches)
    if len(rays) < options.min_inliers:
        return replace(LOST, cause=Cause.FEW_MATCHES)
    focal_px = float(np.mean(query.camera.focal_px))
    said = relative_poses(
        rays, max_error=options.max_error_px / focal_px, options=options
    )
    if not said:
        return replace(LOST, cause=Cause.FEW_INLIERS)
    starts = meeting_poses(said, rays.centers, options=options)
    if starts:
        solved = _solve(rays, starts, options)
        side_px = max(query.camera.width, query.camera.height)
        witnesses = count_witnesses(
            query.features.keypoints[query_idx[solved.inliers]].astype(np.float64),
            query_idx[solved.inliers],
            cell_px=options.cell_px * side_px,
        )
        num = int(np.count_nonzero(solved.inliers))
        covariance = calibration.applied(
            solved.covariance * max(num / max(witnesses, 1), 1.0)
        )
        if _is_sound(rays, solved, witnesses, options):
            return Candidate(
                status=PoseStatus.LOCALIZED,
                rung=Rung.RELATIVE,
                cause=Cause.NONE,
                cam_from_world=solved.pose,
                covariance=covariance,
                reproj_rmse_px=solved.rms_sigmas,
                agreement=(
                    len(np.unique(query_idx)),
                    len(np.unique(query_idx[solved.inliers])),
                ),
            )
    beside = _beside_a_keyframe(said, rays.centers, coarse, options)
    if beside.cam_from_world is None:
        return beside
    # One keyframe says where: its matches, each of another feature, are the evidence.
    return replace(beside, agreement=(len(np.unique(query_idx)), said[0].num_inliers))


def _is_sound(
    rays: RayMatches, solved: _Solved, witnesses: int, options: RelativeOptions
) -> bool:
    """Return whether the evidence carries a LOCALIZED answer."""
    if witnesses < options.min_inliers:
        return False
    telling = solved.inliers & has_parallax(rays, solved.pose)
    per_view = np.bincount(rays.view_idx[telling], minlength=len(rays.R))
    used = per_view >= options.min_matches
    if np.count_nonzero(used) < 2:
        return False
    asked = np.count_nonzero(used[rays.view_idx])
    if np.count_nonzero(solved.inliers) < options.min_inlier_ratio * asked:
        return False
    sigma = float(np.sqrt(np.trace(solved.covariance[3:, 3:])))
    return sigma <= options.max_sigma_ratio * solved.depth


def _beside_a_keyframe(
    said: Sequence[RelativePose],
    centers: FloatArray,
    coarse: CoarseCalibration,
    options: RelativeOptions,
) -> Candidate:
    """Return the rotation that most say, at the place of the surest of these."""
    angles = [[rotation_angle_rad(a.R @ b.R.T) for b in said] for a in said]
    agree = np.array(angles) <= np.deg2rad(options.max_rotation_deg)
    weights = np.array([pose.num_inliers for pose in said], np.float64)
    best = int(np.argmax(agree @ weights))
    if weights[best] < options.min_inliers and np.count_nonzero(agree[best]) < 2:
        return replace(LOST, cause=Cause.FEW_INLIERS)
    kept = np.flatnonzero(agree[best])
    share = weights[kept] / weights[kept].sum()
    R = mean_rotation(np.stack([said[i].R for i in kept.tolist()]), share)
    center = centers[said[int(kept[0])].view_idx]
    spread = rotation_angle_rad(np.stack([said[i].R for i in kept.tolist()]) @ R.T)
    covariance = np.zeros((6, 6))
    # Each direction is off by as much as the rotations differ, and at least a degree.
    covariance[:3, :3] = np.eye(3) * (float(share @ spread**2) + np.deg2rad(1.0) ** 2)
    covariance[3:, 3:] = np.eye(3) * coarse.position_sigma**2
    return Candidate(
        status=PoseStatus.COARSE,
        rung=Rung.RELATIVE,
        cause=Cause.AMBIGUOUS,
        cam_from_world=Rigid3(R=R, t=-R @ center),
        covariance=covariance,
    )
