"""What re-ranking and query expansion do to recall at 1, and what they cost.

Run as ``python -m edgeloc_tools.evaluate.reranking --data ../shared/data --out DIR``,
with the place sets of `edgeloc_tools.evaluate.places`: global descriptors of the
shipped network, checked with the shipped local features. The local features of the
database images stand in for what a site says of its keyframes.

How much similarity counts beside support is chosen on held-out database images, as for
a site, never on queries; where there are poses, what the pictures tell about the way
between cameras is learned there, too.

Two criteria: the same place by the rule of the set, and how many local features the
query shares with the image found, as the share of its features that have a mutual match
on the epipolar lines of one fundamental matrix ("overlap", mean over queries).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgeloc.errors import ConfigError
from edgeloc.features.extract import extract_features
from edgeloc.features.family import FeatureFamily
from edgeloc.features.match import MatchOptions, match_descriptors
from edgeloc.geometry.camera import normalized_from_pixels
from edgeloc.localize.rerank import (
    Agreement,
    LocalView,
    RerankOptions,
    expand_query,
    place_worths,
    supporting_matches,
    worths,
)
from edgeloc.types import CameraModel, Float32Array, IntArray, Rigid3
from edgeloc_tools.datasets.recording import RecordedImage
from edgeloc_tools.evaluate.measured import (
    cached,
    fingerprint,
    open_families,
    open_retrievals,
)
from edgeloc_tools.evaluate.neighbours import (
    Neighbours,
    PoseNeighbours,
    WalkNeighbours,
)
from edgeloc_tools.evaluate.place_sets import PlaceSet, place_sets
from edgeloc_tools.evaluate.places import GlobalNetwork, chosen_sets
from edgeloc_tools.evaluate.script import run_script, script_parser
from edgeloc_tools.evaluate.text import markdown_table, number
from edgeloc_tools.files import write_atomically
from edgeloc_tools.mapping.choose import surely_better
from edgeloc_tools.mapping.held_out_coarse import (
    HeldOutList,
    held_out_lists,
    motion_of_lists,
)
from edgeloc_tools.mapping.options import BuildOptions
from edgeloc_tools.mapping.survey import default_keypoints
from edgeloc_tools.progress import Progress, StderrProgress, track

SETTINGS_VERSION = 3
"""Raised when a number changes its meaning."""

NUM_CANDIDATES = 10
"""Images that are checked: as many as a device retrieves."""
NUM_EXPANDED, ALPHA = 3, 3.0
"""Images that a query is expanded by, and the exponent of their similarity."""

SCORE_WEIGHTS = (10.0, 20.0, 40.0, 1e4)
"""What similarity may count, beside the default; the last trusts retrieval alone."""

_EPIPOLAR_SHARE = 0.003
"""Largest distance to an epipolar line, as a share of the longer side."""
_MIN_FOR_GEOMETRY = 12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ways:
    """The first image of each query, by the way it was found.

    Parameters
    ----------
    first : dict of str to ndarray of shape (Q,), int64
        Indices of database images.
    seconds : ndarray of shape (Q,), float64
        Processor time of checking the candidates of each query.
    """

    first: dict[str, IntArray]
    seconds: np.ndarray[Any, np.dtype[np.float64]]


def local_view(
    image: RecordedImage, family: FeatureFamily, camera: CameraModel | None
) -> LocalView:
    """Return the local features of an image, on the plane z = 1.

    Parameters
    ----------
    image : RecordedImage
        The image.
    family : FeatureFamily
        The features.
    camera : CameraModel or None
        Its intrinsics; None where there are none: its longer side as focal length.
    """
    pixels = image.source.read()
    height, width = pixels.shape[:2]
    if camera is None:
        longer = float(max(height, width))
        camera = CameraModel(
            model="SIMPLE_PINHOLE",
            width=width,
            height=height,
            params=(longer, width / 2, height / 2),
        )
    features = extract_features(
        pixels,
        family,
        max_keypoints=default_keypoints(family.name, camera),
        max_side_px=BuildOptions().max_side_px,
    )
    return LocalView(
        points=normalized_from_pixels(camera, features.keypoints.astype(np.float64)),
        descriptors=family.decode(features.descriptors),
    )


def find(
    descriptors: tuple[Float32Array, Float32Array],
    views: tuple[Sequence[LocalView], Sequence[LocalView]],
    options: RerankOptions,
    *,
    neighbours: Neighbours,
) -> Ways:
    """Return the first image of every query: as retrieved, re-ranked, expanded.

    Parameters
    ----------
    descriptors : tuple of ndarray of shape (Q, G) and (K, G), float32
        Global ones, of the queries and the database images.
    views : tuple of sequence of LocalView
        Of the same.
    options : RerankOptions
        How candidates are checked.
    neighbours : Neighbours
        Which images vouch for which.
    """
    (queries, database), (query_views, image_views) = descriptors, views
    firsts: dict[str, list[int]] = {
        name: [] for name in ("retrieved", "re-ranked", "expanded", "both")
    }
    seconds = np.zeros(len(queries))
    for q, query in enumerate(queries):
        similarity = database @ query
        top = np.argsort(-similarity, kind="stable")[:NUM_CANDIDATES]
        begin = time.thread_time()
        agreement = supporting_matches(
            query_views[q], [image_views[k] for k in top.tolist()], options
        )
        order = _ranked(
            top, similarity[top], agreement, options=options, neighbours=neighbours
        )
        seconds[q] = time.thread_time() - begin
        checked = top[order]
        firsts["retrieved"].append(int(top[0]))
        firsts["re-ranked"].append(int(checked[0]))
        blind = expand_query(query, database[top[:NUM_EXPANDED]], alpha=ALPHA)
        firsts["expanded"].append(int(np.argmax(database @ blind)))
        # With what passed the check, and checked again: it is known by then.
        sure = expand_query(query, database[checked[:NUM_EXPANDED]], alpha=ALPHA)
        again = np.asarray(database[top] @ sure)
        order = _ranked(top, again, agreement, options=options, neighbours=neighbours)
        firsts["both"].append(int(top[order[0]]))
    return Ways(
        first={name: np.array(found) for name, found in firsts.items()},
        seconds=seconds,
    )


def _ranked(
    found: IntArray,
    scores: Float32Array,
    agreement: Agreement,
    *,
    options: RerankOptions,
    neighbours: Neighbours,
) -> IntArray:
    """Return the order of candidates, the best first."""
    worth = worths(scores, agreement.support, options)
    places = place_worths(worth, neighbours.near(found, agreement), options)
    return np.argsort(-places, kind="stable")


def choose(
    descriptors: Float32Array,
    views: Sequence[LocalView],
    poses: Sequence[Rigid3] | None,
) -> tuple[RerankOptions, Neighbours]:
    """Return how to check candidates, chosen on held-out database images.

    The first image found should be near the one that was held out.

    Parameters
    ----------
    descriptors : ndarray of shape (K, G), float32
        Global ones of the database images.
    views : sequence of LocalView
        Of the same.
    poses : sequence of Rigid3 or None
        Of the same; None of a walk.
    """
    default = RerankOptions()
    options = [default, *(replace(default, score_weight=w) for w in SCORE_WEIGHTS)]
    lists = held_out_lists(descriptors, descriptors, views)
    neighbours: Neighbours = WalkNeighbours()
    if poses is not None:
        neighbours = PoseNeighbours(poses, motion_of_lists(lists, poses))

    def loss(found: HeldOutList, option: RerankOptions) -> float:
        order = _ranked(
            found.idx,
            found.scores,
            found.agreement,
            options=option,
            neighbours=neighbours,
        )
        near = neighbours.near_image(found.idx[order[:1]], found.image_idx)
        return 1.0 - float(near[0])

    losses = [np.array([loss(found, option) for found in lists]) for option in options]
    runs = np.array([found.run for found in lists], np.int64)
    return options[surely_better(losses, runs)], neighbours


def overlap(query: LocalView, image: LocalView) -> float:
    """Return the share of a query's features that an image shows, too.

    Parameters
    ----------
    query, image : LocalView
        All their features.
    """
    a, b, _ = match_descriptors(
        query.descriptors, image.descriptors, MatchOptions(max_ratio=0.95)
    )
    if len(a) < _MIN_FOR_GEOMETRY:
        return 0.0
    cv2.setRNGSeed(0)
    # Not USAC: OpenCV 5.0 fails an assertion of its own on some sets of matches.
    _, mask = cv2.findFundamentalMat(
        query.points[a], image.points[b], cv2.FM_RANSAC, _EPIPOLAR_SHARE, 0.999, 1000
    )
    kept = 0 if mask is None else int(np.count_nonzero(mask))
    return kept / len(query) if kept >= _MIN_FOR_GEOMETRY else 0.0


def measure(
    name: str,
    *,
    family: FeatureFamily,
    network: GlobalNetwork,
    data: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Return recall at 1 and overlap of every way on a set, and the cost of checking.

    Parameters
    ----------
    name : str
        A key of `place_sets`.
    family : FeatureFamily
        Local features.
    network : GlobalNetwork
        Global descriptors.
    data : Path
        The recordings folder.
    progress : callable
        Told about each step.
    """
    places: PlaceSet = place_sets()[name](data)
    facts: dict[str, Any] = {
        "set": places.name,
        "rule": places.rule,
        "queries": len(places.queries),
        "unfit": places.unfit,
    }
    if places.unfit:
        return facts
    at = len(places.queries)
    cameras: list[CameraModel | None] = [None] * (at + len(places.database))
    poses: list[Rigid3] | None = None
    if places.cameras is not None:
        of_queries, of_database = places.cameras
        cameras = [of_queries[image.camera_id] for image in places.queries]
        cameras += [of_database[image.camera_id] for image in places.database]
        known = (image.cam_from_world for image in places.database)
        poses = [pose for pose in known if pose is not None]
    images = track([*places.queries, *places.database], f"local, {name}", progress)
    views = [
        local_view(image, family, camera)
        for image, camera in zip(images, cameras, strict=True)
    ]
    descriptors = network.describe(places, progress)
    options, neighbours = choose(descriptors[1], views[at:], poses)
    found = find(descriptors, (views[:at], views[at:]), options, neighbours=neighbours)
    facts["score_weight"] = options.score_weight
    rows = np.arange(at)
    shares: dict[tuple[int, int], float] = {}

    def shared(query: int, image: int) -> float:
        if (query, image) not in shares:
            shares[query, image] = overlap(views[query], views[at + image])
        return shares[query, image]

    facts["recall_at_1"] = {
        way: float(places.same[rows, first].mean())
        for way, first in found.first.items()
    }
    facts["overlap"] = {
        way: float(np.mean([shared(q, int(k)) for q, k in enumerate(first)]))
        for way, first in found.first.items()
    }
    facts["p50_ms"], facts["p95_ms"] = (
        float(np.quantile(found.seconds, q) * 1e3) for q in (0.5, 0.95)
    )
    return facts


