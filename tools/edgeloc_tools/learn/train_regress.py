"""The pose-regression head of a site, and its training."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from edgeloc.types import BoolArray, Float32Array, IntArray
from edgeloc_tools.learn.onnx_graph import GraphBuilder
from edgeloc_tools.learn.pose_views import MoveOptions
from edgeloc_tools.learn.train_loop import Run
from edgeloc_tools.progress import Progress, silent

POOL, JOIN, CENTER, ROTATION = "pool", "join", "center.conv", "rotation.conv"
FLOAT_LAYERS = (CENTER, ROTATION)
"""Layers that stay in float: rounding them would move the camera."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegressRecipe:
    """How a pose-regression head is trained.

    Parameters
    ----------
    columns, rows : int
        Of the grid over which descriptors are averaged.
    width : int
        Of the hidden layers.
    views, min_views : int
        Synthesized views of each image, more where there are so few images that all
        views together would be fewer than `min_views`.
    move : MoveOptions
        How far away they are.
    strength : float
        Of changes of light, blur and noise in them, 0 to 1.
    dropout : float
        Share of cells that are emptied in training.
    steps, batch : int
        Updates of the weights, and views in each.
    held_out_share : float
        Share of the steps in which some images are left out, to calibrate by; then all
        are learned.
    learning_rate, weight_decay : float
        Peak of the one-cycle schedule, and AdamW's decay.
    average : float
        Decay per step of the running average of the weights, which is what is exported.
    checkpoint_every : int
        Steps between checkpoints.
    seed : int
        Of everything random.
    threads : int
        Of the network.
    """

    columns: int = 8
    rows: int = 6
    width: int = 160
    views: int = 6
    min_views: int = 96
    move: MoveOptions = field(default_factory=MoveOptions)
    strength: float = 0.4
    dropout: float = 0.15
    steps: int = 1500
    batch: int = 128
    held_out_share: float = 0.7
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    average: float = 0.99
    checkpoint_every: int = 50
    seed: int = 0
    threads: int = 1


class PoseHead(nn.Module):
    """Camera centre and rotation of the mean descriptors of a view.

    The two losses are weighted by what the network learns of its own errors [1]_.

    Parameters
    ----------
    dim, columns, rows : int
        Elements of a descriptor, and cells of the view.
    width : int
        Of the hidden layers.

    References
    ----------
    .. [1] Kendall, Cipolla, "Geometric loss functions for camera pose regression with
       deep learning", CVPR 2017, section 3.3.
    """

    def __init__(self, dim: int, *, columns: int, rows: int, width: int) -> None:
        super().__init__()
        self.pool = nn.Conv2d(dim, width, (rows, columns))
        self.join = nn.Conv2d(width, width, 1)
        self.center = nn.Conv2d(width, 3, 1)
        self.rotation = nn.Conv2d(width, 6, 1)
        self.log_weights = nn.Parameter(torch.tensor([0.0, -2.0]))

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """Return centres, (B, 3), and two rows of rotations, (B, 6)."""
        hidden = torch.relu(self.join(torch.relu(self.pool(view))))
        return self.center(hidden)[:, :, 0, 0], self.rotation(hidden)[:, :, 0, 0]


