"""Streams served on loopback, driver times, and what OpenCV was built without."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
import rtsp_server
from rtsp_server import RtspServer

from edgeloc.clock import MonotonicClock
from edgeloc.errors import CameraError, ConfigError
from edgeloc.runtime.capture import RealtimeFeed
from edgeloc.runtime.source_live import (
    has_gstreamer,
    open_url,
    plausible_driver_time_ns,
)
from edgeloc.runtime.sources import open_source

FRAME_PERIOD_S = 0.01
NUM_FRAMES_OF_SHORT = 12


class MjpegHandler(BaseHTTPRequestHandler):
    """Serves ``/cam`` for ever, ``/short`` and ``/stall`` for a few frames, a clip."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        if self.path == "/clip.avi":
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.server.clip)))
            self.end_headers()
            self.wfile.write(self.server.clip)
            return
        if self.path not in {"/cam", "/short", "/stall"}:
            self.send_error(404)
            return
        self.send_response(200)
        kind = "multipart/x-mixed-replace; boundary=frame"
        self.send_header("Content-Type", kind)
        self.end_headers()
        with contextlib.suppress(OSError):
            count = 0
            while self.path == "/cam" or count < NUM_FRAMES_OF_SHORT:
                image = np.full((48, 64, 3), 10 * (count % 25), np.uint8)
                data = cv2.imencode(".jpg", image)[1].tobytes()
                head = "--frame\r\nContent-Type: image/jpeg\r\n"
                head += f"Content-Length: {len(data)}\r\n\r\n"
                self.wfile.write(head.encode() + data + b"\r\n")
                count += 1
                time.sleep(FRAME_PERIOD_S)
            if self.path == "/stall":
                self.server.released.wait(5)


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), MjpegHandler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        server.released = threading.Event()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def url_of(server, path):
    return f"http://127.0.0.1:{server.server_port}{path}"


def test_mjpeg_stream_is_read_live_and_stamped_on_arrival(server):
    clock = MonotonicClock()
    source = open_source(url_of(server, "/cam"), clock=clock)
    try:
        assert source.live
        assert source.size == (64, 48)
        before_ns = clock.now_ns()
        frames = [source.read() for _ in range(10)]
        after_ns = clock.now_ns()
    finally:
        source.close()
    assert [f.frame_id for f in frames] == list(range(10))
    stamps_ns = [f.timestamp_ns for f in frames]
    assert before_ns <= stamps_ns[0]
    assert stamps_ns[-1] <= after_ns
    assert stamps_ns == sorted(set(stamps_ns))
    steps = np.diff([float(f.image.mean()) for f in frames]) % 250
    assert steps == pytest.approx(10, abs=3), "frames came in order, none twice"


def test_stream_that_ends_is_a_camera_error(server):
    source = open_source(url_of(server, "/short"))
    # One image was spent on learning the format and one on learning the size.
    last = [source.read() for _ in range(NUM_FRAMES_OF_SHORT - 2)][-1]
    assert last.frame_id == NUM_FRAMES_OF_SHORT - 3
    expected = f"gave no image after {NUM_FRAMES_OF_SHORT - 2} frames"
    with pytest.raises(CameraError, match=expected):
        source.read()
    source.close()


def test_stream_that_stalls_is_given_up_in_time(server):
    source = open_url(
        url_of(server, "/stall"), clock=MonotonicClock(), read_timeout_ms=300
    )
    for _ in range(NUM_FRAMES_OF_SHORT - 2):
        source.read()
    start_s = time.monotonic()
    with pytest.raises(CameraError, match="gave no image"):
        source.read()
    assert time.monotonic() - start_s < 3.0
    source.close()


def test_stream_feeds_the_loop_and_ends_when_told(server):
    clock = MonotonicClock()
    source = open_source(url_of(server, "/cam"), clock=clock)
    feed = RealtimeFeed(source, clock=clock)
    feed.begin()
    stop = threading.Event()
    ids = [feed.next(stop).frame_id for _ in range(5)]
    assert ids == sorted(set(ids))
    stop.set()
    assert feed.next(stop) is None
    feed.close()
    assert "edgeloc-capture" not in {thread.name for thread in threading.enumerate()}


