"""Codebooks of product quantization, learned from descriptors."""

from __future__ import annotations

import numpy as np

from edgeloc.features.quantizer import NUM_WORDS, ProductQuantizer, nearest_words
from edgeloc.types import Float32Array, FloatArray, IntArray
from edgeloc_tools.progress import Progress, silent

_ROUNDS = 12
"""Rotations tried; the error changes by less than 1 % from the eighth on."""
_MEANS_PER_ROUND = 4
_LAST_MEANS = 12


def train_quantizer(
    vectors: Float32Array,
    *,
    num_parts: int,
    seed: int,
    weights: FloatArray | None = None,
    progress: Progress = silent,
) -> ProductQuantizer:
    """Return an optimized product quantizer (the non-parametric one of the paper).

    k-means in every part and the rotation that brings the vectors nearest to their
    decoded selves (orthogonal Procrustes) take turns.

    Parameters
    ----------
    vectors : ndarray of shape (N, D), float32
        At least 256; D a multiple of `num_parts`.
    num_parts : int
        Bytes of a code.
    seed : int
        For the first words.
    weights : ndarray of shape (N,), float64, optional
        How much each vector counts; 1 by default.
    progress : callable
        Told about each round.

    Raises
    ------
    ValueError
        When there are too few vectors or the parts do not divide them.
    """
    count, dim = vectors.shape
    if count < NUM_WORDS:
        raise ValueError(f"{count} vectors are too few for {NUM_WORDS} words")
    if dim % num_parts:
        raise ValueError(f"{num_parts} parts do not divide {dim} elements")
    rng = np.random.default_rng(seed)
    weights = np.ones(count) if weights is None else weights
    rotation = _balanced_rotation(vectors, num_parts)
    rotated = vectors @ rotation
    first = rng.choice(count, NUM_WORDS, replace=False)
    words = np.ascontiguousarray(
        rotated[first].reshape(NUM_WORDS, num_parts, -1).transpose(1, 0, 2)
    )
    for turn in range(_ROUNDS):
        decoded = _improve(rotated, words, weights, rounds=_MEANS_PER_ROUND)
        weighted = vectors * weights[:, None].astype(np.float32)
        left, _, right = np.linalg.svd(np.asarray(weighted.T @ decoded, np.float64))
        rotation = np.asarray(left @ right, np.float32)
        rotated = vectors @ rotation
        progress("codebook", turn + 1, _ROUNDS)
    _improve(rotated, words, weights, rounds=_LAST_MEANS)
    return ProductQuantizer(rotation=rotation, words=words)


def _balanced_rotation(vectors: Float32Array, num_parts: int) -> Float32Array:
    """Return principal axes, dealt to the parts so that all have as much variance."""
    dim = vectors.shape[1]
    centred = vectors - vectors.mean(axis=0, dtype=np.float64)
    values, axes = np.linalg.eigh(centred.T @ centred)
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    log_variance = np.zeros(num_parts)
    for axis in np.argsort(values)[::-1].tolist():
        free = [m for m in range(num_parts) if len(parts[m]) < dim // num_parts]
        least = min(free, key=lambda m: log_variance[m])
        parts[least].append(axis)
        log_variance[least] += float(np.log(max(values[axis], 1e-12)))
    return np.asarray(axes[:, np.concatenate(parts)], np.float32)


def _improve(
    rotated: Float32Array, words: Float32Array, weights: FloatArray, *, rounds: int
) -> Float32Array:
    """Run k-means in every part, in place, and return the decoded vectors."""
    decoded = np.empty_like(rotated)
    size = words.shape[2]
    for m in range(len(words)):
        part = np.ascontiguousarray(rotated[:, m * size : (m + 1) * size])
        nearest = _nearest(part, words[m])
        for _ in range(rounds):
            words[m] = _means(part, nearest, weights, words[m])
            nearest = _nearest(part, words[m])
        decoded[:, m * size : (m + 1) * size] = words[m][nearest]
    return decoded


def _nearest(part: Float32Array, words: Float32Array) -> IntArray:
    return nearest_words(part, words, 0.5 * np.sum(words**2, axis=1))


def _means(
    part: Float32Array, nearest: IntArray, weights: FloatArray, words: Float32Array
) -> Float32Array:
    """Return the mean of each word's vectors; words without any stay."""
    total = np.bincount(nearest, weights, minlength=len(words))
    sums = np.stack(
        [
            np.bincount(nearest, weights * part[:, k], minlength=len(words))
            for k in range(part.shape[1])
        ],
        axis=1,
    )
    used = total > 0
    means = words.copy()
    means[used] = sums[used] / total[used, None]
    return np.asarray(means, np.float32)
