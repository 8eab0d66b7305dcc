"""Where records go: JSON lines, TUM trajectories, UDP datagrams."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit

import msgpack  # type: ignore[import-untyped]

from edgeloc.clock import Clock
from edgeloc.errors import ConfigError
from edgeloc.geometry.se3 import quat_from_rotation
from edgeloc.runtime.telemetry import RepeatedWarning
from edgeloc.types import PoseEstimate

_log = logging.getLogger(__name__)


def _finite(value: float, digits: int) -> float | None:
    return round(float(value), digits) if math.isfinite(value) else None


def record_from_estimate(estimate: PoseEstimate, *, source: str) -> dict[str, Any]:
    """Return the record of one frame: the one schema behind every sink.

    Parameters
    ----------
    estimate : PoseEstimate
        The answer.
    source : str
        File name or device of the frame.

    Returns
    -------
    dict
        Plain JSON types. ``qvec`` (w, x, y, z), w >= 0, and ``tvec`` are
        cam_from_world, ``position`` is the camera centre in the world; they and the
        row-major ``covariance`` are None when LOST.
    """
    pose, covariance = estimate.cam_from_world, estimate.covariance
    return {
        "frame_id": int(estimate.frame_id),
        "source": source,
        "timestamp_ns": int(estimate.timestamp_ns),
        "status": estimate.status.value,
        "rung": estimate.rung.value,
        "cause": estimate.cause.value,
        "qvec": None if pose is None else quat_from_rotation(pose.R).tolist(),
        "tvec": None if pose is None else pose.t.tolist(),
        "position": None if pose is None else pose.origin_in_a.tolist(),
        "covariance": None if covariance is None else covariance.ravel().tolist(),
        "num_matches": int(estimate.num_matches),
        "num_inliers": int(estimate.num_inliers),
        "reproj_rmse_px": _finite(estimate.reproj_rmse_px, 4),
        "latency_ms": _finite(estimate.latency_ns * 1e-6, 3),
        "deadline_met": bool(estimate.deadline_met),
        "stage_ms": {
            stage: _finite(cost_ns * 1e-6, 3)
            for stage, cost_ns in estimate.stage_ns.items()
        },
        "map_id": estimate.map_id,
    }


def tum_line(estimate: PoseEstimate) -> str | None:
    """Return ``timestamp_s tx ty tz qx qy qz qw`` of world_from_cam, None when LOST."""
    if estimate.cam_from_world is None:
        return None
    world_from_cam = estimate.cam_from_world.inverse()
    w, x, y, z = quat_from_rotation(world_from_cam.R)
    seconds, rest_ns = divmod(int(estimate.timestamp_ns), 1_000_000_000)
    numbers = " ".join(f"{value:.9f}" for value in (*world_from_cam.t, x, y, z, w))
    return f"{seconds}.{rest_ns:09d} {numbers}"


class Sink(Protocol):
    """Takes every record of a run; what goes wrong with one is counted, not raised."""

    def emit(self, estimate: PoseEstimate, record: dict[str, Any]) -> bool:
        """Pass one record on; False when the run has lost its reader and should end."""

    def close(self) -> None:
        """Finish; a second call does nothing."""


class _TextFile:
    """A file that grows line by line, each visible to readers at once.

    A full disk is reported and counted, and the run goes on: the pose matters more
    than its record.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._warning = RepeatedWarning(_log, clock)
        try:
            self._file: IO[str] | None = path.open("w", encoding="utf-8")
        except OSError as exc:
            raise ConfigError(
                f"--out {path}: cannot be written ({exc.strerror or exc})"
            ) from exc

    def write_line(self, line: str) -> None:
        if self._file is None:
            return
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as exc:
            self._warning.warn(f"{self._path}: record lost ({exc.strerror or exc})")

    def close(self) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            file.close()
        except OSError as exc:
            self._warning.warn(f"{self._path}: record lost ({exc.strerror or exc})")


def _to_json(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False, separators=(", ", ": "))


