"""What a site was built with, opened again: its feature family and its retrieval."""

from __future__ import annotations

import numpy as np

from edgeloc.errors import MapError, MapModelMismatchError
from edgeloc.features.classical import CLASSICAL
from edgeloc.features.family import FeatureFamily
from edgeloc.features.keyframe_index import (
    InvertedLists,
    KeyframeIndex,
    global_decoder,
    global_quantizer,
)
from edgeloc.features.quantizer import ProductQuantizer
from edgeloc.features.registry import open_family, open_retrieval
from edgeloc.features.retrieve import Retrieval, VladModel
from edgeloc.inference.backend import BackendOptions
from edgeloc.localize.comparison import DecodeLandmarks
from edgeloc.tiles.reader import Site


def open_site_family(
    site: Site, *, options: BackendOptions | None = None
) -> FeatureFamily:
    """Return the feature family that a site was built with.

    Parameters
    ----------
    site : Site
        Opened site.
    options : BackendOptions
        Where its network runs.

    Raises
    ------
    MapModelMismatchError
        When that family is not known here, or is another than the map's descriptors.
    MapError
        When a model file of the site is missing or was changed.
    ModelError
        When the model cannot be used.
    """
    spec = site.manifest.family
    if "features" in site.manifest.models:
        family = open_family(str(site.model_manifest("features")), options=options)
    elif spec.name in CLASSICAL:
        family = open_family(spec.name)
    else:
        raise MapModelMismatchError(
            f"{site.path}: was built with the features {spec.name!r} and carries no "
            f"model for them; without one there are only {', '.join(CLASSICAL)}: build "
            "the site again"
        )
    made = (family.name, str(family.stored_dtype), family.stored_dim)
    wanted = (spec.name, spec.stored_dtype, spec.stored_dim)
    if spec.coding != "plain":
        # The tiles hold codes; `open_landmark_decoder` looks at those.
        made, wanted = (family.name, *wanted[1:]), wanted
    if made != wanted:
        raise MapModelMismatchError(
            f"{site.path}: holds {_text(wanted)} descriptors, its feature family makes "
            f"{_text(made)}; build it again"
        )
    return family


def _text(form: tuple[str, str, int]) -> str:
    name, dtype, dim = form
    return f"{name} {dtype}[{dim}]"


def open_site_retrieval(
    site: Site, *, options: BackendOptions | None = None
) -> Retrieval:
    """Return what a site's global descriptors were made with.

    Parameters
    ----------
    site : Site
        Opened site.
    options : BackendOptions
        Where its network runs.

    Raises
    ------
    MapModelMismatchError
        When it makes global descriptors of another size.
    MapError
        When it is missing or was changed.
    ModelError
        When the model cannot be used.
    """
    retrieval: Retrieval | None = None
    if "retrieval" in site.manifest.models:
        manifest_path = site.model_manifest("retrieval")
        retrieval = open_retrieval(str(manifest_path), options=options)
    if retrieval is None:
        try:
            retrieval = VladModel.from_arrays(site.retrieval_arrays)
        except ValueError as exc:
            raise MapError(f"{site.path}: {exc}; build the site again") from exc
    dim = open_keyframe_index(site).descriptors(np.zeros(1, np.int64)).shape[1]
    if retrieval.dim != dim:
        raise MapModelMismatchError(
            f"{site.path}: global descriptors have {dim} elements, the retrieval "
            f"model makes {retrieval.dim}; build the site again"
        )
    return retrieval


def open_keyframe_index(site: Site) -> KeyframeIndex:
    """Return the search over a site's keyframes.

    Parameters
    ----------
    site : Site
        Opened site.

    Raises
    ------
    MapError
        When what it needs is missing or wrong.
    """
    keyframes = site.keyframes
    manifest = site.manifest
    codebook = (
        site.codebook("global").arrays if "global" in manifest.codebooks else None
    )
    try:
        quantizer = global_quantizer(manifest.global_coding, codebook)
        decode = (
            global_decoder(manifest.global_coding, None)
            if quantizer is None
            else quantizer.decode
        )
        lists = InvertedLists.from_arrays(
            site.retrieval_arrays,
            num_keyframes=len(keyframes),
            dim=decode(keyframes.global_codes[:1]).shape[1],
        )
    except ValueError as exc:
        raise MapError(f"{site.path}: {exc}; build the site again") from exc
    return KeyframeIndex(
        keyframe_ids=keyframes.keyframe_ids,
        codes=keyframes.global_codes,
        decode=decode,
        lists=lists,
        compare=None if quantizer is None else quantizer.similarity,
    )


def open_landmark_decoder(site: Site, family: FeatureFamily) -> DecodeLandmarks:
    """Return what makes float32 rows of the descriptors in a site's tiles.

    Parameters
    ----------
    site : Site
        Opened site.
    family : FeatureFamily
        Its feature family.

    Raises
    ------
    MapError
        When its codebook is missing or wrong.
    """
    if site.manifest.family.coding == "plain":
        return family.decode
    try:
        quantizer = ProductQuantizer.from_arrays(site.codebook("descriptors").arrays)
    except ValueError as exc:
        raise MapError(f"{site.path}: {exc}; build the site again") from exc
    empty = np.zeros((0, family.stored_dim), family.stored_dtype)
    if quantizer.dim != family.decode(empty).shape[1]:
        raise MapModelMismatchError(
            f"{site.path}: its codes stand for {quantizer.dim} elements, its feature "
            f"family makes {family.decode(empty).shape[1]}; build the site again"
        )
    if quantizer.num_parts != site.manifest.family.stored_dim:
        raise MapError(
            f"{site.path}: codes have {site.manifest.family.stored_dim} bytes, the "
            f"codebook is for {quantizer.num_parts}; build the site again"
        )
    return quantizer.decode
