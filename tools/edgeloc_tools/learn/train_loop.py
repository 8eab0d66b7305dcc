"""What the trainings share: schedule, running average, checkpoints, log."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from edgeloc.clock import Clock, MonotonicClock
from edgeloc.errors import ConfigError
from edgeloc_tools.learn.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_moments,
    restore_module,
    restore_optimizer,
    save_checkpoint,
)
from edgeloc_tools.progress import Progress

CHECKPOINT = "checkpoint.npz"
LOG = "log.jsonl"

_CHANGEABLE = frozenset({"threads", "workers", "checkpoint_every"})
"""What may differ between the parts of one run."""


def _one_thread(_worker: int) -> None:
    """Keep a process that draws pairs to one thread."""
    torch.set_num_threads(1)


def batches(
    pairs: Dataset[dict[str, np.ndarray]], *, size: int, workers: int
) -> Iterable[Mapping[str, Tensor]]:
    """Return what a data set draws, in order, in batches.

    Parameters
    ----------
    pairs : Dataset
        Its items are arrays by name.
    size : int
        Of a batch.
    workers : int
        Processes that draw; 0 = this one.
    """
    if workers:
        # Here and not in the workers: a forked process that puts an end to OpenCV's
        # threads waits for ever for those that only its parent has.
        cv2.setNumThreads(1)
    return DataLoader(
        pairs,
        batch_size=size,
        num_workers=workers,
        worker_init_fn=_one_thread if workers else None,
        prefetch_factor=4 if workers else None,
    )


def one_cycle(done: float, *, warm_up: float = 0.05) -> float:
    """Return the factor of the learning rate after a share of the steps.

    Up linearly, then down by a cosine [1]_.

    References
    ----------
    .. [1] Smith, Topin, "Super-convergence", 2019, section 4.
    """
    if done < warm_up:
        return 0.05 + 0.95 * done / warm_up
    turn = (done - warm_up) / (1.0 - warm_up)
    return float(0.5 * (1.0 + np.cos(np.pi * min(turn, 1.0))) + 1e-3)


@torch.no_grad()
def update_average(average: nn.Module, net: nn.Module, *, decay: float) -> None:
    """Move the running average of the weights towards the weights."""
    for mean, value in zip(
        average.state_dict().values(), net.state_dict().values(), strict=True
    ):
        if mean.dtype.is_floating_point:
            mean.lerp_(value, 1.0 - decay)
        else:
            mean.copy_(value)


@dataclass(kw_only=True)
class Run:
    """One training run in a folder; a second one in the same folder goes on with it.

    Parameters
    ----------
    out : Path
        Folder of the checkpoint and the log.
    recipe : mapping
        Of the run, plain values; must hold steps, learning_rate, average and
        checkpoint_every.
    net, average : Module
        The network in training, and the running average of its weights.
    optimizer : Optimizer
        Of `net`; the learning rate of each of its groups is the schedule's times the
        group's "factor".
    progress : callable
        Told about each step.
    clock : Clock
        For the log.

    Raises
    ------
    ConfigError
        When the folder holds a run of another recipe.
    """

    out: Path
    recipe: Mapping[str, Any]
    net: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    progress: Progress
    clock: Clock = field(default_factory=MonotonicClock)
    done: int = 0

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / CHECKPOINT
        if not path.exists():
            return
        checkpoint = load_checkpoint(path)
        _require_same(checkpoint.recipe, self.recipe, where=path)
        restore_module(self.net, checkpoint.model, where=str(path))
        restore_module(self.average, checkpoint.average, where=str(path))
        restore_optimizer(self.optimizer, checkpoint.moments)
        self.done = checkpoint.step

    def run(
        self,
        batches: Iterable[Mapping[str, Tensor]],
        losses_of: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    ) -> None:
        """Train until all steps are done.

        Parameters
        ----------
        batches : iterable
            One for each step that is left.
        losses_of : callable
            From a batch to losses by name; "total" is the one that falls.
        """
        total_steps = int(self.recipe["steps"])
        sums: dict[str, float] = {}
        count = 0
        started_ns = self.clock.now_ns()
        for batch in batches:
            rate = self.recipe["learning_rate"] * one_cycle(self.done / total_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group.get("factor", 1.0)
            losses = losses_of(batch)
            self.optimizer.zero_grad()
            losses["total"].backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            self.optimizer.step()
            decay = min(self.recipe["average"], self.done / (self.done + 10.0))
            update_average(self.average, self.net, decay=decay)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            self.done += 1
            count += 1
            self.progress("steps", self.done, total_steps)
            if self.done % self.recipe["checkpoint_every"] == 0 or (
                self.done == total_steps
            ):
                seconds = (self.clock.now_ns() - started_ns) * 1e-9
                means = {name: round(value / count, 5) for name, value in sums.items()}
                self._log({"step": self.done, "seconds": round(seconds, 1), **means})
                sums, count = {}, 0
                self._save()

    def _save(self) -> None:
        """Write the checkpoint."""
        save_checkpoint(
            self.out / CHECKPOINT,
            Checkpoint(
                step=self.done,
                recipe=self.recipe,
                model=self.net.state_dict(),
                average=self.average.state_dict(),
                moments=optimizer_moments(self.optimizer),
            ),
        )

    def _log(self, entry: Mapping[str, object]) -> None:
        with (self.out / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _require_same(
    before: Mapping[str, object], recipe: Mapping[str, object], *, where: Path
) -> None:
    now = json.loads(json.dumps(dict(recipe)))
    for name, value in now.items():
        if name not in _CHANGEABLE and before.get(name) != value:
            raise ConfigError(
                f"{where}: is of a run with {name} = {before.get(name)!r}, not "
                f"{value!r}; go on with the same recipe or choose another folder"
            )