def pose_graph(head: PoseHead, *, scale: float) -> onnx.ModelProto:
    """Return the ONNX model of a head.

    Parameters
    ----------
    head : PoseHead
        Trained.
    scale : float
        Metres per unit of its centres.
    """
    g = GraphBuilder()
    rows, columns = (int(n) for n in head.pool.kernel_size)
    pooled = g.conv("view", head.pool, POOL, relu=True)
    joined = g.conv(pooled, head.join, JOIN, relu=True)
    center = g.op(
        "Mul", [g.conv(joined, head.center, CENTER), g.constant("scale", [scale])], "c"
    )
    rotation = g.conv(joined, head.rotation, ROTATION)
    return g.finish(
        name="edgeloc-regress",
        inputs=[("view", (1, head.pool.in_channels, rows, columns))],
        outputs=[
            (center, "center", (1, 3, 1, 1)),
            (rotation, "rotation", (1, 6, 1, 1)),
        ],
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoseSamples:
    """Views and their poses.

    Parameters
    ----------
    views : ndarray of shape (S, D, rows, columns), float16
        Mean descriptors.
    centers : ndarray of shape (S, 3), float32
        Relative to the mean of the scene, in units of `scale`.
    rotations : ndarray of shape (S, 6), float32
        First two rows of the rotations of ``cam_from_world``.
    image_idx : ndarray of shape (S,), int64
        Of which image.
    origin : ndarray of shape (3,), float64
        The mean of the cameras, m.
    scale : float
        Their spread, m.
    """

    views: np.ndarray[tuple[int, ...], np.dtype[np.float16]]
    centers: Float32Array
    rotations: Float32Array
    image_idx: IntArray
    origin: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    scale: float


def pose_losses(head: PoseHead, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the losses of some views, weighted as the head has learned."""
    center, rotation = head(batch["views"])
    position = (center - batch["centers"]).square().sum(1).add(1e-9).sqrt().mean()
    turn = (rotation - batch["rotations"]).square().sum(1).add(1e-9).sqrt().mean()
    log_position, log_turn = head.log_weights[0], head.log_weights[1]
    total = (
        position * torch.exp(-log_position)
        + log_position
        + turn * torch.exp(-log_turn)
        + log_turn
    )
    return {"total": total, "position": position, "rotation": turn}


def train_regress(
    samples: PoseSamples,
    *,
    out: Path,
    recipe: RegressRecipe,
    held_out: BoolArray,
    progress: Progress = silent,
) -> tuple[PoseHead, PoseHead]:
    """Train a head; an interrupted run goes on from its last checkpoint.

    Parameters
    ----------
    samples : PoseSamples
        Views.
    out : Path
        Folder of the checkpoint and the log.
    recipe : RegressRecipe
        How.
    held_out : ndarray of shape (S,), bool
        Views that are left out at first.
    progress : callable
        Told about each step.

    Returns
    -------
    without, whole : PoseHead
        As it was before it saw the views that are left out, and in the end.

    Raises
    ------
    ConfigError
        When the folder holds a run of another recipe.
    """
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    head = PoseHead(
        samples.views.shape[1],
        columns=recipe.columns,
        rows=recipe.rows,
        width=recipe.width,
    )
    early = int(recipe.held_out_share * recipe.steps)
    without = _run(
        head,
        samples,
        np.flatnonzero(~held_out),
        out=out / "held-out",
        recipe=recipe,
        steps=range(early),
        progress=progress,
    )
    begun = copy.deepcopy(without)
    begun.train()
    whole = _run(
        begun,
        samples,
        np.arange(len(samples.views)),
        out=out,
        recipe=recipe,
        steps=range(early, recipe.steps),
        progress=progress,
    )
    return without, whole


def _run(
    head: PoseHead,
    samples: PoseSamples,
    idx: IntArray,
    *,
    out: Path,
    recipe: RegressRecipe,
    steps: range,
    progress: Progress,
) -> PoseHead:
    run = Run(
        out=out,
        recipe={**asdict(recipe), "steps": len(steps)},
        net=head,
        average=copy.deepcopy(head).eval(),
        optimizer=torch.optim.AdamW(
            head.parameters(), weight_decay=recipe.weight_decay
        ),
        progress=progress,
    )

    def batches() -> Iterator[Mapping[str, Tensor]]:
        for step in steps[run.done :]:
            rng = np.random.default_rng([recipe.seed, step])
            chosen = rng.choice(idx, recipe.batch)
            views = samples.views[chosen].astype(np.float32)
            shape = (len(chosen), 1, *views.shape[2:])
            views *= rng.random(shape) >= recipe.dropout
            yield {
                "views": torch.from_numpy(views),
                "centers": torch.from_numpy(samples.centers[chosen]),
                "rotations": torch.from_numpy(samples.rotations[chosen]),
            }

    run.run(batches(), lambda batch: pose_losses(head, batch))
    average = run.average
    assert isinstance(average, PoseHead)
    return average
