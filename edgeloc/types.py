"""Boundary types: what the parts of edgeloc hand to each other.

All are frozen, slotted, keyword-only dataclasses, checked when they are made.

Conventions
-----------
Transforms are named ``b_from_a`` and map points ``x_in_a`` to ``x_in_b``. The camera
looks along +z, x to the right, y down. Pixels have their origin at the *corner* of the
first pixel, whose centre is (0.5, 0.5), as in COLMAP. Quaternions appear only in text,
as (w, x, y, z), Hamilton, w >= 0.

Covariance of a pose: 6x6, of the *left* perturbation on SE(3),
``cam_from_world_true = Exp(xi) @ cam_from_world`` with xi = (rotation rad,
translation m), both in the camera frame.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from edgeloc.clock import Clock

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]


class PoseStatus(str, enum.Enum):
    """What evidence stands behind a pose."""

    LOCALIZED = "LOCALIZED"
    """This frame, against the geometry of the map."""
    COARSE = "COARSE"
    """Retrieval or regression only, or a fix through a lens that does not fit."""
    PREDICTED = "PREDICTED"
    """Motion only."""
    LOST = "LOST"
    """No pose."""


class Rung(str, enum.Enum):
    """Which path answered, best first."""

    TRACK = "TRACK"
    RELOCALIZE = "RELOCALIZE"
    SCENE_COORDS = "SCENE_COORDS"
    LOCAL_SFM = "LOCAL_SFM"
    RELATIVE = "RELATIVE"
    INTERPOLATE = "INTERPOLATE"
    REGRESS = "REGRESS"
    PREDICT = "PREDICT"
    LOST = "LOST"


class Cause(str, enum.Enum):
    """Why no better rung answered."""

    NONE = "NONE"
    DEADLINE = "DEADLINE"
    FEW_FEATURES = "FEW_FEATURES"
    FEW_MATCHES = "FEW_MATCHES"
    FEW_INLIERS = "FEW_INLIERS"
    AMBIGUOUS = "AMBIGUOUS"
    TILE_MISSING = "TILE_MISSING"
    TILE_CORRUPT = "TILE_CORRUPT"
    BACKEND_ERROR = "BACKEND_ERROR"
    CAMERA_STALL = "CAMERA_STALL"
    WRONG_INTRINSICS = "WRONG_INTRINSICS"


CAMERA_MODEL_NUM_PARAMS: Mapping[str, int] = MappingProxyType(
    {
        "SIMPLE_PINHOLE": 3,  # f, cx, cy
        "PINHOLE": 4,  # fx, fy, cx, cy
        "SIMPLE_RADIAL": 4,  # f, cx, cy, k1
        "RADIAL": 5,  # f, cx, cy, k1, k2
        "OPENCV": 8,  # fx, fy, cx, cy, k1, k2, p1, p2
        "OPENCV_FISHEYE": 8,  # fx, fy, cx, cy, k1, k2, k3, k4
        "FULL_OPENCV": 12,  # fx, fy, cx, cy, k1, k2, p1, p2, k3, k4, k5, k6
    }
)
"""The camera models, with COLMAP's names and parameter order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One camera image.

    Parameters
    ----------
    frame_id : int
        Counts the frames of one source from 0.
    camera_id : str
        Which camera took it.
    timestamp_ns : int
        Monotonic capture time, mid-exposure where the driver tells it.
    image : ndarray of shape (H, W) or (H, W, 3), uint8
        Grey, or BGR as OpenCV reads it.
    source : str
        File name or device, for people.
    """

    frame_id: int
    camera_id: str
    timestamp_ns: int
    image: ByteArray
    source: str = ""

    def __post_init__(self) -> None:
        shape = self.image.shape
        grey_or_bgr = self.image.ndim == 2 or (self.image.ndim == 3 and shape[2] == 3)
        if not grey_or_bgr or self.image.size == 0 or self.image.dtype != np.uint8:
            raise ValueError(
                f"image is {self.image.dtype} of shape {shape}, expected uint8 of "
                "shape (H, W) or (H, W, 3)"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraModel:
    """Intrinsics of one camera.

    Parameters
    ----------
    model : str
        A key of `CAMERA_MODEL_NUM_PARAMS`.
    width, height : int
        Image size, px.
    params : tuple of float
        In COLMAP's order; focal lengths and principal point in px, corner convention.
    """

    model: str
    width: int
    height: int
    params: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", tuple(float(p) for p in self.params))
        if self.model not in CAMERA_MODEL_NUM_PARAMS:
            raise ValueError(
                f"camera model {self.model!r} is unknown, expected one of "
                f"{', '.join(CAMERA_MODEL_NUM_PARAMS)}"
            )
        expected = CAMERA_MODEL_NUM_PARAMS[self.model]
        if len(self.params) != expected:
            raise ValueError(
                f"{self.model} takes {expected} parameters, got {len(self.params)}"
            )
        if not np.all(np.isfinite(self.params)):
            raise ValueError(f"camera parameters must be finite, got {self.params}")
        if self.width <= 0 or self.height <= 0:
            raise ValueError(f"camera size {self.width}x{self.height} must be positive")
        if not all(f > 0 for f in self.focal_px):
            raise ValueError(f"focal length must be > 0, got {self.focal_px}")

    @property
    def has_single_focal(self) -> bool:
        """Whether one parameter serves as both focal lengths."""
        return self.model in {"SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL"}

    @property
    def focal_px(self) -> tuple[float, float]:
        """(fx, fy)."""
        first = self.params[0]
        return (first, first) if self.has_single_focal else (first, self.params[1])

    @property
    def principal_point_px(self) -> tuple[float, float]:
        """(cx, cy), corner convention."""
        start = 1 if self.has_single_focal else 2
        return self.params[start], self.params[start + 1]

    @property
    def distortion(self) -> tuple[float, ...]:
        """The distortion coefficients, in the model's own order; () for pinholes."""
        return self.params[3 if self.has_single_focal else 4 :]


