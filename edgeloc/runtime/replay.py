"""Running a log again: the same frames, the same clock, the same answers.

What an estimator does depends on its frames, its options, the site, what other sensors
and a segmentation network said, and what the clock said when it asked. All of these are
in the log, so that in one thread, with the same libraries on the same kind of machine,
the answers repeat to the last bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeloc import __version__
from edgeloc.errors import ConfigError
from edgeloc.geometry.se3 import log_se3
from edgeloc.localize.candidate import FrameTrace
from edgeloc.runtime.estimator import Estimator
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.runtime.frame_source import UnreadableFrame
from edgeloc.runtime.heard_aids import ReplayedAids
from edgeloc.runtime.log_aids import NO_AIDS
from edgeloc.runtime.log_format import (
    Counters,
    LoggedAnswer,
    LoggedFrame,
    Session,
    record_bytes,
)
from edgeloc.runtime.log_reader import Step
from edgeloc.runtime.logged_images import LoggedImages
from edgeloc.runtime.loop import lost_estimate
from edgeloc.runtime.record import library_versions
from edgeloc.tiles.reader import Site
from edgeloc.types import ByteArray, Frame, FrameBudget, PoseEstimate

_MAX_REASONS = 5
_RELATIVE = 1e-6


class ReplayClock:
    """A clock that says again what another one said.

    When it is asked more often than the other was, it stands still; `diverged` counts
    that, and what was left over.

    Parameters
    ----------
    start_ns : int
        What it says before there are readings.
    """

    def __init__(self, start_ns: int) -> None:
        self._last_ns = start_ns
        self._readings: Iterator[int] = iter(())
        self._said: list[int] = []
        self.diverged = 0

    def begin(self, readings: tuple[int, ...]) -> None:
        """Go on with these readings."""
        self.diverged = 0
        self._said = []
        self._readings = iter(readings)

    def end(self) -> int:
        """Return how many readings too many or too few were asked for."""
        self.diverged += sum(1 for _ in self._readings)
        return self.diverged

    @property
    def said(self) -> tuple[int, ...]:
        """What it said since `begin`."""
        return tuple(self._said)

    def now_ns(self) -> int:
        """Return the next reading, ns."""
        reading = next(self._readings, None)
        if reading is None:
            self.diverged += 1
            reading = self._last_ns
        self._last_ns = reading
        self._said.append(reading)
        return reading

    def sleep_until_ns(self, deadline_ns: int) -> None:
        """Return at once: nobody waits in a replay."""

    def patience_s(self, deadline_ns: int) -> None:
        """Return None: a slow disk is no part of a log."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReplayedFrame:
    """A frame of a log, answered again.

    Parameters
    ----------
    frame : LoggedFrame
        The frame; what the clock said before it, as the replay heard it.
    readings : tuple of int
        What the clock said in it, as the replay heard it.
    image : ndarray of shape (H, W) or (H, W, 3), uint8, or None
        Its picture.
    answer : LoggedAnswer or None
        What the run said; None when it ended in this frame.
    estimate : PoseEstimate
        What the replay says.
    trace : FrameTrace
        Why.
    num_readings_off : int
        Clock readings that the replay took more or fewer: not 0 when the program does
        something else now than it did then.
    """

    frame: LoggedFrame
    readings: tuple[int, ...]
    image: ByteArray | None
    answer: LoggedAnswer | None
    estimate: PoseEstimate
    trace: FrameTrace
    num_readings_off: int


class ReplayGaps:
    """What could not be replayed.

    Attributes
    ----------
    num_lost : int
        Frames that are not in the log, as the disk was too slow, or without a picture.
    reasons : list of str
        Why, for the first few.
    """

    def __init__(self) -> None:
        self.num_lost = 0
        self.reasons: list[str] = []

    def add(self, reason: str) -> None:
        """Count a frame."""
        self.num_lost += 1
        if len(self.reasons) < _MAX_REASONS:
            self.reasons.append(reason)


