"""Procedural recordings to train on: many small rooms and streets, kept on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeloc.types import CameraModel
from edgeloc_tools.datasets import open_recording
from edgeloc_tools.datasets.recording import Recording
from edgeloc_tools.progress import Progress, silent, track
from edgeloc_tools.synth.record import Capture, make_recording
from edgeloc_tools.synth.scene import Scene, make_room, make_street
from edgeloc_tools.synth.trajectory import CameraPath, room_walk, street_drive

_STREET_M = 30.0
_VERSION = 1
"""Part of the folders' names: raise it when the same seed gives other pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProceduralOptions:
    """Which recordings are made.

    Parameters
    ----------
    count : int
        Recordings, rooms and streets in turn, each another place.
    num_frames : int
        Of each, at least 2.
    width, height : int
        px; 1.25 times the size of a view leaves views room to move about.
    seed : int
        Of the first place; the others follow.
    """

    count: int = 12
    num_frames: int = 10
    width: int = 400
    height: int = 300
    seed: int = 1000


def procedural_recordings(
    folder: Path,
    *,
    options: ProceduralOptions | None = None,
    progress: Progress = silent,
) -> list[Recording]:
    """Return recordings with exact poses and depth; those not yet on disk are made.

    An interrupted run goes on with the next place. In a room the camera turns by about
    20 degrees a frame, in a street it moves by about a metre; sizes and focal lengths
    vary. It is always day: other light comes when views are drawn.

    Parameters
    ----------
    folder : Path
        Where they are kept, each in a folder named by what it was made of.
    options : ProceduralOptions, optional
        Which.
    progress : callable
        Told about each recording.

    Raises
    ------
    ConfigError
        When a recording cannot be written.
    DatasetError
        When one on disk is broken.
    """
    options = options or ProceduralOptions()
    recordings = []
    seeds = range(options.seed, options.seed + options.count)
    for seed in track(seeds, "procedural recordings", progress):
        kind = "room" if seed % 2 == 0 else "street"
        size = f"{options.num_frames}x{options.width}x{options.height}"
        place = folder / f"{kind}-{seed}-{size}-v{_VERSION}"
        if not place.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _make(place, kind, seed, options)
        recordings.append(open_recording(format="tum", input=place))
    return recordings


def _make(place: Path, kind: str, seed: int, options: ProceduralOptions) -> None:
    rng = np.random.default_rng([seed, 11])
    focal = float(rng.uniform(0.7, 1.0)) * options.width
    camera = CameraModel(
        model="PINHOLE",
        width=options.width,
        height=options.height,
        params=(focal, focal, options.width / 2, options.height / 2),
    )
    make = _room if kind == "room" else _street
    scene, path = make(seed, rng, num_frames=options.num_frames)
    make_recording(
        place,
        scene=scene,
        path=path,
        camera=camera,
        capture=Capture(
            num_frames=options.num_frames,
            rate_hz=1.0,
            seed=seed,
            supersample=2,
        ),
    )


def _room(
    seed: int, rng: np.random.Generator, *, num_frames: int
) -> tuple[Scene, CameraPath]:
    length, width = rng.uniform(4.5, 8.0, 2)
    scene = make_room(seed, (float(length), float(width), float(rng.uniform(2.5, 3.5))))
    degrees_a_frame = float(rng.choice([-1.0, 1.0]) * rng.uniform(14.0, 24.0))
    turns = degrees_a_frame * num_frames / 360.0
    path = room_walk(seed, scene.extent_m, duration_s=float(num_frames), turns=turns)
    return scene, path


def _street(
    seed: int, rng: np.random.Generator, *, num_frames: int
) -> tuple[Scene, CameraPath]:
    scene = make_street(seed, _STREET_M)
    # The drive ends 8 m before the end of the street, where there is nothing to see.
    spacing_m = min(float(rng.uniform(0.7, 1.5)), (_STREET_M - 8.0) / num_frames)
    path = street_drive(
        seed,
        scene.extent_m,
        duration_s=(_STREET_M - 8.0) / spacing_m,
        lateral_m=float(rng.uniform(-1.5, 1.5)),
        backwards=bool(rng.random() < 0.5),
    )
    return scene, path
