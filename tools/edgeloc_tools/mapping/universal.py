"""Codebooks that serve any site: learned from photos of all kinds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from edgeloc.errors import DatasetError
from edgeloc.features.extract import extract_features
from edgeloc.features.family import FeatureFamily
from edgeloc.features.learned import LearnedRetrieval
from edgeloc.types import ByteArray, Float32Array
from edgeloc_tools.mapping.codebook import train_quantizer
from edgeloc_tools.mapping.codebooks import codebook_path, write_codebook
from edgeloc_tools.progress import Progress, silent, track

FEATURE_BYTES = (8, 16)
GLOBAL_BYTES = (32, 64)
_KEYPOINTS = 250
_ROWS = 60_000
_CROPS = 4
_MIN_CROP = 0.55


def _read(path: Path) -> ByteArray:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DatasetError(f"{path}: cannot be decoded; remove it")
    return np.asarray(image, np.uint8)


def write_feature_codebooks(
    photos: Sequence[Path],
    family: FeatureFamily,
    *,
    folder: Path,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Path]:
    """Write the codebooks of a family's local descriptors.

    Parameters
    ----------
    photos : sequence of Path
        What they are learned from; every second one is enough.
    family : FeatureFamily
        What describes them.
    folder : Path
        Where the files go.
    seed : int
        Of everything random.
    progress : callable
        Told about each photo.
    """
    rows = [
        extract_features(_read(path), family, max_keypoints=_KEYPOINTS).descriptors
        for path in track(photos[::2], "photos", progress)
    ]
    vectors = family.decode(np.concatenate(rows))
    vectors = vectors[np.random.default_rng(seed).permutation(len(vectors))[:_ROWS]]
    return _write(vectors, family.name, FEATURE_BYTES, folder=folder, seed=seed)


def write_global_codebooks(
    photos: Sequence[Path],
    retrieval: LearnedRetrieval,
    *,
    folder: Path,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Path]:
    """Write the codebooks of a retrieval network's global descriptors.

    Parameters
    ----------
    photos : sequence of Path
        What they are learned from: each whole, and three parts of it, two of the four
        mirrored.
    retrieval : LearnedRetrieval
        What describes them.
    folder, seed, progress
        As for `write_feature_codebooks`.
    """
    rng = np.random.default_rng(seed)
    nothing = np.zeros((0, 1), np.float32)
    vectors = []
    for path in track(photos, "photos", progress):
        image = _read(path)
        for number in range(_CROPS):
            share = 1.0 if number == 0 else rng.uniform(_MIN_CROP, 0.95)
            size = (np.array(image.shape[:2]) * share).astype(np.int64)
            y, x = rng.integers(0, np.array(image.shape[:2]) - size + 1)
            crop = image[y : y + size[0], x : x + size[1]]
            crop = np.ascontiguousarray(crop[:, :: -1 if number % 2 else 1])
            vectors.append(retrieval.global_descriptor(crop, nothing))
    return _write(
        np.stack(vectors),
        retrieval.network.manifest.name,
        GLOBAL_BYTES,
        folder=folder,
        seed=seed,
    )


def _write(
    vectors: Float32Array,
    model: str,
    sizes: Sequence[int],
    *,
    folder: Path,
    seed: int,
) -> list[Path]:
    paths = []
    for num_parts in sizes:
        path = codebook_path(model, num_parts, folder=folder)
        quantizer = train_quantizer(vectors, num_parts=num_parts, seed=seed)
        write_codebook(path, path.stem, quantizer)
        paths.append(path)
    return paths
