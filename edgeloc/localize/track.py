"""TRACK: landmarks where the prediction expects them; no retrieval.

Two ways: pixels of landmarks followed from the frame before (`klt`), and features
matched to landmarks that are projected with the predicted pose (`guided`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from edgeloc.geometry.camera import project
from edgeloc.geometry.pnp import PnpOptions, estimate_pose
from edgeloc.localize.candidate import LOST, Candidate
from edgeloc.localize.fix import FixCalibration, fix_from_pnp
from edgeloc.localize.guided import GuidedOptions
from edgeloc.localize.integrity import IntegrityOptions, is_sound
from edgeloc.localize.klt import KltOptions, Tracks, follow, spread_order
from edgeloc.tiles.layout import LocalMap
from edgeloc.types import (
    BoolArray,
    ByteArray,
    CameraModel,
    Cause,
    Features,
    IntArray,
    Rigid3,
    Rung,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackOptions:
    """Options of TRACK.

    Parameters
    ----------
    klt : KltOptions
        Of following pixels.
    pnp : PnpOptions
        Of the pose.
    integrity : IntegrityOptions
        Gates, as for RELOCALIZE.
    inlier_sigmas : float
        Limit of an inlier, in standard deviations. Wider than for fresh matches, which
        are right or wrong: what is followed was right once, and points that come and go
        at a narrow limit would make the pose jump.
    sighting_sigmas : float
        The same of a fresh sighting of a landmark.
    max_tracks : int
        Landmarks followed.
    few_tracks : int
        With fewer, more are looked for at once.
    min_found : float
        Smallest share of the landmarks that should be in the picture and are found: a
        camera that is covered or carried away loses most of them at once.
    guided : GuidedOptions
        Of looking for landmarks where the prediction expects them.
    blend : float
        Weight of a fresh sighting against the followed pixel; the first few sightings
        are averaged.
    """

    klt: KltOptions = field(default_factory=KltOptions)
    pnp: PnpOptions = field(default_factory=lambda: PnpOptions(max_error_px=4.0))
    integrity: IntegrityOptions = field(default_factory=IntegrityOptions)
    inlier_sigmas: float = 6.0
    sighting_sigmas: float = 3.4
    max_tracks: int = 120
    few_tracks: int = 70
    min_found: float = 0.3
    guided: GuidedOptions = field(default_factory=GuidedOptions)
    blend: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tracked:
    """What TRACK says about a frame.

    Parameters
    ----------
    candidate : Candidate
        LOCALIZED, or LOST with the cause.
    tracks : Tracks or None
        Those that agree with the pose; None when LOST.
    num_expected, num_found : int
        Landmarks that should be in the picture, and that were found.
    """

    candidate: Candidate
    tracks: Tracks | None
    num_expected: int
    num_found: int


def track_frame(
    tracks: Tracks,
    grey: ByteArray,
    camera: CameraModel,
    *,
    prior: Rigid3,
    last_pose: Rigid3,
    calibration: FixCalibration,
    options: TrackOptions,
) -> Tracked:
    """Return the pose of a frame from the landmarks of the frame before.

    Parameters
    ----------
    tracks : Tracks
        In the frame before.
    grey : ndarray of shape (H, W), uint8
        The frame.
    camera : CameraModel
        Intrinsics.
    prior : Rigid3
        Predicted pose of this frame,
    last_pose : Rigid3
        and that of the frame before: the search starts where the difference between
        the two moves each pixel.
    calibration : FixCalibration
        Of the site's covariances.
    options : TrackOptions
        How.
    """
    before, seen_before = project(camera, last_pose.transform(tracks.points3D))
    after, seen_after = project(camera, prior.transform(tracks.points3D))
    moved = np.where(
        (seen_before & seen_after)[:, None], after - before + tracks.points2D, np.nan
    )
    followed, found = follow(tracks, grey, expected=moved, options=options.klt)
    size = np.array([camera.width, camera.height])
    margin = 0.02 * size
    inside = seen_after & np.all((after >= margin) & (after < size - margin), axis=1)
    num_expected, num_found = int(inside.sum()), int((found & inside).sum())
    if len(followed) < options.integrity.min_inliers or (
        num_found < options.min_found * num_expected
    ):
        lost = replace(LOST, cause=Cause.FEW_MATCHES, matches=followed.matches())
        return Tracked(
            candidate=lost,
            tracks=None,
            num_expected=num_expected,
            num_found=num_found,
        )
    candidate, mask = solve_tracks(
        followed,
        camera,
        prior=prior,
        calibration=calibration,
        options=options,
    )
    return Tracked(
        candidate=candidate,
        tracks=None if mask is None else followed.select(mask),
        num_expected=num_expected,
        num_found=num_found,
    )


def solve_tracks(
    tracks: Tracks,
    camera: CameraModel,
    *,
    prior: Rigid3,
    calibration: FixCalibration,
    options: TrackOptions,
) -> tuple[Candidate, BoolArray | None]:
    """Return the pose that tracks agree on, and which do; None without a sound one.

    Parameters
    ----------
    tracks : Tracks
        Pixels and landmarks.
    camera : CameraModel
        Intrinsics.
    prior : Rigid3
        Where to start.
    calibration : FixCalibration
        Of the site's covariances.
    options : TrackOptions
        How.
    """
    matches = tracks.matches()
    result = estimate_pose(
        matches,
        camera,
        options=options.pnp,
        point_sigmas=tracks.point_sigmas,
        pixel_sigmas=tracks.pixel_sigmas,
        prior=prior,
    )
    if result is None or not is_sound(result, matches, camera, options.integrity):
        mask = None if result is None else result.inlier_mask
        return replace(
            LOST, cause=Cause.FEW_INLIERS, matches=matches, inlier_mask=mask
        ), None
    fix = fix_from_pnp(
        result,
        matches,
        camera,
        rung=Rung.TRACK,
        calibration=calibration,
        integrity=options.integrity,
    )
    return fix, result.inlier_mask


def sightings(
    features: Features,
    local_map: LocalMap,
    *,
    feature_idx: IntArray,
    point_idx: IntArray,
    grey: ByteArray,
) -> Tracks:
    """Return landmarks where features say they are.

    Parameters
    ----------
    features : Features
        Of a frame.
    local_map : LocalMap
        Landmarks.
    feature_idx, point_idx : ndarray of shape (M,), int64
        Matches between the two, each landmark once.
    grey : ndarray of shape (H, W), uint8
        The frame.
    """
    return Tracks(
        grey=grey,
        points2D=features.keypoints[feature_idx].astype(np.float64),
        points3D=local_map.points3D[point_idx],
        point3D_ids=local_map.point3D_ids[point_idx],
        point_sigmas=local_map.sigmas[point_idx],
        pixel_sigmas=features.sigmas[feature_idx],
        num_sightings=np.ones(len(point_idx), np.int64),
    )


def merged(tracks: Tracks, fresh: Tracks, options: TrackOptions) -> Tracks:
    """Return tracks to which fresh sightings in the same frame were added.

    A landmark that is followed already moves a little towards its fresh sighting, which
    keeps it from drifting and averages the noise of both; others are new. What is too
    much goes where the picture is crowded.

    Parameters
    ----------
    tracks, fresh : Tracks
        In the same frame.
    options : TrackOptions
        How many, and how they are blended.
    """
    order = np.argsort(tracks.point3D_ids, kind="stable")
    where = np.searchsorted(tracks.point3D_ids, fresh.point3D_ids, sorter=order)
    where = np.minimum(where, max(len(tracks) - 1, 0))
    known = np.zeros(len(fresh), dtype=bool)
    if len(tracks):
        where = order[where]
        known = tracks.point3D_ids[where] == fresh.point3D_ids
    points2D = tracks.points2D.copy()
    num_sightings = tracks.num_sightings.copy()
    again = where[known]
    weight = np.maximum(1.0 / (num_sightings[again] + 1.0), options.blend)
    points2D[again] += weight[:, None] * (fresh.points2D[known] - points2D[again])
    num_sightings[again] += 1
    new = fresh.select(~known)
    out = Tracks(
        grey=tracks.grey,
        points2D=np.concatenate([points2D, new.points2D]),
        points3D=np.concatenate([tracks.points3D, new.points3D]),
        point3D_ids=np.concatenate([tracks.point3D_ids, new.point3D_ids]),
        point_sigmas=np.concatenate([tracks.point_sigmas, new.point_sigmas]),
        pixel_sigmas=np.concatenate([tracks.pixel_sigmas, new.pixel_sigmas]),
        num_sightings=np.concatenate([num_sightings, new.num_sightings]),
    )
    return thinned(out, options.max_tracks)


def thinned(tracks: Tracks, max_tracks: int) -> Tracks:
    """Return at most so many tracks, spread over the picture, the best known first."""
    if len(tracks) <= max_tracks:
        return tracks
    tracks = tracks.select(np.argsort(-tracks.num_sightings, kind="stable"))
    side_px = max(tracks.grey.shape)
    order = spread_order(tracks.points2D, cell_px=side_px / 16)
    return tracks.select(np.sort(order[:max_tracks]))


def seed_tracks(candidate: Candidate, grey: ByteArray, options: TrackOptions) -> Tracks:
    """Return the landmarks that a LOCALIZED candidate was computed from, to follow.

    Parameters
    ----------
    candidate : Candidate
        With matches, inliers and their standard deviations.
    grey : ndarray of shape (H, W), uint8
        Its frame.
    options : TrackOptions
        How many.
    """
    assert candidate.matches is not None
    assert candidate.inlier_mask is not None
    idx = np.flatnonzero(candidate.inlier_mask)
    matches = candidate.matches
    idx = idx[np.argsort(-matches.scores[idx], kind="stable")]
    _, once = np.unique(matches.point3D_ids[idx], return_index=True)
    idx = idx[np.sort(once)]
    m = len(matches)
    point_sigmas, pixel_sigmas = candidate.point_sigmas, candidate.pixel_sigmas
    tracks = Tracks(
        grey=grey,
        points2D=matches.points2D[idx],
        points3D=matches.points3D[idx],
        point3D_ids=matches.point3D_ids[idx],
        point_sigmas=(
            np.zeros(m, np.float32) if point_sigmas is None else point_sigmas
        )[idx],
        pixel_sigmas=(np.ones(m, np.float32) if pixel_sigmas is None else pixel_sigmas)[
            idx
        ],
        num_sightings=np.ones(len(idx), np.int64),
    )
    return thinned(tracks, options.max_tracks)
