"""Cameras and scenes that the geometry tests share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeloc.geometry.camera import project, unproject
from edgeloc.geometry.se3 import exp_se3
from edgeloc.types import BoolArray, CameraModel, FloatArray, Matches2D3D, Rigid3


def _camera(model: str, *params: float, size: tuple[int, int] = (640, 480)):
    return CameraModel(model=model, width=size[0], height=size[1], params=params)


CAMERAS = {
    "simple_pinhole": _camera("SIMPLE_PINHOLE", 500, 321, 239),
    "pinhole": _camera("PINHOLE", 500, 510, 321, 239),
    "simple_radial": _camera("SIMPLE_RADIAL", 500, 321, 239, -0.2),
    "radial": _camera("RADIAL", 500, 321, 239, -0.28, 0.09),
    "opencv_euroc": _camera(
        "OPENCV",
        *(458.654, 457.296, 367.715, 248.875),
        *(-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05),
        size=(752, 480),
    ),
    "fisheye_tumvi": _camera(
        "OPENCV_FISHEYE",
        *(190.978, 190.973, 254.932, 256.897),
        *(0.0034823894, 0.0007150348, -0.0020532361, 0.0002029367),
        size=(512, 512),
    ),
    "full_opencv_tum_fr1": _camera(
        "FULL_OPENCV",
        *(517.3, 516.5, 319.1, 255.8),
        *(0.2624, -0.9531, -0.0054, 0.0026, 1.1633, 0.0, 0.0, 0.0),
    ),
    "full_opencv_azure_kinect": _camera(
        "FULL_OPENCV",
        *(608.0, 607.5, 320.0, 240.0),
        *(0.5, -2.6, 0.0008, -0.0003, 1.5, 0.38, -2.4, 1.43),
    ),
}


@dataclass(frozen=True, slots=True)
class Scene:
    """Points in front of a camera that stands metres away from the world's origin."""

    camera: CameraModel
    cam_from_world: Rigid3
    points2D: FloatArray
    points3D: FloatArray
    good: BoolArray

    def matches(self, rng: np.random.Generator, order=None) -> Matches2D3D:
        order = np.arange(len(self.good)) if order is None else order
        return Matches2D3D(
            points2D=self.points2D[order],
            points3D=self.points3D[order],
            point3D_ids=np.arange(len(self.good))[order],
            scores=np.where(
                self.good,
                rng.beta(4, 2, len(self.good)),
                rng.beta(2, 4, len(self.good)),
            ).astype(np.float32)[order],
        )


def random_pose(rng: np.random.Generator) -> Rigid3:
    return exp_se3(np.concatenate([rng.normal(size=3) * 0.6, rng.normal(size=3) * 5.0]))


def make_scene(
    rng: np.random.Generator,
    *,
    num_points: int = 100,
    outlier_ratio: float = 0.0,
    noise_px: float = 0.0,
    point_sigmas=None,
    camera: CameraModel | None = None,
) -> Scene:
    """Return points spread over the image at depths of 2 to 10 m."""
    camera = CAMERAS["pinhole"] if camera is None else camera
    size = np.array([camera.width, camera.height])
    seeds = rng.uniform(0.05 * size, 0.95 * size, (num_points, 2))
    depths = rng.uniform(2.0, 10.0, num_points)
    cam_from_world = random_pose(rng)
    points3D = cam_from_world.inverse().transform(
        unproject(camera, seeds) * depths[:, None]
    )
    points2D, _ = project(camera, cam_from_world.transform(points3D))
    points2D = points2D + noise_px * rng.normal(size=points2D.shape)
    if point_sigmas is not None:
        points3D = points3D + point_sigmas[:, None] * rng.normal(size=points3D.shape)
    good = rng.permutation(num_points) >= round(outlier_ratio * num_points)
    wrong = np.flatnonzero(~good)
    points2D[wrong] = rng.uniform([0.0, 0.0], size, (len(wrong), 2))
    return Scene(camera, cam_from_world, points2D, points3D, good)


def pose_error(estimate: Rigid3, truth: Rigid3) -> tuple[float, float]:
    """Return (rotation rad, distance of the camera centres m)."""
    R = estimate.R @ truth.R.T
    axis = np.array([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]])
    angle = np.arctan2(np.linalg.norm(axis), np.trace(R) - 1.0)
    return float(angle), float(np.linalg.norm(estimate.origin_in_a - truth.origin_in_a))
