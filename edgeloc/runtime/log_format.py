"""What a log of a run is made of, and its bytes: see LOG_FORMAT.md.

Each entry is a frozen dataclass with `to_payload` and `from_field`; reading takes
nothing on trust and makes nothing but these, numbers, text and arrays.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Union

import msgpack  # type: ignore[import-untyped]
import numpy as np

from edgeloc.errors import LogFormatError
from edgeloc.fields import MAX_TEXT, Field
from edgeloc.runtime.log_aids import NO_AIDS, LoggedAids, SessionAids
from edgeloc.types import (
    CAMERA_MODEL_NUM_PARAMS,
    CameraModel,
    Cause,
    PoseEstimate,
    PoseStatus,
    Rigid3,
    Rung,
)

MAGIC = b"\x89EDGELOG\r\n\x1a\n"
"""In front of every session; transfers that change line ends or cut bit 7 break it.

As long as a record's header, so that a reader sees at once which of them follows."""

FORMAT_VERSION = 3

_READ_VERSIONS = (1, 2, 3)
"""Version 1 knew nothing of masks and other sensors, 2 nothing of those of motion."""

HEADER = struct.Struct("<III")
"""Of a record: bytes of its payload, their CRC-32, the CRC-32 of these eight bytes."""

MAX_PAYLOAD_BYTES = 64 << 20
MAX_READINGS = 100_000
IMAGE_KINDS = ("jpeg", "png", "reference", "none")

