"""How a site is built."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeloc.errors import ConfigError
from edgeloc.features.match import MatchOptions
from edgeloc.geometry.triangulate import TriangulationOptions
from edgeloc.inference.backend import BackendOptions
from edgeloc_tools.mapping.select import RANKINGS, SelectOptions

CODE_BYTES = (0, 4, 8, 16, 32)
"""Sizes of a quantized descriptor; 0 = not quantized."""


STORES = ("landmarks", "features", "both")
"""What a site keeps of its images."""
FEATURES_PER_KEYFRAME = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """Options of a build.

    Parameters
    ----------
    features : str
        Feature family: "orb", "sift", "edgeloc" or the path of a model manifest.
    retrieval : str
        "auto", "vlad", "edgeloc" or the path of a model manifest, see
        `edgeloc.features.registry.open_retrieval`.
    backend : BackendOptions
        Where networks run.
    max_keypoints : int or None
        Keypoints per image; None = by family and image size.
    max_side_px : int
        Larger images are scaled down to this; 0 = never.
    use_depth : bool
        Whether measured depth takes part.
    match : MatchOptions
        Of mapping images with each other.
    max_epipolar_px : float
        Sampson distance of a match.
    num_similar, num_near : int
        Partners of each image by retrieval and by pose.
    max_descriptors : int
        Descriptors kept per landmark.
    triangulation : TriangulationOptions
        Gates of the landmarks.
    num_words, vlad_dim : int
        Vocabulary of the retrieval model and dimensions of its local descriptors.
    max_tile_bytes : int
        Bound of a tile.
    store : {"landmarks", "features", "both"}
        What is kept for fixes: 3D points (RELOCALIZE, TRACK), features of the keyframes
        (LOCAL_SFM, RELATIVE; no 3D point is computed), or both.
    features_per_keyframe : int
        Of "features" and "both". Measured on RedKitchen with the network's features,
        median error of LOCAL_SFM: 0.6 cm with 200 to 1000 of them, 0.9 cm with 100.
    budget_bytes : int or None
        Bound of the site without networks and the codebooks that come with edgeloc;
        None = keep every landmark.
    code_bytes : int or None
        Bytes of a quantized descriptor; 0 = keep them as the family stores them; None =
        what serves the family and the budget.
    ranking : {"cover", "observations", "random"}
        Which landmarks a budget keeps first; the last two are for comparison.
    select : SelectOptions
        Of "cover".
    curve : bool
        Whether accuracy is measured at several budgets, for the report.
    seed : int
        For everything random.
    """

    features: str = "edgeloc"
    retrieval: str = "auto"
    backend: BackendOptions = field(default_factory=BackendOptions)
    max_keypoints: int | None = None
    max_side_px: int = 1600
    use_depth: bool = True
    match: MatchOptions = field(
        default_factory=lambda: MatchOptions(max_ratio=1.0, min_similarity=0.5)
    )
    max_epipolar_px: float = 3.0
    num_similar: int = 12
    num_near: int = 12
    max_descriptors: int = 4
    triangulation: TriangulationOptions = field(default_factory=TriangulationOptions)
    num_words: int = 64
    vlad_dim: int = 32
    max_tile_bytes: int = 256 << 10
    store: str = "landmarks"
    features_per_keyframe: int = FEATURES_PER_KEYFRAME
    budget_bytes: int | None = None
    code_bytes: int | None = None
    ranking: str = "cover"
    select: SelectOptions = field(default_factory=SelectOptions)
    curve: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_keypoints is not None and self.max_keypoints < 16:
            raise ConfigError(f"max_keypoints {self.max_keypoints} must be at least 16")
        if self.code_bytes is not None and self.code_bytes not in CODE_BYTES:
            raise ConfigError(
                f"--code-bytes {self.code_bytes}: must be one of "
                f"{', '.join(map(str, CODE_BYTES))}"
            )
        if self.store not in STORES:
            raise ConfigError(
                f"--store {self.store}: must be one of {', '.join(STORES)}"
            )
        if self.features_per_keyframe < 16:
            raise ConfigError(
                f"--features-per-keyframe {self.features_per_keyframe}: must be at "
                "least 16"
            )
        if self.store == "features" and (self.budget_bytes is not None or self.curve):
            raise ConfigError(
                "--store features: has no landmarks for --budget-mb or --report to "
                "choose from; give --features-per-keyframe"
            )
        if self.budget_bytes is not None and self.budget_bytes < 1:
            raise ConfigError(f"a budget of {self.budget_bytes} bytes holds nothing")
        if self.ranking not in RANKINGS:
            raise ConfigError(
                f"ranking {self.ranking!r} is unknown, expected {', '.join(RANKINGS)}"
            )

    @property
    def is_cut(self) -> bool:
        """Whether less than the whole map is asked for, or measured."""
        return self.budget_bytes is not None or self.curve

    @property
    def keeps_landmarks(self) -> bool:
        """Whether the site has 3D points."""
        return self.store != "features"

    @property
    def keeps_features(self) -> bool:
        """Whether the site has features of its keyframes."""
        return self.store != "landmarks"
