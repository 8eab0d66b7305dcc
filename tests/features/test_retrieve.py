"""Retrieval by aggregated local descriptors."""

import numpy as np
import pytest

from edgeloc.features.retrieve import VladModel, train_vlad


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def model(rng):
    return train_vlad(unit(rng.normal(size=(2000, 64))), num_words=16, dim=24, seed=0)


def test_the_same_things_seen_again_are_found(model, rng):
    places = [unit(rng.normal(size=(300, 64))) for _ in range(20)]
    table = np.stack([model.describe(place) for place in places])
    for idx, place in enumerate(places):
        seen = place[rng.permutation(300)[:200]]
        noisy = unit(seen + rng.normal(scale=0.03, size=seen.shape))
        scores = table @ model.describe(noisy)
        others = np.delete(scores, idx)
        assert scores[idx] > others.max() + 0.2


def test_vlad_matches_its_definition(model, rng):
    descriptors = unit(rng.normal(size=(40, 64)))
    expected = np.zeros_like(model.centroids)
    for row in (descriptors - model.mean) @ model.projection.T:
        word = np.argmin(np.linalg.norm(model.centroids - row, axis=1))
        expected[word] += row - model.centroids[word]
    norms = np.linalg.norm(expected, axis=1, keepdims=True)
    expected = expected / np.maximum(norms, 1e-9)
    expected = expected.ravel() / np.linalg.norm(expected)
    np.testing.assert_allclose(model.describe(descriptors), expected, atol=1e-5)


def test_order_of_features_does_not_matter(model, rng):
    descriptors = unit(rng.normal(size=(100, 64)))
    shuffled = descriptors[rng.permutation(100)]
    np.testing.assert_allclose(
        model.describe(descriptors), model.describe(shuffled), atol=1e-5
    )


def test_no_features_give_zeros(model):
    np.testing.assert_array_equal(
        model.describe(np.zeros((0, 64), np.float32)), np.zeros(model.dim)
    )


def test_arrays_round_trip_and_are_checked(model):
    arrays = dict(model.to_arrays())
    again = VladModel.from_arrays(arrays)
    np.testing.assert_allclose(again.centroids, model.centroids, rtol=1e-3, atol=1e-4)
    for name, array in again.to_arrays().items():
        np.testing.assert_array_equal(array, arrays[name])
    with pytest.raises(ValueError, match="lacks centroids"):
        VladModel.from_arrays({k: v for k, v in arrays.items() if k != "centroids"})
    with pytest.raises(ValueError, match="do not fit"):
        VladModel.from_arrays({**arrays, "mean": arrays["mean"][:-1]})


def test_training_is_repeatable(rng):
    rows = unit(rng.normal(size=(500, 32)))
    a = train_vlad(rows, num_words=8, dim=16, seed=3)
    b = train_vlad(rows, num_words=8, dim=16, seed=3)
    np.testing.assert_array_equal(a.centroids, b.centroids)
