"""Variants of a network, ready to run, through the device's own code."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import onnx

from edgeloc.inference.backend import Backend
from edgeloc.inference.manifest import Model, ModelManifest, with_file
from edgeloc.inference.network import Network
from edgeloc.inference.ort import OrtBackend
from edgeloc_tools.files import write_atomically
from edgeloc_tools.learn.graph import to_bytes
from edgeloc_tools.model_files import write_model

_TRIAL = "trial"


def variant_manifest(
    manifest: ModelManifest, data: bytes, *, precision: str, flavour: str
) -> ModelManifest:
    """Return the manifest of a variant of a network.

    Parameters
    ----------
    manifest : ModelManifest
        Of the float32 network.
    data : bytes
        ONNX file of the variant.
    precision : {"fp32", "fp16", "int8"}
        Of the variant.
    flavour : {"any", "cpu", "tensorrt"}
        Of the variant; part of the name unless "any".
    """
    suffix = precision if flavour == "any" else f"{precision}-{flavour}"
    name = f"{manifest.name.removesuffix('-fp32')}-{suffix}"
    renamed = replace(manifest, name=name, precision=precision, flavour=flavour)
    return with_file(renamed, f"{name}.onnx", data)


class Workbench:
    """Opens trial networks, whatever their flavour, on this machine's processor.

    Parameters
    ----------
    manifest : ModelManifest
        Of the float32 network; trials are called like it.
    folder : Path
        For the trials' files; one at a time.
    """

    def __init__(self, manifest: ModelManifest, folder: Path) -> None:
        self._manifest = manifest
        self._folder = folder

    def open(self, model: onnx.ModelProto | bytes) -> Network:
        """Return a network that is ready to run.

        Parameters
        ----------
        model : ModelProto or bytes
            The variant.
        """
        data = model if isinstance(model, bytes) else to_bytes(model)
        manifest = with_file(
            replace(self._manifest, name=_TRIAL), f"{_TRIAL}.onnx", data
        )
        path = write_model(self._folder, manifest, data)
        return Network(
            Model(
                manifest=manifest,
                manifest_path=path,
                network_path=self._folder / manifest.file,
            ),
            self.open_backend(data),
        )

    def open_backend(self, data: bytes, *, threads: int = 1) -> Backend:
        """Return what runs a network.

        Not `edgeloc.inference.backend.open_backend`: it rightly refuses to run
        TensorRT's flavour on a processor, where it is slow; here its numbers matter.

        Parameters
        ----------
        data : bytes
            ONNX file.
        threads : int
            Of the processor.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{_TRIAL}.onnx"
        write_atomically(path, data)
        return OrtBackend(path, "ort-cpu", threads=threads)


def digest(model: onnx.ModelProto) -> str:
    """Return the SHA-256 of a model's file."""
    return hashlib.sha256(to_bytes(model)).hexdigest()
