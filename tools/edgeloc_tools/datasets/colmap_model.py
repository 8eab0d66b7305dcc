"""The parts of a COLMAP model that edgeloc uses, however they are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeloc.types import CameraModel, Rigid3


@dataclass(frozen=True, slots=True, kw_only=True)
class ColmapImage:
    """An entry of the images file.

    Parameters
    ----------
    name : str
        Relative to the folder of the images.
    camera_id : int
        Key of `ColmapModel.cameras`.
    cam_from_world : Rigid3
        Pose.
    where : str
        File and line or byte, for errors.
    """

    name: str
    camera_id: int
    cam_from_world: Rigid3
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ColmapFrame:
    """An entry of the frames file.

    Parameters
    ----------
    frame_id, rig_id : int
        Ids.
    rig_from_world : Rigid3
        Pose of the rig.
    camera_data : sequence of (int, int)
        (camera_id, image_id) of the images that the rig took at this moment.
    where : str
        File and line or byte, for errors.
    """

    frame_id: int
    rig_id: int
    rig_from_world: Rigid3
    camera_data: Sequence[tuple[int, int]]
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ColmapModel:
    """A model.

    Parameters
    ----------
    cameras_path, images_path : Path
        Where it was read from, for errors.
    cameras : mapping of int to CameraModel
        By camera id.
    images : mapping of int to ColmapImage
        By image id.
    rigs : mapping of int to mapping of int to (Rigid3 or None)
        ``sensor_from_rig`` by rig id and camera id; None where it is not known.
    frames : sequence of ColmapFrame
        Empty for models older than COLMAP 3.12.
    """

    cameras_path: Path
    images_path: Path
    cameras: Mapping[int, CameraModel]
    images: Mapping[int, ColmapImage]
    rigs: Mapping[int, Mapping[int, Rigid3 | None]]
    frames: Sequence[ColmapFrame]
