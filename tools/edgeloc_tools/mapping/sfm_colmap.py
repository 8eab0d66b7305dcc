"""The calls of pycolmap that structure from motion needs, and nothing else.

pycolmap's interface changes with each major version, so everything that could break is
here. Needs pycolmap 4 (`match_image_pairs`, rigs and frames in the database); tested
with the versions named in `TESTED_VERSIONS`.
"""

from __future__ import annotations

import contextlib
import importlib
import platform
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Must be loaded before pycolmap: both bring a zlib, and with pycolmap 4.2.1 first,
# OpenCV 5 writing a PNG ends the process with "free(): invalid pointer".
import cv2
import numpy as np

from edgeloc.errors import ConfigError
from edgeloc.types import CameraModel, FloatArray, Rigid3
from edgeloc_tools.mapping.align import Sim3

TESTED_VERSIONS = ("4.0.0", "4.2.1")
MIN_VERSION = (4, 0)
SQLITE_MAX_IMAGE_ID = 2147483647
"""COLMAP packs two image ids into one pair id with this factor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairStats:
    """What matching found between two images.

    Parameters
    ----------
    name_a, name_b : str
        The images.
    num_inliers : int
        Matches that agree with one two-view geometry.
    """

    name_a: str
    name_b: str
    num_inliers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraGroup:
    """Images taken by one camera.

    Parameters
    ----------
    names : tuple of str
        The images.
    camera : CameraModel or None
        Known intrinsics.
    model : str
        What to estimate when they are not known.
    focal_factor : float
        First guess of the focal length, in units of the longer side.
    """

    names: tuple[str, ...]
    camera: CameraModel | None
    model: str
    focal_factor: float = 1.2


def load_pycolmap() -> Any:  # noqa: ANN401 - an optional module without stubs
    """Return pycolmap.

    Raises
    ------
    ConfigError
        When it is missing or older than version 4.
    """
    assert cv2.__version__  # loaded first, see above
    try:
        module = importlib.import_module("pycolmap")
    except (ImportError, RuntimeError) as exc:
        hint = (
            " (it has no wheel for Linux aarch64: build maps on a workstation and copy "
            "the site)"
            if platform.machine() in {"aarch64", "arm64"}
            else ""
        )
        raise ConfigError(
            "edgeloc-build sfm needs pycolmap: `pip install 'pycolmap>=4'` or "
            f"`pip install 'edgeloc[build]'`{hint}"
        ) from exc
    version = tuple(int(p) for p in str(module.__version__).split(".")[:2])
    if version < MIN_VERSION:
        raise ConfigError(
            f"pycolmap {module.__version__} is too old for edgeloc-build sfm, which "
            "needs 4 or newer: `pip install -U 'pycolmap>=4'`"
        )
    return module


def version() -> str:
    """Return pycolmap's version, which is part of every step's inputs."""
    return str(load_pycolmap().__version__)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep COLMAP's log off stderr for a while: what matters is said by us."""
    log = load_pycolmap().logging
    before = log.minloglevel
    log.minloglevel = 3  # FATAL: failures of single images are found in the database
    try:
        yield
    finally:
        log.minloglevel = before


def exif_focal_factor(path: Path) -> float | None:
    """Return the focal length in EXIF, in units of the longer side, or None."""
    with quiet():
        camera = load_pycolmap().infer_camera_from_image(str(path))
    if not camera.has_prior_focal_length:
        return None
    return float(camera.mean_focal_length() / max(camera.width, camera.height))


@contextlib.contextmanager
def _rows(
    database: Path, query: str, args: Sequence[object] = ()
) -> Iterator[list[Any]]:
    # Plain SQLite: counts without loading descriptors, and the same in every version.
    if not database.exists():
        yield []
        return
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        yield connection.execute(query, tuple(args)).fetchall()
    finally:
        connection.close()


def keypoint_counts(database: Path) -> dict[str, int]:
    """Return the number of features of each image that was extracted, by name."""
    query = (
        "SELECT name, rows FROM images JOIN keypoints "
        "ON images.image_id = keypoints.image_id"
    )
    with _rows(database, query) as rows:
        return {str(name): int(count) for name, count in rows}


def pair_stats(database: Path) -> list[PairStats]:
    """Return what matching found for each pair that was tried."""
    with _rows(database, "SELECT image_id, name FROM images") as rows:
        names = {int(i): str(name) for i, name in rows}
    with _rows(database, "SELECT pair_id, rows FROM two_view_geometries") as rows:
        out = []
        for pair_id, count in rows:
            b = int(pair_id) % SQLITE_MAX_IMAGE_ID
            a = (int(pair_id) - b) // SQLITE_MAX_IMAGE_ID
            out.append(
                PairStats(name_a=names[a], name_b=names[b], num_inliers=int(count))
            )
        return out


def camera_ids(database: Path) -> dict[str, int]:
    """Return COLMAP's camera id of each image in the database, by name."""
    with _rows(database, "SELECT name, camera_id FROM images") as rows:
        return {str(name): int(camera_id) for name, camera_id in rows}


