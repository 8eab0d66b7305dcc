"""The gate of posed recordings: held-out frames localized in a float32 map."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeloc.errors import ModelError
from edgeloc.features.learned import LearnedFamily
from edgeloc.inference.network import Network
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.tiles.reader import Site, open_site
from edgeloc_tools.datasets.recording import Recording
from edgeloc_tools.evaluate import metrics
from edgeloc_tools.evaluate.run import Runner, true_pose
from edgeloc_tools.learn.quantize_gate import GateScore, no_answers
from edgeloc_tools.mapping.build import build_site
from edgeloc_tools.mapping.held_out import held_out_folds
from edgeloc_tools.mapping.options import BuildOptions
from edgeloc_tools.progress import Progress, silent

MIN_IMAGES = 12
"""Fewer posed images make no map that anything could be held out of."""

_METRIC_BOUND = (0.05, 5.0)
_FOLDS_OF_ONE = 24


def held_out_split(
    recording: Recording, *, max_held_out: int
) -> tuple[Recording, Recording] | None:
    """Return the images to map and those to localize, or None without enough poses.

    At most a quarter is held out, in runs of neighbours, see `held_out_folds`.

    Parameters
    ----------
    recording : Recording
        Images without pose or camera are left out.
    max_held_out : int
        Bound of the work.
    """
    posed = [
        image
        for image in recording.images
        if image.cam_from_world is not None and image.camera_id in recording.cameras
    ]
    if len(posed) < MIN_IMAGES:
        return None
    chosen = np.zeros(len(posed), np.bool_)
    if len(posed) < _FOLDS_OF_ONE:
        chosen[2::4] = True
    else:
        count = min(max_held_out, len(posed) // 4)
        for fold in held_out_folds(len(posed), max_frames=max(count, 6)):
            chosen[fold] = True
    mapping = [image for image, out in zip(posed, chosen, strict=True) if not out]
    held_out = [image for image, out in zip(posed, chosen, strict=True) if out]
    return recording.subset(mapping), recording.subset(held_out)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LocalizationGate:
    """Localizes held-out frames, described by a variant, in a map made with float32.

    Parameters
    ----------
    site : Site
        The map.
    held_out : Recording
        Frames that are not in it.
    """

    site: Site
    held_out: Recording

    @classmethod
    def build(
        cls,
        manifest_path: Path,
        *,
        mapping: Recording,
        held_out: Recording,
        folder: Path,
        max_keypoints: int,
        progress: Progress = silent,
    ) -> LocalizationGate:
        """Return the gate, with a map that is built unless it is there.

        Parameters
        ----------
        manifest_path : Path
            Of the float32 model.
        mapping, held_out : Recording
            From `held_out_split`.
        folder : Path
            For the map; its name stands for all that it depends on.
        max_keypoints : int
            Per image.
        progress : callable
            Told about each step.
        """
        if not (folder / "site.json").is_file():
            build_site(
                mapping,
                out=folder,
                options=BuildOptions(
                    features=str(manifest_path),
                    retrieval="vlad",
                    max_keypoints=max_keypoints,
                ),
                work=folder.with_name(f"{folder.name}.work"),
                progress=progress,
            )
        return cls(site=open_site(folder), held_out=held_out)

    @property
    def title(self) -> str:
        """What recall and error mean here, for people."""
        position, rotation_deg = self._bound()
        return (
            f"localization of {len(self.held_out.images)} held-out frames of "
            f"{self.held_out.name} in a map that the float32 network made of the "
            f"others; recall is the share within {position:.3g} {self._unit}, "
            f"{rotation_deg:g}°"
        )

    @property
    def error_name(self) -> str:
        """Name and unit of the error."""
        return f"position error [{self._unit}]"

    @property
    def _unit(self) -> str:
        return "m" if self.site.manifest.metric else "u"

    def _bound(self) -> tuple[float, float]:
        """Return position and rotation (degrees) that count as localized."""
        if self.site.manifest.metric:
            return _METRIC_BOUND
        fraction, rotation_deg = metrics.EXTENT_THRESHOLD
        extent = metrics.extent_of(self.site.keyframes.centers)
        return fraction * extent, rotation_deg

    def score(self, network: Network) -> GateScore:
        """Return how well a variant localizes."""
        max_position, max_rotation_deg = self._bound()
        runner = Runner(
            site=self.site,
            cameras=self.held_out.cameras,
            options=EstimatorOptions(method="structure", cold=True),
            budget_ms=None,
            family=LearnedFamily(network),
        )
        errors, within = [], []
        for idx, image in enumerate(self.held_out.images):
            pixels = image.source.read()
            try:
                estimate, _, _ = runner.answer(image, pixels, frame_id=idx)
            except ModelError:
                # A variant that fails, or puts out NaN, does so on the first frame.
                return no_answers(len(self.held_out.images))
            position, rotation_deg = metrics.pose_error(
                estimate.cam_from_world, true_pose(image)
            )
            errors.append(position)
            within.append(position <= max_position and rotation_deg <= max_rotation_deg)
        return GateScore(recall=float(np.mean(within)), errors=tuple(errors))
