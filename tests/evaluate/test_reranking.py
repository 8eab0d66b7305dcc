"""What re-ranking does to recall at 1."""

from pathlib import Path

import numpy as np
import pytest

from edgeloc.geometry.se3 import exp_so3
from edgeloc.localize.rerank import LocalView, RerankOptions
from edgeloc.types import Rigid3
from edgeloc_tools.datasets.recording import ImageFile, RecordedImage
from edgeloc_tools.evaluate.reranking import (
    WAYS,
    choose,
    distances,
    find,
    overlap,
    table,
)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def view(rng, count=120):
    return LocalView(
        points=rng.uniform(0, 1, (count, 2)),
        descriptors=unit(rng.normal(size=(count, 32))),
    )


def test_the_image_with_the_same_features_comes_first(rng):
    """All images look alike as a whole; the query's features are those of image 3."""
    images = [view(rng) for _ in range(5)]
    base = rng.normal(size=16)
    database = unit(base + 0.02 * rng.normal(size=(5, 16)))
    ways = find(
        (database[:1], database), ([images[3]], images), RerankOptions(score_weight=5.0)
    )
    assert list(ways.first) == list(WAYS)
    assert ways.first["retrieved"].tolist() == [0]
    assert ways.first["re-ranked"].tolist() == [3]
    assert ways.first["both"].tolist() == [3]
    assert ways.seconds[0] > 0


def test_features_that_lie_are_not_trusted(rng):
    """Each image of a walk has the features of another one, ten apart."""
    at = np.arange(12)
    base = rng.normal(size=48)
    drift = np.cumsum(0.4 * rng.normal(size=(12, 48)), axis=0)
    own = [view(rng) for _ in at]
    weight = choose(unit(base + drift), own, np.abs(at[:, None] - at)).score_weight
    assert weight == RerankOptions().score_weight
    lying = [own[(k * 5) % 12 // 2] for k in at]
    weight = choose(unit(base + drift), lying, np.abs(at[:, None] - at)).score_weight
    assert weight > RerankOptions().score_weight


def recorded(k, pose):
    return RecordedImage(
        name=f"{k}",
        source=ImageFile(Path("nowhere")),
        camera_id="c",
        timestamp_ns=k,
        cam_from_world=pose,
    )


def test_images_are_apart_by_pose_or_by_place():
    walk = [recorded(k, None) for k in range(4)]
    assert distances(walk)[0].tolist() == [0, 1, 2, 3]
    centers = [[0.0, 0, 0], [2, 0, 0], [4, 0, 0]]
    turns = [np.eye(3), exp_so3([0, 0.3, 0]), np.eye(3)]
    posed = [
        recorded(k, Rigid3(R=R, t=-R @ np.array(center)))
        for k, (R, center) in enumerate(zip(turns, centers, strict=True))
    ]
    np.testing.assert_allclose(distances(posed)[0], [0, 1.3, 2], atol=1e-9)


def test_overlap_counts_what_one_geometry_explains(rng):
    """Points in space seen from two places share all; other pictures share none."""
    points = rng.uniform([-1, -1, 3], [1, 1, 6], (120, 3))
    aside = points - [0.4, 0.0, 0.1]
    descriptors = unit(rng.normal(size=(120, 32)))
    a = LocalView(points=points[:, :2] / points[:, 2:], descriptors=descriptors)
    b = LocalView(points=aside[:, :2] / aside[:, 2:], descriptors=descriptors)
    assert overlap(a, b) == pytest.approx(1.0)
    assert overlap(a, view(rng)) == 0.0


def test_the_table_leaves_out_what_cannot_be_measured():
    facts = {
        "set": "walk",
        "rule": "near",
        "unfit": "",
        "recall_at_1": dict.fromkeys(WAYS, 0.5),
        "overlap": dict.fromkeys(WAYS, 0.25),
        "score_weight": 10.0,
        "p50_ms": 7.0,
        "p95_ms": 9.0,
    }
    text = table([facts, {"set": "none", "rule": "", "unfit": "no place"}])
    assert "| walk | near | 0.50, 0.250 |" in text
    assert "| 10 | 7.00 / 9.00 |" in text
    assert "none" not in text
