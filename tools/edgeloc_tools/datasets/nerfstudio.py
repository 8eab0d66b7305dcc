"""``transforms.json`` of nerfstudio and instant-ngp.

Poses are ``world_from_cam`` with OpenGL camera axes (x right, y up, z backward).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeloc.errors import ConfigError, DatasetError
from edgeloc.types import CameraModel, Rigid3
from edgeloc_tools.datasets.matrices import rigid_from_matrix
from edgeloc_tools.datasets.recording import (
    DepthMap,
    ImageFile,
    RecordedImage,
    Recording,
)
from edgeloc_tools.datasets.request import (
    IMAGE_SUFFIXES,
    ReadRequest,
    natural_key,
    read_size,
    recording_name,
    size_of,
)
from edgeloc_tools.datasets.textfile import make_camera, read_text, shown

_FILE = "transforms.json"
_HINT = f"--input is the folder with {_FILE}, or the file"
_GL_FROM_CV = Rigid3(R=np.diag([1.0, -1.0, -1.0]), t=np.zeros(3))
_SPLITS = ("train", "val", "test")
_FISHEYE = {"OPENCV_FISHEYE"}
_PERSPECTIVE = {"OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE"}
_DEPTH_METRES_PER_UNIT = 0.001


def read_nerfstudio(request: ReadRequest) -> Recording:
    """Return the frames of a ``transforms.json``.

    Parameters
    ----------
    request : ReadRequest
        `input` is the file or its folder; `images` is the folder that file paths start
        from, by default the file's; `split` chooses ``train_filenames``,
        ``val_filenames`` or ``test_filenames``.

    Notes
    -----
    Intrinsics of a frame go before those of the file. ``k1 k2 p1 p2`` make an OPENCV
    camera, with ``k3`` a FULL_OPENCV one, and ``k1 k2 k3 k4`` of a fisheye an
    OPENCV_FISHEYE one. The scale is not known unless a key ``"metric": true`` says it
    (an extension) or there are depth maps, which are in millimetres.

    Raises
    ------
    ConfigError
        When the split is unknown.
    DatasetError
        When a file is missing or wrong.
    """
    path = request.input / _FILE if request.input.is_dir() else request.input
    data = _load(path)
    root = request.images or path.parent
    frames = _frames(data, path)
    wanted = _split_names(data, path, request.split)

    ids: dict[CameraModel, str] = {}
    images: dict[str, RecordedImage] = {}
    for index, frame in enumerate(frames):
        where = f"{path}: frames[{index}]"
        name = _text(frame, "file_path", where)
        if wanted is not None:
            if _clean(name) not in wanted:
                continue
            wanted[_clean(name)] = True
        image_path = _find_image(root / name, where=where)
        clean = _clean(name)
        if image_path.suffix != Path(clean).suffix:
            clean += image_path.suffix
        if clean in images:
            raise DatasetError(f"{where}.file_path: {shown(name)} is there twice")
        if "transform_matrix" not in frame:
            raise DatasetError(f"{where}.transform_matrix: is missing")
        world_from_gl = rigid_from_matrix(
            frame["transform_matrix"], where=f"{where}.transform_matrix"
        )
        camera = request.single_camera or _camera({**data, **frame}, image_path, where)
        camera_id = ids.setdefault(camera, str(len(ids)))
        camera = request.camera(camera_id, camera) or camera
        images[clean] = RecordedImage(
            name=clean,
            camera_id=camera_id,
            source=ImageFile(image_path, size=size_of(camera)),
            cam_from_world=(world_from_gl @ _GL_FROM_CV).inverse(),
            depth=_depth({**data, **frame}, camera, root=root, where=where),
            mask_path=_beside(frame, "mask_path", root=root, where=where),
        )
    if wanted is not None and not all(wanted.values()):
        missing = next(name for name, found in wanted.items() if not found)
        raise DatasetError(
            f"{path}: {request.split}_filenames names {shown(missing)}, which is not "
            "in frames"
        )
    ordered = [images[name] for name in sorted(images, key=natural_key)]
    metric = data.get("metric", any(image.depth for image in ordered))
    if not isinstance(metric, bool):
        raise DatasetError(f"{path}: metric is {metric!r}, expected true or false")
    return Recording(
        name=recording_name(path.parent),
        images=tuple(ordered),
        cameras={k: request.camera(k, own) or own for own, k in ids.items()},
        metric=metric,
        pose_source=path.name,
    )


def _load(path: Path) -> dict[str, Any]:
    text = read_text(path, hint=_HINT)
    try:
        data = json.loads(text)
    except json.JSONDecodeError as exc:
        raise DatasetError(f"{path}:{exc.lineno}: is not JSON: {exc.msg}") from exc
    except RecursionError as exc:
        raise DatasetError(f"{path}: is nested too deeply") from exc
    if not isinstance(data, dict):
        raise DatasetError(f"{path}: is not a JSON object")
    return data


def _frames(data: Mapping[str, Any], path: Path) -> list[Mapping[str, Any]]:
    frames = data.get("frames")
    if not isinstance(frames, list) or not frames:
        raise DatasetError(f"{path}: frames is missing or empty; it lists the images")
    for index, frame in enumerate(frames):
        if not isinstance(frame, dict):
            raise DatasetError(f"{path}: frames[{index}] is not a JSON object")
    return frames


def _clean(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _split_names(
    data: Mapping[str, Any], path: Path, split: str | None
) -> dict[str, bool] | None:
    """Return the names of a split, each with False for not found yet; None for all."""
    if split is None:
        return None
    if split not in _SPLITS:
        raise ConfigError(
            f"--split {shown(split)} is unknown, expected {', '.join(_SPLITS)}"
        )
    key = f"{split}_filenames"
    names = data.get(key)
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(name, str) for name in names)
    ):
        raise DatasetError(
            f"{path}: {key} is missing, empty or not a list of names; choose no --split"
        )
    return {_clean(name): False for name in names}


def _text(frame: Mapping[str, Any], key: str, where: str) -> str:
    value = frame.get(key)
    if not isinstance(value, str) or not value or "\0" in value:
        raise DatasetError(f"{where}.{key}: is missing or not a name")
    return value


def _number(values: Mapping[str, Any], key: str, where: str) -> float | None:
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DatasetError(f"{where}: {key} {shown(str(value))} is not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise DatasetError(f"{where}: {key} is {number}, expected a finite number")
    return number


def _find_image(path: Path, *, where: str) -> Path:
    """Return an image file; instant-ngp's tools leave out the ending."""
    if path.is_file():
        return path
    for suffix in IMAGE_SUFFIXES:
        for ending in (suffix, suffix.upper()):
            candidate = path.with_name(path.name + ending)
            if candidate.is_file():
                return candidate
    raise DatasetError(
        f"{where}.file_path: image {path} is missing; copy it there, remove the frame, "
        "or give the folder of the images with --images"
    )


