"""RELOCALIZE: retrieval, covisible local map, 2D-3D matches, PnP, refinement."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edgeloc.features.family import FeatureFamily
from edgeloc.features.match import (
    MatchOptions,
    match_to_keyframes,
)
from edgeloc.geometry.pnp import PnpOptions, PnpResult, estimate_pose
from edgeloc.geometry.se3 import rotation_angle_rad
from edgeloc.geometry.upright import Vertical
from edgeloc.localize.candidate import LOST, Candidate, Query
from edgeloc.localize.comparison import LandmarkComparison
from edgeloc.localize.guided import (
    GuidedOptions,
    expected_landmarks,
    make_viewed_map,
    match_similar,
)
from edgeloc.tiles.layout import LocalMap
from edgeloc.types import (
    BoolArray,
    CameraModel,
    Cause,
    Float32Array,
    FloatArray,
    IntArray,
    Matches2D3D,
    PoseStatus,
    RetrievalResult,
    Rung,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegrityOptions:
    """What a pose must show before it is called LOCALIZED.

    Parameters
    ----------
    min_inliers : int
        Inliers, counted once per landmark and once per image cell of
        `cell_px`: a heap of features on one spot is one witness.
    cell_px : float
        Size of such a cell, as a share of the image's longer side.
    min_inlier_ratio : float
        The same as a share of the matches: among more of them, more agree by chance.
    min_spread : float
        Smallest of the two standard deviations of inlier positions, as a share of the
        image's longer side.
    max_sigma_ratio : float
        Largest standard deviation of the camera centre, relative to the median distance
        of the inlier landmarks.
    ambiguity_ratio : float
        A second, different pose with this share of the best one's inliers makes the
        answer ambiguous.
    max_view_angle_deg : float
        Largest median angle between how the query and its keyframes look at the inlier
        landmarks. Mirrored pictures fit planes from behind: 134 degrees and more,
        where true poses show 2 to 15.
    """

    min_inliers: int = 15
    cell_px: float = 1 / 64
    min_inlier_ratio: float = 0.03
    min_spread: float = 0.02
    max_sigma_ratio: float = 0.05
    ambiguity_ratio: float = 0.7
    max_view_angle_deg: float = 75.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FixCalibration:
    """What a site's own held-out frames say about the covariance of a fix.

    The covariance of a pose comes from the noise of its inliers, as if they were
    independent. Neighbouring landmarks are off together, and the poses of mapping and
    query images have errors of their own, which makes fixes worse by a factor. It also
    breaks what noise alone would couple: a turn of the camera and the shift that
    explains nearly the same pixels.

    Parameters
    ----------
    scale : float
        What the covariance of the inliers is multiplied with, > 0.
    decorrelation : float
        How much less rotation and translation go together than the inliers say, in
        [0, 1]: their cross-covariance is multiplied with one minus this.
    """

    scale: float = 1.0
    decorrelation: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"{self.scale=} must be > 0")
        if not 0.0 <= self.decorrelation <= 1.0:
            raise ValueError(f"{self.decorrelation=} must be in [0, 1]")

    def to_arrays(self) -> Mapping[str, Float32Array]:
        """Return what a site stores beside its `covariance_scale`."""
        return {"fix_calibration": np.array([self.decorrelation], np.float32)}

    @staticmethod
    def of_site(scale: float, arrays: Mapping[str, Float32Array]) -> FixCalibration:
        """Return the calibration of a site; without decorrelation where it has none.

        Parameters
        ----------
        scale : float
            `SiteManifest.covariance_scale`.
        arrays : mapping of str to ndarray
            `Site.retrieval_arrays`.

        Raises
        ------
        ValueError
            When the array is not what `to_arrays` gives.
        """
        values = arrays.get("fix_calibration", np.zeros(1, np.float32))
        if values.shape != (1,):
            raise ValueError(f"fix_calibration has shape {values.shape}, expected (1,)")
        return FixCalibration(scale=scale, decorrelation=float(values[0]))

    def to_array(self) -> Float32Array:
        """Return both numbers, as sites store those of methods without landmarks."""
        return np.array([self.scale, self.decorrelation], np.float32)

    @staticmethod
    def from_array(values: Float32Array) -> FixCalibration:
        """Return the calibration of `to_array`; `ValueError` when it is none."""
        if values.shape != (2,):
            raise ValueError(f"a calibration has shape {values.shape}, expected (2,)")
        return FixCalibration(scale=float(values[0]), decorrelation=float(values[1]))

    def applied(self, covariance: FloatArray) -> FloatArray:
        """Return the honest covariance of one that comes from inliers, (..., 6, 6)."""
        out = self.scale * covariance
        out[..., :3, 3:] *= 1.0 - self.decorrelation
        out[..., 3:, :3] *= 1.0 - self.decorrelation
        return np.asarray(out)


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
    second_look : GuidedOptions or None
        How landmarks are looked for beside the pixels where the pose that was found
        puts them; None = the pose is what the first matches say.
    second_look_quantile : float
        What is found there must look as much like its landmark as all but this share of
        the first inliers: how much right matches look alike depends on the descriptors
        and on the light, and beside a right pixel there are wrong features, too.
    """

    match: MatchOptions = field(default_factory=MatchOptions)
    pnp: PnpOptions = field(default_factory=PnpOptions)
    integrity: IntegrityOptions = field(default_factory=IntegrityOptions)
    min_shared_landmarks: int = 10
    max_clusters: int = 3
    second_look: GuidedOptions | None = field(
        default_factory=lambda: GuidedOptions(max_expected=4000)
    )
    second_look_quantile: float = 0.05


