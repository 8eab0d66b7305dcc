"""Frames that come by themselves: V4L2 cameras, network streams, GStreamer."""

from __future__ import annotations

import math
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np

from edgeloc.clock import Clock
from edgeloc.errors import CameraError, ConfigError
from edgeloc.runtime.frame_source import DEFAULT_CAMERA_ID
from edgeloc.runtime.source_files import VideoSource
from edgeloc.types import ByteArray, Frame

OPEN_TIMEOUT_MS = 5_000
READ_TIMEOUT_MS = 5_000
_DEFAULT_PORTS = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322}
URL_SCHEMES = frozenset(_DEFAULT_PORTS)

# A driver's time counts as this clock's when it is in the recent past: V4L2 may also
# stamp with CLOCK_REALTIME or not at all, and OpenCV does not say which.
_MAX_DRIVER_AGE_NS = 1_000_000_000

# OpenCV reads these from the environment only. TCP, since lost RTP packets turn into
# smeared images that look fine to every check but have wrong geometry.
_FFMPEG_OPTIONS_VARIABLE = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
_FFMPEG_OPTIONS = {
    "rtsp": "rtsp_transport;tcp|fflags;nobuffer|flags;low_delay",
    "http": "fflags;nobuffer|flags;low_delay|analyzeduration;1000000",
}


def plausible_driver_time_ns(position_ms: float, *, now_ns: int) -> int | None:
    """Return a driver's timestamp when it can be on the monotonic clock.

    Parameters
    ----------
    position_ms : float
        What OpenCV gives as CAP_PROP_POS_MSEC.
    now_ns : int
        Monotonic time right after the grab.

    Returns
    -------
    int or None
        ns, or None when it lies in the future or more than a second back.
    """
    if not math.isfinite(position_ms) or position_ms <= 0:
        return None
    driver_ns = round(position_ms * 1e6)
    return driver_ns if 0 <= now_ns - driver_ns < _MAX_DRIVER_AGE_NS else None


