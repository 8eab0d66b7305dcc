"""A site opened for one camera: all that methods work with."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgeloc.clock import Clock
from edgeloc.errors import MapError
from edgeloc.features.family import FeatureFamily
from edgeloc.features.keyframe_index import KeyframeIndex
from edgeloc.features.retrieve import Retrieval
from edgeloc.localize.coarse import CoarseCalibration
from edgeloc.localize.comparison import DecodeLandmarks
from edgeloc.localize.fix import FixCalibration
from edgeloc.localize.interpolate import InterpolateOptions
from edgeloc.localize.structure import StructureOptions, structure_for
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.runtime.landmark_record import LandmarkRecord
from edgeloc.runtime.masking import FrameMasks
from edgeloc.runtime.site_models import (
    open_keyframe_index,
    open_landmark_decoder,
    open_site_family,
    open_site_retrieval,
)
from edgeloc.runtime.stage_timer import StageTimer
from edgeloc.runtime.tile_cache import TileCache
from edgeloc.tiles.reader import Site
from edgeloc.types import CameraModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SiteParts:
    """What a site was opened into.

    Parameters
    ----------
    site : Site
        The site.
    camera : CameraModel
        Intrinsics of the frames.
    options : EstimatorOptions
        What was asked for.
    family : FeatureFamily
        Describes frames.
    retrieval : Retrieval
        Makes global descriptors of frames.
    index : KeyframeIndex
        The search over the keyframes.
    decode_landmarks : callable
        From descriptors as stored in tiles to float32 rows.
    tiles : TileCache
        Tiles in memory.
    calibration : FixCalibration
        Of covariances of fixes.
    coarse, checked : CoarseCalibration
        Of poses from retrieval, alone and checked.
    structure : StructureOptions
        Of fixes against landmarks, seeded.
    interpolate : InterpolateOptions
        Of poses from retrieval.
    timer : StageTimer
        Times every stage of a frame.
    masks : FrameMasks or None
        Where no features are wanted.
    record : LandmarkRecord or None
        Which landmarks are still there; None where frames are by themselves.
    """

    site: Site
    camera: CameraModel
    options: EstimatorOptions
    family: FeatureFamily
    retrieval: Retrieval
    index: KeyframeIndex
    decode_landmarks: DecodeLandmarks
    tiles: TileCache
    calibration: FixCalibration
    coarse: CoarseCalibration
    checked: CoarseCalibration
    structure: StructureOptions
    interpolate: InterpolateOptions
    timer: StageTimer
    masks: FrameMasks | None = None
    record: LandmarkRecord | None = None


def open_site_parts(
    site: Site,
    camera: CameraModel,
    options: EstimatorOptions,
    *,
    clock: Clock,
    family: FeatureFamily | None = None,
    retrieval: Retrieval | None = None,
    masks: FrameMasks | None = None,
) -> SiteParts:
    """Open what a site was built with.

    Parameters
    ----------
    site : Site
        Opened site.
    camera : CameraModel
        Intrinsics of the frames.
    options : EstimatorOptions
        Options.
    clock : Clock
        What tells the time.
    family : FeatureFamily, optional
        Describes frames in place of the site's own family: a variant of it.
    retrieval : Retrieval, optional
        Makes global descriptors in place of the site's own.
    masks : FrameMasks, optional
        Where no features are wanted.

    Raises
    ------
    MapError
        When the site was built with other models than are here, or one of its own is
        missing or was changed.
    ModelError
        When one of its networks cannot be used.
    """
    family = family or open_site_family(site, options=options.backend)
    index = open_keyframe_index(site)
    retrieval = retrieval or open_site_retrieval(
        site, dim=index.dim, options=options.backend
    )
    try:
        coarse = CoarseCalibration.from_arrays(site.retrieval_arrays)
        checked = CoarseCalibration.from_arrays(site.retrieval_arrays, checked=True)
        interpolate = InterpolateOptions.from_arrays(site.retrieval_arrays)
        calibration = FixCalibration.of_site(
            site.manifest.covariance_scale, site.retrieval_arrays
        )
    except ValueError as exc:
        raise MapError(f"{site.path}: {exc}; build the site again") from exc
    structure = options.structure or structure_for(family)
    return SiteParts(
        site=site,
        camera=camera,
        options=options,
        family=family,
        retrieval=retrieval,
        index=index,
        decode_landmarks=open_landmark_decoder(site, family),
        tiles=TileCache(site, max_bytes=options.cache_bytes),
        calibration=calibration,
        coarse=coarse,
        checked=checked,
        structure=replace(structure, pnp=replace(structure.pnp, seed=options.seed)),
        interpolate=options.interpolate or interpolate,
        timer=StageTimer(clock),
        masks=masks,
        record=None
        if options.cold
        else LandmarkRecord(min_moved=coarse.keyframe_spacing),
    )
