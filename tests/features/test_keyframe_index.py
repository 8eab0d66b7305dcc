"""The search over global descriptors."""

import numpy as np
import pytest

from edgeloc.features import keyframe_index
from edgeloc.features.keyframe_index import (
    GlobalCoding,
    InvertedLists,
    KeyframeIndex,
    global_coding,
)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def make_index(rng, count, *, lists=None):
    # Places that look alike in groups.
    places = rng.standard_normal((20, 16))[rng.integers(0, 20, count)]
    rows = unit(places + 0.7 * rng.standard_normal((count, 16)))
    codes = np.round(rows * 127).astype(np.int8)
    return KeyframeIndex(
        keyframe_ids=np.arange(count)[::-1] * 3,
        codes=codes,
        coding=global_coding("int8", None),
        lists=lists,
    )


def grouped(index, num_lists):
    rows = index.coding.decode(index.codes)
    centroids = rows[:num_lists]
    nearest = np.argmax(rows @ centroids.T, axis=1)
    order = np.argsort(nearest, kind="stable")
    return InvertedLists(
        centroids=centroids,
        starts=np.searchsorted(nearest[order], np.arange(num_lists + 1)),
        keyframe_idx=order,
    )


def test_the_most_similar_come_first(rng):
    index = make_index(rng, 200)
    query = unit(rng.standard_normal((1, 16)))[0]
    found = index.search(query, k=5)
    scores = index.coding.decode(index.codes) @ query
    best = np.argsort(-scores)[:5]
    np.testing.assert_array_equal(found.keyframe_ids, index.keyframe_ids[best])
    np.testing.assert_allclose(found.scores, scores[best], atol=1e-6)


def test_equals_are_told_apart_by_their_ids():
    index = KeyframeIndex(
        keyframe_ids=np.array([7, 3, 5]),
        codes=np.ones((3, 4), np.float16),
        coding=global_coding("float16", None),
    )
    found = index.search(np.full(4, 0.5, np.float32), k=2)
    assert found.keyframe_ids.tolist() == [3, 5]


def test_fewer_keyframes_than_asked_for(rng):
    assert len(make_index(rng, 3).search(np.ones(16, np.float32) / 4, k=10)) == 3


def test_lists_find_what_an_exhaustive_search_finds(rng, monkeypatch):
    """Nine of ten of the best five, from a quarter of all keyframes."""
    monkeypatch.setattr(keyframe_index, "MAX_RESIDENT", 100)
    monkeypatch.setattr(keyframe_index, "MIN_CANDIDATES", 500)
    exact = make_index(rng, 2000)
    quick = KeyframeIndex(
        keyframe_ids=exact.keyframe_ids,
        codes=exact.codes,
        coding=exact.coding,
        lists=grouped(exact, 40),
    )
    shared = 0
    for row in range(0, 2000, 100):
        noise = 0.1 * rng.standard_normal((1, 16))
        query = unit(exact.coding.decode(exact.codes[row : row + 1]) + noise)[0]
        best = exact.search(query, k=5).keyframe_ids
        shared += len(np.intersect1d(best, quick.search(query, k=5).keyframe_ids))
    assert shared >= 0.9 * 5 * 20


def test_lists_come_back_from_a_site(rng):
    index = make_index(rng, 50)
    lists = grouped(index, 5)
    back = InvertedLists.from_arrays(lists.to_arrays(), num_keyframes=50, dim=16)
    np.testing.assert_array_equal(back.keyframe_idx, lists.keyframe_idx)
    np.testing.assert_array_equal(back.starts, lists.starts)
    assert InvertedLists.from_arrays({}, num_keyframes=50, dim=16) is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lists_starts", np.array([0, 1, 50], np.uint32), "do not fit"),
        ("lists_keyframe_idx", np.arange(49, dtype=np.uint32), "do not fit"),
        ("lists_centroids", np.ones((5, 15), np.float16), "do not fit"),
        ("lists_starts", None, "missing"),
    ],
)
def test_wrong_lists_are_refused(rng, name, value, message):
    arrays = {**grouped(make_index(rng, 50), 5).to_arrays(), name: value}
    if value is None:
        del arrays[name]
    with pytest.raises(ValueError, match=message):
        InvertedLists.from_arrays(arrays, num_keyframes=50, dim=16)


def test_a_keyframe_that_does_not_exist_is_refused(rng):
    lists = grouped(make_index(rng, 50), 5)
    broken = InvertedLists(
        centroids=lists.centroids,
        starts=lists.starts,
        keyframe_idx=np.full(50, 50),
    )
    with pytest.raises(ValueError, match="does not exist"):
        broken.candidates(lists.centroids[0], count=5)


def test_codings_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="unknown"):
        global_coding("zip", None)
    with pytest.raises(ValueError, match="codebook"):
        global_coding("pq", None)


def test_a_glance_at_codes_changes_no_answer(rng, monkeypatch):
    """Where only some of the keyframes in the lists are decoded."""
    monkeypatch.setattr(keyframe_index, "MAX_RESIDENT", 100)
    monkeypatch.setattr(keyframe_index, "MIN_CANDIDATES", 500)
    exact = make_index(rng, 2000)
    decoded = []

    def decode(codes):
        decoded.append(len(codes))
        return exact.coding.decode(codes)

    lists = grouped(exact, 40)
    slow, quick = (
        KeyframeIndex(
            keyframe_ids=exact.keyframe_ids,
            codes=exact.codes,
            coding=GlobalCoding(decode=decode, compare=compare),
            lists=lists,
        )
        for compare in (None, lambda codes, query: codes.astype(np.float32) @ query)
    )
    for query in unit(rng.standard_normal((10, 16))):
        one, other = slow.search(query, k=5), quick.search(query, k=5)
        np.testing.assert_array_equal(one.keyframe_ids, other.keyframe_ids)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)
        assert decoded[-2] >= 500
        assert decoded[-1] == 64
