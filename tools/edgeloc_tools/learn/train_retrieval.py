"""Training of the retrieval network: two views of a place are alike, others are not."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from edgeloc.types import Float32Array
from edgeloc_tools.learn.checkpoint import begin_with
from edgeloc_tools.learn.networks import SIZES, TRUNK, RetrievalNet
from edgeloc_tools.learn.photo_pairs import Photo, load_photo, photo_views
from edgeloc_tools.learn.posed_frames import PosedFrames
from edgeloc_tools.learn.posed_pairs import covisible_views
from edgeloc_tools.learn.recipe import RetrievalRecipe
from edgeloc_tools.learn.train_loop import CHECKPOINT, Run, batches
from edgeloc_tools.progress import Progress, silent, track

_ASSIGN_SHARPNESS = 30.0
_SAMPLES_PER_PHOTO = 60


class PlaceViews(Dataset[dict[str, np.ndarray]]):
    """Two views of place number i, always the same for a seed.

    Parameters
    ----------
    photos : sequence of Photo
        Sources; within a run of as many numbers as there are photos, each comes once.
    recipe : RetrievalRecipe
        How views are drawn.
    frames : sequence of PosedFrames
        Further sources, one per recording, drawn `posed_share` of the time.
    first : int
        Number of the first; those before it are done.
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        recipe: RetrievalRecipe,
        *,
        frames: Sequence[PosedFrames] = (),
        first: int = 0,
    ) -> None:
        self._photos = photos
        self._frames = frames
        self._recipe = recipe
        self._first = first

    def __len__(self) -> int:
        return self._recipe.steps * self._recipe.batch - self._first

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return the views and a number of their place.

        A recording is one place: what of it looks alike is not told apart.
        """
        number = self._first + index
        rng = np.random.default_rng([self._recipe.seed, 1, number])
        if self._frames and rng.random() < self._recipe.posed_share:
            source_idx = int(rng.integers(len(self._frames)))
            views = covisible_views(self._frames[source_idx], rng, self._recipe.views)
            return {"images": views, "place": np.int64(-2 - source_idx)}
        round_idx, place = divmod(number, len(self._photos))
        order = np.random.default_rng([self._recipe.seed, round_idx])
        photo_idx = int(order.permutation(len(self._photos))[place])
        images, _ = photo_views(
            self._photos[photo_idx], rng, options=self._recipe.views
        )
        return {"images": images, "place": np.int64(photo_idx)}


def contrastive_loss(
    a: Tensor, b: Tensor, places: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return the InfoNCE loss [1]_ of pairs, and the share that is retrieved first.

    The other places of the batch are the negatives. A queue of those of earlier steps
    made training diverge: the descriptors that it holds are of another network.

    Parameters
    ----------
    a, b : Tensor of shape (B, D)
        Global descriptors of two views of each place.
    places : Tensor of shape (B,), int64
        Whose; equal ones are no negatives.
    temperature : float
        Of the softmax.

    References
    ----------
    .. [1] van den Oord et al., "Representation learning with contrastive predictive
       coding", 2018, section 2.3.
    """
    target = torch.arange(len(a))
    same = (places[None, :] == places[:, None]) & ~torch.eye(len(a), dtype=torch.bool)
    losses, first = [], []
    for query, partner in ((a, b), (b, a)):
        logits = (query @ partner.T).masked_fill(same, -1e4) / temperature
        losses.append(functional.cross_entropy(logits, target))
        first.append((logits.argmax(1) == target).float().mean())
    return torch.stack(losses).mean(), torch.stack(first).mean()


@torch.no_grad()
def begin_head(
    net: RetrievalNet, photos: Sequence[Photo], recipe: RetrievalRecipe
) -> None:
    """Give the head a vocabulary by k-means and a projection by whitened PCA.

    It is then a VLAD with a universal vocabulary, and training starts from there.

    Parameters
    ----------
    net : RetrievalNet
        Its trunk is trained; the head is changed in place.
    photos : sequence of Photo
        Taken as they are.
    recipe : RetrievalRecipe
        Size of the views, and the seed.
    """
    rng = np.random.default_rng(recipe.seed)
    local = []
    for photo in photos:
        size = (recipe.views.width, recipe.views.height)
        grey = cv2.cvtColor(photo.image, cv2.COLOR_BGR2GRAY)
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
        image = torch.from_numpy(np.asarray(grey, np.float32) / np.float32(255.0))
        local.append(net.local(image[None, None])[0])
    dense = torch.stack(local)
    rows = dense.flatten(2).transpose(1, 2)
    sample = [
        row[torch.from_numpy(rng.permutation(len(row))[:_SAMPLES_PER_PHOTO])]
        for row in rows
    ]
    centres = _k_means(torch.cat(sample).numpy(), words=recipe.words, seed=recipe.seed)
    net.centres.copy_(torch.from_numpy(centres))
    # softmax(-s |x - c|^2 / 2) of unit x; what is of no use gets a word of its own.
    weight = torch.zeros_like(net.assign.weight)
    weight[:-1, :, 0, 0] = _ASSIGN_SHARPNESS * net.centres
    net.assign.weight.copy_(weight)
    assert net.assign.bias is not None
    net.assign.bias[:-1] = -0.5 * _ASSIGN_SHARPNESS * (net.centres**2).sum(1)
    net.assign.bias[-1] = net.assign.bias[:-1].mean()
    gathered = torch.cat([net.gather(part) for part in torch.split(dense, 16)]).flatten(
        1
    )
    mean = gathered.mean(0)
    _, scale, axes = torch.linalg.svd(gathered - mean, full_matrices=False)
    dim = min(recipe.dim, len(scale))
    # Half of a whitening: full whitening blows up the noise of few photos.
    gain = (scale[:dim] / scale[0]).clamp(min=1e-3) ** -0.5
    net.project.weight.zero_()
    net.project.weight[:dim] = gain[:, None] * axes[:dim]
    net.project.bias.copy_(-net.project.weight @ mean)


