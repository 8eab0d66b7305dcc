"""Keeping features off people, cars and the vehicle itself while a map is made."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from edgeloc.errors import ConfigError, DatasetError
from edgeloc.features.mask import (
    DEFAULT_MARGIN_PX,
    joined,
    load_static_mask,
    with_margin,
)
from edgeloc.features.segment import Segmenter
from edgeloc.types import ByteArray
from edgeloc_tools.datasets.recording import RecordedImage, Recording

_log = logging.getLogger(__name__)

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp")


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskSources:
    """What is ignored in the images of a recording, besides its own masks.

    Parameters
    ----------
    folder : Path or None
        Of masks named like the images, with ``.png`` behind it (as COLMAP has them) or
        another ending in place of the image's; 0 = ignore.
    hood : str or None
        Mask of every image, see `edgeloc.features.mask.load_static_mask`; polygons may
        differ by camera.
    segmenter : Segmenter or None
        Finds what moves.
    margin_px : int
        Around all that is ignored.
    """

    folder: Path | None = None
    hood: str | None = None
    segmenter: Segmenter | None = None
    margin_px: int = DEFAULT_MARGIN_PX

    def static_mask(self, camera_id: str, size: tuple[int, int]) -> ByteArray | None:
        """Return the mask of every image of a camera.

        Parameters
        ----------
        camera_id : str
            Whose polygons are taken.
        size : (int, int)
            Width and height of its images, px.

        Raises
        ------
        ConfigError
            When it is none for this camera.
        """
        if self.hood is None:
            return None
        return load_static_mask(self.hood, size=size, camera_id=camera_id)

    def file_of(self, name: str) -> Path | None:
        """Return the mask file of an image; None when it has none."""
        if self.folder is None:
            return None
        plain = self.folder / name
        paths = [self.folder / f"{name}.png", *map(plain.with_suffix, _ENDINGS)]
        return next((path for path in paths if path.is_file()), None)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaskedImage(RecordedImage):
    """An image with more masks than its recording gave it.

    Parameters
    ----------
    image : RecordedImage
        As it was.
    static : ndarray of shape (H, W), uint8, or None
        Of all images of its camera.
    segmenter : Segmenter or None
        Finds what moves.
    margin_px : int
        Around all that is ignored.
    """

    image: RecordedImage
    static: ByteArray | None
    segmenter: Segmenter | None
    margin_px: int

    def read_mask(self) -> ByteArray | None:
        """Return the mask, (H, W) uint8, or None when nothing is ignored."""
        own = self.image.read_mask()
        file = None
        if self.mask_path != self.image.mask_path:
            file = RecordedImage.read_mask(self)
        moving = None
        if self.segmenter is not None:
            moving = self.segmenter.keep_mask(self.source.read())
        parts = [part for part in (own, file, self.static, moving) if part is not None]
        if any(part.shape != parts[0].shape for part in parts):
            sizes = ", ".join(f"{part.shape[1]}x{part.shape[0]}" for part in parts)
            raise DatasetError(
                f"{self.name}: its masks are {sizes} px; make them the same size"
            )
        mask = joined(*parts)
        return None if mask is None else with_margin(mask, self.margin_px)

    def mask_key(self) -> list[object]:
        """Return what changes when the mask does."""
        return [
            *self.image.mask_key(),
            *RecordedImage.mask_key(self),
            None if self.static is None else _digest(self.static),
            *_network_key(self.segmenter),
            self.margin_px,
        ]


def _digest(mask: ByteArray) -> str:
    return hashlib.sha256(mask.tobytes()).hexdigest()


def _network_key(segmenter: Segmenter | None) -> list[object]:
    if segmenter is None:
        return []
    return [segmenter.network.manifest.sha256, *segmenter.ignored]


def _size(image: RecordedImage, recording: Recording) -> tuple[int, int]:
    """Return width and height; of a camera that is not known yet, as in its file."""
    camera = recording.cameras.get(image.camera_id)
    if camera is not None:
        return camera.width, camera.height
    height, width = image.source.read().shape[:2]
    return width, height


def mask_recording(recording: Recording, masks: MaskSources) -> Recording:
    """Return a recording whose images have these masks, too.

    Raises
    ------
    ConfigError
        When a mask cannot be read, or the folder has none of any image.
    """
    folder = masks.folder
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--masks {folder}: is no folder")

    static = cache(masks.static_mask)

    images, num_files = [], 0
    for image in recording.images:
        file = masks.file_of(image.name)
        num_files += file is not None
        known: Mapping[str, Any] = {
            field.name: getattr(image, field.name) for field in fields(RecordedImage)
        }
        images.append(
            MaskedImage(
                **{**known, "mask_path": file or image.mask_path},
                image=image,
                static=None
                if masks.hood is None
                else static(image.camera_id, _size(image, recording)),
                segmenter=masks.segmenter,
                margin_px=masks.margin_px,
            )
        )
    if folder is not None and num_files == 0:
        raise ConfigError(
            f"--masks {folder}: has no mask of any image; the mask of "
            f"{images[0].name} would be {images[0].name}.png"
        )
    if folder is not None and num_files < len(images):
        _log.warning(
            "--masks %s: %d of %d images have no mask",
            folder,
            len(images) - num_files,
            len(images),
        )
    return replace(recording, images=tuple(images))
