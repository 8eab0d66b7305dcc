"""Counts, histograms and what is told to the terminal, Prometheus and systemd."""

from __future__ import annotations

import http.client
import io
import os
import re
import socket
import tracemalloc
from urllib.parse import urlsplit

import numpy as np
import pytest

from edgeloc.clock import ManualClock
from edgeloc.errors import ConfigError
from edgeloc.runtime.histogram import BOUNDS_NS, Histogram
from edgeloc.runtime.metrics_server import MetricsServer, parse_address
from edgeloc.runtime.reporter import Reporter
from edgeloc.runtime.status_line import CLEAR_LINE, StatusLine
from edgeloc.runtime.systemd import SystemdNotifier
from edgeloc.runtime.telemetry import PROMETHEUS_BOUNDS_NS, Telemetry
from edgeloc.types import Cause, PoseEstimate, PoseStatus, Rigid3, Rung

MS = 1_000_000


def estimate_of(frame_id=0, *, rung=Rung.RELOCALIZE, latency_ms=10.0, **changes):
    lost = rung is Rung.LOST
    values = {
        "frame_id": frame_id,
        "timestamp_ns": frame_id * 33 * MS,
        "status": PoseStatus.LOST if lost else PoseStatus.LOCALIZED,
        "rung": rung,
        "cause": Cause.FEW_MATCHES if lost else Cause.NONE,
        "cam_from_world": None if lost else Rigid3.identity(),
        "covariance": None if lost else np.eye(6),
        "num_inliers": 0 if lost else 123,
        "latency_ns": round(latency_ms * MS),
        "stage_ns": {"features": 4 * MS},
    }
    return PoseEstimate(**{**values, **changes})


# --- histograms


def test_bounds_ascend_by_small_steps_and_hold_every_prometheus_bound():
    steps = np.diff(np.log(np.array(BOUNDS_NS, float)))
    assert steps.min() > 0
    assert np.exp(steps.max()) < 1.13
    assert set(PROMETHEUS_BOUNDS_NS) <= set(BOUNDS_NS)
    assert BOUNDS_NS[0] == 10_000
    assert BOUNDS_NS[-1] == 100_000_000_000


def test_quantiles_are_those_of_the_samples_to_a_few_percent(rng):
    samples_ns = np.exp(rng.normal(np.log(20 * MS), 0.6, 20_000)).astype(int)
    histogram = Histogram()
    for value in samples_ns:
        histogram.add(int(value))
    for share in (0.01, 0.5, 0.95, 0.99, 0.999):
        exact = np.quantile(samples_ns, share)
        assert histogram.quantile_ns(share) == pytest.approx(exact, rel=0.03)
    assert histogram.quantile_ns(1.0) == histogram.max_ns == samples_ns.max()
    assert histogram.sum_ns == samples_ns.sum()


def test_cumulative_counts_are_exact_at_the_bounds():
    histogram = Histogram()
    for value_ms in (0.0, 0.05, 0.1, 0.10001, 5.0, 33.0, 4999.9, 5000.0, 5000.1, 1e6):
        histogram.add(round(value_ms * MS))
    counts = dict(
        zip(
            PROMETHEUS_BOUNDS_NS,
            histogram.cumulative(PROMETHEUS_BOUNDS_NS),
            strict=True,
        )
    )
    assert counts[100_000] == 3  # a bound belongs to its own bucket
    assert counts[200_000] == 4
    assert counts[5 * MS] == 5
    assert counts[50 * MS] == 6
    assert counts[5_000 * MS] == 8
    assert histogram.count == 10


def test_extreme_durations_are_counted_at_the_ends():
    histogram = Histogram()
    histogram.add(-5)
    histogram.add(10**15)
    assert histogram.cumulative(PROMETHEUS_BOUNDS_NS)[0] == 1
    assert histogram.quantile_ns(1.0) == 10**15
    assert Histogram().quantile_ns(0.5) == 0.0


# --- telemetry


