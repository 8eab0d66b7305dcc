"""The one in-memory form of a recording that every reader makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from edgeloc.errors import DatasetError
from edgeloc.types import ByteArray, CameraModel, FloatArray, Rigid3


class ImageSource(Protocol):
    """Where the pixels of an image come from."""

    def read(self) -> ByteArray:
        """Return the image, (H, W, 3) uint8 BGR; `DatasetError` when unreadable."""


def _check_size(
    path: Path, shape: tuple[int, ...], size: tuple[int, int] | None
) -> None:
    """Raise `DatasetError` when an image does not have the size of its camera."""
    if size is not None and (shape[1], shape[0]) != size:
        raise DatasetError(
            f"{path}: is {shape[1]}x{shape[0]}, but its camera is "
            f"{size[0]}x{size[1]}; give the intrinsics of this size"
        )


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file.

    Parameters
    ----------
    path : Path
        PNG, JPEG or whatever OpenCV reads.
    size : (int, int) or None
        Width and height that the intrinsics are for, checked when the file is read.
    """

    path: Path
    size: tuple[int, int] | None = None

    def read(self) -> ByteArray:
        """Decode the file, in the pixel order of the file (EXIF is not applied).

        Intrinsics are given for the stored pixels, as COLMAP reads them.
        """
        image = cv2.imread(
            str(self.path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        )
        if image is None:
            state = "is not a readable image" if self.path.is_file() else "is missing"
            raise DatasetError(f"{self.path}: {state}")
        _check_size(self.path, image.shape, self.size)
        return np.asarray(image, dtype=np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthMap:
    """A depth image and the camera that took it.

    Parameters
    ----------
    path : Path
        16-bit PNG, 0 or 65535 where unknown; or, with the ending ``.depth``, float32
        values without a header (kapture), 0 where unknown.
    metres_per_unit : float
        Scale.
    camera : CameraModel
        Intrinsics of the depth image (the colour camera's when registered to it).
    cam_from_depth : Rigid3
        Pose of the depth camera in the colour camera; identity when registered.
    """

    path: Path
    metres_per_unit: float
    camera: CameraModel
    cam_from_depth: Rigid3 = field(default_factory=Rigid3.identity)

    def read(self) -> FloatArray:
        """Return depth along z of the depth camera, (H, W) float64, m, 0 = unknown."""
        if self.path.suffix == ".depth":
            return self._read_float32()
        raw = cv2.imread(str(self.path), cv2.IMREAD_UNCHANGED)
        if raw is None and not self.path.is_file():
            raise DatasetError(f"{self.path}: is missing")
        if raw is None or raw.ndim != 2 or raw.dtype != np.uint16:
            raise DatasetError(
                f"{self.path}: is not a readable one-channel 16-bit depth image"
            )
        _check_size(self.path, raw.shape, (self.camera.width, self.camera.height))
        depth = raw.astype(np.float64) * self.metres_per_unit
        depth[raw == np.iinfo(np.uint16).max] = 0.0
        return np.asarray(depth)

    def _read_float32(self) -> FloatArray:
        try:
            data = self.path.read_bytes()
        except OSError as exc:
            raise DatasetError(f"{self.path}: cannot be read ({exc.strerror})") from exc
        width, height = self.camera.width, self.camera.height
        if len(data) != 4 * width * height:
            raise DatasetError(
                f"{self.path}: has {len(data)} bytes, expected {4 * width * height} "
                f"for {width}x{height} float32 values"
            )
        depth = np.frombuffer(data, "<f4").reshape(height, width).astype(np.float64)
        depth *= self.metres_per_unit
        depth[~(np.isfinite(depth) & (depth > 0))] = 0.0
        return np.asarray(depth)


@dataclass(frozen=True, slots=True, kw_only=True)
class GnssFix:
    """A GNSS position (WGS84).

    Parameters
    ----------
    latitude_deg, longitude_deg, altitude_m : float
        Position.
    horizontal_sigma_m, vertical_sigma_m : float
        One standard deviation.
    """

    latitude_deg: float
    longitude_deg: float
    altitude_m: float
    horizontal_sigma_m: float = 5.0
    vertical_sigma_m: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedImage:
    """One image of a recording.

    Parameters
    ----------
    name : str
        Unique in the recording, with forward slashes.
    camera_id : str
        Key of `Recording.cameras`.
    source : ImageSource
        Its pixels.
    timestamp_ns : int or None
        Capture time, arbitrary origin.
    cam_from_world : Rigid3 or None
        Ground-truth or mapping pose.
    depth : DepthMap or None
        Depth.
    mask_path : Path or None
        Image of the same size, 0 where features are unwanted.
    gnss : GnssFix or None
        Position from a receiver.
    """

    name: str
    camera_id: str
    source: ImageSource
    timestamp_ns: int | None = None
    cam_from_world: Rigid3 | None = None
    depth: DepthMap | None = None
    mask_path: Path | None = None
    gnss: GnssFix | None = None

    def read_mask(self) -> ByteArray | None:
        """Return the mask, (H, W) uint8, or None when there is none."""
        if self.mask_path is None:
            return None
        mask = cv2.imread(
            str(self.mask_path), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
        )
        if mask is None:
            raise DatasetError(f"{self.mask_path}: is not a readable mask")
        return np.asarray(mask, dtype=np.uint8)

    def mask_key(self) -> list[object]:
        """Return what changes when the mask does, for what is kept on disk."""
        path = self.mask_path
        if path is None or not path.is_file():
            return [str(path)]
        status = path.stat()
        return [str(path), status.st_size, status.st_mtime_ns]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Images with cameras and, where known, poses, depth, masks and GNSS.

    Parameters
    ----------
    name : str
        For reports.
    images : sequence of RecordedImage
        In time order where times are known, else by name.
    cameras : mapping of str to CameraModel
        By camera id. Empty values are not allowed; a camera whose intrinsics are not
        known is simply absent (plain photos), which `edgeloc-build sfm` can solve.
    metric : bool
        Whether the world's unit is the metre.
    gravity_in_world : tuple of 3 float or None
        Unit vector that points down, when known.
    geo_reference : mapping of str to float or None
        WGS84 latitude_deg, longitude_deg, altitude_m of the world's origin, when the
        world is east, north, up.
    pose_source : str
        What the poses come from, for reports ("SfM pseudo ground truth", ...).
    """

    name: str
    images: Sequence[RecordedImage]
    cameras: Mapping[str, CameraModel]
    metric: bool = True
    gravity_in_world: tuple[float, float, float] | None = None
    geo_reference: Mapping[str, float] | None = None
    pose_source: str = ""

    def __post_init__(self) -> None:
        if not self.images:
            raise DatasetError(f"{self.name}: the recording has no images")
        names = {image.name for image in self.images}
        if len(names) != len(self.images):
            raise DatasetError(f"{self.name}: image names are not unique")

    def subset(self, images: Sequence[RecordedImage]) -> Recording:
        """Return the same recording with only `images`."""
        return replace(self, images=tuple(images))

    def posed(self) -> Recording:
        """Return only the images that have a pose and a camera.

        Raises
        ------
        DatasetError
            When there are none.
        """
        images = [
            image
            for image in self.images
            if image.cam_from_world is not None and image.camera_id in self.cameras
        ]
        if not images:
            raise DatasetError(
                f"{self.name}: no image has both a pose and a camera; "
                "make poses with `edgeloc-build sfm`"
            )
        return self.subset(images)


def source_bytes(recording: Recording, *, depth: bool) -> int:
    """Return the bytes of the image files of a recording.

    Parameters
    ----------
    recording : Recording
        Images that are no files of their own, such as frames of a video, count nothing.
    depth : bool
        Whether depth maps count, too.
    """
    sources: list[object] = [image.source for image in recording.images]
    if depth:
        sources += [image.depth for image in recording.images]
    paths = {getattr(source, "path", None) for source in sources}
    return sum(p.stat().st_size for p in paths if isinstance(p, Path) and p.is_file())
