"""Views of a site's mapping images, and where what they show lies in the world."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import cv2
import numpy as np
from scipy.spatial import cKDTree

from edgeloc.errors import ConfigError
from edgeloc.features.extract import extract_features, to_grey
from edgeloc.features.family import FeatureFamily
from edgeloc.geometry.camera import normalized_from_pixels, project
from edgeloc.geometry.se3 import exp_so3
from edgeloc.tiles.layout import LocalMap, Tile
from edgeloc.tiles.reader import Site, assemble_local_map
from edgeloc.types import (
    ByteArray,
    CameraModel,
    Features,
    Float32Array,
    FloatArray,
    IntArray,
    Rigid3,
)
from edgeloc_tools.datasets.recording import RecordedImage, Recording
from edgeloc_tools.learn.photometric import change_picture
from edgeloc_tools.mapping.depth import depth_at_keypoints, depth_in_camera
from edgeloc_tools.mapping.work import Arrays, WorkFolder
from edgeloc_tools.progress import Progress, silent

SUPERVISIONS = ("auto", "depth", "landmarks", "poses")

_SAME_PX = 2.0
_SAME_POSE_RAD = 2e-3
_BORDER_PX = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteViewOptions:
    """How views of mapping images are drawn.

    Parameters
    ----------
    count : int
        Views of each image beside the image itself.
    turn_deg, roll_deg : float
        Standard deviation of the turn about the two axes across the line of sight, and
        about it.
    max_log_zoom : float
        Natural logarithm of the largest magnification and reduction.
    strength : float
        Of changes of light, blur and noise, 0 to 1.
    """

    count: int = 4
    turn_deg: float = 10.0
    roll_deg: float = 14.0
    max_log_zoom: float = 0.35
    strength: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SiteView:
    """One view, and what of the world it shows.

    Parameters
    ----------
    image_idx, number : int
        Of which posed image of the recording; 0 = the image itself.
    keypoints : ndarray of shape (N, 2), float32
        Px of the image itself, wherever they are in the view.
    sigmas : ndarray of shape (N,), float32
        Of the keypoints.
    descriptors : ndarray of shape (N, D), float32
        As a query has them.
    points3D : ndarray of shape (N, 3), float64
        Where they lie in the world, m; nan where that is not known.
    landmark_ids : ndarray of shape (N,), int64
        Landmarks of the site; -1 for others.
    """

    image_idx: int
    number: int
    keypoints: Float32Array
    sigmas: Float32Array
    descriptors: Float32Array
    points3D: FloatArray
    landmark_ids: IntArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SiteViews:
    """All views.

    Parameters
    ----------
    images : tuple of RecordedImage
        Posed images.
    cameras : mapping of str to CameraModel
        Theirs.
    views : tuple of SiteView
        Image by image.
    """

    images: tuple[RecordedImage, ...]
    cameras: Mapping[str, CameraModel]
    views: tuple[SiteView, ...]

    @property
    def has_places(self) -> bool:
        """Whether it is known of any keypoint where it lies."""
        return any(np.isfinite(view.points3D).any() for view in self.views)

    def pose(self, view: SiteView) -> Rigid3:
        """Return the pose of the image of a view."""
        pose = self.images[view.image_idx].cam_from_world
        assert pose is not None
        return pose

    def camera(self, view: SiteView) -> CameraModel:
        """Return the intrinsics of the image of a view."""
        return self.cameras[self.images[view.image_idx].camera_id]


def draw_views(
    recording: Recording,
    site: Site,
    family: FeatureFamily,
    *,
    options: SiteViewOptions,
    supervision: str = "auto",
    seed: int = 0,
    work: WorkFolder | None = None,
    progress: Progress = silent,
) -> SiteViews:
    """Describe mapping images and views of them.

    A view is a homography of the image: what a camera that turns and zooms on the spot
    would see. Positions come from measured depth, else from the landmarks that the
    image sees; both where there are both (a landmark is more accurate).

    Parameters
    ----------
    recording : Recording
        The mapping recording of the site, in its world.
    site : Site
        Opened site.
    family : FeatureFamily
        Its features.
    options : SiteViewOptions
        How views are drawn.
    supervision : {"auto", "depth", "landmarks", "poses"}
        What is used of what is known; "poses" is no position at all.
    seed : int
        Of what is drawn.
    work : WorkFolder, optional
        Keeps what is done, image by image.
    progress : callable
        Told about each image.

    Raises
    ------
    ConfigError
        When the recording is of another world than the site.
    """
    work = work or WorkFolder(None)
    images = tuple(recording.posed().images)
    landmarks = SeenLandmarks(site)
    views: list[SiteView] = []
    num_known = 0
    for idx, image in enumerate(images):
        camera = recording.cameras[image.camera_id]
        assert image.cam_from_world is not None
        seen = landmarks.seen_from(image.cam_from_world)
        num_known += seen is not None

        def make(
            image: RecordedImage = image, camera: CameraModel = camera, idx: int = idx
        ) -> Arrays:
            return _describe_views(
                image,
                camera,
                family,
                max_keypoints=site.manifest.family.max_keypoints,
                max_side_px=site.manifest.family.max_side_px,
                options=options,
                rng=np.random.default_rng([seed, idx]),
            )

        key = {
            "step": "site views",
            "map": site.manifest.map_id,
            "recording": recording.name,
            "image": image.name,
            "options": asdict(options),
            "seed": [seed, idx],
        }
        arrays = work.cached(key, make)
        views += _labelled(idx, arrays, image, camera, seen, supervision, family)
        progress("views", idx + 1, len(images))
    if supervision in {"auto", "landmarks"} and num_known == 0:
        raise ConfigError(
            f"{recording.name}: no image has the pose of a keyframe of {site.path}; "
            "give the recording that the site was built from"
        )
    return SiteViews(images=images, cameras=recording.cameras, views=tuple(views))


class SeenLandmarks:
    """The landmarks that mapping images see, found by their poses.

    Parameters
    ----------
    site : Site
        Opened site.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self._tiles: dict[int, Tile] = {
            i: site.read_tile(i) for i in range(len(site.tiles))
        }
        centers = site.keyframes.centers
        self._tree = cKDTree(centers)
        self._near = 4e-3 * float(np.linalg.norm(np.ptp(centers, axis=0))) + 2e-3

    def seen_from(self, pose: Rigid3) -> LocalMap | None:
        """Return what the keyframe of that pose sees; None without such a keyframe."""
        keyframes = self.site.keyframes
        _, idx = self._tree.query(pose.origin_in_a, distance_upper_bound=self._near)
        if idx >= len(keyframes):
            return None
        [R] = keyframes.rotations_of(np.array([idx]))
        if np.linalg.norm(R - pose.R) > 2 * _SAME_POSE_RAD:
            return None
        return assemble_local_map(self._tiles, self.site, keyframes.keyframe_ids[[idx]])


