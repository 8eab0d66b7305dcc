"""``--record``: a log of a run that `edgeloc-replay` can run again.

How a loop uses it::

    recorder = open_recorder(path, session_of(...), clock=clock)
    estimator = Estimator(..., clock=recorder.clock, aids=recorder.aids)  # warm it up
    while frame := ...:
        budget = recorder.frame(frame, budget)         # the same times, logged clock
        estimate = estimator.step(frame, budget)
        recorder.estimate(estimate)
    recorder.close()

All in one thread, that of the estimator. Nothing here waits for the disk: a thread with
a bounded queue encodes and writes, and what finds no place is counted.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np

from edgeloc import __version__
from edgeloc.clock import Clock
from edgeloc.errors import ConfigError
from edgeloc.runtime.aids import Aids
from edgeloc.runtime.frame_source import AnyFrame, UnreadableFrame
from edgeloc.runtime.heard_aids import ListenedAids, session_aids
from edgeloc.runtime.log_format import (
    MAGIC,
    MAX_READINGS,
    Counters,
    EncodedImage,
    Entry,
    ImageReference,
    LoggedAnswer,
    LoggedFrame,
    LoggedImage,
    Session,
    SourceFacts,
    record_bytes,
)
from edgeloc.runtime.source_files import IMAGE_SUFFIXES
from edgeloc.runtime.telemetry import RepeatedWarning
from edgeloc.tiles.reader import Site
from edgeloc.types import ByteArray, CameraModel, Frame, FrameBudget, PoseEstimate

_log = logging.getLogger(__name__)

_QUEUE_LENGTH = 512
_MAX_BUFFERS = 8
_MAX_BUFFER_BYTES = 64 << 20
_SYNC_EVERY_S = 2.0
_COUNT_EVERY_S = 10.0
_CLOSE_S = 5.0
_POLL_S = 0.5
_PNG_LEVEL = 1  # three times the speed of the default for a tenth more bytes
_NICE = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOptions:
    """How a log is written.

    Parameters
    ----------
    jpeg_quality : int
        From 1 to 100.
    max_bytes : int
        Of the file; what comes later is counted, not written.
    """

    jpeg_quality: int = 90
    max_bytes: int = 16 << 30

    def __post_init__(self) -> None:
        if not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(f"jpeg_quality {self.jpeg_quality} is not from 1 to 100")


class RecordingClock:
    """A clock that remembers what it said to the thread that runs the estimator.

    Parameters
    ----------
    clock : Clock
        What tells the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._thread = threading.get_ident()
        self._readings: list[int] = []

    def now_ns(self) -> int:
        """Return the time now, ns."""
        now_ns = self._clock.now_ns()
        if threading.get_ident() == self._thread and len(self._readings) < MAX_READINGS:
            self._readings.append(now_ns)
        return now_ns

    def sleep_until_ns(self, deadline_ns: int) -> None:
        """Return at `deadline_ns` or at once when that is past."""
        self._clock.sleep_until_ns(deadline_ns)

    def patience_s(self, deadline_ns: int) -> float | None:
        """Return how long to wait for another thread."""
        return self._clock.patience_s(deadline_ns)

    def take(self) -> tuple[int, ...]:
        """Return what was said since the last call; the caller is the thread meant."""
        self._thread = threading.get_ident()
        readings, self._readings = self._readings, []
        return tuple(readings)


