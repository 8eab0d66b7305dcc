"""What a start loads, and what it costs before there is anything to do."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

HEAVY = {"numpy", "cv2", "onnxruntime", "scipy", "msgpack"}
RUNTIME = (
    "edgeloc.runtime.loop",
    "edgeloc.runtime.sources",
    "edgeloc.runtime.capture",
    "edgeloc.runtime.capture_process",
    "edgeloc.runtime.estimator_process",
    "edgeloc.runtime.supervisor",
    "edgeloc.runtime.sinks",
    "edgeloc.runtime.intrinsics",
    "edgeloc.runtime.estimator",
    "edgeloc.tiles.reader",
)


def third_party_after(*modules):
    """Return top-level names of what importing `modules` loads, less the stdlib."""
    script = (
        "import json, sys\n"
        "before = set(sys.modules)\n"  # the interpreter's own .pth files
        f"import {', '.join(modules)}\n"
        "names = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(json.dumps(sorted(names - sys.stdlib_module_names)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "module", ["edgeloc.cli.run", "edgeloc.cli.doctor", "edgeloc.cli.replay"]
)
def test_command_loads_nothing_before_it_knows_what_to_do(module):
    assert third_party_after(module) == {"edgeloc"}


def test_whole_runtime_stays_within_its_allow_list():
    """No torch, onnx, pycolmap, matplotlib, yaml: none of them is on a device."""
    found = third_party_after("edgeloc.cli.run", *RUNTIME)
    # Not packages: what compiled modules register for themselves.
    found = {name for name in found if not name.startswith(("_cython_", "cython_"))}
    assert found - {"poselib"} <= HEAVY | {"edgeloc"}
    assert {"edgeloc", "numpy", "cv2", "msgpack"} <= found


@pytest.mark.parametrize(
    "module", ["edgeloc.runtime.publisher", "edgeloc.runtime.supervisor"]
)
def test_publisher_and_supervisor_load_neither_opencv_nor_networks(module):
    """They are small: they start at once, and nothing in them takes the lock long."""
    found = third_party_after("edgeloc.cli.worker", "edgeloc.cli.run", module)
    assert found & {"cv2", "scipy", "onnxruntime"} == set()


def seconds(*arguments):
    best = float("inf")
    for _ in range(3):
        start_s = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        best = min(best, time.perf_counter() - start_s)
    return best


def test_help_is_not_slower_than_the_imports_that_a_run_needs_anyway():
    imports_s = seconds("-c", "import numpy, cv2, onnxruntime")
    assert seconds("-m", "edgeloc.cli.run", "--help") <= 1.5 * imports_s
