"""A camera on loopback: RTSP with RTP over the same connection, motion JPEG.

Just enough of RFC 2326 (OPTIONS, DESCRIBE, SETUP, PLAY) and RFC 2435 for FFmpeg.
``/cam`` plays for ever, ``/short`` ends after `NUM_FRAMES_OF_SHORT` frames; frame i is
of the grey value ``10 * (i % 25)`` with a white top left corner.
"""

from __future__ import annotations

import contextlib
import itertools
import socketserver
import struct
import threading
import time

import cv2
import numpy as np

WIDTH, HEIGHT = 96, 64
RATE_HZ = 100
NUM_FRAMES_OF_SHORT = 40
PATHS = ("/cam", "/short")

_SDP = f"""v=0
o=- 0 0 IN IP4 127.0.0.1
s=test
t=0 0
m=video 0 RTP/AVP 26
c=IN IP4 127.0.0.1
a=framerate:{RATE_HZ}
a=control:track0
""".replace("\n", "\r\n")
_PAYLOAD_TYPE = 26  # JPEG
_MAX_FRAGMENT_BYTES = 400  # small, so that a frame is several packets
_TYPE_420 = 1
_Q_TABLES_INSIDE = 255


def picture(idx: int) -> np.ndarray:
    image = np.full((HEIGHT, WIDTH, 3), 10 * (idx % 25), np.uint8)
    image[: HEIGHT // 2, : WIDTH // 2] = 255
    return image


def jpeg_parts(image: np.ndarray) -> tuple[bytes, bytes]:
    """Return (quantization tables, scan): RTP leaves the rest of a JPEG away."""
    data = cv2.imencode(".jpg", image)[1].tobytes()
    tables, at = b"", 2
    while data[at + 1] != 0xDA:  # start of scan
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xDB:
            segment = data[at + 4 : at + 2 + length]
            assert len(segment) % 65 == 0, "tables of 8 bits, each after its number"
            tables += b"".join(
                segment[i + 1 : i + 65] for i in range(0, len(segment), 65)
            )
        if data[at + 1] == 0xC0:
            assert data[at + 11] == 0x22, "4:2:0"
        at += 2 + length
    at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return tables, data[at:-2]


def packets(idx: int, first_sequence: int) -> list[bytes]:
    """Return the RTP packets of frame `idx`, each with its interleaving header."""
    tables, scan = jpeg_parts(picture(idx))
    out = []
    for start in range(0, len(scan), _MAX_FRAGMENT_BYTES):
        fragment = scan[start : start + _MAX_FRAGMENT_BYTES]
        is_last = start + len(fragment) == len(scan)
        rtp = struct.pack(
            ">BBHII",
            0x80,
            _PAYLOAD_TYPE | (0x80 if is_last else 0),
            (first_sequence + len(out)) & 0xFFFF,
            idx * 90_000 // RATE_HZ & 0xFFFFFFFF,
            0x1234,
        )
        jpeg = struct.pack(">I", start) + bytes(
            [_TYPE_420, _Q_TABLES_INSIDE, WIDTH // 8, HEIGHT // 8]
        )
        if start == 0:
            jpeg += struct.pack(">BBH", 0, 0, len(tables)) + tables
        packet = rtp + jpeg + fragment
        out.append(struct.pack(">cBH", b"$", 0, len(packet)) + packet)
    return out


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while request := self._request():
                method, url, sequence = request
                path = "/" + url.split("/", 3)[3].removesuffix("/track0")
                if path not in PATHS:
                    self._answer("404 Not Found", sequence)
                elif method == "DESCRIBE":
                    self._answer("200 OK", sequence, body=_SDP)
                else:
                    self._answer("200 OK", sequence)
                if method == "PLAY":
                    self._play(path)
                    return

    def _request(self) -> tuple[str, str, str] | None:
        first = self.rfile.readline().decode().split()
        headers = {}
        while line := self.rfile.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return (first[0], first[1], headers["cseq"]) if first else None

    def _answer(self, status: str, sequence: str, body: str = "") -> None:
        head = f"RTSP/1.0 {status}\r\nCSeq: {sequence}\r\nSession: 1\r\n"
        head += "Public: OPTIONS, DESCRIBE, SETUP, PLAY\r\n"
        head += "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
        head += "Content-Type: application/sdp\r\n" if body else ""
        text = f"{head}Content-Length: {len(body)}\r\n\r\n{body}"
        self.wfile.write(text.encode())

    def _play(self, path: str) -> None:
        sequence = 0
        for idx in itertools.count() if path == "/cam" else range(NUM_FRAMES_OF_SHORT):
            frame = packets(idx, sequence)
            self.wfile.write(b"".join(frame))
            sequence += len(frame)
            time.sleep(1 / RATE_HZ)


class RtspServer(socketserver.ThreadingTCPServer):
    """Serves while it is used as a context."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))

    def url(self, path: str) -> str:
        return f"rtsp://127.0.0.1:{self.server_address[1]}{path}"

    def __enter__(self) -> RtspServer:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