class LiveSource:
    """An open `cv2.VideoCapture` whose frames are stamped as they arrive.

    The image that tells the size is read and dropped here: it is old by the time the
    run starts.

    Parameters
    ----------
    capture : cv2.VideoCapture
        Taken over; released when this raises.
    name : str
        For messages.
    clock : Clock
        What stamps the frames.
    driver_times : bool
        Whether CAP_PROP_POS_MSEC may be the driver's time.
    camera_id : str
        Given to the frames.

    Raises
    ------
    CameraError
        When no image arrives.
    """

    live = True

    def __init__(
        self,
        capture: cv2.VideoCapture,
        *,
        name: str,
        clock: Clock,
        driver_times: bool = False,
        camera_id: str = DEFAULT_CAMERA_ID,
    ) -> None:
        self.name = name
        self._clock = clock
        self._camera_id = camera_id
        self._driver_times = driver_times
        self._capture: cv2.VideoCapture | None = capture
        self._num_read = 0
        self._last_ns = -1
        first = self._grab()
        if first is None:
            self.close()
            raise CameraError(
                f"{name}: opened, but no image came; check that nothing else uses it "
                "and that it is streaming"
            )
        self.size = (first[0].shape[1], first[0].shape[0])
        fps = capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else 0.0

    def _grab(self) -> tuple[ByteArray, int] | None:
        if self._capture is None or not self._capture.grab():
            return None
        timestamp_ns = now_ns = self._clock.now_ns()
        if self._driver_times:
            driver_ns = plausible_driver_time_ns(
                self._capture.get(cv2.CAP_PROP_POS_MSEC), now_ns=now_ns
            )
            timestamp_ns = now_ns if driver_ns is None else driver_ns
        ok, image = self._capture.retrieve()
        if not ok or image is None or image.size == 0:
            return None
        return np.asarray(image, dtype=np.uint8), timestamp_ns

    def read(self) -> Frame:
        """Wait for the next image.

        Raises
        ------
        CameraError
            When the device or stream gives no more.
        """
        grabbed = self._grab()
        if grabbed is None:
            raise CameraError(
                f"{self.name}: gave no image after {self._num_read} frames; the "
                "device was unplugged, or the stream ended or broke: start again"
            )
        image, timestamp_ns = grabbed
        self._last_ns = max(timestamp_ns, self._last_ns + 1)
        frame_id, self._num_read = self._num_read, self._num_read + 1
        return Frame(
            frame_id=frame_id,
            camera_id=self._camera_id,
            timestamp_ns=self._last_ns,
            image=image,
            source=self.name,
        )

    def close(self) -> None:
        """Release the device or stream."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None


def open_v4l2(
    device: str,
    *,
    clock: Clock,
    size_hint: tuple[int, int] | None = None,
    rate_hz: float | None = None,
) -> LiveSource:
    """Open a local camera.

    Parameters
    ----------
    device : str
        ``/dev/videoN`` or ``N``.
    clock : Clock
        What stamps frames without a driver's time.
    size_hint : (int, int), optional
        Width and height to ask the driver for, px.
    rate_hz : float, optional
        Rate to ask the driver for.

    Returns
    -------
    LiveSource

    Raises
    ------
    CameraError
        When it is missing, busy, forbidden or silent.
    """
    path = Path(f"/dev/video{device}" if device.isdigit() else device)
    on_linux = sys.platform.startswith("linux")
    if on_linux and not path.exists():
        found = sorted(str(p) for p in Path("/dev").glob("video*"))
        raise CameraError(
            f"{path}: no such camera; found {', '.join(found) or 'none'} "
            "(list them with `edgeloc-doctor`)"
        )
    if on_linux and not os.access(path, os.R_OK | os.W_OK):
        raise CameraError(
            f"{path}: permission denied; add yourself to the group with "
            "`sudo usermod -aG video $USER` and log in again"
        )
    if on_linux:
        capture = cv2.VideoCapture(str(path), cv2.CAP_V4L2)
    else:
        capture = cv2.VideoCapture(int(device) if device.isdigit() else 0)
    if not capture.isOpened():
        capture.release()
        raise CameraError(
            f"{path}: cannot be opened as a camera; it may be in use, or be a "
            "metadata node (try the next number)"
        )
    if size_hint is not None:
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, size_hint[0])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, size_hint[1])
    if rate_hz is not None:
        capture.set(cv2.CAP_PROP_FPS, rate_hz)
    # One buffer: the driver would otherwise hand out frames that are several old.
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    return LiveSource(capture, name=str(path), clock=clock, driver_times=True)


def _hide_password(url: str) -> str:
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]).geturl()


def _require_reachable(url: str, *, name: str, timeout_s: float) -> None:
    """Connect once: FFmpeg fails with the same silence whatever the reason is."""
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port or _DEFAULT_PORTS[parts.scheme]
    except ValueError as exc:
        raise ConfigError(f"{name}: is not a valid URL ({exc})") from exc
    if not host:
        raise ConfigError(f"{name}: the URL has no host")
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except socket.gaierror as exc:
        raise CameraError(
            f"{name}: the host name cannot be resolved ({exc.strerror})"
        ) from exc
    except TimeoutError as exc:
        raise CameraError(
            f"{name}: {host} port {port} did not answer within {timeout_s:g} s"
        ) from exc
    except OSError as exc:
        raise CameraError(
            f"{name}: cannot connect to {host} port {port} ({exc.strerror or exc})"
        ) from exc


@contextmanager
def _ffmpeg_options(options: str) -> Iterator[None]:
    if _FFMPEG_OPTIONS_VARIABLE in os.environ:
        yield
        return
    os.environ[_FFMPEG_OPTIONS_VARIABLE] = options
    try:
        yield
    finally:
        del os.environ[_FFMPEG_OPTIONS_VARIABLE]


def _timeouts(open_timeout_ms: int, read_timeout_ms: int) -> Sequence[int]:
    return [
        int(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC),
        open_timeout_ms,
        int(cv2.CAP_PROP_READ_TIMEOUT_MSEC),
        read_timeout_ms,
    ]


def open_url(
    url: str,
    *,
    clock: Clock,
    rate_hz: float | None = None,
    open_timeout_ms: int = OPEN_TIMEOUT_MS,
    read_timeout_ms: int = READ_TIMEOUT_MS,
) -> LiveSource | VideoSource:
    """Open an RTSP or HTTP stream through FFmpeg, tuned for low latency.

    Options in the environment variable OPENCV_FFMPEG_CAPTURE_OPTIONS replace ours.

    Parameters
    ----------
    url : str
        ``rtsp://`` or ``http://`` (``rtsps``, ``https``).
    clock : Clock
        What stamps the frames, on arrival.
    rate_hz : float, optional
        For a video with an end, see `VideoSource`.
    open_timeout_ms, read_timeout_ms : int
        After which a silent peer is an error.

    Returns
    -------
    LiveSource or VideoSource
        The latter when the URL is a video of known length.

    Raises
    ------
    CameraError
        When the host does not answer, or sends nothing that can be decoded.
    ConfigError
        When the URL makes no sense.
    """
    name = _hide_password(url)
    _require_reachable(url, name=name, timeout_s=open_timeout_ms / 1e3)
    family = "rtsp" if urlsplit(url).scheme.startswith("rtsp") else "http"
    timeouts = _timeouts(open_timeout_ms, read_timeout_ms)
    with _ffmpeg_options(_FFMPEG_OPTIONS[family]):
        capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG, timeouts)
    if not capture.isOpened():
        capture.release()
        raise CameraError(
            f"{name}: the host answers, but sends no video that OpenCV can decode "
            "within the time limit; check path and password, and try it in `ffplay`"
        )
    if not capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0:
        return LiveSource(capture, name=name, clock=clock)
    # A file behind a URL: "nobuffer" throws away the frames that FFmpeg looked at to
    # learn the format, which a recording cannot spare.
    capture.release()
    capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG, timeouts)
    return VideoSource(capture, name=name, clock=clock, rate_hz=rate_hz)


def has_gstreamer() -> bool:
    """Return whether this OpenCV was built with GStreamer."""
    return cv2.CAP_GSTREAMER in cv2.videoio_registry.getStreamBackends()


def open_gstreamer(pipeline: str, *, clock: Clock) -> LiveSource:
    """Open a GStreamer pipeline that ends in an appsink.

    Parameters
    ----------
    pipeline : str
        As for ``gst-launch-1.0``; the end ``! videoconvert ! video/x-raw,format=BGR !
        appsink drop=true max-buffers=1`` is appended when there is no appsink.
    clock : Clock
        What stamps the frames, on arrival.

    Returns
    -------
    LiveSource

    Raises
    ------
    CameraError
        When OpenCV has no GStreamer or the pipeline does not play.
    """
    if not has_gstreamer():
        raise CameraError(
            "GStreamer pipeline: this OpenCV was built without GStreamer (the wheels "
            "from PyPI are); build it with -DWITH_GSTREAMER=ON, which "
            "deploy/jetson/install.sh --with-gstreamer does, or feed a V4L2 loopback "
            "device (deploy/jetson/README.md)"
        )
    if "appsink" not in pipeline:
        pipeline += (
            " ! videoconvert ! video/x-raw,format=BGR"
            " ! appsink drop=true max-buffers=1 sync=false"
        )
    capture = cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER)
    if not capture.isOpened():
        capture.release()
        raise CameraError(
            "GStreamer pipeline: does not play; try it with "
            f"`gst-launch-1.0 {pipeline.partition(' ! appsink')[0]} ! fakesink`"
        )
    return LiveSource(capture, name="gstreamer", clock=clock)
