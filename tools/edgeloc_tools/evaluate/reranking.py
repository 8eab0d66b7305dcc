"""What re-ranking and query expansion do to recall at 1, and what they cost.

Run as ``python -m edgeloc_tools.evaluate.reranking --data ../shared/data --out DIR``,
with the place sets of `edgeloc_tools.evaluate.places`: global descriptors of the
shipped network, checked with the shipped local features. The local features of the
database images stand in for what a site says of its keyframes.

How much similarity counts beside support is chosen on held-out database images, as for
a site, never on queries.

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
from edgeloc.geometry.se3 import rotation_angle_rad
from edgeloc.localize.rerank import (
    LocalView,
    RerankOptions,
    expand_query,
    supporting_matches,
    worths,
)
from edgeloc.types import CameraModel, Float32Array, FloatArray, IntArray
from edgeloc_tools.datasets.recording import RecordedImage
from edgeloc_tools.evaluate.measured import (
    cached,
    fingerprint,
    open_families,
    open_retrievals,
)
from edgeloc_tools.evaluate.place_sets import PlaceSet, place_sets
from edgeloc_tools.evaluate.places import GlobalNetwork, chosen_sets
from edgeloc_tools.evaluate.script import run_script, script_parser
from edgeloc_tools.evaluate.text import markdown_table, number
from edgeloc_tools.files import write_atomically
from edgeloc_tools.mapping.choose import surely_better
from edgeloc_tools.mapping.held_out_coarse import held_out_lists
from edgeloc_tools.mapping.options import BuildOptions
from edgeloc_tools.mapping.survey import default_keypoints
from edgeloc_tools.progress import Progress, StderrProgress, track

SETTINGS_VERSION = 2
"""Raised when a number changes its meaning."""

NUM_CANDIDATES = 10
"""Images that are checked: as many as a device retrieves."""
NUM_EXPANDED, ALPHA = 3, 3.0
"""Images that a query is expanded by, and the exponent of their similarity."""

SCORE_WEIGHTS = (5.0, 20.0, 40.0, 1e4)
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


def local_view(image: RecordedImage, family: FeatureFamily) -> LocalView:
    """Return the local features of an image, in shares of its longer side."""
    pixels = image.source.read()
    height, width = pixels.shape[:2]
    # Only its size matters here, and walks have no calibration.
    camera = CameraModel(
        model="SIMPLE_PINHOLE",
        width=width,
        height=height,
        params=(float(width), width / 2, height / 2),
    )
    features = extract_features(
        pixels,
        family,
        max_keypoints=default_keypoints(family.name, camera),
        max_side_px=BuildOptions().max_side_px,
    )
    return LocalView(
        points=features.keypoints.astype(np.float64) / max(height, width),
        descriptors=family.decode(features.descriptors),
    )


def find(
    descriptors: tuple[Float32Array, Float32Array],
    views: tuple[Sequence[LocalView], Sequence[LocalView]],
    options: RerankOptions,
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
        support = supporting_matches(
            query_views[q], [image_views[k] for k in top.tolist()], options
        )
        order = np.argsort(-worths(similarity[top], support, options), kind="stable")
        seconds[q] = time.thread_time() - begin
        checked = top[order]
        firsts["retrieved"].append(int(top[0]))
        firsts["re-ranked"].append(int(checked[0]))
        blind = expand_query(query, database[top[:NUM_EXPANDED]], alpha=ALPHA)
        firsts["expanded"].append(int(np.argmax(database @ blind)))
        # With what passed the check, and checked again: it is known by then.
        sure = expand_query(query, database[checked[:NUM_EXPANDED]], alpha=ALPHA)
        again = worths(np.asarray(database[top] @ sure), support, options)
        firsts["both"].append(int(top[np.argmax(again)]))
    return Ways(
        first={name: np.array(found) for name, found in firsts.items()},
        seconds=seconds,
    )


def distances(database: Sequence[RecordedImage]) -> FloatArray:
    """Return how far database images are from each other, (K, K).

    By their poses: the distance, in median distances from the median position, and the
    angle in rad. Without poses, of a walk, by their places in it.
    """
    poses = [image.cam_from_world for image in database]
    known = [pose for pose in poses if pose is not None]
    if len(known) < len(poses):
        place = np.arange(len(poses), dtype=np.float64)
        return np.abs(place[:, None] - place)
    centers = np.stack([pose.origin_in_a for pose in known])
    R = np.stack([pose.R for pose in known])
    off = np.linalg.norm(centers - np.median(centers, axis=0), axis=1)
    moved = np.linalg.norm(centers[:, None] - centers, axis=2)
    turned = rotation_angle_rad(np.einsum("aij,bkj->abik", R, R))
    return np.asarray(moved / max(float(np.median(off)), 1e-9) + turned)


def choose(
    descriptors: Float32Array, views: Sequence[LocalView], distance: FloatArray
) -> RerankOptions:
    """Return how to check candidates, chosen on held-out database images.

    Parameters
    ----------
    descriptors : ndarray of shape (K, G), float32
        Global ones of the database images.
    views : sequence of LocalView
        Of the same.
    distance : ndarray of shape (K, K), float64
        See `distances`: the first image found should be near.
    """
    default = RerankOptions()
    options = [default, *(replace(default, score_weight=w) for w in SCORE_WEIGHTS)]
    lists = held_out_lists(descriptors, descriptors, views)
    runs = np.array([found.run for found in lists], np.int64)
    apart = distance + np.where(np.eye(len(distance), dtype=bool), np.inf, 0.0)
    least = 0.1 * float(np.median(apart.min(axis=1))) + 1e-9
    losses = [
        np.log(
            [
                distance[
                    found.image_idx,
                    found.idx[np.argmax(worths(found.scores, found.support, option))],
                ]
                + least
                for found in lists
            ]
        )
        for option in options
    ]
    return options[surely_better(losses, runs)]


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
    images = [*places.queries, *places.database]
    views = [
        local_view(image, family) for image in track(images, f"local, {name}", progress)
    ]
    at = len(places.queries)
    descriptors = network.describe(places, progress)
    options = choose(descriptors[1], views[at:], distances(places.database))
    found = find(descriptors, (views[:at], views[at:]), options)
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
