"""`edgeloc-run` with a site and an estimator that cost nothing, for tests of the rest.

Any folder with a file ``fake-site`` is a site. Run it like the real command.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np

from edgeloc.cli import run, worker
from edgeloc.errors import MapError, ModelError
from edgeloc.types import CameraModel, Cause, PoseEstimate, PoseStatus, Rigid3, Rung

CAMERA = CameraModel(
    model="PINHOLE", width=64, height=48, params=(50.0, 50.0, 32.0, 24.0)
)


def open_site(path):
    if not (path / "fake-site").is_file():
        raise MapError(f"{path}: has no site.json; build one with edgeloc-build")
    cameras = {"0": CAMERA}
    if (path / "two-cameras").exists():
        cameras["1"] = CAMERA
    return SimpleNamespace(
        path=path,
        manifest=SimpleNamespace(
            cameras=cameras,
            map_id="fake",
            family=SimpleNamespace(name="orb"),
            models={},
        ),
    )


def verify_site(path):
    if (path / "damaged").exists():
        raise MapError(f"{path}: tiles/000000.tile has another sha256; copy it again")


class Estimator:
    """Answers that the camera stands at (camera width, seed, 0)."""

    def __init__(self, *, site, camera, options, clock, aids=None):
        self.site, self.camera, self.options, self.clock = site, camera, options, clock

    def warm_up(self):
        if (self.site.path / "bad-model").exists():
            raise ModelError("features.onnx: has no output 'scores'; export it again")

    motion_state = None
    odometry = None

    def step(self, frame, budget, *, offer=None):
        if (self.site.path / "buggy").exists():
            raise TypeError("a bug")
        if (self.site.path / "slow").exists():
            time.sleep(0.02)
        assert frame.image.shape[:2] == (self.camera.height, self.camera.width)
        now_ns = self.clock.now_ns()
        return PoseEstimate(
            frame_id=frame.frame_id,
            timestamp_ns=frame.timestamp_ns,
            status=PoseStatus.LOCALIZED,
            rung=Rung.RELOCALIZE,
            cause=Cause.NONE,
            cam_from_world=Rigid3(
                R=np.eye(3), t=[-self.camera.width, -self.options.seed, 0.0]
            ),
            covariance=np.eye(6),
            latency_ns=now_ns - budget.start_ns,
            deadline_met=now_ns <= budget.deadline_ns,
            stage_ns={"features": 1_000_000},
            map_id=self.site.manifest.map_id,
        )


def fake_modules():
    """Return the modules to put into `sys.modules`."""
    estimator = ModuleType("edgeloc.runtime.estimator")
    estimator.Estimator = Estimator
    reader = ModuleType("edgeloc.tiles.reader")
    reader.open_site, reader.verify_site = open_site, verify_site
    return {module.__name__: module for module in (estimator, reader)}


def make_fake_site(path: Path, *marks: str) -> Path:
    """Make a folder that `open_site` above takes for a site."""
    path.mkdir()
    for mark in ("fake-site", *marks):
        (path / mark).touch()
    return path


WORKER = (sys.executable, __file__, "--worker")


if __name__ == "__main__":
    sys.modules.update(fake_modules())
    if sys.argv[1:2] == ["--worker"]:
        sys.exit(worker.main(sys.argv[2:]))
    run.WORKER = WORKER
    sys.exit(run.main())
