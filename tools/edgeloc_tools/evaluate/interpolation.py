"""How pose interpolation compares with the most similar keyframe, for every scene.

Run as ``python -m edgeloc_tools.evaluate.interpolation --data DATA --out DIR``, with
the scenes of `edgeloc_tools.evaluate.scenes`. Measured on the features and descriptors
themselves, without sites: features of mapping images stand in for what a site says of
its keyframes. Settings are chosen as for a site, on held-out mapping images only, which
also say how sure the answers are: the median NEES of those with the settings chosen is
5.35 where covariances are honest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgeloc.features.family import FeatureFamily
from edgeloc.features.keyframe_index import global_coding
from edgeloc.features.registry import EDGELOC, open_family, open_retrieval
from edgeloc.features.retrieve import VladModel
from edgeloc.localize.interpolate import InterpolateOptions, interpolate_pose
from edgeloc.localize.near_keyframes import keyframe_spacing
from edgeloc.localize.rerank import RerankOptions, supporting_matches
from edgeloc.localize.structure import structure_for
from edgeloc.types import Float32Array
from edgeloc_tools.evaluate.measured import cached, fingerprint
from edgeloc_tools.evaluate.metrics import nees, pose_error
from edgeloc_tools.evaluate.scenes import (
    FAMILIES,
    SCENES,
    Scene,
    Source,
    chosen_scenes,
    open_source,
)
from edgeloc_tools.evaluate.script import run_script, script_parser
from edgeloc_tools.evaluate.text import markdown_table, number
from edgeloc_tools.mapping.calibrate import calibrate_coarse
from edgeloc_tools.mapping.held_out import Describing, keyframes_of
from edgeloc_tools.mapping.held_out_coarse import CoarseTrials, view_of
from edgeloc_tools.mapping.options import BuildOptions
from edgeloc_tools.mapping.survey import Survey, survey_recording
from edgeloc_tools.mapping.tracks import MappingImage
from edgeloc_tools.mapping.work import WorkFolder
from edgeloc_tools.progress import StderrProgress

SETTINGS_VERSION = 3
"""Raised when a number changes its meaning."""

TOP_1, DEFAULT, CHOSEN = "top-1", "default", "chosen"
WAYS: Mapping[str, InterpolateOptions] = {
    TOP_1: InterpolateOptions(num_keyframes=1, rerank=None),
    DEFAULT: InterpolateOptions(),
}
"""What is compared, beside what is chosen for the scene."""
NUM_RETRIEVED = 10
"""As many as a device retrieves."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Walk:
    """The images of a recording, and their global descriptors.

    Parameters
    ----------
    images : sequence of MappingImage
        All posed images.
    vectors : ndarray of shape (K, G), float32
        L2-normalised.
    """

    images: Sequence[MappingImage]
    vectors: Float32Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Medians:
    """How far off the answers of each way are.

    Parameters
    ----------
    errors : dict of str to (float, float)
        Median errors of positions and rotations, map units and degrees, by way.
    nees : float
        Median of the answers with the settings chosen.
    chosen : InterpolateOptions
        What held-out mapping images chose.
    """

    errors: dict[str, tuple[float, float]]
    nees: float
    chosen: InterpolateOptions


