"""What structure from motion is to do: options, cameras and pairs of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeloc.errors import ConfigError, DatasetError
from edgeloc.types import CAMERA_MODEL_NUM_PARAMS, CameraModel
from edgeloc_tools.datasets.recording import Recording
from edgeloc_tools.mapping.sfm_colmap import CameraGroup
from edgeloc_tools.mapping.sfm_world import DistanceConstraint, GravityPrior


def _one_of(value: str, name: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}: {value!r} is not one of {', '.join(choices)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SfmOptions:
    """How to make a model.

    Parameters
    ----------
    camera_model : str
        What to estimate for cameras without known intrinsics.
    intrinsics : CameraModel or None
        Known intrinsics of all images.
    cameras : {"auto", "single", "per-image"}
        Which images without known intrinsics share a camera: those of one size, camera
        id and EXIF focal length; all; none.
    refine_intrinsics : bool
        Refine known intrinsics too.
    max_keypoints : int
        SIFT features per image.
    max_side_px : int
        Images are scaled down for features so that no side is longer.
    matching : {"auto", "exhaustive", "sequential"}
        All pairs; neighbours and those 2^k images apart (videos); auto takes all pairs
        up to `exhaustive_up_to` images.
    exhaustive_up_to : int
        See `matching`.
    overlap : int
        Neighbours in sequential matching.
    mapper : {"incremental", "global"}
        COLMAP's mapper.
    distances : tuple of DistanceConstraint
        Measured distances between camera centres, m.
    gravity : GravityPrior or None
        Known gravity.
    align_to : {"auto", "poses", "gnss", "none"}
        See `sfm_world.place`.
    estimate_gravity : bool
        Guess gravity from upright pictures when nothing tells it.
    num_threads : int
        -1 = all; with 1 the result repeats exactly.
    random_seed : int
        Of COLMAP and RANSAC.
    resume : bool
        Go on where an earlier run stopped.
    copy_images : bool
        Copy images to OUT instead of linking them.
    """

    camera_model: str = "SIMPLE_RADIAL"
    intrinsics: CameraModel | None = None
    cameras: str = "auto"
    refine_intrinsics: bool = False
    max_keypoints: int = 4096
    max_side_px: int = 1600
    matching: str = "auto"
    exhaustive_up_to: int = 150
    overlap: int = 10
    mapper: str = "incremental"
    distances: tuple[DistanceConstraint, ...] = ()
    gravity: GravityPrior | None = None
    align_to: str = "auto"
    estimate_gravity: bool = True
    num_threads: int = -1
    random_seed: int = 0
    resume: bool = True
    copy_images: bool = False

    def __post_init__(self) -> None:
        _one_of(self.camera_model, "--camera-model", tuple(CAMERA_MODEL_NUM_PARAMS))
        _one_of(self.cameras, "--cameras", ("auto", "single", "per-image"))
        _one_of(self.matching, "--matching", ("auto", "exhaustive", "sequential"))
        _one_of(self.mapper, "--mapper", ("incremental", "global"))
        _one_of(self.align_to, "--align-to", ("auto", "poses", "gnss", "none"))
        for name in ("max_keypoints", "max_side_px", "overlap", "exhaustive_up_to"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"--{name.replace('_', '-')}: {getattr(self, name)} must be > 0"
                )
        if self.num_threads == 0 or self.num_threads < -1:
            raise ConfigError(f"--threads: {self.num_threads} must be -1 or > 0")


def camera_groups(
    recording: Recording,
    options: SfmOptions,
    sizes: Mapping[str, Sequence[int]],
    exif_focal: Mapping[str, float | None],
) -> list[CameraGroup]:
    """Return which images share a camera, and what is known of it.

    Parameters
    ----------
    recording : Recording
        The images; a camera in `recording.cameras` is known.
    options : SfmOptions
        `intrinsics`, `cameras` and `camera_model` count.
    sizes : mapping of str to (int, int)
        Width and height of each image, px.
    exif_focal : mapping of str to float or None
        Focal length in EXIF, in units of the longer side.

    Raises
    ------
    DatasetError
        When a known camera has another size than its images.
    """
    names: dict[tuple[object, ...], list[str]] = {}
    known: dict[tuple[object, ...], CameraModel | None] = {}
    for image in recording.images:
        width, height = sizes[image.name]
        camera = options.intrinsics or recording.cameras.get(image.camera_id)
        if camera is not None and (camera.width, camera.height) != (width, height):
            raise DatasetError(
                f"{image.name}: is {width}x{height}, but its intrinsics are for "
                f"{camera.width}x{camera.height}; scale them or leave them out"
            )
        focal = exif_focal.get(image.name)
        rounded = None if focal is None else round(focal, 4)
        key: tuple[object, ...]
        if camera is not None:
            key = ("known", "" if options.intrinsics else image.camera_id)
        elif options.cameras == "per-image":
            key = ("own", image.name, rounded)
        elif options.cameras == "single":
            key = ("single", width, height)
        else:
            key = ("auto", image.camera_id, width, height, rounded)
        names.setdefault(key, []).append(image.name)
        known[key] = camera
    if options.cameras == "single" and len([k for k in names if k[0] == "single"]) > 1:
        found = sorted({f"{k[1]}x{k[2]}" for k in names if k[0] == "single"})
        raise DatasetError(
            f"--intrinsics single-camera: the images have {len(found)} sizes "
            f"({', '.join(found[:4])}); use --intrinsics auto"
        )
    out = []
    for key, members in names.items():
        focal = exif_focal.get(members[0])
        out.append(
            CameraGroup(
                names=tuple(members),
                camera=known[key],
                model=options.camera_model,
                focal_factor=focal if focal is not None else 1.2,
            )
        )
    return out


def image_pairs(
    names: Sequence[str], *, matching: str, overlap: int, exhaustive_up_to: int
) -> tuple[str, list[tuple[str, str]]]:
    """Return (how, the pairs of images to match).

    Sequential pairs are the next `overlap` images and those 2^k apart for all k, which
    finds loops without any retrieval: every 2^k-th image of a revisit is tried.

    Parameters
    ----------
    names : sequence of str
        In time order for sequential matching.
    matching : {"auto", "exhaustive", "sequential"}
        Which.
    overlap : int
        Neighbours in sequential matching.
    exhaustive_up_to : int
        Most images for which auto tries all pairs.
    """
    n = len(names)
    if matching == "auto":
        matching = "exhaustive" if n <= exhaustive_up_to else "sequential"
    if matching == "exhaustive":
        steps = list(range(1, n))
    else:
        doubling = {2**k for k in range(max(1, n).bit_length())}
        steps = sorted(s for s in {*range(1, overlap + 1), *doubling} if s < n)
    # By first image, so that descriptors stay in COLMAP's cache.
    pairs = [(names[i], names[i + s]) for i in range(n) for s in steps if i + s < n]
    return matching, pairs