def _k_means(rows: Float32Array, *, words: int, seed: int) -> Float32Array:
    cv2.setRNGSeed(seed)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 25, 1e-4)
    labels = np.zeros((0, 1), np.int32)
    _, _, centres = cv2.kmeans(
        np.ascontiguousarray(rows), words, labels, criteria, 1, cv2.KMEANS_PP_CENTERS
    )
    return np.asarray(centres, np.float32)


def retrieval_losses(
    net: RetrievalNet,
    batch: Mapping[str, Tensor],
    recipe: RetrievalRecipe,
) -> dict[str, Tensor]:
    """Return the losses of a batch and the share of views retrieved first."""
    images, places = batch["images"], batch["place"]
    both = torch.cat([images[:, 0], images[:, 1]])[:, None]
    both = both.contiguous(memory_format=torch.channels_last)
    if recipe.trunk_factor == 0:
        with torch.no_grad():
            local = net.local(both)
    else:
        local = net.local(both)
    out = functional.normalize(net.project(net.gather(local).flatten(1)), dim=1)
    a, b = out[: len(images)], out[len(images) :]
    loss, first = contrastive_loss(a, b, places, temperature=recipe.temperature)
    return {"total": loss, "retrieved": first}


def train_retrieval(
    photos: Sequence[Path],
    *,
    start: Path,
    out: Path,
    recipe: RetrievalRecipe,
    frames: Sequence[PosedFrames] = (),
    progress: Progress = silent,
) -> RetrievalNet:
    """Train a retrieval network; an interrupted run goes on from its last checkpoint.

    Parameters
    ----------
    photos : sequence of Path
        Photos to train on.
    start : Path
        Checkpoint of a feature network of the same size: the trunk.
    out : Path
        Folder of the checkpoint and the log.
    recipe : RetrievalRecipe
        How.
    frames : sequence of PosedFrames
        Posed recordings to train on, one each.
    progress : callable
        Told about each step.

    Returns
    -------
    RetrievalNet
        With the averaged weights, in evaluation mode.

    Raises
    ------
    ConfigError
        When the folder holds a run of another recipe, or `start` another trunk.
    DatasetError
        When a photo cannot be read.
    """
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    net = RetrievalNet(
        SIZES[recipe.size],
        words=recipe.words,
        local_dim=recipe.local_dim,
        dim=recipe.dim,
    )
    begin_with(net, start)
    # Batch statistics stay those of the feature network: views of one photo in a batch
    # would give each other away.
    net = net.eval()
    loaded = [load_photo(path) for path in track(photos, "photos", progress)]
    if not (out / CHECKPOINT).exists():
        begin_head(net, loaded, recipe)
    head = [p for name, p in net.named_parameters() if not name.startswith(TRUNK)]
    trunk = [p for name, p in net.named_parameters() if name.startswith(TRUNK)]
    run = Run(
        out=out,
        recipe=asdict(recipe),
        net=net,
        average=copy.deepcopy(net),
        optimizer=torch.optim.AdamW(
            [
                {"params": head, "factor": 1.0},
                {"params": trunk, "factor": recipe.trunk_factor},
            ],
            weight_decay=recipe.weight_decay,
        ),
        progress=progress,
    )
    if run.done < recipe.steps:
        pairs = PlaceViews(loaded, recipe, frames=frames, first=run.done * recipe.batch)
        run.run(
            batches(pairs, size=recipe.batch, workers=recipe.workers),
            lambda b: retrieval_losses(net, b, recipe),
        )
    average = run.average
    assert isinstance(average, RetrievalNet)
    return average
