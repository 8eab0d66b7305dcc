"""SCENE_COORDS: a head of the site says where each keypoint lies in the world; PnP.

No keyframe is looked up and no landmark matched: the head is the map [1]_ [2]_. In its
place a site may carry a network that places the cells of a whole picture, as published
ones do [2]_.

References
----------
.. [1] Shotton et al., "Scene Coordinate Regression Forests for Camera Relocalization in
   RGB-D Images", CVPR 2013.
.. [2] Brachmann, Cavallari, Prisacariu, "Accelerated Coordinate Encoding", CVPR 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from edgeloc.errors import ModelError
from edgeloc.features.mask import inside_image
from edgeloc.geometry.pnp import PnpOptions
from edgeloc.inference.head import Head
from edgeloc.inference.network import Network
from edgeloc.localize.candidate import LOST, Candidate, Query
from edgeloc.localize.fix import FixCalibration, localize_by_matches
from edgeloc.localize.integrity import IntegrityOptions
from edgeloc.types import (
    ByteArray,
    CameraModel,
    Cause,
    Features,
    Float32Array,
    FloatArray,
    Matches2D3D,
    Rung,
)

CALIBRATION = "scene_coords_calibration"
"""Of the arrays in a site's index: scale and decorrelation."""

DENSE_SIGMA_PX = 1.0
"""Of where in its cell a network sees what it places; a calibration scales it."""

