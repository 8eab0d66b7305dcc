"""From the text after ``--camera`` to an open source of frames."""

from __future__ import annotations

from pathlib import Path

import cv2

from edgeloc.clock import Clock, MonotonicClock
from edgeloc.errors import CameraError, ConfigError
from edgeloc.runtime.frame_source import FrameSource
from edgeloc.runtime.source_files import (
    DEFAULT_RATE_HZ,
    IMAGE_SUFFIXES,
    ImageListSource,
    VideoSource,
    list_images,
)
from edgeloc.runtime.source_live import (
    URL_SCHEMES,
    open_gstreamer,
    open_url,
    open_v4l2,
)
from edgeloc.runtime.source_names import DEVICE, SCHEME, is_pipeline


def open_source(
    text: str,
    *,
    clock: Clock | None = None,
    rate_hz: float | None = None,
    size_hint: tuple[int, int] | None = None,
) -> FrameSource:
    """Open what the user named.

    Parameters
    ----------
    text : str
        ``/dev/videoN`` or ``N``, a video file, a folder of images or one image, an
        ``rtsp://`` or ``http://`` URL, or a GStreamer pipeline (it contains `` ! ``).
    clock : Clock, optional
        What stamps the frames.
    rate_hz : float, optional
        Frames per second of a folder (30 by default), asked of a camera, or in place
        of a video file's own times.
    size_hint : (int, int), optional
        Width and height to ask a local camera for, px.

    Returns
    -------
    FrameSource

    Raises
    ------
    CameraError
        When it does not exist, or gives no image.
    ConfigError
        When the text cannot be a source.
    """
    clock = MonotonicClock() if clock is None else clock
    if is_pipeline(text):
        return open_gstreamer(text, clock=clock)
    if scheme := SCHEME.match(text):
        if scheme[1].lower() not in URL_SCHEMES:
            raise ConfigError(
                f"camera {text}: {scheme[1]}:// is not supported, use "
                f"{', '.join(sorted(URL_SCHEMES))} or a GStreamer pipeline"
            )
        url = scheme[1].lower() + text[len(scheme[1]) :]
        return open_url(url, clock=clock, rate_hz=rate_hz)
    if DEVICE.fullmatch(text):
        return open_v4l2(text, clock=clock, size_hint=size_hint, rate_hz=rate_hz)
    path = Path(text)
    if path.is_dir():
        return ImageListSource(
            list_images(path),
            name=str(path),
            clock=clock,
            rate_hz=rate_hz or DEFAULT_RATE_HZ,
        )
    if not path.exists():
        raise CameraError(
            f"camera {text}: no such file, folder or device; expected /dev/videoN, a "
            "video file, a folder of images, an rtsp:// or http:// URL or a GStreamer "
            "pipeline"
        )
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageListSource(
            [path], name=str(path), clock=clock, rate_hz=rate_hz or DEFAULT_RATE_HZ
        )
    return VideoSource(
        cv2.VideoCapture(str(path), cv2.CAP_FFMPEG),
        name=str(path),
        clock=clock,
        rate_hz=rate_hz,
    )
