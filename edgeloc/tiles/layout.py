"""What a site holds, in memory: the arrays that the writer takes and readers give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeloc.tiles.bits import offsets_of, ranges
from edgeloc.types import CameraModel, Float32Array, FloatArray, IntArray, Rigid3

LANDMARK_BITS = 24
"""The id of a landmark is its tile's row, shifted by these, plus its place in the tile.

Ids are those of an open site: the next version of a map may number its tiles anew.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilySpec:
    """Which feature family a site was built with, and how.

    Parameters
    ----------
    name : str
        "orb", "sift" or the name in a model manifest.
    stored_dtype : str
        NumPy name of the stored descriptors' element type, "uint8" for ORB and SIFT.
    stored_dim : int
        Elements of a stored descriptor.
    max_keypoints : int
        Keypoints per mapping image, the default for queries.
    max_side_px : int
        Images are scaled down so that no side is longer; 0 = never.
    coding : str
        "plain", or "pq" when the stored descriptors are codes of the site's codebook
        "descriptors".
    """

    name: str
    stored_dtype: str
    stored_dim: int
    max_keypoints: int
    max_side_px: int = 0
    coding: str = "plain"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Codebook:
    """What turns codes back into descriptors.

    Parameters
    ----------
    name : str
        For people.
    arrays : mapping of str to ndarray
        Of float32, float16, int8, uint8, uint16 or uint32; finite.
    """

    name: str
    arrays: Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SiteModel:
    """A network that a site carries, as `edgeloc.inference.manifest` reads it.

    Parameters
    ----------
    name : str
        In its manifest.
    manifest : bytes
        The manifest, which names its network as the site does (`MODEL_NETWORKS`).
    network : bytes
        The ONNX file.
    """

    name: str
    manifest: bytes
    network: bytes


