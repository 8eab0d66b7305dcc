"""Training of the scene-coordinate head of a site."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgeloc.geometry.camera import normalized_from_pixels
from edgeloc.types import BoolArray, Float32Array, FloatArray, IntArray
from edgeloc_tools.learn.scene_head import SceneHead, choose_prototypes
from edgeloc_tools.learn.site_views import SiteViewOptions, SiteViews
from edgeloc_tools.learn.train_loop import Run
from edgeloc_tools.progress import Progress, silent

_PLACES_FACTOR, _FAR_FACTOR = 0.05, 2.0
"""Of the learning rate: metres, where the others are logits; the second in first depths
and for places that are not known, which have a long way to go."""
_SOFT = 0.05
"""Largest angular error that still pulls in full, on the plane z = 1."""
_MIN_DEPTH = 0.02
"""Of the depth that a scene is first taken to have."""
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
        the images alone, through the reprojection error.
    first_depth : float
        Distance that things are first taken to have where nothing else is known; 0 =
        three times the spread of the cameras.
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
    first_depth: float = 0.0
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SceneSamples:
    """Keypoints of all views.

    Parameters
    ----------
    rows : ndarray of shape (S, D), float16
        Descriptors.
    points : ndarray of shape (S, 3), float32
        Relative to `origin`, m; nan where not known.
    plane : ndarray of shape (S, 2), float32
        Where they are in their image, on the plane z = 1.
    image_idx, number, landmark_ids : ndarray of shape (S,), int64
        As in `SiteView`.
    R : ndarray of shape (K, 3, 3), float32
        Rotations of ``cam_from_world`` of the images.
    t : ndarray of shape (K, 3), float32
        Translations, as of a world with its origin at `origin`.
    origin : ndarray of shape (3,), float64
        The mean of the scene.
    first_depth : float
        See `SceneRecipe`.
    """

    rows: np.ndarray[tuple[int, ...], np.dtype[np.float16]]
    points: Float32Array
    plane: Float32Array
    image_idx: IntArray
    number: IntArray
    landmark_ids: IntArray
    R: Float32Array
    t: Float32Array
    origin: FloatArray
    first_depth: float

    def along_rays(self, idx: IntArray, depth: float) -> Float32Array:
        """Return the points at some depth behind keypoints, (n, 3)."""
        rays = np.hstack([self.plane[idx], np.ones((len(idx), 1), np.float32)])
        image = self.image_idx[idx]
        in_cam = depth * rays - self.t[image]
        return np.asarray(np.einsum("nji,nj->ni", self.R[image], in_cam), np.float32)


def collect_samples(views: SiteViews, *, first_depth: float) -> SceneSamples:
    """Return the keypoints of all views.

    Where the position of at least half of them is known, the others are left out.

    Parameters
    ----------
    views : SiteViews
        All views.
    first_depth : float
        See `SceneRecipe`.
    """
    poses = [image.cam_from_world for image in views.images]
    R = np.stack([pose.R for pose in poses if pose is not None])
    t = np.stack([pose.t for pose in poses if pose is not None])
    centers = -np.einsum("kji,kj->ki", R, t)
    points = np.concatenate([view.points3D for view in views.views])
    known = np.all(np.isfinite(points), axis=1)
    origin = points[known].mean(axis=0) if known.any() else centers.mean(axis=0)
    if first_depth <= 0:
        spread = np.sqrt(np.mean(np.sum((centers - centers.mean(axis=0)) ** 2, axis=1)))
        first_depth = max(3.0 * float(spread), 1e-3)
    plane = np.concatenate(
        [
            normalized_from_pixels(views.camera(v), v.keypoints.astype(np.float64))
            for v in views.views
        ]
    )
    keep = np.all(np.isfinite(plane), axis=1)
    if 2 * np.count_nonzero(known) >= len(known):
        keep &= known

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
        plane=plane[keep].astype(np.float32),
        image_idx=joined("image_idx"),
        number=joined("number"),
        landmark_ids=joined("landmark_ids"),
        R=R.astype(np.float32),
        t=(t + R @ origin).astype(np.float32),
        origin=origin,
        first_depth=first_depth,
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
    filled with keypoints of measured depth, and where there is neither, of none: then
    with keypoints as far away as the scene is first taken to be.

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
    known = np.all(np.isfinite(samples.points), axis=1)
    for more, positions in (
        (np.flatnonzero(used & known & (samples.landmark_ids < 0)), samples.points),
        (np.flatnonzero(used & ~known), None),
    ):
        idx = rng.permutation(more)[: max(count - len(places), 0)]
        at = samples.along_rays(idx, samples.first_depth)
        if positions is not None:
            at = positions[idx]
        descriptors = np.vstack([descriptors, samples.rows[idx].astype(np.float32)])
        places = np.vstack([places, at])
    length = np.linalg.norm(descriptors, axis=1, keepdims=True)
    return SceneHead(descriptors / np.maximum(length, 1e-9), places)


def scene_losses(head: SceneHead, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the losses of some keypoints.

    Minus the log likelihood of the error under a Laplace distribution of the width that
    the head claims: of the position where that is known, else of the reprojection, from
    some error on with its logarithm only. What a head places behind the camera is
    pulled in front of it.

    Parameters
    ----------
    head : SceneHead
        Network.
    batch : mapping of str to Tensor
        rows, points, plane, R, t, along (the point at the first depth), first_depth.
    """
    places, log_sigma = head(batch["rows"])
    known = torch.isfinite(batch["points"]).all(1)
    off = torch.where(known[:, None], places - batch["points"].nan_to_num(), 0.0)
    error = (off.square().sum(1) + 1e-12).sqrt()
    by_place = error * torch.exp(-log_sigma) + 3.0 * log_sigma
    in_cam = torch.einsum("nij,nj->ni", batch["R"], places) + batch["t"]
    least = _MIN_DEPTH * batch["first_depth"]
    depth = in_cam[:, 2].clamp(min=float(least))
    miss = (in_cam[:, :2] / depth[:, None] - batch["plane"]).square().sum(1)
    miss = (miss + 1e-12).sqrt()
    soft = torch.where(
        miss < _SOFT, miss, _SOFT * (1.0 + torch.log(miss / _SOFT + 1e-9))
    )
    width = torch.exp(log_sigma) / depth + 1e-3
    by_ray = soft / width + 2.0 * torch.log(width)
    behind = in_cam[:, 2] <= least
    pull = ((places - batch["along"]).square().sum(1) + 1e-12).sqrt()
    pull = pull / batch["first_depth"]
    by_ray = torch.where(behind, 10.0 * pull, by_ray)
    total = torch.where(known, by_place, by_ray).mean()
    return {
        "total": total,
        "likelihood": total,
        "reprojection": torch.where(behind, _SOFT, miss.clamp(max=_SOFT)).mean(),
    }


