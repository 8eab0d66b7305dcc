"""COLMAP models: what they mean; ``colmap_text`` and ``colmap_binary`` read them."""

from __future__ import annotations

from pathlib import Path

from edgeloc.errors import DatasetError
from edgeloc.types import Rigid3
from edgeloc_tools.datasets.colmap_binary import read_binary_model
from edgeloc_tools.datasets.colmap_model import ColmapModel
from edgeloc_tools.datasets.colmap_text import read_text_model
from edgeloc_tools.datasets.recording import ImageFile, RecordedImage, Recording
from edgeloc_tools.datasets.request import (
    ReadRequest,
    natural_key,
    recording_name,
    require_folder,
    require_image,
    size_of,
)
from edgeloc_tools.datasets.sfm_facts import find_sfm_facts


def read_colmap(request: ReadRequest) -> Recording:
    """Return the registered images of a COLMAP model, text or binary.

    Models of COLMAP 3.12 and later with rigs and frames are read through these: a
    frame's pose composed with the sensor's pose in the rig. Images that belong to no
    frame keep the pose in the images file, which older models have alone.

    Parameters
    ----------
    request : ReadRequest
        `input` is the folder of the model, or one that has it as ``sparse/0``,
        ``sparse`` or ``0``; `images` is by default the folder ``images`` beside the
        model or up to two levels above.

    Notes
    -----
    Intrinsics are used as they are published (corner convention). A model's scale is
    not known from its files, therefore `Recording.metric` is False, unless an
    ``sfm.json`` beside it says more (`edgeloc_tools.datasets.sfm_facts`).

    Raises
    ------
    DatasetError
        When a file is missing or wrong.
    """
    folder, is_binary = _model_folder(request.input)
    model = (read_binary_model if is_binary else read_text_model)(folder)
    if not model.images:
        raise DatasetError(
            f"{model.images_path}: has no images; is the reconstruction empty?"
        )
    root = _image_folder(request, folder)
    poses = _frame_poses(model)
    facts = find_sfm_facts(folder)

    images = []
    names: set[str] = set()
    for image_id, entry in sorted(
        model.images.items(), key=lambda item: natural_key(item[1].name)
    ):
        own = model.cameras.get(entry.camera_id)
        if own is None:
            raise DatasetError(
                f"{entry.where}: image {entry.name!r} has camera {entry.camera_id}, "
                f"which is not in {model.cameras_path}"
            )
        if entry.name in names:
            raise DatasetError(f"{entry.where}: name {entry.name!r} is there twice")
        names.add(entry.name)
        camera_id = str(entry.camera_id)
        path = require_image(root / entry.name, where=entry.where)
        images.append(
            RecordedImage(
                name=entry.name,
                camera_id=camera_id,
                source=ImageFile(path, size=size_of(request.camera(camera_id, own))),
                cam_from_world=poses.get(image_id, entry.cam_from_world),
            )
        )
    return Recording(
        name=recording_name(request.input),
        images=tuple(images),
        cameras={
            str(k): request.camera(str(k), own) or own
            for k, own in model.cameras.items()
        },
        metric=facts is not None and facts.metric,
        gravity_in_world=None if facts is None else facts.gravity_in_world,
        geo_reference=None if facts is None else facts.geo_reference,
        pose_source="COLMAP model" if facts is None else facts.pose_source,
    )


def _frame_poses(model: ColmapModel) -> dict[int, Rigid3]:
    """Return cam_from_world of the images that belong to a frame, by image id."""
    poses = {}
    for frame in model.frames:
        sensors = model.rigs.get(frame.rig_id)
        if sensors is None:
            raise DatasetError(
                f"{frame.where}: frame {frame.frame_id} has rig {frame.rig_id}, "
                "which is not in the rigs file"
            )
        for camera_id, image_id in frame.camera_data:
            entry = model.images.get(image_id)
            if entry is not None and entry.camera_id != camera_id:
                raise DatasetError(
                    f"{frame.where}: frame {frame.frame_id} says that image {image_id} "
                    f"is of camera {camera_id}, but the images file says "
                    f"{entry.camera_id}"
                )
            sensor_from_rig = sensors.get(camera_id)
            if sensor_from_rig is not None:
                poses[image_id] = sensor_from_rig @ frame.rig_from_world
    return poses


def _model_folder(folder: Path) -> tuple[Path, bool]:
    """Return the folder that has the model, and whether it is binary."""
    require_folder(folder, hint="--input is the folder of a COLMAP model")
    for candidate in (folder, folder / "sparse" / "0", folder / "sparse", folder / "0"):
        # COLMAP prefers binary files when both are there.
        for ending in ("bin", "txt"):
            if (candidate / f"images.{ending}").is_file():
                return candidate, ending == "bin"
    raise DatasetError(
        f"{folder}: has no COLMAP model (images.bin or images.txt), also not in "
        "sparse/0; --input is the folder of the model"
    )


def _image_folder(request: ReadRequest, model_folder: Path) -> Path:
    if request.images is not None:
        require_folder(request.images, hint="--images is the folder of the images")
        return request.images
    above = model_folder.resolve()
    for folder in (above, *list(above.parents)[:2]):
        if (folder / "images").is_dir():
            return folder / "images"
    raise DatasetError(
        f"{model_folder}: there is no folder 'images' beside the model; give it with "
        "--images"
    )