def structure_for(family: FeatureFamily) -> StructureOptions:
    """Return the options that serve a feature family."""
    return StructureOptions(match=MatchOptions(max_ratio=family.match_ratio))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sound:
    """A pose that the evidence carries, and what it was computed from."""

    result: PnpResult
    matches: Matches2D3D
    point_sigmas: Float32Array
    pixel_sigmas: Float32Array
    pairs: _Pairs
    similarity: Float32Array
    local_map: LocalMap
    cluster: list[int]


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pairs:
    """Which features show which landmarks of a local map, best first."""

    query_idx: IntArray
    point_idx: IntArray
    scores: Float32Array

    def weighed(
        self, local_map: LocalMap, weigh: Callable[[IntArray], Float32Array] | None
    ) -> _Pairs:
        """Return those of landmarks that may still be there, with scores times that."""
        if weigh is None:
            return self
        weights = weigh(local_map.point3D_ids[self.point_idx])
        return replace(self, scores=self.scores * weights).where(weights > 0)

    def where(self, mask: BoolArray) -> _Pairs:
        """Return some of them."""
        return _Pairs(
            query_idx=self.query_idx[mask],
            point_idx=self.point_idx[mask],
            scores=self.scores[mask],
        )

    def joined(self, others: _Pairs) -> _Pairs:
        """Return these and those of the others that are not among them."""
        stride = 1 + int(max(self.query_idx.max(initial=0), others.query_idx.max()))
        new = ~np.isin(
            others.point_idx * stride + others.query_idx,
            self.point_idx * stride + self.query_idx,
        )
        return _Pairs(
            query_idx=np.concatenate([self.query_idx, others.query_idx[new]]),
            point_idx=np.concatenate([self.point_idx, others.point_idx[new]]),
            scores=np.concatenate([self.scores, others.scores[new]]),
        )

    def matches(
        self, query: Query, local_map: LocalMap
    ) -> tuple[Matches2D3D, Float32Array, Float32Array]:
        """Return 2D-3D matches and the standard deviations of their ends, px and m."""
        matches = Matches2D3D(
            points2D=query.features.keypoints[self.query_idx].astype(np.float64),
            points3D=local_map.points3D[self.point_idx],
            point3D_ids=local_map.point3D_ids[self.point_idx],
            scores=self.scores,
        )
        return (
            matches,
            query.features.sigmas[self.query_idx],
            local_map.sigmas[self.point_idx],
        )


def select_matches(matches: Matches2D3D, mask: BoolArray) -> Matches2D3D:
    """Return some of the matches."""
    return Matches2D3D(
        points2D=matches.points2D[mask],
        points3D=matches.points3D[mask],
        point3D_ids=matches.point3D_ids[mask],
        scores=matches.scores[mask],
    )


