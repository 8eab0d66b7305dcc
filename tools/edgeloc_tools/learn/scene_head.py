"""The scene-coordinate head: places in the world by what they look like.

Two layers over each keypoint (1x1 convolutions) with a softmax between them,
homogeneous and relative to the mean of the scene, as the output of ACE [1]_:

    share = softmax(A d + b),    (x w, y w, z w, w) = C share,    w = 1

Every row of A is a prototype of descriptors and every column of C the place that goes
with it. A network of this shape can be *begun* with landmarks, mean descriptor and
position of each, and then already places keypoints as a comparison with all landmarks
would. Training only sharpens it. ACE's eight layers of anonymous weights learn the same
from nothing: after 40 s of one slow core they were off by 1.2 m on 7-Scenes RedKitchen,
where this network begins at centimetres.

How sure it is comes from the shares, too: the spread of the places that they speak for,
and the similarity to the best prototype.

References
----------
.. [1] Brachmann, Cavallari, Prisacariu, "Accelerated Coordinate Encoding", CVPR 2023,
   section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from edgeloc.types import Float32Array, FloatArray
from edgeloc_tools.learn.onnx_graph import GraphBuilder

SHARPNESS = 64.0
"""Of the softmax over cosines, to begin with."""

_LEAST_SIGMA_M = 3e-3
_TRUST = (1.0, 0.0)
"""Offset of the logarithm of sigma, and its slope over the largest logit."""

COMPARE, PLACE, SUM = "compare", "place", "sum"
FLOAT_LAYERS = (PLACE, SUM)
"""Layers that stay in float: rounding them would move the world."""


class SceneHead(nn.Module):
    """Places in the world of L2-normalised descriptors.

    Parameters
    ----------
    descriptors : ndarray of shape (M, D), float32
        Prototypes, L2-normalised.
    places : ndarray of shape (M, 3), float32
        Theirs, relative to the mean of the scene, m.
    """

    def __init__(self, descriptors: Float32Array, places: Float32Array) -> None:
        super().__init__()
        num, dim = descriptors.shape
        self.compare = nn.Conv2d(dim, num, 1)
        with torch.no_grad():
            rows = torch.from_numpy(SHARPNESS * descriptors.astype(np.float32))
            self.compare.weight.copy_(rows[:, :, None, None])
            self.compare.bias.zero_()  # type: ignore[union-attr]
        self.places = nn.Parameter(torch.from_numpy(places.astype(np.float32)))
        self.trust = nn.Parameter(torch.tensor(_TRUST))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return places and the logarithms of their standard deviations.

        Parameters
        ----------
        rows : Tensor of shape (B, D)
            Descriptors.

        Returns
        -------
        places : Tensor of shape (B, 3)
            Relative to the mean of the scene, m.
        log_sigma : Tensor of shape (B,)
            Of each axis, m.
        """
        bias = self.compare.bias
        assert bias is not None
        logits = torch.addmm(bias, rows, self.compare.weight[:, :, 0, 0].t())
        share = logits.softmax(1)
        places = share @ self.places
        square = share @ (self.places**2).sum(1)
        spread = (square - (places**2).sum(1)).clamp(min=0.0)
        similarity = logits.amax(1) / SHARPNESS
        log_sigma = (
            0.5 * torch.log(spread / 3.0 + _LEAST_SIGMA_M**2)
            + self.trust[0]
            + self.trust[1] * similarity
        )
        return places, log_sigma


def scene_graph(head: SceneHead) -> onnx.ModelProto:
    """Return the ONNX model of a head.

    Parameters
    ----------
    head : SceneHead
        Trained.

    Returns
    -------
    ModelProto
        Input `rows` (1, 1, N, D), outputs `points` (N, 3) and `log_sigma` (N, 1); N is
        free.
    """
    g = GraphBuilder()
    num, dim = head.compare.out_channels, head.compare.in_channels
    # Keypoints last would make every softmax run across memory.
    rows = g.reshape("rows", (-1, dim), "flat")
    weights = head.compare.weight.detach().numpy().reshape(num, dim)
    bias = head.compare.bias
    assert bias is not None
    logits = g.op(
        "Gemm",
        [
            rows,
            g.constant("compare.weight", weights),
            g.constant("compare.bias", bias.detach().numpy()),
        ],
        COMPARE,
        transB=1,
    )
    share = g.op("Softmax", [logits], "share", axis=1)
    places = head.places.detach().numpy().astype(np.float64)
    table = np.concatenate([places, (places**2).sum(1, keepdims=True)], axis=1)
    moments = g.op("MatMul", [share, g.constant("place.table", table)], PLACE)
    points = g.op("Slice", [moments, *_columns(g, "points", 0, 3)], "points.out")
    square = g.op("Slice", [moments, *_columns(g, "square", 3, 4)], "square")
    norm = g.op("ReduceSumSquare", [points], "norm", axes=[1], keepdims=1)
    spread = g.op("Relu", [g.op("Sub", [square, norm], "spread")], "spread.least")
    third = g.op("Mul", [spread, g.constant("third", [1.0 / 3.0])], "variance")
    floor = g.constant("floor", [_LEAST_SIGMA_M**2])
    log_variance = g.op("Log", [g.op("Add", [third, floor], "floored")], "log")
    offset, slope = head.trust.detach().tolist()
    best = g.op("ReduceMax", [logits], "best", axes=[1], keepdims=1)
    sure = g.op("Mul", [best, g.constant("slope", [slope / SHARPNESS])], "sure")
    half = g.op("Mul", [log_variance, g.constant("half", [0.5])], "halved")
    log_sigma = g.op(
        "Add",
        [g.op("Add", [half, sure], SUM), g.constant("offset", [offset])],
        "log_sigma.out",
    )
    return g.finish(
        name="edgeloc-scene-coords",
        inputs=[("rows", (1, 1, "N", dim))],
        outputs=[
            (points, "points", ("N", 3)),
            (log_sigma, "log_sigma", ("N", 1)),
        ],
    )


def _columns(g: GraphBuilder, name: str, start: int, stop: int) -> list[str]:
    return [
        g.whole(f"{name}.{part}", [value])
        for part, value in (("start", start), ("stop", stop), ("axis", 1))
    ]


def choose_prototypes(
    points3D: FloatArray, weights: FloatArray, *, count: int
) -> Sequence[int]:
    """Return which landmarks to begin with: the most useful, spread over the scene.

    One by one the heaviest of every cell of ever finer grids, so that no corner of the
    scene is without.

    Parameters
    ----------
    points3D : ndarray of shape (P, 3), float64
        Positions, m.
    weights : ndarray of shape (P,), float64
        Larger is better.
    count : int
        How many.
    """
    if count >= len(points3D):
        return list(range(len(points3D)))
    extent = float(np.ptp(np.quantile(points3D, [0.02, 0.98], axis=0), axis=0).max())
    order = np.argsort(-weights, kind="stable")
    chosen = np.zeros(len(points3D), dtype=bool)
    picked: list[int] = []
    # Not finer than a hundredth of the scene: from there on weight alone decides.
    for cells in (8, 16, 32, 64, 100):
        keys = np.floor(points3D[order] * (cells / extent)).astype(np.int64)
        _, first = np.unique(keys, axis=0, return_index=True)
        best = order[np.sort(first)]
        new = best[~chosen[best]][: max(count // 2 - len(picked), 0)]
        picked += new.tolist()
        chosen[new] = True
    rest = order[~chosen[order]][: count - len(picked)]
    return sorted([*picked, *rest.tolist()])
