"""Camera formats: answers as drivers give them, and nodes that are no cameras."""

from __future__ import annotations

import errno
import os
import struct
import sys

import pytest

from edgeloc.cli import v4l2
from edgeloc.cli.v4l2 import Mode, PixelFormat, check_cameras, query_camera

CAPTURE, META_CAPTURE, DEVICE_CAPS = 0x1, 0x00800000, 0x80000000


class Driver:
    """Answers ioctls as <linux/videodev2.h> lays them out.

    `formats` maps a fourcc to its sizes; a size is (width, height, rates) or a range
    ("range", least, most).
    """

    def __init__(self, formats, *, card=b"HD Webcam C270", caps=CAPTURE):
        self.formats, self.card, self.caps = formats, card, caps

    def __call__(self, fd, request, buffer):
        answer = {
            v4l2.QUERYCAP: self.capability,
            v4l2.ENUM_FMT: self.format,
            v4l2.ENUM_FRAMESIZES: self.size,
            v4l2.ENUM_FRAMEINTERVALS: self.interval,
        }[request](bytes(buffer))
        # The kernel copies as many bytes as the request's number says.
        assert len(answer) == len(buffer) == request >> 16 & 0x3FFF
        buffer[:] = answer

    def capability(self, _):
        return struct.pack(
            "<16s32s32s6I",
            *(b"uvcvideo", self.card, b"usb-1", 0x60600),
            *(CAPTURE | META_CAPTURE | DEVICE_CAPS, self.caps, 0, 0, 0),
        )

    def pick(self, entries, index):
        if index >= len(entries):
            raise OSError(errno.EINVAL, "Invalid argument")
        return entries[index]

    def format(self, query):
        index, kind = struct.unpack_from("<II", query)
        assert kind == 1
        fourcc = self.pick(list(self.formats), index)
        return struct.pack("<III32s4s4I", index, kind, 0, b"a name", fourcc, 0, 0, 0, 0)

    def size(self, query):
        index, fourcc = struct.unpack_from("<I4s", query)
        size = self.pick(self.formats[fourcc], index)
        if size[0] == "range":
            (low_w, low_h), (high_w, high_h) = size[1:]
            numbers = (3, low_w, high_w, 2, low_h, high_h, 2)
        else:
            numbers = (1, size[0], size[1], 0, 0, 0, 0)
        return struct.pack("<I4s7I8x", index, fourcc, *numbers)

    def interval(self, query):
        index, fourcc, width, height = struct.unpack_from("<I4sII", query)
        sizes = [size for size in self.formats[fourcc] if size[:2] == (width, height)]
        if not sizes:
            raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")
        rate = self.pick(sizes[0][2], index)
        return struct.pack(
            "<I4sII3I16x8x", index, fourcc, width, height, 1, 10, round(10 * rate)
        )


WEBCAM = {
    b"YUYV": [(640, 480, [30, 15]), (1280, 720, [7.5, 5])],
    b"MJPG": [(640, 480, [30]), (1280, 720, [15, 30])],
}


def test_a_webcam_lists_sizes_and_rates():
    camera = query_camera(0, ioctl=Driver(WEBCAM))
    assert (camera.driver, camera.card) == ("uvcvideo", "HD Webcam C270")
    assert camera.captures
    assert not camera.only_bayer
    assert camera.formats[0] == PixelFormat(
        fourcc="YUYV",
        modes=(
            Mode(width=640, height=480, max_rate_hz=30.0),
            Mode(width=1280, height=720, max_rate_hz=7.5),
        ),
    )
    finding = v4l2.finding_of("/dev/video0", camera)
    assert finding.status == "ok"
    assert finding.value == (
        "HD Webcam C270 (uvcvideo): YUYV to 1280x720 at 8 Hz, MJPG to 1280x720 at 30 Hz"
    )


def test_a_range_of_sizes_is_its_largest():
    camera = query_camera(
        0, ioctl=Driver({b"NV12": [("range", (32, 32), (4032, 3040))]})
    )
    assert camera.formats[0].modes == (Mode(width=4032, height=3040, max_rate_hz=None),)
    assert v4l2.describe(camera.formats[0]) == "NV12 to 4032x3040"


def test_a_bare_sensor_is_sent_to_the_signal_processor():
    sensor = Driver({b"RG10": [(1920, 1080, [60])]}, card=b"vi-output, imx219 9-0010")
    finding = v4l2.finding_of("/dev/video0", query_camera(0, ioctl=sensor))
    assert finding.status == "warn"
    assert "RG10 to 1920x1080 at 60 Hz" in finding.value
    assert "nvarguscamerasrc" in finding.advice


def test_a_node_for_metadata_is_no_camera_and_no_warning():
    camera = query_camera(0, ioctl=Driver({}, caps=META_CAPTURE))
    finding = v4l2.finding_of("/dev/video1", camera)
    assert finding.status == "ok"
    assert finding.value.endswith("no pictures come from this node")


def test_a_driver_that_never_ends_its_list_does_not_hang():
    driver = Driver({b"MJPG": []})
    driver.pick = lambda entries, index: (
        entries[0] if entries else Driver.pick(driver, entries, index)
    )
    assert len(query_camera(0, ioctl=driver).formats) == 64


def test_no_camera_is_said(tmp_path):
    (finding,) = check_cameras(tmp_path)
    assert (finding.name, finding.value) == ("cameras", "no /dev/video*")


@pytest.mark.skipif(sys.platform == "win32", reason="devices of Linux")
def test_nodes_that_are_none_are_named(tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "video0").write_bytes(b"")
    (tmp_path / "dev" / "video2").symlink_to(os.devnull)
    (tmp_path / "dev" / "video10").mkdir()
    findings = check_cameras(tmp_path)
    assert [finding.name for finding in findings] == [
        *("/dev/video0", "/dev/video2", "/dev/video10"),
    ]
    assert {finding.status for finding in findings} == {"warn"}
    # The system's own ioctl was asked, and refused.
    assert findings[0].value.startswith("is no V4L2 camera (")
    assert findings[2].value.startswith("cannot be opened")


def test_each_node_is_asked(tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "video0").write_bytes(b"")
    (finding,) = check_cameras(tmp_path, ioctl=Driver(WEBCAM))
    assert finding.name == "/dev/video0"
    assert finding.value.startswith("HD Webcam C270 (uvcvideo): ")