def count_witnesses(
    points2D: FloatArray, point3D_ids: IntArray, *, cell_px: float
) -> int:
    """Return how many different image cells and landmarks the inliers cover.

    The smaller of the number of distinct cells and of distinct landmarks.

    Parameters
    ----------
    points2D : ndarray of shape (M, 2), float64
        Inlier positions, px.
    point3D_ids : ndarray of shape (M,), int64
        Their landmarks.
    cell_px : float
        Size of a cell, px.
    """
    cells = np.floor(points2D / cell_px).astype(np.int64)
    return min(len(np.unique(cells, axis=0)), len(np.unique(point3D_ids)))


def is_sound(
    result: PnpResult,
    matches: Matches2D3D,
    camera: CameraModel,
    options: IntegrityOptions,
) -> bool:
    """Return whether the evidence carries a LOCALIZED answer.

    Parameters
    ----------
    result : PnpResult
        The pose and its inliers.
    matches : Matches2D3D
        What it was computed from.
    camera : CameraModel
        Intrinsics.
    options : IntegrityOptions
        Gates.
    """
    mask = result.inlier_mask
    side_px = float(max(camera.width, camera.height))
    points2D = matches.points2D[mask]
    wanted = max(options.min_inliers, options.min_inlier_ratio * len(matches))
    if _witnesses(result, matches, camera, options) < wanted:
        return False
    spread = np.linalg.eigvalsh(np.cov(points2D.T))
    if np.sqrt(max(spread[0], 0.0)) < options.min_spread * side_px:
        return False
    in_cam = result.cam_from_world.transform(matches.points3D[mask])
    distance = float(np.median(np.linalg.norm(in_cam, axis=1)))
    sigma = float(np.sqrt(np.trace(result.covariance[3:, 3:])))
    return sigma <= options.max_sigma_ratio * distance


def _witnesses(
    result: PnpResult,
    matches: Matches2D3D,
    camera: CameraModel,
    options: IntegrityOptions,
) -> int:
    mask = result.inlier_mask
    cell_px = options.cell_px * max(camera.width, camera.height)
    return count_witnesses(
        matches.points2D[mask], matches.point3D_ids[mask], cell_px=cell_px
    )


def dependence(
    result: PnpResult,
    matches: Matches2D3D,
    camera: CameraModel,
    options: IntegrityOptions,
) -> float:
    """Return how many inliers there are for each independent one, at least 1.

    Inliers on one spot share their errors, so that a covariance that counts each of
    them is too small by this factor.
    """
    witnesses = _witnesses(result, matches, camera, options)
    return max(result.num_inliers / max(witnesses, 1), 1.0)


def fix_covariance(
    result: PnpResult,
    matches: Matches2D3D,
    camera: CameraModel,
    *,
    calibration: FixCalibration,
    options: IntegrityOptions,
) -> FloatArray:
    """Return the honest covariance of a pose, (6, 6).

    Parameters
    ----------
    result : PnpResult
        The pose and its inliers.
    matches : Matches2D3D
        What it was computed from.
    camera : CameraModel
        Intrinsics.
    calibration : FixCalibration
        Of the site.
    options : IntegrityOptions
        What makes two inliers one witness.
    """
    return calibration.applied(
        result.covariance * dependence(result, matches, camera, options)
    )


