"""What is compared, and what was measured of it before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2

import edgeloc
from edgeloc.features.classical import CLASSICAL
from edgeloc.features.family import FeatureFamily
from edgeloc.features.learned import LearnedFamily, LearnedRetrieval
from edgeloc.features.registry import EDGELOC, open_family, open_retrieval
from edgeloc.inference.manifest import shipped_model
from edgeloc_tools.files import write_atomically


def _names(names: str | None, role: str, others: list[str]) -> list[str]:
    if names is None:
        return others if shipped_model(role) is None else [*others, EDGELOC]
    return [name.strip() for name in names.split(",") if name.strip()]


def open_families(names: str | None) -> list[FeatureFamily]:
    """Return feature families by name.

    Parameters
    ----------
    names : str or None
        As for `open_family`, by comma; None = those without a network, and the shipped
        one when there is one.
    """
    return [open_family(name) for name in _names(names, "features", list(CLASSICAL))]


def open_retrievals(names: str | None) -> list[LearnedRetrieval]:
    """Return retrieval networks by name.

    Parameters
    ----------
    names : str or None
        "edgeloc" or paths of manifests, by comma; None = the shipped one when there is
        one.
    """
    networks = [open_retrieval(name) for name in _names(names, "retrieval", [])]
    return [network for network in networks if network is not None]


def fingerprint(measured: FeatureFamily | LearnedRetrieval) -> str:
    """Return a text that changes when the answers of a family or network may change.

    It holds the model's digest and that of the code that prepares, decodes and matches.
    """
    modules = ["features/extract.py", "features/match.py", "features/retrieve.py"]
    facts: list[object] = []
    if isinstance(measured, LearnedFamily | LearnedRetrieval):
        manifest = measured.network.manifest
        facts += [manifest.name, manifest.sha256, manifest.match_ratio]
        modules += ["features/decode.py", "features/learned.py"]
        modules += ["inference/preprocess.py"]
    else:
        facts += [measured.name, measured.match_ratio, cv2.__version__]
        modules += ["features/classical.py"]
    package = Path(edgeloc.__file__).parent
    digest = hashlib.sha256()
    for module in modules:
        digest.update((package / module).read_bytes())
    return json.dumps([*facts, digest.hexdigest()])


def cached(
    path: Path, *, key: str, make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return what was measured before with the same key, else measure and keep it.

    Parameters
    ----------
    path : Path
        JSON file.
    key : str
        Settings and model.
    make : callable
        Measures; what it returns has to survive JSON.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        # A broken file, too, is only a measurement to repeat.
        stored = {}
    if stored.get("key") == key and isinstance(stored.get("value"), dict):
        return dict(stored["value"])
    value = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"key": key, "value": value}, indent=1).encode())
    return value
