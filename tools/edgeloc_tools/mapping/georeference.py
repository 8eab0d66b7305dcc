"""Putting a recording on Earth: its world becomes east, north, up about a point."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgeloc.errors import ConfigError, MapError
from edgeloc.geometry.geodesy import GeoReference
from edgeloc.types import Rigid3
from edgeloc_tools.datasets.recording import DepthMap, RecordedImage, Recording
from edgeloc_tools.mapping.align import Sim3, rotation_to_z_up
from edgeloc_tools.mapping.sfm_world import (
    MIN_POSITIONS,
    GravityPrior,
    Placement,
    place_by_gnss,
)

_DOWN = (0.0, 0.0, -1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownOrigin:
    """Where the origin of a world lies, and how it is turned.

    Parameters
    ----------
    geo : GeoReference
        Of the origin.
    heading_deg : float
        Of the world's y axis, clockwise from north.
    """

    geo: GeoReference
    heading_deg: float = 0.0


def parse_geo_reference(text: str) -> KnownOrigin | None:
    """Return what ``--geo-reference`` says; None for "gnss".

    Raises
    ------
    ConfigError
        When it is neither that nor LAT,LON,ALT[,HEADING].
    """
    if text == "gnss":
        return None
    try:
        latitude, longitude, altitude, *rest = (float(n) for n in text.split(","))
        [heading] = rest or [0.0]
        geo = GeoReference(
            latitude_deg=latitude, longitude_deg=longitude, altitude_m=altitude
        )
    except ValueError as exc:
        raise ConfigError(
            f"--geo-reference {text}: expected gnss, or LAT,LON,ALT[,HEADING] of the "
            "world's origin in degrees and m above the ellipsoid, and of its y axis "
            "clockwise from north"
        ) from exc
    if not (math.isfinite(heading) and abs(longitude) <= 180.0):
        raise ConfigError(f"--geo-reference {text}: is not on Earth")
    return KnownOrigin(geo=geo, heading_deg=heading)


def georeferenced(
    recording: Recording, known: KnownOrigin | None, *, rng: np.random.Generator
) -> tuple[Recording, Mapping[str, Any]]:
    """Return a recording in an east-north-up world, and how well that fits.

    Parameters
    ----------
    recording : Recording
        With poses; where `known` is None, with GNSS fixes, too.
    known : KnownOrigin or None
        Where its world lies, whose z axis is up unless the recording says otherwise;
        None = fit the poses to the fixes, robustly: rigidly when
        the recording is metric, else with a scale.
    rng : Generator
        Of the robust fit.

    Raises
    ------
    MapError
        When there are too few fixes, the poses do not fit them, or they are not metric.
    """
    placement = (
        _by_fixes(recording, rng) if known is None else _by_origin(recording, known)
    )
    geo = placement.geo_reference
    assert geo is not None
    moved = replace(
        recording,
        images=tuple(
            _placed(image, placement.world_from_model) for image in recording.images
        ),
        metric=placement.metric,
        gravity_in_world=placement.gravity_in_world,
        geo_reference={
            "latitude_deg": geo.latitude_deg,
            "longitude_deg": geo.longitude_deg,
            "altitude_m": geo.altitude_m,
        },
    )
    return moved, {**placement.details, "warnings": list(placement.warnings)}


def _by_fixes(recording: Recording, rng: np.random.Generator) -> Placement:
    poses = {
        image.name: image.cam_from_world
        for image in recording.images
        if image.cam_from_world is not None
    }
    num = sum(i.gnss is not None and i.name in poses for i in recording.images)
    if num < MIN_POSITIONS:
        raise MapError(
            f"--geo-reference gnss: {num} images of {recording.name} have a pose and a "
            f"GNSS fix, {MIN_POSITIONS} are needed; give LAT,LON,ALT[,HEADING] instead"
        )
    gravity = None
    if recording.gravity_in_world is not None:
        name, pose = next(iter(poses.items()))
        x, y, z = (pose.R @ np.array(recording.gravity_in_world)).tolist()
        gravity = GravityPrior(direction=(x, y, z), image=name)
    return place_by_gnss(
        poses,
        recording,
        gravity,
        scale=1.0 if recording.metric else None,
        view_from_cam={},
        rng=rng,
    )


def _by_origin(recording: Recording, known: KnownOrigin) -> Placement:
    # Who names a heading of the y axis says that z is up.
    gravity = recording.gravity_in_world or _DOWN
    if not recording.metric:
        raise MapError(
            f"--geo-reference: {recording.name} is not metric; give --metric when its "
            "poses are in metres, or --geo-reference gnss"
        )
    h = math.radians(known.heading_deg)
    turn = np.array(
        [
            [math.cos(h), math.sin(h), 0.0],
            [-math.sin(h), math.cos(h), 0.0],
            [0.0, 0.0, 1.0],
        ]
    )
    return Placement(
        world_from_model=Sim3(
            scale=1.0, R=turn @ rotation_to_z_up(gravity), t=np.zeros(3)
        ),
        metric=True,
        scale_source="recording",
        gravity_source="recording",
        world_frame="east, north, up about the geo-reference, metres",
        gravity_in_world=_DOWN,
        geo_reference=known.geo,
    )


def _placed(image: RecordedImage, world_from_model: Sim3) -> RecordedImage:
    pose, depth = image.cam_from_world, image.depth
    return replace(
        image,
        cam_from_world=None if pose is None else world_from_model.apply_to_pose(pose),
        depth=None if depth is None else _scaled(depth, world_from_model.scale),
    )


def _scaled(depth: DepthMap, scale: float) -> DepthMap:
    if scale == 1.0:
        return depth
    moved = depth.cam_from_depth
    return replace(
        depth,
        metres_per_unit=depth.metres_per_unit * scale,
        cam_from_depth=Rigid3(R=moved.R, t=moved.t * scale),
    )
