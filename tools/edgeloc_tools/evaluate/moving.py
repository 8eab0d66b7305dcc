"""What masks are worth where people hide part of every picture, of mapping and queries.

Run as ``python -m edgeloc_tools.evaluate.moving --out DIR``. A procedural room is
mapped and localized in three times: empty, with a crowd that hides a share of every
picture, and with the crowd masked out, in mapping and on the device, by a segmentation
network. The crowd wears magenta, which that network knows
(`edgeloc_tools.synth.colour_segmenter`): the figure says what masks are worth, not how
good a segmentation network is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from edgeloc.cli.common import EXIT_OK, run_command
from edgeloc.clock import MonotonicClock
from edgeloc.features.segment import Segmenter, open_segmenter
from edgeloc.geometry.se3 import exp_se3
from edgeloc.runtime.aids import Aids
from edgeloc.runtime.estimator import Estimator
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.runtime.masking import FrameMasks
from edgeloc.tiles.reader import Site, open_site
from edgeloc.types import CameraModel, Frame, FrameBudget, PoseStatus, Rigid3
from edgeloc_tools.datasets.recording import Recording
from edgeloc_tools.evaluate.metrics import pose_error
from edgeloc_tools.evaluate.run import NO_BUDGET_MS, true_pose
from edgeloc_tools.evaluate.text import markdown_table, number, percent
from edgeloc_tools.files import write_atomically
from edgeloc_tools.mapping.build import build_site
from edgeloc_tools.mapping.masks import MaskSources, mask_recording
from edgeloc_tools.mapping.options import BuildOptions
from edgeloc_tools.synth.colour_segmenter import write_colour_segmenter
from edgeloc_tools.synth.movers import Crowd, make_crowd
from edgeloc_tools.synth.record import Capture, synth_recording
from edgeloc_tools.synth.scene import Scene, make_room
from edgeloc_tools.synth.textures import Texture, make_texture
from edgeloc_tools.synth.trajectory import CameraPath, room_walk

CAMERA = CameraModel(
    model="PINHOLE", width=480, height=360, params=(375.0, 375.0, 240.0, 180.0)
)
MAX_ERROR_M, MAX_ERROR_DEG = 0.05, 5.0
WANTED = 0.9
"""Share of the recall of the empty room."""
_WALK_S = 20.0


def dressed_in_magenta(crowd: Crowd) -> Crowd:
    """Return the same people, all of whose clothes are magenta, lighter and darker."""
    return replace(crowd, textures=tuple(_magenta(one) for one in crowd.textures))


def _magenta(texture: Texture) -> Texture:
    grey = texture.levels[0].mean(axis=2)
    bright = 130.0 + 0.45 * grey
    image = np.stack([bright, 0.25 * grey, bright], axis=2)
    return make_texture(image.astype(np.uint8), alpha=texture.alpha, wrap=texture.wrap)


@dataclass(frozen=True)
class _Beside:
    """Another path along the first one: a step aside, and looking elsewhere."""

    path: CameraPath

    def pose_at(self, time_s: float) -> Rigid3:
        step = exp_se3([0.03, 0.12, -0.02, 0.2, 0.05, 0.1])
        return step @ self.path.pose_at(time_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How the queries of one case were answered.

    Parameters
    ----------
    name : str
        The case.
    recall : float
        Share within `MAX_ERROR_M` and `MAX_ERROR_DEG`.
    median_m : float
        Median error, infinite where not localized.
    num_wrong : int
        Localized, and off by ten times as much.
    hidden : float
        Mean share of the pictures that moving things hide.
    num_landmarks : int
        Of the map.
    """

    name: str
    recall: float
    median_m: float
    num_wrong: int
    hidden: float
    num_landmarks: int


def hidden_share(recording: Recording) -> float:
    """Return the mean share of the pictures that moving things hide."""
    masks = [image.read_mask() for image in recording.images]
    return float(np.mean([(mask == 0).mean() for mask in masks if mask is not None]))


def unmasked(recording: Recording) -> Recording:
    """Return a recording without the exact masks that procedural scenes come with."""
    images = tuple(
        replace(image, moving=np.zeros_like(image.moving))  # type: ignore[call-arg,attr-defined]
        for image in recording.images
    )
    return replace(recording, images=images)


