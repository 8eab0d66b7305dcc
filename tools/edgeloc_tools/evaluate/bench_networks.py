"""Networks against ORB and SIFT, in one run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from edgeloc.features.extract import extract_features
from edgeloc.features.learned import LearnedFamily, LearnedRetrieval
from edgeloc.features.registry import open_family
from edgeloc.inference.backend import BackendOptions
from edgeloc.inference.manifest import ModelManifest, load_manifest, shipped_manifests
from edgeloc.inference.network import open_network
from edgeloc.inference.ort import OrtBackend
from edgeloc.types import ByteArray
from edgeloc_tools.evaluate.timing import Kernel

ORB = "orb-1000"
"""What networks are compared with."""

NUM_KEYPOINTS = 1000
AND_FEATURES = f" and {NUM_KEYPOINTS} features"
"""What follows "network" where the decoder is timed, too."""

THIN = "XFeat-shaped network, random weights: network"


def shipped_networks(
    paths: Sequence[Path] | None = None,
) -> list[tuple[Path, ModelManifest]]:
    """Return the models that run on a CPU, with their manifests.

    Parameters
    ----------
    paths : sequence of Path, optional
        Manifests; those that this edgeloc ships by default.
    """
    found = shipped_manifests() if paths is None else paths
    models = [(path, load_manifest(path)) for path in found]
    return [(path, m) for path, m in models if m.flavour in {"any", "cpu"}]


def label(manifest: ModelManifest, what: str) -> str:
    """Return what a kernel of a model is called."""
    return f"{manifest.name} ({manifest.precision}): {what}"


def network_kernels(
    image: ByteArray,
    models: Sequence[tuple[Path, ModelManifest]],
    *,
    threads: int,
    thin: Path | None,
) -> dict[str, Kernel]:
    """Return ORB, SIFT and every network on an image.

    Parameters
    ----------
    image : ndarray of shape (H, W), uint8
        Grey.
    models : sequence of (Path, ModelManifest)
        From `shipped_networks`.
    threads : int
        Of each network; OpenCV's are set by the caller.
    thin : Path or None
        ONNX file from `thin_network`, when there is one.
    """
    kernels: dict[str, Kernel] = {}
    for name, count in (("orb", NUM_KEYPOINTS), ("sift", 2000)):
        kernels[f"{name}-{count}"] = partial(
            extract_features, image, open_family(name), max_keypoints=count
        )
    backend = BackendOptions(backend="ort-cpu", threads=threads)
    for path, manifest in models:
        network = open_network(path, role=manifest.role, options=backend)
        kernels[label(manifest, "network")] = partial(network.run, image)
        if manifest.role == "features":
            kernels[label(manifest, "network" + AND_FEATURES)] = partial(
                extract_features,
                image,
                LearnedFamily(network),
                max_keypoints=NUM_KEYPOINTS,
            )
        else:
            kernels[label(manifest, "network and vector")] = partial(
                LearnedRetrieval(network).global_descriptor,
                image,
                np.zeros((0, 1), np.float32),
            )
    if thin is not None:
        session = OrtBackend(thin, "ort-cpu", threads=threads)
        tensor = np.ascontiguousarray(image[None, None], np.float32)
        kernels[THIN] = partial(session.run, {session.input_names[0]: tensor})
    return kernels


def precision_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the kernels of the same model as INT8 and as FP32, by their labels.

    An INT8 model is called like the FP32 one that it was made of, and more:
    "NAME-int8 (int8): network" and "NAME (fp32): network".
    """
    pairs = []
    for int8 in names:
        name, found, what = int8.partition(" (int8): ")
        if not found:
            continue
        parents = [
            other
            for other in names
            if other.endswith(f" (fp32): {what}")
            and name.startswith(other.partition(" (fp32): ")[0])
        ]
        if parents:
            pairs.append((int8, max(parents, key=len)))
    return pairs