def _camera(values: Mapping[str, Any], image_path: Path, where: str) -> CameraModel:
    """Return the camera of the merged keys of the file and a frame."""
    model = values.get("camera_model", "OPENCV")
    if model not in _FISHEYE | _PERSPECTIVE:
        raise DatasetError(
            f"{where}: camera_model {shown(str(model))} is not supported, only "
            f"{', '.join(sorted(_FISHEYE | _PERSPECTIVE))}; undistort the images first"
        )
    is_fisheye = model in _FISHEYE or values.get("is_fisheye") is True
    width, height = _number(values, "w", where), _number(values, "h", where)
    if width is None or height is None:
        width, height = read_size(image_path)
    fx, fy = _focal_px(values, (width, height), where)
    cx, cy = _number(values, "cx", where), _number(values, "cy", where)
    pinhole = (
        fx,
        fy,
        width / 2 if cx is None else cx,
        height / 2 if cy is None else cy,
    )
    size = (int(width), int(height))
    k1, k2, k3, k4, p1, p2 = (
        _number(values, key, where) or 0.0
        for key in ("k1", "k2", "k3", "k4", "p1", "p2")
    )
    if is_fisheye:
        params = (*pinhole, k1, k2, k3, k4)
        return make_camera("OPENCV_FISHEYE", size, params, where=where)
    if k4 != 0:
        raise DatasetError(
            f"{where}: k4 is {k4}; a fourth radial coefficient is not supported; "
            "undistort the images first"
        )
    if k3 != 0:
        full = (*pinhole, k1, k2, p1, p2, k3, 0.0, 0.0, 0.0)
        return make_camera("FULL_OPENCV", size, full, where=where)
    if any((k1, k2, p1, p2)):
        return make_camera("OPENCV", size, (*pinhole, k1, k2, p1, p2), where=where)
    return make_camera("PINHOLE", size, pinhole, where=where)


def _focal_px(
    values: Mapping[str, Any], size: tuple[float, float], where: str
) -> tuple[float, float]:
    """Return (fx, fy) from fl_x, fl_y or the angles of view."""
    focal: list[float | None] = []
    for axis, extent in zip("xy", size, strict=True):
        own = _number(values, f"fl_{axis}", where)
        angle_rad = _number(values, f"camera_angle_{axis}", where)
        if own is None and angle_rad is not None:
            if not 0 < angle_rad < math.pi:
                raise DatasetError(
                    f"{where}: camera_angle_{axis} is {angle_rad}, expected radians "
                    "between 0 and pi"
                )
            own = 0.5 * extent / math.tan(0.5 * angle_rad)
        focal.append(own)
    fx = focal[0] if focal[0] is not None else focal[1]
    if fx is None:
        raise DatasetError(
            f"{where}: neither fl_x nor camera_angle_x is there; add the focal length"
        )
    return fx, fx if focal[1] is None else focal[1]


def _beside(
    frame: Mapping[str, Any], key: str, *, root: Path, where: str
) -> Path | None:
    if frame.get(key) is None:
        return None
    path = root / _text(frame, key, where)
    if not path.is_file():
        raise DatasetError(f"{where}.{key}: {path} is missing; copy it or remove {key}")
    return path


def _depth(
    values: Mapping[str, Any], camera: CameraModel, *, root: Path, where: str
) -> DepthMap | None:
    """Return the depth map, which may be smaller than the image it is registered to."""
    path = _beside(values, "depth_file_path", root=root, where=where)
    if path is None:
        return None
    unit = _number(values, "depth_unit_scale_factor", where)
    return DepthMap(
        path=path,
        metres_per_unit=_DEPTH_METRES_PER_UNIT if unit is None else unit,
        camera=_resized(camera, read_size(path)),
    )


def _resized(camera: CameraModel, size: tuple[int, int]) -> CameraModel:
    """Return the camera of an image scaled to another size."""
    sx, sy = size[0] / camera.width, size[1] / camera.height
    if (sx, sy) == (1.0, 1.0):
        return camera
    fx, fy = camera.focal_px
    cx, cy = camera.principal_point_px
    # Cameras of the file have two focal lengths; the caller's may have one.
    if camera.has_single_focal and sx != sy:
        raise DatasetError(
            f"a {camera.model} camera cannot describe depth maps that are scaled by "
            f"{sx:.4g} and {sy:.4g}; give a camera with two focal lengths"
        )
    first = (fx * sx,) if camera.has_single_focal else (fx * sx, fy * sy)
    return CameraModel(
        model=camera.model,
        width=size[0],
        height=size[1],
        params=(*first, cx * sx, cy * sy, *camera.distortion),
    )