_SINCE_VERSION_2 = ("aids",)
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_MAX_COUNT = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """Where the frames came from.

    Parameters
    ----------
    kind : {"live", "folder", "video"}
        References need one of the last two.
    name : str
        Device, URL, folder or file.
    """

    kind: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One start of the program: the first entry after each `MAGIC`.

    Parameters
    ----------
    edgeloc_version : str
        Of the program.
    libraries : mapping of str to str
        Versions of what computes, and the machine.
    config : mapping of str to object
        The resolved options, by option name.
    map_path, map_id, map_sha256 : str
        The site; the hash is that of its site.json, which holds those of all files.
    camera : CameraModel
        Intrinsics of the frames.
    source : SourceFacts
        Of the frames.
    images : {"jpeg", "png", "reference", "none"}
        How frames are kept.
    same_pixels : bool
        Whether the answers were computed from exactly the pixels that a reader gets.
    offers : bool
        Whether the estimator was asked for candidates before the answer: each of them
        looks at the clock.
    start_ns, unix_time_ns : int
        Begin of the session on the run's clock and since 1970.
    aids : SessionAids or None
        What helped beside the pictures; None when nothing did, or nobody listened.
    """

    edgeloc_version: str
    libraries: Mapping[str, str]
    config: Mapping[str, object]
    map_path: str
    map_id: str
    map_sha256: str
    camera: CameraModel
    source: SourceFacts
    images: str
    same_pixels: bool
    offers: bool
    start_ns: int
    unix_time_ns: int
    aids: SessionAids | None = None

    def to_payload(self) -> dict[str, Any]:
        """Return the plain types that are written."""
        return {
            "type": "session",
            "format": FORMAT_VERSION,
            "edgeloc_version": self.edgeloc_version,
            "libraries": dict(self.libraries),
            "config": dict(self.config),
            "map": {
                "path": _plain(self.map_path),
                "id": self.map_id,
                "sha256": self.map_sha256,
            },
            "camera": {
                "model": self.camera.model,
                "width": self.camera.width,
                "height": self.camera.height,
                "params": list(self.camera.params),
            },
            "source": {"kind": self.source.kind, "name": _plain(self.source.name)},
            "images": self.images,
            "same_pixels": self.same_pixels,
            "offers": self.offers,
            "start_ns": self.start_ns,
            "unix_time_ns": self.unix_time_ns,
            "aids": None if self.aids is None else self.aids.to_payload(),
        }

    @staticmethod
    def from_field(entry: Field) -> Session:
        """Return the entry of a payload."""
        found = entry.members()
        version = _taken(found, "format").integer(0, _MAX_COUNT)
        if version not in _READ_VERSIONS:
            known = ", ".join(map(str, _READ_VERSIONS))
            raise LogFormatError(
                f"format version {version}, this edgeloc reads {known}"
            )
        facts = entry.members(
            {
                *("type", "format", "edgeloc_version", "libraries", "config", "map"),
                *("camera", "source", "images", "same_pixels"),
                *("offers", "start_ns", "unix_time_ns"),
            },
            optional=_SINCE_VERSION_2,
        )
        site = facts["map"].members({"path", "id", "sha256"})
        source = facts["source"].members({"kind", "name"})
        return Session(
            edgeloc_version=facts["edgeloc_version"].text(),
            libraries={
                key: value.text() for key, value in facts["libraries"].members().items()
            },
            config={
                key: _option(value) for key, value in facts["config"].members().items()
            },
            map_path=site["path"].text(),
            map_id=site["id"].text(),
            map_sha256=site["sha256"].sha256(),
            camera=_camera(facts["camera"]),
            source=SourceFacts(
                kind=source["kind"].choice(("live", "folder", "video")),
                name=source["name"].text(),
            ),
            images=facts["images"].choice(IMAGE_KINDS),
            same_pixels=facts["same_pixels"].flag(),
            offers=facts["offers"].flag(),
            start_ns=_time(facts["start_ns"]),
            unix_time_ns=_time(facts["unix_time_ns"]),
            aids=_session_aids(facts),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImage:
    """A frame's picture as a JPEG or PNG file.

    Parameters
    ----------
    kind : {"jpeg", "png"}
        Which.
    data : bytes
        The file.
    """

    kind: str
    data: bytes

    def to_payload(self) -> dict[str, Any]:
        """Return the plain types that are written."""
        return {"kind": self.kind, "data": self.data}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReference:
    """A frame's picture in the folder or video it came from.

    Parameters
    ----------
    name : str
        File name in the folder; "" for a video.
    index : int
        Number of the frame in the video; 0 for a folder.
    pixels_sha256 : str
        Of the decoded pixels, row by row.
    """

    name: str
    index: int
    pixels_sha256: str

    def to_payload(self) -> dict[str, Any]:
        """Return the plain types that are written."""
        return {
            "kind": "reference",
            "name": _plain(self.name),
            "index": self.index,
            "pixels_sha256": bytes.fromhex(self.pixels_sha256),
        }


LoggedImage = Union[EncodedImage, ImageReference, None]  # noqa: UP007 - an alias, evaluated on 3.10


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedFrame:
    """A frame as the estimator got it, written before the answer is known.

    Parameters
    ----------
    frame_id, camera_id, timestamp_ns, source
        As in `edgeloc.types.Frame`.
    start_ns, deadline_ns : int
        Its budget.
    before : tuple of int
        What the clock said between the last frame and this one, ns; before the first
        frame: while everything was loaded and warmed up.
    image : EncodedImage, ImageReference or None
        The picture; None when none was kept, or there was none.
    unreadable : str
        What was wrong with the frame, "" when nothing was.
    aids : LoggedAids
        What helped between the last frame and this one: masks of the warm-up.
    """

    frame_id: int
    camera_id: str
    timestamp_ns: int
    source: str
    start_ns: int
    deadline_ns: int
    before: tuple[int, ...] = ()
    image: LoggedImage = None
    unreadable: str = ""
    aids: LoggedAids = NO_AIDS

    def to_payload(self) -> dict[str, Any]:
        """Return the plain types that are written."""
        image = self.image
        return {
            "type": "frame",
            "frame_id": self.frame_id,
            "camera_id": _plain(self.camera_id),
            "timestamp_ns": self.timestamp_ns,
            "source": _plain(self.source),
            "start_ns": self.start_ns,
            "deadline_ns": self.deadline_ns,
            "before": _steps(self.before),
            "image": {"kind": "none"} if image is None else image.to_payload(),
            "unreadable": _plain(self.unreadable),
            "aids": self.aids.to_payload(),
        }

    @staticmethod
    def from_field(entry: Field) -> LoggedFrame:
        """Return the entry of a payload."""
        facts = entry.members(
            {
                *("type", "frame_id", "camera_id", "timestamp_ns", "source"),
                *("start_ns", "deadline_ns", "before", "image", "unreadable"),
            },
            optional=_SINCE_VERSION_2,
        )
        start_ns = _time(facts["start_ns"])
        return LoggedFrame(
            frame_id=facts["frame_id"].integer(0, _INT64_MAX),
            camera_id=facts["camera_id"].text(),
            timestamp_ns=_time(facts["timestamp_ns"]),
            source=facts["source"].text(),
            start_ns=start_ns,
            deadline_ns=facts["deadline_ns"].integer(start_ns, _INT64_MAX),
            before=_readings(facts["before"]),
            image=_image(facts["image"]),
            unreadable=facts["unreadable"].text(),
            aids=_aids(facts),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoggedAnswer:
    """What the estimator said about the frame before it.

    Parameters
    ----------
    estimate : PoseEstimate
        The answer, exactly.
    readings : tuple of int
        What the clock said while it was computed, ns.
    aids : LoggedAids
        What helped with it beside the picture.
    """

    estimate: PoseEstimate
    readings: tuple[int, ...] = ()
    aids: LoggedAids = NO_AIDS

    def to_payload(self) -> dict[str, Any]:
        """Return the plain types that are written."""
        estimate = self.estimate
        pose, covariance = estimate.cam_from_world, estimate.covariance
        return {
            "type": "answer",
            "frame_id": int(estimate.frame_id),
            "timestamp_ns": int(estimate.timestamp_ns),
            "status": estimate.status.value,
            "rung": estimate.rung.value,
            "cause": estimate.cause.value,
            "pose": None
            if pose is None
            else np.concatenate([pose.R.ravel(), pose.t]).astype("<f8").tobytes(),
            "covariance": None
            if covariance is None
            else covariance.astype("<f8").tobytes(),
            "num_matches": int(estimate.num_matches),
            "num_inliers": int(estimate.num_inliers),
            "reproj_rmse_px": float(estimate.reproj_rmse_px),
            "latency_ns": int(estimate.latency_ns),
            "deadline_met": bool(estimate.deadline_met),
            "stage_ns": {name: int(ns) for name, ns in estimate.stage_ns.items()},
            "map_id": estimate.map_id,
            "readings": _steps(self.readings),
            "aids": self.aids.to_payload(),
        }

    @staticmethod
    def from_field(entry: Field) -> LoggedAnswer:
        """Return the entry of a payload."""
        facts = entry.members(
            {
                *("type", "frame_id", "timestamp_ns", "status", "rung", "cause"),
                *("pose", "covariance", "num_matches", "num_inliers"),
                *("reproj_rmse_px", "latency_ns", "deadline_met", "stage_ns"),
                *("map_id", "readings"),
            },
            optional=_SINCE_VERSION_2,
        )
        try:
            estimate = PoseEstimate(
                frame_id=facts["frame_id"].integer(0, _INT64_MAX),
                timestamp_ns=_time(facts["timestamp_ns"]),
                status=PoseStatus(
                    facts["status"].choice([s.value for s in PoseStatus])
                ),
                rung=Rung(facts["rung"].choice([r.value for r in Rung])),
                cause=Cause(facts["cause"].choice([c.value for c in Cause])),
                cam_from_world=_pose(facts["pose"]),
                covariance=_covariance(facts["covariance"]),
                num_matches=facts["num_matches"].integer(0, _MAX_COUNT),
                num_inliers=facts["num_inliers"].integer(0, _MAX_COUNT),
                reproj_rmse_px=_float(facts["reproj_rmse_px"]),
                latency_ns=_time(facts["latency_ns"]),
                deadline_met=facts["deadline_met"].flag(),
                stage_ns={
                    name: _time(value)
                    for name, value in facts["stage_ns"].members().items()
                },
                map_id=facts["map_id"].text(),
            )
        except ValueError as exc:
            reason = " ".join(str(exc).split())
            raise LogFormatError(f"is not a possible answer: {reason}") from exc
        return LoggedAnswer(
            estimate=estimate,
            readings=_readings(facts["readings"]),
            aids=_aids(facts),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Counts of a run, such as frames that were dropped; the last ones hold.

    Parameters
    ----------
    values : mapping of str to int
        By name.
    end : bool
        Whether they were written at the end of the session: without such an entry the
        program did not end on its own will.
    """

    values: Mapping[str, int] = field(default_factory=dict)
    end: bool = False

    def to_payload(self) -> dict[str, Any]:
        """Return the plain types that are written."""
        return {"type": "counters", "values": dict(self.values), "end": self.end}

    @staticmethod
    def from_field(entry: Field) -> Counters:
        """Return the entry of a payload."""
        facts = entry.members({"type", "values", "end"})
        return Counters(
            values={
                name: value.integer(0, _INT64_MAX)
                for name, value in facts["values"].members().items()
            },
            end=facts["end"].flag(),
        )