class KeyframePoses(Protocol):
    """Poses of keyframes, ``cam_from_world``, given on demand by their indices."""

    def __len__(self) -> int: ...

    def rotations_of(self, keyframe_idx: IntArray) -> FloatArray:
        """Return rotations of ``cam_from_world``, (n, 3, 3)."""
        ...

    def centers_of(self, keyframe_idx: IntArray) -> FloatArray:
        """Return camera centres in the world, (n, 3), m."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoseArrays:
    """Poses in memory, as a builder has them.

    Parameters
    ----------
    R : ndarray of shape (K, 3, 3), float64
        Rotations of ``cam_from_world``.
    t : ndarray of shape (K, 3), float64
        Translations of ``cam_from_world``.
    """

    R: FloatArray
    t: FloatArray

    def __len__(self) -> int:
        return len(self.R)

    def rotations_of(self, keyframe_idx: IntArray) -> FloatArray:
        """Return rotations of ``cam_from_world``, (n, 3, 3)."""
        return np.asarray(self.R[keyframe_idx])

    def centers_of(self, keyframe_idx: IntArray) -> FloatArray:
        """Return camera centres in the world, (n, 3), m."""
        R, t = self.R[keyframe_idx], self.t[keyframe_idx]
        return np.asarray(-np.einsum("kji,kj->ki", R, t))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeyframeTable:
    """Keyframes of a site: the resident index.

    Parameters
    ----------
    keyframe_ids : ndarray of shape (K,), int64
        Unique, not negative.
    camera_ids : sequence of str
        Key into the site's cameras, one per keyframe.
    poses : KeyframePoses
        In memory, or decoded when they are asked for.
    global_codes : ndarray of shape (K, G)
        Global descriptors in their stored form, maybe mapped from disk. How they are
        decoded is the business of who made them.
    """

    keyframe_ids: IntArray
    camera_ids: Sequence[str]
    poses: KeyframePoses
    global_codes: npt.NDArray[np.generic]
    _by_id: list[IntArray] = field(init=False, repr=False, default_factory=list)
    """Indices in the order of the ids, once somebody has asked for an id."""
    _centers: list[FloatArray] = field(init=False, repr=False, default_factory=list)
    """Of all keyframes, once somebody has asked for them: who does will do so again."""

    def __len__(self) -> int:
        return len(self.keyframe_ids)

    def cam_from_world(self, keyframe_idx: int) -> Rigid3:
        """Return the pose of one keyframe, by its index."""
        idx = np.array([keyframe_idx])
        [R], [center] = self.poses.rotations_of(idx), self.poses.centers_of(idx)
        return Rigid3(R=R, t=-R @ center)

    @property
    def R(self) -> FloatArray:
        """Rotations of ``cam_from_world`` of all keyframes, (K, 3, 3)."""
        return self.poses.rotations_of(np.arange(len(self)))

    @property
    def t(self) -> FloatArray:
        """Translations of ``cam_from_world`` of all keyframes, (K, 3), m."""
        return np.asarray(-np.einsum("kij,kj->ki", self.R, self.centers))

    @property
    def centers(self) -> FloatArray:
        """Camera centres of all keyframes, (K, 3), m; kept, 24 bytes per keyframe."""
        if not self._centers:
            centers = self.poses.centers_of(np.arange(len(self)))
            centers.flags.writeable = False
            self._centers.append(centers)
        return self._centers[0]

    def centers_of(self, keyframe_idx: IntArray) -> FloatArray:
        """Return the camera centres of a few keyframes, by their indices, (n, 3), m."""
        return self.poses.centers_of(keyframe_idx)

    def rotations_of(self, keyframe_idx: IntArray) -> FloatArray:
        """Return rotations of ``cam_from_world`` of a few keyframes, (n, 3, 3)."""
        return self.poses.rotations_of(keyframe_idx)

    def index_of(self, keyframe_ids: IntArray) -> IntArray:
        """Return the indices of ids; `KeyError` for one that does not exist."""
        if not self._by_id:
            self._by_id.append(np.argsort(self.keyframe_ids))
        [by_id] = self._by_id
        place = np.searchsorted(self.keyframe_ids, keyframe_ids, sorter=by_id)
        idx = by_id[np.minimum(place, len(by_id) - 1)]
        if not np.array_equal(self.keyframe_ids[idx], keyframe_ids):
            raise KeyError(f"no such keyframe among {np.asarray(keyframe_ids)}")
        return np.asarray(idx, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LandmarkTable:
    """Landmarks: one point each, with one or more descriptors.

    Parameters
    ----------
    points3D : ndarray of shape (P, 3), float64
        Positions in the world, m.
    sigmas : ndarray of shape (P,), float32
        Standard deviation of the position across the line of sight, along each axis, m.
    num_observations : ndarray of shape (P,), int64
        Mapping images in which the landmark was measured.
    descriptor_offsets : ndarray of shape (P + 1,), int64
        Rows of `descriptors` that belong to landmark i: [offsets[i], offsets[i + 1]).
    descriptors : ndarray of shape (D_rows, stored_dim)
        In the family's stored form.
    """

    points3D: FloatArray
    sigmas: Float32Array
    num_observations: IntArray
    descriptor_offsets: IntArray
    descriptors: npt.NDArray[np.generic]

    def __len__(self) -> int:
        return len(self.points3D)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeyframeFeatures:
    """Local features of keyframes: all that methods without 3D points need of them.

    Parameters
    ----------
    offsets : ndarray of shape (K + 1,), int64
        Rows that belong to keyframe i: [offsets[i], offsets[i + 1]), the most useful
        ones first.
    keypoints : ndarray of shape (F, 2), float32
        Positions, px, corner convention.
    sigmas : ndarray of shape (F,), float32
        Of the positions, as in `edgeloc.types.Features`.
    descriptors : ndarray of shape (F, stored_dim)
        In the family's stored form.
    """

    offsets: IntArray
    keypoints: Float32Array
    sigmas: Float32Array
    descriptors: npt.NDArray[np.generic]

    def __len__(self) -> int:
        return len(self.keypoints)

    @property
    def num_bytes(self) -> int:
        """Memory that the arrays take."""
        arrays = (self.offsets, self.keypoints, self.sigmas, self.descriptors)
        return sum(array.nbytes for array in arrays)

    def of(self, keyframe_idx: IntArray) -> KeyframeFeatures:
        """Return the features of some keyframes, in their order."""
        starts = self.offsets[keyframe_idx]
        counts = self.offsets[keyframe_idx + 1] - starts
        rows = ranges(starts, counts)
        return KeyframeFeatures(
            offsets=offsets_of(counts),
            keypoints=self.keypoints[rows],
            sigmas=self.sigmas[rows],
            descriptors=self.descriptors[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SiteContents:
    """Everything that the writer turns into a site folder.

    Parameters
    ----------
    name : str
        For people.
    metric : bool
        Whether the world's unit is the metre.
    cameras : mapping of str to CameraModel
        Of the mapping images; the only one is the default for queries.
    family : FamilySpec
        Feature family.
    keyframes : KeyframeTable
        Keyframes.
    landmarks : LandmarkTable
        Landmarks; a landmark's id is given by the writer.
    visible_offsets : ndarray of shape (K + 1,), int64
        Entries of `visible_landmark_idx` that belong to keyframe i.
    visible_landmark_idx : ndarray of shape (V,), int64
        Indices into `landmarks`, ascending within each keyframe.
    retrieval_arrays : mapping of str to ndarray
        The retrieval model's arrays, see `edgeloc.features.retrieve`; of the types that
        a `Codebook` may have.
    rungs : tuple of str
        Names of the `Rung` members that the site carries data for.
    models : mapping of str to SiteModel
        Networks that the site was built with, by role: "features", "retrieval".
    covariance_scale : float
        What the covariance of a fix is multiplied with, learned at build time.
    gravity_in_world : tuple of 3 float or None
        Unit vector that points down.
    geo_reference : mapping of str to float or None
        WGS84 latitude_deg, longitude_deg, altitude_m of the world's origin, when the
        world is ENU.
    build : mapping of str to (str, int or float)
        Facts about the build, for people (tool version, options, image count).
    codebooks : mapping of str to Codebook
        What the codes of descriptors stand for, by role: "descriptors", "global".
    global_coding : str
        How `KeyframeTable.global_codes` are coded: "float16" (which float32 is turned
        into), "int8", or "pq" for codes of the codebook "global".
    position_step : float or None
        Step of stored positions, made a power of two by rounding up; None: what 16 bits
        per axis allow in each tile.
    grid_origin : tuple of 3 float or None
        Where the grid of cells begins. Give that of the site before, so that tiles of
        places that did not change keep their bytes; None: the least coordinates.
    features : KeyframeFeatures or None
        Local features of the keyframes, for methods that need no 3D points.
    row_arrays : callable or None
        Gives more of `retrieval_arrays`: those that name keyframes by their rows. It is
        told the global codes as the site has them, where keyframes are grouped by tile.
    """

    name: str
    metric: bool
    cameras: Mapping[str, CameraModel]
    family: FamilySpec
    keyframes: KeyframeTable
    landmarks: LandmarkTable
    visible_offsets: IntArray
    visible_landmark_idx: IntArray
    retrieval_arrays: Mapping[str, npt.NDArray[Any]]
    rungs: tuple[str, ...] = ("RELOCALIZE", "INTERPOLATE")
    models: Mapping[str, SiteModel] = field(default_factory=dict)
    covariance_scale: float = 1.0
    gravity_in_world: tuple[float, float, float] | None = None
    geo_reference: Mapping[str, float] | None = None
    build: Mapping[str, str | int | float] = field(default_factory=dict)
    codebooks: Mapping[str, Codebook] = field(default_factory=dict)
    global_coding: str = "float16"
    position_step: float | None = None
    grid_origin: tuple[float, float, float] | None = None
    features: KeyframeFeatures | None = None
    row_arrays: Callable[[npt.NDArray[Any]], Mapping[str, npt.NDArray[Any]]] | None = (
        None
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tile:
    """One decoded tile.

    Parameters
    ----------
    tile_idx : int
        Row of the site's tile table.
    landmarks : LandmarkTable
        Landmarks of the cell.
    keyframe_ids : ndarray of shape (Kt,), int64
        Keyframes of the tile, ascending.
    visible_offsets : ndarray of shape (Kt + 1,), int64
        Entries of `visible_point3D_ids` that belong to keyframe i of the tile.
    visible_point3D_ids : ndarray of shape (V,), int64
        Landmark ids (of any tile), ascending within each keyframe.
    features : KeyframeFeatures or None
        Of its keyframes; None where the site has none.
    """

    tile_idx: int
    landmarks: LandmarkTable
    keyframe_ids: IntArray
    visible_offsets: IntArray
    visible_point3D_ids: IntArray
    features: KeyframeFeatures | None = None

    @property
    def first_point3D_id(self) -> int:
        """Landmark ids of the tile are consecutive from here."""
        return self.tile_idx << LANDMARK_BITS

    @property
    def seen_tile_idx(self) -> IntArray:
        """Tiles, this one maybe among them, whose landmarks the keyframes see."""
        owners = np.sort(self.visible_point3D_ids >> LANDMARK_BITS)
        return owners[np.diff(owners, prepend=-1) > 0]

    @property
    def num_bytes(self) -> int:
        """Memory that the arrays take."""
        landmarks, features = self.landmarks, self.features
        return (0 if features is None else features.num_bytes) + sum(
            array.nbytes
            for array in (
                landmarks.points3D,
                landmarks.sigmas,
                landmarks.num_observations,
                landmarks.descriptor_offsets,
                landmarks.descriptors,
                self.keyframe_ids,
                self.visible_offsets,
                self.visible_point3D_ids,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LocalMap:
    """The landmarks that a set of keyframes sees.

    Parameters
    ----------
    point3D_ids : ndarray of shape (P,), int64
        Ascending, unique.
    points3D : ndarray of shape (P, 3), float64
        Positions, m.
    sigmas : ndarray of shape (P,), float32
        Standard deviations of the positions, m.
    num_observations : ndarray of shape (P,), int64
        As in `LandmarkTable`.
    descriptors : ndarray of shape (D_rows, stored_dim)
        All descriptors of those landmarks, stored form.
    row_to_point : ndarray of shape (D_rows,), int64
        Index of the landmark that each row belongs to, ascending.
    """

    point3D_ids: IntArray
    points3D: FloatArray
    sigmas: Float32Array
    num_observations: IntArray
    descriptors: npt.NDArray[np.generic]
    row_to_point: IntArray

    def __len__(self) -> int:
        return len(self.point3D_ids)
