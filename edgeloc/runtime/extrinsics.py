"""Where another sensor sits relative to the camera."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeloc.errors import ConfigError
from edgeloc.runtime.intrinsics import pick_camera, split_fragment
from edgeloc.runtime.motion_lines import LineError, parse_transform
from edgeloc.types import Rigid3

_MAX_SHIFT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Extrinsics:
    """A sensor's place and clock.

    Parameters
    ----------
    cam_from_sensor : Rigid3
        From its axes to the camera's.
    shift_ns : int
        What its clock shows more than the camera's.
    """

    cam_from_sensor: Rigid3
    shift_ns: int = 0


def load_extrinsics(text: str, *, option: str, sensor: str) -> Extrinsics:
    """Return what an option says: seven numbers or a file.

    Parameters
    ----------
    text : str
        ``x y z qx qy qz qw`` of ``cam_from_sensor``, parted by commas or blanks; or
        ``FILE`` or ``FILE#CAMERA`` as Kalibr writes camchain-imucam.yaml: per camera
        ``T_cam_imu``, four rows of four numbers, and ``timeshift_cam_imu``, s.
    option : str
        Of the command line, for messages.
    sensor : str
        In the names of the file's keys: "imu" for those above.

    Raises
    ------
    ConfigError
        When it is neither.
    """
    words = text.replace(",", " ").split()
    if len(words) == 7 and not Path(text).exists():
        try:
            return Extrinsics(cam_from_sensor=parse_transform(words))
        except LineError as exc:
            raise ConfigError(f"{option} {text}: {exc}") from exc
    path, wanted = split_fragment(text)
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as exc:
        raise ConfigError(
            f"{option} {path}: cannot be read ({exc.strerror or exc}); give a file or "
            "x,y,z,qx,qy,qz,qw"
        ) from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{option} {path}: is not a text file") from exc
    from edgeloc.runtime.intrinsics_yaml import load_yaml, yaml_numbers

    matrix_key, shift_key = f"T_cam_{sensor}", f"timeshift_cam_{sensor}"
    cameras = {
        str(name): camera
        for name, camera in load_yaml(content, path).items()
        if isinstance(camera, dict) and matrix_key in camera
    }
    if not cameras:
        raise ConfigError(
            f"{option} {path}: has no camera with {matrix_key}, as Kalibr's "
            "camchain-imucam.yaml has"
        )
    name = pick_camera(list(cameras), wanted, path=path, option=option)
    camera, where = cameras[name], f"{option} {path} {name}"
    rows = camera[matrix_key]
    flat = [number for row in rows for number in row] if _is_matrix(rows) else rows
    numbers = yaml_numbers(flat, f"{where} {matrix_key}")
    (shift_s,) = yaml_numbers([camera.get(shift_key, 0.0)], f"{where} {shift_key}")
    if not abs(shift_s) <= _MAX_SHIFT_S:
        raise ConfigError(f"{where} {shift_key}: {shift_s} s is no shift of clocks")
    return Extrinsics(
        cam_from_sensor=_rigid(numbers, f"{where} {matrix_key}"),
        shift_ns=round(shift_s * 1e9),
    )


def _is_matrix(rows: object) -> bool:
    return isinstance(rows, list) and all(
        isinstance(row, list) and len(row) == 4 for row in rows
    )


def _rigid(numbers: list[float], where: str) -> Rigid3:
    matrix = np.array(numbers)
    if len(matrix) == 16 and np.all(np.abs(matrix) < 1e6):  # also nan
        u, _, vt = np.linalg.svd(matrix.reshape(4, 4)[:3, :3])
        R = u @ vt
        # Files have few digits; what is further off is no rotation.
        if (
            np.abs(R - matrix.reshape(4, 4)[:3, :3]).max() < 1e-3
            and np.linalg.det(R) > 0
            and np.array_equal(matrix[12:], [0, 0, 0, 1])
        ):
            return Rigid3(R=R, t=matrix.reshape(4, 4)[:3, 3])
    raise ConfigError(f"{where}: is not a transform: four rows of four numbers")
