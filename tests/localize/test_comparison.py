"""Query features against landmarks, each landmark once."""

import numpy as np

from edgeloc.features.match import landmark_similarity
from edgeloc.localize.comparison import LandmarkComparison
from edgeloc.tiles.layout import LocalMap


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def make_local_map(ids, descriptors_of):
    """Return the landmarks with these ids, one to three descriptors each."""
    rows = [descriptors_of[idx] for idx in ids]
    return LocalMap(
        point3D_ids=np.array(ids, np.int64),
        points3D=np.zeros((len(ids), 3)),
        sigmas=np.zeros(len(ids), np.float32),
        num_observations=np.ones(len(ids), np.int64),
        descriptors=np.concatenate(rows),
        row_to_point=np.repeat(np.arange(len(ids)), [len(r) for r in rows]),
    )


def test_overlapping_maps_give_what_a_fresh_comparison_gives(rng):
    known = {idx: unit(rng.normal(size=(rng.integers(1, 4), 16))) for idx in range(60)}
    query = unit(rng.normal(size=(25, 16)))
    decoded = []

    def decode(stored):
        decoded.append(len(stored))
        return stored

    comparison = LandmarkComparison(query, decode)
    seen = set()
    for ids in (range(10, 30), range(0, 40, 2), range(60), range(5, 9)):
        local_map = make_local_map(list(ids), known)
        found = comparison.similarity(local_map)
        fresh = landmark_similarity(
            query, local_map.descriptors, local_map.row_to_point
        )
        np.testing.assert_allclose(found, fresh, atol=1e-6)
        new = set(ids) - seen
        seen |= new
        if new:
            assert decoded.pop() == sum(len(known[idx]) for idx in new)
        assert not decoded
