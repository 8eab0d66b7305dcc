"""Recordings in the kapture format [1]_, versions 1.0 and 1.1.

References
----------
.. [1] https://github.com/naver/kapture/blob/main/kapture_format.adoc
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeloc.errors import DatasetError
from edgeloc.types import CameraModel, Rigid3
from edgeloc_tools.datasets.recording import (
    DepthMap,
    GnssFix,
    ImageFile,
    RecordedImage,
    Recording,
)
from edgeloc_tools.datasets.request import (
    ReadRequest,
    natural_key,
    recording_name,
    require_image,
    size_of,
)
from edgeloc_tools.datasets.textfile import Row, read_rows, read_text, shown

_VERSIONS = ("1.0", "1.1")
_HEADER = re.compile(r"#\s*kapture format\s*:\s*(\S+)")
_UNKNOWN_CAMERA = "UNKNOWN_CAMERA"
_MAX_RIG_DEPTH = 10
_GNSS_SIGMA_PER_DOP_M = 5.0
"""Horizontal error of a receiver per unit of its dilution of precision."""
_HINT = "--input is the folder that has sensors/sensors.txt"
_POSE_LAYOUT = "qw, qx, qy, qz, tx, ty, tz"

_Key = tuple[int, str]
"""(timestamp, device id)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sensors:
    """sensors.txt: intrinsics by id (None when unknown), and the ids of receivers."""

    cameras: Mapping[str, CameraModel | None]
    depth: Mapping[str, CameraModel | None]
    gnss: frozenset[str]


def read_kapture(request: ReadRequest) -> Recording:
    """Return the camera records of a kapture folder.

    Poses of rigs are composed with those of their sensors, also of nested rigs. A depth
    or GNSS record belongs to an image of the same timestamp; a depth record only when
    the pose between the two sensors is known from the rig or the trajectory.

    Parameters
    ----------
    request : ReadRequest
        `input` is the folder that has ``sensors/``; `images` is by default
        ``sensors/records_data``.

    Notes
    -----
    A timestamp is any whole number in kapture. It becomes a time only when it counts
    milliseconds, microseconds or nanoseconds since 1970 by its size; the order is kept
    in any case. The unit of the world is not stored either; it is taken as the metre
    when there are depth maps, which are in metres.

    Raises
    ------
    DatasetError
        When a file is missing or wrong.
    """
    folder = request.input
    if not (folder / "sensors").is_dir() and (folder / "sensors.txt").is_file():
        folder = folder.parent
    sensors_folder = folder / "sensors"
    data = sensors_folder / "records_data"
    sensors = _read_sensors(sensors_folder / "sensors.txt")
    poses = _Poses(sensors_folder)
    depth = _read_depth(sensors_folder / "records_depth.txt", sensors, data)
    gnss = _read_gnss(sensors_folder / "records_gnss.txt", sensors)

    images: dict[tuple[int, str, tuple[tuple[int, str], ...]], RecordedImage] = {}
    names: set[str] = set()
    records_path = sensors_folder / "records_camera.txt"
    for row in _rows(records_path, layout="timestamp, device_id, image_path", count=3):
        timestamp, camera_id, name = _timestamp(row), row.fields[1], row.fields[2]
        if camera_id not in sensors.cameras:
            raise row.error(
                f"device_id {shown(camera_id)} is not a camera in sensors.txt"
            )
        if name in names:
            raise row.error(f"image_path {shown(name)} is there twice; remove a line")
        names.add(name)
        camera = request.camera(camera_id, sensors.cameras[camera_id])
        path = (request.images or data) / name
        images[timestamp, camera_id, natural_key(name)] = RecordedImage(
            name=name,
            camera_id=camera_id,
            source=ImageFile(
                require_image(path, where=f"{row.path}:{row.line}"),
                size=size_of(camera),
            ),
            timestamp_ns=_as_ns(timestamp),
            cam_from_world=poses.sensor_from_world(timestamp, camera_id),
            depth=_depth_at(timestamp, camera_id, depth=depth, poses=poses),
            gnss=gnss.get(timestamp),
        )
    if not images:
        raise DatasetError(f"{records_path}: lists no images")
    used = {image.camera_id for image in images.values()}
    cameras = {k: request.camera(k, sensors.cameras[k]) for k in sorted(used)}
    return Recording(
        name=recording_name(folder),
        images=tuple(images[key] for key in sorted(images)),
        cameras={k: camera for k, camera in cameras.items() if camera is not None},
        metric=bool(depth),
        pose_source="kapture trajectories.txt" if poses else "",
    )


