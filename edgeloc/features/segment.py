"""What moves by itself in a picture, by any segmentation network."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np

from edgeloc.errors import ConfigError, ModelError
from edgeloc.inference.backend import BackendOptions
from edgeloc.inference.network import Network, open_network
from edgeloc.inference.preprocess import NetworkInput
from edgeloc.types import ByteArray, Float32Array

IGNORED_CLASSES = (
    *("person", "rider", "bicycle", "car", "motorcycle", "bus", "truck", "train"),
    *("boat", "bird", "cat", "dog", "horse", "sheep", "cow"),
)
"""Names, as the usual data sets have them, of what does not stay where it is."""


class Segmenter:
    """Masks out some classes.

    Parameters
    ----------
    network : Network
        Of the role "segmentation".
    ignore : collection of str
        Names of its classes.

    Raises
    ------
    ConfigError
        When it knows none of these classes.
    """

    def __init__(self, network: Network, ignore: Collection[str]) -> None:
        classes = network.manifest.classes
        unknown = sorted(set(ignore) - set(classes))
        if unknown:
            raise ConfigError(
                f"--ignore-classes {','.join(unknown)}: {network.manifest.name} knows "
                f"only {', '.join(classes)}"
            )
        self._network = network
        self._ignored = np.array([name in set(ignore) for name in classes])

    @property
    def network(self) -> Network:
        """What it runs."""
        return self._network

    @property
    def ignored(self) -> tuple[str, ...]:
        """The classes that are masked out."""
        classes = self._network.manifest.classes
        return tuple(n for n, out in zip(classes, self._ignored, strict=True) if out)

    def keep_mask(self, image: ByteArray) -> ByteArray:
        """Return 0 on the ignored classes, 255 elsewhere, (H, W) uint8.

        Parameters
        ----------
        image : ndarray of shape (H, W) or (H, W, 3), uint8
            Grey or BGR.

        Raises
        ------
        ModelError
            When the network fails, or gives something else than its manifest says.
        """
        outputs, prepared = self._network.run(image)
        class_ids = self._class_ids(outputs["classes"], prepared)
        if class_ids.size == 0 or class_ids.max() >= len(self._ignored):
            raise ModelError(
                f"{self._network.manifest.name}: gives class {int(class_ids.max())}, "
                f"its manifest has {len(self._ignored)} classes"
            )
        keep = np.where(self._ignored[class_ids], 0, 255).astype(np.uint8)
        height, width = image.shape[:2]
        return np.asarray(
            cv2.resize(keep, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8
        )

    def _class_ids(
        self, output: Float32Array, prepared: NetworkInput
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.intp]]:
        """Return the class of each cell that is image and not padding."""
        manifest = self._network.manifest
        if manifest.decoder == "class-logits":
            shape = (1, len(manifest.classes))
            if output.ndim != 4 or output.shape[:2] != shape:
                raise ModelError(
                    f"{manifest.name}: gives logits of shape {output.shape}, expected "
                    f"(1, {shape[1]}, H, W) for its {shape[1]} classes"
                )
            ids = np.argmax(output[0], axis=0)
        else:
            if output.ndim not in {3, 4} or any(n != 1 for n in output.shape[:-2]):
                raise ModelError(
                    f"{manifest.name}: gives classes of shape {output.shape}, expected "
                    "(1, H, W) or (1, 1, H, W)"
                )
            ids = output.reshape(output.shape[-2:]).astype(np.intp)
            if ids.size and ids.min() < 0:
                raise ModelError(f"{manifest.name}: gives class {int(ids.min())}")
        tensor_height, tensor_width = prepared.tensor.shape[2:]
        height = max(1, round(ids.shape[0] * prepared.height / tensor_height))
        width = max(1, round(ids.shape[1] * prepared.width / tensor_width))
        return np.asarray(ids[:height, :width])


def open_segmenter(
    manifest_path: Path,
    *,
    ignore: Collection[str] | None = None,
    options: BackendOptions | None = None,
) -> Segmenter:
    """Return a segmentation network that is ready to run.

    Parameters
    ----------
    manifest_path : Path
        Its manifest, of the role "segmentation".
    ignore : collection of str, optional
        Names of classes; by default those of `IGNORED_CLASSES` that it knows.
    options : BackendOptions
        Where it runs.

    Raises
    ------
    ConfigError
        When there is no such file, or it knows none of the classes.
    ModelError
        When it cannot be used.
    """
    network = open_network(manifest_path, role="segmentation", options=options)
    if ignore is None:
        ignore = [name for name in network.manifest.classes if name in IGNORED_CLASSES]
        if not ignore:
            raise ConfigError(
                f"{manifest_path}: none of its classes "
                f"({', '.join(network.manifest.classes)}) is known to move; name some "
                "with --ignore-classes"
            )
    return Segmenter(network, ignore)