def _homographies(
    camera: CameraModel, options: SiteViewOptions, rng: np.random.Generator
) -> Iterator[FloatArray]:
    """Yield (3, 3) maps of pixels, corner convention; the first one changes nothing."""
    yield np.eye(3)
    fx, fy = camera.focal_px
    K = np.array([[fx, 0, camera.width / 2], [0, fy, camera.height / 2], [0, 0, 1.0]])
    sigmas = np.deg2rad([options.turn_deg, options.turn_deg, options.roll_deg])
    for _ in range(options.count):
        zoom = math.exp(rng.uniform(-1, 1) * options.max_log_zoom)
        turn = exp_so3(np.clip(rng.standard_normal(3), -2.0, 2.0) * sigmas)
        yield K @ np.diag([zoom, zoom, 1.0]) @ turn @ np.linalg.inv(K)


def _warp(grey: ByteArray, homography: FloatArray) -> ByteArray:
    height, width = grey.shape
    centre = np.array([[1.0, 0, -0.5], [0, 1.0, -0.5], [0, 0, 1.0]])
    warped = cv2.warpPerspective(
        grey,
        centre @ homography @ np.linalg.inv(centre),
        (width, height),
        borderMode=cv2.BORDER_REFLECT,
    )
    return np.asarray(warped, np.uint8)


