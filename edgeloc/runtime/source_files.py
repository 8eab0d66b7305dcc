"""Recorded frames: folders of images and video files."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from edgeloc.clock import Clock
from edgeloc.errors import CameraError
from edgeloc.runtime.frame_source import (
    DEFAULT_CAMERA_ID,
    AnyFrame,
    UnreadableFrame,
)
from edgeloc.types import ByteArray, Frame

_log = logging.getLogger(__name__)

DEFAULT_RATE_HZ = 30.0
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
)
_NOT_A_PICTURE = re.compile(r"(\.depth|[._-]mask|^mask)\.[a-z]+$", re.IGNORECASE)
_DIGITS = re.compile(r"(\d+)")


def natural_key(name: str) -> tuple[tuple[int, str], ...]:
    """Return a sort key by which ``frame2`` comes before ``frame10``."""
    return tuple(
        (int(part), "") if part.isdigit() else (-1, part)
        for part in _DIGITS.split(name)
        if part
    )


def list_images(folder: Path) -> list[Path]:
    """Return the images of a folder in natural order.

    Depth images (``*.depth.png``), masks and hidden files are left out; when there are
    ``*.color.*`` files (7-Scenes), only those count.

    Parameters
    ----------
    folder : Path
        Searched without its subfolders.

    Returns
    -------
    list of Path

    Raises
    ------
    CameraError
        When there are none.
    """
    images = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and not _NOT_A_PICTURE.search(path.name)
        and path.is_file()
    ]
    colour = [path for path in images if path.stem.lower().endswith(".color")]
    images = colour or images
    if not images:
        raise CameraError(
            f"{folder}: has no images; expected files like "
            f"{', '.join(sorted(IMAGE_SUFFIXES))} directly in the folder"
        )
    return sorted(images, key=lambda path: natural_key(path.name))


def _jpeg_is_complete(data: bytes) -> bool:
    """Return whether the end marker follows the scan.

    libjpeg fills what is missing with grey and OpenCV passes that on as a good image.
    The search starts behind the header, whose thumbnail has an end marker of its own.
    """
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xDA:
            return data.find(b"\xff\xd9", position) >= 0
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False


def read_image(path: Path) -> ByteArray | str:
    """Decode an image file completely, in the pixel order of the file.

    EXIF orientation is not applied: mapping reads stored pixels, and intrinsics are
    given for them, as COLMAP does.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8, or str
        BGR, or what is wrong.
    """
    try:
        data = path.read_bytes()
    except OSError as exc:
        return f"cannot be read ({exc.strerror or exc})"
    if not data:
        return "is empty"
    if data.startswith(b"\xff\xd8") and not _jpeg_is_complete(data):
        return "is a truncated JPEG"
    if data.startswith(b"\x89PNG") and b"IEND" not in data[-64:]:
        return "is a truncated PNG"
    try:
        image = cv2.imdecode(
            np.frombuffer(data, np.uint8),
            cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION,
        )
    except cv2.error as exc:
        return f"cannot be decoded ({exc.err or exc})"
    if image is None:
        return "is not a readable image"
    return np.asarray(image, dtype=np.uint8)


class ImageListSource:
    """Image files at a fixed rate.

    A file that cannot be decoded is delivered as an `UnreadableFrame`.

    Parameters
    ----------
    paths : sequence of Path
        In order.
    name : str
        For messages.
    clock : Clock
        On which the first frame is now.
    rate_hz : float
        Frames per second.
    camera_id : str
        Given to the frames.

    Raises
    ------
    CameraError
        When none of them can be decoded.
    """

    live = False

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        name: str,
        clock: Clock,
        rate_hz: float = DEFAULT_RATE_HZ,
        camera_id: str = DEFAULT_CAMERA_ID,
    ) -> None:
        self._paths = list(paths)
        self.name = name
        self.fps = rate_hz
        self._clock = clock
        self._camera_id = camera_id
        self._next_idx = 0
        self._start_ns: int | None = None
        self.size = self._first_size()

    def _first_size(self) -> tuple[int, int]:
        problem = ""
        for path in self._paths:
            image = read_image(path)
            if not isinstance(image, str):
                return image.shape[1], image.shape[0]
            problem = problem or f"{path.name} {image}"
        raise CameraError(
            f"{self.name}: none of {len(self._paths)} images can be read ({problem})"
        )

    def read(self) -> AnyFrame | None:
        """Return the next frame, or None at the end."""
        if self._next_idx >= len(self._paths):
            return None
        if self._start_ns is None:
            self._start_ns = self._clock.now_ns()
        frame_id, self._next_idx = self._next_idx, self._next_idx + 1
        path = self._paths[frame_id]
        timestamp_ns = self._start_ns + round(frame_id * 1e9 / self.fps)
        image = read_image(path)
        if isinstance(image, str):
            return UnreadableFrame(
                frame_id=frame_id,
                camera_id=self._camera_id,
                timestamp_ns=timestamp_ns,
                source=path.name,
                reason=f"{path} {image}",
            )
        return Frame(
            frame_id=frame_id,
            camera_id=self._camera_id,
            timestamp_ns=timestamp_ns,
            image=image,
            source=path.name,
        )

    def close(self) -> None:
        """End: later reads return None."""
        self._next_idx = len(self._paths)


class VideoSource:
    """A video with an end, with the timestamps of its container.

    The first frame is now; where the container has no sensible times, frames are
    spread at the nominal rate.

    Parameters
    ----------
    capture : cv2.VideoCapture
        Taken over; released when this raises.
    name : str
        For messages.
    clock : Clock
        On which the first frame is now.
    rate_hz : float, optional
        Replaces the container's times.
    camera_id : str
        Given to the frames.

    Raises
    ------
    CameraError
        When there is no video stream that OpenCV can decode.
    """

    live = False

    def __init__(
        self,
        capture: cv2.VideoCapture,
        *,
        name: str,
        clock: Clock,
        rate_hz: float | None = None,
        camera_id: str = DEFAULT_CAMERA_ID,
    ) -> None:
        self.name = name
        self._clock = clock
        self._camera_id = camera_id
        self._capture: cv2.VideoCapture | None = capture
        self._num_read = 0
        self._start_ns: int | None = None
        self._first_ms = 0.0
        self._last_offset_ns = -1
        nominal = capture.get(cv2.CAP_PROP_FPS)
        usable = math.isfinite(nominal) and 0.1 <= nominal <= 1000.0
        self._forced_rate = rate_hz is not None
        self.fps = rate_hz or (nominal if usable else DEFAULT_RATE_HZ)
        self._expected = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        # The first image is decoded now: only it tells the size after rotation.
        self._pending = self._decode()
        if self._pending is None:
            self.close()
            raise CameraError(
                f"{name}: is not a video that OpenCV can decode; check it with "
                "`ffprobe`, or convert it to H.264 in mp4"
            )
        image, _ = self._pending
        self.size = (image.shape[1], image.shape[0])

    def _decode(self) -> tuple[ByteArray, float] | None:
        if self._capture is None:
            return None
        ok, image = self._capture.read()
        if not ok:
            return None
        return (
            np.asarray(image, dtype=np.uint8),
            self._capture.get(cv2.CAP_PROP_POS_MSEC),
        )

    def _offset_ns(self, position_ms: float) -> int:
        by_rate_ns = round(self._num_read * 1e9 / self.fps)
        if self._num_read == 0:
            self._first_ms = position_ms
            return 0
        offset_ms = position_ms - self._first_ms
        offset_ns = round(offset_ms * 1e6) if math.isfinite(offset_ms) else -1
        if self._forced_rate or offset_ns <= self._last_offset_ns:
            return max(by_rate_ns, self._last_offset_ns + 1)
        return offset_ns

    def read(self) -> Frame | None:
        """Return the next frame, or None at the end."""
        decoded, self._pending = self._pending or self._decode(), None
        if decoded is None:
            self._warn_if_short()
            self.close()
            return None
        if self._start_ns is None:
            self._start_ns = self._clock.now_ns()
        image, position_ms = decoded
        self._last_offset_ns = self._offset_ns(position_ms)
        frame_id, self._num_read = self._num_read, self._num_read + 1
        return Frame(
            frame_id=frame_id,
            camera_id=self._camera_id,
            timestamp_ns=self._start_ns + self._last_offset_ns,
            image=image,
            source=f"{self.name.rpartition('/')[2]}#{frame_id}",
        )

    def _warn_if_short(self) -> None:
        # The count is an estimate in many containers, hence the slack.
        if self._capture is not None and self._num_read < 0.9 * self._expected:
            _log.warning(
                "%s: ended after %d of about %d frames; the file may be damaged",
                self.name,
                self._num_read,
                int(self._expected),
            )

    def close(self) -> None:
        """Close the file."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None
        self._pending = None
