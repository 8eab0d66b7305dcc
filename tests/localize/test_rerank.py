"""Geometric check of retrieved images, and query expansion."""

import numpy as np
import pytest

from edgeloc.geometry.se3 import exp_so3
from edgeloc.localize.rerank import (
    LocalView,
    RerankOptions,
    expand_query,
    place_worths,
    worths,
)
from edgeloc.localize.rerank import supporting_matches as agreement_of

OPTIONS = RerankOptions()


def supporting_matches(query, images, options):
    return agreement_of(query, images, options).support


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def view(rng, count=100, dim=64):
    return LocalView(
        points=rng.uniform(-0.5, 0.5, (count, 2)),
        descriptors=unit(rng.normal(size=(count, dim))),
    )


def moved(image, *, turn_rad=0.0, zoom=1.0, shift=(0.0, 0.0), keep=None):
    """The same features, turned, zoomed and shifted; only the first `keep` right."""
    c, s = np.cos(turn_rad), np.sin(turn_rad)
    points = zoom * image.points @ np.array([[c, -s], [s, c]]).T + shift
    if keep is not None:
        points[keep:] = points[keep:][::-1]
    return LocalView(points=points, descriptors=image.descriptors)


def test_the_same_thing_seen_anew_is_supported(rng):
    query = view(rng)
    images = [
        moved(query),
        moved(query, turn_rad=0.6, shift=(0.2, -0.1)),
        view(rng),
    ]
    support = supporting_matches(query, images, OPTIONS)
    assert support[0] == pytest.approx(98)
    assert support[1] == pytest.approx(98, rel=1e-3)
    assert support[2] == 0


def test_matches_that_do_not_move_together_do_not_count(rng):
    query = view(rng)
    half = supporting_matches(query, [moved(query, keep=40)], OPTIONS)[0]
    assert 38 <= half <= 48


def test_a_change_of_scale_is_less_likely(rng):
    """By exp(-0.5 (log 1.5 / 0.2)^2): the same street, from far behind."""
    query = view(rng)
    support = supporting_matches(query, [moved(query, zoom=1.5)], OPTIONS)[0]
    assert support == pytest.approx(
        98 * np.exp(-0.5 * (np.log(1.5) / 0.2) ** 2), rel=1e-3
    )


def test_the_scale_is_that_of_all_that_agree(rng):
    """From further behind a street shows more of what a query sees, but smaller.

    In the middle of the picture a third of the scale moves hardly anything by more than
    the tolerance: pairs that have not changed their distance would hide it.
    """
    query = view(rng)
    query = LocalView(points=0.3 * query.points, descriptors=query.descriptors)
    # A scene with depth: things do not all move alike.
    depth = rng.normal(scale=0.01, size=query.points.shape)
    behind = LocalView(points=query.points / 1.4 + depth, descriptors=query.descriptors)
    here = LocalView(
        points=query.points[:60] + depth[:60], descriptors=query.descriptors[:60]
    )
    far, near = supporting_matches(query, [behind, here], OPTIONS)
    # 98 exp(-0.5 (log 1.4 / 0.2)^2) = 24; the likeliest pair alone would give 73.
    assert 20 < far < 40
    assert 55 < near <= 58


def test_an_answer_does_not_depend_on_the_other_images(rng):
    query = view(rng)
    images = [moved(query, keep=30), view(rng, 20), moved(query, keep=70)]
    together = supporting_matches(query, images, OPTIONS)
    alone = [supporting_matches(query, [image], OPTIONS)[0] for image in images]
    np.testing.assert_array_equal(together, alone)
    assert together[2] > together[0] > together[1]


def test_nothing_to_compare_is_no_support(rng):
    empty = LocalView(
        points=np.zeros((0, 2)), descriptors=np.zeros((0, 64), np.float32)
    )
    query = view(rng)
    two = LocalView(points=query.points[:2], descriptors=query.descriptors[:2])
    assert supporting_matches(query, [empty, two], OPTIONS).tolist() == [0, 0]
    assert supporting_matches(empty, [query], OPTIONS).tolist() == [0]
    assert supporting_matches(query, [], OPTIONS).shape == (0,)


