"""How often retrieval finds the right place: recall at 1, 5 and 10.

Run as ``python -m edgeloc_tools.evaluate.places --data ../shared/data --out DIR``.

* GardensPoint: a walk on the right side of a path in the map of its left side, by day
  and by night; frames of nearly the same number (two more or less) are the same place.
* Scenes with poses: the same place is a share of the view, both ways, for indoor
  recordings with measured depth; else a distance, as a share of the map's extent, and
  an angle. Each query must have an image of its place, and not all images may be of it.

Methods: VLAD of each feature family, trained on the set's own database images with the
options of a site's build, and global descriptors of networks. Every method leaves a
file in ``results``; those with the same settings are not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from edgeloc.errors import ConfigError
from edgeloc.features.extract import extract_features
from edgeloc.features.family import FeatureFamily
from edgeloc.features.learned import LearnedRetrieval
from edgeloc.features.retrieve import VladModel
from edgeloc.types import ByteArray, CameraModel, Float32Array, IntArray
from edgeloc_tools.datasets.recording import RecordedImage
from edgeloc_tools.evaluate.draw import jpeg_bytes
from edgeloc_tools.evaluate.machine import machine_facts
from edgeloc_tools.evaluate.measured import (
    cached,
    fingerprint,
    open_families,
    open_retrievals,
)
from edgeloc_tools.evaluate.place_sets import PlaceSet, place_sets, recall_at
from edgeloc_tools.evaluate.script import run_script, script_parser
from edgeloc_tools.evaluate.text import NONE, markdown_table
from edgeloc_tools.files import write_atomically
from edgeloc_tools.mapping.options import BuildOptions
from edgeloc_tools.mapping.survey import default_keypoints, train_retrieval
from edgeloc_tools.progress import Progress, StderrProgress, track

SETTINGS_VERSION = 1
"""Raised when a number changes its meaning."""

KS = (1, 5, 10)
NUM_FAILURES = 6


class Method(Protocol):
    """A way to describe images as a whole."""

    @property
    def name(self) -> str:
        """For the table."""

    @property
    def key(self) -> str:
        """Changes when descriptors may change."""

    def describe(
        self, places: PlaceSet, progress: Progress
    ) -> tuple[Float32Array, Float32Array]:
        """Return L2-normalised rows for the queries and for the database images."""


class Vlad:
    """VLAD of local features, trained on the database images.

    Parameters
    ----------
    family : FeatureFamily
        Local features.
    """

    def __init__(self, family: FeatureFamily) -> None:
        self._family = family
        # Walks take part in several sets.
        self._features: dict[str, Float32Array] = {}

    @property
    def name(self) -> str:
        """For the table."""
        return f"VLAD-{self._family.name}"

    @property
    def key(self) -> str:
        """Changes when descriptors may change."""
        return fingerprint(self._family)

    def describe(
        self, places: PlaceSet, progress: Progress
    ) -> tuple[Float32Array, Float32Array]:
        """Return L2-normalised rows for the queries and for the database images."""
        step = f"{self.name}, {places.name}"
        images = [*places.queries, *places.database]
        local = [self._local(image) for image in track(images, step, progress)]
        at = len(places.queries)
        model: VladModel = train_retrieval(local[at:], BuildOptions())
        rows = np.stack([model.describe(descriptors) for descriptors in local])
        return rows[:at], rows[at:]

    def _local(self, image: RecordedImage) -> Float32Array:
        source = repr(image.source)
        if source not in self._features:
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
                self._family,
                max_keypoints=default_keypoints(self._family.name, camera),
                max_side_px=BuildOptions().max_side_px,
            )
            self._features[source] = self._family.decode(features.descriptors)
        return self._features[source]


class GlobalNetwork:
    """A network that describes images as a whole.

    Parameters
    ----------
    retrieval : LearnedRetrieval
        The network.
    """

    def __init__(self, retrieval: LearnedRetrieval) -> None:
        self._retrieval = retrieval
        self._rows: dict[str, Float32Array] = {}

    @property
    def name(self) -> str:
        """For the table."""
        return self._retrieval.network.manifest.name

    @property
    def key(self) -> str:
        """Changes when descriptors may change."""
        return fingerprint(self._retrieval)

    def describe(
        self, places: PlaceSet, progress: Progress
    ) -> tuple[Float32Array, Float32Array]:
        """Return L2-normalised rows for the queries and for the database images."""
        step = f"{self.name}, {places.name}"
        images = [*places.queries, *places.database]
        rows = np.stack([self._row(image) for image in track(images, step, progress)])
        at = len(places.queries)
        return rows[:at], rows[at:]

    def _row(self, image: RecordedImage) -> Float32Array:
        source = repr(image.source)
        if source not in self._rows:
            no_descriptors = np.zeros((0, 1), np.float32)
            self._rows[source] = self._retrieval.global_descriptor(
                image.source.read(), no_descriptors
            )
        return self._rows[source]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Retrieved:
    """What a method finds in a set.

    Parameters
    ----------
    ranking : ndarray of shape (Q, K), int64
        Database images of each query, most similar first.
    similarity : ndarray of shape (Q, K), float32
        To each database image, in their order.
    """

    ranking: IntArray
    similarity: Float32Array


def retrieve(query: Float32Array, database: Float32Array) -> Retrieved:
    """Return the ranking of all database images for every query."""
    similarity = np.asarray(query @ database.T, np.float32)
    ranking = np.argsort(-similarity, axis=1, kind="stable").astype(np.int64)
    return Retrieved(ranking=ranking, similarity=similarity)


def worst_failures(found: Retrieved, places: PlaceSet) -> list[tuple[int, int, int]]:
    """Return queries whose first image is wrong, the surest mistakes first.

    Returns
    -------
    list of (int, int, int)
        Index of the query, of the image found and of the most similar right one.
    """
    first = found.ranking[:, 0]
    rows = np.arange(len(first))
    right = np.where(places.same, found.similarity, -np.inf).argmax(axis=1)
    margin = found.similarity[rows, first] - found.similarity[rows, right]
    wrong = np.flatnonzero(~places.same[rows, first])
    order = wrong[np.argsort(-margin[wrong], kind="stable")]
    return [(int(q), int(first[q]), int(right[q])) for q in order]


_CELL = (320, 240)
_LABELS = ("query", "found", "right")


def failure_sheet(
    failures: Sequence[tuple[int, int, int]], places: PlaceSet
) -> ByteArray:
    """Return a picture with a line of query, image found and right image each."""
    lines = []
    for query, found, right in failures:
        images = places.queries[query], places.database[found], places.database[right]
        line = []
        for label, image in zip(_LABELS, images, strict=True):
            pixels = image.source.read()
            height, width = pixels.shape[:2]
            scale = min(_CELL[0] / width, _CELL[1] / height)
            size = (round(width * scale), round(height * scale))
            cell = np.full((_CELL[1] + 22, _CELL[0] + 4, 3), 255, np.uint8)
            cell[20 : 20 + size[1], : size[0]] = cv2.resize(
                pixels, size, interpolation=cv2.INTER_AREA
            )
            text = f"{label}: {image.name[-34:]}"
            cv2.putText(
                cell,
                text,
                (2, 14),
                cv2.FONT_HERSHEY_SIMPLEX,
                0.4,
                (40, 40, 40),
                1,
                cv2.LINE_AA,
            )
            line.append(cell)
        lines.append(np.concatenate(line, axis=1))
    return np.concatenate(lines, axis=0)


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in text)


def ready(method: Method, name: str, *, data: Path, out: Path) -> dict[str, Any]:
    """Return recalls of a method on a set, measured when they are not there yet."""
    return cached(
        out / "results" / f"{_slug(name)}-{_slug(method.name)}.json",
        key=f"{SETTINGS_VERSION} {method.key}",
        make=lambda: measure(
            method, name, data=data, out=out, progress=StderrProgress()
        ),
    )


def measure(
    method: Method, name: str, *, data: Path, out: Path, progress: Progress
) -> dict[str, Any]:
    """Return recalls of a method on a set; the worst failures become a picture.

    Parameters
    ----------
    method : Method
        To measure.
    name : str
        A key of `place_sets`.
    data, out : Path
        The recordings folder, and where results go.
    progress : callable
        Told about each step.
    """
    places = place_sets()[name](data)
    facts: dict[str, Any] = {
        "set": places.name,
        "rule": places.rule,
        "queries": len(places.queries),
        "database": len(places.database),
        "chance": places.chance,
        "unfit": places.unfit,
    }
    if places.unfit:
        return facts
    found = retrieve(*method.describe(places, progress))
    for k in KS:
        facts[f"recall_at_{k}"] = recall_at(found.ranking, places.same, k)
    failures = worst_failures(found, places)
    path = out / "failures" / f"{_slug(name)}-{_slug(method.name)}.jpg"
    # One of an earlier measurement would show what no longer happens.
    path.unlink(missing_ok=True)
    if failures:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet = failure_sheet(failures[:NUM_FAILURES], places)
        write_atomically(path, jpeg_bytes(sheet))
    return facts


def table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Return recalls as Markdown, a line per set and a column per method.

    Parameters
    ----------
    results : mapping
        From `measure`, by method and set.
    """
    header = [
        "set",
        "queries / database",
        "same place",
        "chance",
        *(f"{method} @" + "/".join(map(str, KS)) for method in results),
    ]
    lines = []
    first = next(iter(results.values()))
    for name, facts in first.items():
        line = [
            str(facts["set"]),
            f"{facts['queries']} / {facts['database']}",
            str(facts["rule"]),
            f"{facts['chance']:.2f}",
        ]
        for by_set in results.values():
            cells = [by_set[name].get(f"recall_at_{k}") for k in KS]
            line.append(
                " / ".join(NONE if cell is None else f"{cell:.2f}" for cell in cells)
            )
        lines.append(line)
    notes = [
        f"{facts['set']} does not count: {facts['unfit']}."
        for facts in first.values()
        if facts["unfit"]
    ]
    return "\n\n".join([markdown_table(header, lines), *notes]) + "\n"


