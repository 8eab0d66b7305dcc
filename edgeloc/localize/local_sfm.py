"""LOCAL_SFM: points triangulated from the retrieved keyframes on the fly, then PnP.

For sites that keep no 3D points: the poses of the keyframes and their features are
enough (Sattler et al., "Are Large-Scale 3D Models Really Necessary for Accurate Visual
Localization?", CVPR 2017, section 3.2).

Tracks go through the query alone. Matching the keyframes with each other, too,
localized 3 % more frames of hard recordings (ORB indoors, a path by day), and took
about four times as long.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from edgeloc.features.family import FeatureFamily
from edgeloc.features.match import MatchOptions
from edgeloc.geometry.pnp import PnpOptions
from edgeloc.geometry.triangulate import (
    Observations,
    TriangulationOptions,
    View,
    triangulate_tracks,
)
from edgeloc.localize.candidate import LOST, Candidate, Query
from edgeloc.localize.fix import FixCalibration, localize_by_matches
from edgeloc.localize.integrity import IntegrityOptions
from edgeloc.localize.keyframe_matches import KeyframeMatches, KeyframeViews
from edgeloc.types import (
    Cause,
    Float32Array,
    Matches2D3D,
    Rung,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSfmOptions:
    """Options of LOCAL_SFM.

    Parameters
    ----------
    match : MatchOptions
        Of the query to each keyframe.
    triangulation : TriangulationOptions
        What becomes a point.
    pnp : PnpOptions
        Of the pose.
    integrity : IntegrityOptions
        Gates.
    """

    match: MatchOptions = field(default_factory=MatchOptions)
    triangulation: TriangulationOptions = field(
        default_factory=lambda: TriangulationOptions(num_hypotheses=3, num_iterations=4)
    )
    pnp: PnpOptions = field(default_factory=PnpOptions)
    integrity: IntegrityOptions = field(default_factory=IntegrityOptions)


def local_sfm_for(family: FeatureFamily) -> LocalSfmOptions:
    """Return the options that serve a feature family."""
    return LocalSfmOptions(match=MatchOptions(max_ratio=family.match_ratio))


def triangulate_matches(
    query: Query,
    views: KeyframeViews,
    matches: KeyframeMatches,
    options: TriangulationOptions,
) -> tuple[Matches2D3D, Float32Array]:
    """Return points that query features were found to show, and their deviations, m.

    What one query feature looks like in several keyframes is one track; its point comes
    from the keyframes alone.

    Parameters
    ----------
    query : Query
        The frame.
    views : KeyframeViews
        Retrieved keyframes.
    matches : KeyframeMatches
        Of the frame with them.
    options : TriangulationOptions
        Gates of the points.

    Returns
    -------
    matches : Matches2D3D
        Best first. The id of the point of query feature i is -1 - i: no landmark of a
        site has a negative one.
    sigmas : ndarray of shape (M,), float32
    """
    count = np.bincount(matches.query_idx, minlength=len(query.features))
    several = np.flatnonzero(count[matches.query_idx] > 1)
    nothing = np.zeros(0, np.int64)
    if len(several) == 0:
        return (
            Matches2D3D(
                points2D=np.zeros((0, 2)),
                points3D=np.zeros((0, 3)),
                point3D_ids=nothing,
                scores=np.zeros(0, np.float32),
            ),
            np.zeros(0, np.float32),
        )
    rows = several[np.argsort(matches.query_idx[several], kind="stable")]
    owner = matches.query_idx[rows]
    begins = np.diff(owner, prepend=-1) > 0
    features = views.features
    num = len(rows)
    observations = Observations(
        track_idx=np.cumsum(begins) - 1,
        view_idx=matches.keyframe_idx[rows],
        pixels=features.keypoints[matches.feature_idx[rows]].astype(np.float64),
        pixel_sigma=features.sigmas[matches.feature_idx[rows]].astype(np.float64),
        depth=np.full(num, np.nan),
        depth_sigma=np.ones(num),
    )
    found = triangulate_tracks(
        observations,
        [
            View(camera=camera, R=pose.R, t=pose.t)
            for camera, pose in zip(views.cameras, views.poses, strict=True)
        ],
        options,
    )
    support = np.bincount(
        observations.track_idx[found.inlier],
        matches.scores[rows][found.inlier],
        minlength=len(found.valid),
    )
    valid = np.flatnonzero(found.valid)
    valid = valid[np.argsort(-support[valid], kind="stable")]
    query_idx = owner[begins][valid]
    return (
        Matches2D3D(
            points2D=query.features.keypoints[query_idx].astype(np.float64),
            points3D=found.points3D[valid],
            point3D_ids=-1 - query_idx,
            scores=support[valid].astype(np.float32),
        ),
        found.sigmas[valid].astype(np.float32),
    )


def localize_by_local_sfm(
    query: Query,
    views: KeyframeViews,
    matches: KeyframeMatches,
    *,
    calibration: FixCalibration,
    options: LocalSfmOptions,
) -> Candidate:
    """Return the pose of a frame against points of the retrieved keyframes.

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
    options : LocalSfmOptions
        Options.

    Returns
    -------
    Candidate
        LOCALIZED, or LOST with the cause.
    """
    needed = options.integrity.min_inliers
    if len(query.features) < needed:
        return replace(LOST, cause=Cause.FEW_FEATURES)
    points, point_sigmas = triangulate_matches(
        query, views, matches, options.triangulation
    )
    if len(points) < needed:
        return replace(LOST, cause=Cause.FEW_MATCHES, matches=points)
    return localize_by_matches(
        points,
        query.camera,
        rung=Rung.LOCAL_SFM,
        calibration=calibration,
        pnp=options.pnp,
        integrity=options.integrity,
        point_sigmas=point_sigmas,
        pixel_sigmas=query.features.sigmas[-1 - points.point3D_ids],
    )
