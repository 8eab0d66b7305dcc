"""Runs of real processes, judged from outside."""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

STUB_RUN = Path(__file__).with_name("stub_run.py")


@dataclass
class Run:
    """A run that goes on while the test looks at it."""

    process: subprocess.Popen
    records: list = field(default_factory=list)
    arrivals_ns: list = field(default_factory=list)
    err: str = ""

    def __post_init__(self):
        self._threads = [
            threading.Thread(target=self._read_out),
            threading.Thread(target=self._read_err),
        ]
        for thread in self._threads:
            thread.start()

    def _read_out(self):
        for line in self.process.stdout:
            self.arrivals_ns.append(time.monotonic_ns())
            self.records.append(json.loads(line))

    def _read_err(self):
        for line in self.process.stderr:
            self.err += line.decode()

    def wait_for(self, condition, timeout_s=10.0):
        """Wait until `condition(self)`, or fail."""
        end_s = time.monotonic() + timeout_s
        while not condition(self):
            assert time.monotonic() < end_s, self.err
            time.sleep(0.005)

    def finish(self, timeout_s=20.0):
        """Wait for the end; return self."""
        try:
            self.process.wait(timeout_s)
        finally:
            self.process.kill()
            self.process.wait()
            for thread in self._threads:
                thread.join()
            self.process.stdout.close()
            self.process.stderr.close()
        return self

    @property
    def ids(self):
        return [record["frame_id"] for record in self.records]

    def index_of(self, number):
        """Return the frame id of the camera's frame `number`; the first are drained."""
        return next(
            r["frame_id"] for r in self.records if r["source"] == f"stub#{number}"
        )

    def of(self, *, status):
        return [record for record in self.records if record["status"] == status]

    def assert_one_record_per_frame(self):
        assert self.ids == list(range(len(self.ids))), self.err
        times = [record["timestamp_ns"] for record in self.records]
        assert all(a < b for a, b in itertools.pairwise(times))
        assert "Traceback" not in self.err

    def worker_pids(self, role):
        """Return the processes of the run with that role."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if role.encode() in words and int(parent) == self.process.pid:
                found.append(int(folder.name))
        return found
