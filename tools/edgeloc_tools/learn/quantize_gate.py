"""What a variant must still do before its file is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import onnx

from edgeloc.errors import ConfigError, ModelError
from edgeloc.inference.network import Network
from edgeloc.types import FloatArray
from edgeloc_tools.evaluate.correspondence import KnownWarp, apply
from edgeloc_tools.learn.agreement import (
    INLIER_PX,
    MIN_MATCHES,
    FeatureProbe,
    RetrievalProbe,
    match_pair,
)
from edgeloc_tools.learn.candidate import Workbench, digest
from edgeloc_tools.mapping.work import Arrays, WorkFolder
from edgeloc_tools.progress import Progress, silent


@dataclass(frozen=True, slots=True, kw_only=True)
class GateScore:
    """How well a network does the task.

    Parameters
    ----------
    recall : float
        Share of the queries that come out well.
    errors : tuple of float
        Of each query, inf where there was no answer; empty where none is defined.
    """

    recall: float
    errors: tuple[float, ...] = ()

    @property
    def median_error(self) -> float:
        """Of all queries; nan without any."""
        return float(np.median(self.errors)) if self.errors else math.nan


def no_answers(num_queries: int) -> GateScore:
    """Return the score of a network that fails: every query is lost."""
    return GateScore(recall=0.0, errors=(math.inf,) * num_queries)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateLimits:
    """How much worse than float32 a variant may be.

    Parameters
    ----------
    max_loss : float
        Of recall, as a share: 0.01 is one point.
    max_median_ratio : float
        Of the median error.
    max_float_layers : int
        Layers that may go back to float.
    """

    max_loss: float = 0.01
    max_median_ratio: float = 1.1
    max_float_layers: int = 4

    def __post_init__(self) -> None:
        # A negative loss would ask for more than float32 itself does.
        for option, value, least in (
            ("max_loss", self.max_loss, 0.0),
            ("max_median_ratio", self.max_median_ratio, 1.0),
            ("max_float_layers", self.max_float_layers, 0),
        ):
            if not value >= least:
                raise ConfigError(f"{option} {value:g} must be at least {least:g}")

    def accept(self, score: GateScore, truth: GateScore) -> bool:
        """Whether a variant is good enough.

        Parameters
        ----------
        score, truth : GateScore
            Of the variant and of the float32 network.
        """
        # A share of n queries has steps of 1 / n; sums of such must not decide.
        if score.recall < truth.recall - self.max_loss - 1e-9:
            return False
        if not math.isfinite(truth.median_error):
            return True
        return score.median_error <= truth.median_error * self.max_median_ratio


class Gate(Protocol):
    """A task that networks are judged by."""

    @property
    def title(self) -> str:
        """What recall and error mean here, for people."""

    @property
    def error_name(self) -> str:
        """Name and unit of the error; "" when there is none."""

    def score(self, network: Network) -> GateScore:
        """Return how well a network does the task."""


class HomographyGate:
    """Finds the homography between pictures and warped copies of them.

    For images without poses: matching must still carry a geometric answer, although
    nobody knows where the camera was.

    Parameters
    ----------
    probe : FeatureProbe
        Has the pairs.
    """

    title = (
        "homographies between the calibration images and warped copies of them; recall "
        "is the share whose corners are within 3 px (the images have no poses: nothing "
        "was localized)"
    )
    error_name = "mean corner error [px]"

    def __init__(self, probe: FeatureProbe) -> None:
        self._probe = probe

    def score(self, network: Network) -> GateScore:
        """Return how well a network registers the pairs."""
        errors = []
        try:
            described = self._probe.describe_all(network)
        except ModelError:
            return no_answers(len(self._probe.pairs))
        for pair, (first, second) in zip(self._probe.pairs, described, strict=True):
            a, b = match_pair(first, second, max_ratio=self._probe.max_ratio)
            errors.append(_corner_error_px(a, b, pair.warp))
        within = [error <= INLIER_PX for error in errors]
        return GateScore(recall=float(np.mean(within)), errors=tuple(errors))


def _corner_error_px(a: FloatArray, b: FloatArray, warp: KnownWarp) -> float:
    """Return how far corners are off under the homography of matches; inf = none."""
    if len(a) < MIN_MATCHES:
        return math.inf
    found, _ = cv2.findHomography(a, b, cv2.USAC_MAGSAC, INLIER_PX)
    if found is None:
        return math.inf
    width, height = warp.size_a
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    moved = apply(np.asarray(found, np.float64), corners)
    error = np.linalg.norm(moved - apply(warp.b_from_a, corners), axis=1)
    return float(np.mean(error)) if np.all(np.isfinite(error)) else math.inf


class NeighbourGate:
    """Finds each image's nearest neighbour among the others, as float32 does.

    Parameters
    ----------
    probe : RetrievalProbe
        Has the images.
    """

    title = (
        "retrieval among the calibration images; recall is the share of images whose "
        "nearest neighbour by float32 is among the first five"
    )
    error_name = ""

    def __init__(self, probe: RetrievalProbe) -> None:
        self._probe = probe

    def score(self, network: Network) -> GateScore:
        """Return how well a network retrieves."""
        return GateScore(recall=self._probe.measure(network).recall_at_5)


class RememberingGate:
    """A gate that keeps its scores, so that interrupted work goes on.

    Parameters
    ----------
    gate : Gate
        Judges.
    bench : Workbench
        Opens the networks.
    work : WorkFolder
        Where scores are kept.
    key : str
        Names the gate: images, options and truth.
    """

    def __init__(
        self, gate: Gate, *, bench: Workbench, work: WorkFolder, key: str
    ) -> None:
        self._gate = gate
        self._bench = bench
        self._work = work
        self._key = key

    def score(self, model: onnx.ModelProto) -> GateScore:
        """Return how well a network does the task."""

        def make() -> Arrays:
            score = self._gate.score(self._bench.open(model))
            return {
                "recall": np.float64(score.recall),
                "errors": np.array(score.errors, np.float64),
            }

        key = {"step": "gate", "gate": self._key, "model": digest(model)}
        arrays = self._work.cached(key, make)
        return GateScore(
            recall=float(arrays["recall"]), errors=tuple(arrays["errors"].tolist())
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One network that was put to the gate.

    Parameters
    ----------
    float_layers : tuple of str
        Layers that stayed float32.
    score : GateScore
        How it did.
    accepted : bool
        Whether that was enough.
    """

    float_layers: tuple[str, ...]
    score: GateScore
    accepted: bool


