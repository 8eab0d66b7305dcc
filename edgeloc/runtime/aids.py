"""What helps an estimator beside the picture: masks and other sensors, from options."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgeloc.clock import Clock
from edgeloc.config import RunConfig, parse_direction
from edgeloc.errors import EdgelocError
from edgeloc.features.mask import load_static_mask
from edgeloc.features.segment import open_segmenter
from edgeloc.inference.backend import BackendOptions
from edgeloc.localize.pose_prior import PosePrior
from edgeloc.runtime.line_source import is_recorded
from edgeloc.runtime.masking import FrameMasks
from edgeloc.runtime.motion_source import open_motion
from edgeloc.runtime.prior_source import open_prior_source
from edgeloc.runtime.priors import PriorFeed, PriorOptions
from edgeloc.runtime.sensed_motion import SensedMotion
from edgeloc.tiles.manifest import SiteManifest
from edgeloc.types import CameraModel


class Priors(Protocol):
    """What knows something about a frame before its picture is looked at."""

    def at(self, timestamp_ns: int, /) -> PosePrior:
        """Return what is known about a frame; never waits."""

    def close(self) -> None:
        """Stop whatever feeds it."""


class Motions(Protocol):
    """What knows something about the way between frames."""

    def until(self, timestamp_ns: int, /) -> SensedMotion:
        """Return what is known about the way to a frame from the one before."""

    def close(self) -> None:
        """Stop whatever feeds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aids:
    """What helps; nothing of it is needed.

    Parameters
    ----------
    masks : FrameMasks or None
        Where no features are wanted.
    priors : Priors or None
        Sensors of position, heading and tilt.
    motions : Motions or None
        Sensors of motion.
    """

    masks: FrameMasks | None = None
    priors: Priors | None = None
    motions: Motions | None = None

    def close(self) -> None:
        """Let go of the sensors."""
        for sensors in (self.priors, self.motions):
            if sensors is not None:
                sensors.close()


def open_aids(
    config: RunConfig, manifest: SiteManifest, camera: CameraModel, clock: Clock
) -> Aids:
    """Open what the options of a run name.

    Parameters
    ----------
    config : RunConfig
        Options.
    manifest : SiteManifest
        Of the site.
    camera : CameraModel
        Intrinsics of the frames.
    clock : Clock
        Of the frames.

    Raises
    ------
    ConfigError
        When a file or source is wrong.
    MapError
        When the site does not know what a sensor would have to be compared with.
    ModelError
        When the segmentation network cannot be used.
    """
    masks = open_masks(config, camera, clock)
    priors = _open_feed(config, manifest, clock)
    try:
        motions = open_motion(
            config, clock, tilt=priors if config.gravity == "imu" else None
        )
    except EdgelocError:
        if priors is not None:
            priors.close()
        raise
    return Aids(masks=masks, priors=priors, motions=motions)


def open_masks(
    config: RunConfig, camera: CameraModel, clock: Clock
) -> FrameMasks | None:
    """Return the masks of the frames of a run; None when none are asked for.

    Raises
    ------
    ConfigError
        When a file is wrong.
    ModelError
        When the segmentation network cannot be used.
    """
    if config.mask is None and config.segmenter is None:
        return None
    static = segmenter = None
    if config.mask is not None:
        static = load_static_mask(config.mask, size=(camera.width, camera.height))
    if config.segmenter is not None:
        names = config.ignore_classes
        segmenter = open_segmenter(
            Path(config.segmenter),
            ignore=None
            if names is None
            else [name.strip() for name in names.split(",") if name.strip()],
            options=BackendOptions(backend=config.backend, threads=config.threads),
        )
    return FrameMasks(static, segmenter, clock=clock, cold=config.cold)


def _open_feed(
    config: RunConfig, manifest: SiteManifest, clock: Clock
) -> PriorFeed | None:
    if config.gnss is None and config.gravity is None:
        return None
    attitude = config.gravity in {"nmea", "imu"}
    mounted = config.gravity is not None and not attitude
    feed = PriorFeed(
        manifest,
        PriorOptions(
            position=config.gnss is not None,
            heading=config.compass,
            heading_sigma_rad=math.radians(config.compass_sigma_deg),
            heading_offset_rad=math.radians(config.compass_offset_deg),
            down_in_cam=parse_direction(str(config.gravity)) if mounted else None,
            attitude=attitude,
            tilt_sigma_rad=math.radians(config.gravity_sigma_deg),
        ),
        recorded=config.gnss is not None and is_recorded(config.gnss),
        tilt_recorded=config.imu is not None and is_recorded(config.imu),
    )
    if config.gnss is not None:
        open_prior_source(
            config.gnss,
            feed,
            clock=clock,
            sigma_m=config.gnss_sigma_m,
            latency_ns=round(config.gnss_latency_ms * 1e6),
        )
    return feed