def extract(
    database: Path,
    images: Path,
    *,
    group: CameraGroup,
    names: Sequence[str],
    max_keypoints: int,
    max_side_px: int,
    masks: Path | None,
    num_threads: int,
) -> None:
    """Extract SIFT features of `names`, which belong to `group`, into the database."""
    pycolmap = load_pycolmap()
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = group.camera.model if group.camera else group.model
    reader.default_focal_length_factor = group.focal_factor
    if group.camera is not None:
        reader.camera_params = ", ".join(repr(float(p)) for p in group.camera.params)
    if masks is not None:
        reader.mask_path = str(masks)
    known = camera_ids(database)
    existing = next((known[name] for name in group.names if name in known), None)
    if existing is not None:
        reader.existing_camera_id = existing
    options = pycolmap.FeatureExtractionOptions()
    options.use_gpu = False
    options.num_threads = num_threads
    options.max_image_size = max_side_px
    options.sift.max_num_features = max_keypoints
    with quiet():
        pycolmap.extract_features(
            str(database),
            str(images),
            image_names=list(names),
            camera_mode=pycolmap.CameraMode.SINGLE,
            reader_options=reader,
            extraction_options=options,
            device=pycolmap.Device.cpu,
        )


def clear_matches(database: Path) -> None:
    """Forget all matches."""
    handle = load_pycolmap().Database.open(str(database))
    try:
        handle.clear_matches()
        handle.clear_two_view_geometries()
    finally:
        handle.close()


def match_pairs(
    database: Path, pair_list: Path, *, num_threads: int, random_seed: int
) -> None:
    """Match and verify the pairs that `pair_list` names, two names a line."""
    pycolmap = load_pycolmap()
    matching = pycolmap.FeatureMatchingOptions()
    matching.use_gpu = False
    matching.num_threads = num_threads
    pairing = pycolmap.ImportedPairingOptions()
    pairing.match_list_path = str(pair_list)
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = random_seed
    with quiet():
        pycolmap.match_image_pairs(
            str(database),
            matching_options=matching,
            pairing_options=pairing,
            verification_options=verification,
            device=pycolmap.Device.cpu,
        )


def map_images(
    database: Path,
    images: Path,
    *,
    out: Path,
    method: str,
    constant_camera_ids: Sequence[int],
    refine: bool,
    num_threads: int,
    random_seed: int,
    on_image: Callable[[], None],
) -> list[Any]:
    """Return the models that COLMAP makes, largest first.

    Parameters
    ----------
    database, images, out : Path
        Its inputs, and where it may write.
    method : {"incremental", "global"}
        Which mapper.
    constant_camera_ids : sequence of int
        Cameras whose intrinsics are known and stay.
    refine : bool
        Whether any intrinsics are free.
    num_threads, random_seed : int
        With one thread the result repeats exactly.
    on_image : callable
        Called for each registered image (incremental only).
    """
    pycolmap = load_pycolmap()
    pycolmap.set_random_seed(random_seed)
    out.mkdir(parents=True, exist_ok=True)
    with quiet():
        if method == "global":
            global_options = pycolmap.GlobalPipelineOptions()
            global_options.num_threads = num_threads
            global_options.random_seed = random_seed
            global_options.min_model_size = 3
            global_options.mapper.bundle_adjustment.refine_focal_length = refine
            global_options.mapper.bundle_adjustment.refine_extra_params = refine
            models = pycolmap.global_mapping(
                str(database), str(images), str(out), global_options
            )
        else:
            options = pycolmap.IncrementalPipelineOptions()
            options.num_threads = num_threads
            options.random_seed = random_seed
            options.min_model_size = 3
            options.ba_refine_focal_length = refine
            options.ba_refine_extra_params = refine
            options.constant_cameras = set(constant_camera_ids)
            # Read by the mapper itself, which takes its own copy in some versions.
            options.mapper.constant_cameras = set(constant_camera_ids)
            options.mapper.abs_pose_refine_focal_length = refine
            options.mapper.abs_pose_refine_extra_params = refine
            models = pycolmap.incremental_mapping(
                str(database),
                str(images),
                str(out),
                options,
                initial_image_pair_callback=on_image,
                next_image_callback=on_image,
            )
    return sorted(
        models.values(),
        key=lambda m: (m.num_reg_images(), m.num_points3D()),
        reverse=True,
    )


def adjust_bundle(
    model: Any,  # noqa: ANN401
    *,
    constant_camera_ids: Sequence[int],
    refine: bool,
    num_threads: int,
) -> None:
    """Refine points, poses and, where free, intrinsics of a whole model, in place."""
    pycolmap = load_pycolmap()
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    options.refine_focal_length = refine
    options.refine_extra_params = refine
    options.ceres.solver_options.num_threads = num_threads
    config = pycolmap.BundleAdjustmentConfig()
    for image_id in model.reg_image_ids():
        config.add_image(image_id)
    for camera_id in constant_camera_ids:
        if camera_id in model.cameras:
            config.set_constant_cam_intrinsics(camera_id)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    with quiet():
        pycolmap.create_default_bundle_adjuster(options, config, model).solve()
    model.update_point_3d_errors()


