"""Other sensors in a run of three processes."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
from nmea_lines import GEO, gga
from scenario_runs import Run

from edgeloc.cli import replay as replay_command
from edgeloc.cli.run import demo_paths
from edgeloc.errors import TileFormatError
from edgeloc.fields import parse_json
from edgeloc.runtime.log_reader import LogReader, Step
from edgeloc.tiles.manifest import SITE_FILE, seal

ROOM = (0.0, 0.0, 1.5)
FAR = (500.0, 0.0, 1.5)


def on_earth(site, folder):
    """A copy of a site that knows where it lies."""
    shutil.copytree(site, folder)
    file = folder / SITE_FILE
    fields = parse_json(file.read_bytes(), TileFormatError).members()
    document = {key: field.value for key, field in fields.items()}
    file.write_bytes(seal({**document, "geo_reference": GEO}))
    return folder


class Speaker:
    """Says over TCP what it measures, over and over.

    Parameters
    ----------
    line : callable
        From the time, s, to what is said then.
    every_s : float
        How often.
    """

    def __init__(self, line, every_s):
        self._line, self._every_s = line, every_s
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def address(self):
        return f"tcp://127.0.0.1:{self._listening.getsockname()[1]}"

    def _serve(self):
        self._listening.settimeout(60.0)
        connection, _ = self._listening.accept()
        begin_s = time.monotonic()
        with connection, contextlib.suppress(OSError):
            while not self._stop.wait(self._every_s):
                connection.sendall(self._line(time.monotonic() - begin_s))

    def close(self):
        self._stop.set()
        self._thread.join()
        self._listening.close()


def spinning(time_s):
    """An inertial sensor that spins, which the camera does not."""
    return b"%d,0.5,0,2.5,0,0,9.81\n" % round(time_s * 1e9)


def test_sensors_over_tcp_are_used_logged_and_not_believed_when_wrong(tmp_path, capsys):
    """A receiver says where the camera is, and after a while that it is elsewhere.

    An inertial sensor is on something else all the time. Expected: frames are localized
    in the room, whatever they say; the log has what they said with each answer; what
    they say of another place and motion is rejected, in one line each on stderr; the
    replay has neither sensors nor clock and comes to the same answers.
    """
    clip, site = demo_paths()
    places = [ROOM]
    receiver = Speaker(lambda time_s: gga(time_s, places[-1]), 0.1)
    inertial = Speaker(spinning, 0.01)
    log = tmp_path / "run.log"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "edgeloc.cli.run", "--pace", "realtime"),
            *("--camera", str(clip), "--map", str(on_earth(site, tmp_path / "site"))),
            *("--gnss", receiver.address, "--gnss-sigma-m", "2"),
            *("--imu", inertial.address, "--imu-extrinsics", "0,0,0,0,0,0,1"),
            *("--mask", "0,0 640,0 640,40 0,40", "--budget-ms", "400"),
            *("--record", str(log), "--rate", "10", "--realtime", "off"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    run = Run(process)
    try:
        run.wait_for(lambda run: len(run.of(status="LOCALIZED")) >= 8, timeout_s=60.0)
        assert "rejected" not in run.err
        places.append(FAR)
        run.wait_for(lambda run: "a prior was rejected: " in run.err)
        run.wait_for(lambda run: "--imu is not believed: " in run.err)
        process.send_signal(signal.SIGTERM)
    finally:
        run.finish(timeout_s=60.0)
        receiver.close()
        inertial.close()
    assert process.returncode == 0, run.err
    assert run.err.count("--imu is not believed: the picture says otherwise") == 1
    run.assert_one_record_per_frame()
    places = [record["position"] for record in run.of(status="LOCALIZED")]
    assert np.linalg.norm(np.array(places) - ROOM, axis=1).max() < 4.0

    with LogReader(log) as reader:
        ((session, entries),) = [(s, list(e)) for s, e in reader.sessions()]
    assert session.aids.priors
    assert session.aids.motions
    mask = session.aids.static_mask.mask()
    assert (mask[:40].max(), mask[42:].min()) == (0, 255)
    steps = [entry for entry in entries if isinstance(entry, Step)]
    said = [step.answer.aids.prior.position for step in steps if step.answer]
    centers = np.array([position.center for position in said if position is not None])
    in_room = np.abs(centers[:, 0]) < 1e-3
    np.testing.assert_allclose(centers[in_room], [ROOM] * in_room.sum(), atol=1e-3)
    assert in_room.sum() >= 5
    assert centers[-1, 0] > 100.0
    assert all(p is None or p.covariance[0, 0] >= 4.0 for p in said)

    moved = [step.answer.aids.motion for step in steps if step.answer]
    covered = [motion for motion in moved if len(motion.rate_times_ns)]
    assert len(covered) >= 5
    for motion in covered:
        np.testing.assert_array_equal(motion.rates_rad_s[:, 2], 2.5)

    assert replay_command.main([str(log), "--compare"]) == 0
    compared = capsys.readouterr().out
    assert " frames compared with exact tolerances: " in compared
    assert " 0 different; 0 could not be replayed" in compared