def median_view_angle_rad(
    center: FloatArray,
    matches: Matches2D3D,
    *,
    visible: Sequence[IntArray],
    centers: FloatArray,
) -> float:
    """Return how differently a query and the keyframes look at landmarks.

    For each landmark, the angle between its directions to the query and to that of its
    keyframes which is nearest in direction; the median over landmarks.

    Parameters
    ----------
    center : ndarray of shape (3,), float64
        Camera centre of the query.
    matches : Matches2D3D
        Landmarks.
    visible : sequence of ndarray of int64
        Landmark ids of each keyframe, ascending.
    centers : ndarray of shape (K, 3), float64
        Camera centres of the keyframes.
    """

    def directions_to(eye: FloatArray) -> FloatArray:
        rays = eye - matches.points3D
        length = np.maximum(np.linalg.norm(rays, axis=1, keepdims=True), 1e-12)
        return np.asarray(rays / length)

    to_query = directions_to(center)
    cosine = np.full(len(matches), -1.0)
    for ids, eye in zip(visible, centers, strict=True):
        if not len(ids):
            continue
        position = np.minimum(np.searchsorted(ids, matches.point3D_ids), len(ids) - 1)
        seen = ids[position] == matches.point3D_ids
        here = np.sum(to_query * directions_to(eye), axis=1)
        cosine = np.maximum(cosine, np.where(seen, here, -1.0))
    return float(np.median(np.arccos(np.clip(cosine, -1.0, 1.0))))


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
    sound: list[_Sound] = []
    rejected: Candidate | None = None
    clusters = covisibility_clusters(visible, min_shared=options.min_shared_landmarks)
    for cluster in clusters[: options.max_clusters]:
        local_map = load_local_map(retrieved.keyframe_ids[np.array(cluster)])
        if len(local_map) < options.integrity.min_inliers:
            continue
        similarity = comparison.similarity(local_map)
        query_idx, point_idx, scores = match_to_keyframes(
            similarity,
            [np.searchsorted(local_map.point3D_ids, visible[idx]) for idx in cluster],
            options.match,
        )
        pairs = _Pairs(query_idx=query_idx, point_idx=point_idx, scores=scores).weighed(
            local_map, weigh
        )
        matches, pixel_sigmas, point_sigmas = pairs.matches(query, local_map)
        if len(matches) < options.integrity.min_inliers:
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
        if (
            result is None
            or not is_sound(result, matches, query.camera, options.integrity)
            or median_view_angle_rad(
                result.cam_from_world.origin_in_a,
                select_matches(matches, result.inlier_mask),
                visible=[visible[idx] for idx in cluster],
                centers=centers[cluster],
            )
            > np.deg2rad(options.integrity.max_view_angle_deg)
        ):
            mask = None if result is None else result.inlier_mask
            rejected = replace(
                LOST, cause=Cause.FEW_INLIERS, matches=matches, inlier_mask=mask
            )
            continue
        sound.append(
            _Sound(
                result=result,
                matches=matches,
                point_sigmas=point_sigmas,
                pixel_sigmas=pixel_sigmas,
                pairs=pairs,
                similarity=similarity,
                local_map=local_map,
                cluster=cluster,
            )
        )
    if not sound:
        return rejected or replace(LOST, cause=Cause.FEW_MATCHES)
    # Only rivals of the best count: two weak poses may well contradict each other.
    best = max(sound, key=lambda found: found.result.num_inliers)
    if any(
        _disagree(best.result, other.result, other.matches, options.integrity)
        for other in sound
    ):
        return replace(
            LOST,
            cause=Cause.AMBIGUOUS,
            matches=best.matches,
            inlier_mask=best.result.inlier_mask,
        )
    fix = _told(best, query.camera, calibration, options.integrity)
    if options.second_look is not None:
        again = _look_again(
            best,
            query,
            visible=[visible[idx] for idx in best.cluster],
            centers=centers[best.cluster],
            options=options,
            weigh=weigh,
        )
        if again is not best:
            told = _told(again, query.camera, calibration, options.integrity)
            return replace(told, first=fix)
    return fix


