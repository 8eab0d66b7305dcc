"""What the estimator can be asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from edgeloc.errors import ConfigError
from edgeloc.inference.backend import BackendOptions
from edgeloc.localize.interpolate import InterpolateOptions
from edgeloc.localize.structure import StructureOptions
from edgeloc.runtime.following import FollowOptions

METHOD_STEPS: Mapping[str, frozenset[str] | None] = MappingProxyType(
    {
        "auto": None,
        "structure": frozenset({"track", "guided", "relocalize", "predict", "lost"}),
        "scene-coords": frozenset({"scene_coords", "lost"}),
        "local-sfm": frozenset({"local_sfm", "lost"}),
        "relative": frozenset({"relative", "lost"}),
        "interpolate": frozenset({"interpolate", "lost"}),
        "regress": frozenset({"regress", "lost"}),
    }
)
"""Steps of the ladder that a method takes; None = all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorOptions:
    """Options of the estimator.

    Parameters
    ----------
    method : str
        One of `METHOD_STEPS`: "auto" answers with the best that is sound and fits; the
        others with that family alone.
    cold : bool
        No prior between frames: each is localized by itself.
    max_keypoints : int or None
        Keypoints per frame; None = as in mapping.
    num_retrieved : int
        Keyframes whose landmarks are matched.
    num_first : int
        Of these, how many are tried first; the others only when the pose that comes of
        them has fewer than `num_enough` inliers.
    num_enough : int
        See `num_first`.
    cache_bytes : int
        Bound of the decoded tiles kept in memory.
    structure : StructureOptions or None
        Of RELOCALIZE; None = what serves the site's feature family.
    interpolate : InterpolateOptions or None
        Of INTERPOLATE; None = what the site says.
    follow : FollowOptions
        Of TRACK.
    backend : BackendOptions
        Where the site's networks run.
    seed : int
        Of RANSAC.
    """

    method: str = "auto"
    cold: bool = False
    max_keypoints: int | None = None
    num_retrieved: int = 10
    num_first: int = 5
    num_enough: int = 80
    cache_bytes: int = 64 << 20
    structure: StructureOptions | None = None
    interpolate: InterpolateOptions | None = None
    follow: FollowOptions = field(default_factory=FollowOptions)
    backend: BackendOptions = field(default_factory=BackendOptions)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHOD_STEPS:
            raise ConfigError(
                f"--method {self.method} is unknown, expected one of "
                f"{', '.join(METHOD_STEPS)}"
            )
        if self.num_retrieved < 1:
            raise ConfigError(f"num_retrieved {self.num_retrieved} must be at least 1")
        if self.max_keypoints is not None and self.max_keypoints < 1:
            raise ConfigError(f"max_keypoints {self.max_keypoints} must be at least 1")
