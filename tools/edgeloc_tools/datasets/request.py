"""What a reader is asked for, and the checks that all readers share."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2

from edgeloc.errors import DatasetError
from edgeloc.types import CameraModel

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
"""Of image files, lower case; the order in which a missing ending is tried."""

_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRequest:
    """The arguments of `edgeloc_tools.datasets.registry.open_recording`.

    Parameters
    ----------
    input : Path
        Folder or file.
    images : Path or None
        Folder of the images when they are elsewhere.
    poses : Path or None
        File of poses instead of the recording's own.
    split : str or None
        Part of the recording.
    cameras : CameraModel, mapping of str to CameraModel, or None
        Intrinsics that replace or add to the recording's own.
    """

    input: Path
    images: Path | None = None
    poses: Path | None = None
    split: str | None = None
    cameras: CameraModel | Mapping[str, CameraModel] | None = None

    @property
    def single_camera(self) -> CameraModel | None:
        """The camera when one was given for all images."""
        return self.cameras if isinstance(self.cameras, CameraModel) else None

    def camera(self, camera_id: str, own: CameraModel | None) -> CameraModel | None:
        """Return the intrinsics asked for of a camera, else the recording's own."""
        if self.cameras is None:
            return own
        if isinstance(self.cameras, CameraModel):
            return self.cameras
        return self.cameras.get(camera_id, own)


def recording_name(path: Path) -> str:
    """Return the last part of a path, also of ``.`` and ``..``; links are kept."""
    return Path(os.path.abspath(path)).name  # noqa: PTH100 - resolve() follows links


def size_of(camera: CameraModel | None) -> tuple[int, int] | None:
    """Return (width, height) of a camera, None without one."""
    return None if camera is None else (camera.width, camera.height)


def natural_key(name: str) -> tuple[tuple[int, str], ...]:
    """Return a sort key by which ``frame2`` comes before ``frame10``."""
    return tuple(
        (int(part), "") if part.isdecimal() else (-1, part)
        for part in _DIGITS.split(name)
        if part
    )


def require_folder(path: Path, *, hint: str) -> None:
    """Raise `DatasetError` unless `path` is a folder."""
    if not path.is_dir():
        state = "is not a folder" if path.exists() else "is missing"
        raise DatasetError(f"{path}: {state}; {hint}")


def require_image(path: Path, *, where: str) -> Path:
    """Return `path`, or raise `DatasetError` when there is no such file.

    Parameters
    ----------
    path : Path
        Image file.
    where : str
        What names it, "FILE:LINE".
    """
    if not path.is_file():
        raise DatasetError(
            f"{where}: image {path} is missing; copy it there, remove the entry, or "
            "give the folder of the images"
        )
    return path


def read_size(path: Path, flags: int = cv2.IMREAD_UNCHANGED) -> tuple[int, int]:
    """Return (width, height) of an image file."""
    image = cv2.imread(str(path), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise DatasetError(f"{path}: is not a readable image")
    return int(image.shape[1]), int(image.shape[0])
