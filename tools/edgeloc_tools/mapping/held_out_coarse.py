"""Mapping frames, held out of the map, and what retrieval says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeloc.features.keyframe_index import KeyframeIndex
from edgeloc.geometry.camera import normalized_from_pixels
from edgeloc.localize.coarse import CoarseCalibration
from edgeloc.localize.interpolate import InterpolateOptions, interpolate_pose
from edgeloc.localize.rerank import (
    Agreement,
    LocalView,
    RerankOptions,
    join_agreements,
    supporting_matches,
)
from edgeloc.localize.view_motion import ViewMotion
from edgeloc.tiles.layout import KeyframeTable
from edgeloc.types import (
    BoolArray,
    Float32Array,
    FloatArray,
    IntArray,
    RetrievalResult,
    Rigid3,
)
from edgeloc_tools.mapping.choose import surely_better
from edgeloc_tools.mapping.fit_motion import fit_view_motion
from edgeloc_tools.mapping.held_out import (
    Describing,
    held_out_folds,
    keyframes_of,
    pose_errors,
)
from edgeloc_tools.mapping.tracks import MappingImage

PASSED_OVER = (0.0, 0.1, 0.2, 0.4)
"""Shares of the keyframes that are left out, see `passing_over`."""

_SCORE_WEIGHTS = (5.0, 10.0, 40.0, None)
"""What similarity may count beside support; None = retrieval alone is trusted."""
_FAMILIES: Sequence[Mapping[str, Any]] = (
    {"num_keyframes": 1},
    {"num_keyframes": 3},
    {"weighting": "csi"},
    {"bandwidth_spacings": 4.0},
)
"""How an answer may differ from the default: see `InterpolateOptions`."""
_NEGLIGIBLE_SPACINGS = 0.1
"""Differences of errors below this matter to nobody: the map itself is coarser."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoarseSample:
    """How a held-out frame was interpolated.

    Parameters
    ----------
    score : float
        Cosine of the best retrieved keyframe.
    evidence : float
        What the errors go with, see `SpreadByScore`.
    position_error, rotation_error_rad : float
        Of the interpolated pose, m and rad.
    passed_over : bool
        Whether the keyframes that look most like it were left out.
    """

    score: float
    evidence: float
    position_error: float
    rotation_error_rad: float
    passed_over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOutList:
    """What retrieval finds for a held-out frame.

    Parameters
    ----------
    image_idx : int
        The frame.
    run : int
        Frames of one run are neighbours in time, and say nearly the same.
    idx : ndarray of shape (K,), int64
        Images found, most similar first.
    scores : ndarray of shape (K,), float32
        Cosines of their global descriptors.
    agreement : Agreement
        See `rerank.supporting_matches`.
    passed_over : bool
        Whether the images that look most like it were left out.
    """

    image_idx: int
    run: int
    idx: IntArray
    scores: Float32Array
    agreement: Agreement
    passed_over: bool


def held_out_lists(
    query_vectors: Float32Array,
    vectors: Float32Array,
    views: Sequence[LocalView],
    *,
    is_keyframe: BoolArray | None = None,
    max_frames: int = 40,
    num_retrieved: int = 10,
) -> list[HeldOutList]:
    """Return what is found for mapping frames among those that are not held out.

    Each several times: with all other keyframes, and without the share of them that
    looks most like it. A mapping walk knows itself better than later walks will: what
    these look like, and how far off they are, is found further down the list.

    Parameters
    ----------
    query_vectors, vectors : ndarray of shape (K, G), float32
        Global descriptors of all images, as a query and as the map has them.
    views : sequence of LocalView
        Of the same images.
    is_keyframe : ndarray of shape (K,), bool, optional
        Which may be found; all by default.
    max_frames : int
        Bound of the work.
    num_retrieved : int
        Keyframes looked at.
    """
    count = len(vectors)
    options = RerankOptions()
    lists: list[HeldOutList] = []
    run = 0
    for fold in held_out_folds(count, max_frames=max_frames):
        kept = np.ones(count, bool) if is_keyframe is None else is_keyframe.copy()
        kept[fold] = False
        candidates = np.flatnonzero(kept)
        if len(candidates) == 0:
            continue
        run += 1
        before = int(fold[0])
        for image_idx in fold.tolist():
            run += image_idx > before + 1
            before = image_idx
            scores = vectors[candidates] @ query_vectors[image_idx]
            order = np.argsort(-scores, kind="stable")
            for share in PASSED_OVER:
                top = order[round(share * len(order)) :][:num_retrieved]
                idx = candidates[top]
                lists.append(
                    HeldOutList(
                        image_idx=image_idx,
                        run=run,
                        idx=idx,
                        scores=np.asarray(scores[top], np.float32),
                        agreement=supporting_matches(
                            views[image_idx], [views[i] for i in idx.tolist()], options
                        ),
                        passed_over=share > 0,
                    )
                )
    return lists


