"""Variants of a model: the same network in other precisions and flavours.

`edgeloc-build quantize` names them after the float32 model, and a site carries one of
them. TensorRT wants another flavour than a CPU, so that one has to be found: beside the
site's own, or among the models that come with edgeloc, when one of those is the site's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from edgeloc.errors import ModelError
from edgeloc.inference.manifest import (
    Model,
    ModelManifest,
    load_manifest,
    load_model,
    shipped_manifests,
)

_SUFFIX = re.compile(r"-(fp32|fp16|int8)(-(cpu|tensorrt))?$")


def base_name(name: str) -> str:
    """Return the name that all variants of a model share."""
    return _SUFFIX.sub("", name)


def find_variant(model: Model, wanted: Sequence[tuple[str, str]]) -> Model | None:
    """Return the first variant of a model that is there.

    Parameters
    ----------
    model : Model
        One of the variants.
    wanted : sequence of (str, str)
        Precision and flavour, best first.

    Raises
    ------
    ModelError
        When it is there, but broken.
    """
    found = {(m.precision, m.flavour): path for path, m in _relatives(model)}
    found[model.manifest.precision, model.manifest.flavour] = model.manifest_path
    for precision, flavour in wanted:
        path = found.get((precision, flavour))
        if path is not None:
            return model if path == model.manifest_path else load_model(path)
    return None


def _relatives(model: Model) -> Iterator[tuple[Path, ModelManifest]]:
    """Yield the other variants that can be found; the nearest come last."""
    shipped = [(path, load_manifest(path)) for path in shipped_manifests()]
    # The name alone proves nothing: only a site with this very model has its variants.
    if any(m.sha256 == model.manifest.sha256 for _, m in shipped):
        yield from ((p, m) for p, m in shipped if is_variant(m, model.manifest))
    for path in sorted(model.manifest_path.parent.glob("*.json")):
        try:
            manifest = load_manifest(path)
        except ModelError:
            continue  # something else that is kept there
        if is_variant(manifest, model.manifest):
            yield path, manifest


def is_variant(one: ModelManifest, other: ModelManifest) -> bool:
    """Whether two manifests are of the same network but for its numbers."""
    return (
        base_name(one.name) == base_name(other.name)
        and replace(
            one,
            name=other.name,
            file=other.file,
            sha256=other.sha256,
            precision=other.precision,
            flavour=other.flavour,
            source=other.source,
            license=other.license,
        )
        == other
    )
