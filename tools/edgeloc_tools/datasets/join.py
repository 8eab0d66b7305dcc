"""Several recordings of one place as one: by day and by night, to and fro."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgeloc.errors import DatasetError
from edgeloc.types import CameraModel
from edgeloc_tools.datasets.recording import RecordedImage, Recording


def join_recordings(recordings: Sequence[Recording]) -> Recording:
    """Return the posed images of several recordings in the same world frame.

    Names and cameras of all but the first get the recording's number in front, unless
    a camera is the same; world, gravity and geo-reference are the first's.

    Parameters
    ----------
    recordings : sequence of Recording
        At least one; their poses must be in one world frame (``edgeloc-build sfm`` of
        all images together, or one positioning system).

    Raises
    ------
    DatasetError
        When one is metric and another is not, or one has no posed image.
    """
    first = recordings[0]
    if len(recordings) == 1:
        return first
    cameras: dict[str, CameraModel] = {}
    images: list[RecordedImage] = []
    for number, recording in enumerate(recordings):
        if recording.metric != first.metric:
            raise DatasetError(
                f"{recording.name}: its unit is {_unit(recording)}, that of "
                f"{first.name} is {_unit(first)}; say --metric or bring them into one "
                "frame"
            )
        renamed = {}
        posed = recording.posed()
        for camera_id in sorted({image.camera_id for image in posed.images}):
            camera = recording.cameras[camera_id]
            same = cameras.get(camera_id, camera) == camera
            renamed[camera_id] = camera_id if same else f"{number}/{camera_id}"
            cameras[renamed[camera_id]] = camera
        images += [
            replace(
                image,
                name=f"{number}/{image.name}" if number else image.name,
                camera_id=renamed[image.camera_id],
            )
            for image in posed.images
        ]
    return replace(first, images=tuple(images), cameras=cameras)


def _unit(recording: Recording) -> str:
    return "the metre" if recording.metric else "arbitrary"