class JsonlFileSink:
    """``jsonl:FILE``: one JSON object per line."""

    def __init__(self, path: Path, *, clock: Clock) -> None:
        self._file = _TextFile(path, clock)

    def emit(self, estimate: PoseEstimate, record: dict[str, Any]) -> bool:
        """Append one line."""
        del estimate
        self._file.write_line(_to_json(record))
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TumSink:
    """``tum:FILE``: the trajectory format of the TUM RGB-D benchmark."""

    def __init__(self, path: Path, *, clock: Clock) -> None:
        self._file = _TextFile(path, clock)

    def emit(self, estimate: PoseEstimate, record: dict[str, Any]) -> bool:
        """Append one line, none for LOST."""
        del record
        line = tum_line(estimate)
        if line is not None:
            self._file.write_line(line)
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class StdoutSink:
    """``jsonl:-``: one JSON object per line on standard output.

    A slow reader holds the loop up, as with any pipe; one that is gone ends it.
    """

    def __init__(self) -> None:
        self._stream: IO[str] = sys.stdout

    def emit(self, estimate: PoseEstimate, record: dict[str, Any]) -> bool:
        """Write one line; False when nobody reads any more (``| head``)."""
        del estimate
        try:
            self._stream.write(_to_json(record) + "\n")
            self._stream.flush()
        except BrokenPipeError:
            # What is still buffered would raise again when Python exits.
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, self._stream.fileno())
            os.close(devnull)
            return False
        return True

    def close(self) -> None:
        """Nothing to do: every line was flushed."""


class UdpSink:
    """``udp://HOST:PORT``: one msgpack map per datagram, the JSON record's keys.

    Never blocks and never raises: a datagram that cannot be sent is counted.

    Parameters
    ----------
    url : str
        Where to.
    clock : Clock
        For the rate of warnings.

    Raises
    ------
    ConfigError
        When host and port are missing or cannot be resolved.
    """

    def __init__(self, url: str, *, clock: Clock) -> None:
        self._warning = RepeatedWarning(_log, clock)
        self._url = url
        parts = urlsplit(url)
        try:
            host, port = parts.hostname, parts.port
        except ValueError as exc:
            raise ConfigError(f"--out {url}: is not a valid address ({exc})") from exc
        if not host or not port or parts.path or parts.query:
            raise ConfigError(f"--out {url}: expected udp://HOST:PORT")
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_DGRAM
            )[0]
            self._socket: socket.socket | None = socket.socket(family, kind, protocol)
            self._socket.setblocking(False)
            self._socket.connect(address)
        except OSError as exc:
            raise ConfigError(
                f"--out {url}: cannot be reached ({exc.strerror or exc})"
            ) from exc

    @property
    def num_lost(self) -> int:
        """Datagrams that could not be sent."""
        return self._warning.count

    def emit(self, estimate: PoseEstimate, record: dict[str, Any]) -> bool:
        """Send one datagram, or count that it could not be sent."""
        del estimate
        if self._socket is None:
            return True
        try:
            self._socket.send(msgpack.packb(record))
        except OSError as exc:
            # A full buffer, no route, or nobody listening on the last datagram.
            self._warning.warn(f"{self._url}: record lost ({exc.strerror or exc})")
        return True

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def open_sink(text: str, *, clock: Clock) -> Sink:
    """Open one sink.

    Parameters
    ----------
    text : str
        ``jsonl:-``, ``jsonl:FILE``, ``tum:FILE`` or ``udp://HOST:PORT``.
    clock : Clock
        For the rate of warnings.

    Returns
    -------
    Sink

    Raises
    ------
    ConfigError
        When it is unknown or cannot be opened.
    """
    kind, colon, rest = text.partition(":")
    if colon and rest:
        if kind == "jsonl":
            if rest == "-":
                return StdoutSink()
            return JsonlFileSink(Path(rest), clock=clock)
        if kind == "tum" and rest != "-":
            return TumSink(Path(rest), clock=clock)
        if text.startswith("udp://"):
            return UdpSink(text, clock=clock)
    raise ConfigError(
        f"--out {text}: unknown sink, expected jsonl:-, jsonl:FILE, tum:FILE or "
        "udp://HOST:PORT"
    )


def open_sinks(texts: Sequence[str], *, clock: Clock) -> list[Sink]:
    """Open all sinks or none.

    Parameters
    ----------
    texts : sequence of str
        As in `open_sink`.
    clock : Clock
        For the rate of warnings.

    Raises
    ------
    ConfigError
        From the first that cannot be opened; those before it are closed.
    """
    sinks: list[Sink] = []
    try:
        for text in texts:
            sinks.append(open_sink(text, clock=clock))  # noqa: PERF401 - must close
    except ConfigError:
        for sink in sinks:
            sink.close()
        raise
    return sinks
