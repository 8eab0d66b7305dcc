"""From options to what a run works with; each process opens its own part."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from edgeloc.clock import Clock
from edgeloc.config import RunConfig
from edgeloc.errors import ConfigError

if TYPE_CHECKING:
    from edgeloc.runtime.aids import Aids
    from edgeloc.runtime.estimator import Estimator
    from edgeloc.runtime.estimator_options import EstimatorOptions
    from edgeloc.runtime.frame_source import FrameSource
    from edgeloc.runtime.record import Recorder
    from edgeloc.tiles.reader import Site
    from edgeloc.types import CameraModel

_log = logging.getLogger(__name__)


def estimator_options(config: RunConfig) -> EstimatorOptions:
    """Return the options of the estimator.

    Raises
    ------
    ConfigError
        When this version cannot do what was asked for.
    """
    from edgeloc.inference.backend import BackendOptions
    from edgeloc.runtime.estimator_options import EstimatorOptions

    return EstimatorOptions(
        method=config.method,
        cold=config.cold,
        max_keypoints=config.max_keypoints,
        backend=BackendOptions(
            backend=config.backend,
            threads=config.threads,
            engines=None if config.engines is None else Path(config.engines),
        ),
        seed=config.seed,
    )


def open_run_site(config: RunConfig) -> Site:
    """Open the site; say where networks would run if it has none.

    Raises
    ------
    MapError
        When it cannot be used.
    ConfigError
        When the trusted key is none.
    """
    from edgeloc.tiles.reader import open_site

    path = Path(str(config.map))
    if config.trusted_key is None:
        site = open_site(path)
    else:
        from edgeloc.tiles.signing import read_public_key

        site = open_site(path, trusted_keys=[read_public_key(Path(config.trusted_key))])
    if config.backend == "auto" and not site.manifest.models:
        _log.info(
            "backend auto: ort-cpu, as this site needs no network (%s features run in "
            "OpenCV on the CPU)",
            site.manifest.family.name,
        )
    return site


def choose_camera(config: RunConfig, site: Site) -> CameraModel:
    """Return the intrinsics to use, for images of their own size, and log which.

    Raises
    ------
    ConfigError
        When they are missing or wrong.
    """
    from edgeloc.runtime.intrinsics import choose_intrinsics

    choice = choose_intrinsics(config.intrinsics, site_cameras=site.manifest.cameras)
    _log.info("intrinsics: %s (%s)", choice.origin, choice.camera.model)
    return choice.camera


def open_run_source(
    config: RunConfig, *, size_hint: tuple[int, int], clock: Clock
) -> FrameSource:
    """Open the camera or recording.

    Raises
    ------
    CameraError
        When it does not exist, or gives no image.
    ConfigError
        When the text cannot be a source.
    """
    from edgeloc.runtime.sources import open_source

    return open_source(
        str(config.camera), clock=clock, rate_hz=config.rate, size_hint=size_hint
    )


def open_run_recorder(
    config: RunConfig,
    site: Site,
    camera: CameraModel,
    *,
    live: bool,
    offers: bool,
    clock: Clock,
    aids: Aids,
) -> Recorder | None:
    """Begin the log of the run; None when none is wanted.

    Parameters
    ----------
    config : RunConfig
        Options.
    site : Site
        Opened site.
    camera : CameraModel
        Intrinsics of the frames.
    live : bool
        Whether the source is a camera or stream.
    offers : bool
        Whether the estimator is asked for candidates before its answers.
    clock : Clock
        The run's.
    aids : Aids
        What helps the estimator.

    Raises
    ------
    ConfigError
        When the file cannot be written, or is something else.
    """
    if config.record is None:
        return None
    from edgeloc.runtime.record import open_recorder, session_of, source_facts

    session = session_of(
        site=site,
        camera=camera,
        source=source_facts(str(config.camera), live=live),
        config=config.as_options(),
        images=config.record_images,
        offers=offers,
        clock=clock,
        aids=aids,
    )
    return open_recorder(Path(config.record), session, clock=clock, aids=aids)


def make_estimator(
    options: EstimatorOptions,
    site: Site,
    camera: CameraModel,
    clock: Clock,
    *,
    aids: Aids | None = None,
) -> Estimator:
    """Return an estimator that has run every stage once.

    Raises
    ------
    MapError, ModelError
        When the site or one of its networks cannot be used.
    """
    from edgeloc.runtime.estimator import Estimator

    estimator = Estimator(
        site=site, camera=camera, options=options, clock=clock, aids=aids
    )
    estimator.warm_up()
    return estimator


def source_and_camera(
    config: RunConfig, site: Site, clock: Clock
) -> tuple[FrameSource, CameraModel]:
    """Open the camera and fit the intrinsics to its images.

    Raises
    ------
    CameraError, ConfigError
        As `choose_camera`, `open_run_source` and `fit_camera` do.
    """
    from edgeloc.runtime.intrinsics import fit_camera

    camera = choose_camera(config, site)
    source = open_run_source(
        config, size_hint=(camera.width, camera.height), clock=clock
    )
    try:
        return source, fit_camera(camera, size=source.size)
    except ConfigError:
        source.close()
        raise