def replay_session(
    session: Session,
    steps: Iterator[Step],
    *,
    site: Site,
    options: EstimatorOptions,
    source: Path | None = None,
    gaps: ReplayGaps,
) -> Iterator[ReplayedFrame]:
    """Answer the frames of a session again, in their order.

    Parameters
    ----------
    session : Session
        Its facts.
    steps : iterator of Step
        Its frames and answers.
    site : Site
        The site, normally that of the run.
    options : EstimatorOptions
        Normally those of the run.
    source : Path, optional
        Where the frames are now, see `LoggedImages`.
    gaps : ReplayGaps
        Filled with what cannot be replayed.

    Raises
    ------
    LogFormatError
        When the log is wrong, or the frames that it refers to are not here.
    MapError, ModelError
        When the site or its networks cannot be used.
    """
    clock = ReplayClock(session.start_ns)
    size = session.camera.width, session.camera.height
    aids = ReplayedAids(session.aids, size=size, cold=options.cold)
    estimator: Estimator | None = None
    with closing(LoggedImages(session, source=source)) as images:
        for step in steps:
            frame = step.frame
            if frame is None:
                gaps.add(f"frame {step.frame_id} is not in the log")
                continue
            if estimator is None:
                clock.begin(frame.before)
                aids.begin(frame.aids)
                estimator = Estimator(
                    site=site,
                    camera=session.camera,
                    options=options,
                    clock=clock,
                    aids=aids.aids,
                )
                estimator.warm_up()
                frame = replace(frame, before=clock.said)
            image = None if frame.unreadable else images.read(frame)
            if isinstance(image, str):
                gaps.add(f"frame {frame.frame_id}: {image}")
                continue
            aids.begin(NO_AIDS if step.answer is None else step.answer.aids)
            yield _answered(
                step,
                frame,
                image,
                estimator=estimator,
                clock=clock,
                offer=_ignore if session.offers else None,
            )


def _answered(
    step: Step,
    frame: LoggedFrame,
    image: ByteArray | None,
    *,
    estimator: Estimator,
    clock: ReplayClock,
    offer: Callable[[PoseEstimate], None] | None,
) -> ReplayedFrame:
    answer = step.answer
    clock.begin((frame.start_ns,) if answer is None else answer.readings)
    budget = FrameBudget(
        start_ns=frame.start_ns, deadline_ns=frame.deadline_ns, clock=clock
    )
    if image is None:
        map_id = "" if answer is None else answer.estimate.map_id
        estimate = lost_estimate(_unreadable(frame), budget, map_id=map_id)
        trace = FrameTrace()
    else:
        estimate, trace = estimator.explain(_frame(frame, image), budget, offer=offer)
    return ReplayedFrame(
        frame=frame,
        readings=clock.said,
        image=image,
        answer=answer,
        estimate=estimate,
        trace=trace,
        num_readings_off=0 if answer is None else clock.end(),
    )


def _ignore(candidate: PoseEstimate) -> None:
    """Take a candidate that the run wanted, and the replay does not."""


def _frame(frame: LoggedFrame, image: ByteArray) -> Frame:
    return Frame(
        frame_id=frame.frame_id,
        camera_id=frame.camera_id,
        timestamp_ns=frame.timestamp_ns,
        image=image,
        source=frame.source,
    )


