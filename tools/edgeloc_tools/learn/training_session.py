"""One training from the command line: data in, a model with its card out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeloc.errors import ConfigError
from edgeloc_tools.datasets.recording import Recording
from edgeloc_tools.datasets.registry import open_named
from edgeloc_tools.learn.card import write_card
from edgeloc_tools.learn.export import write_feature_model, write_retrieval_model
from edgeloc_tools.learn.photo_pairs import ViewOptions, list_photos, training_photos
from edgeloc_tools.learn.posed_frames import PosedFrames, load_posed_frames
from edgeloc_tools.learn.recipe import FeatureRecipe, RetrievalRecipe, load_recipe
from edgeloc_tools.learn.train_features import train_features
from edgeloc_tools.learn.train_loop import LOG
from edgeloc_tools.learn.train_retrieval import train_retrieval
from edgeloc_tools.progress import StderrProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be trained.

    Parameters
    ----------
    role : {"features", "retrieval"}
        Of the network.
    name : str
        Of the model, its size is appended.
    photos : Path
        Folder of photos; one of ten is left out for evaluation.
    recordings : tuple of str
        Posed recordings with depth, each FORMAT:DIR.
    recipe : Path or None
        TOML file.
    changes : mapping of str to value
        What wins over it.
    start : Path or None
        Checkpoint of a feature network to begin with.
    licence : str
        Of the data.
    out : Path
        Folder of the run.
    """

    role: str
    name: str
    photos: Path
    recordings: tuple[str, ...]
    recipe: Path | None
    changes: Mapping[str, Any]
    start: Path | None
    licence: str
    out: Path


def _posed_frames(
    recordings: Sequence[Recording], options: ViewOptions
) -> list[PosedFrames]:
    return [
        load_posed_frames(recording, options=options, progress=StderrProgress())
        for recording in recordings
    ]


def train(request: Request) -> Path:
    """Train, export and describe a network; return the path of its manifest.

    Raises
    ------
    ConfigError
        When options are wrong, or the folder holds a run of another recipe.
    DatasetError
        When the data is.
    """
    photos = training_photos(list_photos(request.photos))
    recordings = [open_named(text, option="--recording") for text in request.recordings]
    source = f"trained by edgeloc-build train {request.role}"
    recipe: FeatureRecipe | RetrievalRecipe
    if request.role == "features":
        recipe = load_recipe(request.recipe, FeatureRecipe, request.changes)
        net = train_features(
            photos,
            out=request.out,
            recipe=recipe,
            start=request.start,
            frames=_posed_frames(recordings, recipe.views),
            progress=StderrProgress(),
        )
        name = f"{request.name}-{recipe.size}"
        path = write_feature_model(net, request.out, name=name, source=source)
    else:
        if request.start is None:
            raise ConfigError(
                "train retrieval: --start is missing; give the checkpoint of a feature "
                "network, whose trunk it begins with"
            )
        recipe = load_recipe(request.recipe, RetrievalRecipe, request.changes)
        places = train_retrieval(
            photos,
            start=request.start,
            out=request.out,
            recipe=recipe,
            frames=_posed_frames(recordings, recipe.views),
            progress=StderrProgress(),
        )
        name = f"{request.name}-{recipe.size}"
        path = write_retrieval_model(
            places,
            request.out,
            name=name,
            source=source,
            size=(recipe.views.height, recipe.views.width),
        )
    write_card(
        request.out,
        name=name,
        role=request.role,
        recipe=asdict(recipe),
        data=[
            f"{len(photos)} photos",
            *(f"{len(r.images)} images of {r.name}, with depth" for r in recordings),
            f"licence of the data: {request.licence}",
        ],
        log=request.out / LOG,
    )
    return path
