"""Recipes of training: strict options from a TOML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from edgeloc.config import load_config_file
from edgeloc.errors import ConfigError
from edgeloc_tools.learn.photo_pairs import ViewOptions

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureRecipe:
    """How a feature network is trained.

    Parameters
    ----------
    size : {"nano", "small", "base"}
        Of the network.
    dim : int
        Of the descriptors.
    steps : int
        Updates of the weights.
    batch : int
        Pairs per step.
    points : int
        Correspondences per pair.
    learning_rate, weight_decay : float
        Peak of the one-cycle schedule, and AdamW's decay.
    sharpness : float
        Factor of the similarities in the softmax.
    reliability_weight : float
        Of its loss beside the descriptors'.
    average : float
        Decay per step of the running average of the weights, which is what is exported.
    posed_share : float
        Share of pairs from posed recordings with depth, where there are any.
    seed : int
        Of everything random.
    threads, workers : int
        Of the network, and processes that draw the pairs.
    checkpoint_every : int
        Steps between checkpoints.
    views : ViewOptions
        How views are drawn.
    """

    size: str = "small"
    dim: int = 64
    steps: int = 8000
    batch: int = 8
    points: int = 512
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    sharpness: float = 20.0
    reliability_weight: float = 0.5
    average: float = 0.998
    posed_share: float = 0.0
    seed: int = 0
    threads: int = 1
    workers: int = 1
    checkpoint_every: int = 200
    views: ViewOptions = field(default_factory=ViewOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalRecipe:
    """How a retrieval network is trained.

    Parameters
    ----------
    size : {"nano", "small", "base"}
        Of the network.
    words, local_dim, dim : int
        Words of its vocabulary, and elements of its local and global descriptors.
    steps : int
        Updates of the weights.
    batch : int
        Photos per step, two views each.
    learning_rate, weight_decay : float
        Peak of the one-cycle schedule, and AdamW's decay.
    trunk_factor : float
        Of the learning rate, for what comes from the feature network; 0 keeps it.
    temperature : float
        Of the softmax over similarities.
    average : float
        Decay per step of the running average of the weights, which is what is exported.
    posed_share : float
        Share of pairs from posed recordings with depth, where there are any.
    seed : int
        Of everything random.
    threads, workers : int
        Of the network, and processes that draw the pairs.
    checkpoint_every : int
        Steps between checkpoints.
    views : ViewOptions
        How views are drawn.
    """

    size: str = "small"
    words: int = 32
    local_dim: int = 64
    dim: int = 256
    steps: int = 1200
    batch: int = 24
    learning_rate: float = 3e-4
    weight_decay: float = 1e-4
    trunk_factor: float = 0.0
    temperature: float = 0.07
    average: float = 0.99
    posed_share: float = 0.0
    seed: int = 0
    threads: int = 1
    workers: int = 1
    checkpoint_every: int = 100
    views: ViewOptions = field(
        default_factory=lambda: ViewOptions(
            rotation_sigma_deg=6.0, any_rotation=0.0, tilt=0.14, shift=0.2
        )
    )


def load_recipe(path: Path | None, kind: type[T], changes: Mapping[str, Any]) -> T:
    """Return a recipe from a TOML file and changes to it.

    Parameters
    ----------
    path : Path or None
        TOML file; None = all defaults.
    kind : type
        Recipe dataclass.
    changes : mapping of str to value
        Values that win over the file's, by field name.

    Raises
    ------
    ConfigError
        When the file is not readable, or names something that a recipe has not.
    """
    table = {} if path is None else load_config_file(path)
    table.update(changes)
    return _filled(kind, table, where=str(path or "recipe"))


def _filled(kind: type[T], table: Mapping[str, Any], *, where: str) -> T:
    """Return a dataclass of a table's values, each of the default's type."""
    defaults = kind()
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in names:
            raise ConfigError(
                f"{where}: {name!r} is unknown, expected {', '.join(sorted(names))}"
            )
        default = getattr(defaults, name)
        if isinstance(value, Mapping):
            if not hasattr(default, "__dataclass_fields__"):
                raise ConfigError(f"{where}: {name!r} is a value, not a table")
            values[name] = _filled(type(default), value, where=f"{where}: [{name}]")
        elif isinstance(default, float) and type(value) is int:
            values[name] = float(value)
        elif type(value) is not type(default):
            raise ConfigError(
                f"{where}: {name} = {value!r} must be a {type(default).__name__}"
            )
        else:
            values[name] = value
    return kind(**values)
