"""A model ready for images: manifest, preprocessing and backend in one."""

from __future__ import annotations

from pathlib import Path

from edgeloc.errors import ModelError
from edgeloc.inference.backend import (
    Backend,
    BackendOptions,
    all_finite,
    open_backend,
)
from edgeloc.inference.manifest import Model, ModelManifest, load_model
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
        spec = self.manifest.input
        prepared = preprocess(image, spec)
        raw = self._backend.run({spec.name: prepared.tensor})
        outputs = {key: raw[name] for key, name in self.manifest.outputs.items()}
        for key, output in outputs.items():
            if not all_finite(output):
                raise ModelError(
                    f"{self._model.network_path}: output "
                    f"{self.manifest.outputs[key]!r} has NaN or infinite values for a "
                    f"{image.shape[1]}x{image.shape[0]} image; is its precision "
                    f"({self.manifest.precision}) enough?"
                )
        return outputs, prepared


def open_network(
    manifest_path: Path, *, role: str, options: BackendOptions | None = None
) -> Network:
    """Return a model that is ready to run.

    Parameters
    ----------
    manifest_path : Path
        Its manifest.
    role : {"features", "retrieval"}
        What it has to be for.
    options : BackendOptions
        Where it runs.

    Raises
    ------
    ConfigError
        When there is no such manifest.
    ModelError
        When it cannot be used.
    """
    model = load_model(manifest_path)
    if model.manifest.role != role:
        raise ModelError(
            f"{manifest_path}: role is {model.manifest.role!r}, expected {role!r}"
        )
    return Network(model, open_backend(model, options or BackendOptions()))
