"""`edgeloc-build synth`: write a recording of a procedural scene."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from edgeloc.errors import ConfigError
from edgeloc.types import CAMERA_MODEL_NUM_PARAMS, CameraModel
from edgeloc_tools.synth.demo import make_demo_inputs
from edgeloc_tools.synth.effects import Light, evening_light, night_light
from edgeloc_tools.synth.movers import MAX_COVERAGE, Traffic, make_crowd, make_walkers
from edgeloc_tools.synth.record import (
    DEFAULT_CAMERA,
    Capture,
    film,
    make_recording,
    write_video,
)
from edgeloc_tools.synth.scene import Scene, car_quads, make_room, make_street
from edgeloc_tools.synth.trajectory import CameraPath, room_walk, street_drive

EXAMPLES = """\
  edgeloc-build synth --kind room --frames 80 --seed 3 -o room/
  edgeloc-build synth --kind room --seed 3 --path-seed 9 --moving -o query/
  edgeloc-build synth --kind street --frames 120 --night --lateral-m 1.5 -o night/
  edgeloc-build synth --kind demo -o demo/"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--kind",
        choices=("room", "street", "demo"),
        default="room",
        help="what to film; demo writes the inputs of the packaged demo",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="new folder")
    parser.add_argument("--frames", type=int, default=80, help="number of frames")
    parser.add_argument("--rate", type=float, default=5.0, help="frames per second")
    parser.add_argument("--seed", type=int, default=0, help="which place")
    parser.add_argument(
        "--path-seed", type=int, help="which way through it (default: as --seed)"
    )
    parser.add_argument("--length-m", type=float, default=60.0, help="of the street")
    parser.add_argument(
        "--lateral-m", type=float, default=0.0, help="drive further left (street)"
    )
    parser.add_argument(
        "--backwards", action="store_true", help="the other way round or along"
    )
    light = parser.add_mutually_exclusive_group()
    light.add_argument(
        "--night", action="store_true", help="dark, with lamps and noise"
    )
    light.add_argument("--evening", action="store_true", help="darker and warmer")
    parser.add_argument(
        "--moving", action="store_true", help="people (room) or people and cars"
    )
    parser.add_argument(
        "--coverage",
        type=float,
        default=0.0,
        help="people before the camera hide this share of the picture, at most 0.8",
    )
    parser.add_argument(
        "--blur-ms", type=float, default=0.0, help="exposure time of motion blur"
    )
    parser.add_argument(
        "--rolling-ms", type=float, default=0.0, help="readout of a rolling shutter"
    )
    parser.add_argument("--noise", type=float, default=1.0, help="sigma, grey levels")
    parser.add_argument(
        "--intrinsics", type=Path, help="camera.json (model, width, height, params)"
    )
    parser.add_argument("--no-depth", action="store_true", help="write no depth images")
    parser.add_argument(
        "--supersample", type=int, default=2, help="rays along each side of a pixel"
    )
    parser.add_argument(
        "--video", action="store_true", help="also write clip.mp4 of the same frames"
    )


def run(args: argparse.Namespace) -> int:
    """Write what was asked for and return the exit code."""
    if args.kind == "demo":
        make_demo_inputs(args.out, progress=_report)
        return 0
    if args.seed < 0 or (args.path_seed is not None and args.path_seed < 0):
        raise ConfigError("--seed and --path-seed must be >= 0")
    if not 0.0 <= args.coverage <= MAX_COVERAGE:
        raise ConfigError(f"--coverage {args.coverage} must be 0 to {MAX_COVERAGE}")
    camera = DEFAULT_CAMERA if args.intrinsics is None else read_camera(args.intrinsics)
    capture = Capture(
        num_frames=args.frames,
        rate_hz=args.rate,
        seed=args.seed,
        light=_light(args),
        noise_sigma=args.noise,
        exposure_s=args.blur_ms / 1e3,
        exposure_steps=4 if args.blur_ms > 0 else 1,
        readout_s=args.rolling_ms / 1e3,
        supersample=args.supersample,
    )
    scene = _populate(_place(args), args, camera)
    path = _path(scene, args)
    make_recording(
        args.out,
        scene=scene,
        path=path,
        capture=capture,
        camera=camera,
        depth=not args.no_depth,
        progress=_report,
    )
    if args.video:
        frames = film(scene, path, camera, capture)
        images = (frame.image for frame in frames)
        write_video(args.out / "clip.mp4", images, rate_hz=args.rate)
    return 0


def _report(done: int, total: int) -> None:
    sys.stderr.write(f"\r{done}/{total} frames" + ("\n" if done == total else ""))
    sys.stderr.flush()


def _place(args: argparse.Namespace) -> Scene:
    try:
        if args.kind == "room":
            return make_room(args.seed)
        return make_street(args.seed, args.length_m)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _path(scene: Scene, args: argparse.Namespace) -> CameraPath:
    seed = args.seed if args.path_seed is None else args.path_seed
    duration_s = args.frames / args.rate
    if args.kind == "room":
        turns = -1.0 if args.backwards else 1.0
        return room_walk(seed, scene.extent_m, duration_s=duration_s, turns=turns)
    return street_drive(
        seed,
        scene.extent_m,
        duration_s=duration_s,
        lateral_m=args.lateral_m,
        backwards=args.backwards,
    )


def _light(args: argparse.Namespace) -> Light:
    if args.night:
        street = args.kind == "street"
        extent_m = (args.length_m, 12.0, 12.0) if street else (6.0, 5.0, 2.7)
        return night_light(extent_m, along_x=street)
    return evening_light() if args.evening else Light()


def _populate(scene: Scene, args: argparse.Namespace, camera: CameraModel) -> Scene:
    length, width, _ = scene.extent_m
    if args.moving and args.kind == "room":
        x, y = 0.3 * length, 0.3 * width
        ways = [((-x, -y, 0.0), (x, y, 0.0)), ((x, -y, 0.0), (-x, y, 0.0))]
        scene = scene.with_movers(make_walkers(args.seed, ways))
    elif args.moving:
        ways = [
            ((x, side * 4.6, 0.12), (x + 10.0, side * 4.6, 0.12))
            for x in np.arange(4.0, length - 4.0, 9.0).tolist()
            for side in (-1.0, 1.0)
        ]
        car = Traffic(
            quads=car_quads(np.random.default_rng([args.seed, 9]), (length, 0.9)),
            velocity_m_s=(-7.0, 0.0, 0.0),
            period_s=length / 7.0,
        )
        scene = scene.with_movers([*make_walkers(args.seed, ways), car])
    if args.coverage:
        crowd = make_crowd(args.seed, camera, coverage=args.coverage)
        scene = scene.with_movers([crowd])
    return scene


def read_camera(path: Path) -> CameraModel:
    """Return the camera of a ``camera.json``.

    Raises
    ------
    ConfigError
        When the file is missing or wrong; the message names the field.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return CameraModel(
            model=str(record["model"]),
            width=int(record["width"]),
            height=int(record["height"]),
            params=tuple(float(p) for p in record["params"]),
        )
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        models = ", ".join(CAMERA_MODEL_NUM_PARAMS)
        raise ConfigError(
            f"{path}: not an intrinsics file ({error}); it needs model (one of "
            f"{models}), width, height and params"
        ) from error
