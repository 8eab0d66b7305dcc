"""Formats of V4L2 cameras, asked of the driver without starting the stream.

The structures and numbers are those of <linux/videodev2.h>, with native sizes and
little-endian order as on every machine that edgeloc runs on.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeloc.cli.finding import OK, WARN, Finding

Ioctl = Callable[[int, int, bytearray], object]

# _IOR('V', 0, v4l2_capability), _IOWR('V', n, ...): size << 16 in the middle.
QUERYCAP = 0x80685600
ENUM_FMT = 0xC0405602
ENUM_FRAMESIZES = 0xC02C564A
ENUM_FRAMEINTERVALS = 0xC034564B

_CAPABILITY = struct.Struct("<16s32s32sIII12x")
_FORMAT = struct.Struct("<III32s4sI12x")
_SIZE_QUERY, _SIZE_BYTES = struct.Struct("<I4s"), 44
_INTERVAL_QUERY, _INTERVAL_BYTES = struct.Struct("<I4sII"), 52

_CAPTURE, _CAPTURE_MPLANE, _DEVICE_CAPS = 0x1, 0x1000, 0x80000000
_VIDEO_CAPTURE, _VIDEO_CAPTURE_MPLANE = 1, 9
_DISCRETE = 1
_MAX_ENTRIES = 64
# RG10, BA10, ..., pRAA: what a bare sensor gives, before an image signal processor.
_BAYER_STARTS = (b"RG", b"BA", b"BG", b"GB", b"GR", b"BYR", b"pRA", b"pBA", b"pGA")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """A size of pictures that a camera offers.

    Parameters
    ----------
    width, height : int
        Pixels; the largest where any size goes.
    max_rate_hz : float or None
        Pictures per second at most; None when the driver does not say.
    """

    width: int
    height: int
    max_rate_hz: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelFormat:
    """A pixel format that a camera offers.

    Parameters
    ----------
    fourcc : str
        Its four letters, "MJPG".
    modes : tuple of Mode
        Sizes, as the driver lists them.
    """

    fourcc: str
    modes: tuple[Mode, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """What a video node says about itself.

    Parameters
    ----------
    driver, card : str
        Its driver, and its name.
    captures : bool
        Whether pictures come out of it; a webcam has a second node, for metadata.
    formats : tuple of PixelFormat
        What it offers.
    """

    driver: str
    card: str
    captures: bool
    formats: tuple[PixelFormat, ...]

    @property
    def only_bayer(self) -> bool:
        """Whether it is a bare sensor, whose pictures have no colours yet."""
        return bool(self.formats) and all(
            pixel.fourcc.encode().startswith(_BAYER_STARTS) for pixel in self.formats
        )


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "replace")


def _entries(
    fd: int, request: int, heads: Iterator[bytes], *, size: int, ioctl: Ioctl
) -> Iterator[bytearray]:
    """Yield answers until the driver has no more."""
    for head in heads:
        buffer = bytearray(head.ljust(size, b"\0"))
        try:
            ioctl(fd, request, buffer)
        except OSError:  # EINVAL is the end; others are drivers that do not list this
            return
        yield buffer


def query_camera(fd: int, *, ioctl: Ioctl) -> Camera:
    """Ask an open video node what it is and offers.

    Parameters
    ----------
    fd : int
        The node, open.
    ioctl : callable
        As `fcntl.ioctl` with a mutable buffer.

    Raises
    ------
    OSError
        When it is no video node.
    """
    buffer = bytearray(_CAPABILITY.size)
    ioctl(fd, QUERYCAP, buffer)
    driver, card, _, _, all_caps, node_caps = _CAPABILITY.unpack(buffer)
    caps = node_caps if all_caps & _DEVICE_CAPS else all_caps
    kind = _VIDEO_CAPTURE if caps & _CAPTURE else _VIDEO_CAPTURE_MPLANE
    captures = bool(caps & (_CAPTURE | _CAPTURE_MPLANE))
    formats = _formats(fd, kind, ioctl) if captures else ()
    return Camera(
        driver=_text(driver),
        card=_text(card),
        captures=captures,
        formats=tuple(formats),
    )


def _formats(fd: int, kind: int, ioctl: Ioctl) -> Iterator[PixelFormat]:
    heads = (struct.pack("<II", index, kind) for index in range(_MAX_ENTRIES))
    for answer in _entries(fd, ENUM_FMT, heads, size=_FORMAT.size, ioctl=ioctl):
        fourcc = bytes(_FORMAT.unpack(answer)[4])
        yield PixelFormat(fourcc=_text(fourcc), modes=tuple(_modes(fd, fourcc, ioctl)))


def _modes(fd: int, fourcc: bytes, ioctl: Ioctl) -> Iterator[Mode]:
    heads = (_SIZE_QUERY.pack(index, fourcc) for index in range(_MAX_ENTRIES))
    for answer in _entries(fd, ENUM_FRAMESIZES, heads, size=_SIZE_BYTES, ioctl=ioctl):
        # Discrete: width, height. A range: least, most, step of the width, the height.
        kind, *numbers = struct.unpack_from("<6I", answer, 8)
        width, height = numbers[:2] if kind == _DISCRETE else (numbers[1], numbers[4])
        yield Mode(
            width=width,
            height=height,
            max_rate_hz=_max_rate_hz(fd, fourcc, (width, height), ioctl),
        )
        if kind != _DISCRETE:
            return  # a range has one entry


def _max_rate_hz(
    fd: int, fourcc: bytes, size: tuple[int, int], ioctl: Ioctl
) -> float | None:
    heads = (
        _INTERVAL_QUERY.pack(index, fourcc, *size) for index in range(_MAX_ENTRIES)
    )
    rates = []
    for answer in _entries(
        fd, ENUM_FRAMEINTERVALS, heads, size=_INTERVAL_BYTES, ioctl=ioctl
    ):
        # Discrete: the interval. A range: the shortest interval comes first.
        kind, numerator, denominator = struct.unpack_from("<III", answer, 16)
        if numerator:
            rates.append(denominator / numerator)
        if kind != _DISCRETE:
            break
    return max(rates, default=None)


def describe(pixel: PixelFormat) -> str:
    """Return a format with its largest size and the rate there."""
    if not pixel.modes:
        return pixel.fourcc
    mode = max(pixel.modes, key=lambda mode: (mode.width * mode.height, mode.width))
    rate = "" if mode.max_rate_hz is None else f" at {mode.max_rate_hz:.0f} Hz"
    return f"{pixel.fourcc} to {mode.width}x{mode.height}{rate}"


def finding_of(device: str, camera: Camera) -> Finding:
    """Return the line about a video node."""
    name = f"{camera.card} ({camera.driver})"
    if not camera.captures:
        return Finding(
            name=device, status=OK, value=f"{name}: no pictures come from this node"
        )
    value = f"{name}: {', '.join(map(describe, camera.formats)) or 'no formats'}"
    if camera.only_bayer:
        return Finding(
            name=device,
            status=WARN,
            value=value,
            advice="a bare CSI sensor: read it through nvarguscamerasrc, see "
            "deploy/jetson/README.md",
        )
    return Finding(name=device, status=OK, value=value)


def check_cameras(
    root: Path = Path("/"), *, ioctl: Ioctl | None = None
) -> list[Finding]:
    """Return the cameras of this machine and what they offer.

    Parameters
    ----------
    root : Path
        Of the file system.
    ioctl : callable, optional
        In place of the system's.

    Returns
    -------
    list of Finding
    """
    devices = sorted(root.glob("dev/video*"), key=lambda path: (len(path.name), path))
    if not devices:
        return [
            Finding(
                name="cameras",
                status=WARN,
                value="no /dev/video*",
                advice="plug one in; streams, files and folders work without",
            )
        ]
    if ioctl is None:
        import fcntl  # not on Windows, which has no /dev/video*

        ioctl = fcntl.ioctl
    return [_check_device(root, device, ioctl) for device in devices]


def _check_device(root: Path, device: Path, ioctl: Ioctl) -> Finding:
    name = f"/{device.relative_to(root)}"
    if not os.access(device, os.R_OK | os.W_OK):
        return Finding(
            name=name,
            status=WARN,
            value="permission denied",
            advice="sudo usermod -aG video $USER, then log in again",
        )
    try:
        # Opening the node and asking does not start the stream.
        fd = os.open(device, os.O_RDWR | getattr(os, "O_NONBLOCK", 0))
    except OSError as exc:
        return Finding(
            name=name,
            status=WARN,
            value=f"cannot be opened ({exc.strerror})",
            advice="see `dmesg`; another program may hold it",
        )
    try:
        return finding_of(name, query_camera(fd, ioctl=ioctl))
    except OSError as exc:
        return Finding(
            name=name,
            status=WARN,
            value=f"is no V4L2 camera ({exc.strerror})",
            advice="see `dmesg` for its driver",
        )
    finally:
        os.close(fd)
