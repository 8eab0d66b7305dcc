"""RELOCALIZE: retrieval, covisible local map, 2D-3D matches, PnP, refinement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edgeloc.features.family import FeatureFamily
from edgeloc.features.match import MatchOptions, match_to_keyframes
from edgeloc.geometry.pnp import PnpOptions, estimate_pose
from edgeloc.geometry.upright import Vertical
from edgeloc.localize.candidate import LOST, Candidate, Query
from edgeloc.localize.comparison import LandmarkComparison
from edgeloc.localize.fix import FixCalibration, fix_from_pnp
from edgeloc.localize.integrity import (
    IntegrityOptions,
    disagree,
    is_sound,
    median_view_angle_rad,
    relative_spread,
    select_matches,
    witnesses,
)
from edgeloc.localize.second_look import (
    Hypothesis,
    Pairs,
    SecondLookOptions,
    expect,
    look_again,
    surprise,
)
from edgeloc.tiles.layout import LocalMap
from edgeloc.types import (
    CameraModel,
    Cause,
    Float32Array,
    FloatArray,
    IntArray,
    RetrievalResult,
    Rung,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StructureOptions:
    """Options of RELOCALIZE.

    Parameters
    ----------
    match : MatchOptions
        Of query to landmarks.
    pnp : PnpOptions
        Of the pose.
    integrity : IntegrityOptions
        Gates.
    min_shared_landmarks : int
        Two retrieved keyframes that share this many belong to one cluster.
    max_clusters : int
        Clusters tried.
    second_look : SecondLookOptions or None
        How landmarks are looked for beside the pixels where the pose that was found
        puts them; None = the pose is what the first matches say.
    """

    match: MatchOptions = field(default_factory=MatchOptions)
    pnp: PnpOptions = field(default_factory=PnpOptions)
    integrity: IntegrityOptions = field(default_factory=IntegrityOptions)
    min_shared_landmarks: int = 10
    max_clusters: int = 3
    second_look: SecondLookOptions | None = field(default_factory=SecondLookOptions)


def structure_for(family: FeatureFamily) -> StructureOptions:
    """Return the options that serve a feature family."""
    return StructureOptions(match=MatchOptions(max_ratio=family.match_ratio))


def covisibility_clusters(
    visible: Sequence[IntArray], *, min_shared: int
) -> list[list[int]]:
    """Return groups of keyframes that share landmarks, directly or in a chain.

    Parameters
    ----------
    visible : sequence of ndarray of int64
        Landmark ids of each keyframe, ascending, in order of retrieval.
    min_shared : int
        Landmarks that make two keyframes neighbours.

    Returns
    -------
    list of list of int
        Indices into `visible`, the largest group first, equals in retrieval order.
    """
    group = list(range(len(visible)))
    for b in range(len(visible)):
        for a in range(b):
            if group[a] == group[b]:
                continue
            shared = np.intersect1d(visible[a], visible[b], assume_unique=True)
            if len(shared) >= min_shared:
                old, new = group[b], group[a]
                group = [new if g == old else g for g in group]
    clusters: dict[int, list[int]] = {}
    for idx, g in enumerate(group):
        clusters.setdefault(g, []).append(idx)
    return sorted(clusters.values(), key=lambda c: (-len(c), c[0]))


def relocalize(
    query: Query,
    retrieved: RetrievalResult,
    *,
    visible: Sequence[IntArray],
    centers: FloatArray,
    load_local_map: Callable[[IntArray], LocalMap],
    comparison: LandmarkComparison,
    calibration: FixCalibration,
    options: StructureOptions,
    vertical: Vertical | None = None,
    weigh: Callable[[IntArray], Float32Array] | None = None,
) -> Candidate:
    """Return the pose of a frame against the landmarks of the retrieved keyframes.

    Parameters
    ----------
    query : Query
        The frame.
    retrieved : RetrievalResult
        Keyframes, best first.
    visible : sequence of ndarray of int64
        Landmark ids of each retrieved keyframe.
    centers : ndarray of shape (K, 3), float64
        Camera centres of the retrieved keyframes.
    load_local_map : callable
        From keyframe ids to their landmarks.
    comparison : LandmarkComparison
        Of the frame's features with landmarks.
    calibration : FixCalibration
        Learned on the site's held-out frames.
    options : StructureOptions
        Options.
    vertical : Vertical, optional
        Which way is down.
    weigh : callable, optional
        From landmark ids to weights in [0, 1]: how likely each still is where it was.
        Matches are sampled in the order of score times weight; those of weight 0 are
        left out.

    Returns
    -------
    Candidate
        LOCALIZED, or LOST with the cause.
    """
    if len(query.features) < options.integrity.min_inliers:
        return replace(LOST, cause=Cause.FEW_FEATURES)
    look = options.second_look
    least = options.integrity.min_inliers if look is None else look.min_witnesses
    sound: list[Hypothesis] = []
    weak: list[Hypothesis] = []
    rejected: Candidate | None = None
    clusters = covisibility_clusters(visible, min_shared=options.min_shared_landmarks)
    for cluster in clusters[: options.max_clusters]:
        local_map = load_local_map(retrieved.keyframe_ids[np.array(cluster)])
        if len(local_map) < least:
            continue
        similarity = comparison.similarity(local_map)
        query_idx, point_idx, scores = match_to_keyframes(
            similarity,
            [np.searchsorted(local_map.point3D_ids, visible[idx]) for idx in cluster],
            options.match,
        )
        pairs = Pairs(query_idx=query_idx, point_idx=point_idx, scores=scores).weighed(
            local_map, weigh
        )
        matches, pixel_sigmas, point_sigmas = pairs.matches(query, local_map)
        if len(matches) < least:
            rejected = rejected or replace(
                LOST, cause=Cause.FEW_MATCHES, matches=matches
            )
            continue
        result = estimate_pose(
            matches,
            query.camera,
            options=options.pnp,
            point_sigmas=point_sigmas,
            pixel_sigmas=pixel_sigmas,
            vertical=vertical,
        )
        if result is not None:
            found = Hypothesis(
                result=result,
                matches=matches,
                point_sigmas=point_sigmas,
                pixel_sigmas=pixel_sigmas,
                pairs=pairs,
                similarity=similarity,
                local_map=local_map,
                visible=[visible[idx] for idx in cluster],
                centers=centers[cluster],
            )
            if _stands(found, query.camera, options.integrity):
                sound.append(found)
                continue
            weak.append(found)
        mask = None if result is None else result.inlier_mask
        rejected = replace(
            LOST, cause=Cause.FEW_INLIERS, matches=matches, inlier_mask=mask
        )
    confirmed = not sound
    if confirmed:
        looked_at = [_confirmed(found, query, options, weigh) for found in weak]
        sound = [found for found in looked_at if found is not None]
    if not sound:
        return rejected or replace(LOST, cause=Cause.FEW_MATCHES)
    # Only rivals of the best count: two weak poses may well contradict each other.
    best = max(sound, key=lambda found: found.result.num_inliers)
    if any(
        disagree(best.result, other.result, other.matches, options.integrity)
        for other in sound
    ):
        return replace(
            LOST,
            cause=Cause.AMBIGUOUS,
            matches=best.matches,
            inlier_mask=best.result.inlier_mask,
        )
    if look is not None:
        sight = expect(best, query, look)
        best = look_again(best, query, sight, pnp=options.pnp, weigh=weigh)
    fix = _told(best, query.camera, calibration, options.integrity)
    if best.first is None:
        return fix
    first = _told(best.first, query.camera, calibration, options.integrity)
    return replace(fix, first=first, confirmed=confirmed)


def _stands(
    found: Hypothesis, camera: CameraModel, integrity: IntegrityOptions
) -> bool:
    """Return whether the evidence carries a pose by itself."""
    result, matches = found.result, found.matches
    if not is_sound(result, matches, camera, integrity):
        return False
    angle = median_view_angle_rad(
        result.cam_from_world.origin_in_a,
        select_matches(matches, result.inlier_mask),
        visible=found.visible,
        centers=found.centers,
    )
    return angle <= float(np.deg2rad(integrity.max_view_angle_deg))


def _confirmed(
    found: Hypothesis,
    query: Query,
    options: StructureOptions,
    weigh: Callable[[IntArray], Float32Array] | None,
) -> Hypothesis | None:
    """Return a pose of few inliers with more of them, or None when it is chance."""
    look, integrity, camera = options.second_look, options.integrity, query.camera
    if look is None:
        return None
    few = witnesses(found.result, found.matches, camera, integrity.cell_px)
    if few < look.min_witnesses:
        return None
    sight = expect(found, query, look)
    cell_px = integrity.cell_px * max(camera.width, camera.height)
    if surprise(found, query, sight, cell_px=cell_px) < look.min_surprise:
        return None
    again = look_again(found, query, sight, pnp=options.pnp, weigh=weigh)
    # What has moved confirms itself.
    points2D = again.matches.points2D[again.result.inlier_mask]
    if relative_spread(points2D, camera) < integrity.compact_spread:
        return None
    return again if _stands(again, camera, integrity) else None


def _told(
    found: Hypothesis,
    camera: CameraModel,
    calibration: FixCalibration,
    integrity: IntegrityOptions,
) -> Candidate:
    return fix_from_pnp(
        found.result,
        found.matches,
        camera,
        rung=Rung.RELOCALIZE,
        calibration=calibration,
        integrity=integrity,
        point_sigmas=found.point_sigmas,
        pixel_sigmas=found.pixel_sigmas,
    )