def make_batch(samples: SceneSamples, idx: IntArray) -> dict[str, Tensor]:
    """Return what `scene_losses` takes of some keypoints."""
    image = samples.image_idx[idx]
    arrays = {
        "rows": samples.rows[idx].astype(np.float32),
        "points": samples.points[idx],
        "plane": samples.plane[idx],
        "R": samples.R[image],
        "t": samples.t[image],
        "along": samples.along_rays(idx, samples.first_depth),
        "first_depth": np.float32(samples.first_depth),
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
    begun_well = bool(np.all(np.isfinite(samples.points)))
    places_factor = _PLACES_FACTOR
    if not begun_well:
        places_factor = _FAR_FACTOR * samples.first_depth
    run = Run(
        out=out,
        recipe=asdict(recipe),
        net=head,
        average=copy.deepcopy(head).eval(),
        optimizer=torch.optim.Adam(
            [
                {"params": [*head.compare.parameters()], "factor": 1.0},
                {"params": [head.places], "factor": places_factor},
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
                    losses = scene_losses(_head(run), make_batch(samples, idx))
                if float(losses["total"]) < best - 1e-3:
                    best, since = float(losses["total"]), 0
                else:
                    since += 1
                if since >= recipe.patience:
                    return
            yield make_batch(samples, rng.choice(train, recipe.batch))

    run.run(batches(), lambda batch: scene_losses(head, batch))
    return _head(run)


def _head(run: Run) -> SceneHead:
    average = run.average
    assert isinstance(average, SceneHead)
    return average
