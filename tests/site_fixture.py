"""A small mapped room with exact ground truth, shared by the tests of the core."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from edgeloc.clock import ManualClock
from edgeloc.geometry.se3 import log_se3
from edgeloc.runtime import estimator, frame_work, looking, method_structure
from edgeloc.tiles.reader import Site, open_site
from edgeloc.types import CameraModel, Frame, FrameBudget, PoseEstimate, Rigid3
from edgeloc_tools.datasets.recording import RecordedImage, Recording
from edgeloc_tools.mapping.build import BuildResult, build_site
from edgeloc_tools.mapping.options import BuildOptions
from edgeloc_tools.synth.record import Capture, synth_recording
from edgeloc_tools.synth.scene import Scene, make_room
from edgeloc_tools.synth.trajectory import CameraPath, look, room_walk

CAMERA = CameraModel(
    model="PINHOLE", width=320, height=240, params=(250.0, 250.0, 160.0, 120.0)
)
NUM_FRAMES = 14
RATE_HZ = 2.0
ORB = BuildOptions(features="orb", max_keypoints=600, max_tile_bytes=100_000)
"""Small tiles, so that a frame needs several of them."""
QUICK = BuildOptions(features="orb", max_keypoints=300)
SIFT = BuildOptions(features="sift", max_keypoints=500, use_depth=False)


@functools.cache
def room() -> Scene:
    return make_room(3)


@functools.cache
def other_room() -> Scene:
    return make_room(11)


def mapping_path() -> CameraPath:
    """Half a turn, 13 degrees between frames."""
    return room_walk(3, room().extent_m, duration_s=NUM_FRAMES / RATE_HZ, turns=0.5)


@dataclass(frozen=True)
class Beside:
    """Another path along the first one: aside, lower, and looking elsewhere."""

    path: CameraPath
    right_m: float = 0.2
    down_m: float = 0.1
    turn_rad: float = 0.1

    def pose_at(self, time_s: float) -> Rigid3:
        turn = look([0.0, 0.0, 0.0], yaw_rad=self.turn_rad).R
        turn = turn @ look([0.0, 0.0, 0.0], yaw_rad=0.0).R.T
        step = Rigid3(R=turn, t=-turn @ np.array([self.right_m, self.down_m, 0.0]))
        return step @ self.path.pose_at(time_s)


def film_room(
    scene: Scene,
    path: CameraPath,
    *,
    num_frames: int,
    rate_hz: float = RATE_HZ,
    start_s: float = 0.0,
    depth: bool = False,
    seed: int = 0,
) -> Recording:
    capture = Capture(
        num_frames=num_frames,
        rate_hz=rate_hz,
        start_s=start_s,
        seed=seed,
        jpeg_quality=None,
    )
    return synth_recording(scene, path, CAMERA, capture=capture, depth=depth)


@functools.cache
def mapping_recording() -> Recording:
    return film_room(room(), mapping_path(), num_frames=NUM_FRAMES, depth=True)


@functools.cache
def small_recording() -> Recording:
    """Its first five images: with `QUICK` a site in less than a second."""
    recording = mapping_recording()
    return recording.subset(recording.images[:5])


@functools.cache
def query_images() -> Sequence[RecordedImage]:
    """Frames of another path, at other times, with other noise."""
    recording = film_room(
        room(),
        Beside(mapping_path()),
        num_frames=8,
        rate_hz=1.3,
        start_s=0.27,
        seed=5,
    )
    return recording.images


@functools.cache
def strange_images() -> Sequence[RecordedImage]:
    """Frames of a room that is not in the map."""
    path = room_walk(7, other_room().extent_m, duration_s=6.0)
    return film_room(other_room(), path, num_frames=6, rate_hz=1.0).images


@dataclass(frozen=True)
class BuiltSite:
    """A site and how it was built."""

    site: Site
    result: BuildResult

    @property
    def path(self) -> Path:
        return self.site.path


def build(out: Path, recording: Recording, options: BuildOptions) -> BuiltSite:
    result = build_site(recording, out=out, options=options)
    return BuiltSite(site=open_site(out), result=result)


@pytest.fixture(scope="session")
def orb_site(tmp_path_factory: pytest.TempPathFactory) -> BuiltSite:
    """The room with measured depth."""
    out = tmp_path_factory.mktemp("orb") / "site"
    return build(out, mapping_recording(), ORB)


@pytest.fixture(scope="session")
def sift_site(tmp_path_factory: pytest.TempPathFactory) -> BuiltSite:
    """The room triangulated from images alone."""
    out = tmp_path_factory.mktemp("sift") / "site"
    return build(out, mapping_recording(), SIFT)


def with_pose(image: RecordedImage, cam_from_world: Rigid3 | None) -> RecordedImage:
    return replace(image, cam_from_world=cam_from_world)


def frame_of(image: np.ndarray, frame_id: int = 0) -> Frame:
    return Frame(frame_id=frame_id, camera_id="c", timestamp_ns=0, image=image)


def budget_of(budget_ns: int = 10**15, clock: ManualClock | None = None) -> FrameBudget:
    """A budget from now; by default on a clock that stands still."""
    clock = clock or ManualClock()
    now_ns = clock.now_ns()
    return FrameBudget(start_ns=now_ns, deadline_ns=now_ns + budget_ns, clock=clock)


@dataclass(frozen=True)
class PoseError:
    """How wrong an estimate is."""

    position_m: float
    rotation_deg: float
    nees: float
    position_sigma_m: float


def pose_error(estimate: PoseEstimate, truth: Rigid3) -> PoseError:
    assert estimate.cam_from_world is not None
    assert estimate.covariance is not None
    xi = log_se3(truth @ estimate.cam_from_world.inverse())
    off = truth.origin_in_a - estimate.cam_from_world.origin_in_a
    return PoseError(
        position_m=float(np.linalg.norm(off)),
        rotation_deg=float(np.rad2deg(np.linalg.norm(xi[:3]))),
        nees=float(xi @ np.linalg.solve(estimate.covariance, xi)),
        position_sigma_m=float(np.sqrt(np.trace(estimate.covariance[3:, 3:]))),
    )


def replace_everywhere(monkeypatch, name, make):
    """Put another function in the place of one that the estimator's modules call.

    Parameters
    ----------
    monkeypatch : MonkeyPatch
        Undoes it.
    name : str
        The function's name.
    make : callable
        From the real function to the other.
    """
    modules = [estimator, frame_work, looking, method_structure]
    modules = [module for module in modules if hasattr(module, name)]
    assert modules, f"no module of the estimator calls {name}"
    for module in modules:
        monkeypatch.setattr(module, name, make(getattr(module, name)))