def _told(
    found: _Sound,
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


def _look_again(
    found: _Sound,
    query: Query,
    *,
    visible: Sequence[IntArray],
    centers: FloatArray,
    options: StructureOptions,
    weigh: Callable[[IntArray], Float32Array] | None,
) -> _Sound:
    """Return a pose from all landmarks that are found where the first pose puts them.

    Things that look alike all over the picture fail the comparison of the first
    matches; beside the right pixel there is one of them. Whether the pose is sound was
    decided before: near a wrong pose, too, something similar can be found.
    """
    assert options.second_look is not None
    viewed = make_viewed_map(
        found.local_map,
        visible=visible,
        centers=centers,
        made_at=found.result.cam_from_world,
    )
    expected = expected_landmarks(
        viewed,
        query.camera,
        cam_from_world=found.result.cam_from_world,
        covariance=found.result.covariance,
        rows_px=(0.0, float(query.camera.height)),
        followed_ids=np.zeros(0, np.int64),
        options=options.second_look,
    )
    inliers = found.pairs.where(found.result.inlier_mask)
    usual = found.similarity[inliers.point_idx, inliers.query_idx]
    least = float(np.quantile(usual, options.second_look_quantile))
    query_idx, point_idx, scores = match_similar(
        expected,
        keypoints=query.features.keypoints,
        similarity=found.similarity,
        options=replace(options.second_look, min_similarity=least),
    )
    beside = _Pairs(query_idx=query_idx, point_idx=point_idx, scores=scores)
    pairs = beside.weighed(found.local_map, weigh).joined(inliers)
    matches, pixel_sigmas, point_sigmas = pairs.matches(query, found.local_map)
    result = estimate_pose(
        matches,
        query.camera,
        options=options.pnp,
        point_sigmas=point_sigmas,
        pixel_sigmas=pixel_sigmas,
        prior=found.result.cam_from_world,
    )
    if result is None or result.num_inliers <= found.result.num_inliers:
        return found
    return replace(
        found,
        result=result,
        matches=matches,
        point_sigmas=point_sigmas,
        pixel_sigmas=pixel_sigmas,
    )


def fix_from_pnp(
    result: PnpResult,
    matches: Matches2D3D,
    camera: CameraModel,
    *,
    rung: Rung,
    calibration: FixCalibration,
    integrity: IntegrityOptions,
    point_sigmas: Float32Array | None = None,
    pixel_sigmas: Float32Array | None = None,
) -> Candidate:
    """Return the LOCALIZED candidate that a sound pose is told as.

    Parameters
    ----------
    result : PnpResult
        The pose.
    matches : Matches2D3D
        What it was computed from.
    camera : CameraModel
        Intrinsics of the frame.
    rung : Rung
        The method.
    calibration : FixCalibration
        Of its covariance.
    integrity : IntegrityOptions
        What counts as a witness of its own.
    point_sigmas, pixel_sigmas : ndarray of shape (M,), float32, or None
        Standard deviations of the two ends of `matches`, m and px.
    """
    return Candidate(
        status=PoseStatus.LOCALIZED,
        rung=rung,
        cause=Cause.NONE,
        cam_from_world=result.cam_from_world,
        covariance=fix_covariance(
            result, matches, camera, calibration=calibration, options=integrity
        ),
        matches=matches,
        inlier_mask=result.inlier_mask,
        reproj_rmse_px=result.reproj_rmse_px,
        point_sigmas=point_sigmas,
        pixel_sigmas=pixel_sigmas,
    )


def localize_by_matches(
    matches: Matches2D3D,
    camera: CameraModel,
    *,
    rung: Rung,
    calibration: FixCalibration,
    pnp: PnpOptions,
    integrity: IntegrityOptions,
    point_sigmas: Float32Array,
    pixel_sigmas: Float32Array,
) -> Candidate:
    """Return the pose that 2D-3D matches from any source agree on.

    Parameters
    ----------
    matches : Matches2D3D
        The matches.
    camera : CameraModel
        Intrinsics of the frame.
    rung : Rung
        The method that found them.
    calibration : FixCalibration
        Of its covariance.
    pnp : PnpOptions
        How the pose is estimated.
    integrity : IntegrityOptions
        When it is sound.
    point_sigmas, pixel_sigmas : ndarray of shape (M,), float32
        Standard deviations of the two ends of `matches`, m and px.

    Returns
    -------
    Candidate
        LOCALIZED, or LOST for FEW_INLIERS.
    """
    result = estimate_pose(
        matches,
        camera,
        options=pnp,
        point_sigmas=point_sigmas,
        pixel_sigmas=pixel_sigmas,
    )
    if result is None or not is_sound(result, matches, camera, integrity):
        mask = None if result is None else result.inlier_mask
        return replace(LOST, cause=Cause.FEW_INLIERS, matches=matches, inlier_mask=mask)
    return fix_from_pnp(
        result,
        matches,
        camera,
        rung=rung,
        calibration=calibration,
        integrity=integrity,
        point_sigmas=point_sigmas,
        pixel_sigmas=pixel_sigmas,
    )


def _disagree(
    a: PnpResult, b: PnpResult, matches: Matches2D3D, options: IntegrityOptions
) -> bool:
    """Return whether two poses differ although both have similar support."""
    few, many = sorted([a.num_inliers, b.num_inliers])
    if few < options.ambiguity_ratio * many:
        return False
    a_from_b = a.cam_from_world @ b.cam_from_world.inverse()
    in_cam = b.cam_from_world.transform(matches.points3D[b.inlier_mask])
    distance = float(np.median(np.linalg.norm(in_cam, axis=1)))
    turned = float(rotation_angle_rad(a_from_b.R)) > np.deg2rad(5.0)
    return turned or float(np.linalg.norm(a_from_b.t)) > 0.1 * distance
