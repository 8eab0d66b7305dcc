"""Which features of its images a site keeps, and how frames localize with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeloc.features.family import FeatureFamily
from edgeloc.features.quantizer import ProductQuantizer
from edgeloc.localize.candidate import Candidate
from edgeloc.localize.coarse import CoarseCalibration
from edgeloc.localize.fix import FixCalibration
from edgeloc.localize.keyframe_matches import KeyframeViews, match_keyframes
from edgeloc.localize.local_sfm import local_sfm_for, localize_by_local_sfm
from edgeloc.localize.relative import localize_by_relative, relative_for
from edgeloc.tiles.codec import MAX_KEYPOINT_PX
from edgeloc.tiles.layout import KeyframeFeatures
from edgeloc.types import BoolArray, Float32Array, IntArray
from edgeloc_tools.mapping.fix_calibration import fit_fix_calibration
from edgeloc_tools.mapping.held_out import (
    Describing,
    HeldOutFrame,
    held_out_frame,
    keyframes_of,
    query_of,
)
from edgeloc_tools.mapping.tracks import MappingImage
from edgeloc_tools.progress import Progress, silent


def keyframe_features(
    images: Sequence[MappingImage],
    tracks: tuple[IntArray, IntArray, IntArray],
    *,
    per_keyframe: int,
    quantizer: ProductQuantizer | None,
    left_out: BoolArray | None = None,
) -> KeyframeFeatures:
    """Return the features of each image that are most likely to be found again.

    Those that most other images have found come first; of equals, the strongest
    detections, as the images list them.

    Parameters
    ----------
    images : sequence of MappingImage
        All mapping images.
    tracks : tuple of three ndarray of shape (N,), int64
        As `join_tracks` gives them.
    per_keyframe : int
        Most features of each.
    quantizer : ProductQuantizer or None
        Of their descriptors; None = as the family stores them.
    left_out : ndarray of shape (K,), bool, optional
        Images that nobody knows of (held-out frames): they get no features, and do not
        count.
    """
    track_idx, image_idx, keypoint_idx = tracks
    known = np.ones(len(images), bool) if left_out is None else ~left_out
    length = np.bincount(
        track_idx[known[image_idx]], minlength=int(track_idx.max()) + 1
    )
    first = np.cumsum([0, *(len(i.keypoints) for i in images)])
    worth = np.zeros(first[-1], np.int64)
    worth[first[image_idx] + keypoint_idx] = length[track_idx]
    rows = [
        np.argsort(-worth[first[i] : first[i + 1]], kind="stable")[:per_keyframe]
        if known[i]
        else np.zeros(0, np.int64)
        for i in range(len(images))
    ]
    descriptors: npt.NDArray[np.generic] = np.concatenate(
        [image.stored[r] for image, r in zip(images, rows, strict=True)]
    )
    if quantizer is not None:
        descriptors = quantizer.encode(
            np.concatenate(
                [image.descriptors[r] for image, r in zip(images, rows, strict=True)]
            )
        )
    keypoints = np.concatenate(
        [image.keypoints[r] for image, r in zip(images, rows, strict=True)]
    )
    return KeyframeFeatures(
        offsets=np.cumsum([0, *(len(r) for r in rows)]),
        keypoints=np.clip(keypoints, 0.0, MAX_KEYPOINT_PX),
        sigmas=np.concatenate(
            [image.sigmas[r] for image, r in zip(images, rows, strict=True)]
        ),
        descriptors=descriptors,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureHeldOut:
    """How held-out frames localized with keyframe features, by method.

    Parameters
    ----------
    frames : mapping of str to sequence of HeldOutFrame
        By "local_sfm" and "relative".
    """

    frames: Mapping[str, Sequence[HeldOutFrame]]

    def calibration(self, method: str) -> FixCalibration:
        """Return what makes the covariances of a method honest."""
        known = [
            (frame.xi, frame.covariance)
            for frame in self.frames[method]
            if frame.xi is not None and frame.covariance is not None
        ]
        return fit_fix_calibration([xi for xi, _ in known], [cov for _, cov in known])

    def to_arrays(self) -> dict[str, Float32Array]:
        """Return the calibrations as a site stores them."""
        return {
            f"{method}_calibration": self.calibration(method).to_array()
            for method in self.frames
        }

    def facts(self) -> dict[str, int | float]:
        """Return the figures for a build report."""
        facts: dict[str, int | float] = {}
        for method, frames in self.frames.items():
            errors = [frame.position_error for frame in frames if frame.localized]
            facts[f"held_out_{method}_localized"] = len(errors)
            facts[f"held_out_{method}_median_error"] = (
                round(float(np.median(errors)), 6) if errors else -1.0
            )
        return facts


def localize_held_out_by_features(
    images: Sequence[MappingImage],
    global_codes: npt.NDArray[np.generic],
    query_vectors: Float32Array,
    *,
    folds: Sequence[tuple[IntArray, IntArray]],
    remake: Callable[[BoolArray], KeyframeFeatures],
    describing: Describing,
    family: FeatureFamily,
    coarse: CoarseCalibration,
    num_retrieved: int = 10,
    progress: Progress = silent,
) -> FeatureHeldOut:
    """Localize held-out mapping frames by LOCAL_SFM and by RELATIVE.

    Parameters
    ----------
    images, global_codes, query_vectors, folds, describing, num_retrieved, progress
        As for `localize_held_out`.
    remake : callable
        From the images that are left out to the features of the others.
    family : FeatureFamily
        Of the features.
    coarse : CoarseCalibration
        Of the site.
    """
    local_sfm, relative = local_sfm_for(family), relative_for(family)
    total = sum(len(asked) for _, asked in folds)
    frames: dict[str, list[HeldOutFrame]] = {"local_sfm": [], "relative": []}
    for number, (run, asked) in enumerate(folds):
        left_out = np.zeros(len(images), dtype=bool)
        left_out[run] = True
        features = remake(left_out)
        _, index = keyframes_of(images, global_codes, ~left_out, describing)
        for idx in asked.tolist():
            query = query_of(images[idx], query_vectors[idx])
            found = index.search(query.global_descriptor, k=num_retrieved).keyframe_ids
            views = KeyframeViews(
                cameras=[images[i].camera for i in found.tolist()],
                poses=[images[i].cam_from_world for i in found.tolist()],
                features=features.of(found),
            )
            matches = match_keyframes(
                query,
                views,
                decode=describing.decode_landmarks,
                options=local_sfm.match,
            )
            answers: dict[str, Candidate] = {
                "local_sfm": localize_by_local_sfm(
                    query,
                    views,
                    matches,
                    calibration=FixCalibration(),
                    options=local_sfm,
                ),
                "relative": localize_by_relative(
                    query,
                    views,
                    matches,
                    calibration=FixCalibration(),
                    coarse=coarse,
                    options=relative,
                ),
            }
            for method, answer in answers.items():
                frames[method].append(held_out_frame(images[idx], idx, number, answer))
            progress("held-out frames", len(frames["relative"]), total)
    return FeatureHeldOut(frames=frames)
