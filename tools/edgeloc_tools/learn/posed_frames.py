"""Frames with pose and depth, and which of them show the same place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from edgeloc.errors import DatasetError
from edgeloc.geometry.camera import (
    normalized_from_pixels,
    project,
    scaled_camera,
    undistort_image,
)
from edgeloc.types import (
    BoolArray,
    CameraModel,
    Float32Array,
    FloatArray,
    IntArray,
    Rigid3,
)
from edgeloc_tools.datasets.recording import DepthMap, RecordedImage, Recording
from edgeloc_tools.learn.corners import find_corners
from edgeloc_tools.learn.photo_pairs import Photo, ViewOptions
from edgeloc_tools.mapping.depth import depth_in_camera
from edgeloc_tools.progress import Progress, silent, track

_ROOM = 1.25
"""Size of a frame over the size of a view, so that views can move about in it."""
_STEP = 0.015
"""Relative bend of inverse depth from pixel to pixel that counts as an edge."""
_SAME_DEPTH = 0.03
_SAME_DEPTH_COARSE = 0.1
_DEPTH_NOISE_PER_M = 1.5e-3
"""Relative error of measured depth, per metre of it: see `mapping.depth`."""
_SAME_PIXEL_PX = 1.5
_COLUMNS, _ROWS = 24, 18
_MIN_COUNTED = 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PosedFrame:
    """A picture without lens distortion, its depth and its pose.

    Parameters
    ----------
    name : str
        Of the image in its recording.
    photo : Photo
        Pixels (BGR) and corners.
    inverse_depth : ndarray of shape (H, W), float32
        1 / z, nan where it is not known or at an edge of it. Linear in the pixel on a
        plane, so that it can be interpolated.
    camera : CameraModel
        PINHOLE, of the size of the picture.
    cam_from_world : Rigid3
        Pose.
    depth_noise : float
        Relative error of depth per unit of it.
    """

    name: str
    photo: Photo
    inverse_depth: Float32Array
    camera: CameraModel
    cam_from_world: Rigid3
    depth_noise: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PosedFrames:
    """Frames of one recording, and those that see the same.

    Parameters
    ----------
    name : str
        Of the recording.
    frames : tuple of PosedFrame
        At least two.
    pairs : ndarray of shape (P, 2), int64
        Indices of two frames; sorted, at least one row.
    overlaps : ndarray of shape (P,), float64
        Share of what the first frame shows that the second shows too.
    """

    name: str
    frames: tuple[PosedFrame, ...]
    pairs: IntArray
    overlaps: FloatArray

    def draw(self, rng: np.random.Generator) -> tuple[PosedFrame, PosedFrame]:
        """Return two frames that see the same, each first frame equally often."""
        firsts = np.unique(self.pairs[:, 0])
        first = firsts[rng.integers(len(firsts))]
        low, high = np.searchsorted(self.pairs[:, 0], [first, first + 1])
        a, b = self.pairs[rng.integers(low, high)]
        if rng.random() < 0.5:
            a, b = b, a
        return self.frames[a], self.frames[b]


def load_posed_frames(
    recording: Recording,
    *,
    options: ViewOptions | None = None,
    max_frames: int = 400,
    overlap: tuple[float, float] = (0.25, 0.95),
    progress: Progress = silent,
) -> PosedFrames:
    """Read the frames of a recording that have depth and find those that see the same.

    Lens distortion is removed. What a mask covers has no depth.

    Parameters
    ----------
    recording : Recording
        With poses and depth.
    options : ViewOptions, optional
        Size of the views that will be taken; frames are reduced to 1.25 times that.
    max_frames : int
        More are thinned evenly (a frame takes about 1 MB, and the search for pairs
        grows with the square).
    overlap : (float, float)
        Smallest and largest share of the first frame that the second shows.
    progress : callable
        Told about each frame.

    Raises
    ------
    DatasetError
        When no frame has depth, pose and intrinsics, no two of them show the same
        place, or a file cannot be read.
    """
    options = options or ViewOptions()
    usable = [
        image
        for image in recording.images
        if image.depth is not None
        and image.cam_from_world is not None
        and image.camera_id in recording.cameras
    ]
    if not usable:
        raise DatasetError(
            f"{recording.name}: no image has depth, a pose and a camera, which posed "
            "training pairs need; give a recording with depth images"
        )
    chosen = np.unique(
        np.linspace(0, len(usable) - 1, min(len(usable), max_frames)).astype(np.int64)
    )
    noise = _DEPTH_NOISE_PER_M if recording.metric else 0.0
    frames = [
        _load_frame(image, recording.cameras[image.camera_id], options, noise=noise)
        for image in track([usable[idx] for idx in chosen], "posed frames", progress)
    ]
    pairs, shares = covisible_pairs(frames, overlap=overlap, progress=progress)
    if not len(pairs):
        raise DatasetError(
            f"{recording.name}: of its {len(frames)} images with depth no two share "
            f"{overlap[0]:.0%} to {overlap[1]:.0%} of what they show; give more images"
        )
    return PosedFrames(
        name=recording.name, frames=tuple(frames), pairs=pairs, overlaps=shares
    )


def _load_frame(
    image: RecordedImage, camera: CameraModel, options: ViewOptions, *, noise: float
) -> PosedFrame:
    if image.depth is None or image.cam_from_world is None:
        raise DatasetError(f"{image.name}: has no depth or no pose")
    pixels = image.source.read()
    if pixels.shape[:2] != (camera.height, camera.width):
        raise DatasetError(
            f"{image.name}: is {pixels.shape[1]}x{pixels.shape[0]}, but its camera is "
            f"{camera.width}x{camera.height}; give the intrinsics of this size"
        )
    pixels, pinhole = undistort_image(camera, pixels)
    inverse_depth = _inverse_depth(image.depth, pinhole)
    mask = image.read_mask()
    if mask is not None:
        shown, _ = undistort_image(camera, np.where(mask > 0, 255, 0).astype(np.uint8))
        inverse_depth[shown < 255] = np.nan
    fit = max(options.width / camera.width, options.height / camera.height)
    if _ROOM * fit < 1.0:
        width, height = (round(_ROOM * fit * n) for n in (camera.width, camera.height))
        pixels = np.asarray(
            cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8
        )
        small = scaled_camera(
            pinhole,
            width / camera.width,
            height / camera.height,
            width=width,
            height=height,
        )
        centres = _pixel_centres(small) * [camera.width / width, camera.height / height]
        inverse_depth = (
            sample_inverse_depth(inverse_depth, centres)
            .reshape(height, width)
            .astype(np.float32)
        )
        pinhole = small
    grey = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), np.uint8)
    return PosedFrame(
        name=image.name,
        photo=Photo(image=pixels, corners=find_corners(grey)),
        inverse_depth=_without_edges(inverse_depth),
        camera=pinhole,
        cam_from_world=image.cam_from_world,
        depth_noise=noise,
    )


def _inverse_depth(depth_map: DepthMap, camera: CameraModel) -> Float32Array:
    """Return inverse depth of a camera's pixels; narrow holes are filled.

    They come from drawing the pixels of one camera in another.
    """
    inverse = (1.0 / depth_in_camera(depth_map, camera)).astype(np.float32)
    known = np.isfinite(inverse)
    window = (3, 3)
    share = cv2.boxFilter(known.astype(np.float32), -1, window)
    mean = cv2.boxFilter(np.where(known, inverse, np.float32(0.0)), -1, window)
    hole = ~known & (share > 3.5 / 9.0)
    inverse[hole] = mean[hole] / share[hole]
    return inverse


def _without_edges(inverse_depth: Float32Array) -> Float32Array:
    """Return inverse depth with nan where it is not a smooth surface.

    It is linear on a plane however slanted, so that its second difference tells edges.
    Their neighbours go too: there, depth and colour of a sensor do not fit.
    """
    edge = np.zeros(inverse_depth.shape, np.uint8)
    limit = np.float32(_STEP)
    for rows in (inverse_depth, inverse_depth.T):
        bend = np.abs(rows[:-2] + rows[2:] - 2.0 * rows[1:-1])
        sharp = bend > limit * rows[1:-1]
        (edge if rows is inverse_depth else edge.T)[1:-1] |= sharp.view(np.uint8)
    edge = np.asarray(cv2.dilate(edge, np.ones((3, 3), np.uint8)))
    return np.where(edge > 0, np.float32(np.nan), inverse_depth)


def _pixel_centres(camera: CameraModel) -> FloatArray:
    """Return the centres of all pixels, row by row, (H * W, 2)."""
    y, x = np.mgrid[: camera.height, : camera.width]
    return np.stack([x.ravel(), y.ravel()], axis=1) + 0.5


def sample_inverse_depth(inverse_depth: Float32Array, pixels: FloatArray) -> FloatArray:
    """Return inverse depth at pixels, bilinearly, (N,) float64.

    nan outside the outermost pixel centres and where one of the four neighbours is not
    known.

    Parameters
    ----------
    inverse_depth : ndarray of shape (H, W), float32
        nan where unknown.
    pixels : ndarray of shape (N, 2), float64
        Corner convention; may be nan.
    """
    height, width = inverse_depth.shape
    x, y = pixels[:, 0] - 0.5, pixels[:, 1] - 0.5
    inside = (x >= 0.0) & (x <= width - 1) & (y >= 0.0) & (y <= height - 1)
    x, y = np.where(inside, x, 0.0), np.where(inside, y, 0.0)
    # The last centre of a row has a neighbour to the left alone.
    col = np.minimum(x.astype(np.int64), width - 2)
    row = np.minimum(y.astype(np.int64), height - 2)
    px, py = x - col, y - row
    flat = inverse_depth.ravel()
    start = row * width + col
    top = flat[start] * (1.0 - px) + flat[start + 1] * px
    bottom = flat[start + width] * (1.0 - px) + flat[start + width + 1] * px
    return np.where(inside, top * (1.0 - py) + bottom * py, np.nan)


def lift(frame: PosedFrame, pixels: FloatArray) -> FloatArray:
    """Return the points that a frame shows at pixels, in its camera, (N, 3); or nan."""
    inverse = sample_inverse_depth(frame.inverse_depth, pixels)
    points = np.ones((len(pixels), 3))
    points[:, :2] = normalized_from_pixels(frame.camera, pixels)
    points /= inverse[:, None]
    return points


def map_pixels(
    a: PosedFrame, b: PosedFrame, pixels: FloatArray
) -> tuple[FloatArray, BoolArray]:
    """Return where frame B shows what frame A shows at pixels.

    A point is seen in B when B's own depth there agrees to 3 % and the depth's noise,
    and leads back to the pixel of A within 1.5 px; what is hidden in B does neither.

    Parameters
    ----------
    a, b : PosedFrame
        Frames of one world.
    pixels : ndarray of shape (N, 2), float64
        In A, corner convention.

    Returns
    -------
    pixels : ndarray of shape (N, 2), float64
        In B; nan where the depth in A is not known.
    seen : ndarray of shape (N,), bool
        Whether B sees the point.
    """
    b_from_a = b.cam_from_world @ a.cam_from_world.inverse()
    in_b = b_from_a.transform(lift(a, pixels))
    at_b, _ = project(b.camera, in_b)
    met_in_b = lift(b, at_b)
    depth, met = in_b[:, 2], met_in_b[:, 2]
    tolerance = _SAME_DEPTH + (a.depth_noise + b.depth_noise) * np.abs(depth)
    # x_in_a = R.T (x_in_b - t), without making and checking another transform
    back, _ = project(a.camera, (met_in_b - b_from_a.t) @ b_from_a.R)
    with np.errstate(invalid="ignore"):
        seen = np.abs(met - depth) <= tolerance * depth
        seen &= np.sum((back - pixels) ** 2, axis=1) <= _SAME_PIXEL_PX**2
    return at_b, seen


def covisible_pairs(
    frames: Sequence[PosedFrame],
    *,
    overlap: tuple[float, float],
    progress: Progress = silent,
) -> tuple[IntArray, FloatArray]:
    """Return which frames show the same, and how much of the first.

    Measured on a grid of 24 x 18 points; one whose depth in the second frame is not
    known counts neither way.

    Parameters
    ----------
    frames : sequence of PosedFrame
        Of one world.
    overlap : (float, float)
        Smallest and largest share.
    progress : callable
        Told about each frame.

    Returns
    -------
    pairs : ndarray of shape (P, 2), int64
        Ordered pairs of indices, sorted.
    shares : ndarray of shape (P,), float64
        Of the points of the first that the second sees.
    """
    share = (np.mgrid[:_ROWS, :_COLUMNS].reshape(2, -1).T[:, ::-1] + 0.5) / [
        _COLUMNS,
        _ROWS,
    ]
    sizes = np.array([[f.camera.width, f.camera.height] for f in frames], np.float64)
    focals = np.array([f.camera.focal_px for f in frames])
    centres = np.array([f.camera.principal_point_px for f in frames])
    R = np.array([f.cam_from_world.R for f in frames])
    t = np.array([f.cam_from_world.t for f in frames])
    coarse = np.stack(
        [
            sample_inverse_depth(frame.inverse_depth, share * size)
            for frame, size in zip(frames, sizes, strict=True)
        ]
    )
    every = np.arange(len(frames))[:, None]
    pairs, shares = [], []
    for idx, frame in enumerate(track(frames, "covisible frames", progress)):
        known = np.isfinite(coarse[idx])
        if np.count_nonzero(known) < _MIN_COUNTED:
            continue
        world_from_cam = frame.cam_from_world.inverse()
        points = world_from_cam.transform(lift(frame, share[known] * sizes[idx]))
        in_cam = points @ R.transpose(0, 2, 1) + t[:, None]
        depth = in_cam[..., 2]
        in_front = depth > 0
        at = in_cam[..., :2] / np.where(in_front, depth, 1.0)[..., None]
        at = (at * focals[:, None] + centres[:, None]) / sizes[:, None]
        inside = in_front & np.all((at >= 0) & (at < 1), axis=2)
        cell = np.where(inside[..., None], at * [_COLUMNS, _ROWS], 0).astype(np.int64)
        met = coarse[every, cell[..., 1] * _COLUMNS + cell[..., 0]]
        counted = ~inside | np.isfinite(met)
        same = inside & (np.abs(met * depth - 1.0) < _SAME_DEPTH_COARSE)
        num_counted = np.count_nonzero(counted, axis=1)
        part = np.count_nonzero(same, axis=1) / np.maximum(num_counted, 1)
        good = (part >= overlap[0]) & (part <= overlap[1])
        good &= num_counted >= _MIN_COUNTED
        good[idx] = False
        others = np.flatnonzero(good)
        pairs.append(np.stack([np.full(len(others), idx), others], axis=1))
        shares.append(part[others])
    if not pairs:
        return np.zeros((0, 2), np.int64), np.zeros(0)
    return np.concatenate(pairs), np.concatenate(shares)
