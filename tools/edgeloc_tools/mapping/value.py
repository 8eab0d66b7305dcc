"""What a landmark is worth: how likely, and how precisely, it is found again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeloc.geometry.camera import project
from edgeloc.types import BoolArray, CameraModel, FloatArray, IntArray
from edgeloc_tools.mapping.landmarks import LandmarkMap
from edgeloc_tools.mapping.tracks import MappingImage

_MIN_SCALE, _MAX_SCALE = 0.8, 1.25
"""Distances, of those it was seen from, at which a landmark should be found again."""
_MIN_VIEW_DEG = 10.0
"""It should be so from directions within its own cone of views, or this wide."""
_PRIOR_SEEN, _PRIOR_VIEWS = 0.5, 2.0
_PRIOR_TRIALS = 2.0
"""Held-out frames that an estimate from the mapping images counts for."""
_PRECISION_PX = 1.5
"""A landmark with this error in a picture counts half."""
_TYPICAL_OBSERVATIONS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trials:
    """How often landmarks took part in poses of held-out frames.

    Parameters
    ----------
    track_idx : ndarray of shape (T,), int64
        Tracks, ascending; a landmark is known by its track.
    in_view : ndarray of shape (T,), int64
        Localized held-out frames that should have seen it.
    found : ndarray of shape (T,), int64
        Those to whose pose it was an inlier.
    """

    track_idx: IntArray
    in_view: IntArray
    found: IntArray

    def of(self, track_idx: IntArray) -> tuple[IntArray, IntArray]:
        """Return `in_view` and `found` of tracks, zero for those never tried."""
        if not len(self.track_idx):
            zeros = np.zeros(len(track_idx), np.int64)
            return zeros, zeros
        at = np.minimum(
            np.searchsorted(self.track_idx, track_idx), len(self.track_idx) - 1
        )
        known = self.track_idx[at] == track_idx
        return self.in_view[at] * known, self.found[at] * known


def join_trials(parts: Sequence[Trials]) -> Trials:
    """Return the sum of several trials."""
    tracks = np.concatenate([np.zeros(0, np.int64), *(p.track_idx for p in parts)])
    unique, inverse = np.unique(tracks, return_inverse=True)

    def total(name: str) -> IntArray:
        values = [np.zeros(0, np.int64), *(getattr(p, name) for p in parts)]
        sums = np.bincount(inverse, np.concatenate(values), minlength=len(unique))
        return sums.astype(np.int64)

    return Trials(track_idx=unique, in_view=total("in_view"), found=total("found"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ViewCones:
    """From where each landmark was seen.

    Parameters
    ----------
    direction : ndarray of shape (P, 3), float64
        Mean unit direction from the landmark to its cameras.
    min_cosine : ndarray of shape (P,), float64
        Of the widest observation to it, at most that of `_MIN_VIEW_DEG`.
    nearest, farthest : ndarray of shape (P,), float64
        Distances of its cameras, m.
    """

    direction: FloatArray
    min_cosine: FloatArray
    nearest: FloatArray
    farthest: FloatArray


def view_cones(
    points3D: FloatArray, centers: FloatArray, landmark_idx: IntArray
) -> ViewCones:
    """Return from where landmarks were seen.

    Parameters
    ----------
    points3D : ndarray of shape (P, 3), float64
        Landmarks, m.
    centers : ndarray of shape (V, 3), float64
        Camera centre of each observation, m.
    landmark_idx : ndarray of shape (V,), int64
        Landmark of each observation.
    """
    num = len(points3D)
    rays = centers - points3D[landmark_idx]
    distances = np.maximum(np.linalg.norm(rays, axis=1), 1e-12)
    rays = rays / distances[:, None]
    direction = np.stack(
        [np.bincount(landmark_idx, rays[:, k], minlength=num) for k in range(3)], axis=1
    )
    lengths = np.linalg.norm(direction, axis=1, keepdims=True)
    direction = direction / np.maximum(lengths, 1e-12)
    nearest, farthest = np.full(num, np.inf), np.zeros(num)
    np.minimum.at(nearest, landmark_idx, distances)
    np.maximum.at(farthest, landmark_idx, distances)
    cosine = np.full(num, np.cos(np.deg2rad(_MIN_VIEW_DEG)))
    np.minimum.at(cosine, landmark_idx, np.sum(rays * direction[landmark_idx], axis=1))
    return ViewCones(
        direction=direction, min_cosine=cosine, nearest=nearest, farthest=farthest
    )


def should_see(
    image: MappingImage, points3D: FloatArray, cones: ViewCones, idx: IntArray
) -> IntArray:
    """Return which of some landmarks an image should show.

    In its frame, and from a direction and a distance like those of their observations.

    Parameters
    ----------
    image : MappingImage
        Posed image.
    points3D : ndarray of shape (P, 3), float64
        All landmarks, m.
    cones : ViewCones
        Theirs.
    idx : ndarray of shape (n,), int64
        Landmarks in question.

    Returns
    -------
    ndarray of int64
        Those of `idx`, in their order.
    """
    pixels, in_front = project(
        image.camera, image.cam_from_world.transform(points3D[idx])
    )
    inside = in_front & _inside(pixels, image.camera)
    rays = image.cam_from_world.origin_in_a - points3D[idx]
    distances = np.maximum(np.linalg.norm(rays, axis=1), 1e-12)
    cosine = np.sum(rays * cones.direction[idx], axis=1) / distances
    inside &= cosine >= cones.min_cosine[idx]
    inside &= distances >= _MIN_SCALE * cones.nearest[idx]
    inside &= distances <= _MAX_SCALE * cones.farthest[idx]
    return np.asarray(idx[inside])


def _inside(pixels: FloatArray, camera: CameraModel) -> BoolArray:
    limits = np.array([camera.width, camera.height])
    return np.asarray(np.all((pixels >= 0) & (pixels < limits), axis=1))


def repeatability(
    images: Sequence[MappingImage], landmark_map: LandmarkMap
) -> FloatArray:
    """Return in which share of the images that should show it a landmark was measured.

    Parameters
    ----------
    images : sequence of MappingImage
        All mapping images.
    landmark_map : LandmarkMap
        Their landmarks.

    Returns
    -------
    ndarray of shape (P,), float64
        Drawn towards 1/4 where there are few such images.
    """
    points3D = landmark_map.landmarks.points3D
    num = len(points3D)
    centers = np.stack([i.cam_from_world.origin_in_a for i in images])
    observed = landmark_map.observed
    cones = view_cones(points3D, centers[observed.image_idx], observed.landmark_idx)
    seen = np.bincount(observed.landmark_idx, minlength=num)
    could = np.zeros(num, np.int64)
    for candidates, image in zip(_neighbourhoods(landmark_map), images, strict=True):
        could[should_see(image, points3D, cones, candidates)] += 1
    return np.asarray(
        (seen + _PRIOR_SEEN) / (np.maximum(could, seen) + _PRIOR_VIEWS), np.float64
    )


def _neighbourhoods(landmark_map: LandmarkMap) -> list[IntArray]:
    """Return, for each image, the landmarks of all images that share one with it."""
    from scipy.sparse import csr_matrix

    observed = landmark_map.observed
    num_images, num = len(landmark_map.visible), len(landmark_map.landmarks)
    ones = np.ones(len(observed.image_idx), np.float32)
    sees = csr_matrix(
        (ones, (observed.image_idx, observed.landmark_idx)), shape=(num_images, num)
    )
    covisible = (sees @ sees.T).tocsr()
    found = []
    for image in range(num_images):
        neighbours = covisible.indices[
            covisible.indptr[image] : covisible.indptr[image + 1]
        ]
        seen = np.zeros(num, bool)
        for neighbour in neighbours:
            seen[landmark_map.visible[neighbour]] = True
        found.append(np.flatnonzero(seen))
    return found


def landmark_values(
    images: Sequence[MappingImage],
    landmark_map: LandmarkMap,
    *,
    coherence: FloatArray,
    trials: Trials | None = None,
) -> FloatArray:
    """Return what landmarks are worth, about 1 for a good one.

    The product of how often a landmark is found where it should be seen (in the mapping
    images, corrected by held-out frames), how alike its descriptors are, how long its
    track is, and how precise it is in a picture.

    Parameters
    ----------
    images : sequence of MappingImage
        All mapping images.
    landmark_map : LandmarkMap
        Their landmarks.
    coherence : ndarray of shape (P,), float64
        Length of the mean of a landmark's L2-normalised descriptors, 1 when all agree.
    trials : Trials, optional
        Of held-out frames.

    Returns
    -------
    ndarray of shape (P,), float64
    """
    landmarks = landmark_map.landmarks
    expected = repeatability(images, landmark_map)
    if trials is not None:
        in_view, found = trials.of(landmark_map.track_idx)
        expected = (found + _PRIOR_TRIALS * expected) / (in_view + _PRIOR_TRIALS)
    error_px = landmarks.sigmas / footprints(images, landmark_map)
    value = (
        expected
        * coherence**2
        * np.sqrt(landmarks.num_observations / _TYPICAL_OBSERVATIONS)
        / (1.0 + (error_px / _PRECISION_PX) ** 2)
    )
    top = float(np.quantile(value, 0.9)) if len(value) else 1.0
    return np.asarray(np.minimum(value / max(top, 1e-12), 1.5))


def footprints(images: Sequence[MappingImage], landmark_map: LandmarkMap) -> FloatArray:
    """Return the size of a pixel at each landmark, in its nearest view, (P,), m."""
    observed = landmark_map.observed
    centers = np.stack([i.cam_from_world.origin_in_a for i in images])
    focal = np.array([image.camera.params[0] for image in images])
    points3D = landmark_map.landmarks.points3D
    distances = np.linalg.norm(
        centers[observed.image_idx] - points3D[observed.landmark_idx], axis=1
    )
    size = np.full(len(points3D), np.inf)
    np.minimum.at(size, observed.landmark_idx, distances / focal[observed.image_idx])
    return np.asarray(np.maximum(size, 1e-12))
