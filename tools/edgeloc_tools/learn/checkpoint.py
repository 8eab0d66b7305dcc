"""Checkpoints of training: arrays in one file, nothing pickled."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeloc.errors import ConfigError
from edgeloc_tools.files import write_atomically
from edgeloc_tools.learn.networks import TRUNK, Trunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What training needs to go on.

    Parameters
    ----------
    step : int
        Updates done.
    recipe : mapping
        Of the run that wrote it.
    model, average : mapping of str to Tensor
        Weights, and their running average.
    moments : mapping of str to Tensor
        State of the optimizer, "INDEX.NAME".
    """

    step: int
    recipe: Mapping[str, Any]
    model: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]


def optimizer_moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of an optimizer as flat tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": value
        for index, values in state.items()
        for name, value in values.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]
) -> None:
    """Put the moments of a checkpoint back."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, atomically."""
    arrays = {
        f"{part}/{name}": value.detach().cpu().numpy()
        for part in ("model", "average", "moments")
        for name, value in getattr(checkpoint, part).items()
    }
    about = json.dumps({"step": checkpoint.step, "recipe": dict(checkpoint.recipe)})
    buffer = io.BytesIO()
    np.savez(buffer, about=np.frombuffer(about.encode(), np.uint8), **arrays)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    ConfigError
        When the file is none.
    """
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "moments": {}}
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            for key in file.files:
                part, _, name = key.partition("/")
                if name:
                    parts[part][name] = torch.from_numpy(file[key].copy())
        return Checkpoint(step=int(about["step"]), recipe=about["recipe"], **parts)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as exc:
        raise ConfigError(
            f"{path}: is not a checkpoint ({exc}); remove it to start over"
        ) from exc


def restore_module(
    module: nn.Module, weights: Mapping[str, Tensor], *, where: str
) -> None:
    """Load weights into a module.

    Raises
    ------
    ConfigError
        When they are of another network.
    """
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as exc:
        first = str(exc).splitlines()[0]
        raise ConfigError(f"{where}: holds another network ({first})") from exc


def begin_with(net: Trunk, start: Path) -> None:
    """Take from a checkpoint the averaged weights that a network has too.

    Those of the same name and shape: the whole trunk, and of the heads what there is.

    Raises
    ------
    ConfigError
        When the file is no checkpoint, or its trunk is another.
    """
    weights = load_checkpoint(start).average
    own = net.state_dict()
    taken = {
        name: weights[name]
        for name, value in own.items()
        if name in weights and weights[name].shape == value.shape
    }
    for name in own:
        if name.startswith(TRUNK) and name not in taken:
            raise ConfigError(
                f"{start}: its trunk is another ({name} differs); give the checkpoint "
                "of a network of the same size"
            )
    net.load_state_dict(taken, strict=False)