def test_summary_has_shares_losses_rungs_and_quantiles():
    telemetry = Telemetry()
    for i in range(3):
        telemetry.add(estimate_of(i, latency_ms=10.0))
    telemetry.add(
        estimate_of(3, rung=Rung.LOST, latency_ms=40.0, deadline_met=False, stage_ns={})
    )
    telemetry.num_dropped = 4
    telemetry.num_restarts = 1
    assert telemetry.summary_lines() == [
        "4 frames: 75.0 % LOCALIZED, 0.0 % COARSE, 0.0 % PREDICTED, 25.0 % LOST",
        "1 late, 4 dropped, 0 unreadable, 1 restarts",
        "rungs: 75.0 % RELOCALIZE, 25.0 % LOST",
        "ms, p50 / p95 / p99 / max:",
        "  latency       9.8 / 39.6 / 39.9 / 40.0",
        "    RELOCALIZE  9.8 / 10.0 / 10.0 / 10.0",
        "    LOST        39.0 / 39.9 / 40.0 / 40.0",
        "  features      3.9 / 4.0 / 4.0 / 4.0",
    ]
    assert telemetry.summary_text() == "\n".join(telemetry.summary_lines())


def test_summary_of_nothing():
    assert Telemetry().summary_lines() == [
        "0 frames: 0.0 % LOCALIZED, 0.0 % COARSE, 0.0 % PREDICTED, 0.0 % LOST",
        "0 late, 0 dropped, 0 unreadable",
    ]


def test_status_line_tells_the_newest_frame_and_the_run():
    telemetry = Telemetry()
    assert telemetry.status_line() == "no frame yet"
    telemetry.add(estimate_of(0))
    telemetry.add(estimate_of(1, rung=Rung.LOST, latency_ms=20.0))
    assert telemetry.status_line() == (
        "frame 1: LOST LOST (FEW_MATCHES), 0 inliers, 20.0 ms | 50.0 % localized, "
        "p95 19.9 ms, 0 late, 0 dropped, 0 unreadable"
    )


def test_a_long_run_takes_no_more_memory_than_a_short_one():
    telemetry = Telemetry()
    for i in range(100):
        telemetry.add(estimate_of(i))
    estimates = [estimate_of(i, latency_ms=float(i)) for i in range(50)]
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(100):
        for estimate in estimates:
            telemetry.add(estimate)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert telemetry.num_frames == 5100
    assert grown < 4096


_SAMPLE = re.compile(
    r'[a-z_]+(\{[a-z]+="[^"\n]*"(,le="[^"]+")?\})? \d+(\.\d+)?(e-\d+)?'
)


def test_prometheus_text_is_well_formed_and_right():
    telemetry = Telemetry()
    telemetry.add(estimate_of(0, latency_ms=10.0))
    telemetry.add(estimate_of(1, latency_ms=60.0, deadline_met=False))
    telemetry.num_late_fixes = 7
    text = telemetry.prometheus_text()
    assert text.endswith("\n")
    lines = text.splitlines()
    families = [line.split()[2:4] for line in lines if line.startswith("# TYPE")]
    assert len({name for name, _ in families}) == len(families)
    for name, kind in families:
        assert sum(line.startswith(f"# HELP {name} ") for line in lines) == 1
        assert kind in {"counter", "histogram"}
        assert name.endswith("_total") == (kind == "counter")
    samples = [line for line in lines if not line.startswith("#")]
    assert all(_SAMPLE.fullmatch(line) for line in samples)
    values = dict(line.rsplit(" ", 1) for line in samples)
    assert len(values) == len(samples)
    assert values["edgeloc_frames_total"] == "2"
    assert values["edgeloc_late_total"] == "1"
    assert values["edgeloc_late_fixes_total"] == "7"
    assert values['edgeloc_records_by_rung_total{rung="TRACK"}'] == "0"
    assert values['edgeloc_records_by_rung_total{rung="RELOCALIZE"}'] == "2"
    bucket = 'edgeloc_latency_seconds_bucket{rung="RELOCALIZE",le='
    assert values[f'{bucket}"0.005"}}'] == "0"
    assert values[f'{bucket}"0.01"}}'] == "1"
    assert values[f'{bucket}"0.1"}}'] == "2"
    assert values[f'{bucket}"+Inf"}}'] == "2"
    assert values['edgeloc_latency_seconds_sum{rung="RELOCALIZE"}'] == "0.07"
    assert values['edgeloc_latency_seconds_count{rung="RELOCALIZE"}'] == "2"
    assert values['edgeloc_stage_seconds_count{stage="features"}'] == "2"


