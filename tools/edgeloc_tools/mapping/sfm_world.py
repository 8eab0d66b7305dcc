"""Where a model of arbitrary scale and direction lies in the world, from what is known.

Frames of the result:

* aligned to GNSS: east, north, up in metres about a geo-reference; gravity (0, 0, -1);
* aligned to recorded poses: the world of those poses, unchanged;
* otherwise: z up where gravity is known or estimated, origin at the mean camera centre,
  in metres only when a distance was given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeloc.errors import ConfigError, MapError
from edgeloc.geometry.geodesy import GeoReference, enu_from_wgs84
from edgeloc.geometry.se3 import mean_rotation, rotation_angle_rad
from edgeloc.types import FloatArray, Rigid3
from edgeloc_tools.datasets.recording import GnssFix, Recording
from edgeloc_tools.mapping import align
from edgeloc_tools.mapping.align import Sim3

MIN_POSITIONS = 3
"""Known positions that an alignment needs."""
MAX_TILT_FROM_GNSS_RAD = math.radians(5.0)
"""A less certain tilt is worse than that of cameras which people hold upright."""
KNOWN_POSE_SIGMA = 0.02
"""Assumed error of known poses and the model, in units of the cameras' spread."""
_DOWN = (0.0, 0.0, -1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistanceConstraint:
    """A measured distance between the places where two pictures were taken.

    Parameters
    ----------
    name_a, name_b : str
        The images.
    metres : float
        Distance of their camera centres.
    """

    name_a: str
    name_b: str
    metres: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.metres) and self.metres > 0):
            raise ConfigError(f"--distance: {self.metres} m must be > 0")
        if self.name_a == self.name_b:
            raise ConfigError(f"--distance: needs two images, got {self.name_a} twice")


@dataclass(frozen=True, slots=True, kw_only=True)
class GravityPrior:
    """A known direction of gravity.

    Parameters
    ----------
    direction : tuple of 3 float
        Points down; any length.
    image : str or None
        In the camera frame of this image (x right, y down, z forward), or None: in the
        world of the recorded poses.
    """

    direction: tuple[float, float, float]
    image: str | None = None

    def __post_init__(self) -> None:
        length = math.sqrt(sum(v * v for v in self.direction))
        if not (math.isfinite(length) and length > 1e-9):
            raise ConfigError(f"--gravity: {self.direction} is not a direction")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placement:
    """The similarity to apply to a model, and what is known afterwards.

    Parameters
    ----------
    world_from_model : Sim3
        To apply.
    metric : bool
        Whether the world's unit is the metre.
    scale_source, gravity_source : str
        Where they come from; "none" when unknown.
    world_frame : str
        What the world is, for people.
    gravity_in_world : tuple of 3 float or None
        Unit vector that points down.
    geo_reference : GeoReference or None
        Of the origin, when the world is east-north-up.
    details : mapping
        Residuals and counts, for `sfm.json`.
    warnings : tuple of str
        What people should know.
    """

    world_from_model: Sim3
    metric: bool
    scale_source: str
    gravity_source: str
    world_frame: str
    gravity_in_world: tuple[float, float, float] | None = None
    geo_reference: GeoReference | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def _turn(R: FloatArray) -> Sim3:
    return Sim3(scale=1.0, R=R, t=np.zeros(3))


def _unit(direction: FloatArray) -> tuple[float, float, float]:
    x, y, z = (direction / np.linalg.norm(direction)).tolist()
    return (x, y, z)


def _need(poses: Mapping[str, Rigid3], name: str, option: str) -> Rigid3:
    if name not in poses:
        raise MapError(
            f"{option}: image {name!r} is not in the model; choose one that is "
            "(see sfm.json)"
        )
    return poses[name]


