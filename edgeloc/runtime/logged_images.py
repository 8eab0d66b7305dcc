"""The pictures of a log, decoded with care or found again where they came from."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from edgeloc.errors import LogFormatError
from edgeloc.runtime.log_format import EncodedImage, LoggedFrame, Session
from edgeloc.runtime.record import pixels_sha256
from edgeloc.runtime.source_files import read_image
from edgeloc.types import ByteArray

_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of a JPEG that tell its size."""


def encoded_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG or PNG without decoding it; None if unclear."""
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR":
        width, height = data[16:20], data[20:24]
        return int.from_bytes(width, "big"), int.from_bytes(height, "big")
    if not data.startswith(b"\xff\xd8"):
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        if data[at + 1] in _JPEG_SIZES:
            height, width = data[at + 5 : at + 7], data[at + 7 : at + 9]
            return int.from_bytes(width, "big"), int.from_bytes(height, "big")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


class LoggedImages:
    """Gives the pictures of a session's frames, in their order.

    Parameters
    ----------
    session : Session
        Whose frames.
    source : Path, optional
        Where the folder or video is now, in place of where it was.

    Raises
    ------
    LogFormatError
        When frames are references and what they refer to is not there.
    """

    def __init__(self, session: Session, *, source: Path | None = None) -> None:
        self._session = session
        self._path = source or Path(session.source.name)
        self._video: cv2.VideoCapture | None = None
        self._next_idx = 0
        if session.images == "reference":
            self._open()

    def _open(self) -> None:
        folder = self._session.source.kind == "folder"
        if not (self._path.is_dir() if folder else self._path.is_file()):
            raise LogFormatError(
                f"{self._path}: the log refers to the frames in this "
                f"{self._session.source.kind}, which is not here; say where it is "
                "with --source"
            )
        if not folder:
            self._video = cv2.VideoCapture(str(self._path), cv2.CAP_FFMPEG)

    def close(self) -> None:
        """Close a video."""
        if self._video is not None:
            self._video.release()
            self._video = None

    def read(self, frame: LoggedFrame) -> ByteArray | str:
        """Return the picture of a frame, or why there is none.

        Parameters
        ----------
        frame : LoggedFrame
            Later in a video than those before.

        Returns
        -------
        ndarray of shape (H, W) or (H, W, 3), uint8, or str
        """
        if frame.image is None:
            return "the log has no picture of it"
        if isinstance(frame.image, EncodedImage):
            return self._decoded(frame.image)
        if self._session.source.kind == "folder":
            path = self._path / frame.image.name
            # A pipe or a device with that name would never end.
            image = read_image(path) if path.is_file() else "is not there"
            if isinstance(image, str):
                return f"{path} {image}"
        else:
            image = self._video_frame(frame.image.index)
            if isinstance(image, str):
                return image
        if pixels_sha256(image) != frame.image.pixels_sha256:
            return f"{self._path}: has other pixels for {frame.source} than in the run"
        return image

    def _decoded(self, image: EncodedImage) -> ByteArray | str:
        camera = self._session.camera
        size = encoded_size(image.data)
        # Of frames of another size than the camera's, the log keeps the reason alone.
        if size != (camera.width, camera.height):
            return f"its {image.kind} is of size {size}, not the camera's"
        try:
            decoded = cv2.imdecode(
                np.frombuffer(image.data, np.uint8),
                cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION,
            )
        except cv2.error as exc:
            return f"its {image.kind} cannot be decoded ({exc.err or exc})"
        if decoded is None:
            return f"its {image.kind} cannot be decoded"
        return np.asarray(decoded, dtype=np.uint8)

    def _video_frame(self, index: int) -> ByteArray | str:
        if self._video is None or index < self._next_idx:
            return f"{self._path}: frame {index} is not behind those before it"
        while self._next_idx < index:
            if not self._video.grab():
                return f"{self._path}: ends before frame {index}"
            self._next_idx += 1
        ok, image = self._video.read()
        self._next_idx += 1
        if not ok:
            return f"{self._path}: ends before frame {index}"
        return np.asarray(image, dtype=np.uint8)