def motion_of_lists(
    lists: Sequence[HeldOutList], poses: Sequence[Rigid3]
) -> ViewMotion:
    """Return how cameras move between frames and what is found for them.

    Parameters
    ----------
    lists : sequence of HeldOutList
        What is found.
    poses : sequence of Rigid3
        ``cam_from_world`` of all images.
    """
    if not lists:
        return ViewMotion()
    ways = [
        poses[idx] @ poses[found.image_idx].inverse()
        for found in lists
        for idx in found.idx.tolist()
    ]
    return fit_view_motion(
        join_agreements([found.agreement for found in lists]),
        np.stack([np.column_stack([way.R, way.t]) for way in ways]),
        np.repeat([found.run for found in lists], [len(found.idx) for found in lists]),
    )


def view_of(image: MappingImage) -> LocalView:
    """Return the strongest features of a mapping image, on the plane z = 1."""
    count = RerankOptions().num_query
    return LocalView(
        points=normalized_from_pixels(image.camera, image.keypoints[:count]),
        descriptors=image.descriptors[:count],
    )


class CoarseTrials:
    """Held-out mapping frames, to be interpolated between the others.

    Parameters
    ----------
    images : sequence of MappingImage
        All mapping images.
    global_codes : ndarray of shape (K, row)
        Their global descriptors, as a site stores them.
    query_vectors : ndarray of shape (K, G), float32
        The same as a query has them.
    keyframe_idx : ndarray of shape (n,), int64
        Images that are keyframes of the map.
    describing : Describing
        What they are compared by.
    spacing : float
        Median distance of keyframes, m.
    """

    def __init__(
        self,
        images: Sequence[MappingImage],
        global_codes: npt.NDArray[np.generic],
        query_vectors: Float32Array,
        *,
        keyframe_idx: IntArray,
        describing: Describing,
        spacing: float,
    ) -> None:
        everything = np.ones(len(images), bool)
        self._images, self._query_vectors = images, query_vectors
        self._table: KeyframeTable
        self._index: KeyframeIndex
        self._table, self._index = keyframes_of(
            images, global_codes, everything, describing
        )
        self._uncalibrated = CoarseCalibration(
            min_score=-1.0,
            position_sigma=1e-9,
            rotation_sigma_rad=1e-9,
            keyframe_spacing=spacing,
        )
        is_keyframe = ~everything
        is_keyframe[keyframe_idx] = True
        self._lists = held_out_lists(
            query_vectors,
            self._index.descriptors(np.arange(len(images))),
            [view_of(image) for image in images],
            is_keyframe=is_keyframe,
        )

    def samples(
        self, options: InterpolateOptions, *, checked: bool
    ) -> list[CoarseSample]:
        """Return how the frames are interpolated.

        Parameters
        ----------
        options : InterpolateOptions
            How.
        checked : bool
            Whether what was found is re-ranked: as a net below other methods it is not.
        """
        samples = []
        checked = checked and options.rerank is not None
        for found in self._lists:
            mean = interpolate_pose(
                query=self._query_vectors[found.image_idx],
                retrieved=RetrievalResult(keyframe_ids=found.idx, scores=found.scores),
                keyframes=self._table,
                index=self._index,
                calibration=self._uncalibrated,
                options=options,
                agreement=found.agreement if checked else None,
            )
            errors = pose_errors(mean, self._images[found.image_idx])
            assert errors is not None, "there is no gate"
            samples.append(
                CoarseSample(
                    score=float(found.scores[0]),
                    evidence=found.agreement.evidence
                    if checked
                    else float(found.scores[0]),
                    position_error=errors[0],
                    rotation_error_rad=errors[1],
                    passed_over=found.passed_over,
                )
            )
        return samples

    def choose(self) -> InterpolateOptions:
        """Return the options that serve the frames best.

        First how much similarity counts beside support, then what the answer is made
        of; each time the default, unless something else is surely better. What pictures
        tell about the way from keyframes is seen on the frames, too.
        """
        chosen = InterpolateOptions()
        chosen = self._best([chosen, *map(chosen.weighed, _SCORE_WEIGHTS)])
        if chosen.rerank is not None:
            poses = [image.cam_from_world for image in self._images]
            chosen = replace(chosen, motion=motion_of_lists(self._lists, poses))
        return self._best([chosen, *(replace(chosen, **f) for f in _FAMILIES)])

    def _best(self, options: Sequence[InterpolateOptions]) -> InterpolateOptions:
        """Return the first options, or others whose position errors are smaller."""
        runs = np.array([found.run for found in self._lists], np.int64)
        losses = [self._losses(option) for option in options]
        return options[surely_better(losses, runs)]

    def _losses(self, options: InterpolateOptions) -> FloatArray:
        """Return the logarithms of position errors, (N,)."""
        samples = self.samples(options, checked=True)
        least = _NEGLIGIBLE_SPACINGS * self._uncalibrated.keyframe_spacing + 1e-9
        return np.log([sample.position_error + least for sample in samples])
