"""What a pose must show before it is called LOCALIZED."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeloc.geometry.pnp import PnpResult
from edgeloc.geometry.se3 import rotation_angle_rad
from edgeloc.types import BoolArray, CameraModel, FloatArray, IntArray, Matches2D3D


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
    compact_spread : float
        Inliers that are spread less may be on one thing, which may have moved: a
        pedestrian ahead of both walks, say;
    min_regions : int
        they must cover so many cells of
    region_px : float
        this size, as a share of the image's longer side. Wrong poses of moving things
        covered up to 13, with up to 44 inliers; right ones that lie together cover 14.
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
    compact_spread: float = 0.06
    min_regions: int = 14
    region_px: float = 1 / 32
    max_sigma_ratio: float = 0.05
    ambiguity_ratio: float = 0.7
    max_view_angle_deg: float = 75.0


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


def witnesses(
    result: PnpResult,
    matches: Matches2D3D,
    camera: CameraModel,
    cell: float,
) -> int:
    """Return how many witnesses a pose has, see `count_witnesses`.

    Parameters
    ----------
    result : PnpResult
        The pose and its inliers.
    matches : Matches2D3D
        What it was computed from.
    camera : CameraModel
        Intrinsics.
    cell : float
        Size of a cell, as a share of the image's longer side.
    """
    mask = result.inlier_mask
    return count_witnesses(
        matches.points2D[mask],
        matches.point3D_ids[mask],
        cell_px=cell * max(camera.width, camera.height),
    )


def relative_spread(points2D: FloatArray, camera: CameraModel) -> float:
    """Return the smaller standard deviation of some points in a picture.

    Of their two principal axes, as a share of the picture's longer side.

    Parameters
    ----------
    points2D : ndarray of shape (M, 2), float64
        M >= 2 positions, px.
    camera : CameraModel
        The size of the picture.
    """
    smallest = float(np.linalg.eigvalsh(np.cov(points2D.T))[0])
    return float(np.sqrt(max(smallest, 0.0))) / max(camera.width, camera.height)


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
    wanted = max(options.min_inliers, options.min_inlier_ratio * len(matches))
    if witnesses(result, matches, camera, options.cell_px) < wanted:
        return False
    spread = relative_spread(matches.points2D[mask], camera)
    if spread < options.min_spread:
        return False
    if spread < options.compact_spread:
        regions = witnesses(result, matches, camera, options.region_px)
        if regions < options.min_regions:
            return False
    in_cam = result.cam_from_world.transform(matches.points3D[mask])
    distance = float(np.median(np.linalg.norm(in_cam, axis=1)))
    sigma = float(np.sqrt(np.trace(result.covariance[3:, 3:])))
    return sigma <= options.max_sigma_ratio * distance


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


def disagree(
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
