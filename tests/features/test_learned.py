"""Networks as families and as retrieval, from image to stored bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from model_factory import (
    FEATURES,
    RETRIEVAL,
    constant_network,
    feature_network,
    retrieval_network,
    write_features,
    write_retrieval,
)
from pictures import dots

from edgeloc.errors import ConfigError, ModelError
from edgeloc.features import registry
from edgeloc.features.extract import extract_features
from edgeloc.features.learned import LearnedFamily, encode_descriptors
from edgeloc.features.registry import open_family, open_retrieval
from edgeloc.inference.backend import BackendOptions
from edgeloc.inference.manifest import DECODERS, InputSpec
from edgeloc_tools.model_files import write_model

CPU = BackendOptions(backend="ort-cpu")


def texture(rng, height=200, width=264):
    coarse = rng.integers(0, 256, (height // 4, width // 4)).astype(np.uint8)
    return np.kron(coarse, np.ones((4, 4), np.uint8))


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    path = write_features(tmp_path_factory.mktemp("features"))
    return open_family(str(path), options=CPU)


def test_a_family_says_what_its_manifest_says(family):
    assert (family.name, family.stored_dim, family.match_ratio) == (
        "tiny-features",
        64,
        0.9,
    )
    assert family.stored_dtype == np.int8
    assert not family.colour
    assert family.network.describe().startswith("tiny-features on ort-cpu")


def test_a_shifted_image_has_shifted_features(family, rng):
    """By whole cells, so that nothing else changes."""
    image = texture(rng)
    a = extract_features(image[:, :-16], family, max_keypoints=300)
    b = extract_features(image[:, 16:], family, max_keypoints=300)
    assert len(a) == 300
    similarity = family.decode(a.descriptors) @ family.decode(b.descriptors).T
    best = np.argmax(similarity, axis=1)
    shift = a.keypoints - b.keypoints[best]
    right = np.linalg.norm(shift - [16, 0], axis=1) < 0.1
    assert right.mean() > 0.75  # those in the strips are in one image only


def test_features_are_strongest_first_and_carry_sigmas(family, rng):
    features = extract_features(texture(rng), family, max_keypoints=50)
    assert len(features) == 50
    assert np.all(np.diff(features.scores) <= 0)
    assert features.sigmas.tolist() == [1.0] * 50
    assert features.descriptors.dtype == np.int8


def test_an_image_that_is_scaled_down_gives_positions_of_the_full_one(family, rng):
    """Half the size has half the pixels; features of both stand at the same places."""
    big = np.kron(texture(rng), np.ones((2, 2), np.uint8))
    small = extract_features(big, family, max_keypoints=200, max_side_px=264)
    full = extract_features(big[::2, ::2], family, max_keypoints=200)
    np.testing.assert_allclose(small.keypoints, 2 * full.keypoints, atol=1e-3)
    assert small.sigmas.tolist() == [2.0] * 200


def test_masked_parts_have_no_features(family, rng):
    mask = np.full((200, 264), 255, np.uint8)
    mask[:, :130] = 0
    features = extract_features(texture(rng), family, max_keypoints=200, mask=mask)
    assert len(features) == 200
    assert features.keypoints[:, 0].min() > 129.5


def test_a_network_of_fixed_size_gives_positions_of_the_image(tmp_path, rng):
    spec = InputSpec(size_multiple=8, size=(200, 264))
    path = write_model(tmp_path, replace(FEATURES, input=spec), feature_network())
    fixed = open_family(str(path), options=CPU)
    image = texture(rng)
    wide = np.kron(image, np.ones((1, 2), np.uint8))
    a = extract_features(image, fixed, max_keypoints=100)
    b = extract_features(wide, fixed, max_keypoints=100)
    np.testing.assert_allclose(b.keypoints, a.keypoints * [2, 1], atol=1e-3)
    np.testing.assert_allclose(b.sigmas, 2**0.5)


def test_stored_descriptors_keep_their_angles(rng):
    rows = rng.normal(size=(500, 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    stored = encode_descriptors(rows)
    assert stored.dtype == np.int8
    np.testing.assert_array_equal(stored[:3], np.rint(256 * rows[:3]))
    decoded = LearnedFamily.decode(None, stored)
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1.0, atol=1e-5)
    assert np.abs(decoded @ decoded.T - rows @ rows.T).max() < 0.02
    spike = np.zeros((1, 64), np.float32)
    spike[0, 5] = -1.0
    assert encode_descriptors(spike)[0, 5] == -127


@pytest.mark.parametrize(
    "decoder", [n for n, (r, _) in DECODERS.items() if r[0] == "f"]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_decoder_serves_a_family(tmp_path, decoder, channels, rng):
    """Networks without weights, of the shapes that public exports have."""
    heat = np.full((1, 65, 8, 12), -9.0, np.float32)
    heat[0, 64] = 9.0
    heat[0, 8 * 3 + 5, 4, 6] = 19.0  # pixel (53, 35)
    full = np.full((1, 1, 64, 96), -3.0, np.float32)
    full[0, 0, 35, 53] = 0.9
    normalized = np.array([[[2 * 53 / 95 - 1, 2 * 35 / 63 - 1]]], np.float32)
    picked = decoder.startswith("points")
    made = {
        "keypoints": {
            "points": np.array([[[53, 35]]], np.int64),
            "points-normalized": normalized,
        }.get(decoder, heat),
        "scores": np.array([[0.9]], np.float32) if picked else full,
        "reliability": np.full((1, 1, 8, 12), 0.7, np.float32),
        "descriptors": rng.normal(size=(1, 1, 32) if picked else (1, 32, 8, 12)).astype(
            np.float32
        ),
    }
    outputs = {name: made[name] for name in DECODERS[decoder][1]}
    manifest = replace(
        FEATURES,
        name=f"byo-{decoder}",
        decoder=decoder,
        outputs={name: name for name in outputs},
        descriptor_dim=32,
        input=InputSpec(
            channels=channels,
            mean=(0.0,) * channels,
            std=(1.0,) * channels,
            size_multiple=8,
        ),
    )
    path = write_model(tmp_path, manifest, constant_network(outputs, channels=channels))
    family = open_family(str(path), options=CPU)
    assert family.colour == (channels == 3)
    image = np.rint(255 * dots((64, 96), [(53.5, 35.5)], contrasts=[0.7]))
    image = image.astype(np.uint8)
    features = extract_features(np.dstack([image] * 3), family, max_keypoints=10)
    assert len(features) == 1
    np.testing.assert_allclose(features.keypoints, [[53.5, 35.5]], atol=0.02)
    assert features.descriptors.shape == (1, 32)
    assert 0.1 < features.scores[0] <= 1.0


def test_a_wrong_dimension_is_named(tmp_path):
    path = write_model(
        tmp_path, replace(FEATURES, descriptor_dim=32), feature_network()
    )
    family = open_family(str(path), options=CPU)
    image = np.zeros((64, 64), np.uint8)
    with pytest.raises(
        ModelError, match=r"json: descriptor_dim is 32, the network's d"
    ):
        family.extract(image, max_keypoints=10)


def test_a_wrong_shape_names_the_manifest(tmp_path):
    outputs = {
        "descriptors": np.zeros((1, 64, 8, 8), np.float32),
        "reliability": np.zeros((1, 2, 8, 8), np.float32),
    }
    path = write_model(tmp_path, FEATURES, constant_network(outputs))
    family = open_family(str(path), options=CPU)
    with pytest.raises(ModelError, match=r"tiny-features.json: the output for 'reliab"):
        family.extract(np.zeros((64, 64), np.uint8), max_keypoints=10)


def test_retrieval_knows_an_image_again_at_any_size(tmp_path, rng):
    retrieval = open_retrieval(str(write_retrieval(tmp_path)), options=CPU)
    assert retrieval is not None
    nothing = np.zeros((0, 64), np.float32)
    images = [texture(rng, 48, 64) for _ in range(5)]
    vectors = np.stack([retrieval.global_descriptor(i, nothing) for i in images])
    assert vectors.shape == (5, retrieval.dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    bgr = np.repeat(np.kron(images[3], np.ones((2, 2), np.uint8))[..., None], 3, axis=2)
    query = retrieval.global_descriptor(bgr, nothing)
    similarity = vectors @ query
    assert np.argmax(similarity) == 3
    assert similarity[3] > 0.95


def test_a_vector_of_another_size_is_named(tmp_path):
    path = write_model(
        tmp_path, replace(RETRIEVAL, descriptor_dim=7), retrieval_network()
    )
    retrieval = open_retrieval(str(path), options=CPU)
    with pytest.raises(ModelError, match=r"descriptor_dim is 7, the network's output"):
        retrieval.global_descriptor(
            np.zeros((48, 64), np.uint8), np.zeros((0, 64), np.float32)
        )


def test_names(tmp_path, monkeypatch):
    shipped = {"features": None, "retrieval": None}
    monkeypatch.setattr(registry, "shipped_model", shipped.get)
    assert open_family("orb").name == "orb"
    assert open_retrieval("vlad") is None
    assert open_retrieval("auto") is None
    with pytest.raises(ConfigError, match="'edgeloc': this installation has no feat"):
        open_family("edgeloc")
    with pytest.raises(ConfigError, match="'edgeloc': this installation has no retr"):
        open_retrieval("edgeloc")
    with pytest.raises(ConfigError, match="'surf' is unknown, expected orb, sift, edg"):
        open_family("surf")
    with pytest.raises(ConfigError, match="'bow' is unknown, expected auto, vlad, edg"):
        open_retrieval("bow")
    with pytest.raises(ConfigError, match=r"none\.json: no such model manifest"):
        open_family(str(tmp_path / "none.json"))
    shipped["features"] = write_features(tmp_path)
    shipped["retrieval"] = write_retrieval(tmp_path)
    assert open_family("edgeloc", options=CPU).name == "tiny-features"
    for name in ("auto", "edgeloc"):
        retrieval = open_retrieval(name, options=CPU)
        assert retrieval is not None
        assert retrieval.network.manifest.name == "tiny-retrieval"
    with pytest.raises(ModelError, match="role is 'retrieval', expected 'features'"):
        open_family(str(shipped["retrieval"]), options=CPU)
