"""COLMAP models as bytes: cameras.bin, images.bin and, from 3.12 on, rigs and frames.

Little-endian without padding. Read as if an enemy had written them: each length is
checked against the bytes that are left before anything is made of it.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

from edgeloc.errors import DatasetError
from edgeloc.types import CAMERA_MODEL_NUM_PARAMS, CameraModel, Rigid3
from edgeloc_tools.datasets.colmap_model import ColmapFrame, ColmapImage, ColmapModel
from edgeloc_tools.datasets.textfile import make_camera, make_pose

_MODEL_NAMES = (
    "SIMPLE_PINHOLE",
    "PINHOLE",
    "SIMPLE_RADIAL",
    "RADIAL",
    "OPENCV",
    "OPENCV_FISHEYE",
    "FULL_OPENCV",
    "FOV",
    "SIMPLE_RADIAL_FISHEYE",
    "RADIAL_FISHEYE",
    "THIN_PRISM_FISHEYE",
    "RAD_TAN_THIN_PRISM_FISHEYE",
    "SIMPLE_DIVISION",
    "DIVISION",
    "SIMPLE_FISHEYE",
    "FISHEYE",
    "EUCM",
    "EQUIRECTANGULAR",
)
"""By COLMAP's model id (COLMAP 4)."""
_SENSOR_TYPE_CAMERA = 0
_POINT2D_BYTES = 24
_MAX_NAME_BYTES = 4096


class _Cursor:
    """Takes values off the bytes of one file; `DatasetError` when they run out."""

    def __init__(self, path: Path) -> None:
        try:
            self._data = path.read_bytes()
        except OSError as exc:
            raise DatasetError(
                f"{path}: cannot be read ({exc.strerror}); copy the whole model"
            ) from exc
        self.path = path
        self.offset = 0

    @property
    def where(self) -> str:
        return f"{self.path}: byte {self.offset}"

    def error(self, message: str) -> DatasetError:
        return DatasetError(f"{self.where}: {message}")

    def _need(self, count: int, name: str) -> None:
        left = len(self._data) - self.offset
        if count > left:
            raise self.error(
                f"the file ends inside {name} ({left} of {count} bytes are left); "
                "copy the model again"
            )

    def take(self, layout: str, name: str) -> tuple[int, ...]:
        """Return integers of a struct layout (without byte order)."""
        size = struct.calcsize(f"<{layout}")
        self._need(size, name)
        values = struct.unpack_from(f"<{layout}", self._data, self.offset)
        self.offset += size
        return values

    def integer(self, layout: str, name: str) -> int:
        return self.take(layout, name)[0]

    def floats(self, count: int, name: str) -> tuple[float, ...]:
        self._need(8 * count, name)
        values = struct.unpack_from(f"<{count}d", self._data, self.offset)
        if not all(math.isfinite(value) for value in values):
            raise self.error(f"{name} is not finite: {values}")
        self.offset += 8 * count
        return values

    def pose(self, name: str) -> Rigid3:
        where = f"{self.where}: {name}"
        values = self.floats(7, name)
        return make_pose(values[:4], values[4:], where=where)

    def count(self, name: str, *, item_bytes: int) -> int:
        """Return a u64 count, checked against the smallest size of an item."""
        count = self.integer("Q", name)
        if count * item_bytes > len(self._data) - self.offset:
            raise self.error(
                f"{name} {count} does not fit in the "
                f"{len(self._data) - self.offset} bytes that are left; "
                "copy the model again"
            )
        return count

    def text(self, name: str) -> str:
        limit = min(len(self._data), self.offset + _MAX_NAME_BYTES)
        end = self._data.find(b"\0", self.offset, limit)
        if end < 0:
            raise self.error(f"{name} does not end; copy the model again")
        raw = self._data[self.offset : end]
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise self.error(f"{name} is not UTF-8 text") from exc
        if not text:
            raise self.error(f"{name} is empty")
        self.offset = end + 1
        return text

    def skip(self, count: int, name: str) -> None:
        self._need(count, name)
        self.offset += count

    def finish(self) -> None:
        if self.offset != len(self._data):
            raise self.error(
                f"{len(self._data) - self.offset} bytes follow the last entry; "
                "is this file from another version of COLMAP?"
            )