def _describe_views(
    image: RecordedImage,
    camera: CameraModel,
    family: FeatureFamily,
    *,
    max_keypoints: int,
    max_side_px: int,
    options: SiteViewOptions,
    rng: np.random.Generator,
) -> Arrays:
    """Return features of all views of an image, and depth at them."""
    pixels = image.source.read()
    mask = image.read_mask()
    depth = None if image.depth is None else depth_in_camera(image.depth, camera)
    found: dict[str, list[np.ndarray[tuple[int, ...], np.dtype[np.generic]]]] = {
        name: [] for name in ("number", "keypoints", "sigmas", "stored", "depth")
    }
    for number, homography in enumerate(_homographies(camera, options, rng)):
        view, shown = pixels, mask
        if number:
            grey = change_picture(
                _warp(to_grey(pixels), homography).astype(np.float32) / 255.0,
                rng,
                strength=options.strength,
            )
            view = np.rint(grey * 255.0).astype(np.uint8)
            shown = None if mask is None else _warp(mask, homography)
        features = extract_features(
            view,
            family,
            max_keypoints=max_keypoints,
            max_side_px=max_side_px,
            mask=shown,
        )
        features = _in_image(features, homography, camera)
        found["number"].append(np.full(len(features), number))
        found["keypoints"].append(features.keypoints)
        found["sigmas"].append(features.sigmas)
        found["stored"].append(features.descriptors)
        found["depth"].append(
            np.full(len(features), np.nan)
            if depth is None
            else depth_at_keypoints(depth, features.keypoints)[0]
        )
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _in_image(
    features: Features, homography: FloatArray, camera: CameraModel
) -> Features:
    """Return the features of a view at their places in the image."""
    ones = np.ones((len(features), 1))
    back = np.hstack([features.keypoints, ones]) @ np.linalg.inv(homography).T
    at = back[:, :2] / back[:, 2:]
    limit = np.array([camera.width, camera.height]) - _BORDER_PX
    inside = np.all((at > _BORDER_PX) & (at < limit), axis=1)
    return Features(
        keypoints=at[inside].astype(np.float32),
        scores=features.scores[inside],
        sigmas=features.sigmas[inside],
        descriptors=features.descriptors[inside],
    )


def near_landmarks(
    keypoints: Float32Array, camera: CameraModel, pose: Rigid3, seen: LocalMap
) -> tuple[FloatArray, IntArray]:
    """Return which landmarks keypoints of an image are, by where they should be.

    Parameters
    ----------
    keypoints : ndarray of shape (N, 2), float32
        px.
    camera : CameraModel
        Of the image.
    pose : Rigid3
        Its ``cam_from_world``.
    seen : LocalMap
        Landmarks that it sees.

    Returns
    -------
    points3D : ndarray of shape (N, 3), float64
        Positions of the landmarks, m; nan without one.
    landmark_ids : ndarray of shape (N,), int64
        -1 without one.
    """
    points3D = np.full((len(keypoints), 3), np.nan)
    ids = np.full(len(keypoints), -1, np.int64)
    pixels, in_front = project(camera, pose.transform(seen.points3D))
    usable = np.flatnonzero(in_front & np.all(np.isfinite(pixels), axis=1))
    if len(usable):
        distance, nearest = map(np.asarray, cKDTree(pixels[usable]).query(keypoints))
        near = distance < _SAME_PX
        found = usable[nearest[near]]
        points3D[near] = seen.points3D[found]
        ids[near] = seen.point3D_ids[found]
    return points3D, ids


def _labelled(  # noqa: PLR0917 - one call, of what there is of an image
    image_idx: int,
    arrays: Arrays,
    image: RecordedImage,
    camera: CameraModel,
    seen: LocalMap | None,
    supervision: str,
    family: FeatureFamily,
) -> Iterator[SiteView]:
    pose = image.cam_from_world
    assert pose is not None
    keypoints = arrays["keypoints"].astype(np.float32)
    points3D = np.full((len(keypoints), 3), np.nan)
    ids = np.full(len(keypoints), -1, np.int64)
    if supervision in {"auto", "depth"}:
        plane = normalized_from_pixels(camera, keypoints.astype(np.float64))
        rays = np.hstack([plane, np.ones((len(plane), 1))])
        in_cam = rays * arrays["depth"].astype(np.float64)[:, None]
        points3D = (in_cam - pose.t) @ pose.R
    if supervision in {"auto", "landmarks"} and seen is not None:
        places, ids = near_landmarks(keypoints, camera, pose, seen)
        points3D = np.where((ids >= 0)[:, None], places, points3D)
    descriptors = family.decode(arrays["stored"])
    for number in np.unique(arrays["number"]).tolist():
        rows = arrays["number"] == number
        yield SiteView(
            image_idx=image_idx,
            number=int(number),
            keypoints=keypoints[rows],
            sigmas=arrays["sigmas"][rows].astype(np.float32),
            descriptors=descriptors[rows],
            points3D=points3D[rows],
            landmark_ids=ids[rows],
        )