def _unreadable(frame: LoggedFrame) -> UnreadableFrame:
    return UnreadableFrame(
        frame_id=frame.frame_id,
        camera_id=frame.camera_id,
        timestamp_ns=frame.timestamp_ns,
        source=frame.source,
        reason=frame.unreadable,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """How far an answer may be from the one in the log. Times are never compared.

    Parameters
    ----------
    name : str
        For people.
    position : float
        Of the camera centre, in the unit of the map.
    rotation_rad : float
        Of the rotation.
    sigmas : float
        Either may also be off by this many standard deviations of the logged answer.
    numbers : bool
        Whether matches, inliers, residual, covariance and map_id are compared, too:
        counts and map_id must be equal, the others to 1e-6 of their size.
    """

    name: str
    position: float
    rotation_rad: float
    sigmas: float = 0.0
    numbers: bool = True


EXACT = Tolerances(name="exact", position=1e-6, rotation_rad=1e-6)
"""The same pixels, the same libraries, the same kind of machine."""

CLOSE = Tolerances(
    name="close",
    position=1e-3,
    rotation_rad=1e-3,
    sigmas=3.0,
    numbers=False,
)
"""JPEG pictures, or other libraries: the same verdict, and a pose within its sigma."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One field of one frame that is not as in the log.

    Parameters
    ----------
    frame_id : int
        Of the frame.
    field : str
        Of `PoseEstimate`.
    logged, replayed : str
        The two values, or "" and how far they are apart.
    """

    frame_id: int
    field: str
    logged: str
    replayed: str


def differences(
    logged: PoseEstimate, replayed: PoseEstimate, tolerances: Tolerances
) -> list[Difference]:
    """Compare two answers field by field; latency and stage times are left out.

    Parameters
    ----------
    logged, replayed : PoseEstimate
        Of the same frame.
    tolerances : Tolerances
        What still counts as equal.
    """
    out: list[Difference] = []

    def differ(name: str, then: object, now: object) -> None:
        out.append(
            Difference(
                frame_id=logged.frame_id,
                field=name,
                logged=str(then),
                replayed=str(now),
            )
        )

    names = ("timestamp_ns", "deadline_met")
    for name in (*names, "map_id") if tolerances.numbers else names:
        then, now = getattr(logged, name), getattr(replayed, name)
        if then != now:
            differ(name, then, now)
    for name in ("status", "rung", "cause"):
        then, now = getattr(logged, name).value, getattr(replayed, name).value
        if then != now:
            differ(name, then, now)
    if tolerances.numbers:
        for name in ("num_matches", "num_inliers", "reproj_rmse_px"):
            then, now = getattr(logged, name), getattr(replayed, name)
            if not np.isclose(then, now, rtol=_RELATIVE, atol=1e-9, equal_nan=True):
                differ(name, then, now)
    _compare_poses(logged, replayed, tolerances, differ=differ)
    return out


def _compare_poses(
    logged: PoseEstimate,
    replayed: PoseEstimate,
    tolerances: Tolerances,
    *,
    differ: Callable[[str, object, object], None],
) -> None:
    then, now = logged.cam_from_world, replayed.cam_from_world
    if then is None or now is None or logged.covariance is None:
        return  # the status says it already
    sigma = np.sqrt(
        [np.trace(logged.covariance[block, block]) for block in (slice(3), slice(3, 6))]
    )
    rotation_rad = float(np.linalg.norm(log_se3(then @ now.inverse())[:3]))
    moved = float(np.linalg.norm(then.origin_in_a - now.origin_in_a))
    if rotation_rad > max(tolerances.rotation_rad, tolerances.sigmas * sigma[0]):
        differ("rotation", "", f"off by {np.rad2deg(rotation_rad):.3g} deg")
    if moved > max(tolerances.position, tolerances.sigmas * sigma[1]):
        differ("position", "", f"off by {moved:.3g}")
    if tolerances.numbers and replayed.covariance is not None:
        scale = float(np.abs(logged.covariance).max())
        off = float(np.abs(logged.covariance - replayed.covariance).max()) / scale
        if off > _RELATIVE:
            differ("covariance", "", f"off by {off:.3g} of its largest entry")


def _last_part(text: str) -> str:
    """Return the last part of an absolute path, and anything else as it is."""
    return text.rstrip("/").rpartition("/")[2] if text.startswith("/") else text


class LogRewriter:
    """Writes a log with the answers of a replay: how a reference is renewed.

    The new log says that its answers belong to exactly its pictures, whatever they are,
    and which libraries gave them. Of paths it keeps the last part only, since it is
    made to be passed on: replaying it needs to be told where the site is. It takes the
    place of a file of that name when it is complete.

    Parameters
    ----------
    path : Path
        The new log.

    Raises
    ------
    ConfigError
        When it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        try:
            self._file = self._partial.open("wb")
        except OSError as exc:
            raise ConfigError(
                f"--write {path}: cannot be written ({exc.strerror or exc})"
            ) from exc

    def session(self, session: Session) -> None:
        """Begin a session."""
        source = session.source
        again = replace(
            session,
            config={
                key: _last_part(value) if isinstance(value, str) else value
                for key, value in session.config.items()
            },
            map_path=_last_part(session.map_path),
            source=replace(source, name=_last_part(source.name)),
            edgeloc_version=__version__,
            libraries=library_versions(),
            same_pixels=True,
        )
        self._file.write(record_bytes(again))

    def step(self, replayed: ReplayedFrame) -> None:
        """Append a frame and its new answer."""
        then = replayed.answer
        answer = LoggedAnswer(
            estimate=replayed.estimate,
            readings=replayed.readings,
            aids=NO_AIDS if then is None else then.aids,
        )
        self._file.write(record_bytes(replayed.frame))
        self._file.write(record_bytes(answer))

    def __enter__(self) -> LogRewriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._file.write(record_bytes(Counters(end=True)))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._partial.replace(self._path)
        else:
            self._file.close()
            self._partial.unlink()
