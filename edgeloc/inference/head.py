"""Heads: small networks of one site, behind its feature family."""

from __future__ import annotations

from pathlib import Path

from edgeloc.inference.backend import Backend, BackendOptions, open_backend
from edgeloc.inference.manifest import HeadSpec, Model, ModelManifest, load_model_for
from edgeloc.inference.network import finite_outputs
from edgeloc.types import Float32Array


class Head:
    """Runs a head on descriptors.

    Parameters
    ----------
    model : Model
        Its files.
    backend : Backend
        What runs it.
    spec : HeadSpec
        What goes in.
    """

    def __init__(self, model: Model, backend: Backend, spec: HeadSpec) -> None:
        self._model = model
        self._backend = backend
        self.spec = spec

    @property
    def manifest(self) -> ModelManifest:
        """What the model's manifest says."""
        return self._model.manifest

    @property
    def path(self) -> Path:
        """Its manifest."""
        return self._model.manifest_path

    def describe(self) -> str:
        """Return the model and where it runs, for people."""
        return f"{self.manifest.name} on {self._backend.describe()}"

    def run(self, tensor: Float32Array) -> dict[str, Float32Array]:
        """Return the outputs by what the decoder calls them.

        Parameters
        ----------
        tensor : ndarray of shape (1, C, H, W), float32
            As `HeadSpec` says.

        Raises
        ------
        ModelError
            When the network fails or gives NaN or infinity.
        """
        raw = self._backend.run({self.manifest.input.name: tensor})
        what = f"descriptors of shape {tensor.shape}"
        return finite_outputs(self._model, raw, what=what)


def open_head(
    manifest_path: Path, *, role: str, options: BackendOptions | None = None
) -> Head:
    """Return a head that is ready to run.

    Parameters
    ----------
    manifest_path : Path
        Its manifest.
    role : {"scene_coords", "regress"}
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
    model = load_model_for(role, manifest_path)
    head = model.manifest.head
    assert head is not None  # manifests of these roles have one
    return Head(model, open_backend(model, options or BackendOptions()), head)
