"""From a site and its mapping recording to a site that has a pose-regression head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from edgeloc.errors import DatasetError, ModelError
from edgeloc.features.extract import extract_features, to_grey
from edgeloc.features.family import FeatureFamily
from edgeloc.features.view import pooled_view
from edgeloc.geometry.camera import undistort_image
from edgeloc.geometry.se3 import rotation_angle_rad
from edgeloc.inference.backend import BackendOptions
from edgeloc.inference.head import Head, open_head
from edgeloc.inference.manifest import HeadSpec, InputSpec, ModelManifest
from edgeloc.localize.regress import rotation_from_six
from edgeloc.runtime.site_models import open_site_family
from edgeloc.tiles.add_models import add_models
from edgeloc.tiles.reader import Site, open_site
from edgeloc.types import BoolArray, CameraModel, Float32Array, FloatArray
from edgeloc_tools.datasets.recording import RecordedImage, Recording
from edgeloc_tools.learn.card import write_card
from edgeloc_tools.learn.export import LICENSE
from edgeloc_tools.learn.head_models import HeadFiles, site_model, write_head
from edgeloc_tools.learn.photometric import change_picture
from edgeloc_tools.learn.pose_views import depth_of_points, moved_view
from edgeloc_tools.learn.site_views import SeenLandmarks
from edgeloc_tools.learn.train_loop import LOG
from edgeloc_tools.learn.train_regress import (
    FLOAT_LAYERS,
    PoseHead,
    PoseSamples,
    RegressRecipe,
    pose_graph,
    train_regress,
)
from edgeloc_tools.mapping.depth import depth_in_camera
from edgeloc_tools.mapping.fix_calibration import calibrate_regress, regress_facts
from edgeloc_tools.mapping.work import Arrays, WorkFolder
from edgeloc_tools.progress import Progress, silent

ROLE, NAME = "regress", "regress"

_NUM_RUNS = 6
_MAX_WORSE = 1.1


def train_regress_head(
    site_path: Path,
    recording: Recording,
    *,
    out: Path,
    recipe: RegressRecipe,
    progress: Progress = silent,
) -> dict[str, object]:
    """Train a pose-regression head for a site and make it part of the site.

    Parameters
    ----------
    site_path : Path
        The site; it becomes its next version.
    recording : Recording
        What it was built from, or another one in its world.
    out : Path
        Folder of the run: checkpoint, log, card, the head in all precisions.
    recipe : RegressRecipe
        How.
    progress : callable
        Told about each step.

    Returns
    -------
    dict
        Facts for people.

    Raises
    ------
    ConfigError
        When `out` holds another run.
    DatasetError
        When the recording has too few images.
    MapError, ModelError
        When the site or its feature network cannot be used.
    """
    site = open_site(site_path)
    family = open_site_family(site, options=BackendOptions(backend="ort-cpu"))
    extent = _extent(recording)
    samples = draw_pose_samples(
        recording,
        site,
        family,
        recipe=recipe,
        extent=extent,
        work=WorkFolder(out / "views"),
        progress=progress,
    )
    held_out = held_out_views(samples)
    without, whole = train_regress(
        samples, out=out, recipe=recipe, held_out=held_out, progress=progress
    )
    files = _write(whole, samples, site, extent=extent, out=out)
    errors = pose_errors(_outputs(without, samples, held_out), samples, held_out)
    calibration = calibrate_regress(errors)
    kept = _first_good(files, samples)
    manifest = add_models(
        site_path,
        {ROLE: site_model(ROLE, kept)},
        rungs=("REGRESS",),
        arrays=calibration.to_arrays(),
    )
    num_images = len(np.unique(samples.image_idx))
    write_card(
        out,
        name=NAME,
        role=ROLE,
        recipe=asdict(recipe),
        data=[f"{num_images} images of {recording.name}, {len(samples.views)} views"],
        log=out / LOG,
    )
    return {
        "site": str(site_path),
        "map_id": manifest.map_id,
        "model": kept.stem,
        "bytes": manifest.models[ROLE].network.num_bytes,
        "views": len(samples.views),
        "held_out_median_error": round(float(np.median(errors[:, 0])), 5),
        "held_out_median_error_deg": round(
            float(np.rad2deg(np.median(errors[:, 1]))), 3
        ),
        **regress_facts(calibration),
    }


def _extent(recording: Recording) -> tuple[float, float]:
    """Return half the width and height of what the first camera sees, on z = 1."""
    camera = recording.cameras[recording.posed().images[0].camera_id]
    fx, fy = camera.focal_px
    return camera.width / 2 / fx, camera.height / 2 / fy


def held_out_views(samples: PoseSamples) -> BoolArray:
    """Return which views are left out to calibrate by: a run of images in the middle.

    With all the views that were synthesized of them. Every second of the runs that a
    recording is divided into would leave nobody who knows what is between them.
    """
    images = np.unique(samples.image_idx)
    run = np.array_split(images, _NUM_RUNS)[_NUM_RUNS // 2]
    return np.asarray(np.isin(samples.image_idx, run))


def draw_pose_samples(
    recording: Recording,
    site: Site,
    family: FeatureFamily,
    *,
    recipe: RegressRecipe,
    extent: tuple[float, float],
    work: WorkFolder,
    progress: Progress = silent,
) -> PoseSamples:
    """Return the images of a recording, and synthesized views beside them.

    Parameters
    ----------
    recording : Recording
        With poses; where there is depth, views move, and only turn elsewhere. Depth is
        what was measured, else what the landmarks of an image tell.
    site : Site
        Whose features they are described with, and whose landmarks they see.
    family : FeatureFamily
        These features.
    recipe : RegressRecipe
        How many views, and of what.
    extent : (float, float)
        Of the view, see `HeadSpec`.
    work : WorkFolder
        Keeps what is done, image by image.
    progress : callable
        Told about each image.
    """
    images = recording.posed().images
    if len(images) < _NUM_RUNS:
        raise DatasetError(
            f"{recording.name}: has {len(images)} posed images, at least {_NUM_RUNS} "
            "are needed to learn from"
        )
    views = max(recipe.views, -(-recipe.min_views // len(images)))
    landmarks = SeenLandmarks(site)
    parts: list[Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]] = []
    for idx, image in enumerate(images):
        camera = recording.cameras[image.camera_id]

        def make(
            image: RecordedImage = image, camera: CameraModel = camera, idx: int = idx
        ) -> Arrays:
            return _views_of(
                image,
                camera,
                landmarks,
                family,
                views=views,
                recipe=recipe,
                extent=extent,
                rng=np.random.default_rng([recipe.seed, idx]),
            )

        key = {
            "step": "pose views, depth of landmarks",
            "map": site.manifest.map_id,
            "recording": recording.name,
            "image": image.name,
            "views": [views, recipe.strength, recipe.columns, recipe.rows],
            "move": asdict(recipe.move),
            "extent": list(extent),
            "seed": [recipe.seed, idx],
        }
        parts.append(work.cached(key, make))
        progress("views", idx + 1, len(images))
    R = np.concatenate([part["R"] for part in parts]).astype(np.float64)
    centers = np.concatenate([part["center"] for part in parts]).astype(np.float64)
    origin = centers.mean(axis=0)
    scale = max(float(np.sqrt(np.mean(np.sum((centers - origin) ** 2, axis=1)))), 1e-6)
    return PoseSamples(
        views=np.concatenate([part["views"] for part in parts]).astype(np.float16),
        centers=((centers - origin) / scale).astype(np.float32),
        rotations=R[:, :2].reshape(-1, 6).astype(np.float32),
        image_idx=np.repeat(np.arange(len(parts)), [len(part["R"]) for part in parts]),
        origin=origin,
        scale=scale,
    )


def _views_of(
    image: RecordedImage,
    camera: CameraModel,
    landmarks: SeenLandmarks,
    family: FeatureFamily,
    *,
    views: int,
    recipe: RegressRecipe,
    extent: tuple[float, float],
    rng: np.random.Generator,
) -> Arrays:
    assert image.cam_from_world is not None
    grey, pinhole = undistort_image(camera, to_grey(image.source.read()))
    depth: Float32Array | None = None
    if image.depth is not None:
        depth = depth_in_camera(image.depth, pinhole).astype(np.float32)
    elif (seen := landmarks.seen_from(image.cam_from_world)) is not None:
        in_cam = image.cam_from_world.transform(seen.points3D)
        depth = depth_of_points(in_cam, pinhole)
    spec = landmarks.site.manifest.family
    pooled, poses = [], []
    for number in range(views + 1):
        picture, pose, mask = grey, image.cam_from_world, None
        if number:
            moved = moved_view(
                grey,
                depth,
                pinhole,
                image.cam_from_world,
                options=recipe.move,
                rng=rng,
            )
            light = change_picture(
                moved.grey.astype(np.float32) / 255.0, rng, strength=recipe.strength
            )
            picture = np.rint(light * 255.0).astype(np.uint8)
            pose, mask = moved.cam_from_world, moved.seen.astype(np.uint8)
        features = extract_features(
            picture,
            family,
            max_keypoints=spec.max_keypoints,
            max_side_px=spec.max_side_px,
            mask=mask,
        )
        pooled.append(
            pooled_view(
                features.keypoints,
                family.decode(features.descriptors),
                pinhole,
                grid=(recipe.columns, recipe.rows),
                extent=extent,
            )
        )
        poses.append(pose)
    return {
        "views": np.stack(pooled).astype(np.float16),
        "R": np.stack([pose.R for pose in poses]),
        "center": np.stack([pose.origin_in_a for pose in poses]),
    }


def _outputs(
    head: PoseHead, samples: PoseSamples, chosen: BoolArray
) -> tuple[FloatArray, FloatArray]:
    with torch.no_grad():
        views = torch.from_numpy(samples.views[chosen].astype(np.float32))
        center, rotation = head(views)
    in_world = center.numpy().astype(np.float64) * samples.scale + samples.origin
    return in_world, rotation.numpy().astype(np.float64)


def pose_errors(
    outputs: tuple[FloatArray, FloatArray], samples: PoseSamples, chosen: BoolArray
) -> FloatArray:
    """Return how far off a head is, (n, 2): m and rad.

    Parameters
    ----------
    outputs : (ndarray of shape (n, 3), ndarray of shape (n, 6))
        Centres in the world, m, and six numbers of rotations.
    samples : PoseSamples
        All views.
    chosen : ndarray of shape (S,), bool
        Which of them.
    """
    true_centers = samples.centers[chosen] * samples.scale + samples.origin
    position = np.linalg.norm(outputs[0] - true_centers, axis=1)
    angles = []
    for found, true in zip(outputs[1], samples.rotations[chosen], strict=True):
        a = rotation_from_six(found)
        b = rotation_from_six(true.astype(np.float64))
        assert b is not None
        angles.append(np.pi if a is None else float(rotation_angle_rad(a @ b.T)))
    return np.stack([position, np.array(angles)], axis=1)


def _write(
    head: PoseHead,
    samples: PoseSamples,
    site: Site,
    *,
    extent: tuple[float, float],
    out: Path,
) -> HeadFiles:
    rows, columns = (int(n) for n in head.pool.kernel_size)
    x, y, z = (float(value) for value in samples.origin)
    manifest = ModelManifest(
        name=NAME,
        role=ROLE,
        file="",
        sha256="",
        precision="fp32",
        flavour="any",
        input=InputSpec(name="view"),
        decoder="pose-of-descriptors",
        outputs={name: name for name in ("center", "rotation")},
        descriptor_dim=samples.views.shape[1],
        match_ratio=None,
        license=LICENSE,
        source=f"trained by edgeloc-build train regress for {site.manifest.name}",
        head=HeadSpec(
            family=site.manifest.family.name,
            grid=(columns, rows),
            extent=extent,
            origin=(x, y, z),
        ),
    )
    return write_head(
        out,
        manifest,
        pose_graph(head, scale=samples.scale),
        examples=[view[None].astype(np.float32) for view in samples.views[::3]],
        float_layers=FLOAT_LAYERS,
    )


def _first_good(files: HeadFiles, samples: PoseSamples) -> Path:
    """Return the smallest variant that is as accurate as the truth."""
    chosen = np.zeros(len(samples.views), dtype=bool)
    chosen[:: max(1, len(chosen) // 200)] = True
    median = {}
    for name, path in (
        ("fp32", files.truth),
        ("int8-cpu", files.variants["int8-cpu"]),
        ("fp16", files.variants["fp16"]),
    ):
        head = open_head(path, role=ROLE, options=BackendOptions(backend="ort-cpu"))
        found = [_run_head(head, view) for view in samples.views[chosen]]
        outputs = tuple(np.stack(part) for part in zip(*found, strict=True))
        errors = pose_errors((outputs[0], outputs[1]), samples, chosen)
        median[name] = np.median(errors, axis=0)
        if name != "fp32" and np.all(
            median[name] <= _MAX_WORSE * median["fp32"] + [0.005 * samples.scale, 2e-3]
        ):
            return path
    raise ModelError(
        f"{files.truth}: neither INT8 nor FP16 is as accurate as float32; train with "
        "another recipe"
    )


def _run_head(
    head: Head, view: np.ndarray[tuple[int, ...], np.dtype[np.float16]]
) -> tuple[FloatArray, FloatArray]:
    outputs = head.run(view[None].astype(np.float32))
    center = outputs["center"].reshape(3).astype(np.float64) + head.spec.origin
    return center, outputs["rotation"].reshape(6).astype(np.float64)
