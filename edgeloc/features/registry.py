"""Feature families and retrieval by the names of the command line."""

from __future__ import annotations

from pathlib import Path

from edgeloc.errors import ConfigError
from edgeloc.features.classical import CLASSICAL
from edgeloc.features.family import FeatureFamily
from edgeloc.features.learned import LearnedFamily, LearnedRetrieval
from edgeloc.inference.backend import BackendOptions
from edgeloc.inference.manifest import shipped_model
from edgeloc.inference.network import open_network

EDGELOC = "edgeloc"
"""The name of this edgeloc's own models."""
VLAD = "vlad"
AUTO = "auto"


def find_model(name: str, role: str, *, others: tuple[str, ...]) -> Path:
    """Return the manifest that a name stands for.

    Parameters
    ----------
    name : str
        "edgeloc" or the path of a manifest.
    role : {"features", "retrieval"}
        What the model is for.
    others : tuple of str
        Names that need no model, for the message.

    Raises
    ------
    ConfigError
        When it is neither, or this edgeloc ships no such model.
    """
    what = {"features": "feature family", "retrieval": "retrieval"}[role]
    if name == EDGELOC:
        shipped = shipped_model(role)
        if shipped is None:
            raise ConfigError(
                f"{what} {name!r}: this installation has no {role} model; use "
                f"{', '.join(others)} or the path of a model manifest"
            )
        return shipped
    if not name.endswith(".json"):
        raise ConfigError(
            f"{what} {name!r} is unknown, expected {', '.join((*others, EDGELOC))} or "
            "the path of a model manifest (.json)"
        )
    return Path(name)


def open_family(name: str, *, options: BackendOptions | None = None) -> FeatureFamily:
    """Return a feature family.

    Parameters
    ----------
    name : str
        "orb", "sift", "edgeloc" or the path of a model manifest.
    options : BackendOptions
        Where a network runs.

    Raises
    ------
    ConfigError
        When there is none of that name.
    ModelError
        When the model cannot be used.
    """
    if name in CLASSICAL:
        return CLASSICAL[name]()
    manifest_path = find_model(name, "features", others=tuple(CLASSICAL))
    return LearnedFamily(open_network(manifest_path, role="features", options=options))


def open_retrieval(
    name: str, *, features: str = EDGELOC, options: BackendOptions | None = None
) -> LearnedRetrieval | None:
    """Return a retrieval network, or None for VLAD, which is trained per site.

    Parameters
    ----------
    name : str
        "vlad", "edgeloc", the path of a model manifest, or "auto": this edgeloc's own
        model if it ships one and the features are a network's too, else VLAD, so that
        sites of ORB and SIFT need no network at all.
    features : str
        The feature family that "auto" goes by.
    options : BackendOptions
        Where a network runs.

    Raises
    ------
    ConfigError
        When there is none of that name.
    ModelError
        When the model cannot be used.
    """
    if name == AUTO:
        without = features in CLASSICAL or shipped_model("retrieval") is None
        name = VLAD if without else EDGELOC
    if name == VLAD:
        return None
    path = find_model(name, "retrieval", others=(AUTO, VLAD))
    return LearnedRetrieval(open_network(path, role="retrieval", options=options))