Entry = Union[Session, LoggedFrame, LoggedAnswer, Counters]  # noqa: UP007 - an alias, evaluated on 3.10

_READERS: Mapping[str, Callable[[Field], Entry]] = {
    "session": Session.from_field,
    "frame": LoggedFrame.from_field,
    "answer": LoggedAnswer.from_field,
    "counters": Counters.from_field,
}


def record_bytes(entry: Entry) -> bytes:
    """Return an entry as a framed record; a session with the magic in front."""
    payload = msgpack.packb(entry.to_payload())
    start = struct.pack("<II", len(payload), zlib.crc32(payload))
    magic = MAGIC if isinstance(entry, Session) else b""
    return b"".join((magic, start, struct.pack("<I", zlib.crc32(start)), payload))


def parse_payload(payload: bytes) -> Entry:
    """Return the entry of a payload.

    Parameters
    ----------
    payload : bytes
        With a CRC that was right; nothing else is taken on trust.

    Raises
    ------
    LogFormatError
        When it is anything but an entry.
    """
    try:
        value = msgpack.unpackb(payload, object_pairs_hook=_text_map)
    except (ValueError, msgpack.UnpackException, RecursionError) as exc:
        reason = str(exc).partition("\n")[0] or type(exc).__name__
        raise LogFormatError(f"is not msgpack: {reason}") from exc
    if not isinstance(value, dict):
        raise LogFormatError("is not a map")
    entry = Field("", value, LogFormatError)
    kind = _taken(entry.members(), "type").choice(_READERS)
    return _READERS[kind](entry)


