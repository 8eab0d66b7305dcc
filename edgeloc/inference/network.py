"""A model ready for images: manifest, preprocessing and backend in one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgeloc.errors import ModelError
from edgeloc.inference.backend import (
    Backend,
    BackendOptions,
    Pending,
    all_finite,
    open_backend,
)
from edgeloc.inference.manifest import Model, ModelManifest, load_model_for
from edgeloc.inference.preprocess import NetworkInput, preprocess
from edgeloc.types import ByteArray, Float32Array


class Network:
    """Runs a model on images.

    Parameters
    ----------
    model : Model
        Its files.
    backend : Backend
        What runs it.
    """

    def __init__(self, model: Model, backend: Backend) -> None:
        self._model = model
        self._backend = backend

    @property
    def manifest(self) -> ModelManifest:
        """What the model's manifest says."""
        return self._model.manifest

    @property
    def model(self) -> Model:
        """The model's files."""
        return self._model

    def describe(self) -> str:
        """Return the model and where it runs, for people."""
        return f"{self.manifest.name} on {self._backend.describe()}"

    @property
    def asynchronous(self) -> bool:
        """Whether `submit` returns before the work is done."""
        return self._backend.asynchronous

    def run(self, image: ByteArray) -> tuple[dict[str, Float32Array], NetworkInput]:
        """Return the outputs by what the decoder calls them, and what went in.

        Parameters
        ----------
        image : ndarray of shape (H, W) or (H, W, 3), uint8
            Grey or BGR.

        Raises
        ------
        ModelError
            When the network fails or gives NaN or infinity.
        """
        return self.submit(image).collect()

    def submit(self, image: ByteArray) -> Submitted:
        """Begin with an image; `Submitted.collect` returns what `run` would.

        Raises
        ------
        ModelError
            When the network fails.
        """
        spec = self.manifest.input
        prepared = preprocess(image, spec)
        pending = self._backend.submit({spec.name: prepared.tensor})
        return Submitted(self, pending, prepared, image.shape[:2])


class Submitted:
    """An image that a network works on.

    Parameters
    ----------
    network : Network
        Which.
    pending : Pending
        Of its backend.
    prepared : NetworkInput
        What went in.
    image_size : tuple of int
        Height and width of the image.
    """

    def __init__(
        self,
        network: Network,
        pending: Pending,
        prepared: NetworkInput,
        image_size: tuple[int, ...],
    ) -> None:
        self._network = network
        self._pending = pending
        self._prepared = prepared
        self._image_size = image_size

    def collect(self) -> tuple[dict[str, Float32Array], NetworkInput]:
        """Wait for the outputs and return them; see `Network.run`."""
        raw = self._pending.collect()
        height, width = self._image_size
        what = f"a {width}x{height} image"
        return finite_outputs(self._network.model, raw, what=what), self._prepared


def finite_outputs(
    model: Model, raw: Mapping[str, Float32Array], *, what: str
) -> dict[str, Float32Array]:
    """Return the outputs of a network by what its decoder calls them.

    Parameters
    ----------
    model : Model
        Whose outputs.
    raw : mapping of str to ndarray
        By the names in the network.
    what : str
        It was given, for the message.

    Raises
    ------
    ModelError
        When one has NaN or infinity.
    """
    manifest = model.manifest
    outputs = {key: raw[name] for key, name in manifest.outputs.items()}
    for key, output in outputs.items():
        if not all_finite(output):
            raise ModelError(
                f"{model.network_path}: output {manifest.outputs[key]!r} has NaN or "
                f"infinite values for {what}; is its precision "
                f"({manifest.precision}) enough?"
            )
    return outputs


def open_network(
    manifest_path: Path, *, role: str, options: BackendOptions | None = None
) -> Network:
    """Return a model that is ready to run.

    Parameters
    ----------
    manifest_path : Path
        Its manifest.
    role : str
        What it has to be for, one of `edgeloc.inference.manifest.ROLES`.
    options : BackendOptions
        Where it runs.

    Raises
    ------
    ConfigError
        When there is no such manifest.
    ModelError
        When it cannot be used.
    """
    model = load_model_for(role, manifest_path)
    return Network(model, open_backend(model, options or BackendOptions()))