def _rows(path: Path, *, layout: str, count: int) -> Iterator[Row]:
    for row in read_rows(path, hint=_HINT, separator=","):
        row.need(count, layout)
        yield row


def _timestamp(row: Row) -> int:
    return row.integer(0, "timestamp")


def _as_ns(timestamp: int) -> int | None:
    """Return the time of a timestamp since 1970 in ms, us or ns, by its digits."""
    digits = len(str(timestamp))
    scale = {13: 10**6, 16: 10**3, 19: 1}.get(digits)
    return None if scale is None else timestamp * scale


def _read_sensors(path: Path) -> _Sensors:
    first = (read_text(path, hint=_HINT).splitlines() or [""])[0]
    version = _HEADER.match(first.strip())
    if version is None:
        raise DatasetError(
            f"{path}:1: is {shown(first)}, expected '# kapture format: 1.1'"
        )
    if version.group(1) not in _VERSIONS:
        raise DatasetError(
            f"{path}:1: kapture format {version.group(1)} is not supported, only "
            f"{' and '.join(_VERSIONS)}; convert it with kapture's own tools"
        )
    cameras: dict[str, CameraModel | None] = {}
    depth: dict[str, CameraModel | None] = {}
    gnss = set()
    seen: set[str] = set()
    layout = "sensor_id, name, sensor_type, [sensor_params]+"
    for row in _rows(path, layout=layout, count=3):
        sensor_id, kind = row.fields[0], row.fields[2]
        if sensor_id in seen:
            raise row.error(f"sensor_id {shown(sensor_id)} is there twice")
        seen.add(sensor_id)
        if kind in {"camera", "depth"}:
            row.need(6, f"sensor_id, name, {kind}, model, width, height, params")
            known = row.fields[3] != _UNKNOWN_CAMERA
            camera = row.camera(3) if known else None
            # Older files declare depth sensors as cameras: the records tell.
            depth[sensor_id] = camera
            if kind == "camera":
                cameras[sensor_id] = camera
        elif kind == "gnss":
            system = row.fields[3] if len(row.fields) > 3 else ""
            if system.upper() in {"", "EPSG:4326"}:
                gnss.add(sensor_id)
    return _Sensors(cameras=cameras, depth=depth, gnss=frozenset(gnss))


class _Poses:
    """trajectories.txt and rigs.txt; truthy when any pose is known."""

    def __init__(self, folder: Path) -> None:
        self._device_from_world = _read_trajectories(folder / "trajectories.txt")
        self._parents: dict[str, list[tuple[str, Rigid3]]] = {}
        path = folder / "rigs.txt"
        if not path.is_file():
            return
        layout = f"rig_id, sensor_id, {_POSE_LAYOUT}"
        for row in _rows(path, layout=layout, count=9):
            rig_id, sensor_id = row.fields[:2]
            parents = self._parents.setdefault(sensor_id, [])
            if rig_id == sensor_id or rig_id in {parent for parent, _ in parents}:
                raise row.error(
                    f"sensor_id {shown(sensor_id)} is there twice in rig "
                    f"{shown(rig_id)}, or is that rig"
                )
            parents.append((rig_id, row.pose(2)))

    def __bool__(self) -> bool:
        return bool(self._device_from_world)

    def sensor_from_world(
        self, timestamp: int, device_id: str, *, depth: int = 0
    ) -> Rigid3 | None:
        """Return the pose of a device, its own or through the rigs it is on."""
        own = self._device_from_world.get((timestamp, device_id))
        if own is not None or depth > _MAX_RIG_DEPTH:
            return own
        for rig_id, sensor_from_rig in self._parents.get(device_id, ()):
            rig_from_world = self.sensor_from_world(timestamp, rig_id, depth=depth + 1)
            if rig_from_world is not None:
                return sensor_from_rig @ rig_from_world
        return None

    def a_from_b(self, timestamp: int, a_id: str, b_id: str) -> Rigid3 | None:
        """Return the transform between two devices, through a rig or the world."""
        if a_id == b_id:
            return Rigid3.identity()
        a_parents = dict(self._parents.get(a_id, ()))
        for rig_id, b_from_rig in self._parents.get(b_id, ()):
            if rig_id in a_parents:
                return a_parents[rig_id] @ b_from_rig.inverse()
        a_from_world = self.sensor_from_world(timestamp, a_id)
        b_from_world = self.sensor_from_world(timestamp, b_id)
        if a_from_world is None or b_from_world is None:
            return None
        return a_from_world @ b_from_world.inverse()


