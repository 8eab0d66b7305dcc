"""Landmarks looked for once more, beside the pixels where a pose puts them.

Things that look alike all over the picture fail the first comparison; beside the right
pixel there is one of them. What is found there makes a pose more exact, and says of one
that few matches speak for whether it is right: landmarks that had no part in it are
where it puts them, or they are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edgeloc.geometry.pnp import PnpOptions, PnpResult, estimate_pose
from edgeloc.localize.candidate import Query
from edgeloc.localize.guided import (
    Expected,
    GuidedOptions,
    expected_landmarks,
    make_viewed_map,
    match_similar,
)
from edgeloc.localize.integrity import count_witnesses
from edgeloc.tiles.layout import LocalMap
from edgeloc.types import (
    BoolArray,
    Float32Array,
    FloatArray,
    IntArray,
    Matches2D3D,
)

_NUM_ELSEWHERE = 8
_ELSEWHERE_RADII = 3.0
"""Where nothing is expected: so many places around, so many window radii away."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """Which features show which landmarks of a local map, best first.

    Parameters
    ----------
    query_idx, point_idx : ndarray of shape (M,), int64
        Features of the query, landmarks of the local map.
    scores : ndarray of shape (M,), float32
        Match quality.
    """

    query_idx: IntArray
    point_idx: IntArray
    scores: Float32Array

    def weighed(
        self, local_map: LocalMap, weigh: Callable[[IntArray], Float32Array] | None
    ) -> Pairs:
        """Return those of landmarks that may still be there, with scores times that."""
        if weigh is None:
            return self
        weights = weigh(local_map.point3D_ids[self.point_idx])
        return replace(self, scores=self.scores * weights).where(weights > 0)

    def where(self, mask: BoolArray) -> Pairs:
        """Return some of them."""
        return Pairs(
            query_idx=self.query_idx[mask],
            point_idx=self.point_idx[mask],
            scores=self.scores[mask],
        )

    def joined(self, others: Pairs) -> Pairs:
        """Return these and those of the others that are not among them."""
        stride = 1 + int(max(self.query_idx.max(initial=0), others.query_idx.max()))
        new = ~np.isin(
            others.point_idx * stride + others.query_idx,
            self.point_idx * stride + self.query_idx,
        )
        return Pairs(
            query_idx=np.concatenate([self.query_idx, others.query_idx[new]]),
            point_idx=np.concatenate([self.point_idx, others.point_idx[new]]),
            scores=np.concatenate([self.scores, others.scores[new]]),
        )

    def matches(
        self, query: Query, local_map: LocalMap
    ) -> tuple[Matches2D3D, Float32Array, Float32Array]:
        """Return 2D-3D matches and the standard deviations of their ends, px and m."""
        matches = Matches2D3D(
            points2D=query.features.keypoints[self.query_idx].astype(np.float64),
            points3D=local_map.points3D[self.point_idx],
            point3D_ids=local_map.point3D_ids[self.point_idx],
            scores=self.scores,
        )
        return (
            matches,
            query.features.sigmas[self.query_idx],
            local_map.sigmas[self.point_idx],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hypothesis:
    """A pose, and all that it was computed from.

    Parameters
    ----------
    result : PnpResult
        The pose and its inliers.
    matches : Matches2D3D
        What it was computed from,
    point_sigmas, pixel_sigmas : ndarray of shape (M,), float32
        the standard deviations of their ends, m and px,
    pairs : Pairs
        and what the first of them are made of.
    similarity : ndarray of shape (P, N), float32
        Of all landmarks to all features.
    local_map : LocalMap
        The landmarks.
    visible : sequence of ndarray of int64
        Landmark ids of each of the keyframes that they are from.
    centers : ndarray of shape (K, 3), float64
        Camera centres of those, m.
    first : Hypothesis or None
        What it was before landmarks were looked for beside the pixels where it puts
        them: free of what it says itself.
    """

    result: PnpResult
    matches: Matches2D3D
    point_sigmas: Float32Array
    pixel_sigmas: Float32Array
    pairs: Pairs
    similarity: Float32Array
    local_map: LocalMap
    visible: Sequence[IntArray]
    centers: FloatArray
    first: Hypothesis | None = None

    def inliers(self) -> Pairs:
        """Return the pairs that agree with the pose."""
        return self.pairs.where(self.result.inlier_mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondLookOptions:
    """How landmarks are looked for a second time.

    Parameters
    ----------
    guided : GuidedOptions
        Where, and how many.
    quantile : float
        What is found must look as much like its landmark as all but this share of the
        first inliers: how much right matches look alike depends on the descriptors and
        on the light, and beside a right pixel there are wrong features, too.
    min_witnesses : int
        A pose with so many, which would be too few by themselves, is right
    min_surprise : float
        if what is found where it puts other landmarks is so surprising, see
        `surprise`: most right poses show 12 to 70. Poses in maps of other places show
        up to 4.3, but things that look alike upside down 11 to 13.
    """

    guided: GuidedOptions = field(
        default_factory=lambda: GuidedOptions(max_expected=4000)
    )
    quantile: float = 0.05
    min_witnesses: int = 5
    min_surprise: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sight:
    """What a camera at a pose should see.

    Parameters
    ----------
    expected : Expected
        Landmarks, and where they should be.
    guided : GuidedOptions
        What counts as found there.
    """

    expected: Expected
    guided: GuidedOptions


def expect(found: Hypothesis, query: Query, options: SecondLookOptions) -> Sight:
    """Return where the landmarks of a pose should be, and what counts as found there.

    Parameters
    ----------
    found : Hypothesis
        The pose.
    query : Query
        The frame.
    options : SecondLookOptions
        How to look.
    """
    pose = found.result.cam_from_world
    viewed = make_viewed_map(
        found.local_map, visible=found.visible, centers=found.centers, made_at=pose
    )
    expected = expected_landmarks(
        viewed,
        query.camera,
        cam_from_world=pose,
        covariance=found.result.covariance,
        rows_px=(0.0, float(query.camera.height)),
        followed_ids=np.zeros(0, np.int64),
        options=options.guided,
    )
    inliers = found.inliers()
    usual = found.similarity[inliers.point_idx, inliers.query_idx]
    least = float(np.quantile(usual, options.quantile))
    return Sight(
        expected=expected, guided=replace(options.guided, min_similarity=least)
    )


def surprise(found: Hypothesis, query: Query, sight: Sight, *, cell_px: float) -> float:
    """Return how much more than chance speaks for a pose besides its own inliers.

    Landmarks and features that had no part in the pose are compared where it puts them,
    and elsewhere around there, where only chance can match them [1]_.

    Parameters
    ----------
    found : Hypothesis
        The pose.
    query : Query
        The frame.
    sight : Sight
        From its pose.
    cell_px : float
        Features nearer to each other are one witness.

    Returns
    -------
    float
        ``(n - m) / sqrt(m + 1)``, of n witnesses where they are expected and m, on
        average, elsewhere.

    References
    ----------
    .. [1] Moisan, Stival, "A probabilistic criterion to detect rigid point matches
       between two images", IJCV 2004, from which the idea is: a pose is meaningful when
       chance does not explain what agrees with it. Chance is measured here.
    """
    expected = sight.expected
    inliers = found.inliers()
    new = ~np.isin(expected.point_idx, inliers.point_idx)
    expected = Expected(
        point_idx=expected.point_idx[new],
        pixels=expected.pixels[new],
        radii_px=expected.radii_px[new],
    )
    free = np.ones(len(query.features), bool)
    free[inliers.query_idx] = False
    keypoints = query.features.keypoints[free]
    similarity = found.similarity[:, free]

    def count(offset: FloatArray) -> int:
        feature_idx, point_idx, _ = match_similar(
            replace(expected, pixels=expected.pixels + offset),
            keypoints=keypoints,
            similarity=similarity,
            options=sight.guided,
        )
        return count_witnesses(
            keypoints[feature_idx].astype(np.float64),
            found.local_map.point3D_ids[point_idx],
            cell_px=cell_px,
        )

    away = _ELSEWHERE_RADII * float(expected.radii_px.max(initial=0.0))
    angles = np.arange(_NUM_ELSEWHERE) * (2.0 * np.pi / _NUM_ELSEWHERE)
    offsets = away * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    by_chance = float(np.mean([count(offset) for offset in offsets]))
    return float((count(np.zeros(2)) - by_chance) / np.sqrt(by_chance + 1.0))


def look_again(
    found: Hypothesis,
    query: Query,
    sight: Sight,
    *,
    pnp: PnpOptions,
    weigh: Callable[[IntArray], Float32Array] | None,
) -> Hypothesis:
    """Return a pose from all landmarks that are found where the first pose puts them.

    Whether a pose is right must be known before: near a wrong one, too, something
    similar can be found.

    Parameters
    ----------
    found : Hypothesis
        The first pose.
    query : Query
        The frame.
    sight : Sight
        From its pose.
    pnp : PnpOptions
        How the pose is estimated.
    weigh : callable or None
        From landmark ids to weights, see `edgeloc.localize.structure.relocalize`.

    Returns
    -------
    Hypothesis
        `found` itself when there is nothing to add.
    """
    query_idx, point_idx, scores = match_similar(
        sight.expected,
        keypoints=query.features.keypoints,
        similarity=found.similarity,
        options=sight.guided,
    )
    beside = Pairs(query_idx=query_idx, point_idx=point_idx, scores=scores)
    pairs = beside.weighed(found.local_map, weigh).joined(found.inliers())
    matches, pixel_sigmas, point_sigmas = pairs.matches(query, found.local_map)
    result = estimate_pose(
        matches,
        query.camera,
        options=pnp,
        point_sigmas=point_sigmas,
        pixel_sigmas=pixel_sigmas,
        prior=found.result.cam_from_world,
    )
    if result is None or result.num_inliers <= found.result.num_inliers:
        return found
    return replace(
        found,
        result=result,
        matches=matches,
        point_sigmas=point_sigmas,
        pixel_sigmas=pixel_sigmas,
        pairs=pairs,
        first=found.first or found,
    )
