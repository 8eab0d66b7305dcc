"""Reading logs of runs: whatever is intact of them, and nothing on trust."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgeloc.errors import LogFormatError
from edgeloc.runtime.log_format import (
    HEADER,
    MAGIC,
    MAX_PAYLOAD_BYTES,
    Counters,
    LoggedAnswer,
    LoggedFrame,
    Session,
    parse_payload,
)

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A frame and what was said about it.

    Parameters
    ----------
    frame : LoggedFrame or None
        None where the disk was too slow for the frame.
    answer : LoggedAnswer or None
        None where the program ended in between.
    """

    frame: LoggedFrame | None
    answer: LoggedAnswer | None

    @property
    def frame_id(self) -> int:
        """Of the frame."""
        if self.frame is not None:
            return self.frame.frame_id
        return -1 if self.answer is None else self.answer.estimate.frame_id


class LogReader:
    """Goes through a log once, from the first session to the last.

    A record that is damaged is left out, one that was cut off when the program or the
    machine died ends its session; `damage` says where. A record whose checksum is right
    and whose content is not what the format says is an error.

    Parameters
    ----------
    path : Path
        The log.

    Attributes
    ----------
    damage : list of str
        What was left out so far, one line each.

    Raises
    ------
    LogFormatError
        When it cannot be read, or is no log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.damage: list[str] = []
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as exc:
            raise LogFormatError(
                f"{path}: cannot be read ({exc.strerror or exc})"
            ) from exc
        try:
            is_log = self._read(len(MAGIC)) == MAGIC
        except LogFormatError:
            self._file.close()
            raise
        if not is_log:
            self._file.close()
            raise LogFormatError(
                f"{path}: is not a log of edgeloc-run; expected what --record wrote"
            )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> LogReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def sessions(self) -> Iterator[tuple[Session, Iterator[Step | Counters]]]:
        """Yield each session with its steps and counters.

        The steps must be used up, or not asked for, before the next session.

        Raises
        ------
        LogFormatError
            When an intact record has a wrong content, or a session does not begin with
            what a session begins with.
        """
        found = True
        while found:
            num_damaged = len(self.damage)
            entry = self._next()
            if isinstance(entry, Session):
                steps = self._steps()
                yield entry, steps
                for _ in steps:
                    pass
            elif entry is not None and len(self.damage) == num_damaged:
                raise LogFormatError(
                    f"{self._path}: a session begins without its facts"
                )
            found = self._seek_magic()

    def _steps(self) -> Iterator[Step | Counters]:
        frame: LoggedFrame | None = None
        while (entry := self._next()) is not None:
            if isinstance(entry, LoggedAnswer):
                if frame is not None and frame.frame_id != entry.estimate.frame_id:
                    yield Step(frame=frame, answer=None)
                    frame = None
                yield Step(frame=frame, answer=entry)
                frame = None
                continue
            if frame is not None:
                yield Step(frame=frame, answer=None)
                frame = None
            if isinstance(entry, LoggedFrame):
                frame = entry
            elif isinstance(entry, Counters):
                yield entry
            else:
                raise LogFormatError(f"{self._path}: a session inside of a session")
        if frame is not None:
            yield Step(frame=frame, answer=None)

    def _next(self) -> Session | LoggedFrame | LoggedAnswer | Counters | None:
        """Return the next intact entry; None at the end of the session."""
        while True:
            offset = self._file.tell()
            header = self._read(HEADER.size)
            if header in {b"", MAGIC}:
                # The end, or the next session, whose magic is sought from here.
                self._file.seek(offset)
                return None
            if len(header) < HEADER.size:
                self._cut_off(offset)
                return None
            num_bytes, payload_crc, header_crc = HEADER.unpack(header)
            if zlib.crc32(header[:8]) != header_crc or num_bytes > MAX_PAYLOAD_BYTES:
                self._cut_off(offset)
                return None
            payload = self._read(num_bytes)
            intact = zlib.crc32(payload) == payload_crc
            # One that was cut off when a later session was begun seems to hold it.
            if len(payload) < num_bytes or (not intact and MAGIC in payload):
                self._cut_off(offset)
                return None
            if not intact:
                self.damage.append(f"a record at byte {offset} is damaged, left out")
                continue
            try:
                return parse_payload(payload)
            except LogFormatError as exc:
                raise LogFormatError(
                    f"{self._path}: record at byte {offset}: {exc}"
                ) from exc

    def _cut_off(self, offset: int) -> None:
        self.damage.append(f"the session breaks off at byte {offset}")
        self._file.seek(offset)

    def _seek_magic(self) -> bool:
        """Go behind the next magic; False when there is none."""
        keep = b""
        while chunk := self._read(_CHUNK_BYTES):
            at = (keep + chunk).find(MAGIC)
            if at >= 0:
                past = len(keep) + len(chunk) - at - len(MAGIC)
                self._file.seek(-past, 1)
                return True
            keep = (keep + chunk)[-len(MAGIC) + 1 :]
        return False

    def _read(self, num_bytes: int) -> bytes:
        try:
            return self._file.read(num_bytes)
        except OSError as exc:
            raise LogFormatError(
                f"{self._path}: cannot be read ({exc.strerror or exc})"
            ) from exc
