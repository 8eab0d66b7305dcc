"""`edgeloc-run` in its three real processes, with a camera and an estimator of stubs.

The "site" is a folder with ``stub.json``, which says how both behave; see `SPEC`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np

SPEC = {
    # Camera
    "live": True,
    "rate_hz": 100.0,
    "num_frames": 100,  # then it breaks (live) or ends (recording)
    "break_at": None,  # raises there, once; opening fails `num_failures` times
    "num_failures": 0,
    "stall_at": None,  # gives nothing for `stall_s` there, once
    "stall_s": 0.0,
    "offsets_ms": {},  # frame number -> added to its timestamp
    # Estimator
    "cost_ms": 1.0,
    "offer_after_ms": None,  # offers a coarse pose after that time
    "hang_from": None,  # from that frame on, once
    "hang_always": False,
    "die_from": None,  # SIGKILL from that frame on, once
    "die_always": False,
    "raise_from": None,
    "lose_from": None,  # answers LOST, BACKEND_ERROR, as for a network that fails
    "lose_until": 10**9,
    "motion": True,
}


def spec_of(folder):
    return {**SPEC, **json.loads((Path(folder) / "stub.json").read_text())}


def once(folder, name):
    """Return True the first time that any process of the run asks."""
    try:
        (Path(folder) / f"did-{name}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class StubSource:
    name = "stub"
    size = (64, 48)

    def __init__(self, folder, clock):
        self.folder, self.clock, self.spec = folder, clock, spec_of(folder)
        self.live = self.spec["live"]
        self.fps = self.spec["rate_hz"]
        self.num_read = 0
        self.start_ns = None

    def read(self):
        from edgeloc.errors import CameraError
        from edgeloc.types import Frame

        spec = self.spec
        if self.start_ns is None:
            self.start_ns = self.clock.now_ns()
        number = self.num_read
        if number >= spec["num_frames"]:
            if self.live:
                time.sleep(0.05)
                raise CameraError("stub: unplugged")
            return None
        if number == spec["break_at"] and once(self.folder, "break"):
            raise CameraError("stub: broke")
        if number == spec["stall_at"] and once(self.folder, "stall"):
            time.sleep(spec["stall_s"])
        self.num_read += 1
        due_ns = self.start_ns + round(number * 1e9 / self.fps)
        if self.live:
            self.clock.sleep_until_ns(due_ns)
            due_ns = self.clock.now_ns()
        due_ns += round(spec["offsets_ms"].get(str(number), 0.0) * 1e6)
        return Frame(
            frame_id=number,
            camera_id="0",
            timestamp_ns=due_ns,
            image=np.full((48, 64), number % 256, np.uint8),
            source=f"stub#{number}",
        )

    def close(self):
        pass


class StubEstimator:
    def __init__(self, folder, clock):
        self.folder, self.clock, self.spec = folder, clock, spec_of(folder)
        self.motion_state = None
        self.odometry = None

    def _answer(self, frame, *, status, rung, cause):
        from edgeloc.types import PoseEstimate, Rigid3

        lost = status.value == "LOST"
        return PoseEstimate(
            frame_id=frame.frame_id,
            timestamp_ns=frame.timestamp_ns,
            status=status,
            rung=rung,
            cause=cause,
            cam_from_world=None if lost else Rigid3.identity(),
            covariance=None if lost else np.eye(6) * 1e-6,
            num_inliers=int(frame.image[0, 0]),
            stage_ns={"stub": round(self.spec["cost_ms"] * 1e6)},
            map_id="stub",
        )

    def step(self, frame, budget, *, offer=None):
        from edgeloc.runtime.tracker import MotionTracker
        from edgeloc.types import Cause, PoseStatus, Rung

        spec, number = self.spec, frame.frame_id

        def begins(key, always):
            return (
                spec[key] is not None
                and number >= spec[key]
                and (spec[always] or once(self.folder, key))
            )

        if begins("hang_from", "hang_always"):
            time.sleep(3600)
        if begins("die_from", "die_always"):
            os.kill(os.getpid(), signal.SIGKILL)
        if spec["raise_from"] is not None and number >= spec["raise_from"]:
            raise TypeError("a bug")
        cost_s = spec["cost_ms"] * 1e-3
        if spec["offer_after_ms"] is not None:
            wait_s = spec["offer_after_ms"] * 1e-3
            time.sleep(wait_s)
            cost_s -= wait_s
            offer(
                self._answer(
                    frame,
                    status=PoseStatus.COARSE,
                    rung=Rung.INTERPOLATE,
                    cause=Cause.NONE,
                )
            )
        time.sleep(cost_s)
        if spec["lose_from"] is not None and (
            spec["lose_from"] <= number < spec["lose_until"]
        ):
            return self._answer(
                frame,
                status=PoseStatus.LOST,
                rung=Rung.LOST,
                cause=Cause.BACKEND_ERROR,
            )
        fix = self._answer(
            frame,
            status=PoseStatus.LOCALIZED,
            rung=Rung.RELOCALIZE,
            cause=Cause.NONE,
        )
        if spec["motion"]:
            tracker = MotionTracker()
            tracker.update(
                frame.timestamp_ns,
                fix.cam_from_world,
                fix.covariance,
                landmark_distance=1.0,
            )
            self.motion_state = tracker.state
        return fix


def opening_module():
    """Return what stands in for `edgeloc.runtime.opening`."""
    from edgeloc.errors import CameraError
    from edgeloc.types import CameraModel

    camera = CameraModel(
        model="PINHOLE", width=64, height=48, params=(50.0, 50.0, 32.0, 24.0)
    )

    def open_run_source(config, *, size_hint, clock):
        spec = spec_of(config.map)
        if (Path(config.map) / "did-break").exists():
            for idx in range(spec["num_failures"]):
                if once(config.map, f"failure-{idx}"):
                    raise CameraError("stub: still broken")
        return StubSource(config.map, clock)

    module = ModuleType("edgeloc.runtime.opening")
    module.estimator_options = lambda config: None
    module.open_run_site = lambda config: SimpleNamespace(
        path=config.map, manifest=SimpleNamespace(map_id="stub")
    )
    module.choose_camera = lambda config, site: camera
    module.open_run_source = open_run_source
    module.open_run_recorder = lambda *_, **__: None
    module.make_estimator = lambda options, site, camera, clock, **_: StubEstimator(
        site.path, clock
    )
    return module


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        sys.modules["edgeloc.runtime.opening"] = opening_module()
        from edgeloc.cli import worker

        code = worker.main(sys.argv[2:])
        sys.stderr.flush()
        os._exit(code)
    from edgeloc.cli import run

    run.WORKER = (sys.executable, __file__, "--worker")
    sys.exit(run.main())
