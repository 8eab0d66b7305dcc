"""What is measured in the images of a recording before there is a map."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeloc import __version__
from edgeloc.errors import DatasetError, MapError
from edgeloc.features.extract import extract_features
from edgeloc.features.family import FeatureFamily
from edgeloc.features.learned import LearnedFamily, LearnedRetrieval
from edgeloc.features.registry import open_family, open_retrieval
from edgeloc.features.retrieve import VladModel, train_vlad
from edgeloc.inference.manifest import encode_manifest, with_file
from edgeloc.inference.network import Network
from edgeloc.tiles.layout import FamilySpec, SiteModel
from edgeloc.types import CameraModel, Float32Array, IntArray, Rigid3
from edgeloc_tools.datasets.recording import (
    DepthMap,
    ImageFile,
    RecordedImage,
    Recording,
)
from edgeloc_tools.mapping.depth import depth_at_keypoints, depth_in_camera
from edgeloc_tools.mapping.options import BuildOptions
from edgeloc_tools.mapping.pairs import covisible_pairs
from edgeloc_tools.mapping.tracks import MappingImage, join_tracks, match_pair
from edgeloc_tools.mapping.work import Arrays, WorkFolder
from edgeloc_tools.progress import Progress, silent, track

_KEYPOINTS_AT_VGA = {"orb": 1000, "sift": 2000}
_KEYPOINT_GROWTH = {"orb": (2.2, 2.5)}
"""How fast their number grows with an image's area, and up to what: ORB's crowd where
the contrast is, 1700 of them localize 65 % of GardensPoint 000-033 within 5 % of the
unit, 2500 of them 71 %."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Survey:
    """Described images and the tracks that join them.

    Parameters
    ----------
    posed : Recording
        The images with poses.
    family : FeatureFamily
        What describes their keypoints.
    retrieval : LearnedRetrieval or None
        What describes whole images; None = VLAD.
    spec : FamilySpec
        How the family was used.
    images : sequence of MappingImage
        The images.
    global_descriptors : ndarray of shape (K, G), float32
        Theirs, L2-normalised.
    retrieval_arrays : mapping of str to ndarray
        The VLAD model's arrays, if there is one.
    models : mapping of str to SiteModel
        The networks that were used, by role.
    tracks : tuple of three ndarray of shape (N,), int64
        Track, image and keypoint indices.
    num_pairs, num_matches : int
        Image pairs compared, and what was found.
    """

    posed: Recording
    family: FeatureFamily
    retrieval: LearnedRetrieval | None
    spec: FamilySpec
    images: Sequence[MappingImage]
    global_descriptors: Float32Array
    retrieval_arrays: Mapping[str, npt.NDArray[np.generic]]
    models: Mapping[str, SiteModel]
    tracks: tuple[IntArray, IntArray, IntArray]
    num_pairs: int
    num_matches: int


def default_keypoints(family: str, camera: CameraModel) -> int:
    """Return the keypoints per image: more for larger images, up to a limit."""
    base = _KEYPOINTS_AT_VGA.get(family, 1000)
    rate, most = _KEYPOINT_GROWTH.get(family, (1.0, 2.0))
    larger = max(camera.width * camera.height / (640.0 * 480.0) - 1.0, 0.0)
    return int(round(base * min(1.0 + rate * larger, most), -2))


