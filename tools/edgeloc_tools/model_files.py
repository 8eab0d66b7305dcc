"""Models on disk: an ONNX file and its manifest, written together."""

from __future__ import annotations

from pathlib import Path

from edgeloc.inference.manifest import ModelManifest, encode_manifest, with_file
from edgeloc_tools.files import write_atomically


def write_model(folder: Path, manifest: ModelManifest, network: bytes) -> Path:
    """Write NAME.onnx and NAME.json; return the path of the manifest.

    Parameters
    ----------
    folder : Path
        Made when it is not there.
    manifest : ModelManifest
        Its `file` and `sha256` are replaced by those of what is written.
    network : bytes
        The ONNX file.

    Raises
    ------
    ModelError
        When the manifest would not be accepted again; nothing is written then.
    """
    manifest = with_file(manifest, f"{manifest.name}.onnx", network)
    text = encode_manifest(manifest)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / manifest.file, network)
    path = folder / f"{manifest.name}.json"
    write_atomically(path, text)
    return path
