"""Networks that somebody else trained for a site: scene coordinates, absolute poses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeloc.errors import ConfigError
from edgeloc.geometry.se3 import log_se3
from edgeloc.inference.backend import BackendOptions
from edgeloc.inference.manifest import HEADS, load_model
from edgeloc.inference.network import Network, open_network
from edgeloc.localize.candidate import Candidate
from edgeloc.localize.fix import FixCalibration
from edgeloc.localize.regress import RegressCalibration, regress_picture
from edgeloc.localize.scene_coords import (
    SceneCoordsOptions,
    calibration_arrays,
    dense_scene_points,
    pose_from_scene_points,
)
from edgeloc.tiles.add_models import add_models
from edgeloc.tiles.layout import KeyframeTable
from edgeloc.tiles.reader import open_site
from edgeloc.types import CameraModel, Float32Array, FloatArray
from edgeloc_tools.datasets.recording import RecordedImage, Recording
from edgeloc_tools.learn.head_models import site_model
from edgeloc_tools.mapping.fix_calibration import (
    calibrate_regress,
    fit_fix_calibration,
    regress_facts,
)
from edgeloc_tools.progress import Progress, silent

MAX_PICTURES = 60
WIDE_SCALE = 100.0
"""Covariances of fixes by a network that was asked nothing: ten sigmas wide."""
WIDE_TURN_RAD = np.deg2rad(60.0)
"""Standard deviation of its rotations, per axis, where it tells poses."""

_WRONG = "is it a network of this place, and origin in its manifest right?"
_RUNGS = {"scene_coords": "SCENE_COORDS", "regress": "REGRESS"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asked:
    """What a network said about pictures whose poses are known.

    Parameters
    ----------
    num_pictures : int
        Pictures asked.
    errors : ndarray of shape (n, 6), float64
        xi with ``cam_from_world_true = Exp(xi) @ cam_from_world`` of those answered.
    covariances : ndarray of shape (n, 6, 6), float64
        As claimed without calibration.
    off : ndarray of shape (n, 2), float64
        Distance of the camera centres, m, and angle, rad.
    """

    num_pictures: int
    errors: FloatArray
    covariances: FloatArray
    off: FloatArray


def attach_network(
    site_path: Path,
    manifest_path: Path,
    *,
    recording: Recording | None = None,
    progress: Progress = silent,
) -> dict[str, object]:
    """Make a network part of a site.

    Parameters
    ----------
    site_path : Path
        The site; it becomes its next version.
    manifest_path : Path
        Of the network, which takes pictures and gives scene coordinates or poses in
        the site's world.
    recording : Recording, optional
        Pictures with poses in the site's world, best such as the network has not seen:
        what it is off by on them is what its covariances say from now on. Without, they
        are as wide as the constants above say, and positions as the site.
    progress : callable
        Told about each picture.

    Returns
    -------
    dict
        Facts for people.

    Raises
    ------
    ConfigError
        When it is no such network, or useless on the recording; the site is as before.
    MapError, ModelError
        When the site or the network cannot be used.
    """
    model = load_model(manifest_path)
    role = model.manifest.role
    if role not in HEADS or not model.manifest.takes_pictures:
        raise ConfigError(
            f"{manifest_path}: role is {role!r}, decoder {model.manifest.decoder!r}; "
            "only networks that take pictures and give scene coordinates or poses can "
            "be attached (models/MANIFEST.md)"
        )
    options = BackendOptions(backend="ort-cpu")
    network = open_network(manifest_path, role=role, options=options)
    site = open_site(site_path)
    asked = None
    if recording is not None:
        asked = _ask(network, role, recording, progress=progress)
        if len(asked.off) == 0:
            raise ConfigError(
                f"{manifest_path}: answers none of {asked.num_pictures} pictures of "
                f"{recording.name}; {_WRONG}"
            )
    spread = _spread(site.keyframes)
    arrays, facts = (
        _calibrate_fixes(asked)
        if role == "scene_coords"
        else _calibrate_poses(asked, str(manifest_path), spread=spread)
    )
    manifest = add_models(
        site_path,
        {role: site_model(role, manifest_path)},
        rungs=(_RUNGS[role],),
        arrays=arrays,
    )
    if asked is not None:
        facts |= {
            "pictures": asked.num_pictures,
            "answered": len(asked.off),
            "median_error": round(float(np.median(asked.off[:, 0])), 5),
            "median_error_deg": round(float(np.rad2deg(np.median(asked.off[:, 1]))), 3),
        }
    return {
        "site": str(site_path),
        "map_id": manifest.map_id,
        "role": role,
        "model": model.manifest.name,
        "bytes": manifest.models[role].network.num_bytes,
        "calibrated": asked is not None,
        **facts,
    }


def _ask(
    network: Network, role: str, recording: Recording, *, progress: Progress
) -> Asked:
    images = recording.posed().images
    images = images[:: -(-len(images) // MAX_PICTURES)]
    errors, covariances, off = [], [], []
    for number, image in enumerate(images):
        progress("pictures", number + 1, len(images))
        fix = _answer(network, role, image, recording.cameras[image.camera_id])
        true, found = image.cam_from_world, fix.cam_from_world
        if true is None or found is None or fix.covariance is None:
            continue
        xi = log_se3(true @ found.inverse())
        errors.append(xi)
        covariances.append(fix.covariance)
        moved = float(np.linalg.norm(true.origin_in_a - found.origin_in_a))
        off.append([moved, float(np.linalg.norm(xi[:3]))])
    return Asked(
        num_pictures=len(images),
        errors=np.array(errors).reshape(-1, 6),
        covariances=np.array(covariances).reshape(-1, 6, 6),
        off=np.array(off).reshape(-1, 2),
    )


def _answer(
    network: Network, role: str, image: RecordedImage, camera: CameraModel
) -> Candidate:
    picture = image.source.read()
    if role == "regress":
        unit = RegressCalibration(position_sigma=1.0, rotation_sigma_rad=1.0)
        return regress_picture(network, picture, calibration=unit)
    query, scene = dense_scene_points(network, picture, camera, mask=image.read_mask())
    return pose_from_scene_points(
        query, scene, calibration=FixCalibration(), options=SceneCoordsOptions()
    )


def _spread(keyframes: KeyframeTable) -> float:
    """Return how far keyframes are from their middle, per axis: what a guess is off."""
    off = keyframes.centers - keyframes.centers.mean(axis=0)
    return max(float(np.sqrt(np.mean(off**2))), 1e-6)


def _calibrate_fixes(
    asked: Asked | None,
) -> tuple[Mapping[str, Float32Array], dict[str, object]]:
    if asked is None:
        calibration = FixCalibration(scale=WIDE_SCALE)
    else:
        calibration = fit_fix_calibration(list(asked.errors), list(asked.covariances))
    facts: dict[str, object] = {"covariance_scale": round(calibration.scale, 3)}
    return calibration_arrays(calibration), facts


def _calibrate_poses(
    asked: Asked | None, where: str, *, spread: float
) -> tuple[Mapping[str, Float32Array], dict[str, object]]:
    if asked is None:
        calibration = RegressCalibration(
            position_sigma=spread, rotation_sigma_rad=WIDE_TURN_RAD
        )
    else:
        calibration = calibrate_regress(asked.off)
        if calibration.position_sigma > spread:
            raise ConfigError(
                f"{where}: is off by {np.median(asked.off[:, 0]):.3g} m on the "
                f"recording, a guess by {spread:.3g} m per axis; {_WRONG}"
            )
    return calibration.to_arrays(), regress_facts(calibration)
