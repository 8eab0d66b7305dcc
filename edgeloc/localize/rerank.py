"""Which retrieved images really show the place: geometric check and query expansion.

Global descriptors compare pictures as a whole; local features say more: where those of
a frame find their like in a retrieved image, and all have moved in the same way, both
show the same thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeloc.types import BoolArray, Float32Array, FloatArray, IntArray

Complex64Array = npt.NDArray[np.complex64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LocalView:
    """The local features of one image, as far as they are compared here.

    Parameters
    ----------
    points : ndarray of shape (N, 2), float64
        Positions, as shares of the longer side of the picture or on the plane z = 1:
        the same for all images that are compared.
    descriptors : ndarray of shape (N, D), float32
        L2-normalised.
    """

    points: FloatArray
    descriptors: Float32Array

    def __len__(self) -> int:
        return len(self.points)

    def first(self, count: int) -> LocalView:
        """Return the first features only."""
        return LocalView(
            points=self.points[:count], descriptors=self.descriptors[:count]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankOptions:
    """How retrieved images are checked.

    Parameters
    ----------
    min_similarity : float
        Cosine of two descriptors below which they are no match.
    num_query, num_image : int
        Features compared: the first of each.
    tolerance : float
        How far from where a similarity puts it a match may lie, in the unit of the
        points. Large, since a similarity stands for a scene with depth here.
    zoom_sigma : float
        Standard deviation of the logarithm of the change of scale between two images
        of one place: along a street, what lies ahead looks alike from far behind, but
        smaller.
    num_samples, num_tried : int
        Pairs of matches drawn per image, and how many of them are tried: those whose
        change of scale is the most likely.
    score_weight : float
        Worth of a cosine of global descriptors, in logarithms of support.
    sharpness : float
        What worths are multiplied by before they are the logarithms of how likely an
        image is the right one, see `place_worths`.
    """

    min_similarity: float = 0.6
    num_query: int = 336
    num_image: int = 336
    tolerance: float = 0.05
    zoom_sigma: float = 0.2
    num_samples: int = 128
    num_tried: int = 32
    score_weight: float = 5.0
    sharpness: float = 2.0

    def __post_init__(self) -> None:
        for name in ("num_query", "num_image", "num_samples", "num_tried"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        for name in ("tolerance", "zoom_sigma", "sharpness"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name)} must be > 0")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Agreement:
    """How the picture of a query and those of images go together.

    Parameters
    ----------
    support : ndarray of shape (K,), float64
        How much speaks for each image, at least 0; 0 where nothing can be said.
    image_from_query : ndarray of shape (K, 3, 3), float64
        The rotation that brings the directions of the query's features nearest to those
        in each image, as if the camera had only turned; of points on the plane z = 1.
    log_zooms : ndarray of shape (K,), float64
        Logarithm of how much larger things are in each image than in the query.
    """

    support: FloatArray
    image_from_query: FloatArray
    log_zooms: FloatArray

    def __len__(self) -> int:
        return len(self.support)

    @property
    def evidence(self) -> float:
        """Logarithm of the support of the best image."""
        return float(np.log1p(self.support.max(initial=0.0)))

    def of(self, idx: IntArray) -> Agreement:
        """Return the same of some of the images."""
        return Agreement(
            support=self.support[idx],
            image_from_query=self.image_from_query[idx],
            log_zooms=self.log_zooms[idx],
        )


def join_agreements(parts: Sequence[Agreement]) -> Agreement:
    """Return what is known of several lists of images as one; at least one list."""
    return Agreement(
        support=np.concatenate([part.support for part in parts]),
        image_from_query=np.concatenate([part.image_from_query for part in parts]),
        log_zooms=np.concatenate([part.log_zooms for part in parts]),
    )


def supporting_matches(
    query: LocalView, images: Sequence[LocalView], options: RerankOptions
) -> Agreement:
    """Return how many matches of each image agree with one similarity, and which [1]_.

    Mutual nearest neighbours; then pairs of them say how the picture was turned, scaled
    and moved. To those that agree with the best supported pair a similarity is fitted:
    those that agree with it, less two, times how likely its change of scale is. A pair
    by itself hardly tells the scale, of which the tolerance hides a quarter: along a
    street, images from further behind, which show more of what a query sees, would win.

    Parameters
    ----------
    query : LocalView
        Of the frame, strongest features first.
    images : sequence of LocalView
        Retrieved images.
    options : RerankOptions
        How.

    Returns
    -------
    Agreement
        Of each image.

    References
    ----------
    .. [1] Philbin et al., "Object retrieval with large vocabularies and fast spatial
       matching", CVPR 2007, section 3.4.
    """
    query = query.first(options.num_query)
    images = [image.first(options.num_image) for image in images]
    matches = _mutual_matches(query, images, options.min_similarity)
    pairs = [
        (query.points[a], image.points[b])
        for (a, b), image in zip(matches, images, strict=True)
    ]
    return _best_agreement(pairs, options)


def _mutual_matches(
    query: LocalView, images: Sequence[LocalView], min_similarity: float
) -> list[tuple[IntArray, IntArray]]:
    """Return mutual nearest neighbours of a query with each image.

    Like `edgeloc.features.match.match_descriptors` without a ratio test, which needs
    the second neighbour, and with one piece of memory for all images: fresh pages for
    each would take longer than the products.
    """
    longest = max((len(image) for image in images), default=0)
    if not longest or not len(query):
        return [(np.zeros(0, np.int64), np.zeros(0, np.int64)) for _ in images]
    memory = np.empty((longest, len(query)), np.float32)
    matches = []
    for image in images:
        if not len(image):
            matches.append((np.zeros(0, np.int64), np.zeros(0, np.int64)))
            continue
        similarity = np.matmul(
            image.descriptors, query.descriptors.T, out=memory[: len(image)]
        )
        nearest = np.argmax(similarity, axis=1)
        best = similarity[np.arange(len(image)), nearest]
        mutual = best >= similarity.max(axis=0)[nearest]
        found = np.flatnonzero(mutual & (best >= min_similarity))
        matches.append((nearest[found], found))
    return matches


def _best_agreement(
    pairs: Sequence[tuple[FloatArray, FloatArray]], options: RerankOptions
) -> Agreement:
    """Return what the best similarity of each set of matches says."""
    counts = np.array([len(a) for a, _ in pairs], np.int64)
    usable = np.flatnonzero(counts > 2)
    found = Agreement(
        support=np.zeros(len(pairs)),
        image_from_query=np.repeat(np.eye(3)[None], len(pairs), axis=0),
        log_zooms=np.zeros(len(pairs)),
    )
    if not len(usable):
        return found
    # Points of the plane as complex numbers: a similarity is z -> a z + b.
    width = int(counts.max())
    at = np.full((2, len(usable), width), np.nan, np.complex64)
    for row, idx in enumerate(usable.tolist()):
        for side, points in enumerate(pairs[idx]):
            at[side, row, : len(points)] = points[:, 0] + 1j * points[:, 1]
    # The same fractions for every image: an answer does not depend on its neighbours.
    fractions = np.random.default_rng(0).random((2, 1, options.num_samples))
    num = counts[usable][:, None]
    first = (fractions[0] * num).astype(np.int64)
    second = (first + 1 + (fractions[1] * (num - 1)).astype(np.int64)) % num
    rows = np.arange(len(usable))[:, None]
    (p0, q0), (p1, q1) = at[:, rows, first], at[:, rows, second]
    # Two features on one spot say nothing: NaN and infinity are near to nothing.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        turn = (q1 - q0) / (p1 - p0)
        zoom = np.log(np.abs(turn)) / options.zoom_sigma
        likely = np.nan_to_num(np.exp(-0.5 * zoom**2))
        tried = np.argsort(-likely, axis=1, kind="stable")[:, : options.num_tried]
        turn, likely, p0, q0 = (x[rows, tried] for x in (turn, likely, p0, q0))
        near = _near(at, turn, q0 - turn * p0, options.tolerance)
    best = np.argmax(np.count_nonzero(near, axis=2) * likely, axis=1)
    fitted = _fitted(at, near[rows[:, 0], best], options)
    found.support[usable] = fitted.support
    found.image_from_query[usable] = fitted.image_from_query
    found.log_zooms[usable] = fitted.log_zooms
    return found


def _near(
    at: Complex64Array, turn: Complex64Array, shift: Complex64Array, tolerance: float
) -> BoolArray:
    """Return which matches lie where similarities put them.

    As products of matrices: of complex numbers, element by element, they would take
    four times as long.

    Parameters
    ----------
    at : ndarray of shape (2, K, N), complex64
        Positions in the query and in each image.
    turn, shift : ndarray of shape (K, S), complex64
        Similarities of each image, ``z -> turn z + shift``.
    tolerance : float
        Largest distance.

    Returns
    -------
    ndarray of shape (K, S, N), bool
    """
    one, none = np.ones_like(turn.real), np.zeros_like(turn.real)
    by_x = [turn.real, -turn.imag, shift.real, -one, none]
    by_y = [turn.imag, turn.real, shift.imag, none, -one]
    ones = np.ones_like(at[0].real)
    known = [at[0].real, at[0].imag, ones, at[1].real, at[1].imag]
    off = np.stack([np.stack(by_x, axis=2), np.stack(by_y, axis=2)])
    off = off @ np.stack(known, axis=1)
    off *= off
    off[0] += off[1]
    return np.asarray(off[0] <= tolerance**2)


def _fitted(at: Complex64Array, near: BoolArray, options: RerankOptions) -> Agreement:
    """Return what the similarities say that fit what agrees with a pair.

    Parameters
    ----------
    at : ndarray of shape (2, K, N), complex64
        Positions in the query and in each image; nan where an image has no more.
    near : ndarray of shape (K, N), bool
        What agrees with the best pair of each image.
    options : RerankOptions
        How.
    """
    count = np.maximum(np.count_nonzero(near, axis=1), 1)
    known = np.where(near, at, 0)
    mean = known.sum(axis=2) / count
    p, q = np.where(near, at - mean[:, :, None], 0)
    spread = np.sum(np.abs(p) ** 2, axis=1), np.sum(np.abs(q) ** 2, axis=1)
    # Features on one spot have no scale: NaN and infinity are near to nothing.
    with np.errstate(divide="ignore", invalid="ignore"):
        turn = np.sum(p.conj() * q, axis=1) / spread[0]
        # Of both directions: neither picture is nearer to the truth.
        zoom = 0.5 * np.log(spread[1] / spread[0])
        shift = mean[1] - turn * mean[0]
        near = _near(at, turn[:, None], shift[:, None], options.tolerance)[:, 0]
        likely = np.nan_to_num(np.exp(-0.5 * (zoom / options.zoom_sigma) ** 2))
    return Agreement(
        support=np.maximum(np.count_nonzero(near, axis=1) - 2, 0) * likely,
        image_from_query=_turned(at, near),
        log_zooms=np.where(likely > 0, zoom, 0.0).astype(np.float64),
    )


def _turned(at: Complex64Array, near: BoolArray) -> FloatArray:
    """Return the rotations between the directions of matches that are near [1]_.

    References
    ----------
    .. [1] Arun, Huang, Blostein, "Least-squares fitting of two 3-D point sets",
       TPAMI 1987.
    """
    x, y = np.where(near, at.real, 0.0), np.where(near, at.imag, 0.0)
    z = np.broadcast_to(near.astype(np.float32), x.shape)
    bearings = np.stack([x, y, z], axis=-1)
    bearings /= np.sqrt(x**2 + y**2 + 1.0)[..., None]
    u, _, vt = np.linalg.svd(bearings[1].swapaxes(1, 2) @ bearings[0])
    # Of the two orthogonal matrices next to the sum, the one that is a rotation.
    u[:, :, 2] *= (np.linalg.det(u) * np.linalg.det(vt))[:, None]
    return np.asarray(u @ vt, np.float64)


def worths(
    scores: Float32Array, support: FloatArray, options: RerankOptions
) -> FloatArray:
    """Return what similarity and support say together of images; more is better.

    Parameters
    ----------
    scores : ndarray of shape (K,), float32
        Cosines of their global descriptors.
    support : ndarray of shape (K,), float64
        See `supporting_matches`.
    options : RerankOptions
        How they are weighed.

    Returns
    -------
    ndarray of shape (K,), float64
        In logarithms.
    """
    return np.log1p(support) + options.score_weight * scores.astype(np.float64)


def place_worths(
    worth: FloatArray, near: FloatArray, options: RerankOptions
) -> FloatArray:
    """Return how likely each image shows the place where the query was taken.

    Not whether it is the most similar one: images of the same place vouch for each
    other. What is asked of the first image is to be near the query, and the one that is
    so most probably is where there is most probability around it, not on it (as the
    median is the answer to another loss than the mode).

    Parameters
    ----------
    worth : ndarray of shape (K,), float64
        See `worths`.
    near : ndarray of shape (K, K), float64
        In [0, 1], how near image i is to where the query is according to image j; by a
        kernel over poses, see `pose_weights.view_kernel`, or over a sequence.
    options : RerankOptions
        How.

    Returns
    -------
    ndarray of shape (K,), float64
        In logarithms; more is better.
    """
    likely = np.exp(options.sharpness * (worth - worth.max(initial=-np.inf)))
    return np.asarray(np.log(near @ likely + np.finfo(np.float64).tiny))


def expand_query(
    query: Float32Array, descriptors: Float32Array, *, alpha: float
) -> Float32Array:
    """Return a query's global descriptor, drawn to what it found (alpha-QE [1]_).

    ``q + sum max(q . d_i, 0) ** alpha d_i``, normalised.

    Parameters
    ----------
    query : ndarray of shape (G,), float32
        L2-normalised.
    descriptors : ndarray of shape (n, G), float32
        Of the images it found, L2-normalised; better only those that passed
        `supporting_matches` [2]_.
    alpha : float
        0 is the plain average.

    References
    ----------
    .. [1] Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human
       Annotation", TPAMI 2019, section 3.4.
    .. [2] Chum et al., "Total Recall: Automatic Query Expansion with a Generative
       Feature Model for Object Retrieval", ICCV 2007.
    """
    weights = np.maximum(descriptors @ query, 0.0) ** alpha
    total = query + weights @ descriptors
    norm = float(np.linalg.norm(total))
    return np.asarray(total / norm if norm > 0 else query, np.float32)
