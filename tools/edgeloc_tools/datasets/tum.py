"""TUM RGB-D [1]_: ``rgb.txt``, ``depth.txt`` and a motion-capture ``groundtruth.txt``.

References
----------
.. [1] Sturm et al., "A Benchmark for the Evaluation of RGB-D SLAM Systems", IROS 2012.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeloc.errors import DatasetError
from edgeloc.geometry.se3 import exp_so3, log_so3
from edgeloc.types import CameraModel, Rigid3
from edgeloc_tools.datasets.recording import (
    DepthMap,
    ImageFile,
    RecordedImage,
    Recording,
)
from edgeloc_tools.datasets.request import (
    ReadRequest,
    read_size,
    recording_name,
    require_image,
)
from edgeloc_tools.datasets.textfile import (
    make_camera,
    make_pose,
    read_rows,
    shown,
)

MAX_POSE_GAP_NS = 50_000_000
"""Between the two ground-truth samples around an image; motion capture runs at 100 Hz,
and a longer gap means that it lost the markers."""
MAX_DEPTH_OFFSET_NS = 20_000_000
"""Between a depth image and its colour image, as in the benchmark's associate.py."""
_METRES_PER_UNIT = 1 / 5000

_HINT = "--input is the folder with rgb.txt and groundtruth.txt"
_INTRINSICS = "intrinsics.txt"
_PARAM_NAMES = ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3")
_PUBLISHED: dict[str, tuple[float, ...]] = {
    "1": (517.3, 516.5, 318.6, 255.3, 0.2624, -0.9531, -0.0054, 0.0026, 1.1633),
    "2": (520.9, 521.0, 325.1, 249.7, 0.2312, -0.7849, -0.0033, -0.0001, 0.9172),
    "3": (535.4, 539.2, 320.1, 247.6, 0.0, 0.0, 0.0, 0.0, 0.0),
}
"""The benchmark's colour calibrations by Kinect, OpenCV convention."""
_CAMERA_ID = "rgb"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """Timed poses.

    Parameters
    ----------
    timestamps_ns : sequence of int
        Increasing.
    world_from_cam : sequence of Rigid3
        One for each.
    """

    timestamps_ns: Sequence[int]
    world_from_cam: Sequence[Rigid3]

    def at(self, timestamp_ns: int) -> Rigid3 | None:
        """Return the interpolated ``world_from_cam``; None outside and in gaps.

        The rotation turns uniformly about one axis (slerp), the centre moves uniformly.
        """
        after = bisect_left(self.timestamps_ns, timestamp_ns)
        if after == len(self.timestamps_ns):
            return None
        b_ns, b = self.timestamps_ns[after], self.world_from_cam[after]
        if b_ns == timestamp_ns:
            return b
        if after == 0:
            return None
        a_ns, a = self.timestamps_ns[after - 1], self.world_from_cam[after - 1]
        if b_ns - a_ns > MAX_POSE_GAP_NS:
            return None
        part = (timestamp_ns - a_ns) / (b_ns - a_ns)
        return Rigid3(
            R=a.R @ exp_so3(part * log_so3(a.R.T @ b.R)), t=a.t + part * (b.t - a.t)
        )


def read_tum(request: ReadRequest) -> Recording:
    """Return the colour images of a sequence, with interpolated poses and depth.

    Parameters
    ----------
    request : ReadRequest
        `input` is the folder of the sequence. Intrinsics are, in this order, the
        option `cameras`, ``intrinsics.txt`` (fx fy cx cy k1 k2 p1 p2 k3, OpenCV
        convention) and the published ones for a folder name with freiburg1, fr2, ...

    Notes
    -----
    Images outside the ground truth or in a gap of it have no pose. Without
    ``groundtruth.txt`` none has; without ``depth.txt`` there is no depth. Depth is
    registered to colour.

    Raises
    ------
    DatasetError
        When a file is missing or wrong.
    """
    root = request.input
    colour = _read_list(root / "rgb.txt")
    if not colour:
        raise DatasetError(f"{root / 'rgb.txt'}: lists no images")
    depth_path = root / "depth.txt"
    depth = _read_list(depth_path) if depth_path.is_file() else []
    depth_ns = [timestamp_ns for timestamp_ns, _ in depth]
    truth_path = root / "groundtruth.txt"
    truth = read_trajectory(truth_path) if truth_path.is_file() else None
    camera = request.camera(_CAMERA_ID, None) or _camera(root, colour[0][1])

    images = []
    for timestamp_ns, path in colour:
        world_from_cam = None if truth is None else truth.at(timestamp_ns)
        nearest = _nearest(depth_ns, timestamp_ns)
        images.append(
            RecordedImage(
                name=path.relative_to(root).as_posix(),
                camera_id=_CAMERA_ID,
                source=ImageFile(path, size=(camera.width, camera.height)),
                timestamp_ns=timestamp_ns,
                cam_from_world=world_from_cam and world_from_cam.inverse(),
                depth=None
                if nearest is None
                else DepthMap(
                    path=depth[nearest][1],
                    metres_per_unit=_METRES_PER_UNIT,
                    camera=camera,
                ),
            )
        )
    if truth is not None and not any(image.cam_from_world for image in images):
        raise DatasetError(
            f"{truth_path}: covers no image of rgb.txt; are both of one sequence?"
        )
    return Recording(
        name=recording_name(root),
        images=tuple(images),
        cameras={_CAMERA_ID: camera},
        metric=True,
        pose_source="" if truth is None else "motion capture, interpolated",
    )