WAYS = ("retrieved", "re-ranked", "expanded", "both")


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the results of `measure` as Markdown, a line per set."""
    header = [
        "set",
        "same place",
        *(f"{way}: recall@1, overlap" for way in WAYS),
        "score weight",
        "check, p50 / p95 ms",
    ]
    lines = [
        [
            facts["set"],
            facts["rule"],
            *(
                f"{facts['recall_at_1'][way]:.2f}, {facts['overlap'][way]:.3f}"
                for way in WAYS
            ),
            f"{facts['score_weight']:g}",
            f"{number(facts['p50_ms'])} / {number(facts['p95_ms'])}",
        ]
        for facts in results
        if not facts["unfit"]
    ]
    return markdown_table(header, lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; it and the numbers go to ``--out``."""
    parser = script_parser("reranking", __doc__)
    parser.add_argument(
        "--features", default="edgeloc", help="local features (default: %(default)s)"
    )
    parser.add_argument(
        "--retrieval", help="network: edgeloc or a manifest (default: the shipped one)"
    )
    parser.add_argument("--sets", help="names, by comma (default: all)")

    def body(args: argparse.Namespace) -> None:
        [family] = open_families(args.features)
        networks = open_retrievals(args.retrieval)
        if len(networks) != 1:
            raise ConfigError("--retrieval: give one network, none is shipped")
        network = GlobalNetwork(networks[0])
        settings = f"{SETTINGS_VERSION} {RerankOptions()}"
        key = f"{settings} {fingerprint(family)} {network.key}"
        results = [
            cached(
                args.out / "reranking" / f"{name.replace('/', '-')}-{family.name}.json",
                key=key,
                make=partial(
                    measure,
                    name,
                    family=family,
                    network=network,
                    data=args.data,
                    progress=StderrProgress(),
                ),
            )
            for name in chosen_sets(args.sets)
        ]
        markdown = table(results)
        write_atomically(
            args.out / "reranking.json", json.dumps(results, indent=1).encode()
        )
        write_atomically(args.out / "reranking.md", markdown.encode())
        sys.stdout.write(markdown)

    return run_script(parser, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
