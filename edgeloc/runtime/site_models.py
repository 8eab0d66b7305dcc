"""What a site was built with, opened again: its feature family and its retrieval."""

from __future__ import annotations

import numpy as np

from edgeloc.errors import MapError, MapModelMismatchError
from edgeloc.features.classical import CLASSICAL
from edgeloc.features.family import FeatureFamily
from edgeloc.features.keyframe_index import (
    InvertedLists,
    KeyframeIndex,
    global_coding,
)
from edgeloc.features.quantizer import ProductQuantizer
from edgeloc.features.registry import open_family, open_retrieval
from edgeloc.features.retrieve import Retrieval, VladModel
from edgeloc.inference.backend import BackendOptions
from edgeloc.inference.head import Head, open_head
from edgeloc.inference.manifest import load_manifest
from edgeloc.inference.network import Network, open_network
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
    made, wanted = family.name, spec.name
    if spec.coding == "plain":  # else `open_landmark_decoder` looks at the codes
        made += f" {family.stored_dtype}[{family.stored_dim}]"
        wanted += f" {spec.stored_dtype}[{spec.stored_dim}]"
    if made != wanted:
        raise MapModelMismatchError(
            f"{site.path}: holds {wanted} descriptors, its feature family makes "
            f"{made}; build it again"
        )
    return family


def open_site_retrieval(
    site: Site, *, dim: int, options: BackendOptions | None = None
) -> Retrieval:
    """Return what a site's global descriptors were made with.

    Parameters
    ----------
    site : Site
        Opened site.
    dim : int
        Elements of the site's global descriptors, see `KeyframeIndex.dim`.
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
    if retrieval.dim != dim:
        raise MapModelMismatchError(
            f"{site.path}: global descriptors have {dim} elements, the retrieval "
            f"model makes {retrieval.dim}; build the site again"
        )
    return retrieval


def open_site_head(
    site: Site, role: str, *, options: BackendOptions | None = None
) -> Head | Network:
    """Return a network of its own that a site carries.

    Parameters
    ----------
    site : Site
        Opened site.
    role : {"scene_coords", "regress"}
        Which.
    options : BackendOptions
        Where it runs.

    Returns
    -------
    Head or Network
        What takes descriptors, or pictures.

    Raises
    ------
    MapModelMismatchError
        When it is for descriptors of another feature family.
    MapError
        When the site has none, or it was changed.
    ModelError
        When the network cannot be used.
    """
    if role not in site.manifest.models:
        command = f"edgeloc-build train {role.replace('_', '-')} --site {site.path}"
        raise MapError(f"{site.path}: has no {role} network; make one with {command}")
    path = site.model_manifest(role)
    if load_manifest(path).takes_pictures:
        return open_network(path, role=role, options=options)
    head = open_head(path, role=role, options=options)
    if head.spec.family != site.manifest.family.name:
        raise MapModelMismatchError(
            f"{site.path}: its {role} network is for the features "
            f"{head.spec.family!r}, the site has {site.manifest.family.name!r}; train "
            "it again"
        )
    return head


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
        coding = global_coding(manifest.global_coding, codebook)
        lists = InvertedLists.from_arrays(
            site.retrieval_arrays,
            num_keyframes=len(keyframes),
            dim=coding.dim(keyframes.global_codes),
        )
    except ValueError as exc:
        raise MapError(f"{site.path}: {exc}; build the site again") from exc
    return KeyframeIndex(
        keyframe_ids=keyframes.keyframe_ids,
        codes=keyframes.global_codes,
        coding=coding,
        lists=lists,
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
