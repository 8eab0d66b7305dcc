"""The record, and every way it leaves."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
from pathlib import Path

import msgpack
import numpy as np
import pytest

from edgeloc.clock import ManualClock
from edgeloc.errors import ConfigError
from edgeloc.geometry.se3 import exp_se3, rigid_from_quat, rotation_from_quat
from edgeloc.runtime.sinks import (
    UdpSink,
    open_sink,
    open_sinks,
    record_from_estimate,
    tum_line,
)
from edgeloc.types import Cause, PoseEstimate, PoseStatus, Rung

KEYS = [
    "frame_id",
    "source",
    "timestamp_ns",
    "status",
    "rung",
    "cause",
    "qvec",
    "tvec",
    "position",
    "covariance",
    "num_matches",
    "num_inliers",
    "reproj_rmse_px",
    "latency_ms",
    "deadline_met",
    "stage_ms",
    "map_id",
]
HALF = math.sqrt(0.5)


def found(**changes):
    values = {
        "frame_id": 12,
        "timestamp_ns": 1_234_567_890_123,
        "status": PoseStatus.LOCALIZED,
        "rung": Rung.RELOCALIZE,
        "cause": Cause.NONE,
        # A quarter turn about z, then a step: world x becomes camera y.
        "cam_from_world": rigid_from_quat([HALF, 0, 0, HALF], [1.0, 2.0, 3.0]),
        "covariance": np.diag([1e-6, 2e-6, 3e-6, 1e-4, 2e-4, 3e-4]),
        "num_matches": 412,
        "num_inliers": 285,
        "reproj_rmse_px": 0.9,
        "latency_ns": 11_800_400,
        "deadline_met": True,
        "stage_ns": {"features": 8_000_000, "match_pnp": 2_100_499},
        "map_id": "abc",
    }
    return PoseEstimate(**{**values, **changes})


def lost():
    return PoseEstimate(
        frame_id=3,
        timestamp_ns=5,
        status=PoseStatus.LOST,
        rung=Rung.LOST,
        cause=Cause.FEW_MATCHES,
        cam_from_world=None,
        covariance=None,
        map_id="abc",
    )


def emit(sink, estimate, source="frame.jpg"):
    return sink.emit(estimate, record_from_estimate(estimate, source=source))


def test_record_has_the_documented_keys_in_order_and_plain_types():
    record = record_from_estimate(found(), source="frame-000012.color.jpg")
    assert list(record) == KEYS
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["source"] == "frame-000012.color.jpg"
    assert (record["status"], record["rung"], record["cause"]) == (
        "LOCALIZED",
        "RELOCALIZE",
        "NONE",
    )
    assert record["qvec"] == pytest.approx([HALF, 0, 0, HALF])
    assert record["tvec"] == [1.0, 2.0, 3.0]
    assert record["position"] == pytest.approx([-2.0, 1.0, -3.0])
    assert len(record["covariance"]) == 36
    assert record["covariance"][7] == 2e-6
    assert record["latency_ms"] == 11.8
    assert record["stage_ms"] == {"features": 8.0, "match_pnp": 2.1}
    assert record["deadline_met"] is True


def test_position_of_the_record_is_where_the_camera_is(rng):
    """R x + t = 0 at the camera centre, by the record's own numbers."""
    for _ in range(20):
        pose = exp_se3(rng.normal(size=6) * [2, 2, 2, 5, 5, 5])
        record = record_from_estimate(found(cam_from_world=pose), source="")
        assert record["qvec"][0] >= 0
        rotation = rotation_from_quat(record["qvec"])
        zero = rotation @ record["position"] + record["tvec"]
        assert np.abs(zero).max() < 1e-9


def test_lost_record_has_no_pose():
    record = record_from_estimate(lost(), source="x")
    assert list(record) == KEYS
    for key in ("qvec", "tvec", "position", "covariance"):
        assert record[key] is None
    assert record["cause"] == "FEW_MATCHES"


def test_rmse_that_is_not_a_number_becomes_null():
    record = record_from_estimate(found(reproj_rmse_px=math.nan), source="")
    assert record["reproj_rmse_px"] is None


def test_tum_line_is_world_from_cam_with_exact_time():
    words = tum_line(found()).split()
    assert words[0] == "1234.567890123"
    position, (x, y, z, w) = [float(v) for v in words[1:4]], map(float, words[4:])
    assert position == pytest.approx([-2.0, 1.0, -3.0])
    assert [w, x, y, z] == pytest.approx([HALF, 0, 0, -HALF])