def test_label_values_are_escaped():
    telemetry = Telemetry()
    telemetry.add(estimate_of(stage_ns={'a"b\\c\nd': MS}))
    assert r'edgeloc_stage_seconds_count{stage="a\"b\\c\nd"} 1' in (
        telemetry.prometheus_text().splitlines()
    )


# --- status line


class FakeTerminal(io.StringIO):
    def isatty(self):
        return True


def test_status_line_comes_twice_a_second_at_most():
    clock, terminal = ManualClock(), FakeTerminal()
    line = StatusLine(terminal, clock=clock, text=lambda: "x" * 500)
    for _ in range(100):
        line.tick()
        clock.advance_ns(33 * MS)
    writes = terminal.getvalue().split(CLEAR_LINE)[1:]
    assert len(writes) == 7  # at 0, 528, 1056 ... of 3300 ms
    assert {len(text) for text in writes} == {79}  # one less than the terminal
    line.close()
    assert terminal.getvalue().endswith(CLEAR_LINE)


def test_no_status_line_where_there_is_no_terminal():
    stream = io.StringIO()
    line = StatusLine(stream, clock=ManualClock(), text=lambda: "x")
    line.tick()
    line.close()
    assert stream.getvalue() == ""


def test_a_closed_terminal_does_not_end_the_run():
    class Gone(FakeTerminal):
        def write(self, text):
            raise OSError("gone")

    clock = ManualClock()
    line = StatusLine(Gone(), clock=clock, text=lambda: "x")
    line.tick()
    clock.advance_ns(1000 * MS)
    line.tick()
    line.close()
    assert line._stream is None


# --- metrics


def fetch(url, *, method="GET", path=None):
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=5)
    connection.request(method, path or parts.path)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer, body


def test_metrics_are_served_on_loopback():
    telemetry = Telemetry()
    telemetry.add(estimate_of())
    with MetricsServer("0", telemetry.prometheus_text) as server:
        assert urlsplit(server.url).hostname == "127.0.0.1"
        answer, body = fetch(server.url)
        assert answer.status == 200
        assert answer.headers["Content-Type"] == (
            "text/plain; version=0.0.4; charset=utf-8"
        )
        assert body == telemetry.prometheus_text()
        telemetry.add(estimate_of())
        assert "\nedgeloc_frames_total 2\n" in fetch(server.url)[1]
        answer, body = fetch(server.url, method="HEAD")
        assert (answer.status, body) == (200, "")
        assert fetch(server.url, path="/")[0].status == 404


def test_a_client_that_says_nothing_does_not_stop_the_next_one(monkeypatch):
    monkeypatch.setattr("edgeloc.runtime.metrics_server._Handler.timeout", 0.1)
    with MetricsServer("0", lambda: "edgeloc 1\n") as server:
        parts = urlsplit(server.url)
        with socket.create_connection((parts.hostname, parts.port)) as silent:
            assert fetch(server.url)[1] == "edgeloc 1\n"
            assert silent.recv(1) == b""


def test_a_taken_port_is_an_error_of_one_line():
    with MetricsServer("0", str) as server:
        port = urlsplit(server.url).port
        with pytest.raises(ConfigError, match=f"--metrics {port}: cannot be listened"):
            MetricsServer(str(port), str)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("9100", ("127.0.0.1", 9100)), ("0.0.0.0:1", ("0.0.0.0", 1))],
)
def test_addresses(address, expected):
    assert parse_address(address) == expected


