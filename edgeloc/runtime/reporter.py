"""Who is told about a run while it goes: the terminal, systemd, Prometheus."""

from __future__ import annotations

import logging
from typing import IO, TYPE_CHECKING, Any

from edgeloc.clock import Clock
from edgeloc.runtime.status_line import StatusLine
from edgeloc.runtime.systemd import SystemdNotifier
from edgeloc.runtime.telemetry import Telemetry
from edgeloc.types import PoseEstimate

if TYPE_CHECKING:
    from edgeloc.runtime.metrics_server import MetricsServer

_log = logging.getLogger(__name__)

_SYSTEMD_EVERY_NS = 5_000_000_000


class Reporter:
    """Passes telemetry on while a run goes; also a `Sink`, so that a loop can feed it.

    Belongs into the main process of the service: only that one may speak to systemd,
    and Prometheus' texts are not rendered beside a deadline.

    Parameters
    ----------
    telemetry : Telemetry
        What there is to tell.
    clock : Clock
        For all rates.
    terminal : file or None
        Shows the status line if it is a terminal.
    metrics : str or None
        Where Prometheus fetches the numbers, see `MetricsServer`.

    Raises
    ------
    ConfigError
        When that address cannot be listened on.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        *,
        clock: Clock,
        terminal: IO[str] | None,
        metrics: str | None = None,
    ) -> None:
        self._telemetry = telemetry
        self._clock = clock
        self._server: MetricsServer | None = None
        if metrics is not None:
            from edgeloc.runtime.metrics_server import MetricsServer

            self._server = MetricsServer(metrics, telemetry.prometheus_text)
            _log.info("metrics: %s", self._server.url)
        self._systemd = SystemdNotifier(clock=clock)
        self._systemd_last_ns: int | None = None
        self._line: StatusLine | None = None
        if terminal is not None:
            text = telemetry.status_line
            self._line = StatusLine(terminal, clock=clock, text=text)

    @property
    def metrics_url(self) -> str | None:
        """Where the numbers are."""
        return None if self._server is None else self._server.url

    def ready(self) -> None:
        """Say that start-up is over."""
        self._systemd.ready("waiting for the first frame")

    def tick(self) -> None:
        """Tell whoever it is time to tell; call it at least once a second.

        Cheap enough for every frame. It also feeds systemd's watchdog: do not call it
        from a place that goes on when the frames do not.
        """
        if self._line is not None:
            self._line.tick()
        if not self._systemd.active:
            return
        self._systemd.watchdog()
        now_ns, last_ns = self._clock.now_ns(), self._systemd_last_ns
        if last_ns is None or now_ns - last_ns >= _SYSTEMD_EVERY_NS:
            self._systemd_last_ns = now_ns
            self._systemd.status(self._telemetry.status_line())

    def emit(self, estimate: PoseEstimate, record: dict[str, Any]) -> bool:
        """Tick, as a sink does for every record; the telemetry has it already."""
        del estimate, record
        self.tick()
        return True

    def close(self) -> None:
        """Say that the run ends, and stop telling; a second call does nothing."""
        self._systemd.stopping()
        self._systemd.close()
        if self._line is not None:
            self._line.close()
        if self._server is not None:
            self._server.close()
