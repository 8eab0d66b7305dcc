"""Queries, database images and which of these show the same place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from edgeloc.geometry.camera import project, unproject
from edgeloc.geometry.se3 import rotation_angle_rad
from edgeloc.types import BoolArray, CameraModel, FloatArray, IntArray, Rigid3
from edgeloc_tools.datasets import open_recording, select_frames
from edgeloc_tools.datasets.recording import RecordedImage, Recording
from edgeloc_tools.evaluate.scenes import SCENES, open_source


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlaceSet:
    """Queries, database images and which of these show the same place.

    Parameters
    ----------
    name, rule : str
        For the table; `rule` says what the same place is.
    queries, database : sequence of RecordedImage
        Images.
    same : ndarray of shape (Q, K), bool
        Whether they show the same place.
    cameras : tuple of mapping of str to CameraModel, or None
        Of the queries and of the database, by id; walks have none, and no poses.
    """

    name: str
    rule: str
    queries: Sequence[RecordedImage]
    database: Sequence[RecordedImage]
    same: BoolArray
    cameras: tuple[Mapping[str, CameraModel], Mapping[str, CameraModel]] | None = None

    @property
    def unfit(self) -> str:
        """Why nothing can be measured here, "" when it can."""
        if not self.same.any(axis=1).all():
            missing = int(np.count_nonzero(~self.same.any(axis=1)))
            return f"{missing} queries show no place of the database"
        if self.same.all():
            return "every image shows the place of every query"
        return ""

    @property
    def chance(self) -> float:
        """Recall at 1 of an image drawn by chance."""
        return float(self.same.mean())


def recall_at(ranking: IntArray, same: BoolArray, k: int) -> float:
    """Return the share of queries with one of the same place among the first `k`.

    Parameters
    ----------
    ranking : ndarray of shape (Q, R), int64
        Database images of each query, most similar first.
    same : ndarray of shape (Q, K), bool
        Whether they show the same place.
    k : int
        How many count.
    """
    found = np.take_along_axis(same, ranking[:, :k], axis=1)
    return float(found.any(axis=1).mean())


def same_index(num_queries: int, num_database: int, *, within: int) -> BoolArray:
    """Return which frames of two walks along the same path have nearly equal numbers.

    Parameters
    ----------
    num_queries, num_database : int
        Frames of each.
    within : int
        Largest difference.
    """
    query, database = np.arange(num_queries), np.arange(num_database)
    return np.asarray(np.abs(query[:, None] - database[None]) <= within)


def _poses(images: Sequence[RecordedImage]) -> list[Rigid3]:
    return [i.cam_from_world for i in images if i.cam_from_world is not None]


def near_by_pose(
    queries: Sequence[Rigid3],
    database: Sequence[Rigid3],
    *,
    share_of_extent: float,
    angle_deg: float,
) -> BoolArray:
    """Return which cameras are near each other and look the same way.

    Parameters
    ----------
    queries, database : sequence of Rigid3
        ``cam_from_world``.
    share_of_extent : float
        Largest distance, as a share of the database cameras' median distance to their
        median position.
    angle_deg : float
        Largest rotation between the cameras.
    """
    at_query = np.stack([pose.origin_in_a for pose in queries])
    at_database = np.stack([pose.origin_in_a for pose in database])
    centre = np.median(at_database, axis=0)
    extent = float(np.median(np.linalg.norm(at_database - centre, axis=1)))
    distance = np.linalg.norm(at_query[:, None] - at_database[None], axis=2)
    relative = np.einsum(
        "qij,kmj->qkim",
        np.stack([pose.R for pose in queries]),
        np.stack([pose.R for pose in database]),
    )
    angle = rotation_angle_rad(relative.reshape(-1, 3, 3)).reshape(distance.shape)
    near = distance <= share_of_extent * extent
    return np.asarray(near & (angle <= np.deg2rad(angle_deg)))


_GRID = np.linspace(0.05, 0.95, 8)
_DEPTHS = (0.6, 1.0, 1.5)


def view_overlap(
    queries: Sequence[Rigid3],
    database: Sequence[Rigid3],
    *,
    cameras: tuple[CameraModel, CameraModel],
    depth: float,
) -> FloatArray:
    """Return how much of their views cameras share, (Q, K), in [0, 1].

    The pixels of either camera, put at 0.6, 1 and 1.5 times the depth of the scene: the
    share of them that the other camera's picture holds, the smaller of both directions.

    Parameters
    ----------
    queries, database : sequence of Rigid3
        ``cam_from_world``.
    cameras : tuple of CameraModel
        Of the queries and of the database.
    depth : float
        Of the scene, map units.
    """
    there = _seen_share(queries, database, cameras=cameras, depth=depth)
    back = _seen_share(database, queries, cameras=cameras[::-1], depth=depth)
    return np.asarray(np.minimum(there, back.T))


def _seen_share(
    a: Sequence[Rigid3],
    b: Sequence[Rigid3],
    *,
    cameras: tuple[CameraModel, CameraModel],
    depth: float,
) -> FloatArray:
    from_camera, to_camera = cameras
    size = np.array([from_camera.width, from_camera.height])
    pixels = np.stack(np.meshgrid(_GRID, _GRID), axis=-1).reshape(-1, 2) * size
    bearings = unproject(from_camera, pixels)
    bearings = bearings / bearings[:, 2:]
    points = np.concatenate([bearings * (depth * factor) for factor in _DEPTHS])
    shape = np.array([to_camera.width, to_camera.height])
    out = np.empty((len(a), len(b)))
    for i, a_from_world in enumerate(a):
        world_from_a = a_from_world.inverse()
        for j, b_from_world in enumerate(b):
            at, _ = project(to_camera, (b_from_world @ world_from_a).transform(points))
            # NaN, behind the camera, is inside of nothing.
            out[i, j] = ((at >= 0) & (at < shape)).all(axis=1).mean()
    return out


def _median_depth(recording: Recording) -> float:
    maps = [image.depth for image in recording.images if image.depth is not None]
    depths = [depth[depth > 0] for depth in (d.read() for d in maps[::4])]
    return float(np.median([np.median(d) for d in depths if len(d)]))


WITHIN_FRAMES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """How the scenes of `scenes.SCENES` become place sets.

    Parameters
    ----------
    scene : str
        Its name.
    share_of_extent : float or None
        See `near_by_pose`.
    overlap : float or None
        Of the views, instead; as much as every query shares with some image.
    frames : str
        Queries and database images that take part, as for ``--frames``: neighbours in
        a video say the same.
    """

    scene: str
    share_of_extent: float | None = None
    overlap: float | None = None
    frames: str = "::1"


_ANGLE_DEG = 30.0
_RULES = (
    _Rule(scene="redkitchen", overlap=0.4),
    _Rule(scene="tum_fr1_rpy", overlap=0.55, frames="::3"),
    _Rule(scene="fox", share_of_extent=0.5),
    _Rule(scene="gardenspoint/000-033", share_of_extent=0.25),
    _Rule(scene="gardenspoint/044-084", share_of_extent=0.25),
    _Rule(scene="fountain", share_of_extent=0.5),
    _Rule(scene="lund_door", share_of_extent=0.5),
)


def _posed_set(rule: _Rule, data: Path) -> PlaceSet:
    scene = next(scene for scene in SCENES if scene.name == rule.scene)
    mapping = select_frames(open_source(scene.mapping, data), frames=rule.frames)
    mapping = mapping.posed()
    queries = select_frames(open_source(scene.queries, data), frames=rule.frames)
    queries = queries.posed()
    poses = _poses(queries.images), _poses(mapping.images)
    if rule.overlap is not None:
        text = f"{rule.overlap:.0%} of the view shared"
        cameras = (
            queries.cameras[queries.images[0].camera_id],
            mapping.cameras[mapping.images[0].camera_id],
        )
        shared = view_overlap(*poses, cameras=cameras, depth=_median_depth(mapping))
        same = np.asarray(shared >= rule.overlap)
    else:
        share = rule.share_of_extent or 0.0
        text = f"{share:g} of extent, {_ANGLE_DEG:g}°"
        same = near_by_pose(*poses, share_of_extent=share, angle_deg=_ANGLE_DEG)
    return PlaceSet(
        name=scene.name,
        rule=text,
        queries=queries.images,
        database=mapping.images,
        same=same,
        cameras=(queries.cameras, mapping.cameras),
    )


def _walk_set(query: str, database: str, data: Path) -> PlaceSet:
    root = data / "gardenspoint"
    images = [
        open_recording(format="folder", input=root / name).images
        for name in (query, database)
    ]
    return PlaceSet(
        name=f"gardenspoint, {query} in {database}",
        rule=f"±{WITHIN_FRAMES} frames",
        queries=images[0],
        database=images[1],
        same=same_index(len(images[0]), len(images[1]), within=WITHIN_FRAMES),
    )


def place_sets() -> dict[str, Callable[[Path], PlaceSet]]:
    """Return what opens each set from the recordings folder, by short name."""
    walks = {
        "day-day": ("day_right", "day_left"),
        "night-day": ("night_right", "day_left"),
        "night-day-same-side": ("night_right", "day_right"),
    }
    out: dict[str, Callable[[Path], PlaceSet]] = {
        name: partial(_walk_set, query, database)
        for name, (query, database) in walks.items()
    }
    out.update({rule.scene: partial(_posed_set, rule) for rule in _RULES})
    return out
