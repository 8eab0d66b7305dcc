"""Training of the feature network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from edgeloc_tools.learn.checkpoint import begin_with
from edgeloc_tools.learn.losses import (
    dual_softmax_loss,
    reliability_loss,
    sample_map,
)
from edgeloc_tools.learn.networks import FeatureNet, feature_net
from edgeloc_tools.learn.photo_pairs import Pair, Photo, load_photo, photo_pair
from edgeloc_tools.learn.posed_frames import PosedFrames
from edgeloc_tools.learn.posed_pairs import posed_pair
from edgeloc_tools.learn.recipe import FeatureRecipe
from edgeloc_tools.learn.train_loop import Run, batches
from edgeloc_tools.progress import Progress, silent, track


class FeaturePairs(Dataset[dict[str, np.ndarray]]):
    """Pair number i, always the same for a seed.

    Parameters
    ----------
    photos : sequence of Photo
        Sources.
    recipe : FeatureRecipe
        How pairs are drawn.
    frames : sequence of PosedFrames
        Further sources, one per recording, drawn from by their numbers of frames.
    first : int
        Number of the first pair; those before it are done.
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        recipe: FeatureRecipe,
        *,
        frames: Sequence[PosedFrames] = (),
        first: int = 0,
    ) -> None:
        self._photos = photos
        self._frames = frames
        self._num_frames = np.array([len(source.frames) for source in frames])
        self._recipe = recipe
        self._first = first

    def __len__(self) -> int:
        return self._recipe.steps * self._recipe.batch - self._first

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return a pair as arrays."""
        rng = np.random.default_rng([self._recipe.seed, self._first + index])
        pair = self._draw(rng)
        return {name: getattr(pair, name) for name in pair.__dataclass_fields__}

    def _draw(self, rng: np.random.Generator) -> Pair:
        views, num_points = self._recipe.views, self._recipe.points
        posed_share = self._recipe.posed_share if self._frames else 0.0
        if posed_share > 0 and rng.random() < posed_share:
            share = self._num_frames / self._num_frames.sum()
            source = self._frames[int(rng.choice(len(share), p=share))]
            return posed_pair(source, rng, options=views, num_points=num_points)
        photo = self._photos[int(rng.integers(len(self._photos)))]
        return photo_pair(photo, rng, options=views, num_points=num_points)


def feature_losses(
    net: FeatureNet, batch: Mapping[str, Tensor], recipe: FeatureRecipe
) -> dict[str, Tensor]:
    """Return the losses of a batch of pairs and the share of points that match.

    Parameters
    ----------
    net : FeatureNet
        Network.
    batch : mapping of str to Tensor
        Fields of `Pair`, stacked.
    recipe : FeatureRecipe
        Weights of the losses.
    """
    images = batch["images"]
    num, _, height, width = images.shape
    both = torch.cat([images[:, 0], images[:, 1]])[:, None]
    both = both.contiguous(memory_format=torch.channels_last)
    dense, reliability = net(both)
    valid, points = batch["valid"], batch["points"]
    rows_a = sample_map(dense[:num], points[:, 0], width=width, height=height)
    rows_b = sample_map(dense[num:], points[:, 1], width=width, height=height)
    descriptors, correct = dual_softmax_loss(
        torch.nn.functional.normalize(rows_a, dim=2),
        torch.nn.functional.normalize(rows_b, dim=2),
        points[:, 1],
        valid,
        sharpness=recipe.sharpness,
    )
    sure = [
        reliability_loss(
            sample_map(logits, at, width=width, height=height)[..., 0], correct, valid
        )
        for logits, at in (
            (reliability[:num], points[:, 0]),
            (reliability[num:], points[:, 1]),
        )
    ]
    trust = sure[0] + sure[1]
    matched = correct.sum() / valid.sum().clamp(min=1)
    return {
        "total": descriptors + recipe.reliability_weight * trust,
        "descriptors": descriptors,
        "reliability": trust,
        "matched": matched,
    }


def train_features(
    photos: Sequence[Path],
    *,
    out: Path,
    recipe: FeatureRecipe,
    frames: Sequence[PosedFrames] = (),
    start: Path | None = None,
    progress: Progress = silent,
) -> FeatureNet:
    """Train a feature network; an interrupted run goes on from its last checkpoint.

    Parameters
    ----------
    photos : sequence of Path
        Photos to train on.
    out : Path
        Folder of the checkpoint and the log.
    recipe : FeatureRecipe
        How.
    frames : sequence of PosedFrames
        Posed recordings with depth, which give `recipe.posed_share` of the pairs; the
        same ones when an interrupted run goes on.
    start : Path or None
        Checkpoint whose averaged weights a new run begins with; see `begin_with`.
    progress : callable
        Told about each step.

    Returns
    -------
    FeatureNet
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
    net = feature_net(recipe.size, recipe.dim)
    if start is not None:
        begin_with(net, start)
    run = Run(
        out=out,
        recipe=asdict(recipe),
        net=net,
        average=copy.deepcopy(net).eval(),
        optimizer=torch.optim.AdamW(net.parameters(), weight_decay=recipe.weight_decay),
        progress=progress,
    )
    if run.done < recipe.steps:
        loaded = [load_photo(path) for path in track(photos, "photos", progress)]
        pairs = FeaturePairs(
            loaded, recipe, frames=frames, first=run.done * recipe.batch
        )
        run.run(
            batches(pairs, size=recipe.batch, workers=recipe.workers),
            lambda batch: feature_losses(net, batch, recipe),
        )
    average = run.average
    assert isinstance(average, FeatureNet)
    return average
