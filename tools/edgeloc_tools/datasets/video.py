"""Video files, decoded when their frames are read."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from edgeloc.errors import DatasetError
from edgeloc.types import ByteArray
from edgeloc_tools.datasets.recording import RecordedImage, Recording
from edgeloc_tools.datasets.request import ReadRequest, recording_name

CAMERA_ID = "camera"
_DEFAULT_RATE_HZ = 30.0


class VideoReader:
    """Decodes the frames of one file, fastest in order.

    Frames are counted from the start of the file and never sought: containers lie about
    key frames, and a frame that is off by one has a wrong pose later. Going back starts
    again from the first frame. May be used from several threads.

    Parameters
    ----------
    path : Path
        Video file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._capture: cv2.VideoCapture | None = None
        self._next_idx = 0
        self._last: tuple[int, ByteArray] | None = None
        self.num_rewinds = 0

    def read(self, frame_idx: int) -> ByteArray:
        """Return a frame, (H, W, 3) uint8 BGR; `DatasetError` when it is unreadable."""
        with self._lock:
            if self._last is not None and self._last[0] == frame_idx:
                return np.array(self._last[1])
            if self._capture is None or frame_idx < self._next_idx:
                self.num_rewinds += self._capture is not None
                self._close()
                self._capture = open_video(self.path)
            while self._next_idx < frame_idx:
                if not self._capture.grab():
                    raise self._ended(frame_idx)
                self._next_idx += 1
            ok, image = self._capture.read()
            if not ok:
                raise self._ended(frame_idx)
            self._next_idx += 1
            frame = np.asarray(image, dtype=np.uint8)
            self._last = (frame_idx, frame)
            return np.array(frame)

    def close(self) -> None:
        """Close the file; reading opens it again."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._capture is not None:
            self._capture.release()
        self._capture = None
        self._next_idx = 0

    def _ended(self, frame_idx: int) -> DatasetError:
        error = DatasetError(
            f"{self.path}: frame {frame_idx} cannot be decoded (the file ends or is "
            f"damaged after frame {self._next_idx - 1}); copy the video again"
        )
        self._close()
        return error


@dataclass(frozen=True, slots=True)
class VideoFrame:
    """One frame of a video, an `ImageSource`.

    Parameters
    ----------
    reader : VideoReader
        Shared by all frames of the file.
    frame_idx : int
        From 0.
    """

    reader: VideoReader
    frame_idx: int

    def read(self) -> ByteArray:
        """Decode the frame."""
        return self.reader.read(self.frame_idx)


def read_video(request: ReadRequest) -> Recording:
    """Return the frames of a video file, unposed, with the container's timestamps.

    The file is gone through once to count its frames, since containers often state a
    wrong number. Names are ``FILE/000000`` and so on.

    Raises
    ------
    DatasetError
        When the file is missing, no video or has no frames.
    """
    path = request.input
    timestamps_ns = scan_timestamps_ns(path)
    reader = VideoReader(path)
    camera = request.camera(CAMERA_ID, None)
    first = reader.read(0)
    if camera is not None and (camera.width, camera.height) != first.shape[1::-1]:
        raise DatasetError(
            f"{path}: is {first.shape[1]}x{first.shape[0]}, but its camera is "
            f"{camera.width}x{camera.height}; give the intrinsics of this size"
        )
    reader.close()
    name = recording_name(path)
    return Recording(
        name=name,
        images=tuple(
            RecordedImage(
                name=f"{name}/{idx:06d}",
                camera_id=CAMERA_ID,
                source=VideoFrame(reader, idx),
                timestamp_ns=timestamp_ns,
            )
            for idx, timestamp_ns in enumerate(timestamps_ns)
        ),
        cameras={} if camera is None else {CAMERA_ID: camera},
        metric=False,
    )


def open_video(path: Path) -> cv2.VideoCapture:
    """Return an open capture; `DatasetError` when there is no such video."""
    if not path.is_file():
        raise DatasetError(f"{path}: is missing; --input is a video file")
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise DatasetError(
            f"{path}: is not a video that OpenCV can decode; convert it to H.264 MP4"
        )
    return capture


def scan_timestamps_ns(path: Path) -> list[int]:
    """Return the capture times of all frames, ns from the start of the file.

    Times of the container; when these do not increase, the frame number over the rate.

    Raises
    ------
    DatasetError
        When the file is missing, no video or has no frames.
    """
    capture = open_video(path)
    try:
        times_ms = []
        while capture.grab():
            times_ms.append(float(capture.get(cv2.CAP_PROP_POS_MSEC)))
        rate_hz = float(capture.get(cv2.CAP_PROP_FPS))
    finally:
        capture.release()
    if not times_ms:
        raise DatasetError(f"{path}: has no frames that can be decoded")
    times = np.array(times_ms)
    if not (np.all(np.isfinite(times)) and np.all(np.diff(times) > 0)):
        rate_hz = rate_hz if 0 < rate_hz < np.inf else _DEFAULT_RATE_HZ
        times = np.arange(len(times)) * (1e3 / rate_hz)
    return [round(float(ms) * 1e6) for ms in times]