def median_errors(mapping: Walk, queries: Walk, describing: Describing) -> Medians:
    """Return what each way is off by.

    Every frame gets an answer here: the gate on similarity, which turns frames of
    other places into LOST, is the same for all columns and would only blur them.

    Parameters
    ----------
    mapping, queries : Walk
        Of the map, and to be found in it.
    describing : Describing
        How global descriptors of the map are stored.
    """
    codes = mapping.vectors.astype(np.float16)
    centers = np.stack([i.cam_from_world.origin_in_a for i in mapping.images])
    spacing = keyframe_spacing(centers)
    everything = np.ones(len(mapping.images), bool)
    trials = CoarseTrials(
        mapping.images,
        codes,
        mapping.vectors,
        keyframe_idx=np.flatnonzero(everything),
        describing=describing,
        spacing=spacing,
    )
    chosen = trials.choose()
    samples = trials.samples(chosen, checked=True)
    calibration = replace(calibrate_coarse(samples, spacing), min_score=-1.0)
    table, index = keyframes_of(mapping.images, codes, everything, describing)
    views = [view_of(image) for image in mapping.images]
    ways = {**WAYS, CHOSEN: chosen}
    errors: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    sure: list[float] = []
    for image, vector in zip(queries.images, queries.vectors, strict=True):
        retrieved = index.search(vector, k=NUM_RETRIEVED)
        agreement = supporting_matches(
            view_of(image),
            [views[i] for i in retrieved.keyframe_ids.tolist()],
            RerankOptions(),
        )
        for name, options in ways.items():
            answer = interpolate_pose(
                query=vector,
                retrieved=retrieved,
                keyframes=table,
                index=index,
                calibration=calibration,
                options=options,
                agreement=agreement,
            )
            errors[name].append(pose_error(answer.cam_from_world, image.cam_from_world))
        assert answer.cam_from_world is not None  # there is no gate
        assert answer.covariance is not None
        sure.append(
            nees(answer.cam_from_world, image.cam_from_world, answer.covariance)
        )
    medians = {name: np.median(np.array(rows), axis=0) for name, rows in errors.items()}
    return Medians(
        errors={name: (float(p), float(r)) for name, (p, r) in medians.items()},
        nees=float(np.median(sure)),
        chosen=chosen,
    )


def _survey(source: Source, family: str, data: Path, work: Path) -> Survey:
    """Return what is measured in the images of a source; of matches hardly any."""
    return survey_recording(
        open_source(source, data),
        options=BuildOptions(
            features=family, use_depth=False, num_similar=0, num_near=1
        ),
        folder=WorkFolder(work),
        progress=StderrProgress(),
    )


def measure(scene: Scene, *, family: str, data: Path, out: Path) -> dict[str, Any]:
    """Return `Medians` as JSON has them."""
    mapping = _survey(scene.mapping, family, data, out / "work")
    queries = _survey(scene.queries, family, data, out / "work")
    vectors = queries.global_descriptors
    if mapping.retrieval is None:
        vlad = VladModel.from_arrays(mapping.retrieval_arrays)
        vectors = np.stack([vlad.describe(i.descriptors) for i in queries.images])
    describing = Describing(
        decode_landmarks=mapping.family.decode,
        decode_global=global_coding("float16", None).decode,
        structure=structure_for(mapping.family),
    )
    medians = median_errors(
        Walk(images=mapping.images, vectors=mapping.global_descriptors),
        Walk(images=queries.images, vectors=vectors),
        describing,
    )
    return {**asdict(medians), "chosen": str(medians.chosen)}


def row(scene: str, family: str, facts: Mapping[str, Any]) -> list[str]:
    """Return one line of the table."""
    return [
        scene,
        family,
        *(f"{number(p)}, {number(r)}°" for p, r in facts["errors"].values()),
        number(facts["nees"]),
        facts["chosen"],
    ]


def _key(family: FeatureFamily, name: str) -> str:
    network = open_retrieval("auto", features=name)
    models = [fingerprint(family), "vlad" if network is None else fingerprint(network)]
    return f"{SETTINGS_VERSION} {InterpolateOptions()!r} {' '.join(models)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = script_parser("interpolation", __doc__)
    parser.add_argument("--families", default=",".join((EDGELOC, *FAMILIES)))
    parser.add_argument(
        "--scenes", default=",".join(s.name for s in SCENES if s.use_depth)
    )

    def body(args: argparse.Namespace) -> None:
        rows = []
        for scene in chosen_scenes(args.scenes):
            for name in args.families.split(","):
                make: Callable[[], dict[str, Any]] = partial(
                    measure, scene, family=name, data=args.data, out=args.out
                )
                file = f"{scene.name.replace('/', '-')}-{name}.json"
                facts = cached(
                    args.out / "interpolation" / file,
                    key=_key(open_family(name), name),
                    make=make,
                )
                rows.append(row(scene.name, name, facts))
        header = ["scene", "features", *WAYS, CHOSEN, "NEES", "what was chosen"]
        sys.stdout.write(markdown_table(header, rows) + "\n")

    return run_script(parser, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