@pytest.mark.parametrize("address", ["", "x", "-1", "65536", "host:", "::1", "+80"])
def test_wrong_addresses(address):
    with pytest.raises(ConfigError, match="expected PORT or HOST:PORT"):
        parse_address(address)


# --- systemd


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """The service manager's end of the socket, and its address."""
    name = f"edgeloc-test-{os.getpid()}"
    address = str(tmp_path / "notify") if request.param == "path" else f"@{name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name if address[0] == "@" else address)
        receiver.settimeout(5)
        yield receiver, address


def test_systemd_hears_of_the_life_of_the_service(manager):
    receiver, address = manager
    clock = ManualClock()
    systemd = SystemdNotifier(clock=clock, environment={"NOTIFY_SOCKET": address})
    assert systemd.active
    assert systemd.watchdog_interval_ns is None
    systemd.ready("loaded\nall")
    systemd.watchdog()  # nobody asked for it
    systemd.status("frame 7")
    systemd.stopping()
    received = [receiver.recv(1000) for _ in range(3)]
    assert received == [b"READY=1\nSTATUS=loaded all", b"STATUS=frame 7", b"STOPPING=1"]
    systemd.close()
    systemd.stopping()


def test_watchdog_is_fed_at_half_its_interval(manager):
    receiver, address = manager
    clock = ManualClock()
    environment = {
        "NOTIFY_SOCKET": address,
        "WATCHDOG_USEC": "2000000",
        "WATCHDOG_PID": str(os.getpid()),
    }
    systemd = SystemdNotifier(clock=clock, environment=environment)
    for _ in range(31):
        systemd.watchdog()
        clock.advance_ns(100 * MS)
    receiver.setblocking(False)
    for _ in range(4):
        assert receiver.recv(100) == b"WATCHDOG=1"
    with pytest.raises(BlockingIOError):
        receiver.recv(100)
    systemd.close()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "vsock:2:1"},
        {"NOTIFY_SOCKET": "/nowhere/notify"},
    ],
)
def test_outside_of_systemd_nothing_happens(environment):
    environment = {**environment, "WATCHDOG_USEC": "1000"}
    systemd = SystemdNotifier(clock=ManualClock(), environment=environment)
    systemd.ready()
    systemd.watchdog()
    assert not systemd.active
    assert systemd.watchdog_interval_ns is None


@pytest.mark.parametrize(
    "changes", [{"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_PID": "1"}]
)
def test_a_watchdog_that_is_off_or_for_another_process(manager, changes):
    environment = {"NOTIFY_SOCKET": manager[1], "WATCHDOG_USEC": "1000", **changes}
    systemd = SystemdNotifier(clock=ManualClock(), environment=environment)
    assert systemd.watchdog_interval_ns is None
    systemd.close()


# --- all of them


def test_reporter_tells_everybody(manager, monkeypatch):
    receiver, address = manager
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    clock, terminal, telemetry = ManualClock(), FakeTerminal(), Telemetry()
    reporter = Reporter(telemetry, clock=clock, terminal=terminal, metrics="0")
    try:
        reporter.ready()
        telemetry.add(estimate_of())
        assert reporter.emit(estimate_of(), {}) is True
        assert receiver.recv(1000) == b"READY=1\nSTATUS=waiting for the first frame"
        assert receiver.recv(1000) == b"WATCHDOG=1"
        assert receiver.recv(1000).startswith(b"STATUS=frame 0: LOCALIZED RELOCALIZE")
        assert "frame 0: LOCALIZED RELOCALIZE" in terminal.getvalue()
        assert "\nedgeloc_frames_total 1\n" in fetch(reporter.metrics_url)[1]
    finally:
        reporter.close()
    assert receiver.recv(1000) == b"STOPPING=1"
    reporter.close()
