"""How much a variant of a network says the same as its float32 truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np

from edgeloc.errors import ModelError
from edgeloc.features.extract import extract_features, to_grey
from edgeloc.features.family import FeatureFamily
from edgeloc.features.learned import LearnedFamily, LearnedRetrieval
from edgeloc.features.match import MatchOptions, match_descriptors
from edgeloc.inference.network import Network
from edgeloc.types import ByteArray, Float32Array, FloatArray, IntArray
from edgeloc_tools.evaluate.warps import (
    WarpedImage,
    other_light,
    random_homography,
    warp_image,
)

SAME_KEYPOINT_PX = 1.5
"""Keypoints of two variants this close are the same."""

INLIER_PX = 3.0
"""A match this close to where the true homography puts it is right."""

MIN_MATCHES = 12
"""With fewer, a pair of pictures counts as not registered."""

_LONGEST_PX = 640
# Of `edgeloc_tools.evaluate.warps`: pairs that a good network matches, but not easily.
_VIEW_STRENGTH, _LIGHT_STRENGTH = 0.6, 0.4


class Agreement(Protocol):
    """What a probe says about a variant."""

    @property
    def damage(self) -> float:
        """0 for the truth itself; sorts layers and calibrations."""

    def facts(self) -> dict[str, float]:
        """Return the figures for a report."""


class Probe(Protocol):
    """Compares variants with the truth on the same pictures."""

    def measure(self, network: Network) -> Agreement:
        """Return how much a variant agrees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureAgreement:
    """Local features of a variant against those of the truth.

    Parameters
    ----------
    descriptor_cosine : float
        Mean over keypoints that both have; 0 without any.
    repeatability : float
        Share of the truth's keypoints that the variant has within `SAME_KEYPOINT_PX`.
    shift_px : float
        How far these are moved, in the mean: what the accuracy of poses lives on. 0 for
        decoder "edgeloc", whose keypoints are corners of the picture, and where the
        network only says which of them are kept.
    inliers : float
        Right matches per pair of pictures, variant with variant.
    inliers_of_truth : float
        The same, truth with truth.
    """

    descriptor_cosine: float
    repeatability: float
    shift_px: float
    inliers: float
    inliers_of_truth: float

    @property
    def inlier_ratio(self) -> float:
        """Right matches relative to the truth's."""
        return self.inliers / max(self.inliers_of_truth, 1e-9)

    @property
    def damage(self) -> float:
        """Sum of what is missing of each share, and of the shift in pixels."""
        return (
            (1.0 - self.descriptor_cosine)
            + (1.0 - self.repeatability)
            + max(0.0, 1.0 - self.inlier_ratio)
            + self.shift_px
        )

    def facts(self) -> dict[str, float]:
        """Return the figures for a report."""
        return {
            "descriptor_cosine": self.descriptor_cosine,
            "repeatability": self.repeatability,
            "shift_px": self.shift_px,
            "inliers": self.inliers,
            "inlier_ratio": self.inlier_ratio,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalAgreement:
    """Global descriptors of a variant against those of the truth.

    Parameters
    ----------
    cosine : float
        Mean over the pictures.
    recall_at_1, recall_at_5 : float
        Share of pictures whose nearest neighbour, by the truth, is among the first k
        by the variant.
    """

    cosine: float
    recall_at_1: float
    recall_at_5: float

    @property
    def damage(self) -> float:
        """Sum of what is missing of each, 0 to 3 or a little more."""
        return 3.0 - self.cosine - self.recall_at_1 - self.recall_at_5

    def facts(self) -> dict[str, float]:
        """Return the figures for a report."""
        return {
            "cosine": self.cosine,
            "recall_at_1": self.recall_at_1,
            "recall_at_5": self.recall_at_5,
        }


def warped_pairs(images: Sequence[ByteArray], *, seed: int) -> list[WarpedImage]:
    """Return each picture with another view of it in slightly other light.

    Parameters
    ----------
    images : sequence of ndarray of shape (H, W) or (H, W, 3), uint8
        Grey or BGR; larger ones than 640 px are scaled down.
    seed : int
        The same seed gives the same views.
    """
    rng = np.random.default_rng(seed)
    pairs = []
    for image in images:
        grey = _at_most(to_grey(image), _LONGEST_PX)
        size = (grey.shape[1], grey.shape[0])
        pair = warp_image(grey, *random_homography(size, _VIEW_STRENGTH, rng))
        pairs.append(replace(pair, b=other_light(pair.b, _LIGHT_STRENGTH, rng)))
    return pairs


def _at_most(image: ByteArray, longest_px: int) -> ByteArray:
    height, width = image.shape[:2]
    scale = longest_px / max(height, width)
    if scale >= 1.0:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Described:
    """Local features with decoded descriptors.

    Parameters
    ----------
    keypoints : ndarray of shape (N, 2), float32
        px.
    descriptors : ndarray of shape (N, D), float32
        L2-normalised.
    """

    keypoints: Float32Array
    descriptors: Float32Array


def describe(
    image: ByteArray,
    family: FeatureFamily,
    *,
    max_keypoints: int,
    mask: ByteArray | None = None,
) -> Described:
    """Return the local features of an image."""
    features = extract_features(image, family, max_keypoints=max_keypoints, mask=mask)
    return Described(
        keypoints=features.keypoints, descriptors=family.decode(features.descriptors)
    )


def same_keypoints(truth: Described, other: Described) -> tuple[IntArray, IntArray]:
    """Return which keypoints are each other's nearest, within `SAME_KEYPOINT_PX`."""
    from scipy.spatial import cKDTree

    none = np.zeros(0, np.int64)
    if len(truth.keypoints) == 0 or len(other.keypoints) == 0:
        return none, none
    there, nearest = cKDTree(other.keypoints).query(truth.keypoints)
    _, back = cKDTree(truth.keypoints).query(other.keypoints)
    rows = np.arange(len(truth.keypoints))
    same = (np.asarray(there) <= SAME_KEYPOINT_PX) & (np.asarray(back)[nearest] == rows)
    return rows[same], np.asarray(nearest, np.int64)[same]


def match_pair(
    first: Described, second: Described, *, max_ratio: float
) -> tuple[FloatArray, FloatArray]:
    """Return the matched pixels of two pictures, (M, 2) each."""
    options = MatchOptions(max_ratio=max_ratio, min_similarity=0.0)
    a, b, _ = match_descriptors(first.descriptors, second.descriptors, options)
    return (
        first.keypoints[a].astype(np.float64),
        second.keypoints[b].astype(np.float64),
    )


class FeatureProbe:
    """Compares local features on warped pairs.

    Parameters
    ----------
    pairs : sequence of WarpedImage
        From `warped_pairs`.
    truth : Network
        The float32 network.
    max_keypoints : int
        Per picture.
    """

    def __init__(
        self, pairs: Sequence[WarpedImage], *, truth: Network, max_keypoints: int
    ) -> None:
        self._pairs = pairs
        self._max_keypoints = max_keypoints
        self._truth = self.describe_all(truth)
        self._max_ratio = truth.manifest.match_ratio or 1.0
        self._inliers = self._count_inliers(self._truth)

    @property
    def pairs(self) -> Sequence[WarpedImage]:
        """The pictures."""
        return self._pairs

    @property
    def max_ratio(self) -> float:
        """Lowe's ratio of the network."""
        return self._max_ratio

    @property
    def truth(self) -> Sequence[tuple[Described, Described]]:
        """What the float32 network says about each pair."""
        return self._truth

    def describe_all(self, network: Network) -> list[tuple[Described, Described]]:
        """Return the features of each pair by a variant."""
        return [self.describe_pair(network, pair) for pair in self._pairs]

    def describe_pair(
        self, network: Network, pair: WarpedImage
    ) -> tuple[Described, Described]:
        """Return the features of both pictures of a pair by a variant."""
        family = LearnedFamily(network)
        return (
            describe(pair.a, family, max_keypoints=self._max_keypoints),
            describe(
                pair.b, family, max_keypoints=self._max_keypoints, mask=pair.mask_b
            ),
        )

    def _count_inliers(self, described: Sequence[tuple[Described, Described]]) -> float:
        counts = []
        for pair, (first, second) in zip(self._pairs, described, strict=True):
            a, b = match_pair(first, second, max_ratio=self._max_ratio)
            counts.append(np.count_nonzero(pair.warp.error_px(a, b) <= INLIER_PX))
        return float(np.mean(counts))

    def measure(self, network: Network) -> FeatureAgreement:
        """Return how much a variant agrees; not at all when it fails or gives NaN."""
        try:
            described = self.describe_all(network)
        except ModelError:
            return FeatureAgreement(
                descriptor_cosine=0.0,
                repeatability=0.0,
                shift_px=SAME_KEYPOINT_PX,
                inliers=0.0,
                inliers_of_truth=self._inliers,
            )
        cosines: list[float] = []
        shifts_px: list[float] = []
        found = total = 0
        for truths, others in zip(self._truth, described, strict=True):
            for truth, other in zip(truths, others, strict=True):
                a, b = same_keypoints(truth, other)
                cosine = np.sum(truth.descriptors[a] * other.descriptors[b], axis=1)
                shift = truth.keypoints[a] - other.keypoints[b]
                cosines += cosine.tolist()
                shifts_px += np.linalg.norm(shift, axis=1).tolist()
                found += len(a)
                total += len(truth.keypoints)
        return FeatureAgreement(
            descriptor_cosine=float(np.mean(cosines)) if cosines else 0.0,
            repeatability=found / max(total, 1),
            shift_px=float(np.mean(shifts_px)) if shifts_px else SAME_KEYPOINT_PX,
            inliers=self._count_inliers(described),
            inliers_of_truth=self._inliers,
        )


class RetrievalProbe:
    """Compares global descriptors on pictures of one place.

    Parameters
    ----------
    images : sequence of ndarray of shape (H, W) or (H, W, 3), uint8
        Grey or BGR; at least 3.
    truth : Network
        The float32 network.
    """

    def __init__(self, images: Sequence[ByteArray], *, truth: Network) -> None:
        self._images = images
        self._truth = self._vectors(truth)
        self._nearest = _ranked(self._truth @ self._truth.T)[:, 0]

    def _vectors(self, network: Network) -> Float32Array:
        retrieval = LearnedRetrieval(network)
        none = np.zeros((0, 0), np.float32)
        return np.stack(
            [retrieval.global_descriptor(image, none) for image in self._images]
        )

    def measure(self, network: Network) -> RetrievalAgreement:
        """Return how much a variant agrees; not at all when it fails or gives NaN."""
        try:
            vectors = self._vectors(network)
        except ModelError:
            return RetrievalAgreement(cosine=0.0, recall_at_1=0.0, recall_at_5=0.0)
        found = _ranked(vectors @ vectors.T) == self._nearest[:, None]
        return RetrievalAgreement(
            cosine=float(np.mean(np.sum(vectors * self._truth, axis=1))),
            recall_at_1=float(np.mean(found[:, :1].any(axis=1))),
            recall_at_5=float(np.mean(found[:, :5].any(axis=1))),
        )


def _ranked(similarity: Float32Array) -> IntArray:
    """Return the others of each row, most similar first."""
    similarity = similarity.copy()
    np.fill_diagonal(similarity, -np.inf)
    return np.asarray(np.argsort(-similarity, axis=1, kind="stable")[:, :-1], np.int64)
