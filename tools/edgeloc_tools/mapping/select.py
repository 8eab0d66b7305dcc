"""Which landmarks and keyframes a small map keeps."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from edgeloc.types import FloatArray, IntArray

RANKINGS = ("cover", "observations", "random")
"""Orders in which landmarks are kept; all but the first are for comparison."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectOptions:
    """What a keyframe wants of the landmarks that are kept.

    Parameters
    ----------
    enough : float
        Landmarks, weighted by their values, at which a keyframe is content to 63 %.
    enough_in_cell : float
        The same for one cell of its image.
    spread_weight : float
        Of the cells beside the whole image.
    columns, rows : int
        Cells of an image.
    """

    enough: float = 30.0
    enough_in_cell: float = 1.5
    spread_weight: float = 0.5
    columns: int = 8
    rows: int = 6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coverage:
    """Which landmark covers what.

    Parameters
    ----------
    landmark_idx, image_idx, cell_idx : ndarray of shape (V,), int64
        Landmark, image and cell of that image, for each observation.
    values, costs : ndarray of shape (P,), float64
        Worth and bytes of each landmark.
    num_images : int
        Images.
    """

    landmark_idx: IntArray
    image_idx: IntArray
    cell_idx: IntArray
    values: FloatArray
    costs: FloatArray
    num_images: int


def rank_landmarks(coverage: Coverage, options: SelectOptions) -> IntArray:
    """Return all landmarks, in the order in which a growing map should take them.

    A weighted, saturating cover: every image, and every cell of it, gains from each
    further landmark that it sees, ever less. That is a monotone submodular function;
    taking what gains most per byte, lazily [1]_, comes within (1 - 1/e) / 2 of the best
    choice of the same bytes (section 3 there, together with the best single landmark,
    which is never the better choice here). The order is the same for every budget.

    Parameters
    ----------
    coverage : Coverage
        Which landmark covers what.
    options : SelectOptions
        What is wanted.

    Returns
    -------
    ndarray of shape (P,), int64

    References
    ----------
    .. [1] Leskovec et al., "Cost-effective outbreak detection in networks", KDD 2007.
    """
    num = len(coverage.values)
    cells = options.columns * options.rows
    order = np.argsort(coverage.landmark_idx, kind="stable")
    image_idx = coverage.image_idx[order]
    cell_idx = image_idx * cells + coverage.cell_idx[order]
    starts = np.searchsorted(coverage.landmark_idx[order], np.arange(num + 1))
    keeps_image = np.exp(-coverage.values / options.enough)
    keeps_cell = np.exp(-coverage.values / options.enough_in_cell)
    gain_image = options.enough * (1.0 - keeps_image) / coverage.costs
    gain_cell = (
        options.spread_weight
        * options.enough_in_cell
        * (1.0 - keeps_cell)
        / coverage.costs
    )
    # Plain numbers: a landmark is seen a handful of times, which lists sum faster than
    # arrays do; the whole takes a third.
    images = [part.tolist() for part in np.split(image_idx, starts[1:-1])]
    cells_of = [part.tolist() for part in np.split(cell_idx, starts[1:-1])]
    per_image: list[float] = gain_image.tolist()
    per_cell: list[float] = gain_cell.tolist()
    keep_of_image, keep_of_cell = keeps_image.tolist(), keeps_cell.tolist()
    # What is not yet there: exp(-sum / enough), in each image and each cell.
    lacks_image = [1.0] * coverage.num_images
    lacks_cell = [1.0] * (coverage.num_images * cells)

    def gain(landmark: int) -> float:
        in_images = in_cells = 0.0
        for idx in images[landmark]:
            in_images += lacks_image[idx]
        for idx in cells_of[landmark]:
            in_cells += lacks_cell[idx]
        return per_image[landmark] * in_images + per_cell[landmark] * in_cells

    heap = [(-gain(landmark), landmark) for landmark in range(num)]
    heapq.heapify(heap)
    ranked = np.empty(num, np.int64)
    for rank in range(num):
        while True:
            # Gains only fall, so a landmark that still leads is the best of all.
            now = -gain(heap[0][1])
            if len(heap) == 1 or now <= min(heap[1:3])[0]:
                break
            heapq.heapreplace(heap, (now, heap[0][1]))
        ranked[rank] = landmark = heapq.heappop(heap)[1]
        for idx in images[landmark]:
            lacks_image[idx] *= keep_of_image[landmark]
        for idx in cells_of[landmark]:
            lacks_cell[idx] *= keep_of_cell[landmark]
    return ranked


def rank_keyframes(shared: FloatArray) -> IntArray:
    """Return all images, in the order in which a growing map takes them as keyframes.

    Greedy facility location on covisibility: each next keyframe adds most to how well
    every image is represented by the keyframe most like it.

    Parameters
    ----------
    shared : ndarray of shape (K, K), float64
        How much of what image i shows image j shows too, in [0, 1], 1 on the diagonal.

    Returns
    -------
    ndarray of shape (K,), int64
    """
    num = len(shared)
    covered = np.zeros(num)
    left = np.ones(num, bool)
    order = np.empty(num, np.int64)
    for rank in range(num):
        gains = np.maximum(shared - covered[:, None], 0.0).sum(axis=0)
        gains[~left] = -1.0
        order[rank] = best = int(np.argmax(gains))
        covered = np.maximum(covered, shared[:, best])
        left[best] = False
    return order


def substitutes(shared: FloatArray, kept: IntArray) -> IntArray:
    """Return, for each image, the kept keyframe that shows most of what it shows.

    Parameters
    ----------
    shared : ndarray of shape (K, K), float64
        As in `rank_keyframes`.
    kept : ndarray of shape (n,), int64
        Kept keyframes; each stands for itself.

    Returns
    -------
    ndarray of shape (K,), int64
        One of `kept` for each image.
    """
    stand_in = kept[np.argmax(shared[:, kept], axis=1)]
    stand_in[kept] = kept
    return np.asarray(stand_in, np.int64)
