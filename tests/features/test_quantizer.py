"""Product quantization of descriptors."""

import numpy as np
import pytest

from edgeloc.features.quantizer import ProductQuantizer
from edgeloc_tools.mapping.codebook import train_quantizer


def unit_rows(rng, count, dim):
    # Correlated elements, as descriptors have them: a rotation pays.
    mix = rng.standard_normal((dim, dim)) * np.geomspace(1.0, 0.05, dim)[:, None]
    rows = rng.standard_normal((count, dim)) @ mix
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors():
    return unit_rows(np.random.default_rng(3), 6000, 16)


@pytest.fixture(scope="module")
def quantizer(vectors):
    return train_quantizer(vectors[:5000], num_parts=4, seed=0)


def test_decoded_vectors_are_near_and_of_unit_length(vectors, quantizer):
    codes = quantizer.encode(vectors[5000:])
    decoded = quantizer.decode(codes)
    assert codes.shape == (1000, 4)
    assert codes.dtype == np.uint8
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1.0, atol=1e-5)
    assert np.mean(np.sum(decoded * vectors[5000:], axis=1)) > 0.98


def test_a_code_names_the_nearest_words(vectors, quantizer):
    rotated = (vectors[:50] @ quantizer.rotation).reshape(50, 4, 4)
    distances = np.linalg.norm(rotated[:, :, None, :] - quantizer.words[None], axis=3)
    np.testing.assert_array_equal(
        quantizer.encode(vectors[:50]), np.argmin(distances, axis=2)
    )


def test_the_rotation_pays(vectors, quantizer):
    """Against the same quantizer without one."""
    plain = ProductQuantizer(
        rotation=np.eye(16, dtype=np.float32),
        words=np.stack([vectors[:256, 4 * m : 4 * m + 4] for m in range(4)]),
    )

    def error(q):
        return np.mean((q.decode(q.encode(vectors[5000:])) - vectors[5000:]) ** 2)

    assert error(quantizer) < 0.7 * error(plain)
    np.testing.assert_allclose(
        quantizer.rotation.T @ quantizer.rotation, np.eye(16), atol=1e-5
    )


def test_the_same_vectors_give_the_same_codebook(vectors, quantizer):
    again = train_quantizer(vectors[:5000], num_parts=4, seed=0)
    np.testing.assert_array_equal(again.words, quantizer.words)
    np.testing.assert_array_equal(again.rotation, quantizer.rotation)


def test_weights_draw_the_words(vectors):
    heavy = np.where(np.arange(2000) < 300, 1.0, 1e-6)
    weighted = train_quantizer(vectors[:2000], num_parts=4, seed=0, weights=heavy)
    even = train_quantizer(vectors[:2000], num_parts=4, seed=0)

    def error(q):
        return np.mean((q.decode(q.encode(vectors[:300])) - vectors[:300]) ** 2)

    assert error(weighted) < 0.8 * error(even)


def test_arrays_come_back(quantizer, vectors):
    back = ProductQuantizer.from_arrays(quantizer.to_arrays())
    codes = quantizer.encode(vectors[:100])
    np.testing.assert_allclose(back.decode(codes), quantizer.decode(codes), atol=2e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": np.zeros((4, 255, 4), np.float16)}, "do not fit"),
        ({"rotation": np.zeros((15, 15), np.float16)}, "do not fit"),
        ({"rotation": np.full((16, 16), np.nan, np.float16)}, "finite"),
        ({"more": np.zeros(1, np.float16)}, "nothing else"),
    ],
)
def test_wrong_arrays_are_refused(quantizer, change, message):
    with pytest.raises(ValueError, match=message):
        ProductQuantizer.from_arrays({**quantizer.to_arrays(), **change})


def test_too_few_or_indivisible_vectors_are_refused(vectors):
    with pytest.raises(ValueError, match="too few"):
        train_quantizer(vectors[:255], num_parts=4, seed=0)
    with pytest.raises(ValueError, match="do not divide"):
        train_quantizer(vectors, num_parts=5, seed=0)


def test_no_rows_are_no_codes(quantizer):
    codes = quantizer.encode(np.zeros((0, 16), np.float32))
    assert codes.shape == (0, 4)
    assert quantizer.decode(codes).shape == (0, 16)


def test_codes_are_compared_without_decoding(rng, quantizer, vectors):
    codes = quantizer.encode(vectors)
    for query in unit_rows(rng, 5, quantizer.dim):
        scores = quantizer.similarity(codes, query)
        np.testing.assert_allclose(scores, quantizer.decode(codes) @ query, atol=1e-4)
