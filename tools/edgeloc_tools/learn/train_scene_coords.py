"""Training of the scene-coordinate head of a site."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgeloc.errors import ConfigError
from edgeloc.geometry.camera import unproject
from edgeloc.types import BoolArray, Float32Array, FloatArray, IntArray
from edgeloc_tools.learn.scene_head import SceneHead, choose_prototypes
from edgeloc_tools.learn.site_views import (
    SUPERVISIONS,
    SiteViewOptions,
    SiteViews,
)
from edgeloc_tools.learn.train_loop import Run
from edgeloc_tools.progress import Progress, silent

_PLACES_FACTOR = 0.05
"""Of the learning rate: metres, where the others are logits."""
_SOFT_RAD = 0.05
"""Largest error of reprojection that still pulls in full."""
_LEAST_RAD = 1e-3
"""Standard deviation of keypoints, as angles."""
_EPS = 1e-6
"""Of Adam: prototypes that have next to no share in a batch stay as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneRecipe:
    """How a scene-coordinate head is trained.

    Parameters
    ----------
    max_bytes : int
        Of the head in INT8; says how many prototypes there are.
    supervision : {"auto", "depth", "landmarks", "poses"}
        What says where keypoints lie: depth and landmarks, one of them, or the poses of
        the images alone, through the reprojection error. "auto" takes the poses where
        there is neither depth nor a landmark.
    steps, batch : int
        Updates of the weights, and keypoints in each.
    learning_rate : float
        Peak of the one-cycle schedule.
    average : float
        Decay per step of the running average of the weights, which is what is exported.
    check_every, patience : int
        Steps from one check on views that are left out to the next, and how many
        checks may bring nothing before training ends early.
    checkpoint_every : int
        Steps between checkpoints.
    seed : int
        Of everything random.
    threads : int
        Of the network.
    views : SiteViewOptions
        How views are drawn.
    """

    max_bytes: int = 720_000
    supervision: str = "auto"
    steps: int = 200
    batch: int = 512
    learning_rate: float = 0.01
    average: float = 0.98
    check_every: int = 20
    patience: int = 4
    checkpoint_every: int = 20
    seed: int = 0
    threads: int = 1
    views: SiteViewOptions = field(default_factory=SiteViewOptions)

    def __post_init__(self) -> None:
        if self.supervision not in SUPERVISIONS:
            raise ConfigError(
                f"supervision {self.supervision!r} is unknown, expected "
                f"{', '.join(SUPERVISIONS)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SceneSamples:
    """Keypoints of all views, of which it is known where they lie.

    Parameters
    ----------
    rows : ndarray of shape (S, D), float16
        Descriptors.
    points : ndarray of shape (S, 3), float32
        Relative to `origin`, m.
    rays : ndarray of shape (S, 3), float32
        Directions in the frame of their camera, of length 1.
    image_idx, number, landmark_ids : ndarray of shape (S,), int64
        As in `SiteView`.
    R : ndarray of shape (K, 3, 3), float32
        Rotations of ``cam_from_world`` of the images.
    t : ndarray of shape (K, 3), float32
        Translations, as of a world with its origin at `origin`.
    origin : ndarray of shape (3,), float64
        The mean of the scene.
    by_reprojection : bool
        Whether training minimises errors of reprojection: `points` then only say where
        it begins.
    """

    rows: np.ndarray[tuple[int, ...], np.dtype[np.float16]]
    points: Float32Array
    rays: Float32Array
    image_idx: IntArray
    number: IntArray
    landmark_ids: IntArray
    R: Float32Array
    t: Float32Array
    origin: FloatArray
    by_reprojection: bool = False


def collect_samples(views: SiteViews, *, by_reprojection: bool = False) -> SceneSamples:
    """Return the keypoints of all views of which it is known where they lie.

    Parameters
    ----------
    views : SiteViews
        All views.
    by_reprojection : bool
        See `SceneSamples`.
    """
    poses = [image.cam_from_world for image in views.images]
    R = np.stack([pose.R for pose in poses if pose is not None])
    t = np.stack([pose.t for pose in poses if pose is not None])
    points = np.concatenate([view.points3D for view in views.views])
    rays = np.concatenate(
        [
            unproject(views.camera(v), v.keypoints.astype(np.float64))
            for v in views.views
        ]
    )
    keep = np.all(np.isfinite(points) & np.isfinite(rays), axis=1)
    origin = points[keep].mean(axis=0)

    def joined(name: str) -> IntArray:
        values = [
            np.broadcast_to(getattr(v, name), len(v.keypoints)) for v in views.views
        ]
        return np.concatenate(values)[keep].astype(np.int64)

    return SceneSamples(
        rows=np.concatenate([v.descriptors.astype(np.float16) for v in views.views])[
            keep
        ],
        points=(points - origin)[keep].astype(np.float32),
        rays=rays[keep].astype(np.float32),
        image_idx=joined("image_idx"),
        number=joined("number"),
        landmark_ids=joined("landmark_ids"),
        R=R.astype(np.float32),
        t=(t + R @ origin).astype(np.float32),
        origin=origin,
        by_reprojection=by_reprojection,
    )


def begin_head(
    samples: SceneSamples,
    *,
    max_bytes: int,
    seed: int,
    use: BoolArray | None = None,
) -> SceneHead:
    """Return a head that compares with landmarks, before any training.

    A prototype is the mean descriptor of a landmark. What landmarks leave free is
    filled with other keypoints.

    Parameters
    ----------
    samples : SceneSamples
        Keypoints.
    max_bytes : int
        Of the head in INT8.
    seed : int
        Chooses among keypoints.
    use : ndarray of shape (S,), bool, optional
        Keypoints that may be looked at.
    """
    rng = np.random.default_rng(seed)
    used = (samples.number == 0) & (True if use is None else use)
    dim = samples.rows.shape[1]
    # Weights of a prototype, its bias, its place and the square of that.
    count = max(max_bytes // (dim + 4 + 4 + 16), 16)
    of_landmark = np.flatnonzero(used & (samples.landmark_ids >= 0))
    order = of_landmark[np.argsort(samples.landmark_ids[of_landmark], kind="stable")]
    descriptors = np.zeros((0, dim), np.float32)
    places = np.zeros((0, 3), np.float32)
    if len(order):
        _, starts, seen = np.unique(
            samples.landmark_ids[order], return_index=True, return_counts=True
        )
        means = np.add.reduceat(samples.rows[order].astype(np.float32), starts, axis=0)
        chosen = choose_prototypes(
            samples.points[order[starts]].astype(np.float64),
            seen.astype(np.float64),
            count=count,
        )
        descriptors = means[chosen]
        places = samples.points[order[starts]][chosen]
    others = rng.permutation(np.flatnonzero(used & (samples.landmark_ids < 0)))
    others = others[: max(count - len(places), 0)]
    descriptors = np.vstack([descriptors, samples.rows[others].astype(np.float32)])
    places = np.vstack([places, samples.points[others]])
    length = np.linalg.norm(descriptors, axis=1, keepdims=True)
    return SceneHead(descriptors / np.maximum(length, 1e-9), places)


def scene_losses(
    head: SceneHead, batch: Mapping[str, Tensor], *, by_reprojection: bool
) -> dict[str, Tensor]:
    """Return the losses of some keypoints.

    Minus the log likelihood of the error under a Laplace distribution of the width that
    the head claims: of the position, or of the reprojection, as an angle and from some
    error on with its logarithm only.

    Parameters
    ----------
    head : SceneHead
        Network.
    batch : mapping of str to Tensor
        rows, points, rays, R, t.
    by_reprojection : bool
        Which error; `points` are not looked at then.
    """
    places, log_sigma = head(batch["rows"])
    in_cam = torch.einsum("nij,nj->ni", batch["R"], places) + batch["t"]
    distance = _length(in_cam)
    # The chord between directions: also defined for what lies behind the camera.
    miss = _length(in_cam / distance[:, None] - batch["rays"])
    if by_reprojection:
        soft = torch.where(
            miss < _SOFT_RAD, miss, _SOFT_RAD * (1.0 + torch.log(miss / _SOFT_RAD))
        )
        width = torch.exp(log_sigma) / distance + _LEAST_RAD
        total = (soft / width + 2.0 * torch.log(width)).mean()
    else:
        error = _length(places - batch["points"])
        total = (error * torch.exp(-log_sigma) + 3.0 * log_sigma).mean()
    return {
        "total": total,
        "likelihood": total,
        "reprojection": miss.clamp(max=_SOFT_RAD).mean(),
    }


def _length(vectors: Tensor) -> Tensor:
    return (vectors.square().sum(1) + 1e-12).sqrt()


def make_batch(samples: SceneSamples, idx: IntArray) -> dict[str, Tensor]:
    """Return what `scene_losses` takes of some keypoints."""
    image = samples.image_idx[idx]
    arrays = {
        "rows": samples.rows[idx].astype(np.float32),
        "points": samples.points[idx],
        "rays": samples.rays[idx],
        "R": samples.R[image],
        "t": samples.t[image],
    }
    return {name: torch.as_tensor(array) for name, array in arrays.items()}


def train_scene_coords(
    samples: SceneSamples,
    *,
    out: Path,
    recipe: SceneRecipe,
    progress: Progress = silent,
) -> SceneHead:
    """Train a head; an interrupted run goes on from its last checkpoint.

    Every tenth view is left out, to see when training brings no more.

    Parameters
    ----------
    samples : SceneSamples
        Keypoints.
    out : Path
        Folder of the checkpoint and the log.
    recipe : SceneRecipe
        How.
    progress : callable
        Told about each step.

    Returns
    -------
    SceneHead
        With the averaged weights.

    Raises
    ------
    ConfigError
        When the folder holds a run of another recipe.
    """
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    head = begin_head(samples, max_bytes=recipe.max_bytes, seed=recipe.seed)

    def losses_of(net: SceneHead, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return scene_losses(net, batch, by_reprojection=samples.by_reprojection)

    run = Run(
        out=out,
        recipe=asdict(recipe),
        net=head,
        average=copy.deepcopy(head).eval(),
        optimizer=torch.optim.Adam(
            [
                {"params": [*head.compare.parameters()], "factor": 1.0},
                {"params": [head.places], "factor": _PLACES_FACTOR},
                {"params": [head.trust], "factor": 2.0},
            ],
            eps=_EPS,
        ),
        progress=progress,
    )
    views = samples.image_idx * (samples.number.max() + 1) + samples.number
    # The images themselves are what prototypes are made of: they say little.
    checked = (views % 10 == 7) & (samples.number > 0)
    train, check = np.flatnonzero(~checked), np.flatnonzero(checked)

    def batches() -> Iterator[Mapping[str, Tensor]]:
        best, since = float("inf"), 0
        for step in range(run.done, recipe.steps):
            rng = np.random.default_rng([recipe.seed, step])
            if step and step % recipe.check_every == 0 and len(check):
                idx = check[:: max(1, len(check) // 2048)]
                with torch.no_grad():
                    losses = losses_of(_head(run), make_batch(samples, idx))
                if float(losses["total"]) < best - 1e-3:
                    best, since = float(losses["total"]), 0
                else:
                    since += 1
                if since >= recipe.patience:
                    return
            yield make_batch(samples, rng.choice(train, recipe.batch))

    run.run(batches(), lambda batch: losses_of(head, batch))
    return _head(run)


def _head(run: Run) -> SceneHead:
    average = run.average
    assert isinstance(average, SceneHead)
    return average
