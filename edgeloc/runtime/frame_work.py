"""One frame while it is answered: what is known of it, each thing computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from edgeloc.features.extract import (
    extract_prepared,
    prepare_image,
    quarter_turned,
    to_grey,
)
from edgeloc.features.learned import LearnedFamily, LearnedRetrieval
from edgeloc.inference.network import Submitted
from edgeloc.localize.candidate import Candidate, FrameTrace, Query
from edgeloc.localize.keyframe_matches import KeyframeMatches, KeyframeViews
from edgeloc.localize.near_keyframes import nearest_keyframes
from edgeloc.localize.pose_prior import PosePrior, plausible_keyframes
from edgeloc.runtime.following import Prediction
from edgeloc.runtime.ladder import STEPS, Attempt, step_cost_ns
from edgeloc.runtime.site_parts import SiteParts
from edgeloc.types import (
    ByteArray,
    Frame,
    FrameBudget,
    IntArray,
    PoseEstimate,
    RetrievalResult,
)

_NUM_NEAR = 3
"""Keyframes around the last fix that are looked at whatever retrieval says."""

_TURN_GAIN = 0.05
"""Cosine by which a turned picture must look more like a keyframe: 0.13 and more where
the camera was rolled, hardly anything where the place is another."""

_FEW_FEATURES = 50
"""A picture with fewer shows nothing, turned or not."""

_REACH_KEYFRAMES = 8.0
"""Keyframes help within so many distances of keyframes from the camera."""


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
    turns : int
        Right angles by which the networks see the picture turned counterclockwise.

    Attributes
    ----------
    prediction : Prediction or None
        Where the camera should be, from the frames before.
    measured, prior : PosePrior
        What other sensors say about the frame, and the part of it that is believed.
    attempt : Attempt
        The step of the ladder that is being taken, with its knobs.
    candidates : dict of str to Candidate
        What steps said, by their names in capitals.
    skipped : set of str
        Steps for which there was no time.
    done : set of str
        Stages that ran.
    num_compared : int
        Keyframes that retrieval compared with the frame.
    keyframe_matches : tuple of KeyframeViews and KeyframeMatches, or None
        Retrieved keyframes and the frame's matches with their features.
    begin_ns : int
        When work on the frame began.
    """

    def __init__(
        self,
        parts: SiteParts,
        frame: Frame,
        budget: FrameBudget,
        *,
        offer: Callable[[PoseEstimate], None] | None = None,
        turns: int = 0,
    ) -> None:
        self._parts = parts
        self.turns = turns
        self.frame = frame
        self.budget = budget
        self.begin_ns = budget.clock.now_ns()
        self.offer = offer
        self.prediction: Prediction | None = None
        self.measured = self.prior = PosePrior()
        self.attempt = Attempt(step=STEPS["lost"])
        self.candidates: dict[str, Candidate] = {}
        self.skipped: set[str] = set()
        self.done: set[str] = set()
        self._grey: ByteArray | None = None
        self._begun: Submitted | None = None
        self._query: Query | None = None
        self._retrieved: RetrievalResult | None = None
        self._narrowed = self._anywhere = self._turned = False
        self.num_compared = 0
        self.keyframe_matches: tuple[KeyframeViews, KeyframeMatches] | None = None

    @property
    def has_no_features(self) -> bool:
        """Whether the picture was looked at, and is empty."""
        return self._query is not None and len(self._query.features) == 0

    def trace(self) -> FrameTrace:
        """Return how the answer came about."""
        return FrameTrace(
            retrieved=self._retrieved,
            query=self._query,
            candidates=self.candidates,
            num_compared=self.num_compared,
        )

    def grey(self) -> ByteArray:
        """Return the grey picture, (H, W), kept beyond the frame."""
        if self._grey is None:
            with self._parts.timer.stage("preprocess"):
                image = self.frame.image
                # The frame's memory may be used again.
                self._grey = image.copy() if image.ndim == 2 else to_grey(image)
        return self._grey

    def mask(self) -> ByteArray | None:
        """Return where features are unwanted, (H, W) uint8, 0 there; None = nowhere.

        It may cost what the step that is taken leaves of the frame's time.
        """
        parts, attempt = self._parts, self.attempt
        if parts.masks is None:
            return None
        needed_ns = step_cost_ns(
            attempt.step,
            parts.timer,
            setting=attempt.setting,
            done=frozenset(self.done),
        )
        spare_ns = self.budget.remaining_ns - needed_ns
        return parts.masks.mask(self.frame, parts.timer, spare_ns=spare_ns)

    def query(self) -> Query:
        """Return the local features; without a global descriptor before `retrieved`."""
        if self._query is None:
            parts, attempt = self._parts, self.attempt
            spec = parts.site.manifest.family
            with parts.timer.stage("preprocess"):
                if "retrieve" in attempt.step.stages:
                    # A GPU describes the picture while the CPU prepares it.
                    self._begun = parts.retrieval.begin(self._seen(self.turns))
                prepared = prepare_image(
                    self.frame.image, parts.family, max_side_px=spec.max_side_px
                )
            mask = self.mask()
            wanted = parts.options.max_keypoints or spec.max_keypoints
            with parts.timer.stage("features", setting=attempt.setting):
                features = extract_prepared(
                    prepared,
                    parts.family,
                    max_keypoints=max(1, round(wanted * attempt.settings.keypoints)),
                    mask=mask,
                    turns=self.turns,
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

    def widen(self) -> bool:
        """Look everywhere from now on, and return whether that is anything new."""
        if not self._narrowed or self._anywhere:
            return False
        self._anywhere = True
        self._retrieved = self.keyframe_matches = None
        self.done.discard("retrieve")
        return True

    def turn(self) -> bool:
        """Turn the picture to where retrieval knows it best.

        Networks know the world upright, within about 45 degrees. Of four right angles
        one is within that, and similarity tells which.

        Returns
        -------
        bool
            Whether the picture is seen in another way from now on.
        """
        retrieval = self._parts.retrieval
        if (
            self._turned
            or self._query is None
            or len(self._query.features) < _FEW_FEATURES
            or not isinstance(retrieval, LearnedRetrieval)
            or not isinstance(self._parts.family, LearnedFamily)
        ):
            return False
        self._turned = True
        found = self.retrieved()
        score = float(found.scores[0]) if len(found) else -1.0
        others = [turns for turns in range(4) if turns != self.turns]
        with self._parts.timer.stage("turn"):
            scores = [self._likeness(turns) for turns in others]
        if max(scores) < score + _TURN_GAIN:
            return False
        self.turns = others[int(np.argmax(scores))]
        self._query = self._retrieved = self._begun = self.keyframe_matches = None
        self.done -= {"features", "retrieve"}
        return True

    def _likeness(self, turns: int) -> float:
        """Return the cosine of the turned picture with the keyframe most like it."""
        parts = self._parts
        vector = parts.retrieval.global_descriptor(
            self._seen(turns), np.zeros((0, 0), np.float32)
        )
        found = parts.index.search(vector, k=1)
        return float(found.scores[0]) if len(found) else -1.0

    def _seen(self, turns: int) -> ByteArray:
        return quarter_turned(self.frame.image, turns)

    def retrieved(self) -> RetrievalResult:
        """Return the keyframes that look like the frame, and those around the prior."""
        if self._retrieved is None:
            query = self.query()
            with self._parts.timer.stage("retrieve"):
                vector = self._parts.retrieval.global_descriptor(
                    self._seen(self.turns), query.descriptors, begun=self._begun
                )
                self._query = replace(query, global_descriptor=vector)
                self._retrieved = self._search(self._query)
            self.done.add("retrieve")
        return self._retrieved

    def _search(self, query: Query) -> RetrievalResult:
        parts, prediction = self._parts, self.prediction
        keyframes = parts.site.keyframes
        among = None if self._anywhere else self._plausible()
        found = parts.index.search(
            query.global_descriptor, k=parts.options.num_retrieved, among=among
        )
        self.num_compared += parts.index.num_compared
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

    def _plausible(self) -> IntArray | None:
        """Return the rows of keyframes that the prior allows; None = all.

        A prior that allows none is of another place than the map's, or wrong.
        """
        parts = self._parts
        reach = _REACH_KEYFRAMES * parts.coarse.keyframe_spacing
        rows = plausible_keyframes(self.prior, parts.site.keyframes, reach=reach)
        if rows is None or len(rows) == 0:
            return None
        self._narrowed = True
        return rows
