"""The inputs of the packaged demo: a mapped room and a clip filmed later in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgeloc.errors import ConfigError
from edgeloc.types import ByteArray
from edgeloc_tools.synth.effects import evening_light
from edgeloc_tools.synth.movers import make_walkers
from edgeloc_tools.synth.record import (
    DEFAULT_CAMERA,
    Capture,
    Progress,
    SynthFrame,
    camera_json,
    film,
    make_recording,
    tum_line,
    write_text,
    write_video,
)
from edgeloc_tools.synth.scene import Scene, make_room
from edgeloc_tools.synth.trajectory import WavePath, room_walk

SEED = 20
CLIP_PATH_SEED = 49
"""Its walk stays within 0.7 m of mapped places, looked at from within 35 degrees."""
RATE_HZ = 15.0
CLIP_FRAMES = 120
COVERED = range(60, 75)
"""Frames of the clip in which a hand covers the lens."""
MET_AT_S = 2.0
"""When the camera looks at the person."""
MAPPING_FRAMES = 72
MAX_CLIP_BYTES = 2_500_000


def demo_room() -> Scene:
    """Return the room of the demo, empty of people."""
    return make_room(SEED)


def mapping_path(scene: Scene) -> WavePath:
    """Return the walk of the mapping recording: 2 times round in 36 s."""
    return room_walk(SEED, scene.extent_m, duration_s=36.0, turns=2.0)


def clip_path(scene: Scene) -> WavePath:
    """Return another walk, the other way round."""
    duration_s = CLIP_FRAMES / RATE_HZ
    return room_walk(
        CLIP_PATH_SEED, scene.extent_m, duration_s=2 * duration_s, turns=-0.7
    )


def clip_scene() -> Scene:
    """Return the room with one person, who walks to and fro before the camera."""
    scene = demo_room()
    world_from_cam = clip_path(scene).pose_at(MET_AT_S).inverse()
    limit = 0.42 * np.array(scene.extent_m[:2])
    ends = []
    for aside_m in (-0.9, 0.9):
        x, y = world_from_cam.transform([aside_m, 0.0, 1.9])[:2].clip(-limit, limit)
        ends.append((float(x), float(y), 0.0))
    return scene.with_movers(make_walkers(SEED, [(ends[0], ends[1])]))


def film_clip() -> Iterator[SynthFrame]:
    """Yield the frames of the clip: evening light, some blur, one person.

    The lens is not covered yet (`cover_lens`).
    """
    scene = clip_scene()
    capture = Capture(
        num_frames=CLIP_FRAMES,
        rate_hz=RATE_HZ,
        seed=SEED,
        light=evening_light(),
        noise_sigma=0.8,
        exposure_s=0.016,
        exposure_steps=3,
        supersample=2,
    )
    return film(scene, clip_path(scene), DEFAULT_CAMERA, capture)


def cover_lens(image: ByteArray, index: int) -> ByteArray:
    """Return what a covered lens lets through: a dark red glow with noise."""
    rng = np.random.default_rng([SEED, 8, index])
    glow = np.array([7.0, 8.0, 16.0]) + rng.normal(0, 1.2, image.shape)
    return np.asarray(np.clip(glow, 0, 255).astype(np.uint8))


def make_demo_inputs(out: Path, *, progress: Progress | None = None) -> None:
    """Write ``mapping/`` (TUM RGB-D), ``clip.mp4 clip_gt.txt camera.json``.

    The ground truth has a line for every frame of the clip, the covered ones too.

    Parameters
    ----------
    out : Path
        Folder; ``out/mapping`` must not exist.
    progress : callable, optional
        Called after each frame.

    Raises
    ------
    ConfigError
        When a file cannot be written or the clip grows too large.
    """
    total = MAPPING_FRAMES + CLIP_FRAMES
    out.mkdir(parents=True, exist_ok=True)
    scene = demo_room()
    make_recording(
        out / "mapping",
        scene=scene,
        path=mapping_path(scene),
        capture=Capture(
            num_frames=MAPPING_FRAMES, rate_hz=2.0, seed=SEED, supersample=2
        ),
        progress=None if progress is None else lambda done, _: progress(done, total),
    )
    lines = ["# timestamp tx ty tz qx qy qz qw (world_from_cam)"]

    def pictures() -> Iterator[ByteArray]:
        for frame in film_clip():
            lines.append(tum_line(frame.time_s, frame.cam_from_world))
            covered = frame.index in COVERED
            yield cover_lens(frame.image, frame.index) if covered else frame.image
            if progress is not None:
                progress(MAPPING_FRAMES + frame.index + 1, total)

    size = write_video(out / "clip.mp4", pictures(), rate_hz=RATE_HZ)
    if size > MAX_CLIP_BYTES:
        raise ConfigError(
            f"{out / 'clip.mp4'}: {size} bytes, more than {MAX_CLIP_BYTES}; lower the "
            "noise in film_clip"
        )
    write_text(out / "clip_gt.txt", "\n".join([*lines, ""]))
    write_text(out / "camera.json", camera_json(DEFAULT_CAMERA))