def _readonly_f64(
    value: npt.ArrayLike, shape: tuple[int, ...], name: str
) -> FloatArray:
    array = np.array(value, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} must be finite, got {array.tolist()}")
    array.flags.writeable = False
    return array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rigid3:
    """A rigid transform ``b_from_a``: ``x_in_b = R @ x_in_a + t``.

    Parameters
    ----------
    R : array_like of shape (3, 3)
        Rotation matrix (orthonormal to 1e-6, determinant +1).
    t : array_like of shape (3,)
        Translation, in the unit of the map (m when the map is metric).
    """

    R: FloatArray
    t: FloatArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "R", _readonly_f64(self.R, (3, 3), "R"))
        object.__setattr__(self, "t", _readonly_f64(self.t, (3,), "t"))
        if not (
            # First, since the product of large numbers would overflow.
            np.abs(self.R).max() < 1.1
            and np.abs(self.R @ self.R.T - np.eye(3)).max() < 1e-6
            and np.linalg.det(self.R) > 0
        ):
            raise ValueError(f"R is not a rotation: {self.R.tolist()}")

    @staticmethod
    def identity() -> Rigid3:
        """Return the transform that changes nothing."""
        return Rigid3(R=np.eye(3), t=np.zeros(3))

    def inverse(self) -> Rigid3:
        """Return ``a_from_b``."""
        return Rigid3(R=self.R.T, t=-self.R.T @ self.t)

    def __matmul__(self, a_from_c: Rigid3) -> Rigid3:
        """Return ``b_from_c = b_from_a @ a_from_c``."""
        return Rigid3(R=self.R @ a_from_c.R, t=self.R @ a_from_c.t + self.t)

    def transform(self, points_in_a: npt.ArrayLike) -> FloatArray:
        """Return points in b.

        Parameters
        ----------
        points_in_a : array_like of shape (..., 3)
            Points in a.

        Returns
        -------
        ndarray of shape (..., 3), float64
        """
        points = np.asarray(points_in_a, dtype=np.float64)
        return np.asarray(points @ self.R.T + self.t)

    @property
    def origin_in_a(self) -> FloatArray:
        """Origin of frame b in a; for ``cam_from_world`` the camera centre, (3,)."""
        return np.asarray(-self.R.T @ self.t)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features:
    """Local features of one image.

    Parameters
    ----------
    keypoints : ndarray of shape (N, 2), float32
        Positions, px, corner convention.
    scores : ndarray of shape (N,), float32
        Detection strength, larger is better.
    sigmas : ndarray of shape (N,), float32
        Standard deviation of each position along each axis, px, up to a factor that all
        share; 1 where the extractor cannot tell.
    descriptors : ndarray of shape (N, D)
        In the family's stored form (uint8 for ORB and SIFT); `FeatureFamily.decode`
        makes L2-normalised float32 rows of them.
    """

    keypoints: Float32Array
    scores: Float32Array
    sigmas: Float32Array
    descriptors: npt.NDArray[np.generic]

    def __post_init__(self) -> None:
        n = len(self.keypoints)
        if (
            self.keypoints.shape != (n, 2)
            or self.scores.shape != (n,)
            or self.sigmas.shape != (n,)
        ):
            raise ValueError(
                f"keypoints {self.keypoints.shape}, scores {self.scores.shape} and "
                f"sigmas {self.sigmas.shape} must be (N, 2), (N,) and (N,)"
            )
        if self.descriptors.ndim != 2 or len(self.descriptors) != n:
            raise ValueError(f"descriptors {self.descriptors.shape} must be ({n}, D)")

    def __len__(self) -> int:
        return len(self.keypoints)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RetrievalResult:
    """The keyframes most similar to a query.

    Parameters
    ----------
    keyframe_ids : ndarray of shape (K,), int64
        Ids, best first.
    scores : ndarray of shape (K,), float32
        Cosine similarities, descending.
    """

    keyframe_ids: IntArray
    scores: Float32Array

    def __post_init__(self) -> None:
        if self.keyframe_ids.shape != self.scores.shape or self.scores.ndim != 1:
            raise ValueError(
                f"keyframe_ids {self.keyframe_ids.shape} and scores "
                f"{self.scores.shape} must both be (K,)"
            )
        if np.any(np.diff(self.scores) > 0):
            raise ValueError("scores must be descending")

    def __len__(self) -> int:
        return len(self.keyframe_ids)

    def best(self, count: int) -> RetrievalResult:
        """Return the first `count` of them, or all there are."""
        return RetrievalResult(
            keyframe_ids=self.keyframe_ids[:count], scores=self.scores[:count]
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matches2D3D:
    """Image points matched to landmarks.

    Parameters
    ----------
    points2D : ndarray of shape (M, 2), float64
        Image positions, px.
    points3D : ndarray of shape (M, 3), float64
        Landmark positions in the world, m.
    point3D_ids : ndarray of shape (M,), int64
        Landmark ids.
    scores : ndarray of shape (M,), float32
        Match quality, larger is better (PROSAC order).
    """

    points2D: FloatArray
    points3D: FloatArray
    point3D_ids: IntArray
    scores: Float32Array

    def __post_init__(self) -> None:
        m = len(self.points2D)
        if (
            self.points2D.shape != (m, 2)
            or self.points3D.shape != (m, 3)
            or self.point3D_ids.shape != (m,)
            or self.scores.shape != (m,)
        ):
            raise ValueError(
                f"points2D {self.points2D.shape}, points3D {self.points3D.shape}, "
                f"point3D_ids {self.point3D_ids.shape} and scores {self.scores.shape} "
                "must be (M, 2), (M, 3), (M,) and (M,)"
            )

    def __len__(self) -> int:
        return len(self.points2D)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoseEstimate:
    """The answer for one frame: always one, never silent about what it is worth.

    The pose is None exactly when the status is LOST; the covariance is None exactly
    when the pose is.

    Parameters
    ----------
    frame_id, timestamp_ns : int
        Of the frame.
    status : PoseStatus
        What evidence stands behind the pose.
    rung : Rung
        Which path answered.
    cause : Cause
        Why no better rung answered.
    cam_from_world : Rigid3 or None
        The pose.
    covariance : array_like of shape (6, 6) or None
        See the module's docstring.
    num_matches, num_inliers : int
        2D-3D matches found and kept.
    reproj_rmse_px : float
        Of the inliers; 0 without any.
    latency_ns : int
        From capture to answer.
    deadline_met : bool
        Whether that was within the budget.
    stage_ns : mapping of str to int
        Time in each stage.
    map_id : str
        Which site answered.
    """

    frame_id: int
    timestamp_ns: int
    status: PoseStatus
    rung: Rung
    cause: Cause
    cam_from_world: Rigid3 | None
    covariance: FloatArray | None
    num_matches: int = 0
    num_inliers: int = 0
    reproj_rmse_px: float = 0.0
    latency_ns: int = 0
    deadline_met: bool = True
    stage_ns: Mapping[str, int] = field(default_factory=dict)
    map_id: str = ""

    def __post_init__(self) -> None:
        if (self.cam_from_world is None) != (self.status is PoseStatus.LOST):
            raise ValueError(f"a pose is None exactly when LOST, got {self.status}")
        if (self.status is PoseStatus.LOST) != (self.rung is Rung.LOST):
            raise ValueError(f"status {self.status} does not go with rung {self.rung}")
        if (self.covariance is None) != (self.cam_from_world is None):
            raise ValueError("the covariance is None exactly when the pose is")
        if self.covariance is not None:
            covariance = _readonly_f64(self.covariance, (6, 6), "covariance")
            if np.abs(covariance - covariance.T).max() > 1e-6 * covariance.max():
                raise ValueError("the covariance must be symmetric")
            if not np.all(np.diag(covariance) > 0):
                raise ValueError("the covariance must have a positive diagonal")
            object.__setattr__(self, "covariance", covariance)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameBudget:
    """The time one frame may take.

    Parameters
    ----------
    start_ns, deadline_ns : int
        On `clock`.
    clock : Clock
        What tells the time.
    """

    start_ns: int
    deadline_ns: int
    clock: Clock

    def __post_init__(self) -> None:
        if self.deadline_ns < self.start_ns:
            raise ValueError(f"{self.deadline_ns=} is before {self.start_ns=}")

    @property
    def remaining_ns(self) -> int:
        """Time left, negative when late."""
        return self.deadline_ns - self.clock.now_ns()

    def allows(self, cost_ns: int) -> bool:
        """Return whether something that takes `cost_ns` still fits."""
        return self.remaining_ns >= cost_ns
