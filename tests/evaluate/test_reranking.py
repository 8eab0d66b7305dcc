"""What re-ranking does to recall at 1."""

import numpy as np
import pytest

from edgeloc.localize.rerank import Agreement, LocalView, RerankOptions
from edgeloc.localize.view_motion import ViewMotion
from edgeloc.types import Rigid3
from edgeloc_tools.evaluate.neighbours import PoseNeighbours, WalkNeighbours
from edgeloc_tools.evaluate.reranking import WAYS, choose, find, overlap, table


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
        (database[:1], database),
        ([images[3]], images),
        RerankOptions(),
        neighbours=WalkNeighbours(),
    )
    assert list(ways.first) == list(WAYS)
    assert ways.first["retrieved"].tolist() == [0]
    assert ways.first["re-ranked"].tolist() == [3]
    assert ways.first["both"].tolist() == [3]
    assert ways.seconds[0] > 0


def test_features_that_lie_are_not_trusted(rng):
    """Neighbours of a walk share features; then each image has those of another."""
    at = np.arange(12)
    base = rng.normal(size=48)
    drift = np.cumsum(0.4 * rng.normal(size=(12, 48)), axis=0)
    steps = [view(rng, 20) for _ in range(15)]

    def seen_from(k):
        seen = steps[k : k + 4]
        return LocalView(
            points=np.concatenate([step.points for step in seen]) - [0.02 * k, 0],
            descriptors=np.concatenate([step.descriptors for step in seen]),
        )

    own = [seen_from(k) for k in at]
    options, neighbours = choose(unit(base + drift), own, None)
    assert options.score_weight <= 20
    assert isinstance(neighbours, WalkNeighbours)
    lying = [own[(k * 5) % 12] for k in at]
    options, _ = choose(unit(base + drift), lying, None)
    assert options.score_weight > 20


def test_images_are_near_where_others_say_that_a_query_is():
    """A metre apart along the line of sight; what image 0 shows has grown by e^0.5."""
    poses = [Rigid3(R=np.eye(3), t=[0, 0, -float(k)]) for k in range(4)]
    found = np.array([0, 2])
    said = Agreement(
        support=np.full(2, 20.0),
        image_from_query=np.repeat(np.eye(3)[None], 2, axis=0),
        log_zooms=np.array([-0.5, 0.0]),
    )
    posed = PoseNeighbours(poses, ViewMotion(depth=4.0))
    beside = np.exp(-1 / 18)
    np.testing.assert_allclose(posed.near(found, said), [[beside] * 2, [1, 1]])
    walk = WalkNeighbours()
    np.testing.assert_allclose(walk.near(found, said), [[1, beside], [beside, 1]])
    for neighbours in (posed, walk):
        near = neighbours.near_image(np.array([0, 1, 2]), 2)
        np.testing.assert_allclose(near, [beside, np.exp(-1 / 72), 1])


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
