"""Matching by dense products."""

import numpy as np
import pytest

from edgeloc.features.match import (
    MatchOptions,
    landmark_similarity,
    match_descriptors,
    match_to_keyframes,
)


def unit_rows(rng, count, dim=32):
    rows = rng.normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_noisy_copies_are_matched_to_their_originals(rng):
    a = unit_rows(rng, 50)
    order = rng.permutation(50)
    b = a[order] + rng.normal(scale=0.02, size=a.shape).astype(np.float32)
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    idx_a, idx_b, scores = match_descriptors(a, b, MatchOptions())
    assert len(idx_a) == 50
    np.testing.assert_array_equal(order[idx_b], idx_a)
    assert scores.min() > 0.9


def on_circle(*angles_deg):
    angles = np.deg2rad(angles_deg)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_ratio_test_drops_what_is_ambiguous():
    a, b = on_circle(0, 90), on_circle(20, -21, 92)
    idx_a, idx_b, _ = match_descriptors(a, b, MatchOptions(max_ratio=0.8))
    assert (idx_a.tolist(), idx_b.tolist()) == ([1], [2])


def test_mutual_check_keeps_the_better_of_two_rows():
    a, b = on_circle(10, 5), on_circle(0, 90)
    idx_a, idx_b, _ = match_descriptors(a, b, MatchOptions(max_ratio=1.0))
    assert (idx_a.tolist(), idx_b.tolist()) == ([1], [0])
    both = MatchOptions(max_ratio=1.0, mutual=False)
    assert match_descriptors(a, b, both)[0].tolist() == [0, 1]


def test_score_is_the_relative_gap_of_squared_distances():
    a, b = on_circle(0), on_circle(10, 40)
    _, _, scores = match_descriptors(a, b, MatchOptions())
    gap = 1 - (2 - 2 * np.cos(np.deg2rad(10))) / (2 - 2 * np.cos(np.deg2rad(40)))
    assert scores[0] == pytest.approx(gap, abs=1e-5)


def test_keyframes_match_as_brute_force_says(rng):
    """Against a loop that follows the definition word by word."""
    query, rows = unit_rows(rng, 40, 8), unit_rows(rng, 90, 8)
    row_to_point = np.unique(np.sort(rng.integers(0, 30, 90)), return_inverse=True)[1]
    num_points = int(row_to_point[-1]) + 1
    keyframes = [np.sort(rng.permutation(num_points)[:20]) for _ in range(3)]
    options = MatchOptions(max_ratio=0.95, min_similarity=0.3)
    similarity = query @ rows.T
    by_point = np.stack(
        [similarity[:, row_to_point == p].max(axis=1) for p in range(num_points)]
    )
    np.testing.assert_allclose(
        landmark_similarity(query, rows, row_to_point), by_point, atol=1e-6
    )
    expected = {}
    for points in keyframes:
        for q in range(len(query)):
            order = points[np.argsort(-by_point[points, q])]
            best, second = by_point[order[:2], q]
            distance2, next_distance2 = 2 - 2 * best, 2 - 2 * second
            if (
                best >= 0.3
                and distance2 <= 0.95**2 * next_distance2
                and np.argmax(by_point[order[0]]) == q
            ):
                pair = (q, int(order[0]))
                gained = 0.1 + 1 - distance2 / next_distance2
                expected[pair] = expected.get(pair, 0.0) + gained
    query_idx, point_idx, scores = match_to_keyframes(by_point, keyframes, options)
    found = dict(
        zip(
            zip(query_idx.tolist(), point_idx.tolist(), strict=True),
            scores,
            strict=True,
        )
    )
    assert len(expected) > 10
    assert found.keys() == expected.keys()
    for pair, score in found.items():
        assert score == pytest.approx(expected[pair], abs=1e-4)
    assert np.all(np.diff(scores) <= 0)


def test_two_descriptors_of_one_landmark_do_not_compete(rng):
    """A landmark's second view must not fail the ratio test against its first."""
    query = unit_rows(rng, 10)
    rows = np.repeat(query, 2, axis=0)
    rows += rng.normal(scale=0.01, size=rows.shape).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    similarity = landmark_similarity(query, rows, np.repeat(np.arange(10), 2))
    query_idx, point_idx, _ = match_to_keyframes(
        similarity, [np.arange(10)], MatchOptions(max_ratio=0.5)
    )
    assert len(query_idx) == 10
    np.testing.assert_array_equal(query_idx, point_idx)


@pytest.mark.parametrize(("num_query", "num_points"), [(0, 5), (5, 0), (0, 0)])
def test_nothing_matches_nothing(num_query, num_points):
    query_idx, point_idx, scores = match_to_keyframes(
        np.zeros((num_points, num_query), np.float32),
        [np.arange(num_points)],
        MatchOptions(),
    )
    assert len(query_idx) == len(point_idx) == len(scores) == 0


@pytest.mark.parametrize("bad", [{"max_ratio": 0.0}, {"min_similarity": 1.0}])
def test_options_refuse_nonsense(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        MatchOptions(**bad)