def _text_map(pairs: list[tuple[object, object]]) -> dict[object, object]:
    out = dict(pairs)
    if len(out) != len(pairs) or not all(isinstance(key, str) for key in out):
        raise ValueError("a map has keys that are not text, or one of them twice")
    return out


def _plain(text: str) -> str:
    """Return text that a reader accepts: of bounded length, without half characters."""
    return text.encode("utf-8", "replace").decode()[:MAX_TEXT]


def _taken(members: Mapping[str, Field], key: str) -> Field:
    if key not in members:
        raise LogFormatError(f"{key} is missing")
    return members[key]


def _time(value: Field) -> int:
    return value.integer(_INT64_MIN, _INT64_MAX)


def _float(value: Field) -> float:
    # Whatever the estimator said, be it not a number.
    if not isinstance(value.value, float):
        value.fail("a number")
    return value.value


def _bounded(value: Field) -> list[Field]:
    items = value.items()
    if len(items) > MAX_READINGS:
        value.fail(f"a list of at most {MAX_READINGS}")
    return items


def _steps(readings: tuple[int, ...]) -> list[int]:
    """Return the first reading and the steps to each next one: most fit in 4 bytes."""
    return [now - before for before, now in zip((0, *readings), readings, strict=False)]


def _readings(value: Field) -> tuple[int, ...]:
    now_ns = 0
    out: list[int] = []
    for step in _bounded(value):
        now_ns += _time(step)
        out.append(now_ns)
    if now_ns > _INT64_MAX or now_ns < _INT64_MIN:
        value.fail("times of 64 bits")
    return tuple(out)


def _option(value: Field) -> object:
    """Return the value of an option: plain, or a list of plain ones."""
    if isinstance(value.value, list):
        return tuple(_option(item) for item in _bounded(value))
    if value.value is None or isinstance(value.value, (bool, int, float)):
        return value.value
    return value.text()


def _camera(value: Field) -> CameraModel:
    facts = value.members({"model", "width", "height", "params"})
    try:
        return CameraModel(
            model=facts["model"].choice(CAMERA_MODEL_NUM_PARAMS),
            width=facts["width"].integer(1, 65535),
            height=facts["height"].integer(1, 65535),
            params=tuple(item.number(-1e9, 1e9) for item in _bounded(facts["params"])),
        )
    except ValueError as exc:
        raise LogFormatError(f"camera is not possible: {exc}") from exc


def _pose(value: Field) -> Rigid3 | None:
    if value.value is None:
        return None
    numbers = np.frombuffer(value.binary(96, 96), "<f8")
    return Rigid3(R=numbers[:9].reshape(3, 3), t=numbers[9:])


def _covariance(value: Field) -> Any:  # noqa: ANN401 - PoseEstimate checks it
    if value.value is None:
        return None
    return np.frombuffer(value.binary(288, 288), "<f8").reshape(6, 6)


def _session_aids(facts: Mapping[str, Field]) -> SessionAids | None:
    value = facts.get("aids")
    if value is None or value.value is None:
        return None
    return SessionAids.from_field(value)


def _aids(facts: Mapping[str, Field]) -> LoggedAids:
    value = facts.get("aids")
    return NO_AIDS if value is None else LoggedAids.from_field(value)


def _image(value: Field) -> LoggedImage:
    kind = _taken(value.members(), "kind").choice(IMAGE_KINDS)
    if kind == "none":
        value.members({"kind"})
        return None
    if kind == "reference":
        facts = value.members({"kind", "name", "index", "pixels_sha256"})
        name = facts["name"].text()
        if name in {".", ".."} or "/" in name or "\0" in name:
            facts["name"].fail("the name of a file, without folders")
        return ImageReference(
            name=name,
            index=facts["index"].integer(0, _MAX_COUNT),
            pixels_sha256=facts["pixels_sha256"].binary(32, 32).hex(),
        )
    facts = value.members({"kind", "data"})
    return EncodedImage(kind=kind, data=facts["data"].binary(1, MAX_PAYLOAD_BYTES))
