"""What every source of frames is to the run loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Union

from edgeloc.types import Frame

DEFAULT_CAMERA_ID = "0"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableFrame:
    """A frame that exists but has no usable image: damaged, or of the wrong size.

    It is delivered like any other, so that its record (LOST, CAMERA_STALL) says that
    there was one; skipping it would shift every later frame of a recording.

    Parameters
    ----------
    frame_id, camera_id, timestamp_ns, source
        As in `edgeloc.types.Frame`.
    reason : str
        What is wrong with it, for people.
    """

    frame_id: int
    camera_id: str
    timestamp_ns: int
    source: str
    reason: str


AnyFrame = Union[Frame, UnreadableFrame]  # noqa: UP007 - an alias, evaluated on 3.10


def checked_frame(frame: AnyFrame, image_size: tuple[int, int]) -> AnyFrame:
    """Return the frame, or an unreadable one when its size is not the camera's."""
    if isinstance(frame, UnreadableFrame):
        return frame
    size = (frame.image.shape[1], frame.image.shape[0])
    if size == image_size:
        return frame
    return UnreadableFrame(
        frame_id=frame.frame_id,
        camera_id=frame.camera_id,
        timestamp_ns=frame.timestamp_ns,
        source=frame.source,
        reason=f"{frame.source} is {size[0]}x{size[1]}, the camera model is for "
        f"{image_size[0]}x{image_size[1]}",
    )


class FrameSource(Protocol):
    """A camera, a stream or a recording."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def live(self) -> bool:
        """Whether frames come by themselves and are lost when not fetched."""

    @property
    def fps(self) -> float:
        """Nominal frames per second, 0 when unknown."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the images, px."""

    def read(self) -> AnyFrame | None:
        """Return the next frame, or None at the end.

        Raises
        ------
        CameraError
            When a live source stopped delivering.
        """

    def close(self) -> None:
        """Give the device or file back; a second call does nothing."""
