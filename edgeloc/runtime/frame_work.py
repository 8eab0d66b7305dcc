"""One frame while it is answered: what is known of it, each thing computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from edgeloc.features.extract import extract_prepared, prepare_image, to_grey
from edgeloc.inference.network import Submitted
from edgeloc.localize.candidate import Candidate, FrameTrace, Query
from edgeloc.localize.interpolate import nearest_keyframes
from edgeloc.runtime.following import Prediction
from edgeloc.runtime.ladder import STEPS, Attempt
from edgeloc.runtime.site_parts import SiteParts
from edgeloc.types import (
    ByteArray,
    Frame,
    FrameBudget,
    PoseEstimate,
    RetrievalResult,
)

_NUM_NEAR = 3
"""Keyframes around the last fix that are looked at whatever retrieval says."""


class FrameWork:
    """What is known of one frame.

    Parameters
    ----------
    parts : SiteParts
        The opened site.
    frame : Frame
        The frame.
    budget : FrameBudget
        Its time.
    offer : callable or None
        Takes candidates while the frame is worked on.

    Attributes
    ----------
    prediction : Prediction or None
        Where the camera should be, from the frames before.
    attempt : Attempt
        The step of the ladder that is being taken, with its knobs.
    candidates : dict of str to Candidate
        What steps said, by their names in capitals.
    skipped : set of str
        Steps for which there was no time.
    done : set of str
        Stages that ran.
    """

    def __init__(
        self,
        parts: SiteParts,
        frame: Frame,
        budget: FrameBudget,
        offer: Callable[[PoseEstimate], None] | None = None,
    ) -> None:
        self._parts = parts
        self.frame = frame
        self.budget = budget
        self.offer = offer
        self.prediction: Prediction | None = None
        self.attempt = Attempt(step=STEPS["lost"])
        self.candidates: dict[str, Candidate] = {}
        self.skipped: set[str] = set()
        self.done: set[str] = set()
        self._grey: ByteArray | None = None
        self._begun: Submitted | None = None
        self._query: Query | None = None
        self._retrieved: RetrievalResult | None = None

    @property
    def has_no_features(self) -> bool:
        """Whether the picture was looked at, and is empty."""
        return self._query is not None and len(self._query.features) == 0

    def trace(self) -> FrameTrace:
        """Return how the answer came about."""
        return FrameTrace(
            retrieved=self._retrieved, query=self._query, candidates=self.candidates
        )

    def grey(self) -> ByteArray:
        """Return the grey picture, (H, W), kept beyond the frame."""
        if self._grey is None:
            with self._parts.timer.stage("preprocess"):
                image = self.frame.image
                # The frame's memory may be used again.
                self._grey = image.copy() if image.ndim == 2 else to_grey(image)
        return self._grey

    def query(self) -> Query:
        """Return the local features; without a global descriptor before `retrieved`."""
        if self._query is None:
            parts, attempt = self._parts, self.attempt
            spec = parts.site.manifest.family
            with parts.timer.stage("preprocess"):
                if "retrieve" in attempt.step.stages:
                    # A GPU describes the picture while the CPU prepares it.
                    self._begun = parts.retrieval.begin(self.frame.image)
                prepared = prepare_image(
                    self.frame.image, parts.family, max_side_px=spec.max_side_px
                )
            wanted = parts.options.max_keypoints or spec.max_keypoints
            with parts.timer.stage("features", setting=attempt.setting):
                features = extract_prepared(
                    prepared,
                    parts.family,
                    max_keypoints=max(1, round(wanted * attempt.settings.keypoints)),
                )
                descriptors = parts.family.decode(features.descriptors)
            self.done.update(("preprocess", "features"))
            self._query = Query(
                camera=parts.camera,
                features=features,
                descriptors=descriptors,
                global_descriptor=np.zeros(parts.retrieval.dim, np.float32),
            )
        return self._query

    def retrieved(self) -> RetrievalResult:
        """Return the keyframes that look like the frame, and those around the prior."""
        if self._retrieved is None:
            query = self.query()
            with self._parts.timer.stage("retrieve"):
                vector = self._parts.retrieval.global_descriptor(
                    self.frame.image, query.descriptors, begun=self._begun
                )
                self._query = replace(query, global_descriptor=vector)
                self._retrieved = self._search(self._query)
            self.done.add("retrieve")
        return self._retrieved

    def _search(self, query: Query) -> RetrievalResult:
        parts, prediction = self._parts, self.prediction
        keyframes = parts.site.keyframes
        found = parts.index.search(
            query.global_descriptor, k=parts.options.num_retrieved
        )
        if prediction is None or not prediction.usable:
            return found
        near = nearest_keyframes(keyframes, prediction.cam_from_world, k=_NUM_NEAR)
        near = near[~np.isin(near, found.keyframe_ids)]
        scores = (
            parts.index.descriptors(keyframes.index_of(near)) @ query.global_descriptor
        )
        order = np.argsort(-scores, kind="stable")
        floor = found.scores[-1:] if len(found) else np.zeros(1, np.float32)
        return RetrievalResult(
            keyframe_ids=np.concatenate([found.keyframe_ids, near[order]]),
            scores=np.concatenate(
                [found.scores, np.minimum(scores[order], floor)]
            ).astype(np.float32),
        )