def test_video_behind_a_url_ends_like_a_file(server, tmp_path):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 48))
    for _ in range(5):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    server.clip = path.read_bytes()
    source = open_source(url_of(server, "/clip.avi"))
    assert not source.live
    count = 0
    while source.read() is not None:
        count += 1
    assert count == 5


@pytest.fixture
def camera():
    with RtspServer() as server:
        yield server


def test_rtsp_camera_is_read_live_whole_and_in_order(camera):
    clock = MonotonicClock()
    source = open_source(camera.url("/cam"), clock=clock)
    try:
        assert source.live
        assert source.size == (rtsp_server.WIDTH, rtsp_server.HEIGHT)
        before_ns = clock.now_ns()
        frames = [source.read() for _ in range(10)]
        after_ns = clock.now_ns()
    finally:
        source.close()
    assert [f.frame_id for f in frames] == list(range(10))
    stamps_ns = [f.timestamp_ns for f in frames]
    assert before_ns <= stamps_ns[0]
    assert stamps_ns[-1] <= after_ns
    assert stamps_ns == sorted(set(stamps_ns))
    first = round(float(frames[0].image[-1, -1].mean()) / 10)
    for idx, frame in enumerate(frames, start=first):
        expected = rtsp_server.picture(idx)
        off = np.abs(frame.image.astype(int) - expected.astype(int))
        assert off.mean() < 2, "each picture is whole, none is missing or twice"


def test_rtsp_camera_that_hangs_up_is_a_camera_error(camera):
    source = open_source(camera.url("/short"))
    with pytest.raises(CameraError, match=r"/short: gave no image after \d+ frames"):
        list(iter(source.read, None))
    source.close()


def test_rtsp_camera_without_this_stream_is_a_camera_error(camera):
    with pytest.raises(CameraError, match="the host answers, but sends no video"):
        open_source(camera.url("/nothing"))


def test_page_that_is_not_there_is_a_camera_error(server):
    with pytest.raises(CameraError, match="the host answers, but sends no video"):
        open_source(url_of(server, "/nothing"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_refused_connection_is_a_camera_error_at_once(scheme):
    start_s = time.monotonic()
    with pytest.raises(CameraError, match=r"cannot connect to 127\.0\.0\.1"):
        open_source(f"{scheme}://127.0.0.1:{free_port()}/cam")
    assert time.monotonic() - start_s < 1.0


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_host_that_stays_silent_is_given_up_in_time(scheme):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/cam"
        start_s = time.monotonic()
        with pytest.raises(CameraError, match="within the time limit"):
            open_url(url, clock=MonotonicClock(), open_timeout_ms=400)
        assert time.monotonic() - start_s < 3.0


def test_password_is_not_in_the_message():
    with pytest.raises(CameraError, match=r"rtsp://\*\*\*@127\.0\.0\.1") as caught:
        open_source(f"rtsp://user:secret@127.0.0.1:{free_port()}/cam")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://:80/x", "rtsp://host:port/x"])
def test_url_without_host_or_with_a_bad_port_is_a_usage_error(url):
    with pytest.raises(ConfigError, match="URL"):
        open_source(url)


def test_gstreamer_pipeline_without_gstreamer_says_how_to_get_it():
    if has_gstreamer():
        with pytest.raises(CameraError, match="does not play"):
            open_source("nosuchelement ! appsink")
    else:
        with pytest.raises(CameraError, match=r"built without GStreamer.*Jetson"):
            open_source("v4l2src ! videoconvert ! appsink")


def test_driver_time_counts_only_in_the_recent_past():
    now_ns = 100_000_000_000
    assert plausible_driver_time_ns(99_990.0, now_ns=now_ns) == 99_990_000_000
    assert plausible_driver_time_ns(100_001.0, now_ns=now_ns) is None, "future"
    assert plausible_driver_time_ns(98_000.0, now_ns=now_ns) is None, "too old"
    assert plausible_driver_time_ns(1.7e12, now_ns=now_ns) is None, "wall clock"
    for nothing in (0.0, -1.0, float("nan")):
        assert plausible_driver_time_ns(nothing, now_ns=now_ns) is None