def read_trajectory(path: Path) -> Trajectory:
    """Return a trajectory of lines ``timestamp tx ty tz qx qy qz qw``, any order."""
    poses: dict[int, Rigid3] = {}
    names = ("tx", "ty", "tz", "qx", "qy", "qz", "qw")
    for row in read_rows(path, hint=_HINT):
        row.need(8, "timestamp tx ty tz qx qy qz qw")
        timestamp_ns = row.seconds_as_ns(0, "timestamp")
        tx, ty, tz, qx, qy, qz, qw = row.numbers(1, names)
        poses[timestamp_ns] = make_pose(
            (qw, qx, qy, qz), (tx, ty, tz), where=f"{path}:{row.line}"
        )
    if not poses:
        raise DatasetError(f"{path}: has no poses")
    order = sorted(poses)
    return Trajectory(timestamps_ns=order, world_from_cam=[poses[ns] for ns in order])


def _read_list(path: Path) -> list[tuple[int, Path]]:
    """Return (timestamp_ns, file) of a list of images, in time order."""
    entries = []
    seen: set[str] = set()
    for row in read_rows(path, hint=_HINT):
        row.need(2, "timestamp filename")
        name = row.fields[1]
        if name in seen:
            raise row.error(f"filename {shown(name)} is there twice; remove one line")
        seen.add(name)
        file = require_image(path.parent / name, where=f"{path}:{row.line}")
        entries.append((row.seconds_as_ns(0, "timestamp"), file))
    return sorted(entries)


def _nearest(sorted_ns: Sequence[int], timestamp_ns: int) -> int | None:
    """Return the index of the nearest time within `MAX_DEPTH_OFFSET_NS`."""
    after = bisect_left(sorted_ns, timestamp_ns)
    around = [i for i in (after - 1, after) if 0 <= i < len(sorted_ns)]
    nearest = min(around, key=lambda i: abs(sorted_ns[i] - timestamp_ns), default=None)
    if nearest is None or abs(sorted_ns[nearest] - timestamp_ns) > MAX_DEPTH_OFFSET_NS:
        return None
    return nearest


def _camera(root: Path, first_image: Path) -> CameraModel:
    path = root / _INTRINSICS
    where = str(path)
    if path.is_file():
        rows = list(read_rows(path, hint=_HINT))
        if len(rows) != 1 or len(rows[0].fields) not in {4, 9}:
            raise DatasetError(
                f"{path}: expected one line '{' '.join(_PARAM_NAMES)}' (or only the "
                "first four)"
            )
        values = rows[0].numbers(0, _PARAM_NAMES[: len(rows[0].fields)])
    else:
        kinect = re.search(r"(?:freiburg|fr)([123])(?!\d)", recording_name(root))
        if kinect is None:
            raise DatasetError(
                f"{path}: is missing, and the folder's name does not say which Kinect "
                f"it was (freiburg1, 2, 3); write '{' '.join(_PARAM_NAMES)}' into it"
            )
        values = list(_PUBLISHED[kinect.group(1)])
    fx, fy, cx, cy, k1, k2, p1, p2, k3 = (*values, 0.0, 0.0, 0.0, 0.0, 0.0)[:9]
    # The files have OpenCV's convention: (0, 0) is the centre of the first pixel.
    pinhole = (fx, fy, cx + 0.5, cy + 0.5)
    size = read_size(first_image)
    if k3 != 0:
        params = (*pinhole, k1, k2, p1, p2, k3, 0.0, 0.0, 0.0)
        return make_camera("FULL_OPENCV", size, params, where=where)
    if any((k1, k2, p1, p2)):
        return make_camera("OPENCV", size, (*pinhole, k1, k2, p1, p2), where=where)
    return make_camera("PINHOLE", size, pinhole, where=where)