def test_jsonl_file_shows_every_line_at_once(tmp_path):
    path = tmp_path / "out.jsonl"
    sink = open_sink(f"jsonl:{path}", clock=ManualClock())
    for count, estimate in enumerate((found(), lost()), start=1):
        assert emit(sink, estimate)
        lines = path.read_text().splitlines()
        assert len(lines) == count, "before the sink is closed"
    sink.close()
    sink.close()
    expected = [record_from_estimate(e, source="frame.jpg") for e in (found(), lost())]
    assert [json.loads(line) for line in lines] == expected


def test_tum_file_has_no_line_for_lost_frames(tmp_path):
    path = tmp_path / "poses.txt"
    sink = open_sink(f"tum:{path}", clock=ManualClock())
    for estimate in (found(), lost(), found(timestamp_ns=7)):
        assert emit(sink, estimate)
    sink.close()
    rows = np.loadtxt(path)
    assert rows.shape == (2, 8)
    assert rows[1, 0] == 7e-9


def test_full_disk_is_counted_and_the_run_goes_on(caplog):
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full exists on Linux only")
    sink = open_sink("jsonl:/dev/full", clock=ManualClock())
    assert emit(sink, found())
    assert emit(sink, found())
    assert caplog.messages == ["/dev/full: record lost (No space left on device)"]
    sink.close()


def test_udp_datagram_is_the_record_in_msgpack():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(5)
        url = f"udp://127.0.0.1:{receiver.getsockname()[1]}"
        sink = open_sink(url, clock=ManualClock())
        for estimate in (found(), lost()):
            assert emit(sink, estimate)
            got = msgpack.unpackb(receiver.recv(65536))
            assert got == record_from_estimate(estimate, source="frame.jpg")
        sink.close()


def test_udp_without_a_listener_never_raises_and_counts(caplog):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    sink = UdpSink(f"udp://127.0.0.1:{port}", clock=ManualClock())
    assert all(emit(sink, found()) for _ in range(20))
    sink.close()
    assert emit(sink, found()), "also after it was closed"
    # Loopback answers the datagrams with "port unreachable" on the next send.
    assert 1 <= sink.num_lost < 20
    assert len(caplog.messages) == 1, "one line a second, not one a frame"


def test_udp_with_a_full_buffer_does_not_block():
    class FullSocket:
        def send(self, data):
            raise BlockingIOError(11, "Resource temporarily unavailable")

        def close(self):
            pass

    sink = UdpSink("udp://127.0.0.1:9", clock=ManualClock())
    sink.close()
    sink._socket = FullSocket()
    assert emit(sink, found())
    assert sink.num_lost == 1
    sink.close()


@pytest.mark.parametrize(
    "text",
    ["jsonl", "jsonl:", "tum:-", "tum:", "csv:x", "udp:host:1", "-", ""],
)
def test_unknown_sink_lists_the_known_ones(text):
    with pytest.raises(ConfigError, match="jsonl:FILE, tum:FILE or udp://HOST:PORT"):
        open_sink(text, clock=ManualClock())


@pytest.mark.parametrize(
    "url", ["udp://127.0.0.1", "udp://:900", "udp://127.0.0.1:99999", "udp://h:1/x"]
)
def test_bad_udp_address_is_a_usage_error(url):
    with pytest.raises(ConfigError, match=r"--out udp://"):
        open_sink(url, clock=ManualClock())


def test_file_that_cannot_be_written_closes_the_sinks_before_it(tmp_path):
    first = tmp_path / "first.jsonl"
    with pytest.raises(ConfigError, match="cannot be written"):
        open_sinks(
            [f"jsonl:{first}", f"tum:{tmp_path}/no/such/folder.txt"],
            clock=ManualClock(),
        )
    assert first.read_text() == ""


def test_standard_output_is_the_default_and_flushed(capsys):
    sink = open_sink("jsonl:-", clock=ManualClock())
    assert emit(sink, found())
    assert json.loads(capsys.readouterr().out)["frame_id"] == 12


def test_closed_standard_output_ends_the_run_without_noise():
    script = (
        "import sys\n"
        "from edgeloc.clock import MonotonicClock\n"
        "from edgeloc.runtime.sinks import open_sink\n"
        "sink = open_sink('jsonl:-', clock=MonotonicClock())\n"
        "count = 0\n"
        "while sink.emit(None, {'frame': 'x' * 1000}): count += 1\n"
        "print(count, file=sys.stderr)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline().startswith(b'{"frame": "xxx')
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(20) == 0
    assert errors.strip().isdigit(), "no traceback and no 'Exception ignored'"