def search_float_layers(
    make: Callable[[Collection[str]], onnx.ModelProto],
    score: Callable[[onnx.ModelProto], GateScore],
    *,
    truth: GateScore,
    order: Callable[[], Sequence[str]],
    limits: GateLimits,
    float_layers: Sequence[str] = (),
    progress: Progress = silent,
) -> tuple[onnx.ModelProto, list[Trial]]:
    """Return a network with few float layers that the gate lets through.

    Layers go back to float one by one, the most harmful first, until the gate opens;
    then each of them but the last is tried in INT8 again.

    Parameters
    ----------
    make : callable
        From the layers that stay float to a quantized network.
    score : callable
        Puts a network to the gate.
    truth : GateScore
        Of the float32 network.
    order : callable
        Returns the layers, most harmful first; called only when the first network
        fails.
    limits : GateLimits
        What is good enough.
    float_layers : sequence of str
        Float from the start, not counted.
    progress : callable
        Told about each trial.

    Returns
    -------
    model : ModelProto
        Of the last trial.
    trials : list of Trial
        The last one is accepted, or nothing is.
    """
    trials: list[Trial] = []

    def attempt(kept: Sequence[str]) -> Trial:
        got = score(make(kept))
        trial = Trial(
            float_layers=tuple(kept), score=got, accepted=limits.accept(got, truth)
        )
        trials.append(trial)
        progress("gate", len(trials), 2 * limits.max_float_layers + 1)
        return trial

    best = attempt(float_layers)
    if not best.accepted:
        waiting = [name for name in order() if name not in float_layers]
        added: list[str] = []
        while not best.accepted and waiting and len(added) < limits.max_float_layers:
            added.append(waiting.pop(0))
            best = attempt([*float_layers, *added])
        # The order is a guess: once a layer has helped, those before it may not have.
        for name in added[:-1] if best.accepted else ():
            fewer = [other for other in best.float_layers if other != name]
            trial = attempt(fewer)
            best = trial if trial.accepted else best
    trials.sort(key=lambda trial: trial is best)
    return make(best.float_layers), trials
