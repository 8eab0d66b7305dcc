"""Plain photos: a folder of images without poses."""

from __future__ import annotations

from edgeloc.errors import DatasetError
from edgeloc_tools.datasets.recording import ImageFile, RecordedImage, Recording
from edgeloc_tools.datasets.request import (
    IMAGE_SUFFIXES,
    ReadRequest,
    natural_key,
    recording_name,
    require_folder,
    size_of,
)

CAMERA_ID = "camera"


def read_folder(request: ReadRequest) -> Recording:
    """Return the images of a folder and its subfolders, in natural order, unposed.

    Hidden files and folders and depth images (``*.depth.png``) are left out.

    Raises
    ------
    DatasetError
        When there is no such folder or no image in it.
    """
    root = request.input
    require_folder(root, hint="--input is the folder of the images")
    paths = {}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if (
            path.suffix.lower() in IMAGE_SUFFIXES
            and not path.stem.lower().endswith(".depth")
            and not any(part.startswith(".") for part in name.split("/"))
            and path.is_file()
        ):
            paths[name] = path
    if not paths:
        raise DatasetError(
            f"{root}: has no images ({' '.join(IMAGE_SUFFIXES)}); "
            "--input is the folder of the images"
        )
    camera = request.camera(CAMERA_ID, None)
    return Recording(
        name=recording_name(root),
        images=tuple(
            RecordedImage(
                name=name,
                camera_id=CAMERA_ID,
                source=ImageFile(paths[name], size=size_of(camera)),
            )
            for name in sorted(paths, key=natural_key)
        ),
        cameras={} if camera is None else {CAMERA_ID: camera},
        metric=False,
    )
