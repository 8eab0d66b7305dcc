"""Query lists of hloc and visuallocalization.net, with ground truth when there is any.

``queries.txt`` has lines ``NAME MODEL WIDTH HEIGHT PARAMS...``; ``queries_gt.txt``
beside it has lines ``NAME QW QX QY QZ TX TY TZ``, cam_from_world.
"""

from __future__ import annotations

from pathlib import Path

from edgeloc.errors import DatasetError
from edgeloc.types import CameraModel, Rigid3
from edgeloc_tools.datasets.recording import ImageFile, RecordedImage, Recording
from edgeloc_tools.datasets.request import (
    ReadRequest,
    recording_name,
    require_folder,
    require_image,
    size_of,
)
from edgeloc_tools.datasets.textfile import Row, read_rows, shown

_LIST = "queries.txt"


def read_hloc(request: ReadRequest) -> Recording:
    """Return the images of a query list.

    Parameters
    ----------
    request : ReadRequest
        `input` is the list or a folder with ``queries.txt``; `poses` is a list of
        ground-truth poses, by default ``NAME_gt.txt`` beside the list ``NAME.txt``;
        `images` is by default ``images/`` beside the list, else the list's folder.

    Raises
    ------
    DatasetError
        When a file is missing or wrong.
    """
    list_path = request.input / _LIST if request.input.is_dir() else request.input
    rows = _read_list(list_path)
    root = _image_folder(request, list_path)
    poses_path = request.poses
    if poses_path is None:
        beside = list_path.with_name(f"{list_path.stem}_gt.txt")
        poses_path = beside if beside.is_file() else None
    poses = {} if poses_path is None else read_pose_list(poses_path)

    ids: dict[CameraModel, str] = {}
    images = []
    for row in rows:
        name = row.fields[0]
        own = row.camera(1)
        camera_id = ids.setdefault(own, str(len(ids)))
        path = require_image(root / name, where=f"{row.path}:{row.line}")
        images.append(
            RecordedImage(
                name=name,
                camera_id=camera_id,
                source=ImageFile(path, size=size_of(request.camera(camera_id, own))),
                cam_from_world=poses.get(name),
            )
        )
    if poses_path is not None and not any(i.cam_from_world for i in images):
        raise DatasetError(
            f"{poses_path}: no pose is for an image of {list_path}; "
            "the names must agree"
        )
    cameras = {camera_id: own for own, camera_id in ids.items()}
    return Recording(
        name=recording_name(list_path.parent),
        images=tuple(images),
        cameras={k: request.camera(k, own) or own for k, own in cameras.items()},
        metric=False,
        pose_source="" if poses_path is None else f"pose list {poses_path.name}",
    )


def read_pose_list(path: Path) -> dict[str, Rigid3]:
    """Return cam_from_world by name of lines ``NAME QW QX QY QZ TX TY TZ``."""
    poses: dict[str, Rigid3] = {}
    for row in read_rows(path, hint="give the list of poses with --poses"):
        row.need(8, "NAME QW QX QY QZ TX TY TZ")
        name = row.fields[0]
        if name in poses:
            raise row.error(f"name {shown(name)} is there twice; remove one line")
        poses[name] = row.pose(1)
    return poses


def _read_list(path: Path) -> list[Row]:
    rows: dict[str, Row] = {}
    hint = f"--input is a folder with {_LIST}, or the list itself"
    for row in read_rows(path, hint=hint):
        row.need(5, "NAME MODEL WIDTH HEIGHT PARAMS[]")
        name = row.fields[0]
        if name in rows:
            raise row.error(f"name {shown(name)} is there twice; remove one line")
        rows[name] = row
    if not rows:
        raise DatasetError(f"{path}: lists no images")
    return list(rows.values())


def _image_folder(request: ReadRequest, list_path: Path) -> Path:
    if request.images is not None:
        require_folder(request.images, hint="--images is the folder of the images")
        return request.images
    beside = list_path.parent / "images"
    return beside if beside.is_dir() else list_path.parent