_MAX_LOG_SIGMA = 20.0
_MAX_POINTS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneCoordsOptions:
    """Options of SCENE_COORDS.

    Parameters
    ----------
    max_points : int
        Keypoints used, those first of whose place the head is most certain.
    pnp : PnpOptions
        Of the pose.
    integrity : IntegrityOptions
        Gates. A network gives some place for any picture: a share of inliers that
        would do for matched descriptors proves nothing here.
    """

    max_points: int = _MAX_POINTS
    pnp: PnpOptions = field(default_factory=lambda: PnpOptions(max_error_px=8.0))
    integrity: IntegrityOptions = field(
        default_factory=lambda: IntegrityOptions(min_inliers=25, min_inlier_ratio=0.1)
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScenePoints:
    """Where a head places keypoints.

    Parameters
    ----------
    points3D : ndarray of shape (N, 3), float64
        In the world, m.
    sigmas : ndarray of shape (N,), float32
        Standard deviation along each axis, as the head has it, m.
    """

    points3D: FloatArray
    sigmas: Float32Array


def calibration_arrays(calibration: FixCalibration) -> Mapping[str, Float32Array]:
    """Return what a site stores of the calibration of its head."""
    values = [calibration.scale, calibration.decorrelation]
    return {CALIBRATION: np.array(values, np.float32)}


def calibration_of(arrays: Mapping[str, Float32Array]) -> FixCalibration:
    """Return the calibration of a site's head; `ValueError` when it is wrong."""
    values = arrays.get(CALIBRATION, np.zeros(0, np.float32))
    if values.shape != (2,):
        raise ValueError(f"{CALIBRATION} has shape {values.shape}, expected (2,)")
    return FixCalibration(scale=float(values[0]), decorrelation=float(values[1]))


def scene_points(head: Head, rows: Float32Array) -> ScenePoints:
    """Return where a head places keypoints.

    Parameters
    ----------
    head : Head
        Of the role "scene_coords".
    rows : ndarray of shape (N, D), float32
        Their descriptors, L2-normalised.

    Raises
    ------
    ModelError
        When the head fails, or gives something else.
    """
    outputs = head.run(np.ascontiguousarray(rows)[None, None])
    num = len(rows)
    points, log_sigma = outputs["points"], outputs["log_sigma"]
    if points.shape != (num, 3) or log_sigma.shape != (num, 1):
        raise ModelError(
            f"{head.path}: gives points {points.shape} and log_sigma "
            f"{log_sigma.shape} of {num} descriptors, expected ({num}, 3) and "
            f"({num}, 1)"
        )
    return ScenePoints(
        points3D=points.astype(np.float64) + np.array(head.spec.origin),
        sigmas=_sigmas(log_sigma[:, 0]),
    )


def dense_scene_points(
    network: Network,
    image: ByteArray,
    camera: CameraModel,
    *,
    mask: ByteArray | None = None,
    max_points: int = _MAX_POINTS,
) -> tuple[Query, ScenePoints]:
    """Return the centres of a picture's cells, and where a network places them.

    Parameters
    ----------
    network : Network
        Of the role "scene_coords": the decoders "dense-points", "dense-points-sigma".
    image : ndarray of shape (H, W) or (H, W, 3), uint8
        Of the size of the camera model.
    camera : CameraModel
        Intrinsics.
    mask : ndarray of shape (H, W), uint8, optional
        Cells where it is 0 are left out.
    max_points : int
        Cells used, evenly chosen where the network does not say how certain it is.

    Returns
    -------
    (Query, ScenePoints)
        With the cells as features without descriptors.

    Raises
    ------
    ModelError
        When the network fails, or gives something else.
    """
    outputs, prepared = network.run(image)
    points = outputs["points"]
    log_sigma = outputs.get("log_sigma")
    if points.ndim != 4 or points.shape[:2] != (1, 3):
        raise ModelError(
            f"{network.model.manifest_path}: gives points {points.shape}, expected "
            "(1, 3, rows, columns)"
        )
    cells = (1, 1, *points.shape[2:])
    if log_sigma is not None and log_sigma.shape != cells:
        raise ModelError(
            f"{network.model.manifest_path}: gives log_sigma {log_sigma.shape}, "
            f"expected {cells}"
        )
    cell_px = np.array(prepared.tensor.shape[:1:-1]) / points.shape[:1:-1]  # x, y
    x, y = np.meshgrid(*(np.arange(n) + 0.5 for n in points.shape[:1:-1]))
    in_tensor = np.stack([x.ravel(), y.ravel()], axis=1) * cell_px
    pixels = in_tensor * prepared.image_from_tensor
    idx = np.flatnonzero(inside_image(pixels, camera, mask=mask))
    if log_sigma is None and len(idx) > max_points:
        idx = idx[np.linspace(0, len(idx) - 1, max_points).astype(np.int64)]
    num = len(idx)
    spec = network.manifest.head
    assert spec is not None  # manifests of this role have one
    features = Features(
        keypoints=pixels[idx].astype(np.float32),
        scores=np.ones(num, np.float32),
        sigmas=np.full(num, DENSE_SIGMA_PX, np.float32),
        descriptors=np.zeros((num, 0), np.uint8),
    )
    query = Query(
        camera=camera,
        features=features,
        descriptors=np.zeros((num, 0), np.float32),
        global_descriptor=np.zeros(0, np.float32),
    )
    in_world = points[0].reshape(3, -1).T[idx].astype(np.float64)
    return query, ScenePoints(
        points3D=in_world + np.array(spec.origin),
        sigmas=np.zeros(num, np.float32)
        if log_sigma is None
        else _sigmas(log_sigma.ravel()[idx]),
    )


def _sigmas(log_sigma: Float32Array) -> Float32Array:
    return np.exp(np.clip(log_sigma, -_MAX_LOG_SIGMA, _MAX_LOG_SIGMA))


def pose_from_scene_points(
    query: Query,
    scene: ScenePoints,
    *,
    calibration: FixCalibration,
    options: SceneCoordsOptions,
) -> Candidate:
    """Return the pose that agrees with where a head places the keypoints.

    Parameters
    ----------
    query : Query
        The frame.
    scene : ScenePoints
        Of its keypoints.
    calibration : FixCalibration
        Learned on frames that the head had not seen.
    options : SceneCoordsOptions
        Options.

    Returns
    -------
    Candidate
        LOCALIZED, or LOST with the cause.
    """
    if len(query.features) < options.integrity.min_inliers:
        return replace(LOST, cause=Cause.FEW_FEATURES)
    best = np.argsort(scene.sigmas, kind="stable")[: options.max_points]
    matches = Matches2D3D(
        points2D=query.features.keypoints[best].astype(np.float64),
        points3D=scene.points3D[best],
        point3D_ids=best.astype(np.int64),
        scores=-scene.sigmas[best],
    )
    return localize_by_matches(
        matches,
        query.camera,
        rung=Rung.SCENE_COORDS,
        calibration=calibration,
        pnp=options.pnp,
        integrity=options.integrity,
        point_sigmas=scene.sigmas[best],
        pixel_sigmas=query.features.sigmas[best],
    )
