"""Where records go: JSON lines, TUM trajectories, UDP datagrams."""

from __future__ import annotations

import json
import logging
import math
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgpack  # type: ignore[import-untyped]

from edgeloc.clock import Clock
from edgeloc.errors import ConfigError
from edgeloc.geometry.se3 import quat_from_rotation
from edgeloc.runtime.odometry import Odometry
from edgeloc.runtime.outlets import Outlet, open_file, open_stdout
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


def odometry_fields(odometry: Odometry | None) -> dict[str, Any]:
    """Return the fields that ``--odom`` adds to a record, None where nothing is known.

    ``odom`` is cam_from_odom, in which the camera never jumps; ``map_from_odom`` says
    where that frame lies in the map: fixes move it alone.
    """
    if odometry is None:
        return {"odom": None, "map_from_odom": None}
    return {
        name: {"qvec": quat_from_rotation(pose.R).tolist(), "tvec": pose.t.tolist()}
        for name, pose in (
            ("odom", odometry.cam_from_odom),
            ("map_from_odom", odometry.map_from_odom),
        )
    }


def tum_line(
    estimate: PoseEstimate, record: dict[str, Any] | None = None
) -> str | None:
    """Return ``timestamp_s tx ty tz qx qy qz qw`` of world_from_cam, None when LOST."""
    del record
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


class EncodingSink(ABC):
    """A sink in two steps, so that a record can be ready before its moment."""

    @abstractmethod
    def encode(self, estimate: PoseEstimate, record: dict[str, Any]) -> bytes | None:
        """Return what to send for a record, None for nothing."""

    @abstractmethod
    def send(self, data: bytes) -> bool:
        """Pass it on; False when the run has lost its reader and should end."""

    def emit(self, estimate: PoseEstimate, record: dict[str, Any]) -> bool:
        """Encode and send."""
        data = self.encode(estimate, record)
        return data is None or self.send(data)

    @property
    @abstractmethod
    def num_lost(self) -> int:
        """Records that did not arrive, as far as this side knows."""

    @property
    def blocked_fd(self) -> int | None:
        """What to wait for before the next `pump`, None when nothing waits."""
        return None

    def pump(self) -> None:  # noqa: B027 - most have nothing to do
        """Go on with what could not be sent yet."""

    @abstractmethod
    def close(self) -> None:
        """Finish; a second call does nothing."""


def json_line(estimate: PoseEstimate, record: dict[str, Any]) -> str:
    """Return a record as one line of JSON."""
    del estimate
    return json.dumps(record, allow_nan=False, separators=(", ", ": "))


class LineSink(EncodingSink):
    """``jsonl:`` and ``tum:``: a line per record.

    Parameters
    ----------
    outlet : Outlet
        Where to; taken over.
    to_line : callable
        Returns the line of a record, None for none.
    """

    def __init__(
        self,
        outlet: Outlet,
        to_line: Callable[[PoseEstimate, dict[str, Any]], str | None],
    ) -> None:
        self._outlet = outlet
        self._to_line = to_line

    def encode(self, estimate: PoseEstimate, record: dict[str, Any]) -> bytes | None:
        """Return the line of a record."""
        line = self._to_line(estimate, record)
        return None if line is None else line.encode() + b"\n"

    def send(self, data: bytes) -> bool:
        """Write the line; False when nobody reads any more (``| head``)."""
        return self._outlet.write(data)

    @property
    def num_lost(self) -> int:
        """Lines that were not written."""
        return self._outlet.num_lost

    @property
    def blocked_fd(self) -> int | None:
        """What to wait for before the next `pump`."""
        return self._outlet.blocked_fd

    def pump(self) -> None:
        """Go on with lines that could not be written yet."""
        self._outlet.pump()

    def close(self) -> None:
        """Finish what was begun."""
        self._outlet.close()


class UdpSink(EncodingSink):
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

    def encode(self, estimate: PoseEstimate, record: dict[str, Any]) -> bytes:
        """Return the datagram of a record."""
        del estimate
        return bytes(msgpack.packb(record))

    def send(self, data: bytes) -> bool:
        """Send one datagram, or count that it could not be sent."""
        if self._socket is None:
            return True
        try:
            self._socket.send(data)
        except OSError as exc:
            # A full buffer, no route, or nobody listening on the last datagram.
            self._warning.warn(f"{self._url}: record lost ({exc.strerror or exc})")
        return True

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def open_sink(text: str, *, clock: Clock, may_wait: bool = True) -> EncodingSink:
    """Open one sink.

    Parameters
    ----------
    text : str
        ``jsonl:-``, ``jsonl:FILE``, ``tum:FILE`` or ``udp://HOST:PORT``.
    clock : Clock
        For the rate of warnings.
    may_wait : bool
        Whether a slow reader or disk may hold the caller up; otherwise records that it
        is too slow for are dropped and counted, see `edgeloc.runtime.outlets`.

    Returns
    -------
    EncodingSink

    Raises
    ------
    ConfigError
        When it is unknown or cannot be opened.
    """
    kind, colon, rest = text.partition(":")
    if colon and rest:
        if text == "jsonl:-":
            return LineSink(open_stdout(clock=clock, may_wait=may_wait), json_line)
        if kind in _LINES and rest != "-":
            outlet = open_file(Path(rest), clock=clock, may_wait=may_wait)
            return LineSink(outlet, _LINES[kind])
        if text.startswith("udp://"):
            return UdpSink(text, clock=clock)
    raise ConfigError(
        f"--out {text}: unknown sink, expected jsonl:-, jsonl:FILE, tum:FILE or "
        "udp://HOST:PORT"
    )


_LINES: Mapping[str, Callable[[PoseEstimate, dict[str, Any]], str | None]] = {
    "jsonl": json_line,
    "tum": tum_line,
}


def open_sinks(
    texts: Sequence[str], *, clock: Clock, may_wait: bool = True
) -> list[EncodingSink]:
    """Open all sinks or none.

    Parameters
    ----------
    texts : sequence of str
        As in `open_sink`.
    clock : Clock
        For the rate of warnings.
    may_wait : bool
        As in `open_sink`.

    Raises
    ------
    ConfigError
        From the first that cannot be opened; those before it are closed.
    """
    sinks: list[EncodingSink] = []
    try:
        for text in texts:
            sinks.append(open_sink(text, clock=clock, may_wait=may_wait))  # noqa: PERF401 - must close
    except ConfigError:
        for sink in sinks:
            sink.close()
        raise
    return sinks