def _read_trajectories(path: Path) -> dict[_Key, Rigid3]:
    poses: dict[_Key, Rigid3] = {}
    if not path.is_file():
        return poses
    layout = f"timestamp, device_id, {_POSE_LAYOUT}"
    for row in _rows(path, layout=layout, count=9):
        key = (_timestamp(row), row.fields[1])
        if key in poses:
            raise row.error(f"device {shown(key[1])} has two poses at {key[0]}")
        # kapture leaves the fields of an unknown rotation or translation empty.
        if all(row.fields[2:6]) and all(row.fields[6:9]):
            poses[key] = row.pose(2)
        elif any(row.fields[2:6]) != all(row.fields[2:6]) or (
            any(row.fields[6:9]) != all(row.fields[6:9])
        ):
            raise row.error(f"has empty fields, expected '{layout}'")
    return poses


def _read_depth(
    path: Path, sensors: _Sensors, data: Path
) -> dict[int, list[tuple[str, Path, CameraModel]]]:
    records: dict[int, list[tuple[str, Path, CameraModel]]] = {}
    if not path.is_file():
        return records
    layout = "timestamp, device_id, depth_map_path"
    for row in _rows(path, layout=layout, count=3):
        device_id = row.fields[1]
        if device_id not in sensors.depth:
            raise row.error(
                f"device_id {shown(device_id)} is not a depth sensor in sensors.txt"
            )
        camera = sensors.depth[device_id]
        if camera is None:
            raise row.error(
                f"the intrinsics of depth sensor {shown(device_id)} are not in "
                "sensors.txt; add them or remove records_depth.txt"
            )
        depth_path = require_image(data / row.fields[2], where=f"{row.path}:{row.line}")
        records.setdefault(_timestamp(row), []).append((device_id, depth_path, camera))
    return records


def _depth_at(
    timestamp: int,
    camera_id: str,
    *,
    depth: Mapping[int, list[tuple[str, Path, CameraModel]]],
    poses: _Poses,
) -> DepthMap | None:
    """Return the depth map whose sensor is nearest to the camera."""
    found = []
    for device_id, path, camera in depth.get(timestamp, ()):
        cam_from_depth = poses.a_from_b(timestamp, camera_id, device_id)
        if cam_from_depth is not None:
            baseline = float(cam_from_depth.t @ cam_from_depth.t)
            found.append((baseline, path, camera, cam_from_depth))
    if not found:
        return None
    _, path, camera, cam_from_depth = min(found, key=lambda item: item[0])
    return DepthMap(
        path=path,
        # .depth files are in metres; depth images follow the usual millimetres.
        metres_per_unit=1.0 if path.suffix == ".depth" else 0.001,
        camera=camera,
        cam_from_depth=cam_from_depth,
    )


def _read_gnss(path: Path, sensors: _Sensors) -> dict[int, GnssFix]:
    fixes: dict[int, GnssFix] = {}
    if not path.is_file():
        return fixes
    layout = "timestamp, device_id, x, y, z, utc, dop"
    for row in _rows(path, layout=layout, count=7):
        if row.fields[1] not in sensors.gnss:
            continue
        longitude, latitude, altitude = row.numbers(2, ("x", "y", "z"))
        if not (abs(latitude) <= 90 and abs(longitude) <= 180):
            raise row.error(
                f"x={longitude} y={latitude} is not longitude and latitude in degrees"
            )
        dop = row.number(6, "dop")
        sigma = _GNSS_SIGMA_PER_DOP_M * (dop if dop > 0 else 1.0)
        fixes[_timestamp(row)] = GnssFix(
            latitude_deg=latitude,
            longitude_deg=longitude,
            altitude_m=altitude,
            horizontal_sigma_m=sigma,
            vertical_sigma_m=2.0 * sigma,
        )
    return fixes
