"""The one way to open a recording, whatever its format."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgeloc.errors import ConfigError
from edgeloc.types import CameraModel
from edgeloc_tools.datasets.colmap import read_colmap
from edgeloc_tools.datasets.folder import read_folder
from edgeloc_tools.datasets.hloc import read_hloc
from edgeloc_tools.datasets.kapture import read_kapture
from edgeloc_tools.datasets.nerfstudio import read_nerfstudio
from edgeloc_tools.datasets.recording import Recording
from edgeloc_tools.datasets.request import ReadRequest
from edgeloc_tools.datasets.sevenscenes import read_sevenscenes
from edgeloc_tools.datasets.textfile import shown
from edgeloc_tools.datasets.tum import read_tum
from edgeloc_tools.datasets.video import read_video


@dataclass(frozen=True, slots=True)
class _Format:
    read: Callable[[ReadRequest], Recording]
    options: frozenset[str] = frozenset()


_FORMATS: Mapping[str, _Format] = {
    "kapture": _Format(read_kapture, frozenset({"images"})),
    "colmap": _Format(read_colmap, frozenset({"images"})),
    "hloc": _Format(read_hloc, frozenset({"images", "poses"})),
    "7scenes": _Format(read_sevenscenes, frozenset({"poses", "split"})),
    "tum": _Format(read_tum),
    "nerfstudio": _Format(read_nerfstudio, frozenset({"images", "split"})),
    "folder": _Format(read_folder),
    "video": _Format(read_video),
}
FORMATS: tuple[str, ...] = tuple(_FORMATS)
"""Names of the formats, in the order of the command line's help."""

_FRAMES = re.compile(r"\s*(-?\d+)?\s*:\s*(-?\d+)?\s*(?::\s*(-?\d+)?\s*)?")


def open_recording(
    *,
    format: str,
    input: Path,
    images: Path | None = None,
    poses: Path | None = None,
    split: str | None = None,
    cameras: CameraModel | Mapping[str, CameraModel] | None = None,
    metric: bool | None = None,
) -> Recording:
    """Return a recording; images are read later, all else now.

    Parameters
    ----------
    format : str
        One of `FORMATS`.
    input : Path
        Folder or file, see the format's reader.
    images : Path, optional
        Folder of the images when they are not where the format has them (kapture,
        colmap, hloc, nerfstudio).
    poses : Path, optional
        File of poses instead of the recording's own (hloc, 7scenes).
    split : str, optional
        Part of the recording (7scenes, nerfstudio); all of it by default.
    cameras : CameraModel or mapping of str to CameraModel, optional
        Intrinsics for all images, or by camera id, instead of the recording's own.
    metric : bool, optional
        Whether the world's unit is the metre, where the caller knows better.

    Returns
    -------
    Recording

    Raises
    ------
    ConfigError
        When the format is unknown or does not take an option.
    DatasetError
        When the recording is wrong or partial.
    """
    if format not in _FORMATS:
        raise ConfigError(
            f"--format {shown(format)} is unknown, expected {', '.join(FORMATS)}"
        )
    given = {"images": images, "poses": poses, "split": split}
    for option, value in given.items():
        if value is not None and option not in _FORMATS[format].options:
            takers = ", ".join(k for k, v in _FORMATS.items() if option in v.options)
            raise ConfigError(
                f"--{option} is not an option of --format {format}, only of {takers}"
            )
    recording = _FORMATS[format].read(
        ReadRequest(
            input=Path(input), images=images, poses=poses, split=split, cameras=cameras
        )
    )
    if isinstance(cameras, Mapping):
        used = {image.camera_id for image in recording.images}
        for camera_id in cameras:
            if camera_id not in used:
                raise ConfigError(
                    f"{input}: has no camera {shown(camera_id)} to give intrinsics to, "
                    f"only {', '.join(sorted(used))}"
                )
    return recording if metric is None else replace(recording, metric=metric)


def open_named(text: str, *, option: str) -> Recording:
    """Return the recording that FORMAT:DIR or FORMAT:DIR#SPLIT names.

    Parameters
    ----------
    text : str
        The name.
    option : str
        Of the command line, for messages.

    Raises
    ------
    ConfigError
        When it is no such name.
    DatasetError
        As `open_recording`.
    """
    kind, colon, where = text.partition(":")
    folder, _, split = where.partition("#")
    if not colon or kind not in FORMATS or not folder:
        raise ConfigError(
            f"{option} {text}: must be FORMAT:DIR or FORMAT:DIR#SPLIT, of "
            f"{', '.join(FORMATS)}"
        )
    return open_recording(format=kind, input=Path(folder), split=split or None)


def select_frames(
    recording: Recording, *, stride: int = 1, frames: str | None = None
) -> Recording:
    """Return a part of a recording.

    Parameters
    ----------
    recording : Recording
        All of it.
    stride : int
        Keep every n-th image of those that `frames` selects.
    frames : str, optional
        START:STOP or START:STOP:STEP, as in a Python slice: STOP is not included, each
        may be left out, negative ones count from the end; STEP > 0.

    Returns
    -------
    Recording

    Raises
    ------
    ConfigError
        When the text is wrong or no image is left.
    """
    if stride < 1:
        raise ConfigError(f"--stride {stride} must be at least 1")
    chosen = list(recording.images)
    if frames is not None:
        match = _FRAMES.fullmatch(frames)
        if match is None:
            raise ConfigError(
                f"--frames {shown(frames)} is not START:STOP[:STEP], such as 0:600:5"
            )
        start, stop, step = (None if g is None else int(g) for g in match.groups())
        if step is not None and step < 1:
            raise ConfigError(f"--frames {shown(frames)}: STEP must be at least 1")
        chosen = chosen[slice(start, stop, step)]
    chosen = chosen[::stride]
    if not chosen:
        raise ConfigError(
            f"--frames {shown(frames or '')} selects none of the "
            f"{len(recording.images)} images of {recording.name}"
        )
    return recording.subset(chosen)
