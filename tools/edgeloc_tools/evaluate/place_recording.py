"""Finding where a recording lies in a site, by localizing its images there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgeloc.errors import MapError
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.tiles.reader import Site
from edgeloc.types import PoseStatus, Rigid3
from edgeloc_tools.datasets.recording import Recording
from edgeloc_tools.evaluate.run import Runner, true_pose
from edgeloc_tools.mapping.align_recording import moved, similarity_of_poses
from edgeloc_tools.progress import Progress, silent

NUM_IMAGES = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A recording in the world frame of a site.

    Parameters
    ----------
    recording : Recording
        In that frame and unit.
    num_asked, num_localized, num_agree : int
        Its images that were asked for, got a fix, and agree on where it lies.
    scale : float
        Units of the site per unit of the recording.
    rmse : float
        Of the centres that agree, in the site's unit.
    """

    recording: Recording
    num_asked: int
    num_localized: int
    num_agree: int
    scale: float
    rmse: float


def place_recording(
    recording: Recording, site: Site, *, progress: Progress = silent
) -> Placed:
    """Return a recording in the world frame of a site.

    Parameters
    ----------
    recording : Recording
        With poses in a frame of its own.
    site : Site
        Of the same place, at least in part.
    progress : callable
        Told about each image.

    Raises
    ------
    MapError
        When too few of its images are found in the site, or contradict each other.
    """
    posed = recording.posed()
    num = min(NUM_IMAGES, len(posed.images))
    chosen = np.unique(np.linspace(0, len(posed.images) - 1, num).round().astype(int))
    runner = Runner(
        site=site,
        cameras=posed.cameras,
        options=EstimatorOptions(method="structure", cold=True),
        budget_ms=None,
    )
    own: list[Rigid3] = []
    found: list[Rigid3] = []
    sigmas: list[float] = []
    for done, idx in enumerate(chosen.tolist()):
        progress(f"placing {recording.name}", done, len(chosen))
        image = posed.images[idx]
        estimate, _, _ = runner.answer(image, image.source.read(), frame_id=idx)
        if estimate.status is not PoseStatus.LOCALIZED:
            continue
        assert estimate.cam_from_world is not None
        assert estimate.covariance is not None
        own.append(true_pose(image))
        found.append(estimate.cam_from_world)
        sigmas.append(float(np.sqrt(np.trace(estimate.covariance[3:, 3:]))))
    progress(f"placing {recording.name}", len(chosen), len(chosen))
    try:
        fit = similarity_of_poses(
            own,
            found,
            sigmas=np.maximum(sigmas, 1e-9),
            with_scale=not (recording.metric and site.manifest.metric),
        )
    except MapError as exc:
        raise MapError(
            f"{recording.name}: cannot be aligned, {len(own)} of {len(chosen)} of its "
            f"images are found in the first recording's map, and {exc}; do both show "
            "the same place?"
        ) from exc
    return Placed(
        recording=replace(moved(recording, fit.sim), metric=site.manifest.metric),
        num_asked=len(chosen),
        num_localized=len(own),
        num_agree=int(fit.inlier_mask.sum()),
        scale=fit.sim.scale,
        rmse=fit.rmse,
    )