def test_features_on_one_spot_say_nothing(rng):
    query = view(rng)
    pile = LocalView(points=np.zeros_like(query.points), descriptors=query.descriptors)
    assert supporting_matches(query, [pile], OPTIONS)[0] == 0
    assert supporting_matches(pile, [query], OPTIONS)[0] == 0
    # Points that could not be undistorted.
    lost = LocalView(
        points=np.full_like(query.points, np.nan), descriptors=query.descriptors
    )
    assert supporting_matches(query, [lost], OPTIONS)[0] == 0


def test_only_the_first_features_are_compared(rng):
    query = view(rng)
    options = RerankOptions(num_query=50, num_image=30)
    assert supporting_matches(query, [moved(query)], options)[0] == pytest.approx(28)


def test_support_and_similarity_are_weighed():
    scores = np.array([0.9, 0.8, 0.5], np.float32)
    support = np.array([0.0, 10.0, 10.0])
    options = RerankOptions(score_weight=10.0)
    worth = worths(scores, support, options)
    np.testing.assert_allclose(worth, [9, np.log(11) + 8, np.log(11) + 5], atol=1e-6)
    blind = RerankOptions(score_weight=1e4)
    assert np.argmax(worths(scores, support, blind)) == 0


def test_a_turn_of_the_camera_and_a_change_of_scale_are_seen(rng):
    """Features far away, seen after a turn; and from nearer."""
    query = view(rng)
    turn = exp_so3([0.1, -0.2, 0.3])
    ahead = np.column_stack([query.points, np.ones(len(query))]) @ turn.T
    turned = LocalView(
        points=ahead[:, :2] / ahead[:, 2:], descriptors=query.descriptors
    )
    options = RerankOptions(tolerance=0.2)
    found = agreement_of(query, [turned, moved(query, zoom=1.3), view(rng)], options)
    assert len(found) == 3
    # What a similarity cannot explain is left out; the rest are seen after that turn.
    np.testing.assert_allclose(found.image_from_query[0], turn, atol=1e-5)
    np.testing.assert_allclose(found.image_from_query[1], np.eye(3), atol=0.02)
    assert found.log_zooms[1] == pytest.approx(np.log(1.3), abs=1e-3)
    np.testing.assert_array_equal(found.image_from_query[2], np.eye(3))
    assert (found.support[2], found.log_zooms[2]) == (0, 0)
    picked = found.of(np.array([1]))
    assert picked.log_zooms.tolist() == [found.log_zooms[1]]


def test_images_of_one_place_vouch_for_each_other():
    """Two good images of a place outweigh a slightly better one of another."""
    worth = np.array([1.0, 0.9, 0.8])
    places = place_worths(worth, np.eye(3), OPTIONS)
    np.testing.assert_allclose(np.diff(places), [-0.2, -0.2], atol=1e-9)
    near = np.array([[1, 0, 0], [0, 1, 0.9], [0, 0.9, 1.0]])
    assert np.argmax(place_worths(worth, near, OPTIONS)) == 1
    # Far from all that anybody says: finite, and the last.
    near[2] = 0.0
    assert np.argmin(place_worths(worth, near, OPTIONS)) == 2
    assert place_worths(np.zeros(0), np.zeros((0, 0)), OPTIONS).shape == (0,)


def test_expansion_draws_a_query_to_what_it_found(rng):
    query = unit(rng.normal(size=32))
    found = unit(query + 0.5 * rng.normal(size=(3, 32)))
    expanded = expand_query(query, found, alpha=3.0)
    assert np.linalg.norm(expanded) == pytest.approx(1.0, abs=1e-6)
    assert np.all(found @ expanded > found @ query)
    average = query + found.sum(axis=0)
    np.testing.assert_allclose(
        expand_query(query, found, alpha=0.0), unit(average), atol=1e-6
    )
    # What looks away has no weight.
    np.testing.assert_allclose(
        expand_query(query, -query[None], alpha=3.0), query, atol=1e-6
    )


@pytest.mark.parametrize(
    "name", ["num_query", "num_samples", "tolerance", "zoom_sigma"]
)
def test_options_refuse_nonsense(name):
    with pytest.raises(ValueError, match=name):
        RerankOptions(**{name: 0})
