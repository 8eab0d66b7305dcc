"""What the scenarios share."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from scenario_runs import STUB_RUN, Run


@pytest.fixture
def stub_run(tmp_path):
    """Start a run with stubs; what is not finished is killed."""
    started = []

    def start(*arguments, **spec):
        folder = tmp_path / f"stub-{len(started)}"
        folder.mkdir()
        (folder / "stub.json").write_text(json.dumps(spec))
        command = [
            *(sys.executable, str(STUB_RUN), "--camera", "0", "--map", str(folder)),
            *("--pace", "realtime", "--realtime", "off"),
            *(str(argument) for argument in arguments),
        ]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        run = Run(process)
        started.append(run)
        return run

    yield start
    for run in started:
        if not run.process.stdout.closed:
            run.process.kill()
            run.finish()