def survey_recording(
    recording: Recording,
    *,
    options: BuildOptions,
    folder: WorkFolder,
    progress: Progress = silent,
) -> Survey:
    """Describe the posed images of a recording and match them with each other.

    Parameters
    ----------
    recording : Recording
        Images without pose or camera are left out.
    options : BuildOptions
        Options.
    folder : WorkFolder
        Keeps what is done.
    progress : callable
        Told about each step.

    Raises
    ------
    DatasetError
        When the recording has fewer than two posed images.
    MapError
        When its images have hardly any features.
    """
    posed = recording.posed()
    if len(posed.images) < 2:
        raise DatasetError(f"{recording.name}: a map needs at least two posed images")
    family = open_family(options.features, options=options.backend)
    network = open_retrieval(
        options.retrieval, features=options.features, options=options.backend
    )
    models = _site_models(family, network)
    first_camera = posed.cameras[posed.images[0].camera_id]
    max_keypoints = options.max_keypoints or default_keypoints(
        family.name, first_camera
    )
    spec = FamilySpec(
        name=family.name,
        stored_dtype=str(family.stored_dtype),
        stored_dim=family.stored_dim,
        max_keypoints=max_keypoints,
        max_side_px=options.max_side_px,
    )
    extractor = _Extractor(
        family=family,
        retrieval=network,
        spec=spec,
        use_depth=options.use_depth,
        model_digests={
            role: hashlib.sha256(model.manifest).hexdigest()
            for role, model in models.items()
        },
    )
    described = [
        _describe(image, posed, extractor, folder)
        for image in track(posed.images, "features", progress)
    ]
    images = [image for image, _ in described]
    retrieval_arrays: Mapping[str, npt.NDArray[np.generic]] = {}
    if network is None:
        trained = train_retrieval([image.descriptors for image in images], options)
        retrieval_arrays = trained.to_arrays()
        # As the device will have it.
        vlad = VladModel.from_arrays(retrieval_arrays)
        global_descriptors = np.stack([vlad.describe(i.descriptors) for i in images])
    else:
        global_descriptors = np.stack([vector for _, vector in described])
    pairs = covisible_pairs(
        [image.cam_from_world for image in images],
        global_descriptors,
        num_similar=options.num_similar,
        num_near=options.num_near,
    )
    matches = match_all(
        images, pairs, options=options, folder=folder, progress=progress
    )
    return Survey(
        posed=posed,
        family=family,
        retrieval=network,
        spec=spec,
        images=images,
        global_descriptors=global_descriptors,
        retrieval_arrays=retrieval_arrays,
        models=models,
        tracks=join_tracks([len(i.keypoints) for i in images], pairs, matches),
        num_pairs=len(pairs),
        num_matches=int(sum(len(m) for m, _ in matches)),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Extractor:
    """What is computed of every mapping image."""

    family: FeatureFamily
    retrieval: LearnedRetrieval | None
    spec: FamilySpec
    use_depth: bool
    model_digests: Mapping[str, str]


def _site_models(
    family: FeatureFamily, retrieval: LearnedRetrieval | None
) -> dict[str, SiteModel]:
    """Return the networks that a site has to carry, by role."""
    networks = {}
    if isinstance(family, LearnedFamily):
        networks["features"] = family.network
    if retrieval is not None:
        networks["retrieval"] = retrieval.network
    return {role: _site_model(role, network) for role, network in networks.items()}


def _site_model(role: str, network: Network) -> SiteModel:
    data = network.model.network_path.read_bytes()
    manifest = with_file(network.manifest, f"{role}.onnx", data)
    return SiteModel(
        name=manifest.name, manifest=encode_manifest(manifest), network=data
    )


def _describe(
    image: RecordedImage,
    recording: Recording,
    extractor: _Extractor,
    folder: WorkFolder,
) -> tuple[MappingImage, Float32Array]:
    """Return an image ready to be matched, and its vector of a retrieval network."""
    camera = recording.cameras[image.camera_id]
    family, spec = extractor.family, extractor.spec

    def make() -> Arrays:
        pixels = image.source.read()
        if pixels.shape[:2] != (camera.height, camera.width):
            raise DatasetError(
                f"{image.name}: is {pixels.shape[1]}x{pixels.shape[0]} px, its camera "
                f"{image.camera_id!r} says {camera.width}x{camera.height}"
            )
        mask = image.read_mask()
        if mask is not None and mask.shape != pixels.shape[:2]:
            raise DatasetError(
                f"{image.name}: its mask is {mask.shape[1]}x{mask.shape[0]} px, the "
                f"image {pixels.shape[1]}x{pixels.shape[0]}; make them the same size"
            )
        features = extract_features(
            pixels,
            family,
            max_keypoints=spec.max_keypoints,
            max_side_px=spec.max_side_px,
            mask=mask,
        )
        depth = np.full(len(features), np.nan)
        sigma = depth.copy()
        if extractor.use_depth and image.depth is not None:
            depth, sigma = depth_at_keypoints(
                depth_in_camera(image.depth, camera), features.keypoints
            )
        vector = np.zeros(0, np.float32)
        if extractor.retrieval is not None:
            descriptors = family.decode(features.descriptors)
            vector = extractor.retrieval.global_descriptor(pixels, descriptors)
        return {
            "global_descriptor": vector,
            "keypoints": features.keypoints,
            "sigmas": features.sigmas,
            "stored": features.descriptors,
            "depth": depth,
            "depth_sigma": sigma,
        }

    arrays = folder.cached(_feature_key(image, recording, extractor), make)
    mapping_image = MappingImage(
        name=image.name,
        camera_id=image.camera_id,
        camera=camera,
        cam_from_world=_pose(image),
        keypoints=arrays["keypoints"].astype(np.float32),
        sigmas=arrays["sigmas"].astype(np.float32),
        stored=arrays["stored"],
        descriptors=family.decode(arrays["stored"]),
        depth=arrays["depth"].astype(np.float64),
        depth_sigma=arrays["depth_sigma"].astype(np.float64),
    )
    return mapping_image, arrays["global_descriptor"].astype(np.float32)


def _pose(image: RecordedImage) -> Rigid3:
    if image.cam_from_world is None:
        raise DatasetError(f"{image.name}: has no pose")
    return image.cam_from_world


def _feature_key(
    image: RecordedImage, recording: Recording, extractor: _Extractor
) -> Mapping[str, object]:
    depth = image.depth if extractor.use_depth else None
    return {
        "edgeloc_version": __version__,
        "recording": recording.name,
        "image": image.name,
        "stamp": _stamp(
            image.source.path if isinstance(image.source, ImageFile) else None
        ),
        "spec": asdict(extractor.spec),
        "models": dict(extractor.model_digests),
        "camera": asdict(recording.cameras[image.camera_id]),
        "depth": None if depth is None else _depth_key(depth),
        "mask": image.mask_key(),
    }


def _depth_key(depth: DepthMap) -> list[object]:
    return [
        *(str(depth.path), *_stamp(depth.path), depth.metres_per_unit),
        asdict(depth.camera),
        depth.cam_from_depth.R.tolist(),
        depth.cam_from_depth.t.tolist(),
    ]


def _stamp(path: Path | None) -> list[int]:
    """Return size and time of a file; nothing when there is none."""
    if path is None or not path.is_file():
        return []
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def train_retrieval(images: Sequence[Float32Array], options: BuildOptions) -> VladModel:
    """Return the retrieval model of a site, fitted to its own images.

    Parameters
    ----------
    images : sequence of ndarray of shape (N, D), float32
        Decoded local descriptors of each image.
    options : BuildOptions
        Of the vocabulary.

    Raises
    ------
    MapError
        When the images have hardly any features.
    """
    rng = np.random.default_rng(options.seed)
    per_image = max(50, 60_000 // len(images))
    sample = [rows[rng.permutation(len(rows))[:per_image]] for rows in images]
    descriptors = np.concatenate(sample)
    if len(descriptors) < 64:
        raise MapError(
            f"only {len(descriptors)} features in {len(images)} images: are they "
            "blank, or masked out?"
        )
    return train_vlad(
        descriptors,
        num_words=options.num_words,
        dim=min(options.vlad_dim, descriptors.shape[1]),
        seed=options.seed,
    )


def match_all(
    images: Sequence[MappingImage],
    pairs: IntArray,
    *,
    options: BuildOptions,
    folder: WorkFolder,
    progress: Progress,
) -> list[tuple[IntArray, Float32Array]]:
    """Return the matches of all pairs, kept on disk in blocks.

    Parameters
    ----------
    images : sequence of MappingImage
        The images.
    pairs : ndarray of shape (E, 2), int64
        Which are compared.
    options : BuildOptions
        What counts as a match.
    folder : WorkFolder
        Keeps what is done.
    progress : callable
        Told about each block.

    Returns
    -------
    list of (ndarray of shape (M_e, 2), int64; ndarray of shape (M_e,), float32)
        As `match_pair` gives them.
    """
    block = 64
    matches: list[tuple[IntArray, Float32Array]] = []
    digest = [
        [
            *(i.name, len(i.keypoints), float(i.keypoints.sum()), int(i.stored.sum())),
            # Matches are checked against the poses.
            *(asdict(i.camera), i.cam_from_world.R.tolist()),
            i.cam_from_world.t.tolist(),
        ]
        for i in images
    ]
    for start in range(0, len(pairs), block):
        chunk = pairs[start : start + block]

        def make(chunk: IntArray = chunk) -> Arrays:
            found = [
                match_pair(
                    images[a],
                    images[b],
                    options=options.match,
                    max_error_px=options.max_epipolar_px,
                )
                for a, b in chunk
            ]
            return {
                "matches": np.concatenate([m for m, _ in found]),
                "scores": np.concatenate([s for _, s in found]),
                "ends": np.cumsum([len(m) for m, _ in found]),
            }

        key = {
            "images": digest,
            "pairs": chunk.tolist(),
            "match": asdict(options.match),
            "max_epipolar_px": options.max_epipolar_px,
        }
        arrays = folder.cached(key, make)
        ends = arrays["ends"][:-1].astype(np.int64)
        matches += zip(
            np.split(arrays["matches"].astype(np.int64), ends),
            np.split(arrays["scores"].astype(np.float32), ends),
            strict=True,
        )
        progress("matches", min(start + block, len(pairs)), len(pairs))
    return matches
