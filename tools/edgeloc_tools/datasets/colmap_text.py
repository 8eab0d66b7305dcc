"""COLMAP models as text: cameras.txt, images.txt and, from 3.12 on, rigs and frames."""

from __future__ import annotations

import re
from pathlib import Path

from edgeloc.errors import DatasetError
from edgeloc.types import CameraModel, Rigid3
from edgeloc_tools.datasets.colmap_model import ColmapFrame, ColmapImage, ColmapModel
from edgeloc_tools.datasets.textfile import Row, read_rows, read_text

_IMAGE_LAYOUT = "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME"
_FRAME_LAYOUT = "FRAME_ID RIG_ID QW QX QY QZ TX TY TZ NUM_DATA_IDS DATA_IDS[]"
_HINT = "export the whole model, for example with `colmap model_converter`"
_CAMERA = "CAMERA"
_POINT3D_ID = re.compile(r"-1|\d+")


def read_text_model(folder: Path) -> ColmapModel:
    """Return the model in a folder; `DatasetError` when it is wrong or partial."""
    rigs_path, frames_path = folder / "rigs.txt", folder / "frames.txt"
    has_frames = rigs_path.is_file() and frames_path.is_file()
    return ColmapModel(
        cameras_path=folder / "cameras.txt",
        images_path=folder / "images.txt",
        cameras=_read_cameras(folder / "cameras.txt"),
        images=_read_images(folder / "images.txt"),
        rigs=_read_rigs(rigs_path) if has_frames else {},
        frames=_read_frames(frames_path) if has_frames else (),
    )


def _read_cameras(path: Path) -> dict[int, CameraModel]:
    cameras: dict[int, CameraModel] = {}
    for row in read_rows(path, hint=_HINT):
        row.need(5, "CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]")
        camera_id = row.integer(0, "CAMERA_ID")
        if camera_id in cameras:
            raise row.error(f"CAMERA_ID {camera_id} is there twice")
        try:
            cameras[camera_id] = row.camera(1)
        except DatasetError as exc:
            # The message begins with file and line; the camera's id goes after it.
            place = f"{path}:{row.line}: "
            detail = str(exc).removeprefix(place)
            raise DatasetError(f"{place}camera {camera_id}: {detail}") from exc
    return cameras


def _read_images(path: Path) -> dict[int, ColmapImage]:
    images: dict[int, ColmapImage] = {}
    lines = iter(enumerate(read_text(path, hint=_HINT).splitlines(), start=1))
    for number, text in lines:
        stripped = text.strip()
        if not stripped or stripped.startswith("#"):
            continue
        # A name may contain spaces, therefore it is split off last.
        row = Row(path=path, line=number, fields=tuple(stripped.split(maxsplit=9)))
        row.need(10, _IMAGE_LAYOUT)
        image_id = row.integer(0, "IMAGE_ID")
        if image_id in images:
            raise row.error(f"IMAGE_ID {image_id} is there twice")
        images[image_id] = ColmapImage(
            name=row.fields[9],
            camera_id=row.integer(8, "CAMERA_ID"),
            cam_from_world=row.pose(1),
            where=f"{path}:{number}",
        )
        _check_points_line(path, next(lines, (number + 1, "")))
    return images


def _check_points_line(path: Path, numbered: tuple[int, str]) -> None:
    """Check that the line after an image's is its POINTS2D line, often an empty one.

    Files from which the empty lines were removed would lose every second image.
    """
    number, text = numbered
    fields = text.split()
    ids = fields[2:12:3]  # a few are enough to tell points from poses
    if len(fields) % 3 == 0 and all(_POINT3D_ID.fullmatch(field) for field in ids):
        return
    raise DatasetError(
        f"{path}:{number}: has {len(fields)} fields, expected the POINTS2D line of the "
        "image above (X Y POINT3D_ID, or an empty line); keep two lines for each image"
    )


def _read_rigs(path: Path) -> dict[int, dict[int, Rigid3 | None]]:
    rigs: dict[int, dict[int, Rigid3 | None]] = {}
    for row in read_rows(path, hint=_HINT):
        row.need(2, "RIG_ID NUM_SENSORS REF_SENSOR_TYPE REF_SENSOR_ID SENSORS[]")
        rig_id, count = row.integer(0, "RIG_ID"), row.integer(1, "NUM_SENSORS")
        if rig_id in rigs:
            raise row.error(f"RIG_ID {rig_id} is there twice")
        sensors: dict[int, Rigid3 | None] = {}
        at = 2
        for index in range(count):
            row.need(at + 2, "... SENSOR_TYPE SENSOR_ID HAS_POSE [QW ... TZ]")
            is_camera = row.fields[at] == _CAMERA
            sensor_id = row.integer(at + 1, "SENSOR_ID")
            at += 2
            pose: Rigid3 | None = Rigid3.identity()
            if index > 0:
                row.need(at + 1, "... SENSOR_TYPE SENSOR_ID HAS_POSE [QW ... TZ]")
                has_pose = row.integer(at, "HAS_POSE") != 0
                at += 1
                pose = None
                if has_pose:
                    row.need(at + 7, "... HAS_POSE QW QX QY QZ TX TY TZ")
                    pose = row.pose(at)
                    at += 7
            if is_camera:
                sensors[sensor_id] = pose
        rigs[rig_id] = sensors
    return rigs


def _read_frames(path: Path) -> list[ColmapFrame]:
    frames = []
    for row in read_rows(path, hint=_HINT):
        row.need(10, _FRAME_LAYOUT)
        count = row.integer(9, "NUM_DATA_IDS")
        row.need(10 + 3 * count, _FRAME_LAYOUT)
        data = [
            (row.integer(at + 1, "SENSOR_ID"), row.integer(at + 2, "DATA_ID"))
            for at in range(10, 10 + 3 * count, 3)
            if row.fields[at] == _CAMERA
        ]
        frames.append(
            ColmapFrame(
                frame_id=row.integer(0, "FRAME_ID"),
                rig_id=row.integer(1, "RIG_ID"),
                rig_from_world=row.pose(2),
                camera_data=data,
                where=f"{path}:{row.line}",
            )
        )
    return frames