def _distance_scale(
    poses: Mapping[str, Rigid3], distances: Sequence[DistanceConstraint]
) -> tuple[float, dict[str, Any]]:
    ratios = []
    for item in distances:
        a = _need(poses, item.name_a, "--distance").origin_in_a
        b = _need(poses, item.name_b, "--distance").origin_in_a
        length = float(np.linalg.norm(a - b))
        if length <= 0:
            raise MapError(
                f"--distance: {item.name_a!r} and {item.name_b!r} were taken from the "
                "same place; choose two images that are apart"
            )
        ratios.append(item.metres / length)
    scale = float(np.median(ratios))
    worst = max(abs(r / scale - 1.0) for r in ratios)
    return scale, {"num_distances": len(ratios), "worst_disagreement": worst}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gravity:
    in_model: FloatArray | None
    source: str
    details: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def _find_gravity(
    poses: Mapping[str, Rigid3],
    prior: GravityPrior | None,
    *,
    estimate: bool,
    view_from_cam: Mapping[str, FloatArray],
) -> _Gravity:
    if prior is not None and prior.image is not None:
        pose = _need(poses, prior.image, "--gravity")
        return _Gravity(in_model=pose.R.T @ np.asarray(prior.direction), source="given")
    if not estimate:
        return _Gravity(in_model=None, source="none")
    try:
        guess = align.gravity_from_upright_cameras(
            [view_from_cam.get(name, np.eye(3)) @ p.R for name, p in poses.items()]
        )
    except ValueError as exc:
        return _Gravity(
            in_model=None,
            source="none",
            warnings=(f"gravity is unknown: {exc}; give --gravity",),
        )
    roll_deg = math.degrees(guess.roll_rms_rad)
    warnings = (
        (
            f"gravity was estimated from cameras with a roll of {roll_deg:.0f}° rms: "
            "they were not held upright; give --gravity",
        )
        if roll_deg > 15.0
        else ()
    )
    return _Gravity(
        in_model=guess.gravity,
        source="estimated from upright cameras",
        details={
            "gravity_roll_rms_deg": roll_deg,
            "gravity_free_of_common_pitch": guess.from_headings,
        },
        warnings=warnings,
    )


def _free_world(
    poses: Mapping[str, Rigid3], gravity: _Gravity, scale: float | None
) -> Placement:
    """Place without anything to align to: z up, origin at the mean camera centre."""
    known = gravity.in_model is not None
    R = np.eye(3)
    if gravity.in_model is not None:
        R = align.rotation_to_z_up(gravity.in_model)
    turned = Sim3(scale=scale or 1.0, R=R, t=np.zeros(3))
    centers = np.array([p.origin_in_a for p in poses.values()])
    unit = "metres" if scale else "arbitrary units"
    return Placement(
        world_from_model=Sim3(
            scale=turned.scale, R=R, t=-turned.apply(centers).mean(axis=0)
        ),
        metric=scale is not None,
        scale_source="given distance" if scale else "none",
        gravity_source=gravity.source,
        world_frame=("z up" if known else "direction of the first cameras")
        + f", origin at the mean camera centre, {unit}",
        gravity_in_world=_DOWN if known else None,
        details=gravity.details,
        warnings=gravity.warnings,
    )


def _to_poses(
    poses: Mapping[str, Rigid3],
    recording: Recording,
    prior: GravityPrior | None,
    rng: np.random.Generator,
) -> Placement:
    known = {
        image.name: image.cam_from_world
        for image in recording.images
        if image.cam_from_world is not None and image.name in poses
    }
    names = sorted(known)
    src = np.array([poses[n].origin_in_a for n in names])
    dst = np.array([known[n].origin_in_a for n in names])
    extent = float(np.sqrt(((dst - dst.mean(axis=0)) ** 2).sum(axis=1).mean()))
    try:
        fit = align.robust_similarity(
            src, dst, sigmas=max(KNOWN_POSE_SIGMA * extent, 1e-12), rng=rng
        )
    except ValueError as exc:
        raise MapError(
            f"--align-to poses: the model does not fit the recorded poses ({exc}); "
            "check that they belong to these images"
        ) from exc
    sim, mask = fit.sim, fit.inlier_mask
    turns = np.array(
        [known[n].R.T @ poses[n].R for n, ok in zip(names, mask, strict=True) if ok]
    )
    # About a straight path only the cameras' directions tell the turn.
    if align.expected_tilt_rad(src[mask], KNOWN_POSE_SIGMA * extent / sim.scale) > 0.05:
        sim = align.similarity_with_rotation(src[mask], dst[mask], mean_rotation(turns))
    errors_deg = np.degrees(rotation_angle_rad(turns @ sim.R.T))
    residual = np.linalg.norm(sim.apply(src[mask]) - dst[mask], axis=1)
    gravity, source = recording.gravity_in_world, "recording"
    if prior is not None:
        direction = np.asarray(prior.direction)
        if prior.image is not None:
            pose = _need(poses, prior.image, "--gravity")
            direction = sim.R @ (pose.R.T @ direction)
        gravity, source = _unit(direction), "given"
    return Placement(
        world_from_model=sim,
        metric=recording.metric,
        scale_source="recorded poses" + ("" if recording.metric else " (not metric)"),
        gravity_source=source if gravity is not None else "none",
        world_frame="that of the recorded poses",
        gravity_in_world=gravity,
        geo_reference=(
            None
            if recording.geo_reference is None
            else GeoReference(**recording.geo_reference)
        ),
        details={
            "num_known_poses": len(names),
            "num_known_poses_used": int(mask.sum()),
            "position_rmse": float(np.sqrt((residual**2).mean())),
            "rotation_median_deg": float(np.median(errors_deg)),
        },
    )


