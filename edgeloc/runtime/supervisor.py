"""The parent of a run's processes: starts, watches, replaces and ends them."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from edgeloc.clock import Clock
from edgeloc.config import RunConfig
from edgeloc.errors import CameraError, EdgelocError
from edgeloc.runtime.capture import STALL_ERROR_S, STALL_WARNING_S
from edgeloc.runtime.channel import Bell, Cell, Line, image_bytes, wait_for
from edgeloc.runtime.control import Control, ControlClosedError, WorkerError
from edgeloc.runtime.realtime import request_realtime
from edgeloc.runtime.reporter import Reporter
from edgeloc.runtime.telemetry import Telemetry

_log = logging.getLogger(__name__)

ROLES = ("capture", "estimator", "publisher")

MAX_RESTARTS = 5
RESTART_WINDOW_NS = 60_000_000_000
"""As many replacements of a process within so much time; then the run gives up."""

HANG_NS = 2_000_000_000
HANG_BUDGETS = 20
HANG_STEPS = 10
"""A step hangs when it takes longer than 2 s, 20 budgets and 10 times the longest."""

CAPTURE_HANG_NS = 8_000_000_000
"""Without a sign of life from capture: its driver blocks (streams time out in 5 s)."""

PUBLISHER_SLOW_NS = 1_000_000_000
PUBLISHER_HANG_NS = 5_000_000_000
"""A deadline that is over by so much: the service manager is told nothing any more,
and then the run ends. There is no second publisher: it holds the sinks."""

_TICK_S = 0.05
_GRACE_S = 0.5
_LAST_WRITES_S = 6.0
_END_S = 8.0


class NotLiveError(EdgelocError):
    """The source turned out to be a recording, which is run in one process."""


class _Worker:
    """A process and the socket to it."""

    def __init__(
        self, role: str, command: Sequence[str], fds: Sequence[int], config: RunConfig
    ) -> None:
        self.role = role
        self.error: WorkerError | None = None
        ours, theirs = socket.socketpair()
        environment = dict(os.environ)
        # What this process can import, and nothing from the folder it was started in.
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        environment["PYTHONSAFEPATH"] = "1"
        for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment.setdefault(pool, "1")
        with theirs, _blocked_signals():
            self.process = subprocess.Popen(
                [*command, role, str(theirs.fileno()), ",".join(map(str, fds))],
                stdin=subprocess.DEVNULL,
                # Only the publisher owns standard output; a library that prints in
                # another must not damage records.
                stdout=None if role == "publisher" else 2,
                pass_fds=(*fds, theirs.fileno()),
                env=environment,
            )
        self.control = Control(ours)
        self.control.send({"config": asdict(config)})

    def wait_for(self, kind: str) -> Any:  # noqa: ANN401 - JSON
        """Return what the worker says about `kind`.

        Raises
        ------
        WorkerError
            When it failed, or died without a word.
        """
        while True:
            try:
                message = self.control.wait_for(kind)
            except ControlClosedError:
                raise self.death() from None
            if message.get("error"):
                raise self.death(message)
            return message[kind]

    def death(self, message: dict[str, Any] | None = None) -> WorkerError:
        """Return why it is gone; waits for its end."""
        for found in [message] if message else self.control.receive():
            if "error" in found:
                error = found["error"]
                return WorkerError(error["text"], exit_code=int(error["exit_code"]))
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_GRACE_S)
        return WorkerError(
            f"the {self.role} process ended by itself ({self.how_it_ended()}); look "
            "for memory or driver problems in the system's log",
            exit_code=EdgelocError.exit_code,
        )

    def how_it_ended(self) -> str:
        code = self.process.returncode
        if code is None:
            return "it does not answer"
        if code >= 0:
            return f"exit code {code}"
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """End it at once."""
        if self.alive:
            self.process.kill()
        self.process.wait()
        self.control.close()

    def finish(self, timeout_s: float) -> None:
        """Let it end by itself, or end it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout_s)
        self.kill()


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Start a child that never sees Ctrl-C or systemd's SIGTERM: this process decides.

    The mask is inherited, so there is no moment at which a child would die of them.
    """
    numbers = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Supervisor:
    """Runs capture, estimator and publisher until frames, reader or patience end.

    Parameters
    ----------
    config : RunConfig
        With a camera and a map.
    command : sequence of str
        Starts a worker; its role and descriptors are appended.
    clock : Clock
        Of the watchdogs.
    telemetry : Telemetry
        Filled as records go out.
    reporter : Reporter
        Told regularly while frames are answered.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        command: Sequence[str],
        clock: Clock,
        telemetry: Telemetry,
        reporter: Reporter,
    ) -> None:
        self._config = config
        self._command = command
        self._clock = clock
        self._telemetry = telemetry
        self._reporter = reporter
        self._fds = Line.create_fds()
        self._line = Line.from_fds(self._fds)
        self._cells = self._line.board.cells
        self._signal_bell = Bell.create()
        self._signals = 0
        self._workers: dict[str, _Worker] = {}
        self._restarts: dict[str, deque[int]] = {role: deque() for role in ROLES}
        self._source: dict[str, Any] = {}
        self._site: dict[str, Any] = {}
        self._budget_ns = 0
        self._num_counted = 0
        self._last_frame: tuple[int, int] = (0, 0)
        self._progress: tuple[int, int] = (0, 0)
        self._stall_warned = False
        self._estimator_ready = True
        self._failure: EdgelocError | None = None
        self.started = False

    def run(self) -> None:
        """Start everything, and stay until it is over.

        Raises
        ------
        WorkerError
            What a worker failed with, or that it could not be kept alive.
        CameraError
            When a live source gives nothing for long.
        NotLiveError
            When no pace was asked for and the source is a recording: nothing has
            happened then.
        """
        try:
            self._start()
            # Until here, signals end this process, and the workers with it.
            with self._signal_handlers():
                self._watch()
        finally:
            for worker in self._workers.values():
                worker.kill()
            self._count_records()
            self._signal_bell.close()
            for fd in set(self._fds):
                os.close(fd)
        if self._failure is not None:
            raise self._failure

    @contextlib.contextmanager
    def _signal_handlers(self) -> Iterator[None]:
        previous = {}

        def on_signal(number: int, _: object) -> None:
            self._signals += 1
            self._signal_bell.ring()
            signal.signal(number, signal.SIG_DFL)

        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, on_signal)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _spawn(self, role: str) -> _Worker:
        worker = _Worker(role, self._command, self._fds, self._config)
        self._workers[role] = worker
        return worker

    def _start(self) -> None:
        capture, estimator, publisher = (self._spawn(role) for role in ROLES)
        self._site = estimator.wait_for("site")
        capture.control.send({"open": {"size_hint": self._site["size_hint"]}})
        self._source = capture.wait_for("source")
        if self._config.pace is None and not self._source["live"]:
            raise NotLiveError(f"{self._source['name']} is a recording")
        budget_ns = self._config.budget_ns_at("realtime")
        assert budget_ns is not None
        self._budget_ns = budget_ns
        os.ftruncate(self._line.image_fd, image_bytes(self._size))
        estimator.control.send(self._attach_message())
        publisher.control.send(
            {"publish": {"budget_ns": budget_ns, "map_id": self._site["map_id"]}}
        )
        reports = {role: w.wait_for("ready") for role, w in self._late_starters()}
        self._cells[Cell.ESTIMATOR_UP] = 1
        capture.control.send({"begin": {"budget_ns": budget_ns}})
        reports["capture"] = capture.wait_for("ready")
        report = request_realtime("supervisor", mode=self._config.realtime)
        reports["supervisor"] = {"got": report.got, "missing": report.missing}
        _log_reports(reports)
        _log.info(
            "%s %dx%d, map %s, pace realtime, budget %g ms, three processes",
            self._source["name"],
            *self._size,
            self._site["map_id"],
            budget_ns / 1e6,
        )
        self._reporter.ready()
        self.started = True

    def _late_starters(self) -> list[tuple[str, _Worker]]:
        return [(role, self._workers[role]) for role in ("publisher", "estimator")]

    @property
    def _size(self) -> tuple[int, int]:
        width, height = self._source["size"]
        return int(width), int(height)

    def _attach_message(self) -> dict[str, Any]:
        return {"attach": {"size": self._size, "budget_ns": self._budget_ns}}

    def _watch(self) -> None:
        self._last_frame = self._progress = (0, self._clock.now_ns())
        publisher = self._workers["publisher"]
        done: dict[str, Any] | None = None
        while done is None:
            controls = [w.control for w in self._workers.values() if w.alive]
            ready = wait_for([self._signal_bell, *controls], _TICK_S)
            self._signal_bell.clear()
            for message in publisher.control.receive():
                done = message.get("done", done)
                if "error" in message:
                    raise publisher.death(message)
            if done is None and publisher.control.closed:
                raise publisher.death()
            if ready and any(control.closed for control in controls):
                self._clock.sleep_until_ns(self._clock.now_ns() + 1_000_000)
            self._count_records()
            if self._signals or self._failure is not None:
                self._request_stop()
            else:
                self._watch_capture()
                self._watch_estimator()
                self._watch_publisher()
            self._end_if_overdue()
        self._request_stop()
        self._read_capture_error()
        if done["reader_gone"]:
            _log.info("standard output was closed: ending")
        for key, what in (("num_missed", "frames"), ("num_lost", "records")):
            if done[key]:
                _log.warning("%d %s were lost on the way out", done[key], what)
        for worker in self._workers.values():
            # With a log to finish, the estimator needs longer.
            worker.finish(_GRACE_S if self._config.record is None else _LAST_WRITES_S)

    def _count_records(self) -> None:
        board, cells, telemetry = self._line.board, self._cells, self._telemetry
        while self._num_counted < cells[Cell.NUM_PUBLISHED]:
            answer = board.emitted.get(
                self._num_counted, map_id=self._site.get("map_id", "")
            )
            self._num_counted += 1
            if answer is not None:
                telemetry.add(answer.estimate)
        telemetry.num_frames = max(telemetry.num_frames, cells[Cell.NUM_PUBLISHED])
        telemetry.num_unreadable = cells[Cell.NUM_UNREADABLE]
        telemetry.num_dropped = cells[Cell.NUM_SKIPPED] + cells[Cell.NUM_STALE]
        telemetry.num_duplicates = cells[Cell.NUM_RESTAMPED]
        telemetry.num_late_fixes = cells[Cell.NUM_LATE_FIXES]
        telemetry.num_restarts = cells[Cell.NUM_RESTARTS]

    def _request_stop(self) -> None:
        if self._cells[Cell.STOP_NS] == 0:
            self._cells[Cell.STOP_NS] = self._clock.now_ns()
            for bell in (
                self._line.frame_for_publisher,
                self._line.frame_for_estimator,
            ):
                bell.ring()

    def _end_if_overdue(self) -> None:
        """End capture if it does not stop: it may be blocked in a driver."""
        stop_ns = self._cells[Cell.STOP_NS]
        if stop_ns == 0:
            return
        overdue_s = (self._clock.now_ns() - stop_ns) * 1e-9
        capture = self._workers["capture"]
        if overdue_s > _GRACE_S and not self._cells[Cell.CAPTURE_ENDED]:
            capture.kill()
            self._cells[Cell.CAPTURE_ENDED] = 1
            self._line.frame_for_publisher.ring()
        if overdue_s > _END_S:
            raise WorkerError(
                f"the publisher did not end within {_END_S:g} s: it was killed",
                exit_code=EdgelocError.exit_code,
            )

    def _watch_publisher(self) -> None:
        """Tell others that all is well, as long as frames are answered."""
        now_ns = self._clock.now_ns()
        num_published = self._cells[Cell.NUM_PUBLISHED]
        if (
            num_published != self._progress[0]
            or self._cells[Cell.FRAMES_DONE] == num_published
        ):
            self._progress = (num_published, now_ns)
        waiting_ns = now_ns - self._progress[1] - self._budget_ns
        if waiting_ns < PUBLISHER_SLOW_NS:
            self._reporter.tick()
        elif waiting_ns > PUBLISHER_HANG_NS:
            raise WorkerError(
                f"the publisher answers nothing since {waiting_ns / 1e9:.1f} s",
                exit_code=EdgelocError.exit_code,
            )

    # --- capture

    def _watch_capture(self) -> None:
        cells = self._cells
        if cells[Cell.CAPTURE_ENDED] and self._workers["capture"].control.closed:
            self._read_capture_error()
            return
        now_ns = self._clock.now_ns()
        num_done = cells[Cell.FRAMES_DONE]
        if num_done != self._last_frame[0]:
            self._last_frame = (num_done, now_ns)
            self._stall_warned = False
        capture = self._workers["capture"]
        messages = capture.control.receive()
        for message in messages:
            if "error" in message:
                self._fail(capture.death(message))
                return
        if capture.control.closed and not cells[Cell.CAPTURE_ENDED]:
            self._replace_capture(capture, capture.death())
            return
        if not self._source["live"]:
            return
        silent_ns = now_ns - self._last_frame[1]
        if silent_ns > STALL_ERROR_S * 1e9:
            self._fail(
                CameraError(
                    f"{self._source['name']}: no frame for {STALL_ERROR_S:g} s; check "
                    "the cable or the stream"
                )
            )
        elif silent_ns > STALL_WARNING_S * 1e9 and not self._stall_warned:
            self._stall_warned = True
            _log.warning("%s: the camera stalls", self._source["name"])
        patience_ns = max(CAPTURE_HANG_NS, round(3e9 / max(self._source["fps"], 0.1)))
        beat_ns = max(cells[Cell.CAPTURE_BEAT_NS], self._last_frame[1])
        if now_ns - beat_ns > patience_ns:
            self._replace_capture(
                capture,
                WorkerError(
                    f"{self._source['name']}: the driver gave no sign for "
                    f"{patience_ns / 1e9:g} s",
                    exit_code=CameraError.exit_code,
                ),
            )

    def _read_capture_error(self) -> None:
        capture = self._workers["capture"]
        for message in capture.control.receive():
            if "error" in message:
                self._fail(capture.death(message))

    def _replace_capture(self, capture: _Worker, why: WorkerError) -> None:
        capture.kill()
        if not self._source["live"] or not self._may_restart("capture"):
            self._fail(why)
            return
        _log.warning("%s; opening it in a new process", why)
        worker = self._spawn("capture")
        worker.control.send({"open": {"size_hint": self._site["size_hint"]}})
        worker.control.send({"begin": {"budget_ns": self._budget_ns}})
        self._cells[Cell.CAPTURE_BEAT_NS] = self._clock.now_ns()

    # --- estimator

    def _watch_estimator(self) -> None:
        estimator = self._workers["estimator"]
        for message in estimator.control.receive():
            if "ready" in message and not self._estimator_ready:
                self._estimator_ready = True
                self._cells[Cell.ESTIMATOR_UP] = 1
                _log.info("the estimator works again")
            if "error" in message:
                # It said so itself: a bug, or a site that is gone. No use in trying.
                self._fail(estimator.death(message))
                return
        if estimator.control.closed or not estimator.alive:
            why = estimator.death()
            if why.exit_code != EdgelocError.exit_code:
                self._fail(why)
            else:
                self._replace_estimator(estimator, why)
            return
        start_ns = self._cells[Cell.STEP_START_NS]
        patience_ns = max(
            HANG_NS,
            HANG_BUDGETS * self._budget_ns,
            HANG_STEPS * self._cells[Cell.LONGEST_STEP_NS],
        )
        taken_ns = self._clock.now_ns() - start_ns
        if start_ns and taken_ns > patience_ns:
            self._replace_estimator(
                estimator,
                WorkerError(
                    f"the estimator hangs since {taken_ns / 1e9:.1f} s",
                    exit_code=EdgelocError.exit_code,
                ),
            )

    def _replace_estimator(self, estimator: _Worker, why: WorkerError) -> None:
        self._cells[Cell.ESTIMATOR_UP] = 0
        estimator.kill()
        self._cells[Cell.STEP_START_NS] = 0
        if not self._may_restart("estimator"):
            self._fail(
                WorkerError(
                    f"the estimator had to be replaced more than {MAX_RESTARTS} times "
                    f"within {RESTART_WINDOW_NS // 10**9} s, giving up; last: {why}",
                    exit_code=why.exit_code,
                )
            )
            return
        _log.warning("%s; starting a new one", why)
        self._cells.add(Cell.NUM_RESTARTS)
        self._estimator_ready = False
        worker = self._spawn("estimator")
        worker.control.send(self._attach_message())

    def _may_restart(self, role: str) -> bool:
        now_ns = self._clock.now_ns()
        times = self._restarts[role]
        while times and now_ns - times[0] > RESTART_WINDOW_NS:
            times.popleft()
        times.append(now_ns)
        return len(times) <= MAX_RESTARTS

    def _fail(self, error: EdgelocError) -> None:
        """Remember why, and let the publisher answer what is pending."""
        if self._failure is None:
            self._failure = error
            self._cells[Cell.ESTIMATOR_UP] = 0


def _log_reports(reports: dict[str, dict[str, list[str]]]) -> None:
    """Say once for all processes what real-time means there were."""
    got = [
        f"{role} {', '.join(report['got'])}"
        for role, report in reports.items()
        if report["got"]
    ]
    missing = list(
        dict.fromkeys(text for report in reports.values() for text in report["missing"])
    )
    if got:
        _log.info("real time: %s", "; ".join(got))
    if missing:
        _log.info("not real time: %s", "; ".join(missing))