def read_binary_model(folder: Path) -> ColmapModel:
    """Return the model in a folder; `DatasetError` when it is wrong or partial."""
    rigs_path, frames_path = folder / "rigs.bin", folder / "frames.bin"
    has_frames = rigs_path.is_file() and frames_path.is_file()
    return ColmapModel(
        cameras_path=folder / "cameras.bin",
        images_path=folder / "images.bin",
        cameras=_read_cameras(_Cursor(folder / "cameras.bin")),
        images=_read_images(_Cursor(folder / "images.bin")),
        rigs=_read_rigs(_Cursor(rigs_path)) if has_frames else {},
        frames=_read_frames(_Cursor(frames_path)) if has_frames else (),
    )


def _read_cameras(cursor: _Cursor) -> dict[int, CameraModel]:
    cameras: dict[int, CameraModel] = {}
    for _ in range(cursor.count("number of cameras", item_bytes=24)):
        where = cursor.where
        camera_id, model_id, width, height = cursor.take("IiQQ", "camera")
        if camera_id in cameras:
            raise DatasetError(f"{where}: camera {camera_id} is there twice")
        known = 0 <= model_id < len(_MODEL_NAMES)
        model = _MODEL_NAMES[model_id] if known else f"number {model_id}"
        # Parameters of an unsupported model are not read: make_camera refuses it.
        count = CAMERA_MODEL_NUM_PARAMS.get(model, 0)
        params = cursor.floats(count, f"parameters of camera {camera_id}")
        cameras[camera_id] = make_camera(
            model, (width, height), params, where=f"{where}: camera {camera_id}"
        )
    cursor.finish()
    return cameras


def _read_images(cursor: _Cursor) -> dict[int, ColmapImage]:
    images: dict[int, ColmapImage] = {}
    for _ in range(cursor.count("number of images", item_bytes=4 + 56 + 4 + 2 + 8)):
        where = cursor.where
        image_id = cursor.integer("I", "image id")
        if image_id in images:
            raise DatasetError(f"{where}: image {image_id} is there twice")
        pose = cursor.pose(f"pose of image {image_id}")
        camera_id = cursor.integer("I", f"camera id of image {image_id}")
        images[image_id] = ColmapImage(
            name=cursor.text(f"name of image {image_id}"),
            camera_id=camera_id,
            cam_from_world=pose,
            where=where,
        )
        num_points2D = cursor.count("number of points2D", item_bytes=_POINT2D_BYTES)
        cursor.skip(num_points2D * _POINT2D_BYTES, f"points2D of image {image_id}")
    cursor.finish()
    return images


def _read_rigs(cursor: _Cursor) -> dict[int, dict[int, Rigid3 | None]]:
    rigs: dict[int, dict[int, Rigid3 | None]] = {}
    for _ in range(cursor.count("number of rigs", item_bytes=8)):
        where = cursor.where
        rig_id, num_sensors = cursor.take("II", "rig")
        if rig_id in rigs:
            raise DatasetError(f"{where}: rig {rig_id} is there twice")
        sensors: dict[int, Rigid3 | None] = {}
        # The first sensor is the reference: it has no pose, since it is the rig.
        for index in range(num_sensors):
            sensor_type, sensor_id = cursor.take("iI", f"sensor of rig {rig_id}")
            pose: Rigid3 | None = Rigid3.identity()
            if index > 0:
                has_pose = cursor.integer("B", f"sensor of rig {rig_id}") != 0
                name = f"pose of sensor {sensor_id} in rig {rig_id}"
                pose = cursor.pose(name) if has_pose else None
            if sensor_type == _SENSOR_TYPE_CAMERA:
                sensors[sensor_id] = pose
        rigs[rig_id] = sensors
    cursor.finish()
    return rigs


def _read_frames(cursor: _Cursor) -> list[ColmapFrame]:
    frames = []
    for _ in range(cursor.count("number of frames", item_bytes=8 + 56 + 4)):
        where = cursor.where
        frame_id, rig_id = cursor.take("II", "frame")
        pose = cursor.pose(f"pose of frame {frame_id}")
        num_data = cursor.integer("I", f"number of images of frame {frame_id}")
        data = []
        for _ in range(num_data):
            sensor_type, sensor_id, data_id = cursor.take(
                "iIQ", f"images of frame {frame_id}"
            )
            if sensor_type == _SENSOR_TYPE_CAMERA:
                data.append((sensor_id, data_id))
        frames.append(
            ColmapFrame(
                frame_id=frame_id,
                rig_id=rig_id,
                rig_from_world=pose,
                camera_data=data,
                where=where,
            )
        )
    cursor.finish()
    return frames