def read_model(folder: Path) -> Any:  # noqa: ANN401
    """Return a model that `write_model` wrote."""
    return load_pycolmap().Reconstruction(str(folder))


def write_model(model: Any, folder: Path) -> None:  # noqa: ANN401
    """Write a model as binary and as text."""
    folder.mkdir(parents=True, exist_ok=True)
    model.write(str(folder))
    model.write_text(str(folder))


def transform(model: Any, new_from_old: Sim3) -> None:  # noqa: ANN401
    """Change the world of a model, in place."""
    pycolmap = load_pycolmap()
    matrix = np.hstack(
        [new_from_old.scale * new_from_old.R, np.asarray(new_from_old.t)[:, None]]
    )
    model.transform(pycolmap.Sim3d(matrix))


def poses(model: Any) -> dict[str, Rigid3]:  # noqa: ANN401
    """Return ``cam_from_world`` of each registered image, by name."""
    out = {}
    for image_id in model.reg_image_ids():
        image = model.images[image_id]
        matrix = np.asarray(image.cam_from_world().matrix(), dtype=np.float64)
        out[str(image.name)] = Rigid3(R=matrix[:, :3], t=matrix[:, 3])
    return out


def cameras(model: Any) -> tuple[dict[str, str], dict[str, CameraModel]]:  # noqa: ANN401
    """Return (camera id of each registered image, camera of each camera id)."""
    of_image = {}
    for image_id in model.reg_image_ids():
        image = model.images[image_id]
        of_image[str(image.name)] = str(image.camera_id)
    found = {
        str(camera_id): CameraModel(
            model=str(camera.model_name),
            width=int(camera.width),
            height=int(camera.height),
            params=tuple(float(p) for p in camera.params),
        )
        for camera_id, camera in model.cameras.items()
    }
    return of_image, {k: v for k, v in found.items() if k in set(of_image.values())}


def model_facts(model: Any) -> dict[str, float]:  # noqa: ANN401
    """Return counts and mean errors of a model."""
    return {
        "num_registered": int(model.num_reg_images()),
        "num_points": int(model.num_points3D()),
        "num_observations": int(model.compute_num_observations()),
        "mean_reproj_error_px": float(model.compute_mean_reprojection_error()),
        "mean_track_length": float(model.compute_mean_track_length()),
        "mean_observations_per_image": float(
            model.compute_mean_observations_per_reg_image()
        ),
    }


def points_seen(model: Any) -> dict[str, int]:  # noqa: ANN401
    """Return the number of triangulated features of each registered image."""
    return {
        str(model.images[i].name): int(model.images[i].num_points3D)
        for i in model.reg_image_ids()
    }


def max_ray_angles_rad(
    model: Any,  # noqa: ANN401
    centers: Mapping[int, FloatArray],
    *,
    limit: int = 2000,
) -> FloatArray:
    """Return the widest angle under which each of some points is seen, (P,), rad.

    Parameters
    ----------
    model : Reconstruction
        The model.
    centers : mapping of int to ndarray of shape (3,)
        Camera centres by image id.
    limit : int
        At most so many points, evenly chosen.
    """
    points = list(model.points3D.values())
    step = max(1, len(points) // limit)
    angles = []
    for point in points[::step]:
        rays = np.array([centers[e.image_id] - point.xyz for e in point.track.elements])
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        cosine = np.clip((rays @ rays.T).min(), -1.0, 1.0)
        angles.append(float(np.arccos(cosine)))
    return np.asarray(angles)


def two_view_angles_rad(database: Path, pairs: Sequence[PairStats]) -> FloatArray:
    """Return the median triangulation angle of each pair, rad; 0 = pure rotation.

    For explaining why no model was found: intrinsics are the first guesses.
    """
    pycolmap = load_pycolmap()
    handle = pycolmap.Database.open(str(database))
    try:
        by_name = {image.name: image for image in handle.read_all_images()}
        angles = []
        for pair in pairs:
            a, b = by_name[pair.name_a], by_name[pair.name_b]
            points = [
                np.asarray(handle.read_keypoints(i.image_id), dtype=np.float64)[:, :2]
                for i in (a, b)
            ]
            geometry = handle.read_two_view_geometry(a.image_id, b.image_id)
            cams = [handle.read_camera(i.camera_id) for i in (a, b)]
            ok = pycolmap.estimate_two_view_geometry_pose(
                cams[0], points[0], cams[1], points[1], geometry
            )
            angles.append(max(0.0, float(geometry.tri_angle)) if ok else 0.0)
    finally:
        handle.close()
    return np.asarray(angles)