def localize(
    name: str, site: Site, queries: Recording, segmenter: Segmenter | None
) -> Outcome:
    """Return how each query, by itself, localizes.

    Parameters
    ----------
    name : str
        Of the case.
    site : Site
        The map.
    queries : Recording
        With true poses.
    segmenter : Segmenter or None
        What the device has.
    """
    clock = MonotonicClock()
    masks = None
    if segmenter is not None:
        masks = FrameMasks(None, segmenter, clock=clock, cold=True)
    estimator = Estimator(
        site=site,
        camera=CAMERA,
        options=EstimatorOptions(cold=True),
        clock=clock,
        aids=Aids(masks=masks),
    )
    errors = []
    for number_, image in enumerate(queries.images):
        now_ns = clock.now_ns()
        frame = Frame(
            frame_id=number_,
            camera_id=image.camera_id,
            timestamp_ns=now_ns,
            image=image.source.read(),
        )
        budget = FrameBudget(
            start_ns=now_ns,
            deadline_ns=now_ns + round(NO_BUDGET_MS * 1e6),
            clock=clock,
        )
        estimate = estimator.step(frame, budget)
        localized = estimate.status is PoseStatus.LOCALIZED
        pose = estimate.cam_from_world if localized else None
        errors.append(pose_error(pose, true_pose(image)))
    off_m, off_deg = np.array(errors).T
    found = np.isfinite(off_m)
    return Outcome(
        name=name,
        recall=float(np.mean((off_m <= MAX_ERROR_M) & (off_deg <= MAX_ERROR_DEG))),
        median_m=float(np.median(off_m)),
        num_wrong=int(np.count_nonzero(found & (off_m > 10 * MAX_ERROR_M))),
        hidden=hidden_share(queries),
        num_landmarks=site.manifest.num_landmarks,
    )


def measure(
    out: Path,
    *,
    coverage: float,
    num_mapping: int,
    num_queries: int,
    features: str = "sift",
    seed: int = 0,
) -> list[Outcome]:
    """Map and localize in the three cases.

    Parameters
    ----------
    out : Path
        Folder for the sites and the network.
    coverage : float
        Share of each picture that the crowd hides.
    num_mapping, num_queries : int
        Pictures.
    features : str
        Feature family.
    seed : int
        Of room, crowds and noise.
    """
    segmenter = open_segmenter(write_colour_segmenter(out / "segmenter"))
    room = make_room(seed)
    path = room_walk(seed, room.extent_m, duration_s=_WALK_S)

    def crowded(which: int) -> Scene:
        crowd = make_crowd(seed + which, CAMERA, coverage=coverage)
        return room.with_movers([dressed_in_magenta(crowd)])

    def mapping(scene: Scene) -> Recording:
        rate_hz = num_mapping / _WALK_S
        capture = Capture(num_frames=num_mapping, rate_hz=rate_hz, seed=seed)
        return synth_recording(scene, path, CAMERA, capture=capture, depth=False)

    def queries(scene: Scene) -> Recording:
        capture = Capture(
            num_frames=num_queries,
            rate_hz=num_queries / _WALK_S,
            start_s=0.31,
            seed=seed + 1,
        )
        beside = _Beside(path)
        return synth_recording(scene, beside, CAMERA, capture=capture, depth=False)

    with_crowd, asked_in_crowd = mapping(crowded(1)), queries(crowded(2))
    options = BuildOptions(features=features)
    masked = mask_recording(unmasked(with_crowd), MaskSources(segmenter=segmenter))
    outcomes = []
    for name, recording, asked, device in (
        ("empty room", mapping(room), queries(room), None),
        ("crowd, no masks", unmasked(with_crowd), asked_in_crowd, None),
        ("crowd, masks", masked, asked_in_crowd, segmenter),
    ):
        folder = out / name.replace(", ", "-").replace(" ", "-")
        build_site(recording, out=folder, options=options)
        outcomes.append(localize(name, open_site(folder), asked, device))
    return outcomes


def report(outcomes: Sequence[Outcome]) -> str:
    """Return the table of the three cases."""
    empty = outcomes[0].recall
    rows = [
        [
            one.name,
            percent(one.hidden),
            f"{one.num_landmarks:,}",
            percent(one.recall),
            percent(one.recall / empty) if empty else "–",
            f"{number(100 * one.median_m)} cm",
            str(one.num_wrong),
        ]
        for one in outcomes
    ]
    header = [
        "", "hidden", "landmarks", f"recall ({100 * MAX_ERROR_M:g} cm, "
        f"{MAX_ERROR_DEG:g}°)", f"of the empty room's (masks: ≥ {percent(WANTED)})",
        "median", "wrong",
    ]  # fmt: skip
    return markdown_table(header, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the rooms, map them, print the table."""
    parser = argparse.ArgumentParser(prog="moving", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the sites")
    parser.add_argument("--coverage", type=float, default=0.4, help="share hidden")
    parser.add_argument("--mapping", type=int, default=40, help="pictures")
    parser.add_argument("--queries", type=int, default=40, help="pictures")
    parser.add_argument("--features", default="sift", help="feature family")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    def body() -> int:
        outcomes = measure(
            args.out,
            coverage=args.coverage,
            num_mapping=args.mapping,
            num_queries=args.queries,
            features=args.features,
            seed=args.seed,
        )
        text = report(outcomes)
        facts = json.dumps([asdict(one) for one in outcomes], indent=2)
        write_atomically(args.out / "moving.md", f"{text}\n".encode())
        write_atomically(args.out / "moving.json", f"{facts}\n".encode())
        sys.stdout.write(f"{text}\n")
        return EXIT_OK

    return run_command("moving", body, debug=True)


if __name__ == "__main__":
    raise SystemExit(main())