def chosen_sets(names: str | None) -> list[str]:
    """Return names of sets.

    Raises
    ------
    ConfigError
        For one that does not exist.
    """
    known = list(place_sets())
    wanted = known if names is None else [name.strip() for name in names.split(",")]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ConfigError(
            f"--sets: {', '.join(unknown)} is not among {', '.join(known)}"
        )
    return wanted


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; it, the record and pictures of failures go to ``--out``."""
    parser = script_parser("places", __doc__)
    parser.add_argument(
        "--families",
        help="for VLAD: names or paths to manifests, by comma (default: all there are)",
    )
    parser.add_argument(
        "--retrieval",
        help="networks: edgeloc or paths to manifests, by comma (default: the shipped "
        "one, if any)",
    )
    parser.add_argument("--sets", help="names, by comma (default: all)")

    def body(args: argparse.Namespace) -> None:
        methods: list[Method] = [Vlad(f) for f in open_families(args.families)]
        methods += [GlobalNetwork(n) for n in open_retrievals(args.retrieval)]
        sets = chosen_sets(args.sets)
        results: dict[str, dict[str, dict[str, Any]]] = {}
        for method in methods:
            results[method.name] = {
                name: ready(method, name, data=args.data, out=args.out) for name in sets
            }
        markdown = table(results)
        record = {"machine": machine_facts(), "results": results}
        write_atomically(
            args.out / "places.json", json.dumps(record, indent=1).encode()
        )
        write_atomically(args.out / "places.md", markdown.encode())
        sys.stdout.write(markdown)

    return run_script(parser, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