def _fix_sigmas(fix: GnssFix) -> list[float]:
    h = max(fix.horizontal_sigma_m, 1e-3)
    return [h, h, max(fix.vertical_sigma_m, 1e-3)]


def place_by_gnss(
    poses: Mapping[str, Rigid3],
    recording: Recording,
    prior: GravityPrior | None,
    *,
    scale: float | None,
    view_from_cam: Mapping[str, FloatArray],
    rng: np.random.Generator,
) -> Placement:
    """Return how poses go into an east-north-up world, by their GNSS fixes.

    Parameters
    ----------
    poses : mapping of str to Rigid3
        ``cam_from_model``.
    recording : Recording
        With the fixes of at least `MIN_POSITIONS` of these images.
    prior : GravityPrior or None
        Known gravity, in the frame of an image.
    scale : float or None
        Metres per unit of the model; None = by the fixes.
    view_from_cam : mapping of str to ndarray of shape (3, 3)
        How pictures are turned when shown upright (EXIF), by image.
    rng : Generator
        Of the robust fit.

    Raises
    ------
    MapError
        When the poses do not fit the fixes.
    """
    fixes = {
        image.name: image.gnss
        for image in recording.images
        if image.gnss is not None and image.name in poses
    }
    names = sorted(fixes)
    geodetic = np.array(
        [
            (fixes[n].latitude_deg, fixes[n].longitude_deg, fixes[n].altitude_m)
            for n in names
        ]
    )
    origin = GeoReference(
        latitude_deg=float(np.median(geodetic[:, 0])),
        longitude_deg=float(np.median(geodetic[:, 1])),
        altitude_m=float(np.median(geodetic[:, 2])),
    )
    enu = enu_from_wgs84(geodetic[:, 0], geodetic[:, 1], geodetic[:, 2], origin)
    sigmas = np.array([_fix_sigmas(fixes[n]) for n in names])
    src = np.array([poses[n].origin_in_a for n in names]) * (scale or 1.0)
    gravity = _find_gravity(poses, prior, estimate=True, view_from_cam=view_from_cam)

    # How well the fixes can tell the tilt: with the model's shape, which has no noise.
    rough = 1.0 if scale else _rough_scale(src, enu)
    tilt = align.expected_tilt_rad(src * rough, float(np.median(sigmas[:, 2])))
    upright = gravity.source == "given" or (
        tilt > MAX_TILT_FROM_GNSS_RAD and gravity.in_model is not None
    )
    turn = np.eye(3)
    if upright and gravity.in_model is not None:
        turn = align.rotation_to_z_up(gravity.in_model)
    try:
        fit = align.robust_similarity(
            src @ turn.T,
            enu,
            sigmas=sigmas,
            rng=rng,
            upright=upright,
            with_scale=scale is None,
        )
    except ValueError as exc:
        raise MapError(
            f"--align-to gnss: the model does not fit the GNSS fixes ({exc}); give "
            "--distance and --align-to none"
        ) from exc
    sim = fit.sim @ _turn(turn)
    sim = Sim3(scale=sim.scale * (scale or 1.0), R=sim.R, t=sim.t)
    used = src[fit.inlier_mask] * fit.sim.scale
    spread = float(np.sqrt(((used - used.mean(axis=0)) ** 2).sum()))
    scale_sigma = float(np.median(sigmas[:, :2])) / spread
    warnings = list(gravity.warnings if upright else ())
    if not upright and tilt > MAX_TILT_FROM_GNSS_RAD:
        warnings.append(
            "the path is too short or straight for GNSS to tell which way is up, and "
            "the cameras do not tell either; give --gravity"
        )
    if scale is None and scale_sigma > 0.05:
        warnings.append(
            f"the scale from GNSS is uncertain by {100 * scale_sigma:.0f} %: the path "
            "is short for these fixes; give --distance"
        )
    return Placement(
        world_from_model=sim,
        metric=True,
        scale_source="GNSS" if scale is None else "given distance",
        gravity_source=gravity.source if upright else "GNSS",
        world_frame="east, north, up about the geo-reference, metres",
        gravity_in_world=_DOWN,
        geo_reference=origin,
        details={
            "num_gnss_fixes": len(names),
            "num_gnss_fixes_used": int(fit.inlier_mask.sum()),
            "gnss_rmse_m": fit.rmse,
            "scale_sigma_relative": scale_sigma if scale is None else None,
            "tilt_sigma_from_gnss_deg": math.degrees(tilt),
            **(gravity.details if upright else {}),
        },
        warnings=tuple(warnings),
    )


