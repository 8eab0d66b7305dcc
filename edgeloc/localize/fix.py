"""The LOCALIZED answer that 2D-3D matches make, and how honest its covariance is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgeloc.geometry.pnp import PnpOptions, PnpResult, estimate_pose
from edgeloc.localize.candidate import LOST, Candidate
from edgeloc.localize.integrity import IntegrityOptions, is_sound, witnesses
from edgeloc.types import (
    CameraModel,
    Cause,
    Float32Array,
    FloatArray,
    Matches2D3D,
    PoseStatus,
    Rung,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FixCalibration:
    """What a site's own held-out frames say about the covariance of a fix.

    The covariance of a pose comes from the noise of its inliers, as if they were
    independent. Neighbouring landmarks are off together, and the poses of mapping and
    query images have errors of their own, which makes fixes worse by a factor. It also
    breaks what noise alone would couple: a turn of the camera and the shift that
    explains nearly the same pixels.

    Parameters
    ----------
    scale : float
        What the covariance of the inliers is multiplied with, > 0.
    decorrelation : float
        How much less rotation and translation go together than the inliers say, in
        [0, 1]: their cross-covariance is multiplied with one minus this.
    """

    scale: float = 1.0
    decorrelation: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"{self.scale=} must be > 0")
        if not 0.0 <= self.decorrelation <= 1.0:
            raise ValueError(f"{self.decorrelation=} must be in [0, 1]")

    def to_arrays(self) -> Mapping[str, Float32Array]:
        """Return what a site stores beside its `covariance_scale`."""
        return {"fix_calibration": np.array([self.decorrelation], np.float32)}

    @staticmethod
    def of_site(scale: float, arrays: Mapping[str, Float32Array]) -> FixCalibration:
        """Return the calibration of a site; without decorrelation where it has none.

        Parameters
        ----------
        scale : float
            `SiteManifest.covariance_scale`.
        arrays : mapping of str to ndarray
            `Site.retrieval_arrays`.

        Raises
        ------
        ValueError
            When the array is not what `to_arrays` gives.
        """
        values = arrays.get("fix_calibration", np.zeros(1, np.float32))
        if values.shape != (1,):
            raise ValueError(f"fix_calibration has shape {values.shape}, expected (1,)")
        return FixCalibration(scale=scale, decorrelation=float(values[0]))

    def to_array(self) -> Float32Array:
        """Return both numbers, as sites store those of methods without landmarks."""
        return np.array([self.scale, self.decorrelation], np.float32)

    @staticmethod
    def from_array(values: Float32Array) -> FixCalibration:
        """Return the calibration of `to_array`; `ValueError` when it is none."""
        if values.shape != (2,):
            raise ValueError(f"a calibration has shape {values.shape}, expected (2,)")
        return FixCalibration(scale=float(values[0]), decorrelation=float(values[1]))

    def applied(self, covariance: FloatArray) -> FloatArray:
        """Return the honest covariance of one that comes from inliers, (..., 6, 6)."""
        out = self.scale * covariance
        out[..., :3, 3:] *= 1.0 - self.decorrelation
        out[..., 3:, :3] *= 1.0 - self.decorrelation
        return np.asarray(out)


def dependence(
    result: PnpResult,
    matches: Matches2D3D,
    camera: CameraModel,
    options: IntegrityOptions,
) -> float:
    """Return how many inliers there are for each independent one, at least 1.

    Inliers on one spot share their errors, so that a covariance that counts each of
    them is too small by this factor.
    """
    independent = witnesses(result, matches, camera, options.cell_px)
    return max(result.num_inliers / max(independent, 1), 1.0)


def fix_covariance(
    result: PnpResult,
    matches: Matches2D3D,
    camera: CameraModel,
    *,
    calibration: FixCalibration,
    options: IntegrityOptions,
) -> FloatArray:
    """Return the honest covariance of a pose, (6, 6).

    Parameters
    ----------
    result : PnpResult
        The pose and its inliers.
    matches : Matches2D3D
        What it was computed from.
    camera : CameraModel
        Intrinsics.
    calibration : FixCalibration
        Of the site.
    options : IntegrityOptions
        What makes two inliers one witness.
    """
    return calibration.applied(
        result.covariance * dependence(result, matches, camera, options)
    )


def fix_from_pnp(
    result: PnpResult,
    matches: Matches2D3D,
    camera: CameraModel,
    *,
    rung: Rung,
    calibration: FixCalibration,
    integrity: IntegrityOptions,
    point_sigmas: Float32Array | None = None,
    pixel_sigmas: Float32Array | None = None,
) -> Candidate:
    """Return the LOCALIZED candidate that a sound pose is told as.

    Parameters
    ----------
    result : PnpResult
        The pose.
    matches : Matches2D3D
        What it was computed from.
    camera : CameraModel
        Intrinsics of the frame.
    rung : Rung
        The method.
    calibration : FixCalibration
        Of its covariance.
    integrity : IntegrityOptions
        What counts as a witness of its own.
    point_sigmas, pixel_sigmas : ndarray of shape (M,), float32, or None
        Standard deviations of the two ends of `matches`, m and px.
    """
    return Candidate(
        status=PoseStatus.LOCALIZED,
        rung=rung,
        cause=Cause.NONE,
        cam_from_world=result.cam_from_world,
        covariance=fix_covariance(
            result, matches, camera, calibration=calibration, options=integrity
        ),
        matches=matches,
        inlier_mask=result.inlier_mask,
        reproj_rmse_px=result.reproj_rmse_px,
        point_sigmas=point_sigmas,
        pixel_sigmas=pixel_sigmas,
    )


def localize_by_matches(
    matches: Matches2D3D,
    camera: CameraModel,
    *,
    rung: Rung,
    calibration: FixCalibration,
    pnp: PnpOptions,
    integrity: IntegrityOptions,
    point_sigmas: Float32Array,
    pixel_sigmas: Float32Array,
) -> Candidate:
    """Return the pose that 2D-3D matches from any source agree on.

    Parameters
    ----------
    matches : Matches2D3D
        The matches.
    camera : CameraModel
        Intrinsics of the frame.
    rung : Rung
        The method that found them.
    calibration : FixCalibration
        Of its covariance.
    pnp : PnpOptions
        How the pose is estimated.
    integrity : IntegrityOptions
        When it is sound.
    point_sigmas, pixel_sigmas : ndarray of shape (M,), float32
        Standard deviations of the two ends of `matches`, m and px.

    Returns
    -------
    Candidate
        LOCALIZED, or LOST for FEW_INLIERS.
    """
    result = estimate_pose(
        matches,
        camera,
        options=pnp,
        point_sigmas=point_sigmas,
        pixel_sigmas=pixel_sigmas,
    )
    if result is None or not is_sound(result, matches, camera, integrity):
        mask = None if result is None else result.inlier_mask
        return replace(LOST, cause=Cause.FEW_INLIERS, matches=matches, inlier_mask=mask)
    return fix_from_pnp(
        result,
        matches,
        camera,
        rung=rung,
        calibration=calibration,
        integrity=integrity,
        point_sigmas=point_sigmas,
        pixel_sigmas=pixel_sigmas,
    )
