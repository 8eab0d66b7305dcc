"""Where priors come from: NMEA over a serial line, TCP or from a file.

What arrives is stamped with the clock of the frames, less the latency of the receiver;
see `edgeloc.runtime.line_source`.
"""

from __future__ import annotations

import logging

from edgeloc.clock import Clock
from edgeloc.errors import ConfigError
from edgeloc.runtime.line_source import LineReader, is_recorded, recorded_lines
from edgeloc.runtime.nmea import Fix, NmeaParser
from edgeloc.runtime.priors import PriorFeed

_log = logging.getLogger(__name__)

_OPTION = "--gnss"
_NS_PER_S = 1_000_000_000
_HALF_DAY_S, _DAY_S = 43_200.0, 86_400.0


def open_prior_source(
    source: str,
    feed: PriorFeed,
    *,
    clock: Clock,
    sigma_m: float | None = None,
    latency_ns: int = 0,
) -> None:
    """Have a source feed measurements to a feed from now on.

    Parameters
    ----------
    source : str
        As `LineReader` has it, or a file, whose first sentence belongs to the first
        frame.
    feed : PriorFeed
        Takes the measurements; closing it ends the reading. For a file it has to be
        made with ``recorded=True``, see `is_recorded`.
    clock : Clock
        Of the frames.
    sigma_m : float or None
        Of every position, in place of what the receiver says.
    latency_ns : int
        How old measurements are when they arrive.

    Raises
    ------
    ConfigError
        When it cannot be one, or is not there.
    """
    parser = NmeaParser(sigma_m=sigma_m)
    if is_recorded(source):
        _load_file(source, feed, parser)
        return

    def take(line: bytes, now_ns: int) -> None:
        for measurement in parser.feed(line):
            feed.push(now_ns - latency_ns, measurement)

    reader = LineReader(source, option=_OPTION, take=take, clock=clock)

    def close() -> None:
        reader.close()
        _log.info(
            "gnss: %d sentences, %d damaged", parser.num_sentences, parser.num_damaged
        )

    feed.on_close = close


def _load_file(source: str, feed: PriorFeed, parser: NmeaParser) -> None:
    """Feed all of a file; sentences without a time have that of the one before."""
    first_s: float | None = None
    last_s = 0.0
    pending = []
    num = 0
    for line in recorded_lines(source, option=_OPTION):
        for measurement in parser.feed(line):
            num += 1
            if isinstance(measurement, Fix):
                if first_s is None:
                    first_s = last_s = measurement.time_s
                # Over midnight the time of day begins again.
                step = measurement.time_s - last_s % _DAY_S
                if step < -_HALF_DAY_S:
                    step += _DAY_S
                last_s += step
            if first_s is None:
                pending.append(measurement)
                continue
            for early in pending:
                feed.push(0, early)
            pending.clear()
            feed.push(round((last_s - first_s) * _NS_PER_S), measurement)
    for early in pending:
        feed.push(0, early)
    if num == 0:
        raise ConfigError(
            f"{_OPTION} {source}: no NMEA sentence in it says anything "
            f"({parser.num_damaged} of {parser.num_sentences} lines are damaged)"
        )
    _log.info("gnss: %d measurements in %s", num, source)
