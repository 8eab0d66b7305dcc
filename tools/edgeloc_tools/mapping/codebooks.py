"""The codebooks of a site: those that come with edgeloc, or its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeloc.errors import ModelError, TileFormatError
from edgeloc.features.keyframe_index import Decode, global_coding
from edgeloc.features.quantizer import NUM_WORDS, ProductQuantizer
from edgeloc.inference.manifest import shipped_folder
from edgeloc.tiles.arrays import decode_codebook, encode_codebook
from edgeloc.tiles.layout import Codebook
from edgeloc.types import Float32Array
from edgeloc_tools.files import write_atomically
from edgeloc_tools.mapping.codebook import train_quantizer
from edgeloc_tools.mapping.options import BuildOptions
from edgeloc_tools.mapping.survey import Survey
from edgeloc_tools.progress import Progress, silent

_ROOMY_CODE_BYTES, _TIGHT_CODE_BYTES = 16, 8
"""Without a budget and with one: at equal size more landmarks beat finer codes."""
_ROOMY_GLOBAL_BYTES, _TIGHT_GLOBAL_BYTES = 64, 32
_PAYS = 2.0
"""A codebook of a site's own must save so many times its size."""
_TRAIN_ROWS = 60_000
_ELEMENTS_PER_PART = 8
"""Of a codebook of a site's own: 128 elements of SIFT become 16 bytes."""
SUFFIX = ".codebook"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coder:
    """How descriptors are stored.

    Parameters
    ----------
    codebook : Codebook or None
        None = as they are.
    quantizer : ProductQuantizer or None
        The same, ready to use.
    universal : bool
        Whether it came with edgeloc.
    """

    codebook: Codebook | None = None
    quantizer: ProductQuantizer | None = None
    universal: bool = False


def codebook_path(model: str, num_parts: int, *, folder: Path) -> Path:
    """Return where the codebook of a model lies.

    Parameters
    ----------
    model : str
        Name of a network; its quantized flavours share one codebook.
    num_parts : int
        Bytes of a code.
    folder : Path
        Of the models.
    """
    base = model.split("-int8")[0].split("-fp16")[0]
    return folder / f"{base}-pq{num_parts}{SUFFIX}"


def write_codebook(path: Path, name: str, quantizer: ProductQuantizer) -> None:
    """Write a codebook file, from which sites copy."""
    write_atomically(
        path, encode_codebook(Codebook(name=name, arrays=quantizer.to_arrays()))
    )


def _shipped(model: str, num_parts: int) -> Coder | None:
    """Return the codebook that comes with a model, None without one."""
    folder = shipped_folder()
    if folder is None:
        return None
    path = codebook_path(model, num_parts, folder=folder)
    if not path.is_file():
        return None
    try:
        codebook = decode_codebook(path.read_bytes())
        quantizer = ProductQuantizer.from_arrays(codebook.arrays)
    except (TileFormatError, ValueError) as exc:
        raise ModelError(f"{path}: {exc}; install edgeloc again") from exc
    return Coder(codebook=codebook, quantizer=quantizer, universal=True)


def landmark_coder(
    survey: Survey,
    *,
    num_rows: int,
    options: BuildOptions,
    progress: Progress = silent,
) -> Coder:
    """Return how the descriptors of landmarks are stored.

    Parameters
    ----------
    survey : Survey
        Descriptors.
    num_rows : int
        Of landmarks, about.
    options : BuildOptions
        Options.
    progress : callable
        Told about training.
    """
    dim = survey.images[0].descriptors.shape[1]
    wanted = options.code_bytes
    if wanted == 0 or (wanted is None and survey.family.name == "orb"):
        # 32 bytes that were made to be compared as they are.
        return Coder()
    tight = options.budget_bytes is not None
    num_parts = wanted or (_TIGHT_CODE_BYTES if tight else _ROOMY_CODE_BYTES)
    shipped = _shipped(survey.family.name, num_parts)
    if (
        shipped is not None
        and shipped.quantizer is not None
        and shipped.quantizer.dim == dim
    ):
        return shipped
    if wanted is None:
        num_parts = max(dim // (_ELEMENTS_PER_PART * (2 if tight else 1)), 1)
    rows = _sample([i.descriptors for i in survey.images], options.seed)
    saved = num_rows * (
        survey.spec.stored_dim * np.dtype(survey.spec.stored_dtype).itemsize - num_parts
    )
    own_bytes = 2 * dim * (dim + NUM_WORDS)
    if len(rows) < NUM_WORDS or (wanted is None and saved < _PAYS * own_bytes):
        return Coder()
    quantizer = train_quantizer(
        rows, num_parts=num_parts, seed=options.seed, progress=progress
    )
    return _own(f"{survey.family.name}-{survey.posed.name}", quantizer)


def _own(name: str, quantizer: ProductQuantizer) -> Coder:
    """Return a codebook of a site, as the device will read it."""
    codebook = Codebook(name=name, arrays=quantizer.to_arrays())
    return Coder(
        codebook=codebook, quantizer=ProductQuantizer.from_arrays(codebook.arrays)
    )


def _sample(images: Sequence[Float32Array], seed: int) -> Float32Array:
    rng = np.random.default_rng(seed)
    per_image = max(16, _TRAIN_ROWS // len(images))
    return np.concatenate(
        [rows[rng.permutation(len(rows))[:per_image]] for rows in images]
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GlobalCoder:
    """How global descriptors are stored.

    Parameters
    ----------
    coding : str
        As in `SiteContents.global_coding`.
    coder : Coder
        Its codebook, if it needs one.
    """

    coding: str
    coder: Coder

    @property
    def decode(self) -> Decode:
        """What makes vectors of codes."""
        codebook = self.coder.codebook
        arrays = None if codebook is None else codebook.arrays
        return global_coding(self.coding, arrays).decode

    def encode(self, vectors: Float32Array) -> npt.NDArray[np.generic]:
        """Return global descriptors as a site stores them."""
        if self.coder.quantizer is not None:
            return self.coder.quantizer.encode(vectors)
        if self.coding == "int8":
            # The largest element of each is 127: only directions count.
            largest = np.abs(vectors).max(axis=1, keepdims=True)
            scaled = vectors * (127.0 / np.maximum(largest, 1e-9))
            return np.asarray(np.rint(scaled), np.int8)
        return vectors.astype(np.float16)


def global_coder(survey: Survey, options: BuildOptions) -> GlobalCoder:
    """Return how global descriptors are stored.

    Parameters
    ----------
    survey : Survey
        What they were made with.
    options : BuildOptions
        Options.
    """
    if survey.retrieval is None or options.code_bytes == 0:
        return GlobalCoder(
            coding="float16" if options.code_bytes == 0 else "int8", coder=Coder()
        )
    tight = options.budget_bytes is not None
    shipped = _shipped(
        survey.retrieval.network.manifest.name,
        _TIGHT_GLOBAL_BYTES if tight else _ROOMY_GLOBAL_BYTES,
    )
    if shipped is None:
        return GlobalCoder(coding="int8", coder=Coder())
    return GlobalCoder(coding="pq", coder=shipped)