def _rough_scale(src: FloatArray, dst: FloatArray) -> float:
    def spread(points: FloatArray) -> float:
        return float(np.median(np.linalg.norm(points - points.mean(axis=0), axis=1)))

    return spread(dst) / spread(src) if spread(src) > 0 else 1.0


def choose_alignment(
    poses: Mapping[str, Rigid3],
    recording: Recording,
    *,
    align_to: str,
    has_distance: bool,
) -> str:
    """Return "poses", "gnss" or "none".

    Raises
    ------
    ConfigError
        When what was asked for is not in the recording.
    """
    in_model = [i for i in recording.images if i.name in poses]
    num_poses = sum(i.cam_from_world is not None for i in in_model)
    num_fixes = sum(i.gnss is not None for i in in_model)
    if align_to == "poses":
        if has_distance:
            raise ConfigError(
                "--distance and --align-to poses both set the scale: choose one"
            )
        if num_poses < MIN_POSITIONS:
            raise ConfigError(
                f"--align-to poses: {num_poses} images of the model have a recorded "
                f"pose, {MIN_POSITIONS} are needed"
            )
    if align_to == "gnss" and num_fixes < MIN_POSITIONS:
        raise ConfigError(
            f"--align-to gnss: {num_fixes} images of the model have a GNSS fix, "
            f"{MIN_POSITIONS} are needed"
        )
    if align_to != "auto":
        return align_to
    if num_poses >= MIN_POSITIONS and not has_distance:
        return "poses"
    return "gnss" if num_fixes >= MIN_POSITIONS else "none"


def place(
    poses: Mapping[str, Rigid3],
    recording: Recording,
    *,
    align_to: str = "auto",
    distances: Sequence[DistanceConstraint] = (),
    gravity: GravityPrior | None = None,
    estimate_gravity: bool = True,
    view_from_cam: Mapping[str, FloatArray] | None = None,
    rng: np.random.Generator,
) -> Placement:
    """Return how a model goes into the world.

    Parameters
    ----------
    poses : mapping of str to Rigid3
        ``cam_from_model`` of the registered images.
    recording : Recording
        With recorded poses or GNSS fixes, where there are any.
    align_to : {"auto", "poses", "gnss", "none"}
        What to align to; auto takes recorded poses, else GNSS fixes, where 3 or more
        are known. A given distance takes precedence over recorded poses.
    distances : sequence of DistanceConstraint
        Measured distances; they set the scale (their median does).
    gravity : GravityPrior, optional
        Known gravity.
    estimate_gravity : bool
        Whether to guess gravity from the cameras when nothing else tells it.
    view_from_cam : mapping of str to ndarray of shape (3, 3), optional
        How pictures are turned when shown upright (EXIF), by image.
    rng : Generator
        For RANSAC.

    Raises
    ------
    ConfigError
        When the options contradict each other or the recording.
    MapError
        When a named image is not in the model, or nothing fits.
    """
    target = choose_alignment(
        poses, recording, align_to=align_to, has_distance=bool(distances)
    )
    if gravity is not None and gravity.image is None and target != "poses":
        raise ConfigError(
            "--gravity without an image is in the world of recorded poses, which are "
            "not used here; say in which image's camera it is: X,Y,Z@IMAGE"
        )
    scale: float | None = None
    details: dict[str, Any] = {}
    if distances:
        scale, details = _distance_scale(poses, distances)
    if target == "poses":
        placement = _to_poses(poses, recording, gravity, rng)
    elif target == "gnss":
        placement = place_by_gnss(
            poses,
            recording,
            gravity,
            scale=scale,
            view_from_cam=view_from_cam or {},
            rng=rng,
        )
    else:
        found = _find_gravity(
            poses,
            gravity,
            estimate=estimate_gravity,
            view_from_cam=view_from_cam or {},
        )
        placement = _free_world(poses, found, scale)
    warnings = list(placement.warnings)
    if details and details["worst_disagreement"] > 0.05:
        warnings.append(
            "the given distances disagree by "
            f"{100 * details['worst_disagreement']:.0f} %: their median was taken"
        )
    if not placement.metric and target == "none":
        warnings.append(
            "the scale is arbitrary, positions are not in metres: give --distance, "
            "GNSS fixes or known poses"
        )
    return Placement(
        world_from_model=placement.world_from_model,
        metric=placement.metric,
        scale_source=placement.scale_source,
        gravity_source=placement.gravity_source,
        world_frame=placement.world_frame,
        gravity_in_world=placement.gravity_in_world,
        geo_reference=placement.geo_reference,
        details={**placement.details, **details},
        warnings=tuple(warnings),
    )