def library_versions() -> dict[str, str]:
    """Return the versions of what computes, and what it computes on."""
    packages = ("numpy", "onnxruntime", "scipy", "poselib")
    return {
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "opencv": cv2.__version__,
        **{name: _version(name) for name in packages},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def source_facts(name: str, *, live: bool) -> SourceFacts:
    """Return where frames come from, given a source's name and nature."""
    path = Path(name)
    if live:
        return SourceFacts(kind="live", name=name)
    if path.is_dir():
        return SourceFacts(kind="folder", name=str(path.resolve()))
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return SourceFacts(kind="folder", name=str(path.resolve().parent))
    return SourceFacts(kind="video", name=str(path.resolve()))


def session_of(
    *,
    site: Site,
    camera: CameraModel,
    source: SourceFacts,
    config: Mapping[str, object],
    images: str,
    offers: bool,
    clock: Clock,
    aids: Aids | None = None,
) -> Session:
    """Return the facts of a session that begins now.

    Parameters
    ----------
    site : Site
        Opened site.
    camera : CameraModel
        Intrinsics of the frames.
    source : SourceFacts
        Of the frames.
    config : mapping of str to object
        The resolved options.
    images : {"auto", "jpeg", "png", "reference", "none"}
        How frames are kept. "reference" names the file they are in and a checksum, for
        folders and videos; "auto" is that for them, and "jpeg" for cameras. Only "png"
        and "reference" give a replay the same pixels.
    offers : bool
        Whether `Estimator.step` is given an `offer`.
    clock : Clock
        The run's.
    aids : Aids, optional
        What helps the estimator.

    Raises
    ------
    ConfigError
        When frames of a live source are to be kept as references.
    """
    if images == "auto":
        images = "jpeg" if source.kind == "live" else "reference"
    if images == "reference" and source.kind == "live":
        raise ConfigError(
            f"--record-images reference: {source.name} is no file that frames could "
            "be read from again; use jpeg or png"
        )
    return Session(
        edgeloc_version=__version__,
        libraries=library_versions(),
        config=config,
        map_path=str(site.path.resolve()),
        map_id=site.manifest.map_id,
        map_sha256=site_sha256(site.path),
        camera=camera,
        source=source,
        images=images,
        same_pixels=images in {"png", "reference"},
        offers=offers,
        start_ns=clock.now_ns(),
        unix_time_ns=time.time_ns(),
        aids=None if aids is None else session_aids(aids),
    )


def site_sha256(path: Path) -> str:
    """Return the hash of a site's manifest, which holds those of all its files."""
    return hashlib.sha256((path / "site.json").read_bytes()).hexdigest()


def pixels_sha256(image: ByteArray) -> str:
    """Return the hash of an image's pixels, row by row."""
    return hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()


def open_recorder(
    path: Path,
    session: Session,
    *,
    clock: Clock,
    aids: Aids | None = None,
    options: RecordOptions | None = None,
) -> Recorder:
    """Begin a session in a new log, or behind those of an existing one.

    Parameters
    ----------
    path : Path
        The log.
    session : Session
        Its facts.
    clock : Clock
        What tells the time.
    aids : Aids, optional
        What helps the estimator.
    options : RecordOptions, optional
        How.

    Raises
    ------
    ConfigError
        When the file cannot be written, or is something else.
    """
    return Recorder(
        path,
        session,
        clock=clock,
        aids=aids or Aids(),
        options=options or RecordOptions(),
    )


class _LogFile:
    """Appends records; a full or broken disk is reported and counted, not raised."""

    def __init__(self, path: Path, *, clock: Clock, max_bytes: int) -> None:
        self._path = path
        self._warning = RepeatedWarning(_log, clock)
        self._max_bytes = max_bytes
        self._synced_s = time.monotonic()
        try:
            self._file = path.open("a+b", buffering=0)
            self._file.seek(0)
            start = self._file.read(len(MAGIC))
            self._num_bytes = self._file.seek(0, os.SEEK_END)
        except OSError as exc:
            raise ConfigError(
                f"--record {path}: cannot be written ({exc.strerror or exc})"
            ) from exc
        if start not in {b"", MAGIC}:
            self._file.close()
            raise ConfigError(
                f"--record {path}: exists and is not a log of edgeloc-run; name "
                "another file"
            )

    @property
    def num_lost(self) -> int:
        """Records that could not be written."""
        return self._warning.count

    def append(self, record: bytes) -> None:
        """Write one record, whole or not at all."""
        if self._num_bytes + len(record) > self._max_bytes:
            self._warning.warn(
                f"{self._path}: the log has reached {self._max_bytes} bytes, record "
                "lost"
            )
            return
        problem = "the disk took only a part of it"
        try:
            whole = self._file.write(record) == len(record)
        except OSError as exc:
            whole, problem = False, exc.strerror or str(exc)
        if not whole:
            self._warning.warn(f"{self._path}: record lost ({problem})")
            # What did get there would hide all that follows.
            with contextlib.suppress(OSError):
                self._file.truncate(self._num_bytes)
            return
        self._num_bytes += len(record)
        now_s = time.monotonic()
        if now_s - self._synced_s > _SYNC_EVERY_S:
            self._synced_s = now_s
            self._sync()

    def _sync(self) -> None:
        # Pipes cannot, and a disk that fails says so at the next write.
        with contextlib.suppress(OSError):
            os.fdatasync(self._file.fileno())

    def close(self) -> None:
        self._sync()
        self._file.close()


@dataclass(slots=True)
class _Waiting:
    """A frame whose picture is not encoded yet."""

    frame: LoggedFrame
    buffer: ByteArray | None


class Recorder:
    """Writes a session; see the module's docstring.

    Parameters
    ----------
    path : Path
        The log.
    session : Session
        Its facts.
    clock : Clock
        What tells the time.
    aids : Aids
        What helps the estimator.
    options : RecordOptions
        How.

    Attributes
    ----------
    clock : RecordingClock
        What the estimator must go by.
    aids : Aids
        What it must be helped by.
    num_lost_frames : int
        Frames that found the disk too slow: their answers are in the log all the same.
    num_lost_answers : int
        Answers that did.

    Raises
    ------
    ConfigError
        When the file cannot be written, or is something else.
    """

    def __init__(
        self,
        path: Path,
        session: Session,
        *,
        clock: Clock,
        aids: Aids,
        options: RecordOptions,
    ) -> None:
        self.clock = RecordingClock(clock)
        self._listened = ListenedAids(aids)
        self.aids = self._listened.aids
        self.num_lost_frames = 0
        self.num_lost_answers = 0
        self._path = path
        self._session = session
        self._options = options
        self._file = _LogFile(path, clock=clock, max_bytes=options.max_bytes)
        self._counters: dict[str, int] = {}
        self._buffers: list[ByteArray] = []
        self._num_buffers = 0
        self._queue: queue.Queue[_Waiting | LoggedAnswer | None] = queue.Queue(
            _QUEUE_LENGTH
        )
        self._closed = False
        # Before anything else happens: a log without it could not be read.
        self._file.append(record_bytes(session))
        self._thread = threading.Thread(
            target=self._write, name="edgeloc-record", daemon=True
        )
        self._thread.start()

    def frame(self, frame: AnyFrame, budget: FrameBudget) -> FrameBudget:
        """Log a frame that is about to be answered.

        Parameters
        ----------
        frame : Frame or UnreadableFrame
            The picture is copied.
        budget : FrameBudget
            Of the frame.

        Returns
        -------
        FrameBudget
            The same times on `clock`: for the estimator.
        """
        before = self.clock.take()
        unreadable = frame.reason if isinstance(frame, UnreadableFrame) else None
        logged = LoggedFrame(
            frame_id=frame.frame_id,
            camera_id=frame.camera_id,
            timestamp_ns=frame.timestamp_ns,
            source=frame.source,
            start_ns=budget.start_ns,
            deadline_ns=budget.deadline_ns,
            before=before,
            unreadable="" if unreadable is None else unreadable or "unreadable",
            aids=self._listened.take(),
        )
        if not self._put_frame(frame, logged):
            self.num_lost_frames += 1
        return replace(budget, clock=self.clock)

    def estimate(self, estimate: PoseEstimate) -> None:
        """Log the answer to the last frame."""
        answer = LoggedAnswer(
            estimate=estimate, readings=self.clock.take(), aids=self._listened.take()
        )
        if not self._put(answer):
            self.num_lost_answers += 1

    def counters(self, values: Mapping[str, int]) -> None:
        """Give counts of the run, such as dropped frames; the newest are written."""
        self._counters = dict(values)

    def close(self) -> None:
        """Write what is left, for a few seconds at most; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)  # wakes the thread
        self._thread.join(_CLOSE_S)
        lost = self.num_lost_frames
        if self._thread.is_alive():
            _log.warning(
                "%s: the disk is too slow, the end of the log is lost", self._path
            )
        elif lost:
            _log.warning(
                "%s: the disk was too slow for %d frames, which the log lacks",
                self._path,
                lost,
            )

    def _put_frame(self, frame: AnyFrame, logged: LoggedFrame) -> bool:
        if not isinstance(frame, Frame) or self._session.images == "none":
            return self._put(_Waiting(logged, None))
        buffer = self._buffer(frame.image)
        if buffer is None:
            return False
        kept = self._put(_Waiting(logged, buffer))
        if not kept:
            self._buffers.append(buffer)
        return kept

    def _put(self, item: _Waiting | LoggedAnswer) -> bool:
        if self._closed:
            return False
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            return False
        return True

    def _buffer(self, image: ByteArray) -> ByteArray | None:
        """Return a copy of the image in a buffer of its own; None when all wait."""
        if self._buffers:
            buffer = self._buffers.pop()
            if buffer.shape != image.shape:
                buffer = np.empty_like(image, order="C")
        else:
            bound = max(2, min(_MAX_BUFFERS, _MAX_BUFFER_BYTES // image.nbytes))
            if self._num_buffers >= bound:
                return None
            self._num_buffers += 1
            buffer = np.empty_like(image, order="C")
        np.copyto(buffer, image)
        return buffer

    def _write(self) -> None:
        _step_behind()
        counted_s = time.monotonic()
        while not self._closed or not self._queue.empty():
            item = self._next()
            if item is None:
                continue
            if isinstance(item, _Waiting):
                entry: Entry = replace(item.frame, image=self._image(item))
                if item.buffer is not None:
                    self._buffers.append(item.buffer)
            else:
                entry = item
            self._file.append(record_bytes(entry))
            if time.monotonic() - counted_s > _COUNT_EVERY_S:
                counted_s = time.monotonic()
                self._file.append(record_bytes(self._counted(end=False)))
        self._file.append(record_bytes(self._counted(end=True)))
        self._file.close()

    def _next(self) -> _Waiting | LoggedAnswer | None:
        try:
            return self._queue.get(timeout=_POLL_S)
        except queue.Empty:
            return None

    def _counted(self, *, end: bool) -> Counters:
        own = {
            "log_lost_frames": self.num_lost_frames,
            "log_lost_answers": self.num_lost_answers,
            "log_lost_records": self._file.num_lost,
        }
        return Counters(values={**self._counters, **own}, end=end)

    def _image(self, item: _Waiting) -> LoggedImage:
        if item.buffer is None:
            return None
        kind = self._session.images
        if kind == "reference":
            folder = self._session.source.kind == "folder"
            number = item.frame.source.rpartition("#")[2]
            return ImageReference(
                name=item.frame.source if folder else "",
                index=int(number) if not folder and number.isdecimal() else 0,
                pixels_sha256=pixels_sha256(item.buffer),
            )
        if kind == "png":
            flags = [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL]
        else:
            flags = [cv2.IMWRITE_JPEG_QUALITY, self._options.jpeg_quality]
        suffix = ".png" if kind == "png" else ".jpg"
        encoded = cv2.imencode(suffix, item.buffer, flags)[1]
        return EncodedImage(kind=kind, data=encoded.tobytes())


def _step_behind() -> None:
    """Let the pipeline go first: ordinary scheduling, and a lower priority than it."""
    # On Linux both mean the calling thread alone.
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with contextlib.suppress(OSError, AttributeError):
        thread = threading.get_native_id()
        nice = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(nice + _NICE, 19))
